"""Layouts from lengths, masks, resets and packed batches.

Shapes are those of the legend in :mod:`varlen_rnn.layout`.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from varlen_rnn.layout import device_check, index_arrays
from varlen_rnn.layout.arrays import Layout
from varlen_rnn.runtime import extension
from varlen_rnn.runtime.tracing import in_jit_trace, tracing

_CPU = torch.device("cpu")


def full(
    num_steps: int,
    num_rows: int,
    *,
    batch_first: bool,
    bidirectional: bool,
    device: torch.device = _CPU,
) -> Layout:
    """Layout of a batch without padding.

    Args:
        num_steps: ``T``.
        num_rows: ``B``.
        batch_first: whether the flat tensor is ``[B * T, I]`` (True) or ``[T * B, I]`` (False).
        bidirectional: whether ``reverse`` is wanted.
        device: where all arrays are made, ``batch_sizes`` included.
    """
    # What another device holds belongs to a stream, or to a CUDA graph, and is not kept.
    keeps = not tracing() and device.type == "cpu" and num_steps * num_rows <= _SMALL
    make = _small_full if keeps else _full
    return make(num_steps, num_rows, batch_first, bidirectional, device)


# One step of a few rows takes no longer than to make its layout; so those few are kept.
_SMALL = 64


@functools.lru_cache(maxsize=64)
def _small_full(*args: Any) -> Layout:
    with torch.inference_mode(mode=False):  # or autograd could not save the arrays later
        return _full(*args)


def _full(
    num_steps: int, num_rows: int, batch_first: bool, bidirectional: bool, device: torch.device
) -> Layout:
    rows = reverse = None
    if batch_first and (in_jit_trace() or num_rows > 1):
        flat_row = torch.arange(num_rows * num_steps, device=device)
        rows = flat_row.view(num_rows, num_steps).t().reshape(-1)
    if bidirectional:
        token = torch.arange(num_rows * num_steps, device=device)
        reverse = token.view(num_steps, num_rows).flip(0).reshape(-1)
    if in_jit_trace():  # later batches may have no step or no row
        batch_sizes = F.pad(torch.full((num_steps,), num_rows, device=device), (0, 1))
        segments = torch.arange(num_rows, device=device)
        last = torch.where(batch_sizes.any(), segments, -1)
        return Layout(batch_sizes, rows, reverse, segments, last)
    batch_sizes = torch.full((num_steps if num_rows else 0,), num_rows, device=device)
    segments = torch.arange(num_rows if num_steps else 0, device=device)
    last = segments if num_steps else torch.full((num_rows,), -1, device=device)
    return Layout(batch_sizes, rows, reverse, segments, last)


def from_padded(
    num_steps: int,
    num_rows: int,
    *,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
    batch_first: bool,
    bidirectional: bool,
) -> Layout:
    """Layout of a padded batch, by at least one of lengths, mask and resets.

    Args:
        num_steps: ``T``.
        num_rows: ``B``.
        lengths: ``[B]``, int64, each in ``[0, T]``: the tokens of each row, before its padding.
        mask: bool, ``[B, T]`` if ``batch_first``, else ``[T, B]``: True at tokens.
        resets: bool, as ``mask``: True where a segment begins; ignored where no token is.
        batch_first: whether the flat tensor is ``[B * T, I]`` (True) or ``[T * B, I]`` (False).
        bidirectional: whether ``reverse`` is wanted.
    """
    return _from_rows(
        lengths,
        None,
        None if mask is None else mask.reshape(-1),
        None if resets is None else resets.reshape(-1),
        num_rows,
        num_steps,
        batch_first,
        bidirectional,
    )


def from_flat(
    first: Tensor,
    lengths: Tensor,
    num_flat_rows: int,
    *,
    resets: Tensor | None = None,
    bidirectional: bool,
) -> Layout:
    """Layout of rows that lie back to back.

    Args:
        first: ``[B]``, int64, non-decreasing: where each row begins in the flat tensor.
        lengths: ``[B]``, int64: the tokens of each row, none of them beyond the next row's first.
        num_flat_rows: ``R``.
        resets: ``[R]``, bool: as in :func:`from_padded`.
        bidirectional: whether ``reverse`` is wanted.
    """
    num_rows = lengths.shape[0]
    return _from_rows(lengths, first, None, resets, num_rows, num_flat_rows, True, bidirectional)


def from_packed(
    batch_sizes: Tensor,
    sorted_indices: Tensor | None,
    unsorted_indices: Tensor | None,
    num_tokens: int,
    *,
    resets: Tensor | None = None,
    bidirectional: bool,
) -> Layout:
    """Layout of a ``PackedSequence``.

    Args:
        batch_sizes: ``[S]``, as in the ``PackedSequence``.
        sorted_indices: ``[B]``, the row that each segment comes from, or None if rows were sorted
            already.
        unsorted_indices: ``[B]``, the segment of each row, or likewise None.
        num_tokens: ``N``.
        resets: ``[N]``, bool, as the data: as in :func:`from_padded`.
        bidirectional: whether ``reverse`` is wanted.
    """
    if sorted_indices is None:
        num_rows: Any = batch_sizes[0] if in_jit_trace() else int(batch_sizes[0])
        initial_row = index_arrays.arange(num_rows)
    else:
        num_rows, initial_row = sorted_indices.shape[0], sorted_indices.long()
    segments = initial_row if unsorted_indices is None else unsorted_indices.long()
    if resets is None:
        if initial_row.is_cuda and not tracing():
            # The caller's array may change, but what is derived of a layout's arrays may be kept.
            initial_row = initial_row.clone()
        reverse = _reverse_order(batch_sizes, num_tokens) if bidirectional else None
        return Layout(batch_sizes, None, reverse, initial_row, segments)
    # Of the sorted rows back to back, and from there to where their tokens are.
    step, row = index_arrays.step_and_segment(batch_sizes, num_tokens)
    lengths = torch.zeros(num_rows, dtype=torch.int64).index_add(0, row, torch.ones_like(row))
    first = lengths.cumsum(0) - lengths
    places = torch.empty_like(step).index_copy(
        0, first[row] + step, index_arrays.arange(num_tokens)
    )
    first, lengths, initial_row, segments, places = (
        array.to(resets.device) for array in (first, lengths, initial_row, segments, places)
    )
    batch = from_flat(
        first, lengths, num_tokens, resets=resets[places], bidirectional=bidirectional
    )
    assert batch.rows is not None
    return Layout(
        batch.batch_sizes,
        places[batch.rows],
        batch.reverse,
        torch.where(batch.initial_row < 0, batch.initial_row, initial_row[batch.initial_row]),
        batch.final_segment[segments],
    )


def _from_rows(
    lengths: Tensor | None,
    first: Tensor | None,
    mask: Tensor | None,
    resets: Tensor | None,
    num_rows: int,
    num_steps: int,
    batch_first: bool,
    bidirectional: bool,
) -> Layout:
    """Layout of rows of positions, of which the valid ones are tokens.

    Row ``b`` has ``lengths[b]`` positions, or ``T``. They lie side by side from ``first[b]`` on in
    a flat tensor of ``T`` rows, or without ``first`` where a padded batch has them. ``mask`` and
    ``resets`` are ``[R]``.
    """
    which = (lengths, first, mask, resets)
    device = next(array.device for array in which if array is not None)
    on_cpu = device.type == "cpu"
    if made_by_op(device):
        sizes = (num_rows, num_steps) if first is None else (num_steps,)
        batch_sizes, rows, reverse, initial_row, final_segment = (
            torch.ops.varlen_rnn.layout_from_rows(
                _without_elements(*sizes, device=device),
                *which,
                batch_first,
                bidirectional,
                at_capacity=tracing() or not on_cpu,
            )
        )
        reverse = reverse if bidirectional else None
        return Layout(batch_sizes, rows, reverse, initial_row, final_segment)
    layout = Layout(
        *index_arrays.from_rows(*which, num_rows, num_steps, batch_first, bidirectional)
    )
    return layout.exact() if on_cpu and not in_jit_trace() else layout


def made_by_op(device: torch.device) -> bool:
    """Whether a compiled op makes layouts of arrays on a device, and checks their lengths."""
    if not _compiled() or device.type == "cpu":
        return _compiled()
    return device.type == "cuda" and extension.supports_cuda(device) and device_check.trusts(device)


def _compiled() -> bool:
    """Whether compiled ops make the arrays; what they do is what stands here."""
    return extension.UNAVAILABLE is None and not torch._C._are_functorch_transforms_active()


def _reverse_order(batch_sizes: Tensor, num_tokens: int) -> Tensor:
    """The layout's ``reverse``."""
    if not _compiled():
        return index_arrays.reverse_order(batch_sizes, num_tokens)
    order: Tensor = torch.ops.varlen_rnn.reverse_order(batch_sizes, _without_elements(num_tokens))
    return order


def _without_elements(*sizes: int, device: torch.device = _CPU) -> Tensor:
    """``[*sizes, 0]``, which tells an op the sizes; a number would be a constant in a trace."""
    return torch.empty(*sizes, 0, device=device)
