"""Who is speaking? One recurrent classifier on ragged recordings, trained in three ways.

The Japanese Vowels set holds 640 recordings of 7 to 29 frames by 12 LPC cepstrum coefficients,
made by 9 speakers (data/README.md). A bidirectional two-layer LSTM or GRU learns to name the
speaker from 270 of them and is tested on the other 370: with torch's module on a PackedSequence;
after `varlen_rnn.convert(model)`, with nothing else changed; and converted, on padded batches with
`lengths=`, which need no packing. All start from the same seed and see the same batches in the same
order, so their loss curves must lie on top of each other.

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
from bars import draw_bars, times_as_fast
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

# Packed recordings and labels; or padded recordings, lengths and labels.
Batch = tuple[PackedSequence, Tensor] | tuple[Tensor, Tensor, Tensor]


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

    def forward(self, frames: PackedSequence | Tensor, lengths: Tensor | None = None) -> Tensor:
        """Map B recordings, packed or `[T, B, 12]` and their lengths, to speaker logits `[B, 9]`.

        Only a converted model takes lengths.
        """
        _, state = self.rnn(frames) if lengths is None else self.rnn(frames, lengths=lengths)
        h_n = state[0] if isinstance(state, tuple) else state
        logits: Tensor = self.speaker(torch.cat((h_n[-2], h_n[-1]), dim=1))
        return logits


@dataclass
class Run:
    """One model in training, with its recurrent module `rnn`, and what was measured on it."""

    model: nn.Module
    learning_rate: float
    batches: str = ""  # how they are given, if not packed
    losses: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Make the optimizer."""
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=self.learning_rate)

    @property
    def name(self) -> str:
        """The class of the recurrent module, and what its batches are."""
        module = type(self.model.rnn)
        name = f"nn.{module.__name__}" if module in CELLS.values() else module.__name__
        return f"{name} {self.batches}".strip()

    @property
    def milliseconds(self) -> list[float]:
        """Of each epoch, the first (warm-up) left out where there are others."""
        return [1e3 * seconds for seconds in self.seconds[1:] or self.seconds]

    def train_epoch(self, batches: Iterable[Batch]) -> None:
        """Take one optimizer step a batch; record each loss and the epoch's wall time."""
        start = time.perf_counter()
        for *inputs, labels in batches:
            self.optimizer.zero_grad()
            loss = nn.functional.cross_entropy(self.model(*inputs), labels)
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), max_norm=1.0)
            self.optimizer.step()
            self.losses.append(loss.item())
        self.seconds.append(time.perf_counter() - start)

    @torch.no_grad()
    def test(self, batch: Batch) -> None:
        """Record the accuracy on a batch."""
        *inputs, labels = batch
        correct = self.model(*inputs).argmax(dim=1) == labels
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

    def batch(self, rows: Tensor, pack: bool = True) -> Batch:
        """The recordings `rows` `[B]`, packed or padded with their lengths; and labels `[B]`."""
        padded = pad_sequence([self.sequences[row] for row in rows.tolist()])
        lengths, labels = self.lengths[rows], self.labels[rows]
        if not pack:
            return padded, lengths, labels
        return pack_padded_sequence(padded, lengths, enforce_sorted=False), labels

    def train_batches(
        self, batch_size: int, generator: torch.Generator, pack: bool = True
    ) -> list[Batch]:
        """Shuffle the training recordings into batches."""
        order = self.train_rows[torch.randperm(len(self.train_rows), generator=generator)]
        return [self.batch(rows, pack) for rows in order.split(batch_size)]


def train(args: argparse.Namespace) -> list[Run]:
    """Train the torch model and the converted ones, an epoch of each in turn."""
    torch.set_num_threads(args.threads)
    recordings = Recordings()

    def build() -> SpeakerClassifier:
        torch.manual_seed(args.seed)
        return SpeakerClassifier(args.cell, args.hidden)

    runs = [
        Run(build(), args.lr),
        Run(varlen_rnn.convert(build()), args.lr),
        Run(varlen_rnn.convert(build()), args.lr, batches="lengths="),
    ]
    generators = [torch.Generator().manual_seed(args.seed) for _ in runs]
    tests = [recordings.batch(recordings.test_rows, pack=not run.batches) for run in runs]
    with tqdm(range(args.epochs), unit="epoch", disable=None, dynamic_ncols=True) as progress:
        for epoch in progress:
            # Who begins changes, lest it is always the same one that finds the caches cold.
            for n in ((epoch + place) % len(runs) for place in range(len(runs))):
                run = runs[n]
                run.train_epoch(
                    recordings.train_batches(args.batch_size, generators[n], not run.batches)
                )
                run.test(tests[n])
            progress.set_postfix(loss=" ".join(f"{run.losses[-1]:.4f}" for run in runs))
    return runs


def loss_difference(runs: list[Run]) -> float:
    """Largest absolute difference of a loss from the first run's at any training batch."""
    losses = np.array([run.losses for run in runs])
    return float(abs(losses - losses[0]).max())


def report(runs: list[Run]) -> None:
    """Print the comparison, and the answer."""
    times = {run.name: run.milliseconds for run in runs}
    ratios = times_as_fast(times, rates=False)
    rows = {
        "test accuracy": [f"{run.accuracies[-1]:.2%}" for run in runs],
        "last training loss": [f"{run.losses[-1]:.5f}" for run in runs],
        f"ms an epoch, median of {len(runs[0].milliseconds)}": [
            f"{statistics.median(values):.1f}" for values in times.values()
        ],
        "  half of them between": [
            "{:.1f} and {:.1f}".format(*np.quantile(values, (0.25, 0.75)))
            for values in times.values()
        ],
        "times as fast": [f"{ratio:.2f}" for ratio in ratios],
    }
    for what, cells in {"": list(times), **rows}.items():
        print(f"{what:26}" + "".join(f"{cell:>22}" for cell in cells))
    print(
        f"\nThe losses of {len(runs[0].losses)} training batches are within "
        f"{loss_difference(runs):.1e} of {runs[0].name}'s.\n{runs[1].name} trains {ratios[1]:.1f} "
        f"times as fast as {runs[0].name} on this machine, {ratios[2]:.1f} times with lengths=."
    )


def plot(runs: list[Run], output: Path) -> None:
    """Draw losses, test accuracy and the time of an epoch of all runs."""
    figure = Figure(figsize=(14, 4), layout="constrained")
    loss, accuracy, times = figure.subplots(1, 3)
    looks = (("tab:orange", "-"), ("tab:blue", "--"), ("tab:cyan", ":"))
    for run, (colour, line) in zip(runs, looks, strict=True):
        style = {"color": colour, "linestyle": line, "label": run.name}
        epochs = range(1, len(run.accuracies) + 1)
        loss.plot(range(1, len(run.losses) + 1), run.losses, **style)
        accuracy.plot(epochs, [100 * value for value in run.accuracies], **style)
    draw_bars(times, {run.name.replace(" ", "\n"): run.milliseconds for run in runs}, "ms")
    loss.set(title="Training loss", xlabel="batch", ylabel="cross-entropy", yscale="log")
    accuracy.set(title="Test accuracy", xlabel="epoch", ylabel="%")
    times.set(title="Time of an epoch (bar: median)", ylabel="ms")
    loss.legend()
    accuracy.legend()
    figure.savefig(output, dpi=120)


def failures(runs: list[Run]) -> list[str]:
    """State each expectation on accuracy and loss curves that does not hold."""
    found = [
        f"{run.name}: expected a test accuracy of at least {MIN_ACCURACY:.0%}, "
        f"got {run.accuracies[-1]:.2%}"
        for run in runs
        if not run.accuracies[-1] >= MIN_ACCURACY
    ]
    difference = loss_difference(runs)
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
    # Batches as small as these leave more than one thread little but to wait.
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".png"))
    parser.add_argument("--check", action="store_true", help="fail on low accuracy or other losses")
    args = parser.parse_args()
    if args.epochs < 1:
        parser.error(f"--epochs must be at least 1, got {args.epochs}")

    print("Trains a classifier of recordings in three ways, in turns: twenty seconds.")
    runs = train(args)
    report(runs)
    plot(runs, args.output)
    print(f"plot: {args.output}")
    if args.check and (found := failures(runs)):
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()
