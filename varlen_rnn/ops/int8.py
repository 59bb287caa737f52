"""The arithmetic of layers with int8 weights: weights, their order, and the products.

A weight is ``scale * q`` with ``q`` in [-127, 127] and one scale for each row of ``weight_ih`` and
``weight_hh``, an activation ``scale * q`` with ``q`` in [-m, m] and one scale for each token, so
that a product is a sum of integers times two scales. ``m`` is 32639, 256 * 127 + 127, so that two
signed bytes hold an activation, or as much as keeps the sum of ``K`` products within 32 bits: less
from K = 519 on, 16513 for K = 1024.

Weights, scales and biases are kept in the order in which the kernels read them, in groups of 16
units; see ``csrc/cpu/quantized.h``. Shapes are those of the legend in :mod:`varlen_rnn.layout`,
with ``U`` for the number of groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from varlen_rnn import reference
from varlen_rnn.layout import Layout
from varlen_rnn.ops.cells import CELLS
from varlen_rnn.reference import layers
from varlen_rnn.runtime import extension

UNITS = 16  # of a group
WEIGHT_MAX = 127
_TWO_BYTES_MAX, _INT32_MAX = 256 * 127 + 127, 2**31 - 1
# So that activations have at least as many levels as weights.
MAX_SIZE = _INT32_MAX // WEIGHT_MAX**2
# What is smaller counts as zero: its inverse could overflow.
_TINY = 2.0**-100

KINDS = ("weight_ih", "weight_hh", "scale_ih", "scale_hh", "bias_ih", "bias_hh")


def activation_max(size: int) -> int:
    """The largest quantised value of an activation with ``size`` features."""
    return min(_TWO_BYTES_MAX, _INT32_MAX // (WEIGHT_MAX * size))


def quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """``[rows, K]`` to int8 ``[rows, K]`` and scales ``[rows]``."""
    scale = weight.abs().amax(dim=1) / WEIGHT_MAX
    scale = torch.where(scale < _TINY, 0, scale)
    q = torch.where(scale[:, None] == 0, 0, (weight / scale[:, None]).round())
    return q.clamp(-WEIGHT_MAX, WEIGHT_MAX).to(torch.int8), scale


def pack(rows: Tensor, num_gates: int) -> Tensor:
    """``[gates * H, ...]`` to groups of units: ``[U, gates, 16]``, ``[U, gates, K / 2, 16, 2]``."""
    by_gate = rows.reshape(num_gates, -1, *rows.shape[1:])
    padding = [0, -by_gate.shape[1] % UNITS]
    if rows.dim() == 1:
        return F.pad(by_gate, padding).view(num_gates, -1, UNITS).transpose(0, 1).contiguous()
    padded = F.pad(by_gate, [0, rows.shape[1] % 2, *padding])
    blocks = padded.view(num_gates, -1, UNITS, padded.shape[2] // 2, 2)
    return blocks.permute(1, 0, 3, 2, 4).contiguous()


def unpack(packed: Tensor, hidden_size: int, size: int = 0) -> Tensor:
    """The inverse of :func:`pack`; ``size`` is K."""
    if packed.dim() == 3:
        return packed.transpose(0, 1).flatten(1)[:, :hidden_size].reshape(-1)
    rows = packed.permute(1, 0, 3, 2, 4).flatten(3).flatten(1, 2)
    return rows[:, :hidden_size, :size].flatten(0, 1)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear`` of float64 tensors, with ``x`` quantised as the kernels do it, in float32.

    ``weight [rows, K]`` holds scales times integers. All is exact but for the rounding of float64.
    """
    x = x.float()
    largest = x.new_tensor(activation_max(x.shape[1]))  # a number would be divided inexactly
    magnitude = x.abs().amax(dim=1, keepdim=True)
    is_zero = magnitude < _TINY
    # A row with NaN or Inf becomes NaN as a whole, since 0 * Inf is.
    q = (x * torch.where(is_zero, 0, largest / magnitude)).round()
    product = F.linear(q.double(), weight) * torch.where(is_zero, 0, magnitude / largest)
    return product if bias is None else product + bias


Tensors = Sequence[Tensor | None]


def layer(
    cell: str,
    x: Tensor,
    states: Tensors,
    weights: Tensors,
    hidden_size: int,
    layout: Layout,
) -> tuple[Tensor, ...]:
    """One layer of an ``"lstm"`` or ``"gru"``: output ``[R, D * H]`` and final states.

    ``weights`` are those of ``KINDS`` for the forward and then for the reverse direction, None for
    what is not there.
    """
    if x.is_cpu and extension.runs(x):
        op: Any = getattr(torch.ops.varlen_rnn, f"quantized_{cell}")
        arrays = (layout.batch_sizes, layout.rows, layout.reverse)
        ends = (layout.initial_row, layout.final_segment)
        results: tuple[Tensor, ...] = op(x, *states, *weights, hidden_size, *arrays, *ends)
        return results
    step = reference.lstm_cell if cell == "lstm" else reference.gru_cell
    directions = [_dequantize(weights[:6], hidden_size, x.shape[1])]
    if weights[6] is not None:
        directions.append(_dequantize(weights[6:], hidden_size, x.shape[1]))
    out, finals, _ = layers.run(
        step,
        x.double(),
        [None if state is None else state.double() for state in states],
        [hidden_size] * len(states),
        directions,
        layout.exact(),
        linear,
    )
    return out.float(), *(final.float() for final in finals)


def _dequantize(weights: Tensors, hidden_size: int, input_size: int) -> tuple[Tensor | None, ...]:
    """``weight_ih, weight_hh, bias_ih, bias_hh, weight_hr`` of one direction, exact in float64."""
    w_ih, w_hh, s_ih, s_hh, b_ih, b_hh = (w.double() for w in weights if w is not None)
    rows = partial(unpack, hidden_size=hidden_size)
    return (
        rows(w_ih, size=input_size) * rows(s_ih)[:, None],
        rows(w_hh, size=hidden_size) * rows(s_hh)[:, None],
        rows(b_ih),
        rows(b_hh),
        None,
    )


def _fake(num_states: int) -> Any:
    """The shapes that an op returns."""

    def fake(x: Tensor, *args: Any) -> tuple[Tensor, ...]:
        directions = 1 if args[num_states + 6] is None else 2
        hidden_size, num_rows = args[num_states + 12], args[-1].shape[0]
        out = x.new_empty(x.shape[0], directions * hidden_size)
        finals = [x.new_empty(directions, num_rows, hidden_size) for _ in range(num_states)]
        return (out, *finals)

    return fake


if extension.UNAVAILABLE is None:
    for _cell in [cell for cell in CELLS if cell.has_int8]:
        torch.library.register_fake(f"varlen_rnn::quantized_{_cell.name}", _fake(_cell.num_states))
