"""What surrounds an RNN in torch: autocast, devices, forward mode, batching, meta, compilers."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from helpers import CELLS, HAS_EXTENSION, OURS, assert_bitwise
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint

import varlen_rnn
from varlen_rnn import _extension, _forms

both_cells = pytest.mark.parametrize("cell", CELLS)
LENGTHS = [4, 0, 3]


class Tagger(nn.Module):
    def __init__(self, cell: str) -> None:
        super().__init__()
        self.before = nn.Linear(3, 6)
        self.rnn = OURS[cell](6, 5, 2, batch_first=True, bidirectional=True)
        self.after = nn.Linear(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.rnn(self.before(x), lengths=LENGTHS)[0])


@both_cells
@pytest.mark.parametrize("backward_inside", [True, False])
def test_a_model_trains_under_autocast(cell: str, backward_inside: bool) -> None:
    torch.manual_seed(0)
    model = Tagger(cell)
    x = torch.randn(3, 4, 3, requires_grad=True)
    exact = torch.autograd.grad(model(x).sum(), [x, *model.parameters()])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(x)
        if backward_inside:
            out.sum().backward()
    if not backward_inside:
        out.sum().backward()
    assert out.dtype == torch.bfloat16
    for tensor, gradient in zip([x, *model.parameters()], exact, strict=True):
        assert tensor.grad is not None
        assert tensor.grad.dtype == torch.float32
        assert (tensor.grad - gradient).norm() <= 0.05 * gradient.norm()


@both_cells
def test_autocast_runs_in_its_dtype_and_leaves_float64_alone(cell: str) -> None:
    rnn = OURS[cell](3, 5)
    x = torch.randn(4, 2, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert rnn(x)[0].dtype == torch.bfloat16
        assert rnn(x.bfloat16())[0].dtype == torch.bfloat16
        assert rnn(pack_padded_sequence(x, [4, 2]))[0].data.dtype == torch.bfloat16
        assert rnn.double()(x.double())[0].dtype == torch.float64


@both_cells
@pytest.mark.parametrize("batch_first", [False, True])
def test_a_default_device_plays_no_part(cell: str, batch_first: bool) -> None:
    rnn = OURS[cell](3, 5, batch_first=batch_first, bidirectional=True)
    x = torch.randn(3, 3, 3)
    packed = pack_padded_sequence(x, [3, 2, 1])
    expected = [rnn(x)[0], rnn(x, lengths=[1, 0, 3])[0], rnn(packed)[0].data]
    with torch.device("meta"):
        got = [rnn(x)[0], rnn(x, lengths=[1, 0, 3])[0], rnn(packed)[0].data]
    for result, truth in zip(got, expected, strict=True):
        assert torch.equal(result, truth)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
@both_cells
def test_forward_mode_agrees_with_reverse_mode(cell: str) -> None:
    rnn = OURS[cell](3, 5, bidirectional=True).double().requires_grad_(False)
    x, tangent = torch.randn(2, 4, 2, 3, dtype=torch.float64).unbind()
    with forward_ad.dual_level():
        out, _ = rnn(forward_ad.make_dual(x, tangent), lengths=[4, 2])
        directional = forward_ad.unpack_dual(out).tangent
    assert directional is not None
    d_out = torch.randn_like(directional)
    x.requires_grad_()
    (d_x,) = torch.autograd.grad(rnn(x, lengths=[4, 2])[0], x, d_out)
    torch.testing.assert_close((directional * d_out).sum(), (tangent * d_x).sum())


@both_cells
def test_batched_gradients_agree_with_single_ones(cell: str) -> None:
    rnn = OURS[cell](3, 5, batch_first=True, bidirectional=True).double()
    x = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    out, _ = rnn(x, lengths=[4, 2])
    d_outs = torch.randn(7, *out.shape, dtype=torch.float64)
    inputs = [x, *rnn.parameters()]
    batched = torch.autograd.grad(out, inputs, d_outs, retain_graph=True, is_grads_batched=True)
    for index, d_out in enumerate(d_outs):
        single = torch.autograd.grad(out, inputs, d_out, retain_graph=True)
        for got, expected in zip(batched, single, strict=True):
            torch.testing.assert_close(got[index], expected)


@both_cells
def test_shapes_on_meta_and_fake_tensors(cell: str) -> None:
    rnn = OURS[cell](3, 5, 2, batch_first=True, bidirectional=True)
    x = torch.randn(2, 4, 3)
    expected = rnn(x)[0].shape
    assert rnn.to("meta")(x.to("meta"))[0].shape == expected
    if not HAS_EXTENSION:
        return  # the reference loops over steps, so it needs to know how many there are
    with FakeTensorMode():
        fake = OURS[cell](3, 5, 2, batch_first=True, bidirectional=True)
        assert fake(torch.empty(2, 4, 3))[0].shape == expected


@both_cells
def test_a_graph_of_gradients_of_a_batch_without_tokens(cell: str) -> None:
    rnn = OURS[cell](3, 5)
    x = torch.randn(4, 2, 3, requires_grad=True)
    out, _ = rnn(x, lengths=[0, 0])
    inputs = [x, *rnn.parameters()]
    for gradient in torch.autograd.grad(out.sum(), inputs, create_graph=True):
        assert gradient.count_nonzero() == 0


@both_cells
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing(cell: str, use_reentrant: bool) -> None:
    model = Tagger(cell)
    x = torch.randn(3, 4, 3, requires_grad=True)
    leaves = [x, *model.parameters()]
    expected = torch.autograd.grad(model(x).sum(), leaves)
    checkpoint(model, x, use_reentrant=use_reentrant).sum().backward()
    for leaf, gradient in zip(leaves, expected, strict=True):
        assert leaf.grad is not None
        assert_bitwise(leaf.grad, gradient)


@both_cells
def test_directions_have_gradients_of_their_own(cell: str) -> None:
    """One may be changed in place while a graph holds the other, and be freed without it."""
    rnn = OURS[cell](3, 5, bidirectional=True)
    rnn(torch.randn(4, 2, 3))[0].sum().backward()
    gradients = [parameter.grad for parameter in rnn.parameters()]
    storages = [g.untyped_storage() for g in gradients if g is not None]
    assert len({s.data_ptr() for s in storages}) == len(storages) == 8
    scale = torch.ones((), requires_grad=True)
    loss = (scale * gradients[0]).sum()
    gradients[4].mul_(0.5)
    loss.backward()


# Of these devices only the first runs the kernels, says what stands for them.
CUDA = [torch.device("cuda", index) for index in range(2)]
NO_IMAGE = "cudaFuncGetAttributes: no kernel image is available"


@pytest.fixture
def _cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """CUDA kernels, as far as anyone asks for them before they run."""

    def why_not_on(index: int) -> str:
        torch._dynamo.graph_break()  # cannot be traced
        return {0: "", 1: NO_IMAGE}[index]

    kernels = SimpleNamespace(why_not_on=why_not_on)
    monkeypatch.setattr(varlen_rnn, "_C_cuda", kernels, raising=False)
    monkeypatch.setattr(_extension, "CUDA_UNAVAILABLE", None)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    _extension._runs_on.cache_clear()
    torch._dynamo.reset()
    yield
    _extension._runs_on.cache_clear()


needs_cuda_kernels = pytest.mark.usefixtures("_cuda")


@needs_cuda_kernels
def test_a_device_without_kernels_is_named_once() -> None:
    assert _extension.supports_cuda(CUDA[0])
    with pytest.warns(RuntimeWarning, match=rf"not in use on cuda:1 \({NO_IMAGE}\); the plain"):
        assert not _extension.supports_cuda(CUDA[1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not _extension.supports_cuda(CUDA[1])


@needs_cuda_kernels
def test_rocm_has_no_cuda_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    assert not _extension.supports_cuda(CUDA[0])


@needs_cuda_kernels
@pytest.mark.filterwarnings("ignore:varlen_rnn. the CUDA kernels are not in use")
def test_whether_there_are_kernels_is_a_constant_to_torch_compile() -> None:
    def choose(x: Tensor, device: torch.device) -> Tensor:
        return x + 1 if _extension.supports_cuda(device) else x - 1

    compiled = torch.compile(choose, backend="eager", fullgraph=True)
    for device, expected in zip(CUDA, (1, -1), strict=True):
        for _ in range(2):
            assert compiled(torch.zeros(()), device) == expected


def test_the_switch_of_tf32_is_read_under_torch_compile() -> None:
    rnn = torch.backends.cudnn.rnn

    def choose(x: Tensor) -> Tensor:
        return x + 1 if rnn.fp32_precision == "tf32" else x - 1

    compiled, before = torch.compile(choose, backend="eager", fullgraph=True), rnn.fp32_precision
    try:
        for precision, expected in (("tf32", 1), ("ieee", -1)):
            rnn.fp32_precision = precision
            assert compiled(torch.zeros(())) == expected
    finally:
        rnn.fp32_precision = before


@pytest.mark.skipif(not HAS_EXTENSION, reason="there are no ops")
@needs_cuda_kernels
@both_cells
@pytest.mark.parametrize("batch_first", [False, True])
def test_a_full_batch_on_cuda_takes_nothing_from_the_host(
    cell: str, batch_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is compiled in one graph: on fake tensors, which need no device."""
    monkeypatch.setattr(nn.RNNBase, "reset_parameters", lambda rnn: None)  # there are no numbers
    with FakeTensorMode(), torch.no_grad():
        rnn = OURS[cell](3, 5, 2, batch_first=batch_first, bidirectional=True, device="cuda")
        x = torch.empty(2, 4, 3, device="cuda")
        layout = _forms.read("test", x, (None,) * 4, batch_first, True).layout
        arrays = [layout.batch_sizes, layout.rows, layout.reverse]
        arrays += [layout.initial_row, layout.final_row]
        assert {array.device for array in arrays if array is not None} == {CUDA[0]}
        for run in (rnn, torch.compile(rnn, backend="eager", fullgraph=True)):
            out = run(x)[0]
            assert (out.shape, out.device) == ((2, 4, 10), CUDA[0])


def test_a_full_batch_on_cuda_without_kernels_does_not_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The reference reads how many rows each step has, so that stays on the CPU."""
    monkeypatch.setattr(_extension, "CUDA_UNAVAILABLE", "the test says so")
    with FakeTensorMode():
        x = torch.empty(2, 4, 3, device="cuda")
        layout = _forms.read("test", x, (None,) * 4, False, True).layout
    assert layout.batch_sizes.is_cpu
    assert layout.reverse.is_cuda
    assert layout.initial_row.is_cuda
