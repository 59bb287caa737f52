"""Gradients of gradients: what they are, in every form, and that they are only made when needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from helpers import (
    CELLS,
    HAS_EXTENSION,
    OURS,
    as_hx,
    leaves_of,
    pair,
    random_batch,
    random_hx,
    states_of,
)
from op_calls import RAGGED, backward_arguments, make_case, op
from ragged import ANY_BATCH, FORMS, Ragged, drawn, each_segment_alone, in_form
from torch import Tensor, nn
from torch.autograd import grad, gradgradcheck
from torch.func import functional_call
from torch.nested import nested_tensor_from_jagged
from torch.utils._python_dispatch import TorchDispatchMode

both_cells = pytest.mark.parametrize("cell", CELLS)
needs_extension = pytest.mark.skipif(not HAS_EXTENSION, reason="there are no compiled ops")
CLOSE = {"rtol": 1e-9, "atol": 1e-11}
BATCHES = {
    **dict.fromkeys(ANY_BATCH, drawn("xR.x", "....", ".xrx")),
    **dict.fromkeys(("packed", "full"), drawn("xRxx", "xxxx")),
    "sorted": drawn("xxRx", "xR.."),
    "single": drawn("xxRx"),
    "single mask": drawn("x.Rx"),
}
# Torch has no gradient of a gradient of a NestedTensor's values (a test below says so): of such
# a batch there are those of the final states, in the weights and the initial states.
NESTED = ("nested", "nested holes")
PLAIN_FORMS = tuple(form for form in FORMS if form not in NESTED)
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "bidirectional": {"bidirectional": True, "bias": False},
    "two layers": {"num_layers": 2, "bidirectional": True},
    "projected": {"num_layers": 2, "proj_size": 1},
}
SHAPES_OF = {"lstm": list(SHAPES), "gru": list(SHAPES)[:3]}
ALL_SHAPES = [(cell, shape) for cell in CELLS for shape in SHAPES_OF[cell]]


def modules(cell: str, shape: str = "plain") -> tuple[nn.RNNBase, nn.RNNBase]:
    """Torch's and ours, in float64."""
    theirs, ours = pair(cell, 2, 2, batch_first=True, dtype=torch.float64, **SHAPES[shape])
    return theirs, ours


def data(rnn: nn.RNNBase, batch: Ragged) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
    x, states = random_batch(rnn, *batch.valid.shape), random_hx(rnn, len(batch.valid))
    return x, states, leaves_of(rnn, x, states)


def everything(out: Tensor, finals: list[Tensor]) -> Tensor:
    """A loss that is not linear in any result."""
    return sum(torch.sin(t * (i + 1)).sum() for i, t in enumerate((out, *finals)))


def gradients_of_gradients(loss: Tensor, leaves: dict[str, Tensor]) -> list[Tensor]:
    """First and second derivatives of the loss, the latter along one direction."""
    first = grad(loss, list(leaves.values()), create_graph=True)
    along = sum((torch.cos(t) * t).sum() for t in first)
    second = grad(along, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return [t.detach() for t in (*first, *second)]


@pytest.mark.parametrize("form", FORMS)
@both_cells
def test_gradgradcheck_in_every_form(cell: str, form: str) -> None:
    _, rnn = modules(cell)
    batch = BATCHES[form]
    x, states, leaves = data(rnn, batch)
    if form in NESTED:
        x = leaves.pop("x").detach()

    def function(*_: Tensor) -> tuple[Tensor, ...]:
        out, finals = in_form(form, x, batch)(rnn, states)
        return tuple(finals) if form in NESTED else (out, *finals)

    assert gradgradcheck(function, tuple(leaves.values()), fast_mode=True)


@pytest.mark.parametrize(("cell", "shape"), ALL_SHAPES)
def test_gradgradcheck_of_every_kind_of_layer(cell: str, shape: str) -> None:
    """In one layer not in the fast mode: every second derivative by itself."""
    _, rnn = modules(cell, shape)
    batch = drawn("xR.", ".x.")
    x, states, leaves = data(rnn, batch)

    def function(*_: Tensor) -> tuple[Tensor, ...]:
        out, finals = in_form("mask", x, batch)(rnn, states)
        return out, *finals

    few = [leaf for name, leaf in leaves.items() if name in ("x", "h_0", "weight_hr_l0")]
    assert gradgradcheck(function, tuple(few), fast_mode=rnn.num_layers > 1)
    assert gradgradcheck(function, tuple(leaves.values()), fast_mode=True)


@pytest.mark.parametrize("form", PLAIN_FORMS[-3:])
def test_gradgradcheck_of_output_states(form: str) -> None:
    _, rnn = modules("lstm", "projected")
    batch = BATCHES[form]
    x, states, leaves = data(rnn, batch)

    def function(*_: Tensor) -> tuple[Tensor, ...]:
        call = in_form(form, x, batch)
        (out, cells), finals = call.raw(rnn, states, output_states=True)
        return call.back(out), call.back(cells), *finals

    assert gradgradcheck(function, tuple(leaves.values()), fast_mode=True)


@pytest.mark.parametrize("form", PLAIN_FORMS)
@pytest.mark.parametrize(("cell", "shape"), ALL_SHAPES)
def test_second_derivatives_are_those_of_torch(cell: str, shape: str, form: str) -> None:
    theirs, ours = modules(cell, shape)
    batch = BATCHES[form]
    x, states, leaves = data(theirs, batch)
    expected = gradients_of_gradients(
        everything(*each_segment_alone(theirs, x, states, batch)), leaves
    )
    x, states, leaves = data(ours, batch)
    call = in_form(form, x, batch)
    got = gradients_of_gradients(everything(*call(ours, states)), leaves)
    assert any(t.any() for t in expected[len(leaves) :])
    torch.testing.assert_close(got, expected, **CLOSE)


@both_cells
def test_third_derivatives_are_those_of_torch(cell: str) -> None:
    found = []
    for rnn in modules(cell, "two layers"):
        x, states, leaves = data(rnn, BATCHES["full"])
        out, hx = rnn(x, as_hx(states))
        value = everything(out, states_of(hx))
        derivatives = []
        for _ in range(3):
            gradients = grad(value, list(leaves.values()), create_graph=True)
            derivatives += gradients
            value = sum(gradient.square().sum() for gradient in gradients)
        found.append([t.detach() for t in derivatives])
    torch.testing.assert_close(found[1], found[0], rtol=1e-8, atol=1e-9)


class Critic(nn.Module):
    """Judges sequences, as in a Wasserstein GAN: a Linear layer on the mean output."""

    def __init__(self, rnn: nn.RNNBase, lengths: Tensor) -> None:
        super().__init__()
        self.rnn, self.lengths = rnn, lengths
        torch.manual_seed(4)
        self.score = nn.Linear(rnn.hidden_size, 1, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.rnn(x, lengths=self.lengths)
        return self.score(out.sum(1) / self.lengths.unsqueeze(1))


def gradient_penalty(critic: nn.Module, real: Tensor, fake: Tensor, between: Tensor) -> Tensor:
    """Gulrajani et al. 2017: how far from 1 the critic's slope is between real and fake."""
    x = torch.lerp(real, fake, between).detach().requires_grad_()
    (d_x,) = grad(critic(x).sum(), x, create_graph=True)
    return (d_x.flatten(1).norm(dim=1) - 1).square().mean()


@both_cells
def test_a_wasserstein_gradient_penalty(cell: str) -> None:
    """Its gradient agrees with finite differences in every weight, and training lowers it."""
    _, rnn = modules(cell)
    critic = Critic(rnn, torch.tensor([4, 1, 3]))
    real, fake = torch.randn(2, 3, 4, 2, dtype=torch.float64)
    between = torch.rand(3, 1, 1, dtype=torch.float64)

    def penalty() -> Tensor:
        return gradient_penalty(critic, real, fake, between)

    parameters = [p for name, p in critic.named_parameters() if name != "score.bias"]
    got = grad(penalty(), parameters)
    for parameter, gradient in zip(parameters, got, strict=True):
        flat = parameter.data.view(-1)
        for index in range(len(flat)):
            before, values = float(flat[index]), []
            for sign in (1, -1):
                flat[index] = before + sign * 1e-5
                values.append(float(penalty().detach()))
            flat[index] = before
            slope = (values[0] - values[1]) / 2e-5
            assert abs(slope - float(gradient.view(-1)[index])) <= 1e-8
    optimizer = torch.optim.Adam(parameters, lr=0.1)
    before = float(penalty().detach())
    for _ in range(20):
        optimizer.zero_grad()
        penalty().backward()
        optimizer.step()
    assert float(penalty().detach()) < 0.5 * before


def test_torch_has_no_second_derivative_of_a_nested_tensor() -> None:
    values = torch.randn(4, 2, requires_grad=True)
    nested = nested_tensor_from_jagged(values, torch.tensor([0, 1, 4]))
    (d_values,) = grad(torch.sin(nested).values().sum(), values, create_graph=True)
    with pytest.raises(NotImplementedError):
        grad(d_values.sum(), values)


@both_cells
def test_second_derivatives_of_a_nested_batch_are_those_of_torch(cell: str) -> None:
    theirs, ours = modules(cell, "two layers")
    batch = BATCHES["nested"]
    x, states, leaves = data(theirs, batch)
    x = leaves.pop("x").detach()
    _, finals = each_segment_alone(theirs, x, states, batch)
    expected = gradients_of_gradients(everything(finals[0], finals[1:]), leaves)
    _, states, leaves = data(ours, batch)
    del leaves["x"]
    for form in NESTED:
        _, finals = in_form(form, x, batch)(ours, states)
        got = gradients_of_gradients(everything(finals[0], finals[1:]), leaves)
        torch.testing.assert_close(got, expected, **CLOSE)


def test_padding_has_no_second_derivative() -> None:
    """NaN in padding comes into none, and no gradient goes there."""
    for cell in CELLS:
        _, rnn = modules(cell, "two layers")
        batch = BATCHES["mask"]
        x, states, _ = data(rnn, batch)
        x = x.detach().masked_fill(~batch.valid.unsqueeze(2), float("nan"))
        leaves = leaves_of(rnn, x, states)
        call = in_form("mask", x, batch)
        found = gradients_of_gradients(everything(*call(rnn, states)), leaves)
        assert all(t.isfinite().all() for t in found)
        for d_x in (found[0], found[len(leaves)]):
            assert not d_x[~batch.valid].any()


@both_cells
def test_a_graph_of_gradients_of_a_batch_without_tokens(cell: str) -> None:
    _, rnn = modules(cell)
    x = torch.randn(2, 4, 2, dtype=torch.float64, requires_grad=True)
    out, _ = rnn(x, lengths=[0, 0])
    inputs = [x, *rnn.parameters()]
    for gradient in grad(out.sum(), inputs, create_graph=True):
        assert gradient.count_nonzero() == 0


class Recorded(TorchDispatchMode):
    """The ops that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def recorded() -> Iterator[Callable[[Callable[[], object]], list[str]]]:
    def run(function: Callable[[], object]) -> list[str]:
        with Recorded() as mode:
            function()
        return mode.names

    return run


@needs_extension
@both_cells
def test_only_a_graph_of_gradients_runs_the_reference(
    cell: str, recorded: Callable[[Callable[[], object]], list[str]]
) -> None:
    _, rnn = modules(cell, "two layers")
    batch = BATCHES["full"]
    x, states, leaves = data(rnn, batch)
    of_ours = f"{cell}_backward"

    def backward(**options: bool) -> list[str]:
        loss = everything(*in_form("full", x, batch)(rnn, states))
        return recorded(lambda: grad(loss, list(leaves.values()), **options))

    for options in ({}, {"retain_graph": True}):
        names = backward(**options)
        assert names.count(of_ours) == rnn.num_layers
        assert not {"sigmoid", "tanh", "addmm", "mm"} & set(names)
    names = backward(create_graph=True)
    assert names.count(of_ours) == 0
    assert "sigmoid" in names


@needs_extension
@both_cells
def test_the_gradient_is_the_same_with_and_without_a_graph(cell: str) -> None:
    _, rnn = modules(cell, "two layers")
    x, states, leaves = data(rnn, BATCHES["lengths"])
    found = [
        grad(
            everything(*in_form("lengths", x, BATCHES["lengths"])(rnn, states)),
            list(leaves.values()),
            create_graph=create_graph,
        )
        for create_graph in (False, True)
    ]
    torch.testing.assert_close(found[0], [t.detach() for t in found[1]], rtol=0, atol=1e-13)


@both_cells
def test_layers_may_share_weights(cell: str) -> None:
    """Each layer's part is found once, though its input is a function of the same weights."""
    found = []
    for rnn in modules(cell, "two layers"):
        shared = rnn.weight_hh_l0
        x, states = random_batch(rnn, 2, 4), random_hx(rnn, 2)
        weights = dict(rnn.named_parameters()) | {"weight_hh_l1": shared}
        out, hx = functional_call(rnn, weights, (x, as_hx(states)))
        found.append(gradients_of_gradients(everything(out, states_of(hx)), {"shared": shared}))
    torch.testing.assert_close(found[1], found[0], **CLOSE)


@both_cells
def test_a_frozen_layer_has_second_derivatives_in_what_is_not_frozen(cell: str) -> None:
    found = []
    for rnn in modules(cell):
        rnn.requires_grad_(False)
        rnn.weight_hh_l0.requires_grad_()
        x = random_batch(rnn, 2, 4).requires_grad_()
        (d_x,) = grad(rnn(x)[0].square().sum(), x, create_graph=True)
        d_x.square().sum().backward()
        frozen = [p.grad for name, p in rnn.named_parameters() if name != "weight_hh_l0"]
        assert frozen == [None] * 3
        found.append((x.grad, rnn.weight_hh_l0.grad))
    torch.testing.assert_close(found[1], found[0], **CLOSE)


def test_a_result_may_not_depend_on_what_is_not_frozen() -> None:
    """With one token the projection comes behind the cell state."""
    rnn = OURS["lstm"](3, 4, proj_size=2).requires_grad_(False)
    rnn.weight_hr_l0.requires_grad_()
    x = torch.randn(1, 2, 3)
    for both in (False, True):
        found = []
        for create_graph in (False, True):
            out, (_, c_n) = rnn(x)
            loss = c_n.sum() + both * out.sum()
            found.append(grad(loss, rnn.weight_hr_l0, create_graph=create_graph)[0].detach())
        assert found[0].any() == both
        torch.testing.assert_close(found[1], found[0])


@needs_extension
@both_cells
def test_the_backward_op_by_itself_says_that_it_has_no_gradient(cell: str) -> None:
    case = make_case(cell, RAGGED)
    arguments = backward_arguments(case)
    expected = op(case, "backward")(*arguments)
    arguments[0].requires_grad_()
    got = op(case, "backward")(*arguments)
    torch.testing.assert_close([t.detach() for t in got], list(expected), rtol=0, atol=0)
    message = f"{cell}_backward: differentiated must be .*{cell}_forward with create_graph=True"
    with pytest.raises(NotImplementedError, match=message):
        got[0].sum().backward()
    with torch.no_grad():
        assert not any(t.requires_grad for t in op(case, "backward")(*arguments))


def test_a_hessian_times_a_vector_agrees_with_finite_differences() -> None:
    """Hessian times vector as torch.autograd.functional has it, on a ragged batch with resets."""
    for cell in CELLS:
        _, rnn = modules(cell, "two layers")
        batch = BATCHES["mask"]
        x, v = random_batch(rnn, 3, 4), random_batch(rnn, 3, 4, seed=9)

        def loss(x: Tensor, rnn: nn.RNNBase = rnn, batch: Ragged = batch) -> Tensor:
            return everything(*in_form("lengths", x, batch)(rnn))

        _, product = torch.autograd.functional.hvp(loss, x, v)
        ends = [(x + sign * 1e-5 * v).requires_grad_() for sign in (1, -1)]
        slopes = [grad(loss(end), end)[0] for end in ends]
        torch.testing.assert_close(product, (slopes[0] - slopes[1]) / 2e-5, rtol=0, atol=1e-8)
