"""Lines of the group "grid" as a run on a GPU might write them."""

from __future__ import annotations

from typing import Any

from benchmarks import grid


def record(
    rows: int, steps: int, size: int, times: tuple[float, ...], **changes: object
) -> dict[str, Any]:
    """A line of the grid as a run might write it; microseconds a step of each peer."""
    names = grid.FULL_PEERS if changes.get("distribution") == "full" else grid.PEERS
    peers = {
        name: {"median_s": s, "q1_s": 0.95 * s, "q3_s": 1.05 * s}
        | {"kernel_by": "graph", "kernel_s": s / 2, "kernel_q1_s": s / 2, "kernel_q3_s": s / 2}
        for name, s in zip(names, (t * steps / 1e6 for t in times), strict=True)
    }
    peers[grid.NN_PACKED] |= {"kernel_by": None, "kernel_s": None}
    origin = {"commit": "c", "date": "d", "isa": "i", "torch": "t", "cpu": "p", "cores": 1}
    device = {"device": "cuda", "device_name": "Some GPU", "cuda": "13.0", "cudnn": 91300}
    return {
        "name": f"grid/{rows}-{steps}-{size}-{changes}",
        "group": "grid",
        **{"cell": "lstm", "mode": "inference", "dtype": "bfloat16", "distribution": "uniform"},
        **{"B": rows, "T": steps, "I": size, "H": size, "valid_share": 0.5, "threads": 1},
        **{**origin, **device, "onnxruntime": None, "tests": "passed", "peers": peers},
        **changes,
    }


def sample() -> list[dict[str, Any]]:
    return [
        record(8, 200, 128, (1.1, 1.0, 4.0, 5.0)),
        record(32, 200, 512, (2.2, 2.0, 5.0, 5.0)),
        record(8, 50, 128, (1.1, 1.0, 4.0, 5.0)),
        record(8, 200, 128, (1.1, 1.0, 9.0, 1.5), dtype="float16", distribution="full"),
    ]
