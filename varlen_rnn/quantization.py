"""int8 weights for every LSTM and GRU of a model, for inference on the CPU."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

from torch import nn
from torch.nn.utils import parametrize

from varlen_rnn.convert import OURS, change_class, replaceable
from varlen_rnn.modules.quantized import (
    QUANTIZED,
    QuantizedVarLenGRU,
    QuantizedVarLenLSTM,
    check_quantizable,
)

__all__ = ["QuantizedVarLenGRU", "QuantizedVarLenLSTM", "quantize_dynamic"]

ModuleT = TypeVar("ModuleT", bound=nn.Module)

_QUANTIZED = {**QUANTIZED, **{theirs: QUANTIZED[ours] for theirs, ours in OURS.items()}}


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
        check_quantizable("quantize_dynamic", f"{name}." if name else "", rnn)
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
