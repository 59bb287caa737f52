"""What holds on a CUDA device beside the values: bits, streams, graphs, and who waits for whom."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from helpers import (
    CELLS,
    assert_bitwise,
    child_environment,
    largest,
    max_error,
    random_batch,
    states_of,
)
from on_device import (
    DEVICE,
    HAS_CLUSTERS,
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
from torch.nested import nested_tensor_from_jagged

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


# What a CUDA graph can be captured of: everything is on the device, or there is nothing to say.
FORMS = ("full", "lengths", "mask", "resets", "flat", "nested")
ROWS_BEHIND_EACH_OTHER = ("flat", "nested")


def keywords_of(form: str, lengths: Tensor, steps: int) -> dict[str, Tensor]:
    """What says which tokens there are."""
    step = torch.arange(steps, device=DEVICE)
    bounds = nn.functional.pad(lengths.cumsum(0), (1, 0))
    return {
        "full": {},
        "lengths": {"lengths": lengths},
        "mask": {"mask": step < lengths[:, None]},
        "resets": {"lengths": lengths, "resets": (lengths[:, None] - step) % 5 == 0},
        "flat": {"cu_seqlens": bounds},
        "nested": {"offsets": bounds},
    }[form]


def call(
    rnn: nn.RNNBase, form: str, x: Tensor, keywords: dict[str, Tensor], *, training: bool
) -> list[Tensor]:
    """Output and final states, and with ``training`` the gradients of their sum."""
    if form == "nested":
        out, hx = rnn(nested_tensor_from_jagged(x, keywords["offsets"]))
        out = out.values()
    else:
        out, hx = rnn(x, **keywords)
    outputs = [out, *states_of(hx)]
    if not training:
        return outputs
    ones = [torch.ones_like(t) for t in outputs]
    return outputs + list(torch.autograd.grad(outputs, (x, *rnn.parameters()), ones))


@cuda_only
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["float32", "bfloat16"])
@pytest.mark.parametrize("cell", CELLS)
def test_the_host_does_not_wait(cell: str, name: str, form: str) -> None:
    if form in ROWS_BEHIND_EACH_OTHER and not (HAS_CLUSTERS and name in PERSISTENT):
        pytest.skip("the generic path asks the device how many steps there are")
    rnn = module(cell, name, 24, 64, bidirectional=True, batch_first=True)
    lengths = torch.tensor(LENGTHS, device=DEVICE)
    steps = max(LENGTHS)
    keywords = keywords_of(form, lengths, steps)
    leading = (sum(LENGTHS),) if form in ROWS_BEHIND_EACH_OTHER else (len(LENGTHS), steps)
    x = torch.randn(*leading, 24, device=DEVICE).to(rnn.weight_ih_l0.dtype).requires_grad_()
    with precision(name):
        call(rnn, form, x, keywords, training=True)  # cuBLAS makes its handle
        with no_synchronization():
            call(rnn, form, x, keywords, training=True)
            with torch.no_grad():
                call(rnn, form, x, keywords, training=False)


def warm_up(run: Callable[[], object]) -> None:
    """As torch wants it before a graph is captured."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)


def capture(run: Callable[[], list[Tensor]]) -> tuple[torch.cuda.CUDAGraph, list[Tensor]]:
    """The graph, and where its replays leave their results."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run()
    return graph, results


def assert_all_near(got: list[Tensor], expected: list[Tensor], name: str) -> None:
    for index, (result, truth) in enumerate(zip(got, expected, strict=True)):
        error, scale = max_error(result.detach(), truth.detach()), largest(truth.detach())
        assert error <= PRECISIONS[name][2] * scale, f"result {index}: {error:.3g} at {scale:.3g}"


@cuda_only
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["float32", "bfloat16"])
@pytest.mark.parametrize("cell", CELLS)
def test_a_captured_graph_takes_other_lengths(
    cell: str, name: str, form: str, training: bool
) -> None:
    """And other tokens."""
    rnn = module(cell, name, 24, 64, bidirectional=True, batch_first=True)
    rows, steps, tokens = 40, 20, 300

    def drawn(seed: int) -> tuple[Tensor, dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        if form in ROWS_BEHIND_EACH_OTHER:
            lengths = torch.randint(rows, (tokens,), generator=generator).bincount(minlength=rows)
            x = torch.randn(tokens, 24, generator=generator)
        else:
            lengths = torch.randint(0, steps + 1, (rows,), generator=generator)
            x = torch.randn(rows, steps, 24, generator=generator)
        keywords = keywords_of(form, lengths.to(DEVICE), steps)
        return x.to(DEVICE, rnn.weight_ih_l0.dtype), keywords

    x, keywords = drawn(0)
    x.requires_grad_(training)

    def run() -> list[Tensor]:
        return call(rnn, form, x, keywords, training=training)

    with precision(name), torch.set_grad_enabled(training):
        warm_up(run)
        graph, results = capture(run)
        for seed in (1, 2, 3):
            new_x, new_keywords = drawn(seed)
            with torch.no_grad():
                x.copy_(new_x)
                for what, values in new_keywords.items():
                    keywords[what].copy_(values)
            graph.replay()
            assert_all_near(results, run(), name)


def capture_first(cell: str, name: str) -> None:
    """Captures the first call of all in this process, but for torch's own products."""
    rnn = module(cell, name, 24, 64, bidirectional=True, batch_first=True)
    x = random_batch(rnn, len(LENGTHS), max(LENGTHS)).to(DEVICE)
    lengths = torch.tensor(LENGTHS, device=DEVICE)
    assert (x[0] @ x[0].T).isfinite().all()  # cuBLAS makes its handle
    with precision(name), torch.no_grad():
        graph, results = capture(
            lambda: call(rnn, "lengths", x, {"lengths": lengths}, training=False)
        )
        graph.replay()
        expected = call(rnn, "lengths", x, {"lengths": lengths}, training=False)
    assert_all_near(results, expected, name)


@cuda_only
@pytest.mark.parametrize("name", ["float32", "bfloat16"])
@pytest.mark.parametrize("cell", CELLS)
def test_the_first_call_of_a_process_can_be_captured(cell: str, name: str) -> None:
    """Nothing that is set up once, such as a kernel's shared memory, is forbidden in a capture."""
    code = f"import test_device_contract as t; t.capture_first({cell!r}, {name!r})"
    child = subprocess.run(
        [sys.executable, "-c", code],
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert child.returncode == 0, child.stderr


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
