"""Index arrays against a walk over all tokens in plain Python."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from helpers import HAS_EXTENSION, layout_of, rows_as_segments
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils.rnn import pack_padded_sequence

from varlen_rnn import VarLenLSTM, layout
from varlen_rnn.layout import Layout, index_arrays, make
from varlen_rnn.runtime import extension

ARRAYS = ("batch_sizes", "rows", "reverse", "initial_row", "final_segment")


@pytest.fixture(params=["compiled", "python"] if HAS_EXTENSION else ["python"])
def _implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to make the arrays."""
    if request.param == "python":
        monkeypatch.setattr(extension, "UNAVAILABLE", "the test says so")


either_way = pytest.mark.usefixtures("_implementation")


def assert_same(got: Layout, expected: Layout) -> None:
    assert got.num_rows == expected.num_rows
    for name in ARRAYS:
        array, truth = getattr(got, name), getattr(expected, name)
        assert (array is None) == (truth is None), name
        if array is not None:
            assert array.dtype == torch.int64, name
            assert array.tolist() == truth.tolist(), name


def of_lengths(lengths: Sequence[int], num_steps: int, **options: bool) -> Layout:
    array = torch.tensor(lengths, dtype=torch.int64)
    return layout.from_padded(num_steps, len(lengths), lengths=array, **options)


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
            got = of_lengths(lengths, 3, **options)
            assert_same(got, layout_of(rows_as_segments(lengths), num_rows, 3, **options))


@either_way
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(("num_rows", "longest"), [(1, 50), (17, 12), (40, 30)])
def test_larger_batches_are_enumerated_right(
    batch_first: bool, num_rows: int, longest: int
) -> None:
    lengths = random_lengths(num_rows, longest)
    options = {"batch_first": batch_first, "bidirectional": True}
    got = of_lengths(lengths, longest + 3, **options)
    assert_same(got, layout_of(rows_as_segments(lengths), num_rows, longest + 3, **options))


@either_way
def test_lengths_give_the_order_of_pack_padded_sequence() -> None:
    lengths = [1 + n for n in random_lengths(9, 6)]
    x = torch.randn(7, 9, 2)
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    got = of_lengths(lengths, 7, batch_first=False, bidirectional=False)
    assert torch.equal(got.batch_sizes, packed.batch_sizes)
    assert torch.equal(x.reshape(63, 2)[got.rows], packed.data)


@either_way
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("enforce_sorted", [False, True])
def test_a_packed_sequence_is_read_in_place(bidirectional: bool, enforce_sorted: bool) -> None:
    lengths = sorted([3, 1, 4, 1, 5], reverse=True) if enforce_sorted else [3, 1, 4, 1, 5]
    packed = pack_padded_sequence(torch.randn(5, 5, 2), lengths, enforce_sorted=enforce_sorted)
    got = layout.from_packed(*packed[1:], len(packed.data), bidirectional=bidirectional)
    assert got.rows is None
    assert (got.reverse is not None) == bidirectional
    segments = list(range(5)) if packed.sorted_indices is None else packed.sorted_indices.tolist()
    assert [lengths[b] for b in segments] == sorted(lengths, reverse=True)
    assert got.initial_row.tolist() == segments
    assert [got.final_segment.tolist().index(g) for g in range(5)] == segments
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


@pytest.mark.parametrize("batch_first", [False, True])
def test_a_full_batch_of_another_device_is_made_there_and_not_kept(batch_first: bool) -> None:
    meta = torch.device("meta")
    options = {"batch_first": batch_first, "bidirectional": True}
    got, expected = layout.full(3, 4, **options, device=meta), layout.full(3, 4, **options)
    for name in ARRAYS:
        array, truth = getattr(got, name), getattr(expected, name)
        assert (array is None) == (truth is None), name
        if array is not None:
            assert (array.shape, array.dtype, array.device) == (truth.shape, truth.dtype, meta)
    assert got is not layout.full(3, 4, **options, device=meta)
    assert got.to(meta) is got


@pytest.mark.parametrize(
    "mode", [torch.inference_mode, FakeTensorMode, lambda: torch.device("meta")]
)
def test_a_full_batch_is_not_what_it_is_in_a_mode(mode: Any) -> None:
    make._small_full.cache_clear()
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
    got = of_lengths(lengths, 9, batch_first=True, bidirectional=True)
    assert torch.equal(got.reverse[got.reverse], torch.arange(sum(lengths)))
    first_tokens = got.rows[got.reverse][: got.batch_sizes[0]].tolist()
    assert first_tokens == [b * 9 + lengths[b] - 1 for b in got.initial_row.tolist()]


@either_way
def test_rows_of_equal_length_keep_their_order() -> None:
    got = of_lengths([2, 3, 2, 3, 2], 3, batch_first=True, bidirectional=False)
    assert got.initial_row.tolist() == [1, 3, 0, 2, 4]


def test_only_batch_sizes_stay_on_the_cpu() -> None:
    got = of_lengths([2, 0, 3], 3, batch_first=True, bidirectional=True).to(torch.device("meta"))
    assert [getattr(got, name).device.type for name in ARRAYS] == ["cpu", *["meta"] * 4]
    assert got.num_rows == 3


@pytest.mark.parametrize("kind", ["cuda", "mps", "xpu"])
def test_only_cuda_may_read_the_host_s_memory_later(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    got = of_lengths([2, 0, 3], 3, batch_first=True, bidirectional=True)
    seen = []

    def to(array: torch.Tensor, device: torch.device, *, non_blocking: bool) -> torch.Tensor:
        seen.append((device.type, non_blocking))
        return array

    monkeypatch.setattr(torch.Tensor, "to", to)
    got.to(torch.device(kind))
    assert seen == [(kind, kind == "cuda")] * 4


@pytest.mark.skipif(not HAS_EXTENSION, reason="there are no compiled ops")
def test_both_ways_agree_on_batches_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    for trial in range(100):
        num_rows, num_steps = random.randint(0, 70), random.choice([0, 1, 2, 9, 150])
        lengths = random_lengths(num_rows, num_steps)
        options = {"batch_first": trial % 2 == 0, "bidirectional": True}
        got = of_lengths(lengths, num_steps, **options)
        with monkeypatch.context() as patch:
            patch.setattr(extension, "UNAVAILABLE", "the test says so")
            assert_same(got, of_lengths(lengths, num_steps, **options))


# Masks, resets and rows back to back. A batch is, for each row, a list of its valid tokens:
# their flat rows, and whether a reset stands there.
Rows = list[list[tuple[int, bool]]]


def walk(rows: Rows, *, bidirectional: bool) -> Layout:
    """The layout, found token by token."""
    segments: list[tuple[list[int], int, int]] = []
    for b, tokens in enumerate(rows):
        cuts = [0, *(t for t, (_, reset) in enumerate(tokens) if reset and t), len(tokens)]
        for start, end in itertools.pairwise(cuts):
            if start == end:
                continue
            fresh = start > 0 or tokens[0][1]
            flat_rows = [row for row, _ in tokens[start:end]]
            segments.append((flat_rows, -1 if fresh else b, b if end == len(tokens) else -1))
    segments.sort(key=lambda segment: -len(segment[0]))
    longest = len(segments[0][0]) if segments else 0
    places = [(s, g) for s in range(longest) for g, seg in enumerate(segments) if s < len(seg[0])]
    reverse = [places.index((len(segments[g][0]) - 1 - s, g)) for s, g in places]

    def array(values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64)

    ends_in = {final_row: g for g, (*_, final_row) in enumerate(segments)}
    return Layout(
        array([sum(s < len(segment[0]) for segment in segments) for s in range(longest)]),
        array([segments[g][0][s] for s, g in places]),
        array(reverse) if bidirectional else None,
        array([segment[1] for segment in segments]),
        array([ends_in.get(b, -1) for b in range(len(rows))]),
    )


def random_flags(count: int, probability: float) -> torch.Tensor:
    return torch.rand(count) < probability


@either_way
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_padded_batches_with_lengths_masks_and_resets(
    batch_first: bool, bidirectional: bool
) -> None:
    for trial in range(60):
        num_rows, num_steps = random.randint(0, 6), random.choice([0, 1, 2, 5, 12])
        size = num_rows * num_steps
        lengths = random_lengths(num_rows, num_steps) if trial % 3 else None
        mask = random_flags(size, random.random()) if trial % 2 else None
        resets = random_flags(size, random.choice([0, 0.1, 0.5, 1])) if trial % 5 else None
        if lengths is None and mask is None and resets is None:
            continue
        rows: Rows = []
        for b in range(num_rows):
            positions = [
                b * num_steps + t if batch_first else t * num_rows + b for t in range(num_steps)
            ]
            ends = num_steps if lengths is None else lengths[b]
            rows.append(
                [
                    (row, resets is not None and bool(resets[row]))
                    for row in positions[:ends]
                    if mask is None or mask[row]
                ]
            )
        shape = (num_rows, num_steps) if batch_first else (num_steps, num_rows)
        got = layout.from_padded(
            num_steps,
            num_rows,
            lengths=None if lengths is None else torch.tensor(lengths, dtype=torch.int64),
            mask=None if mask is None else mask.view(shape),
            resets=None if resets is None else resets.view(shape),
            batch_first=batch_first,
            bidirectional=bidirectional,
        )
        assert_same(got, walk(rows, bidirectional=bidirectional))


@either_way
@pytest.mark.parametrize("gaps", [False, True], ids=["", "with gaps"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_rows_one_behind_the_other(bidirectional: bool, gaps: bool) -> None:
    for trial in range(60):
        lengths = random_lengths(random.randint(0, 6), random.choice([0, 1, 4, 9]))
        spaces = [random.randint(0, 2) * gaps for _ in range(len(lengths) + 1)]
        first = [sum(lengths[:b]) + sum(spaces[: b + 1]) for b in range(len(lengths))]
        size = sum(lengths) + sum(spaces)
        resets = random_flags(size, random.choice([0, 0.1, 0.5, 1])) if trial % 4 else None
        rows: Rows = [
            [(start + t, resets is not None and bool(resets[start + t])) for t in range(length)]
            for start, length in zip(first, lengths, strict=True)
        ]
        got = layout.from_flat(
            torch.tensor(first, dtype=torch.int64),
            torch.tensor(lengths, dtype=torch.int64),
            size,
            resets=resets,
            bidirectional=bidirectional,
        )
        assert_same(got, walk(rows, bidirectional=bidirectional))


@either_way
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_packed_sequence_with_resets(bidirectional: bool) -> None:
    for trial in range(60):
        lengths = [1 + n for n in random_lengths(random.randint(1, 7), 6)]
        if trial % 2:
            lengths.sort(reverse=True)
        numbers = torch.arange(7).expand(len(lengths), 7)
        packed = pack_padded_sequence(
            10 * torch.arange(len(lengths))[:, None] + numbers,
            lengths,
            batch_first=True,
            enforce_sorted=trial % 2 == 1,
        )
        resets = random_flags(sum(lengths), random.choice([0, 0.2, 1]))
        places = packed.data.tolist()
        rows: Rows = [
            [(n, bool(resets[n])) for n in (places.index(10 * b + t) for t in range(length))]
            for b, length in enumerate(lengths)
        ]
        # Segments of one length come in the order of the sorted rows.
        order = list(range(len(rows)))
        if packed.sorted_indices is not None:
            order = packed.sorted_indices.tolist()
        expected = walk([rows[b] for b in order], bidirectional=bidirectional)
        got = layout.from_packed(
            *packed[1:], len(packed.data), resets=resets, bidirectional=bidirectional
        )
        *arrays, initial_row, final_segment = vars(expected).values()
        of_batch = torch.tensor([*order, -1])
        final_segment = final_segment[torch.tensor([order.index(b) for b in range(len(rows))])]
        assert_same(got, Layout(*arrays, of_batch[initial_row], final_segment))


def test_layouts_of_another_device_are_made_without_reading_a_value() -> None:
    meta = torch.device("meta")
    lengths, flags = (
        torch.empty(4, dtype=torch.int64, device=meta),
        torch.empty(4, 9, dtype=torch.bool, device=meta),
    )
    padded = layout.from_padded(
        9, 4, lengths=lengths, mask=flags, resets=flags, batch_first=True, bidirectional=True
    )
    assert [len(getattr(padded, name)) for name in ARRAYS] == [9, 36, 36, 36, 4]
    flat = layout.from_flat(lengths, lengths, 20, resets=flags.new_empty(20), bidirectional=True)
    assert [len(getattr(flat, name)) for name in ARRAYS] == [20, 20, 20, 20, 4]
    packed = layout.from_packed(
        torch.tensor([3, 2]), None, None, 5, resets=flags.new_empty(5), bidirectional=True
    )
    assert [len(getattr(packed, name)) for name in ARRAYS] == [5, 5, 5, 5, 3]
    assert {getattr(got, n).device for got in (padded, flat, packed) for n in ARRAYS} == {meta}


def test_an_exact_layout_is_what_is_left_of_the_largest() -> None:
    lengths = torch.tensor([2, 0, 3])
    args = (lengths, None, None, None, 3, 4, True, True)
    largest = Layout(*index_arrays.from_rows(*args))
    assert [len(getattr(largest, name)) for name in ARRAYS] == [4, 12, 12, 3, 3]
    assert_same(largest.exact(), of_lengths([2, 0, 3], 4, batch_first=True, bidirectional=True))
    assert_same(largest.exact().exact(), largest.exact())
