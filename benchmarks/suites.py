"""Which workloads make up a run: the short one of `make bench`, and everything."""

from __future__ import annotations

from collections.abc import Iterator
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
DISTRIBUTIONS = {"lognormal": 100, "linspace": 100, "full": 100, "japanese_vowels": 29}
THREADS_SHAPES = ((8, 100, 128), (32, 100, 256), (32, 100, 512))
GROWTH_STEPS = (250, 1000, 4000)
FORMS_SHAPE = (64, 200, 256)
RESETS_ROWS, RESETS_SHAPE = (8, 256), (128, 128)
RESET_PROBABILITIES = (0.0, 0.001, 0.02, 0.1)
SHORT_RESET_PROBABILITIES = (0.0, 0.02)


def suite(*, full: bool, threads: int, dtype: str = "float32") -> list[Workload]:
    """The workloads in the order in which they run, what a run is about first: it may be cut off.

    Args:
        full: everything; the short version leaves out what takes long.
        threads: of all cases but those that ask how the speed grows with the threads.
        dtype: of inputs and weights.
    """
    cases = [replace(case, threads=threads) for case in _on_all_threads(full)]
    return [replace(case, dtype=dtype) for case in [*cases, *_threads(full, threads)]]


def _on_all_threads(full: bool) -> Iterator[Workload]:
    cells = CELLS if full else ("lstm",)
    modes = MODES if full else ("inference",)
    peers = (*PEERS, "nn loop")

    for cell in CELLS:
        for mode in reversed(MODES):
            for rows, steps, size in SHAPES:
                shape = (rows, steps, size)
                long = shape in LARGEST if cell == "lstm" else shape not in SHORT_GRU_SHAPES
                if full or not long or (cell, mode) == ("lstm", "inference"):
                    case = Workload("shapes", cell, mode, rows, steps, size, size)
                    yield replace(case, peers=peers if full else PEERS)

    # Training on ever longer rows; nn packed, whose time grows as T², stops early if short.
    for cell in cells:
        for steps in GROWTH_STEPS:
            left_out = () if full or steps <= 1000 else ("nn packed",)
            case = Workload("growth", cell, "training", 16, steps, 64, 64, "linspace")
            yield replace(case, peers=tuple(peer for peer in PEERS if peer not in left_out))

    for cell in CELLS:
        case = Workload("step", cell, "inference", 1, 1, 64, 64, "full", streaming=True)
        yield replace(case, peers=STEP_PEERS)

    rows, _, size = LENGTHS_SHAPE
    for cell in cells:
        for mode in modes:
            for distribution, steps in DISTRIBUTIONS.items():
                case = Workload("lengths", cell, mode, rows, steps, size, size, distribution)
                yield replace(case, peers=peers)

    # Layouts are the same in both modes, so they are timed in one.
    rows, steps, size = FORMS_SHAPE
    for cell in cells:
        for mode in modes:
            case = Workload("forms", cell, mode, rows, steps, size, size)
            layouts = LAYOUT_PEERS.values() if mode == "inference" else ()
            yield replace(case, peers=(*FORM_PEERS.values(), *layouts))

    # Rollouts of reinforcement learning: full rows that hold several episodes each.
    steps, size = RESETS_SHAPE
    for cell in cells:
        for rows in RESETS_ROWS:
            for chance in RESET_PROBABILITIES if full else SHORT_RESET_PROBABILITIES:
                case = Workload("resets", cell, "training", rows, steps, size, size, "full")
                of_chance = RESET_PEERS if chance else (*RESET_PEERS, "nn padded")
                yield replace(case, reset_probability=chance, peers=of_chance)


def _threads(full: bool, threads: int) -> Iterator[Workload]:
    """Fewer threads than all; the same shapes with all of them are in the group "shapes"."""
    for count in (2**k for k in range(threads.bit_length()) if 2**k < threads):
        for cell in CELLS if full else ("lstm",):
            for mode in MODES:
                for rows, steps, size in THREADS_SHAPES if full else (LENGTHS_SHAPE,):
                    case = Workload("threads", cell, mode, rows, steps, size, size)
                    yield replace(case, threads=count)
