"""What is timed: shapes, distributions of lengths, and the batch that a seed makes of them.

Letters as in :mod:`varlen_rnn.layout`: B rows, T steps, N valid tokens, I input, H hidden.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.forms import Call, Tokens, data_of, in_form, take, with_data

CELLS = ("lstm", "gru")
MODES = ("inference", "training")
TORCH_MODULES: dict[str, type[nn.LSTM] | type[nn.GRU]] = {"lstm": nn.LSTM, "gru": nn.GRU}
GATES = {"lstm": 4, "gru": 3}
JAPANESE_VOWELS = Path(__file__).parents[1] / "examples" / "data" / "japanese_vowels.npz"

# B, T, and one number for I and H
SHAPES = (
    (1, 100, 128),
    (8, 100, 128),
    (32, 100, 128),
    (32, 100, 256),
    (64, 200, 256),
    (32, 100, 512),
    (32, 100, 1024),
    (256, 50, 64),
)
PEERS = ("varlen_rnn", "varlen_rnn packed", "nn padded", "nn packed", "onnxruntime")
STEP_PEERS = ("varlen_rnn", "nn padded", "nn cell")
# Ours on each form of a batch, and what comes before the first layer then.
FORM_PEERS = {
    "lengths": "varlen_rnn",
    "packed": "varlen_rnn packed",
    "mask": "varlen_rnn mask",
    "left mask": "varlen_rnn left mask",
    "flat": "varlen_rnn flat",
    "nested": "varlen_rnn nested",
    "resets": "varlen_rnn resets",
}
LAYOUT_PEERS = {form: f"layout {form}" for form in FORM_PEERS}
RESET_PEERS = ("varlen_rnn", "varlen_rnn without resets", "nn step loop")


@dataclass(frozen=True)
class Workload:
    """One case: a layer, a batch, and what is done with them.

    Attributes:
        group: the question it answers: shapes, lengths, growth, step, threads, forms, resets or,
            on a GPU, grid.
        cell: "lstm" or "gru"; one layer, one direction.
        mode: "inference" (forward, no gradients) or "training" (forward, and the gradients of the
            sum of all valid outputs with respect to the input and every weight).
        steps: T. In every drawn distribution the longest row has T tokens, so that the padded
            batch carries no more padding than it must; "japanese_vowels" has the lengths it has.
        distribution: a key of `DISTRIBUTIONS`.
        streaming: one step from given states, and no lengths.
        dtype: of inputs and weights, or "tf32": float32 that is rounded to TF32 in products.
        reset_probability: that a state is reset before a token; None if there are no resets, while
            0 stands for flags that are all False.
        peers: keys of `benchmarks.peers.PEERS`.
    """

    group: str
    cell: str
    mode: str
    rows: int
    steps: int
    input_size: int
    hidden_size: int
    distribution: str = "uniform"
    threads: int = 1
    dtype: str = "float32"
    seed: int = 0
    streaming: bool = False
    reset_probability: float | None = None
    peers: tuple[str, ...] = PEERS

    @property
    def name(self) -> str:
        """Unlike that of any other workload."""
        sizes = f"B{self.rows}-T{self.steps}-I{self.input_size}-H{self.hidden_size}"
        resets = "" if self.reset_probability is None else f"-resets{self.reset_probability:g}"
        how = f"{self.distribution}{resets}-{self.dtype}-threads{self.threads}"
        return f"{self.group}/{self.cell}-{self.mode}-{sizes}-{how}"

    @property
    def torch_dtype(self) -> torch.dtype:
        """What inputs and weights are stored in."""
        return torch.float32 if self.dtype == "tf32" else getattr(torch, self.dtype)

    @property
    def training(self) -> bool:
        """Whether gradients are computed."""
        return self.mode == "training"

    def lengths(self) -> Tensor:
        """``[B]``, int64, each at least 1."""
        generator = torch.Generator().manual_seed(self.seed)
        return DISTRIBUTIONS[self.distribution](self.rows, self.steps, generator)

    def resets(self) -> Tensor | None:
        """``[B, T]`` bool, each drawn by itself."""
        if self.reset_probability is None:
            return None
        generator = torch.Generator().manual_seed(self.seed + 4)
        return torch.rand(self.rows, self.steps, generator=generator) < self.reset_probability

    def flops(self) -> int:
        """2 multiply-adds a weight and valid token; a backward pass is twice a forward pass."""
        per_token = 2 * GATES[self.cell] * self.hidden_size * (self.input_size + self.hidden_size)
        return per_token * int(self.lengths().sum()) * (3 if self.training else 1)

    def batch(self, device: str = "cpu") -> Batch:
        """The numbers, the same at every call; lengths and weights also on every device."""
        generator = torch.Generator(device).manual_seed(self.seed + 1)
        lengths = self.lengths()
        options = {"device": device, "dtype": self.torch_dtype}
        valid = (torch.arange(int(lengths.max())) < lengths[:, None]).to(device)
        x = torch.randn(*valid.shape, self.input_size, generator=generator, device=device)
        sizes = (2, 1, self.rows, self.hidden_size)
        h_0, c_0 = torch.randn(*sizes, generator=generator, device=device)
        states = (h_0, c_0) if self.cell == "lstm" else (h_0,)
        resets = self.resets()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed + 2)
            rnn = TORCH_MODULES[self.cell](self.input_size, self.hidden_size)
        return Batch(
            self,
            lengths,
            valid,
            (x * valid[..., None]).to(**options),
            tuple(s.to(**options) for s in states) if self.streaming else (),
            {name: weight.to(**options) for name, weight in rnn.state_dict().items()},
            None if resets is None else resets.to(device),
        )


@dataclass(frozen=True)
class Batch:
    """A workload's numbers; every peer makes its own form of them before it is timed.

    Attributes:
        lengths: ``[B]`` int64, on the CPU.
        valid: ``[B, T]`` bool, True at tokens.
        x: ``[B, T, I]``, zero at padding.
        states: of the streaming step, each ``[1, B, H]``.
        weights: the `state_dict` of the layer.
        resets: ``[B, T]`` bool, True where the state is zero before the token is consumed; None if
            the workload has no resets.
    """

    workload: Workload
    lengths: Tensor
    valid: Tensor
    x: Tensor
    states: tuple[Tensor, ...]
    weights: dict[str, Tensor]
    resets: Tensor | None

    def ones(self) -> Tensor:
        """``[B, T, H]``, 1 at tokens and 0 at padding: the gradient of the sum of the outputs."""
        return self.valid[..., None].to(self.x.dtype).repeat(1, 1, self.workload.hidden_size)

    def tokens(self, padded: Tensor) -> Tensor:
        """``[B, T, F]`` to ``[N, F]``, row after row: the form in which results are compared."""
        return padded[self.valid]

    def in_form(self, form: str, padded: Tensor | None = None) -> Call:
        """The batch, or any ``[B, T, F]``, in a form of `FORM_PEERS`, or "padded" without more.

        Time comes first, as torch has it, and what is passed lies dense in memory. A streaming step
        goes without lengths, and so do rows that are full, as in reinforcement learning.
        """
        padded = self.x if padded is None else padded
        no_lengths = self.workload.streaming or self.workload.reset_probability is not None
        if form == "padded":
            call = Call(padded.transpose(0, 1), {}, lambda out: out.transpose(0, 1))
        elif form == "lengths" and no_lengths:
            call = in_form("full", padded, Tokens(self.valid, self.resets), batch_first=False)
        elif form == "resets":  # flags that are all False, which change no result
            flags = torch.zeros_like(self.valid)
            call = in_form("lengths", padded, Tokens(self.valid, flags), batch_first=False)
        elif form == "left mask":  # the same tokens, behind the padding
            order = torch.sort(self.valid.int(), dim=1, stable=True).indices
            moved = Tokens(take(self.valid, order))
            call = in_form("mask", take(padded, order), moved, batch_first=False)
            back = call.back
            call = replace(call, back=lambda out: take(back(out), order.argsort(1)))
        else:
            call = in_form(form, padded, Tokens(self.valid), batch_first=False)
        keywords = {name: value.contiguous() for name, value in call.keywords.items()}
        if form == "flat":  # FlashAttention's are int32
            keywords["cu_seqlens"] = keywords["cu_seqlens"].int()
        data = data_of(call.input).contiguous()
        return replace(call, input=with_data(call.input, data), keywords=keywords)

    def load(self, modules: Mapping[str, Callable[..., nn.Module]]) -> nn.Module:
        """The module of the batch's cell, be it a layer or torch's cell, with these weights."""
        sizes = (self.workload.input_size, self.workload.hidden_size)
        rnn = modules[self.workload.cell](*sizes, device=self.x.device, dtype=self.x.dtype)
        cell = isinstance(rnn, nn.RNNCellBase)
        rnn.load_state_dict({(k[: -len("_l0")] if cell else k): v for k, v in self.weights.items()})
        return rnn


def _longest_is(steps: int, lengths: Tensor) -> Tensor:
    lengths = lengths.round().long().clamp(1, steps)
    lengths[lengths.argmax()] = steps
    return lengths


def _uniform(rows: int, steps: int, generator: torch.Generator) -> Tensor:
    return _longest_is(steps, torch.randint(1, steps + 1, (rows,), generator=generator))


def _lognormal(rows: int, steps: int, generator: torch.Generator) -> Tensor:
    """Many short rows and a long tail, as in text: the median is a quarter of T."""
    draws = math.log(max(steps / 4, 1)) + 0.75 * torch.randn(rows, generator=generator)
    return _longest_is(steps, draws.exp())


@functools.cache
def _recorded_lengths() -> Tensor:
    with np.load(JAPANESE_VOWELS) as data:
        return torch.from_numpy(data["lengths"])


def _japanese_vowels(rows: int, steps: int, generator: torch.Generator) -> Tensor:
    """The lengths of that many recordings of the data set in examples/data."""
    recorded = _recorded_lengths()
    return recorded[torch.randperm(len(recorded), generator=generator)[:rows]].clamp(max=steps)


DISTRIBUTIONS: dict[str, Callable[[int, int, torch.Generator], Tensor]] = {
    "uniform": _uniform,
    "lognormal": _lognormal,
    "linspace": lambda rows, steps, _: _longest_is(
        steps, torch.linspace(1, steps, rows).round().long()
    ),
    "full": lambda rows, steps, _: torch.full((rows,), steps),
    "japanese_vowels": _japanese_vowels,
}
