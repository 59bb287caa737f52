"""One case in a process of its own: `python -m benchmarks.packages.one CASE FILE [--quick]`.

Packages seed, patch and print as they like. Writes the record to the file.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.packages.catalogue import CASES
from benchmarks.packages.check import BUDGET, QUICK_BUDGET, check

if __name__ == "__main__":
    name, file, *options = sys.argv[1:]
    record = check(CASES[name].build, QUICK_BUDGET if "--quick" in options else BUDGET)
    Path(file).write_text(json.dumps(record), encoding="utf-8")
