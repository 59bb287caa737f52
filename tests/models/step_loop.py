"""The truth for streams, without this library: torch's cells, a step at a time, in float64."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class StepLoop:
    """Streams of an ``nn.LSTM`` or ``nn.GRU``; its weights as they were at the last refresh."""

    def __init__(self, rnn: nn.RNNBase, num_rows: int) -> None:
        self.rnn = rnn
        output_size = rnn.proj_size or rnn.hidden_size
        sizes = (output_size, rnn.hidden_size)[: 2 if rnn.mode == "LSTM" else 1]
        self.states = [rnn.weight_ih_l0.new_zeros(rnn.num_layers, num_rows, n) for n in sizes]
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        self._cells = [_cell(self.rnn, layer) for layer in range(self.rnn.num_layers)]
        names = [f"weight_hr_l{layer}" for layer in range(self.rnn.num_layers)]
        self._projections = [getattr(self.rnn, n).clone() for n in names if self.rnn.proj_size]

    @torch.no_grad()
    def __call__(self, x: Tensor, rows: Sequence[int]) -> Tensor:
        """``x [K, T, I]`` to ``[K, T, P]``."""
        outputs = [self._step(step, list(rows)) for step in x.unbind(1)]
        size = self.states[0].shape[2]
        return torch.stack(outputs, 1) if outputs else x.new_empty(len(rows), 0, size)

    def _step(self, x: Tensor, rows: list[int]) -> Tensor:
        for layer, cell in enumerate(self._cells):
            before = [state[layer, rows] for state in self.states]
            if self._projections:
                # The cell has no projection: h goes in beside x, and the cell's own is zero.
                joined, zeros = torch.cat([x, before[0]], 1), torch.zeros_like(before[1])
                h, c = cell(joined, (zeros, before[1]))
                after = [h @ self._projections[layer].T, c]
            elif self.rnn.mode == "LSTM":
                after = list(cell(x, tuple(before)))
            else:
                after = [cell(x, before[0])]
            for state, value in zip(self.states, after, strict=True):
                state[layer, rows] = value
            x = after[0]
        return x

    def state(self, rows: Sequence[int]) -> list[Tensor]:
        return [state[:, list(rows)].clone() for state in self.states]

    def load_state(self, states: Sequence[Tensor], rows: Sequence[int]) -> None:
        for state, value in zip(self.states, states, strict=True):
            state[:, list(rows)] = value


def _cell(rnn: nn.RNNBase, layer: int) -> nn.RNNCellBase:
    given = {
        name.removesuffix(f"_l{layer}"): weight.clone()
        for name, weight in rnn.named_parameters()
        if name.endswith(f"_l{layer}")
    }
    if given.pop("weight_hr", None) is not None:
        given["weight_ih"] = torch.cat([given["weight_ih"], given["weight_hh"]], 1)
        given["weight_hh"] = torch.zeros(4 * rnn.hidden_size, rnn.hidden_size)
    cls = nn.LSTMCell if rnn.mode == "LSTM" else nn.GRUCell
    cell = cls(given["weight_ih"].shape[1], rnn.hidden_size, bias=rnn.bias, dtype=torch.float64)
    cell.load_state_dict(given)
    return cell
