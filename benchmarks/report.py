"""Result files to tables and pictures.

    python -m benchmarks.report FILE.jsonl ...   # writes FILE.md and FILE.png beside the first one
    python -m benchmarks.report --publish        # from the committed results to README.md and docs/

What is published: the picture in docs/images/, and what stands between two markers in README.md and
docs/results.md. Tests fail where any of it is stale.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import headline, picture, quantized, tables
from benchmarks.environment import ROOT
from benchmarks.packages import report as packages
from benchmarks.records import RESULTS, Record, load
from benchmarks.steps import report as steps

BEGIN, END = "<!-- benchmark: begin -->", "<!-- benchmark: end -->"
SPEED = RESULTS / "zen5-avx512-cpu.jsonl"
FORMS = RESULTS / "zen3-avx2-cpu.jsonl"
ANOTHER_MACHINE = "On another machine than the tables above, not to be compared with them."


def published() -> list[Record]:
    """The results of `benchmarks.run` that the documentation shows."""
    records = load(SPEED, FORMS)
    if unchecked := [r["name"] for r in records if r["tests"] != "passed"]:
        raise ValueError(f"published results must have tests passed, got {unchecked[0]}")
    return records


def single_steps() -> list[Record]:
    """The results of `benchmarks.steps`, in one file or several."""
    return load(*sorted(RESULTS.glob("steps*.jsonl")))


def blocks() -> dict[str, str]:
    """What stands between the markers, by the file's path."""
    one_step = single_steps()
    int8 = [line for kind in ("", "-accuracy") for line in load(RESULTS / f"quantized{kind}.jsonl")]
    parts = {
        "Speed": tables.markdown(load(SPEED)),
        "Forms and state resets": f"{ANOTHER_MACHINE}\n\n{tables.markdown(load(FORMS))}",
        **({"One step": steps.tables(one_step)} if one_step else {}),
        "int8 weights": quantized.tables(int8),
        "Models of public packages": packages.markdown(load(RESULTS / "packages.jsonl")),
    }
    lines = headline.sentences(published()) + steps.sentences(one_step)
    return {
        "README.md": "".join(f"- {line}\n" for line in lines),
        "docs/results.md": "\n".join(f"## {title}\n\n{text}" for title, text in parts.items()),
    }


def between_markers(text: str) -> str:
    """What stands there now."""
    return "".join(text.partition(BEGIN)[2].partition(END)[0])


def publish(root: Path = ROOT) -> Iterator[Path]:
    """Writes all that is published; yields the paths."""
    for name, block in blocks().items():
        text = (root / name).read_text(encoding="utf-8")
        if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(END) < text.index(BEGIN):
            raise ValueError(f"{name} must have one line {BEGIN} and after it one {END}")
        before, after = text.split(BEGIN)[0], text.split(END)[1]
        (root / name).write_text(f"{before}{BEGIN}\n\n{block}\n{END}{after}", encoding="utf-8")
        yield root / name
    for theme in picture.THEMES:
        path = root / "docs" / "images" / f"speed-{theme}.svg"
        picture.draw(published(), path, theme)
        yield path


def write(records: Sequence[Record], path: Path) -> Iterator[Path]:
    """The tables beside a result file, and the picture where there is something to draw."""
    text = f"# Results of {path.stem}\n\n{tables.markdown(records)}"
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    yield path.with_suffix(".md")
    if picture.drawable(records):
        picture.draw(records, path.with_suffix(".png"))
        yield path.with_suffix(".png")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--publish", action="store_true", help="README.md and docs/")
    args = parser.parse_args(argv)
    if args.publish == bool(args.files):
        parser.error("either files or --publish must be given")
    records = load(*args.files)
    if args.files and not records:
        print("no results in these files", file=sys.stderr)
        return 1
    for path in publish() if args.publish else write(records, args.files[0]):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
