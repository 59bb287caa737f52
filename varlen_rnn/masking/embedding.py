"""An embedding that looks up valid tokens only, and knows what to give for an absent one."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from varlen_rnn.layout.checks import Lengths, Mask, failure
from varlen_rnn.masking._valid import (
    beside,
    check_batch,
    check_numbers,
    places_of,
    scatter,
    valid_tokens,
)


class VarLenEmbedding(nn.Embedding):
    """``torch.nn.Embedding`` for padded batches: only valid tokens are looked up.

    Equivalent to ``nn.Embedding(num_embeddings, embedding_dim, padding_idx)(ids)`` where every
    padding position holds ``padding_idx``, with the same ``weight``, initialisation and
    ``state_dict``. Positions that are padding by ``lengths`` or ``mask`` give zeros, whatever id
    they hold. ``padding_idx`` at a valid position says that the token is absent.

    Args:
        num_embeddings: rows of the table.
        embedding_dim: ``E``, features of a row.
        padding_idx: the id of an absent token, in ``[-num_embeddings, num_embeddings)``.
        absence: what a valid token with ``padding_idx`` gives: ``"zero"`` for zeros, whatever the
            weight holds in that row, without a gradient; ``"learned"`` for that row, which is then
            initialised and trained as the others are.
        max_norm: if given, rows that are looked up are first scaled down to this norm, in place.
        norm_type: p of the norm for ``max_norm``.
        scale_grad_by_freq: whether gradients are divided by how often an id occurs in the batch.
        sparse: whether the gradient of ``weight`` is a sparse tensor.
        device: where the weight is made.
        dtype: of the weight.

    Raises:
        ValueError: ``absence`` or ``padding_idx`` out of range.
        TypeError: ``padding_idx`` that is not an integer; it is needed here.

    Example:
        >>> import torch
        >>> from varlen_rnn.masking import VarLenEmbedding
        >>> embedding = VarLenEmbedding(100, 8, padding_idx=0)
        >>> ids = torch.tensor([[5, 7, 0, 9], [3, -1, -1, -1]])
        >>> out = embedding(ids, lengths=[4, 1])
        >>> out.shape, out[0, 2].count_nonzero(), out[1, 1:].count_nonzero()
        (torch.Size([2, 4, 8]), tensor(0), tensor(0))
    """

    padding_idx: int

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int,
        absence: str = "zero",
        *,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        _weight: Tensor | None = None,
        _freeze: bool = False,
    ) -> None:
        """Makes the weight; see the class for the arguments."""
        name = "VarLenEmbedding"
        if not isinstance(padding_idx, int):
            got = type(padding_idx).__name__
            raise TypeError(f"{name}: padding_idx must be an integer, got {got}")
        if not -num_embeddings <= padding_idx < num_embeddings:
            expected = "in [-num_embeddings, num_embeddings)"
            numbers = f"[{-num_embeddings}, {num_embeddings})"
            raise failure(name, "padding_idx", f"{expected} = {numbers}", padding_idx)
        _check_absence(absence)
        self.absence = absence  # before the weight is made, which depends on it
        super().__init__(
            num_embeddings,
            embedding_dim,
            padding_idx,
            max_norm,
            norm_type,
            scale_grad_by_freq,
            sparse,
            _weight,
            _freeze,
            device,
            dtype,
        )

    @classmethod
    def from_pretrained(
        cls,
        embeddings: Tensor,
        freeze: bool = True,
        *args: Any,
        absence: str = "zero",
        **options: Any,
    ) -> VarLenEmbedding:
        """Makes the module from a table, as ``nn.Embedding.from_pretrained`` does.

        Args:
            embeddings: ``[num_embeddings, E]``, becomes the weight.
            freeze: whether the weight is not trained.
            *args: ``padding_idx``, which is needed, and the options that follow it there.
            absence: as in the class.
            **options: the same as keywords.
        """
        _check_absence(absence)
        embedding: VarLenEmbedding = super().from_pretrained(  # type: ignore[no-untyped-call]
            embeddings, freeze, *args, **options
        )
        embedding.absence = absence
        return embedding

    def reset_parameters(self) -> None:
        """Draws every row from N(0, 1), and clears the one that is never read, if there is one."""
        nn.init.normal_(self.weight)
        if self.absence == "zero":
            with torch.no_grad():
                self.weight[self.padding_idx].zero_()

    def forward(
        self,
        ids: Tensor,
        *,
        lengths: Lengths | None = None,
        mask: Mask | None = None,
        batch_first: bool = True,
    ) -> Tensor:
        """Looks the valid tokens up.

        Args:
            ids: ``[B, T, *]`` (``[T, B, *]``), any integer dtype, in ``[0, num_embeddings)`` at
                valid positions, anything at padding; any shape without ``lengths`` and ``mask``.
            lengths: ``[B]``, any integer dtype on any device, each in ``[0, T]``.
            mask: ``[B, T]`` (``[T, B]``), bool or numbers 0 and 1, True where a token is valid.
            batch_first: whether batches are ``[B, T, *]`` instead of ``[T, B, *]``.

        Returns:
            ``[*ids.shape, E]``, 0 at padding.

        Raises:
            ValueError: a shape or a value that does not fit, or both ``lengths`` and ``mask`` (an
                id out of range is an IndexError too).
            TypeError: a type or dtype that does not fit.
        """
        name = "VarLenEmbedding"
        if not isinstance(ids, Tensor):
            raise TypeError(f"{name}: ids must be a Tensor, got {type(ids).__name__}")
        if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            raise TypeError(f"{name}: ids must be integers, got {ids.dtype}")
        ids = ids.long()
        if lengths is None and mask is None:
            valid = torch.ones_like(ids, dtype=torch.bool)
        else:
            check_batch(name, "ids", ids, batch_first)
            valid = valid_tokens(name, ids.shape[:2], ids.device, lengths, mask, batch_first)
            valid = beside(valid, ids).expand_as(ids)
        if self.absence == "zero":
            valid = valid & (ids != self.padding_idx)
        places = places_of(valid)
        tokens = ids.flatten()[places]
        end = self.num_embeddings
        check_numbers(name, "ids", tokens, places, ids.shape, end, "num_embeddings")
        vectors = F.embedding(
            tokens,
            self.weight,
            max_norm=self.max_norm,
            norm_type=self.norm_type,
            scale_grad_by_freq=self.scale_grad_by_freq,
            sparse=self.sparse,
        )
        return scatter(vectors, places, ids.shape)

    def extra_repr(self) -> str:
        """The arguments, for ``repr``."""
        return f"{super().extra_repr()}, absence={self.absence!r}"


def _check_absence(absence: str) -> None:
    if absence not in ("zero", "learned"):
        raise failure("VarLenEmbedding", "absence", '"zero" or "learned"', repr(absence))
