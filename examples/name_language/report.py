"""What the program prints."""

import statistics
from dataclasses import dataclass

import torch
from bars import times_as_fast
from model import NameClassifier, right_padded
from names import LANGUAGES, Names, english_name
from padding import CONTROL, SAME_SHAPE, Table
from torch import Tensor
from training import Curves, accuracy

RIGHT_READINGS, WRONG_READINGS = 7, 3


@dataclass(frozen=True)
class Reading:
    """How the model reads one name: its verdict; its attention and its opinion by character."""

    text: str
    label: int
    said: int
    probability: float
    attention: list[float]
    opinions: list[int]


@torch.inference_mode()
def read(model: NameClassifier, test: Names, predictions: Tensor) -> list[Reading]:
    """Read some names that were predicted right and some that were not, drawn at random."""
    order = torch.randperm(len(test.ids), generator=torch.Generator().manual_seed(0))
    legible = torch.tensor([5 <= len(test.ids[row]) <= 20 for row in order])
    right = (predictions == test.labels)[order]
    rows = torch.cat(
        (order[legible & right][:RIGHT_READINGS], order[legible & ~right][:WRONG_READINGS])
    )
    model.eval()
    ids, lengths = right_padded([test.ids[row] for row in rows])
    logits, opinions, attention = model(ids, lengths=lengths)
    probabilities, said = logits.softmax(dim=1).max(dim=1)
    return [
        Reading(
            test.texts[row],
            int(test.labels[row]),
            int(said[n]),
            probabilities[n].item(),
            attention[n, : lengths[n]].tolist(),
            opinions[n, : lengths[n]].argmax(dim=1).tolist(),
        )
        for n, row in enumerate(rows)
    ]


def report(
    names: Names, test: Names, trained: dict[str, Curves], readings: list[Reading], table: Table
) -> None:
    """Print what the data is, what moves the logits, and how well and how fast it was learned."""
    curves = list(trained.values())[-1]
    lengths = torch.tensor([len(row) for row in names.ids])
    most_frequent = names.labels.bincount().argmax()
    print(
        f"\n{len(names.ids)} training and {len(test.ids)} test names in {len(LANGUAGES)} languages"
    )
    print(f"{lengths.min()} to {lengths.max()} characters, {lengths.float().mean():.1f} on average")
    print(f"{1 - curves.tokens / curves.steps:.0%} of a training batch is padding")
    for reading in readings:
        report_reading(reading)
    report_changes(table, len(test.ids), curves.test_logits.abs().max().item())
    always = f"always {english_name(most_frequent)}"
    report_training(trained, always, accuracy(most_frequent, test.labels))


def report_reading(reading: Reading) -> None:
    verdict = f"said {english_name(reading.said)} ({reading.probability:.0%})"
    print(f"\n{reading.text}: {english_name(reading.label)}, {verdict}")
    print("character  " + "".join(f"{character:>4}" for character in reading.text))
    print("attention %" + "".join(f"{100 * weight:4.0f}" for weight in reading.attention))
    print("opinion    " + "".join(f"{LANGUAGES[language]:>4}" for language in reading.opinions))


def report_changes(table: Table, num_names: int, largest: float) -> None:
    print(
        f"\nLargest difference of the logits of {num_names} test names (they reach {largest:.0f}),"
    )
    print("and how many predictions changed")
    print(f"\n{'':32}{'float32':>18}{'float64':>18}    expected")
    for what in table[torch.float32]:
        cells = (changed[what] for changed in table.values())
        line = "".join(f"{cell.difference:12.1e}{cell.predictions:6}" for cell in cells)
        expected = "rounding"
        if what in SAME_SHAPE:
            expected = "0"
        elif what == CONTROL:
            expected = "large"
        print(f"{what:32}{line}    {expected}")


def report_training(trained: dict[str, Curves], always: str, always_right: float) -> None:
    seconds = {name: curves.seconds for name, curves in trained.items()}
    print(f"\n{'':32}" + "".join(f"{name:>12}" for name in trained))
    shares = "".join(f"{curves.accuracy[-1]:12.2%}" for curves in trained.values())
    print(f"{'test accuracy':32}{shares}   ({always}: {always_right:.2%})")
    medians = "".join(f"{statistics.median(values):12.2f}" for values in seconds.values())
    print(f"{'seconds an epoch, median':32}{medians}")
    ratio = times_as_fast(seconds, rates=False)[-1]
    print(
        f"\nThe whole model trains {ratio:.1f} times as fast with VarLenLSTM as with nn.LSTM on "
        "this machine;\nembedding, convolution and attention are the same in both."
    )
