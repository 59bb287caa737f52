"""Values and gradients of the emulated CUDA ops against the reference in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from emulated import check, configure, forward_arguments, op, paths_of, truth_of
from emulated_cases import BATCHES, PERSISTENT, Case, exact_layout, tensors_of
from helpers import CELLS, assert_bitwise, assert_close64
from rounded import NUMBERS, rounded_cell

from varlen_rnn import reference


@pytest.mark.parametrize("cell", CELLS)
def test_the_truth_without_roundings_is_the_reference(
    cell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(cell, "float64", 5, "resets", 2, projected_size=3 if cell == "lstm" else 0)
    expected = truth_of(case, (False, False))
    for persistent in (True, False):
        rounded = rounded_cell(cell, case.format, (persistent, not persistent))
        monkeypatch.setattr(reference, f"{cell}_cell", rounded)
        assert_close64(truth_of.__wrapped__(case, (False, False)), expected, 1e-14)


def test_operands_of_tf32_keep_ten_bits_and_ties_go_away_from_zero() -> None:
    values = torch.tensor([1.0, 1 + 2.0**-11, -1 - 2.0**-11, 1 + 2.0**-12, 1 + 3 * 2.0**-12])
    expected = [1.0, 1 + 2.0**-10, -1 - 2.0**-10, 1.0, 1 + 2.0**-10]
    assert NUMBERS["tf32"].operand(values).tolist() == expected


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("number", PERSISTENT)
@pytest.mark.parametrize("cell", CELLS)
def test_the_persistent_path_on_every_batch(
    cell: str, number: str, batch: str, directions: int
) -> None:
    case = Case(cell, number, 24, batch, directions)
    assert paths_of(case) == (True, True)
    check(case)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("cell", CELLS)
def test_the_generic_path_on_every_batch(cell: str, number: str, batch: str) -> None:
    for on_device in (False, True):
        check(Case(cell, number, 5, batch, directions=2), persistent=False, on_device=on_device)


@pytest.mark.parametrize("size", [1, 5, 8, 10, 33])
@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("cell", CELLS)
def test_the_generic_path_takes_any_size(cell: str, number: str, size: int) -> None:
    check(Case(cell, number, size, "resets", input_size=size), persistent=False)


@pytest.mark.parametrize("sizes", [(5, 2), (6, 1), (3, 7)], ids=str)
@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("number", NUMBERS)
def test_projections(number: str, directions: int, on_device: bool, sizes: tuple[int, int]) -> None:
    hidden_size, projected_size = sizes
    case = Case("lstm", number, hidden_size, "resets", directions, projected_size=projected_size)
    check(case, on_device=on_device)


# What may be missing: biases, initial states, and gradients of any results.
MISSING: dict[str, dict[str, Any]] = {
    "nothing": {},
    "biases": {"bias": False},
    "states": {"states": False},
    "biases and states": {"bias": False, "states": False},
    "d_out": {"without": ("out",)},
    "d_h_n": {"without": ("h_n",)},
    "all but d_out": {"without": ("h_n", "c_n", "cells")},
    "all but d_h_n": {"without": ("out", "c_n", "cells")},
}
MISSING_OF_LSTM: dict[str, dict[str, Any]] = {
    "d_c_n": {"without": ("c_n",)},
    "d_cells": {"without": ("cells",)},
    "all but d_c_n": {"without": ("out", "h_n", "cells")},
    "all but d_cells": {"without": ("out", "h_n", "c_n")},
}
ALL_MISSING = [(cell, name) for cell in CELLS for name in MISSING]
ALL_MISSING += [("lstm", name) for name in MISSING_OF_LSTM]


@pytest.mark.parametrize(("cell", "missing"), ALL_MISSING)
@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize("number", ["bfloat16", "tf32"])
def test_arguments_that_are_missing(cell: str, missing: str, persistent: bool, number: str) -> None:
    changes = (MISSING | MISSING_OF_LSTM)[missing]
    check(replace(Case(cell, number, 16, "resets", 2), **changes), persistent=persistent)


@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("cell", CELLS)
def test_inference_and_training_give_the_same_bits(
    cell: str, number: str, persistent: bool
) -> None:
    case = Case(cell, number, 16, "resets", 2)
    arguments = forward_arguments(case, tensors_of(case), exact_layout(case.ragged, 2))
    configure(persistent=persistent)
    inferred = op(case, "inference")(*arguments)
    trained = op(case, "forward")(*arguments)
    for got, expected in zip(inferred, trained, strict=False):
        assert_bitwise(got, expected)
