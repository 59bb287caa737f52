"""torch.fx: the modules are leaves of a graph, as torch's own are."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from helpers import CELLS, OURS, TORCH, Tagger, assert_bitwise
from torch import Tensor, nn
from torch.ao.quantization import get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import prepare_fx

from varlen_rnn import VarLenLSTM, convert, quantize_dynamic

both_cells = pytest.mark.parametrize("cell", CELLS)


class Net(nn.Module):
    def __init__(self, cell: str) -> None:
        super().__init__()
        self.rnn = TORCH[cell](3, 4, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.rnn(x)
        return self.head(torch.relu(out))


class Everything(nn.Module):
    """A call with every argument that a padded batch may have."""

    def __init__(self, rnn: nn.RNNBase, **options: Any) -> None:
        super().__init__()
        self.rnn, self.options = rnn, options

    def forward(self, x: Tensor, state: Tensor, mask: Tensor, resets: Tensor) -> Any:
        hx = (state, state) if self.rnn.mode == "LSTM" else state
        return self.rnn(x, hx, mask=mask, resets=resets, **self.options)


def calls_of(graph: torch.fx.GraphModule) -> list[str]:
    return [node.target for node in graph.graph.nodes if node.op == "call_module"]


@both_cells
def test_the_graph_is_that_of_torch_s_module(cell: str) -> None:
    net = Net(cell)
    expected = [(n.op, str(n.target)) for n in torch.fx.symbolic_trace(net).graph.nodes]
    graph = torch.fx.symbolic_trace(convert(net))
    assert [(n.op, str(n.target)) for n in graph.graph.nodes] == expected
    graph.graph.lint()
    x = torch.randn(2, 6, 3)
    for module in (graph, copy.deepcopy(graph)):
        assert_bitwise(module(x).detach(), net(x).detach())


@both_cells
def test_lengths_are_in_the_graph(cell: str) -> None:
    model = Tagger(cell)
    graph = torch.fx.symbolic_trace(model)
    assert calls_of(graph) == ["before", "rnn", "after"]
    (node,) = (n for n in graph.graph.nodes if n.target == "rnn")
    assert node.kwargs == {"lengths": [4, 0, 3]}
    x = torch.randn(3, 4, 3)
    assert_bitwise(graph(x).detach(), model(x).detach())


@both_cells
def test_every_argument_is_in_the_graph(cell: str) -> None:
    options = {"output_states": True} if cell == "lstm" else {}
    model = Everything(OURS[cell](3, 4, 2, batch_first=True), **options)
    graph = torch.fx.symbolic_trace(model)
    x, state = torch.randn(2, 6, 3), torch.randn(2, 2, 4)
    arguments = (x, state, torch.rand(2, 6) < 0.6, torch.rand(2, 6) < 0.3)
    leaves = torch.utils._pytree.tree_leaves
    for got, expected in zip(leaves(graph(*arguments)), leaves(model(*arguments)), strict=True):
        assert_bitwise(got.detach(), expected.detach())


@both_cells
def test_int8_layers_are_leaves(cell: str) -> None:
    model = quantize_dynamic(convert(Net(cell)))
    graph = torch.fx.symbolic_trace(model)
    assert calls_of(graph) == ["rnn", "head"]
    x = torch.randn(2, 6, 3)
    assert_bitwise(graph(x).detach(), model(x).detach())


class Own(VarLenLSTM):
    """What a user derives is a leaf, too."""

    def forward(self, input: Tensor) -> Any:
        return super().forward(input)


def test_subclasses_are_leaves() -> None:
    model = nn.Sequential(nn.Linear(3, 3), Own(3, 4))
    assert calls_of(torch.fx.symbolic_trace(model)) == ["0", "1"]


@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization is deprecated")
@pytest.mark.filterwarnings("ignore:Please use quant_min and quant_max")
@both_cells
def test_prepare_fx_takes_a_leaf(cell: str) -> None:
    net, x = convert(Net(cell)).eval(), torch.randn(2, 6, 3)
    prepared = prepare_fx(net, get_default_qconfig_mapping(), (x,))
    assert "rnn" in calls_of(prepared)
    torch.testing.assert_close(prepared(x), net(x))
