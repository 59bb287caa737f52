"""From a ragged batch to index arrays: which token of which row comes at which step.

Shape legend, used in the whole package:

| letter | meaning                                                             |
|--------|---------------------------------------------------------------------|
| ``B``  | rows of the batch, in the caller's order                            |
| ``T``  | steps of the padded batch                                           |
| ``N``  | valid tokens                                                        |
| ``R``  | rows of the flat tensor that holds the tokens, valid or not         |
| ``S``  | steps of the layout: the length of the longest segment              |
| ``G``  | segments: maximal runs of valid tokens, sorted by length, descending |
| ``D``  | directions, 1 or 2                                                  |
| ``I``  | input size                                                          |
| ``H``  | hidden size                                                         |
| ``P``  | output size of one direction: ``proj_size`` if there is one, else ``H`` |

Tokens are numbered in *step order*: all segments' first tokens, longest segment first, then all
second tokens, and so on, exactly as in ``PackedSequence.data``.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from varlen_rnn import _extension


@dataclass(frozen=True)
class Layout:
    """Index arrays that say everything about a ragged batch; below, padding does not exist.

    All arrays are int64. ``batch_sizes`` lies on the CPU, the others on the tokens' device.

    Attributes:
        batch_sizes: ``[S]``, active segments at each step, non-increasing:
            ``PackedSequence.batch_sizes``.
        rows: ``[N]``, where each token lies in the flat tensor ``[R, I]``; None means
            ``0, 1, ..., N - 1``.
        reverse: ``[N]``, the token that the reverse direction takes in the n-th place, or None if
            there is no reverse direction. It starts at each segment's own last token and is its own
            inverse.
        initial_row: ``[G]``, the row of ``h_0`` that each segment starts from, or -1 for zeros.
        final_row: ``[G]``, the row of ``h_n`` that each segment ends in, or -1 for none.
        num_rows: ``B``.
    """

    batch_sizes: Tensor
    rows: Tensor | None
    reverse: Tensor | None
    initial_row: Tensor
    final_row: Tensor
    num_rows: int

    def to(self, device: torch.device) -> Layout:
        """Returns the layout with every array but ``batch_sizes`` on ``device``."""
        if self.initial_row.device == device:
            return self

        def move(array: Tensor | None) -> Tensor | None:
            return None if array is None else array.to(device)

        return Layout(
            self.batch_sizes,
            move(self.rows),
            move(self.reverse),
            self.initial_row.to(device),
            self.final_row.to(device),
            self.num_rows,
        )


def full(num_steps: int, num_rows: int, *, batch_first: bool, bidirectional: bool) -> Layout:
    """Layout of a batch without padding.

    Args:
        num_steps: ``T``.
        num_rows: ``B``.
        batch_first: whether the flat tensor is ``[B * T, I]`` (True) or ``[T * B, I]`` (False).
        bidirectional: whether ``reverse`` is wanted.
    """
    make = _small_full if num_steps * num_rows <= _SMALL and _eager() else _full
    return make(num_steps, num_rows, batch_first, bidirectional)


# One step of a few rows takes no longer than to make its layout; so those few are kept.
_SMALL = 64


@functools.lru_cache(maxsize=64)
def _small_full(num_steps: int, num_rows: int, batch_first: bool, bidirectional: bool) -> Layout:
    with torch.inference_mode(mode=False):  # or autograd could not save the arrays later
        return _full(num_steps, num_rows, batch_first, bidirectional)


def _full(num_steps: int, num_rows: int, batch_first: bool, bidirectional: bool) -> Layout:
    batch_sizes = torch.full((num_steps if num_rows else 0,), num_rows, device="cpu")
    segments = _arange(num_rows if num_steps else 0)
    rows = reverse = None
    if batch_first and num_rows > 1:
        rows = _arange(num_rows * num_steps).view(num_rows, num_steps).t().reshape(-1)
    if bidirectional:
        reverse = _arange(num_rows * num_steps).view(num_steps, num_rows).flip(0).reshape(-1)
    return Layout(batch_sizes, rows, reverse, segments, segments, num_rows)


def from_lengths(
    lengths: Tensor, num_steps: int, *, batch_first: bool, bidirectional: bool
) -> Layout:
    """Layout of a batch that is padded on the right.

    Args:
        lengths: ``[B]``, int64 on the CPU, each in ``[0, T]``; rows of length 0 have no segment.
        num_steps: ``T``.
        batch_first: whether the flat tensor is ``[B * T, I]`` (True) or ``[T * B, I]`` (False).
        bidirectional: whether ``reverse`` is wanted.
    """
    make = torch.ops.varlen_rnn.layout_from_lengths if _compiled() else _from_lengths
    batch_sizes, rows, segments = make(lengths, num_steps, batch_first)
    reverse = _reverse_order(batch_sizes) if bidirectional else None
    return Layout(batch_sizes, rows, reverse, segments, segments, lengths.numel())


def _from_lengths(
    lengths: Tensor, num_steps: int, batch_first: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """``batch_sizes``, ``rows``, and each segment's row of the batch."""
    num_rows = lengths.numel()
    sorted_lengths, segments = torch.sort(lengths, descending=True, stable=True)
    segments = segments[sorted_lengths > 0]
    ascending = sorted_lengths[: segments.numel()].flip(0)
    longest = int(ascending[-1]) if ascending.numel() else 0
    steps = _arange(longest)
    batch_sizes = segments.numel() - torch.searchsorted(ascending, steps, right=True)
    step, segment = _step_and_segment(batch_sizes)
    row = segments[segment]
    rows = row * num_steps + step if batch_first else step * num_rows + row
    return batch_sizes, rows, segments


def from_packed(
    batch_sizes: Tensor, sorted_indices: Tensor | None, *, bidirectional: bool
) -> Layout:
    """Layout of a ``PackedSequence``.

    Args:
        batch_sizes: ``[S]``, as in the ``PackedSequence``.
        sorted_indices: ``[B]``, the row that each segment comes from, or None if rows were sorted
            already.
        bidirectional: whether ``reverse`` is wanted.
    """
    num_rows = int(batch_sizes[0])
    segments = (
        _arange(num_rows) if sorted_indices is None else sorted_indices.to("cpu", torch.int64)
    )
    reverse = _reverse_order(batch_sizes) if bidirectional else None
    return Layout(batch_sizes, None, reverse, segments, segments, num_rows)


def _eager() -> bool:
    """Whether tensors are what they seem, not recorded, faked or wrapped."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._are_functorch_transforms_active()
    )


def _compiled() -> bool:
    """Whether compiled ops make the arrays; what they do is what stands here."""
    return _extension.UNAVAILABLE is None and _eager()


def _arange(end: int) -> Tensor:
    return torch.arange(end, device="cpu")  # whatever torch.set_default_device says


def _step_and_segment(batch_sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Step and segment of every token, each ``[N]``."""
    step = torch.repeat_interleave(batch_sizes)
    first_token = batch_sizes.cumsum(0) - batch_sizes
    return step, _arange(step.numel()) - first_token[step]


def _reverse_order(batch_sizes: Tensor) -> Tensor:
    """For every token ``(step, segment)`` the token ``(length - 1 - step, segment)``: ``[N]``."""
    if _compiled():
        order: Tensor = torch.ops.varlen_rnn.reverse_order(batch_sizes)
        return order
    step, segment = _step_and_segment(batch_sizes)
    num_segments = int(batch_sizes[0]) if batch_sizes.numel() else 0
    segment_lengths = batch_sizes.numel() - torch.searchsorted(
        batch_sizes.flip(0), _arange(num_segments), right=True
    )
    first_token = batch_sizes.cumsum(0) - batch_sizes
    return first_token[segment_lengths[segment] - 1 - step] + segment
