"""The example runs, from the command line as its README says."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
from helpers import CELLS, run_example

SCRIPT = Path(__file__).parents[1] / "examples" / "japanese_vowels.py"
MISSING = [name for name in ("matplotlib", "tqdm") if importlib.util.find_spec(name) is None]


@pytest.mark.skipif(bool(MISSING), reason=f"the example needs {' and '.join(MISSING)}")
@pytest.mark.parametrize("cell", CELLS)
def test_one_epoch_of_japanese_vowels(cell: str, tmp_path: Path) -> None:
    arguments = ["--cell", cell, "--epochs", "1", "--hidden", "16"]
    result = run_example(SCRIPT, arguments, tmp_path)
    assert result.returncode == 0, result.stderr
    table = result.stdout.splitlines()
    accuracies = [re.findall(r"\d+\.\d+ ?%", line) for line in table]
    assert any(accuracies), result.stdout
