"""The emulated CUDA ops: padding does not count, and the host need not know where it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from emulated import _emulated, assert_right, assert_same, run
from emulated_cases import BATCHES, PERSISTENT, Case, tensors_of
from helpers import CELLS, Results
from ragged import drawn
from rounded import NUMBERS
from torch import Tensor

PATHS = [
    *[(cell, number, 16, True) for cell in CELLS for number in PERSISTENT],
    *[(cell, number, 6, False) for cell in CELLS for number in NUMBERS],
]
paths = pytest.mark.parametrize("path", PATHS, ids=lambda p: "{} {} H{} {}".format(*p))
on_device = pytest.mark.parametrize("on_device", [False, True])
Path = tuple[str, str, int, bool]


@pytest.mark.parametrize("number", PERSISTENT)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("batch", BATCHES)
def test_arrays_of_any_capacity_give_the_same_bits(cell: str, number: str, batch: str) -> None:
    case = Case(cell, number, 16, batch, directions=2)
    got, expected = run(case, on_device=True), run(case)
    assert_right(got, case)
    # Torch's products may add the surplus tokens' zeros in another order.
    for name in [name for name in got if name.startswith(("d_weight", "d_bias"))]:
        del got[name], expected[name]
    assert_same(got, expected)


def filled(tensors: dict[str, Tensor], where: dict[str, Tensor], value: float) -> dict[str, Tensor]:
    """The tensors with a value at these places."""
    return {
        name: tensor.masked_fill(where[name], value) if name in where else tensor
        for name, tensor in tensors.items()
    }


@on_device
@paths
def test_nothing_at_padding_counts(path: Path, on_device: bool) -> None:
    *layer, persistent = path
    case = Case(*layer, "holes", directions=2)
    padding = ~case.ragged.valid.reshape(-1, 1)
    where = {"x": padding, "d_out": padding}
    results = [
        run(
            case,
            filled(tensors_of(case), where, value),
            persistent=persistent,
            on_device=on_device,
        )
        for value in (float("nan"), float("inf"), 0.0)
    ]
    assert_same(results[1], results[0])
    assert_same(results[2], results[0])
    for name in ("out", "d_x"):
        assert not results[0][name].masked_fill(~padding, 0.0).any()


@on_device
@paths
def test_states_that_no_segment_starts_from_do_not_count(path: Path, on_device: bool) -> None:
    *layer, persistent = path
    case = Case(*layer, "resets", directions=2)
    # Its second row begins with a reset; its third one has no token, so that its states go through.
    reset, empty = 1, 2
    rows = torch.arange(4).view(1, 4, 1)
    names = [name for name in ("h_0", "c_0") if name in tensors_of(case)]
    tensors = filled(tensors_of(case), dict.fromkeys(names, (rows == reset)), float("nan"))
    got = run(case, tensors, persistent=persistent, on_device=on_device)
    assert_same(got, run(case, persistent=persistent, on_device=on_device))
    for name in names:
        assert not got[f"d_{name}"][:, reset].any()
        final = f"{name[0]}_n"
        assert torch.equal(got[final][:, empty], tensors[name][:, empty])
        assert torch.equal(got[f"d_{name}"][:, empty], tensors[f"d_{final}"][:, empty])


def launches(call: Callable[[], Results]) -> int:
    before = _emulated.counters()["launches"]
    call()
    return int(_emulated.counters()["launches"] - before)


@paths
def test_lengths_on_the_device_do_not_change_what_is_launched(path: Path) -> None:
    *layer, persistent = path
    case = Case(*layer, "equal lengths", directions=2, without=("cells",))
    others = ("x.....", "......", "......", "......"), ("xx....", "xxxxx.") * 2
    counts = {
        launches(
            lambda batch=batch: run(
                case, tensors_of(case), batch, persistent=persistent, on_device=True
            )
        )
        for batch in (case.ragged, *(drawn(*rows) for rows in others))
    }
    assert len(counts) == 1


@pytest.mark.parametrize("cell", CELLS)
def test_steps_of_the_persistent_path_are_no_launches(cell: str) -> None:
    def count(batch: str, **how: Any) -> int:
        return launches(lambda: run(Case(cell, "bfloat16", 16, batch), **how))

    assert count("one row") == count("one long row") == count("chains")
    assert count("one row", persistent=False) < count("one long row", persistent=False)
