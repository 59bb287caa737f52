"""What VarLenLSTM and VarLenGRU share: forms of the input, checks, layers and directions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
        weights = [self._layer_weights(layer) for layer in range(self.num_layers)]
        self._check_input(input, weights[0][0][0])
        if lengths is not None and isinstance(input, PackedSequence):
            name = type(self).__name__
            raise ValueError(f"{name}: lengths must be None with a PackedSequence, got lengths")
        x, batch = self._flatten(input, lengths)
        unbatched = isinstance(input, Tensor) and input.dim() == 2
        if states is not None:
            self._check_states(states, state_sizes, x, batch.num_rows, unbatched)
            if unbatched:
                states = tuple(s.unsqueeze(1) for s in states)
        directions = 2 if self.bidirectional else 1
        finals: list[tuple[Tensor, ...]] = []
        for layer in range(self.num_layers):
            if layer > 0:
                x = F.dropout(x, self.dropout, self.training)
            first = layer * directions
            initial: list[Tensor | None] = [None] * len(state_sizes)
            if states is not None:
                initial = [s[first : first + directions] for s in states]
            x, *final = self._layer(x, initial, weights[layer], batch)
            finals.append(tuple(final))
        h_and_c = tuple(torch.cat(parts) for parts in zip(*finals, strict=True))
        if isinstance(input, PackedSequence):
            return PackedSequence(x, *input[1:]), h_and_c
        if unbatched:
            h_and_c = tuple(s.squeeze(1) for s in h_and_c)
        return x.view(*input.shape[:-1], x.shape[1]), h_and_c

    def _layer(
        self,
        x: Tensor,
        states: list[Tensor | None],
        weights: list[list[Tensor]],
        batch: Layout,
    ) -> tuple[Tensor, ...]:
        raise NotImplementedError

    def _layer_weights(self, layer: int) -> list[list[Tensor]]:
        """Per kind of weight one list over directions, empty for kinds that are not there."""
        suffixes = [f"_l{layer}", f"_l{layer}_reverse"][: 2 if self.bidirectional else 1]
        kinds = {
            "weight_ih": True,
            "weight_hh": True,
            "bias_ih": self.bias,
            "bias_hh": self.bias,
            "weight_hr": self.proj_size > 0,
        }
        return [
            [getattr(self, kind + suffix) for suffix in suffixes] if present else []
            for kind, present in kinds.items()
        ]

    def _flatten(
        self, input: Tensor | PackedSequence, lengths: Lengths | None
    ) -> tuple[Tensor, Layout]:
        """The tokens as a flat tensor ``[R, I]``, and the layout that points into it."""
        if isinstance(input, PackedSequence):
            batch = layout.from_packed(
                input.batch_sizes, input.sorted_indices, bidirectional=self.bidirectional
            )
            return input.data, batch.to(input.data.device)
        if input.dim() == 2:
            num_steps, num_rows, batch_first = input.shape[0], 1, False
        elif self.batch_first:
            (num_rows, num_steps), batch_first = input.shape[:2], True
        else:
            (num_steps, num_rows), batch_first = input.shape[:2], False
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
        return input.reshape(num_rows * num_steps, input.shape[-1]), batch.to(input.device)

    def _fail(self, what: str, expected: str, got: object) -> InputShapeError:
        return InputShapeError(f"{type(self).__name__}: {what} must be {expected}, got {got}")

    def _check_input(self, input: Tensor | PackedSequence, weight: Tensor) -> None:
        name = type(self).__name__
        packed = isinstance(input, PackedSequence)
        data = input.data if isinstance(input, PackedSequence) else input
        if not isinstance(data, Tensor) or data.is_nested:
            got = "a NestedTensor" if isinstance(data, Tensor) else type(data).__name__
            raise TypeError(f"{name}: input must be a Tensor or a PackedSequence, got {got}")
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

    def _check_lengths(
        self, lengths: Lengths, num_steps: int, num_rows: int, input: Tensor
    ) -> Tensor:
        """The lengths as ``[B]`` int64 on the CPU."""
        name = type(self).__name__
        if input.dim() == 2:
            raise ValueError(
                f"{name}: lengths need a batch {self._batch_form('I')}, got one [T, I]"
            )
        expected = f"in [0, T] = [0, {num_steps}]"
        if not isinstance(lengths, Tensor):
            lengths = self._lengths_from_sequence(lengths, expected)
        if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
            raise TypeError(f"{name}: lengths must be integers, got {lengths.dtype}")
        if lengths.shape != (num_rows,):
            raise self._fail("lengths", f"[B] = [{num_rows}]", list(lengths.shape))
        lengths = lengths.detach().to("cpu", torch.int64)
        outside = ((lengths < 0) | (lengths > num_steps)).nonzero()
        if outside.numel():
            index = int(outside[0])
            raise self._fail("lengths", expected, f"{int(lengths[index])} at index {index}")
        return lengths

    def _lengths_from_sequence(self, lengths: Sequence[int], expected: str) -> Tensor:
        try:
            array = np.asarray(lengths)
        except ValueError as error:
            raise self._fail("lengths", "[B]", "sequences of unequal lengths") from error
        if array.dtype == object and all(isinstance(number, int) for number in array.flat):
            raise self._fail("lengths", expected, f"{max(array.flat, key=abs)}")
        if array.size and array.dtype.kind not in "iu":
            name = type(self).__name__
            raise TypeError(f"{name}: lengths must be integers, got {array.dtype}")
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
        for state, symbol, size in zip(states, "hc"[: len(states)], sizes, strict=True):
            what = f"hx ({symbol}_0)"
            if not isinstance(state, Tensor):
                got = type(state).__name__
                raise TypeError(f"{type(self).__name__}: {what} must be a Tensor, got {got}")
            letter = "P" if symbol == "h" and self.proj_size else "H"
            expected = (layers, size) if unbatched else (layers, num_rows, size)
            if state.shape != expected:
                form = f"[L * D, {letter}]" if unbatched else f"[L * D, B, {letter}]"
                raise self._fail(what, f"{form} = {list(expected)}", list(state.shape))
            if state.dtype != x.dtype:
                raise InputTypeError(
                    f"{type(self).__name__}: {what} must have the input's dtype {x.dtype}, "
                    f"got {state.dtype}"
                )
            if state.device != x.device:
                raise self._fail(what, f"on the input's device {x.device}", state.device)
