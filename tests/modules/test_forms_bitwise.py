"""The same tokens in any form have the same outputs and final states, to the bit."""

from __future__ import annotations

import random

import pytest
import torch
from helpers import CELLS, HAS_EXTENSION, assert_bitwise, pair, random_batch, random_hx
from ragged import (
    ANY_BATCH,
    FORMS,
    NAN,
    Ragged,
    draw_resets,
    draw_valid,
    each_segment_alone,
    in_form,
)
from torch import Tensor

pytestmark = pytest.mark.skipif(not HAS_EXTENSION, reason="a promise of the compiled kernels")

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}
SHAPES = {
    "odd": {"input_size": 7, "hidden_size": 33, "num_layers": 2, "bidirectional": True},
    "one direction": {"input_size": 3, "hidden_size": 16, "batch_first": True},
}


@pytest.mark.parametrize("resets", [None, 0.3, 1.0], ids=["no resets", "resets", "all resets"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_the_form_changes_no_bit(
    cell: str, dtype: str, shape: str, resets: float | None, one_isa: str, threads: int
) -> None:
    _, rnn = pair(cell, **SHAPES[shape], dtype=DTYPES[dtype])
    draw = random.Random(1)
    num_rows, num_steps = 7, 12
    valid = draw_valid(draw, "random", num_rows, num_steps)
    flags = None if resets is None else draw_resets(draw, resets, num_rows, num_steps)
    x, states = random_batch(rnn, num_rows, num_steps), random_hx(rnn, num_rows)
    x = x.masked_fill(~valid.unsqueeze(2), NAN)
    with torch.no_grad():
        for kept, forms in ((slice(None), ANY_BATCH), *_kept_rows(valid)):
            batch = Ragged(valid[kept], None if flags is None else flags[kept])
            given = [s[:, kept] for s in states]
            expected, finals = each_segment_alone(rnn, x[kept], given, batch)
            for form in forms:
                call = in_form(form, x[kept], batch, batch_first=rnn.batch_first)
                out, got = call(rnn, given)
                assert_bitwise(out, expected, form)
                for name, state, final in zip(("h_n", "c_n"), got, finals, strict=False):
                    assert_bitwise(state, final, f"{form}: {name}")


def _kept_rows(valid: Tensor) -> list[tuple[Tensor, tuple[str, ...]]]:
    """Rows, and forms that hold them though not every batch."""
    lengths = valid.sum(1)
    by_length = lengths.argsort(descending=True)
    return [
        (torch.arange(len(valid)), ("packed",)),
        (by_length, ("sorted", *ANY_BATCH)),
        (by_length[:1], ("single mask", "packed", "sorted", *ANY_BATCH)),
    ]


@pytest.mark.parametrize("cell", CELLS)
def test_rows_without_padding_in_every_form_change_no_bit(cell: str, isa: str) -> None:
    _, rnn = pair(cell, **SHAPES["odd"])
    x, states = random_batch(rnn, 4, 9), random_hx(rnn, 4)
    resets = draw_resets(random.Random(2), 0.3, 4, 9)
    with torch.no_grad():
        for rows in (slice(0, 4), slice(0, 1)):
            batch = Ragged(torch.ones_like(resets[rows]), resets[rows])
            given = [s[:, rows] for s in states]
            expected, finals = each_segment_alone(rnn, x[rows], given, batch)
            for form in FORMS if rows == slice(0, 1) else FORMS[2:]:
                out, got = in_form(form, x[rows], batch, batch_first=False)(rnn, given)
                assert_bitwise(out, expected, form)
                for state, final in zip(got, finals, strict=True):
                    assert_bitwise(state, final, form)


@pytest.mark.parametrize("form", ANY_BATCH)
@pytest.mark.parametrize("cell", CELLS)
def test_training_and_inference_agree_to_the_bit(cell: str, form: str, isa: str) -> None:
    _, rnn = pair(cell, **SHAPES["odd"])
    draw = random.Random(3)
    batch = Ragged(draw_valid(draw, "holes", 5, 9), draw_resets(draw, 0.3, 5, 9))
    x, states = random_batch(rnn, 5, 9), random_hx(rnn, 5)
    call = in_form(form, x, batch, batch_first=False)
    out, finals = call(rnn.train(), states)
    assert out.requires_grad
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            again, finals_again = call(rnn.eval(), states)
        assert_bitwise(again, out.detach(), form)
        for got, expected in zip(finals_again, finals, strict=True):
            assert_bitwise(got, expected.detach(), form)
