"""What the tests of StreamingRNN share: layers, their one call, sequences fed in pieces.

``x`` is ``[B, T, I]``; row b of it holds ``lengths[b]`` tokens, for one stream.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from helpers import HAS_EXTENSION, OURS, TORCH, as_hx, assert_bitwise, states_of
from torch import Tensor, nn

from varlen_rnn import StreamingRNN, convert, freeze

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# Of a layer that is given to a stream, and of how it keeps weights.
KINDS = ("module", "torch", "frozen", "bfloat16", "int8")
DTYPES_OF = dict.fromkeys(KINDS[:3], DTYPES) | {
    "bfloat16": (torch.float32, torch.bfloat16),
    "int8": (torch.float32,),
}
SIZES = (1, 5, 17, 64, 130)
# Where neither matters: rows, and input size; the hidden size is 17.
ROWS, SIZE = 4, 5

# On the fallback a step runs through the module, where torch sums in another order for other sizes,
# and 16-bit cell states are rounded between calls.
_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 0.1, torch.float16: 0.01}


@dataclass(frozen=True, kw_only=True)
class Layer:
    """What a layer is made of."""

    cell: str
    input_size: int = 5
    hidden_size: int = 17
    num_layers: int = 1
    proj_size: int = 0
    bias: bool = True
    dtype: torch.dtype = torch.float32
    kind: str = "module"

    def __str__(self) -> str:
        sizes = f"I{self.input_size}-H{self.hidden_size}-L{self.num_layers}"
        sizes += f"-P{self.proj_size}" * bool(self.proj_size) + "-nobias" * (not self.bias)
        return f"{self.cell}-{self.kind}-{str(self.dtype).removeprefix('torch.')}-{sizes}"

    def make(self, seed: int = 0) -> tuple[nn.RNNBase, nn.RNNBase]:
        """The layer for a stream, and the module with whose one call the stream is compared."""
        torch.manual_seed(seed)
        cls = (TORCH if self.kind == "torch" else OURS)[self.cell]
        options: dict[str, Any] = {"proj_size": self.proj_size} if self.proj_size else {}
        rnn = cls(self.input_size, self.hidden_size, self.num_layers, bias=self.bias, **options).to(
            self.dtype
        )
        if self.kind == "torch":
            return rnn, convert(copy.deepcopy(rnn))
        if self.kind == "module":
            return rnn, rnn
        weights = {"frozen": None, "bfloat16": torch.bfloat16, "int8": torch.int8}[self.kind]
        frozen = freeze(rnn, weights=weights)
        return frozen, frozen

    def batch(self, lengths: Sequence[int], seed: int = 1) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        shape = (len(lengths), max(lengths), self.input_size)
        return torch.randn(shape, generator=generator).to(self.dtype)


def draw_layer(draw: random.Random, cell: str, kind: str, dtype: torch.dtype, proj: bool) -> Layer:
    """Sizes that fill a register, or a tile, or just do not."""
    hidden_size = draw.choice(SIZES[1:] if proj else SIZES)
    return Layer(
        cell=cell,
        input_size=draw.choice(SIZES),
        hidden_size=hidden_size,
        num_layers=draw.randint(1, 3),
        proj_size=draw.choice((1, 3, hidden_size - 1)) if proj else 0,
        bias=draw.random() < 0.7,
        dtype=dtype,
        kind=kind,
    )


@torch.no_grad()
def whole(
    rnn: nn.RNNBase, x: Tensor, lengths: Sequence[int], states: Sequence[Tensor] = ()
) -> tuple[Tensor, list[Tensor]]:
    """The module's one call: ``out [B, T, P]`` and final states."""
    out, hx = rnn(x.transpose(0, 1), as_hx(list(states)), lengths=torch.tensor(lengths))
    return out.transpose(0, 1), states_of(hx)


def feed(
    stream: StreamingRNN,
    x: Tensor,
    lengths: Sequence[int],
    draw: random.Random,
    streams: Sequence[int] | None = None,
    longest: int = 4,
) -> Tensor:
    """Feeds row b to ``streams[b]``, any rows at a time, in any order, steps and chunks of them.

    Returns what comes out, laid out as in :func:`whole`.
    """
    streams = range(len(x)) if streams is None else streams
    out = x.new_zeros(*x.shape[:2], stream.rnn.proj_size or stream.rnn.hidden_size)
    done = [0] * len(x)
    while left := [b for b in range(len(x)) if done[b] < lengths[b]]:
        chosen, rows = left, None
        if draw.random() < 0.7 or [streams[b] for b in left] != list(range(stream.num_rows)):
            chosen = draw.sample(left, draw.randint((len(left) + 1) // 2, len(left)))
            rows = torch.tensor([streams[b] for b in chosen])
        count = draw.randint(1, min(longest, *(lengths[b] - done[b] for b in chosen)))
        piece = torch.stack([x[b, done[b] : done[b] + count] for b in chosen])
        if count == 1 and draw.random() < 0.7:
            result = stream(piece[:, 0], rows).unsqueeze(1)
        else:
            result = stream(piece, rows)
        for b, result_of_row in zip(chosen, result, strict=True):
            out[b, done[b] : done[b] + count] = result_of_row
            done[b] += count
    return out


def states_in(stream: StreamingRNN, rows: Any = None) -> list[Tensor]:
    return states_of(stream.state(rows))


def random_states(stream: StreamingRNN, num_rows: int, seed: int = 3) -> list[Tensor]:
    """As ``load_state`` takes them."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(s.shape[0], num_rows, s.shape[2], generator=generator).to(s.dtype)
        for s in states_in(stream)
    ]


def assert_same(got: Tensor, expected: Tensor, name: str = "") -> None:
    """Bit for bit, all NaN being one; on the fallback, where no such promise is made, nearly."""
    got, expected = (torch.where(t.isnan(), t.new_tensor(torch.nan), t) for t in (got, expected))
    if HAS_EXTENSION:
        assert_bitwise(got, expected, name)
        return
    tolerance = _TOLERANCE[expected.dtype]
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance, equal_nan=True)


def assert_final(stream: StreamingRNN, finals: Sequence[Tensor], rows: Any = None) -> None:
    """The states are those that the module returns, which rounds 16-bit layers' cell states."""
    for name, state, final in zip("hc", states_in(stream, rows), finals, strict=False):
        assert_same(state.to(final.dtype), final, name)


def make(cell: str = "lstm", **options: Any) -> StreamingRNN:
    return StreamingRNN(Layer(cell=cell, num_layers=2, **options).make()[0], ROWS)


def with_states(cell: str = "lstm", **options: Any) -> StreamingRNN:
    """The same in every call."""
    stream = make(cell, **options)
    stream.load_state(as_hx(random_states(stream, ROWS)))
    return stream


def random_x(*steps: int) -> Tensor:
    return torch.randn(ROWS, *steps, SIZE)


def assert_equal_states(one: StreamingRNN, other: StreamingRNN) -> None:
    for got, expected in zip(states_in(one), states_in(other), strict=True):
        assert_bitwise(got, expected)
