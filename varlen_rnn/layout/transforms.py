"""Layouts under the transforms of ``torch.func``: what a batch is like is read from plain tensors.

A layout is not differentiated, so where only gradients are transformed the layout is
the one that it would be without. Where ``vmap`` gives every sample lengths or flags of its own,
every sample has its own layout, and all are brought to one size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from varlen_rnn.layout.arrays import Layout


@dataclass(frozen=True)
class Rectangular(Layout):
    """A layout with G places at every step, some of them without a token, for the reference.

    It gives the samples under ``torch.func.vmap`` arrays of one size when each has lengths or flags
    of its own.

    Attributes:
        holds: ``[S * G]``, bool, which places hold a token. States pass over the others, of which
            ``rows`` has no meaning.
    """

    holds: Tensor

    def exact(self) -> Layout:
        """Returns itself: every array has the size that it says."""
        return self


def layout_of(make: Callable[..., Layout], *args: Any) -> Layout:
    """``make(*args)``, of plain tensors; an exact layout if a transform is in effect."""
    if not torch._C._are_functorch_transforms_active():
        return make(*args)
    places = [place for place, arg in enumerate(args) if isinstance(arg, Tensor)]

    def make_from(*tensors: Tensor) -> Layout:
        plain = list(args)
        for place, tensor in zip(places, tensors, strict=True):
            plain[place] = tensor
        made.append(make(*plain).exact())
        return made[-1]

    made: list[Layout] = []
    tensors = [args[place].unsqueeze(0) for place in places]
    arrays = _layouts(make_from, *tensors)
    if len(made) == 1:
        return made[0]
    holds, rows, reverse, initial_row, final_segment = (array[0] for array in arrays)
    num_segments = initial_row.shape[0]
    num_steps = holds.shape[0] // max(num_segments, 1)
    with torch._C._DisableFuncTorch():  # whose values are read, as they are the same for all
        batch_sizes = torch.full((num_steps,), num_segments, device="cpu")
    return Rectangular(batch_sizes, rows, reverse, initial_row, final_segment, holds)


class _Layouts(torch.autograd.Function):
    """The arrays of a layout for each of K samples, whose tensors are ``[K, ...]``.

    ``make`` keeps the layouts, too; there are no results if it is only one.
    """

    @staticmethod
    def forward(make: Callable[..., Layout], *tensors: Tensor) -> tuple[Tensor, ...]:
        samples = zip(*tensors, strict=True) if tensors else [()]
        made = [make(*sample) for sample in samples]
        if not made:
            raise ValueError("at least one sample is needed to know what a batch is like, got 0")
        if len(made) == 1:
            return ()
        num_rows = sorted({layout.num_rows for layout in made})
        if len(num_rows) > 1:
            raise ValueError(f"every sample must have the same number of rows, got {num_rows}")
        num_steps = max(1, *(layout.batch_sizes.shape[0] for layout in made))
        num_segments = max(layout.initial_row.shape[0] for layout in made)
        rectangles = [_rectangle(layout, num_steps, num_segments) for layout in made]
        return tuple(torch.stack(arrays) for arrays in zip(*rectangles, strict=True))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: tuple[Tensor, ...]) -> None:
        """Nothing is kept: integers and flags have no gradient."""

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        make: Callable[..., Layout],
        *tensors: Tensor,
    ) -> tuple[Any, Any]:
        _, *dims = in_dims
        moved = [
            t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0)
            for t, dim in zip(tensors, dims, strict=True)
        ]
        arrays = _layouts(make, *(tensor.flatten(0, 1) for tensor in moved))
        return tuple(torch.unflatten(array, 0, (info.batch_size, -1)) for array in arrays), 0


_layouts: Callable[..., tuple[Tensor, ...]] = _Layouts.apply


def _rectangle(layout: Layout, num_steps: int, num_segments: int) -> tuple[Tensor, ...]:
    """Arrays of ``num_steps`` steps with ``num_segments`` segments each, in order of steps.

    Returns which places hold a token, its row, its place in the reverse direction, the segments'
    initial rows, where segments that are not there have none, -1, and the rows' final segments.
    """
    device = layout.initial_row.device
    sizes = torch.zeros(num_steps, dtype=torch.int64, device=device)
    sizes[: layout.batch_sizes.shape[0]] = layout.batch_sizes.to(device)
    segments = torch.arange(num_segments, device=device)
    holds = segments < sizes.unsqueeze(1)
    token = torch.where(holds, (sizes.cumsum(0) - sizes).unsqueeze(1) + segments, 0)
    last_step = holds.sum(0) - 1
    steps = torch.arange(num_steps, device=device).unsqueeze(1)
    opposite = torch.where(holds, (last_step - steps) * num_segments + segments, 0)
    rows = token if layout.rows is None else F.pad(layout.rows, (0, 1))[token]
    absent = num_segments - layout.initial_row.shape[0]
    initial_row = F.pad(layout.initial_row, (0, absent), value=-1)
    return holds.flatten(), rows.flatten(), opposite.flatten(), initial_row, layout.final_segment
