"""Weights packed once for every LSTM and GRU of a model, for inference on the CPU."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.utils import parametrize

from varlen_rnn.convert import OURS, change_class, replaceable
from varlen_rnn.modules.frozen import (
    FROZEN,
    FrozenVarLenGRU,
    FrozenVarLenLSTM,
    check_freezable,
    check_weights,
)

__all__ = ["FrozenVarLenGRU", "FrozenVarLenLSTM", "freeze", "quantize_dynamic"]

ModuleT = TypeVar("ModuleT", bound=nn.Module)

FROZEN_AS = {**FROZEN, **{theirs: FROZEN[ours] for theirs, ours in OURS.items()}}


def freeze(model: ModuleT, weights: torch.dtype | None = None, *, inplace: bool = False) -> ModuleT:
    """Packs the weights of every LSTM and GRU of a model once, for inference on the CPU.

    A layer otherwise packs its weights in every call, which is most of the time of one with few
    tokens, or reads them in an order that is not the kernels'.
    Every ``VarLenLSTM`` and ``VarLenGRU``, and every ``nn.LSTM`` and ``nn.GRU`` becomes a
    :class:`FrozenVarLenLSTM` or :class:`FrozenVarLenGRU`, with its hooks and its training flag.
    Other modules stay as they are, and so does what :func:`convert` would leave, which is said as
    there. Parametrised weights are packed as they are now.

    Args:
        model: any module, also one of those itself.
        weights: how weights are kept. None: as they are; then results are, bit for bit, those of
            the model. ``torch.bfloat16``: half of float32's bytes, which is what a step of few rows
            waits for; layers are float32 or bfloat16, and input and states keep that type.
            ``torch.int8``: a quarter, for float32 layers without a projection; see
            :func:`quantize_dynamic`.
        inplace: whether to change the model itself, and not a copy of it.

    Returns:
        The frozen model.

    Raises:
        TypeError: ``model`` is not a module, or a layer has a dtype that does not go with
            ``weights``.
        NotImplementedError: int8 weights of a layer with a projection.
        ValueError: ``weights`` is none of these; a layer is frozen already, in another way; weights
            that are not there as parameters; or, for int8, not finite, or a size not in
            [1, 133144].

    Warns:
        UserWarning: layers stay as they are (with their names in the model, and why), or there is
            none.

    Example:
        >>> import torch
        >>> from varlen_rnn import freeze
        >>> model = torch.nn.ModuleDict({"encoder": torch.nn.LSTM(8, 16)})
        >>> freeze(model, weights=torch.bfloat16)
        ModuleDict(
          (encoder): FrozenVarLenLSTM(8, 16, weights=torch.bfloat16)
        )
    """
    return _freeze("freeze", "frozen", model, weights, inplace)


def quantize_dynamic(model: ModuleT, inplace: bool = False) -> ModuleT:
    """Gives every LSTM and GRU of a model int8 weights: ``freeze(model, weights=torch.int8)``.

    What ``torch.ao.quantization.quantize_dynamic(model, {nn.LSTM, nn.GRU})`` does, with this
    library's layers. Arguments, result and errors are those of :func:`freeze`.

    Example:
        >>> import torch
        >>> from varlen_rnn import quantize_dynamic
        >>> model = torch.nn.ModuleDict({"encoder": torch.nn.LSTM(8, 16)})
        >>> quantize_dynamic(model)
        ModuleDict(
          (encoder): FrozenVarLenLSTM(8, 16, weights=torch.int8)
        )
    """
    return _freeze("quantize_dynamic", "quantised", model, torch.int8, inplace)


def _freeze(
    operation: str, done: str, model: ModuleT, weights: torch.dtype | None, inplace: bool
) -> ModuleT:
    check_weights(operation, weights)
    layers = replaceable(operation, done, model, FROZEN_AS, stacklevel=4)
    for name, module in model.named_modules():
        is_frozen = isinstance(module, (FrozenVarLenLSTM, FrozenVarLenGRU))
        if is_frozen and module.weights != weights:
            start = f"{operation}: {name + ': ' if name else ''}weights"
            raise ValueError(
                f"{start} must be as the layer is frozen, {module.weights}, got {weights}; freeze "
                "the model that it was made from"
            )
    for name, rnn in layers:
        check_freezable(operation, f"{name}." if name else "", rnn, weights)
    if not inplace:
        model = copy.deepcopy(model)
    for name, _ in layers:
        layer: Any = model.get_submodule(name)
        _make_plain(layer)
        change_class(layer, FROZEN_AS)
        layer._freeze(weights)
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
