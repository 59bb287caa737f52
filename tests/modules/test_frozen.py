"""Frozen layers give the bits of the layers that they were made from; int8 is in test_int8.py."""

from __future__ import annotations

import random

import pytest
import torch
from helpers import (
    CELLS,
    FROZEN_KINDS,
    HAS_EXTENSION,
    OURS,
    assert_bitwise,
    assert_close64,
    random_batch,
    random_hx,
)
from ragged import (
    ANY_BATCH,
    FORMS,
    NAN,
    Ragged,
    draw_resets,
    draw_valid,
    drawn,
    each_segment_alone,
    in_form,
)
from torch import Tensor, nn

from varlen_rnn import freeze

KINDS = {name: kind for name, kind in FROZEN_KINDS.items() if name != "int8"}
SHAPES = {
    "I1-H1": {"input_size": 1, "hidden_size": 1, "num_layers": 2, "batch_first": True},
    "I3-H17": {
        "input_size": 3,
        "hidden_size": 17,
        "num_layers": 2,
        "bidirectional": True,
        "batch_first": True,
    },
    "I17-H65": {"input_size": 17, "hidden_size": 65, "bias": False, "bidirectional": True},
    "I65-H3": {"input_size": 65, "hidden_size": 3, "bidirectional": True},
    "I65-H17-P3": {
        "input_size": 65,
        "hidden_size": 17,
        "proj_size": 3,
        "num_layers": 2,
        "batch_first": True,
    },
    "I3-H65-P17": {
        "input_size": 3,
        "hidden_size": 65,
        "proj_size": 17,
        "bias": False,
        "bidirectional": True,
    },
}
SHAPE_CASES = [
    pytest.param(cell, options, id=f"{cell} {name}")
    for cell in CELLS
    for name, options in SHAPES.items()
    if cell == "lstm" or "proj_size" not in options
]
BATCHES = {
    **dict.fromkeys(ANY_BATCH, drawn("xxR.xx", "......", ".RxrxR", "x.....", "xxxxxx")),
    **dict.fromkeys(("packed", "full"), drawn("xxRxxx", "Rxxxxx", "xxxxxx")),
    "sorted": drawn("xxxRxx", "Rxx...", "xx...."),
    "single": drawn("xxRxxx"),
    "single mask": drawn("xx.Rxx"),
}
every_kind = pytest.mark.parametrize("kind", KINDS)
both_cells = pytest.mark.parametrize("cell", CELLS)


def make(cell: str, kind: str, **options: object) -> tuple[nn.RNNBase, nn.RNNBase]:
    """A frozen layer, and the layer whose bits its results are."""
    dtype, weights = KINDS[kind]
    rnn = OURS[cell](dtype=dtype, **options).eval()
    frozen = freeze(rnn, weights)
    if dtype == torch.float32 and weights == torch.bfloat16:
        with torch.no_grad():
            for name, parameter in rnn.named_parameters():
                if name.startswith("weight"):
                    parameter.copy_(parameter.bfloat16().float())
    return frozen, rnn


def assert_same(
    got: tuple[Tensor, list[Tensor]], expected: tuple[Tensor, list[Tensor]], name: str
) -> None:
    for ours, truth in zip((got[0], *got[1]), (expected[0], *expected[1]), strict=True):
        assert_bitwise(ours, truth, name)


@every_kind
@pytest.mark.parametrize(("cell", "options"), SHAPE_CASES)
@torch.no_grad()
def test_every_form_has_the_bits_of_the_layer(
    cell: str, options: dict[str, object], kind: str, isa: str, threads: int
) -> None:
    frozen, rnn = make(cell, kind, **options)
    for form in FORMS:
        batch = BATCHES[form]
        x = random_batch(rnn, *batch.valid.shape).masked_fill(~batch.valid.unsqueeze(2), NAN)
        call = in_form(form, x, batch, batch_first=rnn.batch_first)
        for states in (random_hx(rnn, len(x)), [])[: 2 if form == "mask" else 1]:
            assert_same(call(frozen, states), call(rnn, states), form)


@every_kind
@both_cells
@torch.no_grad()
def test_every_number_of_rows_in_one_step(cell: str, kind: str, isa: str, threads: int) -> None:
    """Some of which the layer computes from its weights where they lie."""
    for input_size, hidden_size in ((9, 40), (130, 65), (65, 260)):
        frozen, rnn = make(cell, kind, input_size=input_size, hidden_size=hidden_size)
        for num_rows in (1, 2, 3, 5, 8, 17):
            batch = Ragged(torch.ones(num_rows, 1, dtype=torch.bool))
            x, states = random_batch(rnn, num_rows, 1), random_hx(rnn, num_rows)
            call = in_form("full", x, batch, batch_first=False)
            assert_same(call(frozen, states), call(rnn, states), f"{num_rows} of {hidden_size}")


@every_kind
@both_cells
@torch.no_grad()
def test_no_bit_depends_on_the_batch_or_threads(
    cell: str, kind: str, isa: str, threads: int
) -> None:
    # One direction and many units: on two threads few rows are split by units.
    for options in ({"hidden_size": 33, "num_layers": 2, "bidirectional": True},
                    {"hidden_size": 320}):  # fmt: skip
        frozen, rnn = make(cell, kind, input_size=20, **options)
        for num_rows, num_steps in ((1, 20), (3, 10), (40, 4)):
            draw = random.Random(num_rows)
            valid = draw_valid(draw, "holes", num_rows, num_steps)
            batch = Ragged(valid, draw_resets(draw, 0.2, num_rows, num_steps))
            x, states = random_batch(rnn, num_rows, num_steps), random_hx(rnn, num_rows)
            call = in_form("mask", x, batch, batch_first=False)
            got = call(frozen, states)
            assert_same(got, call(rnn, states), f"{num_rows} rows")
            if HAS_EXTENSION:
                assert_same(got, each_segment_alone(frozen, x, states, batch), "alone")


@both_cells
@torch.no_grad()
def test_float64_is_as_exact_as_torch_s_layer(cell: str, isa: str) -> None:
    """An independent truth: the layer's own bits could be wrong, too."""
    torch.manual_seed(0)
    theirs = {"lstm": nn.LSTM, "gru": nn.GRU}[cell](17, 65, 2, bidirectional=True).double()
    batch = BATCHES["lengths"]
    x, states = random_batch(theirs, *batch.valid.shape), random_hx(theirs, len(batch.valid))
    out, finals = each_segment_alone(theirs, x, states, batch)
    got, got_finals = in_form("lengths", x, batch, batch_first=False)(freeze(theirs), states)
    names = ("out", "h_n", "c_n")
    assert_close64(
        dict(zip(names, (got, *got_finals), strict=False)),
        dict(zip(names, (out, *finals), strict=False)),
    )


@pytest.mark.parametrize("value", [NAN, float("inf"), -float("inf")])
@every_kind
@both_cells
@torch.no_grad()
def test_what_is_not_finite_stays_in_its_row(cell: str, kind: str, value: float, isa: str) -> None:
    frozen, rnn = make(cell, kind, input_size=5, hidden_size=18, batch_first=True)
    x = random_batch(rnn, 3, 6)
    clean, _ = frozen(x)
    x[1, 2, 4] = value  # the last of an odd number of features
    (out, _), (truth, _) = frozen(x), rnn(x)
    assert torch.equal(out.isnan(), truth.isnan())
    torch.testing.assert_close(out, truth, rtol=0, atol=0, equal_nan=True)
    out[1, 2:] = clean[1, 2:]
    assert_bitwise(out, clean)


@pytest.mark.parametrize("lengths", [[], [0, 0]], ids=["no rows", "empty rows"])
@every_kind
@both_cells
def test_batches_without_tokens(cell: str, kind: str, lengths: list[int], isa: str) -> None:
    frozen, rnn = make(cell, kind, input_size=3, hidden_size=5, bidirectional=True)
    num_rows = len(lengths)
    states = random_hx(rnn, num_rows)
    batch = Ragged(torch.zeros(num_rows, 4, dtype=torch.bool))
    x = random_batch(rnn, num_rows, 4) * NAN
    for form in ("mask", "flat"):
        out, finals = in_form(form, x, batch, batch_first=False)(frozen, states)
        assert out.shape == (num_rows, 4, 10)
        assert out.dtype == x.dtype
        assert not out.count_nonzero()
        for final, state in zip(finals, states, strict=True):
            assert_bitwise(final, state)


@every_kind
@both_cells
@torch.no_grad()
def test_dropout_between_layers_drops_the_same(cell: str, kind: str) -> None:
    frozen, rnn = make(cell, kind, input_size=3, hidden_size=5, num_layers=3, dropout=0.5)
    x = random_batch(rnn, 4, 6)
    results = []
    for module in (frozen.train(), rnn.train()):
        torch.manual_seed(7)
        results.append(module(x)[0])
    assert_bitwise(*results)
    assert not torch.equal(results[0], frozen.eval()(x)[0])
    assert_bitwise(frozen(x)[0], rnn.eval()(x)[0])


def test_biases_are_not_rounded() -> None:
    """The layer of the tests above is made by hand: here the rounding is seen on its own."""
    rnn = OURS["gru"](3, 4)
    with torch.no_grad():
        rnn.bias_ih_l0.fill_(1 + 2**-20)
        rnn.weight_ih_l0.fill_(1 + 2**-20)
    frozen = freeze(rnn, weights=torch.bfloat16)
    assert frozen.bias_ih_l0.dtype == torch.float32
    assert set(frozen.bias_ih_l0.unique().tolist()) <= {0, 1 + 2**-20}
    assert frozen.weight_ih_l0.dtype == torch.bfloat16
    assert set(frozen.weight_ih_l0.unique().tolist()) <= {0, 1}
