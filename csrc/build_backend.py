"""The build backend: that of setuptools, with the torch that the package is installed beside.

pip builds in an environment of its own, where a torch named in pyproject.toml would be another one,
of gigabytes. But all that the build takes of torch are headers and libraries, which may lie
anywhere: so torch is asked for only where the environment has none that is new enough.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403

OLDEST_TORCH = (2, 10)


def torch_release(folder: Path) -> tuple[int, ...]:
    """The release of a torch that lies in a folder, such as (2, 13); empty if it does not say."""
    version = folder / "version.py"
    text = version.read_text(encoding="utf-8") if version.exists() else ""
    found = re.search(r"__version__ = '(\d+)\.(\d+)", text)
    return tuple(map(int, found.groups())) if found else ()


def find_torch() -> Path | None:
    """The folder of torch: that of this process, else that of the environment that pip hides."""
    for path in (sys.path, _path_of_environment()):
        spec = PathFinder.find_spec("torch", path)
        if spec and spec.origin:
            return Path(spec.origin).parent
    return None


def _path_of_environment() -> list[str]:
    """``sys.path`` of this very interpreter without pip's changes, which come by variables."""
    hidden = ("PYTHONPATH", "PYTHONNOUSERSITE")
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    program = "import json, sys; print(json.dumps(sys.path[1:]))"
    command = [sys.executable, "-c", program]
    found = subprocess.run(command, env=kept, stdout=subprocess.PIPE, text=True, check=True)
    path: list[str] = json.loads(found.stdout)
    return path


def _torch_to_get() -> list[str]:
    if os.environ.get("VARLEN_RNN_EXTENSION") == "0":
        return []
    folder = find_torch()
    if folder and torch_release(folder) >= OLDEST_TORCH:
        return []
    return [f"torch>={'.'.join(map(str, OLDEST_TORCH))}"]


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    """What pip puts into the environment of the build, beside what pyproject.toml says."""
    return [*build_meta.get_requires_for_build_wheel(config_settings), *_torch_to_get()]


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    """The same for an editable installation."""
    return [*build_meta.get_requires_for_build_editable(config_settings), *_torch_to_get()]
