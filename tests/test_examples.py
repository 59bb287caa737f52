"""The example runs, from the command line as its README says."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import CELLS, child_environment

SCRIPT = Path(__file__).parents[1] / "examples" / "japanese_vowels.py"
MISSING = [name for name in ("matplotlib", "tqdm") if importlib.util.find_spec(name) is None]


@pytest.mark.skipif(bool(MISSING), reason=f"the example needs {' and '.join(MISSING)}")
@pytest.mark.parametrize("cell", CELLS)
def test_one_epoch_of_japanese_vowels(cell: str, tmp_path: Path) -> None:
    output = tmp_path / "plot.png"
    arguments = ["--cell", cell, "--epochs", "1", "--hidden", "16", "--output", str(output)]
    before = sorted(path.name for path in SCRIPT.parent.iterdir())
    result = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        env=child_environment(MPLBACKEND="Agg"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert output.read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in SCRIPT.parent.iterdir()) == before
    table = result.stdout.splitlines()
    accuracies = [re.findall(r"\d+\.\d+ ?%", line) for line in table]
    assert any(accuracies), result.stdout
