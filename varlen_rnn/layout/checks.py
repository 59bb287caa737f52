"""Checks of the arguments that say which tokens are valid, shared by modules and masking.

Every message names the operation, the argument, what was expected in symbols and numbers, and what
was got. Values on the CPU are checked at once. Values on a CUDA device are checked there, without
waiting for them: a wrong one fails as a device-side assertion, as an index out of range does in
``torch.nn.functional.embedding``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from varlen_rnn.layout import hints
from varlen_rnn.layout.errors import InputShapeError
from varlen_rnn.runtime.tracing import asserted, in_jit_trace, tracing, unseen

Lengths = Tensor | Sequence[int] | np.ndarray[Any, Any]
Mask = Tensor | Sequence[Any] | np.ndarray[Any, Any] | float


def failure(name: str, what: str, expected: str, got: object, hint: str = "") -> InputShapeError:
    """The error of a shape or value."""
    return InputShapeError(f"{name}: {what} must be {expected}, got {got}{hint}")


def _recordable(name: str, what: str, values: Any) -> Any:
    """A tensor where a compiler records, which knows no arrays; else what was given."""
    if isinstance(values, Tensor):
        return values
    if in_jit_trace():  # which does not see what numbers were made of
        got = type(values).__name__
        raise TypeError(f"{name}: {what} must be a Tensor under torch.jit.trace, got {got}")
    return torch.as_tensor(values, device="cpu") if torch.compiler.is_compiling() else values


@unseen
def has_shape(tensor: Tensor, shape: Sequence[int]) -> bool:
    """Whether that is the tensor's shape."""
    return tensor.shape == tuple(shape)


def _of_shape(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """The tensor, which has the shape already, and has it in later calls of a traced module."""
    if not in_jit_trace():
        return tensor
    # Only of that very shape it can be both expanded and reshaped to it.
    return torch.maximum(tensor.expand(*shape), tensor.reshape(*shape))


def as_array(name: str, what: str, values: Any, symbols: str) -> np.ndarray[Any, Any]:
    """What may be a list as an array; ``symbols`` name the expected shape."""
    try:
        return np.asarray(values)
    except ValueError as error:
        raise failure(name, what, symbols, "sequences of unequal lengths") from error


def check_lengths(
    name: str,
    lengths: Lengths,
    num_steps: int | None,
    num_rows: int,
    batch_first: bool | None = None,
    values_later: bool = False,
) -> Tensor:
    """The lengths as ``[B]`` int64, each in ``[0, T]``, on the device they came from.

    ``num_steps`` is None where there is no T yet. ``batch_first`` is how the input was read, or
    None if it does not matter. With ``values_later`` an op looks at values that cannot be seen
    here: those of a recorded call, where it says which one is wrong, and those on a device.
    """
    most = np.iinfo(np.int64).max if num_steps is None else num_steps
    lengths = _recordable(name, "lengths", lengths)
    if num_steps is None:
        expected = "at least 0"
    else:  # a message must not make T a constant
        expected = "in [0, T]" if tracing() else f"in [0, T] = [0, {num_steps}]"
    if isinstance(lengths, Tensor):
        if not _is_integer(lengths.dtype):
            raise TypeError(f"{name}: lengths must be integers, got {lengths.dtype}")
        if tracing() or not lengths.is_cpu:
            if not has_shape(lengths, (num_rows,)):
                raise _wrong_number(name, lengths.shape, num_steps, num_rows, batch_first)
            values = lengths.long()
            if values_later:
                return values
            values = _of_shape(values, (num_rows,))
            inside = (values >= 0) & (values <= most)
            return check_values(name, "lengths", expected, inside, values)
        array = lengths.numpy(force=True)
    else:
        array = as_array(name, "lengths", lengths, "[B]")
    integers = array.dtype.kind in "iu" or all(type(length) is int for length in array.flat)
    if not integers:
        got = type(lengths).__name__ if array.ndim == 0 else array.dtype
        raise TypeError(f"{name}: lengths must be integers, got {got}")
    if array.shape != (num_rows,):
        raise _wrong_number(name, array.shape, num_steps, num_rows, batch_first)
    if array.dtype != object:
        exact = array.astype(np.int64)
        if exact.view(np.uint64).max(initial=0) <= most:  # negative ones become large
            return torch.from_numpy(exact)
    outside = np.flatnonzero((array < 0) | (array > most))
    if outside.size:
        got = f"{array[outside[0]]} at index {outside[0]}"
        raise failure(name, "lengths", expected, got)
    return torch.from_numpy(array.astype(np.int64))


def _wrong_number(
    name: str,
    shape: Sequence[int],
    num_steps: int | None,
    num_rows: int,
    batch_first: bool | None,
) -> InputShapeError:
    hint = ""
    if len(shape) == 1 and num_steps is not None and batch_first is not None:
        hint = hints.order(num_rows, num_steps, shape[0], batch_first)
    return failure(name, "lengths", f"[B] = [{num_rows}]", list(shape), hint)


_FLAGS = "bool, or integers or floats 0 and 1"
_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def check_mask(name: str, what: str, mask: Mask, shape: Sequence[int], symbols: str) -> Tensor:
    """The mask as bool, on the device it came from; it may come as integers or floats 0 and 1.

    ``symbols`` name the expected ``shape``: ``"[B, T]"``.
    """
    return _check_flags(name, what, _as_tensor(name, what, mask, shape, symbols), shape, symbols)


def check_resets(name: str, what: str, resets: Mask, shape: Sequence[int], symbols: str) -> Tensor:
    """The same for resets, which may have one more dimension, the last one, of size 1."""
    flags = _as_tensor(name, what, resets, shape, symbols)
    if has_shape(flags, (*shape, 1)):
        flags = flags.squeeze(-1)
    return _check_flags(name, what, flags, shape, symbols)


def _as_tensor(name: str, what: str, flags: Mask, shape: Sequence[int], symbols: str) -> Tensor:
    flags = _recordable(name, what, flags)
    if isinstance(flags, Tensor):
        return flags
    array = as_array(name, what, flags, symbols)
    if not array.size and 0 in shape:  # an empty list has no dtype or shape of its own
        array = np.zeros(shape, np.bool_)
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:  # torch has no longdouble
        got = type(flags).__name__ if array.ndim == 0 else array.dtype
        raise TypeError(f"{name}: {what} must be {_FLAGS}, got {got}")
    return torch.from_numpy(array.copy())  # torch warns of arrays that are read-only


def _check_flags(name: str, what: str, flags: Tensor, shape: Sequence[int], symbols: str) -> Tensor:
    if not has_shape(flags, shape):
        got = list(flags.shape)
        hint = ", its transpose" if len(got) == 2 and got[::-1] == list(shape) else ""
        raise failure(name, what, f"{symbols} = {list(shape)}", got, hint)
    flags = _of_shape(flags, shape)
    if flags.dtype == torch.bool:
        return flags
    if flags.dtype not in _FLOATS and not _is_integer(flags.dtype):
        raise TypeError(f"{name}: {what} must be {_FLAGS}, got {flags.dtype}")
    return check_values(name, what, _FLAGS, (flags == 0) | (flags == 1), flags) != 0


def on_device(name: str, what: str, checked: Tensor, device: torch.device) -> Tensor:
    """An argument on the device of the tokens, which a meta tensor has no values for."""
    if checked.device.type == "meta" and device.type != "meta":
        raise failure(name, what, f"on a device with values, as the input's {device} is", "meta")
    return checked.to(device)


def check_cu_seqlens(
    name: str, cu_seqlens: Lengths, num_tokens: int, what: str = "cu_seqlens"
) -> Tensor:
    """The rows' boundaries as ``[B + 1]`` int64, from 0 to N, on the device they came from."""
    cu_seqlens = _recordable(name, what, cu_seqlens)
    if not isinstance(cu_seqlens, Tensor):
        array = as_array(name, what, cu_seqlens, "[B + 1]")
        if not array.size:
            array = array.astype(np.int64)  # an empty list has no dtype of its own
        if array.dtype.kind not in "iu":
            got = type(cu_seqlens).__name__ if array.ndim == 0 else array.dtype
            raise TypeError(f"{name}: {what} must be integers, got {got}")
        cu_seqlens = torch.from_numpy(array.astype(np.int64))
    if not _is_integer(cu_seqlens.dtype):
        raise TypeError(f"{name}: {what} must be integers, got {cu_seqlens.dtype}")
    if cu_seqlens.dim() != 1 or has_shape(cu_seqlens, (0,)):
        raise failure(name, what, "[B + 1]", list(cu_seqlens.shape))
    bounds = cu_seqlens.long().contiguous()
    first, last = bounds[:1], bounds[-1:]

    def check(expected: str, right: Tensor, values: Tensor, start: int = 0) -> Tensor:
        def hint() -> str:
            return hints.cumulative(bounds, num_tokens)

        return check_values(name, what, expected, right, values, start, hint, bounds)

    rising = bounds[1:] >= bounds[:-1]
    at_end = "N at the end" if tracing() else f"N = {num_tokens} at the end"
    bounds = check("0 at the start", first == 0, first)
    bounds = check("non-decreasing", rising, bounds[1:], start=1)
    return check(at_end, last == num_tokens, last, bounds.shape[0] - 1)


def check_offsets(
    name: str, offsets: Tensor, lengths: Tensor | None, num_flat_rows: int
) -> tuple[Tensor, Tensor]:
    """Where each row of a jagged NestedTensor begins and how long it is, both ``[B]`` int64.

    With ``lengths``, rows end before the next one begins.
    """
    what = "input.offsets()"
    if lengths is None:
        bounds = check_cu_seqlens(name, offsets, num_flat_rows, what)
        return bounds[:-1], bounds.diff()
    first, lengths = offsets[:-1].long(), lengths.long()
    # Rows may leave a gap before the first and behind the last.
    ends = torch.cat((first[1:], first.new_full((1,), num_flat_rows)))
    inside = (first >= 0) & (lengths >= 0) & (first + lengths <= ends)
    expected = "such that no row overlaps the next"
    return first, check_values(name, "input.lengths()", expected, inside, lengths)


def _is_integer(dtype: torch.dtype) -> bool:
    return not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool)


def check_values(
    name: str,
    what: str,
    expected: str,
    right: Tensor,
    values: Tensor,
    start: int = 0,
    hint: Callable[[], str] | None = None,
    returned: Tensor | None = None,
) -> Tensor:
    """Fails where ``right`` is False; ``values`` has its shape, and counts from ``start``.

    To be used of what was checked is what comes back: ``values``, or what is to be ``returned``.
    """
    returned = values if returned is None else returned
    if tracing() or right.device.type in ("cuda", "meta"):
        return asserted(returned, right.all(), f"{name}: {what} must be {expected}")
    if not right.all():
        index = (~right).nonzero()[0].tolist()
        got = values[tuple(index)].item()
        where = index if len(index) > 1 else index[0] + start
        raise failure(name, what, expected, f"{got} at index {where}", hint() if hint else "")
    return returned
