"""What ``device.cu`` makes of CUDA's answers: compiled by nvcc, and run without a GPU."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NVCC = shutil.which(os.environ.get("CUDACXX", "nvcc"))
ANSWERS = ("cudaStreamIsCapturing", "cudaThreadExchangeStreamCaptureMode", "cudaHostAlloc")


@pytest.mark.skipif(NVCC is None, reason="there is no nvcc")
def test_answers(tmp_path: Path) -> None:
    program = tmp_path / "device_test"
    wrapped = [f"-Xlinker=--wrap={name}" for name in ANSWERS]
    sources = [ROOT / "csrc" / "cuda" / "device.cu", ROOT / "tests" / "cpp" / "device_test.cpp"]
    options = ["-std=c++17", "-arch=sm_90", f"-I{ROOT / 'csrc'}", *wrapped]
    command = [str(part) for part in (NVCC, *options, *sources, "-o", program)]
    subprocess.run(command, check=True)
    result = subprocess.run([program], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "")
