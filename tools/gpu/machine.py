"""Where the steps' programs run: on a GPU, or on the CPU, with emulated ops or without."""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from varlen_rnn.ops import self_check
from varlen_rnn.runtime import extension

# The folder of the emulator's module; unset on a GPU.
EMULATED = "VARLEN_RNN_EMULATED"
KINDS = ("inference", "forward", "backward")
_overrides: list[torch.library.Library] = []


def emulate() -> Any:
    """From now on ops on CPU tensors are those of the emulator, whose module is returned."""
    folder = os.environ[EMULATED]
    sys.path.insert(0, folder)
    module = importlib.import_module("_emulated")
    sys.path.remove(folder)
    library = torch.library.Library("varlen_rnn", "IMPL")
    for cell in ("lstm", "gru"):
        for kind in KINDS:
            op = getattr(torch.ops.varlen_rnn_emulated, f"{cell}_{kind}")
            library.impl(f"{cell}_{kind}", op.default, "CPU")
    _overrides.append(library)  # which holds as long as it lives
    emulated = self_check.Kernels(torch.ops.varlen_rnn_emulated, module, "cpu")
    module.settings().self_check = extension.CUDA_SELF_CHECK
    module.set_checker(functools.partial(self_check.compare_paths, emulated))
    return module


def kernels(device: torch.device) -> Any | None:
    """The module with the settings of the kernels in use; None on a CPU without the emulator."""
    if device.type == "cuda":
        return importlib.import_module("varlen_rnn._C_cuda")
    return emulate() if os.environ.get(EMULATED) else None


@contextmanager
def forced(module: Any | None, path: str | None, cluster_size: int = 0) -> Iterator[None]:
    """Calls take this path and teams of this many blocks; None and 0: what they choose themselves.

    Whatever forces a path holds for its thread only, so gradients are computed in this one, too.
    """
    if module is None:
        yield
        return
    settings = module.settings()
    settings.cluster_size, settings.force_path = cluster_size, path
    try:
        with torch.autograd.set_multithreading_enabled(False):
            yield
    finally:
        settings.cluster_size, settings.force_path = 0, None
