"""The specification itself, pinned to torch.nn."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers import (
    CELLS,
    TORCH,
    Segment,
    assert_close64,
    assert_only_h_is_rounded,
    layout_of,
    leaves_of,
    random_batch,
    random_hx,
    rows_as_segments,
    torch_packed,
    torch_per_segment,
    with_gradients,
)
from torch import Tensor, nn

from varlen_rnn import reference
from varlen_rnn.layout import Layout

DOUBLE = {"dtype": torch.float64}
RESETS = [
    Segment(row=0, start=0, length=3, initial_row=0, final_row=-1),
    Segment(row=0, start=3, length=2, initial_row=-1, final_row=0),
    Segment(row=1, start=0, length=4, initial_row=-1, final_row=1),
    Segment(row=3, start=1, length=1, initial_row=3, final_row=-1),
    Segment(row=3, start=2, length=1, initial_row=-1, final_row=-1),
    Segment(row=3, start=4, length=1, initial_row=-1, final_row=3),
    Segment(row=4, start=0, length=5, initial_row=4, final_row=-1),
]
OPTIONS = {
    "plain": {},
    "bidirectional": {"bidirectional": True},
    "no bias": {"bias": False},
    "projected": {"proj_size": 2},
    "projected bidirectional": {"proj_size": 2, "bidirectional": True, "bias": False},
}
CASES = [
    pytest.param(cell, options, id=f"{cell} {name}")
    for cell in CELLS
    for name, options in OPTIONS.items()
    if cell == "lstm" or "proj_size" not in options
]


def one_layer(cell: str, options: dict[str, object]) -> nn.RNNBase:
    return TORCH[cell](3, 5, batch_first=True, **DOUBLE, **options)


def run_reference(
    rnn: nn.RNNBase, x: Tensor, states: list[Tensor], batch: Layout
) -> tuple[Tensor, list[Tensor]]:
    """The reference on the weights of a torch module; ``x`` is ``[B, T, I]``."""
    kinds = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"]
    is_lstm = rnn.mode == "LSTM"
    suffixes = ["_l0", "_l0_reverse"][: 2 if rnn.bidirectional else 1]
    weights = [
        [getattr(rnn, kind + suffix) for suffix in suffixes if hasattr(rnn, kind + suffix)]
        for kind in kinds + ["weight_hr"] * is_lstm
    ]
    layer = reference.lstm if is_lstm else reference.gru
    initial = states or [None] * (2 if is_lstm else 1)
    out, *finals = layer(x.flatten(0, 1), *initial, *weights, batch)
    return out.view(*x.shape[:2], -1), finals


@pytest.mark.parametrize("with_hx", [False, True], ids=["zeros", "hx"])
@pytest.mark.parametrize(("cell", "options"), CASES)
@pytest.mark.parametrize("truth", [torch_packed, torch_per_segment])
def test_ragged_rows_equal_torch(
    cell: str, options: dict[str, object], with_hx: bool, truth: Callable[..., object]
) -> None:
    rnn = one_layer(cell, options)
    lengths = [3, 0, 6, 1, 6, 0, 2]
    x = random_batch(rnn, len(lengths), 6)
    states = random_hx(rnn, len(lengths)) if with_hx else []
    leaves = leaves_of(rnn, x, states)
    segments = rows_as_segments(lengths)
    bidirectional = rnn.bidirectional
    batch = layout_of(segments, len(lengths), 6, bidirectional=bidirectional)
    got = with_gradients(run_reference(rnn, x, states, batch), leaves)
    rows = lengths if truth is torch_packed else segments
    assert_close64(got, with_gradients(truth(rnn, x, states, rows), leaves))


@pytest.mark.parametrize("with_hx", [False, True], ids=["zeros", "hx"])
@pytest.mark.parametrize(("cell", "options"), CASES)
def test_segments_start_and_end_where_the_layout_says(
    cell: str, options: dict[str, object], with_hx: bool
) -> None:
    rnn = one_layer(cell, options)
    x = random_batch(rnn, 5, 5)
    states = random_hx(rnn, 5) if with_hx else []
    leaves = leaves_of(rnn, x, states)
    batch = layout_of(RESETS, 5, 5, bidirectional=rnn.bidirectional)
    got = with_gradients(run_reference(rnn, x, states, batch), leaves)
    assert_close64(got, with_gradients(torch_per_segment(rnn, x, states, RESETS), leaves))


def test_one_step_equals_lstm_cell() -> None:
    cell = nn.LSTMCell(3, 5, **DOUBLE)
    x, h, c = (torch.randn(4, size, **DOUBLE) for size in (3, 5, 5))
    from_x = F.linear(x, cell.weight_ih, cell.bias_ih)
    got = reference.lstm_cell(from_x, (h, c), cell.weight_hh, cell.bias_hh, None)
    torch.testing.assert_close(got, cell(x, (h, c)), rtol=0, atol=1e-14)


def test_one_step_equals_gru_cell() -> None:
    cell = nn.GRUCell(3, 5, **DOUBLE)
    x, h = torch.randn(4, 3, **DOUBLE), torch.randn(4, 5, **DOUBLE)
    from_x = F.linear(x, cell.weight_ih, cell.bias_ih)
    (got,) = reference.gru_cell(from_x, (h,), cell.weight_hh, cell.bias_hh)
    torch.testing.assert_close(got, cell(x, h), rtol=0, atol=1e-14)


@pytest.mark.parametrize(("cell", "options"), CASES)
def test_it_is_differentiable_twice(cell: str, options: dict[str, object]) -> None:
    rnn = TORCH[cell](2, 3, batch_first=True, **DOUBLE, **options)
    segments = [RESETS[0], RESETS[1], Segment(1, 0, 2, 1, 1)]
    batch = layout_of(segments, 2, 5, bidirectional=rnn.bidirectional)
    x, states = random_batch(rnn, 2, 5), random_hx(rnn, 2)
    leaves = leaves_of(rnn, x, states)

    def function(*_: Tensor) -> tuple[Tensor, ...]:
        out, finals = run_reference(rnn, x, states, batch)
        return out, *finals

    assert torch.autograd.gradcheck(function, tuple(leaves.values()))
    assert torch.autograd.gradgradcheck(function, tuple(leaves.values()), fast_mode=True)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_16_bit_types_round_the_hidden_state_after_every_step_and_nothing_else(
    cell: str, dtype: torch.dtype
) -> None:
    batch = layout_of(rows_as_segments([20] * 16), 16, 20, bidirectional=False)
    assert_only_h_is_rounded(cell, dtype, lambda rnn, x: run_reference(rnn, x, [], batch))
