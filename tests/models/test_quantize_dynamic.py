"""quantize_dynamic(): which modules it replaces, and what they keep."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import CELLS, OURS, TORCH, assert_bitwise
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import pack_padded_sequence

from varlen_rnn import (
    QuantizedVarLenGRU,
    QuantizedVarLenLSTM,
    VarLenGRU,
    VarLenLSTM,
    convert,
    quantize_dynamic,
)

QUANTIZED = {"lstm": QuantizedVarLenLSTM, "gru": QuantizedVarLenGRU}


class OwnLSTM(nn.LSTM):
    """A subclass that is more than ``nn.LSTM``."""

    def half_of(self, x: Tensor) -> Tensor:
        return self(x)[0] / 2


pytestmark = pytest.mark.filterwarnings("ignore:quantize_dynamic. left as they are. 'own'")


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


def test_recurrent_modules_are_replaced_in_a_copy() -> None:
    model = Tagger().eval()
    before = pickle.dumps(model.state_dict())
    quantized = quantize_dynamic(model)
    assert type(model.encoder) is VarLenLSTM
    assert type(model.theirs) is nn.GRU
    assert pickle.dumps(model.state_dict()) == before
    assert type(quantized.encoder) is QuantizedVarLenLSTM
    assert type(quantized.shared) is QuantizedVarLenGRU
    assert quantized.shared is quantized.blocks[1]
    assert type(quantized.theirs) is QuantizedVarLenGRU
    assert type(quantized.own) is OwnLSTM
    assert type(quantized.blocks[0]) is nn.Linear
    tokens = torch.randint(10, (3, 7))
    assert torch.allclose(quantized(tokens), model(tokens), atol=0.02)
    assert repr(quantized.encoder) == (
        "QuantizedVarLenLSTM(6, 8, num_layers=2, batch_first=True, dropout=0.3, bidirectional=True)"
    )
    names = {name for name, _ in quantized.named_parameters()}
    assert not any(name.startswith(("encoder", "shared", "theirs")) for name in names)
    again = quantize_dynamic(quantized)
    assert_bitwise(again(tokens), quantized(tokens))


def test_in_place() -> None:
    model = Tagger()
    encoder = model.encoder
    assert quantize_dynamic(model, inplace=True) is model
    assert model.encoder is encoder
    assert type(encoder) is QuantizedVarLenLSTM


@pytest.mark.parametrize("cell", CELLS)
def test_the_module_itself_may_be_the_model(cell: str) -> None:
    for rnn in (OURS[cell](3, 4), TORCH[cell](3, 4)):
        quantized = quantize_dynamic(rnn)
        assert type(quantized) is QUANTIZED[cell]
        assert type(rnn) in (OURS[cell], TORCH[cell])


def test_hooks_and_the_training_flag_stay() -> None:
    rnn, seen = VarLenGRU(3, 4).eval(), []
    rnn.register_forward_pre_hook(lambda *_: seen.append("before"))
    rnn.register_forward_hook(lambda *_: seen.append("after"))
    quantized = quantize_dynamic(rnn)
    quantized(torch.randn(2, 3))
    assert seen == ["before", "after"]
    assert not quantized.training


@pytest.mark.parametrize("module", [VarLenLSTM, nn.LSTM])
def test_parametrised_weights_are_quantised_as_they_are(module: type[nn.RNNBase]) -> None:
    rnn = parametrizations.weight_norm(module(3, 4), "weight_hh_l0")
    with torch.no_grad():
        rnn.parametrizations.weight_hh_l0.original0 *= 2
    plain = VarLenLSTM(3, 4)
    plain.load_state_dict({name: getattr(rnn, name) for name in plain.state_dict()})
    quantized = quantize_dynamic(rnn)
    assert type(quantized) is QuantizedVarLenLSTM
    x = torch.randn(5, 2, 3)
    assert_bitwise(quantized(x)[0], quantize_dynamic(plain)(x)[0])
    rnn(x)  # is as it was


def test_copies_of_a_parametrised_layer_share_their_class_and_nothing_else() -> None:
    rnn = parametrizations.weight_norm(VarLenLSTM(3, 4), "weight_hh_l0")
    sibling, x = copy.deepcopy(rnn), torch.randn(5, 2, 3)
    before = sibling(x)[0].detach()
    both = quantize_dynamic(nn.ModuleList([rnn, copy.deepcopy(rnn)]), inplace=True)
    assert_bitwise(both[0](x)[0], both[1](x)[0])
    assert_bitwise(sibling(x)[0].detach(), before)


def test_a_model_without_values_is_quantised_for_values_to_come() -> None:
    empty = quantize_dynamic(VarLenLSTM(3, 4, device="meta"))
    full = quantize_dynamic(VarLenLSTM(3, 4))
    empty.load_state_dict(full.state_dict(), assign=True)
    x = torch.randn(5, 2, 3)
    assert_bitwise(empty(x)[0], full(x)[0])


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
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
    ],
)
def test_what_cannot_be_quantised_raises(
    model: Callable[[], nn.Module], error: type[Exception], message: str
) -> None:
    built = model()
    before = repr(built), pickle.dumps(built)
    with pytest.raises(error, match=f"quantize_dynamic: {message}"):
        quantize_dynamic(built, inplace=True)
    assert (repr(built), pickle.dumps(built)) == before


def infinite(rnn: nn.Module) -> nn.Module:
    with torch.no_grad():
        rnn.weight_hh_l0[0, 0] = torch.inf
    return rnn


def forms_of_copying() -> dict[str, Callable[[nn.Module], Any]]:
    def through_torch_save(module: nn.Module) -> Any:
        file = io.BytesIO()
        torch.save(module, file)
        return torch.load(io.BytesIO(file.getvalue()), weights_only=False)

    def through_a_state_dict(module: Any) -> Any:
        fresh = type(module)(7, 19, 2, bidirectional=True)
        file = io.BytesIO()
        torch.save(module.state_dict(), file)
        fresh.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
        return fresh

    return {
        "deepcopy": copy.deepcopy,
        "pickle": lambda module: pickle.loads(pickle.dumps(module)),
        "torch.save": through_torch_save,
        "state_dict": through_a_state_dict,
        "double and back": lambda module: copy.deepcopy(module).double().half().float(),
    }


@pytest.mark.parametrize("how", forms_of_copying())
@pytest.mark.parametrize("cell", CELLS)
def test_copies_compute_the_same_bits(cell: str, how: str) -> None:
    quantized = quantize_dynamic(OURS[cell](7, 19, 2, bidirectional=True))
    other = forms_of_copying()[how](quantized)
    x = torch.randn(6, 3, 7)
    assert_bitwise(other(x)[0], quantized(x)[0])
    assert type(other) is type(quantized)
    own = {name: buffer.data_ptr() for name, buffer in other.named_buffers()}
    assert not any(buffer.data_ptr() == own[name] for name, buffer in quantized.named_buffers())


@pytest.mark.parametrize("options", [{}, {"strict": False}, {"assign": True}], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_a_state_dict_of_the_other_kind(cell: str, options: dict[str, bool]) -> None:
    """One line says what to do, and nothing is loaded."""
    model = nn.ModuleDict({"rnn": OURS[cell](3, 4, 2, bidirectional=True), "head": nn.Linear(8, 2)})
    quantized = quantize_dynamic(model)
    cases = (
        (
            quantized,
            f"Quantized{type(model['rnn']).__name__}: rnn.weight_ih_l0 must be torch.int8, got "
            "torch.float32; load it into the model before quantize_dynamic",
        ),
        (
            model,
            f"{type(model['rnn']).__name__}: rnn.weight_ih_l0 must be floating point, got "
            "torch.int8; load it into quantize_dynamic(model)",
        ),
    )
    for module, message in cases:
        other = model if module is quantized else quantized
        before = copy.deepcopy(module["rnn"].state_dict())
        with pytest.raises(RuntimeError, match="Error") as error:
            module.load_state_dict(other.state_dict(), **options)
        assert str(error.value).splitlines()[1:] == [f"\t{message}"]
        for name, tensor in module["rnn"].state_dict().items():
            assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("make", [VarLenLSTM, QuantizedVarLenLSTM])
def test_a_state_dict_of_the_same_kind_is_loaded_as_usual(make: type[nn.Module]) -> None:
    module, other = make(3, 4), make(3, 4)
    assert not any(module.load_state_dict(other.state_dict()))
    assert_bitwise(module(torch.ones(2, 3))[0].detach(), other(torch.ones(2, 3))[0].detach())
    without = other.state_dict()
    missing = [without.popitem()[0]]
    assert module.load_state_dict(without, strict=False).missing_keys == missing
    with pytest.raises(RuntimeError, match=rf'Missing key.s. in state_dict: "{missing[0]}"'):
        module.load_state_dict(without)
    with pytest.raises(RuntimeError, match="size mismatch for weight_ih_l0"):
        module.load_state_dict(make(5, 4).state_dict())


def test_weights_take_a_quarter_of_the_memory() -> None:
    rnn = VarLenLSTM(256, 256)
    sizes = [sum(t.nbytes for t in m.state_dict().values()) for m in (quantize_dynamic(rnn), rnn)]
    assert sizes[0] < 0.27 * sizes[1]


def test_packed_input_in_a_model() -> None:
    rnn = convert(nn.LSTM(3, 8, bidirectional=True))
    x = pack_padded_sequence(torch.randn(5, 3, 3), [5, 2, 4], enforce_sorted=False)
    (out, _), (truth, _) = quantize_dynamic(rnn)(x), rnn(x)
    assert torch.allclose(out.data, truth.data, atol=0.02)
    assert torch.equal(out.batch_sizes, truth.batch_sizes)
