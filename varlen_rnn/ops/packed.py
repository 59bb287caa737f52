"""The order in which kernels read weights: groups of units, all gates of a few units side by side.

A matrix ``[gates * H, K]`` becomes blocks of ``units`` units, a vector ``[gates * H]`` likewise,
padded with zeros to whole blocks; ``U`` is their number:

- floats: ``[U, K, gates, units]``, where ``units`` is what fits one of the kernels' registers: 4, 8
  or 16. Kernels take every number of units, but read in place only their own.
- bfloat16: ``[U, K / 2, gates, units, 2]``, two steps of a sum side by side, in which a register
  holds 32 bits of each of ``units``.
- int8: ``[U, gates, K / 2, 16, 2]``, the same on every CPU.
- vectors: ``[U, gates, units]``.

See ``csrc/cpu/README.md``; shapes are those of the legend in :mod:`varlen_rnn.layout`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from varlen_rnn.ops.cells import NAMED
from varlen_rnn.runtime import extension

INT8_UNITS = 16
# Of each direction; biases are of the type that is computed in, scales float32 and int8's alone.
KINDS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "scale_ih", "scale_hh", "weight_hr")


def kinds_of(cell: str) -> tuple[str, ...]:
    """What the op of a cell takes of each direction."""
    return KINDS if cell == "lstm" else KINDS[:-1]


def native_units(cell: str, dtype: torch.dtype) -> int:
    """The units of a block that the kernels in use read in place."""
    if dtype == torch.int8:
        return INT8_UNITS
    lanes = extension.vector_bytes() // (8 if dtype == torch.float64 else 4)
    # Two gates of an LSTM share a vector.
    return lanes // 2 if cell == "lstm" else lanes


Kind = tuple[tuple[int, ...], torch.dtype]


def packed_kinds(
    cell: str,
    dtype: torch.dtype,
    compute: torch.dtype,
    sizes: tuple[int, int, int],
    units: int,
) -> list[Kind | None]:
    """Of one direction the shapes and dtypes of KINDS, or None for what is not there.

    ``dtype`` is that of packed weights, ``compute`` what is computed in; ``sizes`` are I, H and P.
    """
    input_size, hidden_size, output_size = sizes
    num_gates, blocks = NAMED[cell].num_gates, -(-hidden_size // units)

    def matrix(size: int) -> Kind:
        half = (size + 1) // 2
        if dtype == torch.int8:
            return (blocks, num_gates, half, units, 2), dtype
        if dtype == torch.bfloat16:
            return (blocks, half, num_gates, units, 2), dtype
        return (blocks, size, num_gates, units), dtype

    vector, width = (blocks, num_gates, units), 4 * units
    scale = (vector, torch.float32) if dtype == torch.int8 else None
    projection = ((-(-output_size // width), hidden_size, width), compute)
    return [
        *(matrix(input_size), matrix(output_size)),
        *[(vector, compute)] * 2,
        *[scale] * 2,
        projection if output_size != hidden_size else None,
    ]


def have_shapes(weights: Sequence[Tensor | None], kinds: Sequence[Kind | None]) -> bool:
    """Whether those tensors are there, in the shapes of :func:`packed_kinds`."""
    found = [None if weight is None else tuple(weight.shape) for weight in weights]
    return found == [None if kind is None else kind[0] for kind in kinds]


def pack(rows: Tensor, num_gates: int, units: int) -> Tensor:
    """``[gates * H, K]`` or ``[gates * H]`` to blocks of units, by dtype."""
    by_gate = rows.reshape(num_gates, -1, *rows.shape[1:])
    padding = [0, -by_gate.shape[1] % units]
    if rows.dim() == 1:
        return F.pad(by_gate, padding).view(num_gates, -1, units).transpose(0, 1).contiguous()
    if rows.dtype not in (torch.int8, torch.bfloat16):
        blocks = F.pad(by_gate, [0, 0, *padding]).view(num_gates, -1, units, rows.shape[1])
        return blocks.permute(1, 3, 0, 2).contiguous()
    padded = F.pad(by_gate, [0, rows.shape[1] % 2, *padding])
    blocks = padded.view(num_gates, -1, units, padded.shape[2] // 2, 2)
    order = (1, 0, 3, 2, 4) if rows.dtype == torch.int8 else (1, 3, 0, 2, 4)
    return blocks.permute(order).contiguous()


def unpack(packed: Tensor, hidden_size: int, size: int = 0) -> Tensor:
    """The inverse of :func:`pack`; ``size`` is K."""
    if packed.dim() == 3:
        return packed.transpose(0, 1).flatten(1)[:, :hidden_size].reshape(-1)
    if packed.dim() == 4:
        rows = packed.permute(2, 0, 3, 1).flatten(1, 2)
    else:
        order = (1, 0, 3, 2, 4) if packed.dtype == torch.int8 else (2, 0, 3, 1, 4)
        rows = packed.permute(order).flatten(3).flatten(1, 2)
    return rows[:, :hidden_size, :size].flatten(0, 1).contiguous()


def pack_projection(matrix: Tensor, units: int) -> Tensor:
    """``weight_hr [P, H]`` to ``[blocks, H, 4 * units]``, columns of P."""
    width = 4 * units  # as a block of an LSTM has
    padded = F.pad(matrix, [0, 0, 0, -matrix.shape[0] % width])
    return padded.view(-1, width, matrix.shape[1]).transpose(1, 2).contiguous()


def unpack_projection(packed: Tensor, output_size: int) -> Tensor:
    """The inverse of :func:`pack_projection`."""
    return packed.transpose(1, 2).flatten(0, 1)[:output_size].contiguous()
