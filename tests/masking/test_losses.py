"""The losses are torch's on the valid tokens."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_bitwise, assert_close64
from masking_batches import FORMS, check_by_rows, keywords_of, valid_of, with_junk
from torch import Tensor

from varlen_rnn.masking import masked_cross_entropy, masked_mse_loss

CLASSES = 4
REDUCTIONS = ("mean", "sum", "none")
OPTIONS = {
    "plain": {},
    "weight": {"weight": torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=torch.float64)},
    "smooth": {"label_smoothing": 0.2},
    "both": {
        "weight": torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=torch.float64),
        "label_smoothing": 0.3,
    },
}


def random_target(kind: str) -> Tensor:
    shape = valid_of("lengths").shape
    if kind == "classes":
        return torch.randint(CLASSES, shape)
    return torch.rand(*shape, CLASSES, dtype=torch.float64).softmax(2)


def check_reduced(
    loss: Callable[..., Tensor], truth: Callable[..., Tensor], target: Tensor, form: str
) -> None:
    """``loss(x, target, **keywords)`` is ``truth(x[valid], target[valid])``, or 0 for no token."""
    valid = valid_of(form)
    x = torch.randn(*valid.shape, CLASSES, dtype=torch.float64)
    real = target.is_floating_point()
    junk = with_junk(target, valid) if real else torch.where(valid, target, 2**40)
    results = []
    for batch_first in (True, False):
        dirty = with_junk(x, valid).requires_grad_()
        given = (dirty, junk) if batch_first else (dirty.transpose(0, 1), junk.transpose(0, 1))
        out = loss(*given, **keywords_of(form, batch_first=batch_first))
        (gradient,) = torch.autograd.grad(out, dirty)
        results.append({"out": out.detach(), "d_x": gradient})
        assert (gradient[~valid] == 0).all()
    clean = x.clone().requires_grad_()
    expected = truth(clean[valid], target[valid]) if valid.any() else 0 * clean.sum()
    (gradient,) = torch.autograd.grad(expected, clean)
    for got in results:
        assert_close64(got, {"out": expected.detach(), "d_x": gradient})


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", ["classes", "probabilities"])
def test_cross_entropy(kind: str, options: str, reduction: str, form: str) -> None:
    keywords = {**OPTIONS[options], "reduction": reduction}
    check_reduced(
        lambda x, target, **batch: masked_cross_entropy(x, target, **keywords, **batch),
        lambda x, target: F.cross_entropy(x, target, **keywords),
        random_target(kind),
        form,
    )


@pytest.mark.parametrize("batch_first", [True, False], ids=["rows_first", "time_first"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", ["classes", "probabilities"])
def test_cross_entropy_of_each_token(kind, options: str, form: str, batch_first: bool) -> None:
    target, valid = random_target(kind), valid_of(form)
    keywords = {**OPTIONS[options], "reduction": "none"}
    check_by_rows(
        lambda x, **batch: masked_cross_entropy(
            x, target if batch_first else target.transpose(0, 1), **keywords, **batch
        ),
        lambda tokens, b: F.cross_entropy(
            tokens,
            (target[b][valid[b]] if valid[b].any() else target[b])[: len(tokens)],
            **keywords,
        ),
        form,
        per_token=True,
        batch_first=batch_first,
    )


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("ignore_index", [-100, 0, 2])
def test_ignored_classes_count_as_padding(ignore_index: int, reduction: str) -> None:
    valid = valid_of("holes")
    target = random_target("classes")
    target[2, ::2] = ignore_index
    target[4, 1] = ignore_index
    keywords = {
        "ignore_index": ignore_index,
        "weight": torch.tensor([0.5, 1.0, 2.0, 3.0]),
        "label_smoothing": 0.1,
        "reduction": reduction,
    }
    x = torch.randn(*valid.shape, CLASSES, requires_grad=True)
    got = masked_cross_entropy(x, target, mask=valid, **keywords)
    expected = F.cross_entropy(x[valid], target[valid], **keywords)
    torch.testing.assert_close(got[valid] if reduction == "none" else got, expected)

    nothing = masked_cross_entropy(x, torch.full_like(target, ignore_index), **keywords)
    assert (nothing == 0).all()
    (gradient,) = torch.autograd.grad(nothing.sum(), x)
    assert (gradient == 0).all()


def test_an_ignored_token_may_hold_nan() -> None:
    x = torch.randn(1, 3, CLASSES)
    x[0, 1] = torch.nan
    x.requires_grad_()
    loss = masked_cross_entropy(x, torch.tensor([[1, -100, 2]]))
    (gradient,) = torch.autograd.grad(loss, x)
    assert_bitwise(loss, F.cross_entropy(x[0, ::2], torch.tensor([1, 2])))
    assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_classes_of_any_integer_dtype(dtype: torch.dtype) -> None:
    x, target = torch.randn(5, 6, CLASSES), random_target("classes")
    expected = masked_cross_entropy(x, target, lengths=[6, 0, 1, 2, 3])
    assert_bitwise(masked_cross_entropy(x, target.to(dtype), lengths=[6, 0, 1, 2, 3]), expected)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_mse(reduction: str, form: str) -> None:
    check_reduced(
        lambda x, target, **batch: masked_mse_loss(x, target, reduction=reduction, **batch),
        lambda x, target: F.mse_loss(x, target, reduction=reduction),
        random_target("probabilities"),
        form,
    )


@pytest.mark.parametrize("batch_first", [True, False], ids=["rows_first", "time_first"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("trailing", [(), (4,), (2, 3)], ids=str)
def test_mse_of_each_element(trailing: tuple[int, ...], form: str, batch_first: bool) -> None:
    valid = valid_of(form)
    target = torch.randn(*valid.shape, *trailing, dtype=torch.float64)
    dirty = with_junk(target, valid)

    def truth(tokens: Tensor, b: int) -> Tensor:
        tokens_target = target[b][valid[b]] if valid[b].any() else target[b]
        return (tokens - tokens_target[: len(tokens)]) ** 2

    check_by_rows(
        lambda x, **batch: masked_mse_loss(
            x, dirty if batch_first else dirty.transpose(0, 1), reduction="none", **batch
        ),
        truth,
        form,
        per_token=True,
        batch_first=batch_first,
        trailing=trailing,
    )


def test_mse_has_a_gradient_for_the_target_too() -> None:
    valid = valid_of("holes")
    x, target = (torch.randn(*valid.shape, 4, dtype=torch.float64) for _ in range(2))
    dirty = with_junk(target, valid).requires_grad_()
    (gradient,) = torch.autograd.grad(masked_mse_loss(x, dirty, mask=valid), dirty)
    expected = torch.where(valid[..., None], 2 * (target - x) / (4 * valid.sum()), 0.0)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("kind", ["classes", "probabilities"])
def test_gradcheck_of_cross_entropy(kind: str) -> None:
    target = random_target(kind)
    x = torch.randn(5, 6, CLASSES, dtype=torch.float64, requires_grad=True)
    keywords = {**OPTIONS["both"], "mask": valid_of("holes")}
    function = lambda x: masked_cross_entropy(x, target, **keywords)  # noqa: E731
    assert torch.autograd.gradcheck(function, (x,))
    assert torch.autograd.gradgradcheck(function, (x,))


def test_gradcheck_of_mse() -> None:
    x, target = (torch.randn(5, 6, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    function = lambda x, target: masked_mse_loss(x, target, mask=valid_of("holes"))  # noqa: E731
    assert torch.autograd.gradcheck(function, (x, target))
    assert torch.autograd.gradgradcheck(function, (x, target))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_bfloat16(reduction: str) -> None:
    valid = valid_of("lengths")
    x, other = (torch.randn(*valid.shape, CLASSES).bfloat16() for _ in range(2))
    target = random_target("classes")
    pairs = [
        (masked_cross_entropy(x, target, mask=valid, reduction=reduction), F.cross_entropy, target),
        (masked_mse_loss(x, other, mask=valid, reduction=reduction), F.mse_loss, other),
    ]
    for got, function, aim in pairs:
        expected = function(x[valid], aim[valid], reduction=reduction)
        assert_bitwise(got[valid] if reduction == "none" else got, expected)


@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "message"),
    [
        (
            ((2, 3, 4), (2, 3)),
            {"reduction": "average"},
            ValueError,
            'reduction must be "mean", "sum" or "none", got \'average\'',
        ),
        (((2, 3), (2, 3)), {}, ValueError, "input must be [B, T, C], got [2, 3]"),
        (
            ((2, 3), (2, 3)),
            {"batch_first": False},
            ValueError,
            "input must be [T, B, C], got [2, 3]",
        ),
        (((2, 3, 4), (2, 5)), {}, ValueError, "target must be [B, T] = [2, 3], got [2, 5]"),
        (
            ((2, 3, 4), (2, 4)),  # as nn.CrossEntropyLoss takes them
            {},
            ValueError,
            "target must be [B, T] = [2, 3], got [2, 4]; in input classes come last: pass "
            "input.transpose(1, 2)",
        ),
        (
            ((4, 3, 2), (4, 2)),
            {"batch_first": False},
            ValueError,
            "target must be [T, B] = [4, 3], got [4, 2]; in input classes come last: pass "
            "input.transpose(1, 2)",
        ),
        (((2, 3, 4), (2,)), {}, ValueError, "target must be [B, T, *], got [2]"),
    ],
)
def test_wrong_arguments_of_cross_entropy(arguments, keywords, error, message: str) -> None:
    x, target = torch.randn(arguments[0]), torch.zeros(arguments[1], dtype=torch.int64)
    with pytest.raises(error) as caught:
        masked_cross_entropy(x, target, **keywords)
    assert str(caught.value) == f"masked_cross_entropy: {message}"


def test_wrong_probabilities() -> None:
    with pytest.raises(ValueError, match="target") as caught:
        masked_cross_entropy(torch.randn(2, 3, 4), torch.rand(2, 3))
    message = "masked_cross_entropy: target must be [B, T, C] = [2, 3, 4], got [2, 3]"
    assert str(caught.value) == message


@pytest.mark.parametrize("wrong", [-1, 4])
@pytest.mark.parametrize("error", [ValueError, IndexError])
def test_a_class_out_of_range(wrong: int, error: type[Exception]) -> None:
    target = torch.zeros(2, 3, dtype=torch.int64)
    target[1, 2] = wrong
    with pytest.raises(error) as caught:
        masked_cross_entropy(torch.randn(2, 3, 4), target)
    message = f"target must be in [0, C) = [0, 4), got {wrong} at index [1, 2]"
    assert str(caught.value) == f"masked_cross_entropy: {message}"


def test_wrong_arguments_of_mse() -> None:
    with pytest.raises(ValueError, match="masked_mse_loss") as caught:
        masked_mse_loss(torch.randn(2, 3, 4), torch.randn(2, 3, 1))
    message = "target must be the shape of input, [2, 3, 4], got [2, 3, 1]"
    assert str(caught.value) == f"masked_mse_loss: {message}"
    with pytest.raises(ValueError, match="reduction"):
        masked_mse_loss(torch.randn(2, 3, 4), torch.randn(2, 3, 4), reduction="max")


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.uint16], ids=str)
def test_there_may_be_more_classes_than_the_targets_dtype_has_numbers(dtype: torch.dtype) -> None:
    logits, target = torch.randn(1, 3, 300), torch.tensor([[100, 3, 127]])
    if dtype != torch.int8:
        target[0, 0] = 156  # -100, which is ignored, is 156 in uint8
    got = masked_cross_entropy(logits, target.to(dtype))
    torch.testing.assert_close(got, F.cross_entropy(logits[0], target[0]))


def test_targets_and_inputs_of_a_wrong_dtype() -> None:
    logits, integers = torch.randn(2, 3, 4), torch.zeros(2, 3, 4, dtype=torch.int64)
    for target in (torch.zeros(2, 3, dtype=torch.bool), torch.zeros(2, 3, dtype=torch.complex64)):
        with pytest.raises(TypeError, match=r"^masked_cross_entropy: target must be integers or"):
            masked_cross_entropy(logits, target)
    with pytest.raises(TypeError, match=r"^masked_cross_entropy: input must be floating point"):
        masked_cross_entropy(integers, integers[..., 0])
    for arguments in ((integers, logits), (logits, integers)):
        with pytest.raises(TypeError, match=r"^masked_mse_loss: \w+ must be floating point, got"):
            masked_mse_loss(*arguments)
