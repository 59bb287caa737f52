"""Code in fresh processes, which start at once: forks of one that has imported torch alone."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from pathlib import Path
from typing import NamedTuple

SECONDS = 120


class Finished(NamedTuple):
    """As :mod:`subprocess` has it."""

    returncode: int
    stdout: str
    stderr: str


def run_python(code: str, **environment: str) -> Finished:
    """What the code prints, with none of our environment variables but these."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch"])
    with tempfile.TemporaryDirectory() as folder:
        process = context.Process(target=_run, args=(code, environment, folder))
        process.start()
        process.join(SECONDS)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(code)
        return Finished(process.exitcode, *(Path(folder, name).read_text() for name in _STREAMS))


_STREAMS = ("stdout", "stderr")


def _run(code: str, environment: dict[str, str], folder: str) -> None:
    for stream, name in enumerate(_STREAMS, 1):
        with open(Path(folder, name), "wb") as file:
            os.dup2(file.fileno(), stream)
    for name in [name for name in os.environ if name.startswith("VARLEN_RNN_")]:
        del os.environ[name]
    os.environ.update(environment)
    exec(code, {"__name__": "__main__"})  # the process itself prints what is raised
