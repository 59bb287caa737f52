"""The ops' Python side: which implementation of a layer runs.

Compiled ops (schemas in ``csrc/library.cpp``), one layer in one or both directions each, and two
that make layouts:

- ``varlen_rnn::lstm_inference``, ``gru_inference``: outputs and final states, nothing saved.
- ``varlen_rnn::lstm_forward``, ``gru_forward``: the same, and what the backward pass reads; the
  cell states among that are a result like others, with a gradient.
- ``varlen_rnn::lstm_backward``, ``gru_backward``: from the outputs' gradients to those of all the
  layer's arguments.
- ``varlen_rnn::layout_from_rows``, ``reverse_order``: what :mod:`varlen_rnn.layout` makes.

Shapes are those of the legend in :mod:`varlen_rnn.layout`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from varlen_rnn import reference
from varlen_rnn.layout import Layout
from varlen_rnn.ops import fake, self_check
from varlen_rnn.ops.cells import GRU, LSTM, Tensors, by_kind
from varlen_rnn.runtime import extension
from varlen_rnn.runtime.tracing import in_jit_trace


def runs(cell: str, x: Tensor) -> bool:
    """Whether a compiled op of this cell runs: :func:`varlen_rnn.runtime.extension.runs`.

    And on CUDA not one that a self-check has found wrong.
    """
    return extension.runs(x) and (x.is_cpu or self_check.trusts(x.device, cell, x.dtype))


def lstm(
    x: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    weights: Tensors,
    layout: Layout,
    output_states: bool = False,
) -> tuple[Tensor, ...]:
    """One LSTM layer: :func:`varlen_rnn.reference.lstm`, compiled where it can be.

    ``weights`` are ``weight_ih, weight_hh, bias_ih, bias_hh, weight_hr`` of the forward and then of
    the reverse direction, None for what is not there. With ``output_states`` a fourth result holds
    every cell state, ``[R, D * H]``.
    """
    args: tuple[Any, ...] = (x, h_0, c_0, *weights, *_arguments(layout, x))
    if not runs("lstm", x):
        args = (x, h_0, c_0, *by_kind(weights), layout)
        out, h_n, c_n, *cells = LSTM.reference(*args, output_cells=output_states)
    elif output_states or _needs_gradient(x, h_0, c_0, *weights):
        out, h_n, c_n, *cells = extension.call(torch.ops.varlen_rnn.lstm_forward, x, args)[:-1]
    else:
        out, h_n, c_n = extension.call(torch.ops.varlen_rnn.lstm_inference, x, args)
    if not output_states:
        return out, h_n, c_n
    return out, h_n, c_n, reference.cells_of_rows(cells[0], layout, x.shape[0]).to(x.dtype)


def gru(x: Tensor, h_0: Tensor | None, weights: Tensors, layout: Layout) -> tuple[Tensor, Tensor]:
    """One GRU layer: :func:`varlen_rnn.reference.gru`, compiled where it can be.

    ``weights`` are those of :func:`lstm` without ``weight_hr``.
    """
    if not runs("gru", x):
        out, h_n = GRU.reference(x, h_0, *by_kind(weights), layout)
        return out, h_n
    args = (x, h_0, *weights, *_arguments(layout, x))
    if _needs_gradient(x, h_0, *weights):
        out, h_n, *_ = extension.call(torch.ops.varlen_rnn.gru_forward, x, args)
    else:
        out, h_n = extension.call(torch.ops.varlen_rnn.gru_inference, x, args)
    return out, h_n


def _tf32_is_allowed() -> bool:
    """Whether float32 may be multiplied as TF32: torch's switch of ``torch.nn.LSTM`` on CUDA."""
    switch: Any = torch.backends.cudnn.rnn
    return bool(switch.fp32_precision == "tf32")


# In torch 2.10 torch.compile cannot read the switch: it counts as it is while a model is compiled.
if torch.__version__ < "2.11":
    _tf32_is_allowed._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _needs_gradient(*args: Tensor | None) -> bool:
    if in_jit_trace():
        return True  # in both calls the same op
    return torch.is_grad_enabled() and any(arg.requires_grad for arg in args if arg is not None)


def _arguments(layout: Layout, x: Tensor) -> tuple[Tensor | int | None, ...]:
    """The layout as the ops take it, and whether float32 may be TF32."""
    return (
        layout.batch_sizes,
        layout.rows,
        layout.reverse,
        layout.initial_row,
        layout.final_segment,
        x.is_cuda and _tf32_is_allowed(),
    )


if extension.UNAVAILABLE is None:
    fake.register()
if extension.CUDA_UNAVAILABLE is None:
    self_check.register()
