"""Ops called directly with arguments that do not fit: an exception each time, never a crash."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import CELLS, HAS_EXTENSION, assert_bitwise
from op_calls import CALLS, Change, backward_arguments, good_case, op
from torch import Tensor

pytestmark = pytest.mark.skipif(not HAS_EXTENSION, reason="there are no compiled ops")


@pytest.mark.parametrize("cell", CELLS)
def test_the_unchanged_call_works(cell: str) -> None:
    for kind in ("inference", "forward"):
        assert op(good_case(cell), kind)(*good_case(cell).arguments)[0].isfinite().all()


@pytest.mark.parametrize("kind", ["inference", "forward"])
@pytest.mark.parametrize(
    ("cell", "change"),
    [pytest.param(cell, change, id=f"{cell} {name}") for cell, name, change in CALLS],
)
def test_bad_arguments_raise(cell: str, change: Change, kind: str) -> None:
    case = change(good_case(cell))
    with pytest.raises((RuntimeError, ValueError, TypeError), match=r"\w+"):
        op(case, kind)(*case.arguments)


@pytest.mark.parametrize("cell", CELLS)
def test_every_backward_argument_of_another_shape_raises(cell: str) -> None:
    case = good_case(cell)
    good = backward_arguments(case)
    op(case, "backward")(*good)
    for index, argument in enumerate(good):
        if isinstance(argument, list):
            changes: list[Any] = [[], argument[:1], [t[:-1] for t in argument]]
        elif isinstance(argument, Tensor):
            changes = [argument[:-1], argument.unsqueeze(0), argument.to(torch.float16)]
        elif isinstance(argument, bool):
            changes = []
        else:
            changes = [-1]
        for changed in changes:
            arguments = [*good[:index], changed, *good[index + 1 :]]
            with pytest.raises((RuntimeError, ValueError, TypeError), match=r"\w+"):
                op(case, "backward")(*arguments)


@pytest.mark.parametrize("cell", CELLS)
def test_strided_arguments_give_the_same_bits(cell: str, isa: str) -> None:
    case = good_case(cell)
    arrays = {name: strided(array) for name, array in vars(case.layout).items()}
    other = replace(
        case,
        x=strided(case.x),
        states=[strided(s) for s in case.states],
        weights=[[strided(w) for w in tensors] for tensors in case.weights],
        layout=replace(case.layout, **arrays),
    )
    backward = backward_arguments(case)
    other_backward = [strided_list(argument) for argument in backward]
    for kind, arguments, expected in (
        ("inference", other.arguments, op(case, "inference")(*case.arguments)),
        ("forward", other.arguments, op(case, "forward")(*case.arguments)),
        ("backward", other_backward, op(case, "backward")(*backward)),
    ):
        for got, truth in zip(op(case, kind)(*arguments), expected, strict=True):
            assert_bitwise(got, truth, kind)


def strided_list(argument: Any) -> Any:
    return list(map(strided, argument)) if isinstance(argument, list) else strided(argument)


def strided(argument: Any) -> Any:
    """The same values, every other one of a larger buffer whose rest is filled with junk."""
    if not isinstance(argument, Tensor):
        return argument
    buffer = argument.new_full((*argument.shape, 2), 77)
    buffer[..., 0] = argument
    return buffer[..., 0]


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        (torch.tensor([1]), r"lengths must be \[B\] = \[2\], got \[1\]$"),
        (torch.tensor([1, 4]), r"lengths must be in \[0, T\] = \[0, 3\], got 4 at index 1$"),
        (torch.tensor([1, 2**62]), r"lengths must be in .*, got 4611686018427387904 at index 1$"),
        (torch.tensor([-1, 1]), r"lengths must be in .*, got -1 at index 0$"),
        (torch.tensor([[1, 2]]), r"lengths must be \[B\] = \[2\], got \[1, 2\]$"),
        (torch.tensor([1, 2], dtype=torch.int32), "lengths must be Long, got Int$"),
    ],
)
def test_bad_lengths_of_a_layout_raise(lengths: Tensor, message: str) -> None:
    with pytest.raises(RuntimeError, match=f"varlen_rnn::layout_from_rows: {message}"):
        torch.ops.varlen_rnn.layout_from_rows(
            torch.empty(2, 3, 0), lengths, None, None, None, True, False, False
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"first": [0, 3]}, r"first must be in \[0, R - length\] = \[0, 2\], got 3 at index 1$"),
        ({"first": [-1, 0]}, "first must be in .*, got -1 at index 0$"),
        ({"first": [0, 2**63 - 1]}, "first must be in .* at index 1$"),
        ({"first": [0]}, r"lengths must be \[B\] = \[1\], got \[2\]$"),
        ({"first": torch.zeros(2)}, "first must be Long, got Float$"),
        ({"mask": [True] * 5}, r"mask must be \[R\] = \[6\], got \[5\]$"),
        ({"mask": [1] * 6}, "mask must be Bool, got Long$"),
        ({"resets": [True] * 7}, r"resets must be \[R\] = \[6\], got \[7\]$"),
        ({"resets": torch.zeros(2, 3, dtype=torch.bool)}, r"resets must be \[R\] .* got \[2, 3\]$"),
        ({"positions": torch.empty(3, 0)}, r"positions must be \[B, T, 0\], got \[3, 0\]$"),
        (
            {"positions": torch.empty(2, 3, 0), "first": [0, 1]},
            r"positions must be \[R, 0\], got \[2, 3, 0\]$",
        ),
        ({"first": torch.zeros(2, 1).long()}, r"first must be \[B\], got \[2, 1\]$"),
        (
            {"positions": torch.empty(2).as_strided((2, 2**62, 0), (0, 0, 0))},
            r"B \* T must fit 64 bits, got 2 and 46",
        ),
    ],
    ids=str,
)
def test_bad_arguments_of_a_layout_raise(change: dict[str, Any], message: str) -> None:
    positions = torch.empty(3, 0) if "first" in change else torch.empty(2, 3, 0)
    arguments: dict[str, Any] = {
        **{"positions": positions, "lengths": [1, 1], "first": None, "mask": None},
        **{"resets": None, "batch_first": True},
        **{"bidirectional": False, "at_capacity": False},
    }
    arguments |= change
    arguments = {k: torch.tensor(v) if isinstance(v, list) else v for k, v in arguments.items()}
    with pytest.raises(RuntimeError, match=message):
        torch.ops.varlen_rnn.layout_from_rows(**arguments)


@pytest.mark.parametrize(
    ("batch_sizes", "message"),
    [
        (torch.tensor([1, 2]), "be positive and not increase, got 2 at index 1$"),
        (torch.tensor([2, 0, 1]), "be positive and not increase, got 0 at index 1$"),
        (torch.tensor([2, 1]), "sum to N = 4, got 3$"),
        (torch.tensor([3, 2]), "sum to N = 4, got more$"),
        (torch.tensor([3, 2, 0]), "sum to N = 4, got more$"),
        (torch.tensor([-1]), "be positive and not increase, got -1 at index 0$"),
        (torch.tensor(1), r"be \[S\], got \[\]$"),
        (torch.tensor([1.0]), "be Long, got Float$"),
    ],
)
def test_bad_batch_sizes_of_a_reverse_order_raise(batch_sizes: Tensor, message: str) -> None:
    with pytest.raises(
        RuntimeError, match=f"varlen_rnn::reverse_order: batch_sizes must {message}"
    ):
        torch.ops.varlen_rnn.reverse_order(batch_sizes, torch.empty(4, 0))
