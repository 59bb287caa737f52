"""What int8 weights cost a trained model: the examples' test sets."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from helpers import CELLS, load_example

from varlen_rnn import convert, quantize_dynamic

EXAMPLES = Path(__file__).parents[2] / "examples"

needs_matplotlib = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("matplotlib", "tqdm", "babel")),
    reason="the examples need matplotlib, tqdm and babel",
)
# Of the test set, in either direction.
MOST_ACCURACY_LOST = 0.005


@needs_matplotlib
@pytest.mark.parametrize("cell", CELLS)
def test_accuracy_on_japanese_vowels(cell: str) -> None:
    example = load_example(EXAMPLES / "japanese_vowels.py")
    recordings = example.Recordings()
    run = example.Run(convert(example.SpeakerClassifier(cell, 32)), learning_rate=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(8):
        run.train_epoch(recordings.train_batches(27, generator))
    batch = recordings.batch(recordings.test_rows)
    run.test(batch)
    run.model = quantize_dynamic(run.model)
    run.test(batch)
    accuracy, quantized = run.accuracies
    assert accuracy > 0.9
    assert abs(quantized - accuracy) <= MOST_ACCURACY_LOST


@pytest.fixture
def name_language(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[ModuleType, ...]]:
    """The example's modules ``names``, ``model``, ``padding`` and ``training``."""
    monkeypatch.syspath_prepend(EXAMPLES / "name_language")
    names = ("names", "model", "padding", "training")
    yield tuple(importlib.import_module(name) for name in names)
    for name in names:
        sys.modules.pop(name, None)


@needs_matplotlib
def test_accuracy_on_name_language(name_language: tuple[ModuleType, ...]) -> None:
    names, model, padding, training = name_language
    train_names, test_names, num_ids = names.load(4)
    classifier = model.NameClassifier(num_ids, 32)
    options = argparse.Namespace(epochs=3, batch_size=32, lr=1e-2)
    curves = training.train(classifier, train_names, test_names, options)
    logits = padding.evaluate(quantize_dynamic(classifier), test_names.ids, padding.as_trained)
    accuracy = training.accuracy(logits.argmax(dim=1), test_names.labels)
    assert curves.accuracy[-1] > 0.3
    assert abs(accuracy - curves.accuracy[-1]) <= MOST_ACCURACY_LOST
