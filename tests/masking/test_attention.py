"""Attention over the valid keys alone, written out for one query and one row at a time."""

from __future__ import annotations

import pytest
import torch
from helpers import assert_bitwise, assert_close64
from masking_batches import FORMS, NUM_ROWS, NUM_STEPS, keywords_of, valid_of, with_junk
from torch import Tensor, nn

from varlen_rnn.masking import AdditiveAttention, MultiplicativeAttention

Q, K, V, S = 3, 4, 2, 2

MODULES = {
    "additive": lambda: AdditiveAttention(Q, K, 5, dtype=torch.float64),
    "dot": lambda: MultiplicativeAttention(K),
    "general": lambda: MultiplicativeAttention(Q, K, score="general", dtype=torch.float64),
}


def score(module: nn.Module, query: Tensor, key: Tensor) -> Tensor:
    """The formulas of the papers, for one query and one key."""
    if isinstance(module, AdditiveAttention):
        w, u = module.query_projection.weight, module.key_projection.weight
        return module.score_projection.weight[0] @ torch.tanh(w @ query + u @ key)
    return query @ (module.key_projection.weight @ key if module.score == "general" else key)


def truth(
    module: nn.Module, query: Tensor, keys: Tensor, values: Tensor, valid: Tensor
) -> tuple[Tensor, Tensor]:
    """Context ``[B, S, V]`` and weights ``[B, S, T]``."""
    context = values.new_zeros(*query.shape[:2], values.shape[2])
    weights = values.new_zeros(*query.shape[:2], keys.shape[1])
    for b in range(len(query)):
        steps = valid[b].nonzero()[:, 0].tolist()
        for s in range(query.shape[1] if steps else 0):
            exps = [score(module, query[b, s], keys[b, t]).exp() for t in steps]
            for t, e in zip(steps, exps, strict=True):
                weights[b, s, t] = e / sum(exps)
                context[b, s] = context[b, s] + weights[b, s, t].clone() * values[b, t]
    return context, weights


def gradients_of(
    context: Tensor, weights: Tensor, leaves: list[Tensor], upstream: tuple[Tensor, Tensor]
) -> dict[str, Tensor]:
    gradients = torch.autograd.grad(
        (context, weights), leaves, upstream, allow_unused=True, materialize_grads=True
    )
    results = {"context": context.detach(), "weights": weights.detach()}
    return results | {f"d_{i}": d for i, d in enumerate(gradients)}


@pytest.mark.parametrize("batch_first", [True, False], ids=["rows_first", "time_first"])
@pytest.mark.parametrize("with_values", [False, True], ids=["keys", "values"])
@pytest.mark.parametrize("single", [False, True], ids=["queries", "query"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", MODULES)
def test_values_and_gradients(kind, form, single, with_values, batch_first) -> None:
    module = MODULES[kind]()
    valid = valid_of(form)
    num_queries = 1 if single else S
    double = torch.float64
    query = torch.randn(NUM_ROWS, num_queries, module.query_size, dtype=double, requires_grad=True)
    keys = torch.randn(NUM_ROWS, NUM_STEPS, K, dtype=double, requires_grad=True)
    values = torch.randn(NUM_ROWS, NUM_STEPS, V, dtype=double, requires_grad=True)
    dirty_keys = with_junk(keys, valid).requires_grad_()
    dirty_values = with_junk(values, valid).requires_grad_()
    upstream = (
        torch.randn(NUM_ROWS, num_queries, V if with_values else K, dtype=double),
        torch.randn(NUM_ROWS, num_queries, NUM_STEPS, dtype=double),
    )

    def laid_out(x: Tensor) -> Tensor:
        return x if batch_first else x.transpose(0, 1)

    context, weights = module(
        query[:, 0] if single else laid_out(query),
        laid_out(dirty_keys),
        *([laid_out(dirty_values)] if with_values else []),
        **keywords_of(form, batch_first=batch_first),
    )
    if single:
        context, weights = context[:, None], weights[:, None]
    elif not batch_first:
        context = context.transpose(0, 1)
    assert (weights.transpose(1, 2)[~valid] == 0).all()
    parameters = list(module.parameters())
    junk = (
        with_junk(upstream[0], valid.any(1)),
        with_junk(upstream[1].transpose(1, 2), valid).transpose(1, 2),
    )
    got = gradients_of(context, weights, [query, dirty_keys, dirty_values, *parameters], junk)
    context, weights = truth(module, query, keys, values if with_values else keys, valid)
    if not context.requires_grad:
        context, weights = context + 0 * keys.sum(), weights + 0 * keys.sum()
    want = gradients_of(context, weights, [query, keys, values, *parameters], upstream)
    assert_close64(got, want)
    assert (got["d_1"][~valid] == 0).all()
    assert (got["d_2"][~valid] == 0).all()


@pytest.mark.parametrize("kind", MODULES)
def test_gradcheck(kind: str) -> None:
    module = MODULES[kind]()
    double = torch.float64
    query = torch.randn(3, 2, module.query_size, dtype=double, requires_grad=True)
    keys = torch.randn(3, 3, K, dtype=double, requires_grad=True)

    def function(query: Tensor, keys: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        named = dict(zip(dict(module.named_parameters()), weights, strict=True))
        arguments, keywords = (query, keys), {"lengths": [3, 0, 2]}
        return torch.func.functional_call(module, named, arguments, keywords)

    inputs = (query, keys, *module.parameters())
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.filterwarnings("ignore:Anomaly Detection:UserWarning")
@pytest.mark.parametrize("form", ["lengths", "holes"])
@pytest.mark.parametrize("kind", MODULES)
def test_no_nan_arises_in_backward(kind: str, form: str) -> None:
    module = MODULES[kind]().double()
    keys = torch.randn(NUM_ROWS, NUM_STEPS, K, dtype=torch.float64, requires_grad=True)
    query = torch.randn(NUM_ROWS, module.query_size, dtype=torch.float64)
    with torch.autograd.detect_anomaly():
        context, weights = module(query, keys, **keywords_of(form))
        (context.sum() + weights.square().sum()).backward()


@pytest.mark.parametrize("kind", MODULES)
def test_large_scores(kind: str) -> None:
    module = MODULES[kind]().double()
    keys = torch.randn(NUM_ROWS, NUM_STEPS, K, dtype=torch.float64) * 1e5
    query = torch.randn(NUM_ROWS, module.query_size, dtype=torch.float64) * 1e5
    valid = valid_of("holes")
    _, weights = module(query, keys, mask=valid)
    torch.testing.assert_close(weights.sum(1), valid.any(1).double())
    assert (weights[~valid] == 0).all()


@pytest.mark.parametrize("kind", MODULES)
def test_bfloat16(kind: str) -> None:
    module = MODULES[kind]().bfloat16()
    valid = valid_of("lengths")
    query = torch.randn(NUM_ROWS, module.query_size).bfloat16()
    keys = torch.randn(NUM_ROWS, NUM_STEPS, K).bfloat16()
    got = module(query, with_junk(keys, valid), mask=valid)
    expected = module.float()(query.float(), keys.float(), mask=valid)
    for g, e in zip(got, expected, strict=True):
        assert g.dtype == torch.bfloat16
        torch.testing.assert_close(g.float(), e, rtol=0.05, atol=0.05)
    assert (got[1][~valid] == 0).all()


@pytest.mark.parametrize("kind", MODULES)
def test_with_one_key_the_context_is_its_value(kind: str) -> None:
    module = MODULES[kind]().double()
    values = torch.randn(2, 5, V, dtype=torch.float64)
    query = torch.randn(2, module.query_size, dtype=torch.float64)
    keys = torch.randn(2, 5, K, dtype=torch.float64)
    context, _ = module(query, keys, values, lengths=[1, 1])
    assert_bitwise(context, values[:, 0])


@pytest.mark.parametrize(
    ("arguments", "keywords", "message"),
    [
        (((2, Q), (2, 5)), {}, "keys must be [B, T, K] = [*, *, 4], got [2, 5]"),
        (((2, Q), (2, 5, 3)), {}, "keys must be [B, T, K] = [*, *, 4], got [2, 5, 3]"),
        (
            ((2, Q), (5, 2, 3)),
            {"batch_first": False},
            "keys must be [T, B, K] = [*, *, 4], got [5, 2, 3]",
        ),
        (
            ((2, Q), (2, 5, 4), (2, 4, 4)),
            {},
            "values must be [B, T, V] = [2, 5, *], got [2, 4, 4]",
        ),
        (
            ((3, Q), (2, 5, 4)),
            {},
            "query must be [B, Q] = [2, 3] or [B, S, Q] = [2, *, 3], got [3, 3]",
        ),
        (
            ((2, 6, Q), (5, 2, 4)),
            {"batch_first": False},
            "query must be [B, Q] = [2, 3] or [S, B, Q] = [*, 2, 3], got [2, 6, 3]",
        ),
        (
            ((2, 1, 1, Q), (2, 5, 4)),
            {},
            "query must be [B, Q] = [2, 3] or [B, S, Q] = [2, *, 3], got [2, 1, 1, 3]",
        ),
        (
            ((2, 5), (2, 5, 4)),
            {},
            "query must be [B, Q] = [2, 3] or [B, S, Q] = [2, *, 3], got [2, 5]",
        ),
    ],
)
@pytest.mark.parametrize("kind", ["additive", "general"])
def test_wrong_shapes(kind: str, arguments, keywords, message: str) -> None:
    module = MODULES[kind]()
    with pytest.raises(ValueError, match="must be") as caught:
        module(*(torch.randn(shape, dtype=torch.float64) for shape in arguments), **keywords)
    assert str(caught.value) == f"{type(module).__name__}: {message}"


def test_wrong_sizes_and_scores() -> None:
    with pytest.raises(ValueError, match="score") as caught:
        MultiplicativeAttention(4, score="concat")
    message = 'MultiplicativeAttention: score must be "dot" or "general", got \'concat\''
    assert str(caught.value) == message
    with pytest.raises(ValueError, match="key_size") as caught:
        MultiplicativeAttention(4, 3)
    assert str(caught.value) == 'MultiplicativeAttention: key_size must be Q = 4 for "dot", got 3'


def test_repr_names_the_sizes() -> None:
    assert "Linear(in_features=3, out_features=5, bias=False)" in repr(MODULES["additive"]())
    assert repr(MODULES["dot"]()) == "MultiplicativeAttention(4, 4, score='dot')"


@pytest.mark.parametrize("single", [True, False])
@pytest.mark.parametrize("kind", ["additive", "general"])
def test_the_query_of_an_empty_row_may_be_nan(kind: str, single: bool) -> None:
    attention = (
        AdditiveAttention(2, 2, 3)
        if kind == "additive"
        else MultiplicativeAttention(2, score="general")
    )
    query = torch.randn((2, 2) if single else (2, 5, 2))
    query[1] = torch.nan
    keys = torch.randn(2, 4, 2, requires_grad=True)
    context, weights = attention(query, keys, lengths=[3, 0])
    assert not context[1].any()
    assert not weights[1].any()
    context.sum().backward()
    for gradient in (keys.grad, *(parameter.grad for parameter in attention.parameters())):
        assert gradient.isfinite().all()
