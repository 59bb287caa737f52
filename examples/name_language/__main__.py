"""Which language is a name written in? A model of ragged text that never sees its padding.

The names are what 24 languages in Latin script call territories, languages, scripts and currencies
("Frankreich", "Ranska", "Prancūzija"); see names.py. The model (model.py) reads characters:
embedding, convolution, bidirectional LSTM, and a linear layer that gives an opinion on the language
at every character; attention with a learned query weighs these opinions into one. The loss is the
name's plus the mean of all characters', so every part must know what is padding. It is trained
twice on the same batches, with nn.LSTM on packed sequences first.

Then the test names are batched in other ways, padded in other ways, and their padding is filled
with garbage (padding.py). A table says how far that moves the logits.

Usage:
    python examples/name_language [--epochs 8] [--seed 0] [--output curves.png] [--check]
"""

import argparse
import copy
import sys
from pathlib import Path

import torch
from model import NameClassifier, PackedLSTM
from names import load
from padding import CONTROL, SAME_SHAPE, Table, changes
from training import Curves, train

from varlen_rnn import VarLenLSTM

sys.path.append(str(Path(__file__).parents[1]))  # for bars.py
from plots import plot
from report import read, report

LSTMS: dict[str, type[torch.nn.LSTM]] = {"nn.LSTM": PackedLSTM, "VarLenLSTM": VarLenLSTM}
MIN_ACCURACY = 0.78
MAX_DIFFERENCE = {torch.float32: 1e-4, torch.float64: 1e-12}


def failures(curves: Curves, table: Table) -> list[str]:
    """State each expectation on accuracy and on what moves the logits that does not hold."""
    found = []
    if not curves.accuracy[-1] >= MIN_ACCURACY:
        found.append(
            f"test accuracy: expected at least {MIN_ACCURACY:.0%}, got {curves.accuracy[-1]:.2%}"
        )
    for dtype, changed in table.items():
        for what, change in changed.items():
            bound = 0.0 if what in SAME_SHAPE else MAX_DIFFERENCE[dtype]
            if what == CONTROL:
                holds, expected = change.difference > bound, f"more than {bound:g}"
            else:
                holds, expected = change.difference <= bound, f"at most {bound:g}"
            if not holds:
                got = f"got {change.difference:.1e}"
                found.append(f"{what}, {dtype}: expected a difference of {expected}, {got}")
    return found


def main() -> None:
    """Train, rearrange, report, plot; with --check exit non-zero where an expectation fails."""
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description="Learn which language a name is written in.")
    parser.add_argument("--epochs", type=int, default=8, help="at least 1")
    parser.add_argument("--hidden", type=int, default=96, help="hidden units of each direction")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=5e-3, help="largest learning rate of AdamW")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=1, help="use only every n-th name")
    parser.add_argument("--output", type=Path, default=here.with_suffix(".png"))
    parser.add_argument("--check", action="store_true", help="fail on low accuracy or moved logits")
    args = parser.parse_args()
    for option in ("epochs", "every"):
        if getattr(args, option) < 1:
            parser.error(f"--{option} must be at least 1, got {getattr(args, option)}")

    print("Trains a model of names with nn.LSTM and with VarLenLSTM: three minutes on two cores.")
    names, test, num_ids = load(args.every)
    trained = {}
    for name, lstm in LSTMS.items():
        torch.manual_seed(args.seed)
        model = NameClassifier(num_ids, args.hidden, lstm)
        trained[name] = train(model, names, test, args)
    curves = trained["VarLenLSTM"]
    table = {
        torch.float32: changes(model, test),
        torch.float64: changes(copy.deepcopy(model).double(), test),
    }
    readings = read(model, test, curves.test_logits.argmax(dim=1))
    report(names, test, trained, readings, table)
    plot(trained, test, readings, table, args.output)
    print(f"plot: {args.output}")
    if args.check and (found := failures(curves, table)):
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()
