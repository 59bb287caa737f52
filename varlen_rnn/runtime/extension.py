"""Loads the compiled extension, or says why it is not there."""

from __future__ import annotations

import functools
import importlib
import os
import warnings
from pathlib import Path
from typing import Any

import torch  # its shared libraries must be in memory before the extension's
from torch import Tensor
from torch.autograd import forward_ad

DISABLE = "VARLEN_RNN_DISABLE_EXTENSION"
CPU_ISA = "VARLEN_RNN_CPU_ISA"


def _load() -> str | None:
    """Imports ``_C``, which registers the ops; returns why that did not work, or None.

    Raises:
        ValueError: VARLEN_RNN_CPU_ISA names an instruction set that is not there.
    """
    if os.environ.get(DISABLE, "0") not in ("", "0"):
        return f"{DISABLE} is set"
    try:
        _C: Any = importlib.import_module("varlen_rnn._C")
    except ModuleNotFoundError:
        return f"none is compiled in {Path(__file__).parents[1]}"
    except ImportError as error:
        return str(error)
    # Only OpenMP runs all parts of a parallel loop at the same time.
    _C.set_workers_may_wait("ATen parallel backend: OpenMP" in torch.__config__.parallel_info())
    wanted = os.environ.get(CPU_ISA)
    if wanted:
        available = _C.available_cpu_isas()
        if wanted not in available:
            raise ValueError(f"{CPU_ISA} must be one of {available}, got {wanted!r}")
        _C.set_cpu_isa(wanted)
    return None


def _load_cuda() -> str | None:
    """Imports ``_C_cuda``, which registers the ops for CUDA tensors; returns why that did not work.

    That starts no driver and makes no context: a process that forks later can use CUDA in its
    children.
    """
    try:
        importlib.import_module("varlen_rnn._C_cuda")
    except ModuleNotFoundError:
        return "not compiled"
    except ImportError as error:
        return f"failed to load: {error}"
    return None


_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

UNAVAILABLE = _load()
CUDA_UNAVAILABLE = _load_cuda() if UNAVAILABLE is None else UNAVAILABLE


def vector_bytes() -> int:
    """The size of the registers that the kernels in use compute in; 16 where there are none."""
    if UNAVAILABLE is not None:
        return 16
    from varlen_rnn import _C

    return _C.vector_bytes()


def runs(x: Tensor) -> bool:
    """Whether a compiled op runs, which takes every layout; the reference takes exact ones."""
    if UNAVAILABLE is not None:
        warn_once()
        return False
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return False  # the reference can be batched, and differentiated in forward mode
    if x.dtype not in _DTYPES:
        return False
    return x.is_cpu or (x.is_cuda and supports_cuda(x.device))


def supports_cuda(device: torch.device) -> bool:
    """Whether there are compiled kernels for a tensor's device, of type ``cuda``.

    The first call for a device asks the driver, and warns if there are none for it alone.
    """
    # torch for ROCm calls its devices cuda, too.
    if CUDA_UNAVAILABLE is not None or torch.version.cuda is None:
        return False
    return _runs_on(device)


# So torch.compile takes the answer as a constant, and does not trace what asks the driver. This is
# all that torch.compiler.assume_constant_result does, but that imports torch._dynamo, for a second.
supports_cuda._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _runs_on(device: torch.device) -> bool:
    from varlen_rnn import _C_cuda

    with torch.cuda.device(device):  # and back, without a context on a device that has none
        reason = _C_cuda.why_not_on(device.index)
    if reason:
        warnings.warn(
            f"varlen_rnn: the CUDA kernels are not in use on {device} ({reason}); "
            "the plain PyTorch reference runs instead",
            RuntimeWarning,
            stacklevel=2,
        )
    return not reason


@functools.cache
def warn_once() -> None:
    """Says, the first time only, that the reference runs instead of the compiled kernels."""
    warnings.warn(
        f"varlen_rnn: the compiled extension is not in use ({UNAVAILABLE}); "
        "the plain PyTorch reference runs instead, with the same results but slower",
        RuntimeWarning,
        stacklevel=2,
    )


def build_info() -> dict[str, object]:
    """What was compiled, and what is in use.

    Returns:
        ``version``, and whether compiled kernels are in use (``extension``). If not, ``reason``; if
        they are: ``cpu_isas``: the instruction sets that were compiled and that this CPU has,
        ``cpu_isa``: the one in use, ``torch_target_version``: the oldest torch that the binary runs
        with, ``compiler``, and ``cuda``: one line on the CUDA kernels, such as ``"compiled for
        sm_80, sm_90 by nvcc 13.0.88 with runtime 13.0; no device (torch is built without CUDA)"``,
        the name of torch's current device in place of the last part, or ``"not compiled"``. To say
        the device, it starts the CUDA driver where torch is built with CUDA.

    Example:
        >>> import varlen_rnn
        >>> varlen_rnn.build_info()["version"] == varlen_rnn.__version__
        True
    """
    from importlib.metadata import version

    info: dict[str, object] = {"version": version("varlen_rnn"), "extension": UNAVAILABLE is None}
    if UNAVAILABLE is not None:
        return {**info, "reason": UNAVAILABLE}
    from varlen_rnn import _C

    return {**info, **_C.build_info(), "cuda": CUDA_UNAVAILABLE or _cuda_info()}


def _cuda_info() -> str:
    """The architectures and versions of ``_C_cuda``, and the device."""
    from varlen_rnn import _C_cuda

    device = "no device (torch is built without CUDA)"
    if torch.version.cuda is not None:
        device = _C_cuda.device()
    return f"compiled for {_C_cuda.compiled_for()}; {device}"
