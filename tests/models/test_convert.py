"""convert(): the class changes, everything else stays."""

from __future__ import annotations

import copy
import functools
import pickle
import re
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import pytest
import torch
from helpers import CELLS, OURS, TORCH, assert_bitwise
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from varlen_rnn import VarLenGRU, VarLenLSTM, convert, revert

T = TypeVar("T")


class Tagger(nn.Module):
    """A model with recurrent modules at several depths, one of them in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 6)
        self.encoder = nn.LSTM(
            6, 8, 2, batch_first=True, bidirectional=True, dropout=0.3, proj_size=3
        )
        self.blocks = nn.ModuleList(
            [nn.Sequential(nn.Linear(6, 6)), nn.GRU(6, 5, batch_first=True)]
        )
        self.shared = self.blocks[1]
        self.plain = nn.RNN(5, 4, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        x, _ = self.encoder(self.embedding(tokens))
        x, _ = self.shared(self.blocks[0](x))
        return self.plain(x)[0]


class Plain(nn.LSTM):
    """A subclass that overrides nothing."""

    note: str


class WithInit(Plain):
    def __init__(self, size: int) -> None:
        super().__init__(size, size)
        self.size = size


class WithForward(nn.LSTM):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flip(0))[0]


class WithMethod(nn.GRU):
    def last(self, x: Tensor) -> Tensor:
        return self(x)[1]


class WithAttribute(nn.GRU):
    kind = "gru"


class Mixin:
    def reset_parameters(self) -> None:
        for parameter in self.parameters():
            nn.init.ones_(parameter)


class Mixed(Mixin, nn.LSTM):
    pass


class Counting:
    def count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())


class MixedBehind(nn.GRU, Counting):
    pass


class OfType(nn.LSTM, Generic[T]):
    """Nothing but a name for checkers of types."""


def test_every_exact_lstm_and_gru_is_replaced_and_nothing_else() -> None:
    model = convert(Tagger())
    classes = {name: type(module) for name, module in model.named_modules()}
    assert classes["encoder"] is VarLenLSTM
    assert classes["blocks.1"] is VarLenGRU
    assert model.shared is model.blocks[1]
    assert classes["plain"] is nn.RNN
    assert not {nn.LSTM, nn.GRU} & set(classes.values())


def test_results_and_gradients_stay() -> None:
    model = Tagger().double().eval()
    tokens = torch.randint(0, 10, (4, 7))
    expected = model(tokens)
    gradients = torch.autograd.grad(expected.square().sum(), list(model.parameters()))
    assert convert(model) is model
    got = model(tokens)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    got_gradients = torch.autograd.grad(got.square().sum(), list(model.parameters()))
    torch.testing.assert_close(got_gradients, gradients, rtol=0, atol=1e-11)


def test_parameters_stay_the_very_objects_so_an_optimizer_goes_on() -> None:
    model = Tagger()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = [(name, id(p)) for name, p in model.named_parameters()]
    state = {name: w.clone() for name, w in model.state_dict().items()}
    convert(model)
    assert [(name, id(p)) for name, p in model.named_parameters()] == before
    assert list(model.state_dict()) == list(state)
    model(torch.randint(0, 10, (4, 7))).square().sum().backward()
    optimizer.step()
    changed = [name for name, w in model.state_dict().items() if not torch.equal(w, state[name])]
    assert {"encoder.weight_hh_l1_reverse", "encoder.weight_hr_l0", "shared.bias_hh_l0"} <= set(
        changed
    )


@pytest.mark.parametrize("cell", CELLS)
def test_settings_hooks_and_flags_stay(cell: str) -> None:
    module = TORCH[cell](3, 5, 2, False, True, 0.2, True, dtype=torch.float64).eval()
    calls: list[str] = []
    module.register_forward_hook(lambda *_: calls.append("forward"))
    module.weight_hh_l0.register_hook(lambda _: calls.append("gradient"))
    module.weight_ih_l1.requires_grad_(False)
    module.note = "mine"
    text = repr(module)
    assert convert(module) is module
    assert type(module) is OURS[cell]
    assert repr(module) == text.replace(TORCH[cell].__name__, OURS[cell].__name__)
    assert not module.training
    assert module.note == "mine"
    assert not module.weight_ih_l1.requires_grad
    out, _ = module(torch.randn(2, 4, 3, dtype=torch.float64), lengths=[4, 0])
    out.sum().backward()
    assert calls == ["forward", "gradient"]
    assert module.weight_hh_l0.dtype == torch.float64


def test_training_flag_stays_when_it_is_set() -> None:
    assert convert(nn.GRU(3, 5)).training


@pytest.mark.parametrize("cell", CELLS)
def test_a_converted_module_is_like_one_that_was_made_so(cell: str) -> None:
    module = convert(TORCH[cell](3, 5, bidirectional=True, batch_first=True))
    made = OURS[cell](3, 5, bidirectional=True, batch_first=True)
    made.load_state_dict(module.state_dict())
    x = torch.randn(3, 6, 3)
    expected, _ = made(x, lengths=[2, 0, 6])
    for twin in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert type(twin) is OURS[cell]
        assert_bitwise(twin(x, lengths=[2, 0, 6])[0].detach(), expected.detach())
    module.weight_hh_l0 = nn.Parameter(module.weight_hh_l0.detach() * 2)
    assert not torch.equal(module(x)[0], made(x)[0])
    parametrizations.weight_norm(module, "weight_ih_l0")
    before = module(x)[0].detach()
    with torch.no_grad():
        module.parametrizations.weight_ih_l0.original0.mul_(2)
    assert not torch.equal(module(x)[0], before)
    module.to(torch.float64)
    assert module(x.double())[0].dtype == torch.float64


def test_subclasses_that_override_nothing_are_replaced() -> None:
    model = nn.ModuleList([Plain(3, 5), WithInit(4), OfType[int](3, 5)])
    x = torch.randn(6, 2, 4)
    expected = model[1](x)[0]
    convert(model)
    assert [type(module) for module in model] == [VarLenLSTM] * 3
    assert model[1].size == 4
    torch.testing.assert_close(model[1](x)[0], expected)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: WithForward(3, 5), "its class WithForward has its own forward"),
        (lambda: WithMethod(3, 5), "its class WithMethod has its own last"),
        (lambda: WithAttribute(3, 5), "its class WithAttribute has its own kind"),
        (lambda: Mixed(3, 5), "its class Mixed has its own reset_parameters"),
        (lambda: MixedBehind(3, 5), "its class MixedBehind has its own count"),
    ],
)
def test_other_subclasses_stay_and_are_named(make: Callable[[], nn.Module], reason: str) -> None:
    model = nn.ModuleDict({"encoder": nn.ModuleList([nn.GRU(3, 5), make()])})
    before = type(model["encoder"][1])
    message = f"convert: left as they are: 'encoder.1' ({reason})"
    with pytest.warns(UserWarning, match=f"^{re.escape(message)}$") as said:
        convert(model)
    assert said[0].filename == __file__
    assert [type(module) for module in model["encoder"]] == [VarLenGRU, before]
    model["encoder"][1](torch.randn(4, 2, 3))


@pytest.mark.filterwarnings("ignore:.*torch.jit.* is (deprecated|not supported)")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("kind", ["script", "trace"])
def test_scripted_and_traced_modules_stay_and_are_named(kind: str) -> None:
    rnn, x = nn.Sequential(nn.GRU(3, 5)), torch.randn(4, 2, 3)
    scripted = torch.jit.script(rnn) if kind == "script" else torch.jit.trace(rnn, (x,))
    model = nn.ModuleList([nn.LSTM(3, 5), scripted])
    with pytest.warns(UserWarning, match=r"'1.0' \(it is scripted or traced\)"):
        convert(model)
    assert_bitwise(model[1](x)[0].detach(), rnn(x)[0].detach())


@pytest.mark.parametrize("wrap", [lambda f: lambda *args: f(*args), functools.partial])
@pytest.mark.parametrize("cell", CELLS)
def test_a_module_whose_forward_was_replaced_goes_on_working(cell: str, wrap: Any) -> None:
    rnn, x = TORCH[cell](3, 5), torch.randn(4, 2, 3)
    expected = rnn(x)[0]
    rnn.forward = wrap(rnn.forward)
    message = (
        "convert: nothing was converted; left as they are: "
        "the model itself (its forward was replaced on the object)"
    )
    with pytest.warns(UserWarning, match=f"^{re.escape(message)}$"):
        convert(rnn)
    assert type(rnn) is TORCH[cell]
    assert_bitwise(rnn(x)[0].detach(), expected.detach())


@pytest.mark.parametrize("cell", CELLS)
def test_a_forward_that_was_put_back_is_the_class_s_own(cell: str) -> None:
    """As accelerate does where it removes a hook."""
    rnn, x = TORCH[cell](3, 5), torch.randn(4, 2, 3)
    expected = rnn(x)[0]
    rnn.forward = rnn.forward
    assert type(convert(rnn)) is OURS[cell]
    torch.testing.assert_close(rnn(x, lengths=[4, 4])[0], expected)
    rnn.forward = rnn.forward
    assert type(revert(rnn)) is TORCH[cell]
    torch.testing.assert_close(rnn(x)[0], expected)


def test_all_that_stays_is_in_one_warning() -> None:
    model = nn.ModuleList([WithForward(3, 5), nn.LSTM(3, 5), Mixed(3, 5)])
    with pytest.warns(UserWarning, match=r"'0' \(.*\), '2' \(") as said:
        convert(model)
    assert len(said) == 1


def test_a_model_without_recurrent_layers_is_said_to_be_so() -> None:
    message = "^convert: nothing was converted; the model has no LSTM or GRU$"
    with pytest.warns(UserWarning, match=message):
        convert(nn.Sequential(nn.Linear(3, 5)))


@pytest.mark.parametrize("parametrization", ["weight_norm", "orthogonal", "spectral_norm"])
@pytest.mark.parametrize("cell", CELLS)
def test_parametrized_layers_are_replaced_and_act(cell: str, parametrization: str) -> None:
    rnn = TORCH[cell](6, 6, bidirectional=True)
    getattr(parametrizations, parametrization)(rnn, "weight_hh_l0")
    rnn.eval()
    before = dict(rnn.named_parameters())
    plain = OURS[cell](6, 6, bidirectional=True)
    plain.load_state_dict({n: getattr(rnn, n).detach() for n in plain.state_dict()})
    convert(nn.Sequential(rnn))
    assert isinstance(rnn, OURS[cell])
    assert type(rnn).__name__ == f"Parametrized{OURS[cell].__name__}"
    assert {n: id(p) for n, p in rnn.named_parameters()} == {n: id(p) for n, p in before.items()}
    x = torch.randn(4, 2, 6)
    for module in (rnn, copy.deepcopy(rnn)):
        torch.testing.assert_close(module(x, lengths=[4, 2])[0], plain(x, lengths=[4, 2])[0])
    rnn(x)[0].sum().backward()
    assert all(p.grad is not None for p in rnn.parameters())
    parametrize.remove_parametrizations(rnn, "weight_hh_l0")
    assert type(rnn) is OURS[cell]


def test_converting_twice_is_converting_once() -> None:
    model = convert(Tagger()).eval()
    tokens = torch.randint(0, 10, (4, 7))
    expected = model(tokens)
    assert_bitwise(convert(model)(tokens).detach(), expected.detach())


def test_what_is_no_module_is_refused() -> None:
    for function in (convert, revert):
        with pytest.raises(TypeError, match=f"{function.__name__}: model must be an nn.Module"):
            function([nn.LSTM(3, 5)])
