"""Memory of streams: steps grow nothing, and allocate nothing but their output.

``STREAM_STEPS=1000000 pytest tests/models/test_streaming_memory.py`` takes a million steps.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import streaming_memory
from helpers import HAS_EXTENSION, child_environment

pytestmark = [
    pytest.mark.skipif(not HAS_EXTENSION, reason="calls of a module allocate what it does"),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc of Linux"),
]

STEPS = int(os.environ.get("STREAM_STEPS", "50000"))
# Python's and torch's own: less than one smallest block for each of the steps that are fewest.
MOST_GROWTH = 64 * 1024
COUNTER = Path(__file__).with_name("count_allocations.c")
COMPILER = shutil.which(os.environ.get("CC", "cc"))
counted = pytest.mark.skipif(
    COMPILER is None or platform.libc_ver()[0] != "glibc", reason="needs a C compiler, and glibc"
)

Measured = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    environment = {}
    if COMPILER is not None and platform.libc_ver()[0] == "glibc":
        library = tmp_path_factory.mktemp("counter") / "count_allocations.so"
        command = [COMPILER, "-O1", "-shared", "-fPIC", "-o", str(library), str(COUNTER)]
        subprocess.run(command, check=True)
        environment["LD_PRELOAD"] = str(library)
    result = subprocess.run(
        [sys.executable, streaming_memory.__file__, str(STEPS)],
        env=child_environment(**environment),
        capture_output=True,
        text=True,
        timeout=60 + STEPS / 1000,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    measured: Measured = json.loads(result.stdout)
    return measured


@pytest.mark.parametrize("call", streaming_memory.CALLS)
def test_steps_grow_nothing(measured: Measured, call: str) -> None:
    assert measured[call]["bytes"] <= MOST_GROWTH


@counted
@pytest.mark.parametrize("call", streaming_memory.CALLS)
def test_steps_allocate_nothing_but_their_output(measured: Measured, call: str) -> None:
    """Blocks of a thousand calls, small ones included, are those of what each call returns.

    Where Python has to make views of arguments, these are small: 512 bytes at most.
    """
    blocks, large = measured[call]["blocks"]
    blocks_without, large_without = measured[call]["without"]
    assert large == large_without
    if call not in streaming_memory.WITH_VIEWS:
        assert blocks <= blocks_without


@counted
def test_the_counter_counts(measured: Measured) -> None:
    """A tensor is a large block for its numbers, and small ones around it."""
    blocks, large = measured["lstm"]["without"]
    assert large == streaming_memory.COUNTED
    assert blocks > large
