"""Masks, lengths and resets, against loops over rows and steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from masking_batches import FORMS, HOLES, LENGTHS, keywords_of, valid_of
from torch import Tensor

from varlen_rnn.masking import dones_to_resets, lengths_to_mask, mask_from_value, mask_to_lengths

FLAGS = "bool, or integers or floats 0 and 1"
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def loop_mask(lengths: list[int], num_steps: int) -> list[list[bool]]:
    return [[t < length for t in range(num_steps)] for length in lengths]


@pytest.mark.parametrize("num_steps", [6, 9])
@pytest.mark.parametrize("make", [list, tuple, np.array, torch.tensor], ids=lambda f: f.__name__)
def test_lengths_to_mask(make, num_steps: int) -> None:
    mask = lengths_to_mask(make(LENGTHS), num_steps)
    assert mask.dtype == torch.bool
    assert mask.tolist() == loop_mask(LENGTHS, num_steps)
    by_time = lengths_to_mask(make(LENGTHS), num_steps, batch_first=False)
    assert torch.equal(by_time, mask.t())
    assert torch.equal(lengths_to_mask(make(LENGTHS)), lengths_to_mask(make(LENGTHS), 6))


@pytest.mark.parametrize("dtype", INTEGERS)
def test_lengths_of_any_integer_dtype(dtype: torch.dtype) -> None:
    mask = lengths_to_mask(torch.tensor(LENGTHS, dtype=dtype))
    assert mask.tolist() == loop_mask(LENGTHS, 6)


def test_masks_without_rows_or_steps() -> None:
    assert lengths_to_mask([]).shape == (0, 0)
    assert lengths_to_mask([], 4).shape == (0, 4)
    assert lengths_to_mask([0, 0]).shape == (2, 0)
    assert lengths_to_mask([0, 0], batch_first=False).shape == (0, 2)
    for shape in [(0, 0), (0, 4), (2, 0)]:
        lengths = mask_to_lengths(torch.ones(shape, dtype=torch.bool))
        assert lengths.tolist() == [0] * shape[0]


@pytest.mark.parametrize("lengths", [LENGTHS, [0, 0], [6, 6, 6]], ids=str)
def test_mask_to_lengths(lengths: list[int]) -> None:
    mask = torch.tensor(loop_mask(lengths, 6))
    for given in (mask, mask.int(), mask.half(), mask.numpy(), mask.tolist()):
        got = mask_to_lengths(given)
        assert got.dtype == torch.int64
        assert got.tolist() == lengths
    assert mask_to_lengths(mask.t(), batch_first=False).tolist() == lengths


@pytest.mark.parametrize(
    ("rows", "bad"),
    [(["110", "101", "001"], 1), (["01", "11"], 0), (["1110", "0000", "1100", "0001"], 3)],
)
def test_lengths_cannot_say_every_mask(rows: list[str], bad: int) -> None:
    mask = torch.tensor([[step == "1" for step in row] for row in rows])
    for axis, given in ((1, mask), (0, mask.t())):
        with pytest.raises(ValueError, match="mask_to_lengths") as caught:
            mask_to_lengths(given, batch_first=axis == 1)
        assert str(caught.value) == (
            f"mask_to_lengths: mask must be valid tokens first in every row (mask.sum({axis}) "
            f"counts any), got padding before a token in row {bad}"
        )


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: lengths_to_mask([1, 7, 2], 5),
            ValueError,
            "lengths_to_mask: lengths must be in [0, T] = [0, 5], got 7 at index 1",
        ),
        (
            lambda: lengths_to_mask(torch.tensor([[1], [2]])),
            ValueError,
            "lengths_to_mask: lengths must be [B] = [2], got [2, 1]",
        ),
        (
            lambda: lengths_to_mask(torch.tensor(3)),
            ValueError,
            "lengths_to_mask: lengths must be [B] = [1], got []",
        ),
        (
            lambda: lengths_to_mask(torch.tensor([1.0])),
            TypeError,
            "lengths_to_mask: lengths must be integers, got torch.float32",
        ),
        (
            lambda: lengths_to_mask([1], -1),
            ValueError,
            "lengths_to_mask: max_length must be at least 0, got -1",
        ),
        (
            lambda: mask_to_lengths(torch.ones(2, 3) + 0j),
            TypeError,
            f"mask_to_lengths: mask must be {FLAGS}, got torch.complex64",
        ),
        (
            lambda: mask_to_lengths(torch.ones(3, dtype=torch.bool)),
            ValueError,
            "mask_to_lengths: mask must be [B, T], got [3]",
        ),
        (
            lambda: mask_to_lengths(torch.tensor([[1, 2]])),
            ValueError,
            f"mask_to_lengths: mask must be {FLAGS}, got 2 at index [0, 1]",
        ),
        (
            lambda: mask_from_value([[1.0]]),
            TypeError,
            "mask_from_value: x must be a Tensor, got list",
        ),
        (
            lambda: mask_from_value(torch.zeros(2, 3), None),
            TypeError,
            "mask_from_value: value must be a number, got NoneType",
        ),
        (
            lambda: mask_from_value(torch.tensor(1.0)),
            ValueError,
            "mask_from_value: x must be [*, F], got []",
        ),
    ],
)
def test_wrong_lengths_and_masks(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == message


def test_negative_lengths() -> None:
    with pytest.raises(ValueError, match=r"lengths_to_mask: lengths must be .*, got -1 at index 1"):
        lengths_to_mask([2, -1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
@pytest.mark.parametrize("value", [0.0, -1.0])
@pytest.mark.parametrize("shape", [(4,), (6, 4), (5, 6, 4), (2, 3, 4, 5), (0, 3), (3, 0)], ids=str)
def test_mask_from_value(shape: tuple[int, ...], value: float, dtype: torch.dtype) -> None:
    x = torch.where(torch.rand(shape) < 0.7, value, 3.0).to(dtype)
    mask = mask_from_value(x, value)
    assert mask.shape == shape[:-1]
    steps = x.reshape(mask.numel(), shape[-1]).tolist()
    assert mask.flatten().tolist() == [any(f != value for f in step) for step in steps]


def test_nan_as_padding_value() -> None:
    nan = torch.nan
    x = torch.tensor([[[nan, nan], [nan, 1.0], [0.0, 0.0], [1.0, 2.0]]])
    assert mask_from_value(x, nan).tolist() == [[False, True, True, True]]
    assert mask_from_value(x).tolist() == [[True, True, False, True]]


def loop_resets(dones: Tensor, valid: Tensor, previous: list[bool]) -> list[list[bool]]:
    resets = [[False] * dones.shape[1] for _ in range(len(dones))]
    for b in range(len(dones)):
        ended = previous[b]
        for t in range(dones.shape[1]):
            if valid[b, t]:
                resets[b][t] = ended
                ended = bool(dones[b, t])
    return resets


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("with_previous", [False, True], ids=["first", "previous"])
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32, torch.bfloat16])
def test_dones_to_resets(dtype: torch.dtype, with_previous: bool, form: str) -> None:
    valid = valid_of(form)
    previous = torch.tensor([True, True, False, True, True]) if with_previous else None
    for _ in range(10):
        dones = torch.rand(valid.shape) < 0.4
        expected = loop_resets(dones, valid, (previous.tolist() if with_previous else [False] * 5))
        got = dones_to_resets(dones.to(dtype), previous, **keywords_of(form))
        assert got.dtype == torch.bool
        assert got.tolist() == expected
        by_time = dones_to_resets(
            dones.t().to(dtype), previous, **keywords_of(form, batch_first=False)
        )
        assert by_time.t().tolist() == expected


def test_the_shift_in_plain_torch() -> None:
    dones = torch.rand(4, 7) < 0.5
    previous = torch.rand(4) < 0.5
    expected = torch.cat([previous[:, None], dones[:, :-1]], 1)
    assert torch.equal(dones_to_resets(dones, previous), expected)
    assert torch.equal(dones_to_resets(dones.numpy(), previous.int()), expected)
    assert torch.equal(dones_to_resets(dones.tolist(), previous.tolist()), expected)


@pytest.mark.parametrize("previous", [None, False, True, torch.tensor(True), torch.tensor(0)])
def test_one_sequence(previous: object) -> None:
    valid = torch.tensor([step == "1" for step in HOLES[0]])
    dones = torch.tensor([True, False, True, True, False, False])
    before = [bool(previous)]
    (expected,) = loop_resets(dones[None], valid[None], before)
    assert dones_to_resets(dones, previous, mask=valid).tolist() == expected
    (expected,) = loop_resets(dones[None], torch.ones(1, 6, dtype=torch.bool), before)
    for batch_first in (True, False):
        got = dones_to_resets(dones, previous, batch_first=batch_first)
        assert got.tolist() == expected


@pytest.mark.parametrize("batch_first", [True, False], ids=["BT", "TB"])
@pytest.mark.parametrize("form", FORMS)
def test_a_last_dimension_of_1_stays(form: str, batch_first: bool) -> None:
    """As TorchRL has its flags; what comes out is taken for resets as it is."""
    valid = valid_of(form) if batch_first else valid_of(form).t()
    dones, previous = torch.rand(valid.shape) < 0.4, torch.rand(len(valid_of(form))) < 0.5
    keywords = keywords_of(form, batch_first=batch_first)
    expected = dones_to_resets(dones, previous, **keywords)
    for given in (dones[..., None], dones[..., None].float(), dones[..., None].tolist()):
        got = dones_to_resets(given, previous[:, None].float(), **keywords)
        assert got.dtype == torch.bool
        assert torch.equal(got, expected[..., None])


def test_two_dimensions_are_rows_and_steps() -> None:
    """Also where there is one step, whose flags look like those of one sequence of TorchRL's."""
    dones, previous = torch.tensor([[True], [False], [True]]), torch.tensor([False, True, True])
    assert torch.equal(dones_to_resets(dones, previous), previous[:, None])
    assert torch.equal(dones_to_resets(dones[..., None], previous), previous[:, None, None])
    assert dones_to_resets(dones[:, 0], previous[1:2]).tolist() == [True, True, False]


@pytest.mark.parametrize("shape", [(0, 0), (0, 4), (3, 0), (0,), (0, 4, 1), (3, 0, 1)], ids=str)
def test_resets_of_nothing(shape: tuple[int, ...]) -> None:
    dones = torch.zeros(shape, dtype=torch.bool)
    assert dones_to_resets(dones).shape == shape
    assert dones_to_resets(dones, batch_first=False).shape == shape
    mask = dones.squeeze(2) if len(shape) == 3 else dones
    assert dones_to_resets(dones, mask=mask).shape == shape


def test_episodes_split_where_a_recurrent_policy_would() -> None:
    """The flags of two batches of one stream are those of the stream."""
    dones = torch.rand(3, 12) < 0.3
    whole = dones_to_resets(dones)
    first, second = dones[:, :5], dones[:, 5:]
    parts = [dones_to_resets(first), dones_to_resets(second, first[:, -1])]
    assert torch.equal(torch.cat(parts, 1), whole)


DONES = torch.zeros(2, 3, dtype=torch.bool)


@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "message"),
    [
        (
            (DONES + 0j,),
            {},
            TypeError,
            f"dones must be {FLAGS}, got torch.complex64",
        ),
        (
            (DONES.int() - 1,),
            {},
            ValueError,
            f"dones must be {FLAGS}, got -1 at index [0, 0]",
        ),
        (
            (DONES, torch.tensor([1, 0.5])),
            {},
            ValueError,
            f"previous must be {FLAGS}, got 0.5 at index 1",
        ),
        (
            (DONES[..., None] + 2.0,),
            {},
            ValueError,
            f"dones must be {FLAGS}, got 2.0 at index [0, 0]",
        ),
        ((DONES[None],), {}, ValueError, "dones must be [B, T] or [T], got [1, 2, 3]"),
        (
            (DONES[None],),
            {"batch_first": False},
            ValueError,
            "dones must be [T, B] or [T], got [1, 2, 3]",
        ),
        ((DONES, DONES[0]), {}, ValueError, "previous must be [B] = [2], got [3]"),
        ((DONES, True), {}, ValueError, "previous must be [B] = [2], got []"),
        (
            (DONES, torch.zeros(2) + 0j),
            {},
            TypeError,
            f"previous must be {FLAGS}, got torch.complex64",
        ),
        (
            (DONES[0],),
            {"lengths": [2]},
            ValueError,
            "lengths must be None with dones [T], got lengths",
        ),
        (
            (DONES,),
            {"lengths": [2, 3], "mask": DONES},
            ValueError,
            "lengths and mask must not both be given, got both",
        ),
        (
            (DONES,),
            {"lengths": [2, 4]},
            ValueError,
            "lengths must be in [0, T] = [0, 3], got 4 at index 1",
        ),
        (
            (DONES,),
            {"mask": DONES.t()},
            ValueError,
            "mask must be [B, T] = [2, 3], got [3, 2], its transpose",
        ),
    ],
)
def test_wrong_arguments(arguments, keywords, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        dones_to_resets(*arguments, **keywords)
    assert str(caught.value) == f"dones_to_resets: {message}"


def test_lists_of_unequal_lengths_and_other_types() -> None:
    with pytest.raises(ValueError, match=r"^mask_to_lengths: mask must be \[B, T\], got sequences"):
        mask_to_lengths([[True], [True, False]])
    with pytest.raises(ValueError, match=r"^dones_to_resets: dones must be .*, got sequences"):
        dones_to_resets([[0], [1, 0]])
    with pytest.raises(TypeError, match=r"^lengths_to_mask: max_length must be an integer, got fl"):
        lengths_to_mask([1, 2], 2.5)


def test_one_sequence_whatever_the_default_device() -> None:
    dones = torch.tensor([False, True, False], device="cpu")
    with torch.device("meta"):
        assert dones_to_resets(dones, True).tolist() == [True, False, True]
