"""Dropout between layers."""

from __future__ import annotations

import pytest
import torch
from helpers import CELLS, OURS, assert_bitwise, pair, random_hx, states_of
from torch.nn.utils.rnn import pack_padded_sequence

LENGTHS = [5, 2, 9, 1]
both_cells = pytest.mark.parametrize("cell", CELLS)


@both_cells
def test_on_packed_tokens_it_is_that_of_torch(cell: str) -> None:
    theirs, ours = pair(cell, 3, 5, 3, dropout=0.4, bidirectional=True, dtype=torch.float64)
    x = torch.randn(9, 4, 3, dtype=torch.float64)
    packed = pack_padded_sequence(x, LENGTHS, enforce_sorted=False)
    results = []
    for rnn in (theirs, ours):
        torch.manual_seed(7)
        out, hx = rnn(packed)
        loss = out.data.square().sum()
        gradients = torch.autograd.grad(loss, list(rnn.parameters()))
        results.append([out.data, *states_of(hx), *gradients])
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-11)


@both_cells
def test_dropping_everything_leaves_the_next_layer_its_biases(cell: str) -> None:
    theirs, ours = pair(cell, 3, 5, 2, dropout=1.0, batch_first=True)
    out, hx = ours(torch.randn(4, 9, 3), lengths=LENGTHS)
    second = OURS[cell](5, 5, batch_first=True)
    second.load_state_dict(
        {name.replace("_l1", "_l0"): w for name, w in theirs.state_dict().items() if "_l1" in name}
    )
    expected, expected_hx = second(torch.zeros(4, 9, 5), lengths=LENGTHS)
    torch.testing.assert_close(out, expected)
    for got, truth in zip(states_of(hx), states_of(expected_hx), strict=True):
        torch.testing.assert_close(got[1:], truth)


@both_cells
def test_it_keeps_the_mean_and_has_the_variance_of_its_rate(cell: str) -> None:
    rate, num_samples = 0.3, 4000
    rnn = OURS[cell](1, 2, 2, dropout=rate, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        for weight in rnn.parameters():
            weight.zero_()
        # A second layer so weak that it is linear: its output is proportional to what it is given.
        gate = slice(4, 6)
        rnn.bias_ih_l0[gate] = 1.0
        rnn.weight_ih_l1[gate] = 1e-6 * torch.eye(2)
        out, _ = rnn(torch.zeros(num_samples, 1, 1, dtype=torch.float64), lengths=[1] * num_samples)
        full, _ = rnn.eval()(torch.zeros(1, 1, 1, dtype=torch.float64))
    kept = out.flatten() / full.flatten()[0]
    assert set(kept.round(decimals=3).tolist()) == {0.0, round(1 / (1 - rate), 3)}
    deviation = (rate / (1 - rate) / kept.numel()) ** 0.5
    assert abs(float(kept.mean()) - 1) < 5 * deviation


@both_cells
def test_the_same_seed_gives_the_same_bits_and_another_does_not(cell: str) -> None:
    rnn = OURS[cell](3, 5, 2, dropout=0.5, batch_first=True)
    x = torch.randn(4, 9, 3)

    def run(seed: int) -> list[torch.Tensor]:
        torch.manual_seed(seed)
        out, _ = rnn(x, lengths=LENGTHS)
        return [out.detach(), *torch.autograd.grad(out.square().sum(), list(rnn.parameters()))]

    first, second, other = run(1), run(1), run(2)
    for a, b in zip(first, second, strict=True):
        assert_bitwise(a, b)
    assert not torch.equal(first[0], other[0])


@both_cells
def test_in_evaluation_there_is_none_and_no_random_number_is_drawn(cell: str) -> None:
    theirs, ours = pair(cell, 3, 5, 2, dropout=0.5, batch_first=True, dtype=torch.float64)
    x, before = torch.randn(4, 9, 3, dtype=torch.float64), torch.get_rng_state()
    got, _ = ours.eval()(x)
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(got, theirs.eval()(x)[0], rtol=0, atol=1e-12)


@both_cells
def test_it_touches_neither_the_last_output_nor_the_states_between(cell: str) -> None:
    rnn = OURS[cell](3, 5, 2, dropout=0.5, batch_first=True)
    x, states = torch.randn(4, 9, 3), random_hx(rnn, 4)
    hx = states[0] if cell == "gru" else tuple(states)
    out, finals = rnn(x, hx, lengths=[9] * 4)
    assert (out != 0).all()
    h_n = states_of(finals)[0]
    assert torch.equal(h_n[1], out[:, -1])
    _, undropped = rnn.eval()(x, hx, lengths=[9] * 4)
    assert torch.equal(h_n[0], states_of(undropped)[0][0])
