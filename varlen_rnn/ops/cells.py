"""What the ops of each cell are like."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from varlen_rnn import reference

Tensors = Sequence[Tensor | None]


@dataclass(frozen=True)
class Cell:
    """What the ops of a cell are like.

    Attributes:
        name: ``lstm`` or ``gru``.
        reference: the layer's specification.
        num_states: of h and c.
        num_gates: what weights have, each of H rows.
        num_kinds: of weights in each direction.
        num_differentiable: of the results of ``*_forward``, the first ones; the reference
            returns the same.
        has_frozen: whether there is an op for weights that are packed already.
    """

    name: str
    reference: Callable[..., Any]
    num_states: int
    num_gates: int
    num_kinds: int
    num_differentiable: int
    has_frozen: bool = True


# The compiled op always returns the cell states.
_lstm = functools.partial(reference.lstm, output_cells=True)
LSTM = Cell("lstm", _lstm, 2, num_gates=4, num_kinds=5, num_differentiable=4)
GRU = Cell("gru", reference.gru, 1, num_gates=3, num_kinds=4, num_differentiable=2)
CELLS = (LSTM, GRU)
NAMED = {cell.name: cell for cell in CELLS}


def by_kind(weights: Tensors) -> list[list[Tensor]]:
    """The ops' weights as the reference takes them: for each kind a list over directions."""
    num_kinds = len(weights) // 2
    pairs = zip(weights[:num_kinds], weights[num_kinds:], strict=True)
    return [[weight for weight in pair if weight is not None] for pair in pairs]
