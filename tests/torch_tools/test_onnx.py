"""ONNX export, against ONNX Runtime: the truth is a torch module on a ``PackedSequence``.

An export takes seconds, so that all tests of a configuration share one.
"""

from __future__ import annotations

import functools
import io
import subprocess
import sys
from typing import Any, NamedTuple

import pytest
import torch
from helpers import (
    CELLS,
    HAS_EXTENSION,
    OURS,
    as_hx,
    max_error,
    pair,
    random_hx,
    states_of,
    torch_packed,
)
from torch import Tensor, nn
from torch.export import Dim
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import varlen_rnn
from varlen_rnn.modules import onnx as our_export

REASON = "an export needs onnx and onnxscript, and ONNX Runtime checks it"
onnx = pytest.importorskip("onnx", reason=REASON)
pytest.importorskip("onnxscript", reason=REASON)
onnxruntime = pytest.importorskip("onnxruntime", reason=REASON)

# Torch's own, of its exporter; the second one comes because all batch dimensions are the same.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),
    pytest.mark.filterwarnings("ignore:# The axis name. batch will not be used"),
]
both_cells = pytest.mark.parametrize("cell", CELLS)

INPUT_SIZE, HIDDEN_SIZE = 5, 7
TOLERANCE = 1e-5
BATCH, TIME = Dim("batch"), Dim("time")
# None of them is the batch that was exported: rows, steps, lengths.
BATCHES = {
    "many rows": (6, 9, [4, 9, 0, 1, 7, 0]),
    "no row full": (4, 8, [3, 5, 1, 2]),
    "one row": (1, 4, [3]),
    "one step": (3, 1, [1, 0, 1]),
    "empty rows": (2, 3, [0, 0]),
}


class Config(NamedTuple):
    num_layers: int
    bidirectional: bool
    batch_first: bool
    with_hx: bool

    def __str__(self) -> str:
        directions = "bi" if self.bidirectional else "uni"
        form = "batch_first" if self.batch_first else "time_first"
        return f"{self.num_layers}-{directions}-{form}-{'hx' if self.with_hx else 'zeros'}"


# Of every two options each combination, for each cell; the cells have opposite ones.
PAIRS = [(0, 0, 0, 0), (0, 1, 1, 1), (1, 0, 1, 1), (1, 1, 0, 1), (1, 1, 1, 0)]
CASES = [
    (cell, Config(1 + (deep ^ flip), *[bool(option ^ flip) for option in options]))
    for cell, flip in (("lstm", 1), ("gru", 0))
    for deep, *options in PAIRS
]
every_case = pytest.mark.parametrize(("cell", "config"), CASES, ids=str)


def modules_of(cell: str, config: Config) -> tuple[nn.RNNBase, nn.RNNBase]:
    """The torch module and ours, in eval mode."""
    theirs, ours = pair(
        cell,
        INPUT_SIZE,
        HIDDEN_SIZE,
        config.num_layers,
        batch_first=config.batch_first,
        bidirectional=config.bidirectional,
        dropout=0.5 * (config.num_layers > 1),
    )
    return theirs.eval(), ours.eval()


def export(model: nn.Module, args: tuple[Any, ...], dynamic_shapes: Any) -> Any:
    return torch.onnx.export(
        model.eval(), args, dynamo=True, dynamic_shapes=dynamic_shapes, verbose=False
    )


class Session:
    """ONNX Runtime on an exported model; results come as a flat list."""

    def __init__(self, program: Any) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.model = program.model_proto
        self.session = onnxruntime.InferenceSession(
            self.model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        names = [value.name for value in self.session.get_inputs()]
        arrays = [tensor.numpy() for tensor in inputs]
        results = self.session.run(None, dict(zip(names, arrays, strict=True)))
        return [torch.from_numpy(array) for array in results]


class WithStates(nn.Module):
    """The module, with the names that the tests look for."""

    def __init__(self, rnn: nn.RNNBase) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(
        self, x: Tensor, lengths: Tensor, states: list[Tensor] | None = None
    ) -> list[Tensor]:
        out, finals = self.rnn(x, as_hx(states or []), lengths=lengths)
        return [out, *states_of(finals)]


@functools.cache
def session_of(cell: str, config: Config) -> Session:
    _, rnn = modules_of(cell, config)
    x, lengths = torch.randn(3, 6, INPUT_SIZE), torch.tensor([6, 0, 2])
    states = random_hx(rnn, 3) if config.with_hx else []
    row, step = (0, 1) if config.batch_first else (1, 0)
    x = x if config.batch_first else x.transpose(0, 1)
    args, shapes = (x, lengths), ({row: BATCH, step: TIME}, {0: BATCH})
    if states:
        args, shapes = (*args, states), (*shapes, [{1: BATCH} for _ in states])
    return Session(export(WithStates(rnn), args, shapes))


@every_case
@pytest.mark.parametrize("name", BATCHES)
def test_onnx_runtime_gives_the_same(cell: str, config: Config, name: str) -> None:
    num_rows, num_steps, lengths = BATCHES[name]
    theirs, _ = modules_of(cell, config)
    x = torch.randn(num_rows, num_steps, INPUT_SIZE)
    states = random_hx(theirs, num_rows) if config.with_hx else []
    with torch.no_grad():
        out, finals = torch_packed(theirs, x, states, lengths)
    for row, length in zip(x, lengths, strict=True):
        row[length:] = float("nan")  # padding may hold anything
    given = x if config.batch_first else x.transpose(0, 1).contiguous()
    got, *got_finals = session_of(cell, config)(given, torch.tensor(lengths), *states)
    got = got if config.batch_first else got.transpose(0, 1)
    assert max_error(got, out) <= TOLERANCE
    for got_final, final in zip(got_finals, finals, strict=True):
        assert max_error(got_final, final) <= TOLERANCE
    for b, length in enumerate(lengths):
        assert not got[b, length:].any()
        if length == 0:
            for got_final, final in zip(got_finals, finals, strict=True):
                assert torch.equal(got_final[:, b], final[:, b])


@every_case
def test_every_layer_is_one_node_that_knows_the_lengths(cell: str, config: Config) -> None:
    graph = session_of(cell, config).model.graph
    source = {output: node for node in graph.node for output in node.output}
    nodes = [node for node in graph.node if node.op_type == cell.upper()]
    assert len(nodes) == config.num_layers
    assert {node.domain for node in graph.node} == {""}
    assert not [node for node in graph.node if node.op_type == "Dropout"]
    for node in nodes:
        cast = source[node.input[4]]
        assert cast.op_type == "Cast"
        assert source[cast.input[0]].input[0] == "lengths"  # of what keeps them in 32 bits
    inputs = {value.name: value.type.tensor_type for value in graph.input}
    assert inputs["lengths"].elem_type == onnx.TensorProto.INT64
    assert [d.dim_param for d in inputs["lengths"].shape.dim] == ["batch"]
    row, step = (0, 1) if config.batch_first else (1, 0)
    assert inputs["x"].shape.dim[row].dim_param == "batch"
    assert inputs["x"].shape.dim[step].dim_param == "time"


class Tagger(nn.Module):
    """A model that holds more than one module, and gives them what ONNX can express."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, INPUT_SIZE)
        self.lstm = OURS["lstm"](INPUT_SIZE, 6, bias=False, batch_first=True, bidirectional=True)
        self.gru = OURS["gru"](12, 4, bias=False, batch_first=True)
        self.lstm16 = OURS["lstm"](4, 3, dtype=torch.bfloat16)
        self.linear = nn.Linear(4, 3)

    def forward(self, ids: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        x, (h_n, c_n) = self.lstm(self.embedding(ids), lengths=lengths)
        tags = self.linear(self.gru(x, lengths=lengths.int())[0])
        full, last = self.gru(x, h_n[:1, :, :4])
        one, (h_1, _) = self.lstm(x[0, :, :INPUT_SIZE], (h_n[:, 0], c_n[:, 0]))
        half, _ = self.lstm16(full.transpose(0, 1).bfloat16(), lengths=lengths)
        results = {
            "tags": tags,
            "full": full,
            "last": last,
            "one": one,
            "h_1": h_1,
            "half": half.float(),
        }
        return results


def test_a_model_around_the_modules_keeps_its_results() -> None:
    model = Tagger().eval()
    args = torch.randint(11, (3, 6)), torch.tensor([6, 0, 2])
    session = Session(export(model, args, ({0: BATCH, 1: TIME}, {0: BATCH})))
    ids, lengths = torch.randint(11, (5, 8)), torch.tensor([0, 8, 3, 3, 1])
    # The library's own kernels, held to torch's elsewhere.
    with torch.no_grad():
        expected = model(ids, lengths)
    for (name, truth), got in zip(expected.items(), session(ids, lengths), strict=True):
        # bfloat16 has 8 bits: a unit in the last place below 1.
        tolerance = 2**-8 if name == "half" else TOLERANCE
        assert got.dtype == truth.dtype, name
        assert max_error(got, truth) <= tolerance, name


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = OURS["gru"](INPUT_SIZE, HIDDEN_SIZE, batch_first=True)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.rnn(x, mask=mask)[0]


def test_a_form_that_onnx_has_not_stops_the_export_with_its_name() -> None:
    x = torch.randn(2, 4, INPUT_SIZE)
    message = r"VarLenGRU: .* got mask; .* pass lengths=mask.sum\(1\)"
    with pytest.raises(torch.onnx.OnnxExporterError, match=message):
        export(Masked(), (x, torch.ones(2, 4, dtype=torch.bool)), None)


def _packed() -> Any:
    return pack_padded_sequence(torch.randn(4, 2, INPUT_SIZE), [4, 2])


def _nested() -> Tensor:
    return torch.nested.nested_tensor([torch.randn(4, INPUT_SIZE)], layout=torch.jagged)


FLAGS = torch.ones(4, 2, dtype=torch.bool)
REFUSED: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "a PackedSequence; pad": (_packed, {}, {}),
    "a NestedTensor; pad": (_nested, {}, {}),
    "cu_seqlens; pad": (lambda: torch.randn(4, INPUT_SIZE), {"cu_seqlens": [0, 4]}, {}),
    "mask; if all padding is on the right, pass lengths=mask.sum(0)": (None, {"mask": FLAGS}, {}),
    "resets; make every piece": (None, {"resets": FLAGS}, {}),
    "output_states=True; ONNX's LSTM gives": (None, {"output_states": True}, {}),
    "proj_size=2; ONNX's LSTM has no projection": (None, {}, {"proj_size": 2}),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_onnx_cannot_express_is_named(message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, keywords, options = REFUSED[message]
    rnn = OURS["lstm"](INPUT_SIZE, HIDDEN_SIZE, **options)
    batch = make() if make else torch.randn(4, 2, INPUT_SIZE)
    rnn(batch, **keywords)
    monkeypatch.setattr(our_export, "exporting", lambda: True)
    with pytest.raises(NotImplementedError, match=r"^VarLenLSTM: an ONNX export") as error:
        rnn(batch, **keywords)
    assert f"got {message}" in str(error.value)


@both_cells
def test_frozen_layers_are_refused(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(our_export, "exporting", lambda: True)
    for weights in (None, torch.bfloat16, torch.int8):
        frozen = varlen_rnn.freeze(OURS[cell](INPUT_SIZE, HIDDEN_SIZE), weights)
        with pytest.raises(NotImplementedError, match="must be of layers that are not frozen"):
            frozen(torch.randn(4, INPUT_SIZE))


class Packs(nn.Module):
    """As models do that were written for nn.LSTM."""

    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths, batch_first=True)
        return pad_packed_sequence(self.rnn(packed)[0], batch_first=True)[0]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("form", ["packed", "padded", "the module itself"])
@both_cells
def test_the_old_exporter_names_the_new_one(cell: str, form: str) -> None:
    rnn = OURS[cell](INPUT_SIZE, HIDDEN_SIZE, batch_first=True).eval()
    args: tuple[Any, ...] = torch.randn(3, 4, INPUT_SIZE), torch.tensor([4, 2, 1])
    way = "must have dynamo=True, got .* pass dynamo=True, or export varlen_rnn.revert"
    for layer, message in (
        (rnn, f"^{type(rnn).__name__}: an ONNX export {way}"),
        (varlen_rnn.freeze(rnn), "^Frozen.*: an ONNX export must be of layers that are not"),
        (varlen_rnn.quantize_dynamic(rnn), "^Frozen.*: an ONNX export must be of layers that"),
    ):
        model = {"packed": Packs(layer), "padded": WithStates(layer)}.get(form, layer)
        given = args[:1] if form == "the module itself" else args
        with pytest.raises(NotImplementedError, match=message):
            torch.onnx.export(model.eval(), given, io.BytesIO(), dynamo=False)
        model(*given)


@pytest.mark.parametrize("bidirectional", [False, True])
@both_cells
def test_a_batch_of_one_row_may_be_the_example(cell: str, bidirectional: bool) -> None:
    rnn = OURS[cell](INPUT_SIZE, HIDDEN_SIZE, 2, batch_first=True, bidirectional=bidirectional)
    args = torch.randn(1, 5, INPUT_SIZE), torch.tensor([5])
    session = Session(export(WithStates(rnn), args, ({0: BATCH, 1: TIME}, {0: BATCH})))
    x, lengths = torch.randn(3, 7, INPUT_SIZE), torch.tensor([7, 0, 2])
    assert max_error(session(x, lengths)[0], rnn(x, lengths=lengths)[0].detach()) <= TOLERANCE


def test_wrong_lengths_are_refused_by_the_runtime() -> None:
    session = session_of(*CASES[-1])
    x = torch.randn(4, 4, INPUT_SIZE)
    session(x, torch.tensor([4, 0, 1, 2]))
    for wrong in (5, -1, 2**32 + 2, -(2**32) + 2):
        with pytest.raises(Exception, match="Invalid value/s in sequence_lens"):
            session(x, torch.tensor([4, 0, 1, wrong]))


_IN_A_FRESH_PROCESS = """
import numpy, torch, varlen_rnn

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = varlen_rnn.VarLenGRU(3, 4, batch_first=True)

    def forward(self, x, lengths):
        return self.rnn(torch.from_numpy(numpy.tanh(x.numpy())), lengths=lengths)[0]

arguments = torch.randn(2, 4, 3), torch.tensor([4, 2])
torch.onnx.export(Model().eval(), arguments, dynamo=True)
"""


def test_an_export_that_fails_before_a_module_says_why() -> None:
    result = subprocess.run(
        [sys.executable, "-c", _IN_A_FRESH_PROCESS], capture_output=True, text=True, check=False
    )
    assert result.returncode
    assert "No ONNX function found" not in result.stderr
    assert ".numpy() is not supported for tensor subclasses" in result.stderr


def test_arguments_are_checked_as_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(our_export, "exporting", lambda: True)
    rnn = OURS["gru"](INPUT_SIZE, HIDDEN_SIZE, batch_first=True)
    x = torch.randn(3, 4, INPUT_SIZE)
    with pytest.raises(ValueError, match=r"h_0\) must be \[L \* D, B, H\] = \[1, 3, 7\], got"):
        rnn(x, torch.zeros(1, 4, HIDDEN_SIZE))
    with pytest.raises(ValueError, match=r"lengths must be \[B\] = \[3\], got \[4\]"):
        rnn(x, lengths=[1, 1, 1, 1])
    with pytest.raises(TypeError, match="lengths must be integers"):
        rnn(x, lengths=torch.ones(3))
    with pytest.raises(ValueError, match=r"lengths need a batch \[B, T, I\], got one sequence"):
        rnn(x[0], lengths=[4])


@both_cells
def test_results_are_on_the_models_device(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(our_export, "exporting", lambda: True)
    rnn = OURS[cell](INPUT_SIZE, HIDDEN_SIZE, 2, device="meta")
    states = [s.to("meta") for s in random_hx(rnn, 3)]
    for device in ("cpu", "meta"):
        lengths = torch.tensor([4, 0, 2], device=device)
        x = torch.randn(4, 3, INPUT_SIZE, device="meta")
        out, finals = rnn(x, as_hx(states), lengths=lengths)
        assert {t.device.type for t in (out, *states_of(finals))} == {"meta"}
        assert out.shape == (4, 3, HIDDEN_SIZE)


@pytest.mark.skipif(not HAS_EXTENSION, reason="the reference cannot be exported")
def test_a_recorded_program_holds_the_librarys_ops_and_cannot_become_onnx() -> None:
    rnn = OURS["gru"](INPUT_SIZE, HIDDEN_SIZE, batch_first=True).eval()
    lengths = torch.tensor([4, 0, 2])
    program = torch.export.export(rnn, (torch.randn(3, 4, INPUT_SIZE),), {"lengths": lengths})
    assert any("varlen_rnn" in str(node.target) for node in program.graph.nodes)
    with pytest.raises(torch.onnx.OnnxExporterError, match=r"No ONNX function found for .*varlen"):
        torch.onnx.export(program, dynamo=True, verbose=False)
