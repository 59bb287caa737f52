"""LSTM and GRU with int8 weights, for inference on the CPU."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import PackedSequence

from varlen_rnn import _forms, _inference_only, _onnx, _quantized
from varlen_rnn._rnn_base import VarLenRNNBase
from varlen_rnn.convert import change_class, replaceable
from varlen_rnn.layout import Layout
from varlen_rnn.modules import VarLenGRU, VarLenLSTM

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class _QuantizedBase(VarLenRNNBase):
    """Both cells: int8 weights, their scales and biases as buffers, in the kernels' order."""

    _has_int8_weights = True

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        _check(type(self).__name__, "", self)
        self._quantize()

    def _quantize(self) -> None:
        """Turns the parameters into buffers."""
        num_gates = 4 if self.mode == "LSTM" else 3
        names_of_layers: list[list[str]] = []
        for names in self._all_weights:
            weight_ih, weight_hh, *biases = [getattr(self, name).detach() for name in names]
            for name in names:
                delattr(self, name)
            q_ih, scale_ih = _quantized.quantize_weight(weight_ih)
            q_hh, scale_hh = _quantized.quantize_weight(weight_hh)
            zeros = torch.zeros_like(scale_ih)
            rows = (q_ih, q_hh, scale_ih, scale_hh, *(biases or (zeros, zeros)))
            suffix = names[0].removeprefix("weight_ih")
            new_names = [kind + suffix for kind in _quantized.KINDS]
            for name, values in zip(new_names, rows, strict=True):
                self.register_buffer(name, _quantized.pack(values, num_gates))
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
        which: _forms.Which,
        output_states: bool = False,
    ) -> tuple[Any, tuple[Tensor, ...]]:
        name = type(self).__name__
        if output_states:
            raise NotImplementedError(f"{name}: output_states must be False, got True")
        if _onnx.exporting():
            _onnx.refuse_int8(self)
        return super()._forward(input, states, state_sizes, which)

    def _autocast_dtype(self, device_type: str) -> torch.dtype:
        """What autocast makes of the input: float32, as for other operations that need it."""
        return torch.float32

    def _check_input(
        self, input: Tensor | PackedSequence, data: Tensor, weights: list[Tensor | None]
    ) -> None:
        super()._check_input(input, data, weights[2:])  # from the first that is float32

    def _layer_weights(self, layer: int) -> list[Tensor | None]:
        """Of each direction the tensors of ``_quantized.KINDS``, or None."""
        directions = 2 if self.bidirectional else 1
        names = self._all_weights[layer * directions : (layer + 1) * directions]
        weights: list[Tensor | None] = [getattr(self, name) for kinds in names for name in kinds]
        return weights if self.bidirectional else weights + [None] * len(_quantized.KINDS)

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
            _inference_only.refuse_tangents(type(self).__name__, arguments)
        run = super()._run_layers
        if not (torch.is_grad_enabled() and any(t.requires_grad for t in arguments)):
            return run(x, states, num_states, weights, batch, output_states)
        with torch.no_grad():
            out, finals, _ = run(x, states, num_states, weights, batch, output_states)
        name = type(self).__name__
        out, *copies = _inference_only.results_of(name, (out, *finals), arguments)
        return out, tuple(copies), None

    def _layer(
        self,
        x: Tensor,
        states: Sequence[Tensor | None],
        weights: list[Tensor | None],
        batch: Layout,
        output_states: bool,
    ) -> tuple[Tensor, ...]:
        return _quantized.layer(self.mode.lower(), x, states, weights, self.hidden_size, batch)


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
    as ever. Made directly, with the arguments of :class:`VarLenLSTM` but ``proj_size``, it holds
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


_QUANTIZED: dict[type[nn.RNNBase], type[nn.RNNBase]] = {
    VarLenLSTM: QuantizedVarLenLSTM,
    VarLenGRU: QuantizedVarLenGRU,
    nn.LSTM: QuantizedVarLenLSTM,
    nn.GRU: QuantizedVarLenGRU,
}


def quantize_dynamic(model: ModuleT, inplace: bool = False) -> ModuleT:
    """Gives every LSTM and GRU of a model int8 weights, for faster inference on the CPU.

    What ``torch.ao.quantization.quantize_dynamic(model, {nn.LSTM, nn.GRU})`` does, with this
    library's layers: every ``VarLenLSTM`` and ``VarLenGRU``, and every ``nn.LSTM`` and ``nn.GRU``
    becomes a :class:`QuantizedVarLenLSTM` or :class:`QuantizedVarLenGRU`, with its hooks and its
    training flag. Other modules stay as they are, and so does what :func:`convert` would leave,
    which is said as there. Parametrised weights are quantised as they are now.

    Args:
        model: any module, also one of those itself. Its recurrent layers are float32.
        inplace: whether to change the model itself, and not a copy of it.

    Returns:
        The quantised model.

    Raises:
        TypeError: ``model`` is not a module, or a layer not float32.
        NotImplementedError: a layer has a projection.
        ValueError: weights that are not finite or not there as parameters, or a size not in
            [1, 133144].

    Warns:
        UserWarning: layers stay as they are (with their names in the model, and why), or there is
            none.

    Example:
        >>> import torch
        >>> from varlen_rnn import quantize_dynamic
        >>> model = torch.nn.ModuleDict({"encoder": torch.nn.LSTM(8, 16)})
        >>> quantize_dynamic(model)
        ModuleDict(
          (encoder): QuantizedVarLenLSTM(8, 16)
        )
    """
    layers = replaceable("quantize_dynamic", "quantised", model, _QUANTIZED)
    for name, rnn in layers:
        _check("quantize_dynamic", f"{name}." if name else "", rnn)
    if not inplace:
        model = copy.deepcopy(model)
    for name, _ in layers:
        layer: Any = model.get_submodule(name)
        _make_plain(layer)
        change_class(layer, _QUANTIZED)
        layer._quantize()
    return model


def _make_plain(layer: nn.RNNBase) -> None:
    """Makes parameters of parametrised weights, as they are.

    ``remove_parametrizations`` would change the class, which copies of the layer share.
    """
    if not parametrize.is_parametrized(layer):
        return
    parametrized: Any = layer.parametrizations
    weights = {name: getattr(layer, name).detach() for name in parametrized}
    layer.__class__ = parametrize.type_before_parametrizations(layer)
    del layer._modules["parametrizations"]
    for name, weight in weights.items():
        layer.register_parameter(name, nn.Parameter(weight))


def _check(operation: str, prefix: str, rnn: nn.RNNBase) -> None:
    """Fails where a layer cannot be quantised; ``prefix`` is its name in the model and a dot."""
    start = f"{operation}: {prefix}"
    if rnn.proj_size:
        raise NotImplementedError(f"{start}proj_size must be 0, got {rnn.proj_size}")
    most = _quantized.MAX_SIZE
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
