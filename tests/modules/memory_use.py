"""Measures the memory of calls in a process of its own; test_memory.py compares it with formulas.

Prints a line of JSON for each call, with the bytes of resident memory that the call has added when
it is over, and at its peak. This is the operating system's count, so nothing is missed, whether
torch, C++ or Python allocated it. ``ENVIRONMENT`` makes it exact to a few pages.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from collections.abc import Callable
from typing import TypeVar

import torch
from helpers import CELLS, OURS
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

# glibc gives blocks larger than this back when they are freed, and never keeps them for later.
ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "MALLOC_TOP_PAD_": "0",
}

THREADS = 2  # each has scratch memory of its own
FORMS = ("packed", "padded")
ROWS = 100

# Input size, hidden size, layers and tokens, about.
WARM_UP = (256, 256, 1, 2_000)
INFERENCE = (256, 256, 1, 40_000)
TRAINING = ((128, 256, 1, 12_000), (128, 128, 2, 12_000))

Result = TypeVar("Result")


def can_measure() -> bool:
    """Whether this is Linux, and lets a process reset its peak."""
    try:
        reset_peak()
    except OSError:
        return False
    return True


def reset_peak() -> None:
    with open("/proc/self/clear_refs", "w") as clear_refs:
        clear_refs.write("5")


def resident(field: str) -> int:
    """Bytes: ``VmRSS`` as of now, ``VmHWM`` at the peak."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field)) * 1024


def measure(call: Callable[[], Result]) -> tuple[Result, dict[str, int]]:
    gc.collect()
    reset_peak()
    before = resident("VmRSS")
    result = call()
    added = {"added": resident("VmRSS") - before, "peak": resident("VmHWM") - before}
    return result, added


def random_input(form: str, input_size: int, num_tokens: int) -> tuple[Tensor, Tensor, int]:
    """Tokens or padded rows, the lengths of all rows, and the number of tokens."""
    longest = 4 * num_tokens // (3 * ROWS)
    lengths = torch.linspace(longest, longest // 2, ROWS).long()
    num_tokens = int(lengths.sum())
    shape = (num_tokens,) if form == "packed" else (ROWS, longest)
    return torch.randn(*shape, input_size), lengths, num_tokens


class Calls:
    """One module on one batch."""

    def __init__(self, cell: str, form: str, sizes: tuple[int, int, int, int]) -> None:
        input_size, hidden_size, layers, num_tokens = sizes
        self.rnn = OURS[cell](input_size, hidden_size, layers, batch_first=True)
        self.x, self.lengths, num_tokens = random_input(form, input_size, num_tokens)
        steps = torch.arange(int(self.lengths[0]))
        self.batch_sizes = (self.lengths > steps[:, None]).sum(1)
        self.what = {
            "cell": cell,
            "form": form,
            "layers": layers,
            "input_size": input_size,
            "hidden_size": hidden_size,
            "tokens": num_tokens,
            "flat_rows": self.x[..., 0].numel(),
        }

    def output(self) -> Tensor:
        if self.what["form"] == "packed":
            return self.rnn(PackedSequence(self.x, self.batch_sizes))[0].data
        return self.rnn(self.x, lengths=self.lengths)[0]

    def print(self, kind: str, measured: dict[str, int]) -> None:
        sys.stdout.write(json.dumps({"kind": kind, **self.what, **measured}) + "\n")

    def inference(self) -> None:
        with torch.no_grad():
            _, measured = measure(self.output)
        self.print("inference", measured)

    def training(self) -> None:
        leaves = [self.x.requires_grad_(), *self.rnn.parameters()]
        d_out = torch.randn(*self.x.shape[:-1], self.rnn.hidden_size)

        def step() -> tuple[dict[str, int], dict[str, int]]:
            out, forward = measure(self.output)
            _, backward = measure(lambda: torch.autograd.grad(out, leaves, d_out))
            return forward, backward

        step()  # the matrix product's library keeps buffers as large as it has ever needed
        for kind, measured in zip(("forward", "backward"), step(), strict=True):
            self.print(kind, measured)


def main() -> None:
    # No pages of 2 MB, of which a touched byte counts as all: PR_SET_THP_DISABLE.
    ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)
    torch.set_num_threads(THREADS)
    for cell in CELLS:
        for form in FORMS:
            Calls(cell, form, WARM_UP).output()
            Calls(cell, form, INFERENCE).inference()
            for sizes in TRAINING:
                Calls(cell, form, sizes).training()


if __name__ == "__main__":
    main()
