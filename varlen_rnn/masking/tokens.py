"""Per-token modules on valid tokens only."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from varlen_rnn.layout.checks import Lengths, Mask, failure
from varlen_rnn.masking._valid import check_batch, places_of, scatter, valid_tokens


def apply_to_valid(
    module: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    lengths: Lengths | None = None,
    mask: Mask | None = None,
    batch_first: bool = True,
) -> Tensor:
    """Runs a per-token module, such as Linear, LayerNorm or an MLP, on the valid tokens only.

    Equivalent to ``out = torch.zeros(B, T, *); out[mask] = module(x[mask])``. Statistics over the
    batch, as ``nn.BatchNorm1d`` takes them, are over valid tokens too.

    Args:
        module: takes tokens ``[N, *]`` and gives ``[N, *]``.
        x: ``[B, T, *]`` (``[T, B, *]``).
        lengths: ``[B]``, any integer dtype on any device, each in ``[0, T]``.
        mask: ``[B, T]`` (``[T, B]``), bool or numbers 0 and 1, True where a token is valid.
        batch_first: whether batches are ``[B, T, *]`` instead of ``[T, B, *]``.

    Returns:
        ``[B, T, *]`` (``[T, B, *]``) in the dtype that the module gives, 0 at padding.

    Raises:
        ValueError: a shape or a value that does not fit, both ``lengths`` and ``mask``, or a module
            that does not give one result a token.
        TypeError: a type or dtype that does not fit.

    Example:
        >>> import torch
        >>> from varlen_rnn.masking import apply_to_valid
        >>> x = torch.randn(3, 10, 8)
        >>> out = apply_to_valid(torch.nn.Linear(8, 4), x, lengths=[10, 0, 6])
        >>> out.shape, out[2, 6:].count_nonzero()
        (torch.Size([3, 10, 4]), tensor(0))
    """
    name = "apply_to_valid"
    check_batch(name, "x", x, batch_first)
    shape = x.shape[:2]
    places = places_of(valid_tokens(name, shape, x.device, lengths, mask, batch_first))
    out = module(x.flatten(0, 1)[places])
    if not isinstance(out, Tensor):
        raise TypeError(f"{name}: module must return a Tensor, got {type(out).__name__}")
    if out.shape[:1] != places.shape:
        raise failure(
            name, "the module's output", f"[N, *] = [{places.shape[0]}, *]", list(out.shape)
        )
    return scatter(out, places, shape)
