"""The kernels count as proven on the GPUs that results are committed of, and on no others."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.records import RESULTS
from tools.gpu import info
from varlen_rnn.runtime import extension


def gpus(paths: Iterable[Path]) -> set[str]:
    """The names of the devices that lines of result files come from, but not the CPU."""
    lines = [line for path in paths for line in path.read_text(encoding="utf-8").splitlines()]
    names = {json.loads(line).get("device_name") for line in lines}
    return {name for name in names if name}


def test_proven_are_the_gpus_of_the_committed_results() -> None:
    assert set(extension.PROVEN_ON) == gpus(RESULTS.glob("**/*.jsonl"))
    assert len(extension.PROVEN_ON) == len(set(extension.PROVEN_ON))


def test_a_check_of_a_gpu_counts_as_its_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu = SimpleNamespace(name="GPU 1", multi_processor_count=1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: gpu)
    with contextlib.suppress(SystemExit):  # without CUDA kernels
        info.main()
    (tmp_path / "some.jsonl").write_text(capsys.readouterr().out)
    assert gpus(tmp_path.iterdir()) == {"GPU 1"}


def test_names_are_read_off_every_line(tmp_path: Path) -> None:
    path = tmp_path / "some.jsonl"
    lines = [{"device_name": None}, {"device_name": "GPU 1"}, {}, {"device_name": "GPU 2"}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert gpus([path]) == {"GPU 1", "GPU 2"}
