"""What surrounds an RNN in torch: devices, checkpoints, hooks, tracers, other processes."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
import torch.multiprocessing as mp
from helpers import CELLS, HAS_EXTENSION, OURS, Tagger, assert_bitwise, states_of
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint

import varlen_rnn
from varlen_rnn.layout import device_check, forms
from varlen_rnn.ops import self_check
from varlen_rnn.runtime import extension

both_cells = pytest.mark.parametrize("cell", CELLS)
LENGTHS = [4, 0, 3]


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
def test_checkpointing_computes_again_with_the_same_dropout(cell: str) -> None:
    rnn = OURS[cell](3, 5, 2, batch_first=True, dropout=0.5)
    x = torch.randn(3, 4, 3, requires_grad=True)
    leaves = [x, *rnn.parameters()]
    found = []
    for wrap in (False, True):
        torch.manual_seed(7)

        def run(x: Tensor) -> Tensor:
            return rnn(x, lengths=LENGTHS)[0]

        out = checkpoint(run, x, use_reentrant=False) if wrap else run(x)
        found.append(torch.autograd.grad(out.square().sum(), leaves))
    for got, expected in zip(found[1], found[0], strict=True):
        assert_bitwise(got, expected)


@both_cells
def test_hooks_see_arguments_and_gradients_and_may_change_them(cell: str) -> None:
    rnn = OURS[cell](3, 5, batch_first=True)
    x = torch.randn(3, 4, 3, requires_grad=True)
    expected, _ = rnn(2 * x, lengths=LENGTHS)
    (d_x,) = torch.autograd.grad(expected.sum(), x)
    seen = {}

    def before(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, object]) -> object:
        seen["given"] = kwargs["lengths"]
        return (2 * args[0],), kwargs

    def after(
        module: nn.Module, args: object, kwargs: object, output: tuple[Tensor, object]
    ) -> object:
        return output[0] * 3, output[1]

    def backward(module: nn.Module, d_input: tuple[Tensor, ...], d_output: tuple) -> object:
        seen["d_input"], seen["d_output"] = d_input[0], d_output[0]
        return (d_input[0] * 5,)

    rnn.register_forward_pre_hook(before, with_kwargs=True)
    rnn.register_forward_hook(after, with_kwargs=True)
    rnn.register_full_backward_pre_hook(lambda module, d_output: None)
    rnn.register_full_backward_hook(backward)
    out, _ = rnn(x, lengths=LENGTHS)
    assert_bitwise(out.detach(), 3 * expected.detach())
    out.sum().backward()
    assert seen["given"] == LENGTHS
    assert seen["d_output"].shape == out.shape
    torch.testing.assert_close(x.grad, 2 * 3 * 5 * d_x / 2)
    torch.testing.assert_close(seen["d_input"], 3 * d_x / 2)


@pytest.mark.parametrize("num_layers", [1, 2])
@both_cells
def test_a_hook_on_a_final_state_is_called_if_there_is_a_gradient(
    cell: str, num_layers: int
) -> None:
    rnn = OURS[cell](3, 5, num_layers)
    out, hx = rnn(torch.randn(4, 2, 3))
    calls: list[Tensor] = []
    for state in states_of(hx):
        state.register_hook(lambda d: calls.append(d.clamp(-1, 1)))
    out.sum().backward(retain_graph=True)
    assert not calls
    states_of(hx)[0].sum().backward()
    assert [d.shape for d in calls] == [(num_layers, 2, 5)]
    for state in states_of(hx):  # in place, as truncated backpropagation through time has it
        assert not state.detach_().requires_grad


@both_cells
def test_hooks_on_tensors_and_parameters(cell: str) -> None:
    rnn = OURS[cell](3, 5)
    x = torch.randn(4, 2, 3)
    (expected,) = torch.autograd.grad(rnn(x)[0].sum(), rnn.weight_hh_l0)
    calls = []
    rnn.weight_hh_l0.register_hook(lambda d: 2 * d)
    rnn.weight_hh_l0.register_post_accumulate_grad_hook(lambda p: calls.append(p))
    with torch.autograd.graph.save_on_cpu():
        out, _ = rnn(x)
    out.sum().backward()
    assert_bitwise(rnn.weight_hh_l0.grad, 2 * expected)
    assert calls == [rnn.weight_hh_l0]


class RunInWorkers(torch.utils.data.Dataset):
    """Features that a frozen module computes where the samples are loaded."""

    def __init__(self, rnn: nn.RNNBase, batches: Tensor) -> None:
        self.rnn, self.batches = rnn, batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Tensor:
        with torch.no_grad():
            return self.rnn(self.batches[index], lengths=LENGTHS)[0]


class Collate:
    """The same, of a whole batch of samples."""

    def __init__(self, rnn: nn.RNNBase) -> None:
        self.rnn = rnn

    def __call__(self, samples: list[Tensor]) -> Tensor:
        with torch.no_grad():
            return torch.stack([self.rnn(x, lengths=LENGTHS)[0] for x in samples])


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize(("cell", "start"), [("lstm", "fork"), ("gru", "fork"), ("lstm", "spawn")])
def test_in_workers_of_a_data_loader(
    cell: str, start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the parent has run it, too."""
    if start not in mp.get_all_start_methods():
        pytest.skip(f"there is no {start} here")
    if not HAS_EXTENSION:
        monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    rnn = OURS[cell](3, 5, 2, batch_first=True, bidirectional=True).requires_grad_(False)
    batches = torch.randn(4, 3, 4, 3)
    expected = [rnn(x, lengths=LENGTHS)[0] for x in batches]
    sources = [(RunInWorkers(rnn, batches), None), (batches, Collate(rnn))]
    for dataset, collate in sources if start == "fork" else sources[:1]:
        loader = torch.utils.data.DataLoader(
            dataset, 2, num_workers=1, multiprocessing_context=start, collate_fn=collate
        )
        for got, truth in zip(torch.cat(list(loader)), expected, strict=True):
            assert_bitwise(got, truth)


def train_in_child(model: nn.ModuleList, x: Tensor) -> None:
    torch.set_num_threads(1)
    for rnn in model:
        rnn(x, lengths=LENGTHS)[0].sum().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.sub_(parameter.grad)


def test_weights_shared_with_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """As asynchronous training does: what the child writes the parent computes with."""
    if not HAS_EXTENSION:
        monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    model = nn.ModuleList(OURS[cell](3, 5, batch_first=True) for cell in CELLS)
    x = torch.randn(3, 4, 3)
    twin = copy.deepcopy(model)
    train_in_child(twin, x)
    assert model.share_memory() is model
    assert all(p.is_shared() for p in model.parameters())
    child = mp.get_context("spawn").Process(target=train_in_child, args=(model, x))
    child.start()
    child.join(120)
    assert child.exitcode == 0
    for got, expected in zip(model.parameters(), twin.parameters(), strict=True):
        assert_bitwise(got.detach(), expected.detach())
    for rnn, other in zip(model, twin, strict=True):
        out, expected = (m(x, lengths=LENGTHS)[0].detach() for m in (rnn, other))
        assert_bitwise(out, expected)


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
    monkeypatch.setattr(extension, "CUDA_UNAVAILABLE", None)
    monkeypatch.setattr(extension, "CUDA_SELF_CHECK", False)
    monkeypatch.setattr(extension, "_said_unproven", True)
    for checked in (self_check, device_check):
        monkeypatch.setattr(checked, "_trusted", {})
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    extension._runs_on.cache_clear()
    torch._dynamo.reset()
    yield
    extension._runs_on.cache_clear()


needs_cuda_kernels = pytest.mark.usefixtures("_cuda")


@needs_cuda_kernels
def test_a_device_without_kernels_is_named_once() -> None:
    assert extension.supports_cuda(CUDA[0])
    with pytest.warns(RuntimeWarning, match=rf"not in use on cuda:1 \({NO_IMAGE}\); the plain"):
        assert not extension.supports_cuda(CUDA[1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not extension.supports_cuda(CUDA[1])


@needs_cuda_kernels
def test_rocm_has_no_cuda_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    assert not extension.supports_cuda(CUDA[0])


@needs_cuda_kernels
@pytest.mark.filterwarnings("ignore:varlen_rnn. the CUDA kernels are not in use")
def test_whether_there_are_kernels_is_a_constant_to_torch_compile() -> None:
    def choose(x: Tensor, device: torch.device) -> Tensor:
        return x + 1 if extension.supports_cuda(device) else x - 1

    compiled = torch.compile(choose, backend="eager", fullgraph=True)
    for device, expected in zip(CUDA, (1, -1), strict=True):
        for _ in range(2):
            assert compiled(torch.zeros(()), device) == expected


@pytest.mark.skipif(torch.__version__ < "2.11", reason="torch 2.10 takes it for a constant")
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
        layout = forms.read("test", x, (None,) * 4, batch_first, True).layout
        arrays = [layout.batch_sizes, layout.rows, layout.reverse]
        arrays += [layout.initial_row, layout.final_segment]
        assert {array.device for array in arrays if array is not None} == {CUDA[0]}
        for run in (rnn, torch.compile(rnn, backend="eager", fullgraph=True)):
            out = run(x)[0]
            assert (out.shape, out.device) == ((2, 4, 10), CUDA[0])


@pytest.mark.skipif(not HAS_EXTENSION, reason="without it nobody asks for CUDA")
def test_a_full_batch_on_cuda_without_kernels_does_not_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The reference reads how many rows each step has, so that stays on the CPU."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(extension, "CUDA_UNAVAILABLE", "the test says so")
    extension._runs_on.cache_clear()
    said = r"not in use on cuda:0 \(the test says so\); the plain PyTorch reference runs"
    with FakeTensorMode():
        x = torch.empty(2, 4, 3, device="cuda")
        with pytest.warns(RuntimeWarning, match=said):
            layout = forms.read("test", x, (None,) * 4, False, True).layout
    extension._runs_on.cache_clear()
    assert layout.batch_sizes.is_cpu
    assert layout.reverse.is_cuda
    assert layout.initial_row.is_cuda
