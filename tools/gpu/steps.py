"""The steps of `make gpu-check`: which programs each runs, for how long, and how it is judged."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tools.gpu import pytests
from tools.gpu.jobs import Ended, Job

SIZES = (2, 4, 8, 16)  # of clusters
HIDDEN_SIZES = (192, 256, 384, 512, 64, 128)
DTYPES = ("bfloat16", "float16", "tf32")
CELLS = ("lstm", "gru")
DEVICE_TESTS = (
    "tests/cuda/test_on_device.py",
    "tests/cuda/test_device_contract.py",
    "tests/cuda/test_device_layouts.py",
    "tests/torch_tools/test_autocast.py",
    "tests/torch_tools/test_distributed.py",
)
# Of these files all tests, or those about CUDA.
DEVICE_KEYWORDS = "on_device or device_contract or device_layouts or on_cuda or nccl"
SHARDS = 6
SECTIONS = ("SpeedOfLight", "LaunchStats", "InstructionStats", "WarpStateStats", "SchedulerStats")
CANNED = Path(__file__).parent / "canned"


@dataclass(frozen=True)
class Context:
    """What steps need to know.

    Attributes:
        tree: the copy of the repository that everything runs in.
        programs: the folder of what was compiled; None where a canned answer takes its place.
        work: for files of the steps' own.
        dry: on a CPU: small sizes, and canned answers for what needs a GPU's tools.
        sanitizers: tools of compute-sanitizer to run.
    """

    tree: Path
    programs: Path | None
    work: Path
    dry: bool = False
    sanitizers: tuple[str, ...] = ("memcheck",)

    def module(self, name: str, *options: object) -> list[object]:
        """The command that runs a module of this Python."""
        return [sys.executable, "-m", f"tools.gpu.{name}", *options]

    def program(self, name: str, *options: object) -> list[object]:
        """The command that runs what was compiled."""
        if self.programs is None:
            return ["cat", CANNED / f"{name}.txt"]
        return [self.programs / name, *options]


@dataclass(frozen=True)
class Verdict:
    """passed, FAILED, CUT OFF (good as far as it went), or FOUND (what a person has to judge)."""

    word: str
    detail: str


Judge = Callable[[Context, Sequence[Ended]], Verdict]


def judge_all(context: Context, ended: Sequence[Ended]) -> Verdict:
    """Every program must end well."""
    bad = [e for e in ended if not e.passed]
    if not bad:
        return Verdict("passed", f"{len(ended)} programs")
    said = [f"{e.job.name} {e.why}" + (f": {e.last_line}" if e.status else "") for e in bad]
    more = f"; and {len(said) - 4} more" if len(said) > 4 else ""
    return Verdict("FAILED", f"{len(bad)} of {len(ended)}: {'; '.join(said[:4])}{more}")


@dataclass(frozen=True)
class Step:
    """``jobs`` are run ``at_a_time``, all in so many ``seconds`` at most."""

    name: str
    seconds: float
    at_a_time: int
    jobs: Callable[[Context], list[Job]]
    judge: Judge = field(default=judge_all)


def info(context: Context) -> list[Job]:
    smi = [] if context.dry else [Job("nvidia-smi", ["nvidia-smi"], 10)]
    return [*smi, Job("info", context.module("info"), 20)]


def wrappers(context: Context) -> list[Job]:
    which: list[tuple[object, ...]] = [("basics",), *(("clusters", n) for n in SIZES), ("trap",)]
    return [
        Job("-".join(map(str, ["simt", *w])), context.program("simt_test", *w), 15) for w in which
    ]


def one_block(context: Context) -> list[Job]:
    return [Job("simt-one-block", context.program("simt_test", "one-block"), 8)]


def judge_probe(context: Context, ended: Sequence[Ended]) -> Verdict:
    """Undefined behaviour cannot fail; what it does is worth knowing."""
    (only,) = ended
    return Verdict("passed", f"st.async in one block, a probe: {only.why or only.last_line}")


def smoke(context: Context) -> list[Job]:
    sizes = (64,) if context.dry else HIDDEN_SIZES
    dtypes = ("bfloat16",) if context.dry else DTYPES
    options = ("--rows", "1,3", "--steps", 2) if context.dry else ("--rows", "1,8,70")
    off = {"VARLEN_RNN_CUDA_SELF_CHECK": "0"}
    return [
        Job(
            f"smoke-{cell}-{dtype}-{size}",
            context.module(
                *("smoke", "--cell", cell, "--dtype", dtype, "--hidden", size, *options)
            ),
            25,
            off,
        )
        for size in sizes
        for dtype in dtypes
        for cell in CELLS
    ]


def judge_smoke(context: Context, ended: Sequence[Ended]) -> Verdict:
    """By batches, which are told apart from programs that hung."""
    lines = [r for e in ended for r in e.records if r.get("what") == "smoke"]
    bad = [r for r in lines if r["passed"] is not True]
    persistent = sum(r["path"] == "persistent" for r in lines)
    text = f"{len(lines) - len(bad)} of {len(lines)} batches agree, {persistent} of all on the "
    text += "persistent path"
    if bad:
        names = [f"{r['cell']} {r['dtype']} H {r['H']} B {r['B']}" for r in bad]
        text += f"; not: {', '.join(names[:6])}" + (" …" if len(names) > 6 else "")
        text += "".join(f" ({reason})" for reason in [r["why"] for r in bad if "why" in r][:1])
    programs = judge_all(context, ended)
    if programs.word == "passed" and not bad and lines:
        return Verdict("passed", text)
    return Verdict("FAILED", f"{text}. Programs: {programs.detail}")


def self_check(context: Context) -> list[Job]:
    sizes, dtypes = ("64", "bfloat16") if context.dry else ("64,128,256,512", ",".join(DTYPES))
    steps = 2 if context.dry else 13
    options = ("--hidden", sizes, "--dtype", dtypes, "--rows", 8, "--steps", steps)
    command = context.module("smoke", "--any-path", "--verdicts", *options)
    return [Job("self-check", command, 30, {"VARLEN_RNN_CUDA_SELF_CHECK": "1"})]


def judge_self_check(context: Context, ended: Sequence[Ended]) -> Verdict:
    """What it found is what counts: right numbers come from another path then."""
    lines = [r for e in ended for r in e.records if r.get("what") == "self-check"]
    verdicts = [str(v) for r in lines for v in r.get("verdicts") or []]  # type: ignore[attr-defined]
    bad = [v for v in verdicts if not v.endswith(": good")]
    programs = judge_all(context, ended)
    text = f"{len(verdicts) - len(bad)} of {len(verdicts)} kernels were found good"
    text += f"; bad: {'; '.join(bad[:3])}" if bad else ""
    if programs.word != "passed":
        return Verdict("FAILED", f"{text}. {programs.detail}")
    return Verdict("FOUND" if bad else "passed", text)


def done_file(context: Context, shard: int) -> Path:
    return context.work / f"tests-{shard}.done"


def tests(context: Context) -> list[Job]:
    shards = 1 if context.dry else SHARDS
    chosen = "test_output_states" if context.dry else DEVICE_KEYWORDS
    files = DEVICE_TESTS[:1] if context.dry else DEVICE_TESTS
    return [
        Job(
            f"tests-{shard}",
            context.module("pytests", done_file(context, shard), "-k", chosen, *files),
            120,
            {"VARLEN_RNN_TEST_SHARD": f"{shard}/{shards}", "VARLEN_RNN_TESTS_FIRST": "bfloat16"},
        )
        for shard in range(shards)
    ]


def judge_tests(context: Context, ended: Sequence[Ended]) -> Verdict:
    """By tests; those that were still to come when the time was up are not missed."""
    found: dict[str, str] = {}
    for shard, _ in enumerate(ended):
        found |= pytests.outcomes(done_file(context, shard))
    cut_off = [e for e in ended if e.status is None]
    # The test that ran when its time was up is not to blame.
    bad = {t: w for t, w in found.items() if w not in ("passed", "skipped")}
    if cut_off:
        bad = {t: w for t, w in bad.items() if w != "hung"}
    passed = sum(what == "passed" for what in found.values())
    text = f"{passed} passed, {sum(w == 'skipped' for w in found.values())} skipped"
    if bad:
        names = [f"{what} {test.rpartition('::')[2]}" for test, what in bad.items()]
        return Verdict("FAILED", f"{text}, {len(bad)} bad: {', '.join(names[:6])}")
    if not passed or any(e.status not in (0, None) for e in ended):
        return Verdict("FAILED", f"{text}; {judge_all(context, ended).detail}")
    return Verdict("CUT OFF" if cut_off else "passed", text)


def clusters(context: Context) -> list[Job]:
    return [Job("clusters", context.program("clusters"), 10)]


def calibrate(context: Context) -> list[Job]:
    sizes = SIZES[:2] if context.dry else SIZES
    which: list[tuple[object, ...]] = [("barriers",), ("products",)]
    which += [("exchange", n) for n in sizes]
    return [
        Job("-".join(map(str, ["calibrate", *w])), context.program("calibrate", *w), 10)
        for w in which
    ]


def times(context: Context) -> list[Job]:
    if context.dry:
        # More than 64 tokens, or ours would go past the ops.
        sizes = ("--device", "cpu", "--hidden", 16, "--rows", 3, "--steps", "22,24")
        runs = {"times-16": (*sizes, "--clusters", 0), "calls": (*sizes, "--calls")}
    else:
        runs = {f"times-{s}": ("--hidden", s) for s in ("256", "128,64", "512", "1024")}
        runs["calls"] = ("--hidden", "256", "--rows", "32", "--calls")
    off = {"VARLEN_RNN_CUDA_SELF_CHECK": "0"}
    limits = {"calls": 25.0}
    return [
        Job(name, context.module("step_times", *options), limits.get(name, 40.0), off)
        for name, options in runs.items()
    ]


def find_tool(name: str) -> str:
    """On PATH, or where CUDA puts it."""
    places = [*Path("/usr/local/cuda/bin").glob(name), *Path("/opt/nvidia").glob(f"*/*/{name}")]
    return shutil.which(name) or next(map(str, places), name)


def counters(context: Context) -> list[Job]:
    if context.dry:
        return [Job("counters-256", ["cat", CANNED / "ncu.txt"], 5)]
    options = ("--clock-control", "none", "--csv", "--page", "details", "--launch-count", 1)
    sections = [word for section in SECTIONS for word in ("--section", section)]
    watch = (find_tool("ncu"), "--kernel-name", "regex:persistent_forward", *options, *sections)
    return [
        Job(
            f"counters-{size}",
            [*watch, *context.module("smoke", "--cell", "lstm", "--hidden", size, "--steps", 200)],
            25,
            {"VARLEN_RNN_CUDA_SELF_CHECK": "0"},
        )
        for size in (256, 128)
    ]


def memcheck(context: Context) -> list[Job]:
    cases = {"64": ("bfloat16", 64), "256": ("bfloat16", 256), "float64": ("float64", 17)}
    options = ("--kernel-regex", "kns=varlen_rnn", "--report-api-errors", "no")
    jobs = []
    for tool in context.sanitizers:
        for name, (dtype, size) in cases.items():
            watch = (find_tool("compute-sanitizer"), "--tool", tool, *options)
            status = () if tool == "racecheck" else ("--error-exitcode", 9)
            smoke = context.module("smoke", "--dtype", dtype, "--hidden", size, "--rows", 9)
            command = [*watch, *status, *smoke]
            if context.dry:
                command = ["cat", CANNED / "memcheck.txt"]
            # Without torch's cache every tensor is an allocation that memcheck knows.
            variables = {
                "PYTORCH_NO_CUDA_MEMORY_CACHING": "1",
                "VARLEN_RNN_CUDA_SELF_CHECK": "0",
            }
            jobs.append(Job(f"{tool}-{name}", command, 40, variables))
    return jobs


def judge_memcheck(context: Context, ended: Sequence[Ended]) -> Verdict:
    """By what the tools say at their end. Hazards may be false: racecheck sees no mbarriers."""
    errors: list[str] = []
    hazards: list[str] = []
    silent: list[str] = []
    for e in ended:
        summaries = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (.*)", e.text)
        if not summaries:
            silent.append(f"{e.job.name}: no summary ({e.why or e.last_line})")
        elif not summaries[-1].startswith("0 "):
            of_race = e.job.name.startswith("racecheck")
            (hazards if of_race else errors).append(f"{e.job.name}: {summaries[-1]}")
    programs = judge_all(context, ended)
    if errors or silent or (programs.word != "passed" and not hazards):
        return Verdict("FAILED", "; ".join([*errors, *silent]) or programs.detail)
    return Verdict("FOUND" if hazards else "passed", "; ".join(hazards) or programs.detail)


STEPS = (
    Step("info", 12, 2, info),
    Step("wrappers", 20, 4, wrappers),
    Step("one-block", 8, 1, one_block, judge_probe),
    Step("smoke", 50, 6, smoke, judge_smoke),
    Step("self-check", 20, 1, self_check, judge_self_check),
    Step("tests", 85, SHARDS, tests, judge_tests),
    Step("clusters", 5, 1, clusters),
    Step("calibrate", 25, 1, calibrate),
    Step("times", 90, 1, times),
    Step("counters", 30, 1, counters),
    Step("memcheck", 45, 3, memcheck, judge_memcheck),
)
BY_NAME: Mapping[str, Step] = {step.name: step for step in STEPS}
