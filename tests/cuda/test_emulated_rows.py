"""The kernels over whole tensors' rows: any width, any address, any pitch."""

from __future__ import annotations

import itertools

import pytest
import torch
from emulated import (
    _emulated,
    assert_same,
    check,
    configure,
    forward_arguments,
    op,
    run,
)
from emulated_cases import Case, capacity_layout, tensors_of
from helpers import CELLS
from torch import Tensor

WIDTHS = [1, 2, 3, 4, 8, 17, 33, 64]
SIZES = list(itertools.product([1, 3, 8, 12, 17, 36], [1, 4, 16, 33]))


def placed(tensor: Tensor, first: int, more: int) -> Tensor:
    """The same matrix as columns of a wider one full of NaN."""
    rows, columns = tensor.shape
    wide = tensor.new_full((rows, first + columns + more), float("nan"))
    wide[:, first : first + columns] = tensor
    return wide[:, first : first + columns]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("number", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("cell", CELLS)
def test_columns_of_a_wider_input(cell: str, number: str, width: int) -> None:
    """Against the same input on its own, which is held to the reference."""
    case = Case(cell, number, 5, "resets", 2, input_size=width)
    tensors = tensors_of(case)
    for on_device in (False, True):
        check(case, on_device=on_device)
        expected = run(case, on_device=on_device)
        for first, more in ((1, 0), (0, 1), (2, 2), (8, 8)):
            view = placed(tensors["x"], first, more)
            got = run(case, tensors | {"x": view}, on_device=on_device)
            assert_same(got, expected)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("number", ["float64", "float32", "float16"])
def test_states_and_projections_of_any_width(number: str, sizes: tuple[int, int]) -> None:
    """What tokens started from, o tanh(c), and the gradients of states of rows without tokens."""
    hidden_size, projected_size = sizes
    for batch, on_device in (("ragged", True), ("resets", False)):
        case = Case("lstm", number, hidden_size, batch, 2, projected_size=projected_size)
        check(case, on_device=on_device)


@pytest.mark.parametrize("cell", CELLS)
def test_no_tokens_at_all(cell: str) -> None:
    """States pass through, and so do their gradients."""
    for on_device in (False, True):
        check(Case(cell, "bfloat16", 17, "no tokens", 2), on_device=on_device)


def threads_of(width: int, number: str = "bfloat16") -> int:
    """Of all kernels of a call."""
    case = Case("lstm", number, 8, "chains", input_size=width)
    arguments = forward_arguments(case, tensors_of(case), capacity_layout(case.ragged, 1))
    configure(persistent=False, on_device=True)
    before: int = _emulated.counters()["fibers"]
    op(case, "inference")(*arguments)
    after: int = _emulated.counters()["fibers"]
    return after - before


def test_a_row_is_the_work_of_a_warp_at_most() -> None:
    """A lane for 16 bytes: as many threads for 256 columns as for 1024, and half for 128."""
    tokens = len(tensors_of(Case("lstm", "bfloat16", 8, "chains"))["x"])
    assert threads_of(256) == threads_of(1024)
    blocks = {lanes: -(-tokens * lanes // 256) for lanes in (1, 16, 32)}
    assert threads_of(256) - threads_of(128) == 256 * (blocks[32] - blocks[16])
    assert threads_of(128) - threads_of(8) == 256 * (blocks[16] - blocks[1])
    # Where 16 bytes do not fit, there is a lane for each smaller word.
    assert threads_of(17) > threads_of(24)


def test_inputs_are_read_where_they_are() -> None:
    """Columns of a wider input are no copy of it."""
    case = Case("gru", "float32", 5)
    tensors = tensors_of(case)
    arguments = forward_arguments(
        case, tensors | {"x": placed(tensors["x"], 1, 0)}, capacity_layout(case.ragged, 1)
    )
    configure(on_device=True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiled:
        op(case, "inference")(*arguments)
    assert not {"aten::contiguous", "aten::clone"} & {event.name for event in profiled.events()}
