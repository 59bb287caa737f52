"""``output_states=True``: the cell state after every token, which torch does not give."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from helpers import (
    HAS_EXTENSION,
    OURS,
    as_hx,
    assert_bitwise,
    assert_close64,
    leaves_of,
    max_error,
    pair,
    random_batch,
    random_hx,
    with_gradients,
)
from ragged import (
    ANY_BATCH,
    FORMS,
    NAN,
    Ragged,
    draw_resets,
    draw_valid,
    each_segment_alone,
    in_form,
    take,
)
from torch import Tensor, nn
from torch.nested import nested_tensor_from_jagged
from torch.nn.utils.rnn import PackedSequence

SHAPES: dict[str, dict[str, Any]] = {
    "plain": {"batch_first": True},
    "no bias": {"bias": False},
    "two layers": {"num_layers": 2, "bidirectional": True, "batch_first": True},
    "three layers": {"num_layers": 3},
    "projected": {"num_layers": 2, "bidirectional": True, "proj_size": 4},
}
every_shape = pytest.mark.parametrize("shape", SHAPES)
B, T, FEATURES, H = 5, 8, 3, 7


def weights_of(rnn: nn.RNNBase, layer: int, suffix: str) -> list[Tensor]:
    names = ["weight_ih", "weight_hh", *["bias_ih", "bias_hh"] * rnn.bias]
    names += ["weight_hr"] * bool(rnn.proj_size)
    return [getattr(rnn, f"{name}_l{layer}{suffix}") for name in names]


def steps_of_torch(
    rnn: nn.LSTM, x: Tensor, states: Sequence[Tensor]
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """One sequence ``[T, I]``, each step a call of torch's LSTM, whose ``c_n`` is then ``c_t``.

    Returns the output, the last layer's cell states, and the final states.
    """
    out, cells, finals = x, x, []
    for layer in range(rnn.num_layers):
        directions = []
        for direction in range(2 if rnn.bidirectional else 1):
            weights = weights_of(rnn, layer, "_reverse" * direction)
            h, c = (s[layer * (2 if rnn.bidirectional else 1) + direction] for s in states)
            h_and_c = h.view(1, 1, -1), c.view(1, 1, -1)
            steps = []
            for token in out.flip(0) if direction else out:
                _, *h_and_c = torch._VF.lstm(
                    token.view(1, 1, -1), h_and_c, weights, rnn.bias, 1, 0.0, False, False, False
                )
                steps.append(h_and_c)
            finals.append(h_and_c)
            steps = steps[::-1] if direction else steps
            directions.append([torch.cat(kind).flatten(1) for kind in zip(*steps, strict=True)])
        out, cells = (torch.cat(kind, 1) for kind in zip(*directions, strict=True))
    return out, cells, [torch.cat(kind).squeeze(1) for kind in zip(*finals, strict=True)]


def truth(
    rnn: nn.LSTM, x: Tensor, states: Sequence[Tensor], batch: Ragged
) -> tuple[Tensor, list[Tensor]]:
    """Output and cells side by side ``[B, T, D * (P + H)]``, and the final states."""
    zeros = [torch.zeros_like(s) for s in states]
    finals = [s.clone() for s in states]
    directions = 2 if rnn.bidirectional else 1
    size = directions * ((rnn.proj_size or rnn.hidden_size) + rnn.hidden_size)
    both = x.new_zeros(*x.shape[:2], size)
    tokens = take(x, batch.order)
    for segment in batch.segments:
        place = segment.row, slice(segment.start, segment.start + segment.length)
        source = zeros if segment.initial_row < 0 else states
        out, cells, last = steps_of_torch(rnn, tokens[place], [s[:, segment.row] for s in source])
        both[place] = torch.cat([out, cells], 1)
        if segment.final_row >= 0:
            for final, state in zip(finals, last, strict=True):
                final[:, segment.final_row] = state
    return take(both, batch.order.argsort(1)), finals


def ours_with_cells(
    rnn: nn.RNNBase, x: Tensor, states: Sequence[Tensor], batch: Ragged, form: str
) -> tuple[Tensor, list[Tensor]]:
    """The same by our module."""
    call = in_form(form, x, batch, batch_first=rnn.batch_first)
    (out, cells), finals = call.raw(rnn, states, output_states=True)
    assert type(out) is type(cells)
    return torch.cat([call.back(out), call.back(cells)], 2), finals


def ragged_for(form: str) -> Ragged:
    draw = random.Random(5)
    num_rows = 1 if form in ("single", "single mask") else B
    valid = draw_valid(draw, "holes", num_rows, T)
    if form in ("full", "single"):
        valid = torch.ones_like(valid)
    if form == "sorted":
        valid = valid[valid.sum(1).argsort(descending=True)]
    if form in ANY_BATCH:
        valid[1] = False
    return Ragged(valid, draw_resets(draw, 0.3, num_rows, T))


def data(rnn: nn.RNNBase, batch: Ragged) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
    x = random_batch(rnn, *batch.valid.shape).masked_fill(~batch.valid.unsqueeze(2), NAN)
    states = random_hx(rnn, len(x))
    return x, states, leaves_of(rnn, x, states)


def modules(shape: str, dtype: torch.dtype = torch.float64) -> tuple[nn.LSTM, nn.RNNBase]:
    theirs, ours = pair("lstm", FEATURES, H, **SHAPES[shape])
    return theirs.to(dtype), ours.to(dtype)


@every_shape
@pytest.mark.parametrize("form", FORMS)
def test_values_and_gradients_of_cells_in_every_form(shape: str, form: str, one_isa: str) -> None:
    theirs, ours = modules(shape)
    batch = ragged_for(form)
    x, states, leaves = data(theirs, batch)
    expected = with_gradients(truth(theirs, x, states, batch), leaves)
    x, states, leaves = data(ours, batch)
    assert_close64(with_gradients(ours_with_cells(ours, x, states, batch, form), leaves), expected)


@every_shape
def test_the_loop_is_what_the_torch_module_does(shape: str) -> None:
    rnn, _ = modules(shape)
    batch = ragged_for("mask")
    x, states, _ = data(rnn, batch)
    both, finals = truth(rnn, x, states, batch)
    out, expected_finals = each_segment_alone(rnn, x, states, batch)
    torch.testing.assert_close(both[..., : out.shape[2]], out, rtol=0, atol=1e-13)
    torch.testing.assert_close(finals, expected_finals, rtol=0, atol=1e-13)


@pytest.mark.parametrize("used", ["out", "cells", "h_n", "c_n", "states", "out and cells"])
@every_shape
def test_gradients_when_not_all_results_are_used(shape: str, used: str, isa: str) -> None:
    theirs, ours = modules(shape)
    batch = ragged_for("mask")
    width = (theirs.proj_size or H) * (2 if theirs.bidirectional else 1)
    results = []
    for rnn in (theirs, ours):
        x, states, leaves = data(rnn, batch)
        if rnn is theirs:
            both, (h_n, c_n) = truth(rnn, x, states, batch)
        else:
            both, (h_n, c_n) = ours_with_cells(rnn, x, states, batch, "mask")
        out, cells = both[..., :width], both[..., width:]
        of_loss = {
            "out": (out, []),
            "cells": (cells, []),
            "h_n": (h_n, []),
            "c_n": (c_n, []),
            "states": (h_n, [c_n]),
            "out and cells": (out, [cells]),
        }
        results.append(with_gradients(of_loss[used], leaves))
    assert_close64(results[1], results[0])


def test_cells_are_those_of_a_loop_over_lstm_cell(isa: str) -> None:
    """The loop people write today, without any of the helpers above."""
    rnn = OURS["lstm"](FEATURES, H, dtype=torch.float64)
    cell = nn.LSTMCell(FEATURES, H, dtype=torch.float64)
    cell.load_state_dict({name.removesuffix("_l0"): t for name, t in rnn.state_dict().items()})
    x = torch.randn(T, B, FEATURES, dtype=torch.float64)
    h, c = torch.zeros(2, B, H, dtype=torch.float64)
    expected, expected_cells = [], []
    for x_t in x:
        h, c = cell(x_t, (h, c))
        expected.append(h)
        expected_cells.append(c)
    (out, cells), (h_n, c_n) = rnn(x, output_states=True)
    same = {"rtol": 0, "atol": 1e-12}
    torch.testing.assert_close(out, torch.stack(expected), **same)
    torch.testing.assert_close(cells, torch.stack(expected_cells), **same)
    torch.testing.assert_close((h_n[0], c_n[0]), (h, c), **same)


@every_shape
@pytest.mark.parametrize("form", ANY_BATCH)
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str
)
def test_asking_for_cells_changes_nothing_else(
    shape: str, form: str, dtype: torch.dtype, one_isa: str
) -> None:
    """Output and final states stay as they are, with and without gradients, to the bit."""
    _, rnn = modules(shape, dtype)
    batch = ragged_for(form)
    x, states, _ = data(rnn, batch)
    call = in_form(form, x, batch, batch_first=rnn.batch_first)
    expected, expected_finals = call(rnn, states)
    (out, cells), finals = call.raw(rnn, states, output_states=True)
    with torch.no_grad():
        (out_again, cells_again), finals_again = call.raw(rnn, states, output_states=True)
    for got in (call.back(out), call.back(out_again)):
        assert_bitwise(got.detach(), expected.detach())
    for got in (finals, finals_again):
        for state, final in zip(got, expected_finals, strict=True):
            assert_bitwise(state.detach(), final.detach())
    cells, cells_again = call.back(cells), call.back(cells_again)
    assert cells.requires_grad
    assert not cells_again.requires_grad
    assert_bitwise(cells_again, cells.detach())
    assert cells.dtype == dtype
    assert (cells[~batch.valid] == 0).all()
    directions = 2 if rnn.bidirectional else 1
    assert cells.shape == (*batch.valid.shape, directions * H)
    for b, row in enumerate(batch.valid):
        if row.any():
            last_step = int(row.nonzero().max())
            assert_bitwise(cells[b, last_step, :H].detach(), finals[1][-directions, b].detach())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@every_shape
def test_cells_in_sixteen_bits_are_near_those_in_float64(
    shape: str, dtype: torch.dtype, isa: str
) -> None:
    """Rounded once at the end if there is one layer; a second layer's input is rounded, too."""
    _, rnn = modules(shape, dtype)
    batch = ragged_for("mask")
    with torch.no_grad():
        x, states, _ = data(rnn, batch)
        got, _ = ours_with_cells(rnn, x, states, batch, "mask")
        theirs, _ = modules(shape, dtype)
        expected, _ = truth(theirs.double(), x.double(), [s.double() for s in states], batch)
    assert max_error(got, expected) <= 8 * torch.finfo(dtype).eps


def test_cells_come_in_the_form_of_the_output() -> None:
    rnn = OURS["lstm"](FEATURES, H, bidirectional=True, proj_size=4, batch_first=True)
    for form in FORMS:
        batch = ragged_for(form)
        x, states, _ = data(rnn, batch)
        call = in_form(form, x, batch)
        (out, cells), _ = call.raw(rnn, states, output_states=True)
        if isinstance(call.input, PackedSequence):
            assert isinstance(cells, PackedSequence)
            assert cells.data.shape == (len(out.data), 2 * H)
            assert torch.equal(cells.batch_sizes, out.batch_sizes)
            assert (cells.sorted_indices is None) == (out.sorted_indices is None)
        elif call.input.is_nested:
            assert cells.shape == (*out.shape[:2], 2 * H)
            assert torch.equal(cells.offsets(), call.input.offsets())
        else:
            assert cells.shape == (*out.shape[:-1], 2 * H)


def test_without_hx_and_without_tokens() -> None:
    rnn = OURS["lstm"](FEATURES, H, num_layers=2, bidirectional=True)
    nothing = nested_tensor_from_jagged(torch.zeros(0, FEATURES), torch.tensor([0, 0, 0]))
    (out, cells), (h_n, c_n) = rnn(nothing, output_states=True)
    assert out.values().shape == cells.values().shape == (0, 2 * H)
    assert h_n.shape == c_n.shape == (4, 2, H)
    x = torch.full((T, B, FEATURES), NAN)
    (out, cells), hx = rnn(x, lengths=[0] * B, output_states=True)
    for tensor in (out, cells, *hx):
        assert not tensor.any()


@pytest.mark.skipif(not HAS_EXTENSION, reason="a promise of the compiled kernels")
@every_shape
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_form_changes_no_bit_of_the_cells(shape: str, dtype: torch.dtype, isa: str) -> None:
    _, rnn = modules(shape, dtype)
    batch = ragged_for("mask")
    x, states, _ = data(rnn, batch)
    with torch.no_grad():
        expected, _ = ours_with_cells(rnn, x, states, batch, "mask")
        for form in ANY_BATCH:
            got, _ = ours_with_cells(rnn, x, states, batch, form)
            assert_bitwise(got, expected, form)


def test_off_by_default_and_unknown_to_the_gru() -> None:
    rnn = OURS["lstm"](FEATURES, H)
    x = torch.randn(T, B, FEATURES)
    for keywords in ({}, {"output_states": False}):
        out, hx = rnn(x, as_hx(random_hx(rnn, B)), **keywords)
        assert isinstance(out, Tensor)
        assert len(hx) == 2
    with pytest.raises(TypeError, match="output_states"):
        OURS["gru"](FEATURES, H)(x, output_states=True)
