"""Checks and measures everything on a machine with an NVIDIA GPU: `make gpu-check`.

    python -m tools.gpu_check [--quick] [--parts build,tests] [--output DIR] [--limit SECONDS]

It installs nothing and needs no network: a copy of the tree is built in build/gpu-check. What must
be there: an NVIDIA GPU with its driver; nvcc 12.1 or newer ($CUDACXX, $CUDA_HOME/bin/nvcc, or that
of PATH) and a C++17 compiler; Python 3.10 or newer with its headers, and for it torch 2.10 or newer
with CUDA, numpy, setuptools 77 or newer, pybind11, cmake, ninja, pytest, tqdm and matplotlib; and
compute-sanitizer for that part. The parts, one after the other:

    build      the extension for this device alone
    wrappers   every wrapper of csrc/cuda/simt.cuh against plain loops: tests/cpp/simt_test.cu
    tests      the modules on the device: tests/cuda, and autocast and NCCL there
    calibrate  what exchanges, barriers, products and steps cost: benchmarks/cuda/calibrate.cu
    sanitizer  memcheck, racecheck and synccheck of a few small layers
    bench      benchmarks.run --grid, as far as the time goes

A part that fails or takes too long is reported, and the others go on; without `build` they use what
was built before. Exit status: 0; 1 if a part failed; 2 if this machine lacks something. Rules and
goals that do not hold are no failures, nor are hazards that racecheck found, which are to be read.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from benchmarks.environment import ROOT, commit

TREE = ROOT / "build" / "gpu-check" / "tree"
COPIED = ("benchmarks", "csrc", "examples", "tests", "tools", "varlen_rnn")
PACKAGES = ("torch", "numpy", "setuptools", "pybind11", "pytest", "tqdm", "matplotlib")
# Of these, major and minor version.
OLDEST = {"torch": (2, 10), "setuptools": (77, 0)}
# From the Python package of that name or from PATH, as setup.py finds them.
BUILD_TOOLS = ("cmake", "ninja")
SANITIZER = "compute-sanitizer"
SANITIZER_TOOLS = ("memcheck", "racecheck", "synccheck")
DEVICE_TESTS = (
    "tests/cuda/test_on_device.py",
    "tests/cuda/test_device_contract.py",
    "tests/torch_tools/test_autocast.py",
    "tests/torch_tools/test_distributed.py",
)
# Of these files all tests, or those about CUDA.
DEVICE_KEYWORDS = "on_device or device_contract or on_cuda or nccl"
# What each part may take at most; the bench takes what is left.
SECONDS = {
    "build": 240.0,
    "wrappers": 60.0,
    "tests": 150.0,
    "calibrate": 60.0,
    "sanitizer": 150.0,
    "bench": 3600.0,
}
LIMIT_SECONDS = 525.0
TABLES_SECONDS = 15.0  # that plots and tables take behind the bench
LEAST_SECONDS = 5.0  # with less time than this, nothing is begun
TAIL_LINES = 25


class Failed(Exception):
    """A part did not do what it should; the message is its line in the table."""


class Found(Exception):
    """A part did what it should, and found what a person has to judge; the message is its line."""


class Outcome(NamedTuple):
    """How a part ended."""

    part: str
    verdict: str
    seconds: float
    detail: str


@dataclass
class Check:
    """One run: where it writes, when it ends, and what its parts found."""

    output: Path
    device: Mapping[str, str]
    commit: str
    quick: bool
    deadline: float
    outcomes: list[Outcome] = field(default_factory=list)
    part_deadline: float = 0.0

    def file(self, suffix: str) -> Path:
        """A file of results, named after the device."""
        slug = re.sub(r"[^a-z0-9]+", "-", self.device["name"].lower()).strip("-")
        return self.output / f"{slug}{suffix}"

    def environment(self) -> dict[str, str]:
        """Of all children: the built copy comes first, and torch may be deterministic."""
        paths = [str(TREE), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
            "VARLEN_RNN_COMMIT": self.commit,
            "VARLEN_RNN_EXTENSION": "1",
            "VARLEN_RNN_CUDA": "1",
            "VARLEN_RNN_CUDA_ARCHS": self.device["architecture"],
            "VARLEN_RNN_WERROR": "0",
        }

    def run(self, *command: object, seconds: float | None = None, **variables: str) -> str:
        """Runs a command in the copy; returns what it printed, which also goes to the log."""
        words = [str(word) for word in command]
        left = self.part_deadline - time.monotonic()
        if left < LEAST_SECONDS:
            raise Failed(f"no time left for {' '.join([Path(words[0]).name, *words[1:]])[:80]}")
        left = left if seconds is None else min(left, seconds)
        with self.file("-check.log").open("a", encoding="utf-8") as log:
            log.write(f"\n$ {' '.join(words)}\n")
        process = subprocess.Popen(
            words,
            cwd=TREE,
            env={**self.environment(), **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # so that its own children end with it
        )
        try:
            printed, _ = process.communicate(timeout=left)
            problem = f"ended with status {process.returncode}" if process.returncode else ""
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            printed, _ = process.communicate()
            problem = f"took more than {left:.0f} s"
        with self.file("-check.log").open("a", encoding="utf-8") as log:
            log.write(printed)
        if problem:
            print("\n".join(printed.splitlines()[-TAIL_LINES:]))
            raise Failed(f"{' '.join(words)[:80]} {problem}: {last_line(printed)}")
        return printed

    def passed(self, part: str) -> bool:
        """Whether that part was run and did."""
        return any((o.part, o.verdict) == (part, "passed") for o in self.outcomes)


def last_line(printed: str) -> str:
    lines = printed.strip().splitlines()
    return lines[-1].strip("= ") if lines else ""


def copy_tree() -> None:
    """The tree as it is, but for what was built in it; what was built in the copy stays."""
    for name in COPIED:
        for path in (TREE / name).rglob("*"):
            if path.is_file() and path.suffix != ".so":
                path.unlink()
        ignored = shutil.ignore_patterns("*.so", "__pycache__", "results")
        shutil.copytree(ROOT / name, TREE / name, ignore=ignored, dirs_exist_ok=True)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy2(path, TREE)


def require_build(check: Check) -> str:
    """What the built copy says of its CUDA kernels; fails where they are not in use."""
    code = (
        "import varlen_rnn; from varlen_rnn.runtime import extension as e;"
        "reason = e.UNAVAILABLE or e.CUDA_UNAVAILABLE;"
        "raise SystemExit(reason) if reason else print(varlen_rnn.build_info()['cuda'])"
    )
    try:
        return last_line(check.run(sys.executable, "-c", code))
    except Failed as failure:
        raise Failed(f"the CUDA kernels are not built: {failure}") from None


def build(check: Check) -> str:
    check.run(sys.executable, "setup.py", "egg_info", "build_ext", "--inplace")
    return require_build(check)


def find_nvcc() -> str | None:
    """The nvcc that setup.py takes, which has a copy of this: neither can import the other."""
    if os.environ.get("CUDACXX"):
        return shutil.which(os.environ["CUDACXX"])
    home = os.environ.get("CUDA_HOME")
    return (shutil.which(f"{home}/bin/nvcc") if home else None) or shutil.which("nvcc")


def compile_with_nvcc(check: Check, source: str) -> Path:
    program = TREE.parent / Path(source).stem
    arch = f"-arch=sm_{check.device['architecture']}"
    check.run(find_nvcc(), "-std=c++17", "-O3", arch, "-I", "csrc", source, "-o", program)
    return program


def wrappers(check: Check) -> str:
    return last_line(check.run(compile_with_nvcc(check, "tests/cpp/simt_test.cu")))


def tests(check: Check) -> str:
    require_build(check)
    chosen = f"bfloat16 and ({DEVICE_KEYWORDS})" if check.quick else DEVICE_KEYWORDS
    options = ("-q", "-p", "no:cacheprovider", "--no-header", "-k", chosen)
    printed = check.run(sys.executable, "-m", "pytest", *options, *DEVICE_TESTS)
    summary = last_line(printed)
    if " passed" not in summary:
        raise Failed(f"no test was run: {summary}")
    return summary


def calibrate(check: Check) -> str:
    check.file("-calibration.jsonl").unlink(missing_ok=True)
    printed = check.run(compile_with_nvcc(check, "benchmarks/cuda/calibrate.cu"))
    check.file("-calibration.jsonl").write_text(printed, encoding="utf-8")
    require_build(check)
    printed += check.run(sys.executable, "-m", "tools.steps")
    check.file("-calibration.jsonl").write_text(printed, encoding="utf-8")
    return f"{len(printed.splitlines())} measurements"


def sanitizer(check: Check) -> str:
    if shutil.which(SANITIZER) is None:
        raise Failed(f"{SANITIZER} is not in PATH")
    require_build(check)
    program = ("--kernel-regex", "kns=varlen_rnn", sys.executable, "tools/layers.py")
    lines, failed, hazards = [], False, False
    for tool in SANITIZER_TOOLS:
        # Racecheck may not see what st.async and mbarriers order, so its alarms can be false.
        judged = tool == "racecheck"
        status = () if judged else ("--error-exitcode", "9")
        try:
            # Without torch's cache every tensor is an allocation that memcheck knows.
            printed = check.run(
                *(SANITIZER, "--tool", tool, *status, *program),
                seconds=SECONDS["sanitizer"] / len(SANITIZER_TOOLS),
                PYTORCH_NO_CUDA_MEMORY_CACHING="1",
            )
            summaries = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (.*)", printed)
            if not summaries:
                raise Failed(f"no summary: {last_line(printed)}")
            lines.append(f"{tool}: {summaries[-1]}")
            if judged and not summaries[-1].startswith("0 "):
                hazards = True
                lines[-1] += f", to be read in {check.file('-check.log').name}"
        except Failed as failure:
            failed = True
            lines.append(f"{tool}: {failure}")
    if failed:
        raise Failed("; ".join(lines))
    if hazards:
        raise Found("; ".join(lines))
    return "; ".join(lines)


def bench(check: Check) -> str:
    results = check.file(".jsonl")
    results.unlink(missing_ok=True)
    require_build(check)
    seconds = check.part_deadline - time.monotonic() - TABLES_SECONDS
    if seconds < LEAST_SECONDS:
        raise Failed("no time left for a workload and its tables")
    options = ("--grid", "--device", "cuda", "--output", results, "--limit", seconds)
    options += () if check.quick else ("--full",)
    options += ("--tests-passed" if check.passed("tests") else "--skip-tests",)
    failure = None
    try:
        # A workload that has begun is not cut off but ends, and the next ones are left out.
        check.run(sys.executable, "-m", "benchmarks.run", *options, seconds=seconds + 10)
    except Failed as failed:
        failure = failed
    lines = results.read_text(encoding="utf-8").splitlines() if results.exists() else []
    if lines:
        check.run(sys.executable, "-m", "benchmarks.report", results)
    if failure:
        raise Failed(f"{failure}; {len(lines)} workloads were timed") from failure
    if not lines:
        raise Failed("no workload was timed")
    return f"{len(lines)} workloads"


PARTS: dict[str, Callable[[Check], str]] = {
    "build": build,
    "wrappers": wrappers,
    "tests": tests,
    "calibrate": calibrate,
    "sanitizer": sanitizer,
    "bench": bench,
}


def run_part(check: Check, part: str) -> None:
    """Runs it and keeps how it ended, whatever happens in it."""
    print(f"{part} ...", flush=True)
    start = time.monotonic()
    check.part_deadline = min(check.deadline, start + SECONDS[part])
    try:
        verdict, detail = "passed", PARTS[part](check)
    except Found as finding:
        verdict, detail = "FOUND", str(finding)
    except Failed as problem:
        verdict, detail = "FAILED", str(problem)
    except Exception as problem:  # noqa: BLE001 - the other parts' results must not be lost
        verdict, detail = "FAILED", repr(problem)
    check.outcomes.append(Outcome(part, verdict, time.monotonic() - start, detail))


def release(package: str) -> tuple[int, ...]:
    """Its major and minor version."""
    return tuple(map(int, re.findall(r"\d+", version(package))[:2]))


def read_device() -> tuple[dict[str, str], list[str]]:
    """The device, and what this machine lacks."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    missing += [
        name
        for name in BUILD_TOOLS
        if importlib.util.find_spec(name) is None and shutil.which(name) is None
    ]
    missing += [
        f"{name} {oldest[0]}.{oldest[1]} or newer (it has {version(name)})"
        for name, oldest in OLDEST.items()
        if name not in missing and release(name) < oldest
    ]
    if find_nvcc() is None:
        missing.append("nvcc ($CUDACXX, $CUDA_HOME/bin/nvcc, PATH)")
    if "torch" in missing:
        return {}, missing
    import torch

    if torch.version.cuda is None:
        missing.append(f"torch with CUDA (torch {torch.__version__} has none)")
    elif not torch.cuda.is_available():
        missing.append("an NVIDIA GPU with its driver")
    if missing:
        return {}, missing
    major, minor = torch.cuda.get_device_capability()
    architecture = f"{major}{minor}"
    name = torch.cuda.get_device_name()
    return {"name": name, "architecture": architecture, "torch": torch.__version__}, missing


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    start = time.monotonic()
    parser = argparse.ArgumentParser(prog="python -m tools.gpu_check", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--parts", default=",".join(PARTS), help="names with commas between")
    parser.add_argument("--quick", action="store_true", help="fewer tests and a small grid")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--limit", type=float, default=LIMIT_SECONDS, help="seconds for all")
    args = parser.parse_args(argv)
    parts = args.parts.split(",")
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"--parts must be of {', '.join(PARTS)}, got {unknown[0]}")
    device, missing = read_device()
    if missing:
        print(f"gpu-check cannot run on this machine, which lacks {', '.join(missing)}")
        return 2
    check = Check(args.output.resolve(), device, commit(), args.quick, start + args.limit)
    check.output.mkdir(parents=True, exist_ok=True)
    check.file("-check.log").unlink(missing_ok=True)
    TREE.mkdir(parents=True, exist_ok=True)
    copy_tree()
    for part in (part for part in PARTS if part in parts):
        run_part(check, part)
    from tools.gpu_report import table  # needs torch, so not before it was looked for

    title = f"gpu-check on {device['name']}, torch {device['torch']}, commit {check.commit}"
    text = table(title, check.outcomes, check.file("-calibration.jsonl"), check.file(".jsonl"))
    with check.file("-check.log").open("a", encoding="utf-8") as log:
        log.write(f"\n{text}\n")
    print(f"\n{text}\n\nresults and log: {check.output}")
    return 1 if any(o.verdict == "FAILED" for o in check.outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
