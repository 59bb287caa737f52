"""The build backend: that of setuptools, with the torch that the package is installed beside.

pip builds in an environment of its own, where a torch named in pyproject.toml would be another one,
of gigabytes. But all that the build takes of torch are headers and libraries, which may lie
anywhere: so torch is asked for only where the environment has none that is new enough.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403

OLDEST_TORCH = (2, 10)
# The lowest releases that are tested (COMPILERS in the Makefile); older ones are not tried.
OLDEST_GCC, OLDEST_CLANG = 11, 14


def find_compiler() -> str | None:
    """The C++ compiler that CMake is told to use: $CXX if set, else the first usual name."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    return next((name for name in names if shutil.which(shlex.split(name)[0])), None)


def compiler_problem(compiler: str | None) -> str | None:
    """Why there is nothing to compile the extension with, or None."""
    if compiler is None:
        return "no C++ compiler found ($CXX, c++, g++, clang++)"
    ask = [*shlex.split(compiler), "-dM", "-E", "-x", "c++", os.devnull]
    macros = subprocess.run(ask, capture_output=True, text=True, check=False).stdout
    for macro, name, oldest in (
        ("__clang_major__", "clang", OLDEST_CLANG),  # which says that it is GCC 4, too
        ("__GNUC__", "GCC", OLDEST_GCC),
    ):
        found = re.search(rf"^#define {macro} (\d+)$", macros, re.MULTILINE)
        if found:
            release = int(found[1])
            older = f"{compiler} is {name} {release}, older than {name} {oldest}"
            return older if release < oldest else None
    return None  # one that we do not know may work


def torch_release(folder: Path) -> tuple[int, ...]:
    """The release of a torch that lies in a folder, such as (2, 13); empty if it does not say."""
    version = folder / "version.py"
    text = version.read_text(encoding="utf-8") if version.exists() else ""
    found = re.search(r"__version__ = ['\"](\d+)\.(\d+)", text)
    return tuple(map(int, found.groups())) if found else ()


def can_be_built_with(folder: Path) -> bool:
    """Whether a torch is new enough, and has headers, which some distributions package apart."""
    headers = folder / "include" / "torch" / "csrc" / "stable"
    return torch_release(folder) >= OLDEST_TORCH and headers.is_dir()


def find_torch() -> Path | None:
    """The folder of a torch that can be built with; if there is none, of one that cannot, or None.

    That of this process, else that of the environment which pip hides from it, else that of another
    Python on PATH: uv and others build with an interpreter of their own, and any torch will do.
    """
    first = None
    for folder in _torch_folders():
        if can_be_built_with(folder):
            return folder
        first = first or folder
    return first


def _torch_folders() -> Iterator[Path]:
    spec = PathFinder.find_spec("torch", sys.path)
    if spec and spec.origin:
        yield Path(spec.origin).parent
    # What pip hides, it hides by these.
    hidden = ("PYTHONPATH", "PYTHONNOUSERSITE")
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    program = "from importlib.util import find_spec; print(find_spec('torch').origin or exit(1))"
    on_path = (shutil.which("python3", path=folder) for folder in os.get_exec_path())
    for python in dict.fromkeys([sys.executable, *filter(None, on_path)]):
        with contextlib.suppress(OSError):  # of what is no program
            command = [python, "-c", program]
            found = subprocess.run(command, env=kept, capture_output=True, text=True, check=False)
            if found.returncode == 0:
                yield Path(found.stdout.strip()).parent


def _torch_to_get() -> list[str]:
    if os.environ.get("VARLEN_RNN_EXTENSION") == "0" or compiler_problem(find_compiler()):
        return []
    folder = find_torch()
    if folder and can_be_built_with(folder):
        return []
    wanted = f"torch>={'.'.join(map(str, OLDEST_TORCH))}"
    print(f"varlen_rnn: no {wanted} is installed: one is fetched to build with", flush=True)
    return [wanted]


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    """What pip puts into the environment of the build, beside what pyproject.toml says."""
    return [*build_meta.get_requires_for_build_wheel(config_settings), *_torch_to_get()]


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    """The same for an editable installation."""
    return [*build_meta.get_requires_for_build_editable(config_settings), *_torch_to_get()]
