"""revert(): torch's own modules again, with the very parameters, for what knows no others."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from helpers import CELLS, OURS, TORCH, assert_bitwise
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from varlen_rnn import VarLenGRU, VarLenLSTM, convert, freeze, quantize_dynamic, revert

without_jit_warnings = pytest.mark.filterwarnings(
    "ignore:.*torch.jit.* is (deprecated|not supported)"
)
SHAPES = {
    "lstm": {"num_layers": 2, "bidirectional": True, "proj_size": 3, "dropout": 0.3},
    "gru": {"num_layers": 2, "bidirectional": True, "bias": False},
}


class Model(nn.Module):
    """Nested, shared and tied recurrent layers."""

    def __init__(self, cell: str) -> None:
        super().__init__()
        self.first = TORCH[cell](4, 5, batch_first=True, **SHAPES[cell])
        size = 2 * (self.first.proj_size or 5)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(size, 4)), TORCH[cell](4, 4)])
        self.shared = self.blocks[1]
        self.tied = TORCH[cell](4, 4)
        self.tied.weight_hh_l0 = self.shared.weight_hh_l0

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.first(x)
        x, _ = self.shared(self.blocks[0](x))
        return self.tied(x)[0]


def there_and_back(cell: str) -> tuple[Model, Model]:
    """A model as it was, and the same converted and reverted."""
    model = Model(cell).eval().double()
    original = copy.deepcopy(model)
    return original, revert(convert(model))


@pytest.mark.parametrize("cell", CELLS)
def test_everything_is_as_before(cell: str) -> None:
    model = Model(cell).double()
    names = dict(model.named_parameters(remove_duplicate=False))
    types = [type(module) for module in model.modules()]
    model.first.note = "mine"
    calls = []
    model.tied.register_forward_hook(lambda *_: calls.append("hook"))
    model.eval()
    x = torch.randn(3, 6, 4).double()
    expected = model(x)
    assert revert(convert(model)) is model
    assert [type(module) for module in model.modules()] == types
    after = dict(model.named_parameters(remove_duplicate=False))
    assert {n: id(p) for n, p in after.items()} == {n: id(p) for n, p in names.items()}
    assert model.shared is model.blocks[1]
    assert model.tied.weight_hh_l0 is model.shared.weight_hh_l0
    assert model.first.note == "mine"
    assert not model.first.training
    assert_bitwise(model(x).detach(), expected.detach())
    assert calls == ["hook", "hook"]


@pytest.mark.parametrize("cell", CELLS)
def test_what_torch_keeps_beside_the_parameters_is_there_again(cell: str) -> None:
    original, model = there_and_back(cell)
    assert vars(model.first).keys() == vars(original.first).keys()
    assert all(
        a is b for a, b in zip(model.first._flat_weights, model.first.parameters(), strict=True)
    )
    model.first.weight_hh_l0 = nn.Parameter(torch.zeros_like(model.first.weight_hh_l0))
    assert model.first._flat_weights[1] is model.first.weight_hh_l0
    model.first.flatten_parameters()
    x = torch.randn(3, 6, 4).double()
    assert not torch.equal(model(x), original(x))
    model.to(torch.float32).to(torch.float64)
    assert model.first._flat_weights[1] is model.first.weight_hh_l0


@pytest.mark.parametrize("cell", CELLS)
def test_state_dicts_load_both_ways(cell: str) -> None:
    original, model = there_and_back(cell)
    assert list(model.state_dict()) == list(original.state_dict())
    for module in (model, original, convert(copy.deepcopy(original))):
        module.load_state_dict(model.state_dict())


@without_jit_warnings
@pytest.mark.parametrize("cell", CELLS)
def test_it_can_be_scripted(cell: str) -> None:
    original, model = there_and_back(cell)
    x = torch.randn(3, 6, 4).double()
    assert_bitwise(torch.jit.script(model)(x).detach(), original(x).detach())


@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization is deprecated")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("cell", CELLS)
def test_torch_quantises_it(cell: str) -> None:
    model = revert(convert(nn.Sequential(TORCH[cell](4, 5))))
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.LSTM, nn.GRU}, torch.qint8)
    dynamic = torch.ao.nn.quantized.dynamic
    assert isinstance(quantized[0], {"lstm": dynamic.LSTM, "gru": dynamic.GRU}[cell])


@pytest.mark.parametrize("cell", CELLS)
def test_it_can_be_pickled(cell: str) -> None:
    original, model = there_and_back(cell)
    x = torch.randn(3, 6, 4).double()
    twin = pickle.loads(pickle.dumps(model))
    assert type(twin.first) is TORCH[cell]
    assert_bitwise(twin(x).detach(), original(x).detach())


@pytest.mark.parametrize("cell", CELLS)
def test_layers_that_were_ours_from_the_start(cell: str) -> None:
    rnn = OURS[cell](4, 5, batch_first=True, **SHAPES[cell]).eval().double()
    x = torch.randn(3, 6, 4).double()
    expected = rnn(x)[0]
    assert revert(rnn) is rnn
    assert type(rnn) is TORCH[cell]
    torch.testing.assert_close(rnn(x)[0], expected)


def test_pruned_weights_stay_pruned() -> None:
    rnn = convert(nn.LSTM(4, 5))
    prune.l1_unstructured(rnn, "weight_hh_l0", amount=0.5)
    x = torch.randn(6, 2, 4)
    for factor in (1.0, 2.0):  # the hook computes them anew
        with torch.no_grad():
            rnn.weight_hh_l0_orig.mul_(factor)
        expected = rnn(x)[0]
        torch.testing.assert_close(revert(rnn)(x)[0], expected)
        convert(rnn)


def test_reverting_twice_is_reverting_once() -> None:
    rnn = revert(VarLenLSTM(3, 5))
    assert type(revert(rnn)) is nn.LSTM


class Plain(VarLenLSTM):
    """A subclass that overrides nothing."""


class WithMethod(VarLenGRU):
    def last(self, x: Tensor) -> Tensor:
        return self(x)[1]


class Counting:
    def count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())


class MixedBehind(VarLenGRU, Counting):
    pass


def replaced() -> nn.Module:
    rnn = VarLenLSTM(3, 5)
    rnn.forward = lambda x, forward=rnn.forward: forward(x)
    return rnn


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: WithMethod(3, 5), "its class WithMethod has its own last"),
        (lambda: quantize_dynamic(VarLenLSTM(3, 5)), "its class FrozenVarLenLSTM has its own"),
        (lambda: freeze(VarLenGRU(3, 5)), "its class FrozenVarLenGRU has its own"),
        (lambda: MixedBehind(3, 5), "its class MixedBehind has its own count"),
        (replaced, "its forward was replaced on the object"),
    ],
)
def test_what_stays_is_named(make: Callable[[], nn.Module], reason: str) -> None:
    model = nn.ModuleList([Plain(3, 5), make()])
    before = type(model[1])
    with pytest.warns(UserWarning, match=rf"^revert: left as they are: '1' \({reason}") as said:
        revert(model)
    assert said[0].filename == __file__
    assert [type(module) for module in model] == [nn.LSTM, before]
    model[1](torch.randn(4, 2, 3))


@pytest.mark.parametrize("parametrization", ["weight_norm", "orthogonal", "spectral_norm"])
@pytest.mark.parametrize("cell", CELLS)
def test_parametrised_layers_come_back_and_learn(cell: str, parametrization: str) -> None:
    """As ours did. In evaluation: spectral_norm iterates whenever torch looks at a weight."""
    ours = OURS[cell](6, 6, 2, bidirectional=True)
    getattr(parametrizations, parametrization)(ours, "weight_hh_l1")
    ours.eval()
    rnn = copy.deepcopy(ours)
    before = dict(rnn.named_parameters())
    revert(rnn)
    assert isinstance(rnn, TORCH[cell])
    assert {n: id(p) for n, p in rnn.named_parameters()} == {n: id(p) for n, p in before.items()}
    copy.deepcopy(rnn)
    x = torch.randn(4, 2, 6)
    first = rnn(x)[0]
    for module in (ours, rnn):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            module(x)[0].square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(rnn(x)[0], ours(x)[0])
    assert not torch.equal(rnn(x)[0], first)
    parametrize.remove_parametrizations(rnn, "weight_hh_l1")
    assert type(rnn) is TORCH[cell]


def test_a_model_without_our_layers_is_said_to_be_so() -> None:
    message = "^revert: nothing was reverted; the model has no VarLenLSTM or VarLenGRU$"
    with pytest.warns(UserWarning, match=message):
        revert(nn.Sequential(nn.Linear(3, 5)))
