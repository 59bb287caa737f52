"""Errors of masks, resets, boundaries and nested tensors: type, argument, and what was got."""

from __future__ import annotations

import re
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from helpers import CELLS, OURS, as_hx
from torch import Tensor, nn
from torch.nested import nested_tensor_from_jagged
from torch.nn.utils.rnn import pack_padded_sequence

FEATURES, H, B, T, N = 3, 5, 4, 6, 12
X = torch.zeros(B, T, FEATURES)
FLAT = torch.zeros(N, FEATURES)
LENGTHS = torch.tensor([6, 0, 4, 2])
BOUNDS = torch.tensor([0, 6, 6, 10, 12])
PACKED = pack_padded_sequence(X, [6, 3, 2, 1], batch_first=True)
NESTED = nested_tensor_from_jagged(FLAT, BOUNDS)
MASK = torch.ones(B, T, dtype=torch.bool)
NAN = float("nan")
LONG = np.dtype(np.longdouble)
FLAGS = "bool, or integers or floats 0 and 1"
pytestmark = pytest.mark.usefixtures("nothing_is_computed")
both_cells = pytest.mark.parametrize("cell", CELLS)


def make(cell: str, **options: Any) -> nn.RNNBase:
    return OURS[cell](FEATURES, H, **({"batch_first": True} | options))


def check(
    cell: str,
    expected: type[BaseException] | tuple[type[BaseException], ...],
    argument: str,
    got: str,
    *args: Any,
    rnn: nn.RNNBase | None = None,
    **kwargs: Any,
) -> None:
    """The message names module and argument, what must be, and what was got."""
    rnn = rnn or make(cell)
    pattern = rf"^{type(rnn).__name__}: {argument}\S* must .*, got .*{re.escape(got)}"
    with pytest.raises(expected, match=pattern):
        rnn(*args, **kwargs)


GOOD = {
    "one sequence, mask": (X[0], {"mask": MASK[0], "resets": MASK[0]}),
    "mask": (X, {"mask": MASK, "resets": MASK}),
    "lengths": (X, {"lengths": LENGTHS, "resets": MASK}),
    "packed": (PACKED, {"resets": [False] * N}),
    "flat": (FLAT, {"cu_seqlens": BOUNDS, "resets": [False] * N}),
    "nested": (NESTED, {"resets": nested_tensor_from_jagged(MASK.flatten()[:N], BOUNDS)}),
}


@both_cells
@pytest.mark.parametrize("form", GOOD)
def test_right_arguments_reach_the_first_layer(cell: str, form: str) -> None:
    """Or that nothing is computed would be shown by nothing."""
    input, keywords = GOOD[form]
    with pytest.raises(AssertionError, match="a layer was computed"):
        make(cell)(input, **keywords)


BAD_FLAGS = [
    (torch.full((B, T), 0.5), ValueError, "0.5 at index [0, 0]"),
    (torch.full((B, T), NAN, dtype=torch.float64), ValueError, "nan at index [0, 0]"),
    (torch.full((B, T), 1 + 2**-7, dtype=torch.bfloat16), ValueError, "1.0078125 at index"),
    (torch.full((B, T), -1.0, dtype=torch.float16), ValueError, "-1.0 at index [0, 0]"),
    (torch.full((B, T), torch.inf), ValueError, "inf at index [0, 0]"),
    (torch.ones(B, T, dtype=torch.complex64), TypeError, "torch.complex64"),
    (torch.ones(B, T).to(torch.float8_e4m3fn), TypeError, "torch.float8_e4m3fn"),
    (np.ones((B, T), np.complex64), TypeError, "complex64"),
    (np.full((B, T), 0.5, np.float16), ValueError, "0.5 at index [0, 0]"),
    ([[1.0] * (T - 1) + [0.25]] * B, ValueError, f"0.25 at index [0, {T - 1}]"),
    ([["a"] * T] * B, TypeError, ""),
    ("abcd", TypeError, "str"),
    (object(), TypeError, "object"),
    (torch.ones(B, T + 1, dtype=torch.bool), ValueError, f"[{B}, {T + 1}]"),
    (torch.ones(B + 1, T, dtype=torch.bool), ValueError, f"[{B + 1}, {T}]"),
    (torch.ones(T, B, dtype=torch.bool), ValueError, f"[{T}, {B}]"),
    (torch.ones(B, dtype=torch.bool), ValueError, f"[{B}]"),
    (torch.ones(B, 1, T, dtype=torch.bool), ValueError, f"[{B}, 1, {T}]"),
    (torch.ones(B, T, 1, 1, dtype=torch.bool), ValueError, f"[{B}, {T}, 1, 1]"),
    (torch.ones(B, T - 1, 1, dtype=torch.bool), ValueError, f"[{B}, {T - 1}, 1]"),
    (torch.ones(B, T, FEATURES, dtype=torch.bool), ValueError, f"[{B}, {T}, {FEATURES}]"),
    (torch.ones((), dtype=torch.bool), ValueError, "[]"),
    (np.ones((T, B), bool), ValueError, f"[{T}, {B}]"),
    (True, ValueError, "[]"),
    ([[True] * T] * (B - 1), ValueError, f"[{B - 1}, {T}]"),
    ([[True, True], [True]], ValueError, ""),
    (torch.full((B, T), 2), ValueError, "2"),
    (torch.full((B, T), -1), ValueError, "-1"),
    (torch.full((B, T), 255, dtype=torch.uint8), ValueError, "255"),
    ([[0, 1, 1, 1, 1, 7]] * B, ValueError, "7"),
    (np.full((B, T), 3), ValueError, "3"),
]
if LONG.itemsize > 8:  # else it is float64
    BAD_FLAGS.append((np.ones((B, T), LONG), TypeError, str(LONG)))
flags_argument = pytest.mark.parametrize("argument", ["mask", "resets"])
bad_flags = pytest.mark.parametrize(
    ("flags", "error", "got"), BAD_FLAGS, ids=[f"{i}" for i in range(len(BAD_FLAGS))]
)


@both_cells
@flags_argument
@bad_flags
def test_flags_of_a_batch(
    cell: str, argument: str, flags: Any, error: type[Exception], got: str
) -> None:
    check(cell, error, argument, got, X, **{argument: flags})


@both_cells
@bad_flags
def test_resets_beside_lengths_or_a_mask(
    cell: str, flags: Any, error: type[Exception], got: str
) -> None:
    check(cell, error, "resets", got, X, resets=flags, lengths=LENGTHS)
    check(cell, error, "resets", got, X, resets=flags, mask=MASK)


@both_cells
@flags_argument
def test_the_index_of_a_bad_flag_is_told(cell: str, argument: str) -> None:
    for value, dtype in ((9, torch.int32), (0.5, torch.float32)):
        flags = torch.ones(B, T, dtype=dtype)
        flags[2, 5] = value
        name = type(make(cell)).__name__
        message = f"{name}: {argument} must be {FLAGS}, got {value} at index [2, 5]"
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            make(cell)(X, **{argument: flags})


@both_cells
def test_masks_have_no_dimension_too_many(cell: str) -> None:
    """Unlike resets: a mask beside features is laid out as no other argument."""
    check(cell, ValueError, "mask", f"[{B}, {T}, 1]", X, mask=MASK.unsqueeze(2))
    check(cell, ValueError, "mask", f"[{T}, 1]", X[0], mask=MASK[:1].t())


@both_cells
@flags_argument
def test_flags_of_a_time_first_batch_are_time_first(cell: str, argument: str) -> None:
    rnn = make(cell, batch_first=False)
    x = X.transpose(0, 1)
    check(cell, ValueError, argument, f"[{B}, {T}]", x, rnn=rnn, **{argument: MASK})
    with pytest.raises(AssertionError, match="a layer was computed"):
        rnn(x, **{argument: MASK.t()})


@both_cells
@flags_argument
@pytest.mark.parametrize("shape", [(T + 1,), (1, T), (T, 1, 1), (T, FEATURES), ()], ids=str)
def test_flags_of_one_sequence(cell: str, argument: str, shape: tuple[int, ...]) -> None:
    flags = torch.ones(shape, dtype=torch.bool)
    check(cell, ValueError, argument, f"{list(shape)}", X[0], **{argument: flags})


@both_cells
@pytest.mark.parametrize("shape", [(N + 1,), (N, 2), (1, N), (N, 1, 1), (B, T), ()], ids=str)
def test_resets_of_flat_and_packed_tokens(cell: str, shape: tuple[int, ...]) -> None:
    flags = torch.ones(shape, dtype=torch.bool)
    check(cell, ValueError, "resets", f"{list(shape)}", FLAT, cu_seqlens=BOUNDS, resets=flags)
    check(cell, ValueError, "resets", f"{list(shape)}", PACKED, resets=flags)


@both_cells
def test_resets_of_flat_and_packed_tokens_of_a_wrong_dtype_or_value(cell: str) -> None:
    for input, keywords in ((FLAT, {"cu_seqlens": BOUNDS}), (PACKED, {})):
        for shape in ((N,), (N, 1)):
            complex_ones, halves = torch.ones(shape) + 0j, torch.full(shape, 0.5)
            check(cell, TypeError, "resets", "complex64", input, resets=complex_ones, **keywords)
            check(cell, ValueError, "resets", "0.5 at index 0", input, resets=halves, **keywords)
        check(cell, ValueError, "resets", "2", input, resets=[0] * (N - 1) + [2], **keywords)


@both_cells
def test_resets_of_a_nested_tensor(cell: str) -> None:
    def nested(values: Tensor, offsets: Tensor = BOUNDS) -> Tensor:
        return nested_tensor_from_jagged(values, offsets)

    flags = torch.ones(N, dtype=torch.bool)
    refused = (TypeError, ValueError)
    check(cell, refused, "resets", "Tensor", NESTED, resets=flags)
    check(cell, refused, "resets", "list", NESTED, resets=flags.tolist())
    check(cell, TypeError, "resets", "complex64", NESTED, resets=nested(torch.ones(N) + 0j))
    check(cell, ValueError, "resets", "0.5", NESTED, resets=nested(torch.full((N,), 0.5)))
    check(cell, ValueError, "resets", "2", NESTED, resets=nested(2 * flags.int()))
    other_rows = torch.tensor([0, 6, 7, 10, 12])
    check(cell, ValueError, "resets", "", NESTED, resets=nested(flags, other_rows))
    fewer_rows = torch.tensor([0, 6, 10, 12])
    check(cell, ValueError, "resets", "", NESTED, resets=nested(flags, fewer_rows))
    fewer_tokens = torch.tensor([0, 6, 6, 10, 11])
    check(cell, ValueError, "resets", "", NESTED, resets=nested(flags[:11], fewer_tokens))
    check(cell, ValueError, "resets", "", NESTED, resets=nested(flags.view(N, 1, 1)))


@both_cells
def test_nested_resets_of_a_form_that_is_not(cell: str) -> None:
    resets = nested_tensor_from_jagged(torch.ones(N, dtype=torch.bool), BOUNDS)
    refused = (TypeError, ValueError)
    check(cell, refused, "resets", "", X, resets=resets)
    check(cell, refused, "resets", "", FLAT, resets=resets, cu_seqlens=BOUNDS)
    check(cell, refused, "resets", "", PACKED, resets=resets)
    check(cell, refused, "mask", "", X, mask=resets)


@both_cells
def test_lengths_beyond_the_steps(cell: str) -> None:
    got = "7 at index 1"
    check(cell, ValueError, "lengths", got, X, lengths=[1, 7, 2, 9], resets=MASK)


@both_cells
def test_a_form_that_has_its_own_lengths_takes_no_others(cell: str) -> None:
    name = type(make(cell)).__name__
    others = {"lengths": [1, 1, 1, 1], "mask": MASK, "cu_seqlens": BOUNDS}
    calls: list[tuple[Any, set[str]]] = [
        (X, {"lengths", "mask"}),
        (X, {"cu_seqlens"}),
        (X, {"cu_seqlens", "lengths"}),
        (X, {"cu_seqlens", "mask"}),
        (PACKED, {"lengths"}),
        (PACKED, {"mask"}),
        (PACKED, {"cu_seqlens"}),
        (NESTED, {"lengths"}),
        (NESTED, {"mask"}),
        (NESTED, {"cu_seqlens"}),
        (FLAT, {"cu_seqlens", "lengths"}),
        (FLAT, {"cu_seqlens", "mask"}),
        (X, {"cu_seqlens", "lengths", "mask"}),
    ]
    for input, names in calls:
        any_name = "|".join(sorted(names))
        with pytest.raises(ValueError, match=rf"^{name}: ({any_name})\b.* (must|need) .*, got "):
            make(cell)(input, **{key: others[key] for key in names})


@both_cells
@pytest.mark.parametrize(
    ("bounds", "error", "got"),
    [
        ([1, 6, 6, 10, 12], ValueError, "1 at index 0"),
        ([-1, 6, 6, 10, 12], ValueError, "-1 at index 0"),
        ([0, 6, 5, 10, 12], ValueError, "5 at index 2"),
        ([0, 6, 6, 10, 11], ValueError, "11 at index 4"),
        ([0, 6, 6, 10, 13], ValueError, "13 at index 4"),
        ([0, 13, 12], ValueError, "at index"),
        ([0], ValueError, "0 at index 0"),
        ([], (TypeError, ValueError), ""),
        (torch.empty(0, dtype=torch.int64), ValueError, "[0]"),
        ([[0, 6, 6, 10, 12]], ValueError, "[1, 5]"),
        (BOUNDS.unsqueeze(1), ValueError, "[5, 1]"),
        (torch.tensor(12), ValueError, "[]"),
        (12, ValueError, "[]"),
        (BOUNDS.float(), TypeError, "float32"),
        (BOUNDS.double().numpy(), TypeError, "float64"),
        ([0.0, 12.0], TypeError, "float64"),
        (torch.tensor([False, True]), TypeError, "bool"),
        (torch.tensor([0, 12], dtype=torch.complex64), TypeError, "complex64"),
        ([[0, 6], [12]], ValueError, ""),
        ("ab", TypeError, "str"),
        ([None, None], TypeError, ""),
    ],
    ids=lambda v: str(v)[:40],
)
def test_boundaries(cell: str, bounds: Any, error: type[Exception], got: str) -> None:
    check(cell, error, "cu_seqlens", got, FLAT, cu_seqlens=bounds)


@both_cells
@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([7, 5], "0 at the start, got 7 at index 0; for lengths [7, 5] it is [0, 7, 12]"),
        ([12], "0 at the start, got 12 at index 0; for lengths [12] it is [0, 12]"),
        ([0, 8, 4], "non-decreasing, got 4 at index 2; for lengths [0, 8, 4] it is [0, 0, 8, 12]"),
        (
            [0, 5, 7],
            "N = 12 at the end, got 7 at index 2; for lengths [0, 5, 7] it is [0, 0, 5, 12]",
        ),
        (
            [2, 1, 3, 1, 2, 1, 2],
            "0 at the start, got 2 at index 0; for lengths [2, 1, 3, 1, 2, 1, ...] it is "
            "[0, 2, 3, 6, 7, 9, ...]",
        ),
        ([1, 5], "0 at the start, got 1 at index 0"),
    ],
    ids=str,
)
def test_lengths_in_place_of_boundaries(cell: str, lengths: list[int], message: str) -> None:
    name = type(make(cell)).__name__
    for given in (lengths, torch.tensor(lengths, dtype=torch.int32)):
        with pytest.raises(ValueError, match=r"must be") as error:
            make(cell)(FLAT, cu_seqlens=given)
        assert str(error.value) == f"{name}: cu_seqlens must be {message}"


@both_cells
def test_flat_input_of_a_wrong_shape_or_dtype(cell: str) -> None:
    for shape in ((N, FEATURES + 1), (N,), (), (1, 1, N, FEATURES)):
        check(cell, ValueError, "input", f"{list(shape)}", torch.zeros(shape), cu_seqlens=BOUNDS)
    check(cell, TypeError, "input", "float64", FLAT.double(), cu_seqlens=BOUNDS)


@both_cells
def test_a_strided_nested_tensor(cell: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, that this layout is old
        strided = torch.nested.nested_tensor([torch.zeros(2, FEATURES), torch.zeros(4, FEATURES)])
    check(cell, (TypeError, ValueError), "input", "strided", strided)
    resets = torch.nested.nested_tensor(
        [torch.zeros(6).bool(), torch.zeros(6).bool()], layout=torch.strided
    )
    check(cell, (TypeError, ValueError), "resets", "", NESTED, resets=resets)


@both_cells
@pytest.mark.parametrize("values_shape", [(N, FEATURES + 1), (N,), (N, FEATURES, 1)], ids=str)
def test_a_nested_tensor_of_a_wrong_shape(cell: str, values_shape: tuple[int, ...]) -> None:
    nested = nested_tensor_from_jagged(torch.zeros(values_shape), BOUNDS)
    check(cell, ValueError, "input", "", nested)


@both_cells
def test_a_nested_tensor_that_is_ragged_in_its_features(cell: str) -> None:
    nested = nested_tensor_from_jagged(torch.zeros(FEATURES, N), BOUNDS, jagged_dim=2)
    check(cell, ValueError, "input", "", nested)
    like_tokens = nested_tensor_from_jagged(torch.zeros(T, N), BOUNDS, jagged_dim=2)
    check(cell, ValueError, "input", "", like_tokens)


@both_cells
@pytest.mark.parametrize(
    ("offsets", "lengths"),
    [
        ([0, 3, 5, N], [4, 2, 1]),
        ([0, 3, 5, N], [3, 2, N]),
        ([0, 3, 5, N], [3, -1, 2]),
        ([0, 3, 5, N + 1], None),
        ([0, 3, 5, N - 1], None),
        ([1, 3, 5, N], None),
        ([0, 6, 5, N], None),
    ],
    ids=str,
)
def test_a_nested_tensor_with_rows_that_overlap_or_lie_outside(
    cell: str, offsets: list[int], lengths: list[int] | None
) -> None:
    bounds = torch.tensor(offsets)
    nested = nested_tensor_from_jagged(
        FLAT, bounds, None if lengths is None else torch.tensor(lengths)
    )
    check(cell, ValueError, "input", "", nested)


@both_cells
def test_a_nested_tensor_of_a_wrong_dtype(cell: str) -> None:
    check(cell, TypeError, "input", "float64", NESTED.double())


@both_cells
@pytest.mark.parametrize("form", ["mask", "flat", "nested", "packed"])
@pytest.mark.parametrize("shape", [(1, B + 1, H), (2, B, H), (1, B, H + 1), (B, H)], ids=str)
def test_states_of_a_wrong_shape(cell: str, form: str, shape: tuple[int, ...]) -> None:
    input, keywords = GOOD[form]
    hx = as_hx([torch.zeros(shape)] * (2 if cell == "lstm" else 1))
    check(cell, ValueError, re.escape("hx (h_0)"), f"{list(shape)}", input, hx, **keywords)


@both_cells
def test_arguments_after_hx_are_keywords(cell: str) -> None:
    with pytest.raises(TypeError, match="positional"):
        make(cell)(X, None, LENGTHS)
    with pytest.raises(TypeError, match="masks"):
        make(cell)(X, masks=MASK)
