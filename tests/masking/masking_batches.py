"""What the tests of masking share: batches with padding of every kind, and the truth row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import cycle

import torch
from helpers import assert_close64
from torch import Tensor

NUM_ROWS, NUM_STEPS, SIZE = 5, 6, 4
LENGTHS = [4, 0, 6, 1, 3]
HOLES = ["110100", "000000", "111111", "000100", "011001"]

FORMS = ("lengths", "list", "right", "left", "holes", "neither", "empty", "no_tokens")

JUNK = (torch.nan, torch.inf, -torch.inf, 1e30)


def valid_of(form: str) -> Tensor:
    """Which tokens are valid in such a batch: ``[B, T]``."""
    rows = {
        "holes": HOLES,
        "neither": ["1" * NUM_STEPS] * NUM_ROWS,
        "empty": ["0" * NUM_STEPS] * NUM_ROWS,
        "no_tokens": ["0" * NUM_STEPS] * NUM_ROWS,
        "left": [("1" * length).rjust(NUM_STEPS, "0") for length in LENGTHS],
    }.get(form, [("1" * length).ljust(NUM_STEPS, "0") for length in LENGTHS])
    return torch.tensor([[step == "1" for step in row] for row in rows])


def keywords_of(form: str, *, batch_first: bool = True) -> dict[str, object]:
    """The keyword arguments that say so."""
    valid = valid_of(form)
    if form == "neither":
        keywords: dict[str, object] = {}
    elif form == "lengths":
        keywords = {"lengths": torch.tensor(LENGTHS)}
    elif form == "list":
        keywords = {"lengths": LENGTHS}
    elif form == "empty":
        keywords = {"lengths": torch.zeros(NUM_ROWS, dtype=torch.int64)}
    else:
        keywords = {"mask": valid if batch_first else valid.t()}
    return keywords if batch_first else {**keywords, "batch_first": False}


def with_junk(x: Tensor, valid: Tensor) -> Tensor:
    """A copy of ``x [B, T, *]`` that holds NaN, infinities and large numbers at padding."""
    dirty = x.detach().clone()
    for place, junk in zip((~valid).nonzero().tolist(), cycle(JUNK)):
        dirty[tuple(place)] = junk
    return dirty


def by_rows(
    truth: Callable[[Tensor, int], Tensor], x: Tensor, valid: Tensor, *, per_token: bool
) -> Tensor:
    """``truth(tokens [n, *], row)`` of each row's valid tokens, 0 at padding and for empty rows.

    It gives ``[n, *]`` if ``per_token``, else ``[*]``.
    """
    sample = truth(x[0, :1], 0)
    kept = [b for b in range(len(x)) if valid[b].any()]
    if per_token:
        out = x.new_zeros(*valid.shape, *sample.shape[1:])
        for b in kept:
            out[b, valid[b]] = truth(x[b, valid[b]], b)
        return out
    out = x.new_zeros(len(x), *sample.shape)
    for b in kept:
        out[b] = truth(x[b, valid[b]], b)
    return out


def check_by_rows(
    call: Callable[..., Tensor],
    truth: Callable[[Tensor, int], Tensor],
    form: str,
    *,
    per_token: bool,
    batch_first: bool = True,
    parameters: Iterable[Tensor] = (),
    trailing: tuple[int, ...] = (SIZE,),
) -> None:
    """Values and gradients of ``call(x, **keywords)``, with junk wherever there is no token."""
    valid = valid_of(form)
    x = torch.randn(NUM_ROWS, NUM_STEPS, *trailing, dtype=torch.float64)
    clean = x.clone().requires_grad_()
    dirty = with_junk(x, valid).requires_grad_()
    expected = by_rows(truth, clean, valid, per_token=per_token)
    given = dirty if batch_first else dirty.transpose(0, 1)
    out = call(given, **keywords_of(form, batch_first=batch_first))
    if per_token and not batch_first:
        out = out.transpose(0, 1)

    upstream = torch.randn_like(expected)
    present = valid if per_token else valid.any(1)
    got = _with_gradients(out, [dirty, *parameters], with_junk(upstream, present))
    if not expected.requires_grad:  # no row has a token
        expected = expected + 0 * clean.sum()
    want = _with_gradients(expected, [clean, *parameters], upstream)
    assert_close64(got, want)
    assert (got["out"][~present] == 0).all()
    assert (got["d_0"][~valid] == 0).all()


def _with_gradients(out: Tensor, leaves: list[Tensor], upstream: Tensor) -> dict[str, Tensor]:
    gradients = torch.autograd.grad(
        out, leaves, upstream, allow_unused=True, materialize_grads=True
    )
    return {"out": out.detach()} | {f"d_{i}": d for i, d in enumerate(gradients)}
