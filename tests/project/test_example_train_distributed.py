"""The example in many processes runs, under torchrun and without, and trains alike in both."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import child_environment
from torch import distributed

SCRIPT = Path(__file__).parents[2] / "examples" / "train_distributed.py"
MISSING = [name for name in ("matplotlib", "tqdm") if importlib.util.find_spec(name) is None]
ARGUMENTS = ["--epochs", "6", "--hidden", "32", "--lr", "5e-3", "--threads", "1"]
SECONDS = 300

pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"the example needs {' and '.join(MISSING)}"),
    pytest.mark.skipif(
        not distributed.is_available() or not distributed.is_gloo_available(),
        reason="torch was built without torch.distributed and gloo",
    ),
]


def run(command: list[str], folder: Path) -> tuple[list[dict[str, float]], str]:
    """Runs it; of each line of the table its numbers, and the text. Nothing outlives this."""
    variables = child_environment(PYTHONUTF8="1")
    child = subprocess.Popen(
        [sys.executable, *command, str(SCRIPT), *ARGUMENTS, "--output", str(folder / "plot.png")],
        env=variables,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    try:
        out, err = child.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        child.terminate()  # torchrun then ends its own children
        raise
    finally:
        try:
            child.wait(timeout=60)
        finally:
            child.kill()
            child.wait()
    assert child.returncode == 0, err
    names = ("processes", "threads", "steps", "loss", "accuracy", "tokens a second")
    lines = [line.replace("%", "").replace(",", "").split() for line in out.splitlines()]
    assert (folder / "plot.png").read_bytes().startswith(b"\x89PNG")
    (folder / "plot.png").unlink()
    rows = [
        dict(zip(names, map(float, line), strict=True))
        for line in lines
        if len(line) == len(names) and line[0].isdigit()
    ]
    return rows, out


def test_one_and_two_processes_train_alike(tmp_path: Path) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    (alone, together), out = run(torchrun, tmp_path)
    assert (alone["processes"], together["processes"]) == (1, 2)
    assert alone["threads"] == together["threads"] == 1
    # As many tokens a step, so as many steps.
    assert abs(alone["steps"] - together["steps"]) <= 1
    for row in (alone, together):
        assert row["accuracy"] > 90
        assert row["loss"] < 0.2
        assert row["tokens a second"] > 0
    assert abs(alone["accuracy"] - together["accuracy"]) < 5

    ratio = together["tokens a second"] / alone["tokens a second"]
    [said] = re.findall(r"^2 processes train (\S+) times as fast as one", out, re.MULTILINE)
    assert float(said) == pytest.approx(ratio, abs=0.051)

    [without_torchrun], out = run([], tmp_path)
    assert "times as fast" not in out
    for name in ("processes", "steps", "loss", "accuracy"):
        assert without_torchrun[name] == alone[name]
