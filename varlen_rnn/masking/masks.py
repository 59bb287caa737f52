"""Masks from lengths, from values and back, and state resets from the ends of episodes."""

from __future__ import annotations

import numbers
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from varlen_rnn.layout.checks import Lengths, Mask, check_mask, check_resets, failure
from varlen_rnn.masking._valid import (
    check_any_lengths,
    right_padded,
    shape_of,
    valid_tokens,
)
from varlen_rnn.runtime.tracing import asserted, in_jit_trace, tracing


def lengths_to_mask(
    lengths: Lengths, max_length: int | None = None, *, batch_first: bool = True
) -> Tensor:
    """The mask of rows that are padded on the right.

    Equivalent to ``torch.arange(max_length) < lengths[:, None]``.

    Args:
        lengths: ``[B]``, any integer dtype on any device, each in ``[0, T]``.
        max_length: ``T``, steps of the mask; None for the largest length.
        batch_first: whether the mask is ``[B, T]`` instead of ``[T, B]``.

    Returns:
        ``[B, T]`` (``[T, B]``), bool, True where a token is valid, on the device of ``lengths``.

    Raises:
        ValueError: lengths that are not ``[B]`` or not in ``[0, T]``.
        TypeError: lengths that are not integers.

    Example:
        >>> import torch
        >>> from varlen_rnn.masking import lengths_to_mask
        >>> lengths_to_mask(torch.tensor([3, 0, 1]))
        tensor([[ True,  True,  True],
                [False, False, False],
                [ True, False, False]])
        >>> lengths_to_mask([3, 0, 1], 5, batch_first=False).shape
        torch.Size([5, 3])
    """
    name = "lengths_to_mask"
    if in_jit_trace():  # whose sizes are tensors, and of which no value may be read
        checked = check_any_lengths(name, lengths, max_length)
        largest: Any = F.pad(checked, (0, 1)).max() if max_length is None else max_length
        return right_padded(checked, largest, batch_first)
    if max_length is not None and not isinstance(max_length, (int, torch.SymInt)):
        got = type(max_length).__name__
        raise TypeError(f"{name}: max_length must be an integer, got {got}")
    if max_length is not None and max_length < 0:
        raise failure(name, "max_length", "at least 0", max_length)
    checked = check_any_lengths(name, lengths, max_length)
    if max_length is None:
        largest = checked.max().item() if checked.shape[0] else 0
        torch._check(largest >= 0)  # type: ignore[no-untyped-call]  # which export does not know
        max_length = largest
    return right_padded(checked, max_length, batch_first)


def mask_to_lengths(mask: Mask, *, batch_first: bool = True) -> Tensor:
    """The lengths of rows that are padded on the right.

    Equivalent to ``mask.sum(1)``, which counts the tokens of any mask, with a check that they come
    first in every row: lengths cannot say left padding or holes.

    Args:
        mask: ``[B, T]`` (``[T, B]``), bool or numbers 0 and 1, True where a token is valid.
        batch_first: whether the mask is ``[B, T]`` instead of ``[T, B]``.

    Returns:
        ``[B]``, int64, on the device of the mask.

    Raises:
        ValueError: a mask that has not two dimensions, or padding before a valid token.
        TypeError: a mask of another type.

    Example:
        >>> import torch
        >>> from varlen_rnn.masking import mask_to_lengths
        >>> mask_to_lengths(torch.tensor([[True, True, False], [False, False, False]]))
        tensor([2, 0])
    """
    name = "mask_to_lengths"
    symbols = "[B, T]" if batch_first else "[T, B]"
    shape = shape_of(name, "mask", mask, symbols)
    if len(shape) != 2:
        raise failure(name, "mask", symbols, list(shape))
    valid = check_mask(name, "mask", mask, shape, symbols)
    if not batch_first:
        valid = valid.t()
    gaps = (valid[:, 1:] & ~valid[:, :-1]).any(1)
    expected = f"valid tokens first in every row (mask.sum({int(batch_first)}) counts any)"
    if tracing() or gaps.device.type in ("cuda", "meta"):
        valid = asserted(valid, ~gaps.any(), f"{name}: mask must be {expected}")
    elif gaps.any():
        raise failure(
            name, "mask", expected, f"padding before a token in row {int(gaps.nonzero()[0])}"
        )
    return valid.sum(1)


def mask_from_value(x: Tensor, value: float = 0.0) -> Tensor:
    """The mask of steps that do not hold a padding value in all of their features.

    Equivalent to ``(x != value).any(-1)``, as in Keras' ``Masking`` layer, but for NaN, which is
    equal to NaN here.

    Args:
        x: ``[*, F]``, any dtype: features of each step, in any layout.
        value: a step is padding if all its features are equal to this. NaN stands for NaN.

    Returns:
        ``[*]``, bool, True where a token is valid.

    Raises:
        ValueError: ``x`` without a dimension.
        TypeError: ``x`` that is not a Tensor, or ``value`` that is not a number.

    Example:
        >>> import torch
        >>> from varlen_rnn.masking import mask_from_value
        >>> mask_from_value(torch.tensor([[[1.0, 2.0], [0.0, 3.0], [0.0, 0.0]]]))
        tensor([[ True,  True, False]])
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"mask_from_value: x must be a Tensor, got {type(x).__name__}")
    if not isinstance(value, numbers.Real):
        got = type(value).__name__
        raise TypeError(f"mask_from_value: value must be a number, got {got}")
    if not x.dim():
        raise failure("mask_from_value", "x", "[*, F]", [])
    if value != value:  # NaN, in words that torch.compile knows
        return ~x.isnan().all(-1)
    return (x != value).any(-1)


def dones_to_resets(
    dones: Mask,
    previous: Mask | None = None,
    *,
    lengths: Lengths | None = None,
    mask: Mask | None = None,
    batch_first: bool = True,
) -> Tensor:
    """From "the episode ended after step t" to "an episode starts at step t": the ``resets``.

    Equivalent to ``torch.cat([previous[:, None], dones[:, :-1]], 1)`` if every token is valid.
    Otherwise a row's flag goes to its next valid token, over holes, and padding gets none.

    Gymnasium's ``terminated | truncated``, and ``dones`` of most replay buffers, belong to the step
    that ended the episode and need this shift. Flags that already say "starts here", such as
    ``episode_starts`` of Stable-Baselines3 or ``is_init`` of TorchRL, are ``resets`` as they are.

    For the batch that follows, ``previous`` of a row with a token here is ``last_valid(dones)``.

    Args:
        dones: ``[B, T]`` (``[T, B]``) or one sequence ``[T]``, bool or numbers 0 and 1; or
            ``[B, T, 1]`` (``[T, B, 1]``), as TorchRL has them.
        previous: ``[B]`` or ``[B, 1]`` (a number for one sequence): whether the step before this
            batch, that is the last valid one, ended an episode; None for False.
        lengths: ``[B]``, any integer dtype on any device; not for one sequence.
        mask: ``[B, T]`` (``[T, B]``, ``[T]``), True where a token is valid.
        batch_first: whether batches are ``[B, T]`` instead of ``[T, B]``.

    Returns:
        Bool, in the shape and on the device of ``dones``, to be passed as ``resets``.

    Raises:
        ValueError: a shape or a value that does not fit, or both ``lengths`` and ``mask``.
        TypeError: a dtype that does not fit.

    Example:
        >>> import torch
        >>> from varlen_rnn.masking import dones_to_resets
        >>> dones = torch.tensor([[False, True, False, False], [True, False, False, True]])
        >>> dones_to_resets(dones)
        tensor([[False, False,  True, False],
                [False,  True, False, False]])
    """
    name = "dones_to_resets"
    symbols = "[B, T]" if batch_first else "[T, B]"
    shape = shape_of(name, "dones", dones, f"{symbols} or [T]")
    if len(shape) == 3 and shape[2] == 1:
        ended = check_resets(name, "dones", dones, shape[:2], symbols)
        resets = dones_to_resets(
            ended, previous, lengths=lengths, mask=mask, batch_first=batch_first
        )
        return resets.unsqueeze(2)
    if len(shape) not in (1, 2):
        raise failure(name, "dones", f"{symbols} or [T]", list(shape))
    if len(shape) == 1:
        if lengths is not None:
            raise ValueError(f"{name}: lengths must be None with dones [T], got lengths")
        ended = check_mask(name, "dones", dones, shape, "[T]")[None]
        if mask is not None:
            mask = check_mask(name, "mask", mask, shape, "[T]")[None]
        if previous is not None:
            previous = check_resets(name, "previous", previous, (), "one flag, of shape")[None]
        return dones_to_resets(ended, previous, mask=mask)[0]

    ended = check_mask(name, "dones", dones, shape, symbols)
    valid = valid_tokens(name, shape, ended.device, lengths, mask, batch_first)
    if not batch_first:
        ended, valid = ended.t(), valid.t()
    num_rows, num_steps = ended.shape
    before = (
        ended.new_zeros(num_rows)
        if previous is None
        else check_resets(name, "previous", previous, (num_rows,), "[B]").to(ended.device)
    )
    # Place 0 is the step before the batch, place t + 1 is step t.
    flags = torch.cat([before[:, None], ended], 1)
    places = torch.arange(1, num_steps + 1, device=ended.device) * valid
    last_place = F.pad(places, (1, 0))[:, :-1].cummax(1).values
    resets = flags.gather(1, last_place) & valid
    return resets if batch_first else resets.t()
