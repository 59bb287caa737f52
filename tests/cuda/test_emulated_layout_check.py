"""The check of the op that makes layouts on the device at its first use, by the emulated op."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from emulated import _emulated, configure
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import varlen_rnn
from varlen_rnn.layout import device_check, make
from varlen_rnn.ops import self_check
from varlen_rnn.runtime import extension

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
NAMES = ("batch_sizes", "rows", "reverse", "initial_row", "final_segment")
LAYOUTS = torch.ops.varlen_rnn_emulated.layout_from_rows


def faulty(array: int, calls: list[Any], first: int = 0) -> Any:
    """The op, from a call on with one more in the first element of an array."""

    def op(*args: Any) -> list[Tensor]:
        calls.append(args)
        results = list(LAYOUTS(*args))
        results[array][0] += len(calls) > first
        return results

    return op


@pytest.fixture
def _new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """With CUDA kernels that nobody has seen."""
    monkeypatch.setattr(device_check, "_trusted", {})
    monkeypatch.setattr(extension, "VERDICTS", [])
    monkeypatch.setattr(extension, "CUDA_SELF_CHECK", True)
    monkeypatch.setattr(extension, "_said_unproven", True)
    monkeypatch.setattr(extension, "supports_cuda", lambda device: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)


@pytest.mark.parametrize("seed", range(3))
def test_a_right_op_agrees(seed: int) -> None:
    configure(seed=seed)
    before = _emulated.counters()["launches"]
    assert device_check.compare(LAYOUTS, CPU) == ""
    assert _emulated.counters()["launches"] > before


@pytest.mark.parametrize("batch", range(4))
@pytest.mark.parametrize("array", range(5))
def test_a_fault_in_any_array_of_any_batch_is_found(array: int, batch: int) -> None:
    calls: list[Any] = []
    fault = device_check.compare(faulty(array, calls, batch), CPU)
    assert fault.endswith(" differ")
    assert NAMES[array] in fault
    assert len(calls) == batch + 1


@pytest.mark.usefixtures("_new_process")
def test_where_the_op_is_wrong_it_is_not_used_and_one_warning_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wrong: Any = faulty(1, [])
    monkeypatch.setattr(torch.ops, "varlen_rnn", SimpleNamespace(layout_from_rows=wrong))
    compare = device_check.compare
    monkeypatch.setattr(device_check, "compare", lambda op, device: compare(op, CPU))
    said = r"failed \(cuda:0, layouts\): rows of a padded batch with resets differ; from now on"
    with pytest.warns(RuntimeWarning, match=said) as caught:
        assert not make.made_by_op(CUDA)
    assert len(caught) == 1
    assert not make.made_by_op(CUDA)
    assert extension.VERDICTS == ["cuda:0, layouts: bad"]


@pytest.mark.usefixtures("_new_process")
def test_where_nothing_can_run_nothing_is_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(device_check, "compare", lambda *args: str(asked.append(args) or ""))
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        assert not make.made_by_op(CUDA)
    with FakeTensorMode():
        assert make.made_by_op(CUDA)
    assert asked == []
    for _ in range(2):
        assert make.made_by_op(CUDA)
    assert len(asked) == 1
    assert make.made_by_op(CPU)
    assert not make.made_by_op(torch.device("meta"))


@pytest.mark.usefixtures("_new_process")
def test_the_first_kernels_of_a_call_say_that_nothing_is_proven(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(extension, "_said_unproven", False)
    monkeypatch.setattr(device_check, "compare", lambda *_: "")
    with pytest.warns(RuntimeWarning, match="not been proven on a GPU yet") as caught:
        assert make.made_by_op(CUDA)
    assert len(caught) == 1


@pytest.mark.usefixtures("_new_process")
def test_torch_compile_takes_the_answer_as_a_constant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_check, "compare", lambda *_: "rows differ")

    def choose(x: Tensor) -> Tensor:
        return x + 1 if make.made_by_op(CUDA) else x - 1

    compiled = torch.compile(choose, backend="eager", fullgraph=True)
    torch._dynamo.reset()
    with pytest.warns(RuntimeWarning, match="rows differ"):
        assert compiled(torch.zeros(())) == -1
    torch._dynamo.reset()


def test_a_cpu_has_nothing_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> bool:
        raise AssertionError

    monkeypatch.setattr(device_check, "trusts", fail)
    monkeypatch.setattr(self_check, "trusts", fail)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rnn = varlen_rnn.VarLenLSTM(3, 4)
        rnn(torch.randn(3, 2, 3), lengths=torch.tensor([3, 1]))
