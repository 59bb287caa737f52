"""The arithmetic of layers with int8 weights: weights, and the products.

A weight is ``scale * q`` with ``q`` in [-127, 127] and one scale for each row of ``weight_ih`` and
``weight_hh``, an activation ``scale * q`` with ``q`` in [-m, m] and one scale for each token, so
that a product is a sum of integers times two scales. ``m`` is 32639, 256 * 127 + 127, so that two
signed bytes hold an activation, or as much as keeps the sum of ``K`` products within 32 bits: less
from K = 519 on, 16513 for K = 1024.

The compiled kernels sum integers, in any order; :func:`linear` is what they are tested against, and
what runs in their place.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

WEIGHT_MAX = 127
_TWO_BYTES_MAX, _INT32_MAX = 256 * 127 + 127, 2**31 - 1
# So that activations have at least as many levels as weights.
MAX_SIZE = _INT32_MAX // WEIGHT_MAX**2
# What is smaller counts as zero: its inverse could overflow.
_TINY = 2.0**-100


def activation_max(size: int) -> int:
    """The largest quantised value of an activation with ``size`` features."""
    return min(_TWO_BYTES_MAX, _INT32_MAX // (WEIGHT_MAX * size))


def quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """``[rows, K]`` to int8 ``[rows, K]`` and scales ``[rows]``."""
    scale = weight.abs().amax(dim=1) / WEIGHT_MAX
    scale = torch.where(scale < _TINY, 0, scale)
    q = torch.where(scale[:, None] == 0, 0, (weight / scale[:, None]).round())
    return q.clamp(-WEIGHT_MAX, WEIGHT_MAX).to(torch.int8), scale


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
