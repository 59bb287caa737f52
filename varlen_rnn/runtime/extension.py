"""Loads the compiled extension, or says why it is not there."""

from __future__ import annotations

import functools
import importlib
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch  # its shared libraries must be in memory before the extension's
from torch import Tensor
from torch.autograd import forward_ad

from varlen_rnn.runtime.tracing import tracing

DISABLE = "VARLEN_RNN_DISABLE_EXTENSION"
DISABLE_CUDA = "VARLEN_RNN_DISABLE_CUDA"
CPU_ISA = "VARLEN_RNN_CPU_ISA"
# Whether CUDA kernels are checked where they are used first (varlen_rnn/ops/self_check.py).
CUDA_SELF_CHECK = os.environ.get("VARLEN_RNN_CUDA_SELF_CHECK") != "0"
# The GPUs that results are committed of in benchmarks/results, by name: there the kernels have run.
PROVEN_ON: tuple[str, ...] = ()
# What the checks of the generic path found so far, a line each.
VERDICTS: list[str] = []


def _is_set(switch: str) -> bool:
    return os.environ.get(switch, "0") not in ("", "0")


def _load() -> str | None:
    """Imports ``_C``, which registers the ops; returns why that did not work, or None.

    Raises:
        ValueError: VARLEN_RNN_CPU_ISA names an instruction set that is not there.
    """
    if _is_set(DISABLE):
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
    if _is_set(DISABLE_CUDA):
        return f"{DISABLE_CUDA} is set"
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


def call(op: Callable[..., Any], x: Tensor, args: Sequence[Any]) -> Any:
    """``op(*args)``; on CUDA the next layers and passes may use what is derived from the layout.

    Not where a compiler records, since in what it makes of the call other arrays may come to lie in
    the same memory.
    """
    if not x.is_cuda or tracing():
        return op(*args)
    from varlen_rnn import _C_cuda

    _C_cuda.keep_plans(True)
    try:
        return op(*args)
    finally:
        _C_cuda.keep_plans(False)


def supports_cuda(device: torch.device) -> bool:
    """Whether there are compiled kernels for a tensor's device, of type ``cuda``.

    The first call for a device asks the driver, and warns if there are none for it alone.
    """
    # torch for ROCm calls its devices cuda, too.
    return torch.version.cuda is not None and _runs_on(device)


# So torch.compile takes the answer as a constant, and does not trace what asks the driver. This is
# all that torch.compiler.assume_constant_result does, but that imports torch._dynamo, for a second.
supports_cuda._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _runs_on(device: torch.device) -> bool:
    reason = CUDA_UNAVAILABLE or _why_not_on(device)
    if reason:
        warnings.warn(
            f"varlen_rnn: the CUDA kernels are not in use on {device} ({reason}); "
            "the plain PyTorch reference runs instead",
            RuntimeWarning,
            stacklevel=2,
        )
    return not reason


def _why_not_on(device: torch.device) -> str:
    from varlen_rnn import _C_cuda

    with torch.cuda.device(device):  # and back, without a context on a device that has none
        return _C_cuda.why_not_on(device.index)


def warn_unproven() -> None:
    """Says, the first time only, that no results of a GPU are there, unless some are."""
    global _said_unproven
    if PROVEN_ON or _said_unproven:
        return
    _said_unproven = True
    check = "" if CUDA_SELF_CHECK else "not "
    warnings.warn(
        "varlen_rnn: the CUDA kernels have not been proven on a GPU yet, only in an emulator; they "
        f"are {check}checked where they are used first. {DISABLE_CUDA}=1 turns them off. Please "
        "run `make gpu-check` in a clone of the repository, and report what it says",
        RuntimeWarning,
        stacklevel=2,
    )


_said_unproven = False


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
        the device, it starts the CUDA driver where torch is built with CUDA. With CUDA kernels also
        ``cuda_self_check``: ``"on"`` or ``"off"`` (``VARLEN_RNN_CUDA_SELF_CHECK=0``), and
        ``cuda_verdicts``: a line for what was checked so far, such as ``"cuda:0, lstm, bfloat16, H
        = 256, forward pass, teams of 4 blocks: good"``.

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

    info |= {**_C.build_info(), "cuda": CUDA_UNAVAILABLE or _cuda_info()}
    if CUDA_UNAVAILABLE is not None:
        return info
    from varlen_rnn import _C_cuda

    check = "on" if CUDA_SELF_CHECK else "off"
    return {**info, "cuda_self_check": check, "cuda_verdicts": [*VERDICTS, *_C_cuda.verdicts()]}


def _cuda_info() -> str:
    """The architectures and versions of ``_C_cuda``, and the device."""
    from varlen_rnn import _C_cuda

    device = "no device (torch is built without CUDA)"
    if torch.version.cuda is not None:
        device = _C_cuda.device()
    return f"compiled for {_C_cuda.compiled_for()}; {device}"
