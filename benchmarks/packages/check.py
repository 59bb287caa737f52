"""One model before and after it is converted: the same numbers, and how fast.

Everything runs in evaluation mode, gradients and the training step included: our dropout draws
other random numbers than torch's.

In float32 differences of gradients are relative to the model's largest, since layers before a
normalisation or a softmax may have gradients that are hardly more than rounding. In float64, where
rounding hides nothing, they are relative to those of the same layer. Where an activation near zero
has another sign in float32, as one in half a million may, gradients differ by more than rounding:
then other weights and inputs are drawn, up to twice.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import varlen_rnn
from benchmarks.measure import Budget, interleave
from benchmarks.packages.differences import (
    exchange_states,
    largest,
    of_layers,
    of_outputs,
    of_parameters,
    tensors,
)
from benchmarks.records import OURS, Record

THEIRS = "nn"
TOLERANCES = {"outputs": 1e-5, "gradients": 1e-5, "step": 1e-5, "float64": 1e-10}
BUDGET = Budget(seconds=1.0, min_rounds=5, max_rounds=31)
QUICK_BUDGET = Budget(seconds=0.0, min_rounds=3, max_rounds=3)
# The largest change of a weight in a training step.
STEP = 1e-2
SEEDS = 3

Model = Any


@dataclass(frozen=True)
class Example:
    """A model as its package's documentation builds it, and how it is called there."""

    model: nn.Module
    # Tensors, also in tuples, lists and mappings.
    run: Callable[[Model], Any]
    # Makes ours of a copy of the model; what may be changed in place.
    convert: Callable[[Model], nn.Module] = varlen_rnn.convert
    # How that is called, if not in the same way.
    run_ours: Callable[[Model], Any] | None = None
    # Of models whose parameters are not there between calls.
    inference_only: bool = False


@dataclass(frozen=True)
class Side:
    """A model, and how it is called."""

    model: nn.Module
    run: Callable[[Model], Any]

    def outputs(self) -> Any:
        """What the model returns, whatever it draws."""
        torch.manual_seed(0)
        return self.run(self.model)

    def gradients(self) -> dict[str, Tensor]:
        """Of the outputs' sum, each number with a fixed random weight; by parameters' names."""
        self.model.zero_grad()
        parts = [x for x in tensors(self.outputs()) if x.requires_grad]
        generator = torch.Generator().manual_seed(0)
        weights = [torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in parts]
        torch.autograd.backward(parts, weights)
        return {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None}

    def step(self, rate: float) -> None:
        """One of SGD: Adam would blow up gradients that are rounding alone."""
        torch.optim.SGD(self.model.parameters(), lr=rate).step()


def differences(ours: Side, theirs: Side, inference_only: bool = False) -> dict[str, float]:
    """Of outputs, gradients, and parameters and outputs after a training step.

    Raises ValueError if names of parameters or `state_dict`s differ, or do not load.
    """
    with torch.set_grad_enabled(not inference_only):
        found = {"outputs": of_outputs(ours.outputs(), theirs.outputs())}
    if inference_only:
        return found
    got, expected = ours.gradients(), theirs.gradients()
    found["gradients"] = of_parameters(got, expected)
    rate = STEP / largest(gradient.abs().max() for gradient in expected.values())
    for side in (ours, theirs):
        side.step(rate)
    weights = [dict(side.model.named_parameters()) for side in (ours, theirs)]
    after = of_outputs(ours.outputs(), theirs.outputs())
    found["step"] = largest([of_layers(*weights), after])
    exchange_states(ours.model, theirs.model)
    return found


def times(calls: Mapping[str, Callable[[], object]], budget: Budget) -> dict[str, Any]:
    """The figures of each, taken in turn."""
    return {name: timing.summary() for name, timing in interleave(calls, budget).items()}


def compare(example: Example, copied: nn.Module, budget: Budget) -> Record:
    """Converts a copy of the example's model, compares the two and times them."""
    theirs = Side(example.model, example.run)
    ours = Side(example.convert(copied), example.run_ours or example.run)
    before = {n: m for n, m in theirs.model.named_modules() if isinstance(m, (nn.LSTM, nn.GRU))}
    now = {name: ours.model.get_submodule(name) for name in before}
    left = [
        n
        for n, m in now.items()
        if not isinstance(m, (varlen_rnn.VarLenLSTM, varlen_rnn.VarLenGRU))
    ]
    if len(left) == len(before):
        raise ValueError(f"a layer at least must be converted, got {len(before)} left as they are")
    record: Record = {
        "layers": Counter(type(m).__name__ for name, m in before.items() if name not in left),
        "left": left,
        "differences": differences(ours, theirs, example.inference_only),
        "threads": torch.get_num_threads(),
    }
    sides = {OURS: ours, THEIRS: theirs}
    with torch.no_grad():
        record["inference"] = times({name: side.outputs for name, side in sides.items()}, budget)
    if not example.inference_only:
        record["training"] = times({name: side.gradients for name, side in sides.items()}, budget)
    return record


def prepared(
    build: Callable[[], Example], dtype: torch.dtype, seed: int
) -> tuple[Example, nn.Module]:
    """An example that runs with torch's own layers, and a copy of its model."""
    torch.manual_seed(seed)
    example = build()
    example.model.to(dtype).eval()
    copied = copy.deepcopy(example.model)
    Side(example.model, example.run).gradients()
    return example, copied


def in_float64(build: Callable[[], Example], seed: int) -> float | None:
    """The largest difference of any layer's gradients; None if the package takes float32 only."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        try:
            example, copied = prepared(build, torch.float64, seed)
        except Exception:  # noqa: BLE001 (packages may fail with anything)
            return None
        ours = Side(example.convert(copied), example.run_ours or example.run)
        return of_layers(ours.gradients(), Side(example.model, example.run).gradients())
    finally:
        torch.set_default_dtype(usual)


def check(build: Callable[[], Example], budget: Budget = BUDGET) -> Record:
    """What there is to say of an example: differences and times, or why there are none.

    A failure with torch's own layers is "skipped"; after the conversion, an error.
    """
    record: Record = {}
    for seed in range(SEEDS):
        record = _check(build, budget, seed)
        if "failed" not in record:
            break
    return record


def _check(build: Callable[[], Example], budget: Budget, seed: int) -> Record:
    """The same of one draw of weights and inputs."""
    try:
        example, copied = prepared(build, torch.float32, seed)
    except Exception as error:  # noqa: BLE001 (packages may fail with anything)
        return {"skipped": f"{type(error).__name__}: {error}".splitlines()[0]}
    record = {
        "model": type(example.model).__name__,
        "seed": seed,
        **compare(example, copied, budget),
    }
    found = record["differences"]
    if not example.inference_only:
        found["float64"] = in_float64(build, seed)
    for what, value in found.items():
        if value is not None and not value <= TOLERANCES[what]:
            record["failed"] = f"{what} differ by {value:.1e} of the largest value"
    return record
