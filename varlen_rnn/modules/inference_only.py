"""Layers without a gradient: a backward pass that comes to one is an error, and no silence.

The results require a gradient where the arguments do, so that inference needs no ``no_grad``. In a
compiled backward pass, which is recorded before anybody runs it, an op raises the error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd import forward_ad

from varlen_rnn.runtime.tracing import in_jit_trace

_OP = "varlen_rnn::no_gradient"


def refuse_tangents(layer: str, arguments: Sequence[Tensor]) -> None:
    """Fails if forward mode wants a derivative."""
    for argument in arguments:
        dual = forward_ad.unpack_dual(argument)  # type: ignore[no-untyped-call]
        if dual.tangent is not None:
            _fail(layer, "a tangent")


def results_of(
    layer: str, results: tuple[Tensor, ...], arguments: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """A layer's results, which require a gradient; ``layer`` is its name in the error.

    Exported and traced programs hold no backward pass, and so they get the results as they are.
    """
    if torch.compiler.is_exporting() or in_jit_trace():
        return results
    apply: Callable[..., tuple[Tensor, ...]] = _NoGradient.apply
    return apply(layer, len(results), *results, *arguments)


class _NoGradient(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(layer: str, num_results: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple([result.clone() for result in tensors[:num_results]])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.layer, ctx.num_results, *tensors = inputs
        ctx.shapes = [argument.shape for argument in tensors[ctx.num_results :]]

    @staticmethod
    def backward(ctx: Any, *d_results: Tensor) -> tuple[Tensor | None, ...]:
        op = torch.ops.varlen_rnn.no_gradient
        d_arguments = [op(d_results[0], shape, ctx.layer) for shape in ctx.shapes]
        return (None, None, *[None] * ctx.num_results, *d_arguments)


def _fail(layer: str, got: str) -> NoReturn:
    raise NotImplementedError(
        f"{layer}: a frozen layer must be used for inference alone, got {got}; train the model "
        "before it is frozen, or detach the layer's input to train what comes after"
    )


torch.library.define(_OP, "(Tensor d_result, SymInt[] shape, str layer) -> Tensor")
torch.library.impl(_OP, "default", lambda _, __, layer: _fail(layer, "a gradient"))
torch.library.register_fake(_OP, lambda d_result, shape, _: d_result.new_empty(shape))
