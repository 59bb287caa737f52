"""Which calls may keep what is derived from layouts: those on CUDA that nothing records."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import varlen_rnn
from varlen_rnn.runtime import extension

ON_CUDA, ON_CPU = (SimpleNamespace(is_cuda=is_cuda) for is_cuda in (True, False))
of_thread = threading.local()


@pytest.fixture(autouse=True)
def _kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which nothing is there but the switch, which is of each thread."""

    def keep_plans(keeps: bool) -> None:
        of_thread.keeps = keeps

    kernels = SimpleNamespace(keep_plans=keep_plans)
    monkeypatch.setattr(varlen_rnn, "_C_cuda", kernels, raising=False)
    of_thread.keeps = False


def keeps(x: Any) -> bool:
    """Whether such a call may."""
    found: list[bool] = []
    assert extension.call(lambda value: found.append(of_thread.keeps) or value, x, (3,)) == 3
    assert not of_thread.keeps  # behind it
    return found[0]


def test_a_call_on_cuda_may_and_none_after_it() -> None:
    assert keeps(ON_CUDA)
    assert not keeps(ON_CPU)


def test_nor_after_one_that_fails() -> None:
    def fail() -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        extension.call(fail, ON_CUDA, ())
    assert not of_thread.keeps


def test_what_is_recorded_may_not(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeTensorMode():
        assert not keeps(ON_CUDA)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not keeps(ON_CUDA)
