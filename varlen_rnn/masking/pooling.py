"""Mean, maximum and last token over the valid tokens of each row."""

from __future__ import annotations

import torch
from torch import Tensor

from varlen_rnn.layout.checks import Lengths, Mask
from varlen_rnn.masking._valid import beside, check_batch, valid_tokens


def masked_mean(
    x: Tensor,
    *,
    lengths: Lengths | None = None,
    mask: Mask | None = None,
    batch_first: bool = True,
) -> Tensor:
    """Mean over each row's valid tokens.

    Equivalent to ``torch.stack([x[b, mask[b]].mean(0) for b in range(B)])``, and 0 for empty rows.

    Args:
        x: ``[B, T, *]`` (``[T, B, *]``), floating point; 16-bit types are summed in float32.
        lengths: ``[B]``, any integer dtype on any device, each in ``[0, T]``.
        mask: ``[B, T]`` (``[T, B]``), bool or numbers 0 and 1, True where a token is valid.
        batch_first: whether batches are ``[B, T, *]`` instead of ``[T, B, *]``.

    Returns:
        ``[B, *]`` in the dtype of ``x``.

    Raises:
        ValueError: a shape or a value that does not fit, or both ``lengths`` and ``mask``.
        TypeError: a type or dtype that does not fit.

    Example:
        >>> import torch
        >>> from varlen_rnn.masking import masked_mean
        >>> x = torch.tensor([[[1.0], [3.0], [9.0]], [[5.0], [5.0], [5.0]]])
        >>> masked_mean(x, lengths=[2, 0])
        tensor([[2.],
                [0.]])
    """
    name = "masked_mean"
    check_batch(name, "x", x, batch_first)
    if not x.is_floating_point():
        raise TypeError(f"{name}: x must be floating point, got {x.dtype}")
    valid = valid_tokens(name, x.shape[:2], x.device, lengths, mask, batch_first)
    return _mean(x, beside(valid, x), int(batch_first))


def masked_max(
    x: Tensor,
    *,
    lengths: Lengths | None = None,
    mask: Mask | None = None,
    batch_first: bool = True,
) -> Tensor:
    """Maximum over each row's valid tokens.

    Equivalent to ``torch.stack([x[b, mask[b]].amax(0) for b in range(B)])``, and 0 for empty rows.
    As with ``torch.amax``, NaN is larger than any number, and equal maxima share the gradient.

    Args:
        x: ``[B, T, *]`` (``[T, B, *]``), floating point, bool, or any integers but uint16 to
            uint64.
        lengths: ``[B]``, any integer dtype on any device, each in ``[0, T]``.
        mask: ``[B, T]`` (``[T, B]``), bool or numbers 0 and 1, True where a token is valid.
        batch_first: whether batches are ``[B, T, *]`` instead of ``[T, B, *]``.

    Returns:
        ``[B, *]`` in the dtype of ``x``.

    Raises:
        ValueError: a shape or a value that does not fit, or both ``lengths`` and ``mask``.
        TypeError: a type or dtype that does not fit.

    Example:
        >>> import torch
        >>> from varlen_rnn.masking import masked_max
        >>> x = torch.tensor([[[1.0], [3.0], [9.0]], [[5.0], [5.0], [5.0]]])
        >>> masked_max(x, lengths=[2, 0])
        tensor([[3.],
                [0.]])
    """
    name = "masked_max"
    check_batch(name, "x", x, batch_first)
    if x.is_complex():
        raise TypeError(f"{name}: x must be real, got {x.dtype}")
    time = int(batch_first)
    valid = valid_tokens(name, x.shape[:2], x.device, lengths, mask, batch_first)
    shown = beside(valid, x)
    if not x.shape[time]:
        return x.sum(time, dtype=x.dtype)
    if x.dtype == torch.bool:
        return (x & shown).any(time)
    if not x.is_floating_point():
        largest = x.masked_fill(~shown, torch.iinfo(x.dtype).min).amax(time)
        return largest.masked_fill(~shown.any(time), 0)
    largest = x.masked_fill(~shown, -torch.inf).amax(time)
    # Where every valid token is -inf, padding would share the gradient: the mean is -inf as well,
    # with a gradient for valid tokens only. Where there is no valid token, it is 0.
    return torch.where(largest == -torch.inf, _mean(x, shown, time), largest)


def last_valid(
    x: Tensor,
    *,
    lengths: Lengths | None = None,
    mask: Mask | None = None,
    batch_first: bool = True,
) -> Tensor:
    """The last valid token of each row.

    Equivalent to ``x[torch.arange(B), lengths - 1]``, and 0 for empty rows; works for any mask.
    (Of the output of an RNN with one direction it is ``h_n`` of the last layer.)

    Args:
        x: ``[B, T, *]`` (``[T, B, *]``), any dtype but uint16 to uint64.
        lengths: ``[B]``, any integer dtype on any device, each in ``[0, T]``.
        mask: ``[B, T]`` (``[T, B]``), bool or numbers 0 and 1, True where a token is valid.
        batch_first: whether batches are ``[B, T, *]`` instead of ``[T, B, *]``.

    Returns:
        ``[B, *]`` in the dtype of ``x``.

    Raises:
        ValueError: a shape or a value that does not fit, or both ``lengths`` and ``mask``.
        TypeError: a type or dtype that does not fit.

    Example:
        >>> import torch
        >>> from varlen_rnn.masking import last_valid
        >>> x = torch.tensor([[[1.0], [3.0], [9.0]], [[5.0], [5.0], [5.0]]])
        >>> last_valid(x, lengths=[2, 0])
        tensor([[3.],
                [0.]])
    """
    name = "last_valid"
    check_batch(name, "x", x, batch_first)
    time = int(batch_first)
    valid = valid_tokens(name, x.shape[:2], x.device, lengths, mask, batch_first)
    if not x.shape[time]:
        return x.sum(time, dtype=x.dtype)
    if not batch_first:
        x, valid = x.transpose(0, 1), valid.t()
    steps = torch.arange(x.shape[1], device=x.device)
    last = (steps * valid).amax(1)
    tokens = x[torch.arange(x.shape[0], device=x.device), last]
    return tokens.masked_fill(~beside(valid.any(1), tokens), 0)


def _mean(x: Tensor, shown: Tensor, time: int) -> Tensor:
    """Mean over the tokens that ``shown [B, T, 1, ...]`` marks, 0 if there are none."""
    total = x.masked_fill(~shown, 0).sum(time, dtype=torch.promote_types(x.dtype, torch.float32))
    return (total / shown.sum(time).clamp(min=1)).to(x.dtype)
