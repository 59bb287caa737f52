"""Who is speaking, in many processes? The classifier of `japanese_vowels.py`, trained with DDP.

Batches come from `varlen_rnn.data.TokenBudgetBatchSampler`: recordings of similar length, with at
most so many frames in all processes together. Every process packs and trains on its own share of
each step, and the loss is scaled so that DDP's average of the gradients is that of the union:
each process's *sum* over its recordings, times the number of processes, over the recordings of all.

Under torchrun the first process trains alone before all of them train together, from the same
weights and with as many frames a step, so that one run compares the two.

Usage:
    torchrun --nproc-per-node 2 examples/train_distributed.py [--cell gru] [--epochs 20] [--check]
    python examples/train_distributed.py                       # one process, no torchrun

Threads: each process takes its share of its machine's cores, also while the first trains alone;
--threads says otherwise. With as many threads as cores in every process, they wait for each other.
"""

import argparse
import gc
import os
import statistics
import sys
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
from bars import draw_bars, times_as_fast
from japanese_vowels import CELLS, MIN_ACCURACY, Recordings, SpeakerClassifier
from matplotlib.figure import Figure
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm import tqdm

import varlen_rnn
from varlen_rnn.data import TokenBudgetBatchSampler

# A process that waits longer for the others gives up.
TIMEOUT = timedelta(minutes=5)


@dataclass
class Result:
    """What a training run by `processes` processes of `threads` threads came to."""

    processes: int
    threads: int
    steps: int
    accuracy: float
    losses: list[float]  # of each epoch, the mean over all recordings
    speeds: list[float]  # of each epoch, tokens a second; the first is warm-up, if not the only one

    @property
    def name(self) -> str:
        return f"{self.processes} process{'es' if self.processes > 1 else ''}"


def train(args: argparse.Namespace, recordings: Recordings, processes: int, rank: int) -> Result:
    """Train a new model as one of the processes, all of which get the same result."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    classifier = varlen_rnn.convert(SpeakerClassifier(args.cell, args.hidden))
    model: nn.Module = DistributedDataParallel(classifier) if processes > 1 else classifier
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    lengths = recordings.lengths[recordings.train_rows]
    sampler = TokenBudgetBatchSampler(
        lengths, args.max_tokens // processes, num_replicas=processes, rank=rank, seed=args.seed
    )
    loader = DataLoader(
        recordings.train_rows,
        batch_sampler=sampler,
        collate_fn=lambda rows: recordings.batch(torch.stack(rows), pack=False),
    )

    def total(value: float) -> float:
        """The sum over all processes."""
        together = torch.tensor(value, dtype=torch.float64)
        if processes > 1:
            distributed.all_reduce(together)
        return together.item()

    losses, speeds = [], []
    # One line, by the first process; none in a file.
    what = f"{processes} in training"
    silent = True if rank else None
    progress = tqdm(range(args.epochs), what, unit="epoch", disable=silent, dynamic_ncols=True)
    for epoch in progress:
        sampler.set_epoch(epoch)
        start = time.perf_counter()
        num_tokens, loss_sum = 0, 0.0
        for frames, frame_counts, labels in loader:
            num_rows = total(len(labels))
            logits = model(frames, frame_counts)
            loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
            optimizer.zero_grad()
            (loss * processes / num_rows).backward()
            nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
            optimizer.step()
            num_tokens += int(frame_counts.sum())
            loss_sum += loss.item()
        # The sum makes each process wait for the slowest, before the clock stops.
        num_tokens = total(num_tokens)
        speeds.append(num_tokens / (time.perf_counter() - start))
        losses.append(total(loss_sum) / len(lengths))
        progress.set_postfix(loss=f"{losses[-1]:.4f}")

    frames, frame_counts, labels = recordings.batch(recordings.test_rows, pack=False)
    with torch.no_grad():
        correct = classifier(frames, frame_counts).argmax(dim=1) == labels
    return Result(
        processes,
        torch.get_num_threads(),
        len(sampler),
        correct.double().mean().item(),
        losses,
        speeds[1:] or speeds,
    )


def num_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def report(results: list[Result]) -> None:
    """Print a row for each run, what its rate is, and the answer."""
    print(
        f"{'processes':>9}{'threads each':>14}{'steps an epoch':>16}{'training loss':>15}"
        f"{'test accuracy':>15}{'tokens a second':>17}"
    )
    for r in results:
        print(
            f"{r.processes:9}{r.threads:14}{r.steps:16}{r.losses[-1]:15.5f}"
            f"{r.accuracy:15.2%}{statistics.median(r.speeds):17,.0f}"
        )
    print(
        "\nTokens a second: all processes' frames of an epoch over its wall time, which includes\n"
        "making batches and waiting for the slowest process; median of the epochs but the first."
    )
    if len(results) > 1:
        alone, together = results
        ratio = times_as_fast({r.name: r.speeds for r in results}, rates=True)[1]
        print(
            f"Each process has {alone.threads} of {num_cores()} cores, also when one trains alone: "
            f"at best {together.name} are\n{together.processes} times as fast. What is missing "
            "went to summing gradients after every step, and to waiting.\n\n"
            f"{together.name} train {ratio:.1f} times as fast as one on this machine."
        )


def plot(results: list[Result], output: Path) -> None:
    """Draw the losses and the rates of all runs."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    loss, rate = figure.subplots(1, 2)
    for result, line in zip(results, ("-", "--"), strict=False):
        loss.plot(range(1, len(result.losses) + 1), result.losses, line, label=result.name)
    loss.set(title="Training loss", xlabel="epoch", ylabel="cross-entropy", yscale="log")
    loss.legend()
    draw_bars(rate, {result.name: result.speeds for result in results}, "tokens/s", rates=True)
    rate.set(title="Tokens a second (bar: median)")
    figure.savefig(output, dpi=120)


def main() -> None:
    """Train alone, then with the other processes of torchrun; --check fails on low accuracy."""
    parser = argparse.ArgumentParser(description="Train one classifier in one and many processes.")
    parser.add_argument("--cell", choices=sorted(CELLS), default="lstm")
    parser.add_argument("--epochs", type=int, default=20, help="at least 1; the first is warm-up")
    parser.add_argument("--hidden", type=int, default=64, help="hidden units of each direction")
    parser.add_argument(
        "--max-tokens", type=int, default=430, help="most frames of a step, in all processes"
    )
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate of Adam")
    parser.add_argument("--seed", type=int, default=0)
    # Set by torchrun, which starts the processes.
    processes, rank, on_this_machine = (
        int(os.environ.get(name, default))
        for name, default in (("WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_WORLD_SIZE", 1))
    )
    share = max(1, num_cores() // on_this_machine)
    parser.add_argument("--threads", type=int, default=share, help="of each process")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".png"))
    parser.add_argument("--check", action="store_true", help="fail on low accuracy")
    args = parser.parse_args()
    if args.epochs < 1:
        parser.error(f"--epochs must be at least 1, got {args.epochs}")

    if rank == 0:
        print("Trains a classifier in one process, then in torchrun's: a quarter of a minute.")
    recordings = Recordings()
    results = []
    if processes > 1:
        distributed.init_process_group("gloo", timeout=TIMEOUT)
    try:
        if rank == 0:
            results.append(train(args, recordings, 1, 0))
        if processes > 1:
            distributed.barrier()
            results.append(train(args, recordings, processes, rank))
    finally:
        if processes > 1:
            distributed.destroy_process_group()
            # Frees the group, which ends gloo's threads: one that still frees a tensor while Python
            # exits would abort the process.
            gc.collect()
    if rank == 0:
        report(results)
        plot(results, args.output)
        print(f"plot: {args.output}")
    if args.check and (low := [r for r in results if not r.accuracy >= MIN_ACCURACY]):
        sys.exit(
            f"test accuracy: expected at least {MIN_ACCURACY:.0%}, got "
            + ", ".join(f"{r.accuracy:.2%} with {r.processes} processes" for r in low)
        )


if __name__ == "__main__":
    main()
