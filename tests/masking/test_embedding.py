"""The embedding looks valid tokens up, one by one, and nothing else."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import assert_bitwise, assert_close64
from masking_batches import FORMS, keywords_of, valid_of
from torch import Tensor, nn

from varlen_rnn.masking import VarLenEmbedding

NUM, E, PAD = 7, 3, 2
ABSENCES = ("zero", "learned")


def embedding_of(absence: str, **options: object) -> VarLenEmbedding:
    embedding = VarLenEmbedding(NUM, E, PAD, absence, dtype=torch.float64, **options)
    with torch.no_grad():
        embedding.weight[PAD] = torch.tensor([1.0, 2.0, 3.0])
    return embedding


def ids_of(valid: Tensor) -> tuple[Tensor, Tensor]:
    """Ids with absent tokens among them, and the same with garbage at padding."""
    ids = torch.randint(NUM, valid.shape)
    ids[:, ::2] = PAD
    garbage = torch.tensor([-1, NUM, PAD, 2**40, -(2**40)]).repeat(valid.numel())
    return ids, torch.where(valid, ids, garbage[: valid.numel()].view_as(ids))


def truth(weight: Tensor, ids: Tensor, valid: Tensor, absence: str) -> Tensor:
    out = weight.new_zeros(*ids.shape, weight.shape[1])
    for place in valid.nonzero().tolist():
        number = int(ids[tuple(place)])
        if number != PAD or absence == "learned":
            out[tuple(place)] = weight[number]
    return out


@pytest.mark.parametrize("batch_first", [True, False], ids=["rows_first", "time_first"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("absence", ABSENCES)
def test_values_and_gradients(absence: str, form: str, batch_first: bool) -> None:
    embedding = embedding_of(absence)
    valid = valid_of(form)
    ids, dirty = ids_of(valid)
    out = embedding(
        dirty if batch_first else dirty.t(), **keywords_of(form, batch_first=batch_first)
    )
    out = out if batch_first else out.transpose(0, 1)
    expected = truth(embedding.weight, ids, valid, absence)
    if not expected.requires_grad:
        expected = expected + 0 * embedding.weight.sum()
    upstream = torch.randn_like(out)
    looked_up = valid & ((ids != PAD) | (absence == "learned"))
    junk = torch.where(looked_up[..., None], upstream, torch.nan)
    (got,) = torch.autograd.grad(out, embedding.weight, junk)
    (want,) = torch.autograd.grad(expected, embedding.weight, upstream)
    assert_bitwise(out, expected)
    assert_close64({"d_weight": got}, {"d_weight": want})
    assert (got[PAD] == 0).all() == (absence == "zero" or not (valid & (ids == PAD)).any())


@pytest.mark.parametrize("shape", [(), (5,), (4, 3), (2, 3, 2), (0,), (0, 4), (3, 0)], ids=str)
@pytest.mark.parametrize("absence", ABSENCES)
def test_ids_of_any_shape_without_lengths(absence: str, shape: tuple[int, ...]) -> None:
    embedding = embedding_of(absence)
    ids = torch.randint(NUM, shape)
    out = embedding(ids)
    expected = embedding.weight[ids]
    if absence == "zero":
        expected = torch.where((ids == PAD)[..., None], 0.0, expected)
    assert_bitwise(out, expected)
    out.sum().backward()
    assert embedding.weight.grad is not None


def test_trailing_dimensions() -> None:
    embedding = embedding_of("zero")
    ids = torch.randint(3, NUM, (2, 4, 3))
    ids[1, 1:] = -1
    out = embedding(ids, lengths=[4, 1])
    assert out.shape == (2, 4, 3, E)
    assert_bitwise(out[1, 0], embedding.weight[ids[1, 0]])
    assert (out[1, 1:] == 0).all()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32])
def test_ids_of_any_integer_dtype(dtype: torch.dtype) -> None:
    embedding = embedding_of("learned")
    ids = torch.randint(NUM, (3, 4))
    assert_bitwise(embedding(ids.to(dtype), lengths=[4, 0, 2]), embedding(ids, lengths=[4, 0, 2]))


def test_zero_is_zero_whatever_the_weight_holds() -> None:
    embedding = embedding_of("zero")
    with torch.no_grad():
        embedding.weight[PAD] = torch.nan
    out = embedding(torch.tensor([[PAD, 1]]), mask=[[True, True]])
    assert (out[0, 0] == 0).all()
    out.sum().backward()
    assert (embedding.weight.grad[PAD] == 0).all()


def test_without_absent_tokens_and_padding_it_is_nn_embedding() -> None:
    torch.manual_seed(1)
    ours = VarLenEmbedding(NUM, E, -5)
    torch.manual_seed(1)
    theirs = nn.Embedding(NUM, E, -5)
    assert ours.padding_idx == theirs.padding_idx == PAD
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert_bitwise(ours.weight, theirs.weight)
    ids = torch.randint(NUM, (4, 5))
    assert_bitwise(ours(ids), theirs(ids))
    assert repr(ours) == "VarLenEmbedding(7, 3, padding_idx=2, absence='zero')"


def test_a_learned_row_is_initialised_as_the_others() -> None:
    torch.manual_seed(1)
    ours = VarLenEmbedding(NUM, E, PAD, absence="learned")
    torch.manual_seed(1)
    assert_bitwise(ours.weight, nn.Embedding(NUM, E).weight)
    torch.manual_seed(1)
    ours.reset_parameters()
    torch.manual_seed(1)
    assert_bitwise(ours.weight, nn.Embedding(NUM, E).weight)
    assert ours.weight.requires_grad


@pytest.mark.parametrize(
    "options",
    [{"max_norm": 0.5}, {"max_norm": 0.5, "norm_type": 1.0}, {"scale_grad_by_freq": True}],
    ids=str,
)
@pytest.mark.parametrize("absence", ABSENCES)
def test_options_of_nn_embedding(absence: str, options: dict[str, object]) -> None:
    ours = embedding_of(absence, **options)
    theirs = nn.Embedding(NUM, E, dtype=torch.float64, **options)
    theirs.load_state_dict(ours.state_dict())
    valid = valid_of("holes")
    ids, dirty = ids_of(valid)
    kept = valid if absence == "learned" else valid & (ids != PAD)
    upstream = torch.randn(int(kept.sum()), E, dtype=torch.float64)
    out, expected = ours(dirty, mask=valid)[kept], theirs(ids[kept])
    assert_bitwise(out, expected)
    out.backward(upstream)
    expected.backward(upstream)
    assert_bitwise(ours.weight, theirs.weight)
    assert_bitwise(ours.weight.grad, theirs.weight.grad)


def test_sparse_gradients_name_only_what_was_looked_up() -> None:
    embedding = embedding_of("zero", sparse=True)
    embedding(torch.tensor([[4, PAD, 5], [1, 1, 1]]), lengths=[3, 0]).sum().backward()
    gradient = embedding.weight.grad
    assert gradient.is_sparse
    assert sorted(gradient.coalesce().indices()[0].tolist()) == [4, 5]


def test_from_pretrained() -> None:
    table = torch.randn(NUM, E)
    frozen = VarLenEmbedding.from_pretrained(table, padding_idx=PAD)
    assert isinstance(frozen, VarLenEmbedding)
    assert not frozen.weight.requires_grad
    out = frozen(torch.tensor([[PAD, 1, 3]]), lengths=[2])
    assert_bitwise(out, torch.stack([torch.zeros(E), table[1], torch.zeros(E)])[None])
    learned = VarLenEmbedding.from_pretrained(table, False, PAD, absence="learned")
    assert learned.weight.requires_grad
    assert_bitwise(learned(torch.tensor([PAD])), table[PAD][None])
    with pytest.raises(TypeError, match="padding_idx must be an integer, got NoneType"):
        VarLenEmbedding.from_pretrained(table)
    with pytest.raises(ValueError, match="absence must be"):
        VarLenEmbedding.from_pretrained(table, padding_idx=PAD, absence="none")


def test_copies_and_states() -> None:
    embedding = embedding_of("learned")
    ids = torch.tensor([[PAD, 1]])
    assert_bitwise(copy.deepcopy(embedding)(ids), embedding(ids))
    theirs = nn.Embedding(NUM, E, PAD, dtype=torch.float64)
    theirs.load_state_dict(embedding.state_dict())
    assert_bitwise(theirs.weight, embedding.weight)


@pytest.mark.parametrize("absence", ABSENCES)
def test_bfloat16(absence: str) -> None:
    embedding = embedding_of(absence).bfloat16()
    out = embedding(torch.tensor([[PAD, 1, 3]]), lengths=[2])
    assert out.dtype == torch.bfloat16
    assert_bitwise(out[0, 1], embedding.weight[1])


@pytest.mark.parametrize("wrong", [-1, NUM, 2**40])
@pytest.mark.parametrize("error", [ValueError, IndexError])
def test_an_id_out_of_range(wrong: int, error: type[Exception]) -> None:
    embedding = VarLenEmbedding(NUM, E, PAD)
    ids = torch.zeros(2, 3, dtype=torch.int64)
    ids[0, 2] = -5  # padding
    ids[1, 0] = wrong
    expected = f"VarLenEmbedding: ids must be in [0, num_embeddings) = [0, 7), got {wrong} at index"
    with pytest.raises(error) as caught:
        embedding(ids, lengths=[2, 3])
    assert str(caught.value) == f"{expected} [1, 0]"
    with pytest.raises(error) as caught:
        embedding(ids[1])
    assert str(caught.value) == f"{expected} 0"


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        (torch.zeros(2, 3), TypeError, "ids must be integers, got torch.float32"),
        (torch.zeros(2, 3).bool(), TypeError, "ids must be integers, got torch.bool"),
        ([[1, 2, 3]], TypeError, "ids must be a Tensor, got list"),
        (torch.zeros(3).long(), ValueError, "ids must be [B, T, *], got [3]"),
    ],
)
def test_wrong_ids(ids: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        VarLenEmbedding(NUM, E, PAD)(ids, lengths=[1])
    assert str(caught.value) == f"VarLenEmbedding: {message}"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((NUM, E, None), TypeError, "padding_idx must be an integer, got NoneType"),
        (
            (NUM, E, 7),
            ValueError,
            "padding_idx must be in [-num_embeddings, num_embeddings) = [-7, 7), got 7",
        ),
        (
            (NUM, E, -8),
            ValueError,
            "padding_idx must be in [-num_embeddings, num_embeddings) = [-7, 7), got -8",
        ),
        ((NUM, E, 0, "mean"), ValueError, 'absence must be "zero" or "learned", got \'mean\''),
    ],
)
def test_wrong_arguments(arguments, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        VarLenEmbedding(*arguments)
    assert str(caught.value) == f"VarLenEmbedding: {message}"


NARROW = [torch.int8, torch.uint8, torch.uint16]


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_a_table_may_have_more_rows_than_the_ids_dtype_has_numbers(dtype: torch.dtype) -> None:
    embedding = VarLenEmbedding(1000, 4, padding_idx=999)  # 999 is 231 in uint8
    ids = torch.tensor([[100, 1, 127]])
    if dtype != torch.int8:
        ids[0, 0] = 231
    assert torch.equal(embedding(ids.to(dtype)), embedding(ids))
    assert embedding(ids).any(-1).all()
