"""The modules on a CUDA device against torch.nn in float64 on the CPU, in every form and dtype."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise

import pytest
import torch
from helpers import (
    CELLS,
    FORMS,
    Results,
    Segment,
    as_hx,
    largest,
    max_error,
    ours_in_form,
    random_batch,
    random_hx,
    states_of,
    torch_packed,
    torch_per_segment,
)
from on_device import (
    DEVICE,
    ON_CUDA,
    PRECISIONS,
    assert_near,
    check,
    cuda_only,
    in_double,
    module,
    needs_device,
    precision,
    run_with_gradients,
    truth_of,
)
from torch import Tensor, nn

pytestmark = needs_device


@pytest.mark.parametrize("hidden_size", [8, 17, 64, 128, 256, 512])
@pytest.mark.parametrize("name", PRECISIONS)
@pytest.mark.parametrize("cell", CELLS)
def test_values_and_gradients(cell: str, name: str, hidden_size: int) -> None:
    check(cell, name, (24, hidden_size), bidirectional=True)


@pytest.mark.parametrize("hidden_size", [768, 1024, 2048])
@pytest.mark.parametrize("name", ["tf32", "bfloat16"])
@pytest.mark.parametrize("cell", CELLS)
@cuda_only
def test_large_sizes(cell: str, name: str, hidden_size: int) -> None:
    check(cell, name, (40, hidden_size), (9, 3, 12, 1))


@pytest.mark.parametrize("name", ["float64", "bfloat16"])
@pytest.mark.parametrize("cell", CELLS)
def test_layers(cell: str, name: str) -> None:
    check(cell, name, (24, 64), num_layers=3, bidirectional=True, batch_first=True)
    check(cell, name, (24, 64), with_states=False, bias=False)


@pytest.mark.parametrize("name", ["float64", "bfloat16"])
def test_projections(name: str) -> None:
    check("lstm", name, (24, 64), num_layers=2, bidirectional=True, proj_size=16)


@pytest.mark.parametrize("lengths", [(1,), (40,), (0, 0), (2,) * 70, tuple(range(1, 200, 3))])
@pytest.mark.parametrize("name", ["float64", "bfloat16"])
@pytest.mark.parametrize("cell", CELLS)
def test_lengths(cell: str, name: str, lengths: tuple[int, ...]) -> None:
    """One token, one row, no token at all, and more rows than there are slots."""
    rows = lengths * (8 if ON_CUDA and len(lengths) > 60 else 1)
    check(cell, name, (16, 32), rows, bidirectional=True)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["float64", "bfloat16"])
@pytest.mark.parametrize("cell", CELLS)
def test_forms_of_helpers(cell: str, name: str, form: str) -> None:
    lengths = {"full": (9, 9, 9), "single": (9,), "sorted": (9, 4, 4, 1)}.get(form, (4, 9, 1, 4))
    rnn = module(cell, name, 24, 32, bidirectional=True)
    x = random_batch(rnn, len(lengths), max(lengths)).to(DEVICE)
    states = [s.to(DEVICE) for s in random_hx(rnn, len(lengths))]
    truth = truth_of(rnn, cell)
    expected = run_with_gradients(
        truth,
        *(in_double([x])[0], in_double(states)),
        lambda x, states: torch_packed(truth, x, states, lengths),
    )
    got = run_with_gradients(
        rnn, x, states, lambda x, states: ours_in_form(rnn, x, states, lengths, form)
    )
    assert_near(got, expected, PRECISIONS[name][2])


def with_mask(rnn: nn.RNNBase, x: Tensor, mask: Tensor) -> Tensor:
    return rnn(x, mask=mask)[0]


def flat(rnn: nn.RNNBase, x: Tensor, mask: Tensor) -> Tensor:
    bounds = torch.nn.functional.pad(mask.sum(1).cumsum(0), (1, 0)).int()
    out = x.new_zeros(*x.shape[:2], rnn.hidden_size)
    return out.masked_scatter(mask[..., None], rnn(x[mask], cu_seqlens=bounds)[0])


def nested(rnn: nn.RNNBase, x: Tensor, mask: Tensor) -> Tensor:
    bounds = torch.nn.functional.pad(mask.sum(1).cumsum(0), (1, 0))
    given = torch.nested.nested_tensor_from_jagged(x[mask], bounds)
    out = x.new_zeros(*x.shape[:2], rnn.hidden_size)
    return out.masked_scatter(mask[..., None], rnn(given)[0].values())


@pytest.mark.filterwarnings("ignore:.*nested tensors.*prototype")
@pytest.mark.parametrize("form", [with_mask, flat, nested])
@pytest.mark.parametrize("name", ["float64", "bfloat16"])
@pytest.mark.parametrize("cell", CELLS)
def test_holes_and_flat_tokens(cell: str, name: str, form: Callable[..., Tensor]) -> None:
    """Tokens anywhere in a row; behind every hole the state goes on as it was."""
    rnn = module(cell, name, 24, 32, batch_first=True)
    x = random_batch(rnn, 6, 15).to(DEVICE)
    mask = torch.rand(6, 15, generator=torch.Generator().manual_seed(5)) < 0.6
    mask[2] = False
    truth = truth_of(rnn, cell)

    def expected_rows(x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        out = x.new_zeros(*x.shape[:2], rnn.hidden_size)
        for row in range(len(x)):
            if mask[row].any():
                out[row, mask[row]] = truth(x[row, mask[row]])[0]
        return out, []

    expected = run_with_gradients(truth, in_double([x])[0], [], expected_rows)
    on_device = mask.to(DEVICE)
    got = run_with_gradients(rnn, x, [], lambda x, states: (form(rnn, x, on_device), []))
    assert_near(got, expected, PRECISIONS[name][2])


@pytest.mark.parametrize("name", ["float64", "bfloat16", "tf32"])
@pytest.mark.parametrize("cell", CELLS)
def test_resets(cell: str, name: str) -> None:
    """Each segment as if it were alone; only a row's first one starts from its states."""
    lengths, rows, steps = (14, 6, 1, 0, 11), 5, 14
    rnn = module(cell, name, 24, 64, batch_first=True, bidirectional=True)
    x = random_batch(rnn, rows, steps).to(DEVICE)
    states = [s.to(DEVICE) for s in random_hx(rnn, rows)]
    resets = torch.rand(rows, steps, generator=torch.Generator().manual_seed(6)) < 0.25
    segments = []
    for row, length in enumerate(lengths):
        bounds = [0, *resets[row, 1:length].nonzero().flatten().add(1).tolist(), length]
        for start, end in pairwise(bounds):
            if start == end:
                continue
            keeps = start == 0 and not resets[row, 0]
            segments.append(
                Segment(row, start, end - start, row if keeps else -1, row if end == length else -1)
            )
    truth = truth_of(rnn, cell)

    def ours(x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        keywords = {"lengths": torch.tensor(lengths, device=DEVICE), "resets": resets.to(DEVICE)}
        out, hx = rnn(x, as_hx(states), **keywords)
        return out, states_of(hx)

    with precision(name):
        got = run_with_gradients(rnn, x, states, ours)
    expected = run_with_gradients(
        truth,
        *(in_double([x])[0], in_double(states)),
        lambda x, states: torch_per_segment(truth, x, states, segments),
    )
    assert_near(got, expected, PRECISIONS[name][2])


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_of_gradients(cell: str) -> None:
    rnn = module(cell, "float64", 2, 3, batch_first=True)
    lengths = torch.tensor((2, 3), device=DEVICE)
    x = random_batch(rnn, 2, 3).to(DEVICE).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: rnn(x, lengths=lengths)[0], (x,))


@pytest.mark.parametrize("name", ["float64", "bfloat16"])
def test_output_states(name: str) -> None:
    """The cell states of every token: those that a run which ends there would end in."""
    rnn = module("lstm", name, 24, 64, batch_first=True)
    x = random_batch(rnn, 2, 5).to(DEVICE)
    lengths = torch.tensor((5, 3), device=DEVICE)
    with torch.no_grad():
        (_, cells), _ = rnn(x, lengths=lengths, output_states=True)
        for step in range(3):
            _, (_, c_n) = rnn(x[:, : step + 1])
            error = max_error(cells[:, step].cpu(), c_n[0].cpu())
            assert error <= PRECISIONS[name][2], f"step {step}: error {error:.3g}"


@contextmanager
def torch_products(precision: str) -> Iterator[None]:
    """torch's switch of its own products, which is not that of recurrent layers."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = precision
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def are_tf32(got: Results, expected: Results, names: list[str]) -> set[bool]:
    """Of these results, whether they come of TF32: float32's errors are a hundred times smaller."""
    return {max_error(got[name], expected[name]) > 1e-5 * largest(expected[name]) for name in names}


@pytest.mark.parametrize("hidden_size", [17, 64])
@pytest.mark.parametrize("of_torch", ["ieee", "tf32"])
@pytest.mark.parametrize("name", ["float32", "tf32"])
@pytest.mark.parametrize("cell", CELLS)
@cuda_only
def test_one_switch_for_all_products(cell: str, name: str, of_torch: str, hidden_size: int) -> None:
    """That of recurrent layers, whatever torch's other one says; and that is left as it was."""
    if torch.cuda.get_device_capability()[0] < 8:
        pytest.skip("has no TF32")
    rnn = module(cell, name, 512, hidden_size, batch_first=True)
    x = torch.randn(8, 6, 512, device=DEVICE)
    states = [s.to(DEVICE) for s in random_hx(rnn, 8)]

    def call(of: nn.RNNBase) -> Callable[..., tuple[Tensor, list[Tensor]]]:
        def run(x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
            out, hx = of(x, as_hx(states))
            return out, states_of(hx)

        return run

    def is_tf32(x: Tensor, of_steps: bool, names: list[str]) -> set[bool]:
        """Where only the products of the steps, or only those of all tokens, are not of zeros."""
        with torch.no_grad():
            rnn.weight_hh_l0.mul_(1.0 if of_steps else 0.0)
        truth = truth_of(rnn, cell)
        doubles = in_double([x])[0], in_double(states)
        expected = run_with_gradients(truth, *doubles, call(truth))
        with precision(name), torch_products(of_torch):
            got = run_with_gradients(rnn, x, states, call(rnn))
        return are_tf32(got, expected, names)

    assert is_tf32(torch.zeros_like(x), True, ["out", "d_h_0"]) == {name == "tf32"}
    of_tokens = ["out", "d_x", "d_weight_ih_l0", "d_weight_hh_l0"]
    assert is_tf32(x, False, of_tokens) == {name == "tf32"}
    with torch_products(of_torch):
        product = {"": (x[0] @ x[1].T).cpu()}
    expected = {"": in_double([x[0]])[0] @ in_double([x[1]])[0].T}
    assert are_tf32(product, expected, [""]) == {of_torch == "tf32"}
