"""Index arrays against a walk over all tokens in plain Python."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
import torch
from helpers import HAS_EXTENSION, layout_of, rows_as_segments
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils.rnn import pack_padded_sequence

from varlen_rnn import VarLenLSTM, _extension, layout
from varlen_rnn.layout import Layout

ARRAYS = ("batch_sizes", "rows", "reverse", "initial_row", "final_row")


@pytest.fixture(params=["compiled", "python"] if HAS_EXTENSION else ["python"])
def _implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to make the arrays."""
    if request.param == "python":
        monkeypatch.setattr(_extension, "UNAVAILABLE", "the test says so")


either_way = pytest.mark.usefixtures("_implementation")


def assert_same(got: Layout, expected: Layout) -> None:
    assert got.num_rows == expected.num_rows
    for name in ARRAYS:
        array, truth = getattr(got, name), getattr(expected, name)
        assert (array is None) == (truth is None), name
        if array is not None:
            assert array.dtype == torch.int64, name
            assert array.tolist() == truth.tolist(), name


def random_lengths(count: int, longest: int) -> list[int]:
    return [random.randint(0, longest) for _ in range(count)]


@either_way
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_every_small_batch_of_lengths_is_enumerated_right(
    batch_first: bool, bidirectional: bool
) -> None:
    options = {"batch_first": batch_first, "bidirectional": bidirectional}
    for num_rows in range(5):
        for lengths in itertools.product(range(4), repeat=num_rows):
            got = layout.from_lengths(torch.tensor(lengths, dtype=torch.int64), 3, **options)
            assert_same(got, layout_of(rows_as_segments(lengths), num_rows, 3, **options))


@either_way
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(("num_rows", "longest"), [(1, 50), (17, 12), (40, 30)])
def test_larger_batches_are_enumerated_right(
    batch_first: bool, num_rows: int, longest: int
) -> None:
    lengths = random_lengths(num_rows, longest)
    options = {"batch_first": batch_first, "bidirectional": True}
    got = layout.from_lengths(torch.tensor(lengths), longest + 3, **options)
    assert_same(got, layout_of(rows_as_segments(lengths), num_rows, longest + 3, **options))


@either_way
def test_lengths_give_the_order_of_pack_padded_sequence() -> None:
    lengths = [1 + n for n in random_lengths(9, 6)]
    x = torch.randn(7, 9, 2)
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    got = layout.from_lengths(torch.tensor(lengths), 7, batch_first=False, bidirectional=False)
    assert torch.equal(got.batch_sizes, packed.batch_sizes)
    assert torch.equal(x.reshape(63, 2)[got.rows], packed.data)


@either_way
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("enforce_sorted", [False, True])
def test_a_packed_sequence_is_read_in_place(bidirectional: bool, enforce_sorted: bool) -> None:
    lengths = sorted([3, 1, 4, 1, 5], reverse=True) if enforce_sorted else [3, 1, 4, 1, 5]
    packed = pack_padded_sequence(torch.randn(5, 5, 2), lengths, enforce_sorted=enforce_sorted)
    got = layout.from_packed(packed.batch_sizes, packed.sorted_indices, bidirectional=bidirectional)
    assert got.rows is None
    assert (got.reverse is not None) == bidirectional
    segments = list(range(5)) if packed.sorted_indices is None else packed.sorted_indices.tolist()
    assert [lengths[b] for b in segments] == sorted(lengths, reverse=True)
    assert got.initial_row.tolist() == got.final_row.tolist() == segments
    assert torch.equal(got.batch_sizes, packed.batch_sizes)
    if bidirectional:
        expected = layout_of(rows_as_segments(lengths), 5, 5)
        assert got.reverse.tolist() == expected.reverse.tolist()


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_rows", [0, 1, 4])
@pytest.mark.parametrize("num_steps", [0, 1, 3])
def test_a_full_batch_is_a_batch_whose_lengths_are_all_t(
    num_steps: int, num_rows: int, batch_first: bool, bidirectional: bool
) -> None:
    options = {"batch_first": batch_first, "bidirectional": bidirectional}
    got = layout.full(num_steps, num_rows, **options)
    expected = layout_of(rows_as_segments([num_steps] * num_rows), num_rows, num_steps, **options)
    if got.rows is None:
        assert expected.rows.tolist() == list(range(num_steps * num_rows))
        expected = Layout(expected.batch_sizes, None, *list(vars(expected).values())[2:])
    assert_same(got, expected)


def test_a_full_batch_that_was_seen_before_costs_nothing() -> None:
    options = {"batch_first": True, "bidirectional": True}
    assert layout.full(1, 2, **options) is layout.full(1, 2, **options)
    assert layout.full(10**4, 10, **options) is not layout.full(10**4, 10, **options)


@pytest.mark.parametrize(
    "mode", [torch.inference_mode, FakeTensorMode, lambda: torch.device("meta")]
)
def test_a_full_batch_is_not_what_it_is_in_a_mode(mode: Any) -> None:
    layout._small_full.cache_clear()
    rnn, x = VarLenLSTM(3, 5, bidirectional=True), torch.randn(2, 1, 3)
    with mode():
        layout.full(2, 1, batch_first=False, bidirectional=True)
    rnn(x)[0].sum().backward()
    assert rnn.weight_hh_l0.grad is not None
    with mode():
        assert layout.full(2, 1, batch_first=False, bidirectional=True).reverse is not None


@either_way
def test_the_reverse_order_is_its_own_inverse_and_starts_at_the_last_token() -> None:
    lengths = random_lengths(11, 9)
    got = layout.from_lengths(torch.tensor(lengths), 9, batch_first=True, bidirectional=True)
    assert torch.equal(got.reverse[got.reverse], torch.arange(sum(lengths)))
    first_tokens = got.rows[got.reverse][: got.batch_sizes[0]].tolist()
    assert first_tokens == [b * 9 + lengths[b] - 1 for b in got.initial_row.tolist()]


@either_way
def test_rows_of_equal_length_keep_their_order() -> None:
    got = layout.from_lengths(
        torch.tensor([2, 3, 2, 3, 2]), 3, batch_first=True, bidirectional=False
    )
    assert got.initial_row.tolist() == [1, 3, 0, 2, 4]


def test_only_batch_sizes_stay_on_the_cpu() -> None:
    lengths = torch.tensor([2, 0, 3])
    got = layout.from_lengths(lengths, 3, batch_first=True, bidirectional=True).to(
        torch.device("meta")
    )
    assert [getattr(got, name).device.type for name in ARRAYS] == ["cpu", *["meta"] * 4]
    assert got.num_rows == 3


@pytest.mark.skipif(not HAS_EXTENSION, reason="there are no compiled ops")
def test_both_ways_agree_on_batches_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    for trial in range(100):
        num_rows, num_steps = random.randint(0, 70), random.choice([0, 1, 2, 9, 150])
        lengths = torch.tensor(random_lengths(num_rows, num_steps), dtype=torch.int64)
        options = {"batch_first": trial % 2 == 0, "bidirectional": True}
        got = layout.from_lengths(lengths, num_steps, **options)
        with monkeypatch.context() as patch:
            patch.setattr(_extension, "UNAVAILABLE", "the test says so")
            assert_same(got, layout.from_lengths(lengths, num_steps, **options))
