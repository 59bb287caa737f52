"""Convolution over time that padding does not reach."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from varlen_rnn.layout.checks import Lengths, Mask, failure
from varlen_rnn.masking._valid import check_any_lengths, right_padded, valid_tokens


class MaskedConv1d(nn.Conv1d):
    """``torch.nn.Conv1d`` that sees zeros at padding, and leaves zeros there, bias and all.

    Equivalent, for every row, to ``nn.Conv1d(...)(x[b : b + 1, :, :lengths[b]])``, with the same
    parameters, initialisation and ``state_dict``. A mask, which may have left padding and holes, is
    that of the output too, and so needs a convolution that keeps ``T``.

    Args:
        in_channels: ``C``, features of an input token.
        out_channels: ``O``, features of an output token.
        kernel_size: tokens that one output token sees.
        stride: input tokens from one output token to the next.
        padding: zeros on either side of each row; ``"same"`` keeps ``T``, ``"valid"`` means 0.
        dilation: input tokens from one kernel element to the next.
        groups: groups of channels that do not see each other.
        bias: whether there is a ``bias``.
        padding_mode: must be ``"zeros"``.
        device: where the parameters are made.
        dtype: of the parameters.

    Raises:
        ValueError: another ``padding_mode``, or what ``nn.Conv1d`` refuses.

    Example:
        >>> import torch
        >>> from varlen_rnn.masking import MaskedConv1d
        >>> conv = MaskedConv1d(8, 16, kernel_size=3, stride=2, padding=1)
        >>> out = conv(torch.randn(3, 8, 10), lengths=[10, 0, 4])
        >>> out.shape, conv.output_lengths([10, 0, 4])
        (torch.Size([3, 16, 5]), tensor([5, 0, 2]))
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int],
        stride: int | tuple[int] = 1,
        padding: str | int | tuple[int] = 0,
        dilation: int | tuple[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros"] = "zeros",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Makes the parameters; see the class for the arguments."""
        if padding_mode != "zeros":
            raise failure("MaskedConv1d", "padding_mode", "'zeros'", repr(padding_mode))
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
        )

    def forward(
        self, x: Tensor, *, lengths: Lengths | None = None, mask: Mask | None = None
    ) -> Tensor:
        """Convolves every row as if it were alone.

        Args:
            x: ``[B, C, T]``; with neither ``lengths`` nor ``mask`` it is all that ``nn.Conv1d``
                takes, and so is the result.
            lengths: ``[B]``, any integer dtype on any device, each in ``[0, T]``.
            mask: ``[B, T]``, bool or numbers 0 and 1, True where a token is valid.

        Returns:
            ``[B, O, T']``, zeros from ``output_lengths(lengths)`` on, or where the mask is False.

        Raises:
            ValueError: a shape or a value that does not fit, both ``lengths`` and ``mask``, or a
                mask with a convolution that does not keep ``T``.
            TypeError: a type or dtype that does not fit.
        """
        if lengths is None and mask is None:
            return super().forward(x)
        name = "MaskedConv1d"
        if not isinstance(x, Tensor):
            raise TypeError(f"{name}: x must be a Tensor, got {type(x).__name__}")
        if x.dim() != 3 or x.shape[1] != self.in_channels:
            expected = f"[B, C, T] = [*, {self.in_channels}, *]"
            raise failure(name, "x", expected, list(x.shape))
        num_rows, _, num_steps = x.shape
        valid = valid_tokens(name, (num_rows, num_steps), x.device, lengths, mask, True)
        if lengths is None:
            self._check_that_steps_are_kept(name)
            valid_out = valid
        else:
            steps_out = (num_steps + self._zeros - self._reach) // self.stride[0] + 1
            steps_out = max(steps_out, 0) if num_steps else 0
            valid_out = right_padded(self._output_lengths(valid.sum(1)), steps_out, True)

        shown = x.masked_fill(~valid[:, None], 0)
        missing = self._reach - num_steps - self._zeros
        if missing > 0 or not num_steps:  # too short for a convolution: make one, and leave it out
            shown = F.pad(shown, (0, max(missing, 1)))
        out = super().forward(shown)[:, :, : valid_out.shape[1]]
        return out.masked_fill(~valid_out[:, None], 0)

    def output_lengths(self, lengths: Lengths) -> Tensor:
        """How many valid tokens each row of the output has.

        ``floor((length + 2 * padding - dilation * (kernel_size - 1) - 1) / stride + 1)``, as in
        ``nn.Conv1d``, at least 0, and 0 for an empty row.

        Args:
            lengths: ``[B]``, any integer dtype on any device, each at least 0.

        Returns:
            ``[B]``, int64, on the device of ``lengths``.

        Raises:
            ValueError: lengths that are negative or not ``[B]``.
            TypeError: lengths that are not integers.
        """
        return self._output_lengths(check_any_lengths("MaskedConv1d.output_lengths", lengths))

    def _output_lengths(self, lengths: Tensor) -> Tensor:
        last = lengths + (self._zeros - self._reach)
        steps = torch.div(last, self.stride[0], rounding_mode="floor") + 1
        return steps.clamp(min=0) * (lengths > 0)

    @property
    def _reach(self) -> int:
        """From the first to the last input token that one output token sees."""
        return self.dilation[0] * (self.kernel_size[0] - 1) + 1

    @property
    def _zeros(self) -> int:
        """How many zeros are put around a row, on both sides together."""
        if self.padding == "same":
            return self._reach - 1
        return 0 if isinstance(self.padding, str) else 2 * self.padding[0]

    def _check_that_steps_are_kept(self, name: str) -> None:
        if self.stride[0] != 1 or self._zeros != self._reach - 1:
            raise ValueError(
                f"{name}: with a mask the convolution must keep T (stride 1 and padding 'same'), "
                f"got stride {self.stride[0]}, padding {self.padding!r}; give lengths instead"
            )
