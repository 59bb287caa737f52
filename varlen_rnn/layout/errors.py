"""Errors that are also of the type that torch raises for the same mistake."""

from __future__ import annotations


class InputShapeError(ValueError, RuntimeError):
    """A shape or a value that does not fit: a ValueError.

    A RuntimeError, too, since ``torch.nn.LSTM`` raises that for sizes.

    Example:
        >>> import torch
        >>> from varlen_rnn import InputShapeError, VarLenLSTM
        >>> try:
        ...     VarLenLSTM(8, 16)(torch.randn(5, 3, 8), lengths=[5, 6, 0])
        ... except InputShapeError as error:
        ...     print(error)
        VarLenLSTM: lengths must be in [0, T] = [0, 5], got 6 at index 1
    """

    __module__ = "varlen_rnn"


class InputTypeError(TypeError, ValueError):
    """A dtype of input or state that does not fit: a TypeError.

    A ValueError, too, since ``torch.nn.LSTM`` raises that for the input's.

    Example:
        >>> import torch
        >>> from varlen_rnn import InputTypeError, VarLenLSTM
        >>> try:
        ...     VarLenLSTM(8, 16)(torch.randn(5, 3, 8).double())
        ... except InputTypeError as error:
        ...     print(error)
        VarLenLSTM: input must have the weights' dtype torch.float32, got torch.float64
    """

    __module__ = "varlen_rnn"


class InputIndexError(IndexError, ValueError):
    """The number of a class or a token that is out of range: an IndexError, and a ValueError.

    Example:
        >>> import torch
        >>> from varlen_rnn import InputIndexError
        >>> from varlen_rnn.masking import masked_cross_entropy
        >>> try:
        ...     masked_cross_entropy(torch.randn(1, 2, 5), torch.tensor([[4, 5]]))
        ... except InputIndexError as error:
        ...     print(error)
        masked_cross_entropy: target must be in [0, C) = [0, 5), got 5 at index [0, 1]
    """

    __module__ = "varlen_rnn"
