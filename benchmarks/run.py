"""Times varlen_rnn and its peers on the same batches, and writes one JSON line a workload.

    python -m benchmarks.run [--full] [--device cuda] [--dtype float64] [--only 'shapes/lstm-*']
    python -m benchmarks.run --grid [--full] --device cuda

Tests come first: a short list of the project's own, and then, before anything of a workload is
timed, a comparison of every peer's numbers with ours. Without green tests nothing is reported, and
no workload is reported whose results differ. What the fields mean: results/README.md.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks import graphs, grid, headline, report
from benchmarks.environment import ROOT, describe
from benchmarks.measure import Budget, cuda_clock, host_clock, interleave
from benchmarks.peers import PEERS, Prepared, unavailable
from benchmarks.records import OURS, RESULTS, Record, chosen, mean_ratio
from benchmarks.suites import suite
from benchmarks.workloads import CELLS, Workload

# The specification against torch.nn, ours against torch.nn on a part of the grid, and padding.
TESTS = (
    "tests/reference/test_reference.py",
    "tests/modules/test_padding.py",
    "tests/modules/test_equivalence.py",
)
CUDA_TESTS = ("tests/cuda/test_on_device.py", "tests/cuda/test_device_contract.py")
TEST_SELECTION = "not test_equivalence or I17"

MM = "torch.mm"
MM_SIZES = {"cpu": 2048, "cuda": 8192}
SHORT = Budget(seconds=0.5, min_rounds=3, max_rounds=8)
FULL = Budget(seconds=3.0, min_rounds=5, max_rounds=30)
GRID = Budget(seconds=0.1, min_rounds=5, max_rounds=10)
# `make bench` ends within five minutes: from here on no further workload of it is begun.
SHORT_LIMIT_SECONDS = 255.0
# Largest difference, relative to the largest value of the tensor.
TOLERANCES = {"float64": 1e-10, "float32": 1e-4, "tf32": 2e-2, "float16": 2e-2, "bfloat16": 1e-1}
# In 16 bits torch.nn rounds the sum of a weight's gradients after every step: no truth to hold to.
COMPARED_IN_16_BITS = ("output", "gradient of the input")
NOT_REPORTED = "not reported, because results differ"


class ResultsDiffer(Exception):
    """A peer computed something else than we did."""


def is_green(device_type: str) -> bool:
    """Runs a short list of tests in a process of its own; shows what they print if they fail."""
    options = ("-q", "-p", "no:cacheprovider", "-k", TEST_SELECTION)
    tests = CUDA_TESTS if device_type == "cuda" else TESTS
    command = [sys.executable, "-m", "pytest", *options, *tests]
    # One thread to begin with: the tests set the number that they are about.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, check=False, stdout=subprocess.PIPE, text=True
    )
    green = done.returncode == 0
    print("\n".join(done.stdout.strip().splitlines()[-1 if green else 0 :]), flush=True)
    return green


def compare_results(
    workload: Workload,
    prepared: Mapping[str, Prepared],
    captured: Mapping[str, graphs.Captured] | None = None,
) -> None:
    """Calls every peer that has results; raises `ResultsDiffer` unless all agree with ours.

    With ``captured``, holds what these graphs left behind to that instead.
    """
    tolerance = TOLERANCES[workload.dtype]
    expected = prepared[OURS].results(prepared[OURS].call())
    for name, peer in prepared.items():
        if peer.results is None or (captured is not None and name not in captured):
            continue
        got = peer.results(captured[name].results if captured is not None else peer.call())
        for what, truth in expected.items():
            if truth.element_size() == 2 and what not in COMPARED_IN_16_BITS:
                continue
            if got[what].shape != truth.shape:
                found = f"{list(got[what].shape)} instead of {list(truth.shape)}"
                raise ResultsDiffer(f"{workload.name}: {what} of {name} has shape {found}")
            error, largest = float((got[what] - truth).abs().max()), float(truth.abs().max())
            # Not "error >": that would let NaN pass.
            if not error <= tolerance * largest:
                found = f"{error:.1e}, its largest value being {largest:.1e}"
                raise ResultsDiffer(f"{workload.name}: {what} of {name} differs by {found}")


def _set_precision(dtype: str) -> None:
    """Full float32 for everyone, or TF32 for everyone: on a GPU cuDNN rounds by default, mm not."""
    precision = "tf32" if dtype == "tf32" else "ieee"
    torch.backends.cudnn.rnn.fp32_precision = precision
    torch.backends.cuda.matmul.fp32_precision = precision


def _matrix_product(dtype: torch.dtype, device: str) -> tuple[Callable[[], object], int]:
    """A large `torch.mm`, whose rate is the limit to hold results against, and its flops."""
    size = MM_SIZES[torch.device(device).type]
    a, b = torch.rand(2, size, size, device=device, dtype=dtype)
    out = torch.empty_like(a)

    def call() -> None:
        with torch.no_grad():
            torch.mm(a, b, out=out)

    return call, 2 * size**3


def device_times(
    workload: Workload, prepared: Mapping[str, Prepared], budget: Budget
) -> dict[str, dict[str, object]]:
    """What the GPU alone takes for each peer, after a look at what its graph computes."""
    calls = {name: peer.call for name, peer in prepared.items()}
    captured, reasons = graphs.capture_all(calls)
    compare_results(workload, prepared, captured)
    return graphs.kernel_times(calls, captured, budget, reasons=reasons)


def run_workload(workload: Workload, budget: Budget, device: str) -> Record:
    """Compares the peers' results, then times them; what a JSON line says about the workload."""
    torch.set_num_threads(workload.threads)
    on_cuda = torch.device(device).type == "cuda"
    if on_cuda:
        _set_precision(workload.dtype)
    batch = workload.batch(device)
    skipped = {name: unavailable(name, workload, device) for name in workload.peers}
    with torch.set_grad_enabled(workload.training):
        prepared = {name: PEERS[name](batch) for name, why in skipped.items() if not why}
        compare_results(workload, prepared)
        multiply, mm_flops = _matrix_product(workload.torch_dtype, device)
        calls = {name: peer.call for name, peer in prepared.items()}
        clock = cuda_clock if on_cuda else host_clock
        timings = interleave({**calls, MM: multiply}, budget, clock)
        on_device = device_times(workload, prepared, budget) if on_cuda else {}
    tokens, flops = int(batch.lengths.sum()), workload.flops()
    mm_gflops = mm_flops / timings[MM].summary()["median_s"] / 1e9

    def figures(name: str) -> dict[str, object]:
        summary = {**timings[name].summary(), **on_device.get(name, {})}
        if prepared[name].results is None:
            return summary
        gflops = flops / timings[name].summary()["median_s"] / 1e9
        return {
            **summary,
            "us_per_token": timings[name].summary()["median_s"] / tokens * 1e6,
            "gflops": gflops,
            "mm_share": gflops / mm_gflops,
        }

    return {
        "name": workload.name,
        "group": workload.group,
        "cell": workload.cell,
        "mode": workload.mode,
        "B": workload.rows,
        "T": workload.steps,
        "I": workload.input_size,
        "H": workload.hidden_size,
        "distribution": workload.distribution,
        "seed": workload.seed,
        "reset_probability": workload.reset_probability,
        "dtype": workload.dtype,
        "threads": workload.threads,
        "tokens": tokens,
        "valid_share": tokens / batch.valid.numel(),
        "flops": flops,
        "mm_gflops": mm_gflops,
        "peers": {
            name: {"skipped": why} if why else figures(name) for name, why in skipped.items()
        },
    }


def run(
    workloads: Sequence[Workload],
    budget: Budget,
    device: str,
    output: Path,
    tests: str,
    deadline: float | None = None,
) -> tuple[list[Record], bool]:
    """Runs all workloads and writes their lines; returns them, and whether all results agreed."""
    origin = {**describe(device), "tests": tests}
    records: list[Record] = []
    said: dict[str, list[str]] = {}
    left_out: Counter[str] = Counter()
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("w", encoding="utf-8") as lines:
        # One line that is drawn anew, and none where that is not possible.
        for workload in tqdm(workloads, unit="workload", disable=None):
            if deadline is not None and time.monotonic() > deadline:
                left_out[workload.group] += 1
                continue
            try:
                record = run_workload(workload, budget, device)
            except ResultsDiffer as error:
                said.setdefault(NOT_REPORTED, []).append(str(error))
                continue
            except torch.OutOfMemoryError:
                why = "left out, for the device's memory is too small"
                said.setdefault(why, []).append(workload.name)
                torch.cuda.empty_cache()
                continue
            for name, figures in record["peers"].items():
                if "skipped" in figures:
                    reason = f"{name} {figures['skipped']} ({workload.mode})"
                    said.setdefault("skipped", []).append(reason)
            records.append({**record, **origin})
            lines.write(json.dumps(records[-1]) + "\n")
            lines.flush()
    if left_out:
        groups = ", ".join(f"{count} of {group}" for group, count in left_out.items())
        print(f"left out, for the time is up: {groups}")
    for why, of in said.items():
        print(f"{why}: {', '.join(dict.fromkeys(of))}")
    return records, NOT_REPORTED not in said


def conclude(records: Sequence[Record], output: Path) -> None:
    """The answer, a small table, and where the rest is."""
    training = chosen(records, group="shapes", mode="training")
    for cell in CELLS:
        if mean_ratio(chosen(training, cell=cell)):
            print(headline.answer(records, cell, "on this machine"))
    if mean_ratio(training):
        print(f"\n{headline.milliseconds(records)}\n")
    written = report.write(records, output) if records else ()
    print(f"results: {', '.join(map(str, [output, *written]))}")


def main(argv: Sequence[str] | None = None, workloads: Sequence[Workload] | None = None) -> int:
    """The command line; returns the exit status. ``workloads`` replace those of the suite."""
    start = time.monotonic()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--full", action="store_true", help="everything; tens of minutes")
    parser.add_argument("--grid", action="store_true", help="cuda: the sizes of benchmarks/grid.py")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:INDEX")
    parser.add_argument("--dtype", default="float32", choices=TOLERANCES)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="at most")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="names as in --list")
    parser.add_argument("--output", type=Path, help="default: results/[short-]DEVICE.jsonl")
    parser.add_argument("--limit", type=float, help="seconds after which no workload is begun")
    tests = parser.add_mutually_exclusive_group()
    tests.add_argument("--skip-tests", action="store_true", help="mark all results as unchecked")
    tests.add_argument("--tests-passed", action="store_true", help="they just did: not run again")
    parser.add_argument("--list", action="store_true", help="print the workloads' names and stop")
    args = parser.parse_args(argv)
    device_type = torch.device(args.device).type
    if device_type not in MM_SIZES:
        parser.error(f"--device must be one of {', '.join(MM_SIZES)}, got {args.device}")
    if device_type != "cuda" and (args.grid or args.dtype == "tf32"):
        parser.error(f"--grid and --dtype tf32 must go with --device cuda, got {args.device}")
    if workloads is None and args.grid:
        workloads = grid.workloads(quick=not args.full)
    if workloads is None:
        workloads = suite(full=args.full, threads=args.threads, dtype=args.dtype)
    workloads = [w for w in workloads if fnmatch.fnmatchcase(w.name, args.only)]
    if args.list:
        print("\n".join(workload.name for workload in workloads))
        return 0
    if not workloads:
        parser.error(f"--only {args.only} must match a workload, see --list")
    if not (args.skip_tests or args.tests_passed or is_green(device_type)):
        print("tests fail: nothing is timed and nothing reported", file=sys.stderr)
        return 1
    suffix = "-grid" if args.grid else "" if args.dtype == "float32" else f"-{args.dtype}"
    name = f"{'' if args.full else 'short-'}{device_type}{suffix}.jsonl"
    limit = args.limit or (None if args.full else SHORT_LIMIT_SECONDS)
    records, agreed = run(
        workloads,
        GRID if args.grid else FULL if args.full else SHORT,
        args.device,
        output := args.output or RESULTS / name,
        "skipped" if args.skip_tests else "passed",
        None if limit is None else start + limit,
    )
    conclude(records, output)
    return 0 if agreed else 1


if __name__ == "__main__":
    sys.exit(main())
