"""The steps that all of masking shares: lengths or mask to bool, tokens out of a batch and back."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from varlen_rnn.layout.checks import (
    Lengths,
    Mask,
    as_array,
    check_lengths,
    check_mask,
    failure,
    on_device,
)
from varlen_rnn.layout.errors import InputIndexError
from varlen_rnn.runtime.tracing import tracing


def valid_tokens(
    name: str,
    shape: Sequence[int],
    device: torch.device,
    lengths: Lengths | None,
    mask: Mask | None,
    batch_first: bool,
) -> Tensor:
    """Which tokens are valid: bool, in the given shape ``[B, T]``, or ``[T, B]``."""
    if lengths is not None and mask is not None:
        raise ValueError(f"{name}: lengths and mask must not both be given, got both")
    if mask is not None:
        symbols = "[B, T]" if batch_first else "[T, B]"
        return on_device(name, "mask", check_mask(name, "mask", mask, shape, symbols), device)
    if lengths is None:
        return torch.ones(*shape, dtype=torch.bool, device=device)
    num_rows, num_steps = shape if batch_first else reversed(shape)
    checked = check_lengths(name, lengths, num_steps, num_rows)
    return right_padded(on_device(name, "lengths", checked, device), num_steps, batch_first)


def right_padded(lengths: Tensor, num_steps: int, batch_first: bool) -> Tensor:
    """The mask of rows with these lengths: ``[B, T]``, or ``[T, B]``."""
    steps = torch.arange(num_steps, device=lengths.device)
    return steps < lengths[:, None] if batch_first else steps[:, None] < lengths


def check_any_lengths(name: str, lengths: Lengths, most: int | None = None) -> Tensor:
    """The lengths as ``[B]`` int64, each in ``[0, most]``, for as many rows as there are."""
    shape = shape_of(name, "lengths", lengths, "[B]")
    return check_lengths(name, lengths, most, shape[0] if shape else 1)  # which refuses a number


def shape_of(name: str, what: str, values: Lengths | Mask, symbols: str) -> tuple[int, ...]:
    """The shape of lengths or flags that may be a list."""
    array = values if isinstance(values, Tensor) else as_array(name, what, values, symbols)
    return tuple(array.shape)


def check_batch(name: str, what: str, x: Tensor, batch_first: bool) -> None:
    """Checks that a tensor has rows and steps."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: {what} must be a Tensor, got {type(x).__name__}")
    if x.is_nested:
        raise TypeError(f"{name}: {what} must be padded or flat, got a NestedTensor")
    if x.dim() < 2:
        symbols = "[B, T, *]" if batch_first else "[T, B, *]"
        raise failure(name, what, symbols, list(x.shape))


def beside(valid: Tensor, x: Tensor) -> Tensor:
    """``valid [B, T]`` with as many dimensions as ``x [B, T, *]``, to broadcast against it."""
    return valid.reshape(*valid.shape, *[1] * (x.dim() - valid.dim()))


def places_of(valid: Tensor) -> Tensor:
    """Where the valid tokens lie in the flattened batch: ``[N]``."""
    return valid.flatten().nonzero().squeeze(1)


def scatter(tokens: Tensor, places: Tensor, shape: Sequence[int]) -> Tensor:
    """Tokens ``[N, *]`` back in a batch ``[*shape, *]`` that is 0 elsewhere."""
    trailing = tokens.shape[1:]
    flat = tokens.new_zeros(math.prod(shape), *trailing)
    return flat.index_copy(0, places, tokens).reshape(*shape, *trailing)


def check_numbers(
    name: str,
    what: str,
    tokens: Tensor,
    places: Tensor,
    shape: Sequence[int],
    end: int,
    symbol: str,
) -> None:
    """Checks that token numbers ``[N]`` lie in ``[0, end)``; elsewhere the lookup does."""
    if not tokens.is_cpu or tracing():
        return
    outside = ((tokens < 0) | (tokens >= end)).nonzero()
    if len(outside):
        first = outside[0, 0]
        index = [int(i) for i in np.unravel_index(int(places[first]), tuple(shape))]
        got = f"{int(tokens[first])} at index {index if len(index) > 1 else index[0]}"
        raise InputIndexError(str(failure(name, what, f"in [0, {symbol}) = [0, {end})", got)))
