"""Who is timed: varlen_rnn on every form of a batch, what torch.nn offers, and ONNX Runtime.

Whatever a peer can do before the first token counts is done before, in its favour: packing, cutting
rows, building a graph. So a timed call is the layer alone, on a batch in its own form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import onnx_graph
from benchmarks.forms import Call, as_hx, data_of, with_data
from benchmarks.workloads import (
    FORM_PEERS,
    LAYOUT_PEERS,
    STEP_PEERS,
    TORCH_MODULES,
    Batch,
    Workload,
)
from varlen_rnn import VarLenGRU, VarLenLSTM
from varlen_rnn.layout import forms

OUR_MODULES = {"lstm": VarLenLSTM, "gru": VarLenGRU}
CELL_MODULES = {"lstm": nn.LSTMCell, "gru": nn.GRUCell}


@dataclass(frozen=True)
class Prepared:
    """``call`` is what is timed; ``results`` makes what it returned comparable.

    Results: the output and, in training, the gradient of the input, both ``[N, *]`` row after row,
    then the gradients of the weights. ``results`` is None if the call computes something else.
    """

    call: Callable[[], object]
    results: Callable[[Any], dict[str, Tensor]] | None


# Makes a layer with the batch's weights, and the batch ready in this peer's form.
Prepare = Callable[[Batch], Prepared]


def _prepared(
    rnn: nn.Module,
    forward: Callable[[], Sequence[Tensor]],
    inputs: Sequence[Tensor],
    d_outputs: Sequence[Tensor],
    tokens: Callable[[Sequence[Tensor]], Tensor],
) -> Prepared:
    """The forward pass and, where inputs have gradients, those of the inputs and weights.

    ``tokens`` brings outputs, or gradients of the inputs, to the form ``[N, *]``.
    """
    if not inputs[0].requires_grad:
        return Prepared(forward, lambda outputs: {"output": tokens(outputs)})
    names, weights = zip(*rnn.named_parameters(), strict=True)
    leaves = (*inputs, *weights)

    def call() -> tuple[Sequence[Tensor], tuple[Tensor, ...]]:
        outputs = forward()
        return outputs, torch.autograd.grad(outputs, leaves, d_outputs)

    def results(returned: tuple[Sequence[Tensor], tuple[Tensor, ...]]) -> dict[str, Tensor]:
        outputs, gradients = returned
        # A cell's weights have no number of the layer.
        weights = [name.removesuffix("_l0") for name in names]
        d_x = tokens(gradients[: len(inputs)])
        found = {"output": tokens(outputs).detach(), "gradient of the input": d_x}
        return found | dict(zip(weights, gradients[len(inputs) :], strict=True))

    return Prepared(call, results)


def _leaf(batch: Batch, data: Tensor) -> Tensor:
    return data.clone(memory_format=torch.contiguous_format).requires_grad_(batch.workload.training)


def _layer(modules: Mapping[str, Callable[..., nn.Module]], form: str) -> Prepare:
    """A module on a batch that is in its form already, giving the same form back."""

    def prepare(batch: Batch) -> Prepared:
        call = batch.in_form(form)
        rnn, hx = batch.load(modules), as_hx(batch.states)
        x = _leaf(batch, data_of(call.input))
        given = with_data(call.input, x)
        return _prepared(
            rnn,
            lambda: (data_of(rnn(given, hx, **call.keywords)[0]),),
            (x,),
            (data_of(batch.in_form(form, batch.ones()).input),),
            lambda data: batch.tokens(call.back(with_data(call.input, data[0]))),
        )

    return prepare


def _without_resets(batch: Batch) -> Prepared:
    """Ours on the same batch, only without the flags."""
    prepared = _layer(OUR_MODULES, "lengths")(replace(batch, resets=None))
    changes_results = batch.resets is not None and bool(batch.resets.any())
    return replace(prepared, results=None) if changes_results else prepared


def _layout(form: str) -> Prepare:
    """What a call does before the first layer runs: checks of the form's arguments, and layout."""

    def prepare(batch: Batch) -> Prepared:
        call: Call = batch.in_form(form)
        name = OUR_MODULES[batch.workload.cell].__name__
        keywords = ("lengths", "mask", "resets", "cu_seqlens")
        lengths, mask, resets, cu_seqlens = (call.keywords.get(keyword) for keyword in keywords)
        which = (lengths, mask, resets, cu_seqlens)
        return Prepared(lambda: forms.read(name, call.input, which, False, False), results=None)

    return prepare


def _row_loop(batch: Batch) -> Prepared:
    """torch's module on one sequence after the other: no padding, and no batch."""
    rnn = batch.load(TORCH_MODULES)
    lengths = batch.lengths.tolist()
    xs = [_leaf(batch, x[:length]) for x, length in zip(batch.x, lengths, strict=True)]
    d_outputs = [row[:length] for row, length in zip(batch.ones(), lengths, strict=True)]
    return _prepared(
        rnn, lambda: [rnn(x)[0] for x in xs], xs, d_outputs, lambda data: torch.cat(tuple(data))
    )


def _step_loop(batch: Batch) -> Prepared:
    """torch's module once a step, with states that are multiplied by 0 where they are reset.

    So do CleanRL's recurrent PPO and others; but here ``1 - done`` is there already.
    """
    assert batch.resets is not None
    rnn = batch.load(TORCH_MODULES)
    call = batch.in_form("padded")
    x = _leaf(batch, call.input)
    factors = (~batch.resets.t()).to(x.dtype)[:, None, :, None].unbind()  # each [1, B, 1]
    zeros = x.new_zeros(1, batch.workload.rows, batch.workload.hidden_size)
    lstm = batch.workload.cell == "lstm"

    def forward() -> tuple[Tensor]:
        state = (zeros, zeros) if lstm else zeros
        outputs = []
        for token, factor in zip(x, factors, strict=True):
            state = (factor * state[0], factor * state[1]) if lstm else factor * state
            output, state = rnn(token.unsqueeze(0), state)
            outputs.append(output)
        return (torch.cat(outputs),)

    ones = batch.in_form("padded", batch.ones()).input
    return _prepared(rnn, forward, (x,), (ones,), lambda data: batch.tokens(call.back(data[0])))


def _cell(batch: Batch) -> Prepared:
    """torch's cell: one step, which is all it does."""
    cell, hx = batch.load(CELL_MODULES), as_hx([s[0] for s in batch.states])
    x = _leaf(batch, batch.x[:, 0])
    lstm = batch.workload.cell == "lstm"
    return _prepared(
        cell,
        (lambda: cell(x, hx)[:1]) if lstm else (lambda: (cell(x, hx),)),
        (x,),
        (batch.ones()[:, 0],),
        lambda data: batch.tokens(data[0][:, None]),
    )


def _onnxruntime(batch: Batch) -> Prepared:
    """ONNX Runtime on the padded batch with `sequence_lens`; inference only."""

    def results(arrays: Sequence[Any]) -> dict[str, Tensor]:
        return {"output": batch.tokens(torch.from_numpy(arrays[0])[:, 0].transpose(0, 1))}

    return Prepared(onnx_graph.prepare(batch), results)


PEERS: dict[str, Prepare] = {
    **{peer: _layer(OUR_MODULES, form) for form, peer in FORM_PEERS.items()},
    **{peer: _layout(form) for form, peer in LAYOUT_PEERS.items()},
    "varlen_rnn full": _layer(OUR_MODULES, "full"),
    "varlen_rnn without resets": _without_resets,
    "nn padded": _layer(TORCH_MODULES, "padded"),
    "nn packed": _layer(TORCH_MODULES, "packed"),
    "nn loop": _row_loop,
    "nn step loop": _step_loop,
    "nn cell": _cell,
    "onnxruntime": _onnxruntime,
}


def unavailable(name: str, workload: Workload, device: str) -> str | None:
    """Why a peer cannot run that, or None if it can."""
    if workload.streaming and name not in STEP_PEERS:
        return "takes no streaming step"
    if name == "nn cell" and not workload.streaming:
        return "does one step only"
    if name == "nn step loop" and workload.reset_probability is None:
        return "is for batches with resets"
    if name == "varlen_rnn full" and workload.distribution != "full":
        return "is for rows that are full"
    return onnx_graph.unavailable(workload, device) if name == "onnxruntime" else None
