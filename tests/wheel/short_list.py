"""Copies a short list of tests to where another build of the package is: short_list.py FOLDER."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Values and gradients of both cells in every form against torch.nn, piece by piece, on every
# instruction set; the modules; int8 weights; conversion. Nothing that takes a compiler.
SHORT_LIST = [
    "tests/modules/test_resets.py",
    "tests/modules/test_modules.py",
    "tests/modules/test_int8.py",
    "tests/models/test_convert.py",
]
HELPERS = ["tests/conftest.py", "tests/helpers.py", "tests/ragged.py", "tests/int8_truth.py"]
HELPERS += ["benchmarks/__init__.py", "benchmarks/forms.py", "pyproject.toml"]


def copy_short_list(folder: Path) -> None:
    """Tests, and what they import, out of the repository: its own package is not there."""
    for name in HELPERS + SHORT_LIST:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)


if __name__ == "__main__":
    copy_short_list(Path(sys.argv[1]))
