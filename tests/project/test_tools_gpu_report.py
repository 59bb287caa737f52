"""What `make gpu-check` makes of what its programs print, and of what was built beforehand."""

from __future__ import annotations

import itertools
import json
import platform
import runpy
import sys
from pathlib import Path

import pytest
import setuptools

from tools.gpu import prebuild, report, steps
from tools.gpu.jobs import Ended, Job
from tools.gpu.steps import Context

ROOT = Path(__file__).parents[2]


def test_rules_are_held_against_measurements() -> None:
    step = {"what": "step", "cell": "lstm", "H": 256, "B": 8, "pass": "forward", "cluster_size": 0}
    numbers = (
        {"what": "exchange", "cluster_size": 4, "H": 256, "blocks": 4, "ns": 200.0},
        {"what": "exchange", "cluster_size": 4, "H": 256, "blocks": 120, "ns": 500.0},
        {"what": "exchange", "cluster_size": 4, "H": 512, "blocks": 4, "ns": 900.0},
        {**step, "peer": "varlen_rnn full", "us": 0.9},
        {**step, "peer": "varlen_rnn full", "us": 9.0, "pass": "training"},
        {**step, "peer": "varlen_rnn full", "us": 9.0, "cluster_size": 16},
        {**step, "peer": "varlen_rnn full", "skipped": "no such team"},
        {**step, "peer": "nn packed", "us": 2.5},
    )
    assert [rule.line(numbers) for rule in report.RULES] == [
        "**BROKEN**: an exchange between 4 blocks at H = 256: at most 0.4 µs, got 0.5; "
        "revisit the exchange",
        "holds: a step of our LSTM at H = 256: at most 1.2 µs, got 0.9",
        "**BROKEN**: a step of nn.LSTM on a PackedSequence at H = 256: at least 3 µs, got 2.5; "
        "lower all claims",
    ]
    assert all(rule.line([]).startswith("not measured") for rule in report.RULES)


def test_a_backward_step_is_what_training_adds() -> None:
    step = {"what": "step", "cell": "lstm", "H": 256, "B": 8, "dtype": "bfloat16", "by": "graph"}
    numbers = []
    for peer, size, (forward, saving, both) in (
        ("varlen_rnn full", 0, (1.0, 1.5, 4.0)),
        ("varlen_rnn full", 8, (2.0, 2.5, 6.0)),
        ("nn packed", 0, (6.0, 6.5, 20.0)),
    ):
        passes = zip(
            ("forward", "forward of training", "training"), (forward, saving, both), strict=True
        )
        numbers += [
            {**step, "peer": peer, "cluster_size": size, "pass": which, "us": us}
            for which, us in passes
        ]
    rows = [line for line in report.step_times(numbers) if line.startswith("| 256")]
    assert rows == ["| 256, 8, forward | 1 | 2 | 6 |", "| 256, 8, backward | 2.5 | 3.5 | 13.5 |"]


def test_counters_are_read_among_other_output() -> None:
    found = report.counters((steps.CANNED / "ncu.txt").read_text())
    assert found == {
        "Duration": "312.45 us",
        "Elapsed Cycles": "547,012 cycle",
        "Executed Instructions": "5,817,344 inst",
        "Registers Per Thread": "214 register/thread",
    }
    assert report.counters("==ERROR== no permission\n") == {}


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context(tmp_path, None, tmp_path)


def ended(tmp_path: Path, name: str, text: str, status: int | None = 0, why: str = "") -> Ended:
    """As if a program had printed that."""
    log = tmp_path / f"{name}.log"
    log.write_text(text)
    return Ended(Job(name, [], 1), status, 0.5, log, why)


ERRORS, NO_ERRORS = "========= ERROR SUMMARY: 3 errors", "========= ERROR SUMMARY: 0 errors"
HAZARDS = "========= RACECHECK SUMMARY: 2 hazards displayed (2 errors, 0 warnings)"


@pytest.mark.parametrize(
    ("name", "text", "status", "word"),
    [
        ("memcheck-64", NO_ERRORS, 0, "passed"),
        ("memcheck-64", ERRORS, 9, "FAILED"),
        ("memcheck-64", ERRORS, 0, "FAILED"),
        ("memcheck-64", "", 0, "FAILED"),
        ("memcheck-64", NO_ERRORS, 1, "FAILED"),
        ("memcheck-64", "", None, "FAILED"),
        ("racecheck-64", HAZARDS, 0, "FOUND"),
    ],
)
def test_hazards_are_to_be_read_and_errors_are_failures(
    context: Context, tmp_path: Path, name: str, text: str, status: int | None, word: str
) -> None:
    assert steps.judge_memcheck(context, [ended(tmp_path, name, text, status)]).word == word


def batch(passed: bool, path: str = "persistent", **fields: object) -> str:
    case = {"what": "smoke", "cell": "lstm", "dtype": "tf32", "H": 256, "B": 8}
    return json.dumps({**case, "passed": passed, "path": path, **fields}) + "\n"


def test_a_smoke_that_is_wrong_is_named(context: Context, tmp_path: Path) -> None:
    good = ended(tmp_path, "a", batch(True) + batch(True, "any: no team fits"))
    wrong = ended(tmp_path, "b", batch(False, B=70, why="no end"), 1, "ended with status 1")
    hung = ended(tmp_path, "c", batch(True), None, "took more than 25 s")
    assert steps.judge_smoke(context, [good]).detail == (
        "2 of 2 batches agree, 1 of all on the persistent path"
    )
    verdict = steps.judge_smoke(context, [good, wrong])
    assert verdict.word == "FAILED"
    assert "not: lstm tf32 H 256 B 70 (no end)" in verdict.detail
    verdict = steps.judge_smoke(context, [good, hung])
    assert verdict.word == "FAILED"
    assert "c took more than 25 s" in verdict.detail
    assert steps.judge_smoke(context, [ended(tmp_path, "d", "")]).word == "FAILED"


@pytest.mark.parametrize(
    ("notes", "status", "word"),
    [
        ("begun a\npassed a\n", 0, "passed"),
        ("begun a\nskipped a\n", 0, "FAILED"),
        ("begun a\npassed a\nbegun b\nfailed b\n", 1, "FAILED"),
        ("begun a\npassed a\nbegun b\nlost b\n", 77, "FAILED"),
        ("begun a\npassed a\nbegun b\n", 1, "FAILED"),
        ("begun a\npassed a\nbegun b\n", None, "CUT OFF"),
        ("begun a\npassed a\nbegun b\nfailed b\nbegun c\n", None, "FAILED"),
        ("begun a\npassed a\nfailed a\n", 1, "FAILED"),
        ("begun a\npassed a\n", 3, "FAILED"),
        ("", None, "FAILED"),
    ],
)
def test_tests_are_judged_one_by_one(
    context: Context, tmp_path: Path, notes: str, status: int | None, word: str
) -> None:
    steps.done_file(context, 0).write_text(notes)
    assert steps.judge_tests(context, [ended(tmp_path, "tests-0", "", status)]).word == word


@pytest.mark.parametrize(
    ("verdicts", "word"),
    [
        (["a: good", "b: good"], "passed"),
        (["a: good", "b: these differ"], "FOUND"),
        (None, "passed"),
    ],
)
def test_what_the_self_check_found_is_reported(
    context: Context, tmp_path: Path, verdicts: list[str] | None, word: str
) -> None:
    line = json.dumps({"what": "self-check", "verdicts": verdicts})
    found = steps.judge_self_check(context, [ended(tmp_path, "self-check", line)])
    assert found.word == word
    assert ("b: these differ" in found.detail) == (word == "FOUND")


@pytest.fixture
def prebuilt(tmp_path: Path) -> Path:
    described = {
        "python": list(sys.version_info[:2]),
        "machine": platform.machine(),
        "arch": "80",
        "sources": prebuild.sources_hash(),
    }
    (tmp_path / "build.json").write_text(json.dumps(described))
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "capability", "why"),
    [
        ({}, (8, 0), None),
        ({}, (8, 6), None),
        ({}, (9, 0), "it is for sm_80"),
        ({"arch": "86"}, (8, 0), "it is for sm_86"),
        ({"python": [3, 1]}, (8, 0), "it is for Python [3, 1]"),
        ({"machine": "other"}, (8, 0), "it is for other"),
        ({"sources": "others"}, (8, 0), "the sources have changed"),
    ],
)
def test_what_was_built_has_to_fit(
    prebuilt: Path, changes: dict[str, object], capability: tuple[int, int], why: str | None
) -> None:
    described = json.loads((prebuilt / "build.json").read_text()) | changes
    (prebuilt / "build.json").write_text(json.dumps(described))
    found = prebuild.why_not(prebuilt, capability)
    assert found is None if why is None else found is not None and found.startswith(why)
    assert prebuild.why_not(prebuilt / "elsewhere", capability) == "nothing was built"


def test_changed_sources_are_other_sources(tmp_path: Path) -> None:
    hashes = set()
    for name, text in (("a.cu", "1"), ("a.cu", "2"), ("b.cu", "2"), ("b.md", "2")):
        (tmp_path / "csrc").mkdir(exist_ok=True)
        (tmp_path / "csrc" / name).write_text(text)
        hashes.add(prebuild.sources_hash(tmp_path))
    assert len(hashes) == 3  # what is read by people alone counts for nothing


def test_a_copy_that_git_does_not_know_says_where_it_comes_from(tmp_path: Path) -> None:
    assert prebuild.commit_of(tmp_path) == "unknown"
    here = prebuild.sources_hash(folders=prebuild.ALL_SOURCES)
    for commit, then, said in (
        ("abc", here, "abc"),
        ("abc", "others", "abc-dirty"),
        ("abc-dirty", "others", "abc-dirty"),
    ):
        described = {"commit": commit, "all_sources": then}
        (tmp_path / "build.json").write_text(json.dumps(described))
        assert prebuild.commit_of(tmp_path) == said


def write_program(path: Path, status: int = 0) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\nexit {status}\n")
    path.chmod(0o755)
    return str(path)


def test_a_python_that_does_not_run_is_passed_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_program(tmp_path / "path" / "python3.99", status=127)  # as pyenv's shims
    monkeypatch.setenv("PATH", str(tmp_path / "path"), prepend=":")
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    with pytest.raises(SystemExit, match=r"no python3\.99"):
        prebuild.find_python("python3.99")
    good = write_program(tmp_path / "pyenv" / "versions" / "3.99.1" / "bin" / "python3.99")
    assert prebuild.find_python("python3.99") == good


PLACES = ("own", "home/bin", "path")


@pytest.mark.parametrize("there", list(itertools.product([False, True], repeat=len(PLACES))))
def test_nvcc_is_the_one_that_setup_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: tuple[bool, ...]
) -> None:
    nvccs = [
        write_program(tmp_path / place / "nvcc") if is_there else None
        for place, is_there in zip(PLACES, there, strict=True)
    ]
    monkeypatch.setenv("CUDACXX", nvccs[0] or "")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setattr(setuptools, "setup", lambda **arguments: None)
    setup = runpy.run_path(str(ROOT / "setup.py"))
    expected = next(filter(None, nvccs), None)
    assert setup["find_nvcc"]() == expected
    if expected:
        assert prebuild.find_nvcc() == expected
    else:
        with pytest.raises(SystemExit, match="no nvcc found"):
            prebuild.find_nvcc()
