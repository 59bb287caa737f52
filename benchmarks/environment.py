"""Where a number comes from: the commit, the versions and the machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).parents[1]


def _output(*command: str) -> str | None:
    """What a command prints, or None if it is not there or fails."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def commit() -> str:
    """The commit, with "-dirty" if anything that counts differs from it. Needs no torch.

    VARLEN_RNN_COMMIT says it where git cannot: in a copy of the tree.
    """
    if said := os.environ.get("VARLEN_RNN_COMMIT"):
        return said
    head = _output("git", "rev-parse", "--short=12", "HEAD")
    if head is None:
        return "unknown"
    # What documents or holds results changes no result.
    counts = (".", ":!benchmarks/results", ":!docs", ":!*.md")
    changed = _output("git", "status", "--porcelain", "--", *counts)
    return f"{head}-dirty" if changed else head


def cpu() -> str:
    """The processor's name as the system gives it."""
    if sys.platform == "darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.machine()
    try:
        info = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    lines = (line.partition(":") for line in info.split("\n\n")[0].splitlines())
    fields = {key.strip(): value.strip() for key, _, value in lines}
    name = fields.get("model name", platform.machine())
    family, model = fields.get("cpu family"), fields.get("model")
    return f"{name} (family {family}, model {model})" if family and model else name


def installed(package: str) -> str | None:
    """Its version; None if it is not there."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def describe(device: str) -> dict[str, object]:
    """What every line of a result file says beside its numbers."""
    import torch

    import varlen_rnn

    info = varlen_rnn.build_info()
    on_cuda = torch.device(device).type == "cuda"
    versions = {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return {
        "commit": commit(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "varlen_rnn": info["version"],
        "extension": info["extension"],
        "isa": info.get("cpu_isa"),
        "compiler": info.get("compiler"),
        "torch": torch.__version__,
        "onnxruntime": installed("onnxruntime"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu(),
        "cores": os.cpu_count(),
        "device": device,
        "device_name": torch.cuda.get_device_name(device) if on_cuda else None,
        **(versions if on_cuda else {}),
    }
