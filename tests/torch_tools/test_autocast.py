"""Autocast, modules of every dtype, and torch's switches of precision, against torch in float64."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers import (
    CELLS,
    HAS_EXTENSION,
    Results,
    Tagger,
    assert_bitwise,
    assert_close64,
    largest,
    leaves_of,
    max_error,
    pair,
    random_batch,
    random_hx,
    states_of,
    with_gradients,
)
from ragged import ANY_BATCH, FORMS, Ragged, drawn, each_segment_alone, in_form
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

both_cells = pytest.mark.parametrize("cell", CELLS)
NARROW = [torch.bfloat16, torch.float16]
narrow = pytest.mark.parametrize("dtype", NARROW, ids=["bfloat16", "float16"])
BATCHES = {
    **dict.fromkeys(ANY_BATCH, drawn("xxR.xx", "......", ".xxrx.")),
    **dict.fromkeys(("packed", "full"), drawn("xxRxxx", "xxxxxx")),
    "sorted": drawn("xxxRxx", "xxR..."),
    "single": drawn("xxRxxx"),
    "single mask": drawn("xx.Rxx"),
}
SHAPES: dict[str, dict[str, Any]] = {
    "lstm": {"num_layers": 2, "bidirectional": True, "proj_size": 4},
    "gru": {"num_layers": 2, "bidirectional": True},
}
# Layers hand on what is rounded, and what is rounded once is off by half an eps: a few roundings.
ROUNDINGS = 8


def modules(cell: str, dtype: torch.dtype = torch.float32) -> tuple[nn.RNNBase, nn.RNNBase]:
    theirs, ours = pair(cell, 3, 6, batch_first=True, **SHAPES[cell])
    return theirs.to(dtype), ours.to(dtype)


def data(rnn: nn.RNNBase, batch: Ragged) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
    x, states = random_batch(rnn, *batch.valid.shape), random_hx(rnn, len(batch.valid))
    return x, states, leaves_of(rnn, x, states)


def truth(cell: str, batch: Ragged, dtype: torch.dtype) -> Results:
    """Torch in float64, on weights and data rounded to ``dtype``."""
    theirs, _ = modules(cell, dtype)
    x, states, _ = data(theirs, batch)
    theirs = theirs.double()
    x, states = x.detach().double(), [s.detach().double() for s in states]
    leaves = leaves_of(theirs, x, states)
    return with_gradients(each_segment_alone(theirs, x, states, batch), leaves)


def assert_near(got: Results, expected: Results, dtype: torch.dtype) -> None:
    assert got.keys() == expected.keys()
    for name, exact in expected.items():
        allowed = ROUNDINGS * torch.finfo(dtype).eps * max(largest(exact), 0.1)
        error = max_error(got[name], exact)
        assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}"


def dtypes(results: Results, *, of_gradients: bool) -> set[torch.dtype]:
    return {t.dtype for name, t in results.items() if name.startswith("d_") == of_gradients}


@pytest.mark.parametrize("form", FORMS)
@narrow
@both_cells
def test_autocast_in_every_form(cell: str, dtype: torch.dtype, form: str) -> None:
    _, rnn = modules(cell)
    batch = BATCHES[form]
    x, states, leaves = data(rnn, batch)
    with torch.autocast("cpu", dtype):
        outputs = in_form(form, x, batch)(rnn, states)
    got = with_gradients(outputs, leaves)
    assert dtypes(got, of_gradients=False) == {dtype}
    assert dtypes(got, of_gradients=True) == {torch.float32}
    assert_near(got, truth(cell, batch, dtype), dtype)


@pytest.mark.parametrize("form", FORMS)
@narrow
@both_cells
def test_a_narrow_module_in_every_form(cell: str, dtype: torch.dtype, form: str) -> None:
    """``half()`` and ``bfloat16()``."""
    _, rnn = modules(cell)
    rnn = rnn.half() if dtype == torch.float16 else rnn.bfloat16()
    batch = BATCHES[form]
    x, states, leaves = data(rnn, batch)
    got = with_gradients(in_form(form, x, batch)(rnn, states), leaves)
    assert {t.dtype for t in got.values()} == {dtype}
    assert_near(got, truth(cell, batch, dtype), dtype)


@pytest.mark.parametrize("form", FORMS)
@both_cells
def test_a_double_module_in_every_form(cell: str, form: str) -> None:
    _, rnn = modules(cell)
    rnn = rnn.double()
    batch = BATCHES[form]
    x, states, leaves = data(rnn, batch)
    got = with_gradients(in_form(form, x, batch)(rnn, states), leaves)
    assert {t.dtype for t in got.values()} == {torch.float64}
    assert_close64(got, truth(cell, batch, torch.float64))


@narrow
@both_cells
def test_autocast_is_a_module_in_its_dtype(cell: str, dtype: torch.dtype) -> None:
    """To the bit, and whatever floating dtype but float64 the input and states have."""
    _, rnn = modules(cell)
    batch = BATCHES["mask"]
    x, states, _ = data(rnn, batch)
    narrowed = copy.deepcopy(rnn).to(dtype)
    expected, finals = in_form("mask", x.to(dtype), batch)(narrowed, [s.to(dtype) for s in states])
    for given in (torch.float32, dtype):
        with torch.autocast("cpu", dtype):
            out, got_finals = in_form("mask", x.to(given), batch)(
                rnn, [s.to(given) for s in states]
            )
        for got, wanted in zip((out, *got_finals), (expected, *finals), strict=True):
            assert_bitwise(got.detach(), wanted.detach())


@pytest.mark.usefixtures("without_onednn")
@narrow
@both_cells
def test_dtypes_of_results_are_those_of_torch(cell: str, dtype: torch.dtype) -> None:
    theirs, ours = modules(cell)
    x = random_batch(theirs, 2, 4).to(dtype)
    with torch.autocast("cpu", dtype):
        expected, expected_hx = theirs(x)
        got, hx = ours(x)
    assert got.dtype == expected.dtype
    assert [s.dtype for s in states_of(hx)] == [s.dtype for s in states_of(expected_hx)]


@both_cells
def test_autocast_leaves_float64_alone(cell: str) -> None:
    _, rnn = modules(cell, torch.float64)
    x = random_batch(rnn, 3, 4)
    expected, _ = rnn(x, lengths=[4, 0, 2])
    with torch.autocast("cpu", torch.bfloat16):
        got, _ = rnn(x, lengths=[4, 0, 2])
    assert_bitwise(got.detach(), expected.detach())


@both_cells
def test_autocast_goes_off_and_on_inside(cell: str) -> None:
    _, rnn = modules(cell)
    x = random_batch(rnn, 3, 4)
    wide, _ = rnn(x, lengths=[4, 0, 2])
    with torch.autocast("cpu", torch.bfloat16):
        narrowed, _ = rnn(x, lengths=[4, 0, 2])
        with torch.autocast("cpu", enabled=False):
            inside, _ = rnn(x, lengths=[4, 0, 2])
            with torch.autocast("cpu", torch.float16):
                innermost, _ = rnn(x, lengths=[4, 0, 2])
        after, _ = rnn(x, lengths=[4, 0, 2])
        assert torch.is_autocast_enabled("cpu")
    assert_bitwise(inside.detach(), wide.detach())
    assert_bitwise(after.detach(), narrowed.detach())
    assert innermost.dtype == torch.float16
    outside, _ = rnn(x, lengths=[4, 0, 2])
    assert_bitwise(outside.detach(), wide.detach())


@pytest.mark.parametrize("cache_enabled", [True, False])
@both_cells
def test_autocast_sees_a_weight_that_changed(cell: str, cache_enabled: bool) -> None:
    """Whether torch keeps narrowed weights, as it does inside one context, or not."""
    _, rnn = modules(cell)
    linear = nn.Linear(3, 3)
    x = random_batch(rnn, 3, 4)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=cache_enabled):
        before, _ = rnn(linear(x), lengths=[4, 0, 2])
        again, _ = rnn(linear(x), lengths=[4, 0, 2])
        with torch.no_grad():
            rnn.weight_hh_l0.mul_(2)
        after, _ = rnn(linear(x), lengths=[4, 0, 2])
    assert_bitwise(again.detach(), before.detach())
    assert not torch.equal(after, before)
    (before.sum() + after.sum()).backward()
    assert all(
        p.grad is not None and p.grad.any() for p in (*linear.parameters(), *rnn.parameters())
    )


@narrow
@pytest.mark.parametrize("backward_inside", [True, False])
@both_cells
def test_a_model_trains_under_autocast(
    cell: str, dtype: torch.dtype, backward_inside: bool
) -> None:
    model = Tagger(cell)
    x = torch.randn(3, 4, 3, requires_grad=True)
    leaves = [x, *model.parameters()]
    exact = torch.autograd.grad(model(x).sum(), leaves)
    with torch.autocast("cpu", dtype):
        out = model(x)
        if backward_inside:
            out.sum().backward()
    if not backward_inside:
        out.sum().backward()
    assert out.dtype == dtype
    for leaf, gradient in zip(leaves, exact, strict=True):
        assert leaf.grad is not None
        assert leaf.grad.dtype == torch.float32
        assert (leaf.grad - gradient).norm() <= 0.05 * gradient.norm()


@pytest.mark.skipif(
    not HAS_EXTENSION, reason="autocast changes the gradients of torch's own products"
)
@pytest.mark.parametrize("create_graph", [False, True])
@both_cells
def test_a_backward_pass_inside_keeps_the_precision_of_the_forward_pass(
    cell: str, create_graph: bool
) -> None:
    _, rnn = modules(cell)
    x = random_batch(rnn, 3, 4).requires_grad_()
    out, _ = rnn(x, lengths=[4, 0, 2])
    gradients = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            (d_x,) = torch.autograd.grad(
                out.square().sum(), x, retain_graph=True, create_graph=create_graph
            )
        gradients.append(d_x.detach())
    assert_bitwise(gradients[1], gradients[0])


@both_cells
def test_gradients_of_gradients_under_autocast(cell: str) -> None:
    found = []
    for enabled in (False, True):
        _, rnn = modules(cell)
        x = random_batch(rnn, 3, 4).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out, _ = rnn(x, lengths=[4, 0, 2])
            (d_x,) = torch.autograd.grad(out.float().square().sum(), x, create_graph=True)
        d_x.square().sum().backward()
        found.append([d_x.detach(), x.grad, *(p.grad for p in rnn.parameters())])
    for got, expected in zip(found[1], found[0], strict=True):
        assert got.dtype == torch.float32
        assert (got - expected).norm() <= 0.1 * expected.norm()


@both_cells
def test_a_gradient_scaler_steps(cell: str) -> None:
    _, rnn = modules(cell)
    optimizer = torch.optim.SGD(rnn.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    x = random_batch(rnn, 3, 4)
    losses = []
    for _ in range(5):
        with torch.autocast("cpu", torch.float16):
            out, _ = rnn(x, lengths=[4, 0, 2])
            losses.append((out.float() - 0.3).square().mean())
        optimizer.zero_grad()
        scaler.scale(losses[-1]).backward()
        scaler.step(optimizer)
        scaler.update()
    assert losses[-1] < losses[0]
    assert scaler.get_scale() == 256.0


@both_cells
def test_packed_sequences_keep_their_indices_under_autocast(cell: str) -> None:
    _, rnn = modules(cell)
    packed = pack_padded_sequence(
        random_batch(rnn, 3, 4), [2, 4, 3], batch_first=True, enforce_sorted=False
    )
    with torch.autocast("cpu", torch.bfloat16):
        out, _ = rnn(packed)
    assert out.data.dtype == torch.bfloat16
    assert torch.equal(out.unsorted_indices, packed.unsorted_indices)


@pytest.fixture
def _precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("_precision")
@both_cells
def test_the_precision_of_products_on_a_gpu_changes_nothing_on_the_cpu(cell: str) -> None:
    found = []
    for precision in ("highest", "high", "medium"):
        torch.set_float32_matmul_precision(precision)
        _, rnn = modules(cell)
        x, states, leaves = data(rnn, BATCHES["mask"])
        outputs = in_form("mask", x, BATCHES["mask"])(rnn, states)
        found.append(with_gradients(outputs, leaves))
    for results in found[1:]:
        for name, tensor in results.items():
            assert_bitwise(tensor, found[0][name], name)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@narrow
@both_cells
def test_autocast_on_cuda(cell: str, dtype: torch.dtype) -> None:
    _, rnn = modules(cell)
    batch = BATCHES["mask"]
    x, states, _ = data(rnn, batch)
    rnn = rnn.to("cuda")
    x, states = x.detach().to("cuda"), [s.detach().to("cuda") for s in states]
    leaves = leaves_of(rnn, x, states)
    on_device = Ragged(batch.valid.to("cuda"), batch.resets.to("cuda"))
    with torch.autocast("cuda", dtype):
        out, finals = in_form("mask", x, on_device)(rnn, states)
    assert out.dtype == dtype
    loss = out.float().sum() + sum(final.float().sum() for final in finals)
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    assert {gradient.dtype for gradient in gradients} == {torch.float32}
    got = {"out": out, **dict(zip(("h_n", "c_n"), finals, strict=False))}
    expected = truth(cell, batch, dtype)
    assert_near({k: t.detach().cpu() for k, t in got.items()}, {k: expected[k] for k in got}, dtype)
