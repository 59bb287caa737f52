"""One layer, forward and backward, against torch.nn in float64: a JSON line for every batch.

    python -m tools.gpu.smoke --cell lstm --dtype bfloat16 --hidden 256 --rows 1,8,70

The persistent path is forced where it takes the layer, so that a kernel that is wrong shows, and
lengths lie on the CPU, so that nothing but the layer itself runs on the GPU. With --any-path what
is called is what users call, with lengths on the GPU, where their layout is made. Ends with status
1 if something differs. With --verdicts, a last line says what the self-check of every kernel has
found.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

TREE = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(TREE / "tests"), str(TREE / "tests" / "cuda")]

import on_device  # noqa: E402
from helpers import (  # noqa: E402
    Results,
    as_hx,
    largest,
    max_error,
    random_batch,
    random_hx,
    states_of,
    torch_packed,
)

from tools.gpu import machine  # noqa: E402

INPUT_SIZE, STEPS = 24, 13
NO_TEAM = "only where a team fits the layer"  # what is said where the persistent path is not there


def lengths_of(rows: int, steps: int) -> tuple[int, ...]:
    """Ragged, none of them zero, and one as long as can be."""
    return tuple(1 + (5 * row + steps - 1) % steps for row in range(rows))


def results_of(
    cell: str, dtype: str, size: int, lengths: tuple[int, ...], module: Any, path: str | None
) -> tuple[Results, Results]:
    """Ours and those of torch in float64."""
    rnn = on_device.module(cell, dtype, INPUT_SIZE, size, bidirectional=True)
    x = random_batch(rnn, len(lengths), max(lengths)).to(on_device.DEVICE)
    states = [s.to(on_device.DEVICE) for s in random_hx(rnn, len(lengths))]
    truth = on_device.truth_of(rnn, cell)

    given = torch.tensor(lengths, device=on_device.DEVICE if path is None else "cpu")

    def ours(x: torch.Tensor, states: list[torch.Tensor]) -> Any:
        out, hx = rnn(x.transpose(0, 1), as_hx(states), lengths=given)
        return out.transpose(0, 1), states_of(hx)

    with on_device.precision(dtype), machine.forced(module, path):
        got = on_device.run_with_gradients(rnn, x, states, ours)
    expected = on_device.run_with_gradients(
        truth,
        on_device.in_double([x])[0],
        on_device.in_double(states),
        lambda x, states: torch_packed(truth, x, states, lengths),
    )
    return got, expected


def compare(
    cell: str, dtype: str, size: int, lengths: tuple[int, ...], module: Any, path: str | None
) -> dict[str, object]:
    """What there is to say about one batch."""
    start = time.monotonic()
    found: dict[str, object] = {"path": path or "any"}
    try:
        got, expected = results_of(cell, dtype, size, lengths, module, path)
    except RuntimeError as error:
        if path is None or NO_TEAM not in str(error):
            return {**found, "passed": False, "why": str(error).splitlines()[0][:300]}
        found["path"] = "any: no team fits"
        got, expected = results_of(cell, dtype, size, lengths, module, None)
    errors = {
        name: max_error(got[name], right) / max(largest(right), 1e-30)
        for name, right in expected.items()
    }
    tolerance = on_device.PRECISIONS[dtype][2]
    # Not "error >": that would let NaN pass.
    wrong = {name: error for name, error in errors.items() if not error <= tolerance}
    expired = module.take_expired_wait(0) if module is not None else None
    return {
        **found,
        "passed": not wrong and not expired,
        "error": max(errors.values()) if all(map(math.isfinite, errors.values())) else "not finite",
        "tolerance": tolerance,
        **({"wrong": sorted(wrong)} if wrong else {}),
        **({"why": str(expired)} if expired else {}),
        "seconds": time.monotonic() - start,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu.smoke", description=__doc__)
    parser.add_argument("--cell", default="lstm,gru", help="with commas between, as all others")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--hidden", default="256")
    parser.add_argument("--rows", default="8")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--any-path", action="store_true")
    parser.add_argument("--verdicts", action="store_true")
    args = parser.parse_args(argv)
    module = machine.kernels(on_device.DEVICE)
    passed = True
    for cell in args.cell.split(","):
        for dtype in args.dtype.split(","):
            for size in map(int, args.hidden.split(",")):
                for rows in map(int, args.rows.split(",")):
                    persistent = dtype in on_device.PERSISTENT and not args.any_path
                    path = "persistent" if persistent and module is not None else None
                    lengths = lengths_of(rows, args.steps)
                    found = compare(cell, dtype, size, lengths, module, path)
                    case = {"what": "smoke", "cell": cell, "dtype": dtype, "H": size, "B": rows}
                    print(json.dumps({**case, **found}), flush=True)
                    passed = passed and found["passed"] is True
    if args.verdicts:
        import varlen_rnn

        info = varlen_rnn.build_info()
        verdicts = info.get("cuda_verdicts", module.verdicts() if module is not None else [])
        print(json.dumps({"what": "self-check", "verdicts": verdicts}))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
