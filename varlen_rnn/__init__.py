"""LSTM and GRU that compute on valid tokens only, for batches of unequal lengths."""

from importlib.metadata import version

from varlen_rnn import data, masking, reference
from varlen_rnn.convert import convert, revert
from varlen_rnn.freezing import FrozenVarLenGRU, FrozenVarLenLSTM, freeze, quantize_dynamic
from varlen_rnn.layout.errors import InputIndexError, InputShapeError, InputTypeError
from varlen_rnn.modules import VarLenGRU, VarLenLSTM
from varlen_rnn.replacing import replacing_torch
from varlen_rnn.runtime.extension import build_info
from varlen_rnn.streaming import StreamingRNN

__version__ = version("varlen_rnn")
__all__ = [
    "FrozenVarLenGRU",
    "FrozenVarLenLSTM",
    "InputIndexError",
    "InputShapeError",
    "InputTypeError",
    "StreamingRNN",
    "VarLenGRU",
    "VarLenLSTM",
    "build_info",
    "convert",
    "data",
    "freeze",
    "masking",
    "quantize_dynamic",
    "reference",
    "replacing_torch",
    "revert",
]
