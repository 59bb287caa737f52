"""Nodes LSTM or GRU on torch's weights, run by ONNX Runtime: whole batches, or single steps.

On batches its worker threads spin between the nodes of a graph as they do by default, so that it
runs at its best; once a run is over they are told to stop (`session.force_spinning_stop`), because
threads that go on spinning would take their core away from whichever peer has the next turn.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    import numpy as np
    from onnxruntime import InferenceSession

    from benchmarks.workloads import Batch, Workload

# Where ONNX's gates stand among torch's: i f g o to i o f c, and r z n to z r h.
GATE_ORDER = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2)}
STATES = {"lstm": ("h", "c"), "gru": ("h",)}
# Old enough for every ONNX Runtime that has wheels for the supported Pythons.
IR_VERSION, OPSET = 8, 14
ERRORS_ONLY = 3


def missing() -> str | None:
    """Which packages are not there, or None if all are."""
    packages = ("onnx", "onnxruntime")
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    return f"{' and '.join(absent)} not installed" if absent else None


def unavailable(workload: Workload, device: str) -> str | None:
    """Why ONNX Runtime cannot run that, or None if it can."""
    if why := missing():
        return why
    if workload.training:
        return "does inference only"
    if workload.dtype != "float32":
        return f"has no {workload.dtype} kernel"
    return None if device == "cpu" else f"runs on the CPU here, not on {device}"


def _gates(weight: Tensor, cell: str) -> Tensor:
    """Torch's ``[gates * H, *]`` in ONNX's order of gates."""
    chunks = weight.chunk(len(GATE_ORDER[cell]))
    return torch.cat([chunks[index] for index in GATE_ORDER[cell]])


def model(cell: str, weights: Mapping[str, Tensor], one_step: bool = False) -> bytes:
    """A graph with the weights of a `state_dict` of torch's layer, of one direction.

    One layer on a batch: inputs ``X [T, B, I]`` and ``lens [B]`` int32, output ``Y [T, 1, B, H]``.
    Or one step of any number of layers, a node each: inputs ``X [1, B, I]`` and the states of each
    layer k, ``h{k}`` and for an LSTM ``c{k}``, outputs ``next_h{k}`` and ``next_c{k}``, all
    ``[1, B, H]``; the last ``next_h`` is the layers' output.
    """
    from onnx import TensorProto, checker, helper, numpy_helper

    num_layers = sum(name.startswith("weight_ih") for name in weights)
    hidden_size, input_size = weights["weight_hh_l0"].shape[1], weights["weight_ih_l0"].shape[1]
    options: dict[str, Any] = {"hidden_size": hidden_size}
    options |= {"linear_before_reset": 1} if cell == "gru" else {}

    def floats(name: str, *sizes: str | int) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes)

    inputs = [floats("X", 1 if one_step else "steps", "rows", input_size)]
    nodes, arrays, outputs = [], [], []
    if not one_step:
        assert num_layers == 1
        inputs.append(helper.make_tensor_value_info("lens", TensorProto.INT32, ["rows"]))
        outputs.append(floats("Y", "steps", 1, "rows", hidden_size))
    x = "X"
    for layer in range(num_layers):
        names = [f"{kind}_{of}_l{layer}" for kind in ("weight", "bias") for of in ("ih", "hh")]
        w, r, *biases = (_gates(weights[name], cell) for name in names)
        of_layer = {f"W{layer}": w, f"R{layer}": r, f"B{layer}": torch.cat(biases)}
        arrays += [numpy_helper.from_array(t[None].numpy(), name) for name, t in of_layer.items()]
        if one_step:
            states = [f"{letter}{layer}" for letter in STATES[cell]]
            given, made = ["", *states], ["", *(f"next_{name}" for name in states)]
            inputs += [floats(name, 1, "rows", hidden_size) for name in given[1:]]
            outputs += [floats(name, 1, "rows", hidden_size) for name in made[1:]]
        else:
            given, made = ["lens"], ["Y"]
        nodes.append(helper.make_node(cell.upper(), [x, *of_layer, *given], made, **options))
        x = f"next_h{layer}"  # of one step, the state is the output
    graph = helper.make_graph(nodes, "layers", inputs, outputs, arrays)
    opsets = [helper.make_opsetid("", OPSET)]
    whole = helper.make_model(graph, ir_version=IR_VERSION, opset_imports=opsets)
    checker.check_model(whole, full_check=True)
    serialized: bytes = whole.SerializeToString()
    return serialized


def session(graph: bytes, threads: int, stop_spinning: bool) -> InferenceSession:
    """On the CPU; 0 threads are the default number."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = ERRORS_ONLY
    if stop_spinning:
        options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def prepare(batch: Batch) -> Callable[[], list[np.ndarray]]:
    """A session with as many threads as torch has; the call runs it and returns ``[Y]``."""
    graph = model(batch.workload.cell, batch.weights)
    runs = session(graph, torch.get_num_threads(), stop_spinning=True)
    x = batch.in_form("padded").input
    feeds = {"X": x.numpy(), "lens": batch.lengths.int().numpy()}
    return lambda: runs.run(["Y"], feeds)
