"""What the tests on a CUDA device share.

Without a GPU, or where the CUDA kernels were not compiled, all of them are skipped. With
VARLEN_RNN_TEST_DEVICE=cpu they run on the CPU, but for what is about CUDA itself: so the tests are
tested.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# cuBLAS is deterministic with this workspace only; torch checks it at the first product.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import pytest
import torch
from helpers import (
    OURS,
    TORCH,
    Results,
    as_hx,
    largest,
    leaves_of,
    max_error,
    random_batch,
    random_hx,
    states_of,
    torch_packed,
)
from torch import Tensor, nn

from varlen_rnn.runtime import extension

DEVICE = torch.device(os.environ.get("VARLEN_RNN_TEST_DEVICE", "cuda"))
ON_CUDA = DEVICE.type == "cuda"


def _missing() -> str | None:
    """Why nothing can run, or None."""
    if not ON_CUDA:
        return None
    if not torch.cuda.is_available():
        return "no CUDA device"
    if extension.CUDA_UNAVAILABLE is not None:
        return f"the CUDA kernels are not there: {extension.CUDA_UNAVAILABLE}"
    return None


MISSING = _missing()
HAS_CLUSTERS = ON_CUDA and MISSING is None and torch.cuda.get_device_capability()[0] >= 9
needs_device = pytest.mark.skipif(MISSING is not None, reason=MISSING or "")
cuda_only = pytest.mark.skipif(not ON_CUDA, reason="is about CUDA itself")
persistent_only = pytest.mark.skipif(
    ON_CUDA and not HAS_CLUSTERS, reason="the persistent kernels need sm_90 or newer"
)

# What is stored, torch's switch of TF32, and the largest error relative to the largest value.
PRECISIONS = {
    "float64": (torch.float64, "ieee", 1e-11),
    "float32": (torch.float32, "ieee", 2e-5),
    "tf32": (torch.float32, "tf32", 1e-2),
    "float16": (torch.float16, "ieee", 1e-2),
    "bfloat16": (torch.bfloat16, "ieee", 8e-2),
}
PERSISTENT = ("tf32", "float16", "bfloat16")
LENGTHS = (5, 0, 17, 1, 9, 17, 3)


@contextmanager
def precision(name: str) -> Iterator[None]:
    """torch's own switch of cuDNN's recurrent layers, which is ours as well."""
    before = torch.backends.cudnn.rnn.fp32_precision
    torch.backends.cudnn.rnn.fp32_precision = PRECISIONS[name][1]
    try:
        yield
    finally:
        torch.backends.cudnn.rnn.fp32_precision = before


def module(cell: str, name: str, *sizes: int, seed: int = 0, **options: object) -> nn.RNNBase:
    """Ours on the device."""
    torch.manual_seed(seed)
    return OURS[cell](*sizes, dtype=PRECISIONS[name][0], **options).to(DEVICE)


def truth_of(rnn: nn.RNNBase, cell: str) -> nn.RNNBase:
    """torch's module on the CPU in float64, with the same weights."""
    names = ("num_layers", "bias", "batch_first", "bidirectional", "proj_size")
    options = {name: getattr(rnn, name) for name in names if name != "proj_size" or rnn.proj_size}
    truth = TORCH[cell](rnn.input_size, rnn.hidden_size, dtype=torch.float64, **options)
    truth.load_state_dict(rnn.state_dict())
    return truth


def run_with_gradients(
    rnn: nn.RNNBase,
    x: Tensor,
    states: list[Tensor],
    call: Callable[[Tensor, list[Tensor]], tuple[Tensor, list[Tensor]]],
) -> Results:
    """Outputs, final states, and the gradients of a random linear loss over all of them."""
    leaves = leaves_of(rnn, x, states)
    out, finals = call(x, states)
    results = {"out": out, **dict(zip(("h_n", "c_n"), finals, strict=False))}
    generator = torch.Generator().manual_seed(3)
    factors = [torch.randn(t.shape, generator=generator).to(t) for t in results.values()]
    loss = sum((t * f).double().sum() for t, f in zip(results.values(), factors, strict=True))
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    gradients = {
        f"d_{name}": torch.zeros_like(leaf) if d is None else d
        for (name, leaf), d in zip(leaves.items(), found, strict=True)
    }
    return {name: t.detach().cpu() for name, t in (results | gradients).items()}


def in_double(tensors: list[Tensor]) -> list[Tensor]:
    return [t.detach().cpu().double() for t in tensors]


def assert_near(got: Results, expected: Results, tolerance: float) -> None:
    """Relative to the largest value of what is compared."""
    assert got.keys() == expected.keys()
    for name, truth in expected.items():
        error, scale = max_error(got[name], truth), largest(truth)
        assert error <= tolerance * scale, f"{name}: error {error:.3g} at scale {scale:.3g}"


def check(
    cell: str,
    name: str,
    sizes: tuple[int, int],
    lengths: tuple[int, ...] = LENGTHS,
    *,
    with_states: bool = True,
    **options: object,
) -> None:
    """Padded rows with lengths on the device, forward and backward, against torch.nn in float64."""
    rnn = module(cell, name, *sizes, **options)
    steps = max(lengths, default=0)
    x = random_batch(rnn, len(lengths), steps).to(DEVICE)
    states = [s.to(DEVICE) for s in random_hx(rnn, len(lengths))] if with_states else []

    def ours(x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        batch = x if rnn.batch_first else x.transpose(0, 1)
        out, hx = rnn(batch, as_hx(states), lengths=torch.tensor(lengths, device=DEVICE))
        return out if rnn.batch_first else out.transpose(0, 1), states_of(hx)

    truth = truth_of(rnn, cell)
    expected = run_with_gradients(
        truth,
        *(in_double([x])[0], in_double(states)),
        lambda x, states: torch_packed(truth, x, states, lengths),
    )
    with precision(name):
        got = run_with_gradients(rnn, x, states, ours)
    assert_near(got, expected, PRECISIONS[name][2])
