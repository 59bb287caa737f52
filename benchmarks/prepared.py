"""What a peer is: a layer and a batch made ready, then a call that is timed.

Whatever a peer can do before the first token counts is done in `prepare`, in its favour: packing,
cutting rows, building a graph. So a timed call is the layer alone, on a batch in its own form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from benchmarks.workloads import Batch, Workload


@dataclass(frozen=True)
class Prepared:
    """``call`` is what is timed; ``results`` makes what it returned comparable.

    Results: the output and, in training, the gradient of the input, both ``[N, *]`` row after row,
    then the gradients of the weights. ``results`` is None if the call computes something else.
    """

    call: Callable[[], object]
    results: Callable[[Any], dict[str, Tensor]] | None


class Peer(Protocol):
    """One way to run a layer over a ragged batch."""

    def unavailable(self, workload: Workload, device: str) -> str | None:
        """Why it cannot run that, or None if it can."""

    def prepare(self, batch: Batch) -> Prepared:
        """A layer with the batch's weights, and the batch in this peer's form."""


def with_gradients(
    rnn: nn.Module,
    forward: Callable[[], Sequence[Tensor]],
    inputs: Sequence[Tensor],
    d_outputs: Sequence[Tensor],
    tokens: Callable[[Sequence[Tensor]], Tensor],
    training: bool,
) -> Prepared:
    """The forward pass and, in training, the gradients of the inputs and weights.

    ``tokens`` brings outputs, or gradients of the inputs, to the form ``[N, *]``.
    """
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
