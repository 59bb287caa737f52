"""What of a GPU's benchmarks can be tested without one: the grid, tables, parts, and loops."""

from __future__ import annotations

import itertools
import json
import runpy
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import setuptools
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

pytest.importorskip("tqdm", reason="the benchmarks show their progress with tqdm")
pytest.importorskip("matplotlib", reason="the benchmarks plot with matplotlib")

from benchmarks import gpu_check, gpu_report, grid, measure, report, run, steps  # noqa: E402
from benchmarks.workloads import Workload  # noqa: E402

DEVICE = {"name": "Some GPU 80GB", "architecture": "90", "torch": "2.11.0"}


def test_the_grid_is_whole() -> None:
    cases = grid.workloads()
    assert len({case.name for case in cases}) == len(cases)
    ragged = [case for case in cases if case.distribution == "uniform"]
    sizes = Counter((c.hidden_size, c.rows, c.steps) for c in ragged)
    assert len(sizes) == 6 * 5 * 3
    assert set(sizes.values()) == {2 * 2 * 2}  # cells, modes, dtypes
    full = [case for case in cases if case.distribution == "full"]
    assert full == cases[: len(full)]
    assert {(c.cell, c.dtype) for c in full} == {("lstm", "float16")}
    assert all(c.hidden_size % 128 == 0 and c.rows % 8 == 0 for c in full)
    quick = grid.workloads(quick=True)
    assert {case.name for case in quick} < {case.name for case in cases}


def test_tf32_is_float32_with_another_name() -> None:
    case = Workload("grid", "lstm", "inference", 4, 6, 3, 5, dtype="tf32")
    assert case.torch_dtype == case.batch().x.dtype == torch.float32
    assert "-tf32-" in case.name


def record(
    rows: int, steps: int, size: int, times: tuple[float, ...], **changes: object
) -> dict[str, Any]:
    """A line of the grid as a run might write it; microseconds a step of each peer."""
    peers = {
        name: {"median_s": s, "q1_s": 0.95 * s, "q3_s": 1.05 * s}
        for name, s in zip(grid.PEERS, (t * steps / 1e6 for t in times), strict=True)
    }
    origin = {"commit": "c", "date": "d", "isa": "i", "torch": "t", "cpu": "p", "cores": 1}
    device = {"device": "cuda", "device_name": "Some GPU", "cuda": "13.0", "cudnn": 91300}
    return {
        "name": f"grid/{rows}-{steps}-{size}-{changes}",
        "group": "grid",
        **{"cell": "lstm", "mode": "inference", "dtype": "bfloat16", "distribution": "uniform"},
        **{"B": rows, "T": steps, "I": size, "H": size, "valid_share": 0.5, "threads": 1},
        **{**origin, **device, "onnxruntime": None, "tests": "passed", "peers": peers},
        **changes,
    }


def sample() -> list[dict[str, Any]]:
    return [
        record(8, 200, 128, (1.1, 1.0, 4.0, 5.0)),
        record(32, 200, 512, (2.2, 2.0, 5.0, 5.0)),
        record(8, 50, 128, (1.1, 1.0, 4.0, 5.0)),
        record(8, 200, 128, (1.0, 1.1, 9.0, 1.5), dtype="float16", distribution="full"),
    ]


@pytest.mark.parametrize(
    ("rows", "size", "distribution", "goal"),
    [
        (128, 512, "uniform", 3.0),
        (512, 512, "uniform", 1.0),
        (512, 1024, "uniform", 1.5),
        (1, 2048, "uniform", 1.0),
        (32, 256, "full", 1.0),
    ],
)
def test_goals(rows: int, size: int, distribution: str, goal: float) -> None:
    line = record(rows, 200, size, (1.0, 1.0, 4.0, 5.0), distribution=distribution)
    assert grid.goal(line) == goal


def test_speed_is_that_of_the_same_form() -> None:
    packed, *_, full = sample()
    assert grid.speed(packed) == pytest.approx(4.0)
    assert grid.speed(full) == pytest.approx(1.5)
    assert grid.verdict(sample()) == (
        "3 of 4 reach their goal; farthest from it: 2.50 × nn packed for a goal of 3 × "
        "(LSTM inference bfloat16, H 512, B 32, T 200)"
    )


def test_tables_of_the_grid(tmp_path: Path) -> None:
    results = tmp_path / "gpu.jsonl"
    results.write_text("".join(json.dumps(line) + "\n" for line in sample()))
    assert report.main([str(results)]) == 0
    text = (tmp_path / "gpu.md").read_text()
    assert "### LSTM, inference: µs a step of the longest row (cuda, bfloat16)" in text
    assert "| 128, 8, 200 | 50% | 1.1 | 1 | 4 | 5 | 4.00 × nn packed | 3 × | yes | 10% |" in text
    assert "| 512, 32, 200 | 50% | 2.2 | 2 | 5 | 5 | 2.50 × nn packed | 3 × | no | 10% |" in text
    assert "| 128, 8, 200 | 50% | 1 | 1.1 | 9 | 1.5 | 1.50 × nn padded | 1 × | yes | 10% |" in text
    assert "CUDA 13.0, cuDNN 91300" in text
    assert not results.with_suffix(".png").exists()


@pytest.mark.parametrize("option", [["--grid"], ["--dtype", "tf32"]])
def test_what_a_cpu_cannot_run(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.main(option)
    assert "must go with --device cuda, got cpu" in capsys.readouterr().err


def test_a_workload_too_large_is_left_out(
    tmp_path: Path,
    restore_threads: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run_workload(*args: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(run, "run_workload", run_workload)
    case, output = Workload("grid", "lstm", "inference", 4, 6, 3, 5), tmp_path / "x.jsonl"
    assert run.main(["--skip-tests", "--output", str(output)], [case]) == 0
    assert output.read_text() == ""
    assert f"memory is too small: {case.name}" in capsys.readouterr().out


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
            [*command, "-m", "benchmarks.gpu_check"],
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
