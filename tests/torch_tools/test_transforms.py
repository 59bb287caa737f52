"""``torch.func`` and forward mode: each transform against torch's modules, or a loop of our own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import CELLS, OURS, as_hx, assert_bitwise, pair, random_batch, random_hx
from ragged import ANY_BATCH, Ragged, drawn, each_segment_alone, in_form
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import (
    functional_call,
    grad,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    stack_module_state,
    vjp,
    vmap,
)
from torch.nested import nested_tensor_from_jagged
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

# Forward mode's own functions are made by torch.jit.script; vmap packs one sample after the other.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.*is (deprecated|not supported)"),
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
]
both_cells = pytest.mark.parametrize("cell", CELLS)
CLOSE = {"rtol": 0, "atol": 1e-12}
NAN = float("nan")
BATCH = drawn("xR.x", "....", ".xrx")
# Torch makes no NestedTensor of what is batched or wrapped (a test below says so).
FORMS = tuple(form for form in ANY_BATCH if not form.startswith("nested"))
SHAPES: dict[str, dict[str, Any]] = {
    "lstm": {"num_layers": 2, "bidirectional": True, "proj_size": 3},
    "gru": {"num_layers": 2, "bidirectional": True},
}
Weights = dict[str, Tensor]


def modules(cell: str, **options: Any) -> tuple[nn.RNNBase, nn.RNNBase]:
    """Torch's and ours, in float64."""
    shape = SHAPES[cell] | options
    return pair(cell, 3, 4, batch_first=True, dtype=torch.float64, **shape)


def weights_of(rnn: nn.Module) -> Weights:
    return {name: p.detach() for name, p in rnn.named_parameters()}


def data(rnn: nn.RNNBase, *sizes: int) -> Tensor:
    return torch.randn(*sizes, rnn.input_size, dtype=torch.float64)


def loss_of(out: Tensor) -> Tensor:
    return torch.sin(2 * out).sum()


def true_loss(rnn: nn.RNNBase, x: Tensor, batch: Ragged) -> Tensor:
    return loss_of(each_segment_alone(rnn, x, [], batch)[0])


@pytest.mark.parametrize("form", FORMS)
@both_cells
def test_grad_and_vjp_in_every_form(cell: str, form: str) -> None:
    theirs, ours = modules(cell)
    x = data(theirs, 3, 4).requires_grad_()
    expected = torch.autograd.grad(true_loss(theirs, x, BATCH), [x, *theirs.parameters()])
    x = x.detach()

    def loss(x: Tensor, weights: Weights) -> Tensor:
        def run(*args: Any, **keywords: Any) -> Any:
            return functional_call(ours, weights, args, keywords)

        return loss_of(in_form(form, x, BATCH)(run)[0])

    d_x, d_weights = grad(loss, (0, 1))(x, weights_of(ours))
    torch.testing.assert_close([d_x, *d_weights.values()], list(expected), **CLOSE)
    value, pull = vjp(loss, x, weights_of(ours))
    torch.testing.assert_close(pull(torch.ones_like(value))[0], expected[0], **CLOSE)


@both_cells
def test_derivatives_of_derivatives(cell: str) -> None:
    theirs, ours = modules(cell, num_layers=1)
    x = data(theirs, 3, 4)
    tangent = data(theirs, 3, 4)
    lengths = BATCH.lengths

    def true(x: Tensor) -> Tensor:
        return true_loss(theirs, x, Ragged(torch.arange(4) < lengths.unsqueeze(1)))

    def loss(x: Tensor) -> Tensor:
        return loss_of(ours(x, lengths=lengths)[0])

    expected = torch.autograd.functional.hessian(true, x)
    torch.testing.assert_close(hessian(loss)(x), expected, **CLOSE)
    torch.testing.assert_close(jacrev(grad(loss))(x), expected, **CLOSE)
    along = (expected.view(36, 36) @ tangent.view(36)).view(3, 4, 3)
    torch.testing.assert_close(jvp(grad(loss), (x,), (tangent,))[1], along, **CLOSE)
    torch.testing.assert_close(grad(lambda x: (grad(loss)(x) * tangent).sum())(x), along, **CLOSE)
    vectorized = torch.autograd.functional.hessian(loss, x, vectorize=True)
    torch.testing.assert_close(vectorized, expected, **CLOSE)


@both_cells
def test_the_gradient_of_a_graph_made_before_is_transformed(cell: str) -> None:
    """As with torch's modules, whose backward pass is made of operations that can be."""
    theirs, ours = modules(cell)
    x = data(theirs, 3, 4).requires_grad_()
    d_out, tangent = (torch.randn_like(theirs(x)[0]) for _ in range(2))
    results: list[list[Tensor]] = []
    for rnn in (theirs, ours):
        out, _ = rnn(x)

        def pull(d_out: Tensor, out: Tensor = out, create_graph: bool = False) -> Tensor:
            return torch.autograd.grad(
                out, x, d_out.sin(), retain_graph=True, create_graph=create_graph
            )[0]

        found: list[Tensor] = []
        for create_graph in (False, True):

            def call(d_out: Tensor, create_graph: bool = create_graph) -> Tensor:
                return pull(d_out, create_graph=create_graph)

            found.append(jvp(call, (d_out,), (tangent,))[1])
            found.append(grad(lambda d_out: call(d_out).pow(2).sum())(d_out))
            found.append(vjp(call, d_out)[1](x)[0])
            found.append(vmap(call)(torch.stack([d_out, tangent])))
        with forward_ad.dual_level():
            dual = pull(forward_ad.make_dual(d_out, tangent))
            found.append(forward_ad.unpack_dual(dual).tangent)
        results.append(found)
    torch.testing.assert_close(results[1], results[0], **CLOSE)


@both_cells
def test_jacobians(cell: str) -> None:
    theirs, ours = modules(cell, num_layers=1)
    x = data(theirs, 3, 4)
    true = torch.autograd.functional.jacobian(
        lambda x: each_segment_alone(theirs, x, [], BATCH)[0], x
    )
    call = {"mask": BATCH.valid, "resets": BATCH.resets}
    for jacobian in (jacrev, jacfwd):
        torch.testing.assert_close(jacobian(lambda x: ours(x, **call)[0])(x), true, **CLOSE)


@pytest.mark.parametrize("form", FORMS)
@both_cells
def test_forward_mode(cell: str, form: str) -> None:
    """In the input, the states and all weights, by finite differences of torch's module."""
    theirs, ours = modules(cell)
    x, states = data(theirs, 3, 4), random_hx(theirs, 3)
    names, weights = zip(*weights_of(ours).items(), strict=True)
    primals = (x, *states, *weights)
    tangents = [torch.randn_like(t) for t in primals]

    def run(rnn: nn.Module, primals: list[Tensor], ours: bool) -> tuple[Tensor, ...]:
        x, *rest = primals
        states, weights = rest[: len(states_)], dict(zip(names, rest[len(states_) :], strict=True))

        def call(*args: Any, **keywords: Any) -> Any:
            return functional_call(rnn, weights, args, keywords)

        if ours:
            out, finals = in_form(form, x, BATCH)(call, states)
        else:
            changed = copy.deepcopy(rnn)
            changed.load_state_dict(weights)
            out, finals = each_segment_alone(changed, x, states, BATCH)
        return out, *finals

    states_ = states
    with torch.no_grad():
        ends = [
            run(theirs, [p + s * 1e-5 * t for p, t in zip(primals, tangents, strict=True)], False)
            for s in (1, -1)
        ]
        slopes = [(a - b) / 2e-5 for a, b in zip(*ends, strict=True)]
    _, got = jvp(lambda *primals: run(ours, list(primals), True), primals, tuple(tangents))
    torch.testing.assert_close(list(got), slopes, rtol=0, atol=1e-8)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(p, t) for p, t in zip(primals, tangents, strict=True)]
        got = [forward_ad.unpack_dual(t).tangent for t in run(ours, duals, True)]
    torch.testing.assert_close(got, slopes, rtol=0, atol=1e-8)


@both_cells
def test_batched_gradients_agree_with_single_ones(cell: str) -> None:
    _, rnn = modules(cell)
    x = data(rnn, 2, 4).requires_grad_()
    out, _ = rnn(x, lengths=[4, 2])
    d_outs = torch.randn(7, *out.shape, dtype=torch.float64)
    inputs = [x, *rnn.parameters()]
    batched = torch.autograd.grad(out, inputs, d_outs, retain_graph=True, is_grads_batched=True)
    for index, d_out in enumerate(d_outs):
        single = torch.autograd.grad(out, inputs, d_out, retain_graph=True)
        torch.testing.assert_close([b[index] for b in batched], list(single), **CLOSE)


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


@pytest.mark.parametrize("transform", [grad, jacrev, jacfwd, lambda f: vmap(f, 0)])
@both_cells
def test_nothing_of_a_transform_stays_behind(cell: str, transform: Callable[..., Any]) -> None:
    """The layouts of small batches are kept, and the next call may be a plain one, or the other."""
    rnn = OURS[cell](3, 4, batch_first=True, bidirectional=True)
    for num_steps in (2, 5):
        x = torch.randn(2, num_steps, 3)
        x_or_xs = x if transform in (grad, jacrev, jacfwd) else x.unsqueeze(0)
        transformed = transform(lambda x: rnn(x)[0].sum())
        first = transformed(x_or_xs)
        alone = rnn(x)[0]
        torch.testing.assert_close(transformed(x_or_xs), first)
        assert_bitwise(rnn(x)[0].detach(), alone.detach())
        rnn(x.requires_grad_())[0].sum().backward()


@both_cells
def test_errors_are_those_of_a_plain_call(cell: str) -> None:
    rnn = OURS[cell](3, 4, batch_first=True)
    x, name = torch.randn(2, 3, 4, 3), type(rnn).__name__
    good, bad = torch.tensor([4, 0, 1]), torch.tensor([4, 9, 1])
    message = rf"{name}: lengths must be in \[0, T\] = \[0, 4\], got 9 at index 1"
    with pytest.raises(ValueError, match=message):
        grad(lambda x: rnn(x, lengths=bad)[0].sum())(x[0])
    with pytest.raises(ValueError, match=message):
        vmap(lambda x, row: rnn(x, lengths=row)[0])(x, torch.stack([good, bad]))
    with pytest.raises(TypeError, match="lengths must be integers"):
        vmap(lambda x, row: rnn(x, lengths=row)[0])(x, torch.stack([good, good]).double())


@both_cells
def test_the_data_of_a_packed_sequence(cell: str) -> None:
    """Packed outside: torch has no gradient of ``pack_padded_sequence`` under a transform."""
    theirs, ours = modules(cell)
    x = data(theirs, 3, 4)
    packed = pack_padded_sequence(x, [2, 4, 1], batch_first=True, enforce_sorted=False)

    def loss(tokens: Tensor, rnn: nn.RNNBase = ours) -> Tensor:
        return loss_of(rnn(PackedSequence(tokens, *packed[1:]))[0].data)

    expected = torch.autograd.functional.jacobian(lambda tokens: loss(tokens, theirs), packed.data)
    torch.testing.assert_close(grad(loss)(packed.data), expected, **CLOSE)
    many = torch.stack([packed.data, packed.data])
    torch.testing.assert_close(vmap(grad(loss))(many)[1], expected, **CLOSE)


def test_torch_makes_no_nested_tensor_under_a_transform() -> None:
    offsets = torch.tensor([0, 1, 4])
    for transform in (grad, vmap):
        with pytest.raises((NotImplementedError, RuntimeError)):
            transform(lambda x: nested_tensor_from_jagged(x, offsets).values().sum())(
                torch.randn(1, 4, 2) if transform is vmap else torch.randn(4, 2)
            )


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
