"""Streams in what torch may be in: inference mode, autocast, defaults, devices, recorders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import CELLS, HAS_EXTENSION, OURS, assert_bitwise
from streaming_cases import (
    ROWS,
    SIZE,
    assert_equal_states,
    make,
    random_x,
    states_in,
    with_states,
)
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from varlen_rnn import StreamingRNN

both_cells = pytest.mark.parametrize("cell", CELLS)
compiled = pytest.mark.skipif(not HAS_EXTENSION, reason="without it, calls go through the module")


@both_cells
def test_inference_mode_may_come_and_go(cell: str) -> None:
    """Tensors that were made in it cannot be changed outside by torch's own operations."""
    rnn, x, twin = OURS[cell](SIZE, 17, 2), random_x(), StreamingRNN(OURS[cell](SIZE, 17, 2), ROWS)
    twin.rnn.load_state_dict(rnn.state_dict())
    twin.refresh()
    with torch.inference_mode():
        stream, inner = StreamingRNN(rnn, ROWS), x.clone()
        assert_bitwise(stream(inner).clone(), twin(x))
        state, out, apart = stream.state(), torch.empty(ROWS, 17), torch.empty(ROWS, 34)[:, ::2]
    assert_bitwise(stream(x), twin(x))
    assert_bitwise(stream(inner), twin(x))
    stream.load_state(state)
    twin.load_state(state)
    with torch.inference_mode():
        assert_bitwise(stream(x).clone(), twin(x))
        for given in (out, apart):
            assert stream(inner, out=given) is given
            assert_bitwise(given.clone(), twin(x))
        stream.reset([1])
        twin.reset([1])
        stream.refresh()
    assert_bitwise(stream(x[[2, 1]], [2, 1]), twin(x[[2, 1]], [2, 1]))
    assert_equal_states(stream, twin)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
@both_cells
def test_autocast_turns_x_into_the_layer_s_dtype(
    cell: str, given: torch.dtype, dtype: torch.dtype
) -> None:
    stream, twin = with_states(cell, dtype=dtype), with_states(cell, dtype=dtype)
    for x in (random_x().to(given), random_x(3).to(given)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = stream(x)
        assert_bitwise(out, twin(x.to(dtype)))
        written = torch.empty_like(out)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert stream(x, out=written) is written
        assert_bitwise(written, twin(x.to(dtype)))
    assert_equal_states(stream, twin)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        stream.refresh()
    assert_equal_states(stream, twin)


@compiled
def test_torch_s_default_dtype_and_device_play_no_part() -> None:
    stream, twin, x, rows = with_states(), with_states(), random_x(), [2, 0]
    with torch.device("meta"):
        out = stream(x)
        out_of_rows = stream(x[:2], rows)
        state = stream.state(rows)
        stream.load_state(state, rows)
        stream.refresh()
    assert_bitwise(out, twin(x))
    assert_bitwise(out_of_rows, twin(x[:2], rows))
    assert_equal_states(stream, twin)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert_bitwise(stream(x), twin(x))
        assert all(state.dtype == torch.float32 for state in states_in(stream))
        assert StreamingRNN(stream.rnn, ROWS)(x).dtype == torch.float32
    finally:
        torch.set_default_dtype(before)


@both_cells
def test_other_devices_go_through_the_module(cell: str) -> None:
    rnn = OURS[cell](SIZE, 17, 2, device="meta")
    stream, x = StreamingRNN(rnn, ROWS), torch.empty(ROWS, SIZE, device="meta")
    assert stream(x).shape == (ROWS, 17)
    assert stream(x[:2].unsqueeze(1), [3, 1]).shape == (2, 1, 17)
    stream.reset([0])
    stream.load_state(stream.state([1, 0]), [2, 3])
    assert all(state.is_meta for state in states_in(stream))


@compiled
@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace the builtin")
@both_cells
def test_streams_run_within_torch_compile(cell: str) -> None:
    """A compiler leaves a stream's calls to Python, and their order as it is."""
    stream, twin = make(cell), make(cell)

    @torch.compile(backend="eager")
    def step(x: Tensor) -> Tensor:
        return stream(x * 2) + 1

    for x in random_x(3).unbind(1):
        assert_bitwise(step(x), twin(x * 2) + 1)
    assert_equal_states(stream, twin)


def traced(step: Callable[[Tensor], Tensor], x: Tensor) -> object:
    return torch.jit.trace(step, (x,), check_trace=False)


def exported(step: Callable[[Tensor], Tensor], x: Tensor) -> object:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return step(x)

    return torch.export.export(Model(), (x,))


def through_make_fx(step: Callable[[Tensor], Tensor], x: Tensor) -> object:
    return make_fx(step)(x)


def through_fake_tensors(step: Callable[[Tensor], Tensor], x: Tensor) -> object:
    with FakeTensorMode(allow_non_fake_inputs=True):
        return step(x)


@compiled
@pytest.mark.filterwarnings("ignore:.*torch.jit.* is (deprecated|not supported)")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("rows", [None, [1, 0, 3, 2]], ids=str)
@pytest.mark.parametrize("record", [traced, exported, through_make_fx, through_fake_tensors])
def test_recorded_calls_are_refused(record: Callable[..., Any], rows: Any) -> None:
    """A record would hold whatever lay in the output's memory."""
    stream, twin = with_states(), with_states()
    for steps in ((), (3,)):
        x = random_x(*steps)
        with pytest.raises(NotImplementedError, match=r"^StreamingRNN: a call must run, got one"):
            record(lambda x: stream(x, rows), x)
    assert_equal_states(stream, twin)
    assert_bitwise(stream(x), twin(x))
