"""The benchmark of int8 weights reports what it says it reports. No times here."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from helpers import CELLS
from torch import nn

from benchmarks import measure, quantized
from benchmarks.environment import describe
from varlen_rnn import VarLenLSTM

PEERS = (quantized.OURS, quantized.OURS_FLOAT, quantized.TORCH, quantized.TORCH_FLOAT)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """One small shape, two rounds, short turns."""
    budget = measure.Budget(seconds=0.0, min_rounds=2, max_rounds=2)
    monkeypatch.setattr(quantized, "QUICK_BUDGET", budget)
    monkeypatch.setattr(quantized, "QUICK_SHAPES", [(1, 7, 24)])
    monkeypatch.setattr(measure, "TURN_SECONDS", 1e-4)
    monkeypatch.setattr(measure, "PAUSE_SECONDS", 0.0)


def test_speed(quick: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "lines.jsonl"
    quantized.main(["--quick", "--only", "speed", "--output", str(output)])
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["cell"] for line in lines] == list(CELLS)
    for line in lines:
        assert (line["what"], line["B"], line["T"], line["I"], line["H"]) == ("speed", 1, 7, 24, 24)
        assert set(line["peers"]) == set(PEERS)
        off = {name: figures["max_difference"] for name, figures in line["peers"].items()}
        assert 0 < off[quantized.OURS] < 0.02
        assert off[quantized.OURS_FLOAT] < 1e-6
        assert off[quantized.TORCH_FLOAT] == 0
        assert all(figures["rounds"] == 2 for figures in line["peers"].values())
        assert line["torch"] == torch.__version__
    printed = capsys.readouterr().out
    assert "| LSTM; 1, 7, 24 |" in printed
    assert "| GRU; 1, 7, 24 |" in printed


def test_nothing_is_timed_if_results_differ(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantized, "TOLERANCE", 1e-9)
    with pytest.raises(SystemExit, match="results differ, nothing is timed"):
        quantized.speed("lstm", (1, 7, 24), quantized.QUICK_BUDGET)


def test_the_table_compares_speeds(quick: None) -> None:
    def figures(seconds: float) -> dict[str, float]:
        return {"median_s": seconds, "q1_s": seconds, "q3_s": seconds * 1.25}

    peers = dict(zip(PEERS, map(figures, (0.002, 0.004, 0.003, 0.008)), strict=True))
    line = {"what": "speed", "cell": "gru", "B": 1, "T": 100, "I": 256, "H": 256, "threads": 1}
    text = quantized.tables([{**line, **describe("cpu"), "peers": peers}])
    assert "| GRU; 1, 100, 256 | 2 | 2.00 × | 1.50 × | 4.00 × | 25% |" in text
    assert "at least 2.00 times varlen_rnn float32's speed" in text


def test_accuracy_counts_right_and_changed_answers() -> None:
    labels = torch.tensor([0, 1, 1, 0])
    right = nn.functional.one_hot(labels).float()
    logits = {quantized.OURS_FLOAT: right, quantized.OURS: right[[0, 1, 2, 1]]}
    record = quantized.accuracy_record("example", "lstm", labels, logits)
    assert record["cases"] == 4
    assert record["peers"][quantized.OURS_FLOAT] == {"accuracy": 1.0, "changed": 0}
    assert record["peers"][quantized.OURS] == {"accuracy": 0.75, "changed": 1}


def test_torch_in_the_place_of_ours() -> None:
    rnn = VarLenLSTM(5, 7, batch_first=True, bidirectional=True)
    x, lengths = torch.randn(3, 6, 5), torch.tensor([4, 6, 1])
    out, _ = quantized.Packed(rnn)(x, lengths)
    assert torch.allclose(out, rnn(x, lengths=lengths)[0], atol=1e-6)


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("matplotlib", "tqdm")),
    reason="the example needs matplotlib and tqdm",
)
def test_accuracy_on_an_example(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "examples")
    record = quantized.japanese_vowels("gru", epochs=1)
    assert record["cases"] == 370
    assert all(0.2 < figures["accuracy"] < 1 for figures in record["peers"].values())
    assert set(record["peers"]) == set(PEERS)
