"""Which commit this is. Needs neither torch nor the package."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def output(*command: str) -> str | None:
    """What a command prints, or None if it is not there or fails."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def commit() -> str:
    """The commit, with "-dirty" if anything that counts differs from it.

    VARLEN_RNN_COMMIT says it where git cannot: in a copy of the tree.
    """
    if said := os.environ.get("VARLEN_RNN_COMMIT"):
        return said
    head = output("git", "rev-parse", "--short=12", "HEAD")
    if head is None:
        return "unknown"
    # What documents or holds results changes no result.
    counts = (".", ":!benchmarks/results", ":!*.md")
    changed = output("git", "status", "--porcelain", "--", *counts)
    return f"{head}-dirty" if changed else head
