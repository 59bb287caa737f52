"""The ops with packed weights, called directly: registration, strides, arguments that misfit."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import (
    CELLS,
    FROZEN,
    FROZEN_KINDS,
    HAS_EXTENSION,
    assert_bitwise,
    layout_of,
    rows_as_segments,
)
from torch import Tensor

from varlen_rnn.ops.frozen import packed_anew
from varlen_rnn.ops.packed import kinds_of, native_units

pytestmark = pytest.mark.skipif(not HAS_EXTENSION, reason="there are no compiled ops")

Arguments = dict[str, Any]
every_kind = pytest.mark.parametrize("weights", FROZEN_KINDS)
both_cells = pytest.mark.parametrize("cell", CELLS)


def good(cell: str, weights: str, *, proj_size: int = 0) -> Arguments:
    """By name, in the schema's order: R 20, I 3, H 18, B 4, D 2, N 9."""
    return dict(_good(cell, weights, proj_size, native_units(cell, torch.float32)))


@functools.cache
def _good(cell: str, weights: str, proj_size: int, _: int) -> Arguments:
    torch.manual_seed(0)
    dtype, of_weights = FROZEN_KINDS[weights]
    options = {"proj_size": proj_size} if proj_size else {}
    layer = FROZEN[cell](3, 18, bidirectional=True, dtype=dtype, weights=of_weights, **options)
    output_size = proj_size or 18
    states = {"h_0": torch.randn(2, 4, output_size), "c_0": torch.randn(2, 4, 18)}
    if cell == "gru":
        del states["c_0"]
    suffixes = {"": "_l0", "_reverse": "_l0_reverse"}
    packed = {
        kind + ours: getattr(layer, kind + theirs, None)
        for ours, theirs in suffixes.items()
        for kind in kinds_of(cell)
    }
    layout = layout_of(rows_as_segments([3, 0, 5, 1]), 4, 5)
    return {
        "x": torch.randn(20, 3).to(dtype),
        **{name: state.to(dtype) for name, state in states.items()},
        **packed,
        "hidden_size": 18,
        "output_size": output_size,
        **vars(layout),
    }


def run(cell: str, arguments: Arguments) -> tuple[Tensor, ...]:
    op = getattr(torch.ops.varlen_rnn, f"{cell}_frozen")
    return tuple(op(*arguments.values()))


@every_kind
@both_cells
def test_arguments_are_in_the_order_of_the_schema(cell: str, weights: str, isa: str) -> None:
    schema = getattr(torch.ops.varlen_rnn, f"{cell}_frozen").default._schema
    arguments = good(cell, weights)
    assert [argument.name for argument in schema.arguments] == list(arguments)
    sizes = (36, 18, 18)
    results = run(cell, arguments)
    for result, size in zip(results, sizes, strict=False):
        assert result.shape[-1] == size
        assert result.dtype == arguments["x"].dtype
        assert result.isfinite().all()


@every_kind
@both_cells
def test_registration(cell: str, weights: str) -> None:
    op = getattr(torch.ops.varlen_rnn, f"{cell}_frozen").default
    arguments = good(cell, weights, proj_size=5 if (cell, weights) == ("lstm", "float32") else 0)
    torch.library.opcheck(op, tuple(arguments.values()))
    if weights != "float32":
        return
    without = {name: None if name in ("h_0", "c_0") else arguments[name] for name in arguments}
    torch.library.opcheck(op, tuple(without.values()))


def strided(argument: Any) -> Any:
    """The same values, every other one of a larger buffer whose rest is filled with junk."""
    if not isinstance(argument, Tensor):
        return argument
    buffer = argument.new_full((*argument.shape, 2), 77)
    buffer[..., 0] = argument
    return buffer[..., 0]


def assert_same(got: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for ours, truth in zip(got, expected, strict=True):
        assert_bitwise(ours, truth)


@every_kind
@both_cells
def test_strided_arguments_give_the_same_bits(cell: str, weights: str, every_isa: str) -> None:
    arguments = good(cell, weights)
    others = {name: strided(argument) for name, argument in arguments.items()}
    assert_same(run(cell, others), run(cell, arguments))


@pytest.mark.parametrize("units", [1, 2, 4, 8, 16, 32])
@every_kind
@both_cells
def test_blocks_of_any_width_give_the_same_bits(
    cell: str, weights: str, units: int, isa: str
) -> None:
    """What another instruction set has packed; of int8 there is one order."""
    if weights == "int8":
        units = 16
    proj_size = 5 if cell == "lstm" and weights != "int8" else 0
    arguments = good(cell, weights, proj_size=proj_size)
    kinds = kinds_of(cell)
    others = dict(arguments)
    for suffix in ("", "_reverse"):
        names = [kind + suffix for kind in kinds]
        given = [arguments[name] for name in names] + [None] * (7 - len(kinds))
        anew = packed_anew(cell, given, (3, 18, proj_size or 18), units)
        others |= dict(zip(names, anew, strict=False))
    assert_same(run(cell, others), run(cell, arguments))


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


MATRICES = ["weight_ih", "weight_hh", "weight_ih_reverse", "weight_hh_reverse"]
VECTORS = ["bias_ih", "bias_hh", "bias_ih_reverse", "bias_hh_reverse"]
SCALES = ["scale_ih", "scale_hh", "scale_ih_reverse", "scale_hh_reverse"]
ARRAYS = ["batch_sizes", "rows", "reverse", "initial_row", "final_segment"]
CHANGES = (shorter, narrower, deeper, doubled)
BAD: list[tuple[str, Callable[[Any], Any]]] = [
    ("x", lambda x: x[:, 0]),
    ("x", deeper),
    ("x", narrower),
    ("x", lambda x: x[:9]),
    ("x", lambda x: x[:, :0]),
    ("x", lambda x: x.to(torch.float64 if x.dtype == torch.float32 else torch.float32)),
    ("x", Tensor.long),
    *((name, change) for name in ("h_0", "c_0", *VECTORS, *SCALES) for change in CHANGES),
    *((name, Tensor.to_sparse) for name in ("h_0", "c_0", *VECTORS, *SCALES)),
    *((name, Tensor.short) for name in ("h_0", "c_0", *VECTORS, *SCALES)),
    *((name, change) for name in MATRICES for change in CHANGES),
    *((name, change) for name in MATRICES for change in (Tensor.half, Tensor.short)),
    *((name, lambda w: w.transpose(2, 3)) for name in MATRICES),
    *((name, lambda _: None) for name in (*MATRICES, *VECTORS, *SCALES)),
    *((f"weight_hr{suffix}", lambda _: torch.ones(1, 18, 16)) for suffix in ("", "_reverse")),
    ("hidden_size", lambda _: 16),
    ("hidden_size", lambda _: 40),
    ("hidden_size", lambda _: 0),
    ("hidden_size", lambda _: -18),
    ("hidden_size", lambda _: 2**62),
    ("output_size", lambda _: 17),
    ("output_size", lambda _: 40),
    ("output_size", lambda _: 0),
    ("output_size", lambda _: -18),
    ("output_size", lambda _: 2**62),
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


CALLS = [
    (cell, i) for cell in CELLS for i, (name, _) in enumerate(BAD) if name in good(cell, "int8")
]


def raises(cell: str, arguments: Arguments) -> bool:
    """Whether there is an error, with a message."""
    try:
        run(cell, arguments)
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        return bool(str(error))
    return False


@pytest.mark.parametrize(("cell", "index"), CALLS)
def test_bad_arguments_raise(cell: str, index: int) -> None:
    name, change = BAD[index]
    taken = []
    for weights in ("float32", "bfloat16", "float32 of bfloat16", "int8"):
        arguments = good(cell, weights)
        if arguments[name] is None and name.startswith("scale"):  # must be None
            arguments[name] = torch.ones_like(arguments[name.replace("scale", "bias")])
        else:
            arguments[name] = change(arguments[name])
        if not raises(cell, arguments):
            taken.append(weights)
    assert taken == []


def packed_by(change: Callable[[Tensor], Tensor]) -> Callable[[Arguments], Arguments]:
    """Changes both of a direction's matrices."""
    return lambda given: {name: change(given[name]) for name in MATRICES[:2]}


MESSAGES: list[tuple[str, Callable[[Arguments], Arguments], str]] = [
    ("int8", lambda given: {"x": given["x"].double()}, "x must be Float, got Double"),
    (
        "int8",
        lambda given: {"scale_ih": given["scale_ih"][:1]},
        r"scale_ih must be \[U, gates, 16\] = \[2, 3, 16\], got \[1, 3, 16\]",
    ),
    (
        "int8",
        lambda given: {"weight_hh": given["weight_hh"].float()},
        "weight_hh must be Char, got Float",
    ),
    (
        "int8",
        lambda given: {"bias_hh_reverse": None},
        "bias_hh_reverse must be there, got None",
    ),
    ("int8", lambda given: {"scale_ih": None}, "scale_ih must be there, got None"),
    (
        "int8",
        lambda given: {"hidden_size": 2**40, "output_size": 2**40},
        "I and H must be at most 133144, got I = 3, H = 109951",
    ),
    (
        "float32",
        lambda given: {"hidden_size": 2**40},
        "output_size must be hidden_size = 1099511627776 without weight_hr, got 18",
    ),
    (
        "float32",
        lambda given: {"scale_ih": given["bias_ih"]},
        "scale_ih must be None, got a tensor",
    ),
    (
        "float32",
        lambda given: {"weight_hh": given["weight_hh"][:, 1:]},
        r"weight_hh must be \[U, K, gates, units\] = \[(\d+), 18, 3, \d+\], got \[\1, 17, 3",
    ),
    (
        "float32",
        lambda given: {"bias_ih": given["bias_ih"][0]},
        r"bias_ih must be \[U, gates, units\], got \[3, \d+\]",
    ),
    (
        "float32",
        packed_by(Tensor.double),
        "weight_ih must be Float, got Double",
    ),
    (
        "bfloat16",
        lambda given: {"weight_ih": given["weight_ih"][:, 1:]},
        r"weight_ih must be \[U, K / 2, gates, units, 2\] = \[\d+, 2, 3, \d+, 2\], got \[\d+, 1, 3",
    ),
    (
        "bfloat16",
        lambda given: {"bias_hh": given["bias_hh"].bfloat16()},
        "bias_hh must be Float, got BFloat16",
    ),
    (
        "bfloat16",
        lambda given: {"x": given["x"].double()},
        "weight_ih must not be BFloat16 where x is Double, got it",
    ),
    (
        "float64",
        lambda given: {"h_0": given["h_0"].float()},
        "h_0 must be Double, got Float",
    ),
]


@pytest.mark.parametrize(("weights", "change", "message"), MESSAGES)
def test_messages_say_what_was_expected_and_what_was_got(
    weights: str, change: Callable[[Arguments], Arguments], message: str
) -> None:
    arguments = good("gru", weights)
    with pytest.raises(RuntimeError, match=f"varlen_rnn::gru_frozen: {message}"):
        run("gru", arguments | change(arguments))


def test_int8_weights_have_no_projection() -> None:
    arguments = good("lstm", "int8") | {"weight_hr": torch.ones(1, 18, 64)}
    with pytest.raises(RuntimeError, match="lstm_frozen: weight_hr must be None with int8 weights"):
        run("lstm", arguments)
