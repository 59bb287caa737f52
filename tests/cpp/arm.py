"""Runs the C++ tests for 64-bit Arm in qemu: arm.py HERE ARM

HERE and ARM are folders of the same programs, compiled for this machine and for Arm. What both
print of their results with fused multiply-add must be the same on every CPU.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

QEMU = "qemu-aarch64"
LIBRARIES = Path("/usr/aarch64-linux-gnu")
COMPARED = ["kernels_test", "int8_test"]
# Plain Armv8.0 and all that qemu knows, and the sets that each must be found to have: with fewer,
# digests are the same.
SETS = {"cortex-a53": "neon", "max": "neon neon_dotprod neon_i8mm"}


def run(*command: str | Path) -> str:
    """What a program prints, if it has not failed."""
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if result.returncode:
        sys.exit(f"{result.stdout[-5000:]}{' '.join(map(str, command))} failed")
    return result.stdout


def digest(output: str) -> str:
    """The line of a program that stands for all its results."""
    (line,) = re.findall(r"^digest .*", output, re.MULTILINE)
    return line


def check(cpu: str, arm: Path, expected: dict[str, str]) -> None:
    """Runs all programs on one kind of CPU."""
    for name in ["plan_test", *COMPARED]:
        started = time.monotonic()
        said = run(QEMU, "-cpu", cpu, "-L", LIBRARIES, arm / name)
        if name in expected and digest(said) != expected[name]:
            sys.exit(f"{name}, {cpu}: {digest(said)}, here {expected[name]}")
        if name == "int8_test" and f"sets: {SETS[cpu]}\n" not in said:
            sys.exit(f"{name}, {cpu}: expected {SETS[cpu]}, got {said}")
        seconds = time.monotonic() - started
        print(f"{cpu}, {name}, {seconds:.0f} s: {said.splitlines()[-1]}", flush=True)


def main() -> None:
    here, arm = map(Path, sys.argv[1:])
    if not shutil.which(QEMU) or not LIBRARIES.is_dir():
        sys.exit(f"test-arm: needs {QEMU} and {LIBRARIES} (.ci/packages)")
    expected = {name: digest(run(here / name)) for name in COMPARED}
    with ThreadPoolExecutor() as pool:
        for done in [pool.submit(check, cpu, arm, expected) for cpu in SETS]:
            done.result()
    for name, line in expected.items():
        print(f"{name}, the same bits here and on every CPU: {line}")


if __name__ == "__main__":
    main()
