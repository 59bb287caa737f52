"""A batch comes back in the form that it came in; arguments may be slices, and are not changed."""

from __future__ import annotations

import pytest
import torch
from form_batches import B, T, assert_same, batch_with_resets, both_cells, changed, every_form, make
from helpers import as_hx, random_batch, random_hx, states_of
from ragged import NAN, Call, Ragged, drawn, in_form
from torch import Tensor, nn
from torch.nested import nested_tensor_from_jagged
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence


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
