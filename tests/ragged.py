"""A ragged batch with state resets: its truth by torch.nn, and every form it can be given in.

The canonical batch is ``x [B, T, I]`` with ``valid`` and ``resets``, both ``[B, T]``. All forms but
the padded ones have no place for what is not valid, so there every row's valid tokens come first.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from helpers import Segment, as_hx, states_of, torch_per_segment
from torch import Tensor, nn
from torch.nested import nested_tensor_from_jagged
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

FORMS = (
    "single",
    "single mask",
    "full",
    "sorted",
    "packed",
    "lengths",
    "mask",
    "flat",
    "nested",
    "nested holes",
)
# These hold any batch; the others need tokens in every row, or rows without padding, or one row.
ANY_BATCH = ("lengths", "mask", "flat", "nested", "nested holes")
MASKS = ("right", "left", "holes", "random")
NAN = float("nan")


@dataclass(frozen=True, eq=False)
class Ragged:
    """Which tokens of which rows there are, and before which of them the state is reset.

    ``valid`` and ``resets`` are ``[B, T]``, bool; ``resets`` is None if there is no such argument.
    """

    valid: Tensor
    resets: Tensor | None = None

    @property
    def lengths(self) -> Tensor:
        """``[B]``, the number of valid tokens."""
        return self.valid.sum(1)

    @property
    def order(self) -> Tensor:
        """``[B, T]``, each row's steps with the valid ones first."""
        return torch.sort(self.valid.int(), dim=1, descending=True, stable=True).indices

    @property
    def segments(self) -> list[Segment]:
        """Each row's runs of valid tokens, a new one at every reset; places are those in ``order``.

        The row's states go into its first run, unless that begins with a reset, and come from its
        last one.
        """
        segments = []
        for b, row in enumerate(self.valid):
            length = int(row.sum())
            flags = [False] * length if self.resets is None else self.resets[b, row].tolist()
            starts = [i for i in range(length) if i == 0 or flags[i]]
            for start, end in zip(starts, [*starts[1:], length], strict=False):
                initial_row = b if start == 0 and not flags[0] else -1
                final_row = b if end == length else -1
                segments.append(Segment(b, start, end - start, initial_row, final_row))
        return segments


def drawn(*rows: str) -> Ragged:
    """A batch drawn as text: ``x`` a token, ``.`` none, ``R`` and ``r`` the same with a reset."""
    size = len(rows), len(rows[0]) if rows else 5
    letters = [list(row) for row in rows]
    valid = torch.tensor([[c in "xR" for c in row] for row in letters]).bool().view(size)
    resets = torch.tensor([[c in "rR" for c in row] for row in letters]).bool().view(size)
    return Ragged(valid, resets)


def take(tensor: Tensor, order: Tensor) -> Tensor:
    """Each row's steps in the given order, both ``[B, T, ...]``."""
    return tensor[torch.arange(len(order)).unsqueeze(1), order]


def each_segment_alone(
    rnn: nn.RNNBase, x: Tensor, states: Sequence[Tensor], batch: Ragged
) -> tuple[Tensor, list[Tensor]]:
    """The truth if ``rnn`` is torch's: each segment by itself, one sequence ``[T, I]``."""
    out, finals = torch_per_segment(rnn, take(x, batch.order), states, batch.segments)
    return take(out, batch.order.argsort(1)), finals


@dataclass(frozen=True)
class Call:
    """A batch in one form: what our modules get, and what makes ``[B, T, F]`` of the output."""

    input: Any
    keywords: dict[str, Any]
    back: Callable[[Any], Tensor]
    one_row: bool = False

    def __call__(
        self, rnn: nn.RNNBase, states: Sequence[Tensor] = ()
    ) -> tuple[Tensor, list[Tensor]]:
        """Output ``[B, T, D * P]`` and final states ``[L * D, B, *]``."""
        out, finals = self.raw(rnn, states)
        return self.back(out), finals

    def raw(
        self, rnn: nn.RNNBase, states: Sequence[Tensor] = (), **keywords: Any
    ) -> tuple[Any, list[Tensor]]:
        """The output as it comes back, and final states ``[L * D, B, *]``."""
        given = [s[:, 0] for s in states] if self.one_row else states
        out, hx = rnn(self.input, as_hx(given), **self.keywords, **keywords)
        finals = states_of(hx)
        return out, [s.unsqueeze(1) for s in finals] if self.one_row else finals


def in_form(form: str, x: Tensor, batch: Ragged, *, batch_first: bool = True) -> Call:
    """``x [B, T, I]`` in one of ``FORMS``, differentiable."""
    call = _in_form(form, x, batch, batch_first)
    if batch.resets is None:
        del call.keywords["resets"]
    return call


def _in_form(form: str, x: Tensor, batch: Ragged, batch_first: bool) -> Call:
    valid = batch.valid
    resets = torch.zeros_like(valid) if batch.resets is None else batch.resets

    def laid_out(tensor: Tensor) -> Tensor:
        return tensor if batch_first else tensor.transpose(0, 1)

    if form in ("full", "single"):
        assert valid.all()
    if form in ("single", "single mask"):
        assert len(valid) == 1
        keywords = {"resets": resets[0]} | ({"mask": valid[0]} if form == "single mask" else {})
        return Call(x[0], keywords, lambda out: out.unsqueeze(0), one_row=True)
    if form in ("full", "mask"):
        keywords = {"resets": laid_out(resets)}
        keywords |= {"mask": laid_out(valid)} if form == "mask" else {}
        return Call(laid_out(x), keywords, laid_out)

    order, lengths = batch.order, batch.lengths
    x, resets, kept = take(x, order), take(resets, order), take(valid, order)

    def restored(out: Tensor) -> Tensor:
        return take(out, order.argsort(1))

    if form == "lengths":
        keywords = {"lengths": lengths, "resets": laid_out(resets)}
        return Call(laid_out(x), keywords, lambda out: restored(laid_out(out)))
    if form in ("packed", "sorted"):
        packed, flags = (
            pack_padded_sequence(t, lengths, batch_first=True, enforce_sorted=form == "sorted")
            for t in (x, resets)
        )

        def from_packed(out: PackedSequence) -> Tensor:
            return restored(pad_packed_sequence(out, True, total_length=valid.shape[1])[0])

        return Call(packed, {"resets": flags.data}, from_packed)

    bounds = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    tokens, flags = x[kept], resets[kept]

    def from_tokens(out: Tensor) -> Tensor:
        padded = out.new_zeros(*valid.shape, out.shape[1])
        padded[kept] = out
        return restored(padded)

    if form == "flat":
        return Call(tokens, {"cu_seqlens": bounds, "resets": flags}, from_tokens)
    if form == "nested":
        return Call(
            nested_tensor_from_jagged(tokens, bounds),
            {"resets": nested_tensor_from_jagged(flags, bounds)},
            lambda out: from_tokens(out.values()),
        )
    assert form == "nested holes"
    offsets = bounds + (torch.arange(len(bounds)) + 1) // 2  # a hole after every second row
    places = offsets[:-1].repeat_interleave(lengths) + torch.cat(
        [torch.arange(length) for length in lengths.tolist()] or [lengths]
    )
    num_places = int(offsets[-1])
    with_holes = tokens.new_full((num_places, x.shape[2]), NAN).index_put((places,), tokens)
    flags = flags.new_ones(num_places).index_put((places,), flags)
    return Call(
        nested_tensor_from_jagged(with_holes, offsets, lengths),
        {"resets": nested_tensor_from_jagged(flags, offsets, lengths)},
        lambda out: from_tokens(out.values()[places]),
    )


def draw_valid(draw: random.Random, kind: str, num_rows: int, num_steps: int) -> Tensor:
    """``[B, T]``, a mask of one of the kinds ``MASKS``; every row has a token."""
    lengths = torch.tensor([draw.randint(1, num_steps) for _ in range(num_rows)], dtype=torch.int64)
    valid = torch.arange(num_steps) < lengths.unsqueeze(1)
    if kind == "left":
        valid = valid.flip(1)
    if kind in ("holes", "random"):
        chance = torch.tensor(
            [[draw.random() for _ in range(num_steps)] for _ in range(num_rows)]
        ).view(num_rows, num_steps)
        drawn = valid & (chance < 0.7) if kind == "holes" else chance < 0.5
        valid = torch.where(drawn.any(1, keepdim=True), drawn, valid)
    return valid


def draw_resets(draw: random.Random, rate: float, num_rows: int, num_steps: int) -> Tensor:
    """``[B, T]``, True at this rate, also where nothing is valid."""
    flags = [[draw.random() < rate for _ in range(num_steps)] for _ in range(num_rows)]
    return torch.tensor(flags, dtype=torch.bool).view(num_rows, num_steps)
