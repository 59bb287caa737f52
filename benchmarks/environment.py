"""Where a number comes from: the commit, the versions and the machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from datetime import datetime, timezone
from pathlib import Path

import torch

import varlen_rnn
from benchmarks.revision import commit, output

RESULTS = Path(__file__).parent / "results"


def cpu() -> str:
    """The processor's name as the system gives it."""
    if sys.platform == "darwin":
        return output("sysctl", "-n", "machdep.cpu.brand_string") or platform.machine()
    try:
        info = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    lines = (line.partition(":") for line in info.split("\n\n")[0].splitlines())
    fields = {key.strip(): value.strip() for key, _, value in lines}
    name = fields.get("model name", platform.machine())
    family, model = fields.get("cpu family"), fields.get("model")
    return f"{name} (family {family}, model {model})" if family and model else name


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def describe(device: str) -> dict[str, object]:
    """What every line of a result file says beside its numbers."""
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
        "onnxruntime": _version("onnxruntime"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu(),
        "cores": os.cpu_count(),
        "device": device,
        "device_name": torch.cuda.get_device_name(device) if on_cuda else None,
        **(versions if on_cuda else {}),
    }
