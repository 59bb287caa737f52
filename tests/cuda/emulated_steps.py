"""Whole steps of a model by the emulated ops, as the modules would call them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from emulated import _emulated, backward_arguments, configure, forward_arguments, op
from emulated_cases import Case, tensors_of
from helpers import Results
from torch import Tensor

from varlen_rnn.layout import Layout


def layers_of(case: Case, num_layers: int) -> list[Case]:
    """A stack of layers; all but the first read outputs."""
    deep = replace(case, input_size=case.directions * case.output_size)
    tensors_of(deep)  # which keeps them: making them is no work of the ops
    return [case, *[deep] * (num_layers - 1)]


def training_step(
    cases: Sequence[Case], arrays: Layout, between: Callable[[], None] = lambda: None
) -> Results:
    """All layers forward, then backward, each result by its layer's number and its own.

    ``between`` is called between the two passes.
    """
    results: Results = {}
    calls: list[tuple[Case, dict[str, Tensor], Sequence[Tensor]]] = []
    x = tensors_of(cases[0])["x"]
    for number, case in enumerate(cases):
        tensors = tensors_of(case) | {"x": x}
        outputs = op(case, "forward")(*forward_arguments(case, tensors, arrays))
        calls.append((case, tensors, outputs))
        num_results = 1 + len(case.state_names)
        results |= {f"{number} {index}": t for index, t in enumerate(outputs[:num_results])}
        x = outputs[0]
    between()
    d_out = tensors_of(cases[-1])["d_out"]
    for number, (case, tensors, outputs) in reversed(list(enumerate(calls))):
        arguments = backward_arguments(case, tensors | {"d_out": d_out}, arrays, outputs)
        gradients = op(case, "backward")(*arguments)
        results |= {f"{number} d {index}": t for index, t in enumerate(gradients)}
        d_out = gradients[0]
    return results


def lengths_on_device(case: Case) -> dict[str, Any]:
    """The arguments of ``layout_from_rows`` for the padded batch of a case."""
    num_rows, num_steps = case.ragged.valid.shape
    return {
        "positions": torch.empty(num_rows, num_steps, 0),
        "lengths": case.ragged.valid.sum(1),
        "first": None,
        "mask": None,
        "resets": None,
        "batch_first": True,
        "bidirectional": case.directions == 2,
        "at_capacity": True,
    }


def device_layout(arguments: dict[str, Any]) -> Layout:
    arrays = torch.ops.varlen_rnn_emulated.layout_from_rows(**arguments)
    layout = Layout(*arrays)
    return layout if arguments["bidirectional"] else replace(layout, reverse=None)


@contextmanager
def as_modules_call() -> Iterator[None]:
    """Layouts on the device, and what is derived from them is kept."""
    configure(on_device=True)
    _emulated.keep_plans(True)
    _emulated.clear_plans()
    try:
        yield
    finally:
        _emulated.keep_plans(False)
        _emulated.clear_plans()
        configure()
