"""Counts what the host does in a call of the emulated ops: launches, and torch's operators."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from emulated import _emulated
from torch.profiler import ProfilerActivity, profile

# What starts nothing on a device.
_VIEWS = {f"aten::{name}" for name in ("narrow", "slice", "as_strided", "transpose", "view", "t")}
_ROOM = {f"aten::{name}" for name in ("new_empty", "empty", "empty_strided")}
_PRODUCTS = {f"aten::{name}" for name in ("linear", "addmm", "mm", "bmm")}


@dataclass(frozen=True)
class HostWork:
    """The work of a call.

    Attributes:
        launches: of kernels.
        gemms: direct calls of cuBLAS.
        products: of torch's.
        operators: others of torch's that start something on the device.
        views: views, and memory that is asked for.
    """

    launches: int
    gemms: int
    products: int
    operators: int
    views: int


def host_work(call: Callable[[], object]) -> HostWork:
    """Of a call, which is made twice: the first one may find out what later ones know."""
    call()
    _emulated.take_products()
    before = _emulated.counters()["launches"]
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        call()
    launches = _emulated.counters()["launches"] - before
    names = Counter(
        event.name
        for event in profiled.events()
        if event.name.startswith("aten::")
        and (event.cpu_parent is None or not event.cpu_parent.name.startswith("aten::"))
    )
    products = sum(names[name] for name in _PRODUCTS)
    views = sum(names[name] for name in _VIEWS | _ROOM)
    return HostWork(
        launches=launches,
        gemms=len(_emulated.take_products()),
        products=products,
        operators=names.total() - products - views,
        views=views,
    )
