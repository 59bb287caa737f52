"""The truth for the CUDA ops: the reference in float64, with the roundings that the kernels have.

A 16-bit or TF32 result differs from the reference by what the format cannot hold. With the same
roundings in the same places, which the reference's cells get here, little of that is left, and what
is wrong shows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from varlen_rnn.reference.cells import State

Rounding = Callable[[Tensor], Tensor]


def same(values: Tensor) -> Tensor:
    return values


def to_tf32(values: Tensor) -> Tensor:
    """The nearest of 10 bits of mantissa, as cvt.rna does it: ties away from zero."""
    bits = values.float().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32).double()


@dataclass(frozen=True)
class Number:
    """A number format of the ops.

    ``epsilon`` is the distance from 1 to the next number of what values are rounded to.
    """

    name: str
    dtype: torch.dtype
    epsilon: float
    is_tf32: bool = False

    def stored(self, values: Tensor) -> Tensor:
        return values.to(self.dtype).double()

    def operand(self, values: Tensor) -> Tensor:
        """What a product of the persistent kernels takes."""
        return to_tf32(values) if self.is_tf32 else self.stored(values)

    @property
    def is_16_bit(self) -> bool:
        return self.dtype.itemsize == 2


NUMBERS = {
    number.name: number
    for number in (
        Number("float64", torch.float64, 2.0**-52),
        Number("float32", torch.float32, 2.0**-23),
        Number("tf32", torch.float32, 2.0**-10, is_tf32=True),
        Number("bfloat16", torch.bfloat16, 2.0**-7),
        Number("float16", torch.float16, 2.0**-10),
    )
}


class _Rounded(torch.autograd.Function):
    """Rounds values in the forward pass and gradients in the backward pass."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, values_by: Rounding, gradients_by: Rounding) -> Tensor:
        ctx.gradients_by = gradients_by
        return values_by(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return ctx.gradients_by(gradient), None, None


@dataclass(frozen=True)
class _Rule:
    """How a pass of the steps rounds its product with W_hh: the operands, and the result."""

    operand: Rounding
    result: Rounding


class _Product(torch.autograd.Function):
    """``F.linear(h, weight)`` of the steps; the weight's gradient is a product of torch's."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: Tensor, forward: _Rule, backward: _Rule) -> Tensor:
        ctx.save_for_backward(h, weight)
        ctx.rule = backward
        return forward.result(F.linear(forward.operand(h), forward.operand(weight)))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        h, weight = ctx.saved_tensors
        d_h = ctx.rule.result(ctx.rule.operand(gradient) @ ctx.rule.operand(weight))
        return d_h, gradient.t() @ h, None, None


def rounded_cell(cell: str, number: Number, persistent: tuple[bool, bool]) -> Callable[..., State]:
    """``reference.lstm_cell`` or ``gru_cell`` with the roundings of the paths of both passes.

    Stored are W_ih x with its biases, every h, and the gradients of the gates. The generic path's
    products are torch's and stored, too.
    """
    stored = number.stored
    rules = [_Rule(number.operand, same) if p else _Rule(stored, stored) for p in persistent]

    def product(h: Tensor, weight: Tensor) -> Tensor:
        return _Product.apply(h, weight, *rules)

    def gate(values: Tensor, by: Rounding = same) -> Tensor:
        return _Rounded.apply(values, by, stored)  # its gradient is stored

    def lstm_cell(
        from_x: Tensor,
        state: State,
        weight: Tensor,
        bias: Tensor | None,
        weight_hr: Tensor | None,
        linear: object,  # the products have roundings of their own
    ) -> State:
        h, c = state
        bias = from_x.new_zeros(()) if bias is None else bias
        i, f, g, o = (gate(from_x + bias, stored) + gate(product(h, weight))).chunk(4, dim=-1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        if weight_hr is None:
            return _Rounded.apply(h, stored, same), c
        return gate(F.linear(gate(h, stored), weight_hr), stored), c

    def gru_cell(
        from_x: Tensor, state: State, weight: Tensor, bias: Tensor | None, linear: object
    ) -> State:
        (h,) = state
        size = h.shape[1]
        bias = weight.new_zeros(3 * size) if bias is None else bias
        of_input = torch.cat([bias[: 2 * size], torch.zeros_like(bias[2 * size :])])
        x_r, x_z, x_n = gate(from_x + of_input, stored).chunk(3, dim=-1)
        h_r, h_z, h_n = gate(product(h, weight) + bias - of_input).chunk(3, dim=-1)
        r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
        n = torch.tanh(x_n + r * h_n)
        return (_Rounded.apply(n + z * (h - n), stored, same),)

    return {"lstm": lstm_cell, "gru": gru_cell}[cell]
