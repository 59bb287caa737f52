"""The layer functions and the ops below them: values, gradients and registration."""

from __future__ import annotations

import itertools
import resource
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import CELLS, HAS_EXTENSION, assert_bitwise, assert_close64
from op_calls import RAGGED, Case, backward_arguments, make_case, op, sample_inputs
from torch import Tensor

from varlen_rnn import ops, reference

needs_extension = pytest.mark.skipif(not HAS_EXTENSION, reason="there are no compiled ops")


SAMPLES = pytest.mark.parametrize("case", sample_inputs(), ids=str)


def outputs_of(case: Case, where: Any) -> Callable[..., tuple[Tensor, ...]]:
    """A function of the case's leaves, as ``gradcheck`` wants it."""

    def function(*_: Tensor) -> tuple[Tensor, ...]:
        out, finals = case.run(where)
        return out, *finals

    return function


@SAMPLES
def test_values_and_gradients_equal_the_reference(case: Case, isa: str) -> None:
    if not HAS_EXTENSION:
        pytest.skip("the reference would be compared with itself")
    expected = case.fresh(requires_grad=True)
    _out, finals = case.run(reference)
    if not expected.layout.batch_sizes.numel():
        got, got_finals = case.run(ops)
        assert not got.any()
        assert torch.equal(torch.cat(got_finals, -1), torch.cat(finals, -1))
        return
    assert_close64(case.fresh(requires_grad=True).results(ops), expected.results(reference))


@SAMPLES
def test_gradcheck(case: Case, isa: str) -> None:
    case = case.fresh(requires_grad=True)
    assert torch.autograd.gradcheck(outputs_of(case, ops), tuple(case.leaves.values()))


@SAMPLES
def test_gradgradcheck(case: Case) -> None:
    if not case.layout.batch_sizes.numel():
        pytest.skip("without tokens nothing has a second derivative")
    case = case.fresh(requires_grad=True)
    function, leaves = outputs_of(case, ops), tuple(case.leaves.values())
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


@needs_extension
@SAMPLES
def test_inference_and_training_give_the_same_bits(case: Case, isa: str) -> None:
    outputs = op(case, "inference")(*case.arguments)
    trained = op(case, "forward")(*case.arguments)
    for got, expected in zip(trained, outputs, strict=False):
        assert_bitwise(got, expected)


@needs_extension
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("kind", "case"),
    [
        pytest.param(kind, case, id=f"{kind} {case}")
        for n, kind in enumerate(("inference", "forward", "forward with gradient", "backward"))
        for case in sample_inputs()[n % 2 :: 2]
    ],
)
def test_opcheck(case: Case, kind: str) -> None:
    kind, _, with_gradient = kind.partition(" ")
    case = case.fresh(requires_grad=bool(with_gradient))
    arguments = backward_arguments(case) if kind == "backward" else case.arguments
    torch.library.opcheck(op(case, kind), tuple(arguments))


@needs_extension
@pytest.mark.parametrize("lengths", [[3, 0, 5, 5], [0, 0], []], ids=str)
def test_opcheck_of_layouts(lengths: list[int]) -> None:
    strided = torch.tensor([lengths, lengths], dtype=torch.int64).t()[:, 0]
    library = torch.ops.varlen_rnn
    flags = torch.rand(7 * len(lengths)) < 0.5
    positions = torch.empty(len(lengths), 7, 0)
    for mask, resets, *options in itertools.product(
        (None, flags), (None, flags.flip(0)), (False, True), (False, True)
    ):
        arguments = (positions, strided, None, mask, resets, True, *options)
        torch.library.opcheck(library.layout_from_rows.default, arguments)
        batch_sizes, rows, *_ = library.layout_from_rows(*arguments)
        tokens = torch.empty(len(rows), 0)
        torch.library.opcheck(library.reverse_order.default, (batch_sizes, tokens))


@needs_extension
@SAMPLES
def test_a_gradient_that_is_none_counts_as_zero(case: Case, isa: str) -> None:
    arguments = backward_arguments(case)
    for index in range(4 if case.cell == "lstm" else 2):
        zeros, nones = list(arguments), list(arguments)
        zeros[index] = torch.zeros_like(arguments[index])
        nones[index] = None
        pairs = zip(op(case, "backward")(*nones), op(case, "backward")(*zeros), strict=True)
        for got, expected in pairs:
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-14)


@needs_extension
@pytest.mark.parametrize("cell", CELLS)
def test_scratch_memory_of_many_megabytes_is_freed(cell: str) -> None:
    case = make_case(cell, RAGGED, sizes=(500, 500))
    with torch.no_grad():
        expected, finals = case.run(reference)
        for _ in range(5):
            got, got_finals = case.run(ops)
    torch.testing.assert_close([got, *got_finals], [expected, *finals], rtol=0, atol=1e-9)
    unit = 1 if sys.platform == "darwin" else 1024
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(20):  # of more than 8 MB each
        op(case, "inference")(*case.arguments)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert (after - before) * unit < 60e6
