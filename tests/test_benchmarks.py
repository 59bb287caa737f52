"""The benchmarks compare before they time, and report what they say they report. No times here."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import CELLS
from torch import Tensor

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

pytest.importorskip("tqdm", reason="the benchmarks show their progress with tqdm")
pytest.importorskip("matplotlib", reason="the benchmarks plot with matplotlib")

from matplotlib.image import imread  # noqa: E402

from benchmarks import compare, measure, peers, run, suites, workloads  # noqa: E402
from benchmarks.workloads import Workload  # noqa: E402


def words(text: str) -> list[str]:
    return text.split()


ORIGIN = words(
    "commit date varlen_rnn extension isa compiler torch onnxruntime python system cpu cores device"
    " device_name tests"
)
CASE = words(
    "name group cell mode B T I H distribution seed dtype threads tokens valid_share flops"
    " mm_gflops peers"
)
FIGURES = words("median_s q1_s q3_s min_s rounds calls us_per_token gflops mm_share")


def tiny(cell: str = "lstm", mode: str = "inference", **options: object) -> Workload:
    return replace(Workload("shapes", cell, mode, 4, 6, 3, 5, threads=1), **options)


def tiny_step(cell: str = "lstm") -> Workload:
    return tiny(cell, group="step", rows=1, steps=1, streaming=True, peers=workloads.STEP_PEERS)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, restore_threads: None) -> None:
    """Two rounds, a small matrix, short turns."""
    monkeypatch.setattr(run, "SHORT", measure.Budget(seconds=0.0, min_rounds=2, max_rounds=2))
    monkeypatch.setattr(run, "MM_SIZES", {"cpu": 16})
    monkeypatch.setattr(measure, "TURN_SECONDS", 1e-4)
    monkeypatch.setattr(measure, "PAUSE_SECONDS", 0.0)


class Liar(peers.Padded):
    """One number of its output is wrong."""

    def __init__(self, wrong: float) -> None:
        super().__init__(ours=False)
        object.__setattr__(self, "wrong", wrong)

    def prepare(self, batch: workloads.Batch) -> peers.Prepared:
        honest = super().prepare(batch)

        def results(returned: object) -> dict[str, Tensor]:
            found = honest.results(returned)
            found["output"].view(-1)[-1] += self.wrong
            return found

        return peers.Prepared(honest.call, results)


@pytest.mark.parametrize("distribution", workloads.DISTRIBUTIONS)
def test_a_workload_is_the_same_every_time(distribution: str) -> None:
    workload = tiny(rows=40, steps=25, distribution=distribution)
    first, second = workload.batch(), replace(workload).batch()
    assert torch.equal(first.lengths, second.lengths)
    assert torch.equal(first.x, second.x)
    for name, weight in first.weights.items():
        assert torch.equal(weight, second.weights[name]), name
    assert first.lengths.shape == (40,)
    assert first.lengths.min() >= 1
    assert first.lengths.max() == 25
    assert first.x.shape == (25, 40, 3)
    assert torch.equal(first.valid.sum(0), first.lengths)
    assert not first.x[~first.valid].any()


def test_distributions_are_what_they_are_called() -> None:
    def lengths(distribution: str, rows: int = 640) -> Tensor:
        return tiny(rows=rows, steps=100, distribution=distribution).lengths()

    assert lengths("full").unique().tolist() == [100]
    assert lengths("linspace", 100).tolist() == list(range(1, 101))
    assert 45 < lengths("uniform").float().mean() < 55
    assert 20 <= lengths("lognormal").median() <= 30
    recorded = lengths("japanese_vowels")
    assert (len(recorded), int(recorded.sum())) == (640, 9961)
    assert (int(recorded.min()), int(recorded.max())) == (7, 29)
    assert not torch.equal(lengths("uniform"), tiny(rows=640, steps=100, seed=1).lengths())


def test_flops_are_those_of_valid_tokens() -> None:
    workload = tiny(steps=10, distribution="full")
    assert workload.flops() == 40 * 8 * 5 * (3 + 5)
    assert replace(workload, cell="gru").flops() == 40 * 6 * 5 * (3 + 5)
    assert replace(workload, mode="training").flops() == 3 * workload.flops()
    assert replace(workload, steps=40).flops() == 4 * workload.flops()


@pytest.mark.parametrize("full", [False, True], ids=["short", "full"])
def test_suites_hold_what_they_promise(full: bool) -> None:
    cases = suites.suite(full=full, threads=4)
    assert len({case.name for case in cases}) == len(cases)
    assert all(set(case.peers) <= set(peers.PEERS) for case in cases)
    inference = [c for c in cases if (c.group, c.cell, c.mode) == ("shapes", "lstm", "inference")]
    assert tuple((c.rows, c.steps, c.hidden_size) for c in inference) == workloads.SHAPES
    growth = [c for c in cases if (c.group, c.cell) == ("growth", "lstm")]
    assert [c.steps for c in growth] == [250, 1000, 4000]
    assert [("nn packed" in c.peers) for c in growth] == [True, True, full]
    assert {c.threads for c in cases if c.group == "threads"} == {1, 2}
    assert {c.threads for c in cases if c.group != "threads"} == {4}
    assert {c.group for c in cases} == {"step", "growth", "shapes", "lengths", "threads"}


@pytest.mark.parametrize("mode", workloads.MODES)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("name", [name for name in peers.PEERS if name != run.OURS])
def test_every_peer_computes_what_we_compute(name: str, cell: str, mode: str) -> None:
    workload = tiny_step(cell) if name == "nn cell" else tiny(cell, mode, input_size=7)
    workload = replace(workload, mode=mode, peers=(run.OURS, name))
    if reason := peers.PEERS[name].unavailable(workload, "cpu"):
        pytest.skip(f"{name}: {reason}")
    batch = workload.batch()
    with torch.set_grad_enabled(workload.training):
        prepared = {key: peers.PEERS[key].prepare(batch) for key in workload.peers}
        run.compare_results(workload, prepared)
        results = prepared[name].results(prepared[name].call())
    gradients = {"gradient of the input", "weight_ih", "weight_hh", "bias_ih", "bias_hh"}
    assert set(results) == {"output"} | (gradients if workload.training else set())
    assert results["output"].shape == (int(batch.lengths.sum()), 5)


def test_every_function_has_its_rounds(quick: None) -> None:
    calls: Counter[str] = Counter()
    functions = {name: (lambda name=name: calls.update([name])) for name in ("a", "b", "c")}
    timings = measure.interleave(functions, measure.Budget(0.0, 3, 9))
    assert [len(timing.seconds) for timing in timings.values()] == [3, 3, 3]
    assert all(calls[name] >= 3 * timings[name].calls for name in functions)
    summary = measure.Timing(7, [4.0, 1.0, 2.0, 3.0, 5.0]).summary()
    assert list(summary.values()) == [3.0, 2.0, 4.0, 1.0, 5, 7]


def test_rounds_follow_the_budget() -> None:
    budget = measure.Budget(seconds=1.0, min_rounds=3, max_rounds=10)
    assert [budget.rounds(s) for s in (0.01, 0.2, 5.0)] == [10, 5, 3]


def test_a_run_writes_a_line_a_workload(
    quick: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = [tiny(cell, mode) for cell in CELLS for mode in workloads.MODES]
    cases += [tiny_step(), tiny(group="lengths", distribution="japanese_vowels", steps=29)]
    output = tmp_path / "new" / "tiny.jsonl"
    assert run.main(["--skip-tests", "--output", str(output)], cases) == 0
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert [record["name"] for record in records] == [case.name for case in cases]
    for record, case in zip(records, cases, strict=True):
        assert list(record) == CASE + ORIGIN
        assert record["tests"] == "skipped"
        assert record["tokens"] == int(case.lengths().sum())
        assert 0 < record["valid_share"] <= 1
        assert list(record["peers"]) == list(case.peers)
        for figures in record["peers"].values():
            if list(figures) != ["skipped"]:
                assert list(figures) == FIGURES
                assert 0 < figures["min_s"] <= figures["q1_s"] <= figures["q3_s"]
                assert figures["rounds"] == 2
        assert "skipped" not in record["peers"][run.OURS]
    skipped = {name: f for name, f in records[1]["peers"].items() if "skipped" in f}
    assert list(skipped) == ["onnxruntime"]
    printed = capsys.readouterr().out
    assert f"onnxruntime skipped: {skipped['onnxruntime']['skipped']}" in printed


@pytest.mark.parametrize("wrong", [1e-2, float("nan")])
def test_a_workload_with_a_liar_is_not_reported(
    wrong: float,
    quick: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(peers.PEERS, "liar", Liar(wrong))
    lied, honest = tiny(peers=(run.OURS, "liar")), tiny("gru", peers=(run.OURS, "nn padded"))
    output = tmp_path / "tiny.jsonl"
    assert run.main(["--skip-tests", "--output", str(output)], [lied, honest]) == 1
    names = [json.loads(line)["name"] for line in output.read_text().splitlines()]
    assert names == [honest.name]
    printed = capsys.readouterr()
    assert f"not reported: {lied.name}: output of liar differs by" in printed.out
    assert "1 not reported" in printed.err


@pytest.mark.parametrize("green", [True, False], ids=["green", "red"])
def test_tests_come_first(
    green: bool, quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    test = tmp_path / "test_something.py"
    test.write_text(f"def test_something():\n    assert {green}\n")
    monkeypatch.setattr(run, "TESTS", (str(test),))
    output = tmp_path / "tiny.jsonl"
    status = run.main(["--output", str(output)], [tiny(peers=(run.OURS,))])
    assert status == (0 if green else 1)
    assert output.exists() == green
    if green:
        assert json.loads(output.read_text())["tests"] == "passed"


def test_the_tests_that_come_first_exist() -> None:
    assert all((ROOT / test).is_file() for test in run.TESTS)


def test_no_workload_begins_after_the_limit(
    quick: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "tiny.jsonl"
    run.main(["--skip-tests", "--limit", "1e-9", "--output", str(output)], [tiny()])
    assert output.read_text() == ""
    assert f"left out, for the time is up: {tiny().name}" in capsys.readouterr().out


def sample(**changes: object) -> list[dict[str, object]]:
    """What a run on two thread counts might have written; ours takes 1 s, others 2 s."""
    cases = [tiny(cell, mode) for cell in CELLS for mode in workloads.MODES]
    cases = [replace(case, threads=2) for case in cases]
    cases += [replace(case, group="threads", threads=1) for case in cases]
    cases += [tiny(mode="training", group="growth", steps=steps) for steps in (6, 60)]
    cases += [tiny_step(), tiny(group="lengths", distribution="linspace")]
    figures = dict.fromkeys(FIGURES, 1.0)
    theirs = {**figures, "median_s": 2.0, "q1_s": 1.5, "q3_s": 2.5, "gflops": 0.5}
    return [
        {
            **dict.fromkeys(ORIGIN, "x"),
            **{key: getattr(case, key) for key in words("name group cell mode dtype threads")},
            **{"B": case.rows, "T": case.steps, "I": 3, "H": 5, "seed": 0, "tokens": 1},
            **{"distribution": case.distribution, "valid_share": 0.5, "flops": 10**9},
            **{"mm_gflops": 2.0, "device": "cpu", "device_name": None, "tests": "passed"},
            "peers": {
                run.OURS: figures,
                "nn padded": theirs,
                "onnxruntime": {"skipped": "not installed"} if case.training else theirs,
            },
            **changes,
        }
        for case in cases
    ]


def written(path: Path, records: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_tables_and_plots(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{compare.BEGIN}\nold\n{compare.END}\nafter\n")
    source = written(tmp_path / "cpu.jsonl", sample())
    for _ in range(2):
        assert compare.main([source, "--readme", str(readme)]) == 0
    made = sorted(path.name for path in tmp_path.iterdir())
    plots = ["cpu-growth.png", "cpu-threads.png", "cpu-throughput.png"]
    assert made == ["README.md", *plots, "cpu.jsonl", "cpu.md"]
    for name in plots:
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
        colours = {tuple(c) for c in imread(tmp_path / name).reshape(-1, 4)[::7].tolist()}
        assert len(colours) > 10, f"{name} is empty"
    tables = (tmp_path / "cpu.md").read_text()
    assert "| B, T, I = H | valid | varlen_rnn | nn padded | onnxruntime |" in tables
    assert "| 4, 6, 3, 5 | 50% | 1 | 0.5 | 0.5 | 100% | 2.00 × | 50% |" in tables
    assert "| linspace (4, 6, 3, 5) | 50% | 1 |" in tables
    assert "Geometric means of varlen_rnn's speed: 2.00 × the best peer, " in tables
    for threads in (1, 2):
        assert f"| 4, 6, 3, 5; {threads} | 50% | 1 |" in tables
    assert f"plot: {tmp_path / plots[0]}" in capsys.readouterr().out
    text = readme.read_text()
    assert text.startswith(f"before\n{compare.BEGIN}\n")
    assert text.endswith(f"\n{compare.END}\nafter\n")
    assert "old" not in text
    assert "| 60 | 1 | 1 | 50% |" in text


def test_the_readme_takes_checked_numbers_and_markers_only(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"{compare.BEGIN}\n{compare.END}\n")
    with pytest.raises(ValueError, match="must show results with tests passed"):
        compare.write_readme(readme, sample(tests="skipped"))
    assert readme.read_text() == f"{compare.BEGIN}\n{compare.END}\n"
    readme.write_text("no markers\n")
    with pytest.raises(ValueError, match="must have one line"):
        compare.write_readme(readme, sample())


def test_the_last_line_of_a_workload_counts(tmp_path: Path) -> None:
    old = written(tmp_path / "old.jsonl", sample(commit="old"))
    new = written(tmp_path / "new.jsonl", sample(commit="new")[:1])
    records = compare.load([Path(old), Path(new)])
    assert Counter(r["commit"] for r in records) == {"new": 1, "old": len(records) - 1}
