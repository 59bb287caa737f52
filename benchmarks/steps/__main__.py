"""Times single steps, whose states are carried from call to call: ours, torch's, ONNX Runtime's.

    python -m benchmarks.steps [--quick] [--only 'step/lstm-*'] [--output FILE.jsonl]

Peers take turns in one process (measure.py). Nothing of a workload is timed unless every peer's
steps are those of torch's layer in float64, as near as its weights are. Of the workloads, `step/*`
are medians, `tail/*` how long the slowest of many single steps take. Writes one JSON line a
workload (results/README.md), and prints the tables.
"""

from __future__ import annotations

import argparse
import copy
import fnmatch
import functools
import json
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.environment import describe
from benchmarks.measure import Budget, host_clock, interleave, latencies
from benchmarks.records import RESULTS, Record
from benchmarks.steps import report
from benchmarks.steps.peers import (
    CELL,
    COMPILED,
    MODULE,
    NAMES,
    NN,
    NN_INT8,
    ONNX,
    SPINNING,
    STREAM,
    Peer,
    Unavailable,
    peers,
)
from benchmarks.workloads import CELLS, TORCH_MODULES

ROWS, SIZES, LAYERS = (1, 16, 256), (64, 128, 256, 512, 1024), (1, 2)
QUICK_ROWS, QUICK_SIZES, QUICK_LAYERS = (1, 16), (64, 256), (1,)
TAIL_SIZE = 256
BUDGET = Budget(seconds=0.4, min_rounds=7, max_rounds=9)
QUICK_BUDGET = Budget(seconds=0.1, min_rounds=3, max_rounds=3)
# Turns, and steps in each.
TAIL, QUICK_TAIL = (50, 400), (3, 100)
# Of steps that are compared with the truth.
COMPARED_STEPS = 4
# By how a peer's name ends; of outputs, which are in [-1, 1], to those in float64. Weights of
# bfloat16 have 8 bits, of int8 as many, to which inputs are rounded, too; torch's int8 uses 7.
TOLERANCES = {NN_INT8: 0.1, "int8": 0.02, "bfloat16": 0.01, "": 1e-5}
# What takes part with one thread only: it tells of layers, and not of threads.
ONE_THREAD = (COMPILED, NN_INT8)
TAIL_PEERS = (STREAM, MODULE, NN, CELL, f"{ONNX} 1 thread")
# ONNX Runtime's threads spin for some 35 ms after a call.
SPIN_SECONDS = 0.05


@dataclass(frozen=True)
class Case:
    """One workload."""

    group: str
    cell: str
    layers: int
    rows: int
    size: int
    threads: int

    @property
    def name(self) -> str:
        """Unlike that of any other."""
        sizes = f"L{self.layers}-B{self.rows}-H{self.size}"
        return f"{self.group}/{self.cell}-{sizes}-threads{self.threads}"


def cases(quick: bool, threads: int) -> Iterator[Case]:
    """All workloads, few rows first; with one thread, and with all."""
    layers, sizes = (QUICK_LAYERS, QUICK_SIZES) if quick else (LAYERS, SIZES)
    for rows in QUICK_ROWS if quick else ROWS:
        for count in sorted({1, threads}):
            for cell in CELLS:
                for depth in layers:
                    for size in sizes:
                        yield Case("step", cell, depth, rows, size, count)
        if rows == 1:
            yield Case("tail", "lstm", 1, rows, TAIL_SIZE, 1)


def prepared(
    case: Case, makers: Mapping[str, Callable[[], Peer]], without: Collection[str]
) -> tuple[dict[str, Peer], dict[str, str]]:
    """The peers that run, and why others do not."""
    ready, skipped = {}, {}
    for name, make in makers.items():
        if case.group == "tail" and name not in TAIL_PEERS:
            continue
        if name in without:
            skipped[name] = "left out by --without"
        elif case.threads > 1 and name in ONE_THREAD:
            skipped[name] = "with one thread only"
        else:
            try:
                ready[name] = make()
            except Unavailable as error:
                skipped[name] = str(error)
    return ready, skipped


def differences(peer: Peer, xs: Tensor, truth: Tensor) -> float:
    """The largest difference of all steps."""
    outs = [peer.output(peer.step(peer.given(x))).double() for x in xs]
    return float((torch.stack(outs) - truth).abs().max())


def run(case: Case, without: Collection[str], quick: bool) -> Record:
    """Compares all peers with the truth, then times them."""
    torch.set_num_threads(case.threads)
    torch.manual_seed(0)
    theirs = TORCH_MODULES[case.cell](case.size, case.size, case.layers)
    theirs = theirs.eval().requires_grad_(False)
    ready, skipped = prepared(case, peers(theirs, case.rows), without)
    with torch.inference_mode():
        xs = torch.randn(COMPARED_STEPS, case.rows, case.size)
        truth = copy.deepcopy(theirs).double()(xs.double())[0]
        off = {name: differences(peer, xs, truth) for name, peer in ready.items()}
        for name, difference in off.items():
            kind = next(kind for kind in TOLERANCES if name.endswith(kind))
            if not difference <= TOLERANCES[kind]:  # not ">", which would let NaN pass
                raise SystemExit(f"{case.name}: {name} differs by {difference}, nothing is timed")
        calls = {name: functools.partial(p.step, p.given(xs[-1])) for name, p in ready.items()}
        times = tail(calls, quick) if case.group == "tail" else medians(calls, quick)
    figures = {name: {**times[name], "max_difference": off[name]} for name in ready}
    return {
        **{"name": case.name, "group": case.group, "cell": case.cell, "layers": case.layers},
        **{"B": case.rows, "T": 1, "I": case.size, "H": case.size, "dtype": "float32"},
        "threads": case.threads,
        "peers": figures | {name: {"skipped": why} for name, why in skipped.items()},
    }


def medians(calls: Mapping[str, Callable[[], object]], quick: bool) -> dict[str, dict[str, float]]:
    """Of steps in a row."""
    spinning = [calls[name] for name in SPINNING if name in calls]

    def clock(call: Callable[[], object], count: int) -> float:
        seconds = host_clock(call, count)
        if call in spinning:
            time.sleep(SPIN_SECONDS)
        return seconds

    timings = interleave(calls, QUICK_BUDGET if quick else BUDGET, clock)
    return {name: timing.summary() for name, timing in timings.items()}


def tail(calls: Mapping[str, Callable[[], object]], quick: bool) -> dict[str, dict[str, float]]:
    """Of every single step."""
    figures = {}
    for name, seconds in latencies(calls, *(QUICK_TAIL if quick else TAIL)).items():
        p50, p99, p999 = np.percentile(seconds, [50, 99, 99.9]).tolist()
        figures[name] = {"p50_s": p50, "p99_s": p99, "p999_s": p999, "max_s": max(seconds)}
        figures[name]["steps"] = len(seconds)
    return figures


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.steps", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--quick", action="store_true", help="few sizes and rounds: a minute")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="of workloads' names")
    parser.add_argument("--without", action="append", default=[], choices=NAMES)
    parser.add_argument("--output", type=Path, help="default: results/[short-]steps.jsonl")
    args = parser.parse_args(argv)
    threads = torch.get_num_threads()
    chosen = [c for c in cases(args.quick, threads) if fnmatch.fnmatchcase(c.name, args.only)]
    if not chosen:
        parser.error(f"--only {args.only} must match a workload, such as step/lstm-L1-B1-H64-*")
    partial = args.quick or args.only != "*" or args.without
    output = args.output or RESULTS / f"{'short-' if partial else ''}steps.jsonl"
    origin, records = describe("cpu"), []
    with output.open("w", encoding="utf-8") as file:
        for case in tqdm(chosen, unit="workload", disable=None):
            records.append({**run(case, args.without, args.quick), **origin})
            file.write(json.dumps(records[-1]) + "\n")
            file.flush()
    torch.set_num_threads(threads)
    print(report.tables(records))
    print(f"results: {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
