"""Tests a wheel where nothing else is: clean_environment.py WHEEL torch==2.10.0 torch==2.14.1.

For each torch, in an environment of its own: installs that torch and the wheel, makes sure that the
package comes from there and runs its compiled kernels, and runs the short list of tests, copied out
of the repository.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

from short_list import copy_short_list

ROOT = Path(__file__).resolve().parents[2]
INSTALLED = """
import json, torch, varlen_rnn
info = varlen_rnn.build_info()
print(json.dumps({"file": varlen_rnn.__file__, "torch": torch.__version__, **info}))
"""


def run(*command: str | Path, folder: Path) -> str:
    """Runs a program with none of our variables and no import path but its own: its output."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("VARLEN_RNN_")}
    kept.pop("PYTHONPATH", None)
    result = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env={**kept, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if result.returncode:
        sys.exit(f"{result.stdout}{' '.join(map(str, command))} failed")
    return result.stdout


def check(wheel: Path, torch: str, folder: Path) -> None:
    """Installs and tests in a folder that is empty."""
    venv.create(folder / "environment", with_pip=True)
    python = folder / "environment" / ("Scripts" if os.name == "nt" else "bin") / "python"
    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    run(*pip, "install", "--quiet", "--upgrade", "pip>=25.1", folder=folder)
    test = ["--group", f"{ROOT / 'pyproject.toml'}:pytest"]
    run(*pip, "install", "--quiet", torch, wheel, *test, folder=folder)

    # With -P the current folder is no import path, but 3.10 has no such option: an empty folder.
    found = json.loads(run(python, "-c", INSTALLED, folder=folder))
    assert Path(found["file"]).is_relative_to(folder / "environment"), found
    assert found["extension"], found
    with zipfile.ZipFile(wheel) as archive:
        has_cuda = any(name.startswith("varlen_rnn/_C_cuda.c") for name in archive.namelist())
    assert found["cuda"].startswith("compiled for") == has_cuda, found
    print(f"torch {found['torch']}, {found['cpu_isa']}, CUDA: {found['cuda']}", flush=True)

    copy_short_list(folder)
    print(run(python, "-m", "pytest", "--quiet", folder=folder).splitlines()[-1], flush=True)


def main() -> None:
    wheel, torches = Path(sys.argv[1]).resolve(strict=True), sys.argv[2:]
    for torch in torches:
        with tempfile.TemporaryDirectory() as folder:
            check(wheel, torch, Path(folder).resolve())


if __name__ == "__main__":
    main()
