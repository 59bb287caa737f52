"""Checks and measures everything on a machine with an NVIDIA GPU: `make gpu-check`.

    python -m tools.gpu.check [--steps smoke,times] [--output DIR] [--limit SECONDS] [--dry-run]

It installs nothing and needs no network. What must be there: an NVIDIA GPU with its driver; Python
with torch 2.10 or newer with CUDA, numpy and pytest. What was built with `make gpu-prebuild` is
used where it fits this Python, this device and these sources; otherwise it is built here, which
needs nvcc, a C++ compiler, cmake, ninja, pybind11, setuptools and Python's headers, and minutes.
With --no-build it ends at once then: where the time on the machine is short.

Each step runs programs of its own, with time limits (`tools/gpu/steps.py`); whatever fails or
hangs, the others go on, 400 seconds in all. In the output folder are, named after the device:

    DEVICE-check.md          one page: verdicts, rules, numbers; written anew after every step
    DEVICE-check.jsonl       every number, a JSON line each, with its step and program
    DEVICE-check-logs.zip    all that each program printed

--dry-run goes through all steps on the CPU: with the emulator's ops and programs where
VARLEN_RNN_EMULATED names their folder, and with canned answers for what needs a GPU's tools. Exit
status: 0; 1 if a step failed; 2 if this machine lacks something. Rules that do not hold are no
failures.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from benchmarks.environment import ROOT, commit
from tools.gpu import prebuild, report
from tools.gpu.jobs import Ended, Job, Runner
from tools.gpu.report import Outcome
from tools.gpu.steps import BY_NAME, STEPS, Context, Step, Verdict

EMULATED = "VARLEN_RNN_EMULATED"  # in the environment, the folder of the emulator's build
RESULTS = ROOT / "benchmarks" / "results"
WORK = ROOT / "build" / "gpu-check"
COPIED = ("benchmarks", "csrc", "examples", "tests", "tools", "varlen_rnn")
PACKAGES = ("torch", "numpy", "pytest")
LIMIT_SECONDS = 400.0
BUILD_SECONDS = 600.0
LEAST_SECONDS = 2.0  # with less time than this, no step is begun
MOST_LOG_BYTES = 1_000_000  # of each log in the archive, its end


class Stopped(BaseException):
    """Somebody wants this process to end."""


def read_device() -> tuple[str, tuple[int, int]]:
    """Name and compute capability of the first GPU, as nvidia-smi has them; raises OSError."""
    asked = ("nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader")
    try:
        said = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=20).stdout
    except subprocess.SubprocessError as error:
        raise OSError(str(error)) from error
    name, _, capability = said.splitlines()[0].rpartition(", ")
    major, minor = capability.split(".")
    return name, (int(major), int(minor))


def lacking() -> list[str]:
    """What this machine must have and has not, but for what a build needs."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    try:
        read_device()
    except (OSError, IndexError, ValueError):
        missing.append("an NVIDIA GPU with its driver (nvidia-smi)")
    return missing


def copy_tree(tree: Path) -> None:
    """The tree as it is, without what was built in it."""
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    ignored = shutil.ignore_patterns("*.so", "__pycache__", "results")
    for name in COPIED:
        shutil.copytree(ROOT / name, tree / name, ignore=ignored)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy2(path, tree)


class Check:
    """One run: what its steps found so far, and where that is written."""

    def __init__(self, args: argparse.Namespace, device: str, capability: tuple[int, int]) -> None:
        self.args, self.device, self.capability = args, device, capability
        slug = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
        self.stem = f"{slug}-check"
        here = commit()
        self.commit = prebuild.commit_of(args.prebuilt) if here == "unknown" else here
        self.outcomes: list[Outcome] = []
        self.left = [step.name for step in STEPS if step.name in args.steps]
        self.logs, self.tree = Path(args.work, "logs"), Path(args.work, "tree")
        shutil.rmtree(self.logs, ignore_errors=True)
        self.logs.mkdir(parents=True)
        args.output.mkdir(parents=True, exist_ok=True)
        self.file(".jsonl").write_text("", encoding="utf-8")
        self.runner = Runner(self.tree, self.logs, self.environment())
        self.builder = Runner(ROOT, self.logs, {**os.environ})
        self.started = time.monotonic()

    def file(self, suffix: str) -> Path:
        """Of the results."""
        return Path(self.args.output, f"{self.stem}{suffix}")

    def environment(self) -> dict[str, str]:
        """Of all programs: the copy comes first, and torch may be deterministic."""
        paths = [str(self.tree), *filter(None, [os.environ.get("PYTHONPATH")])]
        variables = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONUNBUFFERED": "1",
            "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
            "VARLEN_RNN_COMMIT": self.commit,
        }
        if self.args.dry_run:
            return {**variables, "VARLEN_RNN_TEST_DEVICE": "cpu", "OMP_NUM_THREADS": "1"}
        variables.pop(EMULATED, None)
        return variables

    def note(self, step: str, ended: Ended) -> None:
        """Adds a program's numbers to the file."""
        found = ended.records
        if step == "counters":
            found.append({"what": "counters", "metrics": report.counters(ended.text)})
        with self.file(".jsonl").open("a", encoding="utf-8") as file:
            for record in found:
                file.write(json.dumps({**record, "step": step, "job": ended.job.name}) + "\n")

    def write(self) -> None:
        """The page and the archive, as things stand; where that cannot be, the steps go on."""
        seconds = time.monotonic() - self.started
        title = f"gpu-check on {self.device}, commit {self.commit}, {seconds:.0f} s"
        try:
            numbers = report.read_lines(self.file(".jsonl"))
            text = report.page(title, self.outcomes, numbers, self.left, dry=self.args.dry_run)
            self.file(".md").write_text(text, encoding="utf-8")
            with zipfile.ZipFile(self.file("-logs.zip"), "w", zipfile.ZIP_DEFLATED) as archive:
                for log in sorted(self.logs.glob("*.log")):
                    archive.writestr(log.name, log.read_bytes()[-MOST_LOG_BYTES:])
        except Exception as error:  # noqa: BLE001 (as a full disk, or a number without its fields)
            print(f"the page cannot be written: {error!r}", flush=True)

    def get_binaries(self) -> Path | None:
        """Puts the modules into the copy; returns the folder of programs. Builds if it has to."""
        if self.args.dry_run:
            for module in (ROOT / "varlen_rnn").glob("*.so"):
                shutil.copy2(module, self.tree / "varlen_rnn")
            emulated = os.environ.get(EMULATED)
            return Path(emulated) if emulated else None
        folder: Path = self.args.prebuilt
        if reason := prebuild.why_not(folder, self.capability):
            print(f"building, for of {folder} {reason}", flush=True)
            folder = Path(self.args.work, "built")
            shutil.rmtree(folder, ignore_errors=True)
            arch = "".join(map(str, self.capability))
            options = ("--python", sys.executable, "--arch", arch, "--output", folder)
            command = [sys.executable, "-m", "tools.gpu.prebuild", *options]
            begun = time.monotonic()
            # Not in the copy, in which the build would be stale at once.
            jobs = [Job("build", command, BUILD_SECONDS)]
            (built,) = self.builder.run(jobs, 1, begun + BUILD_SECONDS + 1)
            verdict = Verdict("passed" if built.passed else "FAILED", built.why or built.last_line)
            self.add("build", [built], verdict, begun)
        if folder.exists():
            shutil.copytree(folder, self.tree, dirs_exist_ok=True)
        for program in self.tree.glob("bin/*"):
            program.chmod(0o755)  # which a copy to another machine may have lost
        return self.tree / "bin"

    def add(self, name: str, ended: Sequence[Ended], verdict: Verdict, begun: float) -> None:
        """Keeps how a step ended."""
        seconds = time.monotonic() - begun
        bad = [e for e in ended if not e.passed] if verdict.word == "FAILED" else []
        tails = {e.job.name: e.text[-4000:] for e in bad[:3]}
        self.outcomes.append(Outcome(name, verdict.word, seconds, verdict.detail, tails))
        print(f"{name:<11} {verdict.word:<8} {seconds:4.0f} s  {verdict.detail}", flush=True)

    def run(self, step: Step, context: Context, deadline: float) -> None:
        """Runs a step, whatever happens in it."""
        begun, ended = time.monotonic(), list[Ended]()
        self.left.remove(step.name)
        try:
            if deadline - begun < LEAST_SECONDS:
                verdict = Verdict("FAILED", "no time left")
            else:
                limit = min(deadline, begun + step.seconds)
                for one in self.runner.run(step.jobs(context), step.at_a_time, limit):
                    ended.append(one)
                    self.note(step.name, one)
                verdict = step.judge(context, ended)
        except Exception as error:  # noqa: BLE001 (the other steps' results must not be lost)
            verdict = Verdict("FAILED", repr(error)[:300])
        except Stopped:
            self.add(step.name, ended, Verdict("FAILED", "stopped from outside"), begun)
            raise
        self.add(step.name, ended, verdict, begun)
        self.write()

    def run_all(self) -> int:
        """Returns the exit status."""
        status = 0
        try:
            copy_tree(self.tree)
            programs = self.get_binaries()
            sanitizers = tuple(self.args.sanitizers.split(","))
            context = Context(self.tree, programs, self.args.work, self.args.dry_run, sanitizers)
            deadline = time.monotonic() + self.args.limit
            for name in list(self.left):
                self.run(BY_NAME[name], context, deadline)
        except Stopped:
            status = 128 + signal.SIGTERM
        except Exception as error:  # noqa: BLE001 (there is a page at the end)
            self.outcomes.append(Outcome("gpu-check", "FAILED", 0, repr(error)[:300]))
        finally:
            self.runner.kill_all()
            self.builder.kill_all()
            self.write()
        print(f"\nresults: {self.file('.md')}")
        return status or int(any(o.verdict == "FAILED" for o in self.outcomes))


def stop(number: int, frame: FrameType | None) -> None:
    """The first time; what is left to do then takes no time."""
    signal.signal(number, signal.SIG_IGN)
    raise Stopped


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu.check", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--steps", default=",".join(BY_NAME), help="names with commas between")
    parser.add_argument("--output", type=Path, help=f"{RESULTS}; of a dry run WORK/results")
    parser.add_argument("--work", type=Path, default=WORK, help="for copies and logs")
    parser.add_argument("--prebuilt", type=Path, default=prebuild.PREBUILT)
    parser.add_argument("--limit", type=float, default=LIMIT_SECONDS, help="seconds for all")
    parser.add_argument("--no-build", action="store_true", help="end if nothing fits --prebuilt")
    parser.add_argument("--sanitizers", default="memcheck", help="also racecheck,synccheck")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU")
    args = parser.parse_args(argv)
    args.steps = args.steps.split(",")
    if unknown := [name for name in args.steps if name not in BY_NAME]:
        parser.error(f"--steps must be of {', '.join(BY_NAME)}, got {unknown[0]}")
    if not args.dry_run and (missing := lacking()):
        print(f"gpu-check cannot run on this machine, which lacks {', '.join(missing)}")
        return 2
    args.output = args.output or (args.work / "results" if args.dry_run else RESULTS)
    for name in ("output", "work", "prebuilt"):
        setattr(args, name, getattr(args, name).resolve())
    device, capability = ("no GPU, a dry run", (9, 0)) if args.dry_run else read_device()
    fits_not = prebuild.why_not(args.prebuilt, capability) if args.no_build else None
    if fits_not:
        print(f"gpu-check would have to build, for of {args.prebuilt} {fits_not}")
        return 2
    try:
        check = Check(args, device, capability)
    except OSError as error:
        print(f"gpu-check cannot write: {error}")
        return 2
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    return check.run_all()


if __name__ == "__main__":
    sys.exit(main())
