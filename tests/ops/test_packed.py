"""The order of packed weights: every value where the kernels read it, and back again."""

from __future__ import annotations

import random

import pytest
import torch
from helpers import CELLS, HAS_EXTENSION
from torch import Tensor

from varlen_rnn.ops.frozen import freeze_weights, packed_anew
from varlen_rnn.ops.packed import (
    KINDS,
    native_units,
    pack,
    pack_projection,
    unpack,
    unpack_projection,
)

if HAS_EXTENSION:
    from varlen_rnn import _C

GATES = {"lstm": 4, "gru": 3}
# An LSTM's block of float64 on 128-bit registers has one unit.
UNITS = {
    torch.float32: (2, 4, 8, 16),
    torch.float64: (1, 2, 4, 8, 16),
    torch.bfloat16: (2, 4, 8, 16),
    torch.int8: (2, 4, 8, 16),
}
CASES = [
    pytest.param(dtype, units, id=f"{str(dtype).removeprefix('torch.')}-{units}")
    for dtype, of_dtype in UNITS.items()
    for units in of_dtype
]
SIZES = [(1, 1), (16, 2), (17, 5), (40, 8)]
packed_cases = pytest.mark.parametrize(("dtype", "units"), CASES)


def assert_equal(got: Tensor, expected: Tensor) -> None:
    assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
    assert torch.equal(got, expected)


def numbers(*sizes: int, dtype: torch.dtype) -> Tensor:
    """Integers that every type holds; none is the padding's zero."""
    entries = torch.arange(torch.Size(sizes).numel()) % 250 - 125
    return torch.where(entries < 0, entries, entries + 1).to(dtype).view(sizes)


def matrix_in_order(rows: Tensor, num_gates: int, units: int) -> Tensor:
    """One value after the other, as the legend of the module says."""
    hidden_size, size = len(rows) // num_gates, rows.shape[1]
    blocks, pairs = -(-hidden_size // units), -(-size // 2)
    shape = {
        torch.int8: (blocks, num_gates, pairs, units, 2),
        torch.bfloat16: (blocks, pairs, num_gates, units, 2),
    }.get(rows.dtype, (blocks, size, num_gates, units))
    packed = torch.zeros(shape, dtype=rows.dtype)
    for gate in range(num_gates):
        for unit in range(hidden_size):
            for k in range(size):
                block, u = divmod(unit, units)
                place = {
                    torch.int8: (block, gate, k // 2, u, k % 2),
                    torch.bfloat16: (block, k // 2, gate, u, k % 2),
                }.get(rows.dtype, (block, k, gate, u))
                packed[place] = rows[gate * hidden_size + unit, k]
    return packed


@packed_cases
@pytest.mark.parametrize("num_gates", GATES.values(), ids=GATES)
def test_matrices_are_where_the_kernels_read_them(
    num_gates: int, dtype: torch.dtype, units: int
) -> None:
    for hidden_size, size in SIZES:
        rows = numbers(num_gates * hidden_size, size, dtype=dtype)
        packed = pack(rows, num_gates, units)
        assert packed.is_contiguous()
        assert_equal(packed, matrix_in_order(rows, num_gates, units))
        assert_equal(unpack(packed, hidden_size, size), rows)
        strided = rows.t().contiguous().t()
        assert_equal(pack(strided, num_gates, units), packed)


@pytest.mark.parametrize("units", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("num_gates", GATES.values(), ids=GATES)
def test_vectors_are_where_the_kernels_read_them(num_gates: int, units: int) -> None:
    for hidden_size, _ in SIZES:
        for dtype in (torch.float32, torch.float64):
            rows = numbers(num_gates * hidden_size, dtype=dtype)
            expected = torch.zeros(-(-hidden_size // units), num_gates, units, dtype=dtype)
            for gate in range(num_gates):
                for unit in range(hidden_size):
                    place = unit // units, gate, unit % units
                    expected[place] = rows[gate * hidden_size + unit]
            packed = pack(rows, num_gates, units)
            assert packed.is_contiguous()
            assert_equal(packed, expected)
            assert_equal(unpack(packed, hidden_size), rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("units", [1, 2, 4, 8])
def test_projections_are_where_the_kernels_read_them(units: int, dtype: torch.dtype) -> None:
    width = 4 * units
    for output_size, hidden_size in ((1, 1), (3, 17), (width, 5), (width + 1, 4), (2 * width, 9)):
        matrix = numbers(output_size, hidden_size, dtype=dtype)
        expected = torch.zeros(-(-output_size // width), hidden_size, width, dtype=dtype)
        for p in range(output_size):
            for h in range(hidden_size):
                expected[p // width, h, p % width] = matrix[p, h]
        packed = pack_projection(matrix, units)
        assert packed.is_contiguous()
        assert_equal(packed, expected)
        assert_equal(unpack_projection(packed, output_size), matrix)


@packed_cases
def test_what_is_packed_comes_back(dtype: torch.dtype, units: int) -> None:
    draw = random.Random(units)
    for _ in range(30):
        num_gates, hidden_size, size = draw.choice((3, 4)), draw.randint(1, 70), draw.randint(1, 40)
        rows = (torch.randn(num_gates * hidden_size, size) * 40).to(dtype)
        assert_equal(unpack(pack(rows, num_gates, units), hidden_size, size), rows)


def direction_of(cell: str, dtype: torch.dtype, sizes: tuple[int, int, int]) -> list[Tensor | None]:
    """Random weights of one direction, not packed; those of an int8 layer are float32."""
    input_size, hidden_size, output_size = sizes
    rows = GATES[cell] * hidden_size
    of_layer = torch.float64 if dtype == torch.float64 else torch.float32
    matrices = [torch.randn(rows, size, dtype=of_layer) for size in (input_size, output_size)]
    biases = [torch.randn(rows, dtype=of_layer) for _ in range(2)]
    projected = output_size != hidden_size
    weight_hr = torch.randn(output_size, hidden_size, dtype=of_layer) if projected else None
    return [*matrices, *biases, weight_hr]


@pytest.mark.parametrize("dtype", UNITS, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_another_order_is_as_if_packed_so_at_once(
    cell: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = (5, 37, 11 if cell == "lstm" and dtype != torch.int8 else 37)
    weights = direction_of(cell, dtype, sizes)

    def of(units: int) -> list[Tensor | None]:
        monkeypatch.setattr("varlen_rnn.ops.frozen.native_units", lambda *_: units)
        return freeze_weights(cell, weights, dtype)

    for before in UNITS[dtype]:
        packed = of(before)
        for after in UNITS[dtype]:
            anew = packed_anew(cell, packed, sizes, after)
            for kind, got, expected in zip(KINDS, anew, of(after), strict=True):
                assert (got is None) == (expected is None), kind
                if got is not None and expected is not None:
                    assert_equal(got, expected)
            assert all(a is b for a, b in zip(anew, packed, strict=True)) == (before == after)


@pytest.mark.parametrize("cell", CELLS)
def test_blocks_have_the_width_of_the_registers_in_use(cell: str, every_isa: str) -> None:
    size = _C.vector_bytes() if HAS_EXTENSION else 16
    share = 2 if cell == "lstm" else 1
    assert native_units(cell, torch.float32) == size // 4 // share
    assert native_units(cell, torch.bfloat16) == size // 4 // share
    assert native_units(cell, torch.float64) == size // 8 // share
    assert native_units(cell, torch.int8) == 16
    known = {"reference": 16, "baseline": 16, "neon": 16, "avx2": 32, "avx512": 64}
    assert size == known[every_isa.split("_")[0]]
