"""A ``PackedSequence`` made by hand that is malformed: an exception, never a crash."""

from __future__ import annotations

import re

import pytest
import torch
from helpers import CELLS, OURS
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

DATA = torch.zeros(10, 3)
ORDER = "input.batch_sizes must be [S], positive and not increasing, got "
SUM = "input.batch_sizes must be of sum N = 10, got "
INDICES = "input.sorted_indices must be a permutation of [0, B) = [0, 4), got "
MALFORMED: dict[str, tuple[list[int] | Tensor, list[int] | None, str]] = {
    "growing batch sizes": ([2, 3, 5], None, ORDER + "[2, 3, 5]"),
    "too few tokens": ([4, 3, 2], None, SUM + "9"),
    "too many tokens": ([4, 4, 3], None, SUM + "11"),
    "zero in the middle": ([4, 0, 6], None, ORDER + "[4, 0, 6]"),
    "zero at the end": ([5, 5, 0], None, ORDER + "[5, 5, 0]"),
    "negative": ([6, 5, -1], None, ORDER + "[6, 5, -1]"),
    "of two dimensions": (torch.tensor([[4, 3, 3]]), None, ORDER + "[1, 3]"),
    "no steps": (torch.tensor([], dtype=torch.int64), None, ORDER + "[0]"),
    "index beyond the end": ([4, 3, 3], [2, 0, 4, 1], INDICES + "[2, 0, 4, 1]"),
    "negative index": ([4, 3, 3], [-1, 0, 1, 2], INDICES + "[-1, 0, 1, 2]"),
    "indices too few": ([4, 3, 3], [1, 0], INDICES + "[1, 0]"),
    "indices too many": ([4, 3, 3], [2, 0, 3, 1, 4], INDICES + "[2, 0, 3, 1, 4]"),
}


def packed_by_hand(batch_sizes: list[int] | Tensor, indices: list[int] | None) -> PackedSequence:
    sizes = batch_sizes if isinstance(batch_sizes, Tensor) else torch.tensor(batch_sizes)
    sorted_indices = None if indices is None else torch.tensor(indices)
    unsorted_indices = None if indices is None else torch.arange(4)
    return PackedSequence(DATA, sizes, sorted_indices, unsorted_indices)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("name", MALFORMED)
@pytest.mark.parametrize("cell", CELLS)
def test_it_is_said_what_is_wrong(cell: str, name: str, bidirectional: bool) -> None:
    batch_sizes, indices, message = MALFORMED[name]
    rnn = OURS[cell](3, 5, bidirectional=bidirectional)
    expected = f"^{re.escape(f'{type(rnn).__name__}: {message}')}$"
    with pytest.raises(ValueError, match=expected):
        rnn(packed_by_hand(batch_sizes, indices))


@pytest.mark.parametrize("dtype", [torch.float32, torch.int32])
@pytest.mark.parametrize("cell", CELLS)
def test_batch_sizes_of_another_dtype(cell: str, dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=f"batch_sizes must be torch.int64 on the CPU, got {dtype}"):
        OURS[cell](3, 5)(packed_by_hand(torch.tensor([4, 3, 3], dtype=dtype), None))
