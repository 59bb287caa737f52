"""``torch.nn.GRU`` for unequal lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from varlen_rnn import ops
from varlen_rnn.layout import Layout
from varlen_rnn.layout.checks import Lengths, Mask
from varlen_rnn.modules.base import VarLenRNNBase
from varlen_rnn.ops import direct


class VarLenGRU(VarLenRNNBase):
    """GRU over the valid tokens of a ragged batch; a drop-in replacement of ``torch.nn.GRU``.

    Equivalent to ``pad_packed_sequence(nn.GRU(...)(pack_padded_sequence(x, lengths)))``, with the
    same parameters, names, initialisation and ``state_dict``; rows of length 0 are allowed. The
    arguments are those of :class:`VarLenLSTM` without ``proj_size``.

    Example:
        >>> import torch
        >>> from varlen_rnn import VarLenGRU
        >>> rnn = VarLenGRU(8, 16, batch_first=True, bidirectional=True)
        >>> out, h_n = rnn(torch.randn(3, 10, 8), lengths=torch.tensor([10, 0, 4]))
        >>> out.shape, h_n.shape
        (torch.Size([3, 10, 32]), torch.Size([2, 3, 16]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        **unknown: Any,
    ) -> None:
        """Makes the parameters; see :class:`VarLenLSTM` for the arguments."""
        if "proj_size" in unknown:  # nn.GRU's own error
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        super().__init__(
            "GRU",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            device=device,
            dtype=dtype,
            **unknown,
        )

    @overload
    def forward(
        self,
        input: Tensor,
        hx: Tensor | None = None,
        *,
        lengths: Lengths | None = None,
        mask: Mask | None = None,
        resets: Mask | None = None,
        cu_seqlens: Lengths | None = None,
    ) -> tuple[Tensor, Tensor]: ...

    @overload
    def forward(
        self,
        input: PackedSequence,
        hx: Tensor | None = None,
        *,
        resets: Mask | PackedSequence | None = None,
    ) -> tuple[PackedSequence, Tensor]: ...

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: Lengths | None = None,
        mask: Mask | None = None,
        resets: Mask | PackedSequence | None = None,
        cu_seqlens: Lengths | None = None,
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        """Runs the layers over every row's valid tokens.

        Arguments, result and errors are those of :meth:`VarLenLSTM.forward`, with
        ``h_0 [L * D, B, H]`` for ``hx`` and ``h_n`` for the final state. There is no
        ``output_states``: the output holds every state of the last layer already.
        """
        states = None if hx is None else (hx,)
        is_plain = lengths is None and mask is None and resets is None and cu_seqlens is None
        if is_plain and direct.runs(input):
            done = self._run_directly(input, states)
            if done is not None:
                return done[0], done[1][0]
        which = (lengths, mask, resets, cu_seqlens)
        output, (h_n,) = self._forward(input, states, (self.hidden_size,), which)
        return output, h_n

    def _layer(
        self,
        x: Tensor,
        states: Sequence[Tensor | None],
        weights: list[Tensor | None],
        batch: Layout,
        output_states: bool,
    ) -> tuple[Tensor, ...]:
        (h_0,) = states
        return ops.gru(x, h_0, weights[:4] + weights[5:9], batch)
