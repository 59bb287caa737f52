"""Memory is what the formulas say: nothing grows with the number of tokens but what they count."""

from __future__ import annotations

import json
import subprocess
import sys

import memory_use
import pytest
from helpers import CELLS, HAS_EXTENSION, child_environment

pytestmark = [
    pytest.mark.skipif(not HAS_EXTENSION, reason="a promise of the compiled kernels"),
    pytest.mark.skipif(not memory_use.can_measure(), reason="needs Linux's /proc/self/clear_refs"),
]

MB = 2**20
Measured = dict[str, int]

# Packed weights, scratch and states: all that does not grow with the number of tokens.
CONSTANT = 4 * MB
# Pages that the allocator and Python keep.
ACCURACY = MB // 2


@pytest.fixture(scope="module")
def measurements() -> list[Measured]:
    result = subprocess.run(
        [sys.executable, memory_use.__file__],
        env=child_environment(**memory_use.ENVIRONMENT),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture(params=CELLS)
def cell(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=memory_use.FORMS)
def form(request: pytest.FixtureRequest) -> str:
    return request.param


def select(measurements: list[Measured], **wanted: str) -> list[Measured]:
    found = [m for m in measurements if all(m[key] == value for key, value in wanted.items())]
    assert found
    return found


def floats(count: int) -> int:
    return 4 * count


def arrays(m: Measured) -> int:
    """What a padded batch needs beside: where each token lies, and for each flat row whether it is
    padding."""
    return 0 if m["form"] == "packed" else 8 * m["tokens"] + m["flat_rows"]


def test_inference_allocates_the_output_and_a_constant(
    measurements: list[Measured], cell: str, form: str
) -> None:
    for m in select(measurements, kind="inference", cell=cell, form=form):
        output = floats(m["flat_rows"] * m["hidden_size"])
        assert m["peak"] <= output + CONSTANT + arrays(m), m
        assert m["peak"] >= output - ACCURACY, f"measured less than there is: {m}"


def test_a_training_step_saves_six_hidden_sizes_a_token_and_layer(
    measurements: list[Measured], cell: str, form: str
) -> None:
    """The layer's input, which is there already, makes it 6H + I for LSTM, and for GRU 5H + I."""
    for m in select(measurements, kind="forward", cell=cell, form=form):
        gates_and_cells = {"lstm": 5, "gru": 4}[cell] * m["hidden_size"] * m["tokens"]
        output = m["hidden_size"] * m["flat_rows"]
        saved = m["layers"] * floats(gates_and_cells + output) + arrays(m)
        assert m["added"] <= saved + ACCURACY, m
        assert m["peak"] <= saved + CONSTANT, m
        assert m["added"] >= saved - arrays(m) - ACCURACY, f"measured less than there is: {m}"


def test_backward_needs_one_layers_gradients_at_a_time(
    measurements: list[Measured], cell: str, form: str
) -> None:
    """d_gates, each row of which may end in a cache line of padding, d_x, and the weights twice:
    packed, and their gradients."""
    gates = {"lstm": 4, "gru": 3}[cell]
    for m in select(measurements, kind="backward", cell=cell, form=form):
        input_size, hidden_size = m["input_size"], m["hidden_size"]
        d_gates = (4 * hidden_size + 16) * m["tokens"]
        d_x = input_size * m["flat_rows"]
        weights = gates * hidden_size * (input_size + hidden_size)
        padding = m["flat_rows"] if form == "padded" else 0
        assert m["peak"] <= floats(d_gates + d_x + 2 * weights) + padding + CONSTANT, m
