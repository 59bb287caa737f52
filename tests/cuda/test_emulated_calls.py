"""What the host does for a call of the emulated CUDA ops: launches and operators of torch's."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from emulated import backward_arguments, configure, forward_arguments, op
from emulated_cases import Case, capacity_layout, exact_layout, tensors_of
from helpers import CELLS
from host_work import HostWork, work_of


def work_in(case: Case, **how: Any) -> dict[str, HostWork]:
    """Of inference, and of both passes of training."""
    layout = capacity_layout if how.get("on_device") else exact_layout
    tensors, arrays = tensors_of(case), layout(case.ragged, case.directions)
    configure(**how)
    forward = forward_arguments(case, tensors, arrays)
    backward = backward_arguments(case, tensors, arrays, op(case, "forward")(*forward))
    arguments = {"inference": forward, "forward": forward, "backward": backward}
    return {kind: work_of(partial(op(case, kind), *given)) for kind, given in arguments.items()}


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("number", ["bfloat16", "tf32"])
@pytest.mark.parametrize("cell", CELLS)
def test_a_layer_is_few_launches(cell: str, number: str, directions: int) -> None:
    """Lengths on the device, padded rows: for all of a layer but its products.

    Of these, one kernel derives what the layout does not say, and two make the plan. float32 has
    one more: its products add to rows that the biases fill.
    """
    case = Case(cell, number, 16, directions=directions, states=False, without=("cells",))
    work = work_in(case, on_device=True)
    is_float32 = number == "tf32"
    for kind in ("inference", "forward"):
        got = work[kind]
        assert got.launches + got.operations <= 5 + is_float32, got
        assert (got.products, got.gemms) == ((0, 1) if is_float32 else (1, 0))
        assert got.allocations + got.views <= 10
    got = work["backward"]
    assert got.launches + got.operations <= 10, got
    products = 1 + 2 * directions
    assert (got.products, got.gemms) == ((0, products) if is_float32 else (products, 0))


@pytest.mark.parametrize("projected_size", [0, 4])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_a_step_of_the_generic_path_is_a_product_and_a_kernel(
    cell: str, directions: int, projected_size: int
) -> None:
    """Twice that with a projection; nothing for a second direction."""
    if cell == "gru" and projected_size:
        pytest.skip("a GRU has no projection")

    def work(batch: str, **how: Any) -> dict[str, HostWork]:
        case = Case(cell, "bfloat16", 6, batch, directions, projected_size=projected_size)
        return work_in(case, persistent=False, **how)

    steps = 4  # more
    each = steps * (2 if projected_size else 1)
    few, many = work("one row"), work("one long row")
    for kind in few:
        assert many[kind].launches - few[kind].launches == each
        assert many[kind].gemms - few[kind].gemms == each
        for what in ("products", "operations", "allocations", "views"):
            assert getattr(many[kind], what) <= getattr(few[kind], what), (kind, what)
    few, many = work("one row", has_cublas=False), work("one long row", has_cublas=False)
    for kind in few:
        assert many[kind].products - few[kind].products == each
        # Views of ten segments and of one.
        assert many[kind].views - few[kind].views <= 2 * (2 if projected_size else 1)
        assert many[kind].gemms == 0
