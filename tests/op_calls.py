"""Calls of the ops: what one layer is given, and arguments that do not fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from helpers import CELLS, Results, Segment, layout_of, rows_as_segments, with_gradients
from torch import Tensor

from varlen_rnn import ops
from varlen_rnn.layout import Layout

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


Change = Callable[[Case], Case]


def with_array(name: str, change: Callable[[Tensor], Any]) -> Change:
    return lambda case: replace(
        case, layout=replace(case.layout, **{name: change(getattr(case.layout, name))})
    )


def with_weights(kind: int, change: Callable[[list[Tensor]], list[Tensor]]) -> Change:
    return lambda case: replace(
        case,
        weights=[change(w) if k == kind else w for k, w in enumerate(case.weights)],
    )


def with_state(change: Callable[[Tensor], Tensor]) -> Change:
    return lambda case: replace(case, states=[change(case.states[0]), *case.states[1:]])


def put(value: int) -> Callable[[Tensor], Tensor]:
    """Overwrites the last entry."""
    return lambda array: torch.cat([array[:-1], torch.tensor([value])])


BAD: dict[str, Change] = {
    "x of one dimension": lambda case: replace(case, x=case.x[:, 0]),
    "x of three dimensions": lambda case: replace(case, x=case.x.unsqueeze(0)),
    "x with too few features": lambda case: replace(case, x=case.x[:, :-1]),
    "x with too few rows": lambda case: replace(case, x=case.x[:-11]),
    "x of another dtype": lambda case: replace(case, x=case.x.float()),
    "x of integers": lambda case: replace(case, x=case.x.long()),
    "x of complex numbers": lambda case: replace(case, x=case.x.cfloat()),
    "rows beyond the end": with_array("rows", put(20)),
    "rows far beyond the end": with_array("rows", put(2**62)),
    "rows before the start": with_array("rows", put(-1)),
    "rows twice": with_array("rows", lambda array: torch.cat([array[:-1], array[:1]])),
    "rows too few": with_array("rows", lambda array: array[:-1]),
    "rows too many": with_array("rows", lambda array: torch.cat([array, array[:1]])),
    "rows of two dimensions": with_array("rows", lambda array: array.unsqueeze(0)),
    "rows of int32": with_array("rows", lambda array: array.int()),
    "rows missing where x has fewer": lambda case: with_array("rows", lambda _: None)(
        replace(case, x=case.x[:5])
    ),
    "reverse beyond the end": with_array("reverse", put(9)),
    "reverse before the start": with_array("reverse", put(-1)),
    "reverse twice": with_array("reverse", lambda array: torch.cat([array[:-1], array[:1]])),
    "reverse too short": with_array("reverse", lambda array: array[:-1]),
    "reverse of int32": with_array("reverse", lambda array: array.int()),
    "reverse missing": with_array("reverse", lambda _: None),
    "batch sizes that grow": with_array("batch_sizes", lambda array: array.flip(0)),
    "batch sizes with too small a sum": with_array("batch_sizes", lambda array: array[:-1]),
    "batch sizes with too large a sum": with_array("batch_sizes", lambda a: torch.cat([a, a[-1:]])),
    "batch sizes of 0 at the start": with_array("batch_sizes", lambda a: a * torch.arange(len(a))),
    "batch sizes below 0": with_array("batch_sizes", put(-1)),
    "batch sizes of two dimensions": with_array("batch_sizes", lambda array: array.unsqueeze(0)),
    "batch sizes of int32": with_array("batch_sizes", lambda array: array.int()),
    "batch sizes whose sum overflows": with_array(
        "batch_sizes", lambda _: torch.tensor([2**62] * 4)
    ),
    "initial rows beyond the end": with_array("initial_row", put(4)),
    "initial rows below -1": with_array("initial_row", put(-2)),
    "initial rows too few": with_array("initial_row", lambda array: array[:-1]),
    "initial rows of int32": with_array("initial_row", lambda array: array.int()),
    "final segments beyond the end": with_array("final_segment", put(3)),
    "final segments far beyond the end": with_array("final_segment", put(2**62)),
    "final segments below -1": with_array("final_segment", put(-2)),
    "final segments twice": with_array("final_segment", put(1)),
    "final segments of too few rows": with_array("final_segment", lambda array: array[:2]),
    "final segments of too many rows": with_array(
        "final_segment", lambda a: torch.cat([a, -a[:1]])
    ),
    "final segments of two dimensions": with_array("final_segment", lambda a: a.unsqueeze(0)),
    "final segments of int32": with_array("final_segment", lambda array: array.int()),
    "no weights at all": lambda case: replace(case, weights=[[] for _ in case.weights]),
    "no weight_ih": with_weights(0, lambda _: []),
    "no weight_hh": with_weights(1, lambda _: []),
    "weight_hh of one direction": with_weights(1, lambda weights: weights[:1]),
    "bias_ih of one direction": with_weights(2, lambda weights: weights[:1]),
    "bias_hh missing": with_weights(3, lambda _: []),
    "weight_ih with too many columns": with_weights(
        0, lambda ws: [torch.cat([w, w], 1) for w in ws]
    ),
    "weight_ih with too few rows": with_weights(0, lambda ws: [w[:-1] for w in ws]),
    "weight_ih of one dimension": with_weights(0, lambda ws: [w[:, 0] for w in ws]),
    "weight_ih of differing shapes": with_weights(0, lambda ws: [ws[0], ws[1][:, :-1]]),
    "weight_hh with too few columns": with_weights(1, lambda ws: [w[:, :-1] for w in ws]),
    "weight_hh with too few rows": with_weights(1, lambda ws: [w[:-1] for w in ws]),
    "weight_hh of another dtype": with_weights(1, lambda ws: [w.float() for w in ws]),
    "bias_ih too short": with_weights(2, lambda ws: [w[:-1] for w in ws]),
    "bias_hh of two dimensions": with_weights(3, lambda ws: [w.unsqueeze(0) for w in ws]),
    "bias_hh of another dtype": with_weights(3, lambda ws: [w.float() for w in ws]),
    "h_0 of one direction": with_state(lambda h_0: h_0[:1]),
    "h_0 with too few rows": with_state(lambda h_0: h_0[:, :-1]),
    "h_0 with too few features": with_state(lambda h_0: h_0[..., :-1]),
    "h_0 of two dimensions": with_state(lambda h_0: h_0[0]),
    "h_0 of another dtype": with_state(lambda h_0: h_0.float()),
}
BAD_FOR_LSTM: dict[str, Change] = {
    "c_0 with too few rows": lambda c: replace(c, states=[c.states[0], c.states[1][:, :-1]]),
    "c_0 with too few features": lambda c: replace(c, states=[c.states[0], c.states[1][..., :-1]]),
    "weight_hr of another shape": with_weights(4, lambda ws: [w.t() for w in ws]),
    "weight_hr of one direction": with_weights(4, lambda ws: ws[:1]),
    "weight_hr missing": with_weights(4, lambda _: []),
}
CALLS = [(cell, name, change) for cell in CELLS for name, change in BAD.items()]
CALLS += [("lstm", name, change) for name, change in BAD_FOR_LSTM.items()]


def good_case(cell: str) -> Case:
    return make_case(cell, RAGGED, directions=2, projected=cell == "lstm")
