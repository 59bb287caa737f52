"""Whether a call is run or recorded."""

from __future__ import annotations

import torch


def tracing() -> bool:
    """Whether values may be unknown: under torch.compile, torch.export, or a dispatch mode.

    Then nothing depends on a value, and values are checked when the recorded call runs.
    """
    return torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0
