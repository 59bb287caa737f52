"""What StreamingRNN is made of: the states of many sequences, and two ways to feed them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from varlen_rnn.modules.frozen import FrozenVarLenGRU, FrozenVarLenLSTM
from varlen_rnn.ops import direct
from varlen_rnn.ops.frozen import packed_anew
from varlen_rnn.ops.packed import KINDS, have_shapes, native_units, packed_kinds

NAME = "StreamingRNN"


def autocasts(device: str) -> bool:
    """Whether autocast is on; not every device has it."""
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def _at(what: str, tensor: Tensor) -> int:
    """The address of a tensor's memory, which some only pretend to have."""
    address = tensor.data_ptr()
    if not address and tensor.numel():
        got = f"a {type(tensor).__name__} without any"
        raise TypeError(f"{NAME}: {what} must be a tensor with memory of its own, got {got}")
    return address


class Streams:
    """What calls read of either kind of streams, at once, since a refresh replaces all of it."""

    def __init__(
        self, rnn: nn.RNNBase, num_rows: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.dtype, self.device = dtype, device
        self.compute = torch.promote_types(dtype, torch.float32)  # of cell states
        self.kind = (rnn.mode, rnn.num_layers, rnn.hidden_size, rnn.proj_size)
        self.input_size, self.output_size = rnn.input_size, rnn.proj_size or rnn.hidden_size
        # What the call of one step of all streams compares with, and makes.
        self.x_shape = torch.Size((num_rows, self.input_size))
        # torch.empty_like takes half the time of torch.empty.
        self.like = torch.empty(num_rows, self.output_size, dtype=dtype, device=device)


class CompiledStreams(Streams):
    """States and packed weights in C++."""

    def __init__(self, rnn: FrozenVarLenLSTM | FrozenVarLenGRU, num_rows: int) -> None:
        from varlen_rnn import _C

        super().__init__(rnn, num_rows, rnn._dtype, torch.device("cpu"))
        kept = rnn._frozen_weights
        assert kept is not None
        units = native_units(rnn._cell, kept)
        self._num_rows = num_rows
        self._num_layers, self._hidden_size = rnn.num_layers, rnn.hidden_size
        weights: list[Tensor | None] = []
        for layer in range(rnn.num_layers):
            input_size = self.output_size if layer else rnn.input_size
            sizes = (input_size, rnn.hidden_size, self.output_size)
            given = rnn._layer_weights(layer)[: len(KINDS)]
            packed = [
                None if w is None else w.detach().resolve_neg().contiguous()
                for w in packed_anew(rnn._cell, given, sizes)
            ]
            kinds = packed_kinds(rnn._cell, kept, self.compute, sizes, units)
            if not have_shapes(packed, kinds) or not all(
                w.dtype == kind[1] and w.is_cpu and w.data_ptr()
                for w, kind in zip(packed, kinds, strict=True)
                if w is not None and kind is not None
            ):
                raise ValueError(
                    f"{NAME}: weights of layer {layer} must be as freeze makes them, got others"
                )
            weights += packed
        self.compiled = _C.Stream(
            rnn.mode == "LSTM",
            direct.DTYPES[self.dtype],
            direct.ORDERS[kept],
            units,
            rnn.input_size,
            rnn.hidden_size,
            self.output_size,
            [0 if w is None else w.data_ptr() for w in weights],  # which it copies
            num_rows,
        )
        self._has_cells = rnn.mode == "LSTM"

    def run(self, x: Tensor, rows: Tensor | None, out: Tensor) -> None:
        """Feeds ``x [K, T, I]`` to those rows, and writes to a contiguous ``out``."""
        x = x.contiguous().resolve_neg()
        count, pointer = self._which(rows)
        self.compiled.run(count, pointer, _at("x", x), x.shape[1], _at("out", out))

    def reset(self, rows: Tensor | None) -> None:
        """Makes states zero."""
        self.compiled.reset(*self._which(rows))

    def read(self, rows: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Copies of states."""
        count, pointer = self._which(rows)
        h, c = self._states(count)
        self.compiled.read(count, pointer, h.data_ptr(), 0 if c is None else c.data_ptr())
        return h, c

    def retire(self) -> tuple[Tensor, Tensor | None]:
        """All states; later calls are refused, as if another thread were in one."""
        h, c = self._states(self._num_rows)
        self.compiled.retire(h.data_ptr(), 0 if c is None else c.data_ptr())
        return h, c

    def revive(self) -> None:
        """Takes :meth:`retire` back."""
        self.compiled.revive()

    def _states(self, count: int) -> tuple[Tensor, Tensor | None]:
        shape = (self._num_layers, count, self.output_size)
        h = torch.empty(shape, dtype=self.dtype, device="cpu")
        c = None
        if self._has_cells:
            shape = (*shape[:2], self._hidden_size)
            c = torch.empty(shape, dtype=self.compute, device="cpu")
        return h, c

    def load(self, h: Tensor, c: Tensor | None, rows: Tensor | None) -> None:
        """Puts states in, which are contiguous."""
        c_pointer = 0 if c is None else _at("state (c)", c)
        self.compiled.load(*self._which(rows), _at("state (h)", h), c_pointer)

    def _which(self, rows: Tensor | None) -> tuple[int, int]:
        """How many, and where their numbers lie: 0 for all, and not 0 for none."""
        if rows is None:
            return self._num_rows, 0
        return len(rows), _at("rows", rows) if len(rows) else 8


class ModuleStreams(Streams):
    """Calls of a module, with states in tensors."""

    compiled: Any = None

    def __init__(self, rnn: nn.RNNBase, num_rows: int) -> None:
        weight: Tensor = next(iter([*rnn.parameters(), *rnn.buffers()]))
        super().__init__(rnn, num_rows, getattr(rnn, "_dtype", weight.dtype), weight.device)
        self._rnn = rnn.eval().requires_grad_(False)
        self._rnn.batch_first = True
        sizes = (rnn.num_layers, num_rows, self.output_size)
        self._c: Tensor | None = None
        with torch.inference_mode(False):  # what is made in it cannot be changed outside
            self._h = torch.zeros(sizes, dtype=self.dtype, device=self.device)
            if rnn.mode == "LSTM":
                sizes = (*sizes[:2], rnn.hidden_size)
                self._c = torch.zeros(sizes, dtype=self.compute, device=self.device)
        self._lock = threading.Lock()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self._take()
        try:
            yield
        finally:
            self._lock.release()

    def _take(self) -> None:
        if not self._lock.acquire(blocking=False):
            raise RuntimeError(f"{NAME}: another thread is in a call of the same object")

    def _which(self, rows: Tensor | None) -> Any:
        """What to index the rows of states with."""
        if rows is None:
            return slice(None)
        num_rows = self._h.shape[1]
        seen: set[int] = set()
        for index, row in enumerate(rows.tolist()):
            if not 0 <= row < num_rows:
                expected = f"in [0, num_rows) = [0, {num_rows})"
                raise ValueError(f"{NAME}: rows must be {expected}, got {row} at index {index}")
            if row in seen:
                raise ValueError(f"{NAME}: rows must be distinct, got {row} again at index {index}")
            seen.add(row)
        return rows.to(self.device)

    def run(self, x: Tensor, rows: Tensor | None, out: Tensor) -> None:
        """Feeds ``x [K, T, I]`` to those rows, and writes to a contiguous ``out``."""
        which = self._which(rows)
        if not x.shape[0] or not x.shape[1]:
            return
        with self._alone():
            h, c = self._h[:, which].contiguous(), None
            if self._c is not None:
                c = self._c[:, which].to(self.dtype).contiguous()
            device = self.device.type
            with torch.autocast(device, enabled=False) if autocasts(device) else nullcontext():
                y, state = self._rnn.forward(x, h if c is None else (h, c))  # without hooks
            if self._c is None:
                self._h[:, which] = state
            else:
                self._h[:, which], self._c[:, which] = state[0], state[1].to(self._c.dtype)
            out.copy_(y.view(out.shape))

    def reset(self, rows: Tensor | None) -> None:
        """Makes states zero."""
        which = self._which(rows)
        with self._alone():
            self._h[:, which] = 0
            if self._c is not None:
                self._c[:, which] = 0

    def read(self, rows: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Copies of states."""
        which = self._which(rows)
        with self._alone():
            return self._h[:, which].clone(), None if self._c is None else self._c[:, which].clone()

    def retire(self) -> tuple[Tensor, Tensor | None]:
        """All states; later calls are refused, as if another thread were in one."""
        self._take()
        return self._h, self._c

    def revive(self) -> None:
        """Takes :meth:`retire` back."""
        self._lock.release()

    def load(self, h: Tensor, c: Tensor | None, rows: Tensor | None) -> None:
        """Puts states in, which are contiguous."""
        which = self._which(rows)
        with self._alone():
            self._h[:, which] = h
            if self._c is not None:
                assert c is not None
                self._c[:, which] = c
