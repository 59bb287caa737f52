"""Calls of a few tokens, past torch's dispatcher: all layers in one call into C++.

Such a call's arithmetic takes microseconds, and so does everything around it. What is checked in
Python here, the ops check in C++; what cannot be decided at once, or is wrong, goes their way.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from varlen_rnn.ops.cells import NAMED
from varlen_rnn.ops.packed import native_units, packed_kinds
from varlen_rnn.runtime import extension

if extension.UNAVAILABLE is None:
    from varlen_rnn import _C

# Numbers of the enumerations Dtype and WeightOrder in csrc/params.h.
DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
ORDERS = {torch.float32: 1, torch.float64: 1, torch.bfloat16: 2, torch.int8: 3}
_MATRICES = 0
_ZEROS = [0] * 7
_PLAIN = (nn.Parameter, Tensor)

# More tokens than this take longer than what is saved.
MAX_TOKENS = 64


def runs(x: Any) -> bool:
    """Whether a call with this input may go directly: nothing records it, or has to see it."""
    return (
        type(x) is Tensor
        # First, because what is asked of sizes would be recorded, too.
        and not torch.compiler.is_compiling()
        and torch._C._get_tracing_state() is None
        and not x.is_nested
        and x.dim() == 3
        and 0 < x.numel() <= MAX_TOKENS * x.shape[2]
        and x.is_cpu
        and x.is_contiguous()
        and not x.is_neg()
        and not (x.requires_grad and torch.is_grad_enabled())
        and extension.UNAVAILABLE is None
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._len_torch_function_stack()
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
        and not torch._C._autograd._profiler_enabled()
        and not torch._C._is_any_autocast_enabled()
    )


@functools.lru_cache(maxsize=256)
def _expected(
    is_lstm: bool,
    packed: torch.dtype | None,
    compute: torch.dtype,
    num_layers: int,
    sizes: tuple[int, int, int],
    units: int,
) -> list[tuple[tuple[Any, ...], ...]]:
    """Of each layer the shapes and dtypes of its weights, in the order of ``KINDS``."""
    input_size, hidden_size, output_size = sizes
    cell = "lstm" if is_lstm else "gru"
    rows = NAMED[cell].num_gates * hidden_size
    layers: list[tuple[tuple[Any, ...], ...]] = []
    for layer in range(num_layers):
        depths = (output_size if layer else input_size, output_size)
        if packed is None:
            vector = ((rows,), compute)
            layers.append((*(((rows, depth), compute) for depth in depths), vector, vector))
        else:
            of_layer = (depths[0], hidden_size, output_size)
            kinds = packed_kinds(cell, packed, compute, of_layer, units)
            layers.append(tuple([kind for kind in kinds if kind is not None]))
    return layers


def layers(
    is_lstm: bool,
    x: Tensor,
    states: Any,
    names: list[list[str]],
    weights: Mapping[str, Tensor | None],
    packed: torch.dtype | None,
    sizes: tuple[int, int, int],
    batch_first: bool,
) -> tuple[Tensor, tuple[Tensor, ...]] | None:
    """Output and final states of all layers, of one direction; None if something does not fit.

    Args:
        is_lstm: which of both cells.
        x: what :func:`runs` says yes to.
        states: a tuple of ``h_0`` and an LSTM's ``c_0``, or None for zeros; or what is wrong.
        names: of each layer's weights, in the order of ``KINDS``.
        weights: at least those.
        packed: the type of packed weights, or None for matrices.
        sizes: I, H and P, which is H.
        batch_first: whether x is ``[B, T, I]``.
    """
    shape, dtype = x.shape, x.dtype
    code = DTYPES.get(dtype)
    if code is None or shape[2] != sizes[0]:
        return None
    num_rows, num_steps = (shape[0], shape[1]) if batch_first else (shape[1], shape[0])
    num_layers, hidden_size, output_size = len(names), sizes[1], sizes[2]
    grad = torch.is_grad_enabled()
    units, compute = 0, dtype
    if packed is not None:
        units = native_units("lstm" if is_lstm else "gru", packed)
        compute = torch.promote_types(dtype, torch.float32)
    addresses: list[int] = []
    kept = []  # another thread may replace a weight, whose memory is still read
    expected = _expected(is_lstm, packed, compute, num_layers, sizes, units)
    for of_layer, expected_of_layer in zip(names, expected, strict=True):
        for name, (weight_shape, weight_dtype) in zip(of_layer, expected_of_layer, strict=False):
            weight = weights.get(name)
            if not (
                weight is not None
                and type(weight) in _PLAIN  # others may have their values elsewhere
                and weight.shape == weight_shape
                and weight.dtype is weight_dtype
                and weight.is_cpu
                and weight.is_contiguous()
                and not weight.is_neg()
                and not (grad and weight.requires_grad)
                and (at := weight.data_ptr())
            ):
                return None
            kept.append(weight)
            addresses.append(at)
        addresses += _ZEROS[len(of_layer) :]
    x_at = x.data_ptr()
    if not x_at:
        return None
    finals: tuple[Tensor, ...]
    if states is None:
        h_0 = c_0 = 0
        h_n = x.new_empty((num_layers, num_rows, output_size))
        finals = (h_n, torch.empty_like(h_n)) if is_lstm else (h_n,)
    else:
        if type(states) not in (tuple, list) or len(states) != 1 + is_lstm:
            return None
        states = tuple(states)
        state_shape = (num_layers, num_rows, hidden_size)
        for state in states:
            if not (
                type(state) is Tensor
                and state.shape == state_shape
                and state.dtype is dtype
                and state.is_cpu
                and state.is_contiguous()
                and not state.is_neg()
                and not (grad and state.requires_grad)
                and state.data_ptr()
            ):
                return None
        finals = tuple([torch.empty_like(state) for state in states])
        h_0, c_0 = states[0].data_ptr(), states[-1].data_ptr() if is_lstm else 0
    out = torch.empty_like(x) if shape[2] == output_size else x.new_empty((*shape[:2], output_size))
    _C.run_layers(
        is_lstm,
        code,
        _MATRICES if packed is None else ORDERS[packed],
        units,
        *sizes,
        addresses,
        num_rows,
        num_steps,
        not batch_first,
        x_at,
        out.data_ptr(),
        h_0,
        c_0,
        finals[0].data_ptr(),
        finals[-1].data_ptr() if is_lstm else 0,
    )
    return out, finals
