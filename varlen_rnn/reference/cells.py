"""One step of each cell."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

State = tuple[Tensor, ...]
Linear = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def lstm_cell(
    from_x: Tensor,
    state: State,
    weight_hh: Tensor,
    bias_hh: Tensor | None,
    weight_hr: Tensor | None,
    linear: Linear = F.linear,
) -> State:
    """One step: ``torch.nn.LSTMCell``, with an optional projection.

    ``from_x`` is ``linear(x, weight_ih, bias_ih)``, which needs no state: one product gives that of
    all steps.

    Formulas: Hochreiter & Schmidhuber 1997 with the forget gate of Gers et al. 2000; the
    projection, Sak et al. 2014.

    Example:
        >>> import torch
        >>> from varlen_rnn import reference
        >>> cell = torch.nn.LSTMCell(3, 5)
        >>> x, state = torch.randn(2, 3), (torch.randn(2, 5), torch.randn(2, 5))
        >>> from_x = torch.nn.functional.linear(x, cell.weight_ih, cell.bias_ih)
        >>> h, c = reference.lstm_cell(from_x, state, cell.weight_hh, cell.bias_hh, None)
        >>> torch.allclose(c, cell(x, state)[1], atol=1e-6)
        True
    """
    h, c = state
    gates = from_x + linear(h, weight_hh, bias_hh)
    i, f, g, o = gates.chunk(4, dim=-1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(c)
    return (h if weight_hr is None else linear(h, weight_hr, None)), c


def gru_cell(
    from_x: Tensor,
    state: State,
    weight_hh: Tensor,
    bias_hh: Tensor | None,
    weight_hr: None = None,
    linear: Linear = F.linear,
) -> State:
    """One step, ``torch.nn.GRUCell`` (Cho et al. 2014, with the reset gate after the product).

    ``from_x`` is that of :func:`lstm_cell`.

    Example:
        >>> import torch
        >>> from varlen_rnn import reference
        >>> cell = torch.nn.GRUCell(3, 5)
        >>> x, h = torch.randn(2, 3), torch.randn(2, 5)
        >>> from_x = torch.nn.functional.linear(x, cell.weight_ih, cell.bias_ih)
        >>> (h_1,) = reference.gru_cell(from_x, (h,), cell.weight_hh, cell.bias_hh)
        >>> torch.allclose(h_1, cell(x, h), atol=1e-6)
        True
    """
    (h,) = state
    x_r, x_z, x_n = from_x.chunk(3, dim=-1)
    h_r, h_z, h_n = linear(h, weight_hh, bias_hh).chunk(3, dim=-1)
    r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
    n = torch.tanh(x_n + r * h_n)
    return (n + z * (h - n),)
