"""From a ragged batch to index arrays: which token of which row comes at which step.

Shape legend, used in the whole package:

======  =======================================================================
letter  meaning
======  =======================================================================
``B``   rows of the batch, in the caller's order
``T``   steps of the padded batch
``N``   valid tokens
``R``   rows of the flat tensor that holds the tokens, valid or not
``S``   steps of the layout: the length of the longest segment
``G``   segments: maximal runs of valid tokens, sorted by length, descending
``D``   directions, 1 or 2
``I``   input size
``H``   hidden size
``P``   output size of one direction: ``proj_size`` if there is one, else ``H``
======  =======================================================================

Tokens are numbered in *step order*: all segments' first tokens, longest segment first, then all
second tokens, and so on, exactly as in ``PackedSequence.data``.
"""

from varlen_rnn.layout.arrays import Layout
from varlen_rnn.layout.make import from_flat, from_packed, from_padded, full

__all__ = ["Layout", "from_flat", "from_packed", "from_padded", "full"]
