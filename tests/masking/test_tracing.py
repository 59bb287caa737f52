"""Masking under torch.compile, torch.export and torch.jit.trace, with sizes that change."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export

from varlen_rnn import masking

SIZE = 4
LINEAR = nn.Linear(SIZE, 3)
EMBEDDING = masking.VarLenEmbedding(SIZE, 3, padding_idx=0)
SAME = masking.MaskedConv1d(SIZE, 3, 3, padding="same")
STRIDED = masking.MaskedConv1d(SIZE, 3, 4, stride=2, padding=1, dilation=2)
ADDITIVE = masking.AdditiveAttention(SIZE, SIZE, 5)
GENERAL = masking.MultiplicativeAttention(SIZE, SIZE, score="general")

# Of lengths or a mask, as keywords.
EITHER: dict[str, Callable[..., Tensor]] = {
    "AdditiveAttention": lambda x, **k: ADDITIVE(x[:, 0], x, **k)[0],
    "MaskedConv1d": lambda x, **k: SAME(x.transpose(1, 2), **k),
    "MultiplicativeAttention": lambda x, **k: GENERAL(x[:, 0], x, **k)[0],
    "VarLenEmbedding": lambda x, **k: EMBEDDING((x[..., 0] > 0).long(), **k),
    "apply_to_valid": lambda x, **k: masking.apply_to_valid(LINEAR, x, **k),
    "dones_to_resets": lambda x, **k: masking.dones_to_resets(x[..., 0] > 1, **k),
    "last_valid": masking.last_valid,
    "masked_cross_entropy": lambda x, **k: masking.masked_cross_entropy(
        x, (x[..., 0] > 0).long(), **k
    ),
    "masked_max": masking.masked_max,
    "masked_mean": masking.masked_mean,
    "masked_mse_loss": lambda x, **k: masking.masked_mse_loss(x, x.flip(1), **k),
}
LENGTHS_ONLY: dict[str, Callable[..., Tensor]] = {
    "MaskedConv1d, strided": lambda x, lengths: STRIDED(x.transpose(1, 2), lengths=lengths),
    "output_lengths": lambda x, lengths: STRIDED.output_lengths(lengths),
    "lengths_to_mask": lambda x, lengths: masking.lengths_to_mask(lengths, x.shape[1]),
    "lengths_to_mask, of the largest": lambda x, lengths: masking.lengths_to_mask(lengths),
    "mask_to_lengths": lambda x, lengths: masking.mask_to_lengths(
        torch.arange(x.shape[1]) < lengths[:, None]
    ),
    "mask_from_value": lambda x, lengths: masking.mask_from_value(x.clamp(min=0)),
}
CALLS = [(name, "lengths") for name in [*EITHER, *LENGTHS_ONLY]]
CALLS += [(name, "mask") for name in EITHER]


class Call(nn.Module):
    """A function of a batch and of what says which tokens there are."""

    def __init__(self, name: str, kind: str) -> None:
        super().__init__()
        self.function = (EITHER | LENGTHS_ONLY)[name]
        self.kind = kind

    def forward(self, x: Tensor, which: Tensor) -> Tensor:
        return self.function(x, **{self.kind: which})


def example(kind: str, num_rows: int, num_steps: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(num_rows, num_steps, SIZE)
    if kind == "lengths":
        return x, torch.randint(num_steps + 1, (num_rows,))
    return x, torch.rand(num_rows, num_steps) < 0.6


def test_every_public_name_is_here() -> None:
    names = {name.split(",")[0] for name, _ in CALLS}
    assert names - {"output_lengths"} == set(masking.__all__)


@pytest.mark.parametrize(("name", "kind"), CALLS)
def test_one_graph_and_its_gradient_for_other_sizes(name: str, kind: str) -> None:
    torch._dynamo.reset()
    call = Call(name, kind)
    # What stands behind the first lines, which read lengths or a mask, is one code and one graph.
    backend = "aot_eager" if kind == "lengths" else "eager"
    compiled = torch.compile(call, backend=backend, fullgraph=True, dynamic=True)
    for shape in [(5, 6), (3, 9)]:
        x, which = example(kind, *shape)
        results = []
        for run in (compiled, call):
            leaf = x.clone().requires_grad_()
            out = run(leaf, which)
            gradient = None
            if out.requires_grad:
                (gradient,) = torch.autograd.grad(out.sum(), leaf, allow_unused=True)
            results.append((out.detach(), gradient))
        torch.testing.assert_close(results[0], results[1], equal_nan=True)


@pytest.mark.parametrize(("name", "kind"), CALLS)
def test_an_exported_program_takes_other_sizes(name: str, kind: str) -> None:
    call = Call(name, kind)
    sizes = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
    dynamic = (sizes, {0: Dim.DYNAMIC} if kind == "lengths" else sizes)
    program = export(call, example(kind, 4, 7), dynamic_shapes=dynamic).module()
    for shape in [(4, 7), (2, 12), (9, 8)]:
        x, which = example(kind, *shape)
        torch.testing.assert_close(program(x, which), call(x, which), equal_nan=True)


def test_a_wrong_mask_fails_when_the_recorded_call_runs() -> None:
    compiled = torch.compile(masking.mask_to_lengths, backend="aot_eager", fullgraph=True)
    left_padded = torch.tensor([[False, True], [True, True]])
    with pytest.raises(RuntimeError, match="mask must be valid tokens first in every row"):
        compiled(left_padded)


@pytest.mark.filterwarnings("ignore:.*torch.jit.* is (deprecated|not supported)")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # of checks on sizes
@pytest.mark.parametrize(("name", "kind"), CALLS)
def test_what_torch_jit_trace_recorded_takes_other_sizes(name: str, kind: str) -> None:
    call = Call(name, kind)
    # Of which a trace takes parameters.
    call.modules_of_functions = nn.ModuleList([LINEAR, EMBEDDING, SAME, STRIDED, ADDITIVE, GENERAL])
    traced = torch.jit.trace(call, example(kind, 4, 9), check_trace=False)
    for shape in [(4, 9), (2, 12), (9, 8), (1, 7)]:
        x, which = example(kind, *shape)
        torch.testing.assert_close(traced(x, which), call(x, which), equal_nan=True)
