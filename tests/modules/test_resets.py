"""State resets and ragged rows case by case; the batches are drawn as text (``ragged.drawn``)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import (
    CELLS,
    HAS_EXTENSION,
    as_hx,
    assert_bitwise,
    assert_close64,
    leaves_of,
    pair,
    random_batch,
    random_hx,
    states_of,
    with_gradients,
)
from ragged import ANY_BATCH, NAN, Call, Ragged, drawn, each_segment_alone, in_form
from torch import Tensor, nn

CASES = {
    "holes": drawn("x.x..xx.", "xxxxxxxx", ".xx..x.x", "x......x"),
    "left padding": drawn("...xxxxx", ".......x", "xxxxxxxx"),
    "empty rows": drawn("........", "xxx.....", "........", "xxxxxxxx"),
    "only empty rows": drawn("....", "....", "...."),
    "only empty rows, flagged": drawn("rrrr", "r..."),
    "no rows": drawn(),
    "one step": drawn("x", "R", ".", "r"),
    "one step, one row": drawn("R"),
    "a reset at every token": drawn("RRRRR", "xxxxx", "RRR..", ".R.RR"),
    "every token of every row reset": drawn("RRRRR", "RRRRR"),
    "all steps invalid but flagged": drawn("rrrrr", "xxRxx", "rrrrr"),
    "a reset at the first token": drawn("Rxxxx", "xxxxx", "..Rxx", "r.Rx."),
    "a reset at the last token": drawn("xxxxR", "xxR..", "xx.R.", "R...."),
    "a reset beside a hole": drawn("xx.Rx", "xR.xx", "x.R.x", "xRrRx"),
    "a reset at an invalid step": drawn("xxrxx", "rxxxx", "xxxxr", "rrxrr", "xxRrr"),
    "the longest row is not the longest segment": drawn("xxRxxRxx", "xxxxx...", "RxRxRxRx"),
}
both_cells = pytest.mark.parametrize("cell", CELLS)
every_form = pytest.mark.parametrize("form", ANY_BATCH)
compiled_only = pytest.mark.skipif(not HAS_EXTENSION, reason="a promise of the compiled kernels")


def case(name: str, rnn: nn.RNNBase) -> tuple[Ragged, Tensor, list[Tensor]]:
    batch = CASES[name]
    x = random_batch(rnn, *batch.valid.shape).masked_fill(~batch.valid.unsqueeze(2), NAN)
    return batch, x, random_hx(rnn, len(x))


def modules(cell: str, **options: Any) -> tuple[nn.RNNBase, nn.RNNBase]:
    options = {"bidirectional": True, "batch_first": True} | options
    return tuple(rnn.double() for rnn in pair(cell, 3, 7, **options))


@both_cells
@every_form
@pytest.mark.parametrize("name", CASES)
def test_each_case_is_each_segment_alone(name: str, form: str, cell: str, one_isa: str) -> None:
    options = {"proj_size": 4} if cell == "lstm" else {}
    theirs, ours = modules(cell, num_layers=2, **options)
    results = []
    for rnn in (theirs, ours):
        batch, x, states = case(name, rnn)
        leaves = leaves_of(rnn, x, states)
        if rnn is theirs:
            outputs = each_segment_alone(rnn, x, states, batch)
        else:
            outputs = in_form(form, x, batch)(rnn, states)
        results.append(with_gradients(outputs, leaves))
    assert_close64(results[1], results[0])


@both_cells
@every_form
@pytest.mark.parametrize("name", [name for name, batch in CASES.items() if not batch.valid.any()])
def test_without_tokens_and_states_everything_is_zero(name: str, form: str, cell: str) -> None:
    _, rnn = modules(cell, num_layers=2)
    batch, x, states = case(name, rnn)
    out, finals = in_form(form, x, batch)(rnn)
    assert out.shape == (*batch.valid.shape, 14)
    assert not out.any()
    for final, state in zip(finals, states, strict=True):
        assert_bitwise(final.detach(), torch.zeros_like(state))


@both_cells
@pytest.mark.parametrize("num_layers", [1, 2])
def test_resets_are_the_loop_over_steps_of_reinforcement_learning(
    cell: str, num_layers: int, isa: str
) -> None:
    """One call for each step, with the states times ``1 - resets[t]``, as in many PPO programs."""
    theirs, ours = modules(cell, num_layers=num_layers, bidirectional=False, batch_first=False)
    num_steps, num_rows = 9, 5
    resets = torch.rand(num_steps, num_rows) < 0.3
    resets[0] = torch.tensor([False, True, False, True, False])

    def loop(x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        out = []
        for x_t, resets_t in zip(x, resets, strict=True):
            states = [s * (1.0 - resets_t.double()).view(1, -1, 1) for s in states]
            out_t, hx = theirs(x_t.unsqueeze(0), as_hx(states))
            out.append(out_t)
            states = states_of(hx)
        return torch.cat(out), states

    results = []
    for rnn in (theirs, ours):
        x = random_batch(rnn, num_steps, num_rows)
        states = random_hx(rnn, num_rows)
        leaves = leaves_of(rnn, x, states)
        if rnn is theirs:
            outputs = loop(x, states)
        else:
            out, hx = rnn(x, as_hx(states), resets=resets)
            outputs = out, states_of(hx)
        results.append(with_gradients(outputs, leaves))
    assert_close64(results[1], results[0])


@both_cells
@every_form
def test_resets_that_are_all_false_change_no_bit(cell: str, form: str, isa: str) -> None:
    _, rnn = modules(cell, num_layers=2)
    results = []
    for resets in (None, torch.zeros(4, 8, dtype=torch.bool)):
        batch, x, states = case("holes", rnn)
        leaves = leaves_of(rnn, x, states)
        call = in_form(form, x, replace(batch, resets=resets))
        assert ("resets" in call.keywords) == (resets is not None)
        results.append(with_gradients(call(rnn, states), leaves))
    for name, expected in results[0].items():
        assert_bitwise(results[1][name], expected, name)


@both_cells
@pytest.mark.parametrize("form", ["mask", "lengths", "nested holes"])
def test_a_reset_at_an_invalid_position_is_ignored(cell: str, form: str, isa: str) -> None:
    _, rnn = modules(cell)
    flagged, x, states = case("a reset at an invalid step", rnn)
    clean = replace(flagged, resets=flagged.resets & flagged.valid)
    assert not torch.equal(clean.resets, flagged.resets)
    outputs = [in_form(form, x, batch)(rnn, states) for batch in (clean, flagged)]
    (expected, expected_finals), (out, finals) = outputs
    assert_bitwise(out.detach(), expected.detach())
    for got, final in zip(finals, expected_finals, strict=True):
        assert_bitwise(got.detach(), final.detach())


@both_cells
@every_form
def test_neither_direction_sees_across_a_reset(cell: str, form: str, isa: str) -> None:
    """A segment's output depends on its own tokens only; most easily wrong in reverse."""
    _, rnn = modules(cell, num_layers=2)
    batch = drawn("xxxRxxRx", "xxxxxxxx")
    x = random_batch(rnn, 2, 8).requires_grad_()
    out, _ = in_form(form, x, batch)(rnn)
    segment = torch.zeros(2, 8, dtype=torch.bool)
    segment[0, 3:6] = True
    (d_x,) = torch.autograd.grad(out[segment].sum(), x)
    assert (d_x[segment] != 0).any(1).all()
    assert (d_x[~segment] == 0).all()


@both_cells
@pytest.mark.parametrize("bidirectional", [False, True])
@every_form
def test_a_bad_token_does_not_reach_across_a_reset(
    cell: str, form: str, bidirectional: bool, one_isa: str
) -> None:
    _, rnn = modules(cell, bidirectional=bidirectional)
    batch = drawn("xxxRxxRx", "xxxxxxxx")
    clean = random_batch(rnn, 2, 8)
    bad = clean.clone()
    bad[0, 4] = NAN
    with torch.no_grad():
        expected, expected_finals = in_form(form, clean, batch)(rnn)
        out, finals = in_form(form, bad, batch)(rnn)
    assert out[0, 4].isnan().all()
    assert out[0, 5, :7].isnan().all()
    spoiled = torch.zeros(2, 8, dtype=torch.bool)
    spoiled[0, 3 if bidirectional else 4 : 6] = True
    assert_bitwise(out[~spoiled], expected[~spoiled])
    for got, final in zip(finals, expected_finals, strict=True):
        assert_bitwise(got, final)


@both_cells
@every_form
def test_states_that_a_reset_hides_get_a_gradient_of_exactly_zero(
    cell: str, form: str, isa: str
) -> None:
    _, rnn = modules(cell, num_layers=2)
    batch, x, states = case("a reset at the first token", rnn)
    leaves = leaves_of(rnn, x, states)
    results = with_gradients(in_form(form, x, batch)(rnn, states), leaves)
    for name in ("h_0", "c_0")[: len(states)]:
        gradient = results[f"d_{name}"]
        assert (gradient[:, [0, 2, 3]] == 0).all()
        assert (gradient[:, 1] != 0).all()


@both_cells
@every_form
@pytest.mark.parametrize("junk", [NAN, float("inf"), 1e300], ids=str)
def test_states_that_a_reset_hides_are_never_read(
    cell: str, form: str, junk: float, isa: str
) -> None:
    _, rnn = modules(cell, num_layers=2)
    results = []
    for fill in (0.0, junk):
        batch, x, states = case("a reset at the first token", rnn)
        for state in states:
            state[:, [0, 2, 3]] = fill
        leaves = leaves_of(rnn, x, states)
        results.append(with_gradients(in_form(form, x, batch)(rnn, states), leaves))
    for name, expected in results[0].items():
        assert expected.isfinite().all(), name
        assert_bitwise(results[1][name], expected, name)


@both_cells
@every_form
def test_an_empty_row_hands_the_gradient_of_its_states_back(cell: str, form: str, isa: str) -> None:
    _, rnn = modules(cell, num_layers=2)
    batch, x, states = case("all steps invalid but flagged", rnn)
    for state in states:
        state.requires_grad_()
    _, finals = in_form(form, x, batch)(rnn, states)
    for state, final in zip(states, finals, strict=True):
        assert_bitwise(final[:, [0, 2]].detach(), state[:, [0, 2]].detach())
        d_final = torch.randn_like(final)
        (d_state,) = torch.autograd.grad(final, state, d_final, retain_graph=True)
        assert_bitwise(d_state[:, [0, 2]], d_final[:, [0, 2]])


@both_cells
@pytest.mark.parametrize("junk", [NAN, float("inf"), -float("inf"), 1e300], ids=str)
@pytest.mark.parametrize(
    "name", ["holes", "a reset beside a hole", "all steps invalid but flagged"]
)
@pytest.mark.parametrize("batch_first", [True, False], ids=["BTI", "TBI"])
def test_what_invalid_positions_hold_or_are_sent_changes_nothing(
    cell: str, junk: float, name: str, batch_first: bool, one_isa: str
) -> None:
    """NaN there, and NaN gradients arriving there, change no output and no gradient."""
    _, rnn = modules(cell, num_layers=2, batch_first=batch_first)
    batch, x, states = case(name, rnn)
    invalid = ~batch.valid.unsqueeze(2)
    clean = torch.randn(*batch.valid.shape, 14, dtype=torch.float64)
    results = []
    for fill in (0.0, junk):
        x = x.detach().masked_fill(invalid, fill).requires_grad_()
        call = in_form("mask", x, batch, batch_first=batch_first)
        out, finals = call(rnn, states)
        assert (out[~batch.valid] == 0).all()
        loss = [out, *finals]
        d_loss = [clean.masked_fill(invalid, fill), *(torch.ones_like(f) for f in finals)]
        leaves = [x, *rnn.parameters()]
        results.append([out.detach(), *torch.autograd.grad(loss, leaves, d_loss)])
    assert (results[1][1][~batch.valid] == 0).all()
    for got, expected in zip(*results, strict=True):
        assert expected.isfinite().all()
        assert_bitwise(got, expected)


@compiled_only
@both_cells
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_final_states_are_those_of_the_last_segment_alone(
    cell: str, dtype: torch.dtype, isa: str, threads: int
) -> None:
    _, rnn = pair(cell, 3, 17, bidirectional=True, batch_first=True, dtype=dtype)
    batch = drawn("xxxRxxRxx", "xxxxx....", "xxR.xxx..", "RRRRRRRRR")
    last = [(0, [6, 7, 8]), (2, [2, 4, 5, 6]), (3, [8])]
    x, states = random_batch(rnn, 4, 9), random_hx(rnn, 4)
    with torch.no_grad():
        out, finals = in_form("mask", x, batch)(rnn, states)
        for row, steps in last:
            alone, hx = rnn(x[row, steps])
            assert_bitwise(out[row, steps], alone)
            for final, state in zip(finals, states_of(hx), strict=True):
                assert_bitwise(final[:, row], state)


@both_cells
@pytest.mark.parametrize("form", ["single", "single mask"])
def test_one_sequence_with_resets_has_no_batch_dimension(cell: str, form: str, isa: str) -> None:
    theirs, ours = modules(cell)
    batch = drawn("xxRxR") if form == "single" else drawn("x.Rxr")
    x, states = random_batch(ours, 1, 5), random_hx(ours, 1)
    call: Call = in_form(form, x, batch)
    out, hx = ours(call.input, as_hx([s[:, 0] for s in states]), **call.keywords)
    expected, finals = each_segment_alone(theirs, x, states, batch)
    torch.testing.assert_close(out, expected[0], rtol=0, atol=1e-12)
    for got, final in zip(states_of(hx), finals, strict=True):
        torch.testing.assert_close(got, final[:, 0], rtol=0, atol=1e-12)
