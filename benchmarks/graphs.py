"""Times of a GPU's own work, without the host: of replayed CUDA graphs, or of queued calls.

Which peers can be captured: those whose batch lies on the GPU as a whole, so ours on every form but
a PackedSequence, and torch's on padded rows. The batch sizes of a PackedSequence lie on the CPU,
whatever lies on the GPU. Such a call is queued behind a pause of the GPU instead, so long that all
of it is queued before the pause ends: so the GPU never waits for the host. That has no time where
the call waits for the GPU itself, or launches more than the queue holds (some thousand).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.measure import Budget, Clock, cuda_clock, interleave

ON_CPU = ("varlen_rnn packed", "nn packed")
WARM_UPS = 3
QUEUED_CALLS = 7
# At least as many as a GPU makes in a second, so that a pause is never too short.
CYCLES_A_SECOND = 2.5e9
NOT_QUEUED = "neither captured nor queued: it waits for the GPU, or launches too much at once"


@dataclass(frozen=True)
class Captured:
    """A call as a graph: ``replay`` runs it again, and leaves its results in ``results``."""

    replay: Callable[[], object]
    results: Any


def capture(call: Callable[[], object]) -> Captured:
    """Captures what the call launches on the current device, after calls that set everything up."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()
    graph.replay()
    torch.cuda.synchronize()
    return Captured(graph.replay, results)


def capture_all(
    calls: Mapping[str, Callable[[], object]],
) -> tuple[dict[str, Captured], dict[str, str]]:
    """Graphs of all whose batch lies on the GPU, and why others of these could not be captured."""
    captured, reasons = {}, {}
    for name, call in calls.items():
        if name in ON_CPU:
            continue
        try:
            captured[name] = capture(call)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reasons[name] = f"not captured: {str(error).splitlines()[0]}"
    return captured, reasons


def queued(call: Callable[[], object]) -> list[float] | None:
    """Seconds on the device of calls behind a pause each; None if one was queued too late."""
    call()
    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    host_seconds = time.perf_counter() - start
    seconds = []
    for _ in range(QUEUED_CALLS):
        torch.cuda.synchronize()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(int((2 * host_seconds + 1e-3) * CYCLES_A_SECOND))
        begin.record()
        call()
        end.record()
        if begin.query():  # the pause was over before the call was queued as a whole
            return None
        end.synchronize()
        seconds.append(begin.elapsed_time(end) / 1e3)
    return seconds


def quartiles(seconds: list[float]) -> tuple[float, float, float]:
    """The lower one, the median, the upper one."""
    q1, median, q3 = statistics.quantiles(seconds, n=4, method="inclusive")
    return q1, median, q3


def kernel_times(
    calls: Mapping[str, Callable[[], object]],
    captured: Mapping[str, Captured],
    budget: Budget,
    clock: Clock = cuda_clock,
    reasons: Mapping[str, str] | None = None,
) -> dict[str, dict[str, object]]:
    """The fields ``kernel_*`` of every peer; ``captured`` are replayed in turn, others queued."""
    found: dict[str, dict[str, object]] = {}
    replays = {name: graph.replay for name, graph in captured.items()}
    for name, timing in interleave(replays, budget, clock).items():
        summary = timing.summary()
        times = summary["q1_s"], summary["median_s"], summary["q3_s"]
        found[name] = _fields("graph", times)
    for name, call in calls.items():
        if name not in captured:
            seconds = queued(call)
            found[name] = _fields("queue", quartiles(seconds)) if seconds else {"kernel_by": None}
            why = [(reasons or {}).get(name, ""), "" if seconds else NOT_QUEUED]
            found[name] |= {"kernel_why": "; ".join(filter(None, why))} if any(why) else {}
    return found


def _fields(by: str, times: tuple[float, float, float]) -> dict[str, object]:
    q1, median, q3 = times
    return {"kernel_by": by, "kernel_s": median, "kernel_q1_s": q1, "kernel_q3_s": q3}
