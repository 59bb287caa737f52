"""LSTM and GRU whose weights are packed once, for inference on the CPU."""

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
from varlen_rnn.ops import frozen, int8
from varlen_rnn.ops.cells import NAMED
from varlen_rnn.ops.packed import KINDS, have_shapes, packed_kinds

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class _FrozenBase(VarLenRNNBase):
    """Both cells: weights as buffers, in the kernels' order."""

    def __init__(self, *args: Any, weights: torch.dtype | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        check_freezable(type(self).__name__, "", self, weights)
        self._freeze(weights)

    def _freeze(self, weights: torch.dtype | None) -> None:
        """Turns the parameters into buffers."""
        given = [super(_FrozenBase, self)._layer_weights(n) for n in range(self.num_layers)]
        first = given[0][0]
        assert first is not None
        self._dtype, self.weights = first.dtype, weights
        self._frozen_weights = weights or _packed_dtype(first.dtype)
        directions = 2 if self.bidirectional else 1
        suffixes = [names[0].removeprefix("weight_ih") for names in self._all_weights]
        for names in self._all_weights:
            for name in names:
                delattr(self, name)
        self._all_weights = []
        with torch.no_grad():
            for index, suffix in enumerate(suffixes):
                layer, direction = divmod(index, directions)
                of_direction = given[layer][5 * direction : 5 * direction + 5]
                packed = frozen.freeze_weights(self._cell, of_direction, self._frozen_weights)
                self._all_weights.append([])
                for kind, tensor in zip(KINDS, packed, strict=True):
                    if tensor is not None:
                        self.register_buffer(kind + suffix, tensor)
                        self._all_weights[-1].append(kind + suffix)
        self._flat_weights_names = [name for names in self._all_weights for name in names]

    @property
    def _cell(self) -> str:
        return self.mode.lower()

    def extra_repr(self) -> str:
        """The arguments that are not defaults."""
        said = super().extra_repr()
        return said if self.weights is None else f"{said}, weights={self.weights}"

    def _pack_anew(self, tensors: dict[str, Any], prefix: str, units: int | None) -> None:
        """Puts tensors that another instruction set has packed into an order of as many units."""
        # What is missing, or of other sizes, stays as it is, for torch's own error.
        for index, names in enumerate(self._all_weights):
            if not all(isinstance(tensors.get(prefix + name), Tensor) for name in names):
                continue
            suffix = names[0].removeprefix("weight_ih")
            kinds = [prefix + kind + suffix for kind in KINDS]
            weights = [tensors.get(name) for name in kinds]
            directions = 2 if self.bidirectional else 1
            output_size = self.proj_size or self.hidden_size
            input_size = self.input_size if index < directions else directions * output_size
            sizes = (input_size, self.hidden_size, output_size)
            bias, dtype = weights[2], self._frozen_weights
            assert bias is not None
            assert dtype is not None
            if bias.dim() != 3:
                continue
            if not have_shapes(
                weights, packed_kinds(self._cell, dtype, bias.dtype, sizes, bias.shape[2])
            ):
                continue
            anew = frozen.packed_anew(self._cell, weights, sizes, units)
            for name, tensor in zip(kinds, anew, strict=True):
                if tensor is not None:
                    tensors[name] = tensor

    def __setstate__(self, d: Any) -> None:
        super().__setstate__(d)
        self._pack_anew(self._buffers, "", None)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if _is_packed(state_dict.get(f"{prefix}weight_ih_l0"), self._frozen_weights):
            units = self._buffers["bias_ih_l0"].shape[2]  # type: ignore[union-attr]
            state_dict = dict(state_dict)
            self._pack_anew(state_dict, prefix, units)
        super()._load_from_state_dict(state_dict, prefix, *args)

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
            onnx.refuse_frozen(self)
        return super()._forward(input, states, state_sizes, which)

    def _run_directly(self, x: Any, states: Any) -> tuple[Tensor, tuple[Tensor, ...]] | None:
        # Weights of one type serve layers of several.
        return super()._run_directly(x, states) if x.dtype is self._dtype else None

    def _autocast_dtype(self, device_type: str) -> torch.dtype:
        """What autocast makes of the input: the type that the layer was frozen in."""
        return self._dtype

    def _autocast_weights(
        self, weights: list[list[Tensor | None]], to_dtype: Callable[[Tensor], Tensor]
    ) -> list[list[Tensor | None]]:
        return weights

    def _input_dtype(self, weight: Tensor) -> torch.dtype:
        return self._dtype

    def _layer_weights(self, layer: int) -> list[Tensor | None]:
        """Of each direction the tensors of ``KINDS``, or None."""
        directions = 2 if self.bidirectional else 1
        weights: list[Tensor | None] = []
        for names in self._all_weights[layer * directions : (layer + 1) * directions]:
            suffix = names[0].removeprefix("weight_ih")
            weights += [self._buffers.get(kind + suffix) for kind in KINDS]
        return weights if self.bidirectional else weights + [None] * len(KINDS)

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
        sizes = (self.hidden_size, self.proj_size or self.hidden_size)
        return frozen.layer(self._cell, x, states, weights, sizes, batch)


class FrozenVarLenLSTM(_FrozenBase, VarLenLSTM):
    """A :class:`VarLenLSTM` whose weights are packed once, for inference; :func:`freeze` makes it.

    Equivalent, bit for bit, to the ``VarLenLSTM`` that it was made from; with
    ``weights=torch.bfloat16`` to one with weights ``w.bfloat16().float()``; with
    ``weights=torch.int8`` to one with weights rounded to ``scale * q``, ``q`` in [-127, 127], one
    scale for each row of ``weight_ih`` and ``weight_hh``, whose activations are rounded as well, to
    16 bits by each token's largest value. Biases, states and all else keep their type. ``forward``
    takes all that ``VarLenLSTM.forward`` takes but ``output_states``, with input of the type that
    the layer was frozen in, to which autocast turns others. With int8 weights a token with NaN or
    Inf makes its row's outputs NaN from there on.

    No gradient goes through. The output requires one if an argument does, as with any layer, and a
    backward pass that comes to it raises NotImplementedError (so does forward mode, at once); with
    torch's own quantised modules, layers before them silently get none. Programs that
    ``torch.export`` or ``torch.jit.trace`` made are for inference, and their outputs require none.

    Weights, scales and biases are buffers, in an order that the kernels of this machine's
    instruction set read; what was saved on a machine with another one is put into this one's order
    when it is loaded (a program of ``torch.export`` does so in every call). So ``state_dict``,
    ``pickle`` and ``copy.deepcopy`` work as usual. Made directly, with the arguments of
    :class:`VarLenLSTM` and ``weights``, it holds random weights, to load a ``state_dict`` into.

    Args:
        args: those of :class:`VarLenLSTM`.
        weights: None, ``torch.bfloat16`` or ``torch.int8``, as in :func:`freeze`.
        options: those of :class:`VarLenLSTM`.

    Example:
        >>> import torch
        >>> from varlen_rnn import FrozenVarLenLSTM, VarLenLSTM, freeze
        >>> rnn = VarLenLSTM(8, 16)
        >>> frozen = freeze(rnn)
        >>> x = torch.randn(5, 3, 8)
        >>> bool((frozen(x)[0] == rnn(x)[0]).all())
        True
        >>> fresh = FrozenVarLenLSTM(8, 16)
        >>> fresh.load_state_dict(frozen.state_dict())
        <All keys matched successfully>
    """


class FrozenVarLenGRU(_FrozenBase, VarLenGRU):
    """A :class:`VarLenGRU` with weights packed once, for inference; see :class:`FrozenVarLenLSTM`.

    Example:
        >>> import torch
        >>> from varlen_rnn import VarLenGRU, freeze
        >>> rnn = VarLenGRU(8, 16, batch_first=True)
        >>> frozen = freeze(rnn, weights=torch.int8)
        >>> x, lengths = torch.randn(3, 10, 8), torch.tensor([10, 0, 4])
        >>> (out, h_n), (truth, _) = frozen(x, lengths=lengths), rnn(x, lengths=lengths)
        >>> out.shape, h_n.shape, torch.allclose(out, truth, atol=0.02)
        (torch.Size([3, 10, 16]), torch.Size([1, 3, 16]), True)
    """


FROZEN: dict[type[nn.RNNBase], type[nn.RNNBase]] = {
    VarLenLSTM: FrozenVarLenLSTM,
    VarLenGRU: FrozenVarLenGRU,
}


def _packed_dtype(dtype: torch.dtype) -> torch.dtype:
    """What weights that keep their values are packed as: float16 has no order of its own."""
    return torch.float32 if dtype == torch.float16 else dtype


def _is_packed(weight: Any, dtype: torch.dtype | None) -> bool:
    return isinstance(weight, Tensor) and weight.dim() > 2 and weight.dtype == dtype


def check_weights(operation: str, weights: torch.dtype | None) -> None:
    """Fails where there are no such weights."""
    if weights not in (None, torch.bfloat16, torch.int8):
        raise ValueError(
            f"{operation}: weights must be None, torch.bfloat16 or torch.int8, got {weights!r}"
        )


def _shape(rnn: nn.RNNBase, name: str) -> tuple[int, ...]:
    """What a weight has where nobody has changed it."""
    rows = NAMED[rnn.mode.lower()].num_gates * rnn.hidden_size
    output_size = rnn.proj_size or rnn.hidden_size
    kind, _, place = name.rpartition("_l")
    if kind.startswith("bias"):
        return (rows,)
    if kind == "weight_hr":
        return (output_size, rnn.hidden_size)
    is_first = place.removesuffix("_reverse") == "0"
    below = rnn.input_size if is_first else output_size * (2 if rnn.bidirectional else 1)
    return (rows, output_size if kind == "weight_hh" else below)


def check_freezable(
    operation: str, prefix: str, rnn: nn.RNNBase, weights: torch.dtype | None
) -> None:
    """Fails where a layer cannot be frozen; ``prefix`` is its name in the model and a dot."""
    check_weights(operation, weights)
    start = f"{operation}: {prefix}"
    if weights == torch.int8:
        if rnn.proj_size:
            raise NotImplementedError(f"{start}proj_size must be 0, got {rnn.proj_size}")
        most = int8.MAX_SIZE
        sizes = rnn.input_size, rnn.hidden_size
        if min(sizes) < 1 or max(sizes) > most:
            raise ValueError(
                f"{start}input_size and hidden_size must be in [1, {most}], got {sizes}"
            )
    allowed: tuple[torch.dtype, ...] = _DTYPES if weights is None else (torch.float32,)
    if weights == torch.bfloat16:
        allowed = (torch.float32, torch.bfloat16)
    first: Any = getattr(rnn, rnn._all_weights[0][0], None)
    for name in (name for names in rnn._all_weights for name in names):
        if name not in rnn._parameters and not parametrize.is_parametrized(rnn, name):
            raise ValueError(
                f"{start}{name} must be a parameter, got an attribute that a "
                "hook computes (make it permanent first: prune.remove, remove_weight_norm)"
            )
        weight = getattr(rnn, name)
        if weight.dtype not in allowed:
            expected = " or ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
            raise TypeError(f"{start}{name} must be {expected}, got {weight.dtype}")
        if (weight.dtype, weight.device) != (first.dtype, first.device):
            expected = f"of the others' dtype and device, {first.dtype} and {first.device}"
            got = f"{weight.dtype} and {weight.device}"
            raise ValueError(f"{start}{name} must be {expected}, got {got}")
        shape = _shape(rnn, name)
        if weight.shape != shape:
            raise ValueError(f"{start}{name} must be {list(shape)}, got {list(weight.shape)}")
        if weights == torch.int8 and not weight.is_meta and not weight.isfinite().all():
            raise ValueError(f"{start}{name} must be finite, got NaN or Inf")
