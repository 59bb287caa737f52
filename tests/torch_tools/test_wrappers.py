"""What people do to a module's weights: all of it really takes effect, and really trains."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from helpers import CELLS, OURS, TORCH, assert_bitwise
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrizations, parametrize, prune

import varlen_rnn

DOUBLE = {"dtype": torch.float64}
CLOSE = {"rtol": 0, "atol": 1e-11}
LENGTHS = [4, 0, 6]
both_cells = pytest.mark.parametrize("cell", CELLS)


def make(cell: str, **options: Any) -> nn.RNNBase:
    torch.manual_seed(0)
    return OURS[cell](3, 5, **({"batch_first": True, "num_layers": 2} | DOUBLE | options))


def batch() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(3, 6, 3, generator=generator, **DOUBLE)


def run(rnn: nn.Module, x: Tensor | None = None) -> Tensor:
    return rnn(batch() if x is None else x, lengths=LENGTHS)[0]


def run_torch(cell: str, weights: dict[str, Tensor]) -> Tensor:
    """The truth for given weights, differentiable in them: each row alone through torch."""
    rnn = TORCH[cell](3, 5, num_layers=2, batch_first=True, **DOUBLE)
    out = torch.zeros(3, 6, 5, **DOUBLE)
    for b, length in enumerate(LENGTHS):
        if length:
            out[b, :length] = functional_call(rnn, weights, (batch()[b, :length],))[0]
    return out


def weights_of(rnn: nn.Module) -> dict[str, Tensor]:
    """The weights that the module uses, whatever they are computed from."""
    return {name: getattr(rnn, name) for name in rnn._flat_weights_names}


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight / 2


class Counted(Doubled):
    calls = 0

    def forward(self, weight: Tensor) -> Tensor:
        self.calls += 1
        return 2 * weight


def doubled(rnn: nn.Module) -> None:
    parametrize.register_parametrization(rnn, "weight_hh_l0", Doubled())


def weight_normed(rnn: nn.Module) -> None:
    parametrizations.weight_norm(rnn, "weight_hh_l0")


def spectral_normed(rnn: nn.Module) -> None:
    parametrizations.spectral_norm(rnn, "weight_hh_l0")


def pruned(rnn: nn.Module) -> None:
    prune.random_unstructured(rnn, "weight_hh_l0", amount=0.4)


def old_weight_normed(rnn: nn.Module) -> None:
    nn.utils.weight_norm(rnn, "weight_hh_l0")


WRAPPERS = [doubled, weight_normed, spectral_normed, pruned, old_weight_normed]
wrapped = pytest.mark.parametrize("wrap", WRAPPERS, ids=lambda wrap: wrap.__name__)
old_api = pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")


@old_api
@wrapped
@both_cells
def test_a_wrapped_weight_is_the_one_in_use_and_trains(
    cell: str, wrap: Callable[[nn.Module], None]
) -> None:
    rnn = make(cell)
    wrap(rnn)
    before = {name: p.detach().clone() for name, p in rnn.named_parameters()}
    optimizer = torch.optim.SGD(rnn.parameters(), lr=0.5)
    losses = []
    for _ in range(4):
        out = run(rnn)
        rnn.eval()  # spectral_norm iterates at every access in training
        torch.testing.assert_close(run(rnn), run_torch(cell, weights_of(rnn)), **CLOSE)
        rnn.train()
        losses.append((out - 0.3).square().mean())
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    for name, parameter in rnn.named_parameters():
        assert not torch.equal(parameter, before[name]), f"{name} did not train"


@both_cells
@pytest.mark.parametrize("wrap", [doubled, weight_normed], ids=["doubled", "weight_normed"])
def test_the_gradient_of_what_a_weight_is_computed_from_is_right(
    cell: str, wrap: Callable[[nn.Module], None]
) -> None:
    rnn = make(cell)
    wrap(rnn)
    parameters = list(rnn.parameters())
    got = torch.autograd.grad(run(rnn).square().sum(), parameters)
    truth = run_torch(cell, weights_of(rnn)).square().sum()
    torch.testing.assert_close(got, torch.autograd.grad(truth, parameters), **CLOSE)


@both_cells
def test_a_parametrization_is_computed_once_a_call(cell: str) -> None:
    rnn = make(cell)
    for name in ("weight_ih_l0", "weight_hh_l1"):
        counted = Counted()
        parametrize.register_parametrization(rnn, name, counted)
        counted.calls = 0
        run(rnn)
        assert counted.calls == 1, name


@both_cells
def test_removing_a_parametrization_keeps_its_value(cell: str) -> None:
    rnn = make(cell)
    doubled(rnn)
    before = run(rnn)
    parametrize.remove_parametrizations(rnn, "weight_hh_l0")
    assert_bitwise(run(rnn).detach(), before.detach())


@both_cells
def test_tied_weights_get_the_sum_of_their_gradients(cell: str) -> None:
    rnn = make(cell)
    rnn.weight_hh_l1 = rnn.weight_hh_l0
    assert len(list(rnn.parameters())) == 7
    parameters = dict(rnn.named_parameters())
    got = torch.autograd.grad(run(rnn).square().sum(), list(parameters.values()))
    truth = run_torch(cell, weights_of(rnn)).square().sum()
    torch.testing.assert_close(got, torch.autograd.grad(truth, list(parameters.values())), **CLOSE)


@both_cells
def test_directions_may_share_their_weights(cell: str) -> None:
    rnn = make(cell, num_layers=1, bidirectional=True)
    for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
        setattr(rnn, f"{name}_reverse", getattr(rnn, name))
    x = batch()
    out, _ = rnn(x, lengths=LENGTHS)
    flipped = torch.stack(
        [torch.cat([r[:n].flip(0), r[n:]]) for r, n in zip(x, LENGTHS, strict=True)]
    )
    back, _ = rnn(flipped, lengths=LENGTHS)
    for b, length in enumerate(LENGTHS):
        torch.testing.assert_close(out[b, :length, :5].flip(0), back[b, :length, 5:], **CLOSE)


@pytest.fixture(name="swapping")
def _swapping() -> Iterator[None]:
    torch.__future__.set_swap_module_params_on_conversion(True)
    yield
    torch.__future__.set_swap_module_params_on_conversion(False)


@pytest.mark.usefixtures("swapping")
@both_cells
def test_weights_may_be_swapped(cell: str) -> None:
    """Torch's modules refuse, for their references to the flat buffer."""
    source = make(cell)
    expected = run(source)
    converted = varlen_rnn.convert(
        TORCH[cell](3, 5, num_layers=2, batch_first=True, dtype=torch.float64)
    )
    for rnn in (make(cell), copy.deepcopy(make(cell)), pickled(make(cell)), converted):
        rnn.load_state_dict({name: w + 0 for name, w in source.state_dict().items()})
        assert_bitwise(run(rnn), expected)


def copied(rnn: nn.Module) -> nn.Module:
    return copy.deepcopy(rnn)


def pickled(rnn: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(rnn))


def saved(rnn: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(rnn, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@both_cells
@pytest.mark.parametrize("make_copy", [copied, pickled, saved])
@pytest.mark.parametrize("used_before", [False, True], ids=["new", "used"])
def test_a_copy_computes_the_same_and_is_independent(
    cell: str, make_copy: Callable[[nn.Module], nn.Module], used_before: bool
) -> None:
    rnn = make(cell, bidirectional=True)
    if used_before:
        run(rnn).sum().backward()
    twin = make_copy(make_copy(rnn))
    assert type(twin) is type(rnn)
    assert repr(twin) == repr(rnn)
    assert_bitwise(run(twin).detach(), run(rnn).detach())
    before = run(rnn).detach()
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(1.5)
    assert_bitwise(run(rnn).detach(), before)
    assert not torch.equal(run(twin), before)


@old_api
@both_cells
@pytest.mark.parametrize(
    "wrap", [doubled, weight_normed, spectral_normed], ids=lambda w: w.__name__
)
def test_a_deep_copy_of_a_wrapped_module_trains_on_its_own(
    cell: str, wrap: Callable[[nn.Module], None]
) -> None:
    rnn = make(cell)
    wrap(rnn)
    rnn.eval()
    run(rnn)
    twin = copy.deepcopy(rnn)
    before = run(rnn).detach()
    assert_bitwise(run(twin).detach(), before)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.5)
    run(twin).square().sum().backward()
    optimizer.step()
    assert_bitwise(run(rnn).detach(), before)
    torch.testing.assert_close(run(twin), run_torch(cell, weights_of(twin)), **CLOSE)
    assert not torch.equal(run(twin), before)
