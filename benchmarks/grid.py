"""The grid of sizes on which a GPU is measured, and how fast it is meant to be there.

The goals are ratios of whole calls to torch.nn on the same form of the batch: a PackedSequence,
where cuDNN never uses its persistent kernels, and where all rows are full the padded batch, so that
it can use them. Neither side has lengths then: ours makes no layout of them, and cuDNN knows none.
"""

from __future__ import annotations

from dataclasses import replace

from benchmarks.records import OURS, Record, timed
from benchmarks.workloads import CELLS, MODES, Workload

HIDDEN_SIZES = (64, 128, 256, 512, 1024, 2048)
ROWS = (1, 8, 32, 128, 512)
STEPS = (200, 50, 1000)  # in the order in which they are run
DTYPES = ("bfloat16", "tf32")
OURS_PACKED, OURS_FULL = "varlen_rnn packed", "varlen_rnn full"
NN_PACKED, NN_PADDED = "nn packed", "nn padded"
PEERS = (OURS, OURS_PACKED, NN_PACKED, NN_PADDED)
FULL_PEERS = (OURS, OURS_FULL, NN_PACKED, NN_PADDED)
# What cuDNN's persistent LSTM takes: float16, one direction, H from 128 to 1024 by 128, B by 8.
PERSISTENT_SIZES = ((8, 256), (32, 256), (32, 512), (128, 512), (32, 1024))
QUICK_SIZES = ((8, 128), (32, 256), (128, 512), (32, 1024))


def workloads(*, quick: bool = False) -> list[Workload]:
    """The most telling first, for whoever has no time for all."""

    def case(cell: str, mode: str, rows: int, steps: int, size: int, dtype: str) -> Workload:
        return Workload("grid", cell, mode, rows, steps, size, size, dtype=dtype, peers=PEERS)

    full_rows = [
        replace(
            case("lstm", mode, rows, 200, size, "float16"), distribution="full", peers=FULL_PEERS
        )
        for rows, size in PERSISTENT_SIZES
        for mode in MODES
    ]
    sizes = QUICK_SIZES if quick else [(rows, size) for size in HIDDEN_SIZES for rows in ROWS]
    ragged = [
        case(cell, mode, rows, steps, size, dtype)
        for steps in STEPS[: 1 if quick else None]
        for dtype in DTYPES
        for cell in CELLS
        for mode in MODES
        for rows, size in sizes
    ]
    return full_rows + ragged


def peer(record: Record) -> str:
    """Whom the goal is about."""
    return NN_PADDED if record["distribution"] == "full" else NN_PACKED


def goal(record: Record) -> float:
    """How many times faster than that peer ours is meant to be, at least."""
    if record["distribution"] == "full":
        return 1.0
    if record["H"] == 1024:
        return 1.5
    return 3.0 if record["H"] <= 512 and record["B"] <= 128 else 1.0


def ours(record: Record) -> str:
    """Ours on that peer's form of the batch."""
    return OURS_FULL if record["distribution"] == "full" else OURS_PACKED


def speed(record: Record, time: str = "median_s") -> float | None:
    """How many times faster than that peer ours is: in whole calls, or by another time.

    By ``kernel_s`` on the GPU alone. None where one of the two has no such time.
    """
    figures = timed(record)
    theirs, own = (figures[name].get(time) for name in (peer(record), ours(record)))
    return theirs / own if theirs and own else None


def verdict(records: list[Record]) -> str:
    """One line about all of them."""
    shares = {r["name"]: (speed(r) or 0.0) / goal(r) for r in records}
    reached = [r for r in records if shares[r["name"]] >= 1]
    least = min(records, key=lambda r: shares[r["name"]])
    where = f"{least['cell'].upper()} {least['mode']} {least['dtype']}"
    sizes = f"H {least['H']}, B {least['B']}, T {least['T']}"
    return (
        f"{len(reached)} of {len(records)} reach their goal; farthest from it: "
        f"{speed(least) or 0.0:.2f} × {peer(least)} for a goal of {goal(least):g} × "
        f"({where}, {sizes})"
    )
