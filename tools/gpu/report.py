"""The page that `tools.gpu.check` ends in, whatever happened, made of its outcomes and numbers."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

TAIL_LINES = 12
MOST_TAILS = 6
# What is read of a profiler's counters.
METRICS = (
    "Duration",
    "Elapsed Cycles",
    "Executed Instructions",
    "Registers Per Thread",
    "Warp Cycles Per Issued Instruction",
    "No Eligible",
)
Numbers = Sequence[Mapping[str, object]]


@dataclass(frozen=True)
class Outcome:
    """How a step ended; ``tails`` are the last lines of logs that a reader should see."""

    step: str
    verdict: str
    seconds: float
    detail: str
    tails: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Rule:
    """A number that the design stands on, and what to do if it does not hold."""

    what: str
    limit: float  # microseconds
    at_most: bool
    otherwise: str
    wanted: Mapping[str, object]  # fields of the numbers that count, of which the largest does
    value: Callable[[Mapping[str, object]], float]

    def line(self, numbers: Numbers) -> str:
        """The rule against what was measured."""
        rule = f"{self.what}: {'at most' if self.at_most else 'at least'} {self.limit:g} µs"
        found = [self.value(n) for n in chosen(numbers, **self.wanted)]
        if not found:
            return f"not measured: {rule}"
        value = max(found)
        holds = value <= self.limit if self.at_most else value >= self.limit
        return f"{'holds' if holds else '**BROKEN**'}: {rule}, got {value:.3g}" + (
            "" if holds else f"; {self.otherwise}"
        )


def chosen(numbers: Numbers, **wanted: object) -> list[Mapping[str, object]]:
    """Those whose fields have these values, and that were measured."""
    return [
        n
        for n in numbers
        if "skipped" not in n and all(n.get(key) == value for key, value in wanted.items())
    ]


def _number(n: Mapping[str, object], key: str) -> float:
    return float(str(n[key]))


STEP = {"what": "step", "cell": "lstm", "H": 256, "B": 8, "pass": "forward"}
RULES = (
    Rule(
        "an exchange between 4 blocks at H = 256",
        0.4,
        True,
        "revisit the exchange",
        {"what": "exchange", "cluster_size": 4, "H": 256},
        lambda n: _number(n, "ns") / 1e3,
    ),
    Rule(
        "a step of our LSTM at H = 256",
        1.2,
        True,
        "profile before adding paths",
        {**STEP, "peer": "varlen_rnn full", "cluster_size": 0},
        lambda n: _number(n, "us"),
    ),
    Rule(
        "a step of nn.LSTM on a PackedSequence at H = 256",
        3.0,
        False,
        "lower all claims",
        {**STEP, "peer": "nn packed"},
        lambda n: _number(n, "us"),
    ),
)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """In Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(text.replace('|', '/') for text in line)} |" for line in lines]


def read_lines(path: Path) -> list[dict[str, object]]:
    """The JSON lines of a file; none if it is not there."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def counters(text: str) -> dict[str, str]:
    """From Nsight Compute's CSV, in which other output may stand, the metrics of METRICS."""
    lines = [line for line in text.splitlines() if line.startswith('"')]
    rows = list(csv.DictReader(lines))
    return {
        row["Metric Name"]: f"{row['Metric Value']} {row['Metric Unit']}"
        for row in rows
        if row.get("Metric Name") in METRICS
    }


def exchanges(numbers: Numbers) -> Iterator[str]:
    """A row a size: each way of exchanging, in microseconds, on one cluster and on all."""
    ways = [n for n in chosen(numbers) if str(n.get("what")).startswith("exchange")]
    names = list(dict.fromkeys(str(n["what"]) for n in ways))
    keys = list(dict.fromkeys((n["H"], n["cluster_size"]) for n in ways))
    rows = []
    for size, blocks in keys:
        cells = []
        for name in names:
            of_name = chosen(ways, what=name, H=size, cluster_size=blocks)
            cells.append(" / ".join(f"{_number(n, 'ns') / 1e3:.3g}" for n in of_name))
        rows.append([f"{size}, {blocks}", *cells])
    if rows:
        yield "## An exchange, µs: of one cluster / of all at a time"
        yield ""
        yield from table(["H, blocks", *names], rows)
        yield ""


def backward_steps(numbers: Numbers) -> Iterator[dict[str, object]]:
    """What training takes beyond its forward pass, which saves more than one of inference."""
    saving = chosen(numbers, what="step", **{"pass": "forward of training"})
    for both in chosen(numbers, what="step", **{"pass": "training"}):
        same = {key: both[key] for key in ("peer", "cell", "H", "B", "dtype", "cluster_size")}
        for forward in chosen(saving, **same)[:1]:
            microseconds = _number(both, "us") - _number(forward, "us")
            yield {**both, "pass": "backward", "us": microseconds}


def step_times(numbers: Numbers) -> Iterator[str]:
    """A row a size and pass: microseconds a step of every peer."""
    steps = [*chosen(numbers, what="step", **{"pass": "forward"}), *backward_steps(numbers)]
    columns = list(dict.fromkeys((n["peer"], n["cluster_size"]) for n in steps))
    keys = list(dict.fromkeys((n["H"], n["B"], n["pass"]) for n in steps))
    rows = []
    for size, batch, which in keys:
        cells = []
        for peer, blocks in columns:
            of_peer = {"H": size, "B": batch, "peer": peer, "cluster_size": blocks}
            found = chosen(steps, **of_peer, **{"pass": which})
            cells.append("".join(f"{_number(n, 'us'):.3g}{_mark(n)}" for n in found))
        rows.append([f"{size}, {batch}, {which}", *cells])
    if rows:
        names = [f"{peer}, {blocks} blocks" if blocks else str(peer) for peer, blocks in columns]
        yield "## A step, µs: by replayed graphs; q: queued behind a pause, e: by events, h: host"
        yield ""
        yield from table(["H, B, pass", *names], rows)
        yield ""


def _mark(n: Mapping[str, object]) -> str:
    return {"queue": " q", "events": " e", "host": " h"}.get(str(n["by"]), "")


def whole_calls(numbers: Numbers) -> Iterator[str]:
    """A row a peer."""
    rows = [
        [
            str(n["peer"]),
            *(f"{_number(n, key):.3g}" for key in ("call_us", "host_us")),
            *(str(n.get(key, "")) for key in ("launches", "torch_operations")),
        ]
        for n in chosen(numbers, what="call")
    ]
    if rows:
        header = ("a ragged batch", "call, µs", "host, µs", "launches", "torch operations")
        yield from ("## Whole calls", "", *table(header, rows), "")


def active_clusters(numbers: Numbers) -> Iterator[str]:
    """A row a kernel of the LSTM in bfloat16; the others are in the file of numbers."""
    rows = [
        [f"{n['pass']}, {n['H']}", str(n["cluster_size"]), str(n["count"])]
        for n in chosen(numbers, what="active clusters", cell="lstm", dtype="bfloat16")
        if n["H"] in (128, 256, 512)
    ]
    if rows:
        header = ("LSTM, bfloat16: pass, H", "blocks of a team", "teams at a time")
        yield from ("## Active clusters", "", *table(header, rows), "")


def profiles(numbers: Numbers) -> Iterator[str]:
    """A line a kernel that was profiled."""
    for n in chosen(numbers, what="counters"):
        found = n.get("metrics")
        if isinstance(found, dict) and found:
            metrics = ", ".join(f"{name} {value}" for name, value in found.items())
            yield f"- {n['job']}: {metrics}"


def tails(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """What programs said last that did not do well."""
    all_tails = [pair for outcome in outcomes for pair in outcome.tails.items()]
    for name, text in all_tails[:MOST_TAILS]:
        yield from (f"## The end of {name}.log", "", "```", *text.splitlines()[-TAIL_LINES:], "```")
        yield ""
    if len(all_tails) > MOST_TAILS:
        yield f"{len(all_tails) - MOST_TAILS} more logs are in the archive."


DRY = "A dry run: no number is of a GPU. They are a CPU's, or canned answers of `tools/gpu/canned`."


def page(
    title: str,
    outcomes: Sequence[Outcome],
    numbers: Numbers,
    left: Sequence[str],
    *,
    dry: bool = False,
) -> str:
    """All of it; ``left`` are the steps that were not run, or not yet."""
    rows = [[o.step, o.verdict, f"{o.seconds:.0f}", o.detail] for o in outcomes]
    rows += [[name, "not run", "", ""] for name in left]
    lines = [f"# {title}", "", *([DRY, ""] if dry else [])]
    lines += [*table(["step", "verdict", "s", ""], rows), "", "## Rules", ""]
    lines += [f"- {rule.line(numbers)}" for rule in RULES]
    lines.append("")
    for part in (step_times, whole_calls, exchanges, active_clusters):
        lines += part(numbers)
    if found := list(profiles(numbers)):
        lines += ["## Counters of persistent_forward", "", *found, ""]
    lines += tails(outcomes)
    return "\n".join(lines).rstrip() + "\n"
