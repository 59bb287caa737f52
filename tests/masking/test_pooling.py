"""Pooling is that of each row's valid tokens alone."""

from __future__ import annotations

import pytest
import torch
from helpers import assert_bitwise
from masking_batches import FORMS, by_rows, check_by_rows, keywords_of, valid_of, with_junk
from torch import Tensor

from varlen_rnn.masking import last_valid, masked_max, masked_mean

TRUTHS = {
    masked_mean: lambda tokens, b: tokens.mean(0),
    masked_max: lambda tokens, b: tokens.amax(0),
    last_valid: lambda tokens, b: tokens[-1],
}


@pytest.mark.parametrize("batch_first", [True, False], ids=["rows_first", "time_first"])
@pytest.mark.parametrize("trailing", [(), (4,), (2, 3)], ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("pool", TRUTHS, ids=lambda f: f.__name__)
def test_values_and_gradients(pool, form, trailing, batch_first) -> None:
    check_by_rows(
        pool,
        TRUTHS[pool],
        form,
        per_token=False,
        batch_first=batch_first,
        trailing=trailing,
    )


@pytest.mark.parametrize("form", ["lengths", "left", "holes"])
def test_maximum_of_infinities_and_nan_is_that_of_amax(form: str) -> None:
    valid = valid_of(form)
    x = torch.randn(*valid.shape, 4, dtype=torch.float64)
    x[..., 0] = -torch.inf
    x[0, valid[0].nonzero()[-1], 1] = torch.nan
    x[2, 2, 2] = torch.inf
    x[..., 3] = 1.0
    clean, dirty = x.clone().requires_grad_(), with_junk(x, valid).requires_grad_()
    expected = by_rows(TRUTHS[masked_max], clean, valid, per_token=False)
    out = masked_max(dirty, **keywords_of(form))
    torch.testing.assert_close(out, expected, rtol=0, atol=0, equal_nan=True)
    (want,) = torch.autograd.grad(expected.sum(), clean)
    (got,) = torch.autograd.grad(out.sum(), dirty)
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
    assert (got[~valid] == 0).all()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
@pytest.mark.parametrize("pool", [masked_max, last_valid], ids=lambda f: f.__name__)
def test_integers(pool, dtype: torch.dtype) -> None:
    valid = valid_of("holes")
    low = torch.iinfo(dtype).min
    x = torch.randint(low, low + 100, (*valid.shape, 4)).to(dtype)
    x[3] = low
    x[~valid] = 127
    expected = by_rows(TRUTHS[pool], x, valid, per_token=False)
    assert torch.equal(pool(x, mask=valid), expected)


def test_flags() -> None:
    flags = torch.tensor([[True, False, True], [False, False, True], [True, True, True]])
    lengths = [2, 2, 0]
    assert last_valid(flags, lengths=lengths).tolist() == [False, False, False]
    assert masked_max(flags, lengths=lengths).tolist() == [True, False, False]
    assert masked_max(flags[:, :0]).tolist() == [False] * 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("pool", TRUTHS, ids=lambda f: f.__name__)
def test_16_bit_types_are_rounded_once(pool, dtype: torch.dtype) -> None:
    valid = valid_of("lengths")
    x = ((torch.rand(*valid.shape, 4) + 0.5) * 40000).to(dtype)  # their sums are too large

    def truth(tokens: Tensor, b: int) -> Tensor:
        return TRUTHS[pool](tokens.float(), b).to(dtype)

    expected = by_rows(truth, x, valid, per_token=False)
    assert_bitwise(pool(x, **keywords_of("lengths")), expected)
    assert expected.isfinite().all()


def test_mean_needs_floating_point() -> None:
    with pytest.raises(TypeError) as error:
        masked_mean(torch.ones(2, 3, dtype=torch.int64))
    assert str(error.value) == "masked_mean: x must be floating point, got torch.int64"
