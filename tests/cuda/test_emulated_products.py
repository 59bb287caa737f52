"""The products of the emulated CUDA ops: by whom, and whether float32 may be TF32."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
from emulated import (
    _emulated,
    assert_right,
    backward_arguments,
    check,
    configure,
    forward_arguments,
    op,
    run,
)
from emulated_cases import Case, exact_layout, tensors_of
from helpers import CELLS
from host_work import work_of
from rounded import NUMBERS

DEFAULT, TF32, NO_REDUCTION = 0, 3, 16  # cublasMath_t


@pytest.mark.parametrize("torch_mode", [DEFAULT, TF32])
@pytest.mark.parametrize("number", ["float32", "tf32"])
@pytest.mark.parametrize("hidden_size", [6, 16])
@pytest.mark.parametrize("cell", CELLS)
def test_the_switch_of_rnns_is_that_of_all_products(
    cell: str, hidden_size: int, number: str, torch_mode: int
) -> None:
    """Whatever torch's switch of products says; and that is left as it was."""
    case = Case(cell, number, hidden_size, "resets", directions=2)
    tensors, arrays = tensors_of(case), exact_layout(case.ragged, 2)
    configure(math_mode=torch_mode)
    forward = forward_arguments(case, tensors, arrays)
    outputs = op(case, "forward")(*forward)
    backward = backward_arguments(case, tensors, arrays, outputs)
    generic = not (number == "tf32" and hidden_size % 8 == 0)
    steps = len(arrays.batch_sizes) if generic else 0
    for kind, arguments, of_tokens in (("forward", forward, 1), ("backward", backward, 5)):
        work = work_of(partial(op(case, kind), *arguments))
        assert work.products == 0  # none is torch's
        op(case, kind)(*arguments)
        products = _emulated.take_products()
        assert len(products) == steps + of_tokens
        assert {p.is_tf32 for p in products} == {number == "tf32"}
        assert _emulated.blas().math_mode == torch_mode


@pytest.mark.parametrize("number", ["bfloat16", "float16"])
def test_sums_of_16_bit_steps_are_float32(number: str) -> None:
    case = Case("lstm", number, 6)
    run(case, math_mode=TF32)
    products = _emulated.take_products()
    assert products
    assert not any(p.is_reduced for p in products)
    assert _emulated.blas().math_mode == TF32


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("cell", CELLS)
def test_without_cublas_all_products_are_those_of_torch(cell: str, number: str) -> None:
    case = Case(cell, number, 6, "resets", directions=2)
    got = run(case, has_cublas=False)
    assert not _emulated.take_products()
    assert_right(got, case, has_cublas=False)
    if cell == "lstm":
        check(replace(case, projected_size=3), has_cublas=False)


def test_a_product_that_fails_is_an_error() -> None:
    case = Case("lstm", "float32", 6)
    arguments = forward_arguments(case, tensors_of(case), exact_layout(case.ragged, 1))
    configure(math_mode=TF32)
    _emulated.blas().status = 14
    with pytest.raises(RuntimeError, match=r"cublasGemmStridedBatchedEx must succeed, got .* 14"):
        op(case, "forward")(*arguments)
    assert _emulated.blas().math_mode == TF32
