"""The sampler, and its state."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, distributed
from torch.utils.data import Sampler

from varlen_rnn.data.steps import cut_into_steps, rounded_up
from varlen_rnn.layout.checks import Lengths, failure
from varlen_rnn.masking._valid import check_any_lengths


class TokenBudgetBatchSampler(Sampler[list[int]]):
    """Batches of similar length with a bounded number of valid tokens, balanced over ranks.

    With one process, ``shuffle=False`` and lengths below 64, equivalent to sorting
    ``torch.argsort(lengths, descending=True, stable=True)`` and cutting it whenever the next row
    would exceed ``max_tokens`` (the last two batches then share their tokens evenly). Goes into
    ``DataLoader(dataset, batch_sampler=sampler)``, with or without workers, and takes the place of
    :class:`torch.utils.data.DistributedSampler` there.

    An epoch is a number of steps; in each, every rank gets one batch. All ranks of a step share
    rows of similar length and about the same number of tokens, so none waits long for another.

    - Every index comes once an epoch on one of the ranks. Only where the last step has fewer rows
      than there are ranks, and the one before cannot spare any, its rows are repeated, as
      ``DistributedSampler`` does. There is no ``drop_last``: nothing is left over.
    - Every rank has the same number of batches, the same in every epoch.
    - Over an epoch the ranks' numbers of tokens differ at most by the length of the longest row
      plus ``max_tokens / 32``, in most data sets by much less. That is below 5 % unless an epoch
      is a few steps only.
    - With ``shuffle``, each epoch (:meth:`set_epoch`) has another order of batches, and other rows
      in them: rows whose lengths are equal, when rounded up by less than 1 / 32, change places.
      Without, the longest batches come first.
    - The order depends on ``seed`` and the epoch alone, not on torch's global generator.

    Args:
        lengths: ``[num_rows]``, each row's number of valid tokens, at least 0, integers: a list, a
            tensor or an array, in the order of the dataset's indices.
        max_tokens: most valid tokens of a batch, on each rank; rows of length 0 are free.
        num_replicas: number of ranks; by default the world size of ``torch.distributed`` where a
            process group is there, else 1.
        rank: this process's rank in ``[0, num_replicas)``; given if and only if ``num_replicas``
            is.
        shuffle: whether every epoch has an order of its own.
        seed: must be the same on all ranks.

    Raises:
        ValueError: a row longer than ``max_tokens`` (its index and length are named; nothing is
            dropped), lengths that are not ``[num_rows]`` or negative, ``max_tokens`` or
            ``num_replicas`` below 1, a rank outside ``[0, num_replicas)`` or given alone.
        TypeError: what should be integers is not.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> from varlen_rnn.data import TokenBudgetBatchSampler
        >>> lengths = [3, 9, 1, 4, 8, 2]
        >>> list(TokenBudgetBatchSampler(lengths, max_tokens=10, shuffle=False))
        [[1], [4], [3, 0, 5, 2]]
        >>> for rank in range(2):
        ...     sampler = TokenBudgetBatchSampler(
        ...         lengths, max_tokens=10, num_replicas=2, rank=rank, shuffle=False
        ...     )
        ...     print([(batch, sum(lengths[i] for i in batch)) for batch in sampler])
        [([1], 9), ([0, 5], 5)]
        [([4], 8), ([3, 2], 5)]
        >>> loader = DataLoader(range(6), batch_sampler=sampler)
        >>> for epoch in range(2):
        ...     sampler.set_epoch(epoch)
        ...     for batch in loader:
        ...         pass  # a step of training
    """

    def __init__(
        self,
        lengths: Lengths,
        max_tokens: int,
        *,
        num_replicas: int | None = None,
        rank: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
    ) -> None:
        name = type(self).__name__
        self.max_tokens = _integer(name, "max_tokens", max_tokens)
        if not 1 <= self.max_tokens < 2**62:
            raise failure(name, "max_tokens", "in [1, 2**62)", self.max_tokens)
        self.num_replicas, self.rank = _ranks(name, num_replicas, rank)
        self.shuffle = shuffle
        self.seed = _integer(name, "seed", seed)
        self.epoch = 0
        self._lengths = check_any_lengths(name, lengths, None).cpu()
        too_long = (self._lengths > self.max_tokens).nonzero()
        if len(too_long):
            index = int(too_long[0])
            got = f"{int(self._lengths[index])} at index {index}"
            raise failure(name, "lengths", f"at most max_tokens = {self.max_tokens}", got)
        self._rounded = rounded_up(self._lengths).clamp(max=self.max_tokens)
        self._plan()
        # Of the epoch's batches: where the next iteration starts, and how many were drawn.
        self._start = 0
        self._drawn = 0

    def __len__(self) -> int:
        """Batches of an epoch on each rank, also where the next iteration resumes within one."""
        return self._num_steps

    def __iter__(self) -> Iterator[list[int]]:
        # Runs with the first batch: a DataLoader with workers makes an iterator more than it uses.
        start, self._start = self._start, 0
        for position, batch in enumerate(self._batches()[start:], start):
            self._drawn = position + 1
            yield batch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration has.

        Call it at the start of every epoch, before iterating, with the same number on all ranks. A
        position that :meth:`load_state_dict` set within the very epoch is kept.

        Args:
            epoch: number of the epoch.

        Raises:
            TypeError: it is not an integer.
        """
        epoch = _integer(f"{type(self).__name__}.set_epoch", "epoch", epoch)
        if epoch != self.epoch:
            self.epoch = epoch
            self._start = self._drawn = 0

    def state_dict(self, batches_done: int | None = None) -> dict[str, Any]:
        """What :meth:`load_state_dict` needs to go on from here: the same on every rank.

        Args:
            batches_done: batches of this epoch that are trained on; by default those drawn from
                the sampler. A DataLoader with workers draws ahead: then count, and say.

        Returns:
            Plain numbers, to be saved with a checkpoint.

        Raises:
            ValueError: ``batches_done`` that is not in ``[0, len(self)]``.
            TypeError: one that is not an integer.

        Example:
            >>> from varlen_rnn.data import TokenBudgetBatchSampler
            >>> sampler = TokenBudgetBatchSampler([5, 5, 5, 5], max_tokens=5)
            >>> batches = iter(sampler)
            >>> done = [next(batches), next(batches)]
            >>> state = sampler.state_dict()
            >>> resumed = TokenBudgetBatchSampler([5, 5, 5, 5], max_tokens=5)
            >>> resumed.load_state_dict(state)
            >>> list(resumed) == list(batches)
            True
        """
        done = self._drawn if batches_done is None else batches_done
        done = self._position(f"{type(self).__name__}.state_dict", done)
        return {"epoch": self.epoch, "batches_done": done, **self._identity()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Let the next iteration go on where the state was taken, in the same epoch.

        Args:
            state_dict: from :meth:`state_dict`, of a sampler over the same lengths with the same
                arguments; of any rank.

        Raises:
            ValueError: another sampler's state, which could not be continued exactly.
            TypeError: ``state_dict`` is not a dict, or a number in it is missing or no integer.
        """
        name = f"{type(self).__name__}.load_state_dict"
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"{name}: state_dict must be a dict, got {type(state_dict).__name__}")
        for key, value in self._identity().items():
            if state_dict.get(key) != value:
                raise failure(name, key, f"{value}, as in this sampler", state_dict.get(key))
        position = self._position(name, state_dict.get("batches_done"))
        self.epoch = _integer(name, "epoch", state_dict.get("epoch"))
        self._start = self._drawn = position

    def _identity(self) -> dict[str, Any]:
        """All that the order depends on, but the epoch and the lengths one by one."""
        return {
            "num_rows": len(self._lengths),
            "num_tokens": int(self._lengths.sum()),
            "max_tokens": self.max_tokens,
            "num_replicas": self.num_replicas,
            "shuffle": self.shuffle,
            "seed": self.seed,
        }

    def _position(self, name: str, batches_done: Any) -> int:
        done = _integer(name, "batches_done", batches_done)
        if not 0 <= done <= len(self):
            raise failure(name, "batches_done", f"in [0, len(self)] = [0, {len(self)}]", done)
        return done

    def _plan(self) -> None:
        """Divide places in the order of falling rounded lengths among batches, for all epochs.

        Every epoch puts other rows in these places, but of the same rounded lengths.
        """
        sizes = self._rounded.sort(descending=True).values.tolist()
        steps = cut_into_steps(sizes, self.max_tokens, self.num_replicas)
        self._num_steps = len(steps)
        slots = [s * self.num_replicas + slot for s, step in enumerate(steps) for slot in step]
        places = list(range(len(sizes)))
        if steps and len(steps[-1]) < self.num_replicas:
            last = places[-len(steps[-1]) :]
            for slot in range(len(last), self.num_replicas):
                places.append(last[slot % len(last)])
                slots.append((self._num_steps - 1) * self.num_replicas + slot)
        batches = torch.tensor(slots, dtype=torch.int64, device="cpu")
        self._batch_of_place, by_batch = batches.sort(stable=True)
        self._places = torch.tensor(places, dtype=torch.int64, device="cpu")[by_batch]

    def _batches(self) -> list[list[int]]:
        """This rank's batches of the epoch."""
        generator = torch.Generator().manual_seed((self.seed + self.epoch) % 2**63)

        def order(count: int) -> Tensor:
            if self.shuffle:
                return torch.randperm(count, generator=generator, device="cpu")
            return torch.arange(count, device="cpu")

        shuffled = order(len(self._lengths))
        by_length = shuffled[self._rounded[shuffled].argsort(descending=True, stable=True)]
        rows = by_length[self._places]
        num_batches = self._num_steps * self.num_replicas
        tokens = self._lengths.new_zeros(num_batches)
        tokens.index_add_(0, self._batch_of_place, self._lengths[rows])
        ends = self._batch_of_place.bincount(minlength=num_batches).cumsum(0).tolist()
        starts = [0, *ends]
        tokens_of_step = tokens.view(self._num_steps, self.num_replicas).tolist()

        mine = []
        totals = [0] * self.num_replicas
        for step in order(self._num_steps).tolist():
            # The largest batch goes to the rank that has the fewest tokens so far.
            slots = sorted(range(self.num_replicas), key=lambda n: -tokens_of_step[step][n])
            ranks = sorted(range(self.num_replicas), key=totals.__getitem__)
            for slot, rank in zip(slots, ranks, strict=True):
                totals[rank] += tokens_of_step[step][slot]
                if rank == self.rank:
                    batch = step * self.num_replicas + slot
                    mine.append(rows[starts[batch] : ends[batch]].tolist())
        return mine


def _integer(name: str, what: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        got = type(value).__name__
        raise TypeError(f"{name}: {what} must be an integer, got {got}") from None


def _ranks(name: str, num_replicas: int | None, rank: int | None) -> tuple[int, int]:
    """Number of ranks and this process's own, checked."""
    if num_replicas is None and rank is None:
        if distributed.is_available() and distributed.is_initialized():
            return distributed.get_world_size(), distributed.get_rank()
        return 1, 0
    if num_replicas is None or rank is None:
        what, other = ("rank", "num_replicas") if rank is None else ("num_replicas", "rank")
        raise failure(name, what, f"given where {other} is", None)
    replicas, own = _integer(name, "num_replicas", num_replicas), _integer(name, "rank", rank)
    if replicas < 1:
        raise failure(name, "num_replicas", "at least 1", replicas)
    if not 0 <= own < replicas:
        raise failure(name, "rank", f"in [0, num_replicas) = [0, {replicas})", own)
    return replicas, own
