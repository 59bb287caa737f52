"""What all of masking has in common: how lengths and masks are given, refused, and may be empty."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from helpers import assert_bitwise
from masking_batches import LENGTHS, valid_of
from torch import Tensor, nn

import varlen_rnn.masking
from varlen_rnn.masking import (
    AdditiveAttention,
    MaskedConv1d,
    MultiplicativeAttention,
    VarLenEmbedding,
    apply_to_valid,
    last_valid,
    masked_cross_entropy,
    masked_max,
    masked_mean,
    masked_mse_loss,
)

SIZE = 4


def numbers_like(x: Tensor) -> Tensor:
    return torch.arange(x.shape[0] * x.shape[1]).reshape(x.shape[:2]) % SIZE


def rows_of(x: Tensor, batch_first: bool = True) -> int:
    return x.shape[0 if batch_first else 1]


LINEAR = nn.Linear(SIZE, 3)
EMBEDDING = VarLenEmbedding(SIZE, 3, 0)
CONV = MaskedConv1d(SIZE, 3, 3, padding="same")
ADDITIVE = AdditiveAttention(3, SIZE, 5)
GENERAL = MultiplicativeAttention(3, SIZE, score="general")

# Each is called as call(x, lengths=..., mask=..., batch_first=...) with x [B, T, SIZE].
CALLS: dict[str, Callable[..., Tensor]] = {
    "apply_to_valid": lambda x, **k: apply_to_valid(LINEAR, x, **k),
    "VarLenEmbedding": lambda x, **k: EMBEDDING(numbers_like(x), **k),
    "masked_cross_entropy": lambda x, **k: masked_cross_entropy(x, numbers_like(x), **k),
    "masked_mse_loss": lambda x, **k: masked_mse_loss(x, torch.ones_like(x), **k),
    "masked_mean": masked_mean,
    "masked_max": masked_max,
    "last_valid": last_valid,
    "AdditiveAttention": lambda x, **k: ADDITIVE(
        torch.ones(rows_of(x, k.get("batch_first", True)), 3), x, **k
    )[0],
    "MultiplicativeAttention": lambda x, **k: GENERAL(
        torch.ones(rows_of(x, k.get("batch_first", True)), 3), x, **k
    )[0],
    "MaskedConv1d": lambda x, **k: CONV(x.transpose(1, 2), **k),
}
EITHER_WAY = [name for name in CALLS if name != "MaskedConv1d"]
PARAMETERS = [*LINEAR.parameters(), EMBEDDING.weight, *CONV.parameters(), *ADDITIVE.parameters()]


def test_public_names() -> None:
    assert set(CALLS) <= set(varlen_rnn.masking.__all__)
    for name in varlen_rnn.masking.__all__:
        assert ">>> " in getattr(varlen_rnn.masking, name).__doc__


@pytest.mark.parametrize("name", CALLS)
def test_every_spelling_of_lengths_and_masks(name: str) -> None:
    x = torch.randn(*valid_of("lengths").shape, SIZE)
    mask = valid_of("lengths")
    expected = CALLS[name](x, lengths=torch.tensor(LENGTHS))
    dtypes = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16)
    spellings = [{"lengths": torch.tensor(LENGTHS, dtype=dtype)} for dtype in dtypes]
    spellings += [{"lengths": given} for given in (LENGTHS, tuple(LENGTHS), np.array(LENGTHS))]
    spellings += [{"mask": given} for given in (mask, mask.int(), mask.numpy(), mask.tolist())]
    floats = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    spellings += [{"mask": mask.to(dtype)} for dtype in floats]
    spellings += [{"mask": given} for given in (mask.float().numpy(), mask.double().tolist())]
    for keywords in spellings:
        assert_bitwise(CALLS[name](x, **keywords), expected, str(keywords))


@pytest.mark.parametrize("name", CALLS)
def test_without_lengths_every_token_is_valid(name: str) -> None:
    x = torch.randn(5, 6, SIZE)
    assert_bitwise(CALLS[name](x), CALLS[name](x, lengths=[6] * 5))


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("form", ["lengths", "mask"])
@pytest.mark.parametrize("shape", [(3, 4), (3, 0), (0, 4), (0, 0)], ids=str)
def test_nothing_valid_is_finite_and_has_a_graph(shape, form: str, name: str) -> None:
    x = torch.full((*shape, SIZE), torch.nan, requires_grad=True)
    keywords = {
        "lengths": {"lengths": [0] * shape[0]},
        "mask": {"mask": torch.zeros(shape, dtype=torch.bool)},
    }[form]
    orders = (True, False) if name in EITHER_WAY else (True,)
    for batch_first in orders:
        given = x if batch_first else x.transpose(0, 1)
        if not batch_first and form == "mask":
            keywords = {"mask": keywords["mask"].t()}
        layout = {} if batch_first else {"batch_first": False}
        out = CALLS[name](given, **keywords, **layout)
        assert (out == 0).all()
        gradients = torch.autograd.grad(
            out.sum(), [x, *PARAMETERS], allow_unused=True, materialize_grads=True
        )
        assert all((gradient == 0).all() for gradient in gradients)


@pytest.mark.parametrize("name", [n for n in EITHER_WAY if n != "VarLenEmbedding"])
def test_empty_batches_without_lengths(name: str) -> None:
    for shape in [(3, 0), (0, 4), (0, 0)]:
        x = torch.empty(*shape, SIZE, requires_grad=True)
        out = CALLS[name](x)
        assert (out == 0).all()
        out.sum().backward()


@pytest.mark.parametrize("keywords", [{"lengths": LENGTHS}, {"mask": valid_of("holes")}], ids=list)
def test_lengths_and_masks_come_to_the_device_of_the_tokens(keywords) -> None:
    x = torch.empty(5, 6, SIZE, device="meta")
    query = torch.empty(5, 3, device="meta")
    results = [
        *(pool(x, **keywords) for pool in (masked_mean, masked_max, last_valid)),
        *AdditiveAttention(3, SIZE, 5, device="meta")(query, x, **keywords),
        MaskedConv1d(SIZE, 3, 3, padding=1, device="meta")(x.transpose(1, 2), **keywords),
    ]
    assert all(result.is_meta for result in results)


@pytest.mark.parametrize("name", CALLS)
def test_nothing_changes_the_input(name: str) -> None:
    x = torch.randn(5, 6, SIZE)
    mask, before = valid_of("holes"), x.clone()
    CALLS[name](x, mask=mask)
    assert_bitwise(x, before)
    assert torch.equal(mask, valid_of("holes"))


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        (
            {"lengths": [1, 2], "mask": [[True] * 3] * 2},
            ValueError,
            "lengths and mask must not both be given, got both",
        ),
        ({"lengths": [1, 4]}, ValueError, "lengths must be in [0, T] = [0, 3], got 4 at index 1"),
        (
            {"lengths": torch.tensor([-1, 2])},
            ValueError,
            "lengths must be in [0, T] = [0, 3], got -1 at index 0",
        ),
        ({"lengths": [1, 2, 3]}, ValueError, "lengths must be [B] = [2], got [3]"),
        ({"lengths": [1.0, 2.0]}, TypeError, "lengths must be integers, got float64"),
        (
            {"lengths": torch.tensor([1.0, 2.0])},
            TypeError,
            "lengths must be integers, got torch.float32",
        ),
        (
            {"lengths": torch.tensor([True, True])},
            TypeError,
            "lengths must be integers, got torch.bool",
        ),
        (
            {"mask": torch.ones(3, 2, dtype=torch.bool)},
            ValueError,
            "mask must be [B, T] = [2, 3], got [3, 2], its transpose",
        ),
        (
            {"mask": torch.ones(2, 3, dtype=torch.complex64)},
            TypeError,
            "mask must be bool, or integers or floats 0 and 1, got torch.complex64",
        ),
        (
            {"mask": torch.tensor([[0, 1, 1], [1, 0.5, 0]])},
            ValueError,
            "mask must be bool, or integers or floats 0 and 1, got 0.5 at index [1, 1]",
        ),
        (
            {"mask": torch.tensor([[0, 1, 1], [1, 2, 0]])},
            ValueError,
            "mask must be bool, or integers or floats 0 and 1, got 2 at index [1, 1]",
        ),
    ],
)
def test_wrong_lengths_and_masks(keywords, error, message: str, name: str) -> None:
    with pytest.raises(error) as caught:
        CALLS[name](torch.randn(2, 3, SIZE), **keywords)
    assert str(caught.value) == f"{name}: {message}"


@pytest.mark.parametrize("name", EITHER_WAY)
def test_a_mask_is_laid_out_as_the_tokens(name: str) -> None:
    with pytest.raises(ValueError, match=r"\[T, B\]") as caught:
        CALLS[name](
            torch.randn(3, 2, SIZE), mask=torch.ones(2, 3, dtype=torch.bool), batch_first=False
        )
    message = f"{name}: mask must be [T, B] = [3, 2], got [2, 3], its transpose"
    assert str(caught.value) == message


@pytest.mark.parametrize("name", CALLS)
def test_values_that_are_nowhere(name: str) -> None:
    """A meta tensor has none, for tokens that have."""
    x = torch.randn(2, 3, SIZE)
    for what, given in (("lengths", torch.tensor([1, 2])), ("mask", torch.ones(2, 3).bool())):
        with pytest.raises(ValueError, match="meta") as caught:
            CALLS[name](x, **{what: given.to("meta")})
        expected = "on a device with values, as the input's cpu is"
        assert str(caught.value) == f"{name}: {what} must be {expected}, got meta"


@pytest.mark.parametrize(
    ("name", "call", "what"),
    [
        ("apply_to_valid", lambda x: apply_to_valid(LINEAR, x), "x"),
        ("masked_cross_entropy", lambda x: masked_cross_entropy(x, torch.ones(2, 3)), "input"),
        ("masked_mse_loss", lambda x: masked_mse_loss(x, torch.ones(2, 3)), "input"),
        ("masked_mean", masked_mean, "x"),
        ("masked_max", masked_max, "x"),
        ("last_valid", last_valid, "x"),
        ("AdditiveAttention", lambda x: ADDITIVE(torch.ones(2, 3), x), "keys"),
        ("MultiplicativeAttention", lambda x: GENERAL(torch.ones(2, 3), x), "keys"),
    ],
)
def test_wrong_tokens(name: str, call: Callable[[object], Tensor], what: str) -> None:
    with pytest.raises(TypeError) as caught:
        call([[1.0, 2.0]])
    assert str(caught.value) == f"{name}: {what} must be a Tensor, got list"
    with pytest.raises(ValueError, match="got") as caught:
        call(torch.ones(3))
    assert str(caught.value) == f"{name}: {what} must be [B, T, *], got [3]"
