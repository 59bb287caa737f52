"""The ops with int8 weights, called directly: registration, strides, arguments that do not fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import CELLS, HAS_EXTENSION, assert_bitwise, layout_of, rows_as_segments
from torch import Tensor

from varlen_rnn import QuantizedVarLenGRU, QuantizedVarLenLSTM
from varlen_rnn.ops.int8 import KINDS

pytestmark = pytest.mark.skipif(not HAS_EXTENSION, reason="there are no compiled ops")

Arguments = dict[str, Any]


def good(cell: str) -> Arguments:
    """By name, in the schema's order: R 20, I 3, H 18, B 4, D 2, N 9."""
    torch.manual_seed(0)
    rnn = {"lstm": QuantizedVarLenLSTM, "gru": QuantizedVarLenGRU}[cell](3, 18, bidirectional=True)
    states = {"h_0": torch.randn(2, 4, 18), "c_0": torch.randn(2, 4, 18)}
    suffixes = {"": "_l0", "_reverse": "_l0_reverse"}
    weights = {k + ours: getattr(rnn, k + s) for ours, s in suffixes.items() for k in KINDS}
    if cell == "gru":
        del states["c_0"]
    layout = layout_of(rows_as_segments([3, 0, 5, 1]), 4, 5)
    return {"x": torch.randn(20, 3), **states, **weights, "hidden_size": 18, **vars(layout)}


def run(cell: str, arguments: Arguments) -> tuple[Tensor, ...]:
    op = getattr(torch.ops.varlen_rnn, f"quantized_{cell}")
    return tuple(op(*arguments.values()))


@pytest.mark.parametrize("cell", CELLS)
def test_arguments_are_in_the_order_of_the_schema(cell: str) -> None:
    schema = getattr(torch.ops.varlen_rnn, f"quantized_{cell}").default._schema
    assert [argument.name for argument in schema.arguments] == list(good(cell))
    assert all(result.isfinite().all() for result in run(cell, good(cell)))


@pytest.mark.parametrize("cell", CELLS)
def test_registration(cell: str) -> None:
    op = getattr(torch.ops.varlen_rnn, f"quantized_{cell}").default
    arguments = good(cell)
    torch.library.opcheck(op, tuple(arguments.values()))
    without = {name: None if name in ("h_0", "c_0") else arguments[name] for name in arguments}
    torch.library.opcheck(op, tuple(without.values()))


def strided(argument: Any) -> Any:
    """The same values, every other one of a larger buffer whose rest is filled with junk."""
    if not isinstance(argument, Tensor):
        return argument
    buffer = argument.new_full((*argument.shape, 2), 77)
    buffer[..., 0] = argument
    return buffer[..., 0]


@pytest.mark.parametrize("cell", CELLS)
def test_strided_arguments_give_the_same_bits(cell: str, every_isa: str) -> None:
    arguments = good(cell)
    others = {name: strided(argument) for name, argument in arguments.items()}
    for got, expected in zip(run(cell, others), run(cell, arguments), strict=True):
        assert_bitwise(got, expected)


def shorter(tensor: Tensor) -> Tensor:
    return tensor[:-1]


def narrower(tensor: Tensor) -> Tensor:
    return tensor[..., :-1]


def deeper(tensor: Tensor) -> Tensor:
    return tensor.unsqueeze(0)


def doubled(tensor: Tensor) -> Tensor:
    return torch.cat([tensor, tensor])


def put(value: int) -> Callable[[Tensor], Tensor]:
    """Overwrites the last entry."""
    return lambda array: torch.cat([array[:-1], torch.tensor([value])])


FLOATS = ["h_0", "c_0", *KINDS[2:], "scale_hh_reverse", "bias_ih_reverse"]
INTEGERS = [*KINDS[:2], "weight_ih_reverse", "weight_hh_reverse"]
ARRAYS = ["batch_sizes", "rows", "reverse", "initial_row", "final_segment"]
BAD: list[tuple[str, Callable[[Any], Any]]] = [
    ("x", lambda x: x[:, 0]),
    ("x", deeper),
    ("x", narrower),
    ("x", lambda x: x[:9]),
    ("x", lambda x: x[:, :0]),
    ("x", Tensor.double),
    ("x", Tensor.long),
    ("x", Tensor.bfloat16),
    *((name, change) for name in FLOATS for change in (shorter, narrower, deeper, doubled)),
    *((name, change) for name in FLOATS for change in (Tensor.double, Tensor.to_sparse)),
    *((name, change) for name in INTEGERS for change in (shorter, narrower, deeper, doubled)),
    *(
        (name, change)
        for name in INTEGERS
        for change in (Tensor.float, lambda w: w.view(torch.uint8))
    ),
    *((name, lambda w: w.transpose(2, 3)) for name in INTEGERS),
    *((f"{name}_reverse", lambda _: None) for name in KINDS),
    ("hidden_size", lambda _: 16),
    ("hidden_size", lambda _: 20),
    ("hidden_size", lambda _: 0),
    ("hidden_size", lambda _: -18),
    ("hidden_size", lambda _: 2**62),
    *((name, change) for name in ARRAYS for change in (Tensor.int, deeper)),
    *((name, change) for name in ARRAYS for change in (put(-2), put(2**62))),
    *((name, shorter) for name in ARRAYS),
    ("rows", put(20)),
    ("rows", lambda rows: torch.cat([rows[:-1], rows[:1]])),
    ("reverse", put(9)),
    ("reverse", lambda _: None),
    ("initial_row", put(4)),
    ("final_segment", put(3)),
    ("final_segment", put(1)),
    ("batch_sizes", lambda sizes: sizes.flip(0)),
]


CALLS = [(cell, i) for cell in CELLS for i, (name, _) in enumerate(BAD) if name in good(cell)]


@pytest.mark.parametrize(("cell", "index"), CALLS)
def test_bad_arguments_raise(cell: str, index: int) -> None:
    name, change = BAD[index]
    arguments = good(cell)
    arguments[name] = change(arguments[name])
    with pytest.raises((RuntimeError, ValueError, TypeError, NotImplementedError), match=r"\w+"):
        run(cell, arguments)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("x", Tensor.double, "x must be Float, got Double"),
        (
            "scale_ih",
            shorter,
            r"scale_ih must be \[U, gates, 16\] = \[2, 3, 16\], got \[1, 3, 16\]",
        ),
        ("weight_hh", Tensor.float, "weight_hh must be Char, got Float"),
        ("bias_hh_reverse", lambda _: None, "bias_hh_reverse must be there, got None"),
        ("hidden_size", lambda _: 2**40, "I and H must be at most 133144, got I = 3, H = 109951"),
    ],
)
def test_messages_say_what_was_expected_and_what_was_got(
    name: str, change: Callable[[Any], Any], message: str
) -> None:
    arguments = good("gru")
    arguments[name] = change(arguments[name])
    with pytest.raises(RuntimeError, match=f"varlen_rnn::quantized_gru: {message}"):
        run("gru", arguments)
