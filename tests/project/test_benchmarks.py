"""The benchmarks compare before they time, and report what they say they report. No times here."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import CELLS
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

ROOT = Path(__file__).parents[2]

pytest.importorskip("tqdm", reason="the benchmarks show their progress with tqdm")
pytest.importorskip("matplotlib", reason="the benchmarks plot with matplotlib")

from benchmarks import forms, measure, peers, run, suites, workloads  # noqa: E402
from benchmarks.workloads import FORM_PEERS, LAYOUT_PEERS, RESET_PEERS, Workload  # noqa: E402
from varlen_rnn.layout import forms as our_forms  # noqa: E402


def words(text: str) -> list[str]:
    return text.split()


ORIGIN = words(
    "commit date varlen_rnn extension isa compiler torch onnxruntime python system cpu cores device"
    " device_name tests"
)
CASE = words(
    "name group cell mode B T I H distribution seed reset_probability dtype threads tokens"
    " valid_share flops mm_gflops peers"
)
TIMES = words("median_s q1_s q3_s min_s rounds calls")
FIGURES = [*TIMES, *words("us_per_token gflops mm_share")]


def tiny(cell: str = "lstm", mode: str = "inference", **options: object) -> Workload:
    return replace(Workload("shapes", cell, mode, 4, 6, 3, 5, threads=1), **options)


def tiny_step(cell: str = "lstm") -> Workload:
    return tiny(cell, group="step", rows=1, steps=1, streaming=True, peers=workloads.STEP_PEERS)


def tiny_forms() -> Workload:
    return tiny(group="forms", peers=(*FORM_PEERS.values(), *LAYOUT_PEERS.values()))


def tiny_resets(cell: str = "lstm", probability: float = 0.3, **options: object) -> Workload:
    options = {"mode": "training", "distribution": "full", "peers": RESET_PEERS, **options}
    return tiny(cell, group="resets", reset_probability=probability, **options)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, restore_threads: None) -> None:
    """Two rounds, a small matrix, short turns."""
    monkeypatch.setattr(run, "SHORT", measure.Budget(seconds=0.0, min_rounds=2, max_rounds=2))
    monkeypatch.setattr(run, "MM_SIZES", {"cpu": 16})
    monkeypatch.setattr(measure, "TURN_SECONDS", 1e-4)
    monkeypatch.setattr(measure, "PAUSE_SECONDS", 0.0)


def liar(wrong: float) -> peers.Prepare:
    """A peer of whose output one number is wrong."""

    def prepare(batch: workloads.Batch) -> peers.Prepared:
        honest = peers.PEERS["nn padded"](batch)

        def results(returned: object) -> dict[str, Tensor]:
            found = honest.results(returned)
            found["output"].view(-1)[-1] += wrong
            return found

        return peers.Prepared(honest.call, results)

    return prepare


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
    assert first.x.shape == (40, 25, 3)
    assert torch.equal(first.valid.sum(1), first.lengths)
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


def test_resets_are_drawn_as_they_are_called() -> None:
    assert tiny().batch().resets is None
    chances = (0.0, 0.02, 0.5)
    drawn = [tiny_resets(probability=p, rows=40, steps=250).batch() for p in chances]
    for probability, batch in zip(chances, drawn, strict=True):
        assert batch.resets is not None
        assert (batch.resets.dtype, batch.resets.shape) == (torch.bool, (40, 250))
        assert abs(float(batch.resets.float().mean()) - probability) < 0.01
        assert torch.equal(batch.x, drawn[0].x)
        assert torch.equal(batch.resets, replace(batch.workload).batch().resets)
        assert f"-full-resets{probability:g}-float32" in batch.workload.name
    other = tiny_resets(probability=0.5, rows=40, steps=250, seed=1)
    assert not torch.equal(other.batch().resets, drawn[-1].resets)


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
    groups = "shapes growth step lengths forms resets threads"
    assert list(dict.fromkeys(c.group for c in cases)) == words(groups)


@pytest.mark.parametrize("full", [False, True], ids=["short", "full"])
def test_suites_hold_forms_and_resets(full: bool) -> None:
    cases = suites.suite(full=full, threads=1)
    forms = {(c.cell, c.mode): c for c in cases if c.group == "forms"}
    wanted = [(cell, mode) for cell in workloads.CELLS for mode in workloads.MODES]
    assert list(forms) == (wanted if full else wanted[:1])
    for (_, mode), case in forms.items():
        sizes = (case.rows, case.steps, case.input_size, case.hidden_size, case.distribution)
        assert sizes == (64, 200, 256, 256, "uniform")
        layouts = LAYOUT_PEERS.values() if mode == "inference" else ()
        assert case.peers == (*FORM_PEERS.values(), *layouts)

    resets = [c for c in cases if c.group == "resets"]
    found = {(c.cell, c.rows, c.reset_probability) for c in resets}
    cells = workloads.CELLS if full else ("lstm",)
    chances = (0.0, 0.001, 0.02, 0.1) if full else (0.0, 0.02)
    assert found == {(cell, b, p) for cell in cells for b in (8, 256) for p in chances}
    for case in resets:
        sizes = (case.mode, case.steps, case.input_size, case.hidden_size, case.distribution)
        assert sizes == ("training", 128, 128, 128, "full")
        never = case.reset_probability == 0
        assert case.peers == ((*RESET_PEERS, "nn padded") if never else RESET_PEERS)
        assert bool(case.resets().any()) != never


COMPARED = [name for name in peers.PEERS if name not in (run.OURS, *LAYOUT_PEERS.values())]
UNLIKE_THE_OTHERS = {
    "nn cell": tiny_step(),
    "nn step loop": tiny_resets(),
    "varlen_rnn without resets": tiny_resets(probability=0.0),
}


@pytest.mark.parametrize("mode", workloads.MODES)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("name", COMPARED)
def test_every_peer_computes_what_we_compute(name: str, cell: str, mode: str) -> None:
    workload = UNLIKE_THE_OTHERS.get(name, tiny(input_size=7))
    workload = replace(workload, cell=cell, mode=mode, peers=(run.OURS, name))
    if reason := peers.unavailable(name, workload, "cpu"):
        pytest.skip(f"{name}: {reason}")
    batch = workload.batch()
    with torch.set_grad_enabled(workload.training):
        prepared = {key: peers.PEERS[key](batch) for key in workload.peers}
        run.compare_results(workload, prepared)
        results = prepared[name].results(prepared[name].call())
    gradients = {"gradient of the input", "weight_ih", "weight_hh", "bias_ih", "bias_hh"}
    assert set(results) == {"output"} | (gradients if workload.training else set())
    assert results["output"].shape == (int(batch.lengths.sum()), 5)


def test_forms_are_what_they_are_called() -> None:
    batch = tiny(rows=5, steps=6).batch()
    lengths = batch.lengths
    assert not torch.equal(lengths, lengths.sort(descending=True).values)
    keywords, inputs = {}, {}
    for name in FORM_PEERS:
        call = batch.in_form(name)
        keywords[name], inputs[name] = call.keywords, call.input
        assert all(tensor.is_contiguous() for tensor in call.keywords.values())
        assert forms.data_of(call.input).is_contiguous()
        assert torch.equal(batch.tokens(call.back(call.input)), batch.tokens(batch.x))
    assert {name: list(given) for name, given in keywords.items()} == {
        "lengths": ["lengths"],
        "packed": [],
        "mask": ["mask"],
        "left mask": ["mask"],
        "flat": ["cu_seqlens"],
        "nested": [],
        "resets": ["lengths", "resets"],
    }
    assert torch.equal(keywords["lengths"]["lengths"], lengths)
    assert isinstance(inputs["packed"], PackedSequence)
    assert torch.equal(keywords["mask"]["mask"], batch.valid.t())
    left = keywords["left mask"]["mask"]
    assert torch.equal(left.flip(0), batch.valid.t())
    assert not inputs["left mask"][~left].any()
    assert torch.equal(inputs["left mask"][-lengths[1] :, 1], batch.x[1, : lengths[1]])
    bounds = keywords["flat"]["cu_seqlens"]
    assert (bounds.dtype, bounds[0]) == (torch.int32, 0)
    assert torch.equal(bounds.diff(), lengths)
    assert inputs["flat"].shape == (int(lengths.sum()), 3)
    assert inputs["nested"].is_nested
    assert torch.equal(inputs["nested"].offsets(), bounds.long())
    assert torch.equal(keywords["resets"]["resets"], torch.zeros(6, 5, dtype=torch.bool))


@pytest.mark.parametrize("form", FORM_PEERS)
def test_a_layout_is_made_as_in_a_call(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, Any, our_forms.Which, bool, bool]] = []
    read = our_forms.read

    def spy(*args: Any) -> our_forms.Batch:
        seen.append(args)
        return read(*args)

    monkeypatch.setattr(our_forms, "read", spy)
    batch = tiny_forms().batch()
    layout = peers.PEERS[LAYOUT_PEERS[form]](batch)
    assert layout.results is None
    for peer in (peers.PEERS[FORM_PEERS[form]](batch), layout):
        with torch.no_grad():
            peer.call()
    call, alone = seen
    assert (alone[0], *alone[3:]) == (call[0], *call[3:]) == ("VarLenLSTM", False, False)
    assert type(alone[1]) is type(call[1])
    assert torch.equal(forms.data_of(alone[1]), forms.data_of(call[1]))
    for value, other in zip(call[2], alone[2], strict=True):
        assert torch.equal(other, value) if isinstance(value, Tensor) else other is value


def test_calls_without_resets_compute_something_else() -> None:
    batch = tiny_resets().batch()
    assert list(batch.in_form("lengths").keywords) == ["resets"]
    with_resets, without, never = (
        peers.PEERS[name](of)
        for name, of in (
            (run.OURS, batch),
            ("varlen_rnn without resets", batch),
            (run.OURS, tiny_resets(probability=0.0).batch()),
        )
    )
    assert without.results is None
    outputs = [with_resets.call()[0][0], without.call()[0][0], never.call()[0][0]]
    assert torch.equal(outputs[1], outputs[2])
    first = int(batch.resets.int().argmax(1).min())
    assert torch.equal(outputs[0][:first], outputs[1][:first])
    assert not torch.equal(outputs[0], outputs[1])


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
    cases += [tiny_forms(), tiny_resets()]
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
        assert record["reset_probability"] == case.reset_probability
        for name, figures in record["peers"].items():
            if list(figures) != ["skipped"]:
                compared = name not in (*LAYOUT_PEERS.values(), "varlen_rnn without resets")
                assert list(figures) == (FIGURES if compared else TIMES)
                assert 0 < figures["min_s"] <= figures["q1_s"] <= figures["q3_s"]
                assert figures["rounds"] == 2
        assert "skipped" not in record["peers"][run.OURS]
    skipped = {name: f for name, f in records[1]["peers"].items() if "skipped" in f}
    assert list(skipped) == ["onnxruntime"]
    printed = capsys.readouterr().out
    assert f"skipped: onnxruntime {skipped['onnxruntime']['skipped']} (training)" in printed
    assert re.search(r"^VarLenLSTM trains [0-9.]+ times as fast as nn.LSTM on this ", printed, re.M)
    assert "| LSTM 4, 6, 5 |" in printed
    assert f"results: {output}, {output.with_suffix('.md')}" in printed
    assert not re.search(r"GF.*(ms|µs)|(ms|µs).*GF", printed)


@pytest.mark.parametrize("wrong", [1e-2, float("nan")])
def test_a_workload_with_a_liar_is_not_reported(
    wrong: float,
    quick: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(peers.PEERS, "liar", liar(wrong))
    lied, honest = tiny(peers=(run.OURS, "liar")), tiny("gru", peers=(run.OURS, "nn padded"))
    output = tmp_path / "tiny.jsonl"
    assert run.main(["--skip-tests", "--output", str(output)], [lied, honest]) == 1
    names = [json.loads(line)["name"] for line in output.read_text().splitlines()]
    assert names == [honest.name]
    said = f"not reported, because results differ: {lied.name}: output of liar differs by"
    assert said in capsys.readouterr().out


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
    assert "left out, for the time is up: 1 of shapes\n" in capsys.readouterr().out
