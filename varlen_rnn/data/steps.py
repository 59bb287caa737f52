"""How sizes are divided among the batches of an epoch's steps."""

from __future__ import annotations

import bisect
import heapq
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

# Lengths are rounded up to so many binary digits: by less than 1 / 32 of themselves.
_LENGTH_BITS = 6


def cut_into_steps(sizes: Sequence[int], max_tokens: int, num_replicas: int) -> list[list[int]]:
    """Cuts falling sizes into steps; of each step, which of its batches every size goes to.

    Every batch gets at least one size, but in the last step where there are too few.
    """

    def fill(start: int, stop: int) -> list[int]:
        """Puts each size into the smallest batch, until one does not fit there."""
        batches = [(0, 0, slot) for slot in range(num_replicas)]  # tokens, rows: a heap
        slots = []
        for place in range(start, stop):
            tokens, num_rows, slot = batches[0]
            if tokens + sizes[place] > max_tokens:
                break
            heapq.heapreplace(batches, (tokens + sizes[place], num_rows + 1, slot))
            slots.append(slot)
        return slots

    steps: list[list[int]] = []
    starts = [0]
    while starts[-1] < len(sizes):
        steps.append(fill(starts[-1], len(sizes)))
        starts.append(starts[-1] + len(steps[-1]))
    if len(steps) < 2:
        return steps
    # Cut the last two steps anew, in the middle of their tokens, so that none is nearly empty.
    first, end = starts[-3], len(sizes)
    tokens = list(itertools.accumulate(sizes[first:]))
    cut = first + bisect.bisect_left(tokens, tokens[-1] / 2) + 1
    cut = max(cut, first + num_replicas)
    if end - cut >= num_replicas:
        halves = [fill(first, cut), fill(cut, end)]
        if [len(half) for half in halves] == [cut - first, end - cut]:
            steps[-2:] = halves
    return steps


def rounded_up(lengths: Tensor) -> Tensor:
    """Lengths rounded up to ``_LENGTH_BITS`` binary digits."""
    num_bits = torch.frexp(lengths.double()).exponent.long()
    unit = torch.ones_like(lengths) << (num_bits - _LENGTH_BITS).clamp(min=0)
    return (lengths + unit - 1) // unit * unit
