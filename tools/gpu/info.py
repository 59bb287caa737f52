"""Versions of all that takes part, and what the package says of its kernels: a JSON line."""

from __future__ import annotations

import importlib.util
import json
import platform
import shutil
import subprocess
from importlib.metadata import version
from typing import Any

TOOLS = ("nvcc", "ncu", "compute-sanitizer")


def nvcc_release() -> str | None:
    """The last line of what it says."""
    if shutil.which("nvcc") is None:
        return None
    asked = ["nvcc", "--version"]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.split("\n")[-2]


def main() -> None:
    """Prints it."""
    import torch

    import varlen_rnn

    found: dict[str, Any] = {
        "what": "info",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "packages": {
            name: version(name) for name in ("numpy", "pytest") if importlib.util.find_spec(name)
        },
        "tools": {name: shutil.which(name) for name in TOOLS},
        "nvcc": nvcc_release(),
        "build_info": varlen_rnn.build_info(),
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties()
        found["device_name"] = properties.name  # as in all result files
        found["multiprocessors"] = properties.multi_processor_count
    print(json.dumps(found))
    if torch.cuda.is_available() and not str(found["build_info"].get("cuda")).startswith(
        "compiled"
    ):
        raise SystemExit(f"the CUDA kernels are not there: {found['build_info']}")


if __name__ == "__main__":
    main()
