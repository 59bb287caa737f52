"""A ``PackedSequence`` put together by hand and wrongly: an exception, never a crash."""

from __future__ import annotations

import pytest
import torch
from helpers import CELLS, OURS
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

DATA = torch.zeros(10, 3)
INDICES = torch.tensor([2, 0, 3, 1])
MALFORMED: dict[str, tuple[Tensor, Tensor, Tensor | None]] = {
    "growing batch sizes": (DATA, torch.tensor([2, 3, 5]), None),
    "too many tokens": (DATA, torch.tensor([4, 3, 2]), None),
    "too few tokens": (DATA, torch.tensor([4, 4, 3]), None),
    "zero in the middle": (DATA, torch.tensor([4, 0, 6]), None),
    "negative": (DATA, torch.tensor([6, 5, -1]), None),
    "of two dimensions": (DATA, torch.tensor([[4, 3, 3]]), None),
    "of floats": (DATA, torch.tensor([4.0, 3.0, 3.0]), None),
    "no steps": (DATA, torch.tensor([], dtype=torch.int64), None),
    "index beyond the end": (DATA, torch.tensor([4, 3, 3]), torch.tensor([2, 0, 4, 1])),
    "indices too few": (DATA, torch.tensor([4, 3, 3]), torch.tensor([1, 0])),
    "indices too many": (DATA, torch.tensor([4, 3, 3]), torch.tensor([2, 0, 3, 1, 4])),
}


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("name", MALFORMED)
@pytest.mark.parametrize("cell", CELLS)
def test_it_raises(cell: str, name: str, bidirectional: bool) -> None:
    data, batch_sizes, indices = MALFORMED[name]
    unsorted = None if indices is None else INDICES.argsort()
    packed = PackedSequence(data, batch_sizes, indices, unsorted)
    rnn = OURS[cell](3, 5, bidirectional=bidirectional)
    with pytest.raises((ValueError, RuntimeError, IndexError, TypeError), match=r"\w"):
        rnn(packed)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_steps_without_tokens_at_the_end_are_refused_or_change_nothing(
    cell: str, bidirectional: bool
) -> None:
    rnn = OURS[cell](3, 5, bidirectional=bidirectional)
    good = pack_padded_sequence(torch.randn(3, 4, 3), [3, 3, 2, 1])
    steps = torch.cat([good.batch_sizes, torch.tensor([0, 0])])
    try:
        out, _ = rnn(PackedSequence(good.data, steps))
    except (ValueError, RuntimeError):
        return
    assert torch.equal(out.data, rnn(good)[0].data)
