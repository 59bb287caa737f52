"""Wrong arguments of streams: each says what was expected and got, and changes nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers import CELLS, HAS_EXTENSION, OURS, TORCH, as_hx, assert_bitwise
from streaming_cases import (
    ROWS,
    SIZE,
    assert_equal_states,
    random_states,
    states_in,
    with_states,
)
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils.rnn import pack_sequence

from varlen_rnn import StreamingRNN, quantize_dynamic

HIDDEN = 17
X = torch.randn(ROWS, SIZE)
STEPS = torch.randn(ROWS, 3, SIZE)

Call = Callable[[StreamingRNN], object]
Case = tuple[Call, type[Exception], str, str]


def check(stream: StreamingRNN, call: Call, error: type[Exception], what: str, got: str) -> None:
    """The message has the form that all have, and states and the next call are as before."""
    before = states_in(stream)
    with pytest.raises(error) as caught:
        call(stream)
    message = rf"StreamingRNN: {what} must .*, got {got}"
    assert re.fullmatch(message, str(caught.value)), str(caught.value)
    for state, expected in zip(states_in(stream), before, strict=True):
        assert_bitwise(state, expected)


def parametrize(cases: dict[str, Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        ("call", "error", "what", "got"), cases.values(), ids=cases.keys()
    )


# x, to all streams or two of them.
X_CASES: dict[str, Case] = {
    "a list": (lambda s: s(X.tolist()), TypeError, "x", "list"),
    "None": (lambda s: s(None), TypeError, "x", "NoneType"),
    "an array": (lambda s: s(X.numpy()), TypeError, "x", "ndarray"),
    "packed": (lambda s: s(pack_sequence(list(STEPS))), TypeError, "x", "PackedSequence"),
    "float64": (lambda s: s(X.double()), TypeError, "x", r"torch\.float64"),
    "float64, rows": (lambda s: s(X[:2].double(), [1, 0]), TypeError, "x", r"torch\.float64"),
    "bfloat16": (lambda s: s(STEPS.bfloat16()), TypeError, "x", r"torch\.bfloat16"),
    "integers": (lambda s: s(X.long()), TypeError, "x", r"torch\.int64"),
    "bool": (lambda s: s(X > 0), TypeError, "x", r"torch\.bool"),
    "meta": (lambda s: s(X.to("meta")), ValueError, "x", "meta"),
    "meta, float64": (lambda s: s(X.to("meta").double()), (TypeError, ValueError), "x", ".*"),
    "sparse": (lambda s: s(X.to_sparse()), TypeError, "x", r".*torch\.sparse_coo"),
    "jagged": (
        lambda s: s(torch.nested.nested_tensor(list(STEPS), layout=torch.jagged)),
        TypeError,
        "x",
        r".*torch\.jagged",
    ),
    "no dimension": (lambda s: s(torch.tensor(1.0)), ValueError, "x", r"\[\]"),
    "one dimension": (lambda s: s(X[0]), ValueError, "x", r"\[5\]"),
    "four dimensions": (lambda s: s(STEPS[None]), ValueError, "x", r"\[1, 4, 3, 5\]"),
    "too few": (lambda s: s(X[:3]), ValueError, "x", r"\[3, 5\]"),
    "too many": (lambda s: s(torch.cat([X, X])), ValueError, "x", r"\[8, 5\]"),
    "too few, steps": (lambda s: s(STEPS[:3]), ValueError, "x", r"\[3, 3, 5\]"),
    "time first": (lambda s: s(STEPS.transpose(0, 1)), ValueError, "x", r"\[3, 4, 5\]"),
    "none": (lambda s: s(X[:0]), ValueError, "x", r"\[0, 5\]"),
    "all for two": (lambda s: s(X, [0, 1]), ValueError, "x", r"\[4, 5\]"),
    "two for all": (lambda s: s(X[:2], range(4)), ValueError, "x", r"\[2, 5\]"),
    "one for none": (lambda s: s(X[:1], []), ValueError, "x", r"\[1, 5\]"),
    "narrow": (lambda s: s(X[:, :4]), ValueError, "x", r"\[4, 4\]"),
    "wide": (lambda s: s(torch.randn(ROWS, 6)), ValueError, "x", r"\[4, 6\]"),
    "wide, steps": (lambda s: s(torch.randn(ROWS, 3, 6)), ValueError, "x", r"\[4, 3, 6\]"),
    "no features": (lambda s: s(X[:, :0]), ValueError, "x", r"\[4, 0\]"),
    "no steps, wide": (lambda s: s(torch.randn(ROWS, 0, 6)), ValueError, "x", r"\[4, 0, 6\]"),
}


@parametrize(X_CASES)
@pytest.mark.parametrize("cell", CELLS)
def test_x(cell: str, call: Call, error: type[Exception], what: str, got: str) -> None:
    stream, twin = with_states(cell), with_states(cell)
    check(stream, call, error, what, got)
    assert_bitwise(stream(X), twin(X))
    assert_equal_states(stream, twin)


# Rows, and how many they are.
ROWS_CASES: dict[str, tuple[Any, int, type[Exception], str]] = {
    "too large": ([4], 1, ValueError, "4 at index 0"),
    "the second too large": ([0, 7], 2, ValueError, "7 at index 1"),
    "the last negative": ([0, 3, -1], 3, ValueError, "-1 at index 2"),
    "negative tensor": (torch.tensor([-4, 0]), 2, ValueError, "-4 at index 0"),
    "2 ** 32": ([0, 2**32], 2, ValueError, "4294967296 at index 1"),
    "twice": ([1, 1], 2, ValueError, "1 .*at index 1"),
    "twice, later": (torch.tensor([2, 0, 3, 0]), 4, ValueError, "0 .*at index 3"),
    "more than there are": ([0, 1, 2, 3, 0], 5, ValueError, "(0 .*at index 4|5.*)"),
    "floats": ([0.0, 1.0], 2, TypeError, r".*float64"),
    "float tensor": (torch.tensor([0.0, 1.0]), 2, TypeError, r"torch\.float32"),
    "bools": ([True, False, True, False], 4, TypeError, ".*bool"),
    "a mask": (torch.tensor([True, False, True, False]), 4, TypeError, r"torch\.bool"),
    "complex": (torch.tensor([1j]), 1, TypeError, r"torch\.complex64"),
    "strings": (["0"], 1, TypeError, ".*"),
    "a string": ("01", 2, TypeError, ".*"),
    "None within": ([0, None], 2, TypeError, ".*"),
    "objects": (np.array([0, 1], dtype=object), 2, TypeError, ".*"),
    "of unequal lengths": ([[0], [1, 2]], 2, TypeError, ".*"),
    "a dict": ({0: 1}, 1, TypeError, ".*"),
    "too large for an int64": ([2**80], 1, (TypeError, ValueError), ".*"),
    "2-D": (torch.tensor([[0, 1]]), 1, ValueError, r"\[1, 2\]"),
    "a list of lists": ([[0], [1]], 2, ValueError, r"\[2, 1\]"),
    "an integer": (2, 1, (TypeError, ValueError), r"\[\]|int.*"),
    "0-D": (torch.tensor(2), 1, ValueError, r"\[\]"),
}
ROWS_CALLS: dict[str, Callable[[StreamingRNN, Any, int], object]] = {
    "step": lambda s, rows, count: s(torch.randn(count, SIZE), rows),
    "steps": lambda s, rows, count: s(torch.randn(count, 3, SIZE), rows),
    "no step": lambda s, rows, count: s(torch.randn(count, 0, SIZE), rows),
    "out": lambda s, rows, count: s(torch.randn(count, SIZE), rows, torch.ones(count, HIDDEN)),
    "reset": lambda s, rows, count: s.reset(rows),
    "state": lambda s, rows, count: s.state(rows),
    "load_state": lambda s, rows, count: s.load_state(as_hx(random_states(s, count)), rows),
}


@pytest.mark.parametrize("where", ROWS_CALLS)
@pytest.mark.parametrize("case", ROWS_CASES)
def test_rows(case: str, where: str) -> None:
    rows, count, error, got = ROWS_CASES[case]
    for cell in CELLS:
        stream, twin = with_states(cell), with_states(cell)
        check(stream, lambda s: ROWS_CALLS[where](s, rows, count), error, "rows", got)
        assert_bitwise(stream(X, range(ROWS)), twin(X, range(ROWS)))


def overlapping(count: int, steps: tuple[int, ...]) -> Tensor:
    return torch.ones(HIDDEN).expand(count, *steps, HIDDEN)


def made_in_inference_mode(apart: int = 1) -> Tensor:
    with torch.inference_mode():
        return torch.ones(ROWS, HIDDEN * apart)[:, ::apart]


OUT = torch.ones(ROWS, HIDDEN)
OUT_CASES: dict[str, Case] = {
    "a list": (lambda s: s(X, out=OUT.tolist()), TypeError, "out", "list"),
    "an array": (lambda s: s(X, out=OUT.numpy()), TypeError, "out", "ndarray"),
    "float64": (lambda s: s(X, out=OUT.double()), TypeError, "out", r"torch\.float64"),
    "integers": (lambda s: s(X, out=OUT.int()), TypeError, "out", r"torch\.int32"),
    "meta": (lambda s: s(X, out=OUT.to("meta")), ValueError, "out", "meta"),
    "sparse": (lambda s: s(X, out=OUT.to_sparse()), TypeError, "out", r".*torch\.sparse_coo"),
    "too few": (lambda s: s(X, out=OUT[:3]), ValueError, "out", r"\[3, 17\]"),
    "too few, rows": (lambda s: s(X, range(ROWS), OUT[:3]), ValueError, "out", r"\[3, 17\]"),
    "all for two": (lambda s: s(X[:2], [3, 1], OUT), ValueError, "out", r"\[4, 17\]"),
    "transposed": (lambda s: s(X, out=OUT.T), ValueError, "out", r"\[17, 4\]"),
    "wide": (lambda s: s(X, out=torch.ones(ROWS, 18)), ValueError, "out", r"\[4, 18\]"),
    "as x": (lambda s: s(X, out=X), ValueError, "out", r"\[4, 5\]"),
    "flat": (lambda s: s(X, out=OUT.flatten()), ValueError, "out", r"\[68\]"),
    "empty": (lambda s: s(X, out=torch.empty(0)), ValueError, "out", r"\[0\]"),
    "a step for steps": (lambda s: s(STEPS, out=OUT), ValueError, "out", r"\[4, 17\]"),
    "steps for a step": (
        lambda s: s(X, out=OUT.expand(3, ROWS, HIDDEN).transpose(0, 1)),
        ValueError,
        "out",
        r"\[4, 3, 17\]",
    ),
    "one step for a step": (lambda s: s(X, out=OUT[:, None]), ValueError, "out", r"\[4, 1, 17\]"),
    "requires a gradient": (
        lambda s: s(X, out=torch.ones(ROWS, HIDDEN, requires_grad=True)),
        ValueError,
        "out",
        "one that does",
    ),
    "for x that requires one": (
        lambda s: s(X.clone().requires_grad_(), out=OUT),
        ValueError,
        "out",
        "one",
    ),
    "of inference mode": (lambda s: s(X, out=made_in_inference_mode()), ValueError, "out", "one"),
    "of inference mode, apart": (
        lambda s: s(X, out=made_in_inference_mode(2)),
        ValueError,
        "out",
        "one",
    ),
    "overlaps itself": (lambda s: s(X, out=overlapping(ROWS, ())), ValueError, "out", ".*"),
    "overlaps itself, steps": (
        lambda s: s(STEPS, out=overlapping(ROWS, (3,))),
        ValueError,
        "out",
        ".*",
    ),
}


@parametrize(OUT_CASES)
@pytest.mark.parametrize("cell", CELLS)
def test_out(cell: str, call: Call, error: type[Exception], what: str, got: str) -> None:
    stream, twin = with_states(cell), with_states(cell)
    check(stream, call, error, what, got)
    assert (OUT == 1).all()
    assert_bitwise(stream(X), twin(X))
    assert_equal_states(stream, twin)


H, C = torch.randn(2, ROWS, HIDDEN), torch.randn(2, ROWS, HIDDEN)
LSTM_STATES: dict[str, Case] = {
    "a tensor": (lambda s: s.load_state(H), TypeError, "state", "Tensor"),
    "two layers' tensor": (lambda s: s.load_state(H[:, 0]), TypeError, "state", "Tensor"),
    "None": (lambda s: s.load_state(None), TypeError, "state", "NoneType"),
    "one": (lambda s: s.load_state((H,)), TypeError, "state", "tuple.*"),
    "three": (lambda s: s.load_state((H, C, C)), TypeError, "state", "tuple.*"),
    "no c": (lambda s: s.load_state((H, None)), TypeError, r"state \(c\)", "NoneType"),
    "h as a list": (lambda s: s.load_state((H.tolist(), C)), TypeError, r"state \(h\)", "list"),
    "h of a layer": (
        lambda s: s.load_state((H[:1], C)),
        ValueError,
        r"state \(h\)",
        r"\[1, 4, 17\]",
    ),
    "h without layers": (
        lambda s: s.load_state((H[0], C)),
        ValueError,
        r"state \(h\)",
        r"\[4, 17\]",
    ),
    "c of two": (
        lambda s: s.load_state((H, C[:, :2])),
        ValueError,
        r"state \(c\)",
        r"\[2, 2, 17\]",
    ),
    "all for two": (lambda s: s.load_state((H, C), [0, 1]), ValueError, r"state \(h\)", ".*"),
    "two for all": (
        lambda s: s.load_state((H[:, :2], C[:, :2])),
        ValueError,
        r"state \(h\)",
        r"\[2, 2, 17\]",
    ),
    "c narrow": (lambda s: s.load_state((H, C[..., :5])), ValueError, r"state \(c\)", ".*5\\]"),
    "h float64": (lambda s: s.load_state((H.double(), C)), TypeError, r"state \(h\)", ".*float64"),
    "c float64": (lambda s: s.load_state((H, C.double())), TypeError, r"state \(c\)", ".*float64"),
    "c integers": (lambda s: s.load_state((H, C.int())), TypeError, r"state \(c\)", ".*int32"),
    "c half": (lambda s: s.load_state((H, C.half())), TypeError, r"state \(c\)", ".*float16"),
    "h meta": (lambda s: s.load_state((H.to("meta"), C)), ValueError, r"state \(h\)", "meta"),
    "c meta": (lambda s: s.load_state((H, C.to("meta"))), ValueError, r"state \(c\)", "meta"),
}
GRU_STATES: dict[str, Case] = {
    "a pair": (lambda s: s.load_state((H, H)), TypeError, "state.*", "tuple"),
    "a tuple": (lambda s: s.load_state((H,)), TypeError, "state.*", "tuple"),
    "None": (lambda s: s.load_state(None), TypeError, "state.*", "NoneType"),
    "of a layer": (lambda s: s.load_state(H[:1]), ValueError, "state.*", r"\[1, 4, 17\]"),
    "two for all": (lambda s: s.load_state(H[:, :2]), ValueError, "state.*", r"\[2, 2, 17\]"),
    "float64": (lambda s: s.load_state(H.double()), TypeError, "state.*", ".*float64"),
    "meta": (lambda s: s.load_state(H.to("meta")), ValueError, "state.*", "meta"),
}


@parametrize(LSTM_STATES)
def test_states_of_an_lstm(call: Call, error: type[Exception], what: str, got: str) -> None:
    check(with_states("lstm"), call, error, what, got)


@parametrize(GRU_STATES)
def test_states_of_a_gru(call: Call, error: type[Exception], what: str, got: str) -> None:
    check(with_states("gru"), call, error, what, got)


def test_states_of_other_layers() -> None:
    wide, narrow = torch.randn(2, ROWS, HIDDEN), torch.randn(2, ROWS, 3)
    with_proj = with_states("lstm", proj_size=3)
    for state, what in (((wide, wide), "h"), ((narrow, narrow), "c")):
        check(
            with_proj,
            lambda s, state=state: s.load_state(state),
            ValueError,
            rf"state \({what}\)",
            ".*",
        )
    of_16_bits = with_states("lstm", dtype=torch.bfloat16)
    check(of_16_bits, lambda s: s.load_state((H, C)), TypeError, r"state \(h\)", ".*float32")
    c = C.half()
    check(
        of_16_bits,
        lambda s: s.load_state((H.bfloat16(), c)),
        TypeError,
        r"state \(c\)",
        ".*float16",
    )


# Layers and the number of rows.


class WithForward(nn.LSTM):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[0]


class OurWithForward(OURS["gru"]):
    def forward(self, x: Tensor, *_: object, **__: object) -> Tensor:
        return super().forward(x)[0]


def with_replaced_forward() -> nn.LSTM:
    rnn = nn.LSTM(SIZE, HIDDEN)
    rnn.forward = lambda x: x
    return rnn


RNN_CASES: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "a linear": (lambda: nn.Linear(SIZE, HIDDEN), TypeError, "Linear"),
    "torch's RNN": (lambda: nn.RNN(SIZE, HIDDEN), TypeError, "RNN"),
    "a cell": (lambda: nn.LSTMCell(SIZE, HIDDEN), TypeError, "LSTMCell"),
    "a model": (lambda: nn.Sequential(nn.GRU(SIZE, HIDDEN)), TypeError, "Sequential"),
    "a class": (lambda: nn.LSTM, TypeError, "type"),
    "None": (lambda: None, TypeError, "NoneType"),
    "a stream": (lambda: with_states(), TypeError, "StreamingRNN"),
    "with a forward": (lambda: WithForward(SIZE, HIDDEN), TypeError, ".*WithForward .*forward"),
    "ours with a forward": (lambda: OurWithForward(SIZE, HIDDEN), TypeError, ".*OurWith.*forward"),
    "a replaced forward": (with_replaced_forward, TypeError, ".*forward was replaced.*"),
}
for _name, _make in {"torch": TORCH, "ours": OURS}.items():
    for _cell in CELLS:
        RNN_CASES[f"{_name}, both directions, {_cell}"] = (
            lambda cls=_make[_cell]: cls(SIZE, HIDDEN, bidirectional=True),
            ValueError,
            "bidirectional=True",
        )
        RNN_CASES[f"{_name}, int8, both directions, {_cell}"] = (
            lambda cls=_make[_cell]: quantize_dynamic(cls(SIZE, HIDDEN, bidirectional=True)),
            ValueError,
            "bidirectional=True",
        )


@pytest.mark.parametrize("case", RNN_CASES)
def test_rnn(case: str) -> None:
    make, error, got = RNN_CASES[case]
    rnn = make()
    with pytest.raises(error, match=rf"^StreamingRNN: rnn must .*, got {got}$"):
        StreamingRNN(rnn, ROWS)


def test_the_error_of_two_directions_says_why() -> None:
    with pytest.raises(ValueError, match=r"one direction.* reverse .* end of a sequence"):
        StreamingRNN(nn.GRU(SIZE, HIDDEN, bidirectional=True), ROWS)


@pytest.mark.parametrize(
    ("num_rows", "error", "got"),
    [
        (0, ValueError, "0"),
        (-1, ValueError, "-1"),
        (True, TypeError, "bool"),
        (2.0, TypeError, "float"),
        ("2", TypeError, "str"),
        (None, TypeError, "NoneType"),
        (torch.tensor(2), TypeError, "Tensor"),
    ],
    ids=str,
)
def test_num_rows(num_rows: Any, error: type[Exception], got: str) -> None:
    with pytest.raises(error, match=rf"^StreamingRNN: num_rows must .*, got {got}$"):
        StreamingRNN(nn.LSTM(SIZE, HIDDEN), num_rows)


def test_errors_of_shapes_are_of_the_type_that_torch_raises_too() -> None:
    with pytest.raises(RuntimeError, match=r"^StreamingRNN: x must be "):
        with_states()(X[:3])


@pytest.mark.skipif(not HAS_EXTENSION, reason="through the module, weights are as they are")
def test_a_layer_that_cannot_be_frozen() -> None:
    """Neither when a stream is made nor in a refresh, which then changes nothing."""
    stream, twin = with_states(), with_states()
    prune.l1_unstructured(stream.rnn, "weight_hh_l0", 0.3)
    message = "weight_hh_l0 must be a parameter"
    with pytest.raises(ValueError, match=message):
        StreamingRNN(stream.rnn, ROWS)
    with pytest.raises(ValueError, match=message):
        stream.refresh()
    assert_equal_states(stream, twin)
    assert_bitwise(stream(X), twin(X))
