"""What layers with int8 weights compute, number by number, in NumPy: the tests' truth."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from helpers import Results, as_hx, states_of
from numpy.typing import NDArray
from ragged import Call
from torch import Tensor, nn

Array = NDArray[Any]


def quantized_weight(weight: Array) -> tuple[Array, Array]:
    """Integers ``[rows, K]`` in [-127, 127] and float32 scales ``[rows]``."""
    scale = np.abs(weight).max(axis=1) / np.float32(127)
    q = np.zeros(weight.shape, np.int64)
    for row, (values, step) in enumerate(zip(weight, scale, strict=True)):
        q[row] = np.rint(values / step) if step else 0
    return q, scale


def quantized_tokens(x: Array) -> tuple[Array, Array]:
    """Integers ``[N, K]`` and float32 scales ``[N, 1]``."""
    largest = np.float32(min(32639, (2**31 - 1) // (127 * x.shape[1])))
    magnitude = np.abs(x).max(axis=1, keepdims=True)
    with np.errstate(divide="ignore"):
        inverse = np.where(magnitude == 0, np.float32(0), largest / magnitude)
    return np.rint(x * inverse).astype(np.int64), magnitude / largest


def product(x: Array, weight: Array, bias: Array) -> Array:
    """``x [N, K]`` times ``weight [rows, K]``, float32 to float64; sums must fit into 32 bits."""
    (q_w, scale_w), (q_x, scale_x) = quantized_weight(weight), quantized_tokens(x)
    sums = q_x @ q_w.T
    assert (np.abs(q_x) @ np.abs(q_w).T).max(initial=0) < 2**31
    return sums * (scale_x.astype(np.float64) * scale_w.astype(np.float64)) + bias


def sigmoid(x: Array) -> Array:
    """In float64."""
    return 1 / (1 + np.exp(-x))


class Truth:
    """A float32 layer as if quantised; takes one sequence ``[T, I]``, as torch.nn's modules do."""

    def __init__(self, rnn: nn.RNNBase) -> None:
        self.rnn = rnn

    def __getattr__(self, name: str) -> Any:
        """Sizes and weights are the layer's."""
        return getattr(self.rnn, name)

    def __call__(self, x: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
        """Output ``[T, D * H]`` and final states ``[L * D, H]``."""
        directions = 2 if self.rnn.bidirectional else 1
        given = [state.numpy() for state in states_of(hx)]
        finals: list[list[Array]] = [[] for _ in given]
        tokens = x.numpy()
        for layer in range(self.rnn.num_layers):
            outs = []
            for d in range(directions):
                states = [state[layer * directions + d] for state in given]
                suffix = f"_l{layer}" + "_reverse" * d
                out, states = self.direction(tokens[:: 1 - 2 * d], states, suffix)
                outs.append(out[:: 1 - 2 * d])
                for final, state in zip(finals, states, strict=True):
                    final.append(state)
            tokens = np.concatenate(outs, axis=1)
        final_states = [torch.from_numpy(np.stack(final)) for final in finals]
        return torch.from_numpy(tokens), as_hx(final_states)

    def direction(
        self, tokens: Array, states: list[Array], suffix: str
    ) -> tuple[Array, list[Array]]:
        """One direction's output and final states, all float32."""
        w_ih, w_hh = (
            getattr(self.rnn, f"weight_{k}{suffix}").numpy(force=True) for k in ("ih", "hh")
        )
        b_ih = b_hh = np.zeros(len(w_ih), np.float32)
        if self.rnn.bias:
            b_ih, b_hh = (
                getattr(self.rnn, f"bias_{k}{suffix}").numpy(force=True) for k in ("ih", "hh")
            )
        h, *c = (state.astype(np.float64) for state in states)
        outs = []
        for from_x in product(tokens, w_ih, b_ih):
            from_h = product(h.astype(np.float32)[None], w_hh, b_hh)[0]
            if c:
                i, f, g, o = np.split(from_x + from_h, 4)
                c = [sigmoid(f) * c[0] + sigmoid(i) * np.tanh(g)]
                h = sigmoid(o) * np.tanh(c[0])
            else:
                (x_r, x_z, x_n), (h_r, h_z, h_n) = np.split(from_x, 3), np.split(from_h, 3)
                z, n = sigmoid(x_z + h_z), np.tanh(x_n + sigmoid(x_r + h_r) * h_n)
                h = (1 - z) * n + z * h
            outs.append(h.astype(np.float32))
        out = np.stack(outs) if outs else np.zeros((0, len(h)), np.float32)
        return out, [state.astype(np.float32) for state in (h, *c)]


def named(call: Call, rnn: nn.Module, states: list[Tensor]) -> Results:
    """Output and final states by name."""
    out, finals = call(rnn, states)
    return {"out": out, **dict(zip(("h_n", "c_n"), finals, strict=False))}
