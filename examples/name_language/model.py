"""The model, from padded character ids to the language of the name and of every character."""

from collections.abc import Sequence

import torch
from names import LANGUAGES, PADDING
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

from varlen_rnn import VarLenLSTM
from varlen_rnn.masking import AdditiveAttention, MaskedConv1d, VarLenEmbedding, apply_to_valid

DROPOUT = 0.3
KERNEL_SIZE = 5


class PackedLSTM(nn.LSTM):
    """What stands here without VarLenLSTM: nn.LSTM between packing and unpacking."""

    def forward(self, x: Tensor, *, lengths: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        out, states = super().forward(packed)
        return pad_packed_sequence(out, batch_first=True, total_length=x.shape[1])[0], states


class NameClassifier(nn.Module):
    """Characters to languages; `valid` below is `lengths=[B]`, `mask=[B, T]` or nothing.

    Args:
        num_ids: rows of the embedding.
        hidden_size: H, channels of the convolution and hidden units of each direction.
        lstm: the recurrent layer; a `PackedLSTM` takes lengths only.
    """

    def __init__(self, num_ids: int, hidden_size: int, lstm: type[nn.LSTM] = VarLenLSTM) -> None:
        super().__init__()
        channels, states, languages = hidden_size // 2, 2 * hidden_size, len(LANGUAGES)
        self.embedding = VarLenEmbedding(num_ids, channels, padding_idx=PADDING)
        self.convolution = MaskedConv1d(channels, hidden_size, KERNEL_SIZE, padding="same")
        self.normalise = nn.Sequential(nn.LayerNorm(hidden_size), nn.GELU(), nn.Dropout(DROPOUT))
        self.rnn = lstm(hidden_size, hidden_size, batch_first=True, bidirectional=True)
        self.language = nn.Sequential(nn.Dropout(DROPOUT), nn.Linear(states, languages))
        self.query = nn.Parameter(torch.randn(hidden_size))
        self.attention = AdditiveAttention(hidden_size, states, hidden_size)

    def forward(self, ids: Tensor, **valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map ids `[B, T]` to logits of the names `[B, C]` and of their characters `[B, T, C]`.

        The third result is the attention `[B, T]`: a name's logits are its characters' logits
        weighed by it.
        """
        return self.classify(self.embedding(ids, **valid), **valid)

    def classify(self, features: Tensor, **valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same from the embedded characters `[B, T, E]`."""
        local = self.convolution(features.transpose(1, 2), **valid).transpose(1, 2)
        states, _ = self.rnn(apply_to_valid(self.normalise, local, **valid), **valid)
        opinions = apply_to_valid(self.language, states, **valid)
        query = self.query.expand(len(states), -1)
        logits, attention = self.attention(query, states, opinions, **valid)
        return logits, opinions, attention


def right_padded(ids: Sequence[Tensor], extra: int = 0) -> tuple[Tensor, Tensor]:
    """Pad ids to `[B, T]`, by `extra` steps more than needed; return the lengths `[B]` too."""
    lengths = torch.tensor([len(row) for row in ids])
    padded = pad_sequence(list(ids), batch_first=True, padding_value=PADDING)
    return pad(padded, (0, extra), value=PADDING), lengths
