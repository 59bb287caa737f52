"""ONNX export: every layer as one of ONNX's own LSTM or GRU nodes, with ``sequence_lens``.

While ``torch.onnx.export(..., dynamo=True)`` records a model, the modules come here instead of to
the library's ops, which ONNX does not know. What the nodes compute:
https://onnx.ai/onnx/operators/onnx__LSTM.html and https://onnx.ai/onnx/operators/onnx__GRU.html.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from varlen_rnn.layout.checks import Lengths, Mask, check_lengths

# Where ONNX's gates stand among torch's: i, o, f, c among i, f, g, o, and z, r, h among r, z, n.
_GATE_ORDER = {"LSTM": [0, 3, 1, 2], "GRU": [1, 0, 2]}


def exporting() -> bool:
    """Whether the call is being recorded for ONNX."""
    return torch.compiler.is_exporting() and _is_in_onnx_export()


def _is_in_onnx_export() -> bool:
    return torch.onnx.is_in_onnx_export()


# An export that fails is tried again by torch.compile, which takes torch's function for False, but
# not this one; see supports_cuda in extension.py.
_is_in_onnx_export._dynamo_marked_constant = True  # type: ignore[attr-defined]


def refuse_old_exporter(module: nn.RNNBase) -> None:
    """Fails if ``torch.onnx.export(..., dynamo=False)`` traces the call, whatever its arguments."""
    if torch.onnx.is_in_onnx_export():
        if module._frozen_weights is not None:
            refuse_frozen(module)
        raise NotImplementedError(
            f"{type(module).__name__}: an ONNX export must have dynamo=True, got torch's old "
            "exporter (dynamo=False), which knows torch's own layers only; pass dynamo=True, or "
            "export varlen_rnn.revert(model)"
        )


def refuse_frozen(module: nn.RNNBase) -> NoReturn:
    """Fails: ONNX's nodes take weights in an order of their own."""
    raise NotImplementedError(
        f"{type(module).__name__}: an ONNX export must be of layers that are not frozen; export "
        "the model as it was before, and quantise what comes out with ONNX Runtime"
    )


def lengths_of(
    module: nn.RNNBase,
    input: Tensor | PackedSequence,
    which: tuple[Lengths | None, Mask | None, Mask | PackedSequence | None, Lengths | None],
    output_states: bool,
) -> Tensor | None:
    """The lengths as ``[B]`` int32 if there are any; fails for what ONNX's nodes cannot express."""
    lengths, mask, resets, cu_seqlens = which
    padded = "pad the batch on the right and pass lengths"
    if isinstance(input, PackedSequence):
        _refuse(module, "a PackedSequence", padded)
    if input.is_nested:
        _refuse(module, "a NestedTensor", padded)
    if cu_seqlens is not None:
        _refuse(module, "cu_seqlens", padded)
    if mask is not None:
        steps = 1 if module.batch_first else 0
        _refuse(module, "mask", f"if all padding is on the right, pass lengths=mask.sum({steps})")
    if resets is not None:
        _refuse(module, "resets", "make every piece between two resets a row of its own")
    if output_states:
        _refuse(module, "output_states=True", "ONNX's LSTM gives no cell state but the last")
    if module.proj_size:
        _refuse(module, f"proj_size={module.proj_size}", "ONNX's LSTM has no projection")
    if lengths is None:
        return None
    name = type(module).__name__
    if input.dim() == 2:
        form = "[B, T, I]" if module.batch_first else "[T, B, I]"
        raise ValueError(f"{name}: lengths need a batch {form}, got one sequence [T, I]")
    num_steps, num_rows = input.shape[:2]
    if module.batch_first:
        num_steps, num_rows = num_rows, num_steps
    checked = check_lengths(name, lengths, num_steps, num_rows, module.batch_first)
    # Those that are wrong stay so in 32 bits, where ONNX Runtime refuses them.
    return checked.clamp(-1, 2**31 - 1).int()


def _refuse(module: nn.RNNBase, what: str, advice: str) -> NoReturn:
    raise NotImplementedError(
        f"{type(module).__name__}: an ONNX export must have a batch without padding, or padded on "
        f"the right with lengths, and no projection, resets or output_states, got {what}; {advice}"
    )


def run(
    module: nn.RNNBase,
    input: Tensor,
    states: tuple[Tensor, ...] | None,
    weights: list[list[Tensor | None]],
    lengths: Tensor | None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Output and final states, shaped as the module's ``forward`` returns them.

    ``weights`` are those of :func:`varlen_rnn.ops.lstm`, by layer. 16-bit types are computed in
    float32, as everywhere in this library.
    """
    unbatched = input.dim() == 2
    swapped = module.batch_first and not unbatched
    compute = torch.promote_types(input.dtype, torch.float32)
    x = input.to(compute)
    if states is not None:
        states = tuple([s.to(compute) for s in states])
    if unbatched:
        x = x.unsqueeze(1)
        states = None if states is None else tuple([s.unsqueeze(1) for s in states])
    if swapped:
        x = x.transpose(0, 1)
    directions = 2 if module.bidirectional else 1
    by_layer = []
    for layer in range(module.num_layers):
        if layer > 0:
            x = F.dropout(x, module.dropout, module.training)
        first = layer * directions
        initial = [] if states is None else [s[first : first + directions] for s in states]
        x, finals = _layer(module, x, initial, weights[layer], lengths)
        by_layer.append(finals)
    all_finals = [torch.cat(parts) for parts in zip(*by_layer, strict=True)]
    if swapped:
        x = x.transpose(0, 1)
    if unbatched:
        x = x.squeeze(1)
        all_finals = [s.squeeze(1) for s in all_finals]
    return x.to(input.dtype), tuple([s.to(input.dtype) for s in all_finals])


def _layer(
    module: nn.RNNBase,
    x: Tensor,
    initial: Sequence[Tensor],
    weights: list[Tensor | None],
    lengths: Tensor | None,
) -> tuple[Tensor, list[Tensor]]:
    """From ``x [T, B, I]`` and states ``[D, B, H]`` to ``[T, B, D * H]`` and final states."""
    num_steps, num_rows, _ = x.shape
    directions, hidden_size = 2 if module.bidirectional else 1, module.hidden_size

    def of_kind(kind: int) -> Tensor:
        """``[D, G * H, *]`` with the gates in ONNX's order."""
        by_direction = torch.stack([w.to(x.dtype) for w in weights[kind::5] if w is not None])
        by_gate = by_direction.view(directions, -1, hidden_size, *by_direction.shape[2:])
        return by_gate[:, _GATE_ORDER[module.mode]].flatten(1, 2)

    bias = torch.cat((of_kind(2), of_kind(3)), dim=1) if module.bias else None
    attributes: dict[str, Any] = {
        "hidden_size": hidden_size,
        "direction": "bidirectional" if module.bidirectional else "forward",
    }
    if module.mode == "GRU":
        # torch multiplies with the reset gate behind the product, bias_hh included.
        attributes["linear_before_reset"] = 1
    state_shape = (directions, num_rows, hidden_size)
    num_states = 2 if module.mode == "LSTM" else 1
    y, *finals = torch.onnx.ops.symbolic_multi_out(
        module.mode,
        (x, of_kind(0), of_kind(1), bias, lengths, *initial),
        attributes,
        dtypes=(x.dtype,) * (1 + num_states),
        shapes=((num_steps, directions, num_rows, hidden_size), *(state_shape,) * num_states),
    )
    # Symbolic results are on the CPU, wherever the model is.
    y, *finals = (t.to(x.device) for t in (y, *finals))
    if lengths is not None and initial:
        # ONNX leaves open what becomes of a row of length 0; ONNX Runtime gives zeros.
        has_tokens = (lengths > 0).to(x.device).unsqueeze(1)
        finals = [torch.where(has_tokens, s, s_0) for s, s_0 in zip(finals, initial, strict=True)]
    # Not by a transposition, which would make B a constant where it is 1 in the export's example.
    return torch.cat(y.unbind(1), dim=-1), finals
