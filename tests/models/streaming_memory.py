"""Steps of streams in a process of its own; test_streaming_memory.py reads what it prints.

``python streaming_memory.py STEPS``: a line of JSON with, for each kind of call, the bytes by which
resident memory grows in so many steps, and the blocks that are allocated in a thousand, if
count_allocations.c counts them.
"""

from __future__ import annotations

import ctypes
import gc
import json
import resource
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from varlen_rnn import StreamingRNN, VarLenGRU, VarLenLSTM, freeze

INPUT, HIDDEN, ROWS = 8, 64, 4  # outputs, and each layer's states, are large blocks
COUNTED = 1000
# Names of calls, and into how many parts the number of steps is divided for each.
CALLS = {
    "lstm": 1,
    "gru": 1,
    "lstm of bfloat16": 5,
    "gru of int8": 5,
    "rows": 5,
    "out": 5,
    "rows and out": 5,
    "steps and out": 20,
    "two threads and out": 50,
    "reset": 5,
    "state and load_state": 20,
}
# In these, Python makes views of x.
WITH_VIEWS = ("rows and out", "steps and out", "state and load_state")

Call = Callable[[], object]


def calls() -> dict[str, tuple[Call, Call]]:
    """Each with what makes the same results without a stream."""
    x, x_steps = torch.randn(ROWS, INPUT), torch.randn(ROWS, 5, INPUT)
    rows, x_rows = torch.tensor([2, 0, 3]), torch.randn(3, INPUT)
    out, out_rows, out_steps, out_large = map(
        torch.empty, ((ROWS, HIDDEN), (3, HIDDEN), (ROWS, 5, HIDDEN), (1, 512))
    )
    state = torch.empty(2, ROWS, HIDDEN)
    lstm = StreamingRNN(VarLenLSTM(INPUT, HIDDEN, num_layers=2), ROWS)
    gru = StreamingRNN(VarLenGRU(INPUT, HIDDEN, num_layers=2), ROWS)
    bfloat16 = StreamingRNN(freeze(VarLenLSTM(INPUT, HIDDEN), weights=torch.bfloat16), ROWS)
    int8 = StreamingRNN(freeze(VarLenGRU(INPUT, HIDDEN), weights=torch.int8), ROWS)
    large, x_large = StreamingRNN(VarLenLSTM(512, 512), 1), torch.randn(1, 512)

    def nothing() -> None: ...

    def one_output() -> Tensor:
        return torch.empty_like(out)

    return {
        "lstm": (lambda: lstm(x), one_output),
        "gru": (lambda: gru(x), one_output),
        "lstm of bfloat16": (lambda: bfloat16(x), one_output),
        "gru of int8": (lambda: int8(x), one_output),
        "rows": (lambda: lstm(x_rows, rows), lambda: x.new_empty((3, HIDDEN))),
        "out": (lambda: lstm(x, out=out), nothing),
        "rows and out": (lambda: lstm(x_rows, rows, out_rows), nothing),
        "steps and out": (lambda: lstm(x_steps, out=out_steps), nothing),
        "two threads and out": (lambda: large(x_large, out=out_large), nothing),
        "reset": (lambda: lstm.reset(rows), nothing),
        "state and load_state": (
            lambda: lstm.load_state(lstm.state()),
            lambda: (torch.empty_like(state), torch.empty_like(state)),
        ),
    }


def resident() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


def repeat(call: Call, times: int) -> None:
    for _ in range(times):
        call()


def growth(call: Call, times: int) -> int:
    gc.collect()
    before = resident()
    repeat(call, times)
    gc.collect()
    return resident() - before


def blocks(counts: ctypes.CDLL, call: Call) -> tuple[int, int]:
    """All, and large ones, of a thousand calls."""
    functions = counts.count_of_blocks, counts.count_of_large_blocks
    for function in functions:
        function.restype = ctypes.c_long
    before = [function() for function in functions]
    repeat(call, COUNTED)
    all_blocks, large = (function() - b for function, b in zip(functions, before, strict=True))
    return all_blocks, large


def main(num_steps: int) -> None:
    torch.set_num_threads(2)
    counts = ctypes.CDLL(None)
    measured = {}
    gc.disable()
    for name, (call, without) in calls().items():
        for function in (call, without):
            repeat(function, COUNTED)
        measured[name] = {"bytes": growth(call, num_steps // CALLS[name])}
        if hasattr(counts, "count_of_blocks"):
            measured[name]["blocks"] = blocks(counts, call)
            measured[name]["without"] = blocks(counts, without)
    sys.stdout.write(json.dumps(measured) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]))
