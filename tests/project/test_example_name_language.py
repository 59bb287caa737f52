"""The example on names runs from the command line, and no padding moves its results."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
from helpers import load_example, run_example

EXAMPLE = Path(__file__).parents[2] / "examples" / "name_language"
MISSING = [
    name for name in ("babel", "matplotlib", "tqdm") if importlib.util.find_spec(name) is None
]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"the example needs {' and '.join(MISSING)}")

# Every line of the table, with the largest float32 and float64 differences allowed.
ROUNDING = (1e-5, 1e-13)
BOUNDS = {
    "random ids in padding": (0.0, 0.0),
    "NaN features in padding": (0.0, 0.0),
    "100 more steps of padding": ROUNDING,
    "no padding: each name alone": ROUNDING,
    "padding on the left, by mask": ROUNDING,
    "shuffled into other batches": ROUNDING,
}
CONTROL = "control: padding read as text"


@pytest.fixture(scope="module")
def names() -> ModuleType:
    return load_example(EXAMPLE / "names.py")


def test_one_epoch_of_name_language(tmp_path: Path) -> None:
    arguments = ["--every", "20", "--hidden", "16", "--epochs", "1", "--check"]
    result = run_example(EXAMPLE, arguments, tmp_path)
    # One epoch is too little for the accuracy that --check wants; nothing else may be wrong.
    assert result.returncode == 1, result.stderr
    complaints = [line for line in result.stderr.splitlines() if "expected" in line]
    assert len(complaints) == 1, result.stderr
    assert complaints[0].startswith("test accuracy: expected at least ")

    differences = {
        line[:32].strip(): [float(number) for number in re.findall(r"\d\.\de[+-]\d\d", line)]
        for line in result.stdout.splitlines()
    }
    for what, bounds in BOUNDS.items():
        assert len(differences[what]) == 2, result.stdout
        for difference, bound in zip(differences[what], bounds, strict=True):
            assert difference <= bound, what
    assert min(differences[CONTROL]) > 1e-2

    [(theirs, ours)] = re.findall(r"^test accuracy +(\S+)% +(\S+)%", result.stdout, re.MULTILINE)
    assert abs(float(theirs) - float(ours)) < 3
    [(slow, fast)] = re.findall(r"an epoch, median +(\S+) +(\S+)", result.stdout)
    [ratio] = re.findall(r"trains (\S+) times as fast with VarLenLSTM", result.stdout)
    # Each is printed rounded, so the ratio lies between those of what the numbers may have been.
    least, most = (
        (float(slow) - sign * half_a_digit(slow)) / (float(fast) + sign * half_a_digit(fast))
        for sign in (1, -1)
    )
    assert least - half_a_digit(ratio) <= float(ratio) <= most + half_a_digit(ratio)


def half_a_digit(number: str) -> float:
    return 0.5 * 10.0 ** -len(number.partition(".")[2])


def test_training_and_test_names_have_nothing_in_common(names: ModuleType) -> None:
    read = names.read_names()
    texts = [text.casefold() for text, _, _ in read]
    assert len(set(texts)) == len(texts)
    assert not any(set("()") <= set(text) for text in texts)
    training, test, num_ids = names.load(1)
    assert len(training.texts) + len(test.texts) == len(read)
    for part in (training, test):
        assert part.labels.unique().tolist() == list(range(len(names.LANGUAGES)))
        assert [len(ids) for ids in part.ids] == [len(text) for text in part.texts]
    concepts = {(language, text): concept for text, language, concept in read}

    def concepts_of(part: object) -> set[str]:
        pairs = zip(part.labels.tolist(), part.texts, strict=True)
        return {concepts[language, text] for language, text in pairs}

    assert concepts_of(training).isdisjoint(concepts_of(test))
    assert 0.15 < len(test.texts) / len(read) < 0.25
    largest = max(int(ids.max()) for ids in training.ids)
    assert (largest, min(int(ids.min()) for ids in training.ids)) == (num_ids - 1, 2)
    assert min(int(ids.min()) for ids in test.ids) >= names.UNKNOWN
