"""torch.compile with fullgraph=True: every form, few graphs."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from helpers import CELLS, HAS_EXTENSION, OURS, Results, assert_bitwise, random_hx, states_of
from ragged import FORMS, Ragged, draw_resets, draw_valid, in_form
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters
from torch.nn.utils.rnn import pack_padded_sequence

pytestmark = [
    pytest.mark.skipif(
        not HAS_EXTENSION, reason="the reference looks at lengths, which breaks graphs"
    ),
    # torch's own, of tensors that are no leaves, and of its own deprecated names.
    pytest.mark.filterwarnings(
        "ignore:The .grad attribute of a Tensor", "ignore:.*(is_fx_tracing|script_method)"
    ),
]


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def batch_for(form: str, seed: int) -> Ragged:
    """With resets; of a shape that the form takes."""
    draw = random.Random(seed)
    num_rows = 1 if form.startswith("single") else draw.randint(2, 6)
    num_steps = draw.randint(3, 9)
    valid = draw_valid(draw, "holes", num_rows, num_steps)
    if form in ("single", "full"):
        valid = torch.ones_like(valid)
    if form == "sorted":
        lengths = sorted((draw.randint(1, num_steps) for _ in range(num_rows)), reverse=True)
        valid = torch.arange(num_steps) < torch.tensor(lengths).unsqueeze(1)
    return Ragged(valid, draw_resets(draw, 0.2, num_rows, num_steps))


def results_of(
    rnn: nn.Module, form: str, x: Tensor, batch: Ragged, hx: Sequence[Tensor], training: bool
) -> Results:
    """Output and final states, and with ``training`` the gradients of all leaves."""
    leaves = [x, *hx, *rnn.parameters()]
    for leaf in leaves:
        leaf.requires_grad_(training)
    with torch.set_grad_enabled(training):
        out, finals = in_form(form, x, batch)(rnn, hx)
        results = {"out": out, **{f"final {i}": t for i, t in enumerate(finals)}}
        if training:
            loss = sum((t * t.sin()).sum() for t in results.values())
            found = torch.autograd.grad(loss, leaves)
            results |= {f"gradient {i}": t for i, t in enumerate(found)}
    return {name: t.detach() for name, t in results.items()}


# Inference with forms of every kind of layout; a form is read alike in training.
IN_INFERENCE = ("lengths", "flat", "packed", "nested holes")


@pytest.mark.parametrize(
    ("form", "training"),
    [(form, True) for form in FORMS if form not in ("sorted", "nested holes")]
    + [(form, False) for form in IN_INFERENCE],
)
def test_every_form_in_one_graph(form: str, training: bool) -> None:
    """Torch has no gradient of a compiled NestedTensor with holes, even of x * 2."""
    cell = CELLS[FORMS.index(form) % 2]
    rnn = OURS[cell](3, 4, 2, batch_first=True, bidirectional=True)
    compiled = torch.compile(rnn, backend="aot_eager", fullgraph=True)
    for seed in range(2):
        batch = batch_for(form, seed)
        x = torch.randn(*batch.valid.shape, 3)
        hx = random_hx(rnn, len(batch.valid))
        got = results_of(compiled, form, x, batch, hx, training)
        for name, truth in results_of(rnn, form, x, batch, hx, training).items():
            assert_bitwise(got[name], truth, name)


@pytest.mark.parametrize("cell", CELLS)
def test_inductor(cell: str) -> None:
    rnn = OURS[cell](3, 4, 2, batch_first=True, bidirectional=True)
    compiled = torch.compile(rnn, fullgraph=True)
    for seed, training in ((0, False), (1, False), (2, True)):
        batch = batch_for("lengths", seed)
        x = torch.randn(*batch.valid.shape, 3)
        hx = random_hx(rnn, len(batch.valid))
        got = results_of(compiled, "lengths", x, batch, hx, training)
        for name, truth in results_of(rnn, "lengths", x, batch, hx, training).items():
            if training:
                torch.testing.assert_close(got[name], truth)
            else:
                assert_bitwise(got[name], truth, name)


@pytest.mark.parametrize(
    ("kind", "training"),
    [
        ("nothing", False),
        ("lengths", False),
        ("lengths", True),
        ("mask", True),
        ("cu_seqlens", True),
    ],
)
def test_twenty_shapes_make_at_most_three_graphs(kind: str, training: bool) -> None:
    draw = random.Random(0)
    rnn = OURS["lstm"](3, 4, batch_first=True, bidirectional=True).requires_grad_(training)
    counter = CompileCounter()
    compiled = torch.compile(rnn, backend=counter, fullgraph=True)
    for _ in range(20):
        num_rows, num_steps = draw.randint(2, 30), draw.randint(2, 30)
        valid = draw_valid(draw, "right", num_rows, num_steps)
        lengths = valid.sum(1)
        x = torch.randn(num_rows, num_steps, 3)
        keywords = {
            "nothing": {},
            "lengths": {"lengths": lengths},
            "mask": {"mask": valid},
            "cu_seqlens": {"cu_seqlens": nn.functional.pad(lengths.cumsum(0), (1, 0))},
        }[kind]
        x = x[valid] if kind == "cu_seqlens" else x
        out, _ = compiled(x, **keywords)
        assert_bitwise(out.detach(), rnn(x, **keywords)[0].detach())
    assert counter.frame_count <= 3


def test_every_cell_state() -> None:
    rnn = OURS["lstm"](3, 4, batch_first=True, bidirectional=True)
    compiled = torch.compile(rnn, backend="aot_eager", fullgraph=True)
    batch = batch_for("mask", 0)
    x, (h_0, c_0) = torch.randn(*batch.valid.shape, 3), random_hx(rnn, len(batch.valid))
    keywords = {"mask": batch.valid, "resets": batch.resets, "output_states": True}
    (out, cells), finals = compiled(x, (h_0, c_0), **keywords)
    (true_out, true_cells), true_finals = rnn(x, (h_0, c_0), **keywords)
    pairs = zip((out, cells, *finals), (true_out, true_cells, *true_finals), strict=True)
    for got, truth in pairs:
        assert_bitwise(got.detach(), truth.detach())
    x.requires_grad_()
    gradients = [
        torch.autograd.grad(call(x, (h_0, c_0), **keywords)[0][1].square().sum(), x)[0]
        for call in (compiled, rnn)
    ]
    assert_bitwise(*gradients)


def test_what_was_recorded_checks_the_values_it_gets() -> None:
    rnn = OURS["gru"](3, 4, batch_first=True)
    compiled = torch.compile(rnn, backend="aot_eager", fullgraph=True)
    x, lengths = torch.randn(2, 5, 3), torch.tensor([5, 2])
    assert_bitwise(compiled(x, lengths=lengths)[0].detach(), rnn(x, lengths=lengths)[0].detach())
    for wrong, got in (([6, 2], "6 at index 0"), ([5, -1], "-1 at index 1")):
        message = rf"lengths must be in \[0, T\] = \[0, 5\], got {got}"
        with pytest.raises(RuntimeError, match=message):
            compiled(x, lengths=torch.tensor(wrong))
    with pytest.raises(RuntimeError, match="cu_seqlens must be N at the end"):
        compiled(x[0], cu_seqlens=torch.tensor([0, 2, 4]))
    for wrong in (torch.full((2, 5), 2), torch.full((2, 5), 0.5), torch.full((2, 5), torch.nan)):
        with pytest.raises(RuntimeError, match="mask must be bool, or integers or floats 0 and 1"):
            compiled(x, mask=wrong)
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    order = {"sorted_indices": torch.tensor([0, 0])}
    with pytest.raises(RuntimeError, match=r"sorted_indices must be a permutation of \[0, B\)"):
        compiled(packed._replace(**order))
    for sizes, message in (
        ([2, 2, 2, 1, 0], "positive and not increasing"),
        ([2, 1, 1, 2, 1], "positive and not increasing"),
        ([2, 2, 1, 1, 2], "positive and not increasing"),
        ([2, 2, 2, 1, 1], "of sum N"),
        ([1, 1, 1, 1, 1], "of sum N"),
    ):
        with pytest.raises(RuntimeError, match=f"batch_sizes must be {message}"):
            compiled(packed._replace(batch_sizes=torch.tensor(sizes)))


@pytest.mark.parametrize("make", [torch.tensor, np.array, list], ids=["tensor", "array", "list"])
def test_arrays_and_lists(make: Callable[[list[Any]], Any]) -> None:
    rnn = OURS["gru"](3, 4, batch_first=True)
    compiled = torch.compile(rnn, backend="eager", fullgraph=True)
    x, flags = torch.randn(2, 3, 3), [[True, False, True], [False, True, False]]
    for keywords in ({"lengths": make([3, 1])}, {"mask": make(flags)}, {"resets": make(flags)}):
        assert_bitwise(compiled(x, **keywords)[0].detach(), rnn(x, **keywords)[0].detach())
    floats = make([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    deeper = make([[[flag] for flag in row] for row in flags])
    for keywords in ({"mask": floats}, {"resets": floats}, {"resets": deeper}):
        name, same = next(iter(keywords)), torch.tensor(flags)
        assert_bitwise(compiled(x, **keywords)[0].detach(), rnn(x, **{name: same})[0].detach())
    bounds = make([0, 2, 3])
    got, truth = (call(x[0], cu_seqlens=bounds)[0].detach() for call in (compiled, rnn))
    assert_bitwise(got, truth)


def test_a_model_with_dropout_and_what_stands_around_it() -> None:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(7, 3)
            self.rnn = OURS["lstm"](3, 4, 2, batch_first=True, bidirectional=True, dropout=0.5)
            self.head = nn.Linear(8, 2)

        def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
            out, (h_n, _) = self.rnn(self.embedding(tokens), lengths=lengths)
            return self.head(out) + h_n[-1].sum()

    model = Tagger().train()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    tokens, lengths = torch.randint(7, (3, 5)), torch.tensor([5, 0, 3])
    gradients = []
    for call in (compiled, model):
        torch.manual_seed(1)
        model.zero_grad()
        call(tokens, lengths).sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for got, truth in zip(*gradients, strict=True):
        assert_bitwise(got, truth)


@pytest.mark.parametrize("reduced", [torch.bfloat16, torch.float64])
def test_other_dtypes_and_autocast(reduced: torch.dtype) -> None:
    rnn = OURS["gru"](3, 4, batch_first=True).to(reduced)
    x, lengths = torch.randn(3, 5, 3, dtype=reduced), torch.tensor([5, 0, 3])

    def call(x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            return rnn(x, lengths=lengths)

    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    for got, truth in zip(compiled(x), call(x), strict=True):
        assert_bitwise(got.detach(), truth.detach())
    assert len(states_of(compiled(x)[1])) == 1
