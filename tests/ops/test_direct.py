"""Calls of a few tokens that go past torch's dispatcher: the same bits, and which may not go so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import (
    CELLS,
    FROZEN_KINDS,
    HAS_EXTENSION,
    OURS,
    as_hx,
    assert_bitwise,
    dtype_of,
    random_hx,
)
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.func import functional_call, vmap
from torch.nn.utils import parametrizations, prune
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from varlen_rnn import VarLenGRU, VarLenLSTM, freeze
from varlen_rnn.ops import direct

pytestmark = pytest.mark.skipif(not HAS_EXTENSION, reason="there are no compiled kernels")

KINDS: dict[str, Callable[..., nn.RNNBase]] = {
    **{
        f"trained {dtype}".replace("torch.", ""): lambda rnn, dtype=dtype: rnn.to(dtype)
        for dtype in direct.DTYPES
    },
    **{
        f"frozen {name}": lambda rnn, kind=kind: freeze(rnn.to(kind[0]), kind[1])
        for name, kind in FROZEN_KINDS.items()
    },
}
both_cells = pytest.mark.parametrize("cell", CELLS)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with every direct call."""
    seen: list[int] = []
    run = direct._C.run_layers

    def counted(*args: Any) -> None:
        seen.append(len(seen))
        run(*args)

    monkeypatch.setattr(direct._C, "run_layers", counted)
    return seen


def by_ops(call: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    with monkeypatch.context() as patch:
        patch.setattr(direct, "runs", lambda _: False)
        return call()


def assert_same(got: Any, expected: Any, name: str = "") -> None:
    for ours, truth in zip(tree_leaves(got), tree_leaves(expected), strict=True):
        assert_bitwise(ours.detach().clone(), truth.detach().clone(), name)


@pytest.mark.parametrize("kind", KINDS)
@both_cells
def test_the_bits_are_those_of_the_ops(
    cell: str,
    kind: str,
    isa: str,
    calls: list[int],
    monkeypatch: pytest.MonkeyPatch,
    restore_threads: None,
) -> None:
    count = 0
    for options in (
        {"input_size": 1, "hidden_size": 1, "batch_first": True},
        {"input_size": 17, "hidden_size": 65, "num_layers": 3, "bias": False},
        {"input_size": 33, "hidden_size": 33, "num_layers": 2, "batch_first": True},
        {"input_size": 5, "hidden_size": 260},
    ):
        rnn = KINDS[kind](OURS[cell](**options)).requires_grad_(False)
        for num_rows, num_steps in ((1, 1), (1, 7), (7, 1), (5, 3), (64, 1), (2, 32)):
            shape = (num_rows, num_steps) if rnn.batch_first else (num_steps, num_rows)
            x = torch.randn(*shape, rnn.input_size).to(dtype_of(rnn))
            torch.set_num_threads(1 + num_rows % 2)
            for hx in (as_hx(random_hx(rnn, num_rows)), None):
                count += 1
                expected = by_ops(lambda rnn=rnn, x=x, hx=hx: rnn(x, hx), monkeypatch)
                assert_same(rnn(x, hx), expected, f"{options}, {shape}")
    assert len(calls) == count


def test_what_is_given_and_what_comes_out_share_no_memory(calls: list[int]) -> None:
    rnn, x = VarLenLSTM(3, 3).requires_grad_(False), torch.randn(2, 1, 3)
    hx = torch.randn(1, 1, 3), torch.randn(1, 1, 3)
    before = [t.clone() for t in (x, *hx)]
    results = tree_leaves(rnn(x, hx))
    assert len({t.data_ptr() for t in (x, *hx, *results)}) == 6
    for result in results:
        result.fill_(7)
    assert_same((x, *hx), before)
    assert len(calls) == 1


class Wrapped(Tensor):
    """Its values are elsewhere, as those of distributed and quantised tensors are."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> Wrapped:
        wrapped = Tensor._make_wrapper_subclass(cls, values.shape, dtype=values.dtype)
        wrapped.values = values
        return wrapped

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = tree_map(lambda t: t.values if isinstance(t, Wrapped) else t, (args, kwargs or {}))
        return func(*given[0], **given[1])


class Dispatched(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen = True
        return func(*args, **(kwargs or {}))


class Called(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen = True
        return func(*args, **(kwargs or {}))


def in_mode(make: Callable[[], Any]) -> Callable[[nn.Module, Tensor], Any]:
    def call(rnn: nn.Module, x: Tensor) -> Any:
        with make() as mode:
            result = rnn(x)
        if mode is not None:
            assert mode.seen
        return result

    return call


def profiled(rnn: nn.Module, x: Tensor) -> Any:
    with torch.profiler.profile() as profile:
        result = rnn(x)
    assert any("varlen_rnn::lstm" in event.name for event in profile.events())
    return result


def with_wrapped_weights(rnn: nn.Module, x: Tensor) -> Any:
    weights = {name: Wrapped(weight.detach()) for name, weight in rnn.named_parameters()}
    return functional_call(rnn, weights, (x,))


def strided(x: Tensor) -> Tensor:
    return torch.stack([x, x], -1)[..., 0]


# By what has to see the call, or to decide how it is run.
USUAL: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "lengths": lambda rnn, x: rnn(x, lengths=[5, 5]),
    "mask": lambda rnn, x: rnn(x, mask=torch.ones(5, 2, dtype=torch.bool)),
    "resets": lambda rnn, x: rnn(x, resets=torch.zeros(5, 2, dtype=torch.bool)),
    "strides": lambda rnn, x: rnn(strided(x)),
    "states with strides": lambda rnn, x: rnn(x, (strided(torch.zeros(1, 2, 3)),) * 2),
    "a gradient of x": lambda rnn, x: rnn(x.clone().requires_grad_()),
    "a gradient of a state": lambda rnn, x: rnn(
        x, (torch.zeros(1, 2, 3, requires_grad=True), torch.zeros(1, 2, 3))
    ),
    "a gradient of weights": lambda rnn, x: functional_call(
        rnn, {"bias_hh_l0": rnn.bias_hh_l0.clone().requires_grad_()}, (x,)
    ),
    "vmap": lambda rnn, x: vmap(lambda x: rnn(x)[0])(x[None])[0],
    "a dispatch mode": in_mode(Dispatched),
    "a function mode": in_mode(Called),
    "the profiler": profiled,
    "wrapped weights": with_wrapped_weights,
    "weights with strides": lambda rnn, x: functional_call(
        rnn, {"weight_hh_l0": rnn.weight_hh_l0.t().contiguous().t()}, (x,)
    ),
}


@pytest.mark.parametrize("what", USUAL)
def test_what_goes_the_usual_way(
    what: str, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    rnn, x = VarLenLSTM(3, 3).requires_grad_(False), torch.randn(5, 2, 3)
    got = USUAL[what](rnn, x)
    assert calls == []
    expected = by_ops(lambda: rnn(x), monkeypatch)
    if what == "vmap":  # by the reference
        torch.testing.assert_close(got, expected[0], rtol=0, atol=1e-5)
    else:
        assert_same(got, expected, what)
    assert_same(rnn(x), expected)
    assert len(calls) == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: VarLenLSTM(3, 4, bidirectional=True),
        lambda: VarLenLSTM(3, 4, proj_size=2),
        lambda: VarLenGRU(3, 4, 2, dropout=0.5),
        lambda: parametrizations.weight_norm(VarLenGRU(3, 4), "weight_hh_l0"),
        lambda: prune.l1_unstructured(VarLenGRU(3, 4), "weight_hh_l0", 3),
        lambda: freeze(VarLenLSTM(3, 4, bidirectional=True)),
    ],
)
def test_layers_that_go_the_usual_way(
    make: Callable[[], nn.RNNBase], calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    rnn, x = make().requires_grad_(False), torch.randn(5, 2, 3)
    torch.manual_seed(3)
    got = rnn(x)
    torch.manual_seed(3)
    assert_same(got, by_ops(lambda: rnn(x), monkeypatch))
    assert calls == []


def test_as_many_tokens_go_directly_as_are_worth_it(calls: list[int]) -> None:
    rnn = VarLenGRU(3, 4).requires_grad_(False)
    for num_rows, num_steps in ((direct.MAX_TOKENS + 1, 1), (3, 22), (0, 3), (3, 0)):
        rnn(torch.randn(num_steps, num_rows, 3))
    rnn(torch.randn(5, 3))
    assert calls == []
    rnn(torch.randn(1, direct.MAX_TOKENS, 3))
    assert calls == [0]


def test_weights_that_want_a_gradient_go_directly_where_nothing_is_recorded(
    calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    rnn, x = VarLenGRU(3, 4), torch.randn(5, 2, 3)
    expected = rnn(x)
    assert calls == []
    assert expected[0].requires_grad
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert_same(rnn(x.requires_grad_(False)), expected)
    assert len(calls) == 2


@pytest.mark.filterwarnings("ignore:.*torch.jit.* is (deprecated|not supported)")
def test_autocast_and_traced_calls_go_the_usual_way(calls: list[int]) -> None:
    rnn, x = VarLenGRU(3, 4).requires_grad_(False), torch.randn(5, 2, 3)
    with torch.autocast("cpu"):
        assert rnn(x)[0].dtype == torch.bfloat16
    compiled = torch.compile(rnn, fullgraph=True, backend="eager")
    assert_same(compiled(x), torch.export.export(rnn, (x,)).module()(x))
    assert calls == []
    traced = torch.jit.trace(rnn, (x,))  # which calls the layer itself, too, to compare
    for other in (x, torch.randn(2, 3, 3)):
        assert_same(traced(other), rnn(other))
        assert_same(compiled(other), rnn(other))
    torch._dynamo.reset()


def test_the_number_of_tokens_makes_no_graph_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    rnn = VarLenGRU(3, 4).requires_grad_(False)

    def graphs() -> int:
        torch._dynamo.reset()
        counter = CompileCounter()
        compiled = torch.compile(rnn, backend=counter, fullgraph=True, dynamic=True)
        for num_rows, num_steps in ((2, 3), (5, 4), (30, 7), (50, 9)):
            compiled(torch.randn(num_steps, num_rows, 3))
        return int(counter.frame_count)

    assert graphs() == by_ops(graphs, monkeypatch)
    torch._dynamo.reset()


# What is wrong says so as it does in a call of many tokens.
WRONG: list[Callable[[nn.Module, Tensor], Any]] = [
    *(
        lambda rnn, x, dtype=dtype: rnn(x.to(dtype))
        for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64)
    ),
    lambda rnn, x: rnn(x[..., :2].contiguous()),
    lambda rnn, x: rnn(x, torch.zeros(1, 2, 5).to(x.dtype)),
    lambda rnn, x: rnn(x, torch.zeros(1, 3, 4).to(x.dtype)),
    lambda rnn, x: rnn(x, torch.zeros(2, 2, 4).to(x.dtype)),
    lambda rnn, x: rnn(x, (torch.zeros(1, 2, 4).to(x.dtype),) * 2),
    lambda rnn, x: rnn(x, (torch.zeros(1, 2, 4).to(x.dtype), torch.zeros(1, 2, 5).to(x.dtype))),
    lambda rnn, x: rnn(x, (torch.zeros(1, 2, 4).double(),) * 2),
    lambda rnn, x: rnn(x, torch.zeros(1, 2, 4).int()),
    lambda rnn, x: rnn(x, (torch.zeros(1, 2, 4).to(x.dtype),)),
    lambda rnn, x: rnn(x, ()),
    lambda rnn, x: rnn(x, 3),
    lambda rnn, x: rnn(x, torch.zeros(1, 2, 4, device="meta", dtype=x.dtype)),
]


@pytest.mark.parametrize("kind", KINDS)
@both_cells
def test_what_is_wrong_is_the_same_error(
    cell: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rnn = KINDS[kind](OURS[cell](3, 4)).requires_grad_(False)
    x = torch.randn(5, 2, 3).to(dtype_of(rnn))
    errors = 0
    for wrong in WRONG:
        got = outcome(rnn, x, wrong)
        assert got == by_ops(lambda wrong=wrong: outcome(rnn, x, wrong), monkeypatch)
        errors += isinstance(got, str)
    # One type of x is right, and so may a state be: for this cell, and this type.
    assert errors >= len(WRONG) - 4


def outcome(rnn: nn.Module, x: Tensor, call: Callable[[nn.Module, Tensor], Any]) -> Any:
    """The types of the results, or the error."""
    try:
        return [result.dtype for result in tree_leaves(call(rnn, x))]
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"


@pytest.mark.parametrize("changed", ["shape", "dtype", "missing"])
@pytest.mark.parametrize("kind", ["frozen float32", "frozen int8", "trained float32"])
def test_weights_that_do_not_fit_are_the_same_error(
    kind: str, changed: str, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    rnn = KINDS[kind](VarLenLSTM(3, 4, 2)).requires_grad_(False)
    x = torch.randn(5, 2, 3)
    change: Callable[[Tensor], Tensor] = {
        "shape": lambda w: w[..., :1].clone(),
        "dtype": lambda w: w.to(torch.float16),
        "missing": lambda w: w,
    }[changed]
    weights = rnn._parameters if kind.startswith("trained") else rnn._buffers
    for name in ("weight_hh_l1", "bias_ih_l0"):
        given = weights.pop(name)
        if changed != "missing":
            broken = change(given)
            weights[name] = nn.Parameter(broken, False) if type(given) is nn.Parameter else broken
        got = outcome(rnn, x, lambda rnn, x: rnn(x))
        assert got == by_ops(lambda: outcome(rnn, x, lambda rnn, x: rnn(x)), monkeypatch)
        assert isinstance(got, str)
        weights[name] = given
    assert calls == []
    rnn(x)
    assert len(calls) == 1
