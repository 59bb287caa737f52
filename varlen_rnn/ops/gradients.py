"""The gradients of ``lstm_forward`` and ``gru_forward``: those of the compiled backward ops.

Gradients that are to be differentiated or batched themselves are those of the reference. Shapes are
those of the legend in :mod:`varlen_rnn.layout`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from varlen_rnn.layout import Layout
from varlen_rnn.ops.cells import Cell, Tensors, by_kind
from varlen_rnn.runtime import extension

_NUM_ARRAYS = 5  # of the layout, which the last arguments of every forward op begin with
_NUM_OTHERS = _NUM_ARRAYS + 1  # than x, states and weights: allow_tf32 as well


def differentiable(cell: Cell) -> Callable[..., tuple[Tensor, ...]]:
    """``lstm_forward`` or ``gru_forward`` with its gradient: the op's kernel for autograd.

    ``torch.library.register_autograd`` would do the same, but reads the schema anew in every call,
    which takes longer than a small layer.
    """
    op = getattr(torch.ops.varlen_rnn, f"{cell.name}_forward").default

    class Function(torch.autograd.Function):
        """The formulas are the compiled backward op's."""

        @staticmethod
        def forward(ctx: Any, *args: Any) -> tuple[Tensor, ...]:
            with torch._C._AutoDispatchBelowAutograd():
                outputs: tuple[Tensor, ...] = op(*args)
            gates, cells = outputs[-1], outputs[1 + cell.num_states : -1]
            ctx.set_materialize_grads(False)
            ctx.mark_non_differentiable(gates)
            ctx.allow_tf32 = args[-1]
            ctx.save_for_backward(*args[:-1], _as_it_is(outputs[0]), gates, *cells)
            return outputs

        @staticmethod
        def backward(ctx: Any, *d_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
            wanted = d_outputs[: cell.num_differentiable]
            saved = ctx.saved_tensors  # once: reading unpacks, which checkpoints allow once
            device_type = saved[0].device.type
            if not torch.is_autocast_enabled(device_type):
                return _gradients(ctx, saved, cell, wanted)
            # Gradients keep the forward pass's dtypes.
            with torch.autocast(device_type, enabled=False):
                return _gradients(ctx, saved, cell, wanted)

    # Named after the cell: what print(out.grad_fn) shows.
    named: Any = type(cell.name.upper(), (Function,), {})
    apply: Callable[..., tuple[Tensor, ...]] = named.apply
    return apply


def _as_it_is(out: Tensor) -> Tensor:
    """The output for the backward pass, which the caller may change in place, as by ``relu_``.

    They share memory until somebody writes to one of them, or asks for memory to write to. What
    inductor compiles always asks, and CUDA's allocator does not keep track of streams for such
    memory: there torch refuses the backward pass if the output was changed.
    """
    is_recorded = type(out) is not Tensor
    return torch._lazy_clone(out) if out.is_cpu and not is_recorded else out


def not_differentiable(cell: Cell) -> Callable[..., tuple[Tensor, ...]]:
    """``lstm_backward`` or ``gru_backward`` with an error instead of a gradient.

    Without it the op's results would look as if they had one, and none would arrive.
    """
    name = f"{cell.name}_backward"
    op = getattr(torch.ops.varlen_rnn, name).default

    class Function(torch.autograd.Function):
        """Fails when the results are differentiated."""

        @staticmethod
        def forward(ctx: Any, *args: Any) -> tuple[Tensor, ...]:
            with torch._C._AutoDispatchBelowAutograd():
                outputs: tuple[Tensor, ...] = op(*args)
            return outputs

        @staticmethod
        def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
            raise NotImplementedError(
                f"varlen_rnn::{name}: differentiated must be the gradients of "
                f"varlen_rnn::{cell.name}_forward with create_graph=True, got the results of {name}"
            )

    apply: Callable[..., tuple[Tensor, ...]] = Function.apply
    return apply


def _gradients(
    ctx: Any, saved: Sequence[Any], cell: Cell, d_outputs: Tensors
) -> tuple[Tensor | None, ...]:
    """The gradients of the forward op's arguments, None where none is needed."""
    x, *tensors = saved
    first = cell.num_states + 2 * cell.num_kinds
    states, weights = tensors[: cell.num_states], tensors[cell.num_states : first]
    arrays, results = tensors[first : first + _NUM_ARRAYS], tensors[first + _NUM_ARRAYS :]
    if _wants_more(d_outputs):
        layout = Layout(*arrays)
        inputs, needs = (x, *states, *weights), ctx.needs_input_grad[: 1 + first]
        found = iter(_differentiable(cell, inputs, needs, layout, d_outputs))
        return (*(next(found) if need else None for need in needs), *[None] * _NUM_OTHERS)
    needs_x, *needs = ctx.needs_input_grad[: 1 + first]
    needs_weights = needs[cell.num_states :]
    forward, reverse = weights[: cell.num_kinds], weights[cell.num_kinds :]
    backward = getattr(torch.ops.varlen_rnn, f"{cell.name}_backward")
    with torch._C._AutoDispatchBelowAutograd():
        args = (
            *d_outputs,
            x,
            *states,
            *forward[:2],
            *forward[4:],  # without biases
            *reverse[:2],
            *reverse[4:],
            *arrays,
            ctx.allow_tf32,
            *results,
            needs_x,
            any(needs_weights),
        )
        d_x, *d_others = extension.call(backward, x, args)
    d_states, d_weights = d_others[: cell.num_states], d_others[cell.num_states :]
    return (
        d_x if needs_x else None,
        *(d if need else None for need, d in zip(needs, d_states, strict=False)),
        *(d if need else None for need, d in zip(needs_weights, d_weights, strict=True)),
        *[None] * _NUM_OTHERS,
    )


def _wants_more(d_outputs: Tensors) -> bool:
    """Whether the gradient is differentiated, in either mode, or batched itself."""
    functorch = torch._C._functorch
    return (
        torch.is_grad_enabled()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or any(d is not None and functorch.is_legacy_batchedtensor(d) for d in d_outputs)
    )


def _differentiable(
    cell: Cell, inputs: Tensors, needs: Sequence[bool], layout: Layout, d_outputs: Tensors
) -> Sequence[Tensor]:
    """The same gradients of x, states and weights through the reference.

    They can be differentiated and batched themselves. Only those that are needed are returned.
    """
    layout = layout.exact()

    def outputs_of(*needed: Tensor) -> tuple[Tensor, ...]:
        """Those outputs that have a gradient."""
        given = iter(needed)
        args = [next(given) if need else t for t, need in zip(inputs, needs, strict=True)]
        first = 1 + cell.num_states
        outputs = cell.reference(*args[:first], *by_kind(args[first:]), layout)
        return tuple([out for out, d in zip(outputs, d_outputs, strict=True) if d is not None])

    d_outputs_there = tuple([d for d in d_outputs if d is not None])
    needed = [t for t, need in zip(inputs, needs, strict=True) if need and t is not None]
    if torch._C._are_functorch_transforms_active():
        outputs_and_vjp: Any = torch.func.vjp(outputs_of, *needed)
        gradients: Sequence[Tensor] = outputs_and_vjp[1](d_outputs_there)
        return gradients
    # Views, so that x counts as itself and not as a function of earlier layers' weights.
    with torch.enable_grad():
        leaves = [t.view_as(t) for t in needed]
        outputs = outputs_of(*leaves)
    pairs = [(o, d) for o, d in zip(outputs, d_outputs_there, strict=True) if o.requires_grad]
    return torch.autograd.grad(
        [out for out, _ in pairs],
        leaves,
        [d for _, d in pairs],
        create_graph=torch.is_grad_enabled(),
        allow_unused=True,
        materialize_grads=True,
    )
