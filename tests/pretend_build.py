"""Builds that take no time: setup.py beside a CMake project that says what it was asked for."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from helpers import child_environment

ROOT = Path(__file__).parents[1]
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")

# In place of csrc/: "compiles" both modules at once, and notes for which architectures.
PRETEND_BUILD = """
cmake_minimum_required(VERSION 3.24)
project(pretend LANGUAGES NONE)
file(WRITE ${CMAKE_BINARY_DIR}/_C${VARLEN_RNN_EXT_SUFFIX} "")
if(VARLEN_RNN_CUDA)
  execute_process(COMMAND ${CMAKE_CUDA_COMPILER} kernel.cu COMMAND_ERROR_IS_FATAL ANY)
  file(WRITE ${CMAKE_BINARY_DIR}/_C_cuda${VARLEN_RNN_EXT_SUFFIX} "${VARLEN_RNN_CUDA_ARCHS}")
endif()
"""
PRETEND_NVCC = """#!/bin/sh
case "$1" in
  --version) echo "Cuda compilation tools, release {release}, V{release}.66" ;;
  --list-gpu-arch) printf 'compute_%s\\n' 50 75 80 86 90 103 ;;
  *) exit {status} ;;
esac
"""


class Project:
    """A copy of setup.py beside sources that take no time to compile."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copy(ROOT / "setup.py", folder)
        for name in ("csrc", "varlen_rnn"):
            (folder / name).mkdir()
        shutil.copy(ROOT / "csrc" / "build_backend.py", folder / "csrc")
        (folder / "csrc" / "CMakeLists.txt").write_text(PRETEND_BUILD)
        self.module = folder / "varlen_rnn" / f"_C{SUFFIX}"
        self.cuda_module = folder / "varlen_rnn" / f"_C_cuda{SUFFIX}"

    def nvcc(self, release: str = "12.1", status: int = 0, folder: str = ".") -> str:
        path = self.folder / folder / "nvcc"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(PRETEND_NVCC.format(release=release, status=status))
        path.chmod(0o755)
        return str(path)

    def build(self, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs setup.py, by default with a program for the compiler that says nothing of itself."""
        return subprocess.run(
            [sys.executable, "setup.py", "build_ext", "--inplace"],
            env=child_environment(**{"CXX": "sh", **environment}),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
