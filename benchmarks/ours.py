"""varlen_rnn on every form of a batch, and what the layout of each form costs by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nested import nested_tensor_from_jagged
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from benchmarks.prepared import Peer, Prepared, with_gradients
from benchmarks.workloads import FORM_PEERS, LAYOUT_PEERS, Batch, Workload
from varlen_rnn import VarLenGRU, VarLenLSTM
from varlen_rnn.layout import forms

OUR_MODULES = {"lstm": VarLenLSTM, "gru": VarLenGRU}


@dataclass(frozen=True)
class Form:
    """How our modules get a batch.

    Attributes:
        arrange: from ``[T, B, F]`` to the tensor that holds the tokens in this form.
        tokens: from that tensor to ``[N, F]``, row after row.
        keywords: the module's arguments beside the input.
        wrap: from that tensor to the module's input.
    """

    arrange: Callable[[Tensor], Tensor]
    tokens: Callable[[Tensor], Tensor]
    keywords: dict[str, Any] = field(default_factory=dict)
    wrap: Callable[[Tensor], Any] = lambda data: data


def _as_it_is(data: Tensor) -> Tensor:
    return data


def _padded(batch: Batch) -> Form:
    """With lengths, and with the resets that the batch has.

    A streaming step has states instead. Where states are reset, rows are full and go without
    lengths, as in reinforcement learning.
    """
    workload = batch.workload
    keywords: dict[str, Any] = {}
    if batch.states:
        keywords["hx"] = batch.states if workload.cell == "lstm" else batch.states[0]
    if not workload.streaming and workload.reset_probability is None:
        keywords["lengths"] = batch.lengths.to(batch.x.device)
    if batch.resets is not None:
        keywords["resets"] = batch.resets
    return Form(_as_it_is, batch.tokens, keywords)


def _packed(batch: Batch) -> Form:
    def pack(padded: Tensor) -> PackedSequence:
        return pack_padded_sequence(padded, batch.lengths, enforce_sorted=False)

    _, *arrays = pack(batch.x)

    def wrap(data: Tensor) -> PackedSequence:
        return PackedSequence(data, *arrays)

    return Form(
        lambda padded: pack(padded).data,
        lambda data: batch.tokens(pad_packed_sequence(wrap(data))[0]),
        wrap=wrap,
    )


def _mask(batch: Batch) -> Form:
    return Form(_as_it_is, batch.tokens, {"mask": batch.valid})


def _left_mask(batch: Batch) -> Form:
    """The same tokens, behind the padding."""
    valid = batch.valid.flip(0)

    def arrange(padded: Tensor) -> Tensor:
        moved = torch.zeros_like(padded)
        moved.transpose(0, 1)[valid.t()] = batch.tokens(padded)
        return moved

    return Form(arrange, lambda padded: padded.transpose(0, 1)[valid.t()], {"mask": valid})


def _bounds(batch: Batch) -> Tensor:
    """``[B + 1]``, where each row begins and ends if they lie one behind the other."""
    return F.pad(batch.lengths.cumsum(0), (1, 0)).to(batch.x.device)


def _flat(batch: Batch) -> Form:
    # FlashAttention's cu_seqlens are int32.
    return Form(batch.tokens, _as_it_is, {"cu_seqlens": _bounds(batch).int()})


def _nested(batch: Batch) -> Form:
    offsets = _bounds(batch)
    return Form(batch.tokens, _as_it_is, wrap=lambda data: nested_tensor_from_jagged(data, offsets))


def _no_resets(batch: Batch) -> Form:
    """Flags that are all False, which change no result."""
    lengths = batch.lengths.to(batch.x.device)
    keywords = {"lengths": lengths, "resets": torch.zeros_like(batch.valid)}
    return Form(_as_it_is, batch.tokens, keywords)


FORMS: dict[str, Callable[[Batch], Form]] = {
    "lengths": _padded,
    "packed": _packed,
    "mask": _mask,
    "left mask": _left_mask,
    "flat": _flat,
    "nested": _nested,
    "resets": _no_resets,
}


def _data(output: Any) -> Tensor:
    """The tensor that holds the tokens."""
    if isinstance(output, PackedSequence):
        return output.data
    return output.values() if output.is_nested else output


@dataclass(frozen=True)
class Ours:
    """Our module on a batch that is in its form already, giving the same form back."""

    form: Callable[[Batch], Form]

    def unavailable(self, workload: Workload, device: str) -> str | None:
        takes_steps = self.form is _padded
        return "takes no streaming step" if workload.streaming and not takes_steps else None

    def prepare(self, batch: Batch) -> Prepared:
        workload, form = batch.workload, self.form(batch)
        rnn = batch.load(OUR_MODULES[workload.cell])
        x = form.arrange(batch.x).clone().requires_grad_(workload.training)
        given = form.wrap(x)
        return with_gradients(
            rnn,
            lambda: (_data(rnn(given, **form.keywords)[0]),),
            (x,),
            (form.arrange(batch.ones()),),
            lambda data: form.tokens(data[0]),
            workload.training,
        )


class WithoutResets(Ours):
    """The same call on the same batch, only without the flags."""

    def prepare(self, batch: Batch) -> Prepared:
        prepared = super().prepare(replace(batch, resets=None))
        changes_results = batch.resets is not None and bool(batch.resets.any())
        return replace(prepared, results=None) if changes_results else prepared


@dataclass(frozen=True)
class LayoutAlone:
    """What a call does before the first layer runs: checks of the form's arguments, and layout."""

    form: Callable[[Batch], Form]

    def unavailable(self, workload: Workload, device: str) -> str | None:
        return "takes no streaming step" if workload.streaming else None

    def prepare(self, batch: Batch) -> Prepared:
        form = self.form(batch)
        name = OUR_MODULES[batch.workload.cell].__name__
        given = form.wrap(form.arrange(batch.x))
        keywords = ("lengths", "mask", "resets", "cu_seqlens")
        lengths, mask, resets, cu_seqlens = (form.keywords.get(keyword) for keyword in keywords)
        which = (lengths, mask, resets, cu_seqlens)
        return Prepared(lambda: forms.read(name, given, which, False, False), results=None)


PEERS: dict[str, Peer] = {
    **{FORM_PEERS[name]: Ours(form) for name, form in FORMS.items()},
    **{LAYOUT_PEERS[name]: LayoutAlone(form) for name, form in FORMS.items()},
    "varlen_rnn without resets": WithoutResets(_padded),
}
