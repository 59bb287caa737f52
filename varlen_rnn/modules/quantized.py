"""LSTM and GRU with int8 weights, for inference on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import PackedSequence

from varlen_rnn.layout import Layout, forms
from varlen_rnn.modules import inference_only, onnx
from varlen_rnn.modules.base import VarLenRNNBase
from varlen_rnn.modules.gru import VarLenGRU
from varlen_rnn.modules.lstm import VarLenLSTM
from varlen_rnn.ops import int8


class _QuantizedBase(VarLenRNNBase):
    """Both cells: int8 weights, their scales and biases as buffers, in the kernels' order."""

    _has_int8_weights = True

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        check_quantizable(type(self).__name__, "", self)
        self._quantize()

    def _quantize(self) -> None:
        """Turns the parameters into buffers."""
        num_gates = 4 if self.mode == "LSTM" else 3
        names_of_layers: list[list[str]] = []
        for names in self._all_weights:
            weight_ih, weight_hh, *biases = [getattr(self, name).detach() for name in names]
            for name in names:
                delattr(self, name)
            q_ih, scale_ih = int8.quantize_weight(weight_ih)
            q_hh, scale_hh = int8.quantize_weight(weight_hh)
            zeros = torch.zeros_like(scale_ih)
            rows = (q_ih, q_hh, scale_ih, scale_hh, *(biases or (zeros, zeros)))
            suffix = names[0].removeprefix("weight_ih")
            new_names = [kind + suffix for kind in int8.KINDS]
            for name, values in zip(new_names, rows, strict=True):
                self.register_buffer(name, int8.pack(values, num_gates))
            names_of_layers.append(new_names)
        self._all_weights = names_of_layers
        self._flat_weights_names = [name for names in names_of_layers for name in names]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Moves, but keeps dtypes: ``model.double()`` or ``.half()`` are about other layers."""

        def keeping_dtype(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(keeping_dtype, recurse)  # type: ignore[no-untyped-call]

    def _forward(
        self,
        input: Tensor | PackedSequence,
        states: tuple[Tensor, ...] | None,
        state_sizes: tuple[int, ...],
        which: forms.Which,
        output_states: bool = False,
    ) -> tuple[Any, tuple[Tensor, ...]]:
        name = type(self).__name__
        if output_states:
            raise NotImplementedError(f"{name}: output_states must be False, got True")
        if onnx.exporting():
            onnx.refuse_int8(self)
        return super()._forward(input, states, state_sizes, which)

    def _autocast_dtype(self, device_type: str) -> torch.dtype:
        """What autocast makes of the input: float32, as for other operations that need it."""
        return torch.float32

    def _check_input(
        self, input: Tensor | PackedSequence, data: Tensor, weights: list[Tensor | None]
    ) -> None:
        super()._check_input(input, data, weights[2:])  # from the first that is float32

    def _layer_weights(self, layer: int) -> list[Tensor | None]:
        """Of each direction the tensors of ``int8.KINDS``, or None."""
        directions = 2 if self.bidirectional else 1
        names = self._all_weights[layer * directions : (layer + 1) * directions]
        weights: list[Tensor | None] = [getattr(self, name) for kinds in names for name in kinds]
        return weights if self.bidirectional else weights + [None] * len(int8.KINDS)

    def _run_layers(
        self,
        x: Tensor,
        states: tuple[Tensor, ...] | None,
        num_states: int,
        weights: list[list[Tensor | None]],
        batch: Layout,
        output_states: bool,
    ) -> tuple[Tensor, tuple[Tensor, ...], Tensor | None]:
        arguments = (x,) if states is None else (x, *states)
        if forward_ad._current_level >= 0:
            inference_only.refuse_tangents(type(self).__name__, arguments)
        run = super()._run_layers
        if not (torch.is_grad_enabled() and any(t.requires_grad for t in arguments)):
            return run(x, states, num_states, weights, batch, output_states)
        with torch.no_grad():
            out, finals, _ = run(x, states, num_states, weights, batch, output_states)
        name = type(self).__name__
        out, *copies = inference_only.results_of(name, (out, *finals), arguments)
        return out, tuple(copies), None

    def _layer(
        self,
        x: Tensor,
        states: Sequence[Tensor | None],
        weights: list[Tensor | None],
        batch: Layout,
        output_states: bool,
    ) -> tuple[Tensor, ...]:
        return int8.layer(self.mode.lower(), x, states, weights, self.hidden_size, batch)


class QuantizedVarLenLSTM(_QuantizedBase, VarLenLSTM):
    """A :class:`VarLenLSTM` with int8 weights, for inference; :func:`quantize_dynamic` makes it.

    Equivalent to ``VarLenLSTM`` with weights rounded to ``scale * q``, ``q`` in [-127, 127], one
    scale for each row of ``weight_ih`` and ``weight_hh``; biases, states and all else are float32.
    Activations are rounded as well, to 16 bits by each token's largest value. ``forward`` takes
    all that ``VarLenLSTM.forward`` takes but ``output_states``. Input is float32, to which autocast
    turns others; a token with NaN or Inf makes its row's outputs NaN from there on.

    No gradient goes through. The output requires one if an argument does, as with any layer, and a
    backward pass that comes to it raises NotImplementedError (so does forward mode, at once); with
    torch's own quantised modules, layers before them silently get none. Programs that
    ``torch.export`` or ``torch.jit.trace`` made are for inference, and their outputs require none.

    Weights, scales and biases are buffers, so ``state_dict``, ``pickle`` and ``copy.deepcopy`` work
    as usual. Made directly, with the arguments of :class:`VarLenLSTM` but ``proj_size``, it holds
    random weights, to load a ``state_dict`` into.

    Example:
        >>> import torch
        >>> from varlen_rnn import QuantizedVarLenLSTM, VarLenLSTM, quantize_dynamic
        >>> quantized = quantize_dynamic(VarLenLSTM(8, 16))
        >>> fresh = QuantizedVarLenLSTM(8, 16)
        >>> fresh.load_state_dict(quantized.state_dict())
        <All keys matched successfully>
        >>> x = torch.randn(5, 3, 8)
        >>> bool((fresh(x)[0] == quantized(x)[0]).all())
        True
    """


class QuantizedVarLenGRU(_QuantizedBase, VarLenGRU):
    """A :class:`VarLenGRU` with int8 weights, for inference; see :class:`QuantizedVarLenLSTM`.

    Example:
        >>> import torch
        >>> from varlen_rnn import VarLenGRU, quantize_dynamic
        >>> rnn = VarLenGRU(8, 16, batch_first=True)
        >>> quantized = quantize_dynamic(rnn)
        >>> x, lengths = torch.randn(3, 10, 8), torch.tensor([10, 0, 4])
        >>> (out, h_n), (truth, _) = quantized(x, lengths=lengths), rnn(x, lengths=lengths)
        >>> out.shape, h_n.shape, torch.allclose(out, truth, atol=0.02)
        (torch.Size([3, 10, 16]), torch.Size([1, 3, 16]), True)
    """


QUANTIZED: dict[type[nn.RNNBase], type[nn.RNNBase]] = {
    VarLenLSTM: QuantizedVarLenLSTM,
    VarLenGRU: QuantizedVarLenGRU,
}


def check_quantizable(operation: str, prefix: str, rnn: nn.RNNBase) -> None:
    """Fails where a layer cannot be quantised; ``prefix`` is its name in the model and a dot."""
    start = f"{operation}: {prefix}"
    if rnn.proj_size:
        raise NotImplementedError(f"{start}proj_size must be 0, got {rnn.proj_size}")
    most = int8.MAX_SIZE
    sizes = rnn.input_size, rnn.hidden_size
    if min(sizes) < 1 or max(sizes) > most:
        raise ValueError(f"{start}input_size and hidden_size must be in [1, {most}], got {sizes}")
    for name in (name for names in rnn._all_weights for name in names):
        if name not in rnn._parameters and not parametrize.is_parametrized(rnn, name):
            raise ValueError(
                f"{start}{name} must be a parameter, got an attribute that a "
                "hook computes (make it permanent first: prune.remove, remove_weight_norm)"
            )
        weight = getattr(rnn, name)
        if weight.dtype != torch.float32:
            raise TypeError(f"{start}{name} must be float32, got {weight.dtype}")
        if not weight.is_meta and not weight.isfinite().all():
            raise ValueError(f"{start}{name} must be finite, got NaN or Inf")
