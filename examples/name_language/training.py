"""Training on two losses, one a name and one a character."""

import argparse
import time
from dataclasses import dataclass, field

import torch
from model import NameClassifier, right_padded
from names import Names
from padding import as_trained, evaluate
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from varlen_rnn.masking import masked_cross_entropy


@dataclass
class Curves:
    """What each epoch gave; and over all epochs: tokens, steps of the padded batches, test logits.

    The logits `[R, C]` are those of the test names after the last epoch.
    """

    name_loss: list[float] = field(default_factory=list)
    character_loss: list[float] = field(default_factory=list)
    test_loss: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    tokens: int = 0
    steps: int = 0
    test_logits: Tensor = field(default_factory=lambda: torch.empty(0))


def train(model: NameClassifier, names: Names, test: Names, args: argparse.Namespace) -> Curves:
    """Train on `names`; measure on `test` after every epoch, which decides nothing."""
    epochs = [torch.randperm(len(names.ids)).split(args.batch_size) for _ in range(args.epochs)]
    num_batches = sum(len(batches) for batches in epochs)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=num_batches)
    curves = Curves()
    what = type(model.rnn).__name__
    with tqdm(
        total=num_batches, unit="batch", desc=what, disable=None, dynamic_ncols=True
    ) as progress:
        for batches in epochs:
            model.train()
            losses = []
            start = time.perf_counter()
            for rows in batches:
                ids, lengths = right_padded([names.ids[row] for row in rows])
                labels = names.labels[rows]
                logits, opinions, _ = model(ids, lengths=lengths)
                name_loss = cross_entropy(logits, labels)
                every_label = labels[:, None].expand_as(ids)
                character_loss = masked_cross_entropy(opinions, every_label, lengths=lengths)
                optimizer.zero_grad()
                (name_loss + character_loss).backward()
                nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
                optimizer.step()
                schedule.step()
                losses.append((name_loss.item(), character_loss.item()))
                curves.tokens += int(lengths.sum())
                curves.steps += ids.numel()
                progress.update()
            curves.seconds.append(time.perf_counter() - start)
            name_mean, character_mean = torch.tensor(losses).mean(dim=0).tolist()
            curves.name_loss.append(name_mean)
            curves.character_loss.append(character_mean)
            curves.test_logits = evaluate(model, test.ids, as_trained)
            curves.test_loss.append(cross_entropy(curves.test_logits, test.labels).item())
            curves.accuracy.append(accuracy(curves.test_logits.argmax(dim=1), test.labels))
            progress.set_postfix(loss=f"{name_mean:.3f}", test=f"{curves.accuracy[-1]:.1%}")
    return curves


def accuracy(predictions: Tensor, labels: Tensor) -> float:
    """Share of predictions `[R]` that are right."""
    return (predictions == labels).float().mean().item()
