"""How much the host does in a call: launches, and what it asks of torch; with -s it prints both."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import pytest
from emulated import forward_arguments, op
from emulated_cases import Case, tensors_of
from emulated_steps import (
    as_modules_call,
    device_layout,
    layers_of,
    lengths_on_device,
    training_step,
)
from helpers import CELLS
from host_work import HostWork, work_of


@pytest.fixture(autouse=True)
def _keeping_plans() -> Iterator[None]:
    with as_modules_call():
        yield


def case_of(cell: str, directions: int) -> Case:
    return Case(cell, "bfloat16", 16, "ragged", directions, states=False, without=("cells",))


def shown(what: str, case: Case, call: Callable[[], object]) -> HostWork:
    work = work_of(call)
    numbers = ", ".join(f"{number} {name}" for name, number in work._asdict().items())
    sys.stdout.write(f"{what}, {case.cell}, {case.directions} directions: {numbers}\n")
    return work


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_a_padded_batch_with_lengths_on_the_device(cell: str, directions: int) -> None:
    """One layer, inference, without its products."""
    case = case_of(cell, directions)
    lengths, tensors = lengths_on_device(case), tensors_of(case)
    layout = device_layout(lengths)
    made = shown("layout", case, lambda: device_layout(lengths))
    layer = shown(
        "inference", case, lambda: op(case, "inference")(*forward_arguments(case, tensors, layout))
    )
    assert (made.launches, made.operations) == (2, 0)
    work = made.launches + made.operations + layer.launches + layer.operations
    assert work <= 12


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_a_training_step(cell: str, directions: int) -> None:
    case = case_of(cell, directions)
    lengths = lengths_on_device(case)
    stacks = [layers_of(case, num_layers) for num_layers in (1, 3)]
    one, three = (
        shown(
            f"training, {len(stack)} layers",
            case,
            lambda stack=stack: training_step(stack, device_layout(lengths)),
        )
        for stack in stacks
    )
    # The layout and its plan are made for all layers and both passes: 2 and 3 launches.
    assert three.launches <= 5 + 3 * (one.launches - 5)
