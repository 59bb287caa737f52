"""Which compilers the extension is built with, and what is installed if they are too old."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pretend_build import ROOT, Project

CLANG = "#define __GNUC__ 4\\n#define __clang_major__ {}\\n"
GCC = "#define __GNUC__ {}\\n"
OLD = [(GCC.format(10), "is GCC 10, older than GCC 11"), (GCC.format(9), "is GCC 9, older"),
       (CLANG.format(13), "is clang 13, older than clang 14")]  # fmt: skip
NEW = [GCC.format(11), GCC.format(15), CLANG.format(14), CLANG.format(21), ""]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    for package in ("cmake", "ninja", "pybind11"):
        pytest.importorskip(package)
    return Project(tmp_path)


def compiler(folder: Path, macros: str) -> str:
    """A program that says of itself what a compiler says when it is asked for its macros."""
    path = folder / "compiler"
    asked = "-dM -E -x c++ /dev/null"
    path.write_text(f'#!/bin/sh\ntest "$*" = "{asked}" && printf "{macros}"\n')
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("macros", NEW)
def test_what_is_new_enough_or_unknown_is_used(project: Project, macros: str) -> None:
    result = project.build(CXX=compiler(project.folder, macros), VARLEN_RNN_CUDA="0")
    assert result.returncode == 0, result.stderr
    assert project.module.exists()


@pytest.mark.parametrize(("macros", "said"), OLD)
def test_what_is_too_old_gives_the_reference(project: Project, macros: str, said: str) -> None:
    assert project.build(VARLEN_RNN_CUDA="0").returncode == 0
    assert project.module.exists()
    result = project.build(CXX=compiler(project.folder, macros))
    assert result.returncode == 0, result.stderr
    assert not project.module.exists()
    (line,) = (line for line in result.stdout.splitlines() if "WITHOUT" in line)
    assert said in line
    assert line.endswith(": installing WITHOUT the compiled extension")


@pytest.mark.parametrize(("macros", "said"), OLD)
def test_what_is_too_old_is_an_error_where_the_extension_is_demanded(
    project: Project, macros: str, said: str
) -> None:
    result = project.build(CXX=compiler(project.folder, macros), VARLEN_RNN_EXTENSION="1")
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("varlen_rnn: VARLEN_RNN_EXTENSION=1, but ")
    assert said in line
    assert not project.module.exists()


def test_the_lowest_releases_are_those_that_are_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "csrc")
    import build_backend

    (names,) = re.findall(r"^COMPILERS \?= (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert f"g++-{build_backend.OLDEST_GCC}" in names.split()
    assert f"clang++-{build_backend.OLDEST_CLANG}" in names.split()
