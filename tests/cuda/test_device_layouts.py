"""Layouts that are made on a CUDA device, and what is kept of them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from helpers import CELLS, assert_bitwise, random_batch, states_of
from layout_rows import Rows, assert_same, draw_flags, draw_rows, specified
from on_device import DEVICE, LENGTHS, ON_CUDA, cuda_only, module, needs_device
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from varlen_rnn.layout import Layout

pytestmark = needs_device


def check(rows: Rows) -> None:
    names = ("lengths", "first", "mask", "resets")
    given = {name: getattr(rows, name) for name in names}
    there = replace(rows, **{n: None if t is None else t.to(DEVICE) for n, t in given.items()})
    arrays = torch.ops.varlen_rnn.layout_from_rows(
        there.positions.to(DEVICE), *there.which, there.batch_first, True, True
    )
    assert_same(Layout(*(array.cpu() for array in arrays)).exact(), specified(rows).exact())


def test_drawn_batches() -> None:
    draw = random.Random(0)
    for _ in range(100):
        check(draw_rows(draw, draw.randint(0, 40), draw.choice((0, 1, 2, 7, 40, 300))))


def test_many_rows_and_many_segments() -> None:
    draw = random.Random(1)
    lengths = torch.tensor([draw.choice((0, 1, 3, 17, 40)) for _ in range(2000)])
    lengths[7] = 3000
    first, num_tokens = lengths.cumsum(0) - lengths, int(lengths.sum())
    check(Rows(2000, num_tokens, lengths, first))
    check(Rows(2000, num_tokens, lengths, first, resets=draw_flags(draw, num_tokens, 0.1)))
    check(Rows(2000, 40, lengths.clamp(max=40), mask=draw_flags(draw, 80000, 0.7)))


@pytest.fixture
def _nothing_kept() -> Iterator[None]:
    if ON_CUDA:
        from varlen_rnn import _C_cuda

        _C_cuda.clear_plans()
    yield
    if ON_CUDA:
        _C_cuda.clear_plans()


def gradients(rnn: nn.RNNBase, *outputs: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad([t.double().sum() for t in outputs], list(rnn.parameters())))


def assert_all_same(got: list[Tensor], expected: list[Tensor]) -> None:
    for index, (tensor, truth) in enumerate(zip(got, expected, strict=True)):
        assert_bitwise(tensor, truth, f"result {index}")


@pytest.mark.usefixtures("_nothing_kept")
@pytest.mark.parametrize("name", ["float32", "bfloat16"])
@pytest.mark.parametrize("cell", CELLS)
def test_lengths_and_indices_may_change_in_place(cell: str, name: str) -> None:
    """Between two calls; what was kept of the first is not taken for the second."""
    rnn = module(cell, name, 24, 64, num_layers=2, batch_first=True)
    x = random_batch(rnn, len(LENGTHS), max(LENGTHS)).to(DEVICE)
    orders = [torch.arange(len(LENGTHS)), torch.arange(len(LENGTHS)).flip(0)]
    lengths = torch.tensor(LENGTHS, device=DEVICE)

    def padded() -> list[Tensor]:
        out, hx = rnn(x, lengths=lengths)
        return [out, *states_of(hx), *gradients(rnn, out, *states_of(hx))]

    rows = pack_padded_sequence(x[:, :9], [9, 4, 4, 2, 2, 1, 1], batch_first=True)
    sorted_indices, unsorted_indices = (torch.arange(7, device=DEVICE) for _ in range(2))
    packed = PackedSequence(rows.data, rows.batch_sizes, sorted_indices, unsorted_indices)

    def of_packed() -> list[Tensor]:
        out, hx = rnn(packed)
        return [out.data, *states_of(hx), *gradients(rnn, out.data, *states_of(hx))]

    for order in (*orders, *orders):
        lengths.copy_(torch.tensor(LENGTHS)[order])
        sorted_indices.copy_(order)
        unsorted_indices.copy_(order.argsort())
        got = padded(), of_packed()
        if ON_CUDA:
            from varlen_rnn import _C_cuda

            assert _C_cuda.num_kept_layouts() > 0
            _C_cuda.clear_plans()
        for results, anew in zip(got, (padded(), of_packed()), strict=True):
            assert_all_same(results, anew)


@cuda_only
@pytest.mark.usefixtures("_nothing_kept")
def test_nothing_is_kept_of_a_captured_or_compiled_call() -> None:
    from varlen_rnn import _C_cuda

    rnn = module("lstm", "bfloat16", 24, 64, batch_first=True)
    x = random_batch(rnn, len(LENGTHS), max(LENGTHS)).to(DEVICE)
    lengths = torch.tensor(LENGTHS, device=DEVICE)
    compiled = torch.compile(rnn, fullgraph=True)
    with torch.no_grad():
        compiled(x, lengths=lengths)
        assert _C_cuda.num_kept_layouts() == 0
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            rnn(x, lengths=lengths)
        assert _C_cuda.num_kept_layouts() == 0
        rnn(x, lengths=lengths)
        assert _C_cuda.num_kept_layouts() == 1
