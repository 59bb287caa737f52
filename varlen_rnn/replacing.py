"""Let a library build its recurrent layers of this package's classes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from varlen_rnn.convert import OURS

# Every place where torch itself has these names.
_PLACES: tuple[Any, ...] = (torch.nn, torch.nn.modules, torch.nn.modules.rnn)


@contextmanager
def replacing_torch() -> Iterator[None]:
    """While it lasts, ``torch.nn.LSTM`` and ``torch.nn.GRU`` are ``VarLenLSTM`` and ``VarLenGRU``.

    For libraries that build their layers late, or inside a function of their own, so that there is
    no model to :func:`convert` in between: what is built, initialised and loaded under it is ours,
    and the library's ``isinstance(layer, nn.LSTM)`` holds meanwhile. Also a decorator. Torch is
    left as it was, after an error too.

    Equivalent to ``torch.nn.LSTM, torch.nn.GRU = VarLenLSTM, VarLenGRU`` and back, wherever torch
    has these names. So it is in effect for all threads of the process, and for whoever looks a name
    up in torch meanwhile; ``from torch.nn import LSTM`` of earlier keeps torch's class, and so do
    subclasses that were defined before (one that calls ``nn.LSTM.__init__`` by this name, and not
    by ``super()``, cannot be built). Layers that were built before are no ``torch.nn.LSTM`` for
    ``isinstance`` and cannot be pickled while it lasts. ``torch.compile`` leaves every
    ``torch.nn.LSTM`` and ``GRU`` out of its graphs, so ours meanwhile: run what it made afterwards.

    Example:
        >>> import torch
        >>> import varlen_rnn
        >>> with varlen_rnn.replacing_torch():
        ...     rnn = torch.nn.LSTM(8, 16)
        ...     print(isinstance(rnn, torch.nn.LSTM))
        True
        >>> rnn, isinstance(rnn, torch.nn.LSTM)
        (VarLenLSTM(8, 16), False)
    """
    with ExitStack() as restore:
        for place in _PLACES:
            for theirs, ours in OURS.items():
                name = theirs.__name__
                restore.callback(setattr, place, name, getattr(place, name))
                setattr(place, name, ours)
        yield
