"""Layers with int8 weights: their arithmetic, number by number, in every form of batch."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from helpers import (
    CELLS,
    HAS_EXTENSION,
    OURS,
    as_hx,
    assert_bitwise,
    max_error,
    random_batch,
    random_hx,
)
from int8_truth import Truth, named, product, quantized_weight
from ragged import ANY_BATCH, NAN, Ragged, draw_resets, draw_valid, each_segment_alone, in_form
from torch import Tensor, nn

from varlen_rnn import quantize_dynamic
from varlen_rnn.ops import int8
from varlen_rnn.runtime import extension

# A value that lies on a boundary may be rounded to either side: of 2 * 32639 steps one.
ROUNDING = 1e-5
# Without a step before it, only the functions' own rounding is left.
ROUNDING_OF_ONE_STEP = 1e-6

SHAPES = {
    "I1-H1": {"input_size": 1, "hidden_size": 1},
    "I7-H33": {"input_size": 7, "hidden_size": 33, "num_layers": 2, "bidirectional": True},
    "I16-H16": {"input_size": 16, "hidden_size": 16, "batch_first": True},
    "I31-H48": {"input_size": 31, "hidden_size": 48, "bidirectional": True, "bias": False},
    "I65-H17": {"input_size": 65, "hidden_size": 17, "num_layers": 2},
}
needs_extension = pytest.mark.skipif(not HAS_EXTENSION, reason="a promise of the compiled kernels")


@pytest.fixture(params=["compiled", "reference"] if HAS_EXTENSION else ["reference"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The compiled op, and what stands in for it elsewhere."""
    if request.param == "reference":
        monkeypatch.setattr(extension, "runs", lambda x: False)
    return str(request.param)


def make(cell: str, **options: object) -> nn.RNNBase:
    torch.manual_seed(0)
    rnn = OURS[cell](**options)
    with torch.no_grad():
        for name, parameter in rnn.named_parameters():  # rows of very different scales
            if name.startswith("weight"):
                parameter *= torch.logspace(-3, 0.5, len(parameter))[
                    torch.randperm(len(parameter)), None
                ]
    return rnn


def ragged(num_rows: int, num_steps: int, seed: int, *, kind: str = "random") -> Ragged:
    draw = random.Random(seed)
    valid = draw_valid(draw, kind, num_rows, num_steps)
    if num_rows > 1:
        valid[num_rows // 2] = False  # a row without tokens
    return Ragged(valid, draw_resets(draw, 0.2, num_rows, num_steps))


@pytest.mark.parametrize("form", ANY_BATCH)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cell", CELLS)
def test_every_form_is_what_the_arithmetic_says(
    cell: str, shape: str, form: str, every_isa: str, implementation: str
) -> None:
    rnn = make(cell, **SHAPES[shape])
    batch = ragged(5, 7, seed=1)
    x = random_batch(rnn, 5, 7, seed=3) * 3
    x[~batch.valid] = NAN
    states = [state * 2 for state in random_hx(rnn, 5)]  # above 1, which no output is
    expected, finals = each_segment_alone(Truth(rnn), x, states, batch)
    call = in_form(form, x, batch, batch_first=rnn.batch_first)
    got = named(call, quantize_dynamic(rnn), states)
    truth = {"out": expected, **dict(zip(("h_n", "c_n"), finals, strict=False))}
    assert got.keys() == truth.keys()
    for name, values in truth.items():
        assert max_error(got[name], values) <= ROUNDING, name


@pytest.mark.parametrize("cell", CELLS)
def test_long_rows(cell: str, every_isa: str, implementation: str) -> None:
    rnn = OURS[cell](20, 160, batch_first=True)  # 256 KB hold the gates of about 100 tokens
    batch = Ragged(draw_valid(random.Random(3), "right", 6, 40))
    assert batch.valid.sum() > 120
    x, states = random_batch(rnn, 6, 40), random_hx(rnn, 6)
    expected, _ = each_segment_alone(Truth(rnn), x, states, batch)
    out, _ = in_form("lengths", x, batch)(quantize_dynamic(rnn), states)
    assert max_error(out, expected) <= ROUNDING


@pytest.mark.parametrize("num_rows", [1, 2, 3, 4, 5, 6, 7, 13, 30])
@pytest.mark.parametrize("cell", CELLS)
def test_every_number_of_rows_in_one_step(
    cell: str, num_rows: int, every_isa: str, implementation: str
) -> None:
    for input_size, hidden_size in ((9, 40), (50, 15), (600, 130)):
        rnn = make(cell, input_size=input_size, hidden_size=hidden_size, batch_first=True)
        x, states = random_batch(rnn, num_rows, 1), random_hx(rnn, num_rows)
        batch = Ragged(torch.ones(num_rows, 1, dtype=torch.bool))
        expected, _ = each_segment_alone(Truth(rnn), x, states, batch)
        out, _ = in_form("full", x, batch)(quantize_dynamic(rnn), states)
        assert max_error(out, expected) <= ROUNDING_OF_ONE_STEP


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("size", [2, 518, 519, 2048, 8191])
@pytest.mark.parametrize("cell", CELLS)
def test_the_largest_sums_fit(
    cell: str, size: int, sign: int, every_isa: str, implementation: str
) -> None:
    rnn = OURS[cell](size, 2, bias=False)
    with torch.no_grad():
        rnn.weight_ih_l0.fill_(sign / size)  # every weight 127 in int8, every input the largest
        rnn.weight_hh_l0.fill_(0.25)
    x, states = torch.ones(1, 1, size), random_hx(rnn, 1)
    quantized = quantize_dynamic(rnn)
    assert quantized.weight_ih_l0.abs().max() == 127
    assert int8.activation_max(size) * 127 * size < 2**31
    expected, _ = Truth(rnn)(x[0], as_hx([state[:, 0] for state in states]))
    out, _ = quantized(x, as_hx(states))
    assert max_error(out[0], expected) <= ROUNDING_OF_ONE_STEP


def test_the_product_is_that_of_integers() -> None:
    generator = torch.Generator().manual_seed(0)
    for size in (1, 2, 33, 700):
        x = torch.randn(4, size, generator=generator)
        x[1] = 0
        x[2] *= 1e-20
        weight, bias = torch.randn(9, size, generator=generator), torch.randn(9)
        weight[3] = 0
        q, scale = int8.quantize_weight(weight)
        expected_q, expected_scale = quantized_weight(weight.numpy())
        assert (q.numpy() == expected_q).all()
        assert_bitwise(scale, torch.from_numpy(expected_scale))
        exact = q.double() * scale.double()[:, None]
        got = int8.linear(x.double(), exact, bias.double()).numpy()
        expected = product(x.numpy(), weight.numpy(), bias.numpy())
        assert np.abs(got - expected).max() <= 1e-13 * np.abs(expected).max()


def test_a_weight_is_off_by_half_a_step_at_most() -> None:
    weight = make("lstm", input_size=30, hidden_size=20).weight_ih_l0.detach()
    q, scale = int8.quantize_weight(weight)
    off = (q.double() * scale.double()[:, None] - weight.double()).abs()
    assert bool((off <= 0.5001 * scale.double()[:, None]).all())
    assert bool((q.abs().amax(dim=1) == 127).all())


def error_bound(x: Tensor, weight: Tensor) -> Tensor:
    """How far a product ``[N, rows]`` may be from that of floats: half a step of each factor."""
    q, scale = int8.quantize_weight(weight)
    x_scale = x.abs().amax(1, keepdim=True) / int8.activation_max(x.shape[1])
    of_weights = x.abs().sum(1, keepdim=True) * scale / 2
    of_tokens = x_scale / 2 * (q.float() * scale[:, None]).abs().sum(1)
    return 1.001 * (of_weights + of_tokens) + 1e-6


@pytest.mark.parametrize(("input_size", "hidden_size"), [(8, 16), (100, 60), (256, 256)])
@pytest.mark.parametrize("cell", CELLS)
def test_the_error_of_a_step_is_within_theory(
    cell: str, input_size: int, hidden_size: int, every_isa: str, implementation: str
) -> None:
    torch.manual_seed(0)
    rnn = OURS[cell](input_size, hidden_size)
    x, h = torch.randn(9, input_size), torch.rand(9, hidden_size) * 2 - 1
    with torch.no_grad():
        from_x, from_h = error_bound(x, rnn.weight_ih_l0), error_bound(h, rnn.weight_hh_l0)
        hx = (h[None], torch.zeros(1, 9, hidden_size)) if cell == "lstm" else h[None]
        off = (quantize_dynamic(rnn)(x[None], hx)[0] - rnn(x[None], hx)[0])[0].abs()
        # Slopes: at most 1/4 of a sigmoid, 1 of tanh.
        if cell == "lstm":
            i, _, g, o = (from_x + from_h).chunk(4, dim=1)
            bound = i / 4 + g + o / 4
        else:
            (x_r, x_z, x_n), (h_r, h_z, h_n) = from_x.chunk(3, 1), from_h.chunk(3, 1)
            largest = h @ rnn.weight_hh_l0[2 * hidden_size :].T + rnn.bias_hh_l0[2 * hidden_size :]
            bound = (x_r + h_r) / 4 * (largest.abs() + h_n) + h_n + x_n
            bound = bound + (x_z + h_z) / 4 * 2  # of h - n
    assert bool((off <= bound).all())
    # The bound says something, and there is an error for it to bound.
    assert bound.max() < 0.2
    assert off.max() > 0.01 * bound.max()


@needs_extension
@pytest.mark.parametrize("hidden_size", [33, 320])
@pytest.mark.parametrize("cell", CELLS)
def test_no_bit_depends_on_the_batch_the_form_or_threads(
    cell: str, hidden_size: int, every_isa: str, threads: int
) -> None:
    # The large one in one direction: on two threads few rows are split by units.
    small = {"num_layers": 2, "bidirectional": True} if hidden_size == 33 else {}
    quantized = quantize_dynamic(rnn := OURS[cell](20, hidden_size, **small))
    for num_rows, num_steps in ((1, 40), (3, 40), (70, 6)):
        batch = ragged(num_rows, num_steps, seed=2, kind="holes")
        x, states = random_batch(rnn, num_rows, num_steps), random_hx(rnn, num_rows)
        expected, finals = each_segment_alone(quantized, x, states, batch)
        for form in ANY_BATCH:
            out, got = in_form(form, x, batch, batch_first=False)(quantized, states)
            assert_bitwise(out, expected, form)
            for state, final in zip(got, finals, strict=True):
                assert_bitwise(state, final, form)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("cell", CELLS)
def test_what_is_not_finite_makes_the_rest_of_its_row_nan(
    cell: str, value: float, every_isa: str, implementation: str
) -> None:
    quantized = quantize_dynamic(make(cell, input_size=5, hidden_size=18, batch_first=True))
    x = torch.randn(3, 6, 5)
    clean, _ = quantized(x)
    x[1, 2, 3] = value
    out, _ = quantized(x)
    assert out[1, 2:].isnan().all()
    out[1, 2:] = clean[1, 2:]
    assert_bitwise(out, clean)


@pytest.mark.parametrize("lengths", [[], [0, 0]], ids=["no rows", "empty rows"])
@pytest.mark.parametrize("cell", CELLS)
def test_batches_without_tokens(
    cell: str, lengths: list[int], every_isa: str, implementation: str
) -> None:
    rnn = OURS[cell](3, 5, bidirectional=True)
    num_rows = len(lengths)
    states = random_hx(rnn, num_rows)
    batch = Ragged(torch.zeros(num_rows, 4, dtype=torch.bool))
    x = torch.full((num_rows, 4, 3), NAN)
    out, finals = in_form("mask", x, batch, batch_first=False)(quantize_dynamic(rnn), states)
    assert out.shape == (num_rows, 4, 10)
    assert not out.count_nonzero()
    for final, state in zip(finals, states, strict=True):
        assert_bitwise(final, state)
