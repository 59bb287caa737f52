"""Weights are those that the module has now: frozen, replaced, changed in place, substituted."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from helpers import CELLS, OURS, as_hx, assert_bitwise, pair, random_hx, states_of
from test_wrappers import CLOSE, DOUBLE, batch, both_cells, make, run, run_torch, weights_of
from torch import Tensor, nn
from torch.func import functional_call, grad


def add_in_no_grad(rnn: nn.Module) -> None:
    with torch.no_grad():
        rnn.weight_hh_l0.add_(0.5)


def change_data(rnn: nn.Module) -> None:
    rnn.weight_hh_l0.data.add_(0.5)


def change_through_numpy(rnn: nn.Module) -> None:
    rnn.weight_hh_l0.detach().numpy()[:] += 0.5


def point_data_elsewhere(rnn: nn.Module) -> None:
    rnn.weight_ih_l1.data = rnn.weight_ih_l1.data + 0.5


def assign_a_parameter(rnn: nn.Module) -> None:
    rnn.weight_hh_l0 = nn.Parameter(rnn.weight_hh_l0.detach() + 0.5)


def load_a_state(rnn: nn.Module) -> None:
    rnn.load_state_dict({name: w + 0.5 for name, w in rnn.state_dict().items()})


def load_and_assign_a_state(rnn: nn.Module) -> None:
    state = {name: w + 0.5 for name, w in rnn.state_dict().items()}
    rnn.load_state_dict(state, assign=True)


def step(rnn: nn.Module) -> None:
    run(rnn).sum().backward()
    torch.optim.Adam(rnn.parameters(), lr=0.1).step()


def reset(rnn: nn.Module) -> None:
    rnn.reset_parameters()


def swap(rnn: nn.Module) -> None:
    other = nn.Parameter(rnn.weight_hh_l0.detach() + 0.5)
    torch.utils.swap_tensors(rnn.weight_hh_l0, other)


CHANGES = [
    add_in_no_grad,
    change_data,
    change_through_numpy,
    point_data_elsewhere,
    assign_a_parameter,
    load_a_state,
    load_and_assign_a_state,
    step,
    reset,
    swap,
]


@pytest.mark.parametrize("no_grad", [False, True], ids=["training", "no_grad"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@both_cells
def test_a_changed_weight_is_used_at_the_next_call(
    cell: str, change: Callable[[nn.Module], None], no_grad: bool, one_isa: str
) -> None:
    rnn = make(cell)
    for _ in range(2):
        with torch.set_grad_enabled(not no_grad):
            before = run(rnn).detach()
        change(rnn)
        with torch.set_grad_enabled(not no_grad):
            after = run(rnn).detach()
        assert not torch.equal(after, before)
        torch.testing.assert_close(after, run_torch(cell, weights_of(rnn)).detach(), **CLOSE)


@both_cells
def test_a_new_module_at_an_old_address_does_not_inherit_weights(cell: str) -> None:
    for seed in range(20):
        theirs, ours = pair(cell, 3, 5, batch_first=True, seed=seed, **DOUBLE)
        with torch.no_grad():
            torch.testing.assert_close(ours(batch())[0], theirs(batch())[0], **CLOSE)
        del theirs, ours


FROZEN = ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l1", "weight_hh_l1"]


@both_cells
@pytest.mark.parametrize("frozen", [*[[name] for name in FROZEN], FROZEN, ["all"]], ids=str)
@pytest.mark.parametrize("with_input", [False, True], ids=["", "input too"])
def test_frozen_weights_get_no_gradient_and_the_rest_the_right_one(
    cell: str, frozen: list[str], with_input: bool
) -> None:
    rnn = make(cell)
    for name, parameter in rnn.named_parameters():
        parameter.requires_grad_(name not in frozen and frozen != ["all"])
    x = batch().requires_grad_(with_input)
    out = run(rnn, x)
    if frozen == ["all"] and not with_input:
        assert not out.requires_grad
        return
    out.square().sum().backward()
    live = {name: p for name, p in rnn.named_parameters() if p.requires_grad}
    assert all(p.grad is None for name, p in rnn.named_parameters() if name not in live)
    assert (x.grad is not None) == with_input
    if live:
        truth = run_torch(cell, weights_of(rnn)).square().sum()
        expected = torch.autograd.grad(truth, list(live.values()))
        torch.testing.assert_close([p.grad for p in live.values()], list(expected), **CLOSE)


@both_cells
@pytest.mark.parametrize("live", [0, 1], ids=["h_0", "c_0"])
def test_one_state_alone_gets_its_gradient_when_all_else_is_frozen(cell: str, live: int) -> None:
    theirs, ours = pair(cell, 3, 5, 2, batch_first=True, **DOUBLE)
    states = random_hx(ours, 3)
    if live == len(states):
        pytest.skip("a GRU has no c_0")
    states[live].requires_grad_()
    gradients = []
    for rnn in (theirs, ours):
        rnn.requires_grad_(False)
        out, hx = rnn(batch(), as_hx(states))
        loss = out.square().sum() + sum(s.sum() for s in states_of(hx))
        gradients.append(torch.autograd.grad(loss, states[live]))
    torch.testing.assert_close(gradients[1], gradients[0], **CLOSE)


@both_cells
def test_every_gradient_has_memory_of_its_own(cell: str) -> None:
    rnn = make(cell, bidirectional=True)
    run(rnn).sum().backward()
    spans = sorted((p.grad.data_ptr(), p.grad.data_ptr() + p.grad.nbytes) for p in rnn.parameters())
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
    first, second = (p.grad.clone() for p in (rnn.bias_ih_l0, rnn.bias_hh_l0))
    rnn.bias_ih_l0.grad.mul_(0)
    assert second.any()
    assert first.any()
    assert_bitwise(rnn.bias_hh_l0.grad, second)


@both_cells
def test_gradients_add_up_over_backward_passes(cell: str) -> None:
    rnn = make(cell)
    out = run(rnn)
    out.sum().backward(retain_graph=True)
    once = [p.grad.clone() for p in rnn.parameters()]
    out.sum().backward()
    torch.testing.assert_close([p.grad for p in rnn.parameters()], [2 * g for g in once], **CLOSE)


@both_cells
def test_without_gradients_nothing_is_recorded(cell: str, isa: str) -> None:
    rnn = make(cell)
    expected = run(rnn)
    assert expected.requires_grad
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            out = run(rnn)
        assert not out.requires_grad
        assert out.is_inference() == (context is torch.inference_mode)
        assert_bitwise(out.clone(), expected.detach())


@both_cells
def test_a_module_made_in_inference_mode_works_there(cell: str) -> None:
    expected = run(make(cell)).detach()
    with torch.inference_mode():
        rnn = make(cell)
        for _ in range(2):
            assert_bitwise(run(rnn).clone(), expected)
        rnn.weight_hh_l0.add_(1)
        assert not torch.equal(run(rnn), expected)


@both_cells
def test_functional_call_computes_with_other_weights(cell: str) -> None:
    rnn, other = make(cell), make(cell)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    before = run(rnn).detach()
    weights = dict(other.named_parameters())
    out, _ = functional_call(rnn, weights, (batch(),), {"lengths": [4, 0, 6]})
    torch.testing.assert_close(out, run(other), **CLOSE)
    gradients = torch.autograd.grad(out.square().sum(), list(weights.values()))
    expected = torch.autograd.grad(run(other).square().sum(), list(weights.values()))
    torch.testing.assert_close(gradients, expected, **CLOSE)
    assert_bitwise(run(rnn).detach(), before)


@both_cells
def test_weights_of_any_strides_give_the_same(cell: str) -> None:
    rnn = make(cell)
    plain = {name: w.detach() for name, w in rnn.named_parameters()}
    weights = {
        name: w.t().contiguous().t() if w.dim() == 2 else w.repeat_interleave(2)[::2]
        for name, w in plain.items()
    }
    weights["bias_ih_l0"] = weights["bias_ih_l0"][:1].expand_as(plain["bias_ih_l0"])
    out, _ = functional_call(rnn, weights, (batch(),), {"lengths": [4, 0, 6]})
    torch.testing.assert_close(out, run_torch(cell, weights), **CLOSE)


@both_cells
def test_torch_func_grad_agrees_with_autograd(cell: str) -> None:
    rnn = make(cell)
    weights = {name: w.detach() for name, w in rnn.named_parameters()}

    def loss(weights: dict[str, Tensor]) -> Tensor:
        out, _ = functional_call(rnn, weights, (batch(),), {"lengths": [4, 0, 6]})
        return out.square().sum()

    got = grad(loss)(weights)
    expected = torch.autograd.grad(run(rnn).square().sum(), list(rnn.parameters()))
    torch.testing.assert_close(list(got.values()), list(expected), **CLOSE)


@both_cells
def test_a_gradient_penalty_trains(cell: str) -> None:
    rnn = make(cell)
    x = batch().requires_grad_()

    def penalty(out: Tensor) -> Tensor:
        (d_x,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
        return d_x.square().sum() + out.sum()

    parameters = list(rnn.parameters())
    got = torch.autograd.grad(penalty(run(rnn, x)), parameters)
    with torch.no_grad():
        for parameter, direction in zip(parameters, got, strict=True):
            probe = torch.randn_like(direction)
            values = []
            for sign in (1, -1):
                parameter.add_(sign * 1e-5 * probe)
                with torch.enable_grad():
                    values.append(float(penalty(run(rnn, x)).detach()))
                parameter.add_(-sign * 1e-5 * probe)
            slope = (values[0] - values[1]) / 2e-5
            assert abs(slope - float((direction * probe).sum())) <= 1e-6 * (1 + abs(slope))


@both_cells
def test_it_moves_between_dtypes_and_devices(cell: str) -> None:
    rnn = make(cell)
    expected = run(rnn).detach()
    single = rnn.float()
    assert single is rnn
    out = run(rnn, batch().float())
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.detach().double(), expected, rtol=0, atol=1e-5)
    assert run(rnn.to(torch.bfloat16), batch().bfloat16()).dtype == torch.bfloat16
    assert {p.device.type for p in rnn.to("meta").parameters()} == {"meta"}
    empty = OURS[cell](3, 5, 2, batch_first=True, device="meta", **DOUBLE).to_empty(device="cpu")
    empty.load_state_dict(make(cell).state_dict())
    assert_bitwise(run(empty).detach(), expected)


@both_cells
def test_flattening_parameters_changes_nothing(cell: str) -> None:
    rnn = make(cell)
    before, addresses = run(rnn).detach(), [p.data_ptr() for p in rnn.parameters()]
    assert rnn.flatten_parameters() is None
    assert_bitwise(run(rnn).detach(), before)
    assert [p.data_ptr() for p in rnn.parameters()] == addresses


@pytest.mark.parametrize("cell", CELLS)
def test_hooks_see_every_call(cell: str) -> None:
    rnn, seen = make(cell), []
    rnn.register_forward_pre_hook(lambda *_: seen.append("before"))
    rnn.register_forward_hook(lambda *_: seen.append("after"))
    run(rnn)
    assert seen == ["before", "after"]
