"""A layout's index arrays by vectorised tensor operations, on any device.

This is the specification of the compiled ops ``varlen_rnn::layout_from_rows`` and
``varlen_rnn::reverse_order``, and what runs in their place. Shapes are those of the legend in
:mod:`varlen_rnn.layout`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def from_rows(
    lengths: Tensor | None,
    first: Tensor | None,
    mask: Tensor | None,
    resets: Tensor | None,
    num_rows: int,
    num_steps: int,
    batch_first: bool,
    bidirectional: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]:
    """``batch_sizes``, ``rows``, ``reverse``, ``initial_row`` and ``final_segment``.

    No value is read, so that nobody waits for a device: the arrays are as large as they may have to
    be (see :class:`varlen_rnn.layout.Layout`). The arguments are those of ``layout.from_padded``
    and ``layout.from_flat``, whose rows these are: with ``first``, ``num_steps`` is R; ``mask`` and
    ``resets`` are ``[R]``.
    """
    device = next(a.device for a in (lengths, first, mask, resets) if a is not None)
    # Every position, row by row.
    num_positions = num_rows * num_steps if first is None else num_steps * (num_rows > 0)
    position = torch.arange(num_positions, device=device)
    if first is not None:
        flat = position
        row = (torch.searchsorted(first, position, right=True) - 1).clamp(min=0)
        step = flat - first[row]
    else:
        row, step = position // num_steps, position % num_steps
        flat = position if batch_first else step * num_rows + row
    valid = step >= 0 if lengths is None else (step >= 0) & (step < lengths[row])
    if mask is not None:
        valid = valid & mask[flat]
    is_reset = torch.zeros_like(valid) if resets is None else valid & resets[flat]

    # The tokens, numbered row by row, and the segments they belong to. What stands where no token
    # is has no meaning, and goes nowhere.
    number = valid.cumsum(0) - 1
    count = torch.zeros(num_rows, dtype=torch.int64, device=device).index_add(0, row, valid.long())
    first_of_row = (count.cumsum(0) - count)[row]
    begins_row = valid & (number == first_of_row)
    ends_row = valid & (number == first_of_row + count[row] - 1)
    begins = begins_row | is_reset
    segment = (begins.cumsum(0) - 1).clamp(min=0)
    segment_lengths = torch.zeros_like(flat).index_add(0, segment, valid.long())
    step = (number - _put(number, segment, begins, num_positions)[segment]).clamp(min=0)

    # Longest segments first, and their tokens in step order.
    sorted_lengths, order = torch.sort(segment_lengths, descending=True, stable=True)
    rank = torch.empty_like(order).scatter(0, order, position)[segment]
    steps = torch.arange(num_steps, device=device)
    batch_sizes = flat.shape[0] - torch.searchsorted(sorted_lengths.flip(0), steps, right=True)
    first_token = batch_sizes.cumsum(0) - batch_sizes
    place = first_token[step] + rank
    opposite = first_token[(segment_lengths[segment] - 1 - step).clamp(min=0)] + rank
    initial_row = _put(row, rank, begins_row & ~is_reset, num_positions, other=-1)
    return (
        batch_sizes,
        _put(flat, place, valid, num_positions),
        _put(opposite, place, valid, num_positions) if bidirectional else None,
        # Without resets every row is one segment at most.
        initial_row[:num_rows] if resets is None else initial_row,
        _put(rank, row, ends_row, num_rows, other=-1),
    )


def _put(values: Tensor, places: Tensor, where: Tensor, size: int, other: int = 0) -> Tensor:
    """``[size]`` with ``values[n]`` at ``places[n]`` for every n of ``where``, else ``other``."""
    result = values.new_full((size + 1,), other)  # what goes nowhere goes to the end
    return result.scatter(0, torch.where(where, places, size), values)[:size]


def reverse_order(batch_sizes: Tensor, num_tokens: int) -> Tensor:
    """For every token ``(step, segment)`` the token ``(length - 1 - step, segment)``: ``[N]``."""
    step, segment = step_and_segment(batch_sizes, num_tokens)
    num_segments = int(batch_sizes[0]) if batch_sizes.numel() else 0
    segment_lengths = batch_sizes.numel() - torch.searchsorted(
        batch_sizes.flip(0), arange(num_segments), right=True
    )
    first_token = batch_sizes.cumsum(0) - batch_sizes
    return first_token[segment_lengths[segment] - 1 - step] + segment


def step_and_segment(batch_sizes: Tensor, num_tokens: int) -> tuple[Tensor, Tensor]:
    """Step and segment of every token, each ``[N]``."""
    step = torch.repeat_interleave(batch_sizes, output_size=num_tokens)
    first_token = batch_sizes.cumsum(0) - batch_sizes
    return step, arange(num_tokens) - first_token[step]


def arange(end: int) -> Tensor:
    """``[0, end)`` on the CPU, whatever ``torch.set_default_device`` says."""
    return torch.arange(end, device="cpu")
