"""What of a GPU's benchmarks can be tested without one: the grid, its goals and its tables."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from grid_lines import record, sample

pytest.importorskip("tqdm", reason="the benchmarks show their progress with tqdm")
pytest.importorskip("matplotlib", reason="the benchmarks plot with matplotlib")

from benchmarks import grid, report, run
from benchmarks.workloads import Workload


def test_the_grid_is_whole() -> None:
    cases = grid.workloads()
    assert len({case.name for case in cases}) == len(cases)
    ragged = [case for case in cases if case.distribution == "uniform"]
    sizes = Counter((c.hidden_size, c.rows, c.steps) for c in ragged)
    assert len(sizes) == 6 * 5 * 3
    assert set(sizes.values()) == {2 * 2 * 2}  # cells, modes, dtypes
    full = [case for case in cases if case.distribution == "full"]
    assert full == cases[: len(full)]
    assert {(c.cell, c.dtype) for c in full} == {("lstm", "float16")}
    assert all(c.hidden_size % 128 == 0 and c.rows % 8 == 0 for c in full)
    quick = grid.workloads(quick=True)
    assert {case.name for case in quick} < {case.name for case in cases}


def test_tf32_is_float32_with_another_name() -> None:
    case = Workload("grid", "lstm", "inference", 4, 6, 3, 5, dtype="tf32")
    assert case.torch_dtype == case.batch().x.dtype == torch.float32
    assert "-tf32-" in case.name


@pytest.mark.parametrize(
    ("rows", "size", "distribution", "goal"),
    [
        (128, 512, "uniform", 3.0),
        (512, 512, "uniform", 1.0),
        (512, 1024, "uniform", 1.5),
        (1, 2048, "uniform", 1.0),
        (32, 256, "full", 1.0),
    ],
)
def test_goals(rows: int, size: int, distribution: str, goal: float) -> None:
    line = record(rows, 200, size, (1.0, 1.0, 4.0, 5.0), distribution=distribution)
    assert grid.goal(line) == goal


def test_speed_is_that_of_the_same_form() -> None:
    packed, *_, full = sample()
    assert grid.speed(packed) == pytest.approx(4.0)
    assert grid.speed(full) == pytest.approx(1.5)
    assert grid.verdict(sample()) == (
        "3 of 4 reach their goal; farthest from it: 2.50 × nn packed for a goal of 3 × "
        "(LSTM inference bfloat16, H 512, B 32, T 200)"
    )


def test_tables_of_the_grid(tmp_path: Path) -> None:
    results = tmp_path / "gpu.jsonl"
    results.write_text("".join(json.dumps(line) + "\n" for line in sample()))
    assert report.main([str(results)]) == 0
    text = (tmp_path / "gpu.md").read_text()
    assert "### LSTM, inference: µs a step of the longest row (cuda, bfloat16)" in text
    assert "| 128, 8, 200 | 50% | 1.1 | 1 | 4 | 5 | 4.00 × nn packed | 3 × | yes | 10% |" in text
    assert "| 512, 32, 200 | 50% | 2.2 | 2 | 5 | 5 | 2.50 × nn packed | 3 × | no | 10% |" in text
    assert "| 128, 8, 200 | 50% | 1 | 1.1 | 9 | 1.5 | 1.50 × nn padded | 1 × | yes | 10% |" in text
    assert "CUDA 13.0, cuDNN 91300" in text
    assert not results.with_suffix(".png").exists()


@pytest.mark.parametrize("option", [["--grid"], ["--dtype", "tf32"]])
def test_what_a_cpu_cannot_run(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.main(option)
    assert "must go with --device cuda, got cpu" in capsys.readouterr().err


def test_a_workload_too_large_is_left_out(
    tmp_path: Path,
    restore_threads: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run_workload(*args: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(run, "run_workload", run_workload)
    case, output = Workload("grid", "lstm", "inference", 4, 6, 3, 5), tmp_path / "x.jsonl"
    assert run.main(["--skip-tests", "--output", str(output)], [case]) == 0
    assert output.read_text() == ""
    assert f"memory is too small: {case.name}" in capsys.readouterr().out
