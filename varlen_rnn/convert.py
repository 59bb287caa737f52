"""Replace every ``nn.LSTM`` and ``nn.GRU`` in a model."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from varlen_rnn.modules import VarLenGRU, VarLenLSTM

_REPLACEMENT: dict[type[nn.Module], type[nn.Module]] = {nn.LSTM: VarLenLSTM, nn.GRU: VarLenGRU}

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def convert(model: ModuleT) -> ModuleT:
    """Turns every ``nn.LSTM`` into a ``VarLenLSTM`` and every ``nn.GRU`` into a ``VarLenGRU``.

    In place: the module objects themselves change their class, so everything else stays as it is:
    the very Parameter objects (and with them the optimizer), hooks, training flag, device, dtype,
    names, and places that hold the same module twice. Only exact types are replaced: a subclass may
    have its own ``forward``.

    Args:
        model: any module, also an ``nn.LSTM`` or ``nn.GRU`` itself.

    Returns:
        The same model.

    Raises:
        TypeError: ``model`` is not a module.

    Example:
        >>> import torch
        >>> from varlen_rnn import convert
        >>> model = torch.nn.ModuleDict({"encoder": torch.nn.LSTM(8, 16)})
        >>> convert(model)
        ModuleDict(
          (encoder): VarLenLSTM(8, 16)
        )
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"convert: model must be an nn.Module, got {type(model).__name__}")
    for module in model.modules():
        replacement = _REPLACEMENT.get(type(module))
        if replacement is not None:
            # Our classes read weights by name; torch's list of them would only go stale.
            module.__dict__.pop("_flat_weights", None)
            module.__dict__["_flat_weight_refs"] = []
            module.__class__ = replacement
    return model
