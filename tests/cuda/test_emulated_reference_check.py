"""The check of the generic path at its first use: against the reference, by emulated ops."""

from __future__ import annotations

import functools
import re
import threading
import warnings
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from emulated import _emulated, configure
from helpers import CELLS
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from varlen_rnn import ops
from varlen_rnn.ops import self_check
from varlen_rnn.runtime import extension

KERNELS = self_check.Kernels(torch.ops.varlen_rnn_emulated, _emulated, "cpu")
CPU = torch.device("cpu")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def faulty(name: str, result: int, error: float) -> self_check.Kernels:
    """Kernels whose op of this name has a little more in one value of one result."""

    def op(*args: Any) -> list[Tensor]:
        results = list(getattr(KERNELS.ops, name)(*args))
        results[result] = results[result].clone()
        results[result].view(-1)[-1] += error
        return results

    known = {
        f"{cell}_{kind}": getattr(KERNELS.ops, f"{cell}_{kind}")
        for cell in CELLS
        for kind in ("forward", "inference", "backward")
    }
    return replace(KERNELS, ops=SimpleNamespace(**known | {name: op}))


@pytest.fixture(autouse=True)
def _new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """In which the emulated kernels are those of CUDA, and have warned that nothing is proven."""
    monkeypatch.setattr(self_check, "cuda", lambda: KERNELS)
    monkeypatch.setattr(self_check, "_trusted", {})
    monkeypatch.setattr(extension, "VERDICTS", [])
    monkeypatch.setattr(extension, "_said_unproven", True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    configure()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_right_kernels_are_well_within_the_bounds(
    cell: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    halves = {dtype: bound / 2 for dtype, bound in self_check._BOUNDS.items()}
    monkeypatch.setattr(self_check, "_BOUNDS", halves)
    assert self_check.compare_reference(KERNELS, CPU, cell, dtype) == ""


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("name", "result", "what"),
    [
        ("lstm_forward", 0, "out"),
        ("lstm_forward", 2, "c_n"),
        ("lstm_backward", 4, "the gradient of weight_hh"),
        ("gru_forward", 1, "h_n"),
        ("gru_backward", 9, "the gradient of bias_hh_reverse"),
    ],
)
def test_a_fault_is_named_once_and_the_reference_runs(
    name: str, result: int, what: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = 2.0 if "gradient" in what else 0.1
    monkeypatch.setattr(self_check, "cuda", lambda: faulty(name, result, error))
    cell = name.partition("_")[0]
    other = {"lstm": "gru", "gru": "lstm"}[cell]
    short = str(dtype).removeprefix("torch.")
    said = rf"failed \(cpu, {cell}, {short}, generic path\): these differ: {what} by \d.*from now"
    with pytest.warns(RuntimeWarning, match=said) as caught:
        assert not self_check.trusts(CPU, cell, dtype)
    assert len(caught) == 1
    assert not self_check.trusts(CPU, cell, dtype)
    assert self_check.trusts(CPU, other, dtype)
    assert [
        f"cpu, {cell}, {short}, generic path: bad",
        f"cpu, {other}, {short}, generic path: good",
    ] == extension.VERDICTS


def test_where_nothing_runs_nothing_is_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_check, "cuda", lambda: faulty("gru_forward", 0, 1.0))
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        assert self_check.trusts(CPU, "gru", torch.float32)
    with FakeTensorMode():
        assert self_check.trusts(CPU, "gru", torch.float32)
    assert self_check._trusted == {}
    with pytest.warns(RuntimeWarning, match="out by 1"):
        assert not self_check.trusts(CPU, "gru", torch.float32)


class Refuses(TorchDispatchMode):
    """Every op."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(func)


@pytest.mark.parametrize(
    "around",
    [
        torch.inference_mode,
        torch.no_grad,
        functools.partial(torch.autocast, "cpu", torch.bfloat16),
        functools.partial(torch.device, "meta"),
        Refuses,
    ],
)
def test_nothing_of_the_callers_holds_in_the_check(around: Callable[[], Any]) -> None:
    with warnings.catch_warnings(), around():
        warnings.simplefilter("error")
        assert self_check.trusts(CPU, "lstm", torch.float64)
    assert extension.VERDICTS == ["cpu, lstm, float64, generic path: good"]


def test_the_switch_turns_the_check_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_check, "cuda", lambda: faulty("gru_forward", 0, 1.0))
    monkeypatch.setattr(extension, "CUDA_SELF_CHECK", False)
    assert self_check.trusts(CPU, "gru", torch.float32)
    assert extension.VERDICTS == []


def test_where_warnings_are_errors_one_call_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_check, "cuda", lambda: faulty("gru_forward", 0, 1.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning, match="self-check of the CUDA kernels failed"):
            self_check.trusts(CPU, "gru", torch.float32)
        assert not self_check.trusts(CPU, "gru", torch.float32)


def test_two_threads_check_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def compare(*args: Any) -> str:
        asked.append(args)
        both_ask.wait(0.2)
        return ""

    both_ask = threading.Event()
    monkeypatch.setattr(self_check, "compare_reference", compare)
    found: list[bool] = []
    threads = [
        threading.Thread(target=lambda: found.append(self_check.trusts(CPU, "gru", torch.float32)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert found == [True, True]
    assert len(asked) == 1


def test_torch_compile_takes_the_answer_as_a_constant(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the check runs as outside of it."""
    monkeypatch.setattr(self_check, "cuda", lambda: faulty("gru_forward", 0, 1.0))

    def choose(x: Tensor, cell: str) -> Tensor:
        return x + 1 if self_check.trusts(CPU, cell, torch.float32) else x - 1

    compiled = torch.compile(choose, backend="eager", fullgraph=True)
    torch._dynamo.reset()
    assert compiled(torch.zeros(()), "lstm") == 1
    with pytest.warns(RuntimeWarning, match="out by 1"):
        assert compiled(torch.zeros(()), "gru") == -1
    assert compiled(torch.zeros(()), "gru") == -1
    torch._dynamo.reset()


def test_layers_ask_for_their_cell_and_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(extension, "runs", lambda x: True)
    monkeypatch.setattr(self_check, "trusts", lambda *key: asked.append(key))
    with FakeTensorMode():
        x = torch.empty(4, 3, device="cuda", dtype=torch.float16)
        assert not ops.runs("gru", x)
    assert asked == [(torch.device("cuda", 0), "gru", torch.float16)]
    assert ops.runs("gru", torch.empty(4, 3))


def test_that_nothing_is_proven_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension, "_said_unproven", False)
    text = re.escape("VARLEN_RNN_DISABLE_CUDA=1 turns them off. Please run `make gpu-check`")
    with pytest.warns(RuntimeWarning, match=f"not been proven on a GPU yet.*{text}") as caught:
        assert self_check.trusts(CPU, "gru", torch.float32)
    assert len(caught) == 1
    assert self_check.trusts(CPU, "gru", torch.float64)
    monkeypatch.setattr(extension, "_said_unproven", False)
    monkeypatch.setattr(extension, "PROVEN_ON", ("some GPU",))
    assert self_check.trusts(CPU, "lstm", torch.float64)
