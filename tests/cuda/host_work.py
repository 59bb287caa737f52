"""Counts what the host does in a call of the emulated ops: launches, and what it asks of torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from emulated import _emulated
from torch.profiler import ProfilerActivity, profile

# They compute nothing, and launch nothing.
ALLOCATIONS = ("empty", "empty_like", "empty_strided", "new_empty", "detach")
VIEWS = ("as_strided", "narrow", "reshape", "select", "slice", "t", "transpose", "view")
PRODUCTS = ("addmm", "bmm", "linear", "matmul", "mm")


class HostWork(NamedTuple):
    """The work of a call.

    Attributes:
        launches: of kernels.
        operations: operators of torch's that start something on the device, but products.
        products: torch's.
        gemms: products by cuBLAS, called directly.
        allocations: that torch is asked for; the ops' own go past what is counted here.
        views: of tensors.
    """

    launches: int = 0
    operations: int = 0
    products: int = 0
    gemms: int = 0
    allocations: int = 0
    views: int = 0


def work_of(call: Callable[[], object]) -> HostWork:
    """Of a call, with the ATen operators that others than ATen call, those in C++ included."""
    _emulated.take_products()
    before = _emulated.counters()["launches"]
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        call()
    launches = _emulated.counters()["launches"] - before
    names = [
        event.name.removeprefix("aten::")
        for event in profiled.events()
        if event.name.startswith("aten::")
        and not (event.cpu_parent and event.cpu_parent.name.startswith("aten::"))
    ]
    products, allocations, views = (
        sum(name in kind for name in names) for kind in (PRODUCTS, ALLOCATIONS, VIEWS)
    )
    operations = len(names) - products - allocations - views
    gemms = len(_emulated.take_products())
    return HostWork(launches, operations, products, gemms, allocations, views)
