"""Settings in which threads that wait for one another could wait forever.

``python thread_scenarios.py <name>`` takes training steps of both cells in one of them, and ends
well if they give the bits that one thread gives. test_threads.py runs each in its own process.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from helpers import CELLS, as_hx, assert_bitwise, pair, random_hx, states_of
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

# One row, and enough work: split by units, so that workers meet at a barrier every step. By the
# model of plan-inl.h the least that one worker needs for a step, GRU with AVX-512, are
# 10 blocks * (160 * 6 + 160 * 1.5) = 12000 cycles, but two of a team 6000 and 3000 of a barrier.
# By ops.cpp forward is worth 20 * 6 * 160 * 320 / 1e6 = 6 workers, in both directions 12.
STEPS, SIZE = 20, 160

GIVE_UP_AFTER = 90  # seconds, where two or three are usual

Results = list[Tensor]


def training_step(rnn: nn.RNNBase) -> Results:
    """Outputs, final states, and all gradients."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(STEPS, 1, SIZE, generator=generator).requires_grad_()
    states = [state.requires_grad_() for state in random_hx(rnn, 1)]
    out, hx = rnn(x, as_hx(states))
    outputs = [out, *states_of(hx)]
    factors = [torch.randn(t.shape, generator=generator) for t in outputs]
    gradients = torch.autograd.grad(outputs, [*states, x, *rnn.parameters()], factors)
    return [t.detach() for t in (*outputs, *gradients)]


class Steps:
    """Both cells, and what a training step of each gives with one thread."""

    def __init__(self, *, bidirectional: bool = False) -> None:
        self.rnns = [pair(cell, SIZE, SIZE, bidirectional=bidirectional)[1] for cell in CELLS]
        torch.set_num_threads(1)
        self.expected = self.run()

    def run(self) -> list[Results]:
        return [training_step(rnn) for rnn in self.rnns]

    def check(self, results: list[Results]) -> None:
        for rnn, got, expected in zip(self.rnns, results, self.expected, strict=True):
            for i, (result, truth) in enumerate(zip(got, expected, strict=True)):
                assert_bitwise(result, truth, f"{rnn.mode}, result {i}")


def more_threads_than_cores_then_one() -> None:
    steps = Steps()
    for num_threads in (2 * (os.cpu_count() or 1) + 1, 1):
        torch.set_num_threads(num_threads)
        steps.check(steps.run())


def fewer_threads_than_asked_for() -> None:
    """OMP_THREAD_LIMIT=3: of two teams of four workers each, one thread works in both."""
    steps = Steps(bidirectional=True)
    torch.set_num_threads(8)
    assert torch.get_num_threads() == 8
    steps.check(steps.run())


def several_python_threads() -> None:
    steps = Steps()
    torch.set_num_threads(3)
    with ThreadPoolExecutor(4) as executor:
        for results in [executor.submit(steps.run) for _ in range(12)]:
            steps.check(results.result())


def inside_another_parallel_region() -> None:
    """There parallel_for gives a call one thread, though three are set."""
    steps = Steps()
    torch.set_num_threads(3)
    libgomp = ctypes.CDLL(loaded_libgomp())
    ends: list[BaseException | None] = []

    def work(_: object) -> None:
        try:
            assert libgomp.omp_in_parallel()
            assert torch.get_num_threads() == 3
            steps.check(steps.run())
        except BaseException as error:  # noqa: BLE001 (told below, in the main thread)
            ends.append(error)
        else:
            ends.append(None)

    # What compilers make of `#pragma omp parallel num_threads(2)`.
    libgomp.GOMP_parallel(ctypes.CFUNCTYPE(None, ctypes.c_void_p)(work), None, 2, 0)
    assert ends == [None, None]


def loaded_libgomp() -> str | None:
    """The file of the OpenMP library that torch runs on; None where it runs on another."""
    if not sys.platform.startswith("linux"):
        return None
    with open("/proc/self/maps") as maps:
        files = {line.split()[-1] for line in maps if "libgomp" in line and "/torch" in line}
    return min(files, default=None)


class TrainingSteps(Dataset[list[Results]]):
    """Takes a step for every item, as a feature extractor in a worker might."""

    def __init__(self, steps: Steps) -> None:
        self.steps = steps

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> list[Results]:
        return self.steps.run()


def data_loader_worker_after_fork() -> None:
    """A worker has one thread of torch's: more would hang in any op of torch, as libgomp's do not
    survive a fork."""
    steps = Steps()
    torch.set_num_threads(3)
    steps.check(steps.run())
    loader = DataLoader(
        TrainingSteps(steps), batch_size=None, num_workers=2, multiprocessing_context="fork"
    )
    results = list(loader)
    assert len(results) == 3
    for result in results:
        steps.check(result)


SCENARIOS: tuple[Callable[[], None], ...] = (
    more_threads_than_cores_then_one,
    fewer_threads_than_asked_for,
    several_python_threads,
    inside_another_parallel_region,
    data_loader_worker_after_fork,
)


def main(name: str) -> None:
    # A hang ends, and shows where every thread is.
    faulthandler.dump_traceback_later(GIVE_UP_AFTER, exit=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    next(scenario for scenario in SCENARIOS if scenario.__name__ == name)()


if __name__ == "__main__":
    main(sys.argv[1])
