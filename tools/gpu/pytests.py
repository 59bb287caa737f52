"""Runs a shard of the tests with a limit for each, in as many processes as it takes.

    python -m tools.gpu.pytests DONE [pytest's arguments]

DONE and the environment: see `tools.gpu.timeouts`. Ends with a JSON line that counts outcomes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

# Of these, so many in a row without a new test that passed, and it is the machine that is broken.
MAX_PROCESSES = 12
NOTHING_LEFT = 5  # pytest's status where no test was collected


def outcomes(done: Path) -> dict[str, str]:
    """What became of every test that has begun: the last that is said, `hung` where nothing is."""
    found: dict[str, str] = {}
    lines = done.read_text(encoding="utf-8").splitlines() if done.exists() else []
    for line in lines:
        what, test = line.split(" ", 1)
        if what == "begun":
            found[test] = "hung"
        elif found.get(test) not in ("failed", "lost"):
            found[test] = what
    return found


def summary(done: Path) -> dict[str, object]:
    """Counts, and which tests did not pass."""
    found = outcomes(done)
    bad = {test: what for test, what in found.items() if what not in ("passed", "skipped")}
    return {"what": "tests", **Counter(found.values()), "bad": bad}


def main(argv: Sequence[str]) -> int:
    """Returns 0 if all tests passed, or were skipped."""
    done, options = Path(argv[0]), argv[1:]
    done.unlink(missing_ok=True)
    plugin = ("-p", "tools.gpu.timeouts", "-p", "no:cacheprovider", "-q", "--no-header")
    environment = {**os.environ, "VARLEN_RNN_TESTS_DONE": str(done)}
    ended = False
    for _ in range(MAX_PROCESSES):
        command = [sys.executable, "-m", "pytest", *plugin, *options]
        begun = len(outcomes(done))
        status = subprocess.run(command, env=environment, check=False).returncode
        ended = status in (0, NOTHING_LEFT) or (status == 1 and not _cut_off(done))
        if ended or len(outcomes(done)) == begun:
            break
    found = summary(done)
    print(json.dumps(found), flush=True)
    return 0 if ended and not found["bad"] and found.get("passed") else 1


def _cut_off(done: Path) -> bool:
    """Whether the last test that began did not come to an end, so that others may be left."""
    last = list(outcomes(done).values())[-1:]
    return last in (["hung"], ["lost"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
