"""The op that makes layouts on the device, in the emulator, against its specification."""

from __future__ import annotations

import random

import pytest
import torch
from emulated import configure
from emulated_cases import BATCHES
from host_work import HostWork, work_of
from layout_rows import Rows, assert_same, draw_flags, draw_rows, specified
from ragged import drawn
from torch import Tensor

from varlen_rnn.layout import Layout


def made(rows: Rows, *, bidirectional: bool = True, library: str = "varlen_rnn_emulated") -> Layout:
    op = getattr(torch.ops, library).layout_from_rows
    arrays = list(op(rows.positions, *rows.which, rows.batch_first, bidirectional, True))
    assert (len(arrays[2]) > 0) == (bidirectional and len(arrays[1]) > 0)
    if not bidirectional:
        arrays[2] = None
    return Layout(*arrays)


def check(rows: Rows) -> None:
    """Entries of no meaning included; and the CPU's op, where it has them, too."""
    for bidirectional in (False, True):
        got = made(rows, bidirectional=bidirectional)
        expected = specified(rows, bidirectional=bidirectional)
        if rows.num_rows > 0 or rows.first is None:
            assert_same(got, expected)
        assert_same(got.exact(), expected.exact())
        on_host = made(rows, bidirectional=bidirectional, library="varlen_rnn")
        assert_same(got.exact(), on_host.exact())


@pytest.mark.parametrize("batch", BATCHES)
def test_every_batch_in_every_form(batch: str) -> None:
    ragged = drawn(*BATCHES[batch])
    num_rows, num_steps = ragged.valid.shape
    lengths = ragged.valid.sum(1)
    for batch_first in (True, False):

        def flags(of_rows: Tensor, batch_first: bool = batch_first) -> Tensor:
            return (of_rows if batch_first else of_rows.t()).reshape(-1)

        assert ragged.resets is not None
        mask, resets = flags(ragged.valid), flags(ragged.resets)
        for which in (
            {"lengths": lengths},
            {"mask": mask},
            {"resets": resets},
            {"mask": mask, "resets": resets},
            {"lengths": lengths, "resets": resets},
            {"lengths": lengths, "mask": mask, "resets": resets},
        ):
            check(Rows(num_rows, num_steps, **which, batch_first=batch_first))
    first = lengths.cumsum(0) - lengths
    resets = ragged.resets[ragged.valid]
    for which in ({}, {"resets": resets}):
        check(Rows(num_rows, int(lengths.sum()), lengths, first, **which))


def test_two_hundred_drawn_batches() -> None:
    draw = random.Random(0)
    for _ in range(200):
        check(draw_rows(draw, draw.randint(0, 9), draw.choice((0, 1, 2, 7, 40))))


@pytest.mark.parametrize("seed", range(2))
def test_more_segments_than_are_compared_with_each_other(seed: int) -> None:
    """300 rows, some of up to 300 tokens: lengths of more than one digit, and of more than two."""
    draw = random.Random(seed)
    configure(seed=seed)
    lengths = torch.tensor([draw.choice((0, 1, 2, 3, 17, 18)) for _ in range(300)])
    for length in (300, *(draw.randint(34, 299) for _ in range(12))):
        lengths[draw.randrange(300)] = length
    first = lengths.cumsum(0) - lengths
    num_tokens = int(lengths.sum())
    check(Rows(300, num_tokens, lengths, first))
    check(Rows(300, num_tokens, lengths, first, resets=draw_flags(draw, num_tokens, 0.05)))
    check(Rows(300, 40, lengths.clamp(max=40), batch_first=False))


def test_a_batch_of_no_rows_or_no_steps() -> None:
    for num_rows, num_steps in ((0, 5), (5, 0), (0, 0)):
        lengths = torch.zeros(num_rows, dtype=torch.int64)
        flags = torch.zeros(num_rows * num_steps, dtype=torch.bool)
        for which in ({"lengths": lengths}, {"mask": flags}, {"resets": flags}):
            check(Rows(num_rows, num_steps, **which))
    nothing = torch.zeros(0, dtype=torch.int64)
    for num_steps in (0, 4):
        resets = torch.ones(num_steps, dtype=torch.bool)
        check(Rows(0, num_steps, nothing, nothing, resets=resets))
        check(Rows(0, num_steps, nothing, nothing))
        behind = torch.tensor([num_steps])  # of a row without tokens
        check(Rows(1, num_steps, torch.tensor([0]), behind, resets=resets))


LENGTHS = torch.tensor([3, 0, 4, 2])
FIRST = torch.tensor([0, 3, 3, 7])
RESETS = torch.tensor([False, True, False, False, False, True, True, False, False])
BEHIND_EACH_OTHER = r"varlen_rnn: first must be such that no row overlaps"


@pytest.mark.parametrize("resets", [None, RESETS], ids=["", "resets"])
@pytest.mark.parametrize("value", [-1, 5, 2**31, 2**62, -(2**63)])
def test_lengths_out_of_range_raise(value: int, resets: Tensor | None) -> None:
    lengths = LENGTHS.clone()
    lengths[2] = value
    resets = None if resets is None else resets.new_ones(16)
    with pytest.raises(RuntimeError, match=r"varlen_rnn: lengths must be in \[0, T\]"):
        made(Rows(4, 4, lengths, resets=resets))


@pytest.mark.parametrize("resets", [None, RESETS], ids=["", "resets"])
@pytest.mark.parametrize("value", [-1, 6, 2**31, 2**62, -(2**63)])
def test_rows_that_begin_elsewhere_raise(value: int, resets: Tensor | None) -> None:
    first = FIRST.clone()
    first[2] = value
    with pytest.raises(RuntimeError, match=r"varlen_rnn: first must be in \[0, R - length\]"):
        made(Rows(4, 9, LENGTHS, first, resets=resets))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("resets", [None, RESETS], ids=["", "resets"])
def test_rows_that_overlap_make_no_stray_access(seed: int, resets: Tensor | None) -> None:
    """What comes out has no meaning, but the layer's ops may be given it."""
    configure(seed=seed)
    draw = random.Random(seed)
    for _ in range(10):
        lengths = torch.tensor([draw.randint(0, 9) for _ in range(4)])
        first = torch.tensor([draw.randint(0, 9 - int(length)) for length in lengths])
        try:
            layout = made(Rows(4, 9, lengths, first, resets=resets))
        except RuntimeError as error:
            assert "no row overlaps" in str(error)  # noqa: PT017 - or nothing is raised
            continue
        assert layout.batch_sizes.sum() <= 9
        assert bool(((layout.rows >= 0) & (layout.rows < 9)).all())


def test_more_tokens_than_there_is_room_for_raise() -> None:
    with pytest.raises(RuntimeError, match=BEHIND_EACH_OTHER):
        made(Rows(2, 5, torch.tensor([5, 5]), torch.tensor([0, 0])))


@pytest.mark.parametrize("form", ["lengths", "mask", "resets", "flat"])
def test_three_launches_at_most_and_no_operation_of_torch(form: str) -> None:
    lengths, flags = torch.tensor([3, 1, 4]), torch.ones(15, dtype=torch.bool)
    rows = {
        "lengths": Rows(3, 5, lengths),
        "mask": Rows(3, 5, mask=flags),
        "resets": Rows(3, 5, lengths, resets=flags),
        "flat": Rows(3, 8, lengths, lengths.cumsum(0) - lengths),
    }[form]
    op = torch.ops.varlen_rnn_emulated.layout_from_rows
    positions = rows.positions
    work = work_of(lambda: op(positions, *rows.which, True, True, True))
    assert work == HostWork(launches=2 if form in ("lengths", "flat") else 3)


def test_a_graph_can_be_captured() -> None:
    configure(is_capturing=True)
    try:
        check(Rows(4, 4, LENGTHS))
    finally:
        configure()
