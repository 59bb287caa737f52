"""The emulated CUDA ops with arguments that do not fit: an exception each, and no stray access."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from emulated import backward_arguments, configure, forward_arguments, op
from emulated_cases import Case, capacity_layout, exact_layout, tensors_of
from helpers import CELLS
from op_calls import CALLS, Change, good_case
from torch import Tensor

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
    configure()
    with pytest.raises((RuntimeError, ValueError, TypeError), match=MESSAGE):
        call(*case.arguments)


@pytest.mark.parametrize("kind", ["forward", "backward"])
@pytest.mark.parametrize("cell", CELLS)
def test_every_tensor_of_another_shape_or_dtype_raises(cell: str, kind: str) -> None:
    case = Case(cell, "bfloat16", 16, directions=2)
    tensors, arrays = tensors_of(case), exact_layout(case.ragged, 2)
    forward = forward_arguments(case, tensors, arrays)
    configure()
    outputs = op(case, "forward")(*forward)
    good = forward if kind == "forward" else backward_arguments(case, tensors, arrays, outputs)
    for index, argument in enumerate(good):
        if not isinstance(argument, torch.Tensor):
            continue
        other = torch.int32 if argument.dtype == torch.int64 else torch.float64
        for change in (argument[..., :-1], argument.unsqueeze(0), argument.to(other)):
            with pytest.raises(RuntimeError, match=MESSAGE):
                op(case, kind)(*good[:index], change, *good[index + 1 :])


def raises_on_device(case: Case, persistent: bool, name: str, arrays: Sequence[Tensor]) -> None:
    """Both passes raise with each of these in place of the layout's array."""
    tensors, layout = tensors_of(case), capacity_layout(case.ragged, 2)
    configure(persistent=persistent, on_device=True)
    outputs = op(case, "forward")(*forward_arguments(case, tensors, layout))
    for array in arrays:
        changed = replace(layout, **{name: array})
        forward = forward_arguments(case, tensors, changed)
        backward = backward_arguments(case, tensors, changed, outputs)
        for kind, arguments in (("forward", forward), ("backward", backward)):
            # With other sizes entries of no meaning would count, which are out of range, too.
            found = name if name != "batch_sizes" else r"\w+"
            with pytest.raises(RuntimeError, match=rf"varlen_rnn: {found} must"):
                op(case, kind)(*arguments)


# Of the batch "ragged", with B = 6 and R = G = 36.
OUT_OF_RANGE = {
    "rows": (-1, 36, 2**31, 2**62),
    "reverse": (-1, 36, 2**31, 2**62),
    "initial_row": (-2, 6, 2**31, 2**62),
    "final_segment": (-2, 36, 2**31, 2**62),
}


@pytest.mark.parametrize("name", OUT_OF_RANGE)
@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize("cell", CELLS)
def test_values_out_of_range_on_the_device_raise(cell: str, persistent: bool, name: str) -> None:
    case = Case(cell, "bfloat16", 16, "ragged", directions=2)
    good = getattr(capacity_layout(case.ragged, 2), name)
    arrays = [torch.cat([good.new_tensor([value]), good[1:]]) for value in OUT_OF_RANGE[name]]
    raises_on_device(case, persistent, name, arrays)


# Instead of 4, 3, 2, 1, 1, 1.
BAD_SIZES = [
    [7, 3, 2, 1, 1, 1],
    [37, 3, 2, 1, 1, 1],
    [2**62, 3, 2, 1, 1, 1],
    [2**62, 2**62, 2**62, 2**62, 0, 0],
    [-1, 3, 2, 1, 1, 1],
    [4, 3, 2, 1, 1, -1],
    [4, -5, 7, 1, 1, 1],
    [4, 3, 2, 1, 0, 1],
    [1, 1, 1, 2, 3, 4],
    [0, 4, 3, 2, 1, 1],
    [6, 6, 6, 6, 6, 7],
]


@pytest.mark.parametrize("sizes", BAD_SIZES, ids=str)
@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize("cell", CELLS)
def test_sizes_of_no_batch_on_the_device_raise(
    cell: str, persistent: bool, sizes: list[int]
) -> None:
    case = Case(cell, "bfloat16", 16, "ragged", directions=2)
    raises_on_device(case, persistent, "batch_sizes", [torch.tensor(sizes)])
