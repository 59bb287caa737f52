"""What one instruction set has frozen, another one runs, loads, and has in its own order then."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FLOAT_ISAS
from fresh_process import run_python
from helpers import (
    CELLS,
    FROZEN,
    FROZEN_KINDS,
    HAS_EXTENSION,
    OURS,
    as_hx,
    assert_bitwise,
    random_batch,
    random_hx,
)
from torch import Tensor, nn

from varlen_rnn import freeze
from varlen_rnn.runtime import extension

if HAS_EXTENSION:
    from varlen_rnn import _C

pytestmark = pytest.mark.skipif(not HAS_EXTENSION, reason="there is one order")

LENGTHS = torch.tensor([4, 0, 6, 1])
every_kind = pytest.mark.parametrize("kind", FROZEN_KINDS)
both_cells = pytest.mark.parametrize("cell", CELLS)
every_pair = pytest.mark.parametrize(
    ("before", "after"),
    [pytest.param(*pair, id="-".join(pair)) for pair in itertools.permutations(FLOAT_ISAS, 2)],
)


@pytest.fixture(autouse=True)
def restore_isa() -> Iterator[None]:
    isa = _C.cpu_isa()
    yield
    _C.set_cpu_isa(isa)


def options_of(cell: str, kind: str) -> dict[str, Any]:
    projects = cell == "lstm" and kind != "int8"
    return {"bidirectional": True, "batch_first": True} | ({"proj_size": 5} if projects else {})


def make(cell: str, kind: str) -> nn.RNNBase:
    torch.manual_seed(0)
    return OURS[cell](7, 19, 2, dtype=FROZEN_KINDS[kind][0], **options_of(cell, kind)).eval()


def frozen_under(isa: str, rnn: nn.RNNBase, kind: str) -> nn.RNNBase:
    _C.set_cpu_isa(isa)
    return freeze(rnn, weights=FROZEN_KINDS[kind][1])


def results(rnn: nn.Module, x: Tensor, hx: Any) -> list[Tensor]:
    with torch.no_grad():
        return torch.utils._pytree.tree_leaves(rnn(x, hx, lengths=LENGTHS))


def assert_same(got: list[Tensor], expected: list[Tensor]) -> None:
    for ours, truth in zip(got, expected, strict=True):
        assert_bitwise(ours, truth)


def arguments_of(rnn: nn.RNNBase) -> tuple[Tensor, Any]:
    return random_batch(rnn, 4, 6), as_hx(random_hx(rnn, 4))


@every_pair
@every_kind
@both_cells
def test_another_set_runs_it_as_it_is(cell: str, kind: str, before: str, after: str) -> None:
    rnn = make(cell, kind)
    arguments = arguments_of(rnn)
    frozen = frozen_under(before, rnn, kind)
    addresses = [buffer.data_ptr() for buffer in frozen.buffers()]
    expected = results(frozen_under(after, rnn, kind), *arguments)
    if FROZEN_KINDS[kind][1] is None:
        assert_same(results(rnn, *arguments), expected)
    for _ in range(2):
        assert_same(results(frozen, *arguments), expected)
    assert [buffer.data_ptr() for buffer in frozen.buffers()] == addresses


@every_pair
@pytest.mark.parametrize("kind", ["float32", "float64", "float32 of bfloat16"])
@both_cells
def test_another_set_runs_large_layers(
    cell: str, kind: str, before: str, after: str, restore_threads: None
) -> None:
    """On two threads, between which few rows are split by units."""
    torch.set_num_threads(2)
    dtype, weights = FROZEN_KINDS[kind]
    for input_size, hidden_size in ((1, 1), (33, 65), (65, 260)):
        rnn = OURS[cell](input_size, hidden_size, dtype=dtype).eval()
        frozen = frozen_under(before, rnn, kind)
        expected = frozen_under(after, rnn, kind)
        for num_rows, num_steps in ((1, 1), (1, 4), (9, 3)):
            x, hx = torch.randn(num_steps, num_rows, input_size).to(dtype), random_hx(rnn, num_rows)
            got, truth = (layer(x, as_hx(hx)) for layer in (frozen, expected))
            leaves = torch.utils._pytree.tree_leaves
            assert_same(leaves(got), leaves(truth))
            if weights is None:
                with torch.no_grad():
                    assert_same(leaves(rnn(x, as_hx(hx))), leaves(truth))


def ways_of_loading() -> dict[str, Callable[[nn.Module, Callable[[], nn.Module]], nn.Module]]:
    """What is saved is the first argument, and the second makes a layer to load into."""

    def by_state_dict(saved: nn.Module, fresh: Callable[[], nn.Module], **options: Any) -> Any:
        file = io.BytesIO()
        torch.save(nn.ModuleDict({"inner": saved}).state_dict(), file)
        model = nn.ModuleDict({"inner": fresh()})
        state = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
        before = {name: tensor.clone() for name, tensor in state.items()}
        model.load_state_dict(state, **options)
        for name, tensor in state.items():  # is the caller's
            assert torch.equal(tensor, before[name])
        return model["inner"]

    return {
        "state_dict": by_state_dict,
        "assign": lambda saved, fresh: by_state_dict(saved, fresh, assign=True),
        "pickle": lambda saved, _: pickle.loads(pickle.dumps(saved)),
        "deepcopy": lambda saved, _: copy.deepcopy(saved),
    }


@pytest.mark.parametrize("way", ways_of_loading())
@every_pair
@every_kind
@both_cells
def test_another_set_loads_it_into_its_own_order(
    cell: str, kind: str, before: str, after: str, way: str
) -> None:
    rnn = make(cell, kind)
    arguments = arguments_of(rnn)
    saved = frozen_under(before, rnn, kind)
    expected = frozen_under(after, rnn, kind)
    dtype, weights = FROZEN_KINDS[kind]

    def fresh() -> nn.Module:
        return FROZEN[cell](7, 19, 2, weights=weights, dtype=dtype, **options_of(cell, kind))

    loaded = ways_of_loading()[way](saved, fresh)
    buffers, truth = dict(loaded.named_buffers()), dict(expected.named_buffers())
    assert buffers.keys() == truth.keys()
    for name, buffer in buffers.items():
        assert (buffer.dtype, buffer.shape) == (truth[name].dtype, truth[name].shape), name
        assert torch.equal(buffer, truth[name]), name
        assert buffer.is_contiguous()
    assert_same(results(loaded, *arguments), results(expected, *arguments))


class Model(nn.Module):
    """What programs are made of: tensors in and out."""

    def __init__(self, rnn: nn.RNNBase) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return self.rnn(x, lengths=lengths)[0]


@pytest.mark.parametrize("before", FLOAT_ISAS)
@every_kind
@both_cells
def test_another_set_runs_what_torch_export_made(cell: str, kind: str, before: str) -> None:
    rnn = make(cell, kind)
    x, _ = arguments_of(rnn)
    program = torch.export.export(Model(frozen_under(before, rnn, kind)), (x, LENGTHS))
    if kind == "float32":
        file = io.BytesIO()
        torch.export.save(program, file)
        program = torch.export.load(io.BytesIO(file.getvalue()))
    exported = program.module()
    for after in FLOAT_ISAS:
        expected = Model(frozen_under(after, rnn, kind))(x, LENGTHS)
        assert_bitwise(exported(x, LENGTHS), expected, after)


@pytest.mark.filterwarnings("ignore:.*torch.jit.* is (deprecated|not supported)")
@every_pair
@both_cells
def test_another_set_runs_what_was_traced(cell: str, before: str, after: str) -> None:
    rnn = make(cell, "float32")
    x, _ = arguments_of(rnn)
    traced = torch.jit.trace(Model(frozen_under(before, rnn, "float32")), (x, LENGTHS))
    _C.set_cpu_isa(after)
    assert_bitwise(traced(x, LENGTHS), Model(rnn)(x, LENGTHS).detach())


@every_kind
@both_cells
def test_sizes_that_differ_are_an_error_in_any_order(cell: str, kind: str) -> None:
    """And not a part of the weights, or weights and zeros."""
    dtype, weights = FROZEN_KINDS[kind]
    for hidden_size in (3, 33, 39):
        others = []
        for isa in FLOAT_ISAS:
            others.append(frozen_under(isa, OURS[cell](7, hidden_size, dtype=dtype), kind))
        for isa, other in itertools.product(FLOAT_ISAS, others):
            _C.set_cpu_isa(isa)
            fresh = FROZEN[cell](7, 19, weights=weights, dtype=dtype)
            before = copy.deepcopy(fresh.state_dict())
            with pytest.raises(RuntimeError, match="size mismatch for weight_ih_l0"):
                fresh.load_state_dict(other.state_dict())
            for name, tensor in fresh.state_dict().items():
                assert torch.equal(tensor, before[name]), name


@every_kind
@both_cells
def test_the_fallback_runs_every_order(
    cell: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has been frozen here runs where nothing is compiled."""
    rnn = make(cell, kind)
    arguments = arguments_of(rnn)
    frozen = [frozen_under(isa, rnn, kind) for isa in FLOAT_ISAS]
    expected = results(frozen[0], *arguments)
    monkeypatch.setattr(extension, "runs", lambda _: False)
    first, *others = [results(layer, *arguments) for layer in frozen]
    for got in others:
        assert_same(got, first)
    tolerance = (
        1e-12 if kind == "float64" else 1e-5 if rnn.weight_ih_l0.dtype.itemsize > 2 else 0.02
    )
    torch.testing.assert_close(first, expected, rtol=0, atol=tolerance)
    if FROZEN_KINDS[kind][1] is None:
        assert_same(first, results(rnn, *arguments))


@pytest.mark.parametrize("isa", FLOAT_ISAS)
def test_a_process_with_another_set_loads_what_was_saved(isa: str, tmp_path: Path) -> None:
    """As it is done: a file, and an environment variable in the place of another machine."""
    rnn = OURS["lstm"](7, 19, 2, proj_size=5)
    frozen = freeze(rnn)
    torch.save((rnn, frozen, frozen.state_dict()), tmp_path / "saved.pt")
    finished = run_python(
        "import torch, varlen_rnn\n"
        f"rnn, frozen, state = torch.load({str(tmp_path / 'saved.pt')!r}, weights_only=False)\n"
        "fresh = varlen_rnn.FrozenVarLenLSTM(7, 19, 2, proj_size=5)\n"
        "fresh.load_state_dict(state)\n"
        "x = torch.randn(6, 3, 7)\n"
        "truth = varlen_rnn.freeze(rnn)\n"
        "for layer in (frozen, fresh):\n"
        "    assert torch.equal(layer(x)[0], rnn(x)[0])\n"
        "    for name, buffer in layer.named_buffers():\n"
        "        assert torch.equal(buffer, truth.get_buffer(name)), name\n"
        "print(varlen_rnn.build_info()['cpu_isa'])\n",
        VARLEN_RNN_CPU_ISA=isa,
    )
    assert (finished.returncode, finished.stdout) == (0, f"{isa}\n"), finished.stderr
