"""What padding and the rest of the batch do to a name's logits: nothing, or less than rounding.

What stands in the padding moves nothing at all: it is discarded before anything is computed. A
batch of another shape may move the last bits. Embedding and LSTM give a name the same bits in every
batch, but convolution, linear layers and attention are torch's, whose libraries may add in another
order for another shape. So the differences must shrink with the rounding error from float32 to
float64; in the control, where padding is read as text, they do not.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from model import NameClassifier, right_padded
from names import PADDING, Names
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from varlen_rnn.masking import lengths_to_mask

EVALUATION_BATCH = 256

# Logits [B, C] of a batch of names.
Arrangement = Callable[[NameClassifier, Sequence[Tensor]], Tensor]


def as_trained(model: NameClassifier, ids: Sequence[Tensor]) -> Tensor:
    padded, lengths = right_padded(ids)
    return model(padded, lengths=lengths)[0]


def garbage_ids(model: NameClassifier, ids: Sequence[Tensor]) -> Tensor:
    padded, lengths = right_padded(ids)
    garbage = torch.randint_like(padded, -(2**31), 2**31)
    valid = lengths_to_mask(lengths, padded.shape[1])
    return model(torch.where(valid, padded, garbage), lengths=lengths)[0]


def nan_features(model: NameClassifier, ids: Sequence[Tensor]) -> Tensor:
    padded, lengths = right_padded(ids)
    features = model.embedding(padded, lengths=lengths)
    features[~lengths_to_mask(lengths, padded.shape[1])] = torch.nan
    return model.classify(features, lengths=lengths)[0]


def more_padding(model: NameClassifier, ids: Sequence[Tensor]) -> Tensor:
    padded, lengths = right_padded(ids, extra=100)
    return model(padded, lengths=lengths)[0]


def no_padding(model: NameClassifier, ids: Sequence[Tensor]) -> Tensor:
    return torch.cat([model(row[None])[0] for row in ids])


def left_padding(model: NameClassifier, ids: Sequence[Tensor]) -> Tensor:
    padded = pad_sequence(list(ids), batch_first=True, padding_value=PADDING, padding_side="left")
    lengths = torch.tensor([len(row) for row in ids])
    return model(padded, mask=lengths_to_mask(lengths, padded.shape[1]).flip(1))[0]


def padding_as_text(model: NameClassifier, ids: Sequence[Tensor]) -> Tensor:
    padded, _ = right_padded(ids)
    return model(padded)[0]


SAME_SHAPE: dict[str, Arrangement] = {
    "random ids in padding": garbage_ids,
    "NaN features in padding": nan_features,
}
OTHER_SHAPE: dict[str, Arrangement] = {
    "100 more steps of padding": more_padding,
    "no padding: each name alone": no_padding,
    "padding on the left, by mask": left_padding,
}
SHUFFLED = "shuffled into other batches"
CONTROL = "control: padding read as text"


@torch.inference_mode()
def evaluate(model: NameClassifier, ids: Sequence[Tensor], arrangement: Arrangement) -> Tensor:
    """Logits `[R, C]` of R names, by batches of neighbours."""
    model.eval()
    starts = range(0, len(ids), EVALUATION_BATCH)
    return torch.cat([arrangement(model, ids[s : s + EVALUATION_BATCH]) for s in starts])


@dataclass(frozen=True)
class Change:
    """How far an arrangement moves the logits at most, and how many predictions it changes."""

    difference: float
    predictions: int


Table = dict[torch.dtype, dict[str, Change]]


def changes(model: NameClassifier, test: Names) -> dict[str, Change]:
    """Arrange the test names in every way and compare with the way of training."""
    expected = evaluate(model, test.ids, as_trained)
    arrangements = {**SAME_SHAPE, **OTHER_SHAPE, CONTROL: padding_as_text}
    what = f"other paddings, {expected.dtype}"
    progress = tqdm(arrangements.items(), desc=what, disable=None, dynamic_ncols=True)
    found = {what: evaluate(model, test.ids, arrangement) for what, arrangement in progress}
    order = torch.randperm(len(test.ids))
    shuffled = evaluate(model, [test.ids[row] for row in order], as_trained)
    found[SHUFFLED] = shuffled[order.argsort()]
    return {
        what: Change(
            (found[what] - expected).abs().max().item(),
            int((found[what].argmax(dim=1) != expected.argmax(dim=1)).sum()),
        )
        for what in (*SAME_SHAPE, *OTHER_SHAPE, SHUFFLED, CONTROL)
    }
