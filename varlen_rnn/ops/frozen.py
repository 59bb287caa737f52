"""Layers whose weights are packed once: the ops ``varlen_rnn::lstm_frozen`` and ``gru_frozen``.

Weights are in the order of :mod:`varlen_rnn.ops.packed`: floats of the type that is computed in,
bfloat16 that is widened as it is read, or int8 with scales (:mod:`varlen_rnn.ops.int8`). Inference
only. Shapes are those of the legend in :mod:`varlen_rnn.layout`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from varlen_rnn import reference
from varlen_rnn.layout import Layout
from varlen_rnn.ops import int8
from varlen_rnn.ops.cells import CELLS, NAMED, Cell
from varlen_rnn.ops.packed import (
    KINDS,
    kinds_of,
    native_units,
    pack,
    pack_projection,
    unpack,
    unpack_projection,
)
from varlen_rnn.reference import layers
from varlen_rnn.runtime import extension

Weights = Sequence[Tensor | None]


def freeze_weights(cell: str, weights: Weights, dtype: torch.dtype) -> list[Tensor | None]:
    """Of one direction ``weight_ih, weight_hh, bias_ih, bias_hh, weight_hr`` to those of KINDS.

    ``dtype`` is that of the packed weights.
    """
    w_ih, w_hh, b_ih, b_hh, w_hr = weights
    assert w_ih is not None
    assert w_hh is not None
    num_gates = NAMED[cell].num_gates
    units = native_units(cell, dtype)
    compute = torch.promote_types(w_ih.dtype, torch.float32)
    order = partial(pack, num_gates=num_gates, units=units)
    zeros = w_ih.new_zeros(len(w_ih))
    biases = [order((zeros if b is None else b).to(compute)) for b in (b_ih, b_hh)]
    if dtype == torch.int8:
        (q_ih, s_ih), (q_hh, s_hh) = map(int8.quantize_weight, (w_ih, w_hh))
        return [order(q_ih), order(q_hh), *biases, order(s_ih), order(s_hh), None]
    if w_hr is not None:
        w_hr = pack_projection(w_hr.to(dtype).to(compute), units)
    return [order(w_ih.to(dtype)), order(w_hh.to(dtype)), *biases, None, None, w_hr]


def packed_anew(
    cell: str, weights: Weights, sizes: tuple[int, int, int], units: int | None = None
) -> list[Tensor | None]:
    """Of one direction those of KINDS, in blocks of ``units``, by default as the kernels read them.

    The very tensors where they are in that order already; ``sizes`` are I, H and P.
    """
    w_ih, w_hh, b_ih, b_hh, s_ih, s_hh, w_hr = weights
    assert w_ih is not None
    assert b_ih is not None
    units = units or native_units(cell, w_ih.dtype)
    if b_ih.shape[2] == units:
        return list(weights)
    input_size, hidden_size, output_size = sizes
    num_gates = NAMED[cell].num_gates

    def anew(packed: Tensor | None, size: int = 0) -> Tensor | None:
        if packed is None:
            return None
        return pack(unpack(packed, hidden_size, size), num_gates, units)

    if w_hr is not None:
        w_hr = pack_projection(unpack_projection(w_hr, output_size), units)
    vectors = map(anew, (b_ih, b_hh, s_ih, s_hh))
    return [anew(w_ih, input_size), anew(w_hh, output_size), *vectors, w_hr]


def layer(
    cell: str,
    x: Tensor,
    states: Sequence[Tensor | None],
    weights: Weights,
    sizes: tuple[int, int],
    layout: Layout,
) -> tuple[Tensor, ...]:
    """One layer of an ``"lstm"`` or ``"gru"``: output ``[R, D * P]`` and final states.

    ``weights`` are those of KINDS for the forward and then for the reverse direction, None for what
    is not there; ``sizes`` are H and P.
    """
    kinds = len(kinds_of(cell))
    by_direction = (weights[: len(KINDS)], weights[len(KINDS) :])
    if x.is_cpu and extension.runs(x):
        op: Any = getattr(torch.ops.varlen_rnn, f"{cell}_frozen")
        given = [weight for direction in by_direction for weight in direction[:kinds]]
        arrays = (layout.batch_sizes, layout.rows, layout.reverse)
        ends = (layout.initial_row, layout.final_segment)
        results: tuple[Tensor, ...] = op(x, *states, *given, *sizes, *arrays, *ends)
        return results
    step = reference.lstm_cell if cell == "lstm" else reference.gru_cell
    of_integers = weights[4] is not None
    dtype = torch.float64 if of_integers else x.dtype
    out, finals, _ = layers.run(
        step,
        x.to(dtype),
        [None if state is None else state.to(dtype) for state in states],
        (sizes[1], sizes[0])[: len(states)],
        [
            _unpacked(cell, direction, (x.shape[1], *sizes))
            for direction in by_direction
            if direction[0] is not None
        ],
        layout.exact(),
        *([int8.linear] if of_integers else []),
    )
    return out.to(x.dtype), *(final.to(x.dtype) for final in finals)


def _unpacked(cell: str, weights: Weights, sizes: tuple[int, int, int]) -> tuple[Any, ...]:
    """``weight_ih, weight_hh, bias_ih, bias_hh`` and an LSTM's ``weight_hr`` of one direction.

    int8 weights times their scales are exact, in float64.
    """
    *_, s_ih, s_hh, w_hr = weights
    w_ih, w_hh, b_ih, b_hh = (weight for weight in weights[:4] if weight is not None)
    input_size, hidden_size, output_size = sizes
    matrices = [unpack(w_ih, hidden_size, input_size), unpack(w_hh, hidden_size, output_size)]
    vectors = [unpack(b_ih, hidden_size), unpack(b_hh, hidden_size)]
    if s_ih is not None and s_hh is not None:
        scales = [unpack(s, hidden_size).double()[:, None] for s in (s_ih, s_hh)]
        matrices = [m.double() * scale for m, scale in zip(matrices, scales, strict=True)]
        vectors = [vector.double() for vector in vectors]
    if cell != "lstm":
        return (*matrices, *vectors)
    return (*matrices, *vectors, None if w_hr is None else unpack_projection(w_hr, output_size))


def _fake(cell: Cell) -> Any:
    """The shapes that an op returns."""
    kinds = len(kinds_of(cell.name))

    def fake(x: Tensor, *args: Any) -> tuple[Tensor, ...]:
        behind = args[cell.num_states :]
        directions = 1 if behind[kinds] is None else 2
        hidden_size, output_size = behind[2 * kinds : 2 * kinds + 2]
        num_rows = args[-1].shape[0]
        out = x.new_empty(x.shape[0], directions * output_size)
        final_sizes = (output_size, hidden_size)[: cell.num_states]
        return (out, *(x.new_empty(directions, num_rows, size) for size in final_sizes))

    return fake


if extension.UNAVAILABLE is None:
    for _cell in [cell for cell in CELLS if cell.has_frozen]:
        torch.library.register_fake(f"varlen_rnn::{_cell.name}_frozen", _fake(_cell))
