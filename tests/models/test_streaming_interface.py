"""What calls of a stream take and give, and what they leave alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers import CELLS, TORCH, as_hx, assert_bitwise, states_of
from streaming_cases import (
    ROWS,
    SIZE,
    assert_equal_states,
    assert_same,
    make,
    random_states,
    states_in,
    with_states,
)
from torch import Tensor, nn

from varlen_rnn import StreamingRNN

both_cells = pytest.mark.parametrize("cell", CELLS)


# States.


@both_cells
def test_a_stream_begins_with_zeros(cell: str) -> None:
    for state in states_in(make(cell)):
        assert_bitwise(state, torch.zeros_like(state))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("proj_size", [0, 3])
def test_states_are_shaped_as_hx(proj_size: int, dtype: torch.dtype) -> None:
    stream = make(dtype=dtype, proj_size=proj_size)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    for rows, count in ((None, ROWS), ([2], 1), ([3, 0, 1], 3), ([], 0)):
        h, c = stream.state(rows)
        assert (h.shape, h.dtype) == ((2, count, proj_size or 17), dtype)
        assert (c.shape, c.dtype) == ((2, count, 17), compute)
    h = make("gru", dtype=dtype).state([1, 2])
    assert (h.shape, h.dtype) == ((2, 2, 17), dtype)


@both_cells
def test_states_are_copies(cell: str) -> None:
    stream, twin = with_states(cell), with_states(cell)
    for state in states_in(stream):
        state.fill_(torch.nan)
    given = random_states(stream, 2, seed=5)
    for each in (stream, twin):
        each.load_state(as_hx([state.clone() for state in given]), [0, 3])
    loaded = [state.clone() for state in given]
    stream.load_state(as_hx(loaded), [0, 3])
    for state in loaded:
        state.fill_(torch.nan)
    before = states_in(stream)
    held = [state.clone() for state in before]
    stream(torch.randn(ROWS, SIZE))
    for state, expected in zip(before, held, strict=True):
        assert_bitwise(state, expected)
    stream.load_state(as_hx(held))
    assert_equal_states(stream, twin)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@both_cells
def test_states_come_back_bit_for_bit(cell: str, dtype: torch.dtype) -> None:
    stream, x = make(cell, dtype=dtype), torch.randn(ROWS, 7, SIZE).to(dtype)
    stream(x[:, :3])
    saved = stream.state()
    expected = stream(x[:, 3:])
    stream.load_state(saved)
    for got, state in zip(states_in(stream), states_of(saved), strict=True):
        assert_bitwise(got, state)
    assert_bitwise(stream(x[:, 3:]), expected)


@both_cells
def test_states_of_rows_are_in_their_order(cell: str) -> None:
    stream = with_states(cell)
    before = states_in(stream)
    for got, state in zip(states_in(stream, [3, 0, 2]), before, strict=True):
        assert_bitwise(got, state[:, [3, 0, 2]])
    stream.load_state(as_hx([state[:, [3, 0, 2]] for state in before]), [1, 3, 0])
    for got, state in zip(states_in(stream), before, strict=True):
        assert_bitwise(got, state[:, [2, 3, 2, 0]])
    stream.load_state(as_hx([state[:, :0] for state in before]), [])
    for got, state in zip(states_in(stream), before, strict=True):
        assert_bitwise(got, state[:, [2, 3, 2, 0]])


@both_cells
def test_a_reset_is_about_its_rows_alone_and_forgets_even_nan(cell: str) -> None:
    stream = with_states(cell)
    before = states_in(stream)
    stream.load_state(as_hx([state[:, :1] * torch.nan for state in before]), [2])
    stream.reset([0, 2])
    for state, old in zip(states_in(stream), before, strict=True):
        assert_bitwise(state[:, [0, 2]], torch.zeros_like(old[:, :2]))
        assert_bitwise(state[:, [1, 3]], old[:, [1, 3]])
    stream.reset([])
    assert states_in(stream)[0].any()
    stream.reset()
    for state in states_in(stream):
        assert_bitwise(state, torch.zeros_like(state))


@both_cells
def test_states_that_lie_anyhow_or_require_a_gradient_are_loaded(cell: str) -> None:
    stream, twin = make(cell), make(cell)
    given = random_states(stream, ROWS)
    twin.load_state(as_hx(given))
    apart = [state.transpose(0, 2).contiguous().transpose(0, 2) for state in given]
    stream.load_state(as_hx([state.requires_grad_() for state in apart]))
    assert_equal_states(stream, twin)
    assert not any(state.requires_grad for state in states_in(stream))
    alike = [state[:, :1].expand(-1, ROWS, -1) for state in given]
    stream.load_state(as_hx(alike))
    for got, state in zip(states_in(stream), alike, strict=True):
        assert_bitwise(got, state)


def test_a_pair_may_be_a_list_and_cells_may_be_of_the_layer_s_dtype() -> None:
    stream = make(dtype=torch.bfloat16)
    h, c = random_states(stream, ROWS)
    stream.load_state([h, c.bfloat16()])
    assert_bitwise(stream.state()[1], c.bfloat16().float())


# Rows.

# What is meant by [3, 0, 2].
ROWS_AS: dict[str, Any] = {
    "list": [3, 0, 2],
    "tuple": (3, 0, 2),
    "array": np.array([3, 0, 2]),
    "uint8 array": np.array([3, 0, 2], dtype=np.uint8),
    "reversed array": np.array([2, 0, 3])[::-1],
    "list of numpy's": [np.int64(3), np.int32(0), 2],
    "list of tensors": [torch.tensor(3), torch.tensor(0), torch.tensor(2)],
    "int64": torch.tensor([3, 0, 2]),
    "int32": torch.tensor([3, 0, 2], dtype=torch.int32),
    "uint8": torch.tensor([3, 0, 2], dtype=torch.uint8),
    "every second": torch.tensor([3, 9, 0, 9, 2, 9])[::2],
    "parameter": nn.Parameter(torch.tensor([3, 0, 2]), requires_grad=False),
}


@pytest.mark.parametrize("form", ROWS_AS)
def test_rows_come_in_any_form(form: str) -> None:
    stream, twin = with_states(), with_states()
    x = torch.randn(3, SIZE)
    assert_bitwise(stream(x, ROWS_AS[form]), twin(x, torch.tensor([3, 0, 2])))
    assert_equal_states(stream, twin)
    for got, expected in zip(stream.state(ROWS_AS[form]), twin.state([3, 0, 2]), strict=True):
        assert_bitwise(got, expected)
    stream.load_state(twin.state([0, 1, 2]), ROWS_AS[form])
    twin.load_state(twin.state([0, 1, 2]), [3, 0, 2])
    assert_equal_states(stream, twin)
    stream.reset(ROWS_AS[form])
    twin.reset([3, 0, 2])
    assert_equal_states(stream, twin)


@both_cells
def test_all_rows_told_are_all_rows(cell: str) -> None:
    stream, twin = with_states(cell), with_states(cell)
    x = torch.randn(ROWS, 3, SIZE)
    assert_same(stream(x, range(ROWS)), twin(x))
    backwards = [3, 2, 1, 0]
    assert_same(stream(x[backwards], rows=backwards)[backwards], twin(x))
    for got, expected in zip(states_in(stream), states_in(twin), strict=True):
        assert_same(got, expected)


@both_cells
def test_no_rows_and_no_steps_change_nothing(cell: str) -> None:
    stream, twin = with_states(cell), with_states(cell)
    none = torch.empty(0, dtype=torch.int64)
    for rows in ([], (), none, none.int(), torch.tensor([]), np.array([])):
        assert stream(torch.empty(0, SIZE), rows).shape == (0, 17)
        assert stream(torch.empty(0, 3, SIZE), rows).shape == (0, 3, 17)
        assert stream(torch.empty(0, 0, SIZE), rows).shape == (0, 0, 17)
    assert stream(torch.empty(ROWS, 0, SIZE)).shape == (ROWS, 0, 17)
    assert stream(torch.empty(2, 0, SIZE), [3, 1]).shape == (2, 0, 17)
    out = torch.empty(2, 0, 17)
    assert stream(torch.empty(2, 0, SIZE), [3, 1], out) is out
    assert_equal_states(stream, twin)


# x and out.


def spread(x: Tensor) -> Tensor:
    """The same values, each beside one that is not meant."""
    return torch.stack([x, torch.full_like(x, torch.nan)], -1)[..., 0]


# The same values, in another tensor.
X_AS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "spread": spread,
    "a part of wider rows": lambda x: torch.cat([x, x * torch.nan], -1)[..., :SIZE],
    "every second row": lambda x: torch.stack([x, x * torch.nan], 1).flatten(0, 1)[::2],
    "transposed": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "with an offset": lambda x: torch.cat([x[:1] * torch.nan, x])[1:],
    "a parameter": lambda x: nn.Parameter(x, requires_grad=False),
    "conjugated": lambda x: torch.complex(torch.zeros_like(x), -x).conj().imag,
}


@pytest.mark.parametrize("shape", [(ROWS, SIZE), (ROWS, 3, SIZE), (1, SIZE)], ids=str)
@pytest.mark.parametrize("form", X_AS)
def test_x_may_lie_anyhow(form: str, shape: tuple[int, ...]) -> None:
    num_rows = shape[0]
    rnn = nn.LSTM(SIZE, 17, 2)
    stream, twin = StreamingRNN(rnn, num_rows), StreamingRNN(rnn, num_rows)
    x = torch.randn(shape)
    assert_bitwise(X_AS[form](x).detach().resolve_neg(), x)
    assert_bitwise(stream(X_AS[form](x)), twin(x))
    assert_bitwise(stream(X_AS[form](x), range(num_rows)), twin(x, range(num_rows)))
    assert_equal_states(stream, twin)


@both_cells
def test_an_expanded_x_feeds_all_streams_the_same(cell: str) -> None:
    stream, twin = with_states(cell), with_states(cell)
    x = torch.randn(1, 1, SIZE)
    for shape in ((ROWS, SIZE), (ROWS, 3, SIZE)):
        assert_bitwise(
            stream(x.view(1, SIZE).expand(shape) if len(shape) == 2 else x.expand(shape)),
            twin(x.expand(ROWS, 3, SIZE)[:, : 1 if len(shape) == 2 else 3].reshape(shape).clone()),
        )
    assert_equal_states(stream, twin)


# What to write to, around a place of the right shape, all else of which must stay as it is.
OUT_AS: dict[str, Callable[[tuple[int, ...]], tuple[Tensor, Tensor]]] = {
    "contiguous": lambda shape: 2 * (torch.full(shape, torch.nan),),
    "within rows": lambda shape: _within(torch.full((shape[0] + 2, *shape[1:]), 7.0), "rows"),
    "within columns": lambda shape: _within(torch.full((*shape[:-1], shape[-1] + 2), 7.0), "last"),
    "transposed": lambda shape: (
        2 * (torch.full((shape[-1], *shape[1:-1], shape[0]), 7.0).transpose(0, -1),)
    ),
    "spread": lambda shape: _within(torch.full((*shape, 3), 7.0), "spread"),
}


def _within(around: Tensor, where: str) -> tuple[Tensor, Tensor]:
    place = {
        "rows": lambda: around[1:-1],
        "last": lambda: around[..., 1:-1],
        "spread": lambda: around[..., 1],
    }
    return around, place[where]()


@pytest.mark.parametrize("rows", [None, [3, 0]], ids=str)
@pytest.mark.parametrize("num_steps", [None, 1, 3])
@pytest.mark.parametrize("form", OUT_AS)
def test_out_is_written_to_and_returned(form: str, num_steps: int | None, rows: Any) -> None:
    stream, twin = with_states(), with_states()
    count = ROWS if rows is None else 2
    steps = () if num_steps is None else (num_steps,)
    x = torch.randn(count, *steps, SIZE)
    around, place = OUT_AS[form]((count, *steps, 17))
    assert stream(x, rows, out=place) is place
    assert_bitwise(place, twin(x, rows))
    assert_equal_states(stream, twin)
    place.fill_(7)
    assert (around == 7).all()


@pytest.mark.parametrize("num_steps", [None, 3])
@both_cells
def test_out_may_lie_where_x_does(cell: str, num_steps: int | None) -> None:
    """Of so many rows, what comes out of the first ones is written before the last are read."""
    steps = () if num_steps is None else (num_steps,)
    rnn, rows = TORCH[cell](6, 6), 300
    for places in ((0, 0), (1, 0), (0, 1), (0, 6), (18, 0)):
        stream, twin = StreamingRNN(rnn, rows), StreamingRNN(rnn, rows)
        memory = torch.randn(rows * 6 * (num_steps or 1) + 18).numpy()
        parts = [memory[place:][: len(memory) - 18] for place in places]
        x, out = (torch.from_numpy(part).view(rows, *steps, 6) for part in parts)
        expected = twin(x.clone())
        assert stream(x, out=out) is out
        assert_bitwise(out, expected)
        assert_equal_states(stream, twin)


def test_out_is_seen_to_change() -> None:
    """By autograd, as with torch's own: what a backward pass saved may not change unseen."""
    stream = make()
    for out in (torch.zeros(ROWS, 17), torch.zeros(ROWS, 34)[:, ::2]):
        weight = torch.ones(ROWS, 17, requires_grad=True)
        loss = (weight * out).sum()
        stream(torch.randn(ROWS, SIZE), out=out)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_outputs_are_tensors_of_their_own() -> None:
    stream = make()
    first = stream(torch.randn(ROWS, SIZE))
    held = first.clone()
    stream(torch.randn(ROWS, SIZE))
    stream(torch.randn(ROWS, 5, SIZE))
    assert_bitwise(first, held)
