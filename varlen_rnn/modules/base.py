"""What calls of VarLenLSTM and VarLenGRU share: checks, autocast, and layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from varlen_rnn import ops
from varlen_rnn.layout import Layout, forms, hints
from varlen_rnn.layout.checks import failure
from varlen_rnn.layout.errors import InputShapeError, InputTypeError
from varlen_rnn.modules import onnx
from varlen_rnn.modules.rnn_module import RNNModule
from varlen_rnn.ops import direct
from varlen_rnn.runtime.tracing import in_jit_trace, unseen


class VarLenRNNBase(RNNModule):
    """Both cells' calls."""

    def _forward(
        self,
        input: Tensor | PackedSequence,
        states: tuple[Tensor, ...] | None,
        state_sizes: tuple[int, ...],
        which: forms.Which,
        output_states: bool = False,
    ) -> tuple[Any, tuple[Tensor, ...]]:
        """Output, or output and cell states, and final states."""
        data = self._data(input)
        weights = [self._layer_weights(layer) for layer in range(self.num_layers)]
        if torch._C._is_any_autocast_enabled() and _autocast_is_on(data.device.type):
            device_type = data.device.type
            to_dtype = _autocast(self._autocast_dtype(device_type))
            if isinstance(input, PackedSequence):
                input = PackedSequence(to_dtype(input.data), *input[1:])
            else:
                input = to_dtype(input)
            data = self._data(input)
            states = None if states is None else tuple(map(to_dtype, states))
            weights = self._autocast_weights(weights, to_dtype)
            with torch.autocast(device_type, enabled=False):
                return self._run(input, data, states, state_sizes, weights, which, output_states)
        return self._run(input, data, states, state_sizes, weights, which, output_states)

    def _run_directly(self, x: Any, states: Any) -> tuple[Tensor, tuple[Tensor, ...]] | None:
        """The call of a few tokens, or None if it has to go the usual way."""
        if self.bidirectional or self.proj_size or (self.training and self.dropout):
            return None
        packed, size = self._frozen_weights, self.hidden_size
        return direct.layers(
            self.mode == "LSTM",
            x,
            states,
            self._all_weights,
            self._parameters if packed is None else self._buffers,
            packed,
            (self.input_size, size, size),
            self.batch_first,
        )

    def _autocast_weights(
        self, weights: list[list[Tensor | None]], to_dtype: Callable[[Tensor], Tensor]
    ) -> list[list[Tensor | None]]:
        return [[None if w is None else to_dtype(w) for w in layer] for layer in weights]

    def _autocast_dtype(self, device_type: str) -> torch.dtype:
        """What autocast makes of input, states and weights."""
        return torch.get_autocast_dtype(device_type)

    def _run(
        self,
        input: Tensor | PackedSequence,
        data: Tensor,
        states: tuple[Tensor, ...] | None,
        state_sizes: tuple[int, ...],
        weights: list[list[Tensor | None]],
        which: forms.Which,
        output_states: bool,
    ) -> tuple[Any, tuple[Tensor, ...]]:
        self._check_input(input, data, weights[0])
        name = type(self).__name__
        if onnx.exporting():
            lengths = onnx.lengths_of(self, input, which, output_states)
            if states is not None:
                rows = [] if data.dim() == 2 else [data.shape[0 if self.batch_first else 1]]
                self._check_states(states, state_sizes, data, rows, input)
            return onnx.run(self, data, states, weights, lengths)
        batch = forms.read(name, input, which, self.batch_first, self.bidirectional)
        if states is not None:
            rows = [] if batch.unbatched else [batch.layout.num_rows]
            self._check_states(states, state_sizes, batch.x, rows, input)
            if batch.unbatched:
                states = tuple([s.unsqueeze(1) for s in states])
        arrays = batch.layout
        if not ops.runs(self.mode.lower(), batch.x):
            if in_jit_trace():
                raise NotImplementedError(
                    f"{name}: torch.jit.trace needs compiled kernels, whose graph takes any size, "
                    "got the reference"
                )
            arrays = arrays.exact()
        x, finals, cells = self._run_layers(
            batch.x, states, len(state_sizes), weights, arrays, output_states
        )
        if batch.unbatched:
            finals = tuple([s.squeeze(1) for s in finals])
        output = batch.restore(x)
        return (output if cells is None else (output, batch.restore(cells))), finals

    def _run_layers(
        self,
        x: Tensor,
        states: tuple[Tensor, ...] | None,
        num_states: int,
        weights: list[list[Tensor | None]],
        batch: Layout,
        output_states: bool,
    ) -> tuple[Tensor, tuple[Tensor, ...], Tensor | None]:
        """Flat output ``[R, D * P]``, final states ``[L * D, B, *]``, flat cells ``[R, D * H]``.

        Output and cells are those of the last layer; cells are None unless they are wanted.
        """
        initial: Sequence[Tensor | None] = states or [None] * num_states
        cells: Tensor | None = None
        if self.num_layers == 1:
            x, *finals = self._layer(x, initial, weights[0], batch, output_states)
            if output_states:
                *finals, cells = finals
            if finals[0].requires_grad or in_jit_trace():
                # With nodes of their own: a hook on a state that is not used is not called. Not
                # views, so that detach_() works.
                finals = [s.clone() for s in finals]
            return x, tuple(finals), cells
        directions = 2 if self.bidirectional else 1
        by_layer: list[list[Tensor]] = []
        for layer in range(self.num_layers):
            if layer > 0:
                x = F.dropout(x, self.dropout, self.training)
            first = layer * directions
            if states is not None:
                initial = [s[first : first + directions] for s in states]
            is_last = layer == self.num_layers - 1
            x, *finals = self._layer(x, initial, weights[layer], batch, output_states and is_last)
            if output_states and is_last:
                *finals, cells = finals
            by_layer.append(finals)
        return x, tuple([torch.cat(parts) for parts in zip(*by_layer, strict=True)]), cells

    def _layer(
        self,
        x: Tensor,
        states: Sequence[Tensor | None],
        weights: list[Tensor | None],
        batch: Layout,
        output_states: bool,
    ) -> tuple[Tensor, ...]:
        """Output and final states of one layer, and every cell state if they are wanted."""
        raise NotImplementedError

    def _layer_weights(self, layer: int) -> list[Tensor | None]:
        """Of each direction weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, or None."""
        directions = 2 if self.bidirectional else 1
        by_direction = self._all_weights[layer * directions : (layer + 1) * directions]
        parameters: dict[str, Any] = self._parameters
        weights: list[Tensor | None] = []
        for names in by_direction:
            try:
                found = [parameters[name] for name in names]
            except KeyError:  # an attribute instead, as under torch.nn.utils.parametrize
                # This would find parameters too, but take ten times as long.
                found = [getattr(self, name) for name in names]
            if not self.bias:
                found[2:2] = [None, None]
            weights += found if self.proj_size else [*found, None]
        return weights if self.bidirectional else weights + [None] * 5

    def _fail(self, what: str, expected: str, got: object) -> InputShapeError:
        return failure(type(self).__name__, what, expected, got)

    def _data(self, input: Tensor | PackedSequence) -> Tensor:
        """The tensor that holds the tokens."""
        name = type(self).__name__
        data = input.data if isinstance(input, PackedSequence) else input
        if not isinstance(data, Tensor):
            got = type(data).__name__
            raise TypeError(f"{name}: input must be a Tensor or a PackedSequence, got {got}")
        if not data.is_nested:
            return data
        if isinstance(input, PackedSequence) or data.layout != torch.jagged:
            raise TypeError(
                f"{name}: input must have layout torch.jagged if it is a NestedTensor, "
                f"got {data.layout}"
            )
        return data.values()

    def _input_dtype(self, weight: Tensor) -> torch.dtype:
        """What the input must have; ``weight`` is the first layer's ``weight_ih``."""
        return weight.dtype

    @unseen
    def _check_input(
        self, input: Tensor | PackedSequence, data: Tensor, weights: list[Tensor | None]
    ) -> None:
        name, weight = type(self).__name__, weights[0]
        assert weight is not None
        dtype = self._input_dtype(weight)
        if data.dtype != dtype:
            raise InputTypeError(
                f"{name}: input must have the weights' dtype {dtype}, got {data.dtype}"
            )
        if data.device != weight.device:
            raise self._fail("input", f"on the weights' device {weight.device}", data.device)
        if data is input:
            right, forms = data.dim() in (2, 3), "[T, I] or " + self._batch_form("I")
        elif isinstance(input, PackedSequence):
            right, forms = data.dim() == 2, "[N, I]"
        else:
            nested: Any = input
            right, forms = nested.dim() == 3 and nested._ragged_idx == 1, "[B, j, I]"
            data = nested
        if not right or data.shape[-1] != self.input_size:
            raise self._fail("input", f"{forms} with I = {self.input_size}", list(data.shape))

    def _batch_form(self, last: str) -> str:
        return f"[B, T, {last}]" if self.batch_first else f"[T, B, {last}]"

    @unseen
    def _check_states(
        self,
        states: tuple[Tensor, ...],
        sizes: tuple[int, ...],
        x: Tensor,
        rows: Sequence[int],
        input: Tensor | PackedSequence,
    ) -> None:
        """``rows`` is ``[B]``, or ``[]`` for one sequence."""
        layers = self.num_layers * (2 if self.bidirectional else 1)
        dtype, device = x.dtype, x.device
        for state, symbol, size in zip(states, "hc", sizes, strict=False):
            expected = (layers, *rows, size)
            if not (
                isinstance(state, Tensor)
                and state.shape == expected
                and state.dtype == dtype
                and state.device == device
            ):
                self._fail_state(state, symbol, expected, x, input)

    def _fail_state(
        self,
        state: object,
        symbol: str,
        expected: tuple[int, ...],
        x: Tensor,
        input: Tensor | PackedSequence,
    ) -> NoReturn:
        """Says what is wrong with a state."""
        name, what = type(self).__name__, f"hx ({symbol}_0)"
        hint = hints.keyword(state) if symbol == "h" else ""
        if not isinstance(state, Tensor):
            raise TypeError(f"{name}: {what} must be a Tensor, got {type(state).__name__}{hint}")
        if state.shape != expected:
            letter = "P" if symbol == "h" and self.proj_size else "H"
            form = f"[L * D, {letter}]" if len(expected) == 2 else f"[L * D, B, {letter}]"
            if (
                isinstance(input, Tensor)
                and input.dim() == state.dim() == 3
                and not input.is_nested
            ):
                num_steps = input.shape[1 if self.batch_first else 0]
                hint = hints.order(expected[1], num_steps, state.shape[1], self.batch_first)
            got = list(state.shape)
            raise failure(name, what, f"{form} = {list(expected)}", got, hint)
        if state.dtype != x.dtype:
            raise InputTypeError(
                f"{name}: {what} must have the input's dtype {x.dtype}, got {state.dtype}"
            )
        raise self._fail(what, f"on the input's device {x.device}", state.device)


def _autocast_is_on(device_type: str) -> bool:
    # Before torch 2.13 torch.compile cannot ask whether there is autocast: not where there is.
    known = device_type in ("cpu", "cuda") or torch.amp.is_autocast_available(device_type)
    return known and torch.is_autocast_enabled(device_type)


def _autocast(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """What autocast does to ``torch.nn.LSTM``'s arguments: all but float64 become ``dtype``."""

    def to_dtype(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, Tensor) or tensor.dtype == torch.float64:
            return tensor
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    return to_dtype
