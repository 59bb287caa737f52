"""Whether the op that makes layouts on a GPU is right there: asked where it is used first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from varlen_rnn.layout import index_arrays
from varlen_rnn.layout.arrays import Layout
from varlen_rnn.runtime import first_use


class _Rows(NamedTuple):
    """Of a batch; see :func:`varlen_rnn.layout.index_arrays.from_rows`, which takes the same."""

    lengths: Tensor
    first: Tensor | None
    mask: Tensor | None
    resets: Tensor | None
    num_rows: int
    num_steps: int
    batch_first: bool


def trusts(device: torch.device) -> bool:
    """Whether ``layout_from_rows`` may run there; the first call for a device checks it."""
    if device in _trusted:
        return _trusted[device]
    return first_use.trusts(
        *(_trusted, device, f"{device}, layouts"),
        lambda: compare(torch.ops.varlen_rnn.layout_from_rows, device),
        instead="plain PyTorch makes layouts there",
        if_captured=False,
    )


# A constant to torch.compile, as supports_cuda in extension.py.
trusts._dynamo_marked_constant = True  # type: ignore[attr-defined]

_trusted: dict[torch.device, bool] = {}


def compare(op: Callable[..., Any], device: torch.device) -> str:
    """What differs between the op on a device and plain PyTorch on the CPU; "" for nothing."""

    def differences() -> str:
        for form, rows in _batches():
            right = Layout(*index_arrays.from_rows(*rows, bidirectional=True)).exact()
            which = [None if array is None else array.to(device) for array in rows[:4]]
            sizes = (rows.num_steps,) if rows.first is not None else rows[4:6]
            made = op(torch.empty(*sizes, 0, device=device), *which, rows.batch_first, True, True)
            got = Layout(*(array.cpu() for array in made)).exact()
            names = [n for n, array in vars(right).items() if not _same(vars(got)[n], array)]
            if names:
                return f"{', '.join(names)} of {form} differ"
        return ""

    return first_use.fault_of(differences, device)


def _same(got: Tensor, right: Tensor) -> bool:
    return got.shape == right.shape and bool((got == right).all())


def _batches() -> Iterator[tuple[str, _Rows]]:
    """Each form, rows without tokens among them.

    Few segments, and so many that they are sorted in another way.
    """

    def places(count: int) -> Tensor:
        return torch.arange(count, device="cpu")

    def padded(rows: int, steps: int, batch_first: bool) -> _Rows:
        lengths, flat = places(rows) * 7 % (steps + 1), places(rows * steps)
        return _Rows(lengths, None, None, flat * 5 % 11 == 0, rows, steps, batch_first)

    few = padded(23, 9, True)
    yield "a padded batch with resets", few
    yield "a padded batch with a mask", padded(23, 9, False)._replace(mask=places(207) % 3 > 0)
    first = few.lengths.cumsum(0) - few.lengths
    yield "a flat batch", few._replace(first=first, num_steps=int(few.lengths.sum()), resets=None)
    yield "a padded batch of many rows", padded(300, 40, True)._replace(resets=None)
