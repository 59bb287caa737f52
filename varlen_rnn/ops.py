"""The ops' Python side: which implementation runs, and fake kernels.

Compiled ops (schemas in ``csrc/library.cpp``), one layer in one or both directions each, and two
that make layouts:

- ``varlen_rnn::lstm_inference``, ``gru_inference``: outputs and final states, nothing saved.
- ``varlen_rnn::lstm_forward``, ``gru_forward``: the same, and what the backward pass reads; the
  cell states among that are a result like others, with a gradient.
- ``varlen_rnn::lstm_backward``, ``gru_backward``: from the outputs' gradients to those of all the
  layer's arguments.
- ``varlen_rnn::layout_from_rows``, ``reverse_order``: what :mod:`varlen_rnn.layout` makes.

Shapes are those of the legend in :mod:`varlen_rnn.layout`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from varlen_rnn import _extension, _flops, _gradients, reference
from varlen_rnn._gradients import GRU, LSTM, Cell, by_kind
from varlen_rnn._tracing import in_jit_trace
from varlen_rnn.layout import Layout

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

Tensors = Sequence[Tensor | None]


def lstm(
    x: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    weights: Tensors,
    layout: Layout,
    output_states: bool = False,
) -> tuple[Tensor, ...]:
    """One LSTM layer: :func:`varlen_rnn.reference.lstm`, compiled where it can be.

    ``weights`` are ``weight_ih, weight_hh, bias_ih, bias_hh, weight_hr`` of the forward and then of
    the reverse direction, None for what is not there. With ``output_states`` a fourth result holds
    every cell state, ``[R, D * H]``.
    """
    args: tuple[Any, ...] = (x, h_0, c_0, *weights, *_arguments(layout, x))
    if not compiled(x):
        args = (x, h_0, c_0, *by_kind(weights), layout)
        out, h_n, c_n, *cells = LSTM.reference(*args, output_cells=output_states)
    elif output_states or _needs_gradient(x, h_0, c_0, *weights):
        out, h_n, c_n, *cells = torch.ops.varlen_rnn.lstm_forward(*args)[:-1]
    else:
        out, h_n, c_n = torch.ops.varlen_rnn.lstm_inference(*args)
    if not output_states:
        return out, h_n, c_n
    return out, h_n, c_n, reference.cells_of_rows(cells[0], layout, x.shape[0]).to(x.dtype)


def gru(x: Tensor, h_0: Tensor | None, weights: Tensors, layout: Layout) -> tuple[Tensor, Tensor]:
    """One GRU layer: :func:`varlen_rnn.reference.gru`, compiled where it can be.

    ``weights`` are those of :func:`lstm` without ``weight_hr``.
    """
    if not compiled(x):
        out, h_n = GRU.reference(x, h_0, *by_kind(weights), layout)
        return out, h_n
    args = (x, h_0, *weights, *_arguments(layout, x))
    if _needs_gradient(x, h_0, *weights):
        out, h_n, *_ = torch.ops.varlen_rnn.gru_forward(*args)
    else:
        out, h_n = torch.ops.varlen_rnn.gru_inference(*args)
    return out, h_n


def compiled(x: Tensor) -> bool:
    """Whether a compiled op runs, which takes every layout; the reference takes exact ones."""
    if _extension.UNAVAILABLE is not None:
        _extension.warn_once()
        return False
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return False  # the reference can be batched, and differentiated in forward mode
    if x.dtype not in _DTYPES:
        return False
    return x.is_cpu or (x.is_cuda and _extension.supports_cuda(x.device))


def _tf32_is_allowed() -> bool:
    """Whether float32 may be multiplied as TF32: torch's switch of ``torch.nn.LSTM`` on CUDA."""
    switch: Any = torch.backends.cudnn.rnn
    return bool(switch.fp32_precision == "tf32")


# In torch 2.10 torch.compile cannot read the switch: it counts as it is while a model is compiled.
if torch.__version__ < "2.11":
    _tf32_is_allowed._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _needs_gradient(*args: Tensor | None) -> bool:
    if in_jit_trace():
        return True  # in both calls the same op
    return torch.is_grad_enabled() and any(arg.requires_grad for arg in args if arg is not None)


def _arguments(layout: Layout, x: Tensor) -> tuple[Tensor | int | None, ...]:
    """The layout as the ops take it, and whether float32 may be TF32."""
    return (
        layout.batch_sizes,
        layout.rows,
        layout.reverse,
        layout.initial_row,
        layout.final_segment,
        x.is_cuda and _tf32_is_allowed(),
    )


def _fake_forward(cell: Cell, training: bool) -> Callable[..., Any]:
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


def _fake_backward(cell: Cell) -> Callable[..., Any]:
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


def _fake_layout_from_rows(
    positions: Tensor,
    _lengths: Tensor | None,
    first: Tensor | None,
    _mask: Tensor | None,
    resets: Tensor | None,
    _batch_first: bool,
    at_capacity: bool,
) -> tuple[Tensor, ...]:
    num_steps = positions.shape[-2]
    num_rows = positions.shape[0] if first is None else first.shape[0]
    sizes: list[Any]
    if at_capacity:
        num_tokens = num_rows * num_steps if first is None else num_steps
        # Without resets every row is one segment at most. (torch.sym_min has no types.)
        fewest: Any = torch.sym_min
        num_segments = fewest(num_rows, num_tokens) if resets is None else num_tokens
        sizes = [num_steps + 1, num_tokens, num_segments]
    else:
        context = torch.library.get_ctx()
        sizes = [context.new_dynamic_size() for _ in range(3)]
    sizes.append(num_rows)
    return tuple(torch.empty(size, dtype=torch.int64, device="cpu") for size in sizes)


def _fake_reverse_order(batch_sizes: Tensor, tokens: Tensor) -> Tensor:
    return batch_sizes.new_empty(tokens.shape[0])


def _register() -> None:
    """Gives the compiled ops their fake kernels, gradients and FLOPs."""
    library = torch.library
    for cell in (LSTM, GRU):
        name = f"varlen_rnn::{cell.name}"
        library.register_fake(f"{name}_inference", _fake_forward(cell, training=False))
        library.register_fake(f"{name}_forward", _fake_forward(cell, training=True))
        library.register_fake(f"{name}_backward", _fake_backward(cell))
        library.impl(f"{name}_forward", "Autograd", _gradients.differentiable(cell))
        library.impl(f"{name}_backward", "Autograd", _gradients.not_differentiable(cell))
    library.register_fake("varlen_rnn::layout_from_rows", _fake_layout_from_rows)
    library.register_fake("varlen_rnn::reverse_order", _fake_reverse_order)
    _flops.register()


if _extension.UNAVAILABLE is None:
    _register()
