"""The tables of public packages."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from benchmarks.packages.check import THEIRS, TOLERANCES
from benchmarks.records import OURS, Record, number, origins, spread, table

HEADER = [
    "package",
    "model",
    "layers",
    *TOLERANCES,
    "inference: ms",
    "",
    "training: ms",
    "",
    "spread",
]

LEGEND = """\
Differences are relative to the largest value: of an output, of the model's gradients, and of the
weights of a layer and the outputs after a step of SGD; `float64`: of the gradients of a layer, in
float64 (where the package takes it). Also each `state_dict` loads into the other model. Times:
medians of whole calls, training without the optimizer, nn → varlen_rnn, in turn. Spread: the widest
range between quartiles."""


def speed(figures: Mapping[str, Mapping[str, float]]) -> float:
    """How many times as fast the converted model is."""
    return figures[THEIRS]["median_s"] / figures[OURS]["median_s"]


def compared(record: Record) -> bool:
    """Whether the model ran, before and after."""
    return "differences" in record


def _milliseconds(figures: Mapping[str, Mapping[str, float]] | None) -> list[str]:
    if figures is None:
        return ["", ""]
    before, after = (number(figures[name]["median_s"] * 1e3) for name in (THEIRS, OURS))
    return [f"{before} → {after}", f"{speed(figures):.2f} ×"]


def _row(record: Record) -> list[str]:
    """What was found, or why there is nothing; a failure comes first."""
    package = f"{record['package']} {record['version'] or ''}".strip()
    if record["recipe"]:
        package = f"{record['name']} ({package})"
    said = [f"**{key}**: {record[key]}" for key in ("failed", "skipped") if key in record]
    if not compared(record):
        text = said[0].replace("|", "\\|").replace("\n", " ")
        return [package, text] + [""] * (len(HEADER) - 2)
    found = record["differences"]
    layers = [f"{count} {kind}" for kind, count in record["layers"].items()]
    layers += [f"{len(record['left'])} left"] if record["left"] else []
    timed = [figures for key in ("inference", "training") if (figures := record.get(key))]
    peers = [figures[name] for figures in timed for name in (OURS, THEIRS)]
    return [
        package,
        "; ".join([record["model"], *said]),
        ", ".join(layers),
        *("" if (value := found.get(what)) is None else f"{value:.1e}" for what in TOLERANCES),
        *_milliseconds(record["inference"]),
        *_milliseconds(record.get("training")),
        f"{spread(peers):.0%}",
    ]


def _means(records: Sequence[Record]) -> str:
    parts = []
    for mode in ("inference", "training"):
        speeds = [speed(record[mode]) for record in records if mode in record]
        parts.append(f"{statistics.geometric_mean(speeds):.2f} in {mode}")
    return f"Times as fast, geometric mean: {', '.join(parts)}."


def markdown(records: Sequence[Record]) -> str:
    """Both tables, and where the numbers come from."""
    parts = []
    for title, recipe in (("Packages", False), ("Recipes", True)):
        if not (chosen := [record for record in records if record["recipe"] == recipe]):
            continue
        parts.append(f"### {title}\n\n{table(HEADER, map(_row, chosen), texts=3)}")
        if ran := [record for record in chosen if compared(record)]:
            failed = sum("failed" in record for record in chosen)
            parts.append(f"{len(ran)} compared, {failed} failed. {_means(ran)}")
    limits = ", ".join(f"{what} {limit:g}" for what, limit in TOLERANCES.items())
    threads = ", ".join(str(n) for n in sorted({r["threads"] for r in records if compared(r)}))
    parts.append(f"{LEGEND} Allowed: {limits}. Threads: {threads}. {origins(records)}")
    return "\n\n".join(parts) + "\n"
