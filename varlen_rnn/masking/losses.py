"""Losses over valid tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from varlen_rnn.layout.checks import Lengths, Mask, failure
from varlen_rnn.masking._valid import (
    check_batch,
    check_numbers,
    places_of,
    scatter,
    valid_tokens,
)


def masked_cross_entropy(
    input: Tensor,
    target: Tensor,
    *,
    lengths: Lengths | None = None,
    mask: Mask | None = None,
    batch_first: bool = True,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Cross entropy over the valid tokens.

    Equivalent to ``F.cross_entropy(input[mask], target[mask], ...)``, and 0 if there is no valid
    token. Classes come last here, as an RNN's output has them, not second.

    Args:
        input: ``[B, T, C]`` (``[T, B, C]``), floating point, unnormalised logits.
        target: ``[B, T]`` (``[T, B]``) integers, the class of each token in ``[0, C)``; or
            ``[B, T, C]`` (``[T, B, C]``) floating point, the classes' probabilities. At padding it
            may hold anything.
        lengths: ``[B]``, any integer dtype on any device, each in ``[0, T]``.
        mask: ``[B, T]`` (``[T, B]``), bool or numbers 0 and 1, True where a token is valid.
        batch_first: whether batches are ``[B, T, *]`` instead of ``[T, B, *]``.
        weight: ``[C]``, the dtype of ``input``: weight of each class; None for 1.
        ignore_index: tokens of this class count as padding; not for probabilities.
        label_smoothing: in [0, 1], how much of each target goes to all classes alike.
        reduction: ``"mean"`` over valid tokens (weighted by their class), ``"sum"`` or ``"none"``.

    Returns:
        A number; ``[B, T]`` (``[T, B]``), 0 at padding, if ``reduction`` is ``"none"``.

    Raises:
        ValueError: a shape or a value that does not fit, or both ``lengths`` and ``mask`` (a class
            out of range is an IndexError too).
        TypeError: a type or dtype that does not fit. What ``F.cross_entropy`` raises for ``weight``
            and ``label_smoothing``.

    Example:
        >>> import torch
        >>> from varlen_rnn.masking import masked_cross_entropy
        >>> logits, classes = torch.randn(3, 10, 5), torch.randint(5, (3, 10))
        >>> masked_cross_entropy(logits, classes, lengths=[10, 0, 6]).shape
        torch.Size([])
        >>> masked_cross_entropy(logits, classes, lengths=[10, 0, 6], reduction="none").shape
        torch.Size([3, 10])
    """
    name = "masked_cross_entropy"
    _check_reduction(name, reduction)
    check_batch(name, "input", input, batch_first)
    check_batch(name, "target", target, batch_first)
    steps = "B, T" if batch_first else "T, B"
    _check_floating(name, "input", input)
    if input.dim() != 3:
        raise failure(name, "input", f"[{steps}, C]", list(input.shape))
    if target.is_complex() or target.dtype == torch.bool:
        raise TypeError(f"{name}: target must be integers or floating point, got {target.dtype}")
    shape, num_classes = input.shape[:2], input.shape[2]
    probabilities = target.is_floating_point()
    expected = list(input.shape if probabilities else shape)
    if list(target.shape) != expected:
        symbols = f"[{steps}, C]" if probabilities else f"[{steps}]"
        got, hint = list(target.shape), ""
        if got == [input.shape[0], input.shape[2]]:
            hint = "; in input classes come last: pass input.transpose(1, 2)"
        raise failure(name, "target", f"{symbols} = {expected}", got, hint)

    valid = valid_tokens(name, shape, input.device, lengths, mask, batch_first)
    if not probabilities:
        target = target.long()
        valid = valid & (target != ignore_index)
    places = places_of(valid)
    tokens = target.flatten(0, 1)[places]
    if not probabilities:
        check_numbers(name, "target", tokens, places, shape, num_classes, "C")
    loss = F.cross_entropy(
        input.flatten(0, 1)[places],
        tokens,
        weight,
        label_smoothing=label_smoothing,
        reduction=reduction,
    )
    return _laid_out(loss, places, valid, reduction)


def masked_mse_loss(
    input: Tensor,
    target: Tensor,
    *,
    lengths: Lengths | None = None,
    mask: Mask | None = None,
    batch_first: bool = True,
    reduction: str = "mean",
) -> Tensor:
    """Mean squared error over the elements of valid tokens.

    Equivalent to ``F.mse_loss(input[mask], target[mask])``, and 0 if there is no valid token.

    Args:
        input: ``[B, T, *]`` (``[T, B, *]``), floating point.
        target: the shape of ``input``, floating point; at padding it may hold anything.
        lengths: ``[B]``, any integer dtype on any device, each in ``[0, T]``.
        mask: ``[B, T]`` (``[T, B]``), bool or numbers 0 and 1, True where a token is valid.
        batch_first: whether batches are ``[B, T, *]`` instead of ``[T, B, *]``.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        A number; ``[B, T, *]`` (``[T, B, *]``), 0 at padding, if ``reduction`` is ``"none"``.

    Raises:
        ValueError: a shape or a value that does not fit, or both ``lengths`` and ``mask``.
        TypeError: a type or dtype that does not fit.

    Example:
        >>> import torch
        >>> from varlen_rnn.masking import masked_mse_loss
        >>> x = torch.tensor([[[1.0], [3.0], [9.0]], [[5.0], [5.0], [5.0]]])
        >>> masked_mse_loss(x, torch.zeros(2, 3, 1), lengths=[2, 0])
        tensor(5.)
    """
    name = "masked_mse_loss"
    _check_reduction(name, reduction)
    check_batch(name, "input", input, batch_first)
    check_batch(name, "target", target, batch_first)
    _check_floating(name, "input", input)
    _check_floating(name, "target", target)
    if target.shape != input.shape:
        expected = f"the shape of input, {list(input.shape)}"
        raise failure(name, "target", expected, list(target.shape))
    valid = valid_tokens(name, input.shape[:2], input.device, lengths, mask, batch_first)
    places = places_of(valid)
    loss = F.mse_loss(
        input.flatten(0, 1)[places],
        target.flatten(0, 1)[places],
        reduction=reduction,
    )
    return _laid_out(loss, places, valid, reduction)


def _check_reduction(name: str, reduction: str) -> None:
    if reduction not in ("mean", "sum", "none"):
        raise failure(name, "reduction", '"mean", "sum" or "none"', repr(reduction))


def _check_floating(name: str, what: str, x: Tensor) -> None:
    if not x.is_floating_point():
        raise TypeError(f"{name}: {what} must be floating point, got {x.dtype}")


def _laid_out(loss: Tensor, places: Tensor, valid: Tensor, reduction: str) -> Tensor:
    """A loss as the caller gets it; the mean over no tokens, which is NaN, becomes 0."""
    if reduction == "none":
        return scatter(loss, places, valid.shape)
    return torch.where(valid.any(), loss, 0.0)
