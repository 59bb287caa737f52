"""Checks of what a ``PackedSequence`` holds, and of resets that come in the form of the input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from varlen_rnn.layout.checks import check_values, failure, has_shape
from varlen_rnn.layout.errors import InputTypeError
from varlen_rnn.runtime.tracing import tracing


def check_same_rows(name: str, resets: Any, input: Any) -> None:
    """Fails if the resets of a jagged NestedTensor are not laid out as it is."""
    flags = resets.values()
    _check_same(name, "resets.offsets()", resets.offsets(), input.offsets(), flags)
    _check_same(name, "resets.lengths()", resets.lengths(), input.lengths(), flags)


def check_packed_resets(name: str, resets: PackedSequence, input: PackedSequence) -> Tensor:
    """The resets of a ``PackedSequence``, packed as it is: their data."""
    sizes, indices = "resets.batch_sizes", "resets.sorted_indices"
    flags = _check_same(name, sizes, resets.batch_sizes, input.batch_sizes, resets.data)
    return _check_same(name, indices, resets.sorted_indices, input.sorted_indices, flags)


def _check_same(
    name: str, what: str, got: Tensor | None, expected: Tensor | None, flags: Tensor
) -> Tensor:
    """The flags; fails if one of the others is missing, or they have other values."""
    if got is expected:
        return flags
    if got is None or expected is None or not has_shape(got, expected.shape):
        shape, of_input = (None if t is None else list(t.shape) for t in (got, expected))
        raise failure(name, what, f"the input's, of shape {of_input}", shape)
    return check_values(name, what, "the input's", got == expected, got, returned=flags)


def check_packed(name: str, packed: PackedSequence) -> Tensor:
    """The ``batch_sizes``. What torch's own functions make passes; what is made by hand may not."""
    what, num_tokens = "input.batch_sizes", packed.data.shape[0]
    batch_sizes = packed.batch_sizes
    if batch_sizes.dtype != torch.int64 or batch_sizes.device.type != "cpu":
        got = f"{batch_sizes.dtype} on {batch_sizes.device}"
        raise InputTypeError(f"{name}: {what} must be torch.int64 on the CPU, got {got}")
    num_rows = None
    if tracing():
        batch_sizes = _check_unknown_batch_sizes(name, what, packed, num_tokens)
    else:
        num_rows = _check_batch_sizes(name, what, batch_sizes, num_tokens)
    for field in ("sorted_indices", "unsorted_indices"):
        indices = getattr(packed, field)
        if indices is not None:
            batch_sizes = _check_permutation(name, f"input.{field}", indices, num_rows, batch_sizes)
    return batch_sizes


def _check_unknown_batch_sizes(
    name: str, what: str, packed: PackedSequence, num_tokens: int
) -> Tensor:
    """What :func:`_check_batch_sizes` checks, and B, of values that a recorded call will get."""
    batch_sizes, sorted_indices = packed.batch_sizes, packed.sorted_indices
    if batch_sizes.dim() != 1:
        raise failure(name, what, "[S]", list(batch_sizes.shape))
    before = torch.cat((batch_sizes[:1], batch_sizes[:-1]))
    right = (batch_sizes >= 1) & (batch_sizes <= before)
    batch_sizes = check_values(name, what, "positive and not increasing", right, batch_sizes)
    total = batch_sizes.sum()
    right = total == num_tokens
    batch_sizes = check_values(name, what, "of sum N", right, total, returned=batch_sizes)
    if sorted_indices is None:
        return batch_sizes
    num_rows = batch_sizes[:1]
    right = num_rows == sorted_indices.shape[0]
    what = "input.sorted_indices"
    return check_values(name, what, "[B]", right, num_rows, returned=batch_sizes)


def _check_batch_sizes(name: str, what: str, batch_sizes: Tensor, num_tokens: int) -> int:
    """``B``."""
    sizes: list[int] = batch_sizes.tolist() if batch_sizes.dim() == 1 else []
    if not sizes or sizes[-1] < 1 or sizes != sorted(sizes, reverse=True):
        expected = "[S], positive and not increasing"
        raise failure(name, what, expected, sizes[:8] or list(batch_sizes.shape))
    if sum(sizes) != num_tokens:
        raise failure(name, what, f"of sum N = {num_tokens}", sum(sizes))
    return sizes[0]


def _check_permutation(
    name: str, what: str, indices: Tensor, num_rows: int | None, batch_sizes: Tensor
) -> Tensor:
    """The ``batch_sizes``; fails unless it is a permutation."""
    expected = "a permutation of [0, B)" + ("" if num_rows is None else f" = [0, {num_rows})")
    if num_rows is not None and indices.is_cpu:
        if sorted(indices.tolist()) != list(range(num_rows)):
            raise failure(name, what, expected, indices.tolist()[:8])
        return batch_sizes
    if num_rows is not None and indices.shape != (num_rows,):
        raise failure(name, what, expected, f"shape {list(indices.shape)}")
    in_order = indices.sort().values == torch.arange(indices.shape[0], device=indices.device)
    return check_values(name, what, expected, in_order, indices, returned=batch_sizes)
