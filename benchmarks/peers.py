"""Who is timed: varlen_rnn in two forms, what torch.nn offers, and ONNX Runtime.

Whatever a peer can do before the first token counts is done in `prepare`, in its favour: packing,
cutting rows, building a graph. So a timed call is the layer alone, on a batch in its own form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from benchmarks import onnx_graph
from benchmarks.workloads import TORCH_MODULES, Batch, Workload
from varlen_rnn import VarLenGRU, VarLenLSTM

OUR_MODULES = {"lstm": VarLenLSTM, "gru": VarLenGRU}
CELL_MODULES = {"lstm": nn.LSTMCell, "gru": nn.GRUCell}


@dataclass(frozen=True)
class Prepared:
    """``call`` is what is timed; ``results`` makes what it returned comparable.

    Results: the output and, in training, the gradient of the input, both ``[N, *]`` row after row,
    then the gradients of the weights.
    """

    call: Callable[[], object]
    results: Callable[[Any], dict[str, Tensor]]


class Peer(Protocol):
    """One way to run a layer over a ragged batch."""

    def unavailable(self, workload: Workload, device: str) -> str | None:
        """Why it cannot run that, or None if it can."""

    def prepare(self, batch: Batch) -> Prepared:
        """A layer with the batch's weights, and the batch in this peer's form."""


def _prepare(
    rnn: nn.Module,
    forward: Callable[[], Sequence[Tensor]],
    inputs: Sequence[Tensor],
    d_outputs: Sequence[Tensor],
    tokens: Callable[[Sequence[Tensor]], Tensor],
    training: bool,
) -> Prepared:
    """``tokens`` brings outputs, or gradients of the inputs, to the form ``[N, *]``."""
    if not training:
        return Prepared(forward, lambda outputs: {"output": tokens(outputs)})
    names, weights = zip(*rnn.named_parameters(), strict=True)
    leaves = (*inputs, *weights)

    def call() -> tuple[Sequence[Tensor], tuple[Tensor, ...]]:
        outputs = forward()
        return outputs, torch.autograd.grad(outputs, leaves, d_outputs)

    def results(returned: tuple[Sequence[Tensor], tuple[Tensor, ...]]) -> dict[str, Tensor]:
        outputs, gradients = returned
        # A cell's weights have no number of the layer.
        d_weights = dict(
            zip((name.removesuffix("_l0") for name in names), gradients[len(inputs) :], strict=True)
        )
        d_x = tokens(gradients[: len(inputs)])
        return {"output": tokens(outputs).detach(), "gradient of the input": d_x, **d_weights}

    return Prepared(call, results)


@dataclass(frozen=True)
class Padded:
    """On the padded batch: ours with lengths, torch's over all the padding."""

    ours: bool

    def unavailable(self, workload: Workload, device: str) -> str | None:
        return None

    def prepare(self, batch: Batch) -> Prepared:
        workload = batch.workload
        rnn = batch.load((OUR_MODULES if self.ours else TORCH_MODULES)[workload.cell])
        x = batch.x.clone().requires_grad_(workload.training)
        d_output = batch.valid[..., None].expand(-1, -1, workload.hidden_size).to(x.dtype)
        hx = (
            (batch.states if workload.cell == "lstm" else batch.states[0]) if batch.states else None
        )
        keywords = {"lengths": batch.lengths} if self.ours and not workload.streaming else {}
        return _prepare(
            rnn,
            lambda: (rnn(x, hx, **keywords)[0],),
            (x,),
            (d_output.contiguous(),),
            lambda padded: batch.tokens(padded[0]),
            workload.training,
        )


@dataclass(frozen=True)
class Packed:
    """On a PackedSequence that is there already, giving a PackedSequence back."""

    ours: bool

    def unavailable(self, workload: Workload, device: str) -> str | None:
        return "takes no streaming step" if workload.streaming else None

    def prepare(self, batch: Batch) -> Prepared:
        workload = batch.workload
        rnn = batch.load((OUR_MODULES if self.ours else TORCH_MODULES)[workload.cell])
        packed = pack_padded_sequence(batch.x, batch.lengths, enforce_sorted=False)
        x = packed.data.clone().requires_grad_(workload.training)
        packed = PackedSequence(x, *packed[1:])

        def tokens(data: Sequence[Tensor]) -> Tensor:
            return batch.tokens(pad_packed_sequence(PackedSequence(data[0], *packed[1:]))[0])

        return _prepare(
            rnn,
            lambda: (rnn(packed)[0].data,),
            (x,),
            (x.new_ones(x.shape[0], workload.hidden_size),),
            tokens,
            workload.training,
        )


class Loop:
    """torch's module on one sequence after the other: no padding, and no batch."""

    def unavailable(self, workload: Workload, device: str) -> str | None:
        return "takes no streaming step" if workload.streaming else None

    def prepare(self, batch: Batch) -> Prepared:
        workload = batch.workload
        rnn = batch.load(TORCH_MODULES[workload.cell])
        rows = batch.x.unbind(1)
        xs = [
            x[:length].clone().requires_grad_(workload.training)
            for x, length in zip(rows, batch.lengths.tolist(), strict=True)
        ]
        return _prepare(
            rnn,
            lambda: [rnn(x)[0] for x in xs],
            xs,
            [x.new_ones(x.shape[0], workload.hidden_size) for x in xs],
            lambda data: torch.cat(tuple(data)),
            workload.training,
        )


class Cell:
    """torch's cell: one step, which is all it does."""

    def unavailable(self, workload: Workload, device: str) -> str | None:
        return None if workload.streaming else "does one step only"

    def prepare(self, batch: Batch) -> Prepared:
        workload = batch.workload
        cell = batch.load(CELL_MODULES[workload.cell])
        x = batch.x[0].clone().requires_grad_(workload.training)
        states = [s[0] for s in batch.states]
        lstm = workload.cell == "lstm"
        hx = tuple(states) if lstm else states[0]
        return _prepare(
            cell,
            (lambda: cell(x, hx)[:1]) if lstm else (lambda: (cell(x, hx),)),
            (x,),
            (torch.ones_like(states[0]),),
            lambda steps: batch.tokens(steps[0][None]),
            workload.training,
        )


class OnnxRuntime:
    """ONNX Runtime on the padded batch with `sequence_lens`; inference only."""

    def unavailable(self, workload: Workload, device: str) -> str | None:
        return onnx_graph.unavailable(workload, device)

    def prepare(self, batch: Batch) -> Prepared:
        return Prepared(
            onnx_graph.prepare(batch),
            lambda arrays: {"output": batch.tokens(torch.from_numpy(arrays[0])[:, 0])},
        )


PEERS: dict[str, Peer] = {
    "varlen_rnn": Padded(ours=True),
    "varlen_rnn packed": Packed(ours=True),
    "nn padded": Padded(ours=False),
    "nn packed": Packed(ours=False),
    "nn loop": Loop(),
    "nn cell": Cell(),
    "onnxruntime": OnnxRuntime(),
}
