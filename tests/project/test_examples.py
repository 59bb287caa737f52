"""The first example runs as its README says, and its bars say what was measured."""

from __future__ import annotations

import importlib.util
import re
import statistics
from pathlib import Path

import pytest
from helpers import CELLS, load_example, run_example

SCRIPT = Path(__file__).parents[2] / "examples" / "japanese_vowels.py"
MISSING = [name for name in ("matplotlib", "tqdm") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"the example needs {' and '.join(MISSING)}")


@pytest.mark.parametrize("cell", CELLS)
def test_two_epochs_of_japanese_vowels(cell: str, tmp_path: Path) -> None:
    """Three ways to train, with one result; and the answer is the ratio of the table's times."""
    arguments = ["--cell", cell, "--epochs", "2", "--hidden", "16"]
    result = run_example(SCRIPT, arguments, tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stderr == "", "a progress bar in a file"

    def numbers(what: str) -> list[float]:
        [line] = [line for line in result.stdout.splitlines() if line.startswith(what)]
        return [float(number) for number in re.findall(r"(\d+\.\d+)%?", line)]

    assert len(numbers("test accuracy")) == 3
    assert max(numbers("test accuracy")) - min(numbers("test accuracy")) < 0.5
    [difference] = re.findall(r"are within (\S+) of nn\.", result.stdout)
    assert float(difference) < 1e-4
    slow, *fast = numbers("ms an epoch, median of 1")
    ratios = [float(ratio) for ratio in re.findall(r"(\d+\.\d+) times", result.stdout)]
    assert ratios == pytest.approx([slow / time for time in fast], abs=0.05, rel=0.05)
    assert numbers("times as fast")[1:] == pytest.approx(ratios, abs=0.06)


MEASURED = {"first": [100.0, 98.0, 5_000.0, 102.0], "second": [26.0, 20.0, 22.0, 24.0, 21.0]}


@pytest.mark.parametrize(("rates", "ratio"), [(False, 4.6), (True, 0.2)])
def test_bars_are_medians_and_say_so(rates: bool, ratio: float) -> None:
    bars = load_example(SCRIPT.with_name("bars.py"))
    axes = importlib.import_module("matplotlib.figure").Figure().subplots()
    bars.draw_bars(axes, MEASURED, "ms", rates=rates)
    medians = [statistics.median(values) for values in MEASURED.values()]
    assert [bar.get_height() for bar in axes.patches] == medians == [101, 22]
    assert [text.get_text() for text in axes.texts] == ["101 ms", f"22 ms\n{ratio} × as fast"]


def test_an_outlier_does_not_make_the_bars_small() -> None:
    bars = load_example(SCRIPT.with_name("bars.py"))
    axes = importlib.import_module("matplotlib.figure").Figure().subplots()
    bars.draw_bars(axes, MEASURED, "ms")
    top = axes.get_ylim()[1]
    assert top == 1.5 * 101
    drawn = [(line.get_marker(), float(y)) for line in axes.lines for y in line.get_ydata()]
    assert len(drawn) == sum(map(len, MEASURED.values()))
    assert [marker for marker, y in drawn].count("^") == 1
    assert all(y < top for _, y in drawn)
