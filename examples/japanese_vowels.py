"""Who is speaking? One recurrent classifier on ragged recordings, trained twice.

The Japanese Vowels set holds 640 recordings of 7 to 29 frames by 12 LPC cepstrum coefficients,
made by 9 speakers (data/README.md). A bidirectional two-layer LSTM or GRU learns to name the
speaker from 270 of them and is tested on the other 370: once with torch's module on a
PackedSequence, once after `varlen_rnn.convert(model)`. Both start from the same seed and see the
same batches in the same order, so their loss curves must lie on top of each other.

Usage:
    python examples/japanese_vowels.py [--cell gru] [--epochs 30] [--output curves.png] [--check]
"""

import argparse
import statistics
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_sequence
from tqdm import tqdm

import varlen_rnn

DATA = Path(__file__).parent / "data" / "japanese_vowels.npz"
NUM_FEATURES = 12
NUM_SPEAKERS = 9
CELLS: dict[str, type[nn.LSTM] | type[nn.GRU]] = {"lstm": nn.LSTM, "gru": nn.GRU}

MIN_ACCURACY = 0.95
MAX_LOSS_DIFFERENCE = 1e-3
SPEED_GOAL = 3.0

Batch = tuple[PackedSequence, Tensor]


class SpeakerClassifier(nn.Module):
    """Bidirectional recurrent net of two layers; the last one's final states feed a linear layer.

    Args:
        cell: "lstm" or "gru".
        hidden_size: H, hidden units of each direction.
    """

    def __init__(self, cell: str, hidden_size: int) -> None:
        super().__init__()
        self.rnn = CELLS[cell](NUM_FEATURES, hidden_size, num_layers=2, bidirectional=True)
        self.speaker = nn.Linear(2 * hidden_size, NUM_SPEAKERS)

    def forward(self, packed: PackedSequence) -> Tensor:
        """Map B packed recordings of `[T, 12]` frames to speaker logits `[B, 9]`."""
        _, state = self.rnn(packed)
        h_n = state[0] if isinstance(state, tuple) else state
        logits: Tensor = self.speaker(torch.cat((h_n[-2], h_n[-1]), dim=1))
        return logits


@dataclass
class Run:
    """One model in training and what was measured on it."""

    model: SpeakerClassifier
    learning_rate: float
    losses: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Make the optimizer."""
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=self.learning_rate)

    @property
    def name(self) -> str:
        """The class of the recurrent module."""
        module = type(self.model.rnn)
        return f"nn.{module.__name__}" if module in CELLS.values() else module.__name__

    @property
    def timed(self) -> list[float]:
        """Seconds of each epoch, the first (warm-up) left out where there are others."""
        return self.seconds[1:] or self.seconds

    @property
    def seconds_per_epoch(self) -> float:
        """Median over the timed epochs."""
        return statistics.median(self.timed)

    def train_epoch(self, batches: Iterable[Batch]) -> None:
        """Take one optimizer step a batch; record each loss and the epoch's wall time."""
        start = time.perf_counter()
        for packed, labels in batches:
            self.optimizer.zero_grad()
            loss = nn.functional.cross_entropy(self.model(packed), labels)
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), max_norm=1.0)
            self.optimizer.step()
            self.losses.append(loss.item())
        self.seconds.append(time.perf_counter() - start)

    @torch.no_grad()
    def test(self, batch: Batch) -> None:
        """Record the accuracy on a batch."""
        packed, labels = batch
        correct = self.model(packed).argmax(dim=1) == labels
        self.accuracies.append(correct.float().mean().item())


class Recordings:
    """The recordings, standardised by the mean and deviation of the training frames."""

    def __init__(self) -> None:
        with np.load(DATA) as data:
            frames, lengths, labels, is_train = (
                torch.from_numpy(data[key]) for key in ("frames", "lengths", "labels", "is_train")
            )
        train_frames = frames[is_train.repeat_interleave(lengths)]
        frames = (frames - train_frames.mean(dim=0)) / train_frames.std(dim=0)
        self.sequences = frames.split(lengths.tolist())
        self.lengths = lengths
        self.labels = labels
        self.train_rows = is_train.nonzero().flatten()
        self.test_rows = (~is_train).nonzero().flatten()

    def batch(self, rows: Tensor) -> Batch:
        """Pack the recordings `rows` `[B]`; return them with their labels `[B]`."""
        padded = pad_sequence([self.sequences[row] for row in rows.tolist()])
        packed = pack_padded_sequence(padded, self.lengths[rows], enforce_sorted=False)
        return packed, self.labels[rows]

    def train_batches(self, batch_size: int, generator: torch.Generator) -> list[Batch]:
        """Shuffle the training recordings into batches."""
        order = self.train_rows[torch.randperm(len(self.train_rows), generator=generator)]
        return [self.batch(rows) for rows in order.split(batch_size)]


def train(args: argparse.Namespace) -> tuple[Run, Run]:
    """Train the torch model and the converted one, an epoch of each in turn."""
    recordings = Recordings()
    generator = torch.Generator().manual_seed(args.seed)
    epochs = [recordings.train_batches(args.batch_size, generator) for _ in range(args.epochs)]
    test_batch = recordings.batch(recordings.test_rows)

    def build() -> SpeakerClassifier:
        torch.manual_seed(args.seed)
        return SpeakerClassifier(args.cell, args.hidden)

    baseline = Run(build(), args.lr)
    converted = Run(varlen_rnn.convert(build()), args.lr)
    with tqdm(epochs, unit="epoch", desc=f"{baseline.name} and {converted.name}") as progress:
        for epoch, batches in enumerate(progress):
            pair = (baseline, converted) if epoch % 2 == 0 else (converted, baseline)
            for run in pair:
                run.train_epoch(batches)
                run.test(test_batch)
            progress.set_postfix(loss=f"{baseline.losses[-1]:.4f} {converted.losses[-1]:.4f}")
    return baseline, converted


def loss_difference(baseline: Run, converted: Run) -> float:
    """Largest absolute difference of the two losses at any training batch."""
    return max(abs(a - b) for a, b in zip(baseline.losses, converted.losses, strict=True))


def report(baseline: Run, converted: Run) -> None:
    """Print the comparison."""
    low, high = (np.quantile([r.timed for r in (baseline, converted)], q, 1) for q in (0.25, 0.75))
    ratio = baseline.seconds_per_epoch / converted.seconds_per_epoch
    print(f"\n{'':30}{baseline.name:>12}{converted.name:>12}")
    print(f"{'test accuracy':30}{baseline.accuracies[-1]:12.2%}{converted.accuracies[-1]:12.2%}")
    print(f"{'last training loss':30}{baseline.losses[-1]:12.5f}{converted.losses[-1]:12.5f}")
    print(
        f"{f'seconds an epoch, median of {len(baseline.timed)}':30}"
        f"{baseline.seconds_per_epoch:12.4f}{converted.seconds_per_epoch:12.4f}"
    )
    print(f"{'  lower quartile':30}{low[0]:12.4f}{low[1]:12.4f}")
    print(f"{'  upper quartile':30}{high[0]:12.4f}{high[1]:12.4f}")
    print(f"{'times as fast':30}{1:12.2f}{ratio:12.2f}   (goal {SPEED_GOAL:g})")
    print(
        f"\nlargest difference of the losses over {len(baseline.losses)} training batches: "
        f"{loss_difference(baseline, converted):.1e}"
    )


def plot(baseline: Run, converted: Run, output: Path) -> None:
    """Draw losses, test accuracy and seconds an epoch of both models."""
    figure = Figure(figsize=(13, 4), layout="constrained")
    loss, accuracy, seconds = figure.subplots(1, 3)
    for position, (run, colour, line) in enumerate(
        ((baseline, "tab:orange", "-"), (converted, "tab:blue", "--"))
    ):
        style = {"color": colour, "linestyle": line, "label": run.name}
        epochs = range(1, len(run.accuracies) + 1)
        loss.plot(range(1, len(run.losses) + 1), run.losses, **style)
        accuracy.plot(epochs, [100 * value for value in run.accuracies], **style)
        seconds.bar(position, run.seconds_per_epoch, width=0.6, color=colour, alpha=0.5)
        seconds.plot([position] * len(run.timed), run.timed, ".", color=colour)
    loss.set(title="Training loss", xlabel="batch", ylabel="cross-entropy", yscale="log")
    accuracy.set(title="Test accuracy", xlabel="epoch", ylabel="%")
    seconds.set(title="Time an epoch (bar: median)", ylabel="seconds")
    seconds.set_xticks((0, 1), (baseline.name, converted.name))
    loss.legend()
    accuracy.legend()
    figure.savefig(output, dpi=120)


def failures(baseline: Run, converted: Run) -> list[str]:
    """State each expectation on accuracy and loss curves that does not hold."""
    found = [
        f"{run.name}: expected a test accuracy of at least {MIN_ACCURACY:.0%}, "
        f"got {run.accuracies[-1]:.2%}"
        for run in (baseline, converted)
        if not run.accuracies[-1] >= MIN_ACCURACY
    ]
    difference = loss_difference(baseline, converted)
    if not difference <= MAX_LOSS_DIFFERENCE:
        found.append(f"losses: expected within {MAX_LOSS_DIFFERENCE:g}, got {difference:.1e} apart")
    return found


def main() -> None:
    """Train, report, plot; with --check exit non-zero where an expectation fails."""
    parser = argparse.ArgumentParser(description="Train one classifier on both kinds of module.")
    parser.add_argument("--cell", choices=sorted(CELLS), default="lstm")
    parser.add_argument("--epochs", type=int, default=30, help="at least 1; the first is warm-up")
    parser.add_argument("--hidden", type=int, default=64, help="hidden units of each direction")
    parser.add_argument("--batch-size", type=int, default=27)
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate of Adam")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".png"))
    parser.add_argument("--check", action="store_true", help="fail on low accuracy or other losses")
    args = parser.parse_args()
    if args.epochs < 1:
        parser.error(f"--epochs must be at least 1, got {args.epochs}")

    baseline, converted = train(args)
    report(baseline, converted)
    plot(baseline, converted, args.output)
    print(f"plot: {args.output}")
    if args.check and (found := failures(baseline, converted)):
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()
