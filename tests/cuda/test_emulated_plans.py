"""What is derived from a layout is kept for its next layers and passes, for no other's."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from emulated import _emulated, assert_same, configure, forward_arguments, op, run
from emulated_cases import Case, exact_layout, tensors_of
from emulated_steps import (
    as_modules_call,
    device_layout,
    layers_of,
    lengths_on_device,
    training_step,
)
from helpers import CELLS, Results
from ragged import drawn
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from varlen_rnn.layout import Layout


@pytest.fixture(autouse=True)
def _keeping_plans() -> Iterator[None]:
    with as_modules_call():
        yield


FORMATS = [("bfloat16", True), ("float32", False)]
formats = pytest.mark.parametrize(
    ("number", "persistent"), FORMATS, ids=["persistent path", "generic path"]
)


def case_of(cell: str, number: str = "bfloat16", directions: int = 2) -> Case:
    return Case(cell, number, 16, "ragged", directions, without=("cells",))


def launches(call: Callable[[], Results]) -> tuple[Results, int]:
    before = _emulated.counters()["launches"]
    results = call()
    return results, int(_emulated.counters()["launches"] - before)


def unkept(call: Callable[[], Results]) -> tuple[Results, int]:
    """As if nothing was kept."""
    _emulated.keep_plans(False)
    try:
        return launches(call)
    finally:
        _emulated.keep_plans(True)


@formats
@pytest.mark.parametrize("cell", CELLS)
def test_a_layout_s_plan_is_made_once(cell: str, number: str, persistent: bool) -> None:
    """Three layers in two directions, forward and backward."""
    cases = layers_of(case_of(cell, number), 3)
    layout = device_layout(lengths_on_device(cases[0]))
    configure(on_device=True, persistent=persistent)
    expected, anew = unkept(lambda: training_step(cases, layout))
    got, once = launches(lambda: training_step(cases, layout))
    assert_same(got, expected)
    assert anew - once == 5 * (3 if persistent else 1)
    again, kept = launches(lambda: training_step(cases, layout))
    assert_same(again, expected)
    assert once - kept == (3 if persistent else 1)
    assert _emulated.num_kept_layouts() == 1


@pytest.mark.parametrize("cell", CELLS)
def test_each_number_of_teams_has_a_plan(cell: str) -> None:
    """As the two passes may want; and each direction a plan as well."""
    case = replace(case_of(cell), batch="chains")
    layout = device_layout(lengths_on_device(case))

    def step(forward: int, backward: int, some: Case = case) -> Results:
        configure(on_device=True, clusters=forward)
        return training_step([some], layout, lambda: configure(on_device=True, clusters=backward))

    expected = unkept(lambda: step(6, 2))[0]
    one_direction = replace(case, directions=1)
    expected_one = unkept(lambda: step(6, 6, one_direction))[0]
    for clusters in ((6, 2), (2, 6), (2, 2), (4, 6), (6, 10), (10, 12), (6, 2)):
        assert_same(step(*clusters), expected)
        assert_same(step(6, 6, one_direction), expected_one)
    _emulated.clear_plans()
    counts = [launches(lambda c=c: step(*c))[1] for c in ((6, 6), (6, 6), (6, 2), (6, 2))]
    first, kept, other, both_kept = counts
    assert first == kept + 3
    assert other == kept + 2
    assert both_kept == kept


@pytest.mark.parametrize("on_device", [False, True])
@formats
@pytest.mark.parametrize("cell", CELLS)
def test_layouts_of_the_same_sizes_in_turn(
    cell: str, number: str, persistent: bool, on_device: bool
) -> None:
    """Lengths in another order, and others of the same sum, with the same longest one."""
    case = case_of(cell, number)
    batches = [
        drawn("xxx...", "xxxxxx", "x.....", "xx...."),
        drawn("xxxxxx", "xx....", "xxx...", "x....."),
        drawn("xxxxxx", "xx....", "xx....", "xx...."),
    ]
    num_rows, num_steps = batches[0].valid.shape
    layouts = []
    for batch in batches:
        if on_device:
            arguments = lengths_on_device(case) | {"lengths": batch.valid.sum(1)}
            layouts.append(device_layout(arguments | {"positions": torch.empty(4, 6, 0)}))
        else:
            layouts.append(exact_layout(batch, 2))
    tensors = tensors_of(case)
    rows = torch.arange(num_rows * num_steps)
    tensors = tensors | {name: tensors[name][rows].nan_to_num(0.5) for name in ("x", "d_out")}
    states = ("h_0", "c_0", "d_h_n", "d_c_n")
    tensors |= {name: tensors[name][:, :num_rows] for name in states if name in tensors}

    def call(layout: Layout) -> Results:
        how = {"on_device": on_device, "persistent": persistent}
        return run(case, tensors, batches[0], layout, **how)

    expected = [unkept(lambda layout=layout: call(layout))[0] for layout in layouts]
    for _ in range(2):
        for layout, truth in zip(layouts, expected, strict=True):
            assert_same(call(layout), truth)
    assert _emulated.num_kept_layouts() == 3


@pytest.mark.parametrize("name", ["rows", "reverse", "initial_row", "final_segment"])
def test_each_array_counts(name: str) -> None:
    """Two layouts with all arrays in common but one."""
    case = case_of("lstm")
    layout = exact_layout(case.ragged, 2)
    configure()
    array = getattr(layout, name)
    other = array.clone()
    if name == "rows":
        other[:2] = other[:2].flip(0)
    elif name == "reverse":
        other = torch.arange(len(array))
    else:
        other[other >= 0] = other[other >= 0].flip(0)
    assert not torch.equal(other, array)
    changed = replace(layout, **{name: other})

    def outputs(of: Layout) -> Results:
        results = op(case, "forward")(*forward_arguments(case, tensors_of(case), of))
        return {str(index): t for index, t in enumerate(results)}

    expected = [unkept(lambda of=of: outputs(of))[0] for of in (layout, changed)]
    assert any(not torch.equal(expected[0][n], expected[1][n]) for n in expected[0])
    for _ in range(2):
        assert_same(outputs(layout), expected[0])
        assert_same(outputs(changed), expected[1])


def test_sizes_on_the_host_may_be_changed_in_place() -> None:
    case = case_of("lstm")
    before, after = drawn("xxxx", "xx..", "xx..", "x..."), drawn("xxxx", "xxx.", "x...", "x...")
    layout = exact_layout(before, 2)
    expected = exact_layout(after, 2).batch_sizes
    assert layout.batch_sizes.shape == expected.shape
    configure()

    def outputs() -> Results:
        x = tensors_of(case)["x"][:16].nan_to_num(0.5)
        tensors = tensors_of(case) | {"x": x}
        tensors |= {name: tensors[name][:, :4] for name in ("h_0", "c_0")}
        results = op(case, "forward")(*forward_arguments(case, tensors, layout))
        return {str(index): t for index, t in enumerate(results)}

    outputs()
    layout.batch_sizes.copy_(expected)
    got = outputs()
    assert_same(got, unkept(outputs)[0])


def test_nothing_is_kept_or_used_while_a_graph_is_captured() -> None:
    case = case_of("lstm")
    layout = device_layout(lengths_on_device(case))

    def call(is_capturing: bool) -> Results:
        return run(case, arrays=layout, on_device=True, is_capturing=is_capturing)

    expected, anew = unkept(lambda: call(False))
    assert launches(lambda: call(True))[1] == anew
    assert _emulated.num_kept_layouts() == 0
    assert launches(lambda: call(False))[1] < anew
    got, captured = launches(lambda: call(True))
    assert captured == anew
    assert_same(got, expected)


def test_nothing_is_kept_of_a_recorded_call_or_for_who_did_not_ask() -> None:
    """Of a recorded call on the host: arrays with room to spare, whose memory others may reuse."""
    case = case_of("lstm")
    exact = exact_layout(case.ragged, 2)
    recorded = replace(exact, batch_sizes=torch.nn.functional.pad(exact.batch_sizes, (0, 1)))
    for _ in range(2):
        run(case, arrays=recorded)
    other_thread = threading.Thread(target=lambda: run(case))
    other_thread.start()
    other_thread.join()
    unkept(lambda: run(case))
    assert _emulated.num_kept_layouts() == 0


def test_a_bad_layout_is_not_kept() -> None:
    case = case_of("lstm")
    layout = device_layout(lengths_on_device(case))
    sizes = layout.batch_sizes.clone()
    sizes[1] = sizes[0] + 1
    bad = replace(layout, batch_sizes=sizes)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="batch_sizes must not increase"):
            run(case, arrays=bad, on_device=True)
    assert _emulated.num_kept_layouts() == 0


def test_few_layouts_are_kept_and_all_can_be_forgotten() -> None:
    case = case_of("gru", directions=1)
    layouts = [device_layout(lengths_on_device(case)) for _ in range(12)]
    for layout in layouts:
        run(case, arrays=layout, on_device=True)
    assert _emulated.num_kept_layouts() == 8
    last, kept = launches(lambda: run(case, arrays=layouts[-1], on_device=True))
    first, anew = launches(lambda: run(case, arrays=layouts[0], on_device=True))
    assert kept < anew
    assert_same(first, last)
    _emulated.clear_plans()
    assert _emulated.num_kept_layouts() == 0


def test_arrays_that_are_kept_stay_where_they_are() -> None:
    """Or another layout's could come to lie there."""
    case = case_of("gru", directions=1)
    memory: list[StorageWeakRef] = []
    for _ in range(8):
        layout = device_layout(lengths_on_device(case))
        arrays: list[Tensor] = [layout.batch_sizes, layout.initial_row, layout.final_segment]
        memory += [StorageWeakRef(array.untyped_storage()) for array in arrays]
        run(case, arrays=layout, on_device=True)
        del layout, arrays
    assert not any(storage.expired() for storage in memory)
    _emulated.clear_plans()
    assert all(storage.expired() for storage in memory)
