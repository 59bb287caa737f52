"""What a call asks of torch: its operators, those that C++ calls included."""

from __future__ import annotations

from collections.abc import Callable

import torch

# They compute nothing, and launch nothing.
ALLOCATIONS = ("empty", "empty_like", "empty_strided", "new_empty", "detach")
VIEWS = ("as_strided", "narrow", "reshape", "select", "slice", "t", "transpose", "view")
# The products of whole layers.
PRODUCTS = ("addmm", "linear", "mm", "matmul")


def calls_of(call: Callable[[], object]) -> list[str]:
    """The ATen operators that are called by others than ATen, by name and in order.

    What goes past the dispatcher, as the ops' own allocations do, is not seen.
    """
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        call()
    events = sorted(profile.events(), key=lambda event: event.time_range.start)
    names = []
    for event in events:
        parent = event.cpu_parent
        if event.name.startswith("aten::") and not (parent and parent.name.startswith("aten::")):
            names.append(event.name.removeprefix("aten::"))
    return names


def counts_of(names: list[str]) -> dict[str, int]:
    """How many of these are operations, products, allocations and views."""
    kinds = {"products": PRODUCTS, "allocations": ALLOCATIONS, "views": VIEWS}
    counts = {kind: sum(name in members for name in names) for kind, members in kinds.items()}
    return {"operations": len(names) - sum(counts.values()), **counts}
