"""Frozen layers are for inference alone, also in what torch records or transforms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import CELLS, HAS_EXTENSION, OURS, assert_bitwise, states_of
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import grad, jacrev, jvp, vmap

from varlen_rnn import VarLenGRU, VarLenLSTM, freeze

NO_DERIVATIVE = r"^Frozen\w+: a frozen layer must be used for inference alone, got a"
every_weights = pytest.mark.parametrize("weights", [None, torch.bfloat16, torch.int8], ids=str)


class Embedded(nn.Module):
    """Trainable layers before and behind a frozen one."""

    def __init__(self, cell: str, weights: torch.dtype | None, **options: Any) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 3)
        self.rnn = freeze(OURS[cell](3, 4, batch_first=True, **options), weights)
        self.head = nn.Linear(4, 2)

    def forward(self, tokens: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Tokens ``[B, T]`` to ``[B, T, 2]``."""
        return self.head(self.rnn(self.embedding(tokens), lengths=lengths)[0])


TOKENS, LENGTHS = torch.randint(10, (3, 5)), torch.tensor([5, 0, 2])


@every_weights
@pytest.mark.parametrize("cell", CELLS)
def test_a_backward_pass_that_comes_through_raises(cell: str, weights: torch.dtype | None) -> None:
    model = Embedded(cell, weights, num_layers=2)
    expected = model(TOKENS, LENGTHS)
    with pytest.raises(NotImplementedError, match=NO_DERIVATIVE + " gradient; train the model"):
        expected.sum().backward()
    assert model.embedding.weight.grad is None
    with torch.no_grad():
        assert_bitwise(model(TOKENS, LENGTHS), expected.detach())
    with torch.inference_mode():
        assert_bitwise(model(TOKENS, LENGTHS).clone(), expected.detach())


@every_weights
@pytest.mark.parametrize("of", ["out", "h_n", "c_n"])
@pytest.mark.parametrize("argument", ["x", "h_0", "c_0"])
def test_every_result_requires_a_gradient_if_an_argument_does(
    argument: str, of: str, weights: torch.dtype | None
) -> None:
    rnn = freeze(VarLenLSTM(3, 4), weights)
    x, h_0, c_0 = torch.randn(5, 2, 3), torch.randn(1, 2, 4), torch.randn(1, 2, 4)
    {"x": x, "h_0": h_0, "c_0": c_0}[argument].requires_grad_()
    out, (h_n, c_n) = rnn(x, (h_0, c_0))
    result = {"out": out, "h_n": h_n, "c_n": c_n}[of]
    assert result.requires_grad
    with pytest.raises(NotImplementedError, match=NO_DERIVATIVE):
        result.sum().backward()
    _, expected = rnn(x.detach(), (h_0.detach(), c_0.detach()))
    for got, truth in zip((h_n, c_n), expected, strict=True):
        assert_bitwise(got.detach(), truth)
    out.relu_()  # as after any layer
    assert not any(p.requires_grad for p in rnn.state_dict().values())


@every_weights
@pytest.mark.parametrize("cell", CELLS)
def test_what_comes_behind_can_be_trained(cell: str, weights: torch.dtype | None) -> None:
    model = Embedded(cell, weights)
    model.embedding.requires_grad_(False)
    model(TOKENS, LENGTHS).sum().backward()
    assert model.head.weight.grad.any()
    model.head.zero_grad()
    model.head(model.rnn(torch.randn(2, 3, requires_grad=True).detach())[0]).sum().backward()
    assert model.head.weight.grad.any()


# Torch's own, of every autograd.Function that it compiles, and of its own deprecated names.
@pytest.mark.filterwarnings("ignore:.*(should not be instantiated|is_fx_tracing|script_method)")
@pytest.mark.skipif(torch.__version__ < "2.11", reason="torch 2.10 leaves out the backward pass")
@pytest.mark.skipif(not HAS_EXTENSION, reason="there are no compiled ops")
def test_a_compiled_model_infers_with_gradients_on_and_does_not_train() -> None:
    model = Embedded("lstm", torch.int8)
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    for tokens, lengths in ((TOKENS, LENGTHS), (TOKENS[:2, :4], torch.tensor([0, 4]))):
        out = compiled(tokens, lengths)
        torch.testing.assert_close(out, model(tokens, lengths))
        with pytest.raises(NotImplementedError, match=NO_DERIVATIVE[1:]):
            out.sum().backward()
    torch._dynamo.reset()


@every_weights
@pytest.mark.skipif(not HAS_EXTENSION, reason="there are no compiled ops")
@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_program_holds_inference_alone(
    strict: bool, weights: torch.dtype | None
) -> None:
    model = Embedded("gru", weights)
    program = torch.export.export(model, (TOKENS, LENGTHS), strict=strict)
    assert not any("clone" in str(node.target) for node in program.graph.nodes)
    assert_bitwise(program.module()(TOKENS, LENGTHS).detach(), model(TOKENS, LENGTHS).detach())


# Forward mode's own functions are made by torch.jit.script.
@every_weights
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*is (deprecated|not supported)")
@pytest.mark.parametrize("cell", CELLS)
def test_transforms_that_want_a_derivative_raise(cell: str, weights: torch.dtype | None) -> None:
    frozen = freeze(OURS[cell](3, 4), weights)
    x = torch.randn(2, 3)

    def loss(x: Tensor) -> Tensor:
        return frozen(x)[0].sum()

    expected = loss(x)
    for gradient in (grad(loss), jacrev(loss), lambda x: vmap(grad(loss))(x[None])):
        with pytest.raises(NotImplementedError, match=NO_DERIVATIVE + " gradient"):
            gradient(x)
    with pytest.raises(NotImplementedError, match=NO_DERIVATIVE + " tangent"):
        jvp(loss, (x,), (torch.ones_like(x),))
    with forward_ad.dual_level():
        torch.testing.assert_close(loss(x), expected, rtol=0, atol=1e-5)
        with pytest.raises(NotImplementedError, match=NO_DERIVATIVE + " tangent"):
            loss(forward_ad.make_dual(x, x))
    # Of what comes behind there is one, and without one vmap has nothing to refuse.
    assert (grad(lambda w: (w * frozen(x)[0]).sum())(torch.ones(4)) != 0).all()
    for given in (x[None], x[None].requires_grad_()):
        torch.testing.assert_close(vmap(loss)(given)[0], expected, rtol=0, atol=1e-5)


@every_weights
@pytest.mark.parametrize("cell", CELLS)
def test_flags_may_be_floats_or_have_a_last_dimension(
    cell: str, weights: torch.dtype | None
) -> None:
    frozen = freeze(OURS[cell](3, 4, batch_first=True), weights)
    x, flags = torch.randn(3, 5, 3), torch.rand(3, 5) < 0.4
    for name in ("mask", "resets"):
        expected, _ = frozen(x, **{name: flags})
        assert_bitwise(frozen(x, **{name: flags.float()})[0], expected)
        with pytest.raises(ValueError, match=rf"{name} must be .*, got 0\.5 at index \[0, 0\]"):
            frozen(x, **{name: torch.full((3, 5), 0.5)})
    assert_bitwise(frozen(x, resets=flags.unsqueeze(2).half())[0], expected)
    of_samples = torch.stack([flags, ~flags])
    of_each = vmap(lambda resets: frozen(x, resets=resets)[0])
    got = of_each(of_samples.unsqueeze(3).float())
    torch.testing.assert_close(got, of_each(of_samples), rtol=0, atol=0)
    torch.testing.assert_close(got[0], expected, rtol=0, atol=1e-5)


OF_SAMPLES = {
    "lengths": torch.tensor([[5, 0, 2], [1, 5, 4]]),
    "mask": torch.rand(2, 3, 5) < 0.5,
    "resets": torch.rand(2, 3, 5) < 0.3,
    "cu_seqlens": torch.tensor([[0, 2, 2, 15], [0, 8, 14, 15]]),
}


@every_weights
@pytest.mark.parametrize("kind", OF_SAMPLES)
@pytest.mark.parametrize("cell", CELLS)
def test_samples_under_vmap_have_lengths_of_their_own(
    cell: str, kind: str, weights: torch.dtype | None
) -> None:
    frozen = freeze(OURS[cell](3, 4, 2, batch_first=True, bidirectional=True), weights)
    x, which = torch.randn(2, 3, 5, 3), OF_SAMPLES[kind]
    if kind == "cu_seqlens":
        x = x.flatten(1, 2)

    def call(x: Tensor, which: Tensor) -> tuple[Tensor, ...]:
        out, hx = frozen(x, **{kind: which})
        return (out, *states_of(hx))

    for b, got in enumerate(zip(*vmap(call)(x, which), strict=True)):
        for ours, truth in zip(got, call(x[b], which[b]), strict=True):
            # The reference's products are exact, those of the kernels are rounded to float32.
            torch.testing.assert_close(ours, truth, rtol=0, atol=1e-5)


@every_weights
def test_what_a_call_does_not_take(weights: torch.dtype | None) -> None:
    frozen = freeze(VarLenLSTM(3, 4), weights)
    with pytest.raises(NotImplementedError, match="output_states must be False, got True"):
        frozen(torch.randn(2, 3), output_states=True)
    with pytest.raises(TypeError, match=r"input must have .* torch\.float32, got torch\.float64"):
        frozen(torch.randn(2, 3).double())
    with pytest.raises(ValueError, match=r"input must be \[T, I\] .* I = 3, got \[2, 4\]"):
        frozen(torch.randn(2, 4))
    with pytest.raises(ValueError, match=r"hx \(c_0\) must be \[L \* D, H\] = \[1, 4\]"):
        frozen(torch.randn(2, 3), (torch.zeros(1, 4), torch.zeros(1, 5)))


# The type of the layer, and of its weights.
@pytest.mark.parametrize(
    ("dtype", "weights"),
    [
        (torch.float32, None),
        (torch.bfloat16, None),
        (torch.float16, None),
        (torch.float32, torch.bfloat16),
        (torch.float32, torch.int8),
    ],
    ids=str,
)
def test_under_autocast_and_inference_mode(dtype: torch.dtype, weights: torch.dtype | None) -> None:
    frozen, x = freeze(VarLenGRU(3, 4, dtype=dtype), weights), torch.randn(5, 3).to(dtype)
    expected, _ = frozen(x)
    with torch.autocast("cpu"), torch.inference_mode():
        out, h_n = frozen(x)
        assert_bitwise(out.clone(), expected)
        assert h_n.dtype == dtype
        # What another layer made 16-bit becomes float32 again, as before a softmax.
        for other in (torch.bfloat16, torch.float16, torch.float32):
            out, _ = frozen(x.to(other), h_n.to(other))
            assert_bitwise(out.clone(), frozen(x.to(other).to(dtype), h_n.to(other).to(dtype))[0])


def test_float64_stays_so_under_autocast() -> None:
    frozen, x = freeze(VarLenGRU(3, 4).double()), torch.randn(5, 3)
    expected, _ = frozen(x.double())
    with torch.autocast("cpu"):
        assert_bitwise(frozen(x.double())[0], expected)
        assert_bitwise(frozen(x)[0], expected)


@pytest.mark.skipif(not HAS_EXTENSION, reason="there are no compiled ops")
@pytest.mark.parametrize(
    ("cell", "weights"),
    [("lstm", None), ("gru", torch.bfloat16), ("lstm", torch.int8), ("gru", torch.int8)],
    ids=str,
)
def test_under_torch_compile_and_export(cell: str, weights: torch.dtype | None) -> None:
    frozen = freeze(OURS[cell](3, 4, 2, bidirectional=True), weights)
    compiled = torch.compile(frozen, fullgraph=True, backend="aot_eager", dynamic=True)
    x = torch.randn(5, 4, 3)
    assert_bitwise(compiled(x)[0], frozen(x)[0])
    exported = torch.export.export(frozen, (x,), {"lengths": torch.tensor([5, 0, 3, 3])}).module()
    for lengths in ([5, 0, 3, 3], [1, 1, 5, 2], [0, 0, 0, 0]):
        given = torch.tensor(lengths)
        expected, _ = frozen(x, lengths=given)
        assert_bitwise(compiled(x, lengths=given)[0], expected)
        assert_bitwise(exported(x, lengths=given)[0], expected)
