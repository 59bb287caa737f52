"""What a stream gives is, bit for bit, what the module gives for the whole sequence in one call.

What could go wrong, and is tried here: a row whose state comes from another row or goes to one; a
layer that reads what the one below gave at another step; rows that fill a tile or not; units that
fill a register or not; a bias that is not there; work that threads share; a cell state that is
rounded between two calls; NaN that spreads to other streams; weights in another machine's order.
"""

from __future__ import annotations

import pickle
import random
import zlib
from dataclasses import replace

import pytest
import torch
from conftest import FLOAT_ISAS
from helpers import CELLS, HAS_EXTENSION
from streaming_cases import (
    DTYPES_OF,
    KINDS,
    Layer,
    assert_final,
    assert_same,
    draw_layer,
    feed,
    random_states,
    states_in,
    whole,
)
from torch import Tensor

from varlen_rnn import StreamingRNN

LENGTHS = (6, 0, 11, 1, 7)
# The parts that one call of threads shares: many rows, or the units of few.
MANY_ROWS, LARGE = 300, 512

Combination = tuple[str, str, torch.dtype, bool]
COMBINATIONS: list[Combination] = [
    (cell, kind, dtype, proj)
    for cell in CELLS
    for kind in KINDS
    for dtype in DTYPES_OF[kind]
    for proj in (False, True)
    if not proj or (cell == "lstm" and kind != "int8")
]


def described(combination: Combination) -> str:
    cell, kind, dtype, proj = combination
    return f"{cell}{'-proj' * proj}-{kind}-{str(dtype).removeprefix('torch.')}"


def drawn(name: str, combination: Combination) -> tuple[Layer, random.Random]:
    """Other sizes on every instruction set."""
    draw = random.Random(zlib.crc32(f"{name}{described(combination)}".encode()))
    return draw_layer(draw, *combination), draw


def check_pieces(layer: Layer, draw: random.Random, lengths: tuple[int, ...] = LENGTHS) -> None:
    """Streams among others, two of which hold NaN, from states of zeros and from any states."""
    given, module = layer.make()
    stream = StreamingRNN(given, num_rows=len(lengths) + 2)
    streams = draw.sample(range(stream.num_rows), len(lengths))
    stream.load_state(stream.state())
    others = [row for row in range(stream.num_rows) if row not in streams]
    stream(layer.batch([2, 2]) * torch.nan, others)
    assert all(state.isnan().all() for state in states_in(stream, others))
    x = layer.batch(lengths)
    for states in ([], random_states(stream, len(lengths))):
        if states:
            stream.load_state(states if layer.cell == "lstm" else states[0], streams)
        rounded = [state.to(layer.dtype) for state in states]
        if states and rounded[-1].dtype != states[-1].dtype:  # the module takes no finer ones
            stream.load_state(rounded if layer.cell == "lstm" else rounded[0], streams)
        expected, finals = whole(module, x, lengths, rounded)
        assert_same(feed(stream, x, lengths, draw, streams), expected, str(layer))
        assert_final(stream, finals, streams)
    assert all(state.isnan().all() for state in states_in(stream, others))


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("combination", COMBINATIONS, ids=described)
def test_pieces_give_what_one_call_gives(combination: Combination, isa: str) -> None:
    check_pieces(*drawn(isa, combination))


@pytest.mark.parametrize("cell", CELLS)
def test_pieces_with_int8_weights_on_their_instruction_sets(cell: str, every_isa: str) -> None:
    for index in range(3):
        check_pieces(*drawn(f"{every_isa}{index}", (cell, "int8", torch.float32, False)))


@pytest.mark.parametrize("hidden_size", [1, 5, 17, 64, 130])
@pytest.mark.parametrize("cell", CELLS)
def test_every_number_of_rows_gives_the_same(cell: str, hidden_size: int, one_isa: str) -> None:
    """A stream alone, and among up to 17 that share its calls."""
    layer = Layer(cell=cell, input_size=7, hidden_size=hidden_size, num_layers=2)
    given, module = layer.make()
    lengths = [3] * 17
    x = layer.batch(lengths)
    expected, _ = whole(module, x, lengths)
    for num_rows in range(1, 18):
        stream = StreamingRNN(given, num_rows)
        got = [stream(step) for step in x[:num_rows].unbind(1)]
        assert_same(torch.stack(got, 1), expected[:num_rows], f"{num_rows} rows")
    first_alone = StreamingRNN(given, 1)(x[:1])
    assert_same(first_alone, expected[:1])


@pytest.mark.parametrize("kind", ["module", "bfloat16", "int8"])
@pytest.mark.parametrize("cell", CELLS)
def test_many_rows(cell: str, kind: str, threads: int, one_isa: str) -> None:
    """More than a tile holds, the last tile not full, a part of them in each call."""
    draw = random.Random(0)
    layer = Layer(cell=cell, input_size=33, hidden_size=64, num_layers=2, kind=kind)
    given, module = layer.make()
    lengths = [draw.randint(1, 4) for _ in range(MANY_ROWS)]
    x = layer.batch(lengths)
    expected, finals = whole(module, x, lengths)
    stream = StreamingRNN(given, MANY_ROWS)
    streams = draw.sample(range(MANY_ROWS), MANY_ROWS)
    assert_same(feed(stream, x, lengths, draw, streams), expected)
    assert_final(stream, finals, streams)


@pytest.mark.parametrize(
    ("kind", "num_rows"),
    [("module", 1), ("module", 3), ("module", 40), ("bfloat16", 1), ("int8", 1), ("int8", 40)],
)
@pytest.mark.parametrize("cell", CELLS)
def test_large_layers(cell: str, kind: str, num_rows: int, threads: int, one_isa: str) -> None:
    """Enough work in a step for two threads: of few rows each does half of the units."""
    draw = random.Random(num_rows)
    layer = Layer(cell=cell, input_size=96, hidden_size=LARGE, kind=kind)
    given, module = layer.make()
    lengths = [4] * num_rows
    x = layer.batch(lengths)
    expected, finals = whole(module, x, lengths)
    stream = StreamingRNN(given, num_rows)
    assert_same(feed(stream, x, lengths, draw), expected)
    assert_final(stream, finals)


@pytest.mark.skipif(not HAS_EXTENSION, reason="the reference has no threads of its own")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_threads_may_change_between_steps(
    cell: str, dtype: torch.dtype, restore_threads: None, one_isa: str
) -> None:
    proj_size = 100 if cell == "lstm" else 0
    layer = Layer(
        cell=cell, input_size=96, hidden_size=400, num_layers=2, proj_size=proj_size, dtype=dtype
    )
    given, module = layer.make()
    x = layer.batch([6, 6])
    torch.set_num_threads(1)
    expected, finals = whole(module, x, [6, 6])
    stream = StreamingRNN(given, 2)
    for t, step in enumerate(x.unbind(1)):
        torch.set_num_threads(1 + t % 3)
        assert_same(stream(step), expected[:, t], f"step {t}")
    assert_final(stream, finals)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_a_sequence_goes_on_in_another_stream(cell: str, dtype: torch.dtype, isa: str) -> None:
    """Handed over after every step: a cell state that were rounded on the way would show."""
    layer = Layer(cell=cell, input_size=9, hidden_size=21, num_layers=3, dtype=dtype)
    given, module = layer.make()
    x = layer.batch([20])
    expected, finals = whole(module, x, [20])
    streams = [StreamingRNN(given, 2), StreamingRNN(given, 3)]
    for t, step in enumerate(x.unbind(1)):
        here, there = streams[t % 2], streams[1 - t % 2]
        assert_same(here(step, [1]), expected[:, t], f"step {t}")
        there.load_state(here.state([1]), [1])
    assert_final(streams[0], finals, [1])


@pytest.mark.skipif(len(FLOAT_ISAS) < 2, reason="needs two instruction sets")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cell", CELLS)
def test_a_stream_that_was_saved_goes_on_on_another_instruction_set(cell: str, kind: str) -> None:
    """What a pickled stream holds is no one's order of weights."""
    from varlen_rnn import _C

    before = _C.cpu_isa()
    layer = Layer(cell=cell, num_layers=2, hidden_size=21, kind=kind)
    x = layer.batch([8, 8])
    try:
        for first, second in zip(FLOAT_ISAS, FLOAT_ISAS[1:] + FLOAT_ISAS[:1], strict=True):
            _C.set_cpu_isa(first)
            stream = StreamingRNN(layer.make()[0], 2)
            stream(x[:, :3])
            saved, state = pickle.dumps(stream), stream.state()
            _C.set_cpu_isa(second)
            loaded, fresh = pickle.loads(saved), StreamingRNN(layer.make()[0], 2)
            fresh.load_state(state)
            assert_same(loaded(x[:, 3:]), fresh(x[:, 3:]), f"{first} to {second}")
    finally:
        _C.set_cpu_isa(before)


@pytest.mark.parametrize("hint", ["never written", "NaN", "Inf", "large"])
@pytest.mark.parametrize("cell", CELLS)
def test_other_streams_play_no_part(cell: str, hint: str, isa: str) -> None:
    """Whatever they hold, in calls with them and without; a reset leaves none of it."""
    layer = Layer(cell=cell, num_layers=2)
    given, module = layer.make()
    lengths = [5] * 5
    x = layer.batch(lengths)
    expected, finals = whole(module, x, lengths)
    if hint == "never written":
        x[1], x[3] = torch.empty_like(x[1]), torch.empty_like(x[3])
    else:
        x[1] = x[3] = {"NaN": torch.nan, "Inf": torch.inf, "large": 3e38}[hint]
    stream = StreamingRNN(given, 5)
    out = torch.cat([stream(x[:, :2]), stream(x[:, 2]).unsqueeze(1), stream(x[:, 3:])], 1)
    assert_same(out[::2], expected[::2])
    assert_final(stream, [state[:, ::2] for state in finals], [0, 2, 4])
    stream.reset([3, 1])
    clean = layer.batch(lengths)
    assert_same(stream(clean[[3, 1]], [3, 1]), expected[[3, 1]])
    assert_final(stream, finals)


def test_nan_stays_in_its_stream_and_is_that_of_the_module(isa: str) -> None:
    for cell in CELLS:
        for kind in ("module", "bfloat16", "int8"):
            layer = Layer(cell=cell, num_layers=2, kind=kind)
            given, module = layer.make()
            x = layer.batch([6, 6, 6])
            x[1, 2, 4], x[2, 3, 0] = torch.nan, -torch.inf
            expected, finals = whole(module, x, [6, 6, 6])
            assert expected.isnan().any(2).any(1)[:2].tolist() == [False, True]
            stream = StreamingRNN(given, 3)
            got: list[Tensor] = [stream(step) for step in x.unbind(1)]
            assert_same(torch.stack(got, 1), expected, str(layer))
            assert_final(stream, finals)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cell", CELLS)
def test_a_long_sequence_step_by_step(cell: str, kind: str, one_isa: str) -> None:
    layer = replace(Layer(cell=cell, num_layers=2), kind=kind)
    given, module = layer.make()
    x = layer.batch([400])
    expected, finals = whole(module, x, [400])
    stream = StreamingRNN(given, 1)
    assert_same(torch.stack([stream(step) for step in x.unbind(1)], 1), expected)
    assert_final(stream, finals)
