"""The cases of the tests in the emulator: ragged batches, layers, and what these are given."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from ragged import Ragged, drawn
from rounded import NUMBERS, Number
from torch import Tensor

from varlen_rnn import layout
from varlen_rnn.layout import Layout, index_arrays

# Formats of the persistent kernels.
PERSISTENT = ("tf32", "bfloat16", "float16")

# Drawn as ragged.drawn reads it: x a token, . padding, R a token before which the state is reset.
BATCHES = {
    "no tokens": ("..", ".."),
    "one token": ("x",),
    "one row": ("xxxxx",),
    "one step": ("x",) * 5,
    "equal lengths": ("xxxxxx",) * 4,
    "ragged": ("xxx...", "......", "xxxxxx", "x.....", "xx....", "......"),
    "one long row": ("xxxxxxxxx", *("x........",) * 9),
    "holes": (".x.xx", "x...x", "..x..", "....."),
    "resets": ("xxRx.Rxr", "RxxxRRxx", "rr......", "x..xx.Rx"),
    # More segments than the 8 slots of a team, which take several one after the other.
    "chains": tuple("x" * n + "." * (4 - n) for n in (2, 4, 1, 3, 2, 1, 0, 4, 1, 1) * 2),
    "one row of resets": ("xxRxxxRxRx",),
    "chains of resets": ("xxxxxxxRx", "RRRRRRxRR", "xRxRRRRxR", "xxRxxRRxr", "........."),
    "a row more than slots": ("xx",) * 9,
    "few": ("xx", "xR", "x."),
}


@dataclass(frozen=True)
class Case:
    """A layer's forward and backward pass: its sizes, and which arguments there are."""

    cell: str
    number: str
    hidden_size: int
    batch: str = "ragged"
    directions: int = 1
    input_size: int = 3
    projected_size: int = 0
    bias: bool = True
    states: bool = True
    one_hot: bool = False  # W_ih is a part of the identity: d_x has the gradients of the gates
    without: tuple[str, ...] = ()  # gradients of results that are not given

    @property
    def ragged(self) -> Ragged:
        return drawn(*BATCHES[self.batch])

    @property
    def format(self) -> Number:
        return NUMBERS[self.number]

    @property
    def is_lstm(self) -> bool:
        return self.cell == "lstm"

    @property
    def num_gates(self) -> int:
        return 4 if self.is_lstm else 3

    @property
    def output_size(self) -> int:
        return self.projected_size or self.hidden_size

    @property
    def state_names(self) -> tuple[str, ...]:
        return ("h", "c") if self.is_lstm else ("h",)

    @property
    def results(self) -> tuple[str, ...]:
        """What the forward op returns and has a gradient."""
        return ("out", "h_n", "c_n", "cells") if self.is_lstm else ("out", "h_n")

    @property
    def kinds(self) -> tuple[str, ...]:
        kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        return (*kinds, "weight_hr") if self.is_lstm else kinds


def exact_layout(batch: Ragged, directions: int) -> Layout:
    """With arrays of just the sizes."""
    num_rows, num_steps = batch.valid.shape
    return layout.from_padded(
        num_steps,
        num_rows,
        mask=batch.valid,
        resets=batch.resets,
        batch_first=True,
        bidirectional=directions == 2,
    )


def capacity_layout(batch: Ragged, directions: int) -> Layout:
    """As it is made of masks that lie on the device; what has no meaning there is out of range."""
    mask, resets = batch.valid.reshape(-1), batch.resets
    resets = None if resets is None else resets.reshape(-1)
    sizes = batch.valid.shape
    arrays = index_arrays.from_rows(None, None, mask, resets, *sizes, True, directions == 2)
    result = Layout(*arrays)
    exact = vars(result.exact())
    for name, array in vars(result).items():
        if name not in ("batch_sizes", "final_segment") and array is not None:
            array[len(exact[name]) :] = 2**62
    return result


@functools.cache
def tensors_of(case: Case) -> dict[str, Tensor]:
    """Every tensor that is given, by name; at padding they hold NaN.

    W_ih x is a sum of a few multiples of 1/32, which float32 holds in any order: so what torch's
    product does with another number of tokens makes no difference.
    """
    generator = torch.Generator().manual_seed(0)
    valid = case.ragged.valid
    (num_rows, _), num_tokens = valid.shape, int(valid.sum())
    directions, gates, hidden = case.directions, case.num_gates, case.hidden_size
    output = case.output_size
    inputs = directions * gates * hidden if case.one_hot else case.input_size

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)

    def whole(*shape: int) -> Tensor:
        return torch.randint(-4, 5, shape, generator=generator).double()

    padding = ~valid.reshape(-1, 1)
    tensors = {"x": (whole(valid.numel(), inputs) / 4).masked_fill(padding, float("nan"))}
    sizes = dict(zip(case.state_names, (output, hidden), strict=False))
    for name, size in sizes.items():
        if case.states:
            tensors[f"{name}_0"] = normal(directions, num_rows, size, scale=0.5)
    for d in range(directions):
        rows = gates * hidden
        tensors[f"weight_ih_{d}"] = (
            torch.eye(inputs)[d * rows : (d + 1) * rows]
            if case.one_hot
            else whole(rows, inputs) / 8
        )
        tensors[f"weight_hh_{d}"] = normal(gates * hidden, output, scale=output**-0.5)
        if case.bias:
            tensors[f"bias_ih_{d}"] = whole(gates * hidden) / 8
            tensors[f"bias_hh_{d}"] = whole(gates * hidden) / 8
        if case.projected_size:
            tensors[f"weight_hr_{d}"] = normal(output, hidden, scale=hidden**-0.5)
    gradients = {
        "out": normal(valid.numel(), directions * output).masked_fill(padding, float("nan"))
    }
    for name, size in sizes.items():
        gradients[f"{name}_n"] = normal(directions, num_rows, size)
    gradients["cells"] = normal(directions, num_tokens, hidden)
    tensors |= {f"d_{n}": gradients[n] for n in case.results if n not in case.without}
    compute = torch.promote_types(case.format.dtype, torch.float32)
    return {n: t.to(compute if n == "d_cells" else case.format.dtype) for n, t in tensors.items()}
