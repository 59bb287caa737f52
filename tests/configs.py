"""The random grid: configurations drawn once, from a seed."""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass

import torch
from helpers import (
    CELLS,
    FORMS,
    HAS_EXTENSION,
    Results,
    leaves_of,
    ours_in_form,
    pair,
    random_batch,
    random_hx,
    torch_packed,
    with_gradients,
)
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class LayerConfig:
    """What both random grids draw of a layer."""

    cell: str
    input_size: int
    hidden_size: int
    proj_size: int
    num_layers: int
    bidirectional: bool
    bias: bool
    batch_first: bool
    with_hx: bool
    threads: int
    seed: int

    @property
    def layer(self) -> list[str]:
        """Parts of a test's id."""
        parts = [
            f"I{self.input_size}-H{self.hidden_size}",
            f"P{self.proj_size}" * bool(self.proj_size),
            f"L{self.num_layers}" * (self.num_layers > 1),
            "bi" * self.bidirectional,
            "nobias" * (not self.bias),
            "bf" * self.batch_first,
            "hx" * self.with_hx,
        ]
        return [part for part in parts if part]

    def modules(self, dtype: torch.dtype) -> tuple[nn.RNNBase, nn.RNNBase]:
        """The torch module and ours; weights are drawn in float32, whatever the dtype."""
        options = {"proj_size": self.proj_size} if self.proj_size else {}
        theirs, ours = pair(
            self.cell,
            self.input_size,
            self.hidden_size,
            self.num_layers,
            bias=self.bias,
            batch_first=self.batch_first,
            bidirectional=self.bidirectional,
            seed=self.seed,
            **options,
        )
        return theirs.to(dtype), ours.to(dtype)


@dataclass(frozen=True, kw_only=True)
class Config(LayerConfig):
    """One drawn case; its string is the test's id."""

    form: str
    lengths: tuple[int, ...]
    num_steps: int

    def __str__(self) -> str:
        batch = f"{self.form}-B{len(self.lengths)}-T{self.num_steps}-threads{self.threads}"
        return "-".join([f"{self.seed}-{self.cell}", *self.layer, batch])

    def data(self, rnn: nn.RNNBase) -> tuple[Tensor, list[Tensor]]:
        """``x [B, T, I]`` and the initial states."""
        num_rows = len(self.lengths)
        x = random_batch(rnn, num_rows, self.num_steps, seed=self.seed)
        return x, random_hx(rnn, num_rows, seed=self.seed) if self.with_hx else []


SIZES = (1, 2, 3, 7, 8, 17, 33)
LARGE_SIZES = (64, 100, 129)


def draw_configs(cell: str, count: int, *, seed: int = 0) -> list[Config]:
    """``count`` cases; one in 20 is long, one has many rows, two are large, the rest is small."""
    draw = random.Random(f"{cell}-{seed}")
    return [_draw_config(draw, cell, index) for index in range(count)]


def _draw_config(draw: random.Random, cell: str, index: int) -> Config:
    kind = {0: "long", 5: "large", 10: "many", 15: "large"}.get(index % 20, "small")
    form = draw.choice((*FORMS, "lengths", "lengths"))
    sizes = LARGE_SIZES if kind == "large" else SIZES[:5] if kind == "long" else SIZES
    hidden_size = draw.choice(sizes)
    num_rows = (
        draw.randint(65, 150) if kind == "many" else draw.randint(1, 3 if kind == "long" else 9)
    )
    num_rows = 1 if form == "single" else num_rows
    longest = draw.randint(150, 400) if kind == "long" else draw.choice((1, 2, 5, 12, 25))
    shortest = 0 if form == "lengths" else 1
    lengths = [draw.randint(shortest, longest) for _ in range(num_rows)]
    if form == "lengths" and num_rows > 1 and draw.random() < 0.5:
        lengths[draw.randrange(num_rows)] = 0
    if form in ("full", "single") or not any(lengths):
        lengths = [longest] * num_rows
    if form == "sorted":
        lengths.sort(reverse=True)
    return Config(
        cell=cell,
        input_size=draw.choice(sizes),
        hidden_size=hidden_size,
        proj_size=draw.randint(1, hidden_size - 1)
        if cell == "lstm" and hidden_size > 1 and draw.random() < 0.3
        else 0,
        num_layers=1 if kind == "long" else draw.randint(1, 3),
        bidirectional=draw.random() < 0.5,
        bias=draw.random() < 0.7,
        batch_first=draw.random() < 0.5,
        form=form,
        with_hx=draw.random() < 0.6,
        threads=draw.choice((1, 1, 2)),
        lengths=tuple(lengths),
        num_steps=max(lengths) + (draw.randint(0, 4) if form == "lengths" else 0),
        seed=index,
    )


@functools.cache
def torch_results(config: Config, dtype: torch.dtype, rounded_to: torch.dtype) -> Results:
    """By torch, with weights and data rounded to one dtype, computed in another."""
    rnn, _ = config.modules(rounded_to)
    x, states = config.data(rnn)
    rnn, x, states = rnn.to(dtype), x.to(dtype), [s.to(dtype) for s in states]
    leaves = leaves_of(rnn, x, states)
    return with_gradients(torch_packed(rnn, x, states, config.lengths), leaves)


def our_results(config: Config, dtype: torch.dtype) -> Results:
    """By our module, in the configuration's form and on its number of threads."""
    _, rnn = config.modules(dtype)
    x, states = config.data(rnn)
    leaves = leaves_of(rnn, x, states)
    before = torch.get_num_threads()
    if HAS_EXTENSION:
        torch.set_num_threads(config.threads)
    try:
        outputs = ours_in_form(rnn, x, states, config.lengths, config.form)
        return with_gradients(outputs, leaves)
    finally:
        torch.set_num_threads(before)


GRID = {cell: draw_configs(cell, 200) for cell in CELLS}
