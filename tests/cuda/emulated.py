"""What the tests of the CUDA ops in the emulator share: how cases are run, and their truth.

``make test-emulator`` compiles the kernels and the ops for the CPU as the module ``_emulated`` and
says in VARLEN_RNN_EMULATED in which folder it lies; without that these tests are skipped.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from emulated_cases import PERSISTENT, Case, capacity_layout, exact_layout, tensors_of
from helpers import Results, assert_bitwise, largest, max_error
from ragged import Ragged
from rounded import rounded_cell
from torch import Tensor

from varlen_rnn import reference
from varlen_rnn.layout import Layout
from varlen_rnn.reference import layers

FOLDER = os.environ.get("VARLEN_RNN_EMULATED")
if FOLDER is None:
    pytest.skip("VARLEN_RNN_EMULATED is not set (make test-emulator)", allow_module_level=True)
sys.path.insert(0, FOLDER)
_emulated: Any = importlib.import_module("_emulated")
sys.path.remove(FOLDER)

# Shared memory of a block and the largest cluster: of Hopper, and of Blackwell's desktop GPUs.
HOPPER = 227 * 1024, 16
DESKTOP = 99 * 1024, 8


def configure(
    *,
    persistent: bool = True,
    cluster_size: int = 0,
    clusters: int = 2,
    on_device: bool = False,
    seed: int = 1,
    limits: tuple[int, int] = HOPPER,
    is_capturing: bool = False,
    self_check: bool = False,
    has_cublas: bool = True,
    math_mode: int = 0,
) -> None:
    """How ops run from now on: on which path, and on which machine.

    ``clusters`` are active at a time; ``on_device`` says that ``batch_sizes`` lie on the device;
    ``math_mode`` is that of torch's products.
    """
    settings, machine = _emulated.settings(), _emulated.machine()
    settings.persistent, settings.cluster_size = persistent, cluster_size
    settings.layouts_on_device = on_device
    settings.self_check = self_check
    machine.active_clusters, machine.seed = clusters, seed
    machine.is_capturing = is_capturing
    blas = _emulated.blas()
    blas.is_there, blas.math_mode, blas.status = has_cublas, math_mode, 0
    _emulated.take_products()
    machine.device.max_shared_bytes, machine.device.max_cluster_size = limits


def op(case: Case, kind: str) -> Any:
    return getattr(torch.ops.varlen_rnn_emulated, f"{case.cell}_{kind}")


def forward_arguments(case: Case, tensors: dict[str, Tensor], arrays: Layout) -> list[Any]:
    states = [tensors.get(f"{name}_0") for name in case.state_names]
    weights = [tensors.get(f"{kind}_{d}") for d in range(2) for kind in case.kinds]
    return [tensors["x"], *states, *weights, *vars(arrays).values(), case.format.is_tf32]


def backward_arguments(
    case: Case, tensors: dict[str, Tensor], arrays: Layout, outputs: Sequence[Tensor]
) -> list[Any]:
    out, *others = outputs
    *cells, gates = others[len(case.state_names) :]
    gradients = {name: tensors.get(f"d_{name}") for name in case.results}
    if gradients.get("cells") is not None:  # as large as the cells are
        surplus = cells[0].shape[1] - gradients["cells"].shape[1]
        gradients["cells"] = torch.nn.functional.pad(
            gradients["cells"], (0, 0, 0, surplus), value=float("nan")
        )
    kinds = [kind for kind in case.kinds if "bias" not in kind]
    states = [tensors.get(f"{name}_0") for name in case.state_names]
    weights = [tensors.get(f"{kind}_{d}") for d in range(2) for kind in kinds]
    return [
        *gradients.values(),
        tensors["x"],
        *states,
        *weights,
        *vars(arrays).values(),
        case.format.is_tf32,
        out,
        gates,
        *cells,
        True,
        True,
    ]


def run(
    case: Case,
    tensors: dict[str, Tensor] | None = None,
    batch: Ragged | None = None,
    arrays: Layout | None = None,
    **how: Any,
) -> Results:
    """Results and gradients by the emulated ops; ``how`` is that of ``configure``."""
    tensors = tensors_of(case) if tensors is None else tensors
    batch = case.ragged if batch is None else batch
    if arrays is None:
        arrays = (capacity_layout if how.get("on_device") else exact_layout)(batch, case.directions)
    configure(**how)
    outputs = op(case, "forward")(*forward_arguments(case, tensors, arrays))
    gradients = op(case, "backward")(*backward_arguments(case, tensors, arrays, outputs))
    results = dict(zip(case.results, outputs, strict=False))
    if case.is_lstm:
        results["cells"] = results["cells"][:, : int(batch.valid.sum())]
    names = ["x", *(f"{name}_0" for name in case.state_names)]
    names += [f"{kind}_{d}" for d in range(2) for kind in case.kinds]
    found = dict(zip(names, gradients, strict=True))
    return results | {f"d_{name}": found[name] for name in names if name in tensors}


@functools.cache
def truth_of(case: Case, persistent: tuple[bool, bool]) -> Results:
    """The same by the reference in float64, with the roundings of the format on these paths."""
    tensors = tensors_of(case)
    doubles = {name: t.double().nan_to_num(0.0) for name, t in tensors.items()}
    leaves = {n: t.requires_grad_() for n, t in doubles.items() if not n.startswith("d_")}
    cell = {"lstm": reference.lstm_cell, "gru": reference.gru_cell}[case.cell]
    if case.format.is_16_bit or any(persistent):
        cell = rounded_cell(case.cell, case.format, persistent)
    weights = [
        tuple(leaves.get(f"{kind}_{d}") for kind in case.kinds) for d in range(case.directions)
    ]
    sizes = [case.output_size, case.hidden_size][: len(case.state_names)]
    initial = [leaves.get(f"{name}_0") for name in case.state_names]
    out, finals, cells = layers.run(
        cell, leaves["x"], initial, sizes, weights, exact_layout(case.ragged, case.directions)
    )
    outputs = [out, *finals]
    if case.is_lstm:
        outputs.append(torch.stack([torch.cat(steps) for steps in cells]))
    results = dict(zip(case.results, outputs, strict=True))
    loss = sum((t * doubles[f"d_{n}"]).sum() for n, t in results.items() if f"d_{n}" in doubles)
    gradients = torch.autograd.grad(
        loss, list(leaves.values()), materialize_grads=True, allow_unused=True
    )
    results = {name: t.detach() for name, t in results.items()}
    return results | {f"d_{name}": d for name, d in zip(leaves, gradients, strict=True)}


def paths_of(
    case: Case,
    *,
    persistent: bool = True,
    cluster_size: int = 0,
    limits: tuple[int, int] = HOPPER,
    **_others: Any,
) -> tuple[bool, bool]:
    """Whether the forward and the backward pass take the persistent path in such a ``run``."""
    fits = persistent and not case.projected_size and case.number in PERSISTENT
    forward, backward = (
        fits and first_team(case, is_backward, cluster_size, limits) is not None
        for is_backward in (False, True)
    )
    return forward, backward


def tolerance(case: Case, persistent: tuple[bool, bool]) -> float:
    """Largest error of a value, and of a gradient relative to the largest one.

    Of a 16-bit result half an epsilon is its own rounding; the other half is for values before it
    that lay between two numbers and were rounded the other way. What TF32 rounds the other way is
    one operand of many, of which less than a quarter is left in the sum. float32 sums up to 4 H
    products, each with a rounding of its own; float64 has the whole library's bound.
    """
    if case.format.is_16_bit:
        return case.format.epsilon
    if any(persistent):
        return case.format.epsilon / 4
    return 1e-12 if case.number == "float64" else 16 * 2.0**-23


def assert_right(got: Results, case: Case, **how: Any) -> None:
    """The results of such a ``run`` against the truth."""
    persistent = paths_of(case, **how)
    truth = truth_of(case, persistent)
    assert got.keys() == truth.keys()
    for name, expected in truth.items():
        scale = largest(expected) if name.startswith("d_") else max(largest(expected), 1.0)
        bound = tolerance(case, persistent) * scale
        error = max_error(got[name], expected)
        assert error <= bound, f"{name}: error {error:.3g}, at most {bound:.3g} expected"


def assert_same(got: Results, expected: Results) -> None:
    """Bit for bit."""
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert_bitwise(got[name], tensor, name)


def first_team(
    case: Case, is_backward: bool, cluster_size: int = 0, limits: tuple[int, int] = HOPPER
) -> Any:
    """The team that a pass gets if it wants this cluster size (0: any), or None."""
    teams = _emulated.possible_teams(
        is_lstm=case.is_lstm,
        is_backward=is_backward,
        hidden_size=case.hidden_size,
        element_size=case.format.dtype.itemsize,
        max_shared_bytes=limits[0],
        max_cluster_size=limits[1],
    )
    return next((team for team in teams if cluster_size in (0, team.cluster_size)), None)


def check(case: Case, **how: Any) -> None:
    """Runs a case, and holds it to its truth."""
    assert_right(run(case, **how), case, **how)
