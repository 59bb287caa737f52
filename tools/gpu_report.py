"""The table that `tools.gpu_check` ends in, made of its outcomes and its files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import grid

# A part's name, its verdict, the seconds it took, and what there is to say.
Outcome = tuple[str, str, float, str]


@dataclass(frozen=True)
class Rule:
    """A number that the design stands on, and what to do if it does not hold."""

    what: str
    unit: str
    limit: float
    at_most: bool
    otherwise: str
    value: Callable[[Sequence[Mapping[str, object]]], float | None]

    def line(self, records: Sequence[Mapping[str, object]]) -> str:
        """The rule against what was measured."""
        wanted = f"{'at most' if self.at_most else 'at least'} {self.limit:g} {self.unit}"
        value = self.value(records)
        if value is None:
            return f"not measured  {self.what}: {wanted}"
        holds = value <= self.limit if self.at_most else value >= self.limit
        verdict = "holds" if holds else "BROKEN"
        advice = "" if holds else f"; {self.otherwise}"
        return f"{verdict:<13} {self.what}: {value:.3g} {self.unit}, {wanted}{advice}"


def _largest(values: list[float]) -> float | None:
    return max(values) if values else None


def _step(peer: str) -> Callable[[Sequence[Mapping[str, object]]], float | None]:
    def value(records: Sequence[Mapping[str, object]]) -> float | None:
        wanted = ("step", peer, "lstm")
        found = [r for r in records if (r["what"], r.get("peer"), r.get("cell")) == wanted]
        return _largest([float(str(r["us"])) for r in found])

    return value


RULES = (
    Rule(
        "an exchange between 4 blocks",
        "µs",
        0.4,
        True,
        "revisit the exchange",
        lambda records: _largest(
            [
                float(str(r["ns"])) / 1e3
                for r in records
                if (r["what"], r.get("cluster_size")) == ("exchange", 4)
            ]
        ),
    ),
    Rule(
        "a step of our LSTM at H = 256",
        "µs",
        1.2,
        True,
        "profile before adding paths",
        _step("varlen_rnn packed"),
    ),
    Rule(
        "a step of nn.LSTM on a PackedSequence",
        "µs",
        3.0,
        False,
        "lower all claims",
        _step("nn packed"),
    ),
)


def read_lines(path: Path) -> list[dict[str, object]]:
    """The JSON lines of a file; none if it is not there."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def _goals(records: Sequence[dict[str, object]]) -> Iterator[str]:
    """A line for every kind of workload."""

    def kind(record: Mapping[str, object]) -> tuple[object, ...]:
        return tuple(record[key] for key in ("dtype", "mode", "distribution"))

    for chosen in dict.fromkeys(map(kind, records)):
        of_kind = [record for record in records if kind(record) == chosen]
        yield f"{', '.join(map(str, chosen))}: {grid.verdict(of_kind)}"


def table(title: str, outcomes: Sequence[Outcome], calibration: Path, results: Path) -> str:
    """What was run, and of what was measured whether rules and goals hold."""
    lines = [title, ""]
    lines += [f"{part:<10} {verdict:<7} {s:5.0f} s  {said}" for part, verdict, s, said in outcomes]
    parts = {part for part, *_ in outcomes}
    if "calibrate" in parts:
        measured = read_lines(calibration)
        lines += ["", *(rule.line(measured) for rule in RULES)]
    if "bench" in parts:
        lines += ["", *_goals(read_lines(results))]
    return "\n".join(lines)
