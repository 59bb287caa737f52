"""What a mistake often is: the end of an error's message. A right call never comes here."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def keyword(hx: object) -> str:
    """For lengths or flags that stand where states belong."""
    kind = ""
    if isinstance(hx, Tensor):
        is_integer = not (hx.is_floating_point() or hx.is_complex())
        kind = "b" if hx.dtype == torch.bool else "i" if is_integer else ""
    elif isinstance(hx, np.ndarray):
        kind = hx.dtype.kind
    elif isinstance(hx, (int, list, tuple)):
        entries = [hx] if isinstance(hx, int) else hx
        kind = "i" if entries and all(type(entry) is int for entry in entries) else ""
    if kind == "b":
        return "; mask and resets are keywords: rnn(x, mask=mask)"
    return "; lengths is a keyword: rnn(x, lengths=lengths)" if kind in ("i", "u") else ""


def order(num_rows: int, num_steps: int, got: int, batch_first: bool) -> str:
    """For as many rows as there are steps: the batch may have been meant in the other order."""
    if got != num_steps or got == num_rows:
        return ""
    form = "[B, T, I]" if batch_first else "[T, B, I]"
    return f"; input was read as {form} with T = {num_steps} (batch_first={not batch_first}?)"


def cumulative(lengths: Tensor, num_tokens: int) -> str:
    """For lengths that stand where boundaries belong."""
    if int(lengths.sum()) != num_tokens:
        return ""
    bounds = [0, *lengths.cumsum(0).tolist()]
    return f"; for lengths {_shown(lengths.tolist())} it is {_shown(bounds)}"


def other_weights(expected: torch.dtype | None, weight: Tensor) -> str:
    """For a ``state_dict`` of a frozen layer where another belongs, or the other way round.

    ``expected`` is the type of packed weights, None for weights as they are trained.
    """
    if weight.dim() == 2:
        return f" must be packed {expected}, got a matrix; load it into the model before freeze"
    kept = "" if weight.dtype in (torch.float32, torch.float64) else f", weights={weight.dtype}"
    what = "a matrix" if expected is None else f"packed {expected}"
    return f" must be {what}, got packed {weight.dtype}; load it into freeze(model{kept})"


def _shown(numbers: Sequence[int], most: int = 6) -> str:
    parts = [str(number) for number in numbers[:most]] + ["..."] * (len(numbers) > most)
    return f"[{', '.join(parts)}]"
