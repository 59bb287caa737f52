"""A ragged batch with state resets: its truth by torch.nn, and how such batches are drawn.

The canonical batch is ``x [B, T, I]`` with ``valid`` and ``resets``, both ``[B, T]``. What makes
any form of it is shared with the benchmarks: `benchmarks.forms`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from helpers import Segment, torch_per_segment
from torch import Tensor, nn

from benchmarks.forms import ANY_BATCH, FORMS, Call, Tokens, in_form, take

__all__ = ["ANY_BATCH", "FORMS", "Call", "in_form", "take"]
MASKS = ("right", "left", "holes", "random")
NAN = float("nan")


@dataclass(frozen=True, eq=False)
class Ragged(Tokens):
    """Which tokens of which rows there are, and what the resets make of them."""

    @property
    def segments(self) -> list[Segment]:
        """Each row's runs of valid tokens, a new one at every reset; places are those in ``order``.

        The row's states go into its first run, unless that begins with a reset, and come from its
        last one.
        """
        segments = []
        for b, row in enumerate(self.valid):
            length = int(row.sum())
            flags = [False] * length if self.resets is None else self.resets[b, row].tolist()
            starts = [i for i in range(length) if i == 0 or flags[i]]
            for start, end in zip(starts, [*starts[1:], length], strict=False):
                initial_row = b if start == 0 and not flags[0] else -1
                final_row = b if end == length else -1
                segments.append(Segment(b, start, end - start, initial_row, final_row))
        return segments


def drawn(*rows: str) -> Ragged:
    """A batch drawn as text: ``x`` a token, ``.`` none, ``R`` and ``r`` the same with a reset."""
    size = len(rows), len(rows[0]) if rows else 5
    letters = [list(row) for row in rows]
    valid = torch.tensor([[c in "xR" for c in row] for row in letters]).bool().view(size)
    resets = torch.tensor([[c in "rR" for c in row] for row in letters]).bool().view(size)
    return Ragged(valid, resets)


def each_segment_alone(
    rnn: nn.RNNBase, x: Tensor, states: Sequence[Tensor], batch: Ragged
) -> tuple[Tensor, list[Tensor]]:
    """The truth if ``rnn`` is torch's: each segment by itself, one sequence ``[T, I]``."""
    out, finals = torch_per_segment(rnn, take(x, batch.order), states, batch.segments)
    return take(out, batch.order.argsort(1)), finals


def draw_valid(draw: random.Random, kind: str, num_rows: int, num_steps: int) -> Tensor:
    """``[B, T]``, a mask of one of the kinds ``MASKS``; every row has a token."""
    lengths = torch.tensor([draw.randint(1, num_steps) for _ in range(num_rows)], dtype=torch.int64)
    valid = torch.arange(num_steps) < lengths.unsqueeze(1)
    if kind == "left":
        valid = valid.flip(1)
    if kind in ("holes", "random"):
        chance = torch.tensor(
            [[draw.random() for _ in range(num_steps)] for _ in range(num_rows)]
        ).view(num_rows, num_steps)
        drawn = valid & (chance < 0.7) if kind == "holes" else chance < 0.5
        valid = torch.where(drawn.any(1, keepdim=True), drawn, valid)
    return valid


def draw_resets(draw: random.Random, rate: float, num_rows: int, num_steps: int) -> Tensor:
    """``[B, T]``, True at this rate, also where nothing is valid."""
    flags = [[draw.random() < rate for _ in range(num_steps)] for _ in range(num_rows)]
    return torch.tensor(flags, dtype=torch.bool).view(num_rows, num_steps)
