"""Installs pinned packages, and what can be had of them: install.py REQUIREMENTS.

Without their dependencies, which the file lists itself: some ask for another torch, or for much
that no model needs. All at once; where that fails, one by one. The exit status is 1 if any is
missing.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--no-deps")


def requirements(text: str) -> list[str]:
    """The lines, without comments."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [line for line in lines if line]


def install(lines: Sequence[str], pip: Sequence[str] = PIP) -> list[str]:
    """Calls pip; returns what it could not install."""
    if subprocess.run([*pip, "--quiet", *lines], check=False).returncode == 0:
        return []
    if len(lines) == 1:
        return list(lines)
    return [missing for line in lines for missing in install([line], pip)]


def main() -> int:
    missing = install(requirements(Path(sys.argv[1]).read_text(encoding="utf-8")))
    for line in missing:
        print(f"not installed: {line}")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
