"""The layers: ``torch.nn.LSTM`` and ``torch.nn.GRU`` for unequal lengths."""

from varlen_rnn.modules.gru import VarLenGRU
from varlen_rnn.modules.lstm import VarLenLSTM

__all__ = ["VarLenGRU", "VarLenLSTM"]
