"""The benchmark of single steps compares, times and reports what it says. No times here."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import CELLS
from torch import nn

pytest.importorskip("tqdm", reason="the benchmarks show their progress with tqdm")
pytest.importorskip("matplotlib", reason="the benchmarks plot with matplotlib")

from benchmarks import measure, onnx_graph, records, report
from benchmarks.environment import describe
from benchmarks.steps import __main__ as steps
from benchmarks.steps import peers
from benchmarks.steps import report as step_report
from benchmarks.workloads import TORCH_MODULES

needs_onnx = pytest.mark.skipif(
    onnx_graph.missing() is not None, reason="needs onnx and onnxruntime"
)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small sizes, two rounds, short turns."""
    monkeypatch.setattr(steps, "QUICK_BUDGET", measure.Budget(0.0, 2, 2))
    monkeypatch.setattr(steps, "QUICK_TAIL", (2, 5))
    for name, sizes in {"QUICK_ROWS": (1, 3), "QUICK_SIZES": (24,), "QUICK_LAYERS": (2,)}.items():
        monkeypatch.setattr(steps, name, sizes)
    monkeypatch.setattr(steps, "TAIL_SIZE", 24)
    monkeypatch.setattr(steps, "SPIN_SECONDS", 0.0)
    monkeypatch.setattr(measure, "TURN_SECONDS", 1e-4)
    monkeypatch.setattr(measure, "PAUSE_SECONDS", 0.0)


def layer(cell: str, layers: int = 2) -> nn.RNNBase:
    return TORCH_MODULES[cell](6, 6, layers).eval().requires_grad_(False)


def test_a_run_writes_a_line_a_workload(
    quick: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "lines.jsonl"
    arguments = ["--quick", "--without", peers.COMPILED, "--output", str(output)]
    assert steps.main(arguments) == 0
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    names = [case.name for case in steps.cases(quick=True, threads=1)]
    assert [line["name"] for line in lines] == names
    assert Counter(line["B"] for line in lines) == {1: 3, 3: 2}  # and the tail
    for line in lines:
        assert (line["T"], line["I"], line["H"], line["threads"]) == (1, 24, 24, 1)
        assert line["torch"] == torch.__version__
        found = records.timed(line)
        expected = steps.TAIL_PEERS if line["group"] == "tail" else peers.NAMES
        assert set(line["peers"]) == set(expected)
        skipped = {peers.COMPILED} if onnx_graph.missing() is None else set(peers.ONNX_WAYS)
        assert set(expected) - set(found) <= skipped | {peers.COMPILED}
        for name, figures in found.items():
            low = 1e-5 if name.endswith(("bfloat16", "int8")) else 0.0
            assert low < figures["max_difference"] < (0.02 if low else 1e-6), name
            if name.endswith(" bfloat16"):
                int8 = found[name.replace("bfloat16", "int8")]
                assert figures["max_difference"] < int8["max_difference"]
            if line["group"] == "tail":
                assert figures["steps"] == 10
                times = [figures[key] for key in ("p50_s", "p99_s", "p999_s", "max_s")]
                assert times == sorted(times)
            else:
                assert figures["rounds"] == 2
    printed = capsys.readouterr().out
    assert "### One step, B = 1, 1 thread: µs" in printed
    assert "| LSTM, 2 layers, 24 |" in printed
    assert "### 10 single steps, LSTM, 1 layer, 24, B = 1, one thread: µs" in printed


def test_of_all_workloads_those_of_one_stream_come_first() -> None:
    cases = list(steps.cases(quick=False, threads=2))
    assert len({case.name for case in cases}) == len(cases) == 2 * 2 * 3 * 5 * 2 + 1
    rows = [case.rows for case in cases]
    assert rows == sorted(rows)
    assert {case.threads for case in cases} == {1, 2}


# Compiling takes long: one is enough.
COMBINATIONS = [(cell, name) for cell in CELLS for name in peers.NAMES]
COMBINATIONS.remove(("gru", peers.COMPILED))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor's freezing imports TorchScript
@pytest.mark.parametrize(("cell", "name"), COMBINATIONS)
def test_every_peer_carries_its_states(cell: str, name: str) -> None:
    """Its steps are those of one call of torch's layer."""
    if name in peers.ONNX_WAYS and onnx_graph.missing():
        pytest.skip("needs onnx and onnxruntime")
    rnn = layer(cell, layers=1 if name == peers.COMPILED else 2)
    with torch.inference_mode():
        xs = torch.randn(5, 3, 6)
        whole = rnn(xs)[0]
        peer = peers.peers(rnn, 3)[name]()
        outs = [peer.output(peer.step(peer.given(x))) for x in xs]
    allowed = 0.03 if name.endswith(("bfloat16", "int8")) else 1e-6
    assert (torch.stack(outs) - whole).abs().max() < allowed


def test_threads_leave_some_peers_out() -> None:
    case = steps.Case("step", "gru", 1, 3, 6, threads=2)
    makers = dict.fromkeys(peers.NAMES, lambda: peers.Peer(lambda x: x))
    ready, skipped = steps.prepared(case, makers, [peers.NN])
    assert skipped == {
        peers.NN: "left out by --without",
        peers.COMPILED: "with one thread only",
        peers.NN_INT8: "with one thread only",
    }
    assert set(ready) == set(peers.NAMES) - set(skipped)


def test_a_peer_that_cannot_run_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object, **options: object) -> object:
        def call(*inputs: object) -> None:
            raise RuntimeError("no compiler")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    monkeypatch.setattr(onnx_graph, "missing", lambda: "onnx not installed")
    makers = peers.peers(layer("gru"), 3)
    some = {name: makers[name] for name in (peers.COMPILED, peers.NN, f"{peers.ONNX} bound")}
    ready, skipped = steps.prepared(steps.Case("step", "gru", 2, 3, 6, 1), some, [])
    assert list(ready) == [peers.NN]
    assert skipped == {
        peers.COMPILED: "RuntimeError: no compiler",
        f"{peers.ONNX} bound": "onnx not installed",
    }


@pytest.mark.parametrize("wrong", [1e-4, float("nan")])
def test_nothing_is_timed_if_a_peer_is_wrong(
    wrong: float, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def off(rnn: nn.RNNBase, rows: int) -> peers.Peer:
        peer = cells(rnn, rows)
        return peers.Peer(peer.step, output=lambda out: out + wrong)

    def never(*arguments: object) -> None:
        raise AssertionError("timed")

    cells = peers._cells
    monkeypatch.setattr(peers, "_cells", off)
    monkeypatch.setattr(steps, "interleave", never)
    without = [peers.COMPILED, *peers.ONNX_WAYS]
    with pytest.raises(SystemExit, match=r"nn cell differs by .*, nothing is timed"):
        steps.run(steps.Case("step", "lstm", 1, 2, 24, 1), without, quick=True)


@needs_onnx
@pytest.mark.parametrize("cell", CELLS)
def test_the_graph_takes_and_gives_every_state(cell: str) -> None:
    rnn = layer(cell, layers=3)
    graph = onnx_graph.model(cell, rnn.state_dict(), one_step=True)
    session = onnx_graph.session(graph, threads=1, stop_spinning=True)
    x, given = torch.randn(1, 3, 6), torch.randn(2, 3, 3, 6)  # [h and c, layers, B, H]
    lstm = cell == "lstm"
    out, after = rnn(x, tuple(given) if lstm else given[0])
    states = dict(zip(onnx_graph.STATES[cell], given, strict=False))
    feeds = {f"{s}{k}": of[k][None].numpy() for s, of in states.items() for k in range(3)}
    names = [f"next_{name}" for name in feeds]
    made = dict(zip(names, session.run(names, {"X": x.numpy(), **feeds}), strict=True))
    for letter, of in zip(states, after if lstm else (after,), strict=True):
        for k in range(3):
            found = torch.from_numpy(made[f"next_{letter}{k}"])[0]
            assert torch.allclose(found, of[k], atol=1e-6), (letter, k)
    assert torch.allclose(torch.from_numpy(made["next_h2"]), out, atol=1e-6)


def test_every_single_call_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "PAUSE_SECONDS", 0.0)
    calls: Counter[str] = Counter()
    functions = {name: (lambda name=name: calls.update([name])) for name in ("a", "b")}
    found = measure.latencies(functions, turns=3, calls=7)
    assert {name: len(seconds) for name, seconds in found.items()} == {"a": 21, "b": 21}
    assert calls["a"] == calls["b"] == 3 * (7 + measure.SETTLE_CALLS)
    assert all(seconds > 0 for of in found.values() for seconds in of)


def test_whoever_spins_comes_to_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    rests: list[str] = []
    names = (peers.STREAM, peers.ONNX, f"{peers.ONNX} 1 thread", f"{peers.ONNX} bound")
    calls = {name: (lambda name=name: name) for name in names}

    def interleave(calls: Any, budget: object, clock: measure.Clock) -> dict[str, Any]:
        for name, call in calls.items():
            monkeypatch.setattr(steps.time, "sleep", lambda _, name=name: rests.append(name))
            assert clock(call, 3) > 0
        return {}

    monkeypatch.setattr(steps, "interleave", interleave)
    steps.medians(calls, quick=True)
    assert rests == [peers.ONNX, f"{peers.ONNX} bound"]


def figures(microseconds: float) -> dict[str, float]:
    seconds = microseconds / 1e6
    return {"median_s": seconds, "q1_s": seconds, "q3_s": seconds * 1.25}


def line(times: dict[str, float], **changes: object) -> dict[str, Any]:
    usual = {"group": "step", "cell": "lstm", "layers": 1, "B": 1, "T": 1, "I": 256, "H": 256}
    usual |= {"dtype": "float32", "threads": 1, **changes}
    made = {name: figures(t) for name, t in times.items()}
    made[peers.COMPILED] = {"skipped": "no compiler"}
    return {"name": f"step/{usual}", **usual, "peers": made, **describe("cpu")}


TIMES = dict(zip(step_report.STREAMS, (20.0, 10.0, 8.0), strict=True))
TIMES |= {peers.MODULE: 60.0, peers.FROZEN: 30.0, peers.CELL: 50.0, peers.NN: 90.0}
ONNX_TIMES = dict(zip(peers.ONNX_WAYS, (32.0, 30.0, 40.0, 41.0), strict=True))


def test_the_tables() -> None:
    lines = [
        line({**TIMES, step_report.STREAMS[0]: 40.0} | ONNX_TIMES, cell="gru", layers=2),
        line(TIMES | ONNX_TIMES),
        line(TIMES, threads=2),
        line(TIMES | ONNX_TIMES, B=256, H=64, I=64),
    ]
    tail = {"p50_s": 2e-5, "p99_s": 3e-5, "p999_s": 5e-5, "max_s": 1e-3, "steps": 20000}
    lines.append({**lines[1], "name": "tail", "group": "tail", "peers": {peers.STREAM: tail}})
    text = step_report.tables(lines)
    one, two, many, rates, singles = text.split("\n### ")[1:]
    assert one.startswith("One step, B = 1, 1 thread: µs\n")
    header = "| layers, I = H | stream | stream bfloat16 | stream int8 | onnxruntime |"
    header += " stream: speed | stream bfloat16: speed | stream int8: speed | module | frozen |"
    assert f"{header} nn cell | nn | nn compiled | nn int8 | spread |" in one
    speeds = "1.50 × | 3.00 × | 3.75 ×"
    row = f"| LSTM, 1 layer, 256 | 20 | 10 | 8 | 30 | {speeds} | 60 | 30 | 50 | 90 |  |  | 25% |"
    assert row in one
    assert "| GRU, 2 layers, 256 | 40 | 10 | 8 | 30 | 0.75 × |" in one
    assert "Its fastest way: onnxruntime 1 thread bound 2 times." in one
    assert "| lowest speed to onnxruntime's, H = | 256 |" in one
    assert "| stream | 0.75 × |" in one
    assert two.startswith("One step, B = 1, 2 threads: µs\n")
    assert "| LSTM, 1 layer, 256 | 20 | 10 | 8 |  |  |  |  | 60 |" in two
    assert "lowest" not in two
    assert many.startswith("One step, B = 256, 1 thread: µs\n")
    assert rates.startswith("Steps of 256 streams, 1 thread: thousands a second\n")
    assert "| LSTM, 1 layer, 64 | 12800 | 25600 | 32000 | 8533 | 4267 |" in rates
    assert singles.startswith("20000 single steps, LSTM, 1 layer, 256, B = 1, one thread: µs\n")
    assert "| stream | 20 | 30 | 50 | 1000 | 1.50 |" in singles
    assert f"torch {torch.__version__}" in singles


def test_results_of_two_machines_are_not_mixed() -> None:
    other = {**line(TIMES), "name": "other", "cpu": "another one"}
    with pytest.raises(ValueError, match="must be of one machine, got another one"):
        step_report.tables([{**line(TIMES), "cpu": "this one"}, other])


def test_the_readme_says_one_line_if_there_are_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in records.RESULTS.glob("*.jsonl"):
        if not path.name.startswith("steps"):
            (tmp_path / path.name).symlink_to(path)
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    before = report.blocks()
    assert "## One step" not in before["docs/results.md"]
    wanted, unlike = line(TIMES | ONNX_TIMES), line(TIMES | ONNX_TIMES, H=64)
    for name, of in {"steps.jsonl": wanted, "steps-more.jsonl": unlike}.items():
        (tmp_path / name).write_text(json.dumps(of) + "\n")
    after = report.blocks()
    assert after["README.md"].removeprefix(before["README.md"]) == (
        "- A step of a stream of an LSTM with 256 units takes **20 µs** on one thread, 10 with\n"
        "  bfloat16 weights, 8 with int8; with ONNX Runtime 30, with `nn.LSTMCell` 50\n"
        "  (another machine, AVX-512).\n"
    )
    assert "## One step\n" in after["docs/results.md"]
    for size in (64, 256):
        assert f"| LSTM, 1 layer, {size} | 20 | 10 | 8 | 30 |" in after["docs/results.md"]
    assert step_report.sentences([unlike, line(TIMES)]) == []
