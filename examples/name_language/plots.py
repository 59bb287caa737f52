"""What the program draws."""

from pathlib import Path

import torch
from bars import draw_bars
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from names import LANGUAGES, Names, english_name
from padding import Table
from report import Reading
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from training import Curves


def plot(
    trained: dict[str, Curves],
    test: Names,
    readings: list[Reading],
    table: Table,
    output: Path,
) -> None:
    """Draw curves, times, what moves the logits, the confusion matrix and the attention."""
    curves = list(trained.values())[-1]
    figure = Figure(figsize=(16, 11), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1, 1.6))
    loss, share, times, changes = top.subplots(1, 4, width_ratios=(3, 3, 2.5, 3))
    confusion, attention = bottom.subplots(1, 2)
    plot_loss(loss, curves)
    plot_accuracy(share, trained)
    draw_bars(times, {name: run.seconds for name, run in trained.items()}, "s", digits=1)
    times.set(title="Time of an epoch (bar: median)", ylabel="seconds")
    plot_changes(changes, table)
    plot_confusion(confusion, curves.test_logits.argmax(dim=1), test.labels)
    plot_attention(attention, readings)
    figure.savefig(output, dpi=100)


def plot_loss(axes: Axes, curves: Curves) -> None:
    epochs = range(1, len(curves.name_loss) + 1)
    axes.plot(epochs, curves.character_loss, ".-", label="characters, training")
    axes.plot(epochs, curves.name_loss, ".-", label="names, training")
    axes.plot(epochs, curves.test_loss, ".--", label="names, test")
    axes.set(title="Loss", xlabel="epoch", ylabel="cross-entropy", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()


def plot_accuracy(axes: Axes, trained: dict[str, Curves]) -> None:
    for (name, curves), style in zip(trained.items(), (".-", ".--"), strict=True):
        percent = [100 * value for value in curves.accuracy]
        axes.plot(range(1, len(percent) + 1), percent, style, label=name)
    axes.set(title="Test accuracy", xlabel="epoch", ylabel="%", ylim=(0, 100))
    axes.grid(alpha=0.3)
    axes.legend()


def plot_changes(axes: Axes, table: Table) -> None:
    for offset, (dtype, changed) in zip((-0.2, 0.2), table.items(), strict=True):
        places = [place + offset for place in range(len(changed))]
        differences = [change.difference for change in changed.values()]
        axes.barh(places, differences, height=0.4, label=str(dtype).removeprefix("torch."))
        for place, difference in zip(places, differences, strict=True):
            if difference == 0:
                axes.text(2e-17, place, "0", va="center", fontsize=8)
    axes.set(title="Largest difference of the logits", xscale="log", xlim=(1e-17, 1e3))
    axes.set_yticks(range(len(changed)), list(changed))
    axes.invert_yaxis()
    axes.legend(loc="upper right")


def plot_confusion(axes: Axes, said: Tensor, labels: Tensor) -> None:
    size = len(LANGUAGES)
    counts = (labels * size + said).bincount(minlength=size * size).view(size, size)
    percent = 100 * counts / counts.sum(dim=1, keepdim=True)
    image = axes.imshow(percent.numpy(), cmap="Blues", norm=PowerNorm(0.5, 0, 100))
    axes.set_xticks(range(size), LANGUAGES)
    axes.set_yticks(range(size), [f"{english_name(n)} {LANGUAGES[n]}" for n in range(size)])
    axes.set(title="% of each language's test names", xlabel="said")
    axes.figure.colorbar(image, ax=axes, ticks=(0, 1, 5, 10, 25, 50, 100), shrink=0.8)


def plot_attention(axes: Axes, readings: list[Reading]) -> None:
    relative = [torch.tensor(reading.attention) * len(reading.text) for reading in readings]
    grid = pad_sequence(relative, batch_first=True, padding_value=torch.nan)
    image = axes.imshow(grid.numpy(), cmap="Oranges", vmin=0, vmax=3, aspect="auto")
    for row, reading in enumerate(readings):
        for place, character in enumerate(reading.text):
            colour = "white" if grid[row, place] > 2 else "black"
            axes.text(place, row, character, ha="center", va="center", color=colour)
    axes.set_yticks(
        range(len(readings)),
        [
            f"{english_name(reading.label)}\nsaid {english_name(reading.said)}"
            for reading in readings
        ],
    )
    axes.set_title("Attention on the characters of some test names (1: their mean)")
    axes.xaxis.set_visible(False)
    axes.figure.colorbar(image, ax=axes, shrink=0.8)
