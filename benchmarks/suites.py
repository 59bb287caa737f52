"""Which workloads make up a run: the short one of `make bench`, and everything."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.workloads import (
    CELLS,
    FORM_PEERS,
    LAYOUT_PEERS,
    MODES,
    PEERS,
    RESET_PEERS,
    SHAPES,
    STEP_PEERS,
    Workload,
)

LARGEST = ((32, 100, 512), (32, 100, 1024))
SHORT_GRU_SHAPES = ((8, 100, 128), (32, 100, 256), (256, 50, 64))
LENGTHS_SHAPE = (32, 100, 256)
JAPANESE_VOWELS_STEPS = 29
THREADS_SHAPES = ((8, 100, 128), (32, 100, 256), (32, 100, 512))
GROWTH_STEPS = (250, 1000, 4000)
FORMS_SHAPE = (64, 200, 256)
RESETS_ROWS, RESETS_STEPS, RESETS_SIZE = (8, 256), 128, 128
RESET_PROBABILITIES = (0.0, 0.001, 0.02, 0.1)
SHORT_RESET_PROBABILITIES = (0.0, 0.02)


def suite(*, full: bool, threads: int, dtype: str = "float32") -> list[Workload]:
    """The workloads in the order in which they run, what takes longest last.

    Args:
        full: everything; the short version leaves out what takes long.
        threads: of all cases but those that ask how the speed grows with the threads.
        dtype: of inputs and weights.
    """
    cases = [
        *_step(),
        *_forms(full),
        *_resets(full),
        *_growth(full),
        *_shapes(full),
        *_lengths(full),
    ]
    cases = [replace(case, threads=threads) for case in cases]
    return [replace(case, dtype=dtype) for case in cases + _threads(full, threads)]


def _peers(full: bool) -> tuple[str, ...]:
    return (*PEERS, "nn loop") if full else PEERS


def _step() -> list[Workload]:
    return [
        Workload("step", cell, "inference", 1, 1, 64, 64, "full", streaming=True, peers=STEP_PEERS)
        for cell in CELLS
    ]


def _forms(full: bool) -> list[Workload]:
    """Every form of one batch; layouts are the same in both modes, so they are timed in one."""
    rows, steps, size = FORMS_SHAPE
    peers = {
        "inference": (*FORM_PEERS.values(), *LAYOUT_PEERS.values()),
        "training": tuple(FORM_PEERS.values()),
    }
    return [
        Workload("forms", cell, mode, rows, steps, size, size, peers=peers[mode])
        for cell in (CELLS if full else ("lstm",))
        for mode in (MODES if full else ("inference",))
    ]


def _resets(full: bool) -> list[Workload]:
    """Rollouts of reinforcement learning: full rows that hold several episodes each."""
    steps, size = RESETS_STEPS, RESETS_SIZE
    return [
        Workload(
            "resets",
            cell,
            "training",
            rows,
            steps,
            size,
            size,
            "full",
            reset_probability=probability,
            peers=RESET_PEERS if probability else (*RESET_PEERS, "nn padded"),
        )
        for cell in (CELLS if full else ("lstm",))
        for rows in RESETS_ROWS
        for probability in (RESET_PROBABILITIES if full else SHORT_RESET_PROBABILITIES)
    ]


def _growth(full: bool) -> list[Workload]:
    """Training on ever longer rows; nn packed, whose time grows as T², stops early if short."""
    cases = []
    for cell in CELLS if full else ("lstm",):
        for steps in GROWTH_STEPS:
            left_out = set() if full or steps <= 1000 else {"nn packed"}
            peers = tuple(peer for peer in PEERS if peer not in left_out)
            cases.append(
                Workload("growth", cell, "training", 16, steps, 64, 64, "linspace", peers=peers)
            )
    return cases


def _shapes(full: bool) -> list[Workload]:
    cases = []
    for cell in CELLS:
        for mode in MODES:
            for shape in SHAPES:
                long = shape in LARGEST if cell == "lstm" else shape not in SHORT_GRU_SHAPES
                if full or not long or (cell, mode) == ("lstm", "inference"):
                    rows, steps, size = shape
                    case = Workload("shapes", cell, mode, rows, steps, size, size)
                    cases.append(replace(case, peers=_peers(full)))
    return cases


def _lengths(full: bool) -> list[Workload]:
    rows, steps, size = LENGTHS_SHAPE
    distributions = {
        "lognormal": steps,
        "linspace": steps,
        "full": steps,
        "japanese_vowels": JAPANESE_VOWELS_STEPS,
    }
    return [
        Workload("lengths", cell, mode, rows, longest, size, size, distribution, peers=_peers(True))
        for cell in (CELLS if full else ("lstm",))
        for mode in (MODES if full else ("inference",))
        for distribution, longest in distributions.items()
    ]


def _threads(full: bool, threads: int) -> list[Workload]:
    """Fewer threads than all; the same shapes with all of them are in the group "shapes"."""
    counts = [2**k for k in range(threads.bit_length()) if 2**k < threads]
    return [
        Workload("threads", cell, mode, rows, steps, size, size, threads=count)
        for count in counts
        for cell in (CELLS if full else ("lstm",))
        for mode in MODES
        for rows, steps, size in (THREADS_SHAPES if full else (LENGTHS_SHAPE,))
    ]
