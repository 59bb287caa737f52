"""Result files to Markdown tables and plots.

    python -m benchmarks.compare benchmarks/results/cpu.jsonl [--output DIR] [--readme README.md]

Writes DIR/NAME.md, DIR/NAME-throughput.png, -growth.png, -threads.png and -grid.png, NAME being
that of the first file and DIR where it lies. Of a workload that occurs more than once, the last
line counts. With --readme, the tables of `README_GROUPS` also replace what stands between two
markers there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import plots, tables
from benchmarks.records import Record, load, with_all_threads

BEGIN = "<!-- benchmark table: begin -->"
END = "<!-- benchmark table: end -->"
GROUPS = ("shapes", "lengths", "growth", "step", "forms", "resets", "threads", "grid")
README_GROUPS = ("shapes", "growth", "step", "forms", "resets")


def markdown(records: Sequence[Record], groups: Sequence[str]) -> str:
    """All tables, and where the numbers come from."""
    parts = []
    for device, dtype in dict.fromkeys((r["device"], r["dtype"]) for r in records):
        chosen = [r for r in records if (r["device"], r["dtype"]) == (device, dtype)]
        for title, text in tables.sections(chosen, groups):
            usual = (device, dtype) == ("cpu", "float32")
            parts.append(f"**{title}{'' if usual else f' ({device}, {dtype})'}**\n\n{text}")
    origins = dict.fromkeys(
        f"{r['device_name'] or r['cpu']}, {r['cores']} cores, {r['isa']}, torch {r['torch']}, "
        f"ONNX Runtime {r['onnxruntime'] or 'not installed'}, "
        + (f"CUDA {r['cuda']}, cuDNN {r['cudnn']}, " if "cuda" in r else "")
        + f"commit {r['commit']}, {r['date']}"
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
    text = markdown(records, GROUPS)
    (output / f"{stem}.md").write_text(f"# Results of {stem}\n\n{text}", encoding="utf-8")
    print(text)
    for path in plots.write(records, with_all_threads(records), output, stem):
        print(f"plot: {path}")
    if args.readme:
        write_readme(args.readme, records)
    return 0


if __name__ == "__main__":
    sys.exit(main())
