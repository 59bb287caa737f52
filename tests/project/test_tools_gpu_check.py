"""What of `make gpu-check` can be tested without a GPU: that it goes on, and what it says."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from helpers import child_environment

from tools.gpu import check, prebuild, pytests, steps
from tools.gpu.jobs import Ended, Job, Runner
from tools.gpu.steps import Context, Step, Verdict

ROOT = Path(__file__).parents[2]
SLEEP = "import time; time.sleep(60)"


def python(code: str) -> list[str]:
    return [sys.executable, "-S", "-c", code]


def lines(*records: dict[str, object]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[Runner]:
    found = Runner(tmp_path, tmp_path, dict(os.environ))
    yield found
    found.kill_all()


def run_jobs(
    runner: Runner, *jobs: Job, at_a_time: int = 4, seconds: float = 30
) -> dict[str, Ended]:
    ended = runner.run(jobs, at_a_time, time.monotonic() + seconds)
    return {e.job.name: e for e in ended}


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_programs_end_with_their_time(runner: Runner, tmp_path: Path) -> None:
    child = f"import subprocess, sys; p = subprocess.Popen({python(SLEEP)}); print(p.pid, flush=1);"
    ended = run_jobs(
        runner,
        Job("good", python("print('{\"a\": 1}'); print('{\"cut of')"), 20),
        Job("bad", python("print('three failed'); raise SystemExit(3)"), 20),
        Job("hangs", python(child + SLEEP), 2),
        Job("absent", [tmp_path / "nothing"], 20),
    )
    assert {name: (e.passed, e.why) for name, e in ended.items()} == {
        "good": (True, ""),
        "bad": (False, "ended with status 3"),
        "hangs": (False, "took more than 2 s"),
        "absent": (False, "ended with status 1"),
    }
    assert ended["good"].records == [{"a": 1}]
    assert ended["bad"].last_line == "three failed"
    assert not is_running(int(ended["hangs"].last_line))


def test_no_program_begins_when_the_time_is_up(runner: Runner) -> None:
    jobs = [Job(name, python(SLEEP), 60) for name in ("first", "second")]
    ended = run_jobs(runner, *jobs, at_a_time=1, seconds=0.5)
    assert ended["first"].why.startswith("took more than")
    assert ended["first"].seconds < 20
    assert ended["second"].why == "no time left"


def pretend_steps(*programs: tuple[str, str]) -> dict[str, Step]:
    """Steps that run these programs."""

    def step(name: str, code: str) -> Step:
        return Step(name, 3, 1, lambda context: [Job(name, python(code), 3)])

    return {name: step(name, code) for name, code in programs}


@pytest.fixture
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def breaks(context: Context, ended: Sequence[Ended]) -> Verdict:
    raise KeyError("what")


def run_check(tmp_path: Path, *options: str) -> tuple[int, str]:
    """The status, and the page."""
    out = tmp_path / "out"
    status = check.main(
        ["--dry-run", "--output", str(out), "--work", str(tmp_path / "work"), *options]
    )
    (page,) = out.glob("*-check.md")
    return status, page.read_text()


def test_a_step_that_fails_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, handlers: None
) -> None:
    number = json.dumps({"what": "exchange", "cluster_size": 4, "H": 256, "ns": 500.0})
    monkeypatch.setattr(check, "copy_tree", lambda tree: (tree / "varlen_rnn").mkdir(parents=True))
    chosen = pretend_steps(
        ("fails", "print('three failed'); raise SystemExit(3)"),
        ("hangs", SLEEP),
        ("breaks", ""),
        ("measures", f"print('{number}')"),
    )
    chosen["breaks"] = Step("breaks", 3, 1, chosen["breaks"].jobs, breaks)
    monkeypatch.setattr(check, "BY_NAME", chosen)
    monkeypatch.setattr(check, "STEPS", tuple(chosen.values()))
    status, page = run_check(tmp_path, "--steps", ",".join(chosen))
    assert status == 1
    assert [row.split(" | ")[1] for row in page.splitlines() if row.startswith("| ")][2:6] == [
        *("FAILED", "FAILED", "FAILED", "passed")
    ]
    assert "fails ended with status 3: three failed" in page
    assert "hangs took more than 3 s" in page
    assert "KeyError('what')" in page
    assert "**BROKEN**: an exchange between 4 blocks at H = 256" in page
    assert "## The end of fails.log" in page
    (archive,) = (tmp_path / "out").glob("*-logs.zip")
    with zipfile.ZipFile(archive) as logs:
        assert b"three failed" in logs.read("fails.log")
        assert len(logs.namelist()) == 4
    (numbers,) = (tmp_path / "out").glob("*.jsonl")
    assert json.loads(numbers.read_text())["step"] == "measures"
    assert len(list((tmp_path / "out").iterdir())) == 3


def test_steps_can_be_chosen_and_have_to_exist(tmp_path: Path, handlers: None) -> None:
    with pytest.raises(SystemExit):
        check.main(["--dry-run", "--steps", "nothing"])
    status, page = run_check(tmp_path, "--steps", "clusters", "--limit", "-1")
    assert status == 1
    assert "| clusters | FAILED | 0 | no time left |" in page
    assert "smoke" not in page


STOPPED = f"""
import sys
from tools.gpu import check
from tools.gpu.jobs import Job
from tools.gpu.steps import Step
code = "import os; print(os.getpid(), flush=True); {SLEEP}"
jobs = lambda context: [Job("hangs", [sys.executable, "-c", code], 60)]
check.STEPS = tuple(Step(name, 60, 1, jobs) for name in ("hangs", "never"))
check.BY_NAME = {{step.name: step for step in check.STEPS}}
check.copy_tree = lambda tree: (tree / "varlen_rnn").mkdir(parents=True)
sys.exit(check.main(sys.argv[1:]))
"""


def test_whoever_stops_it_gets_a_page(tmp_path: Path) -> None:
    options = ["--dry-run", "--steps", "hangs,never", "--output", tmp_path, "--work"]
    with subprocess.Popen(
        [sys.executable, "-c", STOPPED, *map(str, options), str(tmp_path / "work")], cwd=ROOT
    ) as process:
        log = tmp_path / "work" / "logs" / "hangs.log"
        deadline = time.monotonic() + 30
        while not (log.exists() and log.read_text().count("\n") == 2):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.terminate()
        assert process.wait(timeout=20) == 128 + signal.SIGTERM
    (page,) = tmp_path.glob("*-check.md")
    assert "| hangs | FAILED |" in page.read_text()
    assert "stopped from outside" in page.read_text()
    assert "| never | not run |" in page.read_text()
    assert not is_running(int(log.read_text().split()[-1]))


def test_a_dry_run_goes_through_every_step(tmp_path: Path) -> None:
    environment = child_environment()
    environment.pop(check.EMULATED, None)
    options = ("--dry-run", "--output", tmp_path, "--work", tmp_path / "work")
    done = subprocess.run(
        [sys.executable, "-m", "tools.gpu.check", *map(str, options)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    passed = [line.split()[:2] for line in done.stdout.splitlines() if " s  " in line]
    assert passed == [[step.name, "passed"] for step in steps.STEPS]
    (page,) = tmp_path.glob("*-check.md")
    text = page.read_text()
    assert "batches agree" in text
    assert "2 passed, 0 skipped" in text
    assert "| 16, 3, forward |" in text
    assert "| varlen_rnn packed |" in text
    assert "Registers Per Thread 214" in text
    assert "holds: an exchange between 4 blocks" in text
    assert text.splitlines()[2].startswith("A dry run: no number is of a GPU.")


def test_a_dry_run_leaves_nothing_among_the_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, handlers: None
) -> None:
    monkeypatch.setattr(check, "RESULTS", tmp_path / "results")
    check.main(["--dry-run", "--steps", "clusters", "--limit", "-1", "--work", str(tmp_path / "w")])
    assert not (tmp_path / "results").exists()
    assert len(list((tmp_path / "w" / "results").iterdir())) == 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_says_so() -> None:
    for options in ((), ("-S",)):
        done = subprocess.run(
            [sys.executable, *options, "-m", "tools.gpu.check"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2, done.stderr
        assert done.stdout.startswith("gpu-check cannot run on this machine, which lacks ")
        assert ("torch" in done.stdout) == ("-S" in options)
        assert "an NVIDIA GPU" in done.stdout
        assert len(done.stdout.splitlines()) == 1
        assert done.stderr == ""


def test_what_was_built_elsewhere_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, handlers: None
) -> None:
    """Its programs, and its modules in the copy; nothing is built."""
    prebuilt = tmp_path / "prebuilt"
    for name in ("varlen_rnn/_C_cuda.so", "bin/clusters"):
        (prebuilt / name).parent.mkdir(parents=True, exist_ok=True)
        (prebuilt / name).write_text("#!/bin/sh\necho here\n")
        (prebuilt / name).chmod(0o755)
    monkeypatch.setattr(check, "lacking", list)
    monkeypatch.setattr(check, "read_device", lambda: ("Some GPU 80GB", (9, 0)))
    monkeypatch.setattr(prebuild, "why_not", lambda folder, capability: None)
    options = ["--steps", "clusters", "--prebuilt", prebuilt, "--output", tmp_path / "out"]
    options += ["--work", tmp_path / "work"]
    assert check.main([str(option) for option in options]) == 0
    assert (tmp_path / "work" / "tree" / "varlen_rnn" / "_C_cuda.so").exists()
    assert (tmp_path / "work" / "logs" / "clusters.log").read_text().endswith("here\n")
    assert (tmp_path / "out" / "some-gpu-80gb-check.md").exists()


def test_without_a_build_the_steps_run_nevertheless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, handlers: None
) -> None:
    monkeypatch.setattr(check, "lacking", list)
    monkeypatch.setattr(check, "read_device", lambda: ("Some GPU 80GB", (9, 0)))
    monkeypatch.setenv("CUDACXX", str(tmp_path / "nvcc"))
    options = ["--steps", "one-block,clusters", "--prebuilt", tmp_path / "none", "--output"]
    options += [tmp_path / "out", "--work", tmp_path / "work"]
    assert check.main([str(option) for option in options]) == 1
    page = (tmp_path / "out" / "some-gpu-80gb-check.md").read_text()
    assert "| build | FAILED |" in page
    assert "no nvcc found" in page
    assert "| one-block | passed |" in page  # a probe
    assert "| clusters | FAILED |" in page


def test_who_has_no_time_to_build_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check, "lacking", list)
    monkeypatch.setattr(check, "read_device", lambda: ("Some GPU 80GB", (9, 0)))
    out = tmp_path / "out"
    assert check.main(["--no-build", "--prebuilt", str(tmp_path), "--output", str(out)]) == 2
    assert capsys.readouterr().out.endswith(f"for of {tmp_path} nothing was built\n")
    assert not out.exists()


def test_where_nothing_can_be_written_one_line_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    output = str(tmp_path / "file" / "out")
    assert check.main(["--dry-run", "--output", output, "--work", str(tmp_path / "work")]) == 2
    assert capsys.readouterr().out.startswith("gpu-check cannot write: ")


def test_a_page_that_cannot_be_written_stops_no_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, handlers: None
) -> None:
    """The folder is gone after the first step, and there again after the second."""
    out = tmp_path / "out"
    monkeypatch.setattr(check, "copy_tree", lambda tree: (tree / "varlen_rnn").mkdir(parents=True))
    chosen = pretend_steps(
        ("first", f"import shutil; shutil.rmtree({str(out)!r})"),
        ("second", f"import os; os.mkdir({str(out)!r}); print({{}})"),
    )
    monkeypatch.setattr(check, "BY_NAME", chosen)
    monkeypatch.setattr(check, "STEPS", tuple(chosen.values()))
    _, page = run_check(tmp_path, "--steps", ",".join(chosen))
    assert "| first | FAILED |" in page  # its numbers are lost
    assert "| second | passed |" in page


def test_no_test_of_the_device_is_left_out() -> None:
    needs = re.compile(r"needs_device|cuda_only|cuda\.is_available")
    files = (path for path in (ROOT / "tests").rglob("test_*.py") if path.parent.name != "project")
    found = {str(path.relative_to(ROOT)) for path in files if needs.search(path.read_text())}
    assert found == set(steps.DEVICE_TESTS)
    for path in steps.DEVICE_TESTS[:3]:  # of the others only a part
        assert Path(path).stem.removeprefix("test_") in steps.DEVICE_KEYWORDS.split(" or ")


def test_the_limits_of_all_steps_fit_what_there_is() -> None:
    assert sum(step.seconds for step in steps.STEPS) <= check.LIMIT_SECONDS


TESTS = """
import os, time
import pytest
from tools.gpu import timeouts

lost = was_lost = False
timeouts.device_is_lost = lambda: lost

@pytest.mark.parametrize("index", range(6))
def test_it(index: int) -> None:
    global lost, was_lost
    assert not was_lost
    if index == 1:
        time.sleep(60)
    lost = was_lost = index == 2
    assert index != 3
"""


@pytest.fixture
def outcomes(tmp_path: Path) -> dict[str, str]:
    """Of tests of which one hangs, one loses the device, and one fails."""
    (tmp_path / "test_it.py").write_text(TESTS)
    done = tmp_path / "done"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "VARLEN_RNN_TEST_SECONDS": "1.5"}
    environment["VARLEN_RNN_TESTS_FIRST"] = "[4]"
    ran = subprocess.run(
        [sys.executable, "-m", "tools.gpu.pytests", str(done), "test_it.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert json.loads(ran.stdout.splitlines()[-1])["passed"] == 3
    assert "test_it.py::test_it[3]" in ran.stderr
    assert "time.sleep" in ran.stderr or "in test_it" in ran.stderr  # where it hung
    return {name.rpartition("[")[2]: what for name, what in pytests.outcomes(done).items()}


def test_a_test_that_hangs_or_loses_the_device_stops_no_other(outcomes: dict[str, str]) -> None:
    bad = {"1]": "hung", "2]": "lost", "3]": "failed"}
    assert outcomes == {"4]": "passed", "0]": "passed", **bad, "5]": "passed"}
    assert next(iter(outcomes)) == "4]"


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to compile the emulator with")
def test_calibration_loops_are_right_in_the_emulator(tmp_path: Path) -> None:
    program = tmp_path / "calibrate"
    options = ("-std=c++17", "-O1", "-x", "c++", "-DVARLEN_RNN_EMULATE", "-Wall", "-Wextra")
    source = ("-I", ROOT / "csrc", ROOT / "tools" / "gpu" / "cuda" / "calibrate.cu")
    subprocess.run(["g++", *options, *source, "-o", program], check=True)
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    measured = [json.loads(line) for line in done.stdout.splitlines()]
    sizes = {m["cluster_size"] for m in measured if m["what"] == "exchange"}
    assert sizes == {2, 4, 8, 16}
    assert {"block barrier", "products"} < {m["what"] for m in measured}
    refused = subprocess.run([program, "nothing"], capture_output=True, check=False)
    assert refused.returncode == 2
