"""How far from float64: the contract is on our rounding error relative to that of torch.nn.

On one small tensor torch's error is one draw of a random variable and may well be 0, so a bare
ratio of largest errors would say nothing: the reference, as exact as torch, reaches a ratio of 10.
Hence three statements on float32, which all have to hold:

- over every third configuration of the grid, for every kind of tensor: the geometric mean of the
  ratios is at most 1.5 (one rounding, half an ulp, is added to both errors, so that an error of 0
  has a logarithm). Luck averages out: the logarithm of one ratio scatters by 0.1 to 0.4, of the
  mean by 0.03;
- in layers so large that every tensor has hundreds of elements: the ratio of the root mean square
  errors of each tensor is at most 1.5, with nothing added;
- in each of those configurations, so that nothing gross hides in a mean: the largest error of all
  outputs, and of all gradients, is at most 1.5 times torch's plus a floor in units in the last
  place (ulps) of the largest value. The floor is 6, what luck was seen to do where the mean ratio
  is 1; for gradients half the root of the number of tokens if that is more: so much a sum of that
  many terms errs, half an ulp a term.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict

import pytest
import torch
from configs import GRID, Config, our_results, torch_results
from helpers import CELLS, Results, assert_only_h_is_rounded, largest, max_error, states_of
from torch import Tensor, nn

from varlen_rnn import convert

ULP = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
NARROW = pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"]
)
FEW_TOKENS = tuple(range(20, 4, -2))
LARGE = [
    Config(
        cell=cell,
        input_size=input_size,
        hidden_size=hidden_size,
        proj_size=proj_size,
        num_layers=1,
        bidirectional=False,
        bias=True,
        batch_first=False,
        form="packed",
        with_hx=True,
        threads=1,
        lengths=lengths,
        num_steps=lengths[0],
        seed=seed,
    )
    for seed, (cell, input_size, hidden_size, proj_size, lengths) in enumerate(
        [("lstm", 100, 300, 100, FEW_TOKENS)]
        + [
            (cell, *sizes)
            for cell in CELLS
            for sizes in (
                (129, 129, 0, FEW_TOKENS),
                (1, 256, 0, FEW_TOKENS),
                (512, 64, 0, FEW_TOKENS),
                (512, 512, 0, FEW_TOKENS),
                (96, 64, 0, (200,) * 8),
                (64, 128, 0, (50,) * 64),
            )
        ]
    )
]


def truth_of(config: Config, dtype: torch.dtype = torch.float32) -> Results:
    """By torch in float64, on numbers that ``dtype`` can hold."""
    return torch_results(config, torch.float64, rounded_to=dtype)


def errors(got: Results, truth: Results, dtype: torch.dtype) -> dict[str, float]:
    """Largest error of every tensor that is not all zeros, in ulps of its largest value."""
    scales = {name: largest(tensor) for name, tensor in truth.items()}
    return {
        name: max_error(got[name], tensor) / (ULP[dtype] * scales[name])
        for name, tensor in truth.items()
        if scales[name] > 0
    }


@functools.cache
def torch_errors(config: Config, dtype: torch.dtype) -> dict[str, float]:
    """The same of torch in ``dtype``."""
    return errors(torch_results(config, dtype, rounded_to=dtype), truth_of(config, dtype), dtype)


def of_group(errors: dict[str, float], truth: Results, *, gradients: bool) -> float:
    """The largest error of all outputs or gradients, in ulps of the largest value in the group."""
    names = [name for name in errors if name.startswith("d_") == gradients]
    scale = max((largest(truth[name]) for name in names), default=1.0)
    return max((errors[name] * largest(truth[name]) / scale for name in names), default=0.0)


def kind(name: str) -> str:
    """``d_weight_ih`` of ``d_weight_ih_l0_reverse``."""
    return name.split("_l")[0]


@pytest.mark.parametrize("cell", CELLS)
def test_float32_is_as_accurate_as_torch_over_the_grid(cell: str, isa: str) -> None:
    logarithms = defaultdict(list)
    gross = []
    for config in GRID[cell][::3]:
        truth, theirs = truth_of(config), torch_errors(config, torch.float32)
        ours = errors(our_results(config, torch.float32), truth, torch.float32)
        for name, error in ours.items():
            logarithms[kind(name)].append(math.log((error + 0.5) / (theirs[name] + 0.5)))
        floors = {False: 6.0, True: max(6.0, sum(config.lengths) ** 0.5 / 2)}
        for gradients, floor in floors.items():
            error = of_group(ours, truth, gradients=gradients)
            allowed = 1.5 * of_group(theirs, truth, gradients=gradients) + floor
            if not error <= allowed:
                gross.append(f"{config}: {error:.2f} ulps, allowed {allowed:.2f}")
    assert not gross, "\n".join(gross)
    means = {name: math.exp(sum(logs) / len(logs)) for name, logs in logarithms.items()}
    assert len(means) == (11 if cell == "lstm" else 8)
    too_large = {name: round(mean, 2) for name, mean in means.items() if not mean <= 1.5}
    assert not too_large


@pytest.mark.parametrize("config", LARGE, ids=str)
def test_float32_is_as_accurate_as_torch_in_large_layers(config: Config, isa: str) -> None:
    truth = truth_of(config)
    theirs = torch_results(config, torch.float32, rounded_to=torch.float32)
    ours = our_results(config, torch.float32)
    ratios = {
        name: float((ours[name] - tensor).norm() / (theirs[name] - tensor).norm())
        for name, tensor in truth.items()
    }
    too_large = {name: round(ratio, 2) for name, ratio in ratios.items() if not ratio <= 1.5}
    assert not too_large


@NARROW
@pytest.mark.parametrize("cell", CELLS)
def test_16_bit_types_round_only_the_hidden_state(cell: str, dtype: torch.dtype, isa: str) -> None:
    def run(rnn: nn.RNNBase, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        out, hx = convert(rnn)(x)
        return out, states_of(hx)

    assert_only_h_is_rounded(cell, dtype, run)


@NARROW
@pytest.mark.parametrize("cell", CELLS)
def test_16_bit_types_beat_torch(cell: str, dtype: torch.dtype, isa: str) -> None:
    """Torch rounds every intermediate to 16 bits, we only ``h``: in each case we may not be worse.

    The floor, for tensors so small that torch's roundings may cancel, is 4 roundings.

    In one layer the only error of outputs is ``h``'s rounding, half an ulp of at most 1 each step.
    It re-enters through ``weight_hh`` and the gates, whose slopes shrink it: over many steps the
    sum of all that is left stays below 4 roundings, for weights as they are initialised.
    """
    excess = defaultdict(float)
    for config in GRID[cell][1::7]:
        truth, theirs = truth_of(config, dtype), torch_errors(config, dtype)
        results = our_results(config, dtype)
        assert all(tensor.dtype == dtype for tensor in results.values())
        ours = errors(results, truth, dtype)
        for gradients in (False, True):
            error = of_group(ours, truth, gradients=gradients)
            allowed = of_group(theirs, truth, gradients=gradients) + 2.0
            assert error <= allowed, f"{config}: {error:.2f} ulps, allowed {allowed:.2f}"
        for name, error in ours.items():
            excess[kind(name)] += math.log((error + 0.5) / (theirs[name] + 0.5))
        if config.num_layers == 1:
            error = max_error(results["out"], truth["out"])
            assert error <= 4 * ULP[dtype] / 2, f"{config}: {error / ULP[dtype]:.2f} ulps"
    assert max(excess.values()) <= 0, excess
