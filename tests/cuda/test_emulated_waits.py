"""A wait without end: a lost completion ends in the generic path, not in a hang."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch
from emulated import (
    _emulated,
    assert_same,
    backward_arguments,
    configure,
    forward_arguments,
    op,
    run,
)
from emulated_cases import Case, exact_layout, tensors_of
from helpers import CELLS
from test_emulated_self_check import BACKWARD, CASE, FORWARD, KERNELS, forward, warned

from varlen_rnn.ops import self_check

TWO_BLOCKS = {"cluster_size": 2, "self_check": True}
LOST = (1, 5, 60)  # which of a launch's stores no mbarrier counts


@pytest.fixture(autouse=True)
def _new_process() -> Iterator[None]:
    """With the package's checker, on a machine where waits expire."""
    _emulated.forget_verdicts()
    _emulated.set_checker(lambda *args: self_check.compare_paths(KERNELS, *args))
    machine = _emulated.machine()
    machine.waits_expire = True
    yield
    machine.waits_expire, machine.lose_completion = False, 0
    _emulated.set_checker(None)
    _emulated.forget_verdicts()
    configure()


def of_two_blocks(line: str) -> str:
    return line.replace("1 block", "2 blocks")


@pytest.mark.parametrize("lost", LOST)
def test_lost_at_first_use_it_is_a_fault_of_the_kernel(lost: int) -> None:
    right = run(CASE, persistent=False)
    _emulated.machine().lose_completion = lost
    results, said = warned(lambda: run(CASE, **TWO_BLOCKS))
    assert _emulated.machine().lose_completion == 0
    (text,) = said
    assert f"({of_two_blocks(FORWARD)}): a wait had no end: exchange " in text
    assert "rank " in text
    assert "parity " in text
    assert "; from now on the generic path runs there, with right results" in text
    assert _emulated.verdicts() == [
        f"{of_two_blocks(FORWARD)}: bad",
        f"{of_two_blocks(BACKWARD)}: good",
    ]
    for name in ("out", "h_n", "c_n", "cells"):
        assert torch.equal(results[name].nan_to_num(), right[name].nan_to_num())
    again, said = warned(lambda: run(CASE, **TWO_BLOCKS))
    assert said == []
    assert_same(again, results)


@pytest.mark.parametrize("next_number", ["bfloat16", "float64"])
@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("lost", LOST)
def test_lost_in_a_later_call_the_next_call_of_any_layer_says_so_once(
    lost: int, checked: bool, next_number: str
) -> None:
    how = {**TWO_BLOCKS, "self_check": checked}
    right, before = run(CASE, persistent=False), run(CASE, **how)
    assert len(_emulated.verdicts()) == 2 * checked
    _emulated.machine().lose_completion = lost
    configure(**how)
    # The backward pass of this call is the next one.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeError, match=r"on cuda:-1 a wait had no end: exchange \d+ did "):
            run(CASE, **how)
        other = Case("lstm", next_number, 16, "resets", 2)
        assert_same(run(other, **how), run(other, persistent=False))
        assert_same(run(CASE, **how), right)
    assert not torch.equal(before["out"], right["out"])
    assert "cuda:-1: off since a wait had no end" in _emulated.verdicts()


def test_what_was_not_computed_is_not_a_number() -> None:
    settings = _emulated.settings()
    for is_forced in (False, True):
        _emulated.machine().lose_completion = 60
        configure(cluster_size=2)
        try:
            settings.force_path = "persistent" if is_forced else None
            with pytest.raises(RuntimeError) if not is_forced else warnings.catch_warnings():
                found = run(CASE, cluster_size=2)
        finally:
            settings.force_path = None
    assert found["out"].isnan().any()
    assert found["h_n"].isnan().any()
    assert "a wait had no end" in _emulated.take_expired_wait(-1)
    assert _emulated.take_expired_wait(-1) == ""


@pytest.mark.parametrize("lost", LOST)
@pytest.mark.parametrize("cell", CELLS)
def test_gradients_that_were_not_computed_are_not_numbers(cell: str, lost: int) -> None:
    case = Case(cell, "bfloat16", 24, "resets", 2)
    tensors, arrays = tensors_of(case), exact_layout(case.ragged, 2)
    configure(cluster_size=2)
    outputs = op(case, "forward")(*forward_arguments(case, tensors, arrays))
    arguments = backward_arguments(case, tensors, arrays, outputs)
    right = op(case, "backward")(*arguments)
    _emulated.machine().lose_completion = lost
    found = op(case, "backward")(*arguments)
    with pytest.raises(RuntimeError, match="a wait had no end"):
        op(case, "backward")(*arguments)
    assert found[0].isnan().any()
    # The kernel alone writes to these.
    for got, expected in zip(found[1 : 1 + len(case.state_names)], right[1:], strict=False):
        assert got.isnan().any()
        assert torch.equal(got.nan_to_num(), expected.where(~got.isnan(), 0.0))


def test_a_wait_that_expired_before_is_no_fault_of_what_is_checked() -> None:
    settings = _emulated.settings()
    configure(cluster_size=2)
    _emulated.machine().lose_completion = 60
    settings.force_path = "persistent"
    try:
        forward()
    finally:
        settings.force_path = None
    assert not self_check.compare_paths(KERNELS, -1, "lstm", "bfloat16", 24, is_backward=False)
    assert _emulated.take_expired_wait(-1) == ""


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan")])
def test_limits_that_are_not_positive_raise(seconds: float) -> None:
    settings = _emulated.settings()
    before = settings.wait_limit_s
    with pytest.raises(ValueError, match="wait_limit_s must be positive, got "):
        settings.wait_limit_s = seconds
    assert settings.wait_limit_s == before
