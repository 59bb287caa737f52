"""Lines of result files (results/README.md), and what is read off them."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

Record = dict[str, Any]

OURS = "varlen_rnn"


def load(paths: Sequence[Path]) -> list[Record]:
    """The lines of all files."""
    records = {}
    for path in paths:
        for line in path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            records[record["device"], record["name"]] = record
    return list(records.values())


def timed(record: Record) -> dict[str, dict[str, float]]:
    """The figures of the peers that were not skipped."""
    return {name: f for name, f in record["peers"].items() if "skipped" not in f}


def others(record: Record) -> dict[str, dict[str, float]]:
    """The same without ours."""
    return {name: f for name, f in timed(record).items() if not name.startswith(OURS)}


def ratio(record: Record, keep: Callable[[str], bool] = lambda name: True) -> float | None:
    """How many times faster ours is than the fastest of some peers; None if there is none."""
    seconds = [f["median_s"] for name, f in others(record).items() if keep(name)]
    return min(seconds) / timed(record)[OURS]["median_s"] if seconds else None


def spread(record: Record, peers: Collection[str] | None = None) -> float:
    """The widest distance between quartiles, relative to the median; of all peers or of some."""
    chosen = [f for name, f in timed(record).items() if peers is None or name in peers]
    return max((f["q3_s"] - f["q1_s"]) / f["median_s"] for f in chosen)


def with_all_threads(records: Sequence[Record]) -> list[Record]:
    """The records of the group "threads", joined by the same shapes' in the group "shapes"."""

    def key(record: Record) -> tuple[object, ...]:
        return tuple(record[k] for k in ("cell", "mode", "B", "T", "I", "H", "distribution"))

    fewer = [r for r in records if r["group"] == "threads"]
    keys = list(dict.fromkeys(map(key, fewer)))
    joined = fewer + [r for r in records if r["group"] == "shapes" and key(r) in keys]
    return sorted(joined, key=lambda r: (keys.index(key(r)), r["threads"]))
