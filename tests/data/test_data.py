"""TokenBudgetBatchSampler: budget, partition, balance over ranks, seeds, epochs, resumption."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, distributed
from torch.utils.data import DataLoader

from varlen_rnn.data import TokenBudgetBatchSampler

Steps = list[tuple[list[int], ...]]
SHAPES = ("uniform", "long tail", "all equal", "ragged with empty rows", "short")
ragged = pytest.mark.parametrize("shape", SHAPES)
ranks = pytest.mark.parametrize("num_replicas", [1, 2, 3, 8])


def random_lengths(shape: str, num_rows: int, seed: int = 0) -> list[int]:
    numbers = random.Random(seed)
    draw = {
        "uniform": lambda: numbers.randint(1, 500),
        "long tail": lambda: min(int(numbers.lognormvariate(3.5, 1)), 500),
        "all equal": lambda: 77,
        "ragged with empty rows": lambda: numbers.choice([0, 1, 30, numbers.randint(0, 300)]),
        "short": lambda: numbers.randint(0, 3),
    }[shape]
    return [draw() for _ in range(num_rows)]


def samplers(
    lengths: Sequence[int], max_tokens: int, num_replicas: int = 1, **options: Any
) -> list[TokenBudgetBatchSampler]:
    """One for every rank."""
    options["num_replicas"] = num_replicas
    return [
        TokenBudgetBatchSampler(lengths, max_tokens, rank=rank, **options)
        for rank in range(num_replicas)
    ]


def epoch_of(all_ranks: Sequence[TokenBudgetBatchSampler], epoch: int = 0) -> Steps:
    """Every step's batches, one a rank."""
    for sampler in all_ranks:
        sampler.set_epoch(epoch)
    batches = [list(sampler) for sampler in all_ranks]
    assert {len(b) for b in batches} == {len(s) for s in all_ranks} == {len(batches[0])}
    return list(zip(*batches, strict=True))


def tokens_of(lengths: Sequence[int], batch: Sequence[int]) -> int:
    return sum(lengths[row] for row in batch)


@ragged
@ranks
@pytest.mark.parametrize("shuffle", [True, False], ids=["shuffled", "in order"])
def test_an_epoch_has_every_row_once_in_bounded_batches(
    shape: str, num_replicas: int, shuffle: bool
) -> None:
    lengths = random_lengths(shape, 997)
    all_ranks = samplers(lengths, 1000, num_replicas, shuffle=shuffle)
    for epoch in range(3):
        steps = epoch_of(all_ranks, epoch)
        batches = [batch for step in steps for batch in step]
        assert sorted(row for batch in batches for row in batch) == list(range(997))
        assert all(batches)
        assert max(tokens_of(lengths, batch) for batch in batches) <= 1000


@ragged
@ranks
def test_ranks_get_the_same_tokens_within_5_percent(shape: str, num_replicas: int) -> None:
    # Each rank has a hundred rows at least, the fewest tokens where rows are short.
    lengths = random_lengths(shape, 100 * num_replicas)
    max_tokens = max(600, 5 * max(lengths))
    for seed in range(10):
        steps = epoch_of(samplers(lengths, max_tokens, num_replicas, seed=seed), seed)
        totals = [sum(tokens_of(lengths, b) for b in rank) for rank in zip(*steps, strict=True)]
        assert max(totals) - min(totals) <= 0.05 * min(totals), totals
        assert max(totals) - min(totals) <= max(lengths) + max_tokens / 32


@ragged
def test_batches_of_a_step_cost_about_the_same(shape: str) -> None:
    lengths = random_lengths(shape, 2000)
    for step in epoch_of(samplers(lengths, 3000, 4)):
        tokens = [tokens_of(lengths, batch) for batch in step]
        longest = max(lengths[row] for batch in step for row in batch)
        assert max(tokens) - min(tokens) <= longest + 3000 / 32


@ragged
@ranks
def test_batches_are_nearly_full_and_of_similar_lengths(shape: str, num_replicas: int) -> None:
    lengths = random_lengths(shape, 5000)
    max_tokens = max(2000, 20 * max(lengths)) if any(lengths) else 10
    max_tokens = min(max_tokens, sum(lengths) // (4 * num_replicas))
    steps = epoch_of(samplers(lengths, max_tokens, num_replicas))
    batches = [batch for step in steps for batch in step]
    # Of the best possible, a whole number of steps; the longest row may not fit in what is left.
    best = -(-sum(lengths) // (max_tokens * num_replicas))
    assert len(steps) <= 1.1 * best + 1
    # Padded to its longest row, random batches of "long tail" are two thirds padding.
    padded = sum(len(batch) * max(lengths[row] for row in batch) for batch in batches)
    by_chance = max(lengths) * len(lengths)
    assert padded - sum(lengths) <= 0.5 * (by_chance - sum(lengths)) + 1


def test_no_step_is_nearly_empty() -> None:
    """Ten full batches and a row would leave the eleventh with one row."""
    batches = list(TokenBudgetBatchSampler([10] * 101, 100, shuffle=False))
    assert [len(batch) for batch in batches] == [10] * 9 + [6, 5]
    two = epoch_of(samplers([10] * 201, 100, 2, shuffle=False))
    assert [[len(b) for b in step] for step in two] == [[10, 10]] * 9 + [[6, 5], [5, 5]]


def test_a_last_step_that_cannot_be_cut_anew_stays() -> None:
    batches = list(TokenBudgetBatchSampler([60, 50, 50], 100, shuffle=False))
    assert batches == [[0], [1, 2]]


@pytest.mark.parametrize(("num_rows", "num_replicas"), [(1, 2), (2, 3), (5, 4), (1, 5), (7, 3)])
def test_rows_repeat_only_where_there_are_too_few_for_the_ranks(
    num_rows: int, num_replicas: int
) -> None:
    """Rows of which no batch holds two: like DistributedSampler, some come twice."""
    steps = epoch_of(samplers([9] * num_rows, 10, num_replicas))
    assert all(len(batch) == 1 for step in steps for batch in step)
    counts = Counter(row for step in steps for batch in step for row in batch)
    assert set(counts) == set(range(num_rows))
    assert counts.total() == -(-num_rows // num_replicas) * num_replicas


def test_rows_are_borrowed_from_the_step_before_instead() -> None:
    for lengths, num_replicas in (([5] * 9, 4), ([10, 10, 6, 3, 3, 3], 3)):
        steps = epoch_of(samplers(lengths, 10, num_replicas))
        rows = sorted(row for step in steps for batch in step for row in batch)
        assert rows == list(range(len(lengths)))
        assert len(steps) == 2


def test_small_epochs_of_every_kind() -> None:
    numbers = random.Random(0)
    for _ in range(1000):
        num_replicas = numbers.randint(1, 5)
        max_tokens = numbers.randint(1, 200)
        longest = numbers.randint(0, max_tokens)
        lengths = [numbers.randint(0, longest) for _ in range(numbers.randint(1, 40))]
        steps = epoch_of(samplers(lengths, max_tokens, num_replicas, seed=numbers.randint(0, 9)))
        batches = [batch for step in steps for batch in step]
        assert all(batches)
        assert max(tokens_of(lengths, batch) for batch in batches) <= max_tokens
        counts = Counter(row for batch in batches for row in batch)
        assert counts.keys() == set(range(len(lengths)))
        repeated = counts.total() - len(lengths)
        assert repeated < num_replicas
        if repeated:
            last = [step for step in steps if sum(map(len, step)) == num_replicas]
            assert any(set().union(*step) >= {r for r in counts if counts[r] > 1} for step in last)


@pytest.mark.parametrize("lengths", [[], [0], [0, 0, 0, 0], torch.tensor([], dtype=torch.int64)])
@pytest.mark.parametrize("num_replicas", [1, 2])
def test_nothing_and_empty_rows(lengths: Any, num_replicas: int) -> None:
    steps = epoch_of(samplers(lengths, 1, num_replicas))
    assert len(steps) == (len(lengths) > 0)
    assert {row for step in steps for batch in step for row in batch} == set(range(len(lengths)))


def test_in_order_the_longest_batch_comes_first() -> None:
    lengths = random_lengths("uniform", 300)
    batches = list(TokenBudgetBatchSampler(lengths, 1000, shuffle=False))
    longest = [max(lengths[row] for row in batch) for batch in batches]
    assert all(b <= a * 33 / 32 for a, b in itertools.pairwise(longest))
    assert batches == list(TokenBudgetBatchSampler(lengths, 1000, shuffle=False, seed=5))


def test_shuffled_batches_are_not_in_order_of_length() -> None:
    lengths = random_lengths("uniform", 2000)
    longest = [max(lengths[r] for r in b) for b in TokenBudgetBatchSampler(lengths, 1000)]
    position = torch.arange(len(longest), dtype=torch.float64)
    pair = torch.stack([position, torch.tensor(longest, dtype=torch.float64)])
    assert abs(float(torch.corrcoef(pair)[0, 1])) < 0.15


def test_the_order_hangs_on_seed_and_epoch_alone() -> None:
    lengths = random_lengths("long tail", 500)

    def order(seed: int, epoch: int) -> Steps:
        torch.manual_seed(random.randrange(1000))
        return epoch_of(samplers(lengths, 600, 2, seed=seed), epoch)

    assert order(3, 4) == order(3, 4)
    orders = [order(3, 4), order(3, 5), order(30, 4)]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert one != other
            # Not the same batches in another order, either.
            same = {tuple(sorted(b)) for s in one for b in s} & {
                tuple(sorted(b)) for s in other for b in s
            }
            assert len(same) < len(one) / 2
            assert len(one) == len(other)
    before = torch.get_rng_state()
    order_of_one = list(TokenBudgetBatchSampler(lengths, 600))
    assert torch.equal(torch.get_rng_state(), before)
    assert order_of_one == list(TokenBudgetBatchSampler(lengths, 600))


def test_without_set_epoch_every_iteration_is_the_same() -> None:
    sampler = TokenBudgetBatchSampler(random_lengths("uniform", 100), 600)
    assert list(sampler) == list(sampler)
    next(iter(sampler))
    assert len(list(sampler)) == len(sampler)


@pytest.mark.parametrize("as_form", [torch.tensor, np.asarray, lambda x: torch.tensor(x).short()])
def test_lengths_come_in_any_form(as_form: Any) -> None:
    lengths = random_lengths("long tail", 100)
    expected = list(TokenBudgetBatchSampler(lengths, 600))
    assert list(TokenBudgetBatchSampler(as_form(lengths), np.int64(600))) == expected
    assert all(type(row) is int for batch in expected for row in batch)


@ranks
@pytest.mark.parametrize("at", [0, 1, 5, -1])
def test_a_resumed_epoch_goes_on_as_if_uninterrupted(num_replicas: int, at: int) -> None:
    lengths = random_lengths("long tail", 800)
    uninterrupted = samplers(lengths, 500, num_replicas, seed=7)
    epochs = [epoch_of(uninterrupted, epoch) for epoch in range(4)]
    stop = at % (len(uninterrupted[0]) + 1)

    states = []
    for sampler in samplers(lengths, 500, num_replicas, seed=7):
        sampler.set_epoch(2)
        iterator = iter(sampler)
        for _ in range(stop):
            next(iterator)
        states.append(sampler.state_dict())
    assert all(state == states[0] for state in states)

    for rank, sampler in enumerate(samplers(lengths, 500, num_replicas, seed=7)):
        sampler.load_state_dict(states[-1])
        assert sampler.epoch == 2
        assert sampler.state_dict() == states[0]
        sampler.set_epoch(2)  # as a training loop does
        assert list(sampler) == [step[rank] for step in epochs[2]][stop:]
        sampler.set_epoch(3)
        assert list(sampler) == [step[rank] for step in epochs[3]]


def test_a_position_is_for_its_own_epoch_and_used_once() -> None:
    sampler = TokenBudgetBatchSampler(random_lengths("uniform", 100), 600)
    whole = list(sampler)
    sampler.load_state_dict(sampler.state_dict(batches_done=3))
    assert len(sampler) == len(whole)
    assert list(sampler) == whole[3:]
    assert sampler.state_dict()["batches_done"] == len(whole)
    assert list(sampler) == whole
    sampler.load_state_dict(sampler.state_dict(batches_done=3))
    sampler.set_epoch(1)
    assert sampler.state_dict()["batches_done"] == 0
    assert len(list(sampler)) == len(whole)


class Rows:
    """A dataset whose row ``i`` is ``lengths[i]`` times ``i``."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Tensor:
        return torch.full((self.lengths[index],), index)


def rows_in(batch: list[Tensor]) -> list[Tensor]:
    return batch


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores
@pytest.mark.parametrize("workers", [0, 2])
def test_a_new_loader_goes_on_where_the_state_was_taken(workers: int) -> None:
    lengths = [5] * 40
    sampler = TokenBudgetBatchSampler(lengths, 10, seed=3)
    expected = list(sampler)[7:]
    resumed = TokenBudgetBatchSampler(lengths, 10, seed=3)
    resumed.load_state_dict(sampler.state_dict(batches_done=7))
    loader = DataLoader(
        Rows(lengths), batch_sampler=resumed, collate_fn=rows_in, num_workers=workers
    )
    assert [[int(row[0]) for row in batch] for batch in loader] == expected


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores
@pytest.mark.parametrize("workers", [0, 2])
def test_in_a_loader(workers: int) -> None:
    lengths = random_lengths("long tail", 60)
    lengths = [length + 1 for length in lengths]
    sampler = TokenBudgetBatchSampler(lengths, 600)
    loader = DataLoader(
        Rows(lengths),
        batch_sampler=sampler,
        collate_fn=rows_in,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    assert len(loader) == len(sampler)
    expected = epoch_of(samplers(lengths, 600), 1)
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        got = [[int(row[0]) for row in batch] for batch in loader]
        assert (got == [step[0] for step in expected]) == (epoch == 1)
    # Workers draw ahead, so the loop counts.
    sampler.load_state_dict(sampler.state_dict(batches_done=2))
    assert [[int(row[0]) for row in batch] for batch in loader] == got[2:]
    seen = iter(loader)
    next(seen)
    ahead = sampler.state_dict()["batches_done"]
    assert ahead == 1 if workers == 0 else ahead > 1


def test_ranks_come_from_the_process_group(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = random_lengths("uniform", 100)
    alone = TokenBudgetBatchSampler(lengths, 600)
    assert (alone.num_replicas, alone.rank) == (1, 0)
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 3)
    monkeypatch.setattr(distributed, "get_rank", lambda: 1)
    sampler = TokenBudgetBatchSampler(lengths, 600)
    assert list(sampler) == list(samplers(lengths, 600, 3)[1])
    given = TokenBudgetBatchSampler(lengths, 600, num_replicas=2, rank=0)
    assert list(given) == list(samplers(lengths, 600, 2)[0])


NAME = "TokenBudgetBatchSampler"
TWO = {"num_replicas": 2, "rank": 0}
ERRORS = [
    ([3, 11, 12], 10, {}, ValueError, "lengths must be at most max_tokens = 10, got 11 at index 1"),
    ([3, -1], 10, {}, ValueError, "lengths must be at least 0, got -1 at index 1"),
    ([1.5], 10, {}, TypeError, "lengths must be integers, got float64"),
    (3, 10, {}, ValueError, "lengths must be [B] = [1], got []"),
    (torch.ones(2, 2).long(), 10, {}, ValueError, "lengths must be [B] = [2], got [2, 2]"),
    ([3], 0, {}, ValueError, "max_tokens must be in [1, 2**62), got 0"),
    ([3], 4.0, {}, TypeError, "max_tokens must be an integer, got float"),
    ([3], 4, {"seed": None}, TypeError, "seed must be an integer, got NoneType"),
    ([3], 4, {"rank": 0}, ValueError, "num_replicas must be given where rank is, got None"),
    ([3], 4, {"num_replicas": 2}, ValueError, "rank must be given where num_replicas is, got None"),
    ([3], 4, TWO | {"num_replicas": 0}, ValueError, "num_replicas must be at least 1, got 0"),
    ([3], 4, TWO | {"rank": 2}, ValueError, "rank must be in [0, num_replicas) = [0, 2), got 2"),
    ([3], 4, TWO | {"rank": -1}, ValueError, "rank must be in [0, num_replicas) = [0, 2), got -1"),
    ([3], 4, TWO | {"rank": "0"}, TypeError, "rank must be an integer, got str"),
]


@pytest.mark.parametrize(("lengths", "max_tokens", "options", "error", "message"), ERRORS)
def test_errors_say_what_was_expected_and_got(
    lengths: Any, max_tokens: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        TokenBudgetBatchSampler(lengths, max_tokens, **options)
    assert str(caught.value).startswith(f"{NAME}: {message}")


def test_another_samplers_state_is_refused() -> None:
    sampler = TokenBudgetBatchSampler([3, 4], 5)
    others: dict[str, Any] = {
        "num_rows": TokenBudgetBatchSampler([3, 2, 2], 5),
        "num_tokens": TokenBudgetBatchSampler([3, 5], 5),
        "max_tokens": TokenBudgetBatchSampler([3, 4], 6),
        "num_replicas": TokenBudgetBatchSampler([3, 4], 5, num_replicas=2, rank=0),
        "shuffle": TokenBudgetBatchSampler([3, 4], 5, shuffle=False),
        "seed": TokenBudgetBatchSampler([3, 4], 5, seed=1),
    }
    for key, other in others.items():
        state = other.state_dict()
        with pytest.raises(ValueError, match=rf"^{NAME}\.load_state_dict: {key} must be .*got"):
            sampler.load_state_dict(state)
    for done in (-1, 3):
        with pytest.raises(ValueError, match=r"state_dict: batches_done must be in .* = \[0, 2\]"):
            sampler.state_dict(batches_done=done)
        with pytest.raises(ValueError, match=rf"load_state_dict: batches_done .* got {done}$"):
            sampler.load_state_dict(sampler.state_dict() | {"batches_done": done})
    for wrong in ({"batches_done": None}, {"epoch": "1"}):
        with pytest.raises(TypeError, match=r"load_state_dict: \w+ must be an integer, got"):
            sampler.load_state_dict(sampler.state_dict() | wrong)
    with pytest.raises(TypeError, match="load_state_dict: state_dict must be a dict, got NoneType"):
        sampler.load_state_dict(None)
    assert list(sampler.state_dict().values())[:2] == [0, 0]
