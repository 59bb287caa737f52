"""Who is speaking, frame by frame? Hundreds of recordings at once, as streams that come and go.

The recordings of `japanese_vowels.py` arrive as they would at a server. At every tick some begin,
all that have begun get their next frame, and some end, whose slots the next ones take. An LSTM or
GRU of one direction, trained for some seconds to name the speaker at every frame, hears them
through `varlen_rnn.StreamingRNN`, which holds the states of all slots: one call a tick.

Whichever streams share a call, what comes out must be what the module gives for each recording as a
whole, bit for bit: that is checked first. Then single steps of a single stream, and the same ticks,
are timed with StreamingRNN and with what stands there without it: nn.LSTM, nn.LSTMCell and ONNX
Runtime, for which the program itself keeps the states (`streaming_peers.py`).

Usage:
    python examples/streaming.py [--cell gru] [--layers 2] [--slots 256] [--output steps.png]
    python examples/streaming.py --quick
"""

import argparse
import statistics
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from bars import draw_bars, times_as_fast
from japanese_vowels import CELLS, NUM_FEATURES, NUM_SPEAKERS, Recordings, Run
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from streaming_peers import Stepper, onnx_missing, own, steppers
from torch import Tensor, nn
from tqdm import tqdm

import varlen_rnn
from varlen_rnn import StreamingRNN

STEPS_A_ROUND = 500  # of a single stream
PEER_TOLERANCE = 1e-4
FALLBACK_TOLERANCE = 1e-5  # where nothing is compiled, rounding depends on the batch
PEER_COLOURS = ("tab:orange", "tab:olive", "tab:gray")

Seconds = dict[str, list[list[float]]]  # of each call, by round, and by what was called


class FrameClassifier(nn.Module):
    """Recurrent net of one direction, whose output at every frame feeds a linear layer.

    Args:
        cell: "lstm" or "gru".
        hidden_size: H.
        num_layers: how many recurrent layers.
    """

    def __init__(self, cell: str, hidden_size: int, num_layers: int) -> None:
        super().__init__()
        self.rnn = CELLS[cell](NUM_FEATURES, hidden_size, num_layers)
        self.speaker = nn.Linear(hidden_size, NUM_SPEAKERS)

    def forward(self, frames: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Map N frames `[N, 12]` of recordings that lie behind each other to logits `[N, 9]`."""
        logits: Tensor = self.speaker(self.rnn(frames, cu_seqlens=cu_seqlens)[0])
        return logits


@dataclass(frozen=True)
class Tick:
    """What happens at one moment: recordings begin, and streams get a frame each."""

    starts: Tensor  # slots in which a recording begins
    rows: Tensor  # [K], the slots that get a frame
    frames: Tensor  # [K, 12]
    tokens: Tensor  # [K], where these frames stand among those of all recordings


def flat_batch(recordings: Recordings, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Frames `[N, 12]` of these recordings, their `cu_seqlens`, and the speaker of each frame."""
    lengths = recordings.lengths[rows]
    return (
        torch.cat([recordings.sequences[row] for row in rows.tolist()]),
        nn.functional.pad(lengths.cumsum(0), (1, 0)),
        recordings.labels[rows].repeat_interleave(lengths),
    )


def train(args: argparse.Namespace, recordings: Recordings) -> FrameClassifier:
    """Train a new model to name the speaker at every frame."""
    torch.manual_seed(args.seed)
    model = varlen_rnn.convert(FrameClassifier(args.cell, args.hidden, args.layers))
    run = Run(model, args.lr)
    with tqdm(range(args.epochs), "training", unit="epoch", disable=None, ncols=80) as progress:
        for _ in progress:
            order = recordings.train_rows[torch.randperm(len(recordings.train_rows))]
            run.train_epoch(flat_batch(recordings, rows) for rows in order.split(args.batch_size))
            progress.set_postfix(loss=f"{run.losses[-1]:.4f}")
    return model


def schedule(recordings: Recordings, num_slots: int, seed: int) -> list[Tick]:
    """Let all recordings come, in random order and at random times, and play each once."""
    random = np.random.default_rng(seed)
    waiting = random.permutation(len(recordings.sequences)).tolist()
    frames = torch.cat(recordings.sequences)
    ends = recordings.lengths.cumsum(0).tolist()
    free = list(range(num_slots))
    playing: dict[int, tuple[int, int]] = {}  # by slot: the next token, and the recording's end
    ticks = []
    while waiting or playing:
        arriving = int(random.integers(num_slots // 8 + 2))
        starts: list[int] = []
        while waiting and free and len(starts) < arriving:
            recording = waiting.pop()
            starts.append(free.pop())
            first = ends[recording] - len(recordings.sequences[recording])
            playing[starts[-1]] = first, ends[recording]
        if not playing:
            continue
        tokens = torch.tensor([token for token, _ in playing.values()])
        rows = torch.tensor(list(playing))
        ticks.append(Tick(torch.tensor(starts, dtype=rows.dtype), rows, frames[tokens], tokens))
        free += [slot for slot, (token, end) in playing.items() if token + 1 == end]
        playing = {s: (token + 1, end) for s, (token, end) in playing.items() if token + 1 < end}
    return ticks


def play(stepper: Stepper, ticks: Iterable[Tick], outs: Tensor) -> list[float]:
    """Run all ticks, and write the outputs of all frames to `[N, H]`: the seconds of each tick."""
    seconds = []
    for tick in ticks:
        starts, rows, frames = (own(stepper, t) for t in (tick.starts, tick.rows, tick.frames))
        begin = time.perf_counter()
        stepper.reset(starts)
        out = stepper(frames, rows)
        seconds.append(time.perf_counter() - begin)
        outs[tick.tokens] = torch.as_tensor(out)
    return seconds


def difference(outs: Tensor, whole: Tensor) -> float:
    """The largest; NaN where one of them holds NaN."""
    return (outs - whole).abs().max().item()


def check(outs: Tensor, whole: Tensor, exact: bool) -> str:
    """Say how streams give what whole recordings give, or fail."""
    wrong = int((outs.view(torch.int32) != whole.view(torch.int32)).any(dim=1).sum())
    apart = difference(outs, whole)
    if not (wrong == 0 if exact else apart <= FALLBACK_TOLERANCE):
        raise AssertionError(
            "streams: expected what one call gives for each whole recording, got other outputs at "
            f"{wrong} of {len(whole)} frames, by up to {apart:.1e}"
        )
    how = "bit for bit" if exact else f"within {FALLBACK_TOLERANCE:g} (nothing is compiled here)"
    return f"All {len(whole):,} outputs are those of one call for each whole recording, {how}."


def accuracies(model: FrameClassifier, outs: Tensor, recordings: Recordings) -> str:
    """How many speakers of the test recordings are named right as time goes on."""
    guesses = model.speaker(outs).argmax(dim=1).split(recordings.lengths.tolist())
    labels = recordings.labels.tolist()
    right = [(guesses[row] == labels[row]).float() for row in recordings.test_rows.tolist()]
    shares = [torch.stack([of_frame[n] for of_frame in right]).mean() for n in (0, 4, -1)]
    return (
        f"Named right of {len(right)} test recordings: {shares[0]:.1%} at the first frame, "
        f"{shares[1]:.1%} at the fifth, {shares[2]:.1%} at the end."
    )


def in_turns(found: dict[str, Stepper], rounds: int, what: str) -> Iterator[tuple[str, Stepper]]:
    """Name each as many times, and once more to warm up; who begins a round changes."""
    names = list(found)
    for n in tqdm(range(rounds + 1), what, unit="round", disable=None, ncols=80):
        for place in range(len(names)):
            name = names[(n + place) % len(names)]
            yield name, found[name]


def time_steps(rnn: nn.RNNBase, rounds: int, frames: Tensor) -> Seconds:
    """Feed a single stream frame by frame."""
    seconds: Seconds = {}
    steps = frames[:STEPS_A_ROUND].split(1)
    for name, stepper in in_turns(found := steppers(rnn, 1), rounds, "one stream"):
        of_each = []
        for frame in [own(stepper, step) for step in steps]:
            begin = time.perf_counter()
            stepper(frame)
            of_each.append(time.perf_counter() - begin)
        seconds.setdefault(name, []).append(of_each)
    return {name: seconds[name][1:] for name in found}


def time_ticks(
    rnn: nn.RNNBase, num_slots: int, rounds: int, ticks: list[Tick], expected: Tensor
) -> Seconds:
    """Play all ticks; every round must give the expected outputs."""
    seconds: Seconds = {}
    for name, stepper in in_turns(found := steppers(rnn, num_slots), rounds, "all streams"):
        outs = torch.full_like(expected, torch.nan)
        seconds.setdefault(name, []).append(play(stepper, ticks, outs))
        if not (apart := difference(outs, expected)) <= PEER_TOLERANCE:
            raise AssertionError(f"{name}: expected the same outputs, got {apart:.1e} apart")
    return {name: seconds[name][1:] for name in found}


def percentiles(of_rounds: list[list[float]]) -> list[float]:
    """The median and the 99th of the calls of all rounds, in microseconds."""
    return [1e6 * value for value in np.quantile(np.concatenate(of_rounds), (0.5, 0.99))]


def report(steps: Seconds, ticks: Seconds, rates: dict[str, list[float]]) -> None:
    """Print times and rates of all, and the answer."""
    rows = [("", list(steps))]
    for what, seconds in (("one stream: µs a step", steps), ("all streams: µs a tick", ticks)):
        both = [percentiles(of_rounds) for of_rounds in seconds.values()]
        rows.append((f"{what}, median", [f"{median:,.1f}" for median, _ in both]))
        rows.append(("  99th percentile", [f"{last:,.1f}" for _, last in both]))
    rows.append(("frames a second", [f"{statistics.median(r):,.0f}" for r in rates.values()]))
    ratios = times_as_fast(rates, rates=True)
    rows.append(("times as fast", [f"{ratio:.2f}" for ratio in ratios]))
    for what, cells in rows:
        print(f"{what:32}" + "".join(f"{cell:>14}" for cell in cells))
    base, *_, ours = steps
    single = percentiles(steps[base])[0] / percentiles(steps[ours])[0]
    print(
        f"\nOn this machine {ours} is {ratios[-1]:.1f} times as fast as {base} with many streams, "
        f"and {single:.1f} times with one."
    )


def draw_percentiles(axes: Axes, seconds: Seconds, colours: list[str]) -> None:
    """Draw two bars for each: the median and, paler, the 99th percentile.

    The axis ends at one and a half times the highest median, as in `draw_bars`.
    """
    both = [percentiles(of_rounds) for of_rounds in seconds.values()]
    top = 1.5 * max(median for median, _ in both)
    for place, (values, colour) in enumerate(zip(both, colours, strict=True)):
        for offset, value, alpha in zip((-0.2, 0.2), values, (0.5, 0.2), strict=True):
            axes.bar(place + offset, value, 0.38, color=colour, alpha=alpha)
            height = min(value, 0.94 * top)
            axes.text(place + offset, height, f"{value:,.1f}", ha="center", va="bottom")
    axes.set_xticks(range(len(seconds)), list(seconds))
    axes.set(ylim=(0, top), ylabel="µs")


def plot(steps: Seconds, rates: dict[str, list[float]], num_slots: int, output: Path) -> None:
    """Draw the time of a step of one stream, and the frames a second of many."""
    figure = Figure(figsize=(14, 4.2), layout="constrained")
    latency, rate = figure.subplots(1, 2)
    colours = [*PEER_COLOURS[: len(steps) - 1], "tab:blue"]
    draw_percentiles(latency, steps, colours)
    draw_bars(rate, rates, "/s", rates=True, colours=colours)
    latency.set(title="Step of one stream (bars: median, 99th percentile)")
    rate.set(title=f"Frames a second, up to {num_slots} streams at once (bar: median)")
    figure.savefig(output, dpi=120)


def main() -> None:
    """Train, check, time, report, plot."""
    parser = argparse.ArgumentParser(description="Classify hundreds of streams frame by frame.")
    parser.add_argument("--cell", choices=sorted(CELLS), default="lstm")
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--hidden", type=int, default=128, help="hidden units")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=27)
    parser.add_argument("--lr", type=float, default=3e-3, help="learning rate of Adam")
    parser.add_argument("--slots", type=int, default=256, help="most streams at a time")
    parser.add_argument("--rounds", type=int, default=20, help="timed rounds, at least 1")
    parser.add_argument("--seed", type=int, default=0)
    # With one thread no step waits for another thread.
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".png"))
    parser.add_argument("--quick", action="store_true", help="2 epochs, 2 rounds")
    args = parser.parse_args()
    if args.quick:
        args.epochs, args.rounds = 2, 2
    if args.rounds < 1 or args.slots < 1:
        parser.error(f"--rounds and --slots must be at least 1, got {args.rounds}, {args.slots}")

    print("Trains a classifier, and plays hundreds of streams with it: a quarter of a minute.")
    torch.set_num_threads(args.threads)
    recordings = Recordings()
    model = train(args, recordings)
    ticks = schedule(recordings, args.slots, args.seed)
    with torch.inference_mode():
        whole = torch.cat([model.rnn(frames)[0] for frames in recordings.sequences])
        outs = torch.full_like(whole, torch.nan)
        play(StreamingRNN(model.rnn, args.slots), ticks, outs)
        most = max(len(tick.rows) for tick in ticks)
        print(f"\n{len(recordings.lengths)} streams in {len(ticks)} ticks, up to {most} at a time.")
        print(check(outs, whole, exact=bool(varlen_rnn.build_info()["extension"])))
        print(accuracies(model, outs, recordings))
        if missing := onnx_missing():
            print(f"ONNX Runtime is left out: {' and '.join(missing)} not installed (make tools).")
        steps = time_steps(model.rnn, args.rounds, torch.cat(recordings.sequences))
        seconds = time_ticks(model.rnn, args.slots, args.rounds, ticks, whole)
    rates = {
        name: [len(whole) / sum(of_round) for of_round in of_rounds]
        for name, of_rounds in seconds.items()
    }
    print()
    report(steps, seconds, rates)
    plot(steps, rates, args.slots, args.output)
    print(f"plot: {args.output}")


if __name__ == "__main__":
    main()
