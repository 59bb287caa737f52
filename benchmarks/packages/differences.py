"""How far two models' numbers are apart, relative to the largest value."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in it, in order; it may nest tuples, lists and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list, Mapping)):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from tensors(part)


def largest(values: Iterable[Tensor | float]) -> float:
    """The largest number; NaN if there is one, which Python's `max` may pass over."""
    return float(torch.tensor([float(value) for value in values], dtype=torch.float64).max())


def difference(got: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference of two tensors, relative to the largest value of all expected ones.

    Raises ValueError if their dtypes or shapes differ.
    """
    forms = [[(x.dtype, list(x.shape)) for x in side] for side in (got, expected)]
    if forms[0] != forms[1]:
        raise ValueError(f"tensors must be {forms[1]}, got {forms[0]}")
    pairs = [(a, b) for a, b in zip(got, expected, strict=True) if a.numel()]
    if not pairs:
        return 0.0
    off = [(a.detach() - b.detach()).abs().max() for a, b in pairs]
    scale = largest(b.detach().abs().max() for _, b in pairs)
    return largest(off) / (scale or 1.0)


def of_outputs(got: Any, expected: Any) -> float:
    """The largest difference of any tensor in what two models return."""
    pairs = zip(tensors(got), tensors(expected), strict=True)
    return largest(difference([a], [b]) for a, b in pairs)


def of_parameters(got: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """The largest difference of parameters, or their gradients, relative to the largest of all."""
    same_keys("parameters", got, expected)
    return difference(list(got.values()), list(expected.values()))


def of_layers(got: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """The same, relative to the largest of the layer that a parameter belongs to."""
    same_keys("parameters", got, expected)
    layers: dict[str, list[str]] = {}
    for name in expected:
        layers.setdefault(name.rpartition(".")[0], []).append(name)
    return largest(
        difference([got[name] for name in layer], [expected[name] for name in layer])
        for layer in layers.values()
    )


def same_keys(what: str, got: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raises ValueError if they differ, order included."""
    if list(got) != list(expected):
        odd = sorted(set(got) ^ set(expected)) or "another order"
        raise ValueError(f"{what} must have the same names, got {odd}")


def exchange_states(ours: nn.Module, theirs: nn.Module) -> None:
    """Loads the state of each into the other, and raises ValueError unless it arrives."""
    states = [copy.deepcopy(model.state_dict()) for model in (ours, theirs)]
    same_keys("state_dict", *states)
    for model, state in zip((theirs, ours), states, strict=True):
        model.load_state_dict(state, strict=True)
        loaded = model.state_dict()
        if odd := [name for name in state if not torch.equal(loaded[name], state[name])]:
            raise ValueError(f"load_state_dict must load every tensor, got others in {odd}")
