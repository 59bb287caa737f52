"""Times calls against each other: turn by turn, in one process, medians with their quartiles.

In every round each function has one turn, in an order that is drawn anew. So a machine that
becomes slower or faster in between does so for all of them. A turn is: on a CPU a short pause, in
which the waiting threads of whoever came before go to sleep; one call that is not timed (unless it
would take long); and as many timed calls as fill `TURN_SECONDS`, one at least.
"""

from __future__ import annotations

import gc
import itertools
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

# The runtimes' threads spin for a few milliseconds after their work is done.
PAUSE_SECONDS = 0.02
TURN_SECONDS = 0.02
# From here on the first call after the pause is timed as well: waking up is lost in it.
SETTLE_SECONDS = 0.2
# Of single calls, so many are not timed when a turn begins, with the weights in no cache.
SETTLE_CALLS = 20


@dataclass(frozen=True)
class Budget:
    """How often each function has its turn: for so many seconds, within these limits."""

    seconds: float
    min_rounds: int
    max_rounds: int

    def rounds(self, turn_seconds: float) -> int:
        """Rounds that a function takes part in whose turn takes that long."""
        affordable = int(self.seconds / turn_seconds)
        return min(max(affordable, self.min_rounds), self.max_rounds)


@dataclass
class Timing:
    """Seconds a call, one value a round, each the mean over the calls of one turn."""

    calls: int
    seconds: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, float]:
        """Median, quartiles and fastest round, in seconds a call."""
        if len(self.seconds) > 1:
            q1, median, q3 = statistics.quantiles(self.seconds, n=4, method="inclusive")
        else:
            q1 = median = q3 = self.seconds[0]
        return {
            "median_s": median,
            "q1_s": q1,
            "q3_s": q3,
            "min_s": min(self.seconds),
            "rounds": len(self.seconds),
            "calls": self.calls,
        }


# Seconds a call of so many calls, one after the other.
Clock = Callable[[Callable[[], object], int], float]


def host_clock(call: Callable[[], object], calls: int) -> float:
    """For calls that return when they are done."""
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


def cuda_clock(call: Callable[[], object], calls: int) -> float:
    """On the device, by events: what waits for the host counts, what was queued before does not."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(calls):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / calls


def _warm_up(call: Callable[[], object], clock: Clock) -> tuple[int, float]:
    """Calls that fill a turn, and the seconds that such a turn takes."""
    calls = 1
    while (seconds := clock(call, calls)) * calls < TURN_SECONDS:
        calls = max(2 * calls, min(int(TURN_SECONDS / max(seconds, 1e-9)), 10 * calls))
    settle = seconds if seconds < SETTLE_SECONDS else 0.0
    return calls, PAUSE_SECONDS + settle + calls * seconds


def interleave(
    functions: Mapping[str, Callable[[], object]],
    budget: Budget,
    clock: Clock = host_clock,
) -> dict[str, Timing]:
    """Times every function in turn.

    Args:
        functions: what to call, by name.
        budget: how often.
        clock: `cuda_clock` for calls that only tell a device what to do; one of their own for calls
            after which there is something to wait for.
    """
    pause_seconds = 0.0 if clock is cuda_clock else PAUSE_SECONDS  # a device has no such threads
    timings: dict[str, Timing] = {}
    rounds: dict[str, int] = {}
    estimates: dict[str, float] = {}
    for name, call in functions.items():
        time.sleep(pause_seconds)
        calls, turn_seconds = _warm_up(call, clock)
        timings[name] = Timing(calls)
        rounds[name] = budget.rounds(turn_seconds)
        estimates[name] = turn_seconds / calls
    total = max(rounds.values(), default=0)
    names = list(functions)
    order = random.Random(0)
    gc.collect()
    gc.disable()
    try:
        for index in range(total):
            order.shuffle(names)
            for name in names:
                # A function with fewer rounds than others takes part at even distances.
                if (index + 1) * rounds[name] // total == index * rounds[name] // total:
                    continue
                time.sleep(pause_seconds)
                if estimates[name] < SETTLE_SECONDS:
                    functions[name]()
                timing = timings[name]
                timing.seconds.append(clock(functions[name], timing.calls))
    finally:
        gc.enable()
    return timings


def latencies(
    functions: Mapping[str, Callable[[], object]], turns: int, calls: int
) -> dict[str, list[float]]:
    """Seconds of every single call, ``turns * calls`` a function, which take turns as above."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    names = list(functions)
    order = random.Random(0)
    stamps = [0] * (calls + 1)
    gc.collect()
    gc.disable()
    try:
        for _ in range(turns):
            order.shuffle(names)
            for name in names:
                call = functions[name]
                time.sleep(PAUSE_SECONDS)
                for _ in range(SETTLE_CALLS):
                    call()
                stamps[0] = time.perf_counter_ns()
                for index in range(1, calls + 1):
                    call()
                    stamps[index] = time.perf_counter_ns()
                seconds[name] += [(b - a) / 1e9 for a, b in itertools.pairwise(stamps)]
    finally:
        gc.enable()
    return seconds
