"""A per-token module sees the valid tokens and nothing else."""

from __future__ import annotations

import pytest
import torch
from helpers import assert_bitwise
from masking_batches import FORMS, SIZE, check_by_rows, keywords_of, valid_of, with_junk
from torch import Tensor, nn

from varlen_rnn.masking import apply_to_valid

MODULES = {
    "linear": lambda: nn.Linear(SIZE, 3),
    "layer_norm": lambda: nn.LayerNorm(SIZE),
    "mlp": lambda: nn.Sequential(nn.Linear(SIZE, 8), nn.ReLU(), nn.Linear(8, 3)),
    "matrix": lambda: nn.Sequential(nn.Linear(SIZE, 6), nn.Unflatten(1, (2, 3))),
    "number": lambda: nn.Sequential(nn.Linear(SIZE, 1), nn.Flatten(0)),
}


@pytest.mark.parametrize("batch_first", [True, False], ids=["rows_first", "time_first"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", MODULES)
def test_values_and_gradients(kind: str, form: str, batch_first: bool) -> None:
    module = MODULES[kind]().double()
    check_by_rows(
        lambda x, **keywords: apply_to_valid(module, x, **keywords),
        lambda tokens, b: module(tokens),
        form,
        per_token=True,
        batch_first=batch_first,
        parameters=list(module.parameters()),
    )


def test_a_function_of_tokens_of_any_shape() -> None:
    valid = valid_of("holes")
    x = torch.randn(*valid.shape, 2, 3)
    seen = []
    out = apply_to_valid(lambda tokens: seen.append(tokens.shape) or tokens.sum(2), x, mask=valid)
    assert seen == [torch.Size([int(valid.sum()), 2, 3])]
    assert_bitwise(out, (x * valid[..., None, None]).sum(3))


def test_batch_statistics_are_over_valid_tokens() -> None:
    valid = valid_of("holes")
    x = torch.randn(*valid.shape, SIZE, dtype=torch.float64)
    ours, theirs = (nn.BatchNorm1d(SIZE).double() for _ in range(2))
    out = apply_to_valid(ours, with_junk(x, valid), mask=valid)
    torch.testing.assert_close(out[valid], theirs(x[valid]), rtol=0, atol=1e-12)
    torch.testing.assert_close(ours.running_var, theirs.running_var, rtol=0, atol=1e-12)


def test_token_numbers_as_input() -> None:
    embedding = nn.Embedding(10, SIZE)
    ids = torch.tensor([[1, 2, -7], [99, 99, 99]])
    out = apply_to_valid(embedding, ids, lengths=[2, 0])
    assert_bitwise(out[0, :2], embedding(ids[0, :2]))
    assert (out[0, 2:] == 0).all()
    assert (out[1] == 0).all()


@pytest.mark.parametrize("autocast", [False, True])
def test_the_dtype_is_what_the_module_gives(autocast: bool) -> None:
    module = nn.Linear(SIZE, 3)
    x = torch.randn(5, 6, SIZE)
    if not autocast:
        module, x = module.bfloat16(), x.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = apply_to_valid(module, x, **keywords_of("lengths"))
        expected = module(x[valid_of("lengths")])
    assert out.dtype == torch.bfloat16
    assert_bitwise(out[valid_of("lengths")], expected)


@pytest.mark.parametrize(
    ("module", "error", "message"),
    [
        (
            lambda tokens: tokens.sum(),
            ValueError,
            "the module's output must be [N, *] = [14, *], got []",
        ),
        (
            lambda tokens: tokens[1:],
            ValueError,
            f"the module's output must be [N, *] = [14, *], got [13, {SIZE}]",
        ),
        (lambda tokens: (tokens, tokens), TypeError, "module must return a Tensor, got tuple"),
    ],
)
def test_a_module_that_is_not_per_token_is_refused(module, error, message: str) -> None:
    with pytest.raises(error) as caught:
        apply_to_valid(module, torch.randn(5, 6, SIZE), **keywords_of("lengths"))
    assert str(caught.value) == f"apply_to_valid: {message}"


def test_second_derivatives() -> None:
    module = nn.Sequential(nn.Linear(SIZE, 3), nn.Tanh()).double()
    valid = valid_of("holes")
    x = torch.randn(*valid.shape, SIZE, dtype=torch.float64, requires_grad=True)

    def function(x: Tensor) -> Tensor:
        return apply_to_valid(module, x, mask=valid)

    assert torch.autograd.gradgradcheck(function, (x,))
