"""`make gpu-check` on the emulated machine: its programs, and layers on the emulated ops."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import emulated  # skips where there is no emulator
from helpers import child_environment

ROOT = Path(__file__).parents[2]
STEPS = ("wrappers", "smoke", "self-check", "clusters", "calibrate", "times")


def test_a_dry_run_on_the_emulated_machine(tmp_path: Path) -> None:
    """Of the steps those that run something else there than in tests/project."""
    folder = os.path.abspath(str(emulated.FOLDER))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tools.gpu.check", "--dry-run", "--steps", ",".join(STEPS)),
            *("--output", str(tmp_path), "--work", str(tmp_path / "work")),
        ],
        cwd=ROOT,
        env={**child_environment(), "VARLEN_RNN_EMULATED": folder},
        capture_output=True,
        text=True,
        check=False,
    )
    (page,) = tmp_path.glob("*-check.md")
    text = page.read_text()
    assert done.returncode == 0, text
    assert "4 of 4 batches agree, 4 of all on the persistent path" in text
    assert "| H, blocks | exchange | exchange, 4-byte stores |" in text
    assert "| forward, 256 | 16 | " in text
    log = (tmp_path / "work" / "logs" / "simt-clusters-16.log").read_text()
    assert log.endswith("simt_test: 3 cases passed\n")


def run_simt_test(*words: str) -> subprocess.CompletedProcess[str]:
    program = Path(str(emulated.FOLDER)) / "simt_test"
    return subprocess.run([program, *words], capture_output=True, text=True, check=False)


def test_arguments_choose_what_runs() -> None:
    for words in (["nothing"], ["clusters"], ["clusters", "1"], ["clusters", "x"]):
        done = run_simt_test(*words)
        assert done.returncode == 2
        assert "basics | clusters SIZE | trap | one-block" in done.stdout
    assert "1 cases passed" in run_simt_test("trap").stdout


def test_a_block_alone_must_not_store_as_if_it_had_neighbours() -> None:
    """What on a GPU is undefined, the emulator refuses."""
    done = run_simt_test("one-block")
    assert done.returncode == 1
    assert done.stdout.count("st_async: expected a cluster of several blocks, got one") == 3
