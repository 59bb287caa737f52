"""``torch.nn.LSTM`` for unequal lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from varlen_rnn import ops
from varlen_rnn.layout import Layout, hints
from varlen_rnn.layout.checks import Lengths, Mask
from varlen_rnn.modules.base import VarLenRNNBase
from varlen_rnn.ops import direct


class VarLenLSTM(VarLenRNNBase):
    """LSTM over the valid tokens of a ragged batch; a drop-in replacement of ``torch.nn.LSTM``.

    Equivalent to ``pad_packed_sequence(nn.LSTM(...)(pack_padded_sequence(x, lengths)))``, with the
    same parameters, names, initialisation and ``state_dict``; rows of length 0 are allowed.

    Args:
        input_size: ``I``, features of a token.
        hidden_size: ``H``, features of the cell state.
        num_layers: ``L``, layers on top of each other.
        bias: whether there are ``bias_ih`` and ``bias_hh``.
        batch_first: whether batches are ``[B, T, I]`` instead of ``[T, B, I]``; states never are.
        dropout: probability of dropout on every layer's output but the last one's, in training.
        bidirectional: whether a second direction runs from each row's last valid token to its
            first.
        proj_size: ``P``, size of the projected hidden state, less than ``H``; 0 for none (then
            ``P = H``).
        device: where the parameters are made.
        dtype: float32 (default), float64, bfloat16 or float16; the 16-bit types are computed in
            float32.

    Example:
        >>> import torch
        >>> from varlen_rnn import VarLenLSTM
        >>> rnn = VarLenLSTM(8, 16, batch_first=True)
        >>> out, (h_n, c_n) = rnn(torch.randn(3, 10, 8), lengths=torch.tensor([10, 0, 4]))
        >>> out.shape, h_n.shape, c_n.shape
        (torch.Size([3, 10, 16]), torch.Size([1, 3, 16]), torch.Size([1, 3, 16]))
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
        proj_size: int = 0,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Makes the parameters; see the class for the arguments."""
        super().__init__(
            "LSTM",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            proj_size,
            device,
            dtype,
        )

    # nn.LSTM's own, for a pair of states, which callers use.
    get_expected_cell_size = nn.LSTM.get_expected_cell_size
    check_forward_args = nn.LSTM.check_forward_args  # type: ignore[assignment]
    permute_hidden = nn.LSTM.permute_hidden  # type: ignore[assignment]

    @overload
    def forward(
        self,
        input: Tensor,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Lengths | None = None,
        mask: Mask | None = None,
        resets: Mask | None = None,
        cu_seqlens: Lengths | None = None,
        output_states: Literal[False] = False,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]: ...

    @overload
    def forward(
        self,
        input: PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        resets: Mask | PackedSequence | None = None,
        output_states: Literal[False] = False,
    ) -> tuple[PackedSequence, tuple[Tensor, Tensor]]: ...

    @overload
    def forward(
        self,
        input: Tensor,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Lengths | None = None,
        mask: Mask | None = None,
        resets: Mask | None = None,
        cu_seqlens: Lengths | None = None,
        output_states: Literal[True],
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]: ...

    @overload
    def forward(
        self,
        input: PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        resets: Mask | PackedSequence | None = None,
        output_states: Literal[True],
    ) -> tuple[tuple[PackedSequence, PackedSequence], tuple[Tensor, Tensor]]: ...

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Lengths | None = None,
        mask: Mask | None = None,
        resets: Mask | PackedSequence | None = None,
        cu_seqlens: Lengths | None = None,
        output_states: bool = False,
    ) -> tuple[Any, tuple[Tensor, Tensor]]:
        """Runs the layers over every row's valid tokens.

        Equivalent to ``nn.LSTM`` on each segment by itself, ``rnn(x[b, start:end], hx[:, b])``: a
        segment is a run of a row's valid tokens, without those that are not valid, up to the next
        reset. ``hx`` goes into a row's first segment, and ``(h_n, c_n)`` come from its last one, in
        both directions; other segments start from zeros.

        Args:
            input: ``[T, B, I]`` (``[B, T, I]`` if ``batch_first``), one sequence ``[T, I]``, a
                ``PackedSequence``, sorted or not, a flat batch ``[N, I]`` with ``cu_seqlens``, or a
                jagged ``NestedTensor`` ``[B, j, I]``. ``T``, ``B`` and ``N`` may be 0.
            hx: ``h_0 [L * D, B, P]`` and
                ``c_0 [L * D, B, H]`` in the caller's order of rows (``[L * D, *]`` for one
                sequence); None for zeros.
            lengths: ``[B]``, any integer dtype on any device, each in ``[0, T]``: the valid tokens
                of each row, the rest being padding that is never read. None if all are valid.
            mask: ``[T, B]`` (``[B, T]`` if ``batch_first``; ``[T]`` for one sequence), bool, or
                integers or floats 0 and 1, True at valid tokens, wherever they are: on the left, on
                the right, or with holes in between, over which states pass unchanged.
            resets: True (or 1) where the state is zero before the token is consumed (Gymnasium's
                "an episode starts here", torchrl's ``is_init``), laid out as the tokens are: as
                ``mask`` for a padded batch and one sequence, ``[N]`` for a flat batch, ``[N]`` or
                packed likewise for a ``PackedSequence``, a jagged ``NestedTensor`` ``[B, j]`` for
                such an input; one more dimension at the end, of size 1, is dropped. What stands
                where no valid token is does not count. For flags that say "it ended after this
                step" see :func:`varlen_rnn.masking.dones_to_resets`.
            cu_seqlens: ``[B + 1]``, integers, non-decreasing from 0 to N: row b of a flat batch is
                ``input[cu_seqlens[b] : cu_seqlens[b + 1]]``.
            output_states: whether the output is a pair ``(h, c)`` of all states of the last layer,
                and not ``h`` alone. ``c`` is ``[..., D * H]``, in the form of the output.

        Returns:
            The output in the form of the input, ``[..., D * P]``, zero at padding; and
            ``(h_n, c_n)``, the states after each row's last valid token, shaped as ``hx``. A row
            without valid tokens keeps its ``hx``. All of them may be changed in place in training,
            too; the output not under ``torch.compile`` and on CUDA, where the backward pass reads
            it and torch refuses to run it.

        Raises:
            ValueError: a shape or a value that does not fit, or ``lengths``, ``mask`` or
                ``cu_seqlens`` with an input or an argument that says the same.
            TypeError: a type or dtype that does not fit.
            RuntimeError: in place of the ValueError, of a value in a compiled, exported or traced
                call, which is checked as the call runs; on CUDA that is a device-side assertion.

        Example:
            >>> import torch
            >>> from varlen_rnn import VarLenLSTM
            >>> rnn = VarLenLSTM(8, 16, batch_first=True)
            >>> x = torch.randn(2, 4, 8)
            >>> mask = torch.tensor([[False, True, True, True], [True, True, False, True]])
            >>> starts = torch.tensor([[0, 0, 1, 0], [0, 0, 0, 0]])
            >>> (h, c), (h_n, c_n) = rnn(x, mask=mask, resets=starts, output_states=True)
            >>> h.shape, c.shape, h_n.shape
            (torch.Size([2, 4, 16]), torch.Size([2, 4, 16]), torch.Size([1, 2, 16]))
            >>> alone, _ = rnn(x[0, 2:])
            >>> torch.allclose(h[0, 2:], alone, atol=1e-6)
            True
        """
        is_plain = lengths is None and mask is None and resets is None and cu_seqlens is None
        if is_plain and not output_states and direct.runs(input):
            done = self._run_directly(input, hx)
            if done is not None:
                return done[0], (done[1][0], done[1][1])
        if hx is not None and not (isinstance(hx, (tuple, list)) and len(hx) == 2):
            got = f"{len(hx)} of them" if isinstance(hx, (tuple, list)) else type(hx).__name__
            name, hint = type(self).__name__, hints.keyword(hx)
            raise TypeError(f"{name}: hx must be a tuple (h_0, c_0), got {got}{hint}")
        sizes = (self.proj_size or self.hidden_size, self.hidden_size)
        states = None if hx is None else (hx[0], hx[1])
        which = (lengths, mask, resets, cu_seqlens)
        output, (h_n, c_n) = self._forward(input, states, sizes, which, output_states)
        return output, (h_n, c_n)

    def _layer(
        self,
        x: Tensor,
        states: Sequence[Tensor | None],
        weights: list[Tensor | None],
        batch: Layout,
        output_states: bool,
    ) -> tuple[Tensor, ...]:
        h_0, c_0 = states
        return ops.lstm(x, h_0, c_0, weights, batch, output_states)
