"""torch.jit.trace: what is refused, and what raises in a traced module as in the module itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import CELLS, HAS_EXTENSION, OURS, assert_bitwise
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from traced_model import Model

from varlen_rnn import VarLenLSTM
from varlen_rnn.runtime import extension

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.* is (deprecated|not supported)"),
    pytest.mark.skipif(not HAS_EXTENSION, reason="the reference cannot be traced"),
]
both_cells = pytest.mark.parametrize("cell", CELLS)


X = torch.randn(2, 7, 3)
FLAGS = torch.tensor([[1, 0, 1, 1, 0, 0, 1], [1, 1, 0, 0, 0, 1, 0]])


@both_cells
def test_wrong_lengths_raise_when_they_come(cell: str) -> None:
    model = Model(OURS[cell](3, 5, batch_first=True), "lengths").eval()
    traced = torch.jit.trace(model, model.example((4, 6), False))
    x = torch.randn(2, 3, 3)
    for wrong in ([1, 4], [-1, 2], [1], [1, 2, 3]):
        with pytest.raises(RuntimeError, match="lengths must be"):
            traced(x, torch.tensor(wrong))


@pytest.mark.parametrize(
    ("form", "x", "arguments"),
    [
        ("mask of integers", X, [2 * FLAGS.int()]),
        ("mask of integers", X, [FLAGS / 2]),
        ("mask of integers", X, [FLAGS.float() * torch.nan]),
        ("mask", X, [FLAGS]),  # of another dtype
        ("mask", X, [FLAGS.T.bool()]),
        ("mask", X, [FLAGS[:1].bool()]),
        ("mask", X, [FLAGS[:, :1].bool()]),
        ("resets", X, [FLAGS.T.bool()]),
        ("lengths", X, [torch.tensor([7])]),
        ("flat", X[0], [torch.tensor([0, 3, 6])]),
        ("flat", X[0], [torch.tensor([0, 8, 7])]),
        ("flat", X[0], [torch.tensor([1, 3, 7])]),
        ("flat and resets", X[0], [torch.tensor([0, 3, 7]), FLAGS.flatten().bool()]),
        ("single mask and resets", X[0], [FLAGS[0, :3].bool(), FLAGS[1].bool()]),
    ],
)
def test_what_does_not_fit_raises_when_it_comes(
    form: str, x: Tensor, arguments: list[Tensor]
) -> None:
    """Also where the traced graph would go on silently."""
    model = Model(VarLenLSTM(3, 5, batch_first=True), form).eval()
    traced = torch.jit.trace(model, model.example((4, 6), False))
    with pytest.raises(RuntimeError, match=r"\w"):
        traced(x, *arguments)
    if form != "mask" or arguments[0].dtype == torch.bool:
        with pytest.raises((ValueError, RuntimeError), match="must be"):
            model(x, *arguments)


class Packs(nn.Module):
    """A PackedSequence made by hand, of what may be wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = VarLenLSTM(3, 5)

    def forward(self, data: Tensor, batch_sizes: Tensor, order: Tensor) -> Tensor:
        back = torch.argsort(order)
        return self.rnn(PackedSequence(data, batch_sizes, order, back))[0].data


def test_a_packed_sequence_that_is_none_raises_when_it_comes() -> None:
    data, order = torch.randn(6, 3), torch.tensor([1, 0, 2])
    model = Packs().eval()
    traced = torch.jit.trace(model, (data, torch.tensor([3, 2, 1]), order))
    longer = torch.tensor([2, 2, 2, 1]), torch.tensor([1, 0])
    assert_bitwise(traced(torch.ones(7, 3), *longer), model(torch.ones(7, 3), *longer))
    for sizes, indices in (
        ([3, 1, 1, 0], [1, 0, 2]),
        ([1, 2, 3], [0]),
        ([3, 2], [1, 0, 2]),
        ([3, 2, 1], [1, 0]),
        ([3, 2, 1], [1, 1, 2]),
    ):
        with pytest.raises(RuntimeError, match=r"\w"):
            traced(data, torch.tensor(sizes), torch.tensor(indices))


@pytest.mark.parametrize(
    ("keywords", "what"),
    [
        ({"lengths": [6, 2, 3, 1]}, "lengths"),
        ({"mask": [[True] * 6] * 4}, "mask"),
        ({"resets": torch.zeros(4, 6).bool().numpy()}, "resets"),
        ({"cu_seqlens": [0, 2, 6]}, "cu_seqlens"),
    ],
)
def test_numbers_that_a_trace_does_not_see_are_refused(keywords: dict[str, Any], what: str) -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = VarLenLSTM(3, 5, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(x, **keywords)[0]

    x = torch.randn(6, 3) if what == "cu_seqlens" else torch.randn(4, 6, 3)
    message = f"VarLenLSTM: {what} must be a Tensor under torch.jit.trace, got"
    with pytest.raises(TypeError, match=message):
        torch.jit.trace(Constant(), (x,))


def test_the_reference_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its graph would have as many steps as the example."""
    monkeypatch.setattr(extension, "runs", lambda x: False)
    rnn = VarLenLSTM(3, 5)
    with pytest.raises(NotImplementedError, match=r"VarLenLSTM: torch.jit.trace needs compiled"):
        torch.jit.trace(rnn, (torch.randn(6, 4, 3),))


def test_a_nested_tensor_is_refused() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = VarLenLSTM(3, 5, batch_first=True)

        def forward(self, values: Tensor, offsets: Tensor) -> Tensor:
            nested = torch.nested.nested_tensor_from_jagged(values, offsets)
            return self.rnn(nested)[0].values()

    with pytest.raises(RuntimeError, match=r"\w"):  # by torch, in more than one way
        torch.jit.trace(Nested(), (torch.randn(5, 3), torch.tensor([0, 2, 5])))
