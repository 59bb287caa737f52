"""freeze() and quantize_dynamic(): which modules they replace, and what these keep."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import CELLS, FROZEN, OURS, TORCH, assert_bitwise
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import pack_padded_sequence

from varlen_rnn import (
    FrozenVarLenGRU,
    FrozenVarLenLSTM,
    VarLenGRU,
    VarLenLSTM,
    convert,
    freeze,
    quantize_dynamic,
)

# By the type of the weights: how far results may be from those of the model.
TOLERANCE = {None: 0.0, torch.bfloat16: 0.02, torch.int8: 0.02}
every_weights = pytest.mark.parametrize("weights", TOLERANCE, ids=str)


class OwnLSTM(nn.LSTM):
    """A subclass that is more than ``nn.LSTM``."""

    def half_of(self, x: Tensor) -> Tensor:
        return self(x)[0] / 2


pytestmark = pytest.mark.filterwarnings("ignore:(freeze|quantize_dynamic). left as they are. 'own'")


class Tagger(nn.Module):
    """A model with recurrent modules at several depths, one of them in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 6)
        self.encoder = VarLenLSTM(6, 8, 2, batch_first=True, bidirectional=True, dropout=0.3)
        self.blocks = nn.ModuleList([nn.Linear(16, 6), VarLenGRU(6, 5, batch_first=True)])
        self.shared = self.blocks[1]
        self.theirs = nn.GRU(5, 4, batch_first=True)
        self.own = OwnLSTM(4, 4, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens ``[B, T]`` to ``[B, T, 4]``."""
        x, _ = self.encoder(self.embedding(tokens))
        x, _ = self.shared(self.blocks[0](x))
        return self.own(self.theirs(x)[0])[0]


@every_weights
def test_recurrent_modules_are_replaced_in_a_copy(weights: torch.dtype | None) -> None:
    model = Tagger().eval()
    before = pickle.dumps(model.state_dict())
    frozen = freeze(model, weights)
    assert type(model.encoder) is VarLenLSTM
    assert type(model.theirs) is nn.GRU
    assert pickle.dumps(model.state_dict()) == before
    assert type(frozen.encoder) is FrozenVarLenLSTM
    assert type(frozen.shared) is FrozenVarLenGRU
    assert frozen.shared is frozen.blocks[1]
    assert type(frozen.theirs) is FrozenVarLenGRU
    assert type(frozen.own) is OwnLSTM
    assert type(frozen.blocks[0]) is nn.Linear
    tokens = torch.randint(10, (3, 7))
    # Of torch's GRU ours has other sums.
    atol = max(TOLERANCE[weights], 1e-6)
    torch.testing.assert_close(frozen(tokens), model(tokens), rtol=0, atol=atol)
    kept = "" if weights is None else f", weights={weights}"
    assert repr(frozen.encoder) == (
        "FrozenVarLenLSTM(6, 8, num_layers=2, batch_first=True, dropout=0.3, bidirectional=True"
        f"{kept})"
    )
    names = {name for name, _ in frozen.named_parameters()}
    assert not any(name.startswith(("encoder", "shared", "theirs")) for name in names)
    assert any(name.startswith("own") for name in names)
    again = freeze(frozen, weights)
    assert_bitwise(again(tokens), frozen(tokens))


def test_quantize_dynamic_is_freeze_with_int8_weights() -> None:
    model, tokens = Tagger().eval(), torch.randint(10, (3, 7))
    quantized, frozen = quantize_dynamic(model), freeze(model, torch.int8)
    assert repr(quantized) == repr(frozen)
    assert type(quantized.encoder) is FrozenVarLenLSTM
    assert_bitwise(quantized(tokens), frozen(tokens))
    again = quantize_dynamic(quantized)
    assert_bitwise(again(tokens), quantized(tokens))


@pytest.mark.parametrize("how", [freeze, quantize_dynamic])
def test_in_place(how: Callable[..., Any]) -> None:
    model = Tagger()
    encoder = model.encoder
    assert how(model, inplace=True) is model
    assert model.encoder is encoder
    assert type(encoder) is FrozenVarLenLSTM


@every_weights
@pytest.mark.parametrize("cell", CELLS)
def test_the_module_itself_may_be_the_model(cell: str, weights: torch.dtype | None) -> None:
    for rnn in (OURS[cell](3, 4), TORCH[cell](3, 4)):
        frozen = freeze(rnn, weights=weights)
        assert type(frozen) is FROZEN[cell]
        assert type(rnn) in (OURS[cell], TORCH[cell])


@every_weights
def test_hooks_and_the_training_flag_stay(weights: torch.dtype | None) -> None:
    rnn, seen = VarLenGRU(3, 4).eval(), []
    rnn.register_forward_pre_hook(lambda *_: seen.append("before"))
    rnn.register_forward_hook(lambda *_: seen.append("after"))
    frozen = freeze(rnn, weights)
    frozen(torch.randn(2, 3))
    assert seen == ["before", "after"]
    assert not frozen.training
    assert freeze(VarLenGRU(3, 4), weights).training


@every_weights
@pytest.mark.parametrize("module", [VarLenLSTM, nn.LSTM])
def test_parametrised_weights_are_frozen_as_they_are(
    module: type[nn.RNNBase], weights: torch.dtype | None
) -> None:
    rnn = parametrizations.weight_norm(module(3, 4), "weight_hh_l0")
    with torch.no_grad():
        rnn.parametrizations.weight_hh_l0.original0 *= 2
    plain = VarLenLSTM(3, 4)
    plain.load_state_dict({name: getattr(rnn, name) for name in plain.state_dict()})
    frozen = freeze(rnn, weights)
    assert type(frozen) is FrozenVarLenLSTM
    x = torch.randn(5, 2, 3)
    assert_bitwise(frozen(x)[0], freeze(plain, weights)(x)[0])
    rnn(x)  # is as it was


@every_weights
def test_copies_of_a_parametrised_layer_share_their_class_and_nothing_else(
    weights: torch.dtype | None,
) -> None:
    rnn = parametrizations.weight_norm(VarLenLSTM(3, 4), "weight_hh_l0")
    sibling, x = copy.deepcopy(rnn), torch.randn(5, 2, 3)
    before = sibling(x)[0].detach()
    both = freeze(nn.ModuleList([rnn, copy.deepcopy(rnn)]), weights, inplace=True)
    assert_bitwise(both[0](x)[0], both[1](x)[0])
    assert_bitwise(sibling(x)[0].detach(), before)


@every_weights
@pytest.mark.parametrize("cell", CELLS)
def test_a_model_without_values_is_frozen_for_values_to_come(
    cell: str, weights: torch.dtype | None
) -> None:
    full = freeze(OURS[cell](3, 4, 2), weights)
    x = torch.randn(5, 2, 3)
    for on_cpu in (False, True):
        empty = freeze(OURS[cell](3, 4, 2, device="meta"), weights)
        assert {buffer.device.type for buffer in empty.buffers()} == {"meta"}
        if on_cpu:
            empty.to_empty(device="cpu")
        empty.load_state_dict(full.state_dict(), assign=not on_cpu)
        assert_bitwise(empty(x)[0], full(x)[0])


@every_weights
def test_what_is_frozen_already_stays_as_it_is(weights: torch.dtype | None) -> None:
    """Quietly, as with convert."""
    frozen = freeze(nn.Sequential(VarLenGRU(3, 4)), weights)
    before = list(frozen.buffers())
    assert freeze(frozen, weights, inplace=True) is frozen
    assert all(a is b for a, b in zip(frozen.buffers(), before, strict=True))
    both = freeze(nn.ModuleList([frozen, nn.LSTM(3, 4)]), weights)
    assert type(both[0][0]) is FrozenVarLenGRU
    assert type(both[1]) is FrozenVarLenLSTM


@pytest.mark.parametrize("after", TOLERANCE, ids=str)
@every_weights
def test_what_is_frozen_in_another_way_is_an_error(
    weights: torch.dtype | None, after: torch.dtype | None
) -> None:
    if after == weights:
        return
    frozen = freeze(nn.ModuleDict({"rnn": VarLenGRU(3, 4)}), weights)
    model = nn.ModuleDict({"frozen": frozen, "other": nn.GRU(3, 4)})
    said = f"weights must be as the layer is frozen, {weights}, got {after}; freeze the model"
    for module, name in ((model, "frozen.rnn: "), (frozen["rnn"], "")):
        before = repr(module), pickle.dumps(module)
        with pytest.raises(ValueError, match=f"^freeze: {name}{said}"):
            freeze(module, after, inplace=True)
        assert (repr(module), pickle.dumps(module)) == before


@pytest.mark.parametrize("how", [freeze, quantize_dynamic])
def test_a_model_without_such_layers_is_named(how: Callable[..., Any]) -> None:
    done = "frozen" if how is freeze else "quantised"
    said = f"^{how.__name__}: nothing was {done}; the model has no .*LSTM or .*GRU"
    with pytest.warns(UserWarning, match=said) as caught:
        how(nn.Linear(3, 4))
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match=r"left as they are: '0' .its class OwnLSTM has") as caught:
        how(nn.Sequential(OwnLSTM(3, 4)))
    assert caught[0].filename == __file__


def frozen_with(weights: torch.dtype | None) -> Callable[..., Any]:
    return lambda model, **options: freeze(model, weights, **options)


INT8_ALONE: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: "LSTM", TypeError, "model must be an nn.Module, got str"),
    (
        lambda: nn.Sequential(nn.GRU(3, 4), VarLenLSTM(3, 4, proj_size=2)),
        NotImplementedError,
        r"1\.proj_size must be 0, got 2",
    ),
    (
        lambda: nn.Sequential(VarLenGRU(3, 4).double()),
        TypeError,
        r"0\.weight_ih_l0 must be float32, got torch\.float64",
    ),
    (lambda: infinite(VarLenGRU(3, 4)), ValueError, "weight_hh_l0 must be finite, got NaN"),
    (
        lambda: prune.l1_unstructured(VarLenGRU(3, 4), "weight_hh_l0", 3),
        ValueError,
        "weight_hh_l0 must be a parameter, got an attribute that a hook computes",
    ),
    (
        lambda: VarLenGRU(133145, 1),
        ValueError,
        "input_size and hidden_size must be in .*, got .133145, 1",
    ),
]
PRUNED: tuple[Callable[[], Any], type[Exception], str] = (
    lambda: nn.Sequential(prune.l1_unstructured(VarLenGRU(3, 4), "weight_hh_l0", 3)),
    ValueError,
    r"0\.weight_hh_l0 must be a parameter, got an attribute that a hook computes",
)
CASES: list[tuple[Callable[..., Any], str, Callable[[], Any], type[Exception], str]] = [
    *((quantize_dynamic, "quantize_dynamic", *case) for case in INT8_ALONE),
    *((frozen_with(torch.int8), "freeze", *case) for case in INT8_ALONE),
    *((frozen_with(weights), "freeze", *INT8_ALONE[0]) for weights in (None, torch.bfloat16)),
    *((frozen_with(weights), "freeze", *PRUNED) for weights in (None, torch.bfloat16)),
    *(
        (
            frozen_with(torch.bfloat16),
            "freeze",
            lambda dtype=dtype: nn.Sequential(VarLenGRU(3, 4, dtype=dtype)),
            TypeError,
            rf"0\.weight_ih_l0 must be float32 or bfloat16, got {dtype}",
        )
        for dtype in (torch.float64, torch.float16)
    ),
    *(
        (
            frozen_with(weights),
            "freeze",
            lambda layer=layer: layer(3, 4),
            ValueError,
            f"weights must be None, torch.bfloat16 or torch.int8, got {weights!r}",
        )
        for weights in (torch.float32, torch.float16, torch.uint8, "int8")
        for layer in (VarLenGRU, FrozenVarLenGRU, nn.Linear)
    ),
]


@pytest.mark.parametrize(("how", "name", "model", "error", "message"), CASES)
def test_what_cannot_be_frozen_raises(
    how: Callable[..., Any],
    name: str,
    model: Callable[[], nn.Module],
    error: type[Exception],
    message: str,
) -> None:
    built = model()
    before = repr(built), pickle.dumps(built)
    with pytest.raises(error, match=f"^{name}: {message}"):
        how(built, inplace=True)
    assert (repr(built), pickle.dumps(built)) == before


@pytest.mark.parametrize("weights", [None, torch.bfloat16], ids=str)
def test_what_int8_cannot_have_floats_can(weights: torch.dtype | None) -> None:
    for rnn in (VarLenLSTM(3, 4, proj_size=2), VarLenGRU(133145, 1), infinite(VarLenGRU(3, 4))):
        frozen = freeze(rnn, weights)
        x = torch.zeros(2, rnn.input_size)
        torch.testing.assert_close(
            frozen(x)[0], rnn(x)[0].detach(), rtol=0, atol=0.02, equal_nan=True
        )


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"weights": torch.float32}, ValueError, "weights must be None, torch.bfloat16 or torch"),
        ({"weights": torch.int8, "proj_size": 2}, NotImplementedError, "proj_size must be 0, got"),
        (
            {"weights": torch.int8, "dtype": torch.float64},
            TypeError,
            "weight_ih_l0 must be float32, got torch.float64",
        ),
        (
            {"weights": torch.bfloat16, "dtype": torch.float16},
            TypeError,
            "weight_ih_l0 must be float32 or bfloat16, got torch.float16",
        ),
    ],
)
def test_a_frozen_layer_that_cannot_be_made_raises(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^FrozenVarLenLSTM: {message}"):
        FrozenVarLenLSTM(3, 4, **options)


def infinite(rnn: nn.Module) -> nn.Module:
    with torch.no_grad():
        rnn.weight_hh_l0[0, 0] = torch.inf
    return rnn


@every_weights
def test_packed_input_in_a_model(weights: torch.dtype | None) -> None:
    rnn = convert(nn.LSTM(3, 8, bidirectional=True))
    x = pack_padded_sequence(torch.randn(5, 3, 3), [5, 2, 4], enforce_sorted=False)
    (out, _), (truth, _) = freeze(rnn, weights)(x), rnn(x)
    torch.testing.assert_close(out.data, truth.data.detach(), rtol=0, atol=TOLERANCE[weights])
    assert torch.equal(out.batch_sizes, truth.batch_sizes)
