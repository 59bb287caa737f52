"""Steps of many streams without StreamingRNN: by nn.LSTM, by nn.LSTMCell, and by ONNX Runtime.

Each is called as StreamingRNN is: `peer(x, rows)` and `peer.reset(rows)`. States lie in tables, of
which a call takes the rows that have a step, and puts them back; a call of all rows takes the
tables as they are.
"""

import copy
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from varlen_rnn import StreamingRNN, revert

# Where ONNX's gates stand among torch's: i f g o to i o f c, and r z n to z r h.
GATE_ORDER = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2)}
WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
ERRORS_ONLY = 3

Array = Any  # torch's or NumPy's


class Peer(ABC):
    """Tables of states, by hand.

    Args:
        rnn: of one direction and without a projection, torch's or ours.
        num_rows: how many streams there are.
    """

    row_dim = 1  # of each table

    def __init__(self, rnn: nn.RNNBase, num_rows: int) -> None:
        self.rnn = revert(copy.deepcopy(rnn))
        self.num_states = 2 if rnn.mode == "LSTM" else 1  # of a layer
        self.tables: Sequence[Array] = [torch.zeros(size) for size in self.sizes(num_rows)]

    @abstractmethod
    def sizes(self, num_rows: int) -> Sequence[tuple[int, ...]]:
        """Of each table."""

    @abstractmethod
    def step(self, x: Array, states: Sequence[Array]) -> tuple[Array, Sequence[Array]]:
        """From `[K, I]` and the states of K streams to the output `[K, H]` and the next states."""

    def reset(self, rows: Array) -> None:
        """Let these streams begin anew."""
        for table in self.tables:
            table.index_fill_(self.row_dim, rows, 0)

    def take(self, table: Array, rows: Array) -> Array:
        return table.index_select(self.row_dim, rows)

    def put(self, table: Array, rows: Array, state: Array) -> None:
        table.index_copy_(self.row_dim, rows, state)

    def __call__(self, x: Array, rows: Array | None = None) -> Array:
        """Feed all streams, or those of `rows`, their next step."""
        if rows is None:
            out, self.tables = self.step(x, self.tables)
            return out
        out, states = self.step(x, [self.take(table, rows) for table in self.tables])
        for table, state in zip(self.tables, states, strict=True):
            self.put(table, rows, state)
        return out


class TorchModule(Peer):
    """A call of nn.LSTM or nn.GRU for one step."""

    def sizes(self, num_rows: int) -> Sequence[tuple[int, ...]]:
        return [(self.rnn.num_layers, num_rows, self.rnn.hidden_size)] * self.num_states

    def step(self, x: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor]]:
        if self.num_states == 1:
            out, state = self.rnn(x[None], states[0])
            return out[0], [state]
        out, pair = self.rnn(x[None], tuple(states))
        return out[0], pair


class TorchCells(Peer):
    """A call of nn.LSTMCell or nn.GRUCell for each layer."""

    row_dim = 0

    def __init__(self, rnn: nn.RNNBase, num_rows: int) -> None:
        super().__init__(rnn, num_rows)
        self.cells: list[nn.Module] = []
        for layer in range(rnn.num_layers):
            cell = nn.LSTMCell if rnn.mode == "LSTM" else nn.GRUCell
            self.cells.append(cell(rnn.hidden_size if layer else rnn.input_size, rnn.hidden_size))
            weights = {name: getattr(rnn, f"{name}_l{layer}") for name in WEIGHTS}
            self.cells[-1].load_state_dict(weights)

    def sizes(self, num_rows: int) -> Sequence[tuple[int, ...]]:
        return [(num_rows, self.rnn.hidden_size)] * self.num_states * self.rnn.num_layers

    def step(self, x: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor]]:
        following: list[Tensor] = []
        for layer, cell in enumerate(self.cells):
            if self.num_states == 1:
                following.append(cell(x, states[layer]))
            else:
                following += cell(x, (states[2 * layer], states[2 * layer + 1]))
            x = following[-self.num_states]
        return x, following


class OnnxRuntime(Peer):
    """A graph with one node for each layer; all that comes and goes is NumPy's."""

    def __init__(self, rnn: nn.RNNBase, num_rows: int) -> None:
        super().__init__(rnn, num_rows)
        import onnxruntime

        self.tables = [table.numpy() for table in self.tables]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.log_severity_level = ERRORS_ONLY
        # Threads that go on spinning would take their core from whoever has the next turn.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        graph, self.names, self.outputs = onnx_step(self.rnn)
        self.session = onnxruntime.InferenceSession(graph, options, ["CPUExecutionProvider"])

    def reset(self, rows: np.ndarray) -> None:
        for table in self.tables:
            table[:, rows] = 0

    def take(self, table: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return table.take(rows, axis=1)

    def put(self, table: np.ndarray, rows: np.ndarray, state: np.ndarray) -> None:
        table[:, rows] = state

    def sizes(self, num_rows: int) -> Sequence[tuple[int, ...]]:
        return [(1, num_rows, self.rnn.hidden_size)] * self.num_states * self.rnn.num_layers

    def step(
        self, x: np.ndarray, states: Sequence[np.ndarray]
    ) -> tuple[np.ndarray, Sequence[np.ndarray]]:
        feeds = dict(zip(self.names, states, strict=True), x=x[None])
        following = self.session.run(self.outputs, feeds)
        return following[-self.num_states][0], following


Stepper = StreamingRNN | Peer


def in_onnx_order(weight: Tensor, mode: str) -> Tensor:
    """Torch's `[gates * H, *]` in ONNX's order of gates."""
    gates = weight.chunk(len(GATE_ORDER[mode]))
    return torch.cat([gates[index] for index in GATE_ORDER[mode]])


def onnx_step(rnn: nn.RNNBase) -> tuple[bytes, list[str], list[str]]:
    """The graph of one step, and the names of its states before and after it.

    The last hidden states `[1, K, H]` of one step are at once the next layer's input.
    """
    from onnx import TensorProto, checker, helper, numpy_helper

    kinds = ("h", "c") if rnn.mode == "LSTM" else ("h",)
    options: dict[str, Any] = {"hidden_size": rnn.hidden_size}
    if rnn.mode == "GRU":
        options["linear_before_reset"] = 1  # as in torch
    nodes, weights, x = [], [], "x"
    before: list[str] = []
    after: list[str] = []
    for layer in range(rnn.num_layers):
        w_ih, w_hh, b_ih, b_hh = (
            in_onnx_order(getattr(rnn, f"{name}_l{layer}").detach(), rnn.mode) for name in WEIGHTS
        )
        inputs = [f"W{layer}", f"R{layer}", f"B{layer}"]
        for name, weight in zip(inputs, (w_ih, w_hh, torch.cat((b_ih, b_hh))), strict=True):
            weights.append(numpy_helper.from_array(weight[None].numpy(), name))
        states = [f"{kind}_{layer}" for kind in kinds]
        following = [f"{kind}_n_{layer}" for kind in kinds]
        ends = [x, *inputs, "", *states], ["", *following]
        nodes.append(helper.make_node(rnn.mode, *ends, **options))
        x = following[0]
        before += states
        after += following

    def value(name: str, size: int) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, "rows", size])

    graph = helper.make_graph(
        nodes,
        "step",
        [value("x", rnn.input_size), *(value(name, rnn.hidden_size) for name in before)],
        [value(name, rnn.hidden_size) for name in after],
        weights,
    )
    # Old enough for every ONNX Runtime that has wheels for the supported Pythons.
    opset = [helper.make_opsetid("", 14)]
    model = helper.make_model(graph, ir_version=8, opset_imports=opset)
    checker.check_model(model)
    return model.SerializeToString(), before, after


def onnx_missing() -> list[str]:
    """What ONNX Runtime needs and is not installed."""
    packages = ("onnx", "onnxruntime")
    return [name for name in packages if importlib.util.find_spec(name) is None]


def steppers(rnn: nn.RNNBase, num_rows: int) -> dict[str, Stepper]:
    """All that there are, by name, torch's first and ours last."""
    found: dict[str, Stepper] = {
        f"nn.{rnn.mode}": TorchModule(rnn, num_rows),
        f"nn.{rnn.mode}Cell": TorchCells(rnn, num_rows),
    }
    if not onnx_missing():
        found["ONNX Runtime"] = OnnxRuntime(rnn, num_rows)
    return {**found, "StreamingRNN": StreamingRNN(rnn, num_rows)}


def own(stepper: Stepper, tensor: Tensor) -> Array:
    """A tensor as that one takes it."""
    return tensor.numpy() if isinstance(stepper, OnnxRuntime) else tensor
