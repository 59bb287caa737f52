"""torch.fx: the modules are leaves of a graph, as torch's own are."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from helpers import CELLS, OURS, TORCH, Tagger, assert_bitwise
from torch import Tensor, nn
from torch.ao.quantization import get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import prepare_fx
from torch.nn.utils import parametrizations

from varlen_rnn import VarLenLSTM, convert, freeze

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


@pytest.mark.parametrize("weights", [None, torch.int8], ids=str)
@both_cells
def test_frozen_layers_are_leaves(cell: str, weights: torch.dtype | None) -> None:
    model = freeze(convert(Net(cell)), weights)
    graph = torch.fx.symbolic_trace(model)
    assert calls_of(graph) == ["rnn", "head"]
    x = torch.randn(2, 6, 3)
    assert_bitwise(graph(x).detach(), model(x).detach())


class Own(VarLenLSTM):
    """What a user derives: neither its arguments nor its results are those of the class itself."""

    def forward(self, input: Tensor) -> Any:
        return super().forward(2 * input)[0]


def assert_same_as_traced(model: nn.Module, *args: Tensor) -> None:
    """In value, with the layers as the nodes that they are."""
    graph = torch.fx.symbolic_trace(model)
    assert calls_of(graph) == ["0", "1"]
    for got, expected in zip(graph(*args), model(*args), strict=True):
        assert_bitwise(got.detach(), expected.detach())


def test_what_a_subclass_does_is_done_once() -> None:
    assert_same_as_traced(nn.Sequential(nn.Linear(3, 3), Own(3, 4)), torch.randn(5, 2, 3))


@both_cells
def test_what_hooks_do_is_done_once(cell: str) -> None:
    rnn = OURS[cell](3, 4)
    rnn.register_forward_pre_hook(lambda _, args: (2 * args[0],))
    rnn.register_forward_hook(lambda _, args, out: (3 * out[0],))
    assert_same_as_traced(nn.Sequential(nn.Linear(3, 3), rnn), torch.randn(5, 2, 3))


@both_cells
def test_parametrised_layers_are_leaves(cell: str) -> None:
    model = nn.Sequential(nn.Linear(3, 3), TORCH[cell](3, 4))
    parametrizations.weight_norm(model[1], "weight_hh_l0")
    convert(model)
    graph = torch.fx.symbolic_trace(model)
    assert calls_of(graph) == ["0", "1"]
    x = torch.randn(5, 2, 3)
    assert_bitwise(graph(x)[0].detach(), model(x)[0].detach())


class OfLengths(nn.Module):
    """What is traced are the lengths alone."""

    def __init__(self, cell: str) -> None:
        super().__init__()
        self.rnn = OURS[cell](3, 4)
        self.register_buffer("x", torch.randn(5, 2, 3))

    def forward(self, lengths: Tensor) -> Tensor:
        return self.rnn(self.x, lengths=lengths)[0]


@both_cells
def test_an_input_may_be_a_constant_of_the_graph(cell: str) -> None:
    model, lengths = OfLengths(cell), torch.tensor([5, 2])
    graph = torch.fx.symbolic_trace(model)
    assert calls_of(graph) == ["rnn"]
    assert_bitwise(graph(lengths).detach(), model(lengths).detach())


@both_cells
def test_graphs_are_copied_and_pickled(cell: str) -> None:
    model = convert(nn.Sequential(nn.Linear(3, 3), TORCH[cell](3, 4)))
    graph, x = torch.fx.symbolic_trace(model), torch.randn(5, 2, 3)
    for twin in (copy.deepcopy(graph), pickle.loads(pickle.dumps(graph))):
        assert calls_of(twin) == ["0", "1"]
        assert_bitwise(twin(x)[0].detach(), model(x)[0].detach())


@both_cells
def test_a_layer_by_itself_is_no_graph(cell: str) -> None:
    with pytest.raises(TypeError, match="got Proxy"):
        torch.fx.symbolic_trace(OURS[cell](3, 4))


@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization is deprecated")
@pytest.mark.filterwarnings("ignore:Please use quant_min and quant_max")
@both_cells
def test_prepare_fx_takes_a_leaf(cell: str) -> None:
    net, x = convert(Net(cell)).eval(), torch.randn(2, 6, 3)
    prepared = prepare_fx(net, get_default_qconfig_mapping(), (x,))
    assert "rnn" in calls_of(prepared)
    torch.testing.assert_close(prepared(x), net(x))
