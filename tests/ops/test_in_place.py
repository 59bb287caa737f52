"""Results and arguments that the caller changes in place: right gradients, or torch's own error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import CELLS, HAS_EXTENSION, OURS, as_hx, assert_bitwise, pair, random_batch, states_of
from ragged import FORMS, Ragged, in_form
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

both_cells = pytest.mark.parametrize("cell", CELLS)

# What changes a tensor in place, beside what gives the same in another one.
CHANGES: dict[str, tuple[Callable[[Tensor], Any], Callable[[Tensor], Tensor]]] = {
    "add_": (lambda t: t.add_(1), lambda t: t + 1),
    "*=": (lambda t: t.mul_(3), lambda t: t * 3),
    "relu_": (F.relu_, F.relu),
    "masked_fill_": (lambda t: t.masked_fill_(t > 0.1, 0), lambda t: t.masked_fill(t > 0.1, 0)),
    "out[mask] = 0": (
        lambda t: t.__setitem__(t.detach() > 0.1, 0.0),
        lambda t: torch.where(t > 0.1, 0, t),
    ),
    "out[0] = 0": (
        lambda t: t.__setitem__(0, 0.0),
        lambda t: torch.cat([torch.zeros_like(t[:1]), t[1:]]),
    ),
    "a view": (lambda t: t.transpose(0, -1).exp_(), lambda t: t.exp()),
}
every_change = pytest.mark.parametrize("change", CHANGES)


def batch_for(form: str) -> Ragged:
    num_rows = 1 if form.startswith("single") else 4
    lengths = torch.tensor([6, 5, 3, 1])[:num_rows]
    valid = torch.arange(6) < lengths.unsqueeze(1)
    resets = torch.rand(num_rows, 6) < 0.3
    return Ragged(torch.ones_like(valid) if form in ("single", "full") else valid, resets)


@every_change
@both_cells
def test_an_output_that_is_changed_has_the_gradients_of_another_tensor(
    cell: str, change: str
) -> None:
    """Those of every layer, state and direction; the final states were copied before."""
    in_place, elsewhere = CHANGES[change]
    for options in ({}, {"num_layers": 2, "bidirectional": True}):
        rnn = OURS[cell](3, 5, batch_first=True, **options)
        x = random_batch(rnn, 4, 6).requires_grad_()
        gradients = []
        for changed in (True, False):
            out, hx = rnn(x, lengths=[6, 0, 3, 1])
            if changed:
                in_place(out)
            else:
                out = elsewhere(out)
            loss = (out * out.detach().cos()).sum() + sum(s.square().sum() for s in states_of(hx))
            gradients.append([out.detach(), *torch.autograd.grad(loss, [x, *rnn.parameters()])])
        for got, expected in zip(*gradients, strict=True):
            assert_bitwise(got, expected)


@pytest.mark.parametrize("form", [form for form in FORMS if not form.startswith("nested")])
@both_cells
def test_in_every_form(cell: str, form: str) -> None:
    rnn, batch = OURS[cell](3, 5, 2, batch_first=True), batch_for(form)
    call = in_form(form, random_batch(rnn, *batch.valid.shape), batch)
    gradients = []
    for changed in (True, False):
        out, _ = call.raw(rnn)
        tokens = out if isinstance(out, Tensor) else out.data
        tokens = F.relu_(tokens) if changed else F.relu(tokens)
        gradients.append(torch.autograd.grad(tokens.square().sum(), list(rnn.parameters())))
    for got, expected in zip(*gradients, strict=True):
        assert_bitwise(got, expected)


@both_cells
def test_the_tokens_of_a_nested_tensor(cell: str) -> None:
    rnn = OURS[cell](3, 5)
    nested = torch.nested.nested_tensor([torch.randn(n, 3) for n in (4, 2)], layout=torch.jagged)
    gradients = []
    for change in (F.relu_, F.relu):
        tokens = change(rnn(nested)[0].values())
        gradients.append(torch.autograd.grad(tokens.square().sum(), list(rnn.parameters())))
    for got, expected in zip(*gradients, strict=True):
        assert_bitwise(got, expected)


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
def test_as_torch_has_it_where_it_has_it(options: dict[str, Any]) -> None:
    """nn.GRU; nn.LSTM has an error for it in one direction, of padded batches."""
    theirs, ours = pair("gru", 3, 5, batch_first=True, dtype=torch.float64, **options)
    x = torch.randn(4, 6, 3, dtype=torch.float64)
    gradients = []
    for rnn in (theirs, ours):
        model = nn.Sequential(nn.ReLU(inplace=True), nn.Dropout(0.0, inplace=True))
        loss = model(rnn(x)[0]).square().sum()
        gradients.append(torch.autograd.grad(loss, list(rnn.parameters())))
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


@every_change
@both_cells
def test_final_states_that_are_changed(cell: str, change: str) -> None:
    in_place, elsewhere = CHANGES[change]
    for num_layers in (1, 2):
        rnn = OURS[cell](3, 5, num_layers)
        x = random_batch(rnn, 6, 4)
        gradients = []
        for changed in (True, False):
            out, hx = rnn(x)
            finals = states_of(hx)
            for final in finals if changed else ():
                in_place(final)
            finals = finals if changed else [elsewhere(final) for final in finals]
            loss = out.square().sum() + sum(final.square().sum() for final in finals)
            gradients.append(torch.autograd.grad(loss, list(rnn.parameters())))
        for got, expected in zip(*gradients, strict=True):
            assert_bitwise(got, expected)


@pytest.mark.parametrize("mask", [None, torch.tensor([[True, False, True, True]] * 3)])
def test_cell_states_that_are_changed(mask: Tensor | None) -> None:
    rnn = OURS["lstm"](3, 5, batch_first=True)
    x = torch.randn(3, 4, 3)
    gradients = []
    for changed in (True, False):
        (h, c), _ = rnn(x, mask=mask, output_states=True)
        if changed:
            h.mul_(2)
            c.add_(1)
        else:
            h, c = h * 2, c + 1
        loss = (h * c).sum()
        gradients.append(torch.autograd.grad(loss, list(rnn.parameters())))
    for got, expected in zip(*gradients, strict=True):
        assert_bitwise(got, expected)


@both_cells
def test_what_is_written_past_autograd_changes_no_gradient(cell: str) -> None:
    """As through NumPy, which no version counter sees."""
    rnn = OURS[cell](3, 5)
    x = torch.randn(4, 2, 3)
    gradients = []
    for write in (True, False):
        out, _ = rnn(x)
        loss = out.sum()
        if write:
            out.detach().numpy()[:] = 7
            assert (out == 7).all()
        gradients.append(torch.autograd.grad(loss, list(rnn.parameters())))
    for got, expected in zip(*gradients, strict=True):
        assert_bitwise(got, expected)


@pytest.mark.skipif(not HAS_EXTENSION, reason="a promise of the compiled ops")
@both_cells
def test_an_output_that_nobody_changes_is_not_copied(cell: str) -> None:
    rnn, head = OURS[cell](3, 5, 2), nn.Linear(5, 2)
    out, _ = rnn(torch.randn(4, 2, 3))
    is_shared = torch._C._is_cow_tensor
    assert is_shared(out)
    F.layer_norm(head(out).relu() + out[..., :2], (2,)).sum().backward()
    assert is_shared(out)
    changed, _ = rnn(torch.randn(4, 2, 3))
    changed.add_(1)
    assert not is_shared(changed)
    with torch.no_grad():
        assert not is_shared(rnn(torch.randn(4, 2, 3))[0])


@both_cells
def test_gradients_of_gradients_and_checkpoints(cell: str) -> None:
    rnn = OURS[cell](3, 5, dtype=torch.float64)
    x = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)

    def loss(changed: bool) -> Tensor:
        out, _ = rnn(x)
        return (out.mul_(2) if changed else out * 2).pow(3).sum()

    results = []
    for changed in (True, False):
        (slope,) = torch.autograd.grad(loss(changed), x, create_graph=True)
        results.append(torch.autograd.grad(slope.square().sum(), list(rnn.parameters())))
    torch.testing.assert_close(*results, rtol=0, atol=1e-12)
    kept = checkpoint(loss, True, use_reentrant=False)
    torch.testing.assert_close(*(torch.autograd.grad(v, x) for v in (kept, loss(False))))


@pytest.mark.skipif(not HAS_EXTENSION, reason="the reference keeps copies of some arguments")
@both_cells
def test_arguments_that_are_changed_are_refused(cell: str) -> None:
    """By torch, as with its own modules: the backward pass reads them."""
    rnn = OURS[cell](3, 5)
    x = torch.randn(4, 2, 3)
    states = [torch.randn(1, 2, 5) for _ in range(2 if cell == "lstm" else 1)]
    for tensor in (x, rnn.weight_hh_l0, *states):
        out, _ = rnn(x, as_hx(states))
        with torch.no_grad():
            tensor.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            out.sum().backward()


@pytest.mark.skipif(not HAS_EXTENSION, reason="the reference cannot be compiled in one graph")
@both_cells
def test_a_compiled_call_refuses_it(cell: str) -> None:
    """And says so while it is compiled; without a gradient it is none of its business."""
    rnn = OURS[cell](3, 5)
    compiled = torch.compile(lambda x: F.relu_(rnn(x)[0]), backend="aot_eager", fullgraph=True)
    x = torch.randn(4, 2, 3)
    with torch.no_grad():
        assert_bitwise(compiled(x), F.relu(rnn(x)[0]))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        compiled(x)
    torch._dynamo.reset()
