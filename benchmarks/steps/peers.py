"""Who takes a step: ours in three ways, what torch offers, and ONNX Runtime.

Every peer keeps its states from call to call, as its user would. What can be done before the first
step is done before, in its favour: packing, compiling, building sessions, allocating buffers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import varlen_rnn
from benchmarks import onnx_graph
from benchmarks.peers import CELL_MODULES, OUR_MODULES
from benchmarks.quantized import torch_quantized

STREAM, MODULE, FROZEN = "varlen_rnn stream", "varlen_rnn module", "varlen_rnn frozen"
NN, CELL, COMPILED, NN_INT8 = "nn", "nn cell", "nn compiled", "nn int8"
ONNX = "onnxruntime"
# How ONNX Runtime is run: on its default number of threads (0) or on one, and with arrays or with
# buffers that are bound once.
ONNX_WAYS = {
    f"{ONNX}{of_threads}{of_states}": (threads, bound)
    for threads, of_threads in ((1, " 1 thread"), (0, ""))
    for bound, of_states in ((False, ""), (True, " bound"))
}
WEIGHTS = {"": None, " bfloat16": torch.bfloat16, " int8": torch.int8}
NAMES = (
    *(f"{STREAM}{name}" for name in WEIGHTS),
    MODULE,
    *(f"{FROZEN}{name}" for name in WEIGHTS),
    *(NN, CELL, COMPILED, NN_INT8),
    *ONNX_WAYS,
)
# Their worker threads go on spinning after a call, ready for the next.
SPINNING = tuple(name for name, (threads, _) in ONNX_WAYS.items() if threads != 1)


class Unavailable(Exception):
    """A peer cannot run here, and why."""


@dataclass(frozen=True)
class Peer:
    """``step`` is what is timed.

    It takes what ``given`` makes of ``[B, I]``; ``output`` makes ``[B, H]`` of what it returns.
    """

    step: Callable[[Any], Any]
    given: Callable[[Tensor], Any] = lambda x: x
    output: Callable[[Any], Tensor] = lambda out: out


def _stream(rnn: nn.RNNBase, rows: int) -> Peer:
    """The states inside."""
    return Peer(varlen_rnn.StreamingRNN(rnn, rows))


def _layers(rnn: Callable[..., Any], like: nn.RNNBase, rows: int) -> Peer:
    """A module that is given the states that it returned."""
    with torch.inference_mode():  # as all tensors of a step: what is compiled tells them apart
        h, c = torch.zeros(2, like.num_layers, rows, like.hidden_size)
    state = (h, c) if like.mode == "LSTM" else h

    def step(x: Tensor) -> Tensor:
        nonlocal state
        out: Tensor
        out, state = rnn(x, state)
        return out

    return Peer(step, given=lambda x: x[None], output=lambda out: out[0])


def _cells(rnn: nn.RNNBase, rows: int) -> Peer:
    """torch's cells, one a layer."""
    cells = [CELL_MODULES[rnn.mode.lower()](rnn.input_size, rnn.hidden_size)]
    cells += [type(cells[0])(rnn.hidden_size, rnn.hidden_size) for _ in range(1, rnn.num_layers)]
    for layer, cell in enumerate(cells):
        cell.load_state_dict({name: getattr(rnn, f"{name}_l{layer}") for name in cell.state_dict()})
    zeros = torch.zeros(rows, rnn.hidden_size)

    if rnn.mode == "GRU":
        states = [zeros for _ in cells]

        def step(x: Tensor) -> Tensor:
            for layer, cell in enumerate(cells):
                x = states[layer] = cell(x, states[layer])
            return x

    else:
        pairs = [(zeros, zeros) for _ in cells]

        def step(x: Tensor) -> Tensor:
            for layer, cell in enumerate(cells):
                pairs[layer] = cell(x, pairs[layer])
                x = pairs[layer][0]
            return x

    return Peer(step)


def _compiled(rnn: nn.RNNBase, rows: int) -> Peer:
    """torch.compile with freezing, by which inductor packs the weights.

    It leaves recurrent layers alone unless `allow_rnn` says otherwise; what was compiled before is
    forgotten, since it compiles one class a few times only.
    """
    from torch._dynamo import config as dynamo
    from torch._inductor import config as inductor

    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(rnn), fullgraph=True, dynamic=False)
    first = _layers(compiled, rnn, rows)
    with inductor.patch(freezing=True), dynamo.patch(allow_rnn=True), torch.inference_mode():
        try:
            for _ in range(2):  # the second with states as it returns them
                first.step(torch.zeros(1, rows, rnn.input_size))
        except (RuntimeError, OSError) as error:
            said = " ".join(str(error).split())[:200]
            raise Unavailable(f"{type(error).__name__}: {said}") from error
    return _layers(compiled, rnn, rows)


def _onnx(rnn: nn.RNNBase, rows: int, threads: int, bound: bool) -> Peer:
    """ONNX Runtime, where a step's states are the outputs of the one before."""
    if why := onnx_graph.missing():
        raise Unavailable(why)
    graph = onnx_graph.model(rnn.mode.lower(), rnn.state_dict(), one_step=True)
    session = onnx_graph.session(graph, threads, stop_spinning=False)
    states = [argument.name for argument in session.get_inputs() if argument.name != "X"]
    following = [f"next_{name}" for name in states]
    last = following.index(f"next_h{rnn.num_layers - 1}")
    zeros = np.zeros((1, rows, rnn.hidden_size), np.float32)

    if not bound:
        feeds = dict.fromkeys(states, zeros)

        def run(x: np.ndarray) -> np.ndarray:
            feeds["X"] = x
            outs = session.run(following, feeds)
            feeds.update(zip(states, outs, strict=True))
            return outs[last]

        return Peer(run, lambda x: x[None].numpy(), lambda out: torch.from_numpy(out)[0])

    from onnxruntime import OrtValue

    x_value = OrtValue.ortvalue_from_numpy(np.zeros((1, rows, rnn.input_size), np.float32))
    # Two sets of buffers, each of which is read while the other is written.
    buffers = [[OrtValue.ortvalue_from_numpy(zeros.copy()) for _ in states] for _ in range(2)]
    bindings = []
    for before, after in (buffers, buffers[::-1]):
        binding = session.io_binding()
        binding.bind_ortvalue_input("X", x_value)
        for name, value in zip(states, before, strict=True):
            binding.bind_ortvalue_input(name, value)
        for name, value in zip(following, after, strict=True):
            binding.bind_ortvalue_output(name, value)
        bindings.append(binding)
    turn = 0

    def step(_: None) -> Any:
        nonlocal turn
        session.run_with_iobinding(bindings[turn])
        turn = 1 - turn
        return buffers[turn][last]

    def given(x: Tensor) -> None:
        x_value.update_inplace(x[None].contiguous().numpy())

    return Peer(step, given, lambda value: torch.from_numpy(value.numpy().copy())[0])


def peers(theirs: nn.RNNBase, rows: int) -> Mapping[str, Callable[[], Peer]]:
    """All peers with the weights of a layer of torch's, each made when it is called."""
    cell = theirs.mode.lower()
    ours = OUR_MODULES[cell](theirs.input_size, theirs.hidden_size, theirs.num_layers).eval()
    ours.load_state_dict(theirs.state_dict())

    def frozen(weights: torch.dtype | None) -> nn.RNNBase:
        rnn: nn.RNNBase = varlen_rnn.freeze(ours, weights=weights)
        return rnn

    def stream(weights: torch.dtype | None) -> Callable[[], Peer]:
        return lambda: _stream(ours if weights is None else frozen(weights), rows)

    def frozen_layers(weights: torch.dtype | None) -> Callable[[], Peer]:
        return lambda: _layers(frozen(weights), theirs, rows)

    def onnx(threads: int, bound: bool) -> Callable[[], Peer]:
        return lambda: _onnx(theirs, rows, threads, bound)

    return {
        **{f"{STREAM}{name}": stream(weights) for name, weights in WEIGHTS.items()},
        MODULE: lambda: _layers(ours, theirs, rows),
        **{f"{FROZEN}{name}": frozen_layers(weights) for name, weights in WEIGHTS.items()},
        NN: lambda: _layers(theirs, theirs, rows),
        CELL: lambda: _cells(theirs, rows),
        COMPILED: lambda: _compiled(theirs, rows),
        NN_INT8: lambda: _layers(torch_quantized(theirs), theirs, rows),
        **{name: onnx(*way) for name, way in ONNX_WAYS.items()},
    }
