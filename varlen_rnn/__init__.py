"""LSTM and GRU that compute on valid tokens only, for batches of unequal lengths."""

from importlib.metadata import version

from varlen_rnn import data, masking, reference
from varlen_rnn.convert import convert, revert
from varlen_rnn.layout.errors import InputIndexError, InputShapeError, InputTypeError
from varlen_rnn.modules import VarLenGRU, VarLenLSTM
from varlen_rnn.quantization import QuantizedVarLenGRU, QuantizedVarLenLSTM, quantize_dynamic
from varlen_rnn.replacing import replacing_torch
from varlen_rnn.runtime.extension import build_info

__version__ = version("varlen_rnn")
__all__ = [
    "InputIndexError",
    "InputShapeError",
    "InputTypeError",
    "QuantizedVarLenGRU",
    "QuantizedVarLenLSTM",
    "VarLenGRU",
    "VarLenLSTM",
    "build_info",
    "convert",
    "data",
    "masking",
    "quantize_dynamic",
    "reference",
    "replacing_torch",
    "revert",
]
