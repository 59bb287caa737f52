"""convert(): the class changes, everything else stays."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from helpers import CELLS, OURS, TORCH, assert_bitwise
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from varlen_rnn import VarLenGRU, VarLenLSTM, convert


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


class OwnLSTM(nn.LSTM):
    """A subclass, which may mean something else by ``forward``."""


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


def test_subclasses_are_left_alone() -> None:
    model = convert(nn.ModuleList([OwnLSTM(3, 5)]))
    assert type(model[0]) is OwnLSTM
    out, _ = model[0](torch.randn(4, 2, 3))
    assert out.shape == (4, 2, 5)


def test_converting_twice_is_converting_once() -> None:
    model = convert(Tagger()).eval()
    tokens = torch.randint(0, 10, (4, 7))
    expected = model(tokens)
    assert_bitwise(convert(model)(tokens).detach(), expected.detach())
