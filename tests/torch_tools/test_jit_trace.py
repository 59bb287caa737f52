"""torch.jit.trace: what was recorded with one batch takes every other one, to the bit.

No warning of torch's tracer is let through: whatever would become a constant shows.
"""

from __future__ import annotations

import random
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import (
    CELLS,
    HAS_EXTENSION,
    OURS,
    as_hx,
    assert_bitwise,
    child_environment,
    random_hx,
    states_of,
)
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from varlen_rnn import VarLenLSTM, quantize_dynamic
from varlen_rnn.layout import make
from varlen_rnn.runtime import extension

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.* is (deprecated|not supported)"),
    pytest.mark.skipif(not HAS_EXTENSION, reason="the reference cannot be traced"),
]
both_cells = pytest.mark.parametrize("cell", CELLS)

Sizes = tuple[int, int]  # B, T
# The keyword arguments of a form: each a function of B and T. They come behind the input.
Keywords = dict[str, Callable[[int, int], Tensor]]


def lengths(num_rows: int, num_steps: int) -> Tensor:
    return torch.randint(num_steps + 1, (num_rows,))


def full_lengths(num_rows: int, num_steps: int) -> Tensor:
    """Of rows that a PackedSequence may hold."""
    return torch.randint(1, num_steps + 1, (num_rows,))


def flags(num_rows: int, num_steps: int) -> Tensor:
    return torch.rand(num_rows, num_steps) < 0.5


def bounds(num_rows: int, num_steps: int) -> Tensor:
    """The boundaries of B rows among B * T tokens."""
    inner = torch.randint(num_rows * num_steps + 1, (num_rows - 1,)).sort().values
    return torch.cat((torch.tensor([0]), inner, torch.tensor([num_rows * num_steps])))


FORMS: dict[str, Keywords] = {
    "full": {},
    "lengths": {"lengths": lengths},
    "mask": {"mask": flags},
    "resets": {"resets": flags},
    "lengths and resets": {"lengths": lengths, "resets": flags},
    "mask and resets": {"mask": flags, "resets": flags},
    "mask of integers": {"mask": lambda *sizes: flags(*sizes).int()},
    "mask of floats": {"mask": lambda *sizes: flags(*sizes).float()},
    "resets [B, T, 1]": {"resets": lambda *sizes: flags(*sizes).half().unsqueeze(2)},
    "single": {},
    "single mask and resets": {"mask": flags, "resets": flags},
    "flat": {"cu_seqlens": bounds},
    "flat and resets": {"cu_seqlens": bounds, "resets": flags},
    "packed": {"lengths": full_lengths},
    "sorted": {"lengths": lambda *sizes: full_lengths(*sizes).sort(descending=True).values},
    "packed and resets": {"lengths": full_lengths, "resets": flags},
}


class Model(nn.Module):
    """A layer called in one form, on tensors alone; all results in one tuple."""

    def __init__(self, rnn: nn.RNNBase, form: str, **options: Any) -> None:
        super().__init__()
        self.rnn, self.form, self.options = rnn, form, options
        self.names = list(FORMS[form])

    def forward(self, x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        keywords = dict(zip(self.names, tensors, strict=False))
        states = tensors[len(self.names) :]
        batch: Any = x
        if self.form in ("packed", "sorted", "packed and resets"):
            of_rows, first = keywords.pop("lengths"), self.rnn.batch_first
            in_order = self.form == "sorted"
            batch = pack_padded_sequence(x, of_rows, first, in_order)
            if "resets" in keywords:
                packed = pack_padded_sequence(keywords["resets"], of_rows, first, in_order)
                keywords["resets"] = packed.data
        out, hx = self.rnn(batch, as_hx(states), **keywords, **self.options)
        outs = out if isinstance(out, tuple) and not isinstance(out, PackedSequence) else [out]
        outs = [o.data if isinstance(o, PackedSequence) else o for o in outs]
        return (*outs, *states_of(hx))

    def example(self, sizes: Sizes, with_hx: bool) -> tuple[Tensor, ...]:
        """Random arguments for B rows and T steps."""
        single, flat = self.form.startswith("single"), self.form.startswith("flat")
        num_rows, num_steps = (1, sizes[1]) if single else sizes
        x = torch.randn(num_rows, num_steps, self.rnn.input_size)
        tensors = [make(num_rows, num_steps) for make in FORMS[self.form].values()]
        if single:
            x, tensors = x[0], [t[0] for t in tensors]
        elif flat:
            x, tensors = x.flatten(0, 1), [t.flatten() for t in tensors]
        elif not self.rnn.batch_first:
            x = x.transpose(0, 1)
            tensors = [t.transpose(0, 1) if t.dim() > 1 else t for t in tensors]
        states = random_hx(self.rnn, num_rows) if with_hx else []
        return (x, *tensors, *([s[:, 0] for s in states] if single else states))


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
@both_cells
def test_int8_weights(cell: str, form: str) -> None:
    rnn = quantize_dynamic(OURS[cell](3, 5, 2, batch_first=True, bidirectional=True))
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


@both_cells
def test_wrong_lengths_raise_when_they_come(cell: str) -> None:
    model = Model(OURS[cell](3, 5, batch_first=True), "lengths").eval()
    traced = torch.jit.trace(model, model.example((4, 6), False))
    x = torch.randn(2, 3, 3)
    for wrong in ([1, 4], [-1, 2], [1], [1, 2, 3]):
        with pytest.raises(RuntimeError, match="lengths must be"):
            traced(x, torch.tensor(wrong))


X = torch.randn(2, 7, 3)
FLAGS = torch.tensor([[1, 0, 1, 1, 0, 0, 1], [1, 1, 0, 0, 0, 1, 0]])


@pytest.mark.parametrize(
    ("form", "x", "arguments"),
    [
        ("mask of integers", X, [2 * FLAGS.int()]),
        ("mask of integers", X, [FLAGS / 2]),
        ("mask of integers", X, [FLAGS.float() * torch.nan]),
        ("mask", X, [FLAGS]),  # of another dtype
        ("mask", X, [FLAGS.T.bool()]),
        ("mask", X, [FLAGS[:1].bool()]),
        ("mask", X, [FLAGS[:, :1].bool()]),
        ("resets", X, [FLAGS.T.bool()]),
        ("lengths", X, [torch.tensor([7])]),
        ("flat", X[0], [torch.tensor([0, 3, 6])]),
        ("flat", X[0], [torch.tensor([0, 8, 7])]),
        ("flat", X[0], [torch.tensor([1, 3, 7])]),
        ("flat and resets", X[0], [torch.tensor([0, 3, 7]), FLAGS.flatten().bool()]),
        ("single mask and resets", X[0], [FLAGS[0, :3].bool(), FLAGS[1].bool()]),
    ],
)
def test_what_does_not_fit_raises_when_it_comes(
    form: str, x: Tensor, arguments: list[Tensor]
) -> None:
    """Also where the traced graph would go on without a word."""
    model = Model(VarLenLSTM(3, 5, batch_first=True), form).eval()
    traced = torch.jit.trace(model, model.example((4, 6), False))
    with pytest.raises(RuntimeError, match=r"\w"):
        traced(x, *arguments)
    if form != "mask" or arguments[0].dtype == torch.bool:
        with pytest.raises((ValueError, RuntimeError), match="must be"):
            model(x, *arguments)


class Packs(nn.Module):
    """A PackedSequence made by hand, of what may be wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = VarLenLSTM(3, 5)

    def forward(self, data: Tensor, batch_sizes: Tensor, order: Tensor) -> Tensor:
        back = torch.argsort(order)
        return self.rnn(PackedSequence(data, batch_sizes, order, back))[0].data


def test_a_packed_sequence_that_is_none_raises_when_it_comes() -> None:
    data, order = torch.randn(6, 3), torch.tensor([1, 0, 2])
    model = Packs().eval()
    traced = torch.jit.trace(model, (data, torch.tensor([3, 2, 1]), order))
    longer = torch.tensor([2, 2, 2, 1]), torch.tensor([1, 0])
    assert_bitwise(traced(torch.ones(7, 3), *longer), model(torch.ones(7, 3), *longer))
    for sizes, indices in (
        ([3, 1, 1, 0], [1, 0, 2]),
        ([1, 2, 3], [0]),
        ([3, 2], [1, 0, 2]),
        ([3, 2, 1], [1, 0]),
        ([3, 2, 1], [1, 1, 2]),
    ):
        with pytest.raises(RuntimeError, match=r"\w"):
            traced(data, torch.tensor(sizes), torch.tensor(indices))


@pytest.mark.parametrize(
    ("keywords", "what"),
    [
        ({"lengths": [6, 2, 3, 1]}, "lengths"),
        ({"mask": [[True] * 6] * 4}, "mask"),
        ({"resets": torch.zeros(4, 6).bool().numpy()}, "resets"),
        ({"cu_seqlens": [0, 2, 6]}, "cu_seqlens"),
    ],
)
def test_numbers_that_a_trace_does_not_see_are_refused(keywords: dict[str, Any], what: str) -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = VarLenLSTM(3, 5, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(x, **keywords)[0]

    x = torch.randn(6, 3) if what == "cu_seqlens" else torch.randn(4, 6, 3)
    message = f"VarLenLSTM: {what} must be a Tensor under torch.jit.trace, got"
    with pytest.raises(TypeError, match=message):
        torch.jit.trace(Constant(), (x,))


def test_the_reference_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its graph would have as many steps as the example."""
    monkeypatch.setattr(extension, "runs", lambda x: False)
    rnn = VarLenLSTM(3, 5)
    with pytest.raises(NotImplementedError, match=r"VarLenLSTM: torch.jit.trace needs compiled"):
        torch.jit.trace(rnn, (torch.randn(6, 4, 3),))


def test_a_nested_tensor_is_refused() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = VarLenLSTM(3, 5, batch_first=True)

        def forward(self, values: Tensor, offsets: Tensor) -> Tensor:
            nested = torch.nested.nested_tensor_from_jagged(values, offsets)
            return self.rnn(nested)[0].values()

    with pytest.raises(RuntimeError, match=r"\w"):  # by torch, in more than one way
        torch.jit.trace(Nested(), (torch.randn(5, 3), torch.tensor([0, 2, 5])))
