"""``torch.func.vmap`` over inputs, forms and weights, against torch's modules or a loop."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from func_modules import (
    BATCH,
    CLOSE,
    FORMS,
    NAN,
    Weights,
    both_cells,
    data,
    loss_of,
    modules,
    weights_of,
)
from helpers import OURS, as_hx, random_batch, random_hx
from ragged import Ragged, drawn, each_segment_alone, in_form
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn.utils.rnn import PackedSequence

# Forward mode's own functions are made by torch.jit.script; vmap packs one sample after the other.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.*is (deprecated|not supported)"),
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
]


@pytest.mark.parametrize("form", [*FORMS, "packed"])
@both_cells
def test_vmap_over_inputs(cell: str, form: str) -> None:
    theirs, ours = modules(cell)
    batch = drawn("xR.x", "xx..", ".xrx") if form == "packed" else BATCH
    xs, states = data(theirs, 5, 3, 4), random_hx(theirs, 3)

    def run(x: Tensor) -> tuple[Tensor, list[Tensor]]:
        return in_form(form, x, batch)(ours, states)

    out, finals = vmap(run)(xs)
    for index, x in enumerate(xs):
        true_out, true_finals = each_segment_alone(theirs, x, states, batch)
        torch.testing.assert_close(out[index], true_out, **CLOSE)
        torch.testing.assert_close([f[index] for f in finals], true_finals, **CLOSE)


def of_each(num_samples: int) -> tuple[Tensor, Tensor, list[Ragged]]:
    """A mask and resets of each sample; some have no tokens at all, or nothing but resets."""
    mask = torch.rand(num_samples, 3, 4) < 0.6
    resets = torch.rand(num_samples, 3, 4) < 0.3
    mask[0], resets[-1] = False, True
    return mask, resets, [Ragged(m, r) for m, r in zip(mask, resets, strict=True)]


@pytest.mark.parametrize("num_samples", [1, 2, 6])
@both_cells
def test_vmap_over_batches_of_their_own_shapes(cell: str, num_samples: int) -> None:
    """NaN in padding included, and gradients, too."""
    theirs, ours = modules(cell)
    mask, resets, batches = of_each(num_samples)
    xs = data(theirs, num_samples, 3, 4).masked_fill(~mask.unsqueeze(-1), NAN)
    states = [torch.stack([s * k for k in range(num_samples)]) for s in random_hx(theirs, 3)]

    def run(x: Tensor, mask: Tensor, resets: Tensor, *states: Tensor) -> tuple[Tensor, Any]:
        return ours(x, as_hx(states), mask=mask, resets=resets)

    def loss(*args: Tensor) -> Tensor:
        out, hx = run(*args)
        return loss_of(out) + sum(loss_of(s) for s in (hx if cell == "lstm" else [hx]))

    out, _ = vmap(run)(xs, mask, resets, *states)
    d_xs = vmap(grad(loss))(xs, mask, resets, *states)
    for index, batch in enumerate(batches):
        x = xs[index].clone().requires_grad_()
        true_out, finals = each_segment_alone(theirs, x, [s[index] for s in states], batch)
        torch.testing.assert_close(out[index], true_out, **CLOSE)
        true_loss = loss_of(true_out) + sum(loss_of(s) for s in finals)
        if not batch.valid.any():
            assert not d_xs[index].any()
            continue
        (d_x,) = torch.autograd.grad(true_loss, x)
        torch.testing.assert_close(d_xs[index], d_x, **CLOSE)


@both_cells
def test_vmap_over_flags_that_are_floats_or_have_a_last_dimension(cell: str) -> None:
    _, rnn = modules(cell)
    mask, resets, _ = of_each(3)
    xs = data(rnn, 3, 3, 4)

    def loss(x: Tensor, mask: Tensor, resets: Tensor) -> Tensor:
        return loss_of(rnn(x, mask=mask, resets=resets)[0])

    expected = vmap(grad(loss))(xs, mask, resets)
    for given in ((mask.float(), resets.half()), (mask, resets.unsqueeze(-1).double())):
        torch.testing.assert_close(vmap(grad(loss))(xs, *given), expected, rtol=0, atol=0)
        torch.testing.assert_close(grad(loss)(xs[1], *[g[1] for g in given]), expected[1], **CLOSE)
    wrong = resets.float() * 0.5
    with pytest.raises(ValueError, match=r"resets must be .*, got 0\.5 at index \[\d, \d\]$"):
        vmap(loss)(xs, mask, wrong)


@both_cells
def test_vmap_over_cells_lengths_and_cu_seqlens(cell: str) -> None:
    """Also with one of them inside another, and along other dimensions than the first."""
    _, rnn = modules(cell)
    xs = data(rnn, 2, 4, 3, 5)
    lengths = torch.tensor([[5, 0, 2], [1, 4, 5]])
    expected = torch.stack(
        [
            torch.stack([rnn(x, lengths=row)[0] for x in some])
            for some, row in zip(xs, lengths, strict=True)
        ]
    )

    def run(x: Tensor, lengths: Tensor) -> Tensor:
        return rnn(x, lengths=lengths)[0]

    got = vmap(vmap(run, (0, None)), (0, 1))(xs, lengths.t())
    torch.testing.assert_close(got, expected, **CLOSE)
    got = vmap(vmap(run, (0, 0)), (1, None))(xs, lengths)
    torch.testing.assert_close(got.transpose(0, 1), expected, **CLOSE)
    if cell == "lstm":
        cells = vmap(lambda x, row: rnn(x, lengths=row, output_states=True)[0][1])(
            xs[:, 0], lengths
        )
        for index in range(2):
            (_, single), _ = rnn(xs[index, 0], lengths=lengths[index], output_states=True)
            torch.testing.assert_close(cells[index], single, **CLOSE)
    flat, bounds = data(rnn, 2, 7), torch.tensor([[0, 5, 5, 7], [0, 1, 4, 7]])
    got = vmap(lambda x, cu: rnn(x, cu_seqlens=cu)[0])(flat, bounds)
    for index in range(2):
        single, _ = rnn(flat[index], cu_seqlens=bounds[index])
        torch.testing.assert_close(got[index], single, **CLOSE)


@pytest.mark.parametrize("own_lengths", [False, True])
@both_cells
def test_gradients_of_each_sample(cell: str, own_lengths: bool) -> None:
    """As for differential privacy: of every weight for every row, each clipped by itself."""
    theirs, ours = modules(cell)
    head = nn.Linear(2 * (theirs.proj_size or 4), 1, dtype=torch.float64)
    x = data(theirs, 5, 6)
    lengths = torch.tensor([6, 0, 3, 1, 4]) if own_lengths else torch.full((5,), 6)

    def loss(weights: Weights, x: Tensor, length: Tensor) -> Tensor:
        keywords = {"lengths": length.unsqueeze(0)} if own_lengths else {}
        out, _ = functional_call(ours, weights, (x.unsqueeze(0),), keywords)
        return head(out).square().sum()

    got = vmap(grad(loss), (None, 0, 0))(weights_of(ours), x, lengths)
    for index, length in enumerate(lengths.tolist()):
        out = (
            theirs(x[index : index + 1, :length])[0]
            if length
            else x.new_zeros(1, 0, head.in_features)
        )
        padded = nn.functional.pad(out, (0, 0, 0, 6 - length))
        expected = torch.autograd.grad(
            head(padded).square().sum() + 0 * sum(p.sum() for p in theirs.parameters()),
            list(theirs.parameters()),
        )
        torch.testing.assert_close([g[index] for g in got.values()], list(expected), **CLOSE)


@both_cells
def test_an_ensemble_of_stacked_weights(cell: str) -> None:
    """Values, and gradients that reach the stacked weights."""
    pairs = [modules(cell) for _ in range(3)]
    for index, (theirs, ours) in enumerate(pairs):
        with torch.no_grad():
            for p, q in zip(theirs.parameters(), ours.parameters(), strict=True):
                p.mul_(1 + index)
                q.copy_(p)
    weights, buffers = stack_module_state([ours for _, ours in pairs])
    x = data(pairs[0][0], 3, 4)
    skeleton = copy.deepcopy(pairs[0][1]).to("meta")

    def run(weights: Weights, x: Tensor) -> Tensor:
        call = {"mask": BATCH.valid, "resets": BATCH.resets}
        return functional_call(skeleton, (weights, buffers), (x,), call)[0]

    out = vmap(run, (0, None))(weights, x)
    loss_of(out).backward()
    for index, (theirs, _) in enumerate(pairs):
        true_out, _ = each_segment_alone(theirs, x, [], BATCH)
        torch.testing.assert_close(out[index], true_out, **CLOSE)
        expected = torch.autograd.grad(loss_of(true_out), list(theirs.parameters()))
        torch.testing.assert_close(
            [w.grad[index] for w in weights.values()], list(expected), **CLOSE
        )


@both_cells
def test_dropout_under_vmap_is_as_torch_has_it(cell: str) -> None:
    rnn = OURS[cell](3, 8, 2, dropout=0.5)
    x = torch.randn(4, 2, 3).expand(3, 4, 2, 3)

    def run(x: Tensor) -> Tensor:
        return rnn(x, lengths=[4, 2])[0]

    with pytest.raises(RuntimeError, match="randomness"):
        vmap(run)(x)
    same = vmap(run, randomness="same")(x)
    assert torch.equal(same[0], same[1])
    different = vmap(run, randomness="different")(x)
    assert not torch.equal(different[0], different[1])
    rnn.eval()
    torch.testing.assert_close(vmap(run)(x)[1], run(x[1]))


@both_cells
def test_sixteen_bits_under_a_transform(cell: str) -> None:
    """Held states are not rounded again."""
    rnn = OURS[cell](3, 4, batch_first=True, dtype=torch.bfloat16)
    xs = random_batch(rnn, 6, 4).view(2, 3, 4, 3)
    lengths = torch.tensor([[4, 0, 2], [1, 3, 4]])
    out, hx = vmap(lambda x, row: rnn(x, lengths=row))(xs, lengths)
    assert out.dtype == torch.bfloat16
    for index in range(2):
        single, single_hx = rnn(xs[index], lengths=lengths[index])
        torch.testing.assert_close(out[index], single, rtol=0, atol=2**-7)
        for got, expected in zip(
            hx if cell == "lstm" else [hx],
            single_hx if cell == "lstm" else [single_hx],
            strict=True,
        ):
            torch.testing.assert_close(got[index], expected, rtol=0, atol=2**-6)


@both_cells
def test_samples_that_make_no_batch_are_refused(cell: str) -> None:
    rnn = OURS[cell](3, 4, batch_first=True)

    def packed(data: Tensor, batch_sizes: Tensor) -> Tensor:
        return rnn(PackedSequence(data, batch_sizes, None, None))[0].data

    for batch_sizes in ([[3, 2, 1], [2, 2, 2]], [[2, 2, 2], [3, 2, 1]]):
        with pytest.raises(ValueError, match=r"must have the same number of rows, got \[2, 3\]"):
            vmap(packed)(torch.randn(2, 6, 3), torch.tensor(batch_sizes))
    none = torch.zeros(0, 3, 5, 3), torch.zeros(0, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"at least one sample is needed .*, got 0"):
        vmap(lambda x, lengths: rnn(x, lengths=lengths)[0])(*none)
