"""Plants faults in copies of the CUDA sources: the tests in the emulator must fail for every one.

    python tests/cuda/mutants.py [WORD ...]

A word takes only the faults whose name or place contains it. Of a fault's copy only the sources
that it is in are compiled, the other objects are those of ``make test-emulator`` in build/emulator,
or in the folder that VARLEN_RNN_EMULATED names. A fault is caught if a test fails: of a wrong
value, an error of the emulator, or a deadlock.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import wait
from pathlib import Path

import pytest
from faults import MUTANTS
from faults.planting import Mutant, planted

# What a process of ours would need seconds for: torch, ours, and what the determinism that
# tests/conftest.py asks for brings along.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import ragged  # noqa: F401
import torch

torch.use_deterministic_algorithms(True)

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("VARLEN_RNN_EMULATED", ROOT / "build" / "emulator")).resolve()
PARALLEL = 2
TIMEOUT = 120  # seconds
CONTROL = "control, no fault"


def control() -> Mutant:
    """No fault at all, with every test: must pass."""
    sources = tuple(dict.fromkeys(source for m in MUTANTS for source in m.sources))
    tests = tuple(dict.fromkeys(test for m in MUTANTS for test in m.tests))
    return Mutant(CONTROL, "", "", "", sources, tests)


def compile_mutant(mutant: Mutant, folder: Path) -> None:
    """Makes the module with the fault in the folder."""
    commands = json.loads((BUILD / "compile_commands.json").read_text())
    source_root = next(
        c["file"] for c in commands if c["file"].endswith("/cuda/plan.cu")
    ).removesuffix("/cuda/plan.cu")
    copy = folder / "csrc"
    shutil.copytree(source_root, copy)
    if mutant.place:
        path = copy / "cuda" / mutant.file
        path.write_text(planted(path.read_text(), mutant))

    ninja = [str(Path(sys.executable).with_name("ninja")), "-C", str(BUILD), "-t", "commands"]
    listing = subprocess.run(ninja, check=True, capture_output=True, text=True).stdout
    (link,) = (line for line in listing.splitlines() if " -shared " in line)
    objects = ""  # the first ones, for of functions that several have the linker takes the first
    for source in mutant.sources:
        (command,) = (c["command"] for c in commands if c["file"].endswith(f"/cuda/{source}"))
        (target,) = re.findall(r" -o (\S+)", command)
        made = str(folder / f"{source}.o")
        arguments = shlex.split(command.replace(source_root, str(copy)).replace(target, made))
        kept = [a for a in arguments if a != "-Werror"]  # a fault may leave something unused
        subprocess.run([*kept, "-O0"], cwd=BUILD, check=True)
        link = link.replace(f" {target}", "")
        objects += f" {made}"
    (module,) = re.findall(r" -o (\S+)", link)
    link = link.replace(f" -o {module}", f" -o {folder / Path(module).name}{objects}")
    subprocess.run(link, shell=True, cwd=BUILD, check=True)


# Exit codes of a process: pytest's, from here on.
FROM_PYTEST = 10


def work(mutant: Mutant, folder: Path) -> None:
    """In a process of its own: makes the module and runs the tests."""
    with (folder / "log").open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    compile_mutant(mutant, folder)
    os.environ["VARLEN_RNN_EMULATED"] = str(folder)
    tests = [str(ROOT / "tests" / "cuda" / test) for test in mutant.tests]
    code = pytest.main([*tests, "-x", "-q", "--tb=line", "-p", "no:cacheprovider", "-rN"])
    sys.stdout.flush()
    os._exit(FROM_PYTEST + code)


def verdict(code: int | None, log: str) -> tuple[bool | None, str]:
    """Whether a test failed, None if that is not known; and what it said, in a line."""
    if code is None:
        return None, f"no end within {TIMEOUT} s"
    if code == FROM_PYTEST:
        return False, "the tests passed"
    if code == FROM_PYTEST + pytest.ExitCode.TESTS_FAILED:
        return True, next(iter(re.findall(r"^E +(.*)$", log, re.MULTILINE)), "a test failed")
    return None, f"exit code {code}: ...{log.strip()[-500:]}"


def run_all(mutants: list[Mutant], root: Path) -> Iterator[tuple[Mutant, bool | None, str]]:
    """Yields what became of each, as they end; a few are at work at a time."""
    fork = multiprocessing.get_context("fork")  # has torch imported already
    waiting = list(mutants)
    running: dict[multiprocessing.process.BaseProcess, tuple[Mutant, Path, float]] = {}
    while waiting or running:
        while waiting and len(running) < PARALLEL:
            mutant = waiting.pop(0)
            folder = root / str(len(waiting))
            folder.mkdir()
            process = fork.Process(target=work, args=(mutant, folder))
            process.start()
            running[process] = mutant, folder, time.monotonic() + TIMEOUT
        wait([process.sentinel for process in running], timeout=1)
        for process, (mutant, folder, end) in list(running.items()):
            is_late = process.is_alive() and time.monotonic() > end
            if process.is_alive() and not is_late:
                continue
            process.kill()
            process.join()
            log = (folder / "log").read_text(errors="replace")
            yield mutant, *verdict(None if is_late else process.exitcode, log)
            shutil.rmtree(folder)
            del running[process]


def main(words: list[str]) -> int:
    """Plants what the words choose, and says what became of it."""
    if not (BUILD / "compile_commands.json").exists():
        sys.exit(f"mutants: no emulator in {BUILD} (make test-emulator)")
    mutants = [
        m for m in MUTANTS if not words or any(word in f"{m.name} {m.place}" for word in words)
    ]
    say = sys.stdout.write
    caught = 0
    with tempfile.TemporaryDirectory() as root:
        for mutant, failed, text in run_all([control(), *mutants], Path(root)):
            is_control = mutant.name == CONTROL
            good = failed is not is_control and failed is not None
            caught += good and not is_control
            say(f"{'ok  ' if good else 'BAD '}  {mutant.name}: {' '.join(text.split())[:160]}\n")
            if not good:
                say(f"      {mutant.place}: {mutant.why}\n")
            sys.stdout.flush()
            if is_control and not good:
                return 1
    say(f"{caught} of {len(mutants)} faults caught\n")
    return int(caught < len(mutants))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
