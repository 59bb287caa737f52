"""What every form of a batch becomes: index arrays.

Shapes are those of the legend in :mod:`varlen_rnn.layout`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Index arrays that say everything about a ragged batch; below, padding does not exist.

    All arrays are int64. Where ``batch_sizes`` lies decides what they are like:

    - On the CPU: the sizes are exactly those given here, and the other arrays are brought to the
      tokens' device by :meth:`to`. Only where the call is recorded
      (:mod:`varlen_rnn.runtime.tracing`) are arrays as large as they may have to be, as on another
      device; ``batch_sizes`` is ``[S + 1]`` at least then, so that it ends in a zero.
    - On another device: so do all others. That is so where lengths, a mask or resets lie there, and
      nobody waits for their values: arrays are as large as they may have to be, ``batch_sizes``
      ends in zeros, and of those of N or G elements only the first ones count. It is so, too, for
      batches without padding on CUDA, whose sizes are exact: nothing is copied from the host.

    Attributes:
        batch_sizes: ``[S]``, active segments at each step, non-increasing:
            ``PackedSequence.batch_sizes``.
        rows: ``[N]``, where each token lies in the flat tensor ``[R, I]``; None means
            ``0, 1, ..., N - 1``.
        reverse: ``[N]``, the token that the reverse direction processes n-th, or None if
            there is no reverse direction. It starts at each segment's own last token and is its own
            inverse.
        initial_row: ``[G]``, the row of ``h_0`` that each segment starts from, or -1 for zeros.
        final_segment: ``[B]``, the segment that each row of ``h_n`` comes from, or -1 for a row
            without tokens.
    """

    batch_sizes: Tensor
    rows: Tensor | None
    reverse: Tensor | None
    initial_row: Tensor
    final_segment: Tensor

    @property
    def num_rows(self) -> int:
        """``B``."""
        return self.final_segment.shape[0]

    def exact(self) -> Layout:
        """Returns the layout with arrays of just the sizes given here; the CPU waits for them."""
        batch_sizes = self.batch_sizes.to("cpu")
        num_steps = int(batch_sizes.count_nonzero())
        num_tokens = int(batch_sizes.sum())
        num_segments = int(batch_sizes[0]) if num_steps else 0
        return Layout(
            batch_sizes[:num_steps],
            None if self.rows is None else self.rows[:num_tokens],
            None if self.reverse is None else self.reverse[:num_tokens],
            self.initial_row[:num_segments],
            self.final_segment,
        )

    def to(self, device: torch.device) -> Layout:
        """Returns the layout with every array on ``device``, but ``batch_sizes`` where it was."""
        reverse = self.reverse
        if self.initial_row.device == device and (reverse is None or reverse.device == device):
            return self

        def move(array: Tensor) -> Tensor:
            # CUDA reads pageable memory before the call returns; others may read it too late.
            return array.to(device, non_blocking=device.type == "cuda")

        return Layout(
            self.batch_sizes,
            None if self.rows is None else move(self.rows),
            None if reverse is None else move(reverse),
            move(self.initial_row),
            move(self.final_segment),
        )
