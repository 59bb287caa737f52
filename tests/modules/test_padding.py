"""Padding is never read: whatever it holds, no output and no gradient changes."""

from __future__ import annotations

import pytest
import torch
from helpers import (
    CELLS,
    OURS,
    assert_bitwise,
    largest,
    leaves_of,
    ours_in_form,
    pair,
    random_batch,
    random_hx,
    states_of,
    torch_packed,
    with_gradients,
)
from torch import Tensor, nn

LENGTHS = [5, 0, 8, 1, 8, 3]
NUM_STEPS = 10
JUNK = {"nan": float("nan"), "inf": float("inf"), "-inf": -float("inf"), "huge": 3e38, "zero": 0.0}
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}

padding_holds = pytest.mark.parametrize("junk", JUNK.values(), ids=JUNK)
batch_first_or_not = pytest.mark.parametrize("batch_first", [True, False], ids=["BTI", "TBI"])


def valid_tokens() -> Tensor:
    """``[B, T, 1]``, True at tokens."""
    return (torch.arange(NUM_STEPS) < torch.tensor(LENGTHS).unsqueeze(1)).unsqueeze(2)


def make(cell: str, *, batch_first: bool = True, dtype: torch.dtype = torch.float32) -> nn.RNNBase:
    torch.manual_seed(0)
    options = {"proj_size": 4} if cell == "lstm" else {}
    return OURS[cell](3, 9, 2, bidirectional=True, batch_first=batch_first, dtype=dtype, **options)


def test_fresh_memory_is_filled_with_nan() -> None:
    assert torch.empty(3).isnan().all()
    assert torch.randn(2).new_empty(3, dtype=torch.float64).isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
@batch_first_or_not
@padding_holds
@pytest.mark.parametrize("cell", CELLS)
def test_what_padding_holds_changes_no_output_and_no_gradient(
    cell: str, junk: float, batch_first: bool, dtype: str, one_isa: str
) -> None:
    rnn = make(cell, batch_first=batch_first, dtype=DTYPES[dtype])
    results = []
    for fill in (1.0, junk):
        x = random_batch(rnn, len(LENGTHS), NUM_STEPS).masked_fill(~valid_tokens(), fill)
        states = random_hx(rnn, len(LENGTHS))
        leaves = leaves_of(rnn, x, states)
        outputs = ours_in_form(rnn, x, states, LENGTHS, "lengths")
        results.append(with_gradients(outputs, leaves))
    for name, expected in results[0].items():
        assert expected.isfinite().all(), name
        assert_bitwise(results[1][name], expected, name)


@batch_first_or_not
@padding_holds
@pytest.mark.parametrize("cell", CELLS)
def test_output_and_input_gradient_are_exactly_zero_at_padding(
    cell: str, junk: float, batch_first: bool, one_isa: str, threads: int
) -> None:
    rnn = make(cell, batch_first=batch_first)
    x = random_batch(rnn, len(LENGTHS), NUM_STEPS).masked_fill(~valid_tokens(), junk)
    leaves = leaves_of(rnn, x, [])
    results = with_gradients(ours_in_form(rnn, x, [], LENGTHS, "lengths"), leaves)
    padding = ~valid_tokens().squeeze(2)
    for name in ("out", "d_x"):
        assert (results[name][padding] == 0).all(), name
        assert (results[name][~padding] != 0).any(dim=-1).all(), f"{name} is zero at tokens"


@padding_holds
@pytest.mark.parametrize("cell", CELLS)
def test_gradients_that_arrive_at_padding_are_ignored(cell: str, junk: float, isa: str) -> None:
    rnn = make(cell)
    x = random_batch(rnn, len(LENGTHS), NUM_STEPS).requires_grad_()
    leaves = [x, *rnn.parameters()]
    clean = torch.randn(len(LENGTHS), NUM_STEPS, 8 if cell == "lstm" else 18)
    gradients = []
    for fill in (0.0, junk):
        out, _ = rnn(x, lengths=LENGTHS)
        d_out = clean.masked_fill(~valid_tokens(), fill)
        gradients.append(torch.autograd.grad(out, leaves, d_out))
    for got, expected in zip(*gradients, strict=True):
        assert expected.isfinite().all()
        assert_bitwise(got, expected)


@pytest.mark.parametrize("cell", CELLS)
def test_states_of_a_row_are_those_after_its_last_token(cell: str, isa: str) -> None:
    rnn = OURS[cell](3, 9, batch_first=True, bidirectional=True)
    x = random_batch(rnn, len(LENGTHS), NUM_STEPS)
    out, hx = rnn(x, lengths=LENGTHS)
    h_n = states_of(hx)[0]
    for b, length in enumerate(LENGTHS):
        last, first = (out[b, length - 1, :9], out[b, 0, 9:]) if length else (0 * h_n[0, b],) * 2
        assert_bitwise(h_n[0, b], last)
        assert_bitwise(h_n[1, b], first)


@pytest.mark.parametrize("cell", CELLS)
def test_an_empty_row_keeps_its_states_and_hands_their_gradient_back(cell: str, isa: str) -> None:
    rnn = make(cell)
    x, states = random_batch(rnn, len(LENGTHS), NUM_STEPS), random_hx(rnn, len(LENGTHS))
    for state in states:
        state.requires_grad_()
    out, hx = rnn(x, states[0] if cell == "gru" else tuple(states), lengths=LENGTHS)
    assert not out[1].any()
    for state, final in zip(states, states_of(hx), strict=True):
        assert_bitwise(final[:, 1].detach(), state[:, 1].detach())
        d_final = torch.randn_like(final)
        (d_state,) = torch.autograd.grad(final, state, d_final, retain_graph=True)
        assert_bitwise(d_state[:, 1], d_final[:, 1])
        assert not torch.equal(d_state[:, 0], d_final[:, 0])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("cell", CELLS)
def test_a_bad_token_spoils_its_own_row_only_and_as_in_torch(
    cell: str, value: float, isa: str, threads: int
) -> None:
    theirs, ours = pair(cell, 3, 9, batch_first=True)
    x = random_batch(ours, len(LENGTHS), NUM_STEPS)
    with torch.no_grad():
        clean, _ = ours(x, lengths=LENGTHS)
        x[2, 4, 1] = value
        out, finals = ours_in_form(ours, x, [], LENGTHS, "lengths")
        expected, expected_finals = torch_packed(theirs, x, [], LENGTHS)
    others = [b for b in range(len(LENGTHS)) if b != 2]
    assert_bitwise(out[others], clean[others])
    assert_bitwise(out[2, :4], clean[2, :4])
    same = {"rtol": 0, "atol": 1e-6, "equal_nan": True}
    torch.testing.assert_close(out, expected, **same)
    torch.testing.assert_close(finals, expected_finals, **same)


@pytest.mark.parametrize("scale", [1e-42, 1e-38, 30.0, 90.0, 1e4, 1e30])
@pytest.mark.parametrize("cell", CELLS)
def test_tiny_and_saturating_inputs_are_as_in_torch(cell: str, scale: float, isa: str) -> None:
    theirs, ours = pair(cell, 1, 9, batch_first=True)
    x = scale * random_batch(ours, len(LENGTHS), NUM_STEPS)
    leaves = [leaves_of(rnn, x, []) for rnn in (theirs, ours)]
    expected = with_gradients(torch_packed(theirs, x, [], LENGTHS), leaves[0])
    got = with_gradients(ours_in_form(ours, x, [], LENGTHS, "lengths"), leaves[1])
    for name, truth in expected.items():
        # A saturated gate's slope s * (1 - s) has an absolute error, which the input multiplies.
        scale = max(1.0, largest(truth), largest(x.detach()) if name == "d_weight_ih_l0" else 0.0)
        torch.testing.assert_close(got[name] / scale, truth / scale, rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("cell", CELLS)
@batch_first_or_not
def test_every_row_of_a_large_padding_is_zero(cell: str, batch_first: bool, threads: int) -> None:
    rnn = OURS[cell](3, 40, batch_first=batch_first)
    x = random_batch(rnn, 50, 200)
    lengths = [(7 * b) % 200 for b in range(len(x))]
    out, _ = ours_in_form(rnn, x, [], lengths, "lengths")
    for row, length in zip(out, lengths, strict=True):
        assert row[:length].all()
        assert_bitwise(row[length:], torch.zeros_like(row[length:]))
