"""`make gpu-check` on the emulated machine: its programs, and layers on the emulated ops."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import emulated  # skips where there is no emulator
import pytest
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
    assert log.endswith("simt_test: 4 cases passed\n")


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


PLANTED = """
import sys
from tools.gpu import machine, smoke
module = machine.emulate()
machine.kernels = lambda device: module
{fault}
sys.exit(smoke.main(["--hidden", "256", "--rows", "3", "--steps", "2", "--cell", "lstm"]))
"""


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("", {"passed": True, "path": "persistent"}),
        ("module.machine().mma_error = 0.5", {"passed": False}),
        (
            "module.machine().waits_expire = True; module.machine().lose_completion = 9",
            {"passed": False, "error": "not finite"},
        ),
    ],
    ids=["none", "products", "lost-bytes"],
)
def test_the_smoke_finds_kernels_that_are_wrong(fault: str, said: dict[str, object]) -> None:
    environment = {"VARLEN_RNN_EMULATED": os.path.abspath(str(emulated.FOLDER))}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PLANTED.format(fault=fault)],
        cwd=ROOT,
        env={**child_environment(), **environment, "VARLEN_RNN_TEST_DEVICE": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == (0 if said["passed"] else 1), done.stderr
    found = json.loads(done.stdout)
    assert said.items() <= found.items()
    assert ("did not complete" in str(found.get("why"))) == ("lose" in fault)
