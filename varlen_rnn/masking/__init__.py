"""What people do with padding around an RNN: masks, embeddings, losses, pooling, attention.

What takes a batch takes ``lengths`` or a ``mask`` as keyword, or neither if every token is valid:

- ``lengths [B]``, integers in ``[0, T]``: rows padded on the right, in any order, empty ones too.
- ``mask``, bool or numbers 0 and 1, True where a token is valid: padding anywhere. It is laid out
  as the tokens: ``[B, T]``, or ``[T, B]`` with ``batch_first=False``.

Both may lie on any device, or be lists or arrays. Here batches are ``[B, T, *]`` unless
``batch_first=False`` says ``[T, B, *]``; in ``nn.LSTM`` and ``VarLenLSTM`` it is the other way
round. ``MaskedConv1d`` takes ``[B, C, T]``, as ``nn.Conv1d`` does.

What padding holds, NaN and Inf included, changes no value and no gradient, and neither does a
gradient that arrives at padding. Rows without a token give zeros.

``VarLenEmbedding``, ``apply_to_valid`` and the losses pick the valid tokens out and compute on
nothing else; for CUDA tensors they wait for the number of tokens. The others wait for nothing, but
for ``lengths_to_mask`` without ``max_length``.
"""

from varlen_rnn.masking.attention import AdditiveAttention, MultiplicativeAttention
from varlen_rnn.masking.convolution import MaskedConv1d
from varlen_rnn.masking.embedding import VarLenEmbedding
from varlen_rnn.masking.losses import masked_cross_entropy, masked_mse_loss
from varlen_rnn.masking.masks import (
    dones_to_resets,
    lengths_to_mask,
    mask_from_value,
    mask_to_lengths,
)
from varlen_rnn.masking.pooling import last_valid, masked_max, masked_mean
from varlen_rnn.masking.tokens import apply_to_valid

__all__ = [
    "AdditiveAttention",
    "MaskedConv1d",
    "MultiplicativeAttention",
    "VarLenEmbedding",
    "apply_to_valid",
    "dones_to_resets",
    "last_valid",
    "lengths_to_mask",
    "mask_from_value",
    "mask_to_lengths",
    "masked_cross_entropy",
    "masked_max",
    "masked_mean",
    "masked_mse_loss",
]
