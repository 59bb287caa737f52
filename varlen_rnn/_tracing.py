"""Whether a call is run or recorded."""

from __future__ import annotations

from typing import Any

import torch


def tracing() -> bool:
    """Whether values may be unknown: under torch.compile, export, jit.trace, or a dispatch mode.

    Then nothing depends on a value, and values are checked when the recorded call runs.
    """
    return (
        torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0 or in_jit_trace()
    )


def in_jit_trace() -> bool:
    """Whether ``torch.jit.trace`` records, which calls twice and compares, without gradients."""
    jit: Any = torch.jit
    return bool(jit.is_tracing())
