"""What one more step costs on a GPU, in our kernels and in torch.nn: a JSON line for each.

    python -m tools.gpu.step_times --hidden 256 --rows 8,32,128
    python -m tools.gpu.step_times --calls

Full rows of two lengths, and no lengths given: the difference of their times, over that of the
lengths, is free of what a call costs by itself. It holds the step's share of the product with the
input's weights. Times are of replayed graphs where the call can be captured (`benchmarks.graphs`),
so nothing waits for the host; `by` says how else. With --calls, what a whole call of a ragged batch
costs: on the GPU's clock with what it waits for the host, on the host's until all is launched, and
how many launches and torch operations it makes; and at last whether torch can capture its own layer
on a PackedSequence.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import graphs, grid
from benchmarks.measure import cuda_clock, host_clock
from benchmarks.peers import PEERS, Prepared
from benchmarks.records import OURS
from benchmarks.workloads import Workload
from tools.gpu import machine

REPLAYS = 7
# Blocks of a team; 0: what is chosen where nothing is.
CLUSTER_SIZES = (0, 4, 8, 16)
PASSES = ("forward", "forward of training", "training")


def seconds_of(name: str, call: Callable[[], object], device: str) -> tuple[str, float]:
    """How a call was timed, and what it takes."""
    if device == "cpu":
        return "host", host_clock(call, 1)
    if name in graphs.ON_CPU:
        if found := graphs.queued(call):
            return "queue", statistics.median(found)
        return "events", cuda_clock(call, 3)
    captured = graphs.capture(call)
    times = [cuda_clock(captured.replay, 1) for _ in range(REPLAYS)]
    return "graph", statistics.median(times)


def prepare(name: str, workload: Workload, device: str, what: str) -> Prepared:
    """The peer's call for this pass."""
    with torch.set_grad_enabled(what != "forward"):
        return PEERS[name](workload.batch(device))


def workload_of(args: argparse.Namespace, size: int, rows: int, steps: int, what: str) -> Workload:
    mode = "training" if what == "training" else "inference"
    sizes = (rows, steps, size, size)
    return Workload("grid", args.cell, mode, *sizes, "full", dtype=args.dtype)


def costs(args: argparse.Namespace, size: int, rows: int, module: Any) -> Iterator[dict[str, Any]]:
    """Of every peer and pass."""
    peers = [(grid.OURS_FULL, cluster_size) for cluster_size in args.clusters]
    for name, cluster_size in [*peers, (grid.NN_PADDED, 0), (grid.NN_PACKED, 0)]:
        path = "persistent" if cluster_size else None
        for what in PASSES:
            case = {"what": "step", "peer": name, "pass": what, "cell": args.cell, "H": size}
            case |= {"B": rows, "dtype": args.dtype, "cluster_size": cluster_size}
            with machine.forced(module, path, cluster_size), torch.set_grad_enabled(True):
                try:
                    yield {**case, **step_of(args, name, size, rows, what)}
                except RuntimeError as error:  # no such team, or no memory
                    yield {**case, "skipped": str(error).splitlines()[0][:200]}
                    if "CUDA error" in str(error):
                        raise


def step_of(
    args: argparse.Namespace, name: str, size: int, rows: int, what: str
) -> dict[str, object]:
    """Microseconds a step, and the seconds of both lengths."""
    times = []
    for steps in args.steps:
        workload = workload_of(args, size, rows, steps, what)
        with torch.set_grad_enabled(what != "forward"):
            call = prepare(name, workload, args.device, what).call
            by, seconds = seconds_of(name, call, args.device)
        times.append(seconds)
    microseconds = (times[1] - times[0]) / (args.steps[1] - args.steps[0]) * 1e6
    return {"by": by, "us": microseconds, "seconds": dict(zip(args.steps, times, strict=True))}


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what torch dispatches."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def launches_of(call: Callable[[], object]) -> int:
    """Kernels and copies that a call starts on the GPU."""
    with torch.profiler.profile() as profile:
        call()
        torch.cuda.synchronize()
    events = profile.events() or []
    return sum(event.device_type.name == "CUDA" for event in events)


def calls(args: argparse.Namespace, size: int, rows: int) -> Iterator[dict[str, Any]]:
    """Whole calls of a ragged batch, in our forms and in torch's."""
    on_cuda = args.device != "cpu"
    workload = Workload("grid", args.cell, "inference", rows, args.steps[0], size, size)
    for name in (OURS, grid.OURS_PACKED, grid.NN_PADDED, grid.NN_PACKED):
        call = prepare(name, workload, args.device, "forward").call
        with torch.no_grad():
            for _ in range(3):
                call()
            with Operations() as operations:  # type: ignore[no-untyped-call]
                call()
            if on_cuda:
                torch.cuda.synchronize()
            start = time.perf_counter()
            call()
            host_seconds = time.perf_counter() - start
            found = {"torch_operations": operations.count, "host_us": host_seconds * 1e6}
            seconds = (cuda_clock if on_cuda else host_clock)(call, 20 if on_cuda else 1)
            found |= {"call_us": seconds * 1e6}
            found |= {"launches": launches_of(call)} if on_cuda else {}
        case = {"what": "call", "peer": name, "cell": args.cell, "H": size, "B": rows}
        yield {**case, "T": args.steps[0], **found}


def probe(args: argparse.Namespace, size: int, rows: int) -> Iterator[dict[str, Any]]:
    """Whether torch's own layer on a PackedSequence can be captured after all."""
    workload = workload_of(args, size, rows, args.steps[0], "forward")
    prepared = prepare(grid.NN_PACKED, workload, args.device, "forward")
    found: dict[str, object] = {"what": "capture", "peer": grid.NN_PACKED, "H": size, "B": rows}
    with torch.no_grad():
        try:
            captured = graphs.capture(prepared.call)
            found["seconds"] = cuda_clock(captured.replay, REPLAYS)
        except (RuntimeError, AssertionError) as error:
            found["skipped"] = str(error).splitlines()[0][:200]
    yield found


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""

    def numbers(text: str) -> tuple[int, ...]:
        return tuple(map(int, text.split(",")))

    parser = argparse.ArgumentParser(prog="python -m tools.gpu.step_times", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--cell", default="lstm")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--hidden", type=numbers, default=(256,))
    parser.add_argument("--rows", type=numbers, default=(8, 32, 128))
    parser.add_argument("--steps", type=numbers, default=(200, 1000))
    parser.add_argument("--clusters", type=numbers, default=CLUSTER_SIZES)
    parser.add_argument("--calls", action="store_true")
    args = parser.parse_args(argv)
    module = machine.kernels(torch.device(args.device))
    for rows in args.rows:
        for size in args.hidden:
            found = (
                (calls(args, size, rows), probe(args, size, rows))
                if args.calls
                else (costs(args, size, rows, module),)
            )
            for record in itertools.chain(*found):
                print(json.dumps(record), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
