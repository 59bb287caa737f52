"""replacing_torch(): libraries that build layers get ours, and torch is left as it was."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import pytest
import torch
from helpers import CELLS, HAS_EXTENSION, OURS, TORCH, assert_bitwise
from torch import Tensor, nn

from varlen_rnn import VarLenGRU, VarLenLSTM, convert, replacing_torch

NAMES = {"lstm": "LSTM", "gru": "GRU"}
PLACES = (torch.nn, torch.nn.modules, torch.nn.modules.rnn)


class Late(nn.Module):
    """A model of a library, which builds its layer when it sees the first batch."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.rnn: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.rnn is None:
            self.rnn = getattr(nn, self.kind)(x.shape[-1], 5, batch_first=True)
            for module in self.modules():
                if isinstance(module, (nn.LSTM, nn.GRU)):
                    nn.init.orthogonal_(module.weight_hh_l0)
        return self.rnn(x)[0]


class Before(nn.LSTM):
    """A subclass that is there already."""


def assert_torch_is_itself() -> None:
    for place in PLACES:
        for cell in CELLS:
            assert getattr(place, NAMES[cell]) is TORCH[cell]


@pytest.mark.parametrize("cell", CELLS)
def test_what_is_built_meanwhile_is_ours(cell: str) -> None:
    x = torch.randn(2, 4, 3)
    torch.manual_seed(0)
    expected = Late(NAMES[cell])
    expected(x)
    torch.manual_seed(0)
    with replacing_torch():
        model = Late(NAMES[cell])
        model(x)
        assert isinstance(model.rnn, getattr(torch.nn, NAMES[cell]))
    assert_torch_is_itself()
    assert type(model.rnn) is OURS[cell]
    model.rnn.load_state_dict(expected.rnn.state_dict())
    torch.testing.assert_close(model(x), expected(x))
    weight = model.rnn.weight_hh_l0.detach()
    torch.testing.assert_close(weight.T @ weight, torch.eye(5))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("cell", CELLS)
def test_every_place_has_ours(cell: str, place: object) -> None:
    with replacing_torch():
        assert getattr(place, NAMES[cell]) is OURS[cell]
    assert_torch_is_itself()


def test_torch_is_itself_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), replacing_torch():
        _ = 1 / 0
    assert_torch_is_itself()


def test_it_can_be_nested_and_entered_again() -> None:
    for _ in range(2):
        with replacing_torch():
            with replacing_torch():
                assert torch.nn.LSTM is VarLenLSTM
            assert torch.nn.LSTM is VarLenLSTM
        assert_torch_is_itself()


def test_it_is_a_decorator() -> None:
    @replacing_torch()
    def build() -> nn.Module:
        return torch.nn.GRU(3, 5)

    assert type(build()) is VarLenGRU
    assert_torch_is_itself()


def test_subclasses_that_were_there_stay_torch_s() -> None:
    with replacing_torch():
        rnn = Before(3, 5)
    assert isinstance(rnn, nn.LSTM)
    assert type(convert(rnn)) is VarLenLSTM


def test_subclasses_that_are_defined_meanwhile_are_ours() -> None:
    with replacing_torch():

        class Meanwhile(torch.nn.LSTM):
            pass

        rnn = Meanwhile(3, 5)
    assert isinstance(rnn, VarLenLSTM)
    assert rnn(torch.randn(4, 2, 3), lengths=[4, 1])[0].shape == (4, 2, 5)


@pytest.mark.parametrize("cell", CELLS)
def test_a_whole_module_that_was_saved_is_loaded_as_ours(cell: str) -> None:
    saved, x = TORCH[cell](3, 5, 2, bidirectional=True), torch.randn(4, 2, 3)
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    with replacing_torch():
        rnn = torch.load(file, weights_only=False)
    assert type(rnn) is OURS[cell]
    assert "_flat_weights" not in vars(rnn)
    torch.testing.assert_close(rnn(x)[0], saved(x)[0])


@pytest.mark.parametrize("make", [lambda: nn.LSTM(3, 5), lambda: VarLenLSTM(3, 5)])
def test_copies_are_what_they_are_of(make: Callable[[], nn.Module]) -> None:
    rnn, x = make(), torch.randn(4, 2, 3)
    with replacing_torch():
        twin = copy.deepcopy(rnn)
    assert type(twin) is type(rnn)
    assert_bitwise(twin(x)[0].detach(), rnn(x)[0].detach())


@pytest.mark.skipif(not HAS_EXTENSION, reason="the reference is not compiled in one graph")
@pytest.mark.parametrize("cell", CELLS)
def test_what_was_built_meanwhile_is_compiled_afterwards(cell: str) -> None:
    with replacing_torch():
        model = nn.Sequential(getattr(torch.nn, NAMES[cell])(3, 5))
    x = torch.randn(4, 2, 3)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert_bitwise(compiled(x)[0].detach(), model(x)[0].detach())


def test_convert_works_meanwhile() -> None:
    model = nn.Sequential(nn.LSTM(3, 5))
    with replacing_torch():
        assert type(convert(model)[0]) is VarLenLSTM
