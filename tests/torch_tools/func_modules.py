"""What the tests of ``torch.func`` share: modules in float64, a batch, and a loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import CELLS, pair
from ragged import ANY_BATCH, Ragged, drawn, each_segment_alone
from torch import Tensor, nn

both_cells = pytest.mark.parametrize("cell", CELLS)
CLOSE = {"rtol": 0, "atol": 1e-12}
NAN = float("nan")
BATCH = drawn("xR.x", "....", ".xrx")
# Torch makes no NestedTensor of what is batched or wrapped (a test below says so).
FORMS = tuple(form for form in ANY_BATCH if not form.startswith("nested"))
SHAPES: dict[str, dict[str, Any]] = {
    "lstm": {"num_layers": 2, "bidirectional": True, "proj_size": 3},
    "gru": {"num_layers": 2, "bidirectional": True},
}
Weights = dict[str, Tensor]


def modules(cell: str, **options: Any) -> tuple[nn.RNNBase, nn.RNNBase]:
    """Torch's and ours, in float64."""
    shape = SHAPES[cell] | options
    return pair(cell, 3, 4, batch_first=True, dtype=torch.float64, **shape)


def weights_of(rnn: nn.Module) -> Weights:
    return {name: p.detach() for name, p in rnn.named_parameters()}


def data(rnn: nn.RNNBase, *sizes: int) -> Tensor:
    return torch.randn(*sizes, rnn.input_size, dtype=torch.float64)


def loss_of(out: Tensor) -> Tensor:
    return torch.sin(2 * out).sum()


def true_loss(rnn: nn.RNNBase, x: Tensor, batch: Ragged) -> Tensor:
    return loss_of(each_segment_alone(rnn, x, [], batch)[0])
