"""Threads of Python: of those that use one stream, one is in a call, and others are told so."""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pytest
import torch
from helpers import CELLS, HAS_EXTENSION, as_hx, assert_bitwise, states_of
from streaming_cases import Layer, assert_same, feed, random_states, states_in, whole
from torch import Tensor

from varlen_rnn import StreamingRNN

MESSAGE = "StreamingRNN: another thread is in a call of the same object"
PYTHON_THREADS, ROWS_EACH, STEPS = 4, 2, 12
# A call of the large one lets other threads of Python run.
LAYERS = {
    "small": Layer(cell="", num_layers=2),
    "large": Layer(cell="", input_size=64, hidden_size=512 if HAS_EXTENSION else 128),
}

Result = TypeVar("Result")
both_cells = pytest.mark.parametrize("cell", CELLS)
both_sizes = pytest.mark.parametrize("size", LAYERS)


@pytest.fixture(autouse=True)
def threads_take_turns_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def layer_of(cell: str, size: str) -> Layer:
    return Layer(**{**vars(LAYERS[size]), "cell": cell})


def until_it_is_free(call: Callable[[], Result]) -> Result:
    while True:
        try:
            return call()
        except RuntimeError as error:
            if str(error) != MESSAGE:
                raise
        time.sleep(1e-4)


class Patient:
    """A stream for one of several threads, whose calls wait for those of others."""

    def __init__(self, stream: StreamingRNN) -> None:
        self.stream, self.rnn, self.num_rows = stream, stream.rnn, stream.num_rows

    def __call__(self, x: Tensor, rows: Tensor) -> Tensor:
        return until_it_is_free(lambda: self.stream(x, rows))

    def disturb(self, rows: list[int], draw: random.Random) -> None:
        """Changes states and puts them back."""
        saved = until_it_is_free(lambda: self.stream.state(rows))
        if draw.random() < 0.5:
            until_it_is_free(lambda: self.stream.reset(rows))
        else:
            junk = as_hx([torch.randn_like(state) for state in states_of(saved)])
            until_it_is_free(lambda: self.stream.load_state(junk, rows))
        until_it_is_free(lambda: self.stream.load_state(saved, rows))


def run_at_once(*works: Callable[[], Result]) -> list[Result]:
    """All results; every thread begins when all are there."""
    barrier = threading.Barrier(len(works))

    def begin(work: Callable[[], Result]) -> Result:
        barrier.wait()
        return work()

    with ThreadPoolExecutor(len(works)) as executor:
        return [future.result() for future in [executor.submit(begin, work) for work in works]]


@both_sizes
@both_cells
def test_threads_on_rows_of_one_stream(cell: str, size: str, threads: int) -> None:
    layer = layer_of(cell, size)
    given, module = layer.make()
    lengths = [STEPS] * (PYTHON_THREADS * ROWS_EACH)
    x = layer.batch(lengths)
    expected, _ = whole(module, x, lengths)
    stream = StreamingRNN(given, len(lengths))
    rows_of = [[n, n + PYTHON_THREADS] for n in range(PYTHON_THREADS)]

    def work(n: int) -> Tensor:
        patient, rows, draw = Patient(stream), rows_of[n], random.Random(n)
        parts = []
        for begin in range(0, STEPS, 4):
            part = x[rows, begin : begin + 4]
            parts.append(feed(patient, part, [4] * ROWS_EACH, draw, rows))
            patient.disturb(rows, draw)
        return torch.cat(parts, 1)

    results = run_at_once(*(lambda n=n: work(n) for n in range(PYTHON_THREADS)))
    for rows, result in zip(rows_of, results, strict=True):
        assert_same(result, expected[rows])


@both_sizes
@both_cells
def test_threads_with_streams_of_their_own(cell: str, size: str, threads: int) -> None:
    """Of one layer, so that all read the same weights."""
    layer = layer_of(cell, size)
    given, module = Layer(**{**vars(layer), "kind": "frozen"}).make()
    lengths = [STEPS] * PYTHON_THREADS
    x = layer.batch(lengths)
    expected, _ = whole(module, x, lengths)
    streams = [StreamingRNN(given, 1) for _ in lengths]

    def work(n: int) -> Tensor:
        return feed(streams[n], x[n : n + 1], [STEPS], random.Random(n))

    results = run_at_once(*(lambda n=n: work(n) for n in range(PYTHON_THREADS)))
    assert_same(torch.cat(results), expected)


@both_sizes
@both_cells
def test_a_refresh_beside_steps_loses_none(cell: str, size: str) -> None:
    layer = layer_of(cell, size)
    given, module = layer.make()
    num_steps = 200 if size == "small" else 40
    x = layer.batch([num_steps])
    expected, _ = whole(module, x, [num_steps])
    stream = StreamingRNN(given, 1)
    done = threading.Event()

    def step() -> Tensor:
        try:
            steps = [until_it_is_free(lambda t=t: stream(x[:, t])) for t in range(num_steps)]
            return torch.stack(steps, 1)
        finally:
            done.set()

    def refresh() -> Tensor:
        while not done.is_set():
            until_it_is_free(stream.refresh)
        return x

    assert_same(run_at_once(step, refresh)[0], expected)


def zeros(layer: Layer) -> Tensor | tuple[Tensor, ...]:
    state = torch.zeros(1, 1, layer.hidden_size)
    return (state, state) if layer.cell == "lstm" else state


# Calls that, where they come through, are about the other row, or change nothing.
CALLS: dict[str, Callable[[StreamingRNN, Layer], object]] = {
    "step": lambda stream, layer: stream(layer.batch([1])[:, 0], [1]),
    "all rows": lambda stream, layer: stream(layer.batch([1, 1])[:, 0]),
    "out": lambda stream, layer: stream(
        layer.batch([2]), [1], out=torch.empty(1, 2, layer.hidden_size)
    ),
    "reset": lambda stream, _: stream.reset([1]),
    "state": lambda stream, _: stream.state([0]),
    "load_state": lambda stream, layer: stream.load_state(zeros(layer), [1]),
    "refresh": lambda stream, _: stream.refresh(),
}


def error_of(call: Callable[[], object]) -> str:
    try:
        call()
    except RuntimeError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("call", CALLS)
@both_cells
def test_a_second_call_at_the_same_time_is_refused(cell: str, call: str) -> None:
    """It changes nothing, and the first one goes on as if nothing had been."""
    layer = layer_of(cell, "large")
    given, module = layer.make()
    num_steps = 150
    x = layer.batch([num_steps])
    expected, finals = whole(module, x, [num_steps])
    stream = StreamingRNN(given, 2)
    stream.load_state(as_hx(random_states(stream, 1)), [1])
    state = as_hx(random_states(stream, 1, seed=9))
    begun = threading.Event()

    def first() -> Tensor:
        begun.set()
        return stream(x, [0])

    for _ in range(50):
        stream.reset([0])
        stream.load_state(state, [1])
        begun.clear()
        with ThreadPoolExecutor(1) as executor:
            future = executor.submit(first)
            begun.wait()
            time.sleep(0.002)
            error = error_of(lambda: CALLS[call](stream, layer))
        if error or future.exception():
            break
    assert error == MESSAGE
    assert_same(future.result(), expected)
    for got, final in zip(states_in(stream, [0]), finals, strict=True):
        assert_same(got, final)
    for got, before in zip(states_in(stream, [1]), states_of(state), strict=True):
        assert_bitwise(got, before)
    stream(x[:, 0], [1])
