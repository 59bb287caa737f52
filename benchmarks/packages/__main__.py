"""Compares public packages' models before and after `varlen_rnn.convert`: `make test-packages`.

    python -m benchmarks.packages [--only PATTERN] [--quick] [--output FILE.jsonl]

Each case has a process of its own. Writes one JSON line a case, and prints the tables.
The exit status is 1 if a model differs or fails after its conversion, or if none was compared; a
package that is not there, or fails with torch's own layers, is a row that says so.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.environment import ROOT, describe, installed
from benchmarks.packages import report
from benchmarks.packages.catalogue import CASES
from benchmarks.packages.check import BUDGET, QUICK_BUDGET, check
from benchmarks.records import RESULTS, Record

ONE = (sys.executable, "-m", "benchmarks.packages")


def run(name: str, quick: bool, one: Sequence[str] = ONE) -> Record:
    """The record of a case, from a process of its own; "failed" if that fails."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "record.json"
        process = subprocess.run(
            [*one, "--only", name, "--record", str(file), *(["--quick"] if quick else [])],
            cwd=ROOT,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if process.returncode == 0:
            record: Record = json.loads(file.read_text(encoding="utf-8"))
            return record
    print(process.stdout, flush=True)
    said = process.stdout.strip().splitlines() or [f"exit status {process.returncode}"]
    return {"failed": said[-1]}


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.packages", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--only", default="*", metavar="PATTERN", help="of cases' names")
    parser.add_argument("--quick", action="store_true", help="three rounds of times")
    parser.add_argument("--output", type=Path, default=RESULTS / "packages.jsonl", metavar="FILE")
    # What such a process is called with: packages seed, patch and print as they like.
    parser.add_argument("--record", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.record:
        record = check(CASES[args.only].build, QUICK_BUDGET if args.quick else BUDGET)
        args.record.write_text(json.dumps(record), encoding="utf-8")
        return 0
    origin = describe("cpu")
    lines = []
    with args.output.open("w", encoding="utf-8") as file:
        for name, case in CASES.items():
            if not fnmatch.fnmatchcase(name, args.only):
                continue
            about = {"package": case.package, "version": installed(case.package)}
            print(f"{name} ...", flush=True)
            found = run(name, args.quick)
            lines.append({"name": name, "recipe": case.recipe, **about, **found, **origin})
            file.write(json.dumps(lines[-1]) + "\n")
            file.flush()
    text = report.markdown(lines)
    print(text)
    failed = any("failed" in line for line in lines)
    return 1 if failed or not any(report.compared(line) for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
