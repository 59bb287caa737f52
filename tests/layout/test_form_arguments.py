"""Lengths, masks, resets and boundaries in every dtype and container."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from form_batches import B, T, assert_same, batch_with_resets, both_cells, changed, make
from helpers import CELLS, as_hx, random_batch, random_hx, states_of
from ragged import ANY_BATCH, FORMS, Ragged, draw_resets, draw_valid, in_form
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

INTEGERS = (
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint16,
    torch.uint32,
    torch.uint64,
)
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
FLAGS = (torch.bool, *INTEGERS, *FLOATS)


def check_same(cell: str, form: str, *names: str, change: Callable[[Tensor], Any]) -> None:
    """Some arguments given otherwise have the same result, to the bit."""
    rnn = make(cell)
    call = in_form(form, random_batch(rnn, B, T), batch_with_resets())
    other = {name: changed(call.keywords[name], change, call.input) for name in names}
    expected, states = call(rnn)
    got, finals = replace(call, keywords=call.keywords | other)(rnn)
    assert_same(got, expected)
    for final, state in zip(finals, states, strict=True):
        assert_same(final, state)


@pytest.mark.parametrize("dtype", FLAGS, ids=str)
@pytest.mark.parametrize("form", [*ANY_BATCH, "packed"])
def test_resets_in_every_dtype(form: str, dtype: torch.dtype) -> None:
    cell = CELLS[FLAGS.index(dtype) % 2]
    check_same(cell, form, "resets", change=lambda t: t.to(dtype))


@both_cells
@pytest.mark.parametrize("dtype", FLAGS, ids=str)
def test_masks_in_every_dtype(cell: str, dtype: torch.dtype) -> None:
    check_same(cell, "mask", "mask", change=lambda t: t.to(dtype))


@both_cells
@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_lengths_and_boundaries_in_every_dtype(cell: str, dtype: torch.dtype) -> None:
    check_same(cell, "lengths", "lengths", change=lambda t: t.to(dtype))
    check_same(cell, "flat", "cu_seqlens", change=lambda t: t.to(dtype))


CONTAINERS = {
    "list": lambda t: t.tolist(),
    "tuple": lambda t: tuple(t.tolist()),
    "array": lambda t: t.numpy(),
    "small array": lambda t: t.numpy().astype(np.uint8),
}


@both_cells
@pytest.mark.parametrize("container", CONTAINERS)
def test_arguments_as_lists_and_arrays(cell: str, container: str) -> None:
    change = CONTAINERS[container]
    check_same(cell, "mask", "mask", "resets", change=change)
    check_same(cell, "lengths", "lengths", "resets", change=change)
    check_same(cell, "flat", "cu_seqlens", "resets", change=change)
    check_same(cell, "packed", "resets", change=change)


FLAG_CONTAINERS = {
    "list of floats": lambda t: t.double().tolist(),
    "float array": lambda t: t.float().numpy(),
    "half array": lambda t: t.half().numpy(),
    "read-only array": lambda t: np.broadcast_to(t.double().numpy(), t.shape),
}


@both_cells
@pytest.mark.parametrize("container", FLAG_CONTAINERS)
def test_flags_as_lists_and_arrays_of_floats(cell: str, container: str) -> None:
    change = FLAG_CONTAINERS[container]
    check_same(cell, "mask", "mask", "resets", change=change)
    for form in ("lengths", "flat", "packed"):
        check_same(cell, form, "resets", change=change)


LAST_DIMENSION = {
    "bool": lambda t: t.unsqueeze(-1),
    "float": lambda t: t.unsqueeze(-1).float(),
    "array": lambda t: t.unsqueeze(-1).numpy(),
    "list": lambda t: t.unsqueeze(-1).double().tolist(),
}


def batch_in(form: str) -> Ragged:
    """With resets, of a shape that the form takes."""
    draw = random.Random(6)
    num_rows = 1 if form.startswith("single") else B
    batch = Ragged(draw_valid(draw, "random", num_rows, T), draw_resets(draw, 0.4, num_rows, T))
    return (
        replace(batch, valid=torch.ones_like(batch.valid)) if form in ("single", "full") else batch
    )


@pytest.mark.parametrize("batch_first", [True, False], ids=["BT", "TB"])
@pytest.mark.parametrize("kind", LAST_DIMENSION)
@pytest.mark.parametrize("form", [form for form in FORMS if form != "sorted"])
def test_resets_may_have_a_last_dimension_of_1(form: str, kind: str, batch_first: bool) -> None:
    cell = CELLS[(FORMS.index(form) + batch_first) % 2]
    rnn, batch = make(cell, batch_first=batch_first), batch_in(form)
    x, states = random_batch(rnn, *batch.valid.shape), random_hx(rnn, len(batch.valid))
    call = in_form(form, x, batch, batch_first=batch_first)
    change = LAST_DIMENSION["float" if form.startswith("nested") else kind]
    resets = changed(call.keywords["resets"], change, call.input)
    assert (resets.dim() if isinstance(resets, Tensor) else np.ndim(resets)) == (
        call.keywords["resets"].dim() + 1
    )
    expected, states_ = call(rnn, states)
    got, finals = replace(call, keywords=call.keywords | {"resets": resets})(rnn, states)
    assert_same(got, expected)
    for final, state in zip(finals, states_, strict=True):
        assert_same(final, state)
    without, _ = in_form(form, x, Ragged(batch.valid), batch_first=batch_first)(rnn, states)
    assert not torch.equal(without, expected)


@both_cells
def test_resets_of_one_step(cell: str) -> None:
    """Where a dimension of size 1 is not one too many."""
    rnn, x = make(cell), torch.randn(B, 1, 3)
    states, flags = random_hx(rnn, B), torch.tensor([True, False, True, False])
    expected, _ = rnn(x, as_hx(states), resets=flags.unsqueeze(1))
    for given in (flags.view(B, 1, 1), flags.view(B, 1).float(), flags.view(B, 1, 1).half()):
        assert_same(rnn(x, as_hx(states), resets=given)[0], expected)
    assert_same(expected[flags], rnn(x[flags])[0])
    assert_same(rnn(x[0], resets=[[1.0]])[0], rnn(x[0], resets=[True])[0])


@both_cells
def test_packed_resets_with_a_last_dimension_of_1(cell: str) -> None:
    rnn, flags = make(cell), torch.rand(3, 5) < 0.4
    packed, resets, deeper = (
        pack_padded_sequence(t, [2, 5, 3], batch_first=True, enforce_sorted=False)
        for t in (torch.randn(3, 5, 3), flags, flags.unsqueeze(2).float())
    )
    assert_same(rnn(packed, resets=deeper)[0].data, rnn(packed, resets=resets)[0].data)


@both_cells
def test_resets_of_one_sequence_as_a_list(cell: str) -> None:
    rnn = make(cell)
    x = random_batch(rnn, 1, T)[0]
    resets = [False, True, False, False, True, True, False]
    expected, _ = rnn(x, resets=torch.tensor(resets))
    for given in (resets, np.array(resets), [int(flag) for flag in resets]):
        assert_same(rnn(x, resets=given)[0], expected)
    assert not torch.equal(rnn(x)[0], expected)
    masked, _ = rnn(x, mask=[True, False, True, True, True, True, False], resets=resets)
    assert (masked[[1, 6]] == 0).all()


@both_cells
def test_empty_lists(cell: str) -> None:
    """They hold no integers, but no other numbers either."""
    rnn = make(cell)
    out, _ = rnn(torch.zeros(0, T, 3), lengths=[])
    assert out.shape == (0, T, 18)
    out, _ = rnn(torch.zeros(0, 3), cu_seqlens=[0, 0], resets=[])
    assert out.shape == (0, 18)


@both_cells
@pytest.mark.parametrize("form", ["mask", "lengths"])
def test_time_first_is_batch_first_transposed(cell: str, form: str) -> None:
    x, batch = random_batch(make(cell), B, T), batch_with_resets()
    batch_first, time_first = make(cell), make(cell, batch_first=False)
    call = in_form(form, x, batch)
    keywords = {
        name: t if name == "lengths" else t.t().contiguous() for name, t in call.keywords.items()
    }
    out, hx = batch_first(call.input, **call.keywords)
    time_out, time_hx = time_first(call.input.transpose(0, 1).contiguous(), **keywords)
    assert_same(time_out.transpose(0, 1), out)
    for got, expected in zip(states_of(time_hx), states_of(hx), strict=True):
        assert_same(got, expected)
