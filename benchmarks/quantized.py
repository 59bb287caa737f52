"""Times layers with int8 weights against float32 and torch's own, and compares their accuracy.

    python -m benchmarks.quantized [--quick] [--only speed] [--output FILE.jsonl]

Speed: one layer, inference, full rows. Peers take turns in one process (measure.py); nothing is
timed unless int8 is as near to float32 as 8 bits are. Accuracy: the models of two examples, trained
as these do, then quantised; how many test cases they get right, and how many answers change.
Writes one JSON line a workload or model, and prints the tables.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import varlen_rnn
from benchmarks.environment import ROOT, describe
from benchmarks.measure import Budget, interleave
from benchmarks.records import RESULTS, Record, number, origins, seconds, spread_of, table

OURS, OURS_FLOAT = "varlen_rnn int8", "varlen_rnn float32"
TORCH, TORCH_FLOAT = "nn int8", "nn float32"
CELLS: dict[str, type[nn.RNNBase]] = {"lstm": nn.LSTM, "gru": nn.GRU}
# Rows, steps, input and hidden size.
SHAPES = [(1, 100, size) for size in (64, 128, 256, 512, 1024)]
SHAPES += [(8, 100, 256), (32, 100, 256)]
QUICK_SHAPES = [(1, 100, 256)]
BUDGET = Budget(seconds=3.0, min_rounds=11, max_rounds=31)
QUICK_BUDGET = Budget(seconds=0.2, min_rounds=3, max_rounds=5)
# Of outputs, which are in [-1, 1]: weights of +-1/16 are off by 1/4096 at most.
TOLERANCE = 0.05


def torch_quantized(model: nn.Module) -> nn.Module:
    """``torch.ao.quantization.quantize_dynamic`` of a model's ``nn.LSTM`` and ``nn.GRU``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, and what follows it has no LSTM
        quantize: Callable[..., nn.Module] = torch.ao.quantization.quantize_dynamic
        return quantize(nn.ModuleList([model]), {nn.LSTM, nn.GRU}, dtype=torch.qint8)[0]


def speed(cell: str, shape: tuple[int, int, int], budget: Budget) -> Record:
    """Seconds a call of every peer, and how far int8 is from float32."""
    rows, steps, size = shape
    torch.manual_seed(0)
    theirs = CELLS[cell](size, size).eval()
    ours = varlen_rnn.convert(nn.ModuleList([torch_copy(theirs)]))[0]
    peers: dict[str, nn.Module] = {
        OURS: varlen_rnn.quantize_dynamic(ours),
        OURS_FLOAT: ours,
        TORCH: torch_quantized(theirs),
        TORCH_FLOAT: theirs,
    }
    x = torch.randn(steps, rows, size)

    def calling(rnn: nn.Module) -> Callable[[], Tensor]:
        return lambda: rnn(x)[0]

    calls = {name: calling(rnn) for name, rnn in peers.items()}
    with torch.inference_mode():
        truth = calls[TORCH_FLOAT]()
        off = {name: float((call() - truth).abs().max()) for name, call in calls.items()}
        if not max(off[OURS], off[OURS_FLOAT]) <= TOLERANCE:
            raise SystemExit(f"{cell} {shape}: results differ, nothing is timed: {off}")
        timings = interleave(calls, budget)
    figures = {name: {**t.summary(), "max_difference": off[name]} for name, t in timings.items()}
    sizes = {"cell": cell, "B": rows, "T": steps, "I": size, "H": size}
    return {"what": "speed", **sizes, "threads": torch.get_num_threads(), "peers": figures}


def torch_copy(rnn: nn.RNNBase) -> nn.RNNBase:
    """Another module with the same weights."""
    other = type(rnn)(rnn.input_size, rnn.hidden_size).eval()
    other.load_state_dict(rnn.state_dict())
    return other


def accuracy_record(example: str, cell: str, labels: Tensor, logits: dict[str, Tensor]) -> Record:
    """Of every peer the share of right answers, and of changed ones to ours in float32."""
    said = {name: values.argmax(dim=1) for name, values in logits.items()}
    figures = {
        name: {
            "accuracy": float((answers == labels).float().mean()),
            "changed": int((answers != said[OURS_FLOAT]).sum()),
        }
        for name, answers in said.items()
    }
    return {"what": "accuracy", "example": example, "cell": cell, "cases": len(labels)} | {
        "peers": figures
    }


@torch.no_grad()
def japanese_vowels(cell: str, epochs: int) -> Record:
    """examples/japanese_vowels.py: bidirectional, two layers, 64 units."""
    import japanese_vowels as example

    recordings = example.Recordings()
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    run = example.Run(example.SpeakerClassifier(cell, hidden_size=64), learning_rate=1e-3)
    with torch.enable_grad():
        for _ in range(epochs):
            run.train_epoch(recordings.train_batches(27, generator))
    packed, labels = recordings.batch(recordings.test_rows)
    logits = {TORCH_FLOAT: run.model(packed), TORCH: torch_quantized(run.model)(packed)}
    ours = varlen_rnn.convert(run.model)
    logits |= {OURS_FLOAT: ours(packed), OURS: varlen_rnn.quantize_dynamic(ours)(packed)}
    return accuracy_record("japanese_vowels", cell, labels, logits)


class Packed(nn.Module):
    """``nn.LSTM`` in the place of a ``VarLenLSTM`` that is called with ``lengths``."""

    def __init__(self, rnn: varlen_rnn.VarLenLSTM) -> None:
        super().__init__()
        options = {"batch_first": rnn.batch_first, "bidirectional": rnn.bidirectional}
        self.rnn = nn.LSTM(rnn.input_size, rnn.hidden_size, rnn.num_layers, **options)
        self.rnn.load_state_dict(rnn.state_dict())

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Any]:
        first = self.rnn.batch_first
        packed = pack_padded_sequence(x, lengths, batch_first=first, enforce_sorted=False)
        out, states = self.rnn(packed)
        return pad_packed_sequence(out, first, total_length=x.shape[1 if first else 0])[0], states


def name_language(epochs: int, every: int) -> Record:
    """examples/name_language: bidirectional, one layer, 96 units, between other layers."""
    from model import NameClassifier
    from names import load
    from padding import as_trained, evaluate
    from training import train

    names, test, num_ids = load(every)
    torch.manual_seed(0)
    model = NameClassifier(num_ids, hidden_size=96)
    train(model, names, test, Namespace(epochs=epochs, batch_size=128, lr=5e-3))
    float_rnn = model.rnn
    theirs = Packed(float_rnn)
    variants = {
        OURS_FLOAT: float_rnn,
        OURS: varlen_rnn.quantize_dynamic(float_rnn),
        TORCH_FLOAT: theirs,
        TORCH: torch_quantized(theirs),
    }
    logits = {}
    for name, rnn in variants.items():
        model.rnn = rnn
        logits[name] = evaluate(model, test.ids, as_trained)
    return accuracy_record("name_language", "lstm", test.labels, logits)


def records(what: str, quick: bool) -> Iterator[Record]:
    """Every workload's and every model's."""
    if what != "accuracy":
        for cell in CELLS:
            for shape in QUICK_SHAPES if quick else SHAPES:
                yield speed(cell, shape, QUICK_BUDGET if quick else BUDGET)
    if what != "speed":
        sys.path[:0] = [str(ROOT / "examples"), str(ROOT / "examples" / "name_language")]
        for cell in CELLS:
            yield japanese_vowels(cell, epochs=1 if quick else 30)
        yield name_language(epochs=1 if quick else 8, every=20 if quick else 1)


def tables(lines: Sequence[Record]) -> str:
    """Speed of int8 to that of the others, and accuracy."""
    parts = []
    if timed := [line for line in lines if line["what"] == "speed"]:
        others = (OURS_FLOAT, TORCH, TORCH_FLOAT)
        header = ["cell; B, T, I = H", f"{OURS}: ms", *(f"to {name}" for name in others), "spread"]
        rows, at_one_row = [], []
        for line in timed:
            found = seconds(line)
            speeds = {name: found[name] / found[OURS] for name in others}
            shape = f"{line['cell'].upper()}; {line['B']}, {line['T']}, {line['H']}"
            cells = [f"{speeds[name]:.2f} ×" for name in others]
            rows.append([shape, number(found[OURS] * 1e3), *cells, spread_of(line)])
            if line["B"] == 1 and line["T"] > 1 and line["H"] >= 256:
                at_one_row.append(speeds[OURS_FLOAT])
        text = f"### Speed, {timed[0]['threads']} thread(s)\n\n{table(header, rows)}"
        if at_one_row:
            mean = statistics.geometric_mean(at_one_row)
            text += f"\n\nAt B = 1, T = 100 and H >= 256 at least {min(at_one_row):.2f} times"
            text += f" {OURS_FLOAT}'s speed, geometric mean {mean:.2f}."
        parts.append(text)
    if measured := [line for line in lines if line["what"] == "accuracy"]:
        names = (OURS_FLOAT, OURS, TORCH_FLOAT, TORCH)
        rows = []
        for line in measured:
            cells = [
                f"{line['peers'][name]['accuracy']:.2%} ({line['peers'][name]['changed']})"
                for name in names
            ]
            rows.append([f"{line['example']}, {line['cell'].upper()}", str(line["cases"]), *cells])
        title = "### Accuracy (answers that differ from varlen_rnn float32's)"
        parts.append(f"{title}\n\n{table(['example', 'test cases', *names], rows)}")
    return "\n\n".join([*parts, origins(lines)]) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quantized", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--quick", action="store_true", help="one shape, hardly any training")
    parser.add_argument("--only", choices=("speed", "accuracy"), default="")
    parser.add_argument("--output", type=Path, default=RESULTS / "quantized.jsonl")
    args = parser.parse_args(argv)
    origin = {**describe("cpu"), "quantized_engine": torch.backends.quantized.engine}
    lines = []
    with args.output.open("w", encoding="utf-8") as file:
        for record in records(args.only, args.quick):
            lines.append({**record, **origin})
            file.write(json.dumps(lines[-1]) + "\n")
            file.flush()
    text = tables(lines)
    print(text)


if __name__ == "__main__":
    main()
