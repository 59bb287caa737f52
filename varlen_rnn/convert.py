"""Replace every ``nn.LSTM`` and ``nn.GRU`` in a model, and the way back."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import nn
from torch.nn.utils import parametrize

from varlen_rnn.modules import VarLenGRU, VarLenLSTM
from varlen_rnn.modules.rnn_module import RNNModule

OURS: dict[type[nn.RNNBase], type[nn.RNNBase]] = {nn.LSTM: VarLenLSTM, nn.GRU: VarLenGRU}
TORCHS = {ours: theirs for theirs, ours in OURS.items()}

# What a class may define and still be the one that it derives from, once an object is there.
_HARMLESS = {"__init__", "__annotate__", "__annotate_func__"}

ModuleT = TypeVar("ModuleT", bound=nn.Module)
Classes = Mapping[type[nn.RNNBase], type[nn.RNNBase]]


def convert(model: ModuleT) -> ModuleT:
    """Turns every ``nn.LSTM`` into a ``VarLenLSTM`` and every ``nn.GRU`` into a ``VarLenGRU``.

    In place: the module objects themselves change their class, so everything else stays as it is:
    the very Parameter objects (and with them the optimizer), hooks, training flag, device, dtype,
    names, and places that hold the same module twice. Subclasses that override nothing but
    ``__init__`` are replaced, too, by the same two classes, and so are layers under
    ``torch.nn.utils.parametrizations``. Whatever is loaded or added later is to be converted then,
    by another call; converting twice is harmless.

    Some layers stay as they are, and one warning names them: subclasses with methods or attributes
    of their own, also by a mixin; scripted and traced ones; and those whose ``forward`` was
    replaced on the object, as offloading hooks do (convert first, hooks afterwards).

    To quantise a converted model use :func:`quantize_dynamic`: ``torch.ao.quantization`` knows
    torch's own layers only, and silently leaves these as they are. :func:`revert` is the way
    back.

    Args:
        model: any module, also an ``nn.LSTM`` or ``nn.GRU`` itself.

    Returns:
        The same model.

    Raises:
        TypeError: ``model`` is not a module.

    Warns:
        UserWarning: layers stay as they are (with their names in the model, and why), or there is
            none.

    Example:
        >>> import torch
        >>> from varlen_rnn import convert
        >>> model = torch.nn.ModuleDict({"encoder": torch.nn.LSTM(8, 16)})
        >>> convert(model)
        ModuleDict(
          (encoder): VarLenLSTM(8, 16)
        )
    """
    for _, layer in replaceable("convert", "converted", model, OURS):
        change_class(layer, OURS)
    return model


def revert(model: ModuleT) -> ModuleT:
    """Turns every ``VarLenLSTM`` and ``VarLenGRU`` into torch's own module: undoes :func:`convert`.

    In place, with the very Parameter objects and all else that ``convert`` keeps. For what knows
    torch's layers only: ``torch.jit.script``, ``torch.ao.quantization``, exporters. From then on
    ``forward`` takes what ``nn.LSTM`` takes: no lengths, masks or resets.

    Layers that stay as they are, which one warning names: subclasses with methods or attributes of
    their own, such as frozen ones; traced ones; and those whose ``forward`` was
    replaced on the object.

    Args:
        model: any module, also one of ours itself.

    Returns:
        The same model.

    Raises:
        TypeError: ``model`` is not a module.

    Warns:
        UserWarning: layers stay as they are (with their names in the model, and why), or there is
            none.

    Example:
        >>> import torch
        >>> from varlen_rnn import convert, revert
        >>> model = convert(torch.nn.ModuleDict({"encoder": torch.nn.LSTM(8, 16)}))
        >>> type(revert(model)["encoder"])
        <class 'torch.nn.modules.rnn.LSTM'>
    """
    for _, layer in replaceable("revert", "reverted", model, TORCHS):
        change_class(layer, TORCHS)
    return model


def replaceable(
    operation: str, done: str, model: nn.Module, classes: Classes, stacklevel: int = 3
) -> list[tuple[str, nn.RNNBase]]:
    """The layers of these classes, by their names in the model, without those that are to stay.

    Says which are left, and that there is nothing to do: to the caller's caller, or whom
    ``stacklevel`` names.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"{operation}: model must be an nn.Module, got {type(model).__name__}")
    found: list[tuple[str, Any]] = []
    left = []
    is_done = False
    for name, module in model.named_modules():
        if isinstance(module, tuple(classes.values())):
            is_done = True
        elif _is_one_of(module, classes):
            reason = why_not(module, classes)
            if reason:
                left.append(f"{name!r} ({reason})" if name else f"the model itself ({reason})")
            else:
                found.append((name, module))
    said = [] if found or is_done else [f"nothing was {done}"]
    if left:
        said.append(f"left as they are: {', '.join(left)}")
    elif said:
        said.append(f"the model has no {' or '.join(c.__name__ for c in classes)}")
    if said:
        warnings.warn(f"{operation}: {'; '.join(said)}", UserWarning, stacklevel)
    return found


def _is_one_of(module: nn.Module, classes: Classes) -> bool:
    """Whether a module is of these classes, which a scripted one only was."""
    if isinstance(module, torch.jit.ScriptModule):
        return getattr(module, "original_name", "") in {c.__name__ for c in classes}
    return isinstance(module, tuple(classes))


def why_not(module: nn.Module, classes: Classes) -> str:
    """Why a module of these classes cannot be replaced; empty if it can."""
    if isinstance(module, torch.jit.ScriptModule):
        return "it is scripted or traced"
    forward = vars(module).get("forward")
    # What removes hooks may leave the method of the class there.
    if forward is not None and forward != type(module).forward.__get__(module):
        return "its forward was replaced on the object"
    cls = parametrize.type_before_parametrizations(module)
    inherited = {*_class_of(module, classes).__mro__, Generic}
    own = [
        name
        for base in cls.__mro__
        if base not in inherited
        for name, value in vars(base).items()
        if name not in _HARMLESS and (callable(value) or not name.startswith("__"))
    ]
    if not own:
        return ""
    named = "forward" if "forward" in own else ", ".join(own[:3])
    return f"its class {cls.__name__} has its own {named}"


def _class_of(module: nn.Module, classes: Classes) -> type[nn.RNNBase]:
    return next(cls for cls in classes if isinstance(module, cls))


def change_class(module: Any, classes: Classes) -> None:
    """Makes an object of another class of it, with what that class keeps beside the parameters."""
    replacement = classes[_class_of(module, classes)]
    vars(module).pop("forward", None)
    if parametrize.is_parametrized(module):
        own = {n: v for n, v in vars(type(module)).items() if n not in ("__module__", "__doc__")}
        replacement = type(f"Parametrized{replacement.__name__}", (replacement,), own)
    module.__class__ = replacement
    if isinstance(module, RNNModule):
        module._become_ours()
    else:
        vars(module).pop("__module__", None)
        with torch.no_grad():  # parametrised weights are computed anew in each call
            module._init_flat_weights()
