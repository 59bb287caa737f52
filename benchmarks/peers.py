"""Who is timed: varlen_rnn in all its forms, what torch.nn offers, and ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from benchmarks import onnx_graph, ours
from benchmarks.prepared import Peer, Prepared, with_gradients
from benchmarks.workloads import TORCH_MODULES, Batch, Workload

CELL_MODULES = {"lstm": nn.LSTMCell, "gru": nn.GRUCell}


class Padded:
    """torch's module on the padded batch, over all the padding."""

    def unavailable(self, workload: Workload, device: str) -> str | None:
        return None

    def prepare(self, batch: Batch) -> Prepared:
        workload = batch.workload
        rnn = batch.load(TORCH_MODULES[workload.cell])
        x = batch.x.clone().requires_grad_(workload.training)
        hx = (
            (batch.states if workload.cell == "lstm" else batch.states[0]) if batch.states else None
        )
        return with_gradients(
            rnn,
            lambda: (rnn(x, hx)[0],),
            (x,),
            (batch.ones(),),
            lambda padded: batch.tokens(padded[0]),
            workload.training,
        )


class Packed:
    """torch's module on a PackedSequence that is there already, giving a PackedSequence back."""

    def unavailable(self, workload: Workload, device: str) -> str | None:
        return "takes no streaming step" if workload.streaming else None

    def prepare(self, batch: Batch) -> Prepared:
        workload = batch.workload
        rnn = batch.load(TORCH_MODULES[workload.cell])
        packed = pack_padded_sequence(batch.x, batch.lengths, enforce_sorted=False)
        x = packed.data.clone().requires_grad_(workload.training)
        packed = PackedSequence(x, *packed[1:])

        def tokens(data: Sequence[Tensor]) -> Tensor:
            return batch.tokens(pad_packed_sequence(PackedSequence(data[0], *packed[1:]))[0])

        return with_gradients(
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
        return with_gradients(
            rnn,
            lambda: [rnn(x)[0] for x in xs],
            xs,
            [x.new_ones(x.shape[0], workload.hidden_size) for x in xs],
            lambda data: torch.cat(tuple(data)),
            workload.training,
        )


class StepLoop:
    """torch's module once a step, with states that are multiplied by 0 where they are reset.

    So do CleanRL's recurrent PPO and others; but here ``1 - done`` is there already.
    """

    def unavailable(self, workload: Workload, device: str) -> str | None:
        return "is for batches with resets" if workload.reset_probability is None else None

    def prepare(self, batch: Batch) -> Prepared:
        workload = batch.workload
        assert batch.resets is not None
        rnn = batch.load(TORCH_MODULES[workload.cell])
        x = batch.x.clone().requires_grad_(workload.training)
        factors = (~batch.resets).to(x.dtype)[:, None, :, None].unbind()  # each [1, B, 1]
        zeros = x.new_zeros(1, workload.rows, workload.hidden_size)
        lstm = workload.cell == "lstm"

        def forward() -> tuple[Tensor]:
            state = (zeros, zeros) if lstm else zeros
            outputs = []
            for token, factor in zip(x, factors, strict=True):
                state = (factor * state[0], factor * state[1]) if lstm else factor * state
                output, state = rnn(token.unsqueeze(0), state)
                outputs.append(output)
            return (torch.cat(outputs),)

        return with_gradients(
            rnn,
            forward,
            (x,),
            (batch.ones(),),
            lambda padded: batch.tokens(padded[0]),
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
        return with_gradients(
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
    **ours.PEERS,
    "nn padded": Padded(),
    "nn packed": Packed(),
    "nn loop": Loop(),
    "nn step loop": StepLoop(),
    "nn cell": Cell(),
    "onnxruntime": OnnxRuntime(),
}
