"""The specification: one layer of LSTM or GRU over the valid tokens, in plain PyTorch.

It runs on every device, is differentiable any number of times, is what every kernel is tested
against, and is what runs where no compiled extension is. Shapes are those of the legend in
:mod:`varlen_rnn.layout`.
"""

from varlen_rnn.reference.cells import gru_cell, lstm_cell
from varlen_rnn.reference.layers import cells_of_rows, gru, lstm

__all__ = ["cells_of_rows", "gru", "gru_cell", "lstm", "lstm_cell"]
