"""The comparison of public packages finds what it is there for; fake packages, no installs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import varlen_rnn
from benchmarks import measure
from benchmarks.packages import __main__ as command
from benchmarks.packages import check, differences, install, report
from benchmarks.packages.catalogue import CASES, Case
from benchmarks.packages.check import Example

BUDGET = measure.Budget(seconds=0.0, min_rounds=2, max_rounds=2)


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 4)
        self.rnn = nn.LSTM(4, 5, batch_first=True, bidirectional=True)
        self.top = nn.GRU(10, 6, batch_first=True)

    def forward(self, x: Tensor) -> dict[str, Any]:
        out, states = self.rnn(self.embed(x))
        return {"states": states, "out": self.top(out)[0]}


def tagger(**options: Any) -> Example:
    x = torch.randn(2, 7, 3)
    return Example(Tagger(), lambda model: model(x), **options)


def planted(plant: Callable[[Tagger], object], **options: Any) -> Callable[[], Example]:
    """An example whose conversion does something wrong, too."""

    def convert(model: Any) -> nn.Module:
        varlen_rnn.convert(model)
        plant(model)
        return model

    return lambda: tagger(convert=convert, **options)


def wrong_weight(model: Tagger) -> None:
    with torch.no_grad():
        model.top.weight_ih_l0[-1, 0] += 1e-2


def wrong_gradient(model: Tagger) -> None:
    model.top.weight_hh_l0.register_hook(lambda gradient: gradient * 1.001)


def frozen(model: Tagger) -> None:
    model.embed.weight.requires_grad_(False)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "TURN_SECONDS", 1e-4)
    monkeypatch.setattr(measure, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(measure, "SETTLE_SECONDS", 0.0)


def test_a_model_is_equal_after_its_conversion(quick: None) -> None:
    record = check.check(tagger, BUDGET)
    assert record["model"] == "Tagger"
    assert record["layers"] == {"LSTM": 1, "GRU": 1}
    assert record["left"] == []
    assert "failed" not in record
    assert list(record["differences"]) == list(check.TOLERANCES)
    assert record["differences"]["float64"] < 1e-14
    for mode in ("inference", "training"):
        assert [figures["rounds"] for figures in record[mode].values()] == [2, 2]
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize(
    ("plant", "failed"), [(wrong_weight, "outputs"), (wrong_gradient, "gradients")]
)
def test_a_difference_is_a_failure(
    quick: None, plant: Callable[[Tagger], None], failed: str
) -> None:
    record = check.check(planted(plant), BUDGET)
    assert record["differences"][failed] > check.TOLERANCES[failed]
    assert "differ by" in record["failed"]


def test_a_gradient_that_is_wrong_in_one_small_layer_is_a_failure(quick: None) -> None:
    def build() -> Example:
        example = planted(wrong_gradient)()
        x = torch.randn(2, 7, 3)

        def run(model: Tagger) -> Any:
            out = model(x)
            return out["out"] * 1e-9, out["states"]

        return Example(example.model, run, example.convert)

    record = check.check(build, BUDGET)
    assert record["differences"]["gradients"] < check.TOLERANCES["gradients"]
    assert record["failed"].startswith("float64 differ by")


@pytest.mark.parametrize("draws", [1, 2, 3])
def test_a_sign_that_turns_in_one_draw_is_no_failure(draws: int, quick: None) -> None:
    """A wrong layer is wrong in every one."""

    def build() -> Example:
        return planted(wrong_gradient)() if torch.initial_seed() < draws else tagger()

    record = check.check(build, BUDGET)
    assert ("failed" in record) == (draws == check.SEEDS)
    assert record["seed"] == min(draws, check.SEEDS - 1)


def test_nan_is_a_failure(quick: None) -> None:
    def plant(model: Tagger) -> None:
        model.top.register_forward_hook(lambda module, args, out: (out[0] * torch.nan, out[1]))

    record = check.check(planted(plant, inference_only=True), BUDGET)
    assert record["failed"].startswith("outputs differ by nan")


def test_parameters_and_states_must_be_the_same(quick: None) -> None:
    with pytest.raises(ValueError, match=r"parameters must .* got \['embed.weight'\]"):
        check.check(planted(frozen), BUDGET)
    with pytest.raises(ValueError, match=r"state_dict must .* got \['extra'\]"):
        check.check(
            planted(lambda model: model.register_buffer("extra", torch.zeros(1))),
            BUDGET,
        )


def test_something_must_be_converted(quick: None) -> None:
    with pytest.raises(ValueError, match="a layer at least must be converted, got 2 left"):
        check.check(lambda: tagger(convert=lambda model: model), BUDGET)


def test_a_layer_that_is_left_is_named(quick: None) -> None:
    def convert(model: Any) -> nn.Module:
        varlen_rnn.convert(model.rnn)
        return model

    record = check.check(lambda: tagger(convert=convert), BUDGET)
    assert (record["layers"], record["left"]) == ({"LSTM": 1}, ["top"])


def test_ours_may_be_called_in_another_way(quick: None) -> None:
    record = check.check(lambda: tagger(run_ours=lambda model: model(torch.ones(2, 7, 3))), BUDGET)
    assert record["differences"]["outputs"] > 1e-3
    assert record["differences"]["float64"] > 1e-3


def test_inference_alone_has_outputs_alone(quick: None) -> None:
    record = check.check(lambda: tagger(inference_only=True), BUDGET)
    assert list(record["differences"]) == ["outputs"]
    assert "training" not in record


def test_what_fails_with_torchs_layers_is_a_row() -> None:
    def missing() -> Example:
        import no_such_package  # noqa: F401

        raise AssertionError

    assert check.check(missing) == {
        "skipped": "ModuleNotFoundError: No module named 'no_such_package'"
    }
    assert check.check(lambda: Example(Tagger(), lambda model: model.absent)) == {
        "skipped": "AttributeError: 'Tagger' object has no attribute 'absent'"
    }


def test_differences_are_relative_to_the_largest_value() -> None:
    small, large = torch.tensor([1e-3, 0.0]), torch.tensor([10.0])
    expected = {"a.weight": small, "b.weight": large}
    got = {"a.weight": small + 1e-4, "b.weight": large}
    assert differences.of_parameters(got, expected) == pytest.approx(1e-5)
    assert differences.of_layers(got, expected) == pytest.approx(0.1)
    assert differences.of_outputs([small, (large,)], {"x": small, "y": large}) == 0
    with pytest.raises(ValueError, match=r"tensors must be .*\[2\]"):
        differences.difference([small[:1]], [small])


ORIGIN = {"cpu": "a CPU", "cores": 2, "isa": "avx2", "torch": "2.13.0", "commit": "c", "date": "d"}
ORIGIN |= {"device_name": None, "onnxruntime": None}
NOW = {"median_s": 0.002, "q1_s": 0.002, "q3_s": 0.0025}
BEFORE = {"median_s": 0.006, "q1_s": 0.006, "q3_s": 0.006}
FOUND = {
    "model": "Tagger",
    "layers": {"LSTM": 2},
    "left": [],
    "threads": 2,
    "differences": {"outputs": 1e-7, "gradients": 2e-7, "step": 3e-7, "float64": None},
    "inference": {"varlen_rnn": NOW, "nn": BEFORE},
    "training": {"varlen_rnn": NOW, "nn": NOW},
}


def line(package: str, *, recipe: bool = False, **found: Any) -> dict[str, Any]:
    about = {"name": f"a use of {package}", "package": package, "version": "1.0"}
    return about | {"recipe": recipe} | found | ORIGIN


def test_the_tables_have_a_row_each() -> None:
    text = report.markdown(
        [
            line("one", **FOUND),
            line("two", skipped="ModuleNotFoundError: no | two") | {"version": None},
            line("three", recipe=True, **FOUND, failed="step differ by 1.0e-03"),
            line("four", recipe=True, failed="RuntimeError: no"),
        ]
    )
    packages, recipes = text.split("### Recipes")
    ending = "6 → 2 | 3.00 × | 2 → 2 | 1.00 × | 25% |"
    assert f"| one 1.0 | Tagger | 2 LSTM | 1.0e-07 | 2.0e-07 | 3.0e-07 |  | {ending}" in packages
    assert "| two | **skipped**: ModuleNotFoundError: no \\| two |" in packages
    assert "1 compared, 0 failed. Times as fast, geometric mean: 3.00 in inference" in packages
    assert "| a use of three (three 1.0) | Tagger; **failed**: step differ" in recipes
    assert "| a use of four (four 1.0) | **failed**: RuntimeError: no |" in recipes
    assert "1 compared, 2 failed" in recipes
    assert "a CPU, 2 cores, avx2, torch 2.13.0, ONNX Runtime not installed, commit c, d" in recipes
    rows = [row for row in text.splitlines() if row.startswith("|")]
    assert {row.replace("\\|", "").count("|") for row in rows} == {len(report.HEADER) + 1}


@pytest.mark.parametrize(
    ("found", "status"),
    [
        ([FOUND, {"skipped": "not there"}], 0),
        ([FOUND, {"failed": "RuntimeError: no"}], 1),
        ([FOUND, FOUND | {"failed": "step differ by 1.0e-03"}], 1),
        ([{"skipped": "not there"}, {"skipped": "not there"}], 1),
    ],
    ids=["skipped", "raised", "differs", "nothing compared"],
)
def test_the_command_writes_lines_and_tables(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    found: list[Any],
    status: int,
) -> None:
    cases = {"one": Case("torch", tagger), "no": Case("torch", tagger)}
    cases["other"] = Case("no-such-package", tagger, recipe=True)
    monkeypatch.setattr(command, "CASES", cases)
    by_name = dict(zip(("one", "other"), found, strict=True))
    monkeypatch.setattr(command, "run", lambda name, quick: by_name[name])
    output = tmp_path / "packages.jsonl"
    assert command.main(["--only", "o*", "--output", str(output)]) == status
    lines = [json.loads(text) for text in output.read_text().splitlines()]
    assert [line["name"] for line in lines] == ["one", "other"]
    assert [line["version"] for line in lines] == [torch.__version__, None]
    assert lines[0]["cpu"]
    assert "### Recipes" in capsys.readouterr().out


def test_each_case_has_a_process(capsys: pytest.CaptureFixture[str]) -> None:
    write = "import sys, pathlib; pathlib.Path(sys.argv[4]).write_text"
    code = f'{write}(\'{{"model": "%s"}}\' % sys.argv)'
    record = command.run("a", quick=True, one=(sys.executable, "-c", code))
    assert record["model"].startswith("['-c', '--only', 'a', '--record', ")
    assert record["model"].endswith("'--quick']")
    code = f"{write}('{{}}'); sys.exit('something\\nValueError: wrong')"
    assert command.run("a", quick=False, one=(sys.executable, "-c", code)) == {
        "failed": "ValueError: wrong"
    }
    assert "something" in capsys.readouterr().out


def test_a_case_that_is_not_there_is_skipped_in_its_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def missing() -> Example:
        raise ModuleNotFoundError("no such package")

    monkeypatch.setattr(command, "CASES", {"a": Case("torch", missing)})
    record = tmp_path / "record.json"
    assert command.main(["--only", "a", "--record", str(record), "--quick"]) == 0
    said = {"skipped": "ModuleNotFoundError: no such package"}
    assert json.loads(record.read_text()) == said


def test_every_case_has_a_pinned_package() -> None:
    text = (Path(install.__file__).parent / "requirements.txt").read_text()
    pinned = dict(line.split("==") for line in install.requirements(text))
    assert {case.package for case in CASES.values()} <= pinned.keys()
    assert "torch" not in pinned
    assert sum(not case.recipe for case in CASES.values()) >= 12


def test_what_can_be_installed_is(tmp_path: Path) -> None:
    log = tmp_path / "log"
    code = (
        f"import sys; open({str(log)!r}, 'a').write(str(sys.argv[2:])); sys.exit('b' in sys.argv)"
    )
    pip = (sys.executable, "-c", code)
    assert install.install(["a", "b", "c"], pip) == ["b"]
    assert log.read_text() == "['a', 'b', 'c']['a']['b']['c']"
    assert install.install(["a", "c"], pip) == []
    assert install.requirements("# all\na==1  # why\n\nb==2\n") == ["a==1", "b==2"]
