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
    import onnx

    from benchmarks.workloads import Batch, Workload

# Where ONNX's gates stand among torch's: i f g o to i o f c, and r z n to z r h.
GATE_ORDER = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2)}
# Old enough for every ONNX Runtime that has wheels for the supported Pythons.
OPSET, IR_VERSION = 14, 8
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


def build_model(batch: Batch) -> onnx.ModelProto:
    """Inputs ``X [T, B, I]`` and ``sequence_lens [B]`` int32, output ``Y [T, 1, B, H]``."""
    from onnx import TensorProto, checker, helper, numpy_helper

    workload = batch.workload
    w = {name: _gates(weight, workload.cell) for name, weight in batch.weights.items()}
    initializers = {
        "W": w["weight_ih_l0"],
        "R": w["weight_hh_l0"],
        "B": torch.cat((w["bias_ih_l0"], w["bias_hh_l0"])),
    }
    hidden = workload.hidden_size
    after_projection = {"linear_before_reset": 1} if workload.cell == "gru" else {}
    node = helper.make_node(
        workload.cell.upper(),
        ["X", "W", "R", "B", "sequence_lens"],
        ["Y"],
        hidden_size=hidden,
        **after_projection,
    )
    steps, rows, size = batch.x.shape
    graph = helper.make_graph(
        [node],
        "layer",
        [
            helper.make_tensor_value_info("X", TensorProto.FLOAT, [steps, rows, size]),
            helper.make_tensor_value_info("sequence_lens", TensorProto.INT32, [rows]),
        ],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, [steps, 1, rows, hidden])],
        [numpy_helper.from_array(t[None].numpy(), name) for name, t in initializers.items()],
    )
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    checker.check_model(model)
    return model


def prepare(batch: Batch) -> Callable[[], list[np.ndarray]]:
    """A session with as many threads as torch has; the call runs it and returns ``[Y]``."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = ERRORS_ONLY
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(
        build_model(batch).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feeds = {"X": batch.x.numpy(), "sequence_lens": batch.lengths.int().numpy()}
    return lambda: session.run(["Y"], feeds)
