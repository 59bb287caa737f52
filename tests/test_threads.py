"""Threads: teams that meet at a barrier end in every setting, and give the same bits."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from helpers import CELLS, HAS_EXTENSION, assert_bitwise, pair
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

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


def test_several_python_threads_at_once(rnn: nn.RNNBase) -> None:
    torch.set_num_threads(2)
    expected = output(rnn, batch())
    results: list[Tensor] = []

    def work() -> None:
        results.extend(output(rnn, batch()) for _ in range(3))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
        assert not worker.is_alive()
    assert len(results) == 12
    for result in results:
        assert_bitwise(result, expected)


class Outputs(Dataset[Tensor]):
    """Runs a module for every item, as a feature extractor in a worker does."""

    def __init__(self, rnn: nn.RNNBase) -> None:
        self.rnn = rnn

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Tensor:
        return output(self.rnn, batch())


def test_data_loader_workers_after_fork(rnn: nn.RNNBase) -> None:
    torch.set_num_threads(2)
    expected = output(rnn, batch())
    # A worker has one thread of torch's: more would hang in any op of torch, as libgomp's do not
    # survive a fork.
    loader = DataLoader(
        Outputs(rnn), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60
    )
    results = list(loader)
    assert len(results) == 3
    for result in results:
        assert_bitwise(result, expected)
