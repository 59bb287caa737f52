"""Threads: teams that meet at a barrier end in every setting, and give the same bits."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import thread_scenarios
import torch
from helpers import CELLS, HAS_EXTENSION, assert_bitwise, child_environment, pair
from thread_scenarios import loaded_libgomp
from torch import Tensor, nn

pytestmark = pytest.mark.skipif(not HAS_EXTENSION, reason="the reference has no threads of its own")

# Few rows and enough work a step: split by units, so workers meet at a barrier every step.
ROWS, STEPS, SIZE = 1, 60, 160


@pytest.fixture(params=CELLS)
def rnn(request: pytest.FixtureRequest) -> nn.RNNBase:
    return pair(request.param, SIZE, SIZE)[1]


@pytest.fixture(autouse=True)
def same_number_of_threads_afterwards() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def batch(rows: int = ROWS) -> Tensor:
    return torch.randn(STEPS, rows, SIZE, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def output(rnn: nn.RNNBase, x: Tensor) -> Tensor:
    return rnn(x)[0]


@pytest.mark.parametrize("threads", [2, 3, 7])
@pytest.mark.parametrize("rows", [1, 2, 5, 13])
def test_any_number_of_threads_gives_the_same_bits(
    rnn: nn.RNNBase, rows: int, threads: int, isa: str
) -> None:
    torch.set_num_threads(1)
    expected = output(rnn, batch(rows))
    torch.set_num_threads(threads)
    assert_bitwise(output(rnn, batch(rows)), expected)


@pytest.mark.parametrize("scenario", thread_scenarios.SCENARIOS, ids=lambda s: s.__name__)
def test_no_deadlock(scenario: Callable[[], None]) -> None:
    limit = {}
    if scenario is thread_scenarios.inside_another_parallel_region and not loaded_libgomp():
        pytest.skip("needs a torch that runs on libgomp")
    if scenario is thread_scenarios.fewer_threads_than_asked_for:
        limit = {"OMP_THREAD_LIMIT": "3"}
    result = subprocess.run(
        [sys.executable, thread_scenarios.__file__, scenario.__name__],
        env=child_environment(**limit),
        capture_output=True,
        text=True,
        timeout=2 * thread_scenarios.GIVE_UP_AFTER,
        check=False,
    )
    assert result.returncode == 0, result.stderr


def test_without_teams_the_bits_are_the_same(rnn: nn.RNNBase) -> None:
    """Where torch's threads may queue parts of a loop, no worker may wait for another."""
    from varlen_rnn import _C

    torch.set_num_threads(2)
    expected = output(rnn, batch())
    _C.set_workers_may_wait(False)
    try:
        assert_bitwise(output(rnn, batch()), expected)
    finally:
        _C.set_workers_may_wait(True)
