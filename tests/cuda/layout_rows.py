"""Rows of batches that ``layout_from_rows`` makes layouts of, and what it is to make of them."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from varlen_rnn.layout import Layout, index_arrays

ARRAYS = ("batch_sizes", "rows", "reverse", "initial_row", "final_segment")


@dataclass(frozen=True)
class Rows:
    """What says where the tokens of a batch's rows are; with ``first``, T is R."""

    num_rows: int
    num_steps: int
    lengths: Tensor | None = None
    first: Tensor | None = None
    mask: Tensor | None = None
    resets: Tensor | None = None
    batch_first: bool = True

    @property
    def which(self) -> tuple[Tensor | None, ...]:
        return self.lengths, self.first, self.mask, self.resets

    @property
    def positions(self) -> Tensor:
        return torch.empty(*([self.num_rows] if self.first is None else []), self.num_steps, 0)


def specified(rows: Rows, *, bidirectional: bool = True) -> Layout:
    sizes = rows.num_rows, rows.num_steps
    return Layout(*index_arrays.from_rows(*rows.which, *sizes, rows.batch_first, bidirectional))


def assert_same(got: Layout, expected: Layout) -> None:
    for name in ARRAYS:
        array, truth = getattr(got, name), getattr(expected, name)
        assert (array is None) == (truth is None), name
        if array is not None:
            assert array.dtype == torch.int64, name
            assert array.tolist() == truth.tolist(), name


def draw_flags(draw: random.Random, count: int, rate: float) -> Tensor:
    return torch.tensor([draw.random() < rate for _ in range(count)], dtype=torch.bool)


def draw_rows(draw: random.Random, num_rows: int, longest: int) -> Rows:
    """Padded, or one behind the other with gaps; with any of lengths, mask and resets."""
    lengths = torch.tensor([draw.randint(0, longest) for _ in range(num_rows)], dtype=torch.int64)
    is_flat, batch_first = draw.random() < 0.3, draw.random() < 0.5
    gaps = torch.tensor([draw.choice((0, 0, 1, 2)) for _ in range(num_rows)], dtype=torch.int64)
    first = (gaps + lengths).cumsum(0) - lengths
    num_steps = int((gaps + lengths).sum()) + draw.randint(0, 2) if is_flat else longest
    size = num_steps if is_flat else num_rows * num_steps
    has_lengths, has_mask, has_resets = (draw.random() < 0.5 for _ in range(3))
    if is_flat or not (has_mask or has_resets):
        has_lengths = True
    return Rows(
        num_rows,
        num_steps,
        lengths if has_lengths else None,
        first if is_flat else None,
        draw_flags(draw, size, draw.random()) if has_mask and not is_flat else None,
        draw_flags(draw, size, draw.choice((0.0, 0.1, 0.5, 1.0))) if has_resets else None,
        batch_first,
    )
