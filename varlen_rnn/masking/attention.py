"""Attention over an RNN's outputs that gives padding no weight."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from varlen_rnn.layout.checks import Lengths, Mask, failure
from varlen_rnn.masking._valid import check_batch, valid_tokens


class _Attention(nn.Module):
    """From scores of every key for every query to weights and contexts."""

    query_size: int
    key_size: int

    def forward(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor | None = None,
        *,
        lengths: Lengths | None = None,
        mask: Mask | None = None,
        batch_first: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Averages the values, weighted by how well their keys match the query.

        Args:
            query: ``[B, Q]``, one query a row, or ``[B, S, Q]`` (``[S, B, Q]``), S of them. All
                queries of a row with keys count, so none of them may be NaN.
            keys: ``[B, T, K]`` (``[T, B, K]``), for instance the outputs of an RNN.
            values: ``[B, T, V]`` (``[T, B, V]``); None for the keys.
            lengths: ``[B]``, any integer dtype on any device, each in ``[0, T]``: the valid keys.
            mask: ``[B, T]`` (``[T, B]``), bool or numbers 0 and 1, True where a key is valid.
            batch_first: whether batches are ``[B, T, *]`` instead of ``[T, B, *]``.

        Returns:
            The context ``[B, V]`` or ``[B, S, V]`` (``[S, B, V]``), and the weights ``[B, T]`` or
            ``[B, S, T]``, rows first in either case as in ``nn.MultiheadAttention``. The weights of
            a query sum to 1, 0 at padding; for an empty row weights and context are 0.

        Raises:
            ValueError: a shape or a value that does not fit, or both ``lengths`` and ``mask``.
            TypeError: a type or dtype that does not fit.
        """
        name = type(self).__name__
        values = keys if values is None else values
        self._check(name, query, keys, values, batch_first)
        valid = valid_tokens(name, keys.shape[:2], keys.device, lengths, mask, batch_first)
        single = query.dim() == 2
        if not batch_first:
            keys, values, valid = keys.transpose(0, 1), values.transpose(0, 1), valid.t()
        if single:
            query = query[:, None]
        elif not batch_first:
            query = query.transpose(0, 1)

        # A row without keys has no use for its query, which may be the mean of nothing.
        query = query.masked_fill(~valid.any(1)[:, None, None], 0)
        keys = keys.masked_fill(~valid[:, :, None], 0)
        values = values.masked_fill(~valid[:, :, None], 0)
        weights = _masked_softmax(self._scores(query, keys), valid[:, None])
        context = weights @ values
        if single:
            return context[:, 0], weights[:, 0]
        return context if batch_first else context.transpose(0, 1), weights

    def _scores(self, query: Tensor, keys: Tensor) -> Tensor:
        """How well each of ``keys [B, T, K]`` matches each ``query [B, S, Q]``: ``[B, S, T]``."""
        raise NotImplementedError

    def _check(
        self, name: str, query: Tensor, keys: Tensor, values: Tensor, batch_first: bool
    ) -> None:
        for what, tensor in (("query", query), ("keys", keys), ("values", values)):
            check_batch(name, what, tensor, batch_first)
        steps = "B, T" if batch_first else "T, B"
        if keys.dim() != 3 or keys.shape[2] != self.key_size:
            expected = f"[{steps}, K] = [*, *, {self.key_size}]"
            raise failure(name, "keys", expected, list(keys.shape))
        if values.dim() != 3 or values.shape[:2] != keys.shape[:2]:
            expected = f"[{steps}, V] = [{keys.shape[0]}, {keys.shape[1]}, *]"
            raise failure(name, "values", expected, list(values.shape))
        num_rows = keys.shape[0 if batch_first else 1]
        single = query.dim() == 2
        rows = query.shape[0 if single or batch_first else 1]
        if query.dim() > 3 or rows != num_rows or query.shape[-1] != self.query_size:
            numbers = f"{num_rows}, *" if batch_first else f"*, {num_rows}"
            expected = (
                f"[B, Q] = [{num_rows}, {self.query_size}] or "
                f"[{'B, S' if batch_first else 'S, B'}, Q] = [{numbers}, {self.query_size}]"
            )
            raise failure(name, "query", expected, list(query.shape))


class AdditiveAttention(_Attention):
    """Attention by a small network: ``score(q, k) = v^T tanh(W q + U k)``.

    Equivalent, for one query, to ``torch.softmax(v(torch.tanh(W(q) + U(k))), 0)`` over the valid
    keys of each row. From Bahdanau, Cho and Bengio, "Neural Machine Translation by Jointly Learning
    to Align and Translate", ICLR 2015, section A.1.2.

    Args:
        query_size: ``Q``, features of a query.
        key_size: ``K``, features of a key.
        hidden_size: units of the network.
        device: where the parameters are made.
        dtype: of the parameters.

    Example:
        >>> import torch
        >>> from varlen_rnn.masking import AdditiveAttention
        >>> attention = AdditiveAttention(16, 8, 32)
        >>> keys = torch.randn(3, 10, 8)
        >>> context, weights = attention(torch.randn(3, 16), keys, lengths=[10, 0, 6])
        >>> context.shape, weights.shape, weights[2, 6:].count_nonzero()
        (torch.Size([3, 8]), torch.Size([3, 10]), tensor(0))
    """

    def __init__(
        self,
        query_size: int,
        key_size: int,
        hidden_size: int,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Makes the parameters; see the class for the arguments."""
        super().__init__()
        self.query_size, self.key_size = query_size, key_size
        self.query_projection = nn.Linear(
            query_size, hidden_size, bias=False, device=device, dtype=dtype
        )
        self.key_projection = nn.Linear(
            key_size, hidden_size, bias=False, device=device, dtype=dtype
        )
        self.score_projection = nn.Linear(hidden_size, 1, bias=False, device=device, dtype=dtype)

    def _scores(self, query: Tensor, keys: Tensor) -> Tensor:
        hidden = self.query_projection(query)[:, :, None] + self.key_projection(keys)[:, None]
        scores: Tensor = self.score_projection(torch.tanh(hidden)).squeeze(3)
        return scores


class MultiplicativeAttention(_Attention):
    """Attention by a product: ``score(q, k) = q^T k`` ("dot") or ``q^T W k`` ("general").

    Equivalent, for one query, to ``torch.softmax(k @ q, 0)`` over the valid keys of each row. From
    Luong, Pham and Manning, "Effective Approaches to Attention-based Neural Machine Translation",
    EMNLP 2015, section 3.1. The product is not scaled.

    Args:
        query_size: ``Q``, features of a query.
        key_size: ``K``, features of a key; None for ``Q``. ``"dot"`` needs ``K = Q``.
        score: ``"dot"``, which has no parameters, or ``"general"``.
        device: where the parameters are made.
        dtype: of the parameters.

    Raises:
        ValueError: another ``score``, or sizes that ``"dot"`` cannot multiply.

    Example:
        >>> import torch
        >>> from varlen_rnn.masking import MultiplicativeAttention
        >>> attention = MultiplicativeAttention(16, 8, score="general")
        >>> query, keys = torch.randn(3, 5, 16), torch.randn(3, 10, 8)
        >>> context, weights = attention(query, keys, lengths=[10, 0, 6])
        >>> context.shape, weights.shape, weights[2, :, 6:].count_nonzero()
        (torch.Size([3, 5, 8]), torch.Size([3, 5, 10]), tensor(0))
    """

    def __init__(
        self,
        query_size: int,
        key_size: int | None = None,
        score: str = "dot",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Makes the parameters; see the class for the arguments."""
        super().__init__()
        name = "MultiplicativeAttention"
        key_size = query_size if key_size is None else key_size
        if score not in ("dot", "general"):
            raise failure(name, "score", '"dot" or "general"', repr(score))
        if score == "dot" and key_size != query_size:
            raise failure(name, "key_size", f'Q = {query_size} for "dot"', key_size)
        self.query_size, self.key_size, self.score = query_size, key_size, score
        if score == "general":
            self.key_projection = nn.Linear(
                key_size, query_size, bias=False, device=device, dtype=dtype
            )

    def _scores(self, query: Tensor, keys: Tensor) -> Tensor:
        if self.score == "general":
            keys = self.key_projection(keys)
        return query @ keys.transpose(1, 2)

    def extra_repr(self) -> str:
        """The arguments, for ``repr``."""
        return f"{self.query_size}, {self.key_size}, score={self.score!r}"


def _masked_softmax(scores: Tensor, valid: Tensor) -> Tensor:
    """Softmax of ``scores [B, S, T]`` over the steps valid in ``[B, 1, T]``, 0 elsewhere."""
    # An empty row would be -inf throughout, and its softmax NaN; with 0 it is a number, unused.
    hidden = torch.where(valid.any(2, keepdim=True), -torch.inf, 0.0).to(scores.dtype)
    return torch.where(valid, scores, hidden).softmax(2).masked_fill(~valid, 0)
