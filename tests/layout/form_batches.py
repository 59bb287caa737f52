"""What tests of forms and their arguments share: small modules, and a batch with resets."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import CELLS, OURS, assert_bitwise
from ragged import ANY_BATCH, Ragged, draw_resets, draw_valid
from torch import Tensor, nn
from torch.nested import nested_tensor_from_jagged

B, T = 4, 7
both_cells = pytest.mark.parametrize("cell", CELLS)
every_form = pytest.mark.parametrize("form", ANY_BATCH)


def make(cell: str, **options: Any) -> nn.RNNBase:
    torch.manual_seed(0)
    return OURS[cell](3, 9, bidirectional=True, **({"batch_first": True} | options))


def batch_with_resets() -> Ragged:
    draw = random.Random(4)
    return Ragged(draw_valid(draw, "random", B, T), draw_resets(draw, 0.3, B, T))


def changed(tensor: Tensor, change: Callable[[Tensor], Any], like: Tensor) -> Any:
    """The tensor changed; of a nested one its values, with the very offsets of ``like``."""
    if not tensor.is_nested:
        return change(tensor)
    return nested_tensor_from_jagged(change(tensor.values()), like.offsets(), like.lengths())


def assert_same(got: Tensor, expected: Tensor) -> None:
    assert_bitwise(got.detach(), expected.detach())
