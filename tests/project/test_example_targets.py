"""What `make demo` and others install, compile and print, with a Python that notes its calls."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="there is no make")
ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PYTHON = """#!/bin/sh
echo "$* [$VARLEN_RNN_CUDA_ARCHS $VARLEN_RNN_WERROR]" >>calls
echo "pages of output"
case "$*" in *"${FAILING:-nothing}"*) echo "what went wrong"; exit 3 ;; esac
"""
TORCH, BUILD, EXAMPLES = "install torch==", "install --group build", "install --group examples"
DEV, HERE = "install --group dev", "--editable . [native 0]"
EVERYWHERE = "--editable . [ 1]"
DEMO = "examples/japanese_vowels.py"


class Clone:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in (".venv/bin", "csrc/cpu"):
            (folder / name).mkdir(parents=True)
        for name in ("setup.py", "pyproject.toml", "csrc/cpu/kernel.cpp"):
            (folder / name).touch()
        shutil.copy(ROOT / "Makefile", folder)
        (folder / ".venv/bin/python").write_text(PYTHON)
        (folder / ".venv/bin/python").chmod(0o755)

    def make(self, *arguments: str, **variables: str) -> tuple[int, list[str], list[str]]:
        """Exit status, lines that a user sees, and Python's calls, but for pip's of itself."""
        kept = {
            k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "VARLEN_", "MFLAGS"))
        }
        calls = self.folder / "calls"
        calls.write_text("")
        result = subprocess.run(
            ["make", *arguments, f"PYTHON={sys.executable}"],
            env={**kept, **variables},
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
        called = [line for line in calls.read_text().splitlines() if "--upgrade" not in line]
        return result.returncode, result.stdout.splitlines(), called


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path)


def assert_called(calls: list[str], *expected: str) -> None:
    assert len(calls) == len(expected), calls
    for call, part in zip(calls, expected, strict=True):
        assert part in call


def test_a_demo_installs_what_it_needs_in_three_lines_and_once(clone: Clone) -> None:
    status, lines, calls = clone.make("demo")
    assert status == 0
    assert_called(calls, TORCH, BUILD, EXAMPLES, HERE, DEMO)
    first, *steps, last = lines
    assert "Brings .venv up to date first" in first
    assert [step.split()[0] for step in steps] == ["Installing", "Installing", "Compiling"]
    assert all(step.endswith(" s") for step in steps)
    assert last == "pages of output"  # the demo's own
    assert (clone.folder / "build/install.log").read_text().count("pages of output") == 5

    status, lines, calls = clone.make("demo")
    assert (status, lines) == (0, ["pages of output"])
    assert_called(calls, DEMO)


@pytest.mark.parametrize("target", re.findall(r"^(demo\S*):", MAKEFILE, re.MULTILINE))
def test_every_demo_runs_a_program_with_what_it_needs(clone: Clone, target: str) -> None:
    status, _, calls = clone.make(target, ARGS="--cell gru")
    assert status == 0
    assert_called(calls, TORCH, BUILD, EXAMPLES, HERE, " --cell gru")
    [program] = re.findall(r"\bexamples/\S+", calls[-1])
    assert (ROOT / program).exists()


def test_a_build_for_every_gpu_follows_a_demo_and_serves_the_next(clone: Clone) -> None:
    clone.make("demo")
    assert_called(clone.make("build")[2], EVERYWHERE)
    assert_called(clone.make("demo")[2], DEMO)
    (clone.folder / "csrc/cpu/kernel.cpp").touch()
    assert_called(clone.make("demo")[2], EVERYWHERE, DEMO)
    assert_called(clone.make("demo")[2], DEMO)


def test_a_build_needs_no_packages_of_examples_and_checks_need_all(clone: Clone) -> None:
    assert_called(clone.make("build")[2], TORCH, BUILD, EVERYWHERE)
    assert_called(clone.make("check")[2], EXAMPLES, DEV, "--every 29")
    assert_called(clone.make("demo")[2], DEMO)


def test_a_switch_asks_for_its_own_build(clone: Clone) -> None:
    calls = clone.make("demo", VARLEN_RNN_CUDA_ARCHS="80;90")[2]
    assert_called(calls, TORCH, BUILD, EXAMPLES, "--editable . [80;90 1]", DEMO)
    assert_called(clone.make("demo")[2], HERE, DEMO)


@pytest.mark.parametrize("failing", [TORCH, EXAMPLES, "--editable"])
def test_what_fails_is_shown_and_ends_the_demo(clone: Clone, failing: str) -> None:
    status, lines, calls = clone.make("demo", FAILING=failing)
    assert status != 0
    assert "what went wrong" in lines
    assert "All of it: build/install.log" in lines
    assert failing in calls[-1]
    status, _, calls = clone.make("demo")
    assert status == 0
    assert failing in calls[0]
    assert DEMO in calls[-1]


def test_every_target_has_a_line_in_one_of_two_lists(clone: Clone) -> None:
    lines = clone.make("help")[1]
    assert lines[0] == "For users:"
    users, developers = lines[1 : lines.index("")], lines[lines.index("") + 2 :]
    named = [line.split()[1] for line in users + developers]
    phony = " ".join(MAKEFILE.split(".PHONY:")[1].split("\\\n")).split()
    assert sorted([*named, "ready"]) == sorted(phony)
    assert {"demo", "check", "bench"} <= {line.split()[1] for line in users}
    assert {"lint", "test"} <= {line.split()[1] for line in developers}
