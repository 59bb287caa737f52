"""A stream and what is around it: the module, refreshes, copies, autograd, autocast, modes."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import CELLS, OURS, TORCH, assert_bitwise
from streaming_cases import (
    KINDS,
    ROWS,
    SIZE,
    Layer,
    assert_equal_states,
    assert_same,
    random_x,
    states_in,
    whole,
    with_states,
)
from torch import nn
from torch.autograd import forward_ad
from torch.nn.utils import parametrizations

from varlen_rnn import StreamingRNN, convert, freeze

both_cells = pytest.mark.parametrize("cell", CELLS)
every_kind = pytest.mark.parametrize("kind", KINDS)
NO_GRADIENT = r"^StreamingRNN: .* must be used for inference alone, got a "


# The module.


@pytest.mark.filterwarnings("ignore:dropout option adds dropout after all but last")
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("classes", [TORCH, OURS], ids=["torch", "ours"])
@both_cells
def test_the_module_stays_as_it_is(
    cell: str, classes: dict[str, type[nn.RNNBase]], training: bool
) -> None:
    """Its flags and hooks play no part: no dropout, rows first."""
    rnn = classes[cell](SIZE, 17, 2, dropout=0.9, batch_first=not training).train(training)
    plain = OURS[cell](SIZE, 17, 2, batch_first=True)
    plain.load_state_dict(rnn.state_dict())
    before = {name: (id(p), p.detach().clone()) for name, p in rnn.named_parameters()}
    called: list[object] = []
    rnn.register_forward_hook(lambda *_: called.append("forward"))
    rnn.register_forward_pre_hook(lambda *_: called.append("forward pre"))
    kept = dict(vars(rnn))
    stream, x = StreamingRNN(rnn, ROWS), random_x(3)
    assert_same(torch.cat([stream(x[:, 0]).unsqueeze(1), stream(x[:, 1:])], 1), plain(x)[0])
    stream.refresh()
    assert not called
    assert type(rnn) is classes[cell]
    assert vars(rnn).keys() == kept.keys()
    assert rnn.training == training
    assert rnn.batch_first != training
    assert rnn.dropout == 0.9
    assert stream.rnn is rnn
    assert stream.num_rows == ROWS
    assert {n: id(p) for n, p in rnn.named_parameters()} == {n: i for n, (i, _) in before.items()}
    for name, parameter in rnn.named_parameters():
        assert parameter.requires_grad
        assert_bitwise(parameter.detach(), before[name][1])


@every_kind
def test_the_module_may_be_gone_elsewhere(kind: str) -> None:
    """Weights live as long as the stream, and new tensors do not lie where they did."""
    layer = Layer(cell="gru", hidden_size=40, num_layers=3, kind=kind)
    stream = StreamingRNN(layer.make()[0], ROWS)
    gc.collect()
    noise = [torch.full((120, n), torch.nan) for n in (5, 40, 41) for _ in range(20)]
    x = layer.batch([4] * ROWS)
    assert_same(stream(x), whole(layer.make()[1], x, [4] * ROWS)[0])
    assert noise[0].isnan().all()


@both_cells
def test_old_weights_are_used_until_a_refresh_which_keeps_states(cell: str) -> None:
    layer = Layer(cell=cell, num_layers=2)
    rnn, _ = layer.make()
    old, x = copy.deepcopy(rnn), random_x(9)
    stream, twin = StreamingRNN(rnn, ROWS), StreamingRNN(old, ROWS)
    assert_bitwise(stream(x[:, :3]), twin(x[:, :3]))
    with torch.no_grad():
        for weight in rnn.parameters():
            weight.mul_(-1.5)
    assert_bitwise(stream(x[:, 3:6]), twin(x[:, 3:6]))
    stream.refresh()
    assert_equal_states(stream, twin)
    got = stream(x[:, 6:])
    new = StreamingRNN(rnn, ROWS)
    new.load_state(twin.state())
    assert_bitwise(got, new(x[:, 6:]))
    assert not torch.equal(got, twin(x[:, 6:]))


@pytest.mark.parametrize("kind", KINDS[2:])
@both_cells
def test_a_frozen_layer_may_be_loaded_into_and_counts_from_a_refresh(cell: str, kind: str) -> None:
    """Its buffers are not those that a stream reads."""
    layer = Layer(cell=cell, num_layers=2, kind=kind)
    rnn, x = layer.make()[0], random_x(3)
    stream, twin = StreamingRNN(rnn, ROWS), StreamingRNN(layer.make()[0], ROWS)
    rnn.load_state_dict(layer.make(seed=1)[0].state_dict())
    assert_bitwise(stream(x), twin(x))
    stream.refresh()
    assert_equal_states(stream, twin)
    new = StreamingRNN(layer.make(seed=1)[0], ROWS)
    new.load_state(twin.state())
    assert_bitwise(stream(x), new(x))


@every_kind
@both_cells
def test_a_refresh_without_a_change_changes_nothing(cell: str, kind: str) -> None:
    stream, twin = with_states(cell, kind=kind), with_states(cell, kind=kind)
    stream.refresh()
    assert_equal_states(stream, twin)
    x = random_x(3)
    assert_bitwise(stream(x), twin(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@both_cells
def test_a_refresh_follows_the_module_to_another_dtype(cell: str, dtype: torch.dtype) -> None:
    """States are rounded to it."""
    rnn = OURS[cell](SIZE, 17, 2)
    stream, x = StreamingRNN(rnn, ROWS), random_x(3)
    stream(x)
    before = states_in(stream)
    rnn.to(dtype)
    stream.refresh()
    compute = torch.promote_types(dtype, torch.float32)
    for state, old, expected in zip(states_in(stream), before, (dtype, compute), strict=False):
        assert_bitwise(state, old.to(expected))
    twin = StreamingRNN(rnn, ROWS)
    twin.load_state(stream.state())
    assert_bitwise(stream(x.to(dtype)), twin(x.to(dtype)))
    with pytest.raises(TypeError, match=r"^StreamingRNN: x must .*, got torch.float32$"):
        stream(x)


@both_cells
def test_parametrized_weights_are_packed_as_they_are(cell: str) -> None:
    rnn = OURS[cell](SIZE, 17)
    parametrizations.weight_norm(rnn, "weight_hh_l0")
    plain = OURS[cell](SIZE, 17)
    plain.load_state_dict({name: getattr(rnn, name).detach() for name in plain.state_dict()})
    x = random_x(3)
    assert_same(StreamingRNN(rnn, ROWS)(x), StreamingRNN(plain, ROWS)(x))


@every_kind
def test_a_module_with_one_copy_of_weights_for_many_streams(kind: str) -> None:
    rnn, module = Layer(cell="lstm", kind=kind).make()
    first, second = StreamingRNN(rnn, ROWS), StreamingRNN(rnn, 1)
    x = random_x(4)
    expected, _ = whole(module, x, [4] * ROWS)
    assert_same(first(x[:, :2]), expected[:, :2])
    assert_same(second(x[:1]), expected[:1])
    assert_same(first(x[:, 2:]), expected[:, 2:])


class Recurrent(nn.LSTM):
    """Overrides nothing."""


@pytest.mark.parametrize("make_rnn", [Recurrent, lambda *a, **o: convert(Recurrent(*a, **o))])
def test_subclasses_that_override_nothing_are_taken(make_rnn: Callable[..., nn.RNNBase]) -> None:
    rnn = make_rnn(SIZE, 17)
    plain = OURS["lstm"](SIZE, 17, batch_first=True)
    plain.load_state_dict(rnn.state_dict())
    x = random_x(3)
    assert_same(StreamingRNN(rnn, ROWS)(x), plain(x)[0])


# Copies.


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, copy.copy, lambda stream: pickle.loads(pickle.dumps(stream))],
    ids=["deepcopy", "copy", "pickle"],
)
@every_kind
@both_cells
def test_copies_take_states_along_and_go_on_alone(
    cell: str, kind: str, copied: Callable[[StreamingRNN], StreamingRNN]
) -> None:
    stream, twin, x = with_states(cell, kind=kind), with_states(cell, kind=kind), random_x(3)
    stream(x)
    twin(x)
    other = copied(stream)
    assert type(other) is StreamingRNN
    assert other.num_rows == ROWS
    assert_equal_states(other, stream)
    assert_bitwise(other(x), twin(x))
    assert_equal_states(other, twin)
    other.reset()
    stream(x)
    assert_equal_states(stream, twin)


def test_deep_copies_have_weights_of_their_own() -> None:
    stream, x = with_states(), random_x(3)
    other, expected = copy.deepcopy(stream), copy.deepcopy(stream)(x)
    with torch.no_grad():
        stream.rnn.weight_hh_l0.mul_(2)
    other.refresh()
    assert_bitwise(other(x), expected)


def test_repr() -> None:
    stream = StreamingRNN(OURS["lstm"](8, 16, num_layers=2), num_rows=3)
    assert repr(stream) == "StreamingRNN(VarLenLSTM(8, 16, num_layers=2), num_rows=3)"
    stream = StreamingRNN(freeze(nn.GRU(8, 16), weights=torch.bfloat16), num_rows=1)
    weights = "weights=torch.bfloat16"
    assert repr(stream) == f"StreamingRNN(FrozenVarLenGRU(8, 16, {weights}), num_rows=1)"


# Autograd.


@pytest.mark.parametrize("rows", [None, [1, 0]], ids=str)
@pytest.mark.parametrize("steps", [(), (1,), (3,)], ids=str)
@both_cells
def test_a_backward_pass_that_comes_through_raises(
    cell: str, steps: tuple[int, ...], rows: Any
) -> None:
    stream, twin = with_states(cell), with_states(cell)
    x = random_x(*steps)[:2] if rows else random_x(*steps)
    expected = twin(x, rows)
    layer = nn.Linear(SIZE, SIZE)
    nn.init.eye_(layer.weight)
    nn.init.zeros_(layer.bias)
    out = stream(layer(x), rows)
    assert out.requires_grad
    assert_bitwise(out.detach(), expected)
    assert_equal_states(stream, twin)
    with pytest.raises(NotImplementedError, match=NO_GRADIENT + "gradient"):
        out.sum().backward()
    assert layer.weight.grad is None


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_where_nothing_is_recorded_no_output_requires_a_gradient(mode: Callable[[], Any]) -> None:
    stream, x = with_states(), random_x().requires_grad_()
    with mode():
        assert not stream(x).requires_grad
        assert not stream(x.unsqueeze(1), range(ROWS)).requires_grad
    assert not stream(x.detach()).requires_grad
    assert not any(state.requires_grad for state in states_in(stream))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # within make_dual
def test_forward_mode_is_refused_before_anything_changes() -> None:
    stream, twin, x = with_states(), with_states(), random_x()
    with forward_ad.dual_level():
        for dual in (forward_ad.make_dual(x, x), forward_ad.make_dual(x[:, None], x[:, None])):
            with pytest.raises(NotImplementedError, match=NO_GRADIENT + "tangent"):
                stream(dual)
        assert_equal_states(stream, twin)
        assert_bitwise(stream(x), twin(x))
