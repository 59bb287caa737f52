"""The emulated CUDA ops with arguments that do not fit: an exception each, and no stray access."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from emulated import (
    Case,
    backward_arguments,
    capacity_layout,
    exact_layout,
    forward_arguments,
    op,
    running,
    tensors_of,
)
from helpers import CELLS
from test_ops_bad_calls import CALLS, Change, good_case

# What the ops say of an argument, an access out of bounds would be the emulator's own message; and
# what torch says of None where no weight may be missing.
MESSAGE = r"varlen_rnn(::\w+)?: .* must|Not yet supported ScalarType"


@pytest.mark.parametrize(
    ("cell", "change"),
    [
        pytest.param(cell, change, id=f"{cell} {name}")
        for cell, name, change in CALLS
        # Harmless on the device, which does not look for it.
        if not name.endswith("twice")
    ],
)
def test_bad_arguments_raise(cell: str, change: Change) -> None:
    case = change(good_case(cell))
    call = getattr(torch.ops.varlen_rnn_emulated, f"{cell}_forward")
    arguments = [*case.arguments]
    with running(), pytest.raises((RuntimeError, ValueError, TypeError), match=MESSAGE):
        call(*arguments)


@pytest.mark.parametrize("kind", ["forward", "backward"])
@pytest.mark.parametrize("cell", CELLS)
def test_every_tensor_of_another_shape_or_dtype_raises(cell: str, kind: str) -> None:
    case = Case(cell, "bfloat16", 16, directions=2)
    tensors, arrays = tensors_of(case), exact_layout(case.ragged, 2)
    forward = forward_arguments(case, tensors, arrays)
    with running():
        outputs = op(case, "forward")(*forward)
        good = forward if kind == "forward" else backward_arguments(case, tensors, arrays, outputs)
        for index, argument in enumerate(good):
            if not isinstance(argument, torch.Tensor):
                continue
            other = torch.int32 if argument.dtype == torch.int64 else torch.float64
            for change in (argument[..., :-1], argument.unsqueeze(0), argument.to(other)):
                with pytest.raises(RuntimeError, match=MESSAGE):
                    op(case, kind)(*good[:index], change, *good[index + 1 :])


OUT_OF_RANGE = {
    "rows": ("rows", (-1, 36, 2**31, 2**62)),
    "reverse": ("reverse", (-1, 2**31, 2**62)),
    "initial_row": ("initial_row", (-2, 6, 2**31, 2**62)),
    "final_row": ("final_row", (-2, 6, 2**31, 2**62)),
    "batch_sizes": ("batch_sizes", (37, 2**31, 2**62)),
}


@pytest.mark.parametrize("kind", ["forward", "backward"])
@pytest.mark.parametrize("name", OUT_OF_RANGE)
@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize("cell", CELLS)
def test_values_out_of_range_on_the_device_raise(
    cell: str, persistent: bool, name: str, kind: str
) -> None:
    case = Case(cell, "bfloat16", 16, "ragged", directions=2)
    tensors, arrays = tensors_of(case), capacity_layout(case.ragged, 2)
    with running(persistent=persistent, on_device=True):
        outputs = op(case, "forward")(*forward_arguments(case, tensors, arrays))
        for value in OUT_OF_RANGE[name][1]:
            array = getattr(arrays, name).clone()
            array[0] = value
            changed = replace(arrays, **{name: array})
            arguments: list[Any] = (
                forward_arguments(case, tensors, changed)
                if kind == "forward"
                else backward_arguments(case, tensors, changed, outputs)
            )
            with pytest.raises(RuntimeError, match=r"varlen_rnn: .* must"):
                op(case, kind)(*arguments)
