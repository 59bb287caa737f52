"""The gradients of ``lstm_forward`` and ``gru_forward``.

The backward ops give, step by step, the gradients of the gates before activation, ``d_gates``, and
the states that every token started from, ``h_previous``, both in step order. The gradients of
input, weights and biases are large products and sums of those: ``d_W = d_gates^T tokens``,
``d_x = d_gates W``. Shapes are those of the legend in :mod:`varlen_rnn.layout`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from varlen_rnn import reference
from varlen_rnn.layout import Layout

_NUM_ARRAYS = 6  # the layout's arrays and num_rows, the last arguments of every op

Tensors = Sequence[Tensor]
Needed = Sequence[bool]
Gradient = Tensor | Sequence[Tensor | None] | None


def setup_context(num_states: int) -> Callable[..., None]:
    """Makes the function that saves what the gradient of a cell with ``num_states`` reads."""

    def setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)
        out, saved = output[0], output[1 + num_states :]
        ctx.mark_non_differentiable(*saved)
        tensors, weights = inputs[: 1 + num_states], inputs[1 + num_states : -_NUM_ARRAYS]
        *arrays, ctx.num_rows = inputs[-_NUM_ARRAYS:]
        ctx.list_lengths = [len(weight) for weight in weights]
        flat = (tensor for weight in weights for tensor in weight)
        ctx.save_for_backward(*tensors, *flat, *arrays, out, *saved)

    return setup


def _unpack(ctx: Any, num_states: int) -> tuple[Any, ...]:
    """What was saved: input, states, lists of weights, layout's arrays, output, the cell's own."""
    x, *tensors = ctx.saved_tensors
    states, tensors = tensors[:num_states], tensors[num_states:]
    weights = []
    for length in ctx.list_lengths:
        weights.append(tensors[:length])
        tensors = tensors[length:]
    arrays = (*tensors[: _NUM_ARRAYS - 1], ctx.num_rows)
    out, *saved = tensors[_NUM_ARRAYS - 1 :]
    return x, states, weights, arrays, out, saved


def _wants_more(d_outputs: Sequence[Tensor | None]) -> bool:
    """Whether the gradient is differentiated (``create_graph``) or batched itself."""
    functorch = torch._C._functorch
    return (
        torch.is_grad_enabled()
        or torch._C._are_functorch_transforms_active()
        or any(d is not None and functorch.is_legacy_batchedtensor(d) for d in d_outputs)
    )


def _without_autocast(gradient: Callable[..., tuple[Gradient, ...]]) -> Callable[..., Any]:
    """Gradients keep the forward pass's dtypes, also where ``backward`` runs under autocast."""

    def wrapped(ctx: Any, *d_outputs: Tensor | None) -> tuple[Gradient, ...]:
        device_type = ctx.saved_tensors[0].device.type
        if not torch.is_autocast_enabled(device_type):
            return gradient(ctx, *d_outputs)
        with torch.autocast(device_type, enabled=False):
            return gradient(ctx, *d_outputs)

    return wrapped


@_without_autocast
def lstm_gradient(
    ctx: Any, d_out: Tensor | None, d_h_n: Tensor | None, d_c_n: Tensor | None, *_: None
) -> tuple[Gradient, ...]:
    """The gradient of ``lstm_forward``, in the order of its arguments."""
    x, (h_0, c_0), weights, arrays, out, (gates, cells) = _unpack(ctx, 2)
    d_outputs = (d_out, d_h_n, d_c_n)
    if _wants_more(d_outputs):
        return _differentiable(reference.lstm, x, (h_0, c_0), weights, arrays, d_outputs)
    weight_ih, weight_hh, *_, weight_hr = weights
    directions = len(weight_ih)
    d_gates, h_previous, d_h_0, d_c_0, d_h, hidden = torch.ops.varlen_rnn.lstm_backward(
        d_out, d_h_n, d_c_n, gates, cells, out, h_0, c_0, weight_hh, weight_hr, *arrays
    )
    needs_x, _, _, needs_ih, needs_hh, needs_b_ih, needs_b_hh, needs_hr, *_ = ctx.needs_input_grad
    by_direction = d_gates.chunk(directions, dim=1)
    return (
        _input_gradient(needs_x, by_direction, weight_ih, x, arrays[1]),
        None if h_0 is None else d_h_0,
        None if c_0 is None else d_c_0,
        _input_weight_gradients(needs_ih, by_direction, x, arrays[1]),
        _products(needs_hh, by_direction, h_previous.chunk(directions, dim=1)),
        _sums(needs_b_ih, by_direction),
        _sums(needs_b_hh, by_direction),
        _products(needs_hr, d_h.chunk(directions, dim=1), hidden.chunk(directions, dim=1)),
        *[None] * _NUM_ARRAYS,
    )


@_without_autocast
def gru_gradient(
    ctx: Any, d_out: Tensor | None, d_h_n: Tensor | None, *_: None
) -> tuple[Gradient, ...]:
    """The gradient of ``gru_forward``, in the order of its arguments."""
    x, (h_0,), weights, arrays, out, (gates,) = _unpack(ctx, 1)
    if _wants_more((d_out, d_h_n)):
        return _differentiable(reference.gru, x, (h_0,), weights, arrays, (d_out, d_h_n))
    weight_ih, weight_hh, *_ = weights
    directions, hidden_size = len(weight_ih), weight_hh[0].shape[1]
    d_gates, h_previous, d_h_0 = torch.ops.varlen_rnn.gru_backward(
        d_out, d_h_n, gates, out, h_0, weight_hh, *arrays
    )
    needs_x, _, needs_ih, needs_hh, needs_b_ih, needs_b_hh, *_ = ctx.needs_input_grad
    # The columns of d_gates are r, z, n on the input's side, n on the hidden side.
    by_direction = d_gates.chunk(directions, dim=1)
    d_input = [d[:, : 3 * hidden_size] for d in by_direction]
    d_r_z = [d[:, : 2 * hidden_size] for d in by_direction]
    d_n = [d[:, 3 * hidden_size :] for d in by_direction]
    h_parts = h_previous.chunk(directions, dim=1)
    return (
        _input_gradient(needs_x, d_input, weight_ih, x, arrays[1]),
        None if h_0 is None else d_h_0,
        _input_weight_gradients(needs_ih, d_input, x, arrays[1]),
        _stacked(_products(needs_hh, d_r_z, h_parts), _products(needs_hh, d_n, h_parts)),
        _sums(needs_b_ih, d_input),
        _stacked(_sums(needs_b_hh, d_r_z), _sums(needs_b_hh, d_n)),
        *[None] * _NUM_ARRAYS,
    )


def _products(needed: Needed, d_results: Tensors, factors: Tensors) -> list[Tensor | None]:
    """``d^T factor`` for each direction that needs it; an empty list if the weight is not there."""
    parts = zip(needed, d_results, factors, strict=False)
    return [torch.mm(d.t(), factor) if need else None for need, d, factor in parts]


def _sums(needed: Needed, d_results: Tensors) -> list[Tensor | None]:
    return [d.sum(0) if need else None for need, d in zip(needed, d_results, strict=False)]


def _stacked(top: list[Tensor | None], bottom: list[Tensor | None]) -> list[Tensor | None]:
    pairs = zip(top, bottom, strict=True)
    return [None if t is None or b is None else torch.cat((t, b)) for t, b in pairs]


def _input_weight_gradients(
    needed: Needed, d_gates: Tensors, x: Tensor, rows: Tensor | None
) -> list[Tensor | None]:
    if not any(needed):
        return [None] * len(needed)
    tokens = x if rows is None else x.index_select(0, rows)
    return _products(needed, d_gates, [tokens] * len(needed))


def _input_gradient(
    needed: bool, d_gates: Tensors, weight_ih: Tensors, x: Tensor, rows: Tensor | None
) -> Tensor | None:
    if not needed:
        return None
    d_tokens = torch.mm(d_gates[0], weight_ih[0])
    for d, weight in zip(d_gates[1:], weight_ih[1:], strict=True):
        d_tokens = torch.addmm(d_tokens, d, weight)
    return d_tokens if rows is None else torch.zeros_like(x).index_copy_(0, rows, d_tokens)


def _differentiable(
    layer: Callable[..., tuple[Tensor, ...]],
    x: Tensor,
    states: Sequence[Tensor | None],
    weights: Sequence[Tensors],
    arrays: tuple[Any, ...],
    d_outputs: Sequence[Tensor | None],
) -> tuple[Gradient, ...]:
    """The same gradient through the reference, which can be differentiated and batched itself."""
    leaves: list[Tensor] = []

    def leaf(tensor: Tensor) -> Tensor:
        # A view, so that x counts as itself and not as a function of earlier layers' weights.
        view = tensor.view_as(tensor)
        if view.requires_grad:
            leaves.append(view)
        return view

    with torch.enable_grad():
        tensors = [None if t is None else leaf(t) for t in (x, *states)]
        lists = [[leaf(t) for t in weight] for weight in weights]
        outputs = zip(layer(*tensors, *lists, Layout(*arrays)), d_outputs, strict=True)
    pairs = [(out, d) for out, d in outputs if d is not None and out.requires_grad]
    gradients = torch.autograd.grad(
        [out for out, _ in pairs],
        leaves,
        [d for _, d in pairs],
        create_graph=torch.is_grad_enabled(),
        allow_unused=True,
        materialize_grads=True,
    )
    found = {id(view): gradient for view, gradient in zip(leaves, gradients, strict=True)}
    return (
        *(found.get(id(t)) for t in tensors),
        *([found.get(id(t)) for t in weight] for weight in lists),
        *[None] * _NUM_ARRAYS,
    )
