"""Result files to Markdown tables and plots.

    python -m benchmarks.compare benchmarks/results/cpu.jsonl [--output DIR] [--readme README.md]

Writes DIR/NAME.md, DIR/NAME-throughput.png, -growth.png and -threads.png, NAME being that of the
first file and DIR where it lies. Of a workload that occurs more than once, the last line counts.
With --readme, the tables of `README_GROUPS` also replace what stands between two markers there.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks import plots
from benchmarks.records import (
    OURS,
    Record,
    load,
    others,
    ratio,
    spread,
    timed,
    with_all_threads,
)
from benchmarks.workloads import CELLS, MODES

BEGIN = "<!-- benchmark table: begin -->"
END = "<!-- benchmark table: end -->"
README_GROUPS = ("shapes", "growth", "step")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _peers(records: Sequence[Record]) -> list[str]:
    """Every peer with a number, in the order of the records."""
    return list(dict.fromkeys(name for record in records for name in timed(record)))


def _cells(record: Record, peers: Sequence[str], key: str, scale: float = 1.0) -> list[str]:
    """One number a peer, to three figures."""
    figures = timed(record)
    values = [figures[name][key] * scale if name in figures else None for name in peers]
    return ["" if v is None else f"{v:.0f}" if v >= 99.95 else f"{v:.3g}" for v in values]


def _shape(record: Record) -> str:
    size = f"{record['I']}" if record["I"] == record["H"] else f"{record['I']}, {record['H']}"
    return f"{record['B']}, {record['T']}, {size}"


def _rates(records: Sequence[Record], group: str) -> str:
    label = {
        "shapes": ("B, T, I = H", _shape),
        "lengths": ("lengths", lambda r: f"{r['distribution']} ({_shape(r)})"),
        "threads": ("B, T, I = H; threads", lambda r: f"{_shape(r)}; {r['threads']}"),
    }
    heading, name = label[group]
    peers = _peers(records)
    header = [heading, "valid", *peers, "of torch.mm", "to the best peer", "spread"]
    rows = [
        [
            name(record),
            f"{record['valid_share']:.0%}",
            *_cells(record, peers, "gflops"),
            f"{timed(record)[OURS]['mm_share']:.0%}",
            "" if (best := ratio(record)) is None else f"{best:.2f} ×",
            f"{spread(record):.0%}",
        ]
        for record in records
    ]
    return _table(header, rows) + "\n\n" + _means(records)


def _means(records: Sequence[Record]) -> str:
    """One sentence; a peer counts only where it was timed."""
    wanted: dict[str, Callable[[str], bool]] = {
        "the best peer": lambda name: True,
        "the better of nn padded and packed": lambda name: name in ("nn padded", "nn packed"),
        **{peer: peer.__eq__ for peer in dict.fromkeys(p for r in records for p in others(r))},
    }
    parts = []
    for name, keep in wanted.items():
        values = [value for record in records if (value := ratio(record, keep)) is not None]
        if values:
            parts.append(f"{statistics.geometric_mean(values):.2f} × {name}")
    return f"Geometric means of varlen_rnn's speed: {', '.join(parts)}."


def _growth(records: Sequence[Record]) -> str:
    peers = _peers(records)
    rows = [[str(r["T"]), *_cells(r, peers, "us_per_token"), f"{spread(r):.0%}"] for r in records]
    first, last = timed(records[0]), timed(records[-1])
    growth = [
        f"{name} {last[name]['us_per_token'] / first[name]['us_per_token']:.2f}"
        for name in peers
        if name in first and name in last
    ]
    steps = f"from T = {records[0]['T']} to {records[-1]['T']}"
    return _table(["T", *peers, "spread"], rows) + f"\n\nRatio {steps}: {', '.join(growth)}."


def _step(records: Sequence[Record]) -> str:
    peers = _peers(records)
    rows = [
        [r["cell"].upper(), *_cells(r, peers, "median_s", 1e6), f"{spread(r):.0%}"] for r in records
    ]
    return _table(["", *peers, "spread"], rows)


def _forms(records: Sequence[Record]) -> str:
    packed = "varlen_rnn packed"
    values = [
        figures[OURS]["median_s"] / figures[packed]["median_s"]
        for figures in map(timed, records)
        if packed in figures
    ]
    if not values:
        return ""
    return (
        "\nPadded + lengths takes "
        f"{statistics.geometric_mean(values):.3f} times as long as PackedSequence input "
        f"(geometric mean; {min(values):.3f} to {max(values):.3f})."
    )


def _sections(records: Sequence[Record], groups: Sequence[str]) -> Iterator[tuple[str, str]]:
    for group in groups:
        of_group = [r for r in records if r["group"] == group]
        if group == "threads":
            of_group = with_all_threads(records)
        if group == "step" and of_group:
            sizes = f"B = {of_group[0]['B']}, T = {of_group[0]['T']}, H = {of_group[0]['H']}"
            yield f"One streaming step, {sizes}: µs", _step(of_group)
            continue
        for cell in CELLS:
            for mode in MODES:
                if chosen := [r for r in of_group if (r["cell"], r["mode"]) == (cell, mode)]:
                    name = f"{cell.upper()}, {mode}"
                    if group == "growth":
                        sizes = f"B = {chosen[0]['B']}, H = {chosen[0]['H']}"
                        yield f"{name}, {sizes}: µs a valid token by length", _growth(chosen)
                    else:
                        text = _rates(chosen, group) + _forms(chosen)
                        yield f"{name}, by {group}: GF on valid tokens", text


def markdown(records: Sequence[Record], groups: Sequence[str]) -> str:
    """All tables, and where the numbers come from."""
    parts = []
    for device, dtype in dict.fromkeys((r["device"], r["dtype"]) for r in records):
        chosen = [r for r in records if (r["device"], r["dtype"]) == (device, dtype)]
        for title, text in _sections(chosen, groups):
            usual = (device, dtype) == ("cpu", "float32")
            parts.append(f"**{title}{'' if usual else f' ({device}, {dtype})'}**\n\n{text}")
    origins = dict.fromkeys(
        f"{r['device_name'] or r['cpu']}, {r['cores']} cores, {r['isa']}, torch {r['torch']}, "
        f"ONNX Runtime {r['onnxruntime'] or 'not installed'}, commit {r['commit']}, {r['date']}"
        + ("" if r["tests"] == "passed" else "; unchecked: the tests were skipped")
        for r in records
    )
    threads = max(r["threads"] for r in records)
    parts.append(
        f"Medians, threads unless stated: {threads}. Spread: the widest range between quartiles. "
        + "Measured on: "
        + "; ".join(origins)
        + "."
    )
    return "\n\n".join(parts) + "\n"


def write_readme(readme: Path, records: Sequence[Record]) -> None:
    """Replaces what stands between the markers; refuses numbers that nothing vouches for."""
    if unchecked := [r["name"] for r in records if r["tests"] != "passed"]:
        raise ValueError(f"{readme} must show results with tests passed, got {unchecked[0]}")
    text = readme.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(END) < text.index(BEGIN):
        raise ValueError(f"{readme} must have one line {BEGIN} and after it one {END}")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    table = markdown(records, README_GROUPS)
    readme.write_text(f"{before}{BEGIN}\n\n{table}\n{END}{after}", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, metavar="DIR")
    parser.add_argument("--readme", type=Path, metavar="FILE", help="a file with the two markers")
    args = parser.parse_args(argv)
    records = load(args.files)
    if not records:
        print("no results in these files", file=sys.stderr)
        return 1
    output = args.output or args.files[0].parent
    output.mkdir(parents=True, exist_ok=True)
    stem = args.files[0].stem
    text = markdown(records, ("shapes", "lengths", "growth", "step", "threads"))
    (output / f"{stem}.md").write_text(f"# Results of {stem}\n\n{text}", encoding="utf-8")
    print(text)
    for path in plots.write(records, with_all_threads(records), output, stem):
        print(f"plot: {path}")
    if args.readme:
        write_readme(args.readme, records)
    return 0


if __name__ == "__main__":
    sys.exit(main())
