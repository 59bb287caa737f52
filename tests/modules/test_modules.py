"""The modules as their users call them: forms, options, lengths and states of every kind."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from helpers import CELLS, OURS, TORCH, as_hx, assert_bitwise, pair, random_hx, states_of
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

DOUBLE = {"dtype": torch.float64}
CLOSE = {"rtol": 0, "atol": 1e-12}
both_cells = pytest.mark.parametrize("cell", CELLS)


def assert_same_call(theirs: nn.RNNBase, ours: nn.RNNBase, *args: Any) -> None:
    """Same result from the same call, form and shapes included."""
    expected, expected_hx = theirs(*args)
    got, hx = ours(*args)
    assert type(got) is type(expected)
    if isinstance(expected, PackedSequence):
        for field in ("batch_sizes", "sorted_indices", "unsorted_indices"):
            a, b = getattr(got, field), getattr(expected, field)
            assert a is b is None or torch.equal(a, b), field
        got, expected = got.data, expected.data
    torch.testing.assert_close(got, expected, **CLOSE)
    assert type(hx) is type(expected_hx)
    torch.testing.assert_close(hx, expected_hx, **CLOSE)


@both_cells
@pytest.mark.parametrize("with_hx", [False, True], ids=["zeros", "hx"])
@pytest.mark.parametrize("batch_first", [False, True], ids=["TBI", "BTI"])
@pytest.mark.parametrize("form", ["one sequence", "batch", "batch of one", "sorted", "unsorted"])
def test_without_keywords_a_call_means_what_it_means_in_torch(
    cell: str, with_hx: bool, batch_first: bool, form: str
) -> None:
    options = {"bidirectional": True, "batch_first": batch_first, **DOUBLE}
    theirs, ours = pair(cell, 3, 5, 2, **options)
    lengths = [6, 4, 4, 1] if form == "sorted" else [4, 6, 1, 4]
    num_rows = 1 if form in ("one sequence", "batch of one") else 4
    shape = (num_rows, 6, 3) if batch_first else (6, num_rows, 3)
    input: Tensor | PackedSequence = torch.randn(shape, **DOUBLE)
    states = random_hx(ours, num_rows)
    if form == "one sequence":
        input, states = torch.randn(6, 3, **DOUBLE), [s.squeeze(1) for s in states]
    if form in ("sorted", "unsorted"):
        input = pack_padded_sequence(
            input, lengths, batch_first=batch_first, enforce_sorted=form == "sorted"
        )
    assert_same_call(theirs, ours, input, *([as_hx(states)] if with_hx else []))


@both_cells
def test_every_constructor_option_gives_the_module_of_torch(cell: str) -> None:
    for layers, bias, batch_first, dropout, bidirectional, proj_size, dtype in itertools.product(
        (1, 3), (True, False), (True, False), (0, 0.5), (True, False), (0, 2), (None, torch.float64)
    ):
        if (proj_size and cell == "gru") or (dropout and layers == 1):
            continue
        positional = (3, 5, layers, bias, batch_first, dropout, bidirectional)
        options = {"dtype": dtype} | ({"proj_size": proj_size} if proj_size else {})
        torch.manual_seed(0)
        theirs = TORCH[cell](*positional, **options)
        torch.manual_seed(0)
        ours = OURS[cell](*positional, **options)
        assert repr(ours) == repr(theirs).replace(type(theirs).__name__, type(ours).__name__)
        state, expected = ours.state_dict(), theirs.state_dict()
        assert list(state) == list(expected)
        for name in expected:
            assert_bitwise(state[name], expected[name], name)
        theirs.load_state_dict(state)
        ours.load_state_dict(expected)
        assert [[id(w) for w in ws] for ws in ours.all_weights] == [
            [id(getattr(ours, name)) for name in names] for names in theirs._all_weights
        ]


@both_cells
def test_it_is_an_rnn_base_but_not_a_torch_lstm_or_gru(cell: str) -> None:
    ours = OURS[cell](3, 5, device="cpu")
    assert isinstance(ours, nn.RNNBase)
    assert not isinstance(ours, (nn.LSTM, nn.GRU, nn.RNN))


def refusal(make: type[nn.Module], arguments: dict[str, Any]) -> tuple[type, str] | None:
    """The error of a constructor."""
    try:
        make(**arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        return type(error), str(error)
    return None


@both_cells
@pytest.mark.parametrize(
    "options",
    [
        {"hidden_size": 0},
        {"hidden_size": 2.5},
        {"input_size": 0},
        {"input_size": "3"},
        {"num_layers": 0},
        {"bias": 1},
        {"batch_first": None},
        {"dropout": 1.5},
        {"dropout": True},
        {"dropout": "0.1"},
        {"proj_size": 5},
        {"proj_size": -1},
        {"proj_size": 10},
    ],
    ids=str,
)
def test_the_constructor_refuses_what_torch_refuses(cell: str, options: dict[str, Any]) -> None:
    arguments = {"input_size": 3, "hidden_size": 5} | options
    theirs = refusal(TORCH[cell], arguments)
    # Before 2.13 torch took these, and so do we.
    taken_before = {"input_size": 0}, {"bias": 1}, {"batch_first": None}
    assert theirs is not None or options in taken_before
    assert refusal(OURS[cell], arguments) == theirs


@both_cells
def test_the_constructor_warns_of_dropout_without_effect_as_torch_does(cell: str) -> None:
    with pytest.warns(UserWarning, match="dropout option adds dropout after all but last"):
        rnn = OURS[cell](3, 5, dropout=0.5)
    x = torch.randn(4, 2, 3)
    assert_bitwise(rnn(x)[0], rnn(x)[0])


def outcome(call: Any, *arguments: Any) -> Any:
    """What it returns, or the error that it raises, to be compared."""
    try:
        return call(*arguments)
    except Exception as error:  # noqa: BLE001
        return type(error), str(error)


@both_cells
@pytest.mark.parametrize("name", ["get_expected_hidden_size", "get_expected_cell_size"])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_expected_sizes_of_states_are_those_of_torch(
    cell: str, name: str, batch_first: bool, packed: bool
) -> None:
    theirs, ours = pair(cell, 3, 5, 2, bidirectional=True, batch_first=batch_first)
    if not hasattr(theirs, name):
        assert not hasattr(ours, name)
        return
    batch_sizes = torch.tensor([4, 2, 1]) if packed else None
    x = torch.randn(7, 3) if packed else torch.randn(6, 4, 3)
    assert getattr(ours, name)(x, batch_sizes) == getattr(theirs, name)(x, batch_sizes)


@both_cells
@pytest.mark.parametrize("sizes", [(2, 4, 5), (2, 3, 5), (1, 4, 5), (2, 4, 4), (4, 5)], ids=str)
def test_checks_of_arguments_are_those_of_torch(cell: str, sizes: tuple[int, ...]) -> None:
    theirs, ours = pair(cell, 3, 5, 2)
    right, other = torch.randn(2, 4, 5), torch.randn(sizes)
    pairs = [(right, other), (other, right)] if cell == "lstm" else [other]
    for x in (torch.randn(6, 4, 3), torch.randn(6, 4, 2), torch.randn(4, 3)):
        for hx in pairs:
            expected = outcome(theirs.check_forward_args, x, hx, None)
            assert outcome(ours.check_forward_args, x, hx, None) == expected


@both_cells
def test_states_are_permuted_as_torch_does(cell: str) -> None:
    theirs, ours = pair(cell, 3, 5)
    h, order = torch.randn(1, 4, 5), torch.tensor([2, 0, 3, 1])
    hx = (h, h + 1) if cell == "lstm" else h
    for permutation in (order, None):
        got, expected = (rnn.permute_hidden(hx, permutation) for rnn in (ours, theirs))
        for a, b in zip(states_of(got), states_of(expected), strict=True):
            assert_bitwise(a, b)


LENGTHS = [3, 0, 5]
AS_LENGTHS = {
    "list": list,
    "tuple": tuple,
    "list of numpy integers": lambda n: [np.int64(v) for v in n],
    "list of 0-d tensors": lambda n: [torch.tensor(v) for v in n],
    **{
        f"numpy {d}": lambda n, d=d: np.array(n, dtype=d)
        for d in ("int32", "int64", "uint8", "uint64", "object")
    },
    **{
        str(d): lambda n, d=d: torch.tensor(n, dtype=d)
        for d in (
            torch.int8,
            torch.int16,
            torch.int32,
            torch.int64,
            torch.uint8,
            torch.uint16,
            torch.uint32,
            torch.uint64,
        )
    },
    "strided tensor": lambda n: torch.tensor(n).repeat_interleave(2)[::2],
}


@both_cells
@pytest.mark.parametrize("convert", AS_LENGTHS.values(), ids=AS_LENGTHS)
def test_lengths_come_as_any_kind_of_integers(cell: str, convert: Any) -> None:
    rnn = OURS[cell](3, 5, batch_first=True, bidirectional=True)
    x = torch.randn(3, 6, 3)
    lengths = convert(LENGTHS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out, hx = rnn(x, lengths=lengths)
    expected, expected_hx = rnn(x, lengths=torch.tensor(LENGTHS))
    assert_bitwise(out, expected)
    for got, truth in zip(states_of(hx), states_of(expected_hx), strict=True):
        assert_bitwise(got, truth)
    assert [int(v) for v in lengths] == LENGTHS


def noncontiguous(x: Tensor) -> dict[str, Tensor]:
    """Views with the same values and every kind of strides."""
    big = torch.full([2 + 2 * size for size in x.shape], 1e9, dtype=x.dtype)
    inner = big[tuple(slice(1, 1 + 2 * size, 2) for size in x.shape)]
    inner.copy_(x)
    return {
        "slice of a larger buffer": inner,
        "features first": x.movedim(-1, 0).contiguous().movedim(0, -1),
        "transposed": x.transpose(0, 1).contiguous().transpose(0, 1),
        "offset": torch.cat([x.new_full((1,), 1e9), x.flatten()])[1:].view(x.shape),
        "expanded": x[:, :1].expand(x.shape),
        "expanded features": x[..., :1].expand(x.shape),
    }


@both_cells
@pytest.mark.parametrize("kind", list(noncontiguous(torch.zeros(2, 2, 2))))
@pytest.mark.parametrize("with_lengths", [False, True], ids=["full", "lengths"])
def test_input_and_states_may_have_any_strides(cell: str, kind: str, with_lengths: bool) -> None:
    rnn = OURS[cell](3, 5, 2, batch_first=True, bidirectional=True, **DOUBLE)
    keywords = {"lengths": LENGTHS} if with_lengths else {}
    results = []
    for as_contiguous in (False, True):
        torch.manual_seed(1)
        bases = [torch.randn(3, 6, 3, **DOUBLE), *random_hx(rnn, 3)]
        leaves = [base.requires_grad_() for base in bases]
        views = [noncontiguous(leaf)[kind] if kind.startswith("exp") else leaf for leaf in leaves]
        if not kind.startswith("exp"):
            views = leaves = [noncontiguous(b.detach())[kind].requires_grad_() for b in bases]
        if as_contiguous:
            views = [view.contiguous() for view in views]
        out, hx = rnn(views[0], as_hx(views[1:]), **keywords)
        loss = (out * torch.arange(10)).sum() + sum(s.square().sum() for s in states_of(hx))
        results.append([out, *torch.autograd.grad(loss, [*leaves, *rnn.parameters()])])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, **CLOSE)


@both_cells
@pytest.mark.parametrize("with_hx", [False, True], ids=["zeros", "hx"])
@pytest.mark.parametrize(
    ("num_rows", "num_steps", "keywords"),
    [
        pytest.param(0, 4, {}, id="no rows"),
        pytest.param(0, 4, {"lengths": []}, id="no rows and lengths"),
        pytest.param(0, 4, {"lengths": torch.empty(0, dtype=torch.int32)}, id="no rows, tensor"),
        pytest.param(3, 0, {}, id="no steps"),
        pytest.param(3, 0, {"lengths": [0, 0, 0]}, id="no steps and lengths"),
        pytest.param(3, 4, {"lengths": [0, 0, 0]}, id="only empty rows"),
    ],
)
def test_without_a_token_outputs_are_zeros_and_states_stay(
    cell: str, with_hx: bool, num_rows: int, num_steps: int, keywords: dict[str, Any]
) -> None:
    rnn = OURS[cell](3, 5, 2, batch_first=True, bidirectional=True)
    x = torch.randn(num_rows, num_steps, 3, requires_grad=True)
    states = [s.requires_grad_() for s in random_hx(rnn, num_rows)]
    out, hx = rnn(x, as_hx(states) if with_hx else None, **keywords)
    assert out.shape == (num_rows, num_steps, 10)
    assert not out.any()
    for final, state in zip(states_of(hx), states, strict=True):
        assert torch.equal(final, state if with_hx else torch.zeros_like(state))
    loss = out.sum() + sum(s.sum() for s in states_of(hx))
    loss.backward()
    assert x.grad is None or not x.grad.any()
    assert all(p.grad is None or not p.grad.any() for p in rnn.parameters())
    if with_hx:
        assert all(torch.equal(s.grad, torch.ones_like(s)) for s in states)
