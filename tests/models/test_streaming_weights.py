"""Streams and direct calls read memory by address: what does not fit is refused."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import CELLS, HAS_EXTENSION, OURS, assert_bitwise
from torch import Tensor, nn

from varlen_rnn import StreamingRNN, VarLenLSTM, freeze

compiled = pytest.mark.skipif(not HAS_EXTENSION, reason="the fallback reads no addresses")


def layer(cell: str = "lstm") -> Any:
    torch.manual_seed(0)
    return OURS[cell](4, 8, 2)


WRONG: dict[str, Callable[[Any], None]] = {
    "short weight_hh": lambda rnn: setattr(rnn, "weight_hh_l1", nn.Parameter(torch.zeros(4, 8))),
    "narrow weight_ih": lambda rnn: setattr(rnn, "weight_ih_l0", nn.Parameter(torch.zeros(32, 2))),
    "short bias": lambda rnn: setattr(rnn, "bias_ih_l1", nn.Parameter(torch.zeros(4))),
    "another dtype": lambda rnn: setattr(
        rnn, "weight_hh_l1", nn.Parameter(rnn.weight_hh_l1.double())
    ),
    "another device": lambda rnn: setattr(
        rnn, "weight_hh_l0", nn.Parameter(rnn.weight_hh_l0.to("meta"))
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_weights_that_do_not_fit_cannot_be_frozen(wrong: str) -> None:
    rnn, other = layer(), layer()
    stream = StreamingRNN(other, 2)
    before = stream(torch.ones(2, 4)), stream.state()
    for model in (rnn, other):
        WRONG[wrong](model)
    untouched = copy.deepcopy(rnn.state_dict())
    with pytest.raises(ValueError, match=r"^freeze: weight|^freeze: bias"):
        freeze(rnn, inplace=True)
    assert type(rnn) is VarLenLSTM
    assert list(rnn.state_dict()) == list(untouched)
    if HAS_EXTENSION:
        with pytest.raises(ValueError, match=r"^freeze: "):
            StreamingRNN(rnn, 2)
        with pytest.raises(ValueError, match=r"^freeze: "):
            stream.refresh()
        for state, kept in zip(stream.state(), before[1], strict=True):
            assert_bitwise(state, kept)
        stream(torch.ones(2, 4))


@compiled
@pytest.mark.parametrize("name", ["weight_hh_l1", "bias_ih_l0", "weight_ih_l0"])
@pytest.mark.parametrize("weights", [None, torch.bfloat16, torch.int8])
def test_buffers_that_were_replaced_are_refused(name: str, weights: torch.dtype | None) -> None:
    frozen = freeze(layer(), weights)
    setattr(frozen, name, torch.zeros(1, dtype=getattr(frozen, name).dtype))
    with pytest.raises((ValueError, IndexError, RuntimeError)):
        StreamingRNN(frozen, 2)


def test_a_refresh_that_fails_changes_nothing() -> None:
    rnn = layer()
    stream = StreamingRNN(rnn, 2)
    stream(torch.ones(2, 4))
    before = stream.state()
    stream.rnn = OURS["lstm"](4, 8, 3)
    with pytest.raises(ValueError, match="StreamingRNN: rnn must have the mode, layers, H and P"):
        stream.refresh()
    stream.rnn = rnn
    for state, kept in zip(stream.state(), before, strict=True):
        assert_bitwise(state, kept)
    stream.refresh()


@compiled
@pytest.mark.parametrize("what", ["x", "rows", "out", "state"])
def test_tensors_without_memory_are_refused(what: str) -> None:
    stream = StreamingRNN(OURS["gru"](4, 8), 2)
    x, none = torch.ones(2, 4), torch._efficientzerotensor
    stream(x)
    before = stream.state()
    calls: dict[str, Callable[[], object]] = {
        "x": lambda: stream(none(2, 4)),
        "rows": lambda: stream.reset(none(2, dtype=torch.int64)),
        "out": lambda: stream(x, out=none(2, 8)),
        "state": lambda: stream.load_state(none(1, 2, 8)),
    }
    with pytest.raises((TypeError, ValueError), match="memory"):
        calls[what]()
    assert_bitwise(stream.state(), before)


@pytest.mark.parametrize("cell", CELLS)
def test_lazily_negated_tensors_have_their_values(cell: str) -> None:
    rnn = OURS[cell](4, 8).requires_grad_(False)
    x = torch.randn(1, 1, 4)
    states = [torch.randn(1, 1, 8) for _ in range(2 if cell == "lstm" else 1)]
    hx: Callable[[list[Tensor]], Any] = lambda s: tuple(s) if cell == "lstm" else s[0]  # noqa: E731
    expected, _ = rnn(-x, hx([-s for s in states]))
    negated = hx([torch._neg_view(s) for s in states])
    assert_bitwise(rnn(torch._neg_view(x), negated)[0], expected)
    stream, out = StreamingRNN(rnn, 1), torch._neg_view(torch.zeros(1, 8))
    stream.load_state(negated)
    stream(torch._neg_view(x[0]), out=out)
    assert_bitwise(out.resolve_neg(), expected[0])


@compiled
def test_weights_may_be_replaced_by_another_thread() -> None:
    """By equal ones: results stay, and no memory is read that was given back."""
    rnn = OURS["lstm"](16, 32, 3).requires_grad_(False)
    weights = {name: weight.clone() for name, weight in rnn.named_parameters()}
    x = torch.randn(1, 1, 16)
    expected = rnn(x)[0]
    ended = threading.Event()

    def replace() -> None:
        while not ended.is_set():
            for name, weight in weights.items():
                setattr(rnn, name, nn.Parameter(weight.clone(), requires_grad=False))

    thread = threading.Thread(target=replace)
    thread.start()
    try:
        wrong = sum(not torch.equal(rnn(x)[0], expected) for _ in range(4000))
    finally:
        ended.set()
        thread.join()
    assert wrong == 0
