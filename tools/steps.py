"""What one more step costs on a GPU, in our persistent kernel and in torch.nn; one JSON line each.

Full rows of two lengths: the difference of their times, over that of the lengths, is free of what a
call costs by itself. It holds the step's share of the product with the input's weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import torch

from benchmarks import grid
from benchmarks.measure import Budget, Clock, cuda_clock, interleave
from benchmarks.peers import PEERS
from benchmarks.workloads import CELLS, Workload

LENGTHS = (200, 1000)
ROWS, SIZE = 8, 256
BUDGET = Budget(seconds=0.2, min_rounds=7, max_rounds=15)


def costs(
    device: str,
    clock: Clock,
    *,
    lengths: tuple[int, int] = LENGTHS,
    size: int = SIZE,
    dtype: str = "bfloat16",
) -> Iterator[dict[str, object]]:
    """Microseconds a step, for every cell and peer."""
    for cell in CELLS:
        medians: list[dict[str, float]] = []
        for steps in lengths:
            workload = Workload(
                "grid", cell, "inference", ROWS, steps, size, size, "full", dtype=dtype
            )
            batch = workload.batch(device)
            with torch.no_grad():
                calls = {name: PEERS[name](batch).call for name in grid.PEERS}
                timings = interleave(calls, BUDGET, clock)
            medians.append({name: t.summary()["median_s"] for name, t in timings.items()})
        for name in grid.PEERS:
            microseconds = (medians[1][name] - medians[0][name]) / (lengths[1] - lengths[0]) * 1e6
            sizes = {"cell": cell, "H": size, "B": ROWS, "dtype": dtype}
            yield {"what": "step", "peer": name, **sizes, "us": microseconds}


if __name__ == "__main__":
    for record in costs("cuda", cuda_clock):
        print(json.dumps(record))
