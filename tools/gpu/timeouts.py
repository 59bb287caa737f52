"""A pytest plugin for a GPU: a limit for every test, and a new process after what ends one.

A test that waits for a kernel without end can be interrupted by nothing but the end of its process,
and after a fault in a kernel all that comes later in the process fails. So this process ends then,
and `tools.gpu.pytests`, which started it, goes on with the other tests in another. The file that
VARLEN_RNN_TESTS_DONE names has a line for every test that has begun: `begun ID` and `passed ID`, or
what became of it.
"""

from __future__ import annotations

import faulthandler
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

DONE = Path(os.environ["VARLEN_RNN_TESTS_DONE"])
SECONDS = float(os.environ.get("VARLEN_RNN_TEST_SECONDS", "20"))
SHARD, SHARDS = map(int, os.environ.get("VARLEN_RNN_TEST_SHARD", "0/1").split("/"))
FIRST = os.environ.get("VARLEN_RNN_TESTS_FIRST", "")
# Of before pytest captures what is written there.
STDERR = os.dup(2)
# The status of a process that ended because the device does no longer work.
DEVICE_LOST = 77


def note(what: str, test: str) -> None:
    """Adds a line."""
    with DONE.open("a", encoding="utf-8") as file:
        file.write(f"{what} {test}\n")


def begun() -> set[str]:
    """The tests that have begun in an earlier process."""
    lines = DONE.read_text(encoding="utf-8").splitlines() if DONE.exists() else []
    return {line.split(" ", 1)[1] for line in lines}


def pytest_configure(config: pytest.Config) -> None:
    """That they have not run on a GPU is why they run here."""
    unproven = "ignore:varlen_rnn. the CUDA kernels have not been proven:RuntimeWarning"
    config.addinivalue_line("filterwarnings", unproven)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of this shard what has not begun yet, the short list first."""
    mine = items[SHARD::SHARDS]
    left = [item for item in mine if item.nodeid not in begun()]
    items[:] = sorted(left, key=lambda item: not (FIRST and FIRST in item.nodeid))


def device_is_lost() -> bool:
    """Whether a kernel of this process has failed in a way that no call gets over."""
    import torch

    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """With a watch that ends the process."""
    note("begun", item.nodeid)
    faulthandler.dump_traceback_later(SECONDS, exit=True, file=STDERR)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()
        if device_is_lost():
            note("lost", item.nodeid)
            os._exit(DEVICE_LOST)


@pytest.hookimpl
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """What became of it."""
    if report.when == "call" or report.outcome != "passed":
        note(report.outcome, report.nodeid)
    if report.failed:  # said at once, since the process may not live until the summary
        text = f"\nFAILED {report.nodeid}\n{report.longreprtext[-3000:]}\n"
        os.write(STDERR, text.encode(errors="replace"))
