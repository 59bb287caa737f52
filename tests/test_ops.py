"""The layer functions and the ops below them: values, gradients and registration."""

from __future__ import annotations

import itertools
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from helpers import (
    CELLS,
    HAS_EXTENSION,
    Results,
    Segment,
    assert_bitwise,
    assert_close64,
    layout_of,
    rows_as_segments,
    with_gradients,
)
from torch import Tensor

from varlen_rnn import ops, reference
from varlen_rnn.layout import Layout

needs_extension = pytest.mark.skipif(not HAS_EXTENSION, reason="there are no compiled ops")
RAGGED = rows_as_segments([3, 0, 5, 1])
RESETS = [Segment(0, 0, 2, 0, -1), Segment(0, 3, 2, -1, 0), Segment(2, 1, 3, 2, 2)]


def flat(weights: list[list[Tensor]]) -> list[Tensor | None]:
    """Lists over directions as the ops take them: all of the first direction, all of the second."""
    return [w[d] if d < len(w) else None for d in range(2) for w in weights]


@dataclass(frozen=True)
class Case:
    """The arguments of one layer."""

    cell: str
    x: Tensor
    states: list[Tensor | None]
    weights: list[list[Tensor]]
    layout: Layout

    def __str__(self) -> str:
        parts = [self.cell, f"D{len(self.weights[0])}", f"G{len(self.layout.initial_row)}"]
        parts += ["nobias"] * (not self.weights[2]) + ["proj"] * any(self.weights[4:])
        parts += ["hx"] * (self.states[0] is not None) + ["in place"] * (self.layout.rows is None)
        return " ".join(parts)

    @property
    def arguments(self) -> list[Any]:
        return [self.x, *self.states, *flat(self.weights), *self.layout_arguments]

    @property
    def layout_arguments(self) -> list[Any]:
        """The layout, and whether float32 may be TF32, which means nothing on the CPU."""
        return [*vars(self.layout).values(), False]

    @property
    def leaves(self) -> dict[str, Tensor]:
        kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
        named = {"x": self.x, **dict(zip(("h_0", "c_0"), self.states, strict=False))}
        for kind, tensors in zip(kinds, self.weights, strict=False):
            named |= {f"{kind}_{d}": tensor for d, tensor in enumerate(tensors)}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def fresh(self, *, requires_grad: bool = False) -> Case:
        """The same case on tensors of its own."""

        def copy(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.detach().clone().requires_grad_(requires_grad)

        return replace(
            self,
            x=copy(self.x),
            states=[copy(s) for s in self.states],
            weights=[[copy(w) for w in tensors] for tensors in self.weights],
        )

    def run(self, where: Any) -> tuple[Tensor, list[Tensor]]:
        weights = [flat(self.weights)] if where is ops else self.weights
        out, *finals = getattr(where, self.cell)(self.x, *self.states, *weights, self.layout)
        return out, finals

    def results(self, where: Any) -> Results:
        return with_gradients(self.run(where), self.leaves)


def make_case(
    cell: str,
    segments: list[Segment],
    *,
    directions: int = 1,
    bias: bool = True,
    projected: bool = False,
    with_states: bool = True,
    sizes: tuple[int, int] = (3, 4),
    in_place: bool = False,
    dtype: torch.dtype = torch.float64,
) -> Case:
    torch.manual_seed(0)
    (input_size, hidden_size), gates = sizes, 4 if cell == "lstm" else 3
    output_size = 2 if projected else hidden_size
    layout = layout_of(segments, 4, 5, bidirectional=directions == 2)
    if in_place:
        layout = replace(layout, rows=None)

    def weights(count: int, *shape: int) -> list[Tensor]:
        return [0.5 * torch.randn(*shape, dtype=dtype) for _ in range(count)]

    num_biases = directions * bias
    lists = [
        weights(directions, gates * hidden_size, input_size),
        weights(directions, gates * hidden_size, output_size),
        weights(num_biases, gates * hidden_size),
        weights(num_biases, gates * hidden_size),
        weights(directions * projected, output_size, hidden_size),
    ]
    state_sizes = (output_size, hidden_size) if cell == "lstm" else (hidden_size,)
    states = [torch.randn(directions, 4, size, dtype=dtype) for size in state_sizes]
    num_rows = int(layout.batch_sizes.sum()) if in_place else 20
    return Case(
        cell,
        torch.randn(num_rows, input_size, dtype=dtype),
        states if with_states else [None] * len(states),
        lists if cell == "lstm" else lists[:4],
        layout,
    )


def sample_inputs() -> list[Case]:
    """What every op is tested on."""
    cases = []
    for cell in CELLS:
        cases += [
            make_case(cell, RAGGED),
            make_case(cell, RAGGED, directions=2, bias=False),
            make_case(cell, RAGGED, with_states=False, in_place=True),
            make_case(cell, RESETS, directions=2),
            make_case(cell, [], directions=2),
        ]
    cases.append(make_case("lstm", RAGGED, projected=True, with_states=False))
    return [*cases, make_case("lstm", RESETS, directions=2, projected=True, bias=False)]


SAMPLES = pytest.mark.parametrize("case", sample_inputs(), ids=str)


def op(case: Case, kind: str) -> Callable[..., tuple[Tensor, ...]]:
    return getattr(torch.ops.varlen_rnn, f"{case.cell}_{kind}").default


def backward_arguments(case: Case) -> list[Any]:
    """What the op that goes backwards is called with."""
    with torch.no_grad():
        out, *rest = op(case, "forward")(*case.arguments)
    finals, saved = rest[: len(case.states)], rest[len(case.states) :]
    cells, gates = saved[:-1], saved[-1]
    gradients = [torch.randn_like(t) for t in (out, *finals, *cells)]
    weights = flat(case.weights[:2] + case.weights[4:])
    results = (out, gates, *cells)
    layout = case.layout_arguments
    return [*gradients, case.x, *case.states, *weights, *layout, *results, True, True]


def outputs_of(case: Case, where: Any) -> Callable[..., tuple[Tensor, ...]]:
    """A function of the case's leaves, as ``gradcheck`` wants it."""

    def function(*_: Tensor) -> tuple[Tensor, ...]:
        out, finals = case.run(where)
        return out, *finals

    return function


@SAMPLES
def test_values_and_gradients_equal_the_reference(case: Case, isa: str) -> None:
    if not HAS_EXTENSION:
        pytest.skip("the reference would be compared with itself")
    expected = case.fresh(requires_grad=True)
    _out, finals = case.run(reference)
    if not expected.layout.batch_sizes.numel():
        got, got_finals = case.run(ops)
        assert not got.any()
        assert torch.equal(torch.cat(got_finals, -1), torch.cat(finals, -1))
        return
    assert_close64(case.fresh(requires_grad=True).results(ops), expected.results(reference))


@SAMPLES
def test_gradcheck(case: Case, isa: str) -> None:
    case = case.fresh(requires_grad=True)
    assert torch.autograd.gradcheck(outputs_of(case, ops), tuple(case.leaves.values()))


@SAMPLES
def test_gradgradcheck(case: Case) -> None:
    if not case.layout.batch_sizes.numel():
        pytest.skip("without tokens nothing has a second derivative")
    case = case.fresh(requires_grad=True)
    function, leaves = outputs_of(case, ops), tuple(case.leaves.values())
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


@needs_extension
@SAMPLES
def test_inference_and_training_give_the_same_bits(case: Case, isa: str) -> None:
    outputs = op(case, "inference")(*case.arguments)
    trained = op(case, "forward")(*case.arguments)
    for got, expected in zip(trained, outputs, strict=False):
        assert_bitwise(got, expected)


@needs_extension
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", ["inference", "forward", "forward with gradient", "backward"])
@SAMPLES
def test_opcheck(case: Case, kind: str) -> None:
    kind, _, with_gradient = kind.partition(" ")
    case = case.fresh(requires_grad=bool(with_gradient))
    arguments = backward_arguments(case) if kind == "backward" else case.arguments
    torch.library.opcheck(op(case, kind), tuple(arguments))


@needs_extension
@pytest.mark.parametrize("lengths", [[3, 0, 5, 5], [0, 0], []], ids=str)
def test_opcheck_of_layouts(lengths: list[int]) -> None:
    strided = torch.tensor([lengths, lengths], dtype=torch.int64).t()[:, 0]
    library = torch.ops.varlen_rnn
    flags = torch.rand(7 * len(lengths)) < 0.5
    positions = torch.empty(len(lengths), 7, 0)
    for mask, resets, at_capacity in itertools.product(
        (None, flags), (None, flags.flip(0)), (False, True)
    ):
        arguments = (positions, strided, None, mask, resets, True, at_capacity)
        torch.library.opcheck(library.layout_from_rows.default, arguments)
        batch_sizes, rows, *_ = library.layout_from_rows(*arguments)
        tokens = torch.empty(len(rows), 0)
        torch.library.opcheck(library.reverse_order.default, (batch_sizes, tokens))


@needs_extension
@SAMPLES
def test_a_gradient_that_is_none_counts_as_zero(case: Case, isa: str) -> None:
    arguments = backward_arguments(case)
    for index in range(4 if case.cell == "lstm" else 2):
        zeros, nones = list(arguments), list(arguments)
        zeros[index] = torch.zeros_like(arguments[index])
        nones[index] = None
        pairs = zip(op(case, "backward")(*nones), op(case, "backward")(*zeros), strict=True)
        for got, expected in pairs:
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-14)


@needs_extension
@pytest.mark.parametrize("cell", CELLS)
def test_scratch_memory_of_many_megabytes_is_freed(cell: str) -> None:
    case = make_case(cell, RAGGED, sizes=(500, 500))
    with torch.no_grad():
        expected, finals = case.run(reference)
        for _ in range(5):
            got, got_finals = case.run(ops)
    torch.testing.assert_close([got, *got_finals], [expected, *finals], rtol=0, atol=1e-9)
    unit = 1 if sys.platform == "darwin" else 1024
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(20):  # of more than 8 MB each
        op(case, "inference")(*case.arguments)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert (after - before) * unit < 60e6
