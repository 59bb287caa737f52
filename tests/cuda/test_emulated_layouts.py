"""The emulated CUDA ops: padding does not count, and the host need not know where it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from emulated import (
    _emulated,
    assert_right,
    assert_same,
    backward_arguments,
    configure,
    forward_arguments,
    op,
    run,
    tolerance,
)
from emulated_cases import BATCHES, PERSISTENT, Case, exact_layout, tensors_of
from helpers import CELLS, Results, largest, max_error
from ragged import drawn
from rounded import NUMBERS
from torch import Tensor

from varlen_rnn.layout import Layout, index_arrays

LAYER = "{} {} H{} {}"
PATHS = [
    *[(cell, number, 16, True) for cell in CELLS for number in PERSISTENT],
    *[(cell, number, 6, False) for cell in CELLS for number in NUMBERS],
]
paths = pytest.mark.parametrize("path", PATHS, ids=lambda p: LAYER.format(*p))
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


def assert_like(got: Results, expected: Results, case: Case, persistent: bool) -> None:
    """To the bit; on the generic path, whose steps are torch's products, to its tolerance."""
    if persistent:
        assert_same(got, expected)
    for name, truth in expected.items():
        bound = tolerance(case, (False, False)) * max(largest(truth), 1.0)
        assert max_error(got[name], truth) <= bound, name


def flat_layout(case: Case) -> Layout:
    """Of rows that lie back to back, their lengths on the device: nothing bounds steps but N."""
    lengths = case.ragged.valid.sum(1)
    first = lengths.cumsum(0) - lengths
    num_tokens, bidirectional = int(lengths.sum()), case.directions == 2
    arrays = index_arrays.from_rows(
        lengths, first, None, None, len(lengths), num_tokens, True, bidirectional
    )
    return Layout(*arrays)


def flat_tensors(case: Case) -> dict[str, Tensor]:
    """Those of a case, without the padding."""
    valid = case.ragged.valid.reshape(-1)
    tensors = tensors_of(case)
    return tensors | {name: tensors[name][valid] for name in ("x", "d_out")}


@paths
def test_rows_one_behind_the_other_with_lengths_on_the_device(path: Path) -> None:
    *layer, persistent = path
    case = Case(*layer, "ragged", directions=2, without=("cells",))
    layout, tensors = flat_layout(case), flat_tensors(case)

    def call(arrays: Layout, **how: Any) -> tuple[Results, int]:
        before = _emulated.counters()["launches"]
        got = run(case, tensors, arrays=arrays, persistent=persistent, **how)
        return got, _emulated.counters()["launches"] - before

    expected, exact_launches = call(layout.exact())
    got, num_launches = call(layout, on_device=True)
    captured, captured_launches = call(layout, on_device=True, is_capturing=True)
    assert_like(captured, got, case, persistent)
    for name in [name for name in got if name.startswith(("d_weight", "d_bias"))]:
        del got[name], expected[name]  # torch's products may add the zeros in another order
    assert_like(got, expected, case, persistent)
    # Steps that no row has are launched only where nobody may wait; 3 kernels clear what is left.
    assert num_launches <= exact_launches + 3
    assert (captured_launches > num_launches) == (not persistent)


@paths
def test_nobody_waits_for_the_resets_of_one_row(path: Path) -> None:
    *layer, persistent = path
    case = Case(*layer, "one row of resets", directions=2)
    counts = {
        launches(
            lambda is_capturing=is_capturing: run(
                case, persistent=persistent, on_device=True, is_capturing=is_capturing
            )
        )
        for is_capturing in (False, True)
    }
    assert len(counts) == 1


@pytest.mark.parametrize("cell", CELLS)
def test_a_graph_is_not_captured_with_lengths_on_the_host(cell: str) -> None:
    with pytest.raises(RuntimeError, match=r"lengths must be on the device while .* got cpu"):
        run(Case(cell, "bfloat16", 16), is_capturing=True)


@pytest.mark.parametrize("cell", CELLS)
def test_the_plan_has_no_more_turns_than_tokens(cell: str) -> None:
    """Many teams, one long row and many short ones: the turns of one direction fit into N steps."""
    case = Case(cell, "bfloat16", 16, "one long row", directions=2, without=("cells",))
    tensors, layout = flat_tensors(case), flat_layout(case)
    some, more = (
        run(case, tensors, arrays=layout, on_device=True, clusters=clusters) for clusters in (2, 12)
    )
    assert_same(more, some)


@pytest.mark.parametrize("path", [PATHS[i] for i in (1, 2, 4, -3)], ids=lambda p: LAYER.format(*p))
def test_tensors_may_lie_at_any_address(path: Path) -> None:
    """Views whose data begin one element behind where vector loads want it."""
    *layer, persistent = path
    case = Case(*layer, "ragged", directions=2)
    arrays = exact_layout(case.ragged, 2)
    configure(persistent=persistent)

    def named(results: Sequence[Tensor]) -> Results:
        return {str(index): tensor for index, tensor in enumerate(results)}

    def shifted(tensor: Any) -> Any:
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            return tensor
        room = tensor.new_zeros(tensor.numel() + 1)[1:].view(tensor.shape)
        return room.copy_(tensor)

    good = forward_arguments(case, tensors_of(case), arrays)
    outputs = op(case, "forward")(*good)
    assert_like(named(op(case, "forward")(*map(shifted, good))), named(outputs), case, persistent)
    good = backward_arguments(case, tensors_of(case), arrays, outputs)
    truth = op(case, "backward")(*good)
    got = op(case, "backward")(*map(shifted, good))
    assert_like(named(got), named(truth), case, persistent)


@paths
def test_autocast_around_the_ops_changes_nothing(path: Path) -> None:
    *layer, persistent = path
    case = Case(*layer, "ragged", directions=2)
    expected = run(case, persistent=persistent)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            assert_same(run(case, persistent=persistent), expected)
