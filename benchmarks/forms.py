"""A ragged batch in every form that our modules take: for the tests and for the benchmarks.

The canonical batch is ``x [B, T, I]`` with ``valid`` and ``resets``, both ``[B, T]``. All forms but
the padded ones have no place for what is not valid, so there every row's valid tokens come first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
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


@dataclass(frozen=True, eq=False)
class Tokens:
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


def take(tensor: Tensor, order: Tensor) -> Tensor:
    """Each row's steps in the given order, both ``[B, T, ...]``."""
    return tensor[torch.arange(len(order)).unsqueeze(1), order]


def states_of(hx: object) -> list[Tensor]:
    """The states of either cell, or of none, as a list."""
    if hx is None:
        return []
    return list(hx) if isinstance(hx, (tuple, list)) else [hx]


def as_hx(states: Sequence[Tensor]) -> Tensor | tuple[Tensor, ...] | None:
    """Such a list as the modules take it."""
    if not states:
        return None
    return states[0] if len(states) == 1 else tuple(states)


def data_of(batch: Any) -> Tensor:
    """The tensor that holds the tokens of a batch in any form."""
    if isinstance(batch, PackedSequence):
        return batch.data
    return batch.values() if batch.is_nested else batch


def with_data(batch: Any, data: Tensor) -> Any:
    """The same form around another such tensor."""
    if isinstance(batch, PackedSequence):
        return PackedSequence(data, *batch[1:])
    if batch.is_nested:
        return nested_tensor_from_jagged(data, batch.offsets(), batch.lengths())
    return data


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


def in_form(form: str, x: Tensor, batch: Tokens, *, batch_first: bool = True) -> Call:
    """``x [B, T, I]`` in one of ``FORMS``, differentiable."""
    if batch.resets is not None:
        return _in_form(form, x, batch.valid, batch.resets, batch_first)
    call = _in_form(form, x, batch.valid, torch.zeros_like(batch.valid), batch_first)
    return replace(call, keywords={k: v for k, v in call.keywords.items() if k != "resets"})


def _in_form(form: str, x: Tensor, valid: Tensor, resets: Tensor, batch_first: bool) -> Call:
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

    order, lengths = Tokens(valid).order, valid.sum(1)
    x, resets, kept = take(x, order), take(resets, order), take(valid, order)

    def restored(out: Tensor) -> Tensor:
        return take(out, order.argsort(1))

    if form == "lengths":
        keywords = {"lengths": lengths, "resets": laid_out(resets)}
        return Call(laid_out(x), keywords, lambda out: restored(laid_out(out)))
    if form in ("packed", "sorted"):
        options = {"batch_first": True, "enforce_sorted": form == "sorted"}
        packed, flags = (pack_padded_sequence(t, lengths.cpu(), **options) for t in (x, resets))

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
    with_holes = tokens.new_full((num_places, x.shape[2]), torch.nan).index_put((places,), tokens)
    flags = flags.new_ones(num_places).index_put((places,), flags)
    return Call(
        nested_tensor_from_jagged(with_holes, offsets, lengths),
        {"resets": nested_tensor_from_jagged(flags, offsets, lengths)},
        lambda out: from_tokens(out.values()[places]),
    )
