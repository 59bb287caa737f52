"""CUDA kernels are checked where a process uses them first, and what is wrong is not used.

Each check runs in a thread of its own, where nothing of the caller's holds: autocast, dispatch
modes, inference mode, transforms.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import TypeVar

import torch

from varlen_rnn.runtime import extension

Key = TypeVar("Key")
_deciding = threading.Lock()


def trusts(
    known: dict[Key, bool],
    key: Key,
    name: str,
    compare: Callable[[], str],
    *,
    instead: str,
    if_captured: bool,
) -> bool:
    """Whether kernels may be used; the first call for a key has them checked.

    Where that cannot be, it is left for a later call: on fake tensors, and in a graph's capture.

    Args:
        known: what was found so far.
        key: of these kernels, on one device.
        name: that of the key in a verdict.
        compare: says what is wrong with them, "" if nothing is.
        instead: what does their work if they are wrong.
        if_captured: the answer in a capture, where nothing was checked before.
    """
    if key not in known:
        if torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None:
            return True
        if extension.CUDA_SELF_CHECK and torch.cuda.is_current_stream_capturing():
            return if_captured
        extension.warn_unproven()
        _decide(known, key, name, compare, instead)
    return known.get(key, True)


def _decide(
    known: dict[Key, bool], key: Key, name: str, compare: Callable[[], str], instead: str
) -> None:
    with _deciding:
        if key in known:
            return
        if not extension.CUDA_SELF_CHECK:
            known[key] = True
            return
        found: list[str] = []
        thread = threading.Thread(target=lambda: found.append(compare()))
        try:
            thread.start()
        except RuntimeError:  # there are no more threads, as when Python ends
            return
        thread.join()
        (fault,) = found
        known[key] = not fault
        extension.VERDICTS.append(f"{name}: {'bad' if fault else 'good'}")
    if fault:
        warnings.warn(
            f"varlen_rnn: the self-check of the CUDA kernels failed ({name}): {fault}; from now on "
            f"{instead}, with right results but slower. Please report this, with what "
            "varlen_rnn.build_info() says",
            RuntimeWarning,
            stacklevel=2,
        )


def fault_of(compare: Callable[[], str], device: torch.device) -> str:
    """What a comparison on a device finds; an error is a fault, too."""
    try:
        with torch.no_grad():
            return compare()
    except Exception as error:  # noqa: BLE001 (whatever it is, something else takes over)
        fault = f"{type(error).__name__}: {error}".strip()
        try:
            torch.zeros(1, device=device).item()
        except RuntimeError:
            fault += (
                " (this error stays: nothing runs on this GPU until the process is started anew; "
                f"{extension.DISABLE_CUDA}=1 turns these kernels off)"
            )
        return fault
