"""Every error: its type, and a message that names operation, argument, expected and got."""

from __future__ import annotations

import pickle
import re
from typing import Any

import numpy as np
import pytest
import torch
from helpers import CELLS, OURS, TORCH, as_hx
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import varlen_rnn
from varlen_rnn import convert

FEATURES, H, B, T = 3, 5, 4, 100
X = torch.zeros(B, T, FEATURES)
PACKED = pack_padded_sequence(X, [T, 7, 2, 1], batch_first=True)
pytestmark = pytest.mark.usefixtures("nothing_is_computed")
both_cells = pytest.mark.parametrize("cell", CELLS)


def make(cell: str, **options: Any) -> nn.RNNBase:
    return OURS[cell](FEATURES, H, **({"batch_first": True} | options))


def check(
    cell: str,
    expected: type[BaseException],
    message: str,
    *args: Any,
    rnn: Any = None,
    **kwargs: Any,
) -> BaseException:
    """Calls the module; ``message`` is all that follows its name."""
    name = type(rnn or make(cell)).__name__
    with pytest.raises(expected, match=f"^{re.escape(f'{name}: {message}')}$") as caught:
        (rnn or make(cell))(*args, **kwargs)
    return caught.value


BAD_LENGTHS = [
    ([5, 0, 9, 117], ValueError, "must be in [0, T] = [0, 100], got 117 at index 3"),
    ([5, 101, 117, 1], ValueError, "must be in [0, T] = [0, 100], got 101 at index 1"),
    ([5, 0, -1, 7], ValueError, "must be in [0, T] = [0, 100], got -1 at index 2"),
    ([5, 0, 9], ValueError, "must be [B] = [4], got [3]"),
    ([], ValueError, "must be [B] = [4], got [0]"),
    (7, ValueError, "must be [B] = [4], got []"),
    ([[5, 0, 9, 1]], ValueError, "must be [B] = [4], got [1, 4]"),
    (torch.ones(4, 1, dtype=torch.int64), ValueError, "must be [B] = [4], got [4, 1]"),
    ([1.0, 2.0, 3.0, 4.0], TypeError, "must be integers, got float64"),
    (torch.ones(4), TypeError, "must be integers, got torch.float32"),
    (torch.ones(4, dtype=torch.float64), TypeError, "must be integers, got torch.float64"),
    (torch.empty(0), TypeError, "must be integers, got torch.float32"),
    (torch.ones(4, dtype=torch.bool), TypeError, "must be integers, got torch.bool"),
    ([True, True, False, True], TypeError, "must be integers, got bool"),
    (torch.ones(4, dtype=torch.complex64), TypeError, "must be integers, got torch.complex64"),
    (np.ones(4), TypeError, "must be integers, got float64"),
]


@both_cells
@pytest.mark.parametrize(("lengths", "expected", "message"), BAD_LENGTHS, ids=lambda v: str(v)[:40])
def test_lengths(cell: str, lengths: Any, expected: type[Exception], message: str) -> None:
    check(cell, expected, f"lengths {message}", X, lengths=lengths)


@both_cells
@pytest.mark.parametrize(
    "lengths",
    ["abcd", ["a"] * 4, [None] * 4, object(), {1: 2}],
    ids=["text", "texts", "nones", "object", "dict"],
)
def test_lengths_that_are_no_numbers_at_all(cell: str, lengths: Any) -> None:
    name = type(make(cell)).__name__
    with pytest.raises(TypeError, match=f"^{name}: lengths must be .*, got "):
        make(cell)(X, lengths=lengths)


@both_cells
@pytest.mark.parametrize("lengths", [[[1, 2], [3]], [2**70, 1, 1, 1]], ids=["ragged", "huge"])
def test_lengths_of_no_tensors_shape_or_range(cell: str, lengths: Any) -> None:
    name = type(make(cell)).__name__
    with pytest.raises(ValueError, match=f"^{name}: lengths must be .*, got "):
        make(cell)(X, lengths=lengths)


@both_cells
def test_lengths_where_the_form_has_its_own(cell: str) -> None:
    for lengths in ([T, 7, 2, 1], torch.tensor([T, 7, 2, 1]), []):
        with pytest.raises(ValueError, match=r"^VarLen\w+: lengths must be None with a PackedSeq"):
            make(cell)(PACKED, lengths=lengths)


@both_cells
def test_lengths_of_a_single_sequence(cell: str) -> None:
    check(
        cell,
        ValueError,
        "lengths need a batch [B, T, I], got one sequence [T, I]; "
        "a flat batch [N, I] takes cu_seqlens",
        X[0],
        lengths=[3],
    )
    rnn = make(cell, batch_first=False)
    message = (
        "lengths need a batch [T, B, I], got one sequence [T, I]; "
        "a flat batch [N, I] takes cu_seqlens"
    )
    check(cell, ValueError, message, X[0], lengths=[3], rnn=rnn)


@both_cells
@pytest.mark.parametrize("batch_first", [True, False], ids=["BTI", "TBI"])
@pytest.mark.parametrize(
    "shape", [(B, T, FEATURES + 1), (B, T, 1), (T, 4), (3,), (), (1, B, T, FEATURES)]
)
def test_input_of_a_wrong_shape(cell: str, batch_first: bool, shape: tuple[int, ...]) -> None:
    form = "[B, T, I]" if batch_first else "[T, B, I]"
    message = f"input must be [T, I] or {form} with I = 3, got {list(shape)}"
    error = check(
        cell, ValueError, message, torch.zeros(shape), rnn=make(cell, batch_first=batch_first)
    )
    assert isinstance(error, RuntimeError)


@both_cells
def test_packed_input_of_a_wrong_shape(cell: str) -> None:
    for data in (torch.zeros(110, 4), torch.zeros(110), torch.zeros(110, 1, 3)):
        packed = PackedSequence(data, PACKED.batch_sizes)
        message = f"input must be [N, I] with I = 3, got {list(data.shape)}"
        assert isinstance(check(cell, ValueError, message, packed), RuntimeError)


@both_cells
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64, torch.bool])
def test_input_of_a_wrong_dtype(cell: str, dtype: torch.dtype) -> None:
    message = f"input must have the weights' dtype torch.float32, got {dtype}"
    assert isinstance(check(cell, TypeError, message, X.to(dtype)), ValueError)
    packed = PackedSequence(PACKED.data.to(dtype), PACKED.batch_sizes)
    check(cell, TypeError, message, packed)


@both_cells
def test_input_on_another_device(cell: str) -> None:
    message = "input must be on the weights' device cpu, got meta"
    check(cell, ValueError, message, X.to("meta"))


@both_cells
@pytest.mark.parametrize(
    "input", [None, [[1.0]], np.zeros((B, T, FEATURES), np.float32), "abc"], ids=type
)
def test_input_that_is_no_tensor(cell: str, input: Any) -> None:
    got = type(input).__name__
    check(cell, TypeError, f"input must be a Tensor or a PackedSequence, got {got}", input)


def states(cell: str, *shape: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.zeros(shape, dtype=dtype) for _ in range(2 if cell == "lstm" else 1)]


@both_cells
@pytest.mark.parametrize(
    "shape", [(1, B, H), (2, B + 1, H), (2, B, H + 1), (B, 2, H), (2, H), (H,)]
)
@pytest.mark.parametrize("input", [X, PACKED], ids=["padded", "packed"])
def test_states_of_a_wrong_shape(cell: str, shape: tuple[int, ...], input: Any) -> None:
    hx = as_hx(states(cell, *shape))
    rnn = make(cell, num_layers=2)
    message = f"hx (h_0) must be [L * D, B, H] = [2, 4, 5], got {list(shape)}"
    assert isinstance(check(cell, ValueError, message, input, hx, rnn=rnn), RuntimeError)


@both_cells
def test_states_of_a_single_sequence_with_a_batch_dimension(cell: str) -> None:
    message = "hx (h_0) must be [L * D, H] = [1, 5], got [1, 1, 5]"
    check(cell, ValueError, message, X[0], as_hx(states(cell, 1, 1, H)))


def test_each_state_of_an_lstm_is_named() -> None:
    h_0, c_0 = torch.zeros(1, B, 2), torch.zeros(1, B, H)
    rnn = make("lstm", proj_size=2)
    message = "hx (h_0) must be [L * D, B, P] = [1, 4, 2], got [1, 4, 5]"
    check("lstm", ValueError, message, X, (c_0, c_0), rnn=rnn)
    message = "hx (c_0) must be [L * D, B, H] = [1, 4, 5], got [1, 4, 2]"
    check("lstm", ValueError, message, X, (h_0, h_0), rnn=rnn)


@both_cells
def test_states_of_a_wrong_dtype_or_device(cell: str) -> None:
    hx = as_hx(states(cell, 1, B, H, dtype=torch.float64))
    message = "hx (h_0) must have the input's dtype torch.float32, got torch.float64"
    check(cell, TypeError, message, X, hx)
    hx = as_hx([s.to("meta") for s in states(cell, 1, B, H)])
    check(cell, ValueError, "hx (h_0) must be on the input's device cpu, got meta", X, hx)


def test_states_that_are_no_pair_or_no_tensors() -> None:
    state = torch.zeros(1, B, H)
    for hx, got in ((state, "Tensor"), ((state,), "1 of them"), ([state] * 3, "3 of them")):
        check("lstm", TypeError, f"hx must be a tuple (h_0, c_0), got {got}", X, hx)
    check("lstm", TypeError, "hx (c_0) must be a Tensor, got int", X, (state, 1))
    check("lstm", TypeError, "hx (c_0) must be a Tensor, got NoneType", X, (state, None))
    check("gru", TypeError, "hx (h_0) must be a Tensor, got tuple", X, (state, state))


@both_cells
def test_keywords_are_keywords_and_unknown_ones_are_refused(cell: str) -> None:
    with pytest.raises(TypeError, match="positional"):
        make(cell)(X, None, [1, 2, 3, 4])
    with pytest.raises(TypeError, match="length"):
        make(cell)(X, length=[1, 2, 3, 4])


@both_cells
@pytest.mark.parametrize(
    "args",
    [
        (torch.zeros(B, T, FEATURES + 1),),
        (torch.zeros(FEATURES),),
        (X.double(),),
        (X, "one row too many"),
        (X[0], "one row too many"),
    ],
    ids=["features", "dimensions", "dtype", "states", "states of one sequence"],
)
def test_errors_are_also_of_the_type_that_torch_raises(cell: str, args: tuple[Any, ...]) -> None:
    args = tuple(as_hx(states(cell, 1, B + 1, H)) if isinstance(a, str) else a for a in args)
    with pytest.raises(Exception, match=r"\w") as theirs:
        TORCH[cell](FEATURES, H, batch_first=True)(*args)
    with pytest.raises(type(theirs.value), match=r"^VarLen"):
        make(cell)(*args)


LENGTHS_BY_POSITION = [
    torch.tensor([5, 2, 1, 7]),
    torch.tensor([5, 2, 1, 7], dtype=torch.int32),
    np.array([5, 2, 1, 7]),
    [5, 2, 1, 7],
    (5, 2, 1, 7),
    [5, 2],  # as many as an LSTM has states
    7,
]


@both_cells
@pytest.mark.parametrize("lengths", LENGTHS_BY_POSITION, ids=lambda v: str(v)[:20])
def test_lengths_by_position(cell: str, lengths: Any) -> None:
    name = type(make(cell)).__name__
    with pytest.raises((TypeError, ValueError), match=rf"^{name}: hx .*must be .*, got ") as error:
        make(cell)(X, lengths)
    assert str(error.value).endswith("; lengths is a keyword: rnn(x, lengths=lengths)")


def test_lengths_and_masks_by_position_in_full() -> None:
    lengths, hint = torch.tensor([5, 2, 1, 7]), "; lengths is a keyword: rnn(x, lengths=lengths)"
    got = f"hx must be a tuple (h_0, c_0), got Tensor{hint}"
    check("lstm", TypeError, got, X, lengths)
    got = f"hx (h_0) must be [L * D, B, H] = [1, 4, 5], got [4]{hint}"
    check("gru", ValueError, got, X, lengths)
    hint = "; mask and resets are keywords: rnn(x, mask=mask)"
    for mask in (torch.ones(B, T, dtype=torch.bool), np.ones((B, T), bool)):
        got = f"hx must be a tuple (h_0, c_0), got {type(mask).__name__}{hint}"
        check("lstm", TypeError, got, X, mask)


@both_cells
@pytest.mark.parametrize(
    "batch_first", [False, True], ids=["read as time first", "read as batch first"]
)
def test_a_batch_in_the_other_order(cell: str, batch_first: bool) -> None:
    """What came with it fits its other dimension."""
    rnn, x = make(cell, batch_first=batch_first), torch.zeros(7, 4, FEATURES)
    num_rows, num_steps = (7, 4) if batch_first else (4, 7)
    form = "[B, T, I] with T = 4" if batch_first else "[T, B, I] with T = 7"
    hint = f"; input was read as {form} (batch_first={not batch_first}?)"
    for lengths in ([1] * num_steps, torch.ones(num_steps, dtype=torch.int64)):
        got = f"lengths must be [B] = [{num_rows}], got [{num_steps}]{hint}"
        check(cell, ValueError, got, x, rnn=rnn, lengths=lengths)
    hx = as_hx(states(cell, 1, num_steps, H))
    got = f"hx (h_0) must be [L * D, B, H] = [1, {num_rows}, 5], got [1, {num_steps}, 5]{hint}"
    check(cell, ValueError, got, x, hx, rnn=rnn)


@both_cells
def test_other_wrong_sizes_have_no_hint(cell: str) -> None:
    """A batch of other rows, and one whose rows are as many as its steps."""
    rnn = make(cell, batch_first=False)
    got = "lengths must be [B] = [4], got [5]"
    check(cell, ValueError, got, torch.zeros(7, 4, FEATURES), rnn=rnn, lengths=[1] * 5)
    square = torch.zeros(4, 4, FEATURES)
    got = "hx (h_0) must be [L * D, B, H] = [1, 4, 5], got [1, 4, 6]"
    check(cell, ValueError, got, square, as_hx(states(cell, 1, 4, 6)), rnn=rnn)
    packed = pack_padded_sequence(torch.zeros(2, 3, FEATURES), [2, 2, 1])
    got = "hx (h_0) must be [L * D, B, H] = [1, 3, 5], got [1, 2, 5]"
    check(cell, ValueError, got, packed, as_hx(states(cell, 1, 2, H)), rnn=rnn)


@both_cells
def test_values_that_are_nowhere(cell: str) -> None:
    """A meta tensor has none, for tokens that have."""
    expected = "must be on a device with values, as the input's cpu is, got meta"
    lengths = torch.tensor([5, 2, 1, 7], device="meta")
    check(cell, ValueError, f"lengths {expected}", X, lengths=lengths)
    flags = torch.ones(B, T, dtype=torch.bool, device="meta")
    check(cell, ValueError, f"mask {expected}", X, mask=flags)
    check(cell, ValueError, f"resets {expected}", X, resets=flags, lengths=[1, 1, 1, 1])
    bounds = torch.tensor([0, T], device="meta")
    check(cell, ValueError, f"cu_seqlens {expected}", X[0], cu_seqlens=bounds)
    flags = torch.ones(len(PACKED.data), dtype=torch.bool, device="meta")
    check(cell, ValueError, f"resets {expected}", PACKED, resets=flags)


@pytest.mark.parametrize(
    ("error", "bases"),
    [
        (varlen_rnn.InputShapeError, (ValueError, RuntimeError)),
        (varlen_rnn.InputTypeError, (TypeError, ValueError)),
        (varlen_rnn.InputIndexError, (IndexError, ValueError)),
    ],
)
def test_error_classes_are_public(error: type[Exception], bases: tuple[type, ...]) -> None:
    """By the name that a traceback shows, and in another process, too."""
    assert error.__bases__ == bases
    assert f"{error.__module__}.{error.__qualname__}" == f"varlen_rnn.{error.__name__}"
    assert error.__name__ in varlen_rnn.__all__
    again = pickle.loads(pickle.dumps(error("rnn: x must be 1, got 2")))
    assert type(again) is error
    assert str(again) == "rnn: x must be 1, got 2"


def test_convert_of_no_module() -> None:
    with pytest.raises(TypeError, match=r"^convert: model must be an nn\.Module, got list$"):
        convert([nn.LSTM(3, 5)])
