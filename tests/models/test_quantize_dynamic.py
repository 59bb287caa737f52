"""quantize_dynamic(): which modules it replaces, what they keep, and how well they do."""

from __future__ import annotations

import argparse
import copy
import importlib.util
import io
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from helpers import CELLS, HAS_EXTENSION, OURS, TORCH, assert_bitwise, load_example, states_of
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import grad, jacrev, jvp, vmap
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import pack_padded_sequence

from varlen_rnn import (
    QuantizedVarLenGRU,
    QuantizedVarLenLSTM,
    VarLenGRU,
    VarLenLSTM,
    convert,
    quantize_dynamic,
)

QUANTIZED = {"lstm": QuantizedVarLenLSTM, "gru": QuantizedVarLenGRU}
EXAMPLES = Path(__file__).parents[2] / "examples"


class OwnLSTM(nn.LSTM):
    """A subclass that is more than ``nn.LSTM``."""

    def half_of(self, x: Tensor) -> Tensor:
        return self(x)[0] / 2


pytestmark = pytest.mark.filterwarnings("ignore:quantize_dynamic. left as they are. 'own'")


class Tagger(nn.Module):
    """A model with recurrent modules at several depths, one of them in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 6)
        self.encoder = VarLenLSTM(6, 8, 2, batch_first=True, bidirectional=True, dropout=0.3)
        self.blocks = nn.ModuleList([nn.Linear(16, 6), VarLenGRU(6, 5, batch_first=True)])
        self.shared = self.blocks[1]
        self.theirs = nn.GRU(5, 4, batch_first=True)
        self.own = OwnLSTM(4, 4, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens ``[B, T]`` to ``[B, T, 4]``."""
        x, _ = self.encoder(self.embedding(tokens))
        x, _ = self.shared(self.blocks[0](x))
        return self.own(self.theirs(x)[0])[0]


def test_recurrent_modules_are_replaced_in_a_copy() -> None:
    model = Tagger().eval()
    before = pickle.dumps(model.state_dict())
    quantized = quantize_dynamic(model)
    assert type(model.encoder) is VarLenLSTM
    assert type(model.theirs) is nn.GRU
    assert pickle.dumps(model.state_dict()) == before
    assert type(quantized.encoder) is QuantizedVarLenLSTM
    assert type(quantized.shared) is QuantizedVarLenGRU
    assert quantized.shared is quantized.blocks[1]
    assert type(quantized.theirs) is QuantizedVarLenGRU
    assert type(quantized.own) is OwnLSTM
    assert type(quantized.blocks[0]) is nn.Linear
    tokens = torch.randint(10, (3, 7))
    assert torch.allclose(quantized(tokens), model(tokens), atol=0.02)
    assert repr(quantized.encoder) == (
        "QuantizedVarLenLSTM(6, 8, num_layers=2, batch_first=True, dropout=0.3, bidirectional=True)"
    )
    names = {name for name, _ in quantized.named_parameters()}
    assert not any(name.startswith(("encoder", "shared", "theirs")) for name in names)
    again = quantize_dynamic(quantized)
    assert_bitwise(again(tokens), quantized(tokens))


def test_in_place() -> None:
    model = Tagger()
    encoder = model.encoder
    assert quantize_dynamic(model, inplace=True) is model
    assert model.encoder is encoder
    assert type(encoder) is QuantizedVarLenLSTM


@pytest.mark.parametrize("cell", CELLS)
def test_the_module_itself_may_be_the_model(cell: str) -> None:
    for rnn in (OURS[cell](3, 4), TORCH[cell](3, 4)):
        quantized = quantize_dynamic(rnn)
        assert type(quantized) is QUANTIZED[cell]
        assert type(rnn) in (OURS[cell], TORCH[cell])


def test_hooks_and_the_training_flag_stay() -> None:
    rnn, seen = VarLenGRU(3, 4).eval(), []
    rnn.register_forward_pre_hook(lambda *_: seen.append("before"))
    rnn.register_forward_hook(lambda *_: seen.append("after"))
    quantized = quantize_dynamic(rnn)
    quantized(torch.randn(2, 3))
    assert seen == ["before", "after"]
    assert not quantized.training


@pytest.mark.parametrize("module", [VarLenLSTM, nn.LSTM])
def test_parametrised_weights_are_quantised_as_they_are(module: type[nn.RNNBase]) -> None:
    rnn = parametrizations.weight_norm(module(3, 4), "weight_hh_l0")
    with torch.no_grad():
        rnn.parametrizations.weight_hh_l0.original0 *= 2
    plain = VarLenLSTM(3, 4)
    plain.load_state_dict({name: getattr(rnn, name) for name in plain.state_dict()})
    quantized = quantize_dynamic(rnn)
    assert type(quantized) is QuantizedVarLenLSTM
    x = torch.randn(5, 2, 3)
    assert_bitwise(quantized(x)[0], quantize_dynamic(plain)(x)[0])
    rnn(x)  # is as it was


def test_copies_of_a_parametrised_layer_share_their_class_and_nothing_else() -> None:
    rnn = parametrizations.weight_norm(VarLenLSTM(3, 4), "weight_hh_l0")
    sibling, x = copy.deepcopy(rnn), torch.randn(5, 2, 3)
    before = sibling(x)[0].detach()
    both = quantize_dynamic(nn.ModuleList([rnn, copy.deepcopy(rnn)]), inplace=True)
    assert_bitwise(both[0](x)[0], both[1](x)[0])
    assert_bitwise(sibling(x)[0].detach(), before)


def test_a_model_without_values_is_quantised_for_values_to_come() -> None:
    empty = quantize_dynamic(VarLenLSTM(3, 4, device="meta"))
    full = quantize_dynamic(VarLenLSTM(3, 4))
    empty.load_state_dict(full.state_dict(), assign=True)
    x = torch.randn(5, 2, 3)
    assert_bitwise(empty(x)[0], full(x)[0])


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (lambda: "LSTM", TypeError, "model must be an nn.Module, got str"),
        (
            lambda: nn.Sequential(nn.GRU(3, 4), VarLenLSTM(3, 4, proj_size=2)),
            NotImplementedError,
            r"1\.proj_size must be 0, got 2",
        ),
        (
            lambda: nn.Sequential(VarLenGRU(3, 4).double()),
            TypeError,
            r"0\.weight_ih_l0 must be float32, got torch\.float64",
        ),
        (lambda: infinite(VarLenGRU(3, 4)), ValueError, "weight_hh_l0 must be finite, got NaN"),
        (
            lambda: prune.l1_unstructured(VarLenGRU(3, 4), "weight_hh_l0", 3),
            ValueError,
            "weight_hh_l0 must be a parameter, got an attribute that a hook computes",
        ),
        (
            lambda: VarLenGRU(133145, 1),
            ValueError,
            "input_size and hidden_size must be in .*, got .133145, 1",
        ),
    ],
)
def test_what_cannot_be_quantised_raises(
    model: Callable[[], nn.Module], error: type[Exception], message: str
) -> None:
    built = model()
    before = repr(built), pickle.dumps(built)
    with pytest.raises(error, match=f"quantize_dynamic: {message}"):
        quantize_dynamic(built, inplace=True)
    assert (repr(built), pickle.dumps(built)) == before


def infinite(rnn: nn.Module) -> nn.Module:
    with torch.no_grad():
        rnn.weight_hh_l0[0, 0] = torch.inf
    return rnn


def forms_of_copying() -> dict[str, Callable[[nn.Module], Any]]:
    def through_torch_save(module: nn.Module) -> Any:
        file = io.BytesIO()
        torch.save(module, file)
        return torch.load(io.BytesIO(file.getvalue()), weights_only=False)

    def through_a_state_dict(module: Any) -> Any:
        fresh = type(module)(7, 19, 2, bidirectional=True)
        file = io.BytesIO()
        torch.save(module.state_dict(), file)
        fresh.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
        return fresh

    return {
        "deepcopy": copy.deepcopy,
        "pickle": lambda module: pickle.loads(pickle.dumps(module)),
        "torch.save": through_torch_save,
        "state_dict": through_a_state_dict,
        "double and back": lambda module: copy.deepcopy(module).double().half().float(),
    }


@pytest.mark.parametrize("how", forms_of_copying())
@pytest.mark.parametrize("cell", CELLS)
def test_copies_compute_the_same_bits(cell: str, how: str) -> None:
    quantized = quantize_dynamic(OURS[cell](7, 19, 2, bidirectional=True))
    other = forms_of_copying()[how](quantized)
    x = torch.randn(6, 3, 7)
    assert_bitwise(other(x)[0], quantized(x)[0])
    assert type(other) is type(quantized)
    own = {name: buffer.data_ptr() for name, buffer in other.named_buffers()}
    assert not any(buffer.data_ptr() == own[name] for name, buffer in quantized.named_buffers())


@pytest.mark.parametrize("options", [{}, {"strict": False}, {"assign": True}], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_a_state_dict_of_the_other_kind(cell: str, options: dict[str, bool]) -> None:
    """One line says what to do, and nothing is loaded."""
    model = nn.ModuleDict({"rnn": OURS[cell](3, 4, 2, bidirectional=True), "head": nn.Linear(8, 2)})
    quantized = quantize_dynamic(model)
    cases = (
        (
            quantized,
            f"Quantized{type(model['rnn']).__name__}: rnn.weight_ih_l0 must be torch.int8, got "
            "torch.float32; load it into the model before quantize_dynamic",
        ),
        (
            model,
            f"{type(model['rnn']).__name__}: rnn.weight_ih_l0 must be floating point, got "
            "torch.int8; load it into quantize_dynamic(model)",
        ),
    )
    for module, message in cases:
        other = model if module is quantized else quantized
        before = copy.deepcopy(module["rnn"].state_dict())
        with pytest.raises(RuntimeError, match="Error") as error:
            module.load_state_dict(other.state_dict(), **options)
        assert str(error.value).splitlines()[1:] == [f"\t{message}"]
        for name, tensor in module["rnn"].state_dict().items():
            assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("make", [VarLenLSTM, QuantizedVarLenLSTM])
def test_a_state_dict_of_the_same_kind_is_loaded_as_ever(make: type[nn.Module]) -> None:
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


def test_weights_take_a_quarter_of_the_memory() -> None:
    rnn = VarLenLSTM(256, 256)
    sizes = [sum(t.nbytes for t in m.state_dict().values()) for m in (quantize_dynamic(rnn), rnn)]
    assert sizes[0] < 0.27 * sizes[1]


NO_DERIVATIVE = r"^Quantized\w+: a layer with int8 weights must be used for inference alone, got a"


class Embedded(nn.Module):
    """Trainable layers before and behind one with int8 weights."""

    def __init__(self, cell: str, **options: Any) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 3)
        self.rnn = quantize_dynamic(OURS[cell](3, 4, batch_first=True, **options))
        self.head = nn.Linear(4, 2)

    def forward(self, tokens: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Tokens ``[B, T]`` to ``[B, T, 2]``."""
        return self.head(self.rnn(self.embedding(tokens), lengths=lengths)[0])


TOKENS, LENGTHS = torch.randint(10, (3, 5)), torch.tensor([5, 0, 2])


@pytest.mark.parametrize("cell", CELLS)
def test_a_backward_pass_that_comes_through_raises(cell: str) -> None:
    model = Embedded(cell, num_layers=2)
    expected = model(TOKENS, LENGTHS)
    with pytest.raises(NotImplementedError, match=NO_DERIVATIVE + " gradient; train the model"):
        expected.sum().backward()
    assert model.embedding.weight.grad is None
    with torch.no_grad():
        assert_bitwise(model(TOKENS, LENGTHS), expected.detach())
    with torch.inference_mode():
        assert_bitwise(model(TOKENS, LENGTHS).clone(), expected.detach())


@pytest.mark.parametrize("of", ["out", "h_n", "c_n"])
@pytest.mark.parametrize("argument", ["x", "h_0", "c_0"])
def test_every_result_requires_a_gradient_if_an_argument_does(argument: str, of: str) -> None:
    rnn = quantize_dynamic(VarLenLSTM(3, 4))
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


@pytest.mark.parametrize("cell", CELLS)
def test_what_comes_behind_can_be_trained(cell: str) -> None:
    model = Embedded(cell)
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
    model = Embedded("lstm")
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    for tokens, lengths in ((TOKENS, LENGTHS), (TOKENS[:2, :4], torch.tensor([0, 4]))):
        out = compiled(tokens, lengths)
        torch.testing.assert_close(out, model(tokens, lengths))
        with pytest.raises(NotImplementedError, match=NO_DERIVATIVE[1:]):
            out.sum().backward()
    torch._dynamo.reset()


@pytest.mark.skipif(not HAS_EXTENSION, reason="there are no compiled ops")
@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_program_holds_inference_alone(strict: bool) -> None:
    model = Embedded("gru")
    program = torch.export.export(model, (TOKENS, LENGTHS), strict=strict)
    assert not any("clone" in str(node.target) for node in program.graph.nodes)
    assert_bitwise(program.module()(TOKENS, LENGTHS).detach(), model(TOKENS, LENGTHS).detach())


# Forward mode's own functions are made by torch.jit.script.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*is (deprecated|not supported)")
@pytest.mark.parametrize("cell", CELLS)
def test_transforms_that_want_a_derivative_raise(cell: str) -> None:
    quantized = quantize_dynamic(OURS[cell](3, 4))
    x = torch.randn(2, 3)

    def loss(x: Tensor) -> Tensor:
        return quantized(x)[0].sum()

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
    assert (grad(lambda w: (w * quantized(x)[0]).sum())(torch.ones(4)) != 0).all()
    for given in (x[None], x[None].requires_grad_()):
        torch.testing.assert_close(vmap(loss)(given)[0], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("cell", CELLS)
def test_flags_may_be_floats_or_have_a_last_dimension(cell: str) -> None:
    quantized = quantize_dynamic(OURS[cell](3, 4, batch_first=True))
    x, flags = torch.randn(3, 5, 3), torch.rand(3, 5) < 0.4
    for name in ("mask", "resets"):
        expected, _ = quantized(x, **{name: flags})
        assert_bitwise(quantized(x, **{name: flags.float()})[0], expected)
        with pytest.raises(ValueError, match=rf"{name} must be .*, got 0\.5 at index \[0, 0\]"):
            quantized(x, **{name: torch.full((3, 5), 0.5)})
    assert_bitwise(quantized(x, resets=flags.unsqueeze(2).half())[0], expected)
    of_samples = torch.stack([flags, ~flags])
    of_each = vmap(lambda resets: quantized(x, resets=resets)[0])
    got = of_each(of_samples.unsqueeze(3).float())
    torch.testing.assert_close(got, of_each(of_samples), rtol=0, atol=0)
    torch.testing.assert_close(got[0], expected, rtol=0, atol=1e-5)


OF_SAMPLES = {
    "lengths": torch.tensor([[5, 0, 2], [1, 5, 4]]),
    "mask": torch.rand(2, 3, 5) < 0.5,
    "resets": torch.rand(2, 3, 5) < 0.3,
    "cu_seqlens": torch.tensor([[0, 2, 2, 15], [0, 8, 14, 15]]),
}


@pytest.mark.parametrize("kind", OF_SAMPLES)
@pytest.mark.parametrize("cell", CELLS)
def test_samples_under_vmap_have_lengths_of_their_own(cell: str, kind: str) -> None:
    quantized = quantize_dynamic(OURS[cell](3, 4, 2, batch_first=True, bidirectional=True))
    x, which = torch.randn(2, 3, 5, 3), OF_SAMPLES[kind]
    if kind == "cu_seqlens":
        x = x.flatten(1, 2)

    def call(x: Tensor, which: Tensor) -> tuple[Tensor, ...]:
        out, hx = quantized(x, **{kind: which})
        return (out, *states_of(hx))

    for b, got in enumerate(zip(*vmap(call)(x, which), strict=True)):
        for ours, truth in zip(got, call(x[b], which[b]), strict=True):
            # The reference's products are exact, those of the kernels are rounded to float32.
            torch.testing.assert_close(ours, truth, rtol=0, atol=1e-5)


def test_what_a_call_does_not_take() -> None:
    quantized = quantize_dynamic(VarLenLSTM(3, 4))
    with pytest.raises(NotImplementedError, match="output_states must be False, got True"):
        quantized(torch.randn(2, 3), output_states=True)
    with pytest.raises(TypeError, match=r"input must have .* torch\.float32, got torch\.float64"):
        quantized(torch.randn(2, 3).double())
    with pytest.raises(ValueError, match=r"input must be \[T, I\] .* I = 3, got \[2, 4\]"):
        quantized(torch.randn(2, 4))
    with pytest.raises(ValueError, match=r"hx \(c_0\) must be \[L \* D, H\] = \[1, 4\]"):
        quantized(torch.randn(2, 3), (torch.zeros(1, 4), torch.zeros(1, 5)))


def test_under_autocast_and_inference_mode() -> None:
    quantized, x = quantize_dynamic(VarLenGRU(3, 4)), torch.randn(5, 3)
    expected, _ = quantized(x)
    with torch.autocast("cpu"), torch.inference_mode():
        assert_bitwise(quantized(x)[0].clone(), expected)
        # What another layer made 16-bit becomes float32 again, as before a softmax.
        assert_bitwise(quantized(x.bfloat16())[0].clone(), quantized(x.bfloat16().float())[0])


@pytest.mark.skipif(not HAS_EXTENSION, reason="there are no compiled ops")
@pytest.mark.parametrize("cell", CELLS)
def test_under_torch_compile_and_export(cell: str) -> None:
    quantized = quantize_dynamic(OURS[cell](3, 4, 2, bidirectional=True))
    compiled = torch.compile(quantized, fullgraph=True, backend="aot_eager", dynamic=True)
    x = torch.randn(5, 4, 3)
    assert_bitwise(compiled(x)[0], quantized(x)[0])
    exported = torch.export.export(
        quantized, (x,), {"lengths": torch.tensor([5, 0, 3, 3])}
    ).module()
    for lengths in ([5, 0, 3, 3], [1, 1, 5, 2], [0, 0, 0, 0]):
        given = torch.tensor(lengths)
        expected, _ = quantized(x, lengths=given)
        assert_bitwise(compiled(x, lengths=given)[0], expected)
        assert_bitwise(exported(x, lengths=given)[0], expected)


needs_matplotlib = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("matplotlib", "tqdm", "babel")),
    reason="the examples need matplotlib, tqdm and babel",
)
# Of the test set, in either direction.
MOST_ACCURACY_LOST = 0.005


@needs_matplotlib
@pytest.mark.parametrize("cell", CELLS)
def test_accuracy_on_japanese_vowels(cell: str) -> None:
    example = load_example(EXAMPLES / "japanese_vowels.py")
    recordings = example.Recordings()
    run = example.Run(convert(example.SpeakerClassifier(cell, 32)), learning_rate=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(8):
        run.train_epoch(recordings.train_batches(27, generator))
    batch = recordings.batch(recordings.test_rows)
    run.test(batch)
    run.model = quantize_dynamic(run.model)
    run.test(batch)
    accuracy, quantized = run.accuracies
    assert accuracy > 0.9
    assert abs(quantized - accuracy) <= MOST_ACCURACY_LOST


@pytest.fixture
def name_language(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[ModuleType, ...]]:
    """The example's modules ``names``, ``model``, ``padding`` and ``training``."""
    monkeypatch.syspath_prepend(EXAMPLES / "name_language")
    names = ("names", "model", "padding", "training")
    yield tuple(importlib.import_module(name) for name in names)
    for name in names:
        sys.modules.pop(name, None)


@needs_matplotlib
def test_accuracy_on_name_language(name_language: tuple[ModuleType, ...]) -> None:
    names, model, padding, training = name_language
    train_names, test_names, num_ids = names.load(4)
    classifier = model.NameClassifier(num_ids, 32)
    options = argparse.Namespace(epochs=3, batch_size=32, lr=1e-2)
    curves = training.train(classifier, train_names, test_names, options)
    logits = padding.evaluate(quantize_dynamic(classifier), test_names.ids, padding.as_trained)
    accuracy = training.accuracy(logits.argmax(dim=1), test_names.labels)
    assert curves.accuracy[-1] > 0.3
    assert abs(accuracy - curves.accuracy[-1]) <= MOST_ACCURACY_LOST


def test_packed_input_in_a_model() -> None:
    rnn = convert(nn.LSTM(3, 8, bidirectional=True))
    x = pack_padded_sequence(torch.randn(5, 3, 3), [5, 2, 4], enforce_sorted=False)
    (out, _), (truth, _) = quantize_dynamic(rnn)(x), rnn(x)
    assert torch.allclose(out.data, truth.data, atol=0.02)
    assert torch.equal(out.batch_sizes, truth.batch_sizes)
