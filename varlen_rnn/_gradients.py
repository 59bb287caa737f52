"""The gradients of ``lstm_forward`` and ``gru_forward``: those of the compiled backward ops.

Gradients that are to be differentiated or batched themselves are those of the reference. Shapes are
those of the legend in :mod:`varlen_rnn.layout`.
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
    x, states, weights, arrays, out, saved = _unpack(ctx, 2)
    d_outputs = (d_out, d_h_n, d_c_n)
    if _wants_more(d_outputs):
        return _differentiable(reference.lstm, x, states, weights, arrays, d_outputs)
    weight_ih, weight_hh, *_, weight_hr = weights
    d_x, d_h_0, d_c_0, *d_weights = torch.ops.varlen_rnn.lstm_backward(
        *d_outputs,
        x,
        *states,
        weight_ih,
        weight_hh,
        weight_hr,
        *arrays,
        out,
        *saved,
        *_needs(ctx, 2),
    )
    return _gradients(ctx, d_x, (d_h_0, d_c_0), d_weights)


@_without_autocast
def gru_gradient(
    ctx: Any, d_out: Tensor | None, d_h_n: Tensor | None, *_: None
) -> tuple[Gradient, ...]:
    """The gradient of ``gru_forward``, in the order of its arguments."""
    x, states, weights, arrays, out, saved = _unpack(ctx, 1)
    d_outputs = (d_out, d_h_n)
    if _wants_more(d_outputs):
        return _differentiable(reference.gru, x, states, weights, arrays, d_outputs)
    weight_ih, weight_hh, *_ = weights
    d_x, d_h_0, *d_weights = torch.ops.varlen_rnn.gru_backward(
        *d_outputs, x, *states, weight_ih, weight_hh, *arrays, out, *saved, *_needs(ctx, 1)
    )
    return _gradients(ctx, d_x, (d_h_0,), d_weights)


def _needs(ctx: Any, num_states: int) -> tuple[bool, bool]:
    """Whether the gradient of the input is needed, and that of any weight."""
    needs_x, *others = ctx.needs_input_grad
    return needs_x, any(map(_any, others[num_states:]))


def _any(needed: bool | Needed) -> bool:
    return needed if isinstance(needed, bool) else any(needed)


def _gradients(
    ctx: Any, d_x: Tensor, d_states: Tensors, d_weights: Tensors
) -> tuple[Gradient, ...]:
    """What the backward op gave, without what is not needed."""
    needs = ctx.needs_input_grad
    first = 1 + len(d_states)
    states = zip(needs[1:first], d_states, strict=True)
    kinds = zip(needs[first:-_NUM_ARRAYS], d_weights, strict=True)
    return (
        d_x if needs[0] else None,
        *(d if need else None for need, d in states),
        *([d[i] if need else None for i, need in enumerate(needed)] for needed, d in kinds),
        *[None] * _NUM_ARRAYS,
    )


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
