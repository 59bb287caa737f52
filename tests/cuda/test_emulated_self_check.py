"""The check of the persistent path at its first use, by the package's own checker."""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from emulated import (
    _emulated,
    assert_right,
    assert_same,
    configure,
    forward_arguments,
    op,
    run,
)
from emulated_cases import Case, exact_layout, tensors_of
from helpers import CELLS
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from varlen_rnn.ops import self_check

KERNELS = self_check.Kernels(torch.ops.varlen_rnn_emulated, _emulated, "cpu")
CASE = Case("lstm", "bfloat16", 24, "resets", 2)
DTYPES = {"tf32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FORWARD, BACKWARD = (
    f"cuda:-1, lstm, bfloat16, H = 24, {which} pass, teams of 1 block"
    for which in ("forward", "backward")
)


class Checker:
    """The package's, which counts."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []

    def __call__(self, *configuration: Any) -> str:
        self.asked.append(configuration)
        return self_check.compare_paths(KERNELS, *configuration)


@pytest.fixture
def checker() -> Iterator[Checker]:
    """As in a new process, with the check on."""
    configure()
    _emulated.forget_verdicts()
    checker = Checker()
    _emulated.set_checker(checker)
    yield checker
    _emulated.set_checker(None)
    _emulated.forget_verdicts()
    _emulated.machine().mma_error = 0
    configure()


checked = functools.partial(configure, self_check=True)
run_checked = functools.partial(run, self_check=True)


def forward(case: Case = CASE) -> list[Tensor]:
    arguments = forward_arguments(case, tensors_of(case), exact_layout(case.ragged, 2))
    return list(op(case, "forward")(*arguments))


def warned(call: Callable[[], Any]) -> tuple[Any, list[str]]:
    """What a call returns, and what it warns of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = call()
    assert all(warning.category is RuntimeWarning for warning in caught)
    return result, [str(warning.message) for warning in caught]


@pytest.mark.parametrize("hidden_size", [8, 24, 136])
@pytest.mark.parametrize("number", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_right_kernels_are_well_within_the_bounds(
    cell: str, number: str, hidden_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    halves = {dtype: bound / 2 for dtype, bound in self_check._BOUNDS.items()}
    monkeypatch.setattr(self_check, "_BOUNDS", halves)
    configure()
    dtype = str(DTYPES[number]).removeprefix("torch.")
    for is_backward in (False, True):
        assert not self_check.compare_paths(KERNELS, -1, cell, dtype, hidden_size, is_backward)


def test_slots_are_filled_again_and_some_segments_start_from_zeros() -> None:
    layout = self_check._layout()
    assert (layout.final_segment < 0).any()
    assert (layout.initial_row < 0).any()
    assert len(layout.initial_row) > 8 * self_check._TEAMS
    configure(clusters=100)
    settings = _emulated.settings()

    def threads_of(max_teams: int) -> int:
        before = _emulated.counters()["fibers"]
        with KERNELS.forced("persistent"):
            assert settings.force_max_teams == self_check._TEAMS
            settings.force_max_teams = max_teams
            forward()
        assert (settings.force_path, settings.force_max_teams) == (None, 0)
        return int(_emulated.counters()["fibers"] - before)

    assert threads_of(1) < threads_of(2) < threads_of(0)


@pytest.mark.parametrize("number", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_a_right_kernel_is_used_after_one_check_of_each_pass(
    cell: str, number: str, checker: Checker
) -> None:
    case = Case(cell, number, 8, "resets", 2)  # whose passes have teams alike
    results, said = warned(lambda: run_checked(case))
    assert said == []
    assert_same(results, run(case))
    assert_same(run_checked(case), results)
    dtype = str(DTYPES[number]).removeprefix("torch.")
    assert checker.asked == [(-1, cell, dtype, 8, is_backward) for is_backward in (False, True)]
    assert [line.rpartition(": ")[2] for line in _emulated.verdicts()] == ["good", "good"]


@pytest.mark.parametrize("number", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_a_fault_is_found_at_first_use_and_the_numbers_are_right(
    cell: str, number: str, checker: Checker
) -> None:
    case = Case(cell, number, 24, "resets", 2)
    right = run(case, persistent=False)
    _emulated.machine().mma_error = 0.25
    with pytest.raises(AssertionError):
        assert_right(run(case), case)  # without the check
    results, said = warned(lambda: run_checked(case))
    assert_same(results, right)
    for text, which in zip(said, ("forward", "backward"), strict=True):
        assert f"H = 24, {which} pass, teams of 1 block): these differ: " in text
        assert "(expected: at most 0." in text
        assert "from now on the generic path runs there, with right results" in text
    assert "out by 0." in said[0]
    assert "the gradient of weight_hh by " in said[1]
    again, said = warned(lambda: run_checked(case))
    assert said == []
    assert_same(again, right)


def test_what_is_not_a_number_differs(checker: Checker) -> None:
    _emulated.machine().mma_error = float("nan")
    checked()
    _, said = warned(forward)
    assert "these differ: out by nan (expected: at most 0." in said[0]


def test_inference_is_compared_as_well() -> None:
    def inference(*args: Any) -> list[Tensor]:
        out, *finals = op(CASE, "inference")(*args)
        return [out + (_emulated.settings().force_path == "persistent"), *finals]

    configure()
    ops = SimpleNamespace(lstm_forward=op(CASE, "forward"), lstm_inference=inference)
    fault = self_check.compare_paths(
        replace(KERNELS, ops=ops), -1, "lstm", "bfloat16", 24, is_backward=False
    )
    assert fault.startswith("these differ: out of inference by 1")
    assert fault.count(" by ") == 1


def test_each_pass_and_size_has_a_verdict_of_its_own(checker: Checker) -> None:
    checked()
    assert not warned(forward)[1]
    _emulated.machine().mma_error = 0.25
    _, said = warned(lambda: run_checked(CASE))
    assert len(said) == 1
    assert f"({BACKWARD})" in said[0]
    assert _emulated.verdicts() == [f"{FORWARD}: good", f"{BACKWARD}: bad"]
    _, said = warned(lambda: forward(Case("lstm", "bfloat16", 32, "resets", 2)))
    assert "H = 32" in said[0]
    checked(cluster_size=2)
    _, said = warned(forward)
    assert "teams of 2 blocks" in said[0]
    assert len(checker.asked) == 4


def test_an_error_in_the_check_is_a_fault(
    checker: Checker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA error: misaligned address")

    monkeypatch.setattr(self_check, "_forward", fail)
    right = forward()
    checked()
    _, said = warned(forward)
    assert "1 block): RuntimeError: CUDA error: misaligned address; from now on" in said[0]
    monkeypatch.setattr(torch, "zeros", fail)
    fault = self_check.compare_paths(KERNELS, -1, "lstm", "bfloat16", 24, False)
    assert fault.startswith("RuntimeError: CUDA error: misaligned address (this error stays: ")
    assert len(right) == 5


def test_a_checker_that_fails_itself_is_a_fault(checker: Checker) -> None:
    _emulated.set_checker(lambda *_: None)  # returns no text
    checked()
    _, said = warned(forward)
    assert len(said) == 1
    assert _emulated.verdicts() == [f"{FORWARD}: bad"]


def test_without_a_checker_nothing_is_trusted_and_nothing_decided(checker: Checker) -> None:
    _emulated.set_checker(None)
    _emulated.machine().mma_error = 0.25
    assert_same(run_checked(CASE), run(CASE, persistent=False))
    assert _emulated.verdicts() == []


def test_the_switch_turns_the_check_off(checker: Checker) -> None:
    _emulated.machine().mma_error = 0.25
    wrong = run(CASE)
    assert_same(run(CASE, self_check=False), wrong)
    assert checker.asked == []


def test_a_capture_takes_the_generic_path_unless_checked_before(checker: Checker) -> None:
    capturing = {"is_capturing": True, "on_device": True}
    generic = run(CASE, persistent=False, on_device=True)
    persistent = run(CASE, on_device=True)
    assert not torch.equal(generic["out"], persistent["out"])
    assert_same(run_checked(CASE, **capturing), generic)
    assert checker.asked == _emulated.verdicts() == []
    run_checked(CASE)
    assert_same(run_checked(CASE, **capturing), persistent)
    assert len(checker.asked) == 2


class Refuses(TorchDispatchMode):
    """Every op but the layers'."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.namespace == "varlen_rnn_emulated"
        return func(*args, **kwargs or {})


@pytest.mark.parametrize(
    "around",
    [
        torch.inference_mode,
        torch.no_grad,
        functools.partial(torch.autocast, "cpu", torch.bfloat16),
        Refuses,
        functools.partial(torch.device, "meta"),
        nullcontext,
    ],
)
def test_nothing_of_the_callers_holds_in_the_check(
    around: Callable[[], Any], checker: Checker
) -> None:
    arguments = forward_arguments(CASE, tensors_of(CASE), exact_layout(CASE.ragged, 2))
    expected = forward()
    checked()
    with around():
        got = op(CASE, "forward")(*arguments)
        states = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
    assert _emulated.verdicts() == [f"{FORWARD}: good"]
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)
    assert states == (around is torch.inference_mode, around not in NO_GRAD)


NO_GRAD = (torch.inference_mode, torch.no_grad)


def test_the_first_use_may_be_in_a_backward_pass(checker: Checker) -> None:
    """Whose thread is autograd's own: torch's engine runs it for a device as for the CPU."""

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, d: Tensor) -> Tensor:
            found.append(warned(lambda: run_checked(CASE)))
            return d

    found: list[Any] = []
    Function.apply(torch.ones(1, requires_grad=True)).sum().backward()
    ((results, said),) = found
    assert said == []
    assert_same(results, run(CASE))
    assert _emulated.verdicts() == [f"{FORWARD}: good", f"{BACKWARD}: good"]


def test_other_threads_run_the_generic_path_meanwhile(checker: Checker) -> None:
    generic, persistent = run(CASE, persistent=False)["out"], run(CASE)["out"]
    started, may_end = threading.Event(), threading.Event()

    def slow(*configuration: Any) -> str:
        started.set()
        assert may_end.wait(20)
        return checker(*configuration)

    _emulated.set_checker(slow)
    checked()
    found: list[Tensor] = []
    first = threading.Thread(target=lambda: found.append(forward()[0]))
    first.start()
    assert started.wait(20)
    assert _emulated.verdicts() == [f"{FORWARD}: being checked"]
    assert torch.equal(forward()[0], generic)
    may_end.set()
    first.join(20)
    assert torch.equal(found[0], persistent)
    assert torch.equal(forward()[0], persistent)
    assert len(checker.asked) == 1


def test_where_warnings_are_errors_one_call_fails_and_the_next_are_right(
    checker: Checker,
) -> None:
    _emulated.machine().mma_error = 0.25
    checked()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeError, match="self-check of a persistent CUDA kernel failed"):
            forward()
        results = forward()
    assert torch.equal(results[0], run(CASE, persistent=False)["out"])
    assert len(checker.asked) == 1


def test_a_forced_path_is_of_one_thread(checker: Checker) -> None:
    settings = _emulated.settings()
    generic, persistent = run(CASE, persistent=False)["out"], run(CASE)["out"]
    checked(persistent=False)
    try:
        settings.force_path = "persistent"
        assert torch.equal(forward()[0], persistent)
        found: list[Any] = []
        thread = threading.Thread(target=lambda: found.extend([settings.force_path, forward()[0]]))
        thread.start()
        thread.join(20)
        assert found[0] is None
        assert torch.equal(found[1], generic)
        with pytest.raises(RuntimeError, match="only where a team fits the layer"):
            forward(Case("lstm", "float64", 24, directions=2))
        settings.force_path = "generic"
        checked()
        assert torch.equal(forward()[0], generic)
        with pytest.raises(ValueError, match='"persistent", "generic" or None, got "fast"'):
            settings.force_path = "fast"
    finally:
        settings.force_path = None
    assert checker.asked == []
