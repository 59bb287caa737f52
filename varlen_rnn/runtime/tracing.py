"""Whether a call is run or recorded."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor


def tracing() -> bool:
    """Whether values may be unknown: under torch.compile, export, jit.trace, or a dispatch mode.

    Then nothing depends on a value, and values are checked when the recorded call runs.
    """
    return (
        torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0 or in_jit_trace()
    )


def in_jit_trace() -> bool:
    """Whether ``torch.jit.trace`` records, which calls twice and compares, without gradients."""
    return torch._C._get_tracing_state() is not None  # faster than torch.jit.is_tracing


def asserted(value: Tensor, right: Tensor, message: str) -> Tensor:
    """``value``, whose call fails with a message where ``right`` is False when it runs.

    A graph of ``torch.jit.trace`` drops what nothing depends on, so that what is returned has to be
    used in place of ``value``.
    """
    if not in_jit_trace():
        torch._assert_async(right, message)
        return value
    token = torch.zeros((), device=right.device)
    token = torch.ops.aten._functional_assert_async.msg(right, message, token)
    return value.masked_fill(token != 0, 0)


CheckT = TypeVar("CheckT", bound=Callable[..., Any])


def unseen(check: CheckT) -> CheckT:
    """Hides what a function does from ``torch.jit.trace``, where it compares sizes.

    In a trace sizes are values of the graph, and a comparison would make them constants.
    """

    @functools.wraps(check)
    def hidden(*args: Any) -> Any:
        if not in_jit_trace():
            return check(*args)
        tracer: Any = torch._C
        state = tracer._get_tracing_state()
        tracer._set_tracing_state(None)
        try:
            return check(*args)
        finally:
            tracer._set_tracing_state(state)

    return cast("CheckT", hidden)
