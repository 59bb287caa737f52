"""Lengths, masks, resets and boundaries in every dtype and container, and what forms come back."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import CELLS, OURS, as_hx, assert_bitwise, random_batch, random_hx, states_of
from ragged import (
    ANY_BATCH,
    FORMS,
    NAN,
    Call,
    Ragged,
    draw_resets,
    draw_valid,
    drawn,
    in_form,
)
from torch import Tensor, nn
from torch.nested import nested_tensor_from_jagged
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

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
B, T = 4, 7
both_cells = pytest.mark.parametrize("cell", CELLS)
every_form = pytest.mark.parametrize("form", ANY_BATCH)


def make(cell: str, **options: Any) -> nn.RNNBase:
    torch.manual_seed(0)
    return OURS[cell](3, 9, bidirectional=True, **({"batch_first": True} | options))


def batch_with_resets() -> Ragged:
    draw = random.Random(4)
    return Ragged(draw_valid(draw, "random", B, T), draw_resets(draw, 0.3, B, T))


def changed(tensor: Tensor, change: Callable[[Tensor], Any], like: Tensor) -> Any:
    """The tensor changed; of a nested one its values, with the very offsets of ``like``."""
    if not tensor.is_nested:
        return change(tensor)
    return nested_tensor_from_jagged(change(tensor.values()), like.offsets(), like.lengths())


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


def assert_same(got: Tensor, expected: Tensor) -> None:
    assert_bitwise(got.detach(), expected.detach())


@both_cells
@pytest.mark.parametrize("dtype", FLAGS, ids=str)
@pytest.mark.parametrize("form", [*ANY_BATCH, "packed"])
def test_resets_in_every_dtype(cell: str, form: str, dtype: torch.dtype) -> None:
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


@both_cells
@pytest.mark.parametrize("batch_first", [True, False], ids=["BT", "TB"])
@pytest.mark.parametrize("kind", LAST_DIMENSION)
@pytest.mark.parametrize("form", [form for form in FORMS if form != "sorted"])
def test_resets_may_have_a_last_dimension_of_1(
    cell: str, form: str, kind: str, batch_first: bool
) -> None:
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


@both_cells
@every_form
def test_slices_of_larger_buffers(cell: str, form: str) -> None:
    """Tokens, states, flags and boundaries that are not contiguous; around them lies junk."""

    def sliced(tensor: Tensor) -> Tensor:
        junk = NAN if tensor.is_floating_point() else 1
        buffer = torch.full([2 * size + 3 for size in tensor.shape], junk, dtype=tensor.dtype)
        view = buffer[tuple(slice(1, 1 + 2 * size, 2) for size in tensor.shape)]
        return view.copy_(tensor)

    rnn = make(cell, num_layers=2)
    states = random_hx(rnn, B)
    call = in_form(form, random_batch(rnn, B, T), batch_with_resets())
    expected, expected_finals = call(rnn, states)
    tokens = changed(call.input, sliced, call.input)
    assert not (tokens.values() if tokens.is_nested else tokens).is_contiguous()
    keywords = {name: changed(t, sliced, tokens) for name, t in call.keywords.items()}
    given = [sliced(s) for s in states]
    out, finals = Call(tokens, keywords, call.back)(rnn, given)
    assert_same(out, expected)
    for got, final in zip(finals, expected_finals, strict=True):
        assert_same(got, final)


@both_cells
@every_form
def test_no_argument_is_changed(cell: str, form: str) -> None:
    rnn = make(cell)
    states = random_hx(rnn, B)
    call = in_form(form, random_batch(rnn, B, T), batch_with_resets())
    given = [*call.keywords.values(), call.input]
    given = [t.values() if t.is_nested else t for t in given] + states
    copies = [t.clone() for t in given]
    out, _ = call(rnn, states)
    out.sum().backward()
    for tensor, copy in zip(given, copies, strict=True):
        torch.testing.assert_close(tensor, copy, rtol=0, atol=0, equal_nan=True)


@both_cells
@pytest.mark.parametrize("enforce_sorted", [False, True])
def test_a_packed_sequence_comes_back_with_its_indices(cell: str, enforce_sorted: bool) -> None:
    rnn = make(cell)
    batch = (
        drawn("xxxRxxx", "xxR....", "xx.....", "R......") if enforce_sorted else batch_with_resets()
    )
    call = in_form("sorted" if enforce_sorted else "packed", random_batch(rnn, B, T), batch)
    out, _ = call.raw(rnn)
    assert isinstance(out, PackedSequence)
    assert out.data.shape == (int(batch.lengths.sum()), 18)
    assert torch.equal(out.batch_sizes, call.input.batch_sizes)
    for name in ("sorted_indices", "unsorted_indices"):
        got, expected = getattr(out, name), getattr(call.input, name)
        assert (got is None) == (expected is None) == enforce_sorted
        assert enforce_sorted or torch.equal(got, expected)


@both_cells
def test_padded_and_flat_batches_come_back_as_they_came(cell: str) -> None:
    rnn, batch = make(cell), batch_with_resets()
    x = random_batch(rnn, B, T)
    for form in ("mask", "lengths", "flat"):
        call = in_form(form, x, batch)
        out, _ = call.raw(rnn)
        assert type(out) is Tensor
        assert out.shape == (*call.input.shape[:-1], 18)
        assert out.dtype == x.dtype


@both_cells
@pytest.mark.parametrize("form", ["nested", "nested holes"])
@pytest.mark.parametrize("offsets_dtype", [torch.int64, torch.int32], ids=str)
def test_a_nested_tensor_comes_back_with_its_offsets(
    cell: str, form: str, offsets_dtype: torch.dtype
) -> None:
    rnn = make(cell)
    call = in_form(form, random_batch(rnn, B, T), batch_with_resets())
    lengths = call.input.lengths()
    nested = nested_tensor_from_jagged(
        call.input.values(),
        call.input.offsets().to(offsets_dtype),
        None if lengths is None else lengths.to(offsets_dtype),
    )
    out, _ = rnn(nested)
    assert out.is_nested
    assert out.layout == torch.jagged
    assert out.shape == (*nested.shape[:2], 18)  # the ragged size is a symbol made of the offsets
    assert torch.equal(out.offsets(), nested.offsets())
    assert (out.lengths() is None) == (lengths is None)
    assert lengths is None or torch.equal(out.lengths(), nested.lengths())
    assert [len(row) for row in out.unbind()] == batch_with_resets().lengths.tolist()
    expected, _ = in_form(form, random_batch(rnn, B, T), Ragged(batch_with_resets().valid))(rnn)
    assert_same(call.back(out), expected)


@both_cells
def test_a_nested_tensor_goes_on_through_layers_before_and_after(cell: str) -> None:
    rnn = make(cell)
    before, after = nn.Linear(5, 3), nn.Linear(18, 3)
    rows = [torch.randn(length, 5) for length in (4, 0, 7, 1)]
    nested = torch.nested.nested_tensor(rows, layout=torch.jagged, requires_grad=True)
    x = before(nested)
    out = after(rnn(x)[0]) + x
    out.values().square().sum().backward()
    flat = torch.cat(rows).requires_grad_()
    x = before(flat)
    expected = after(rnn(x, cu_seqlens=nested.offsets())[0]) + x
    assert_same(out.values(), expected)
    (d_flat,) = torch.autograd.grad(expected.square().sum(), flat)
    assert nested.grad.is_nested
    torch.testing.assert_close(nested.grad.values(), d_flat)
    assert d_flat.any()
    for parameter in (*rnn.parameters(), *before.parameters(), *after.parameters()):
        assert parameter.grad.any()


@both_cells
def test_a_nested_tensor_narrowed_from_a_padded_one(cell: str) -> None:
    """``torch.nested.narrow`` shares the padded memory: offsets start and end where it says."""
    rnn = make(cell)
    x = random_batch(rnn, 3, T).requires_grad_()
    start, length = torch.tensor([2, 0, 1]), torch.tensor([5, 0, 3])
    steps = torch.arange(T)
    mask = (steps >= start.unsqueeze(1)) & (steps < (start + length).unsqueeze(1))
    states = random_hx(rnn, 3)
    nested = torch.nested.narrow(x, 1, start, length, layout=torch.jagged)
    assert nested.offsets()[0] == 2
    out, hx = rnn(nested, as_hx(states))
    expected, expected_hx = rnn(x, as_hx(states), mask=mask)
    for b, row in enumerate(out.unbind()):
        assert_same(row, expected[b, mask[b]])
    for got, final in zip(states_of(hx), states_of(expected_hx), strict=True):
        assert_same(got, final)
    gradients = [
        torch.autograd.grad(sum(row.square().sum() for row in rows), x)[0]
        for rows in (out.unbind(), [expected])
    ]
    torch.testing.assert_close(*gradients)
    assert (gradients[0][~mask] == 0).all()


@both_cells
def test_holes_in_a_nested_tensor_are_padding(cell: str) -> None:
    """Nothing is read there, zeros are written there, and gradients that arrive are ignored."""
    rnn = make(cell)
    offsets, lengths = torch.tensor([0, 3, 5, 9]), torch.tensor([2, 0, 3])
    hole = torch.tensor([False, False, True, True, True, False, False, False, True])
    clean = torch.randn(9, 3)
    d_clean = torch.randn(9, 18)
    results = []
    for junk in (0.0, NAN):
        values = clean.masked_fill(hole.unsqueeze(1), junk).requires_grad_()
        out, _ = rnn(nested_tensor_from_jagged(values, offsets, lengths))
        assert out.values().shape == (9, 18)
        assert (out.values()[hole] == 0).all()
        d_out = d_clean.masked_fill(hole.unsqueeze(1), junk)
        (gradient,) = torch.autograd.grad(out.values(), values, d_out)
        assert (gradient[hole] == 0).all()
        results.append((out.values(), gradient))
    for got, expected in zip(*results, strict=True):
        assert expected.isfinite().all()
        assert_same(got, expected)


@both_cells
def test_resets_with_offsets_that_are_equal_but_another_tensor(cell: str) -> None:
    rnn = make(cell)
    call = in_form("nested", random_batch(rnn, B, T), batch_with_resets())
    resets = call.keywords["resets"]
    other = nested_tensor_from_jagged(resets.values(), resets.offsets().clone())
    assert_same(call.back(rnn(call.input, resets=other)[0]), call(rnn)[0])


@both_cells
@pytest.mark.parametrize("enforce_sorted", [True, False])
def test_resets_that_are_packed_as_the_input_is(cell: str, enforce_sorted: bool) -> None:
    rnn, lengths = make(cell), [5, 3, 2] if enforce_sorted else [2, 5, 3]
    packed, resets = (
        pack_padded_sequence(t, lengths, batch_first=True, enforce_sorted=enforce_sorted)
        for t in (torch.randn(3, 5, 3), torch.rand(3, 5) < 0.4)
    )
    got, expected = (rnn(packed, resets=r)[0].data for r in (resets, resets.data))
    assert torch.equal(got, expected)
    assert not torch.equal(got, rnn(packed)[0].data)
    other = pack_padded_sequence(torch.zeros(3, 5).bool(), [5, 4, 1], batch_first=True)
    with pytest.raises(ValueError, match=r"^VarLen\w+: resets\.\w+ must be the input's, .*got"):
        rnn(packed, resets=other)


@both_cells
def test_nested_resets_with_other_holes_than_the_input(cell: str) -> None:
    offsets = torch.tensor([0, 3, 5])
    x = nested_tensor_from_jagged(torch.randn(5, 3), offsets)
    resets = nested_tensor_from_jagged(torch.zeros(5).bool(), offsets, torch.tensor([2, 1]))
    with pytest.raises(ValueError, match=r"^VarLen\w+: resets\.lengths\(\) must be the input's"):
        make(cell)(x, resets=resets)
