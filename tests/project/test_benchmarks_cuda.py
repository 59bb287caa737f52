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

from benchmarks import graphs, grid, measure, report, run
from benchmarks.peers import PEERS, unavailable
from benchmarks.workloads import Workload
from varlen_rnn import VarLenLSTM


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
    assert all(grid.ours({"distribution": "full"}) in c.peers for c in full)
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
    assert grid.speed(full, "kernel_s") == pytest.approx(1.5)
    assert grid.speed(packed, "kernel_s") is None  # nn packed had no such time
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
    packed, full = "varlen_rnn packed", "varlen_rnn full"
    assert f"| varlen_rnn | {packed} | nn packed | nn padded | to | calls | goal |" in text
    assert f"| varlen_rnn | {full} | nn packed | nn padded | to | calls | goal |" in text
    for row in (
        "| 128, 8, 200 | 50% | 1.1 | 1 | 4 | 5 | nn packed | 4.00 × | 3 × | yes |  | 10% |",
        "| 512, 32, 200 | 50% | 2.2 | 2 | 5 | 5 | nn packed | 2.50 × | 3 × | no |  | 10% |",
        "| 128, 8, 200 | 50% | 1.1 | 1 | 9 | 1.5 | nn padded | 1.50 × | 1 × | yes | 1.50 × | 10% |",
        # The GPU alone.
        "| 128, 8, 200 | 50% | 0.55 | 0.5 |  | 2.5 |",
        "| 128, 8, 200 | 50% | 0.55 | 0.5 |  | 0.75 |",
    ):
        assert row in text, row
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


def workload(**options: object) -> Workload:
    return Workload("grid", "lstm", "inference", 4, 6, 3, 5, **options)


def test_full_rows_go_without_lengths_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    full, ragged = (workload(distribution=name) for name in ("full", "uniform"))
    forward, given = VarLenLSTM.forward, []

    def spy(self: VarLenLSTM, x: torch.Tensor, hx: object, **keywords: object) -> object:
        given.append(keywords)
        return forward(self, x, hx, **keywords)

    monkeypatch.setattr(VarLenLSTM, "forward", spy)
    assert unavailable(grid.OURS_FULL, full, "cpu") is None
    assert unavailable(grid.OURS_FULL, ragged, "cpu") == "is for rows that are full"
    with torch.no_grad():
        calls = [PEERS[name](full.batch()) for name in (grid.OURS_FULL, grid.NN_PADDED)]
        ours, theirs = (peer.results(peer.call())["output"] for peer in calls)
    assert torch.allclose(ours, theirs, atol=1e-6)
    assert given == [{}]


@pytest.fixture
def pretend_gpu(monkeypatch: pytest.MonkeyPatch, restore_threads: None) -> dict[str, int]:
    """Graphs that call again, and calls that cannot be queued; counts who was captured."""
    captured: dict[str, int] = {}

    def capture(call: object) -> graphs.Captured:
        captured[len(captured)] = 1
        return graphs.Captured(call, call())

    monkeypatch.setattr(graphs, "capture", capture)
    monkeypatch.setattr(graphs, "queued", lambda call: call() and None)
    monkeypatch.setattr(measure, "TURN_SECONDS", 1e-4)
    monkeypatch.setattr(measure, "PAUSE_SECONDS", 0.0)
    return captured


BUDGET = measure.Budget(0.0, 2, 2)


def prepared_of(case: Workload) -> dict[str, object]:
    with torch.no_grad():
        return {name: PEERS[name](case.batch()) for name in grid.PEERS}


def test_who_is_captured_and_what_is_said_of_the_others(pretend_gpu: dict[str, int]) -> None:
    prepared = prepared_of(workload())
    with torch.no_grad():
        captured = {name: graphs.capture(prepared[name].call) for name in ("varlen_rnn",)}
        calls = {name: peer.call for name, peer in prepared.items()}
        found = graphs.kernel_times(calls, captured, BUDGET, measure.host_clock)
    assert found.keys() == calls.keys()
    assert found["varlen_rnn"]["kernel_by"] == "graph"
    assert 0 < found["varlen_rnn"]["kernel_q1_s"] <= found["varlen_rnn"]["kernel_q3_s"]
    nothing = {"kernel_by": None, "kernel_why": graphs.NOT_QUEUED}
    assert found["nn packed"] == found["varlen_rnn packed"] == nothing


def test_a_queued_call_has_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "queued", lambda call: [3.0, 1.0, 2.0, 9.0, 2.5])
    assert graphs.kernel_times({"nn packed": print}, {}, BUDGET)["nn packed"] == {
        "kernel_by": "queue",
        "kernel_s": 2.5,
        "kernel_q1_s": 2.0,
        "kernel_q3_s": 3.0,
    }


def test_only_what_lies_on_the_gpu_is_captured(
    pretend_gpu: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "kernel_times", lambda calls, captured, *_, **__: dict(captured))
    case = workload()
    with torch.no_grad():
        found = run.device_times(case, prepared_of(case), BUDGET)
    assert found.keys() == {"varlen_rnn", "nn padded"}


def test_a_graph_that_computes_something_else_is_not_timed(
    pretend_gpu: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stale(call: object) -> graphs.Captured:
        (output,) = call()
        return graphs.Captured(call, (torch.zeros_like(output),))

    monkeypatch.setattr(graphs, "capture", stale)
    monkeypatch.setattr(graphs, "kernel_times", lambda *_, **__: pytest.fail("it was timed"))
    case = workload()
    with torch.no_grad(), pytest.raises(run.ResultsDiffer, match="output of"):
        run.device_times(case, prepared_of(case), BUDGET)


def test_who_cannot_be_captured_after_all_says_why(
    pretend_gpu: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(call: object) -> graphs.Captured:
        raise RuntimeError("operation not permitted\nwhen capturing")

    monkeypatch.setattr(graphs, "capture", refuse)
    case = workload()
    with torch.no_grad():
        found = run.device_times(case, prepared_of(case), BUDGET)
    assert found["nn padded"]["kernel_why"] == (
        f"not captured: operation not permitted; {graphs.NOT_QUEUED}"
    )
    assert found["nn packed"]["kernel_why"] == graphs.NOT_QUEUED
