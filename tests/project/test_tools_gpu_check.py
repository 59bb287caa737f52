"""What of `make gpu-check` can be tested without a GPU: its parts, its table, and its loops."""

from __future__ import annotations

import itertools
import json
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import setuptools
import torch
from grid_lines import sample

ROOT = Path(__file__).parents[2]

pytest.importorskip("tqdm", reason="the benchmarks show their progress with tqdm")
pytest.importorskip("matplotlib", reason="the benchmarks plot with matplotlib")

from benchmarks import grid, measure, run  # noqa: E402
from tools import gpu_check, gpu_report, steps  # noqa: E402

DEVICE = {"name": "Some GPU 80GB", "architecture": "90", "torch": "2.11.0"}


def test_the_tests_of_the_device_exist() -> None:
    assert all((ROOT / test).is_file() for test in (*run.CUDA_TESTS, *gpu_check.DEVICE_TESTS))


def test_steps_are_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "TURN_SECONDS", 1e-4)
    monkeypatch.setattr(measure, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(steps, "BUDGET", measure.Budget(0.0, 2, 2))
    lengths = (3, 6)
    found = list(steps.costs("cpu", measure.host_clock, lengths=lengths, size=8, dtype="float32"))
    assert [(r["cell"], r["peer"]) for r in found] == [
        (cell, peer) for cell in ("lstm", "gru") for peer in grid.PEERS
    ]
    assert all({"what", "H", "B", "dtype", "us"} < r.keys() for r in found)


CALIBRATION = (
    {"what": "exchange", "cluster_size": 4, "blocks": 4, "ns": 200.0},
    {"what": "exchange", "cluster_size": 4, "blocks": 120, "ns": 500.0},
    {"what": "exchange", "cluster_size": 8, "blocks": 8, "ns": 900.0},
    {"what": "step", "peer": "varlen_rnn packed", "cell": "lstm", "us": 0.9},
    {"what": "step", "peer": "nn packed", "cell": "lstm", "us": 2.5},
)


def test_rules_are_held_against_measurements() -> None:
    lines = [rule.line(CALIBRATION) for rule in gpu_report.RULES]
    assert lines == [
        "BROKEN        an exchange between 4 blocks: 0.5 µs, at most 0.4 µs; revisit the exchange",
        "holds         a step of our LSTM at H = 256: 0.9 µs, at most 1.2 µs",
        "BROKEN        a step of nn.LSTM on a PackedSequence: 2.5 µs, at least 3 µs; "
        "lower all claims",
    ]
    assert all(rule.line([]).startswith("not measured") for rule in gpu_report.RULES)


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that is not there, and a copy of no tree."""
    monkeypatch.setattr(gpu_check, "read_device", lambda: (DEVICE, []))
    monkeypatch.setattr(gpu_check, "TREE", tmp_path / "tree")
    monkeypatch.setattr(gpu_check, "copy_tree", lambda: None)


def set_parts(monkeypatch: pytest.MonkeyPatch, **parts: Callable[[gpu_check.Check], str]) -> None:
    for name, part in parts.items():
        monkeypatch.setitem(gpu_check.PARTS, name, part)


def test_a_part_that_fails_stops_no_other(
    device: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails(check: gpu_check.Check) -> str:
        return check.run(sys.executable, "-c", "print('three failed'); raise SystemExit(3)")

    def hangs(check: gpu_check.Check) -> str:
        return check.run(sys.executable, "-c", "import time; time.sleep(60)", seconds=0.5)

    def breaks(check: gpu_check.Check) -> str:
        raise KeyError("what")

    def calibrates(check: gpu_check.Check) -> str:
        lines = "".join(json.dumps(line) + "\n" for line in CALIBRATION)
        check.file("-calibration.jsonl").write_text(lines)
        return "5 measurements"

    def times(check: gpu_check.Check) -> str:
        assert not check.passed("tests")
        check.file(".jsonl").write_text("".join(json.dumps(line) + "\n" for line in sample()))
        return "4 workloads"

    set_parts(monkeypatch, build=lambda check: check.run(sys.executable, "-c", "print('built')"))
    set_parts(monkeypatch, wrappers=breaks, tests=fails, sanitizer=hangs)
    set_parts(monkeypatch, calibrate=calibrates, bench=times)
    assert gpu_check.main(["--output", str(tmp_path / "out")]) == 1
    text = capsys.readouterr().out
    verdicts = [line.split()[:2] for line in text.splitlines() if " s  " in line]
    assert verdicts == [
        ["build", "passed"],
        ["wrappers", "FAILED"],
        ["tests", "FAILED"],
        ["calibrate", "passed"],
        ["sanitizer", "FAILED"],
        ["bench", "passed"],
    ]
    assert "ended with status 3: three failed" in text
    assert "took more than" in text
    assert "KeyError('what')" in text
    assert "BROKEN        an exchange between 4 blocks: 0.5 µs" in text
    assert "bfloat16, inference, uniform: 2 of 3 reach their goal" in text
    assert "float16, inference, full: 1 of 1 reach their goal" in text
    log = (tmp_path / "out" / "some-gpu-80gb-check.log").read_text()
    assert "three failed" in log
    assert "gpu-check on Some GPU 80GB, torch 2.11.0, commit" in log


def test_parts_can_be_chosen(device: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    for name in gpu_check.PARTS:
        set_parts(monkeypatch, **{name: lambda check, name=name: ran.append(name) or ""})
    options = ["--output", str(tmp_path / "out"), "--parts", "tests,build"]
    assert gpu_check.main(options) == 0
    assert ran == ["build", "tests"]
    with pytest.raises(SystemExit):
        gpu_check.main(["--parts", "nothing"])


@pytest.fixture
def built(device: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the copy had been built."""
    monkeypatch.setattr(gpu_check, "require_build", lambda check: "compiled for sm_90")


@pytest.mark.parametrize(
    ("part", "limit", "said"),
    [
        ("build", -1, "no time left for python"),
        ("build", 3, "no time left for python"),
        # The tables want 15 of these seconds.
        ("bench", 18, "no time left for a workload and its tables"),
    ],
)
def test_time_that_is_up_is_said(
    built: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    part: str,
    limit: int,
    said: str,
) -> None:
    options = ["--output", str(tmp_path / "out"), "--parts", part, "--limit", str(limit)]
    assert gpu_check.main(options) == 1
    assert f"FAILED      0 s  {said}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("count", "line"),
    [(4, "bench      passed      0 s  4 workloads"), (0, "FAILED      0 s  no workload was timed")],
)
def test_a_bench_that_times_nothing_has_failed(
    built: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], count: int, line: str
) -> None:
    package = gpu_check.TREE / "benchmarks"
    package.mkdir(parents=True)
    lines = "".join(json.dumps(record) + "\n" for record in sample()[:count])
    write = f"open(sys.argv[sys.argv.index('--output') + 1], 'w').write({lines!r})"
    (package / "run.py").write_text(f"import sys; {write}")
    (package / "report.py").touch()
    options = ["--output", str(tmp_path / "out"), "--parts", "bench"]
    assert gpu_check.main(options) == (0 if count else 1)
    assert line in capsys.readouterr().out


# As the real one: an error changes the status of a program that went well only if asked to.
PRETEND_SANITIZER = """#!/bin/sh
case "$2" in
  racecheck) found={hazards}; what="RACECHECK SUMMARY: {hazards} hazards displayed" ;;
  *) found={errors}; what="ERROR SUMMARY: {errors} errors" ;;
esac
{says} "========= $what"
case "$*" in *--error-exitcode*) test $found = 0 || exit 9 ;; esac
"""


@pytest.mark.parametrize(
    ("hazards", "errors", "says", "verdict", "status"),
    [
        (0, 0, "echo", "passed", 0),
        (2, 0, "echo", "FOUND", 0),
        (0, 1, "echo", "FAILED", 1),
        (2, 1, "echo", "FAILED", 1),
        (0, 0, ":", "FAILED", 1),
    ],
    ids=["clean", "hazards", "errors", "both", "nothing-said"],
)
def test_hazards_are_to_be_read_and_errors_are_failures(
    built: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    hazards: int,
    errors: int,
    says: str,
    verdict: str,
    status: int,
) -> None:
    script = tmp_path / "compute-sanitizer"
    script.write_text(PRETEND_SANITIZER.format(hazards=hazards, errors=errors, says=says))
    script.chmod(0o755)
    monkeypatch.setattr(gpu_check, "SANITIZER", str(script))
    options = ["--output", str(tmp_path / "out"), "--parts", "sanitizer"]
    assert gpu_check.main(options) == status
    (line,) = (x for x in capsys.readouterr().out.splitlines() if " s  " in x)
    assert line.split()[:2] == ["sanitizer", verdict]
    read = "racecheck: 2 hazards displayed, to be read in some-gpu-80gb-check.log"
    assert (read in line) == (hazards > 0)
    assert line.count("no summary") == (0 if says == "echo" else 3)


@pytest.mark.parametrize(
    ("versions", "lacking", "there"),
    [
        ({"torch": "2.10.0a0", "setuptools": "76.1"}, "setuptools 77.0", "torch 2.10"),
        ({"torch": "2.9.1", "setuptools": "80"}, "torch 2.10", "setuptools 77.0"),
    ],
)
def test_a_package_that_is_too_old_is_lacking(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    versions: dict[str, str],
    lacking: str,
    there: str,
) -> None:
    monkeypatch.setattr(gpu_check, "version", versions.__getitem__)
    assert gpu_check.main([]) == 2
    (line,) = capsys.readouterr().out.splitlines()
    assert f"{lacking} or newer (it has {versions[lacking.split()[0]]})" in line
    assert there not in line


PRETEND_NVCC = """#!/bin/sh
for output; do :; done
echo "#!/bin/sh" > "$output"
chmod +x "$output"
"""


def write_nvcc(folder: Path) -> str:
    """An nvcc that "compiles" whatever it is given to a program that does nothing."""
    folder.mkdir(parents=True)
    nvcc = folder / "nvcc"
    nvcc.write_text(PRETEND_NVCC)
    nvcc.chmod(0o755)
    return str(nvcc)


PLACES = ("own", "home/bin", "path")


@pytest.mark.parametrize("there", list(itertools.product([False, True], repeat=len(PLACES))))
def test_nvcc_is_the_one_that_setup_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: tuple[bool, ...]
) -> None:
    nvccs = [write_nvcc(tmp_path / p) if t else None for p, t in zip(PLACES, there, strict=True)]
    monkeypatch.setenv("CUDACXX", nvccs[0] or "")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setattr(setuptools, "setup", lambda **arguments: None)
    setup = runpy.run_path(str(ROOT / "setup.py"))
    assert gpu_check.find_nvcc() == setup["find_nvcc"]() == next(filter(None, nvccs), None)


def test_programs_are_compiled_by_that_nvcc(
    device: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    nvcc = write_nvcc(tmp_path / "home" / "bin")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("CUDACXX", raising=False)
    options = ["--output", str(tmp_path / "out"), "--parts", "wrappers"]
    assert gpu_check.main(options) == 0, capsys.readouterr().out
    assert f"$ {nvcc} -std=c++17" in (tmp_path / "out" / "some-gpu-80gb-check.log").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_says_so() -> None:
    for command in ([sys.executable], [sys.executable, "-S"]):
        done = subprocess.run(
            [*command, "-m", "tools.gpu_check"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2, done.stderr
        assert done.stdout.startswith("gpu-check cannot run on this machine, which lacks ")
        assert "torch" in done.stdout
        assert len(done.stdout.splitlines()) == 1
        assert done.stderr == ""


def test_the_copy_keeps_what_was_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = tmp_path / "tree"
    monkeypatch.setattr(gpu_check, "TREE", tree)
    (tree / "varlen_rnn").mkdir(parents=True)
    (tree / "varlen_rnn" / "_C.so").touch()
    (tree / "varlen_rnn" / "gone.py").touch()
    gpu_check.copy_tree()
    kept = {path.name for path in (tree / "varlen_rnn").iterdir()}
    assert {"_C.so", "__init__.py"} <= kept
    assert "gone.py" not in kept
    assert [path.name for path in (tree / "varlen_rnn").glob("*.so")] == ["_C.so"]
    assert (tree / "setup.py").is_file()


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to compile the emulator with")
def test_calibration_loops_are_right_in_the_emulator(tmp_path: Path) -> None:
    program = tmp_path / "calibrate"
    options = ("-std=c++17", "-O1", "-x", "c++", "-DVARLEN_RNN_EMULATE", "-Wall", "-Wextra")
    source = ("-I", ROOT / "csrc", ROOT / "benchmarks" / "cuda" / "calibrate.cu")
    subprocess.run(["g++", *options, *source, "-o", program], check=True)
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("all loops compute what they should\n")
