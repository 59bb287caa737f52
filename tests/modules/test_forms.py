"""Every form of a ragged batch, with and without resets, against each segment through torch.nn."""

from __future__ import annotations

import functools
import random
from collections import Counter
from dataclasses import dataclass

import pytest
import torch
from configs import LayerConfig
from helpers import (
    CELLS,
    HAS_EXTENSION,
    Results,
    as_hx,
    assert_bitwise,
    assert_close64,
    leaves_of,
    pair,
    random_batch,
    random_hx,
    states_of,
    with_gradients,
)
from ragged import (
    ANY_BATCH,
    FORMS,
    MASKS,
    NAN,
    Ragged,
    draw_resets,
    draw_valid,
    each_segment_alone,
    in_form,
)
from torch import Tensor, nn

from varlen_rnn import freeze

# The rate at which states are reset; None: there is no such argument.
RESETS = {"none": None, "never": 0.0, "rarely": 0.08, "often": 0.4, "always": 1.0}


@dataclass(frozen=True, kw_only=True)
class Config(LayerConfig):
    """One drawn case; its string is the test's id."""

    form: str
    mask: str
    resets: str
    num_rows: int
    num_steps: int
    num_empty: int

    def __str__(self) -> str:
        parts = [
            f"{self.seed}-{self.cell}-{self.form.replace(' ', '_')}-{self.mask}",
            f"resets_{self.resets}",
            *self.layer,
            f"B{self.num_rows}-T{self.num_steps}",
            *[f"empty{self.num_empty}"] * bool(self.num_empty),
            f"threads{self.threads}",
        ]
        return "-".join(parts)

    def batch(self) -> Ragged:
        """Which tokens there are, and where the resets."""
        draw = random.Random(self.seed)
        size = self.num_rows, self.num_steps
        if self.mask == "all":
            valid = torch.ones(size, dtype=torch.bool)
        else:
            valid = draw_valid(draw, self.mask, *size)
        valid[draw.sample(range(self.num_rows), self.num_empty)] = False
        if self.form == "sorted":
            valid = valid[valid.sum(1).argsort(descending=True)]
        rate = RESETS[self.resets]
        return Ragged(valid, None if rate is None else draw_resets(draw, rate, *size))

    def data(self, rnn: nn.RNNBase) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
        """``x [B, T, I]``, NaN where nothing is valid; initial states; all that has gradients."""
        x = random_batch(rnn, self.num_rows, self.num_steps, seed=self.seed)
        x = x.masked_fill(~self.batch().valid.unsqueeze(2), NAN)
        states = random_hx(rnn, self.num_rows, seed=self.seed) if self.with_hx else []
        return x, states, leaves_of(rnn, x, states)


def draw_configs(cell: str, count: int) -> list[Config]:
    """``count`` cases; one in 20 is long, one has many rows, one is large, the rest is small."""
    draw = random.Random(f"forms of {cell}")
    return [_draw_config(draw, cell, index) for index in range(count)]


def _draw_config(draw: random.Random, cell: str, index: int) -> Config:
    kind = {0: "long", 7: "many", 13: "large"}.get(index % 20, "small")
    form = FORMS[(index + index // 20) % len(FORMS)]
    resets = draw.choice(("none", "never", "rarely", "often", "often", "always"))
    if kind in ("long", "many") and resets in ("often", "always"):
        resets = "rarely"
    num_rows = {"long": draw.randint(1, 2), "many": draw.randint(65, 80)}.get(
        kind, draw.randint(1, 9)
    )
    num_rows = 1 if form in ("single", "single mask") else num_rows
    num_steps = {"long": draw.randint(100, 150), "many": draw.randint(2, 6)}.get(
        kind, draw.choice((1, 2, 5, 9, 9, 25))
    )
    if resets == "always":
        num_steps = min(num_steps, 9)
    with_hx = draw.random() < 0.6
    # Without a token and without states there is nothing to differentiate.
    may_be_empty = form in (*ANY_BATCH, "single mask") and (with_hx or num_rows > 1)
    num_empty = draw.randint(1, (num_rows + 1) // 2) if draw.random() < 0.4 else 0
    hidden_size = draw.choice((64, 100) if kind == "large" else (1, 2, 3, 7, 8, 17, 33))
    has_projection = cell == "lstm" and hidden_size > 1 and draw.random() < 0.3
    return Config(
        cell=cell,
        form=form,
        mask="all" if form in ("single", "full") else draw.choice(MASKS),
        resets=resets,
        input_size=draw.choice((1, 2, 3, 7, 8, 17)),
        hidden_size=hidden_size,
        proj_size=draw.randint(1, hidden_size - 1) if has_projection else 0,
        num_layers=1 if kind in ("long", "many") else draw.randint(1, 3),
        bidirectional=draw.random() < 0.5,
        bias=draw.random() < 0.7,
        batch_first=draw.random() < 0.5,
        with_hx=with_hx,
        threads=draw.choice((1, 1, 2)),
        num_rows=num_rows,
        num_steps=num_steps,
        num_empty=num_empty if may_be_empty else 0,
        seed=index,
    )


@functools.cache
def torch_results(config: Config) -> Results:
    rnn, _ = config.modules(torch.float64)
    x, states, leaves = config.data(rnn)
    return with_gradients(each_segment_alone(rnn, x, states, config.batch()), leaves)


def our_results(config: Config) -> Results:
    _, rnn = config.modules(torch.float64)
    x, states, leaves = config.data(rnn)
    call = in_form(config.form, x, config.batch(), batch_first=config.batch_first)
    return with_gradients(call(rnn, states), leaves)


GRID = {cell: draw_configs(cell, 240) for cell in CELLS}
ALL_CONFIGS = [config for configs in GRID.values() for config in configs]


def test_the_grid_has_every_form_mask_and_option_many_times() -> None:
    assert len({str(config) for config in ALL_CONFIGS}) == len(ALL_CONFIGS) >= 300
    for cell, configs in GRID.items():
        fields = ("form", "mask", "resets", "num_layers", "bidirectional", "bias", "batch_first")
        for field in (*fields, "with_hx", "threads"):
            counts = Counter(getattr(config, field) for config in configs)
            assert len(counts) >= 2
            assert min(counts.values()) >= 15, (cell, field, counts)
        assert {config.form for config in configs} == set(FORMS)
        assert {config.resets for config in configs} == set(RESETS)
        assert {config.mask for config in configs} == {"all", *MASKS}
        assert {1, 7, 17, 33, 64, 100} <= {config.hidden_size for config in configs}
        assert sum(config.proj_size > 0 for config in configs) >= (20 if cell == "lstm" else 0)
        assert sum(config.num_empty > 0 for config in configs) >= 20
        assert sum(config.num_steps == 1 for config in configs) >= 10
        assert sum(config.num_steps >= 100 for config in configs) >= 5
        assert sum(config.num_rows > 64 for config in configs) >= 5


def test_the_grid_has_what_a_layout_can_get_wrong() -> None:
    """Per cell: forms together with resets, and the places where resets are."""
    for configs in GRID.values():
        seen: Counter[str] = Counter()
        for config in configs:
            batch = config.batch()
            if batch.resets is None:
                continue
            valid, resets = batch.valid, batch.resets
            at_tokens = (valid & resets).any()
            first = valid & (valid.cumsum(1) == 1)
            last = valid & (valid.flip(1).cumsum(1).flip(1) == 1)
            seen[f"resets in {config.form}"] += bool(at_tokens)
            seen["both directions"] += bool(at_tokens and config.bidirectional)
            seen["several layers"] += bool(at_tokens and config.num_layers > 1)
            seen["not at a row's first token"] += bool((resets & valid & ~first).any())
            seen["at a row's first token, hx"] += bool((resets & first).any() and config.with_hx)
            seen["at a row's last token"] += bool((resets & last).any())
            seen["at no token"] += bool((resets & ~valid).any())
            seen["in an empty row"] += bool((resets & ~valid.any(1, keepdim=True)).any())
            seen["some rows only"] += len({bool(row.any()) for row in resets & valid}) == 2
            seen["tokens on both sides of a hole"] += bool(
                (~valid & (valid.cumsum(1) > 0) & (valid.flip(1).cumsum(1).flip(1) > 0)).any()
            )
        assert len(seen) == len(FORMS) + 9
        assert min(seen.values()) >= 5, seen


@pytest.mark.parametrize("config", ALL_CONFIGS, ids=str)
def test_outputs_states_and_gradients_are_those_of_each_segment_alone(
    config: Config, one_isa: str, restore_threads: None
) -> None:
    expected = torch_results(config)
    if HAS_EXTENSION:
        torch.set_num_threads(config.threads)
    assert_close64(our_results(config), expected)


WITHOUT_STEPS = [form for form in FORMS if form not in ("packed", "sorted")]


@pytest.mark.parametrize("kind", ["trained", "frozen", "bfloat16", "int8"])
@pytest.mark.parametrize("with_resets", [False, True], ids=["", "resets"])
@pytest.mark.parametrize("form", WITHOUT_STEPS)
@pytest.mark.parametrize("cell", CELLS)
def test_without_steps_every_row_keeps_its_states(
    cell: str, form: str, with_resets: bool, kind: str
) -> None:
    """T = 0, where torch's modules raise; a PackedSequence cannot say it."""
    theirs, rnn = pair(cell, 3, 5, 2, batch_first=True, bidirectional=True)
    num_rows = 1 if form.startswith("single") else 3
    valid = torch.zeros(num_rows, 0, dtype=torch.bool)
    x, states = torch.empty(num_rows, 0, 3), random_hx(rnn, num_rows)
    with pytest.raises(RuntimeError, match="Expected sequence length to be larger than 0"):
        theirs(x, as_hx(states))
    for state in states:
        state.requires_grad_(kind == "trained")
    weights = {"bfloat16": torch.bfloat16, "int8": torch.int8}.get(kind)
    module = rnn if kind == "trained" else freeze(rnn, weights)
    batch = Ragged(valid, valid if with_resets else None)
    out, finals = in_form(form, x, batch)(module, states)
    assert out.shape == (num_rows, 0, 10)
    for final, state in zip(finals, states, strict=True):
        assert_bitwise(final.detach(), state.detach())
    if kind == "trained":
        factors = [torch.randn_like(final) for final in finals]
        for got, factor in zip(torch.autograd.grad(finals, states, factors), factors, strict=True):
            assert_bitwise(got, factor)


@pytest.mark.parametrize("cell", CELLS)
def test_a_flat_batch_without_rows(cell: str) -> None:
    _, rnn = pair(cell, 3, 5)
    x = torch.empty(0, 3, requires_grad=True)
    out, hx = rnn(x, cu_seqlens=[0], resets=[])
    assert out.shape == (0, 5)
    assert [state.shape for state in states_of(hx)] == [(1, 0, 5)] * len(states_of(hx))
    out.sum().backward()
    assert x.grad is not None
    assert all(not p.grad.any() for p in rnn.parameters())
