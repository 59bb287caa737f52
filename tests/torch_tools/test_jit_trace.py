"""torch.jit.trace: what was recorded with one batch takes every other one, to the bit.

No warning of torch's tracer is let through: whatever would become a constant shows.
"""

from __future__ import annotations

import random
import subprocess
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from helpers import CELLS, HAS_EXTENSION, OURS, assert_bitwise, child_environment
from torch import Tensor
from traced_model import FORMS, Model, Sizes

from varlen_rnn import VarLenLSTM, freeze
from varlen_rnn.layout import make

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.* is (deprecated|not supported)"),
    pytest.mark.skipif(not HAS_EXTENSION, reason="the reference cannot be traced"),
]
both_cells = pytest.mark.parametrize("cell", CELLS)


def assert_same(got: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert_bitwise(a.detach(), b.detach())


@dataclass(frozen=True)
class Pair:
    """A layer, the sizes of the batch that is traced, and those of the one that comes later."""

    cell: str
    form: str
    traced: Sizes
    called: Sizes
    num_layers: int
    bidirectional: bool
    batch_first: bool
    bias: bool
    with_hx: bool

    def __str__(self) -> str:
        layer = f"{self.cell}-{self.num_layers}" + "-bi" * self.bidirectional
        layer += "-bf" * self.batch_first + "-nobias" * (not self.bias) + "-hx" * self.with_hx
        sizes = "-to-".join(f"{b}x{t}" for b, t in (self.traced, self.called))
        return f"{self.form}-{sizes}-{layer}".replace(" ", "_")


# Larger and smaller in both, B = 1 and T = 1 among them, on either side.
SIZES = [
    ((4, 6), (7, 9)),
    ((4, 6), (2, 3)),
    ((4, 6), (2, 9)),
    ((4, 6), (6, 4)),
    ((4, 6), (1, 1)),
    ((1, 5), (3, 7)),
    ((1, 1), (4, 2)),
    ((6, 4), (4, 6)),
]


def draw_pairs() -> list[Pair]:
    draw = random.Random(0)
    return [
        Pair(
            *(cell, form, traced, called, draw.randint(1, 2)),
            *(draw.random() < 0.5 for _ in range(2)),
            *(draw.random() < 0.7, draw.random() < 0.5),
        )
        for cell in CELLS
        for form in FORMS
        for traced, called in draw.sample(SIZES, 4)
    ]


def model_of(pair: Pair) -> Model:
    rnn = OURS[pair.cell](
        *(3, 5, pair.num_layers, pair.bias, pair.batch_first), bidirectional=pair.bidirectional
    )
    return Model(rnn, pair.form)


@pytest.mark.parametrize("pair", draw_pairs(), ids=str)
def test_other_sizes_give_the_same_bits(pair: Pair) -> None:
    model = model_of(pair).eval()
    with torch.no_grad():
        traced = torch.jit.trace(model, model.example(pair.traced, pair.with_hx))
        # Torch compiles what it has seen twice.
        for sizes in (pair.called, pair.traced, pair.called, pair.called):
            arguments = model.example(sizes, pair.with_hx)
            assert_same(traced(*arguments), model(*arguments))


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_a_trace_warns_of_nothing_that_it_made_constant(form: str, batch_first: bool) -> None:
    rnn = OURS["lstm"](3, 5, 2, batch_first=batch_first, bidirectional=True)
    model = Model(rnn, form).eval()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with torch.no_grad():
            torch.jit.trace(model, model.example((3, 4), True))
    assert not [w for w in said if issubclass(w.category, torch.jit.TracerWarning)]


@pytest.mark.parametrize("form", FORMS)
@both_cells
def test_training(cell: str, form: str) -> None:
    model = Model(OURS[cell](3, 5, 2, batch_first=True, bidirectional=True), form)
    traced = torch.jit.trace(model, model.example((4, 6), True))
    for sizes in ((7, 9), (2, 3), (1, 4), (4, 6)):
        arguments = model.example(sizes, True)
        gradients = []
        for run in (traced, model):
            x = arguments[0].clone().requires_grad_()
            outputs = run(x, *arguments[1:])
            loss = sum((out * (out + 1)).sum() for out in outputs)
            gradients.append(torch.autograd.grad(loss, [x, *model.parameters()]))
        assert_same(*gradients)


@pytest.mark.parametrize("form", ["full", "lengths", "single", "flat"])
@both_cells
def test_batches_without_tokens(cell: str, form: str) -> None:
    model = Model(OURS[cell](3, 5, batch_first=True, bidirectional=True), form).eval()
    traced = torch.jit.trace(model, model.example((4, 6), True))
    for sizes in ((3, 0), (0, 3), (0, 0)):
        if form != "flat" or sizes[0] > 0:
            arguments = model.example(sizes, True)
            assert_same(traced(*arguments), model(*arguments))


@pytest.mark.parametrize("form", ["full", "mask and resets", "packed"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_every_cell_state(form: str, batch_first: bool) -> None:
    rnn = VarLenLSTM(3, 5, 2, batch_first=batch_first, bidirectional=True)
    model = Model(rnn, form, output_states=True)
    traced = torch.jit.trace(model, model.example((4, 6), True))
    for sizes in ((7, 9), (2, 3), (1, 1)):
        arguments = model.example(sizes, True)
        assert_same(traced(*arguments), model(*arguments))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("cell", "weights"),
    [("lstm", None), ("gru", torch.bfloat16), ("lstm", torch.int8), ("gru", torch.int8)],
    ids=str,
)
def test_frozen_layers(cell: str, weights: torch.dtype | None, form: str) -> None:
    rnn = freeze(OURS[cell](3, 5, 2, batch_first=True, bidirectional=True), weights)
    model = Model(rnn, form)
    traced = torch.jit.trace(model, model.example((4, 6), True))
    for sizes in ((7, 9), (2, 3), (1, 1)):
        arguments = model.example(sizes, True)
        assert_same(traced(*arguments), model(*arguments))


@pytest.mark.parametrize("form", ["mask", "lengths and resets"])
@both_cells
def test_layouts_that_another_device_would_make(
    cell: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By tensor operations, with nothing of the sizes in the graph."""
    monkeypatch.setattr(make, "_compiled", lambda: False)
    model = Model(OURS[cell](3, 5, batch_first=True), form).eval()

    def example(sizes: Sizes) -> tuple[Tensor, ...]:
        """With a last step of padding, so that batch_sizes ends in a zero."""
        x, which, *others = model.example(sizes, True)
        if which.dim() == 2:
            which[:, -1] = False
        return x, which.clamp(max=sizes[1] - 1), *others

    traced = torch.jit.trace(model, example((4, 6)))
    for sizes in ((7, 9), (2, 3), (1, 2)):
        arguments = example(sizes)
        assert_same(traced(*arguments), model(*arguments))


@both_cells
def test_what_is_saved_runs_in_another_process(cell: str, tmp_path: Path) -> None:
    model = Model(OURS[cell](3, 5, 2, batch_first=True, bidirectional=True), "lengths").eval()
    traced = torch.jit.trace(model, model.example((4, 6), True))
    arguments = model.example((3, 8), True)
    torch.jit.save(traced, tmp_path / "model.pt")
    torch.save((arguments, model(*arguments)), tmp_path / "call.pt")
    program = (
        "import sys, warnings, torch, varlen_rnn\n"
        "warnings.simplefilter('ignore')\n"
        "model = torch.jit.load(sys.argv[1])\n"
        "arguments, expected = torch.load(sys.argv[2])\n"
        "for got, truth in zip(model(*arguments), expected, strict=True):\n"
        "    assert torch.equal(got, truth)\n"
    )
    paths = [str(tmp_path / name) for name in ("model.pt", "call.pt")]
    command = [sys.executable, "-c", program, *paths]
    subprocess.run(command, env=child_environment(), check=True, timeout=300)
