"""Runs programs side by side, each with a time limit and a log of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

POLL_SECONDS = 0.02
# What was killed may hang on in the driver: it is not waited for any longer.
BURY_SECONDS = 2.0


@dataclass(frozen=True)
class Job:
    """A program to run; ``seconds`` at most."""

    name: str
    command: Sequence[object]
    seconds: float
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Ended:
    """How a job ended: ``status`` is None if it did not in its time, or never began."""

    job: Job
    status: int | None
    seconds: float
    log: Path
    why: str = ""

    @property
    def passed(self) -> bool:
        """Whether it ended by itself, and well."""
        return self.status == 0

    @property
    def text(self) -> str:
        """All that it printed."""
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    @property
    def records(self) -> list[dict[str, object]]:
        """The lines of JSON among that."""
        found = []
        for line in self.text.splitlines():
            if line.startswith("{"):
                with contextlib.suppress(ValueError):  # cut off in the middle
                    found.append(json.loads(line))
        return found

    @property
    def last_line(self) -> str:
        """Of what it printed."""
        lines = self.text.strip().splitlines()
        return lines[-1].strip("= ")[:160] if lines else ""


@dataclass
class _Running:
    job: Job
    process: subprocess.Popen[bytes]
    began: float
    log: Path


class Runner:
    """Runs jobs in one folder; whatever it has started ends with `kill_all`."""

    def __init__(self, folder: Path, logs: Path, environment: Mapping[str, str]) -> None:
        self.folder, self.logs, self.environment = folder, logs, environment
        self.running: list[_Running] = []

    def run(self, jobs: Sequence[Job], at_a_time: int, deadline: float) -> Iterator[Ended]:
        """Yields the jobs as they end; none is given time beyond ``deadline``."""
        waiting = list(jobs)
        while waiting or self.running:
            left = deadline - time.monotonic()
            while waiting and len(self.running) < at_a_time and left > 0:
                self._start(waiting.pop(0))
            if left <= 0:
                yield from (
                    Ended(job, None, 0.0, self._log(job), "no time left") for job in waiting
                )
                waiting = []
            for running in list(self.running):
                if ended := self._poll(running, deadline):
                    self.running.remove(running)
                    yield ended
            time.sleep(POLL_SECONDS)

    def kill_all(self) -> None:
        """Ends whatever is running, and does not wait for it."""
        for running in self.running:
            _kill(running.process)
        self.running = []

    def _log(self, job: Job) -> Path:
        return self.logs / f"{job.name}.log"

    def _start(self, job: Job) -> None:
        log = self._log(job)
        words = [str(word) for word in job.command]
        with log.open("w", encoding="utf-8") as file:
            file.write(f"$ {' '.join(words)}\n")
            file.flush()
            try:
                process = subprocess.Popen(
                    words,
                    cwd=self.folder,
                    env={**self.environment, **job.variables},
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # so that its own children end with it
                )
            except OSError as error:
                file.write(f"{error}\n")
                process = subprocess.Popen(["false"])
        self.running.append(_Running(job, process, time.monotonic(), log))

    def _poll(self, running: _Running, deadline: float) -> Ended | None:
        job, seconds = running.job, time.monotonic() - running.began
        status = running.process.poll()
        if status is not None:
            why = "" if status == 0 else f"ended with status {status}"
            _kill(running.process)  # its children
            return Ended(job, status, seconds, running.log, why)
        limit = min(job.seconds, deadline - running.began)
        if seconds < limit:
            return None
        _kill(running.process)
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.process.wait(BURY_SECONDS)
        return Ended(job, None, seconds, running.log, f"took more than {limit:.0f} s")


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
