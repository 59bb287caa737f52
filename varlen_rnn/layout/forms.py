"""Every form of a ragged batch: to a flat tensor and a layout that points into it, and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from varlen_rnn.layout import transforms
from varlen_rnn.layout.arrays import Layout
from varlen_rnn.layout.checks import (
    Lengths,
    Mask,
    check_cu_seqlens,
    check_lengths,
    check_mask,
    check_offsets,
    check_resets,
    on_device,
)
from varlen_rnn.layout.make import from_flat, from_packed, from_padded, full, made_by_op
from varlen_rnn.layout.packed_checks import check_packed, check_packed_resets, check_same_rows
from varlen_rnn.runtime import extension


class Batch(NamedTuple):
    """A ragged batch, whatever its form.

    Attributes:
        x: ``[R, I]``, the tokens, and padding where the form has it.
        layout: which rows of ``x`` are tokens, and in which order they come.
        restore: brings a flat result ``[R, *]`` into the form of the input.
        unbatched: whether it is one sequence, so that states have no dimension for rows.
    """

    x: Tensor
    layout: Layout
    restore: Callable[[Tensor], Any]
    unbatched: bool = False


# What says which tokens are valid, and where states are reset: lengths, mask, resets, cu_seqlens.
Which = tuple[Lengths | None, Mask | None, Mask | PackedSequence | None, Lengths | None]


def read(
    name: str,
    input: Tensor | PackedSequence,
    which: Which,
    batch_first: bool,
    bidirectional: bool,
) -> Batch:
    """Checks ``which``, and makes the layout.

    ``name`` is that of the module, for errors; the shape of ``input`` fits its form already.
    """
    lengths, mask, resets, cu_seqlens = which
    if isinstance(input, PackedSequence):
        _refuse(name, "a PackedSequence", lengths=lengths, mask=mask, cu_seqlens=cu_seqlens)
        return _packed(name, input, resets, bidirectional)
    if input.is_nested:
        _refuse(name, "a NestedTensor", lengths=lengths, mask=mask, cu_seqlens=cu_seqlens)
        return _nested(name, input, resets, bidirectional)
    if cu_seqlens is not None:
        _refuse(name, "cu_seqlens", lengths=lengths, mask=mask)
        return _flat(name, input, cu_seqlens, resets, bidirectional)
    return _padded(name, input, lengths, mask, resets, batch_first, bidirectional)


def _refuse(name: str, form: str, **arguments: object) -> None:
    """Fails if there is an argument that says what the form says already."""
    for what, value in arguments.items():
        if value is not None:
            raise ValueError(f"{name}: {what} must be None with {form}, got {what}")


def _padded(
    name: str,
    input: Tensor,
    lengths: Lengths | None,
    mask: Mask | None,
    resets: Mask | None,
    batch_first: bool,
    bidirectional: bool,
) -> Batch:
    unbatched = input.dim() == 2
    if unbatched:
        x, num_steps, num_rows = input, input.shape[0], 1
    else:
        num_steps, num_rows, features = input.shape
        if batch_first:
            num_steps, num_rows = num_rows, num_steps
        x = input.reshape(num_rows * num_steps, features)
    leading = input.shape[:-1]

    def make(lengths: Lengths | None, mask: Mask | None, resets: Mask | None) -> Layout:
        if lengths is None and mask is None and resets is None:
            return full(
                num_steps,
                num_rows,
                batch_first=batch_first and not unbatched,
                bidirectional=bidirectional,
                # From there nothing is copied, so that a CUDA graph can be captured.
                device=x.device if x.is_cuda and extension.runs(x) else torch.device("cpu"),
            ).to(x.device)
        symbols = "[T]" if unbatched else "[B, T]" if batch_first else "[T, B]"
        arrays = {}
        if lengths is not None:
            if mask is not None:
                raise ValueError(f"{name}: lengths and mask must not both be given, got both")
            if unbatched:
                form = "[B, T, I]" if batch_first else "[T, B, I]"
                raise ValueError(
                    f"{name}: lengths need a batch {form}, got one sequence [T, I]; "
                    "a flat batch [N, I] takes cu_seqlens"
                )
            arrays["lengths"] = check_lengths(
                *(name, lengths, num_steps, num_rows, batch_first),
                values_later=made_by_op(_place_of(x.device, lengths, resets)),
            )
        if mask is not None:
            arrays["mask"] = check_mask(name, "mask", mask, leading, symbols)
        if resets is not None:
            arrays["resets"] = check_resets(name, "resets", resets, leading, symbols)
        return from_padded(
            num_steps,
            num_rows,
            **_together(name, arrays, x.device),
            batch_first=batch_first and not unbatched,
            bidirectional=bidirectional,
        ).to(x.device)

    batch = transforms.layout_of(make, lengths, mask, resets)

    def restore(flat: Tensor) -> Tensor:
        return flat if unbatched else flat.view(*leading, flat.shape[1])

    return Batch(x, batch, restore, unbatched)


def _flat(
    name: str, input: Tensor, cu_seqlens: Lengths, resets: Mask | None, bidirectional: bool
) -> Batch:
    if input.dim() != 2:
        got = list(input.shape)
        raise ValueError(f"{name}: cu_seqlens need a flat input [N, I], got {got}")
    num_tokens = input.shape[0]

    def make(cu_seqlens: Lengths, resets: Mask | None) -> Layout:
        arrays = {"cu_seqlens": check_cu_seqlens(name, cu_seqlens, num_tokens)}
        if resets is not None:
            arrays["resets"] = check_resets(name, "resets", resets, (num_tokens,), "[N]")
        arrays = _together(name, arrays, input.device)
        bounds = arrays.pop("cu_seqlens")
        return from_flat(
            bounds[:-1], bounds.diff(), num_tokens, **arrays, bidirectional=bidirectional
        ).to(input.device)

    batch = transforms.layout_of(make, cu_seqlens, resets)
    return Batch(input, batch, lambda flat: flat)


def _nested(name: str, input: Any, resets: Any, bidirectional: bool) -> Batch:
    x, offsets, lengths = input.values(), input.offsets(), input.lengths()
    num_flat_rows = x.shape[0]

    def make(offsets: Tensor, lengths: Tensor | None, resets: Any) -> Layout:
        first, row_lengths = check_offsets(name, offsets, lengths, num_flat_rows)
        arrays = {"first": first, "lengths": row_lengths}
        if resets is not None:
            if getattr(resets, "layout", None) != torch.jagged:
                got = type(resets).__name__
                raise TypeError(
                    f"{name}: resets must be a jagged NestedTensor, as the input is, got {got}"
                )
            check_same_rows(name, resets, input)
            flags = resets.values()
            arrays["resets"] = check_resets(name, "resets", flags, (num_flat_rows,), "[R]")
        return from_flat(num_flat_rows=num_flat_rows, **arrays, bidirectional=bidirectional).to(
            x.device
        )

    batch = transforms.layout_of(make, offsets, lengths, resets)

    def restore(flat: Tensor) -> Tensor:
        nested: Tensor = torch.nested.nested_tensor_from_jagged(flat, offsets, lengths)
        return nested

    return Batch(x, batch, restore)


def _packed(
    name: str, input: PackedSequence, resets: Mask | PackedSequence | None, bidirectional: bool
) -> Batch:
    x, batch_sizes, sorted_indices, unsorted_indices = input

    def make(
        batch_sizes: Tensor,
        sorted_indices: Tensor | None,
        unsorted_indices: Tensor | None,
        resets: Mask | PackedSequence | None,
    ) -> Layout:
        packed = PackedSequence(x, batch_sizes, sorted_indices, unsorted_indices)
        batch_sizes = check_packed(name, packed)
        arrays = {}
        if isinstance(resets, PackedSequence):
            resets = check_packed_resets(name, resets, packed)
        if resets is not None:
            arrays["resets"] = check_resets(name, "resets", resets, x.shape[:1], "[N]")
        return from_packed(
            batch_sizes,
            sorted_indices,
            unsorted_indices,
            x.shape[0],
            **_together(name, arrays, x.device),
            bidirectional=bidirectional,
        ).to(x.device)

    batch = transforms.layout_of(make, *input[1:], resets)

    def restore(flat: Tensor) -> PackedSequence:
        return PackedSequence(flat, batch_sizes, sorted_indices, unsorted_indices)

    return Batch(x, batch, restore)


def _place_of(device: torch.device, *arrays: object) -> torch.device:
    """Where :func:`_together` brings these."""
    on_cpu = all(array.is_cpu for array in arrays if isinstance(array, Tensor))
    return torch.device("cpu") if on_cpu else device


def _together(name: str, arrays: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """All on the CPU if they are there, else on the tokens' device."""
    if all(array.is_cpu for array in arrays.values()):
        return arrays
    return {what: on_device(name, what, array, device) for what, array in arrays.items()}
