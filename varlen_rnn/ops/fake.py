"""What torch has to know of the compiled ops: fake kernels, which return shapes, and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from varlen_rnn.ops import flops, gradients
from varlen_rnn.ops.cells import CELLS, Cell


def _forward(cell: Cell, training: bool) -> Callable[..., Any]:
    """The shapes that ``*_inference`` and ``*_forward`` return."""

    def fake(x: Tensor, *args: Any) -> tuple[Tensor, ...]:
        weights = args[cell.num_states : cell.num_states + 2 * cell.num_kinds]
        weight_ih, weight_hh = weights[:2]
        rows, num_rows = args[-5], args[-2].shape[0]
        directions = 1 if weights[cell.num_kinds] is None else 2
        output_size, hidden_size = weight_hh.shape[1], weight_ih.shape[0] // cell.num_gates
        num_tokens = x.shape[0] if rows is None else rows.shape[0]
        compute = torch.promote_types(x.dtype, torch.float32)
        out = x.new_empty(x.shape[0], directions * output_size)
        final_sizes = (output_size, hidden_size)[: cell.num_states]
        finals = (x.new_empty(directions, num_rows, size) for size in final_sizes)
        saved_sizes = (hidden_size, 4 * hidden_size)[-cell.num_states :] if training else ()
        saved = (x.new_empty(directions, num_tokens, size, dtype=compute) for size in saved_sizes)
        return (out, *finals, *saved)

    return fake


def _backward(cell: Cell) -> Callable[..., Any]:
    """The shapes that ``*_backward`` returns."""

    def fake(*args: Any) -> tuple[Tensor, ...]:
        first = cell.num_differentiable  # behind the outputs' gradients
        x, *args_behind_x = args[first:]
        weights = args_behind_x[cell.num_states :]
        weight_ih, weight_hh, *weight_hr = weights[: cell.num_kinds - 2]
        num_rows = args[-5 - cell.num_states].shape[0]
        needs_x, needs_weights = args[-2:]
        directions = 1 if weights[cell.num_kinds - 2] is None else 2
        (rows, input_size), output_size = weight_ih.shape, weight_hh.shape[1]
        hidden_size = rows // cell.num_gates
        final_sizes = (output_size, hidden_size)[: cell.num_states]
        shapes = [(rows, input_size), (rows, output_size), (rows,), (rows,)]
        d_weights = []
        for direction in range(2):
            there = needs_weights and direction < directions
            d_weights += [x.new_empty(shape if there else (0, *shape[1:])) for shape in shapes]
            for weight in weight_hr:
                projected = there and weight is not None
                d_weights.append(x.new_empty(output_size if projected else 0, hidden_size))
        return (
            x.new_empty(x.shape[0] if needs_x else 0, input_size),
            *(x.new_empty(directions, num_rows, size) for size in final_sizes),
            *d_weights,
        )

    return fake


def _layout_from_rows(
    positions: Tensor,
    _lengths: Tensor | None,
    first: Tensor | None,
    _mask: Tensor | None,
    resets: Tensor | None,
    _batch_first: bool,
    bidirectional: bool,
    at_capacity: bool,
) -> tuple[Tensor, ...]:
    num_steps: Any = positions.shape[-2]
    num_rows = positions.shape[0] if first is None else first.shape[0]
    if at_capacity:
        num_tokens = num_rows * num_steps if first is None else num_steps
        # Without resets every row is one segment at most. (torch.sym_min has no types.)
        fewest: Any = torch.sym_min
        num_segments = fewest(num_rows, num_tokens) if resets is None else num_tokens
        if positions.device.type == "cpu":  # as much, and a zero at the end
            num_steps = num_steps + 1
    else:
        context = torch.library.get_ctx()
        num_steps, num_tokens, num_segments = (context.new_dynamic_size() for _ in range(3))
    sizes = [num_steps, num_tokens, num_tokens if bidirectional else 0, num_segments, num_rows]
    return tuple(torch.empty(n, dtype=torch.int64, device=positions.device) for n in sizes)


def _reverse_order(batch_sizes: Tensor, tokens: Tensor) -> Tensor:
    return batch_sizes.new_empty(tokens.shape[0])


def register() -> None:
    """Gives the compiled ops their fake kernels, gradients and FLOPs."""
    library = torch.library
    for cell in CELLS:
        name = f"varlen_rnn::{cell.name}"
        library.register_fake(f"{name}_inference", _forward(cell, training=False))
        library.register_fake(f"{name}_forward", _forward(cell, training=True))
        library.register_fake(f"{name}_backward", _backward(cell))
        library.impl(f"{name}_forward", "Autograd", gradients.differentiable(cell))
        library.impl(f"{name}_backward", "Autograd", gradients.not_differentiable(cell))
    library.register_fake("varlen_rnn::layout_from_rows", _layout_from_rows)
    library.register_fake("varlen_rnn::reverse_order", _reverse_order)
    flops.register()
