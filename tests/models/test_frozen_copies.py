"""Copies of frozen layers, what their state_dict loads into, and the memory that they take."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from helpers import CELLS, FROZEN_KINDS, OURS, assert_bitwise, dtype_of
from torch import nn

from varlen_rnn import FrozenVarLenLSTM, VarLenLSTM, freeze


def forms_of_copying() -> dict[str, Callable[[nn.Module], Any]]:
    def through_torch_save(module: nn.Module) -> Any:
        file = io.BytesIO()
        torch.save(module, file)
        return torch.load(io.BytesIO(file.getvalue()), weights_only=False)

    def through_a_state_dict(module: Any) -> Any:
        options = {"dtype": dtype_of(module), "weights": module.weights}
        fresh = type(module)(7, 19, 2, bidirectional=True, **options)
        file = io.BytesIO()
        torch.save(module.state_dict(), file)
        fresh.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
        return fresh

    def through_meta(module: nn.Module) -> Any:
        other = copy.deepcopy(module).to("meta").to_empty(device="cpu")
        other.load_state_dict(module.state_dict())
        return other

    return {
        "deepcopy": copy.deepcopy,
        "pickle": lambda module: pickle.loads(pickle.dumps(module)),
        "torch.save": through_torch_save,
        "state_dict": through_a_state_dict,
        "double and back": lambda module: copy.deepcopy(module).double().half().float(),
        "meta and back": through_meta,
    }


@pytest.mark.parametrize("how", forms_of_copying())
@pytest.mark.parametrize("kind", FROZEN_KINDS)
@pytest.mark.parametrize("cell", CELLS)
def test_copies_compute_the_same_bits(cell: str, kind: str, how: str) -> None:
    dtype, weights = FROZEN_KINDS[kind]
    frozen = freeze(OURS[cell](7, 19, 2, bidirectional=True, dtype=dtype), weights)
    other = forms_of_copying()[how](frozen)
    x = torch.randn(6, 3, 7).to(dtype)
    assert_bitwise(other(x)[0], frozen(x)[0])
    assert type(other) is type(frozen)
    assert repr(other) == repr(frozen)
    buffers = dict(other.named_buffers())
    for name, buffer in frozen.named_buffers():
        assert buffers[name].data_ptr() != buffer.data_ptr()
        assert buffers[name].dtype == buffer.dtype


def test_a_model_changes_its_type_around_frozen_layers() -> None:
    model = nn.ModuleDict({"rnn": freeze(VarLenLSTM(3, 4)), "head": nn.Linear(4, 2)})
    x = torch.randn(5, 3)
    expected, _ = model["rnn"](x)
    for dtype in (torch.float64, torch.bfloat16):
        model.to(dtype)
        assert model["head"].weight.dtype == dtype
        assert_bitwise(model["rnn"](x)[0], expected)


# Which types of weights there are in a state_dict: None for those that are trained.
STATES: list[tuple[torch.dtype, torch.dtype | None]] = [
    (torch.float32, None),
    (torch.float64, torch.float64),
    (torch.float32, torch.float32),
    (torch.float32, torch.bfloat16),
    (torch.float32, torch.int8),
]


@pytest.mark.parametrize("options", [{}, {"strict": False}, {"assign": True}], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_a_state_dict_of_another_kind(cell: str, options: dict[str, bool]) -> None:
    """One line says what to do, and nothing is loaded."""
    models = []
    for dtype, packed in STATES:
        rnn = OURS[cell](3, 4, 2, bidirectional=True, dtype=dtype)
        model = nn.ModuleDict({"rnn": rnn, "head": nn.Linear(8, 2)})
        weights = packed if packed in (torch.bfloat16, torch.int8) else None
        models.append((model if packed is None else freeze(model, weights), packed))
    for module, expected in models:
        name = type(module["rnn"]).__name__
        for other, packed in models:
            if packed == expected:
                continue
            what = "a matrix" if expected is None else f"packed {expected}"
            kept = f", weights={packed}" if packed in (torch.bfloat16, torch.int8) else ""
            message = f"{name}: rnn.weight_ih_l0 must be {what}, got " + (
                "a matrix; load it into the model before freeze"
                if packed is None
                else f"packed {packed}; load it into freeze(model{kept})"
            )
            before = copy.deepcopy(module["rnn"].state_dict())
            with pytest.raises(RuntimeError, match="Error") as error:
                module.load_state_dict(other.state_dict(), **options)
            assert str(error.value).splitlines()[1:] == [f"\t{message}"]
            for key, tensor in module["rnn"].state_dict().items():
                assert torch.equal(tensor, before[key]), key


MAKERS = {
    "trained": VarLenLSTM,
    **{
        str(weights): partial(FrozenVarLenLSTM, weights=weights)
        for weights in (None, torch.bfloat16, torch.int8)
    },
}


@pytest.mark.parametrize("kind", MAKERS)
def test_a_state_dict_of_the_same_kind_is_loaded_as_usual(kind: str) -> None:
    make = MAKERS[kind]
    module, other = make(3, 4), make(3, 4)
    assert not any(module.load_state_dict(other.state_dict()))
    assert_bitwise(module(torch.ones(2, 3))[0].detach(), other(torch.ones(2, 3))[0].detach())
    without = other.state_dict()
    missing = [without.popitem()[0]]
    assert module.load_state_dict(without, strict=False).missing_keys == missing
    with pytest.raises(RuntimeError, match=rf'Missing key.s. in state_dict: "{missing[0]}"'):
        module.load_state_dict(without)
    with pytest.raises(RuntimeError, match="size mismatch for weight_ih_l0"):
        module.load_state_dict(make(5, 4).state_dict())
    two_layers = make(3, 4, 2).state_dict()
    with pytest.raises(RuntimeError, match=r"Unexpected key.s. in state_dict: .*weight_ih_l1"):
        module.load_state_dict(two_layers)


@pytest.mark.parametrize(
    ("weights", "share"), [(None, 1.01), (torch.bfloat16, 0.51), (torch.int8, 0.27)], ids=str
)
@pytest.mark.parametrize("cell", CELLS)
def test_weights_take_as_much_memory_as_their_type_says(
    cell: str, weights: torch.dtype | None, share: float
) -> None:
    rnn = OURS[cell](256, 256)
    sizes = [sum(t.nbytes for t in m.state_dict().values()) for m in (freeze(rnn, weights), rnn)]
    assert sizes[0] < share * sizes[1]
