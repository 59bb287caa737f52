"""One step, or a few, at a time, with the states kept inside."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.graph import increment_version

from varlen_rnn.convert import why_not
from varlen_rnn.freezing import FROZEN_AS, FrozenVarLenGRU, FrozenVarLenLSTM, freeze
from varlen_rnn.layout.checks import failure
from varlen_rnn.layout.errors import InputTypeError
from varlen_rnn.modules.inference_only import refuse_tangents, results_of
from varlen_rnn.modules.streams import NAME, CompiledStreams, ModuleStreams, Streams, autocasts
from varlen_rnn.runtime import extension
from varlen_rnn.runtime.tracing import in_jit_trace

Rows = Tensor | Sequence[int]
State = Tensor | tuple[Tensor, Tensor]


class StreamingRNN:
    """Runs many sequences a step, or a few steps, at a time, and keeps their states.

    Equivalent to ``out, state = rnn(x[:, None], state)`` for all of ``num_rows`` streams, or for
    those of ``rows``, without dropout. What comes out is, bit for bit, what the module gives for
    the whole sequence in one call, whichever streams share a call; so the cell states of 16-bit
    layers stay float32 between calls. (On other devices, and where nothing is compiled, calls go
    through the module, and neither holds.)

    The weights of all layers are packed when the object is made, or :meth:`refresh` is called; a
    call is one call into C++, on as many of torch's threads as its work is worth. Its output is all
    that it allocates. Two threads of Python cannot use one object at the same time: the second
    call raises an error, and changes nothing.

    No gradient goes through, as with :class:`FrozenVarLenLSTM`. ``copy.deepcopy`` and ``pickle``
    take the states along, and pack the weights as they are then.

    Args:
        rnn: a ``VarLenLSTM`` or ``VarLenGRU``, frozen (:func:`freeze`: with bfloat16 or int8
            weights) or not, or an ``nn.LSTM`` or ``nn.GRU``; of one direction, and any number of
            layers. Its ``batch_first``, hooks and training flag play no part.
        num_rows: how many streams there are; each begins with a state of zeros.

    Raises:
        TypeError: ``rnn`` is no such layer, or ``num_rows`` no integer.
        ValueError: ``rnn`` has two directions, or ``num_rows`` is not positive, or weights cannot
            be frozen (:func:`freeze`).

    Example:
        >>> import torch
        >>> from varlen_rnn import StreamingRNN, VarLenLSTM
        >>> rnn = VarLenLSTM(8, 16, num_layers=2)
        >>> stream = StreamingRNN(rnn, num_rows=3)
        >>> x = torch.randn(3, 10, 8)
        >>> outs = [stream(x[:, t]) for t in range(10)]
        >>> whole, (h_n, c_n) = rnn(x.transpose(0, 1))
        >>> torch.allclose(torch.stack(outs), whole, atol=1e-6)
        True
        >>> stream(x[:2, 0], rows=torch.tensor([2, 0])).shape
        torch.Size([2, 16])
    """

    def __init__(self, rnn: nn.RNNBase, num_rows: int) -> None:
        """Packs the weights; see the class for the arguments."""
        if isinstance(num_rows, bool) or not isinstance(num_rows, int):
            raise TypeError(f"{NAME}: num_rows must be an int, got {type(num_rows).__name__}")
        if num_rows < 1:
            raise ValueError(f"{NAME}: num_rows must be positive, got {num_rows}")
        if not isinstance(rnn, nn.RNNBase) or rnn.mode not in ("LSTM", "GRU"):
            raise TypeError(f"{NAME}: rnn must be an LSTM or a GRU, got {type(rnn).__name__}")
        if rnn.bidirectional:
            raise ValueError(
                f"{NAME}: rnn must have one direction, since the reverse one begins at the end of "
                "a sequence, got bidirectional=True"
            )
        frozen = isinstance(rnn, (FrozenVarLenLSTM, FrozenVarLenGRU))
        if not frozen and (reason := why_not(rnn, FROZEN_AS)):
            expected = "a layer that can be frozen"
            raise TypeError(f"{NAME}: rnn must be {expected}, got one that cannot: {reason}")
        self.rnn = rnn
        self.num_rows = num_rows
        self._streams = self._fresh()

    def refresh(self) -> None:
        """Packs the weights of ``rnn`` anew, as they are now; the states stay.

        Raises:
            ValueError: ``rnn`` has other layers than before, or weights that cannot be frozen.
            RuntimeError: another thread is in a call of the same object.
        """
        old, streams = self._streams, self._fresh()
        if streams.kind != old.kind:
            expected = "have the mode, layers, H and P of before"
            raise ValueError(f"{NAME}: rnn must {expected}, {old.kind}, got {streams.kind}")
        # From here on a thread that is about to call the old ones is refused, and loses no step.
        h, c = old.retire()
        try:
            c = None if c is None else c.to(streams.device, streams.compute)
            streams.load(h.to(streams.device, streams.dtype), c, None)
        except BaseException:
            old.revive()
            raise
        self._streams = streams

    def _fresh(self) -> CompiledStreams | ModuleStreams:
        weight = next(iter([*self.rnn.parameters(), *self.rnn.buffers()]))
        if weight.is_cpu and extension.UNAVAILABLE is None:
            return CompiledStreams(_frozen(self.rnn), self.num_rows)
        return ModuleStreams(copy.deepcopy(self.rnn), self.num_rows)

    def __call__(self, x: Tensor, rows: Rows | None = None, out: Tensor | None = None) -> Tensor:
        """Feeds each stream its next step, or its next steps.

        Args:
            x: ``[num_rows, I]``, one step, or ``[num_rows, T, I]``, T steps, of the layer's dtype,
                to which autocast turns others. With ``rows``, K in place of ``num_rows``.
            rows: ``[K]`` distinct integers in [0, num_rows): the streams that x is of, in its
                order. The others' states stay as they are. None for all, in their order.
            out: what to write the output to, and return: a tensor of its shape, dtype and device.

        Returns:
            The last layer's output, ``[K, P]`` or ``[K, T, P]``.

        Raises:
            TypeError: a type or dtype that does not fit.
            ValueError: a shape, a row or a device that does not fit, or an ``out`` that requires a
                gradient.
            RuntimeError: another thread is in a call of the same object.
        """
        # A step takes a few microseconds, of which each check is a part.
        streams = self._streams  # which a refresh in another thread may replace meanwhile
        if (
            type(x) is Tensor
            and x.dtype is streams.dtype
            and x.is_cpu
            and x.is_contiguous()
            and not x.is_neg()
            and not x.requires_grad
            and streams.compiled is not None
            and forward_ad._current_level < 0
            and torch._C._get_tracing_state() is None
            and not torch._C._len_torch_dispatch_stack()
        ):
            if rows is None:
                if x.shape == streams.x_shape and (x_at := x.data_ptr()):
                    if out is None:
                        out = torch.empty_like(streams.like)
                        streams.compiled.step(x_at, out.data_ptr())
                        return out
                    if _fits(streams, out, x):
                        streams.compiled.step(x_at, out.data_ptr())
                        increment_version(out)  # for autograd, which may have saved it
                        return out
            elif (
                out is None
                and type(rows) is Tensor
                and rows.dtype is torch.int64
                and rows.is_cpu
                and rows.is_contiguous()
                and x.shape == (*rows.shape, streams.input_size)
                and rows.dim() == 1
            ):
                count, rows_at, x_at = rows.shape[0], rows.data_ptr(), x.data_ptr()
                if rows_at and x_at:
                    out = x.new_empty((count, streams.output_size))
                    streams.compiled.run(count, rows_at, x_at, 1, out.data_ptr())
                    return out
        return self._call(streams, x, rows, out)

    def _call(
        self,
        streams: CompiledStreams | ModuleStreams,
        x: Tensor,
        rows: Rows | None,
        out: Tensor | None,
    ) -> Tensor:
        """Whatever the arguments are."""
        _refuse_recording()
        if not isinstance(x, Tensor):
            raise TypeError(f"{NAME}: x must be a Tensor, got {type(x).__name__}")
        if x.device != streams.device:
            raise failure(NAME, "x", f"on the layer's device {streams.device}", x.device)
        if x.layout is not torch.strided:
            raise TypeError(f"{NAME}: x must be a dense tensor, got one of layout {x.layout}")
        is_cast = x.is_floating_point() and x.dtype != torch.float64
        if x.dtype != streams.dtype and is_cast and autocasts(streams.device.type):
            x = x.to(streams.dtype)
        if x.dtype != streams.dtype:
            raise InputTypeError(
                f"{NAME}: x must have the layer's dtype {streams.dtype}, got {x.dtype}"
            )
        which = None if rows is None else self._checked(rows)
        symbol, count = ("num_rows", self.num_rows) if which is None else ("K", len(which))
        if x.dim() not in (2, 3) or x.shape[0] != count or x.shape[-1] != streams.input_size:
            expected = f"[{symbol}, I] or [{symbol}, T, I] with {symbol} = {count}"
            expected += f" and I = {streams.input_size}"
            raise failure(NAME, "x", expected, list(x.shape))
        shape = (*x.shape[:-1], streams.output_size)
        if out is not None:
            _check_out(streams, out, shape)
            if x.requires_grad and torch.is_grad_enabled():
                raise ValueError(f"{NAME}: out must be None where x requires a gradient, got one")
        if forward_ad._current_level >= 0:
            refuse_tangents(NAME, (x,))
        with torch.no_grad():
            steps = x.detach() if x.dim() == 3 else x.detach().unsqueeze(1)
            result = out
            if out is None or not out.is_contiguous() or out.is_neg() or _overlap(out, x):
                result = torch.empty(shape, dtype=streams.dtype, device=streams.device)
            assert result is not None
            streams.run(steps, which, result)
            if out is not None and result is not out:
                out.copy_(result)
        if out is not None:
            increment_version(out)
            return out
        if x.requires_grad and torch.is_grad_enabled():
            (result,) = results_of(NAME, (result,), (x,))
        return result

    def _checked(self, rows: Rows) -> Tensor:
        """Rows as ``[K]`` int64 on the CPU; their values are checked where they are used."""
        try:
            which = (
                rows
                if isinstance(rows, Tensor)
                else torch.as_tensor(np.asarray(rows, order="C"), device="cpu")
            )
        except (TypeError, ValueError) as error:
            got = type(rows).__name__
            raise TypeError(f"{NAME}: rows must be integers, got {got}: {error}") from error
        is_integer = not (which.is_floating_point() or which.is_complex())
        if which.dtype == torch.bool or not (is_integer or which.numel() == 0):
            raise TypeError(f"{NAME}: rows must be integers, got {which.dtype}")
        if which.dim() != 1:
            raise failure(NAME, "rows", "[K]", list(which.shape))
        return which.to("cpu", torch.int64).contiguous()

    def reset(self, rows: Rows | None = None) -> None:
        """Lets streams begin anew, with states of zeros: those of ``rows``, or all."""
        _refuse_recording()
        which = None if rows is None else self._checked(rows)
        self._streams.reset(which)

    def state(self, rows: Rows | None = None) -> State:
        """Copies of the states of all streams, or of those of ``rows``, shaped as ``hx``.

        Returns:
            ``(h [L, K, P], c [L, K, H])`` of an LSTM, ``h`` of a GRU. ``c`` is float32 for 16-bit
            layers, as it is kept.
        """
        _refuse_recording()
        which = None if rows is None else self._checked(rows)
        h, c = self._streams.read(which)
        return h if c is None else (h, c)

    def load_state(self, state: State, rows: Rows | None = None) -> None:
        """Puts states in, shaped as :meth:`state` gives them; ``c`` also in the layer's dtype."""
        _refuse_recording()
        which = None if rows is None else self._checked(rows)
        streams = self._streams
        lstm = self.rnn.mode == "LSTM"
        if lstm and not (isinstance(state, (tuple, list)) and len(state) == 2):
            got = type(state).__name__
            raise TypeError(f"{NAME}: state must be a tuple (h, c), got {got}")
        h, c = state if lstm else (state, None)
        num_rows = self.num_rows if which is None else len(which)
        h = self._check_state(streams, "h", h, num_rows, streams.output_size, (streams.dtype,))
        if lstm:
            dtypes = (streams.compute, streams.dtype)
            c = self._check_state(streams, "c", c, num_rows, self.rnn.hidden_size, dtypes)
            c = c.to(streams.compute)
        streams.load(h, c, which)

    def _check_state(
        self,
        streams: Streams,
        what: str,
        state: Any,
        num_rows: int,
        size: int,
        dtypes: tuple[torch.dtype, ...],
    ) -> Tensor:
        if not isinstance(state, Tensor):
            got = type(state).__name__
            raise TypeError(f"{NAME}: state ({what}) must be a Tensor, got {got}")
        expected = [self.rnn.num_layers, num_rows, size]
        if list(state.shape) != expected:
            form = f"[L, {'num_rows' if num_rows == self.num_rows else 'K'}, "
            form += f"{'P' if what == 'h' and self.rnn.proj_size else 'H'}]"
            raise failure(NAME, f"state ({what})", f"{form} = {expected}", list(state.shape))
        if state.dtype not in dtypes:
            raise InputTypeError(
                f"{NAME}: state ({what}) must have dtype {dtypes[0]}, got {state.dtype}"
            )
        if state.device != streams.device:
            on = f"on the layer's device {streams.device}"
            raise failure(NAME, f"state ({what})", on, state.device)
        return state.detach().resolve_neg().contiguous()

    def __repr__(self) -> str:
        return f"{NAME}({self.rnn!r}, num_rows={self.num_rows})"

    def __getstate__(self) -> dict[str, Any]:
        return {"rnn": self.rnn, "num_rows": self.num_rows, "state": self.state()}

    def __setstate__(self, saved: dict[str, Any]) -> None:
        self.rnn, self.num_rows = saved["rnn"], saved["num_rows"]
        self._streams = self._fresh()
        self.load_state(saved["state"])


def _frozen(rnn: nn.RNNBase) -> FrozenVarLenLSTM | FrozenVarLenGRU:
    frozen = rnn if isinstance(rnn, (FrozenVarLenLSTM, FrozenVarLenGRU)) else freeze(rnn)
    assert isinstance(frozen, (FrozenVarLenLSTM, FrozenVarLenGRU))
    return frozen


def _fits(streams: Streams, out: Tensor, x: Tensor) -> bool:
    """Whether the output of one step of all streams can go there, which x is not."""
    return (
        type(out) is Tensor
        and out.shape == streams.like.shape
        and out.dtype is streams.dtype
        and out.is_cpu
        and out.is_contiguous()
        and not out.is_neg()
        and not out.requires_grad
        and (not out.is_inference() or torch.is_inference_mode_enabled())
        and out.data_ptr() != 0
        and not _overlap(out, x)
    )


def _check_out(streams: Streams, out: Tensor, shape: tuple[int, ...]) -> None:
    if not isinstance(out, Tensor):
        raise TypeError(f"{NAME}: out must be a Tensor, got {type(out).__name__}")
    if out.dtype != streams.dtype:
        raise InputTypeError(
            f"{NAME}: out must have the layer's dtype {streams.dtype}, got {out.dtype}"
        )
    if out.device != streams.device:
        raise failure(NAME, "out", f"on the layer's device {streams.device}", out.device)
    if out.shape != shape:
        raise failure(NAME, "out", f"{list(shape)}", list(out.shape))
    if out.layout is not torch.strided:
        raise TypeError(f"{NAME}: out must be a dense tensor, got one of layout {out.layout}")
    extent, apart = 1, True
    for step, n in sorted(zip(out.stride(), out.shape, strict=True)):
        if n > 1:
            apart, extent = apart and step >= extent, step * n
    if not apart:
        expected = "a tensor whose elements lie apart"
        raise ValueError(f"{NAME}: out must be {expected}, got strides {out.stride()}")
    if out.is_inference() and not torch.is_inference_mode_enabled():
        raise ValueError(f"{NAME}: out must be no tensor of torch.inference_mode, got one")
    if out.requires_grad:
        raise ValueError(f"{NAME}: out must not require a gradient, got one that does")


def _refuse_recording() -> None:
    """A recorded call would hold whatever lay in its output's memory."""
    mode, key = torch._C._get_dispatch_mode, torch._C._TorchDispatchModeKey
    if in_jit_trace() or (
        torch._C._len_torch_dispatch_stack()
        and any(mode(one) is not None for one in (key.FAKE, key.PROXY, key.FUNCTIONAL))
    ):
        raise NotImplementedError(
            f"{NAME}: a call must run, got one that is traced or exported; record the layer itself"
        )


def _overlap(out: Tensor, x: Tensor) -> bool:
    """Whether two contiguous tensors share memory; other x are copied before they are read."""
    ends = out.data_ptr() + out.nbytes, x.data_ptr() + x.nbytes
    return max(out.data_ptr(), x.data_ptr()) < min(ends)
