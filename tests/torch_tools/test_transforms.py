"""``torch.func`` and forward mode: each transform against torch's modules, or a loop of our own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from func_modules import (
    BATCH,
    CLOSE,
    FORMS,
    Weights,
    both_cells,
    data,
    loss_of,
    modules,
    true_loss,
    weights_of,
)
from helpers import OURS, assert_bitwise, random_hx
from ragged import Ragged, each_segment_alone, in_form
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.nested import nested_tensor_from_jagged
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

# Forward mode's own functions are made by torch.jit.script; vmap packs one sample after the other.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.*is (deprecated|not supported)"),
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
]


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
