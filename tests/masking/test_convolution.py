"""A masked convolution of a batch is ``nn.Conv1d`` of each row alone."""

from __future__ import annotations

import pytest
import torch
from helpers import assert_bitwise, assert_close64
from masking_batches import LENGTHS, NUM_ROWS, NUM_STEPS, keywords_of, valid_of, with_junk
from torch import Tensor, nn

from varlen_rnn.masking import MaskedConv1d

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")

C, O = 4, 6  # noqa: E741

SHAPES = {
    "same": {"kernel_size": 3, "padding": "same"},
    "same_by_number": {"kernel_size": 5, "padding": 2},
    "same_dilated": {"kernel_size": 3, "padding": "same", "dilation": 2},
    "same_even": {"kernel_size": 4, "padding": "same"},
    "pointwise": {"kernel_size": 1},
    "valid": {"kernel_size": 3, "padding": "valid"},
    "narrow": {"kernel_size": 3},
    "wide": {"kernel_size": 2, "padding": 3},
    "stride": {"kernel_size": 3, "stride": 2, "padding": 1},
    "stride_3": {"kernel_size": 2, "stride": 3},
    "dilated": {"kernel_size": 3, "dilation": 2, "stride": 2, "padding": 2},
    "groups": {"kernel_size": 3, "padding": 1, "groups": 2, "bias": False},
    "too_long": {"kernel_size": 9, "padding": 1},
}
KEEP_T = ("same", "same_even", "same_by_number", "same_dilated", "pointwise", "groups")


def pair(shape: str) -> tuple[MaskedConv1d, nn.Conv1d]:
    ours = MaskedConv1d(C, O, **SHAPES[shape], dtype=torch.float64)
    theirs = nn.Conv1d(C, O, **SHAPES[shape], dtype=torch.float64)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def alone(conv: nn.Conv1d, row: Tensor) -> Tensor:
    """``conv`` of one row ``[C, n]``; torch refuses rows that are too short, which give nothing."""
    if not row.shape[1]:
        return row.new_zeros(O, 0)
    try:
        return conv(row[None])[0]
    except RuntimeError as error:
        assert "Kernel size can't be greater than actual input size" in str(error)  # noqa: PT017
        return row.new_zeros(O, 0)


def compare(ours: nn.Module, theirs: nn.Module, x: Tensor, valid: Tensor, **keywords) -> None:
    """``valid [B, T]``: every row must be ``theirs`` of the row with zeros where it is False."""
    clean = x.clone().requires_grad_()
    dirty = with_junk(x.transpose(1, 2), valid).transpose(1, 2).requires_grad_()
    out = ours(dirty, **keywords)
    by_lengths = "lengths" in keywords
    expected = torch.zeros_like(out)
    valid_out = torch.zeros(len(x), out.shape[2], dtype=torch.bool)
    for b in range(len(x)):
        if by_lengths:
            row = alone(theirs, clean[b, :, : int(valid[b].sum())])
            valid_out[b, : row.shape[1]] = True
            expected[b, :, : row.shape[1]] = row
        else:
            valid_out[b] = valid[b]
            expected[b] = theirs((clean[b] * valid[b])[None])[0] * valid[b]
    upstream = torch.randn_like(out)
    junk = with_junk(upstream.transpose(1, 2), valid_out).transpose(1, 2)
    if not expected.requires_grad:
        expected = expected + 0 * clean.sum()

    def results(out: Tensor, x: Tensor, conv: nn.Module, upstream: Tensor) -> dict[str, Tensor]:
        leaves = [x, *conv.parameters()]
        gradients = torch.autograd.grad(
            out, leaves, upstream, allow_unused=True, materialize_grads=True
        )
        return {"out": out.detach()} | {f"d_{i}": d for i, d in enumerate(gradients)}

    got = results(out, dirty, ours, junk)
    assert_close64(got, results(expected, clean, theirs, upstream))
    assert (got["out"].transpose(1, 2)[~valid_out] == 0).all()
    assert (got["d_0"].transpose(1, 2)[~valid] == 0).all()


@pytest.mark.parametrize("form", ["lengths", "list", "empty"])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_row_is_as_if_alone(shape: str, form: str) -> None:
    x = torch.randn(NUM_ROWS, C, NUM_STEPS, dtype=torch.float64)
    compare(*pair(shape), x, valid_of(form), **keywords_of(form))


@pytest.mark.parametrize("form", ["right", "left", "holes", "no_tokens"])
@pytest.mark.parametrize("shape", KEEP_T)
def test_padding_by_a_mask_is_zeros_to_the_rest(shape: str, form: str) -> None:
    x = torch.randn(NUM_ROWS, C, NUM_STEPS, dtype=torch.float64)
    compare(*pair(shape), x, valid_of(form), **keywords_of(form))


@pytest.mark.parametrize("shape", KEEP_T)
def test_mask_and_lengths_agree(shape: str) -> None:
    ours, _ = pair(shape)
    x = torch.randn(NUM_ROWS, C, NUM_STEPS, dtype=torch.float64)
    assert_bitwise(ours(x, **keywords_of("lengths")), ours(x, **keywords_of("right")))


@pytest.mark.parametrize("shape", [name for name in SHAPES if name != "too_long"])
def test_without_lengths_it_is_conv1d(shape: str) -> None:
    ours, theirs = pair(shape)
    for size in [(NUM_ROWS, C, NUM_STEPS), (C, NUM_STEPS)]:
        x = torch.randn(size, dtype=torch.float64)
        assert_bitwise(ours(x), theirs(x))


@pytest.mark.parametrize("shape", SHAPES)
def test_output_lengths(shape: str) -> None:
    ours, theirs = pair(shape)
    lengths = list(range(13))
    expected = [alone(theirs, torch.zeros(C, n, dtype=torch.float64)).shape[1] for n in lengths]
    got = ours.output_lengths(torch.tensor(lengths, dtype=torch.uint8))
    assert got.dtype == torch.int64
    assert got.tolist() == expected
    assert ours.output_lengths(lengths).tolist() == expected
    assert ours.output_lengths([]).tolist() == []


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("num_rows", "num_steps"), [(0, 4), (3, 0), (0, 0)])
def test_nothing_in_the_batch(shape: str, num_rows: int, num_steps: int) -> None:
    ours, theirs = pair(shape)
    x = torch.randn(num_rows, C, num_steps, dtype=torch.float64, requires_grad=True)
    out = ours(x, lengths=[0] * num_rows)
    steps = alone(theirs, torch.zeros(C, num_steps, dtype=torch.float64)).shape[1]
    assert out.shape == (num_rows, O, steps)
    gradients = torch.autograd.grad(out.sum(), [x, *ours.parameters()])
    assert all((gradient == 0).all() for gradient in gradients)


def test_batch_first_after_a_layer_in_bfloat16() -> None:
    conv = MaskedConv1d(C, O, 3, padding="same", dtype=torch.bfloat16)
    x = torch.randn(NUM_ROWS, C, NUM_STEPS).bfloat16()
    valid = valid_of("lengths")
    out = conv(with_junk(x.transpose(1, 2), valid).transpose(1, 2), lengths=LENGTHS)
    assert out.dtype == torch.bfloat16
    expected = conv.float()(x.float(), lengths=LENGTHS)
    torch.testing.assert_close(out.float(), expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    ("options", "got"),
    [
        ({"stride": 2, "padding": 1}, "stride 2, padding (1,)"),
        ({"padding": 0}, "stride 1, padding (0,)"),
        ({"padding": "valid"}, "stride 1, padding 'valid'"),
    ],
)
def test_a_mask_needs_a_convolution_that_keeps_t(options, got: str) -> None:
    conv = MaskedConv1d(C, O, 3, **options)
    with pytest.raises(ValueError, match="keep T") as caught:
        conv(torch.randn(2, C, 5), mask=torch.ones(2, 5, dtype=torch.bool))
    assert str(caught.value) == (
        "MaskedConv1d: with a mask the convolution must keep T (stride 1 and padding 'same'), "
        f"got {got}; give lengths instead"
    )


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_other_padding_modes_are_refused(mode: str) -> None:
    with pytest.raises(ValueError, match="padding_mode") as caught:
        MaskedConv1d(C, O, 3, padding_mode=mode)
    assert str(caught.value) == f"MaskedConv1d: padding_mode must be 'zeros', got '{mode}'"


@pytest.mark.parametrize("size", [(2, C + 1, 5), (C, 5)])
def test_wrong_input(size: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="MaskedConv1d: x must be") as caught:
        MaskedConv1d(C, O, 3)(torch.randn(size), lengths=[5, 5])
    message = f"MaskedConv1d: x must be [B, C, T] = [*, 4, *], got {list(size)}"
    assert str(caught.value) == message


def test_wrong_lengths_for_output_lengths() -> None:
    conv = MaskedConv1d(C, O, 3)
    with pytest.raises(ValueError, match=r"output_lengths: lengths must be .*got -1 at index 1"):
        conv.output_lengths([3, -1])
    with pytest.raises(TypeError, match="output_lengths: lengths must be integers, got float64"):
        conv.output_lengths([3.0])


def test_same_parameters_as_conv1d() -> None:
    torch.manual_seed(1)
    ours = MaskedConv1d(C, O, 3, 1, 1, 1, 2)
    torch.manual_seed(1)
    theirs = nn.Conv1d(C, O, 3, 1, 1, 1, 2)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, value in theirs.state_dict().items():
        assert_bitwise(ours.state_dict()[name], value, name)
    assert repr(ours) == repr(theirs).replace("Conv1d", "MaskedConv1d")
