"""Lines of result files (results/README.md), and what is read off them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

Record = dict[str, Any]
Figures = dict[str, float]

RESULTS = Path(__file__).parent / "results"
OURS = "varlen_rnn"
NN = ("nn padded", "nn packed")


def load(*paths: Path) -> list[Record]:
    """The lines of all files; of a workload that occurs more than once, the last one."""
    records: dict[object, Record] = {}
    for path in paths:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
            record = json.loads(line)
            records[record["device"], record.get("name", number)] = record
    return list(records.values())


def chosen(records: Iterable[Record], **wanted: object) -> list[Record]:
    """Those whose fields have these values."""
    return [r for r in records if all(r[key] == value for key, value in wanted.items())]


def timed(record: Record) -> dict[str, Figures]:
    """The figures of the peers that were not skipped."""
    return {name: f for name, f in record["peers"].items() if "skipped" not in f}


def seconds(record: Record) -> dict[str, float]:
    """The median of every peer."""
    return {name: f["median_s"] for name, f in timed(record).items()}


def others(record: Record) -> dict[str, float]:
    """The same without ours."""
    return {name: s for name, s in seconds(record).items() if not name.startswith(OURS)}


def ratio(record: Record, keep: Callable[[str], bool] = lambda name: True) -> float | None:
    """How many times faster ours is than the fastest of some peers; None if there is none."""
    of_peers = [s for name, s in others(record).items() if keep(name)]
    return min(of_peers) / seconds(record)[OURS] if of_peers else None


def mean_ratio(
    records: Sequence[Record], keep: Callable[[str], bool] = NN.__contains__
) -> float | None:
    """The geometric mean of `ratio`; a peer counts only where it was timed."""
    values = [value for record in records if (value := ratio(record, keep)) is not None]
    return statistics.geometric_mean(values) if values else None


def spread(figures: Iterable[Figures]) -> float:
    """The widest distance between quartiles, relative to the median."""
    return max((f["q3_s"] - f["q1_s"]) / f["median_s"] for f in figures)


def spread_of(record: Record, peers: Collection[str] | None = None) -> str:
    """The same of all peers that were timed, or of some."""
    return f"{spread(f for name, f in timed(record).items() if not peers or name in peers):.0%}"


def with_all_threads(records: Sequence[Record]) -> list[Record]:
    """The records of the group "threads", joined by the same shapes' in the group "shapes"."""

    def key(record: Record) -> tuple[object, ...]:
        return tuple(record[k] for k in ("cell", "mode", "B", "T", "I", "H", "distribution"))

    fewer = chosen(records, group="threads")
    keys = list(dict.fromkeys(map(key, fewer)))
    joined = fewer + [r for r in chosen(records, group="shapes") if key(r) in keys]
    return sorted(joined, key=lambda r: (keys.index(key(r)), r["threads"]))


def number(value: float) -> str:
    """To three figures, or to one if there are more before the point."""
    return f"{value:.0f}" if value >= 99.95 else f"{value:.3g}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 1) -> str:
    """In Markdown; the first columns are texts, the others numbers."""
    rule = ["---"] * texts + ["---:"] * (len(header) - texts)
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *rows))


def origin(record: Record) -> str:
    """Where a line comes from."""
    return (
        f"{record['device_name'] or record['cpu']}, {record['cores']} cores, {record['isa']}, "
        f"torch {record['torch']}, ONNX Runtime {record['onnxruntime'] or 'not installed'}, "
        + (f"CUDA {record['cuda']}, cuDNN {record['cudnn']}, " if "cuda" in record else "")
        + f"commit {record['commit']}, {record['date']}"
        + ("; unchecked: the tests were skipped" if record.get("tests") == "skipped" else "")
    )


def origins(records: Iterable[Record]) -> str:
    """The machines, versions and commits of all lines."""
    return "Measured on: " + "; ".join(dict.fromkeys(map(origin, records))) + "."
