"""Loads the compiled extension, or says why it is not there."""

from __future__ import annotations

import functools
import os
import warnings

import torch  # its shared libraries must be in memory before the extension's

DISABLE = "VARLEN_RNN_DISABLE_EXTENSION"


def _load() -> str | None:
    """Imports ``_C``, which registers the ops; returns why that did not work, or None.

    Raises:
        ValueError: VARLEN_RNN_CPU_ISA names an instruction set that is not there.
    """
    if os.environ.get(DISABLE, "0") not in ("", "0"):
        return f"{DISABLE} is set"
    try:
        from varlen_rnn import _C
    except ImportError as error:
        return str(error)
    # Only OpenMP runs all parts of a parallel loop at the same time.
    _C.set_workers_may_wait("ATen parallel backend: OpenMP" in torch.__config__.parallel_info())
    wanted = os.environ.get("VARLEN_RNN_CPU_ISA")
    if wanted:
        _C.set_cpu_isa(wanted)
    return None


UNAVAILABLE = _load()


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
        ``version``; ``extension``: whether compiled kernels are in use, and if not, ``reason``; if
        they are: ``cpu_isas``: the instruction sets that were compiled and that this CPU has,
        ``cpu_isa``: the one in use, ``torch_target_version``: the oldest torch that the binary runs
        with, ``compiler``.

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

    return {**info, **_C.build_info()}
