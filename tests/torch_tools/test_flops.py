"""FLOPs by torch.utils.flop_counter: those that it counts of torch's modules on valid tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import CELLS, HAS_EXTENSION, OURS, as_hx, pair, random_batch, random_hx
from ragged import FORMS, drawn, each_segment_alone, in_form
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from varlen_rnn import freeze

pytestmark = [
    pytest.mark.skipif(not HAS_EXTENSION, reason="torch counts the reference's products"),
    # Of an nn.LSTM that oneDNN runs as a whole torch counts nothing.
    pytest.mark.usefixtures("without_onednn"),
]
both_cells = pytest.mark.parametrize("cell", CELLS)
BATCHES = {form: drawn("xxR.xx", "......", ".RxrxR", "x.....") for form in FORMS} | {
    **dict.fromkeys(("packed", "full"), drawn("xxRxxx", "Rxxxxx", "xxxxxx")),
    "sorted": drawn("xxxRxx", "Rxx...", "xx...."),
    "single": drawn("xxRxxx"),
    "single mask": drawn("xx.Rxx"),
}
SHAPES = {
    "lstm": {"num_layers": 2, "bidirectional": True, "proj_size": 4},
    "gru": {"num_layers": 2, "bidirectional": True},
}

Outputs = tuple[Tensor, list[Tensor]]


def flops(call: Callable[[], Any]) -> tuple[int, Any]:
    with FlopCounterMode(display=False) as counter:
        result = call()
    return counter.get_total_flops(), result


def forward_and_backward(call: Callable[[], Outputs]) -> tuple[int, int]:
    forward, (out, states) = flops(call)
    loss = out.sum() + sum(s.sum() for s in states)
    return forward, flops(loss.backward)[0]


def test_a_full_batch_of_a_gru() -> None:
    rnn, x = OURS["gru"](16, 32), torch.randn(10, 4, 16)
    with torch.no_grad():
        assert flops(lambda: rnn(x))[0] == 368640
    assert forward_and_backward(lambda: (rnn(x)[0], [])) == (368640, 589824)


@pytest.mark.parametrize("with_hx", [False, True])
@pytest.mark.parametrize("form", FORMS)
@both_cells
def test_as_many_as_of_each_segment_alone(cell: str, form: str, with_hx: bool) -> None:
    theirs, ours = pair(cell, 3, 6, batch_first=True, **SHAPES[cell])
    batch = BATCHES[form]
    found = []
    for run in (
        lambda x, states: in_form(form, x, batch)(ours, states),
        lambda x, states: each_segment_alone(theirs, x, states, batch),
    ):
        x = random_batch(theirs, *batch.valid.shape).requires_grad_()
        states = random_hx(theirs, len(batch.valid)) if with_hx else []
        states = [s.requires_grad_() for s in states]
        found.append(forward_and_backward(lambda run=run, x=x, states=states: run(x, states)))
    assert found[0] == found[1]
    assert min(found[0]) > 0


@pytest.mark.parametrize("frozen", ["weights", "x"])
@both_cells
def test_only_gradients_that_are_wanted_count(cell: str, frozen: str) -> None:
    found = []
    for rnn in pair(cell, 3, 6, 2):
        rnn.requires_grad_(frozen != "weights")
        x = torch.randn(5, 4, 3, requires_grad=frozen != "x")
        found.append(forward_and_backward(lambda rnn=rnn, x=x: (rnn(x)[0], [])))
    assert found[0] == found[1]


@pytest.mark.parametrize("weights", [None, torch.bfloat16, torch.int8], ids=str)
@pytest.mark.parametrize("directions", [1, 2])
@both_cells
def test_frozen_layers_count_as_others(
    cell: str, directions: int, weights: torch.dtype | None
) -> None:
    rnn = OURS[cell](3, 18, bidirectional=directions == 2)
    x, lengths = torch.randn(6, 4, 3), torch.tensor([3, 0, 6, 1])
    with torch.no_grad():
        expected, _ = flops(lambda: rnn(x, lengths=lengths))
    assert flops(lambda: freeze(rnn, weights)(x, lengths=lengths))[0] == expected
    assert expected == 2 * 10 * directions * {"lstm": 4, "gru": 3}[cell] * 18 * (3 + 18)


@pytest.mark.parametrize("weights", [None, torch.bfloat16], ids=str)
def test_a_frozen_projection_counts_too(weights: torch.dtype | None) -> None:
    rnn = OURS["lstm"](3, 18, 2, bidirectional=True, proj_size=5)
    x, lengths = torch.randn(6, 4, 3), torch.tensor([3, 0, 6, 1])
    with torch.no_grad():
        expected, _ = flops(lambda: rnn(x, lengths=lengths))
    assert flops(lambda: freeze(rnn, weights)(x, lengths=lengths))[0] == expected
    assert expected == 2 * 10 * 2 * (4 * 18 * (3 + 5) + 4 * 18 * (10 + 5) + 2 * 5 * 18)


@both_cells
def test_a_batch_whose_lengths_nobody_knows_counts_as_full(cell: str) -> None:
    theirs, ours = pair(cell, 3, 6, bidirectional=True)
    x, hx = torch.randn(5, 4, 3), as_hx(random_hx(theirs, 4))
    expected = forward_and_backward(lambda: (theirs(x)[0], []))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        lengths = mode.from_tensor(torch.tensor([5, 0, 2, 1]))
        assert forward_and_backward(lambda: (ours(x, lengths=lengths)[0], [])) == expected
        with torch.no_grad():
            assert flops(lambda: ours(x, hx, lengths=lengths))[0] == expected[0]
