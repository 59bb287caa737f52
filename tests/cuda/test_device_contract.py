"""What holds on a CUDA device beside the values: bits, streams, and a host that does not wait."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from helpers import CELLS, assert_bitwise, largest, max_error, random_batch, states_of
from on_device import (
    DEVICE,
    LENGTHS,
    ON_CUDA,
    PERSISTENT,
    PRECISIONS,
    cuda_only,
    module,
    needs_device,
    persistent_only,
    precision,
    run_with_gradients,
)
from torch import Tensor, nn

pytestmark = needs_device


def exact_layer(cell: str, name: str, hidden_size: int) -> nn.RNNBase:
    """Both directions, with weights of the input such that its products are exact in any order.

    So whatever cuBLAS does with another number of tokens, the recurrence starts from the same bits.
    """
    rnn = module(cell, name, 16, hidden_size, bidirectional=True, batch_first=True)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter_name, parameter in rnn.named_parameters():
            if "hh" not in parameter_name or "bias" in parameter_name:
                whole = torch.randint(-8, 9, parameter.shape, generator=generator)
                parameter.copy_(whole / 32)
    return rnn


def exact_batch(rnn: nn.RNNBase, rows: int, steps: int) -> Tensor:
    generator = torch.Generator().manual_seed(8)
    whole = torch.randint(-2, 3, (rows, steps, rnn.input_size), generator=generator)
    return (whole / 2).to(DEVICE, rnn.weight_ih_l0.dtype)


@persistent_only
@pytest.mark.parametrize("hidden_size", [64, 256, 512])
@pytest.mark.parametrize("name", PERSISTENT)
@pytest.mark.parametrize("cell", CELLS)
def test_a_row_does_not_depend_on_its_batch(cell: str, name: str, hidden_size: int) -> None:
    """To the bit, alone and among others, in another order, and in more rows than slots."""
    rnn = exact_layer(cell, name, hidden_size)
    generator = torch.Generator().manual_seed(9)
    lengths = torch.randint(1, 40, (300 if ON_CUDA else 12,), generator=generator)
    x = exact_batch(rnn, len(lengths), 40)
    order = torch.randperm(len(lengths), generator=generator)
    with precision(name), torch.no_grad():
        out, hx = rnn(x, lengths=lengths.to(DEVICE))
        shuffled, shuffled_hx = rnn(x[order.to(DEVICE)], lengths=lengths[order].to(DEVICE))
        assert_bitwise(shuffled, out[order.to(DEVICE)], "shuffled")
        for got, truth in zip(states_of(shuffled_hx), states_of(hx), strict=True):
            assert_bitwise(got, truth[:, order.to(DEVICE)], "shuffled states")
        for row in (0, 3, len(lengths) - 1):
            length = int(lengths[row])
            alone, alone_hx = rnn(x[row : row + 1, :length])
            assert_bitwise(alone[0], out[row, :length], f"row {row}")
            for got, truth in zip(states_of(alone_hx), states_of(hx), strict=True):
                assert_bitwise(got[:, 0], truth[:, row], f"states of row {row}")


@pytest.mark.parametrize("name", PRECISIONS)
@pytest.mark.parametrize("cell", CELLS)
def test_a_second_run_gives_the_same_bits(cell: str, name: str) -> None:
    rnn = module(cell, name, 24, 64, num_layers=2, bidirectional=True, batch_first=True)
    lengths = torch.tensor(LENGTHS * 10, device=DEVICE)

    def call(x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        out, hx = rnn(x, lengths=lengths)
        return out, states_of(hx)

    x = random_batch(rnn, len(lengths), max(LENGTHS)).to(DEVICE)
    with precision(name):
        first, second = (run_with_gradients(rnn, x, [], call) for _ in range(2))
    for what, truth in first.items():
        assert_bitwise(second[what], truth, what)


@contextmanager
def no_synchronization() -> Iterator[None]:
    """torch raises an error wherever the host would wait for the device."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def keywords_of(form: str, lengths: Tensor, steps: int) -> dict[str, Tensor]:
    """All on the device."""
    mask = torch.arange(steps, device=DEVICE) < lengths[:, None]
    return {
        "lengths": {"lengths": lengths},
        "mask": {"mask": mask},
        "resets": {"lengths": lengths, "resets": ~mask},
        "flat": {"cu_seqlens": torch.nn.functional.pad(lengths.cumsum(0), (1, 0))},
    }[form]


@cuda_only
@pytest.mark.parametrize("form", ["lengths", "mask", "resets", "flat"])
@pytest.mark.parametrize("name", ["float32", "bfloat16"])
@pytest.mark.parametrize("cell", CELLS)
def test_the_host_does_not_wait(cell: str, name: str, form: str) -> None:
    rnn = module(cell, name, 24, 64, bidirectional=True, batch_first=True)
    lengths = torch.tensor(LENGTHS, device=DEVICE)
    steps = max(LENGTHS)
    keywords = keywords_of(form, lengths, steps)
    shape = (sum(LENGTHS), 24) if form == "flat" else (len(LENGTHS), steps, 24)
    x = torch.randn(shape, device=DEVICE).to(rnn.weight_ih_l0.dtype).requires_grad_()
    ones = torch.ones((*shape[:-1], 128), device=DEVICE, dtype=x.dtype)
    leaves = (x, *rnn.parameters())
    with precision(name):
        torch.autograd.grad(rnn(x, **keywords)[0], leaves, ones)  # cuBLAS makes its handle
        with no_synchronization():
            torch.autograd.grad(rnn(x, **keywords)[0], leaves, ones)
            with torch.no_grad():
                rnn(x, **keywords)


@cuda_only
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("name", ["float32", "bfloat16"])
@pytest.mark.parametrize("cell", CELLS)
def test_a_captured_graph_takes_other_lengths(cell: str, name: str, training: bool) -> None:
    rnn = module(cell, name, 24, 64, bidirectional=True, batch_first=True)
    rows, steps = 40, 20
    x = random_batch(rnn, rows, steps).to(DEVICE).requires_grad_(training)
    lengths = torch.full((rows,), steps, device=DEVICE)
    leaves = (x, *rnn.parameters())

    def call() -> list[Tensor]:
        out, hx = rnn(x, lengths=lengths)
        outputs = [out, *states_of(hx)]
        if not training:
            return outputs
        return outputs + list(
            torch.autograd.grad(outputs, leaves, list(map(torch.ones_like, outputs)))
        )

    with precision(name), torch.set_grad_enabled(training):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = call()
        for seed in range(3):
            generator = torch.Generator().manual_seed(seed)
            with torch.no_grad():
                lengths.copy_(torch.randint(0, steps + 1, (rows,), generator=generator))
                x.copy_(torch.randn(x.shape, generator=generator))
            graph.replay()
            got = [t.detach().clone() for t in captured]
            for index, truth in enumerate(call()):
                error, scale = max_error(got[index], truth), largest(truth)
                assert error <= PRECISIONS[name][2] * scale, f"result {index}, seed {seed}"


@cuda_only
def test_a_stream_of_the_callers_own() -> None:
    """What was queued on that stream before is waited for, and nothing else is."""
    rnn = module("lstm", "bfloat16", 24, 64, batch_first=True)
    x = random_batch(rnn, 8, 30).to(DEVICE)
    lengths = torch.arange(1, 9, device=DEVICE)
    with torch.no_grad():
        expected = rnn(x, lengths=lengths)[0]
        late = torch.zeros_like(x)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            torch.cuda._sleep(20_000_000)
            late.copy_(x)
            got = rnn(late, lengths=lengths)[0]
        stream.synchronize()
    assert_bitwise(got, expected)
