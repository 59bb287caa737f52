"""What VarLenLSTM and VarLenGRU share: forms of the input, checks, layers and directions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from varlen_rnn import layout
from varlen_rnn.layout import Layout

Lengths = Tensor | Sequence[int]


class InputShapeError(ValueError, RuntimeError):
    """A shape or value that does not fit; ``torch.nn.LSTM`` has a RuntimeError for sizes."""


class InputTypeError(TypeError, ValueError):
    """A dtype that does not fit; ``torch.nn.LSTM`` has a ValueError for the input's."""


class VarLenRNNBase(nn.RNNBase):
    """Both cells. Weights are read by name at every call, never through a flat buffer."""

    @property
    def _flat_weights(self) -> list[Tensor | None]:
        return [getattr(self, name, None) for name in self._flat_weights_names]

    @_flat_weights.setter
    def _flat_weights(self, value: object) -> None:
        """Nothing is stored, so nothing can go stale."""

    def __setattr__(self, name: str, value: Any) -> None:
        nn.Module.__setattr__(self, name, value)

    def _init_flat_weights(self) -> None:
        """Nothing to do: there is no flat buffer."""

    def _update_flat_weights(self) -> None:
        """Nothing to do: there is no flat buffer."""

    def flatten_parameters(self) -> None:
        """Does nothing; kept because code written for ``torch.nn.LSTM`` calls it."""

    def _forward(
        self,
        input: Tensor | PackedSequence,
        states: tuple[Tensor, ...] | None,
        state_sizes: tuple[int, ...],
        lengths: Lengths | None,
    ) -> tuple[Tensor | PackedSequence, tuple[Tensor, ...]]:
        data = self._data(input)
        weights = [self._layer_weights(layer) for layer in range(self.num_layers)]
        if torch._C._is_any_autocast_enabled() and _autocast_is_on(data.device.type):
            device_type = data.device.type
            to_dtype = _autocast(torch.get_autocast_dtype(device_type))
            if isinstance(input, PackedSequence):
                input = PackedSequence(to_dtype(input.data), *input[1:])
            else:
                input = to_dtype(input)
            states = None if states is None else tuple(map(to_dtype, states))
            weights = [[None if w is None else to_dtype(w) for w in layer] for layer in weights]
            with torch.autocast(device_type, enabled=False):
                return self._run(input, states, state_sizes, lengths, weights)
        return self._run(input, states, state_sizes, lengths, weights)

    def _run(
        self,
        input: Tensor | PackedSequence,
        states: tuple[Tensor, ...] | None,
        state_sizes: tuple[int, ...],
        lengths: Lengths | None,
        weights: list[list[Tensor | None]],
    ) -> tuple[Tensor | PackedSequence, tuple[Tensor, ...]]:
        packed = isinstance(input, PackedSequence)
        data = input.data if isinstance(input, PackedSequence) else input
        self._check_input(data, packed, weights[0])
        if lengths is not None and packed:
            name = type(self).__name__
            raise ValueError(f"{name}: lengths must be None with a PackedSequence, got lengths")
        x, batch = self._flatten(input, lengths)
        unbatched = not packed and data.dim() == 2
        if states is not None:
            self._check_states(states, state_sizes, x, batch.num_rows, unbatched)
            if unbatched:
                states = tuple([s.unsqueeze(1) for s in states])
        x, finals = self._run_layers(x, states, len(state_sizes), weights, batch)
        if isinstance(input, PackedSequence):
            return PackedSequence(x, *input[1:]), finals
        if unbatched:
            return x, tuple([s.squeeze(1) for s in finals])
        rows, columns, _ = data.shape
        return x.view(rows, columns, x.shape[1]), finals

    def _run_layers(
        self,
        x: Tensor,
        states: tuple[Tensor, ...] | None,
        num_states: int,
        weights: list[list[Tensor | None]],
        batch: Layout,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Flat output ``[R, D * P]`` of the last layer, and final states ``[L * D, B, *]``."""
        initial: Sequence[Tensor | None] = states or [None] * num_states
        if self.num_layers == 1:
            x, *finals = self._layer(x, initial, weights[0], batch)
            return x, tuple(finals)
        directions = 2 if self.bidirectional else 1
        by_layer: list[list[Tensor]] = []
        for layer in range(self.num_layers):
            if layer > 0:
                x = F.dropout(x, self.dropout, self.training)
            first = layer * directions
            if states is not None:
                initial = [s[first : first + directions] for s in states]
            x, *finals = self._layer(x, initial, weights[layer], batch)
            by_layer.append(finals)
        return x, tuple([torch.cat(parts) for parts in zip(*by_layer, strict=True)])

    def _layer(
        self,
        x: Tensor,
        states: Sequence[Tensor | None],
        weights: list[Tensor | None],
        batch: Layout,
    ) -> tuple[Tensor, ...]:
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

    def _flatten(
        self, input: Tensor | PackedSequence, lengths: Lengths | None
    ) -> tuple[Tensor, Layout]:
        """The tokens as a flat tensor ``[R, I]``, and the layout that points into it."""
        if isinstance(input, PackedSequence):
            self._check_packed(input)
            batch = layout.from_packed(
                input.batch_sizes, input.sorted_indices, bidirectional=self.bidirectional
            )
            return input.data, batch.to(input.data.device)
        batch_first = self.batch_first and input.dim() == 3
        if input.dim() == 2:
            x, num_steps, num_rows = input, input.shape[0], 1
        else:
            num_steps, num_rows, features = input.shape
            if batch_first:
                num_steps, num_rows = num_rows, num_steps
            x = input.reshape(num_rows * num_steps, features)
        if lengths is None:
            batch = layout.full(
                num_steps, num_rows, batch_first=batch_first, bidirectional=self.bidirectional
            )
        else:
            batch = layout.from_lengths(
                self._check_lengths(lengths, num_steps, num_rows, input),
                num_steps,
                batch_first=batch_first,
                bidirectional=self.bidirectional,
            )
        return x, batch.to(input.device)

    def _fail(self, what: str, expected: str, got: object) -> InputShapeError:
        return InputShapeError(f"{type(self).__name__}: {what} must be {expected}, got {got}")

    def _data(self, input: Tensor | PackedSequence) -> Tensor:
        """The tensor that holds the tokens."""
        data = input.data if isinstance(input, PackedSequence) else input
        if not isinstance(data, Tensor) or data.is_nested:
            got = "a NestedTensor" if isinstance(data, Tensor) else type(data).__name__
            name = type(self).__name__
            raise TypeError(f"{name}: input must be a Tensor or a PackedSequence, got {got}")
        return data

    def _check_input(self, data: Tensor, packed: bool, weights: list[Tensor | None]) -> None:
        name, weight = type(self).__name__, weights[0]
        assert weight is not None
        if data.dtype != weight.dtype:
            raise InputTypeError(
                f"{name}: input must have the weights' dtype {weight.dtype}, got {data.dtype}"
            )
        if data.device != weight.device:
            raise self._fail("input", f"on the weights' device {weight.device}", data.device)
        dims = (2,) if packed else (2, 3)
        if data.dim() not in dims or data.shape[-1] != self.input_size:
            forms = "[N, I]" if packed else "[T, I] or " + self._batch_form("I")
            raise self._fail("input", f"{forms} with I = {self.input_size}", list(data.shape))

    def _batch_form(self, last: str) -> str:
        return f"[B, T, {last}]" if self.batch_first else f"[T, B, {last}]"

    def _check_packed(self, packed: PackedSequence) -> None:
        """What torch's own functions make passes; a PackedSequence made by hand may not."""
        what, num_tokens = "input.batch_sizes", packed.data.shape[0]
        batch_sizes = packed.batch_sizes
        if batch_sizes.dtype != torch.int64 or batch_sizes.device.type != "cpu":
            got = f"{batch_sizes.dtype} on {batch_sizes.device}"
            name = type(self).__name__
            raise InputTypeError(f"{name}: {what} must be torch.int64 on the CPU, got {got}")
        sizes = batch_sizes.tolist() if batch_sizes.dim() == 1 else []
        if not sizes or sizes[-1] < 1 or sizes != sorted(sizes, reverse=True):
            expected = "[S], positive and not increasing"
            raise self._fail(what, expected, sizes[:8] or list(batch_sizes.shape))
        if sum(sizes) != num_tokens:
            raise self._fail(what, f"of sum N = {num_tokens}", sum(sizes))
        num_rows = sizes[0]
        for name in ("sorted_indices", "unsorted_indices"):
            indices = getattr(packed, name)
            if indices is not None and sorted(indices.tolist()) != list(range(num_rows)):
                expected = f"a permutation of [0, B) = [0, {num_rows})"
                raise self._fail(f"input.{name}", expected, indices.tolist()[:8])

    def _check_lengths(
        self, lengths: Lengths, num_steps: int, num_rows: int, input: Tensor
    ) -> Tensor:
        """The lengths as ``[B]`` int64 on the CPU."""
        name = type(self).__name__
        if input.dim() == 2:
            form = self._batch_form("I")
            raise ValueError(f"{name}: lengths need a batch {form}, got one sequence [T, I]")
        if isinstance(lengths, Tensor) and not _is_integer(lengths.dtype):
            raise TypeError(f"{name}: lengths must be integers, got {lengths.dtype}")
        try:
            array = (
                lengths.numpy(force=True) if isinstance(lengths, Tensor) else np.asarray(lengths)
            )
        except ValueError as error:
            raise self._fail("lengths", "[B]", "sequences of unequal lengths") from error
        integers = array.dtype.kind in "iu" or all(type(length) is int for length in array.flat)
        if not integers:
            got = type(lengths).__name__ if array.ndim == 0 else array.dtype
            raise TypeError(f"{name}: lengths must be integers, got {got}")
        if array.shape != (num_rows,):
            raise self._fail("lengths", f"[B] = [{num_rows}]", list(array.shape))
        if array.dtype != object:
            values = array.astype(np.int64)
            if values.view(np.uint64).max(initial=0) <= num_steps:  # negative ones become large
                return torch.from_numpy(values)
        outside = np.flatnonzero((array < 0) | (array > num_steps))
        if outside.size:
            got = f"{array[outside[0]]} at index {outside[0]}"
            raise self._fail("lengths", f"in [0, T] = [0, {num_steps}]", got)
        return torch.from_numpy(array.astype(np.int64))

    def _check_states(
        self,
        states: tuple[Tensor, ...],
        sizes: tuple[int, ...],
        x: Tensor,
        num_rows: int,
        unbatched: bool,
    ) -> None:
        layers = self.num_layers * (2 if self.bidirectional else 1)
        dtype, device = x.dtype, x.device
        for state, symbol, size in zip(states, "hc", sizes, strict=False):
            expected = (layers, size) if unbatched else (layers, num_rows, size)
            if not (
                isinstance(state, Tensor)
                and state.shape == expected
                and state.dtype == dtype
                and state.device == device
            ):
                self._fail_state(state, symbol, expected, x)

    def _fail_state(
        self, state: object, symbol: str, expected: tuple[int, ...], x: Tensor
    ) -> NoReturn:
        """Says what is wrong with a state."""
        name, what = type(self).__name__, f"hx ({symbol}_0)"
        if not isinstance(state, Tensor):
            raise TypeError(f"{name}: {what} must be a Tensor, got {type(state).__name__}")
        if state.shape != expected:
            letter = "P" if symbol == "h" and self.proj_size else "H"
            form = f"[L * D, {letter}]" if len(expected) == 2 else f"[L * D, B, {letter}]"
            raise self._fail(what, f"{form} = {list(expected)}", list(state.shape))
        if state.dtype != x.dtype:
            raise InputTypeError(
                f"{name}: {what} must have the input's dtype {x.dtype}, got {state.dtype}"
            )
        raise self._fail(what, f"on the input's device {x.device}", state.device)


def _is_integer(dtype: torch.dtype) -> bool:
    return not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool)


def _autocast_is_on(device_type: str) -> bool:
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def _autocast(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """What autocast does to ``torch.nn.LSTM``'s arguments: all but float64 become ``dtype``."""

    def to_dtype(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, Tensor) or tensor.dtype == torch.float64:
            return tensor
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    return to_dtype
