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


def other_weights(dtype: torch.dtype) -> str:
    """For a ``state_dict`` with int8 weights where others belong, or the other way round."""
    if dtype == torch.int8:
        return f" must be floating point, got {dtype}; load it into quantize_dynamic(model)"
    return f" must be torch.int8, got {dtype}; load it into the model before quantize_dynamic"


def _shown(numbers: Sequence[int], most: int = 6) -> str:
    parts = [str(number) for number in numbers[:most]] + ["..."] * (len(numbers) > most)
    return f"[{', '.join(parts)}]"
