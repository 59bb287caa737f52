"""One LSTM or GRU node with `sequence_lens`, run by ONNX Runtime on torch's weights.

Its worker threads spin between the nodes of a graph as they do by default, so that it runs at its
best; once a run is over they are told to stop (`session.force_spinning_stop`), because threads that
go on spinning would take their core away from whichever peer has the next turn.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    import numpy as np

    from benchmarks.workloads import Batch, Workload

# Where ONNX's gates stand among torch's: i f g o to i o f c, and r z n to z r h.
GATE_ORDER = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2)}
# Old enough for every ONNX Runtime that has wheels for the supported Pythons.
MODEL = """<ir_version: 8, opset_import: ["" : 14]>
layer (float[steps, rows, inputs] X, int32[rows] lens) => (float[steps, 1, rows, units] Y) {{
  Y = {node} <hidden_size = {hidden_size}{option}> (X, W, R, B, lens)
}}"""
ERRORS_ONLY = 3


def unavailable(workload: Workload, device: str) -> str | None:
    """Why ONNX Runtime cannot run that, or None if it can."""
    packages = ("onnx", "onnxruntime")
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        return f"{' and '.join(missing)} not installed"
    if workload.training:
        return "does inference only"
    if workload.dtype != "float32":
        return f"has no {workload.dtype} kernel"
    return None if device == "cpu" else f"runs on the CPU here, not on {device}"


def _gates(weight: Tensor, cell: str) -> Tensor:
    """Torch's ``[gates * H, *]`` in ONNX's order of gates."""
    chunks = weight.chunk(len(GATE_ORDER[cell]))
    return torch.cat([chunks[index] for index in GATE_ORDER[cell]])


def _model(batch: Batch) -> bytes:
    """Inputs ``X [T, B, I]`` and ``lens [B]`` int32, output ``Y [T, 1, B, H]``."""
    from onnx import checker, numpy_helper, parser

    cell = batch.workload.cell
    option = ", linear_before_reset = 1" if cell == "gru" else ""
    sizes = {"node": cell.upper(), "hidden_size": batch.workload.hidden_size, "option": option}
    model = parser.parse_model(MODEL.format(**sizes))
    w = {name: _gates(weight, cell) for name, weight in batch.weights.items()}
    biases = torch.cat((w["bias_ih_l0"], w["bias_hh_l0"]))
    for name, tensor in {"W": w["weight_ih_l0"], "R": w["weight_hh_l0"], "B": biases}.items():
        model.graph.initializer.append(numpy_helper.from_array(tensor[None].numpy(), name))
    checker.check_model(model)
    return model.SerializeToString()


def prepare(batch: Batch) -> Callable[[], list[np.ndarray]]:
    """A session with as many threads as torch has; the call runs it and returns ``[Y]``."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = ERRORS_ONLY
    options.add_session_config_entry("session.force_spinning_stop", "1")
    providers = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(_model(batch), options, providers=providers)
    x = batch.in_form("padded").input
    feeds = {"X": x.numpy(), "lens": batch.lengths.int().numpy()}
    return lambda: session.run(["Y"], feeds)
