"""Streams are what torch's cells give a step at a time, whatever is done to which of them when."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from helpers import CELLS, HAS_EXTENSION, OURS, TORCH, as_hx, max_error, states_of
from step_loop import StepLoop
from torch import Tensor, nn

from varlen_rnn import StreamingRNN

TOLERANCE = 1e-12
SEQUENCES, PARTS, OPERATIONS = 2000, 20, 12
# Through the module each call takes twenty times as long.
IN_EACH_PART = SEQUENCES // PARTS if HAS_EXTENSION else 10


def draw_layer(draw: random.Random, cell: str) -> nn.RNNBase:
    """Of one of both libraries, with weights that are not small."""
    hidden_size = draw.choice((1, 2, 3, 5, 8, 9))
    proj_size = draw.randint(1, hidden_size - 1) if cell == "lstm" and hidden_size > 1 else 0
    options = {"proj_size": proj_size} if proj_size and draw.random() < 0.4 else {}
    rnn = draw.choice((TORCH, OURS))[cell](
        draw.choice((1, 2, 3, 5, 8)),
        hidden_size,
        draw.randint(1, 3),
        bias=draw.random() < 0.7,
        batch_first=draw.random() < 0.5,
        dropout=draw.choice((0, 0.5)),
        dtype=torch.float64,
        **options,
    )
    return rnn.train(draw.random() < 0.5)


class Sequence:
    """One stream object and its truth, and the operations that are tried on both."""

    def __init__(self, cell: str, seed: int) -> None:
        self.draw = random.Random(f"{cell}{seed}")
        torch.manual_seed(seed)
        self.rnn = draw_layer(self.draw, cell)
        self.num_rows = self.draw.randint(1, 6)
        self.stream = StreamingRNN(self.rnn, self.num_rows)
        self.truth = StepLoop(self.rnn, self.num_rows)
        self.saved: list[tuple[Any, list[Tensor]]] = []
        self.error = 0.0

    def run(self) -> float:
        """The largest difference."""
        operations = (self.call, self.reset, self.save, self.load, self.train, self.refresh)
        weights = (12, 2, 2, 2, 1, 1)
        for operation in self.draw.choices(operations, weights, k=OPERATIONS):
            operation()
        for state, truth in zip(states_of(self.stream.state()), self.truth.states, strict=True):
            self.compare(state, truth)
        return self.error

    def compare(self, got: Tensor, truth: Tensor) -> None:
        self.error = max(self.error, max_error(got, truth))

    def rows(self) -> tuple[list[int], Any]:
        """Streams, and how the call is told of them."""
        if self.draw.random() < 0.3:
            return list(range(self.num_rows)), None
        rows = self.draw.sample(range(self.num_rows), self.draw.randint(0, self.num_rows))
        kind = self.draw.choice((list, tuple, torch.tensor))
        return rows, kind(rows).long() if kind is torch.tensor else kind(rows)

    def call(self) -> None:
        rows, told = self.rows()
        num_steps = self.draw.choice((0, 1, 1, 1, 2, 3))
        x = torch.randn(len(rows), num_steps, self.rnn.input_size, dtype=torch.float64)
        truth = self.truth(x, rows)
        if num_steps == 1 and self.draw.random() < 0.8:
            x, truth = x[:, 0], truth[:, 0]
        out = None
        if self.draw.random() < 0.3:
            out = torch.full_like(truth, torch.nan)
        elif self.draw.random() < 0.2:
            out = torch.full((*truth.shape, 2), torch.nan, dtype=torch.float64)[..., 0]
        result = self.stream(x, told, out)
        assert out is None or result is out
        self.compare(result, truth)

    def reset(self) -> None:
        rows, told = self.rows()
        self.stream.reset(told)
        self.truth.load_state([torch.zeros_like(s) for s in self.truth.state(rows)], rows)

    def save(self) -> None:
        rows, told = self.rows()
        self.saved.append((self.stream.state(told), self.truth.state(rows)))

    def load(self) -> None:
        """What was saved, or half of it, into any rows."""
        if not self.saved:
            return
        state, truth = self.draw.choice(self.saved)
        count = min(truth[0].shape[1], self.draw.choice((1, 2, self.num_rows)))
        rows = self.draw.sample(range(self.num_rows), count)
        taken = [part[:, :count] for part in states_of(state)]
        self.stream.load_state(as_hx(taken), rows)
        self.truth.load_state([part[:, :count] for part in truth], rows)

    @torch.no_grad()
    def train(self) -> None:
        """Weights change; streams go on with those that were packed."""
        for weight in self.rnn.parameters():
            weight.mul_(0.9).add_(torch.randn_like(weight), alpha=0.1)

    def refresh(self) -> None:
        self.stream.refresh()
        self.truth.refresh()


@pytest.mark.filterwarnings("ignore:dropout option adds dropout after all but last")
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("part", range(PARTS // len(CELLS)))
@pytest.mark.parametrize("cell", CELLS)
def test_random_operations(cell: str, part: int, one_isa: str) -> None:
    for index in range(IN_EACH_PART):
        seed = part * IN_EACH_PART + index
        error = Sequence(cell, seed).run()
        assert error <= TOLERANCE, f"sequence {seed} differs by {error:.3g}"
