"""The example with streams runs, feeds every frame once, and fails where streams are wrong."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from helpers import CELLS, HAS_EXTENSION, OURS, load_example, run_example
from torch import Tensor, nn

SCRIPT = Path(__file__).parents[2] / "examples" / "streaming.py"
MISSING = [name for name in ("matplotlib", "tqdm") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"the example needs {' and '.join(MISSING)}")

SLOTS = 64  # so that each is used ten times


@pytest.fixture(scope="module")
def example() -> ModuleType:
    return load_example(SCRIPT)


@pytest.fixture(scope="module")
def peers(example: ModuleType) -> ModuleType:
    return load_example(SCRIPT.with_name("streaming_peers.py"))


@pytest.fixture(scope="module")
def played(example: ModuleType) -> SimpleNamespace:
    """The recordings and a schedule of them."""
    recordings = example.Recordings()
    ticks = example.schedule(recordings, SLOTS, seed=0)
    return SimpleNamespace(recordings=recordings, ticks=ticks)


def rnn_of(cell: str, num_layers: int = 1) -> nn.RNNBase:
    torch.manual_seed(0)
    return OURS[cell](12, 8, num_layers).requires_grad_(False)


def whole_of(rnn: nn.RNNBase, played: SimpleNamespace) -> Tensor:
    return torch.cat([rnn(frames)[0] for frames in played.recordings.sequences])


def streamed(
    example: ModuleType, rnn: nn.RNNBase, played: SimpleNamespace, stepper: object = None
) -> Tensor:
    outs = torch.full((len(torch.cat(played.recordings.sequences)), 8), torch.nan)
    example.play(stepper or example.StreamingRNN(rnn, SLOTS), played.ticks, outs)
    return outs


def numbers(text: str, what: str) -> list[list[float]]:
    """Of each line of the table that begins so."""
    return [
        [float(number.replace(",", "")) for number in line[32:].split()]
        for line in text.splitlines()
        if line.startswith(what)
    ]


def assert_report_is_consistent(out: str, names: list[str]) -> None:
    [header] = [line for line in out.splitlines() if line.endswith("StreamingRNN")]
    assert re.split(r" {2,}", header.strip()) == names
    [single], [many] = numbers(out, "one stream: µs"), numbers(out, "all streams: µs")
    last = numbers(out, "  99th percentile")
    assert [len(times) for times in (single, many, *last)] == [len(names)] * 4
    for medians, lasts in zip((single, many), last, strict=True):
        assert all(0 < median <= value for median, value in zip(medians, lasts, strict=True))
    [rates], [ratios] = numbers(out, "frames a second"), numbers(out, "times as fast")
    assert ratios == pytest.approx([rate / rates[0] for rate in rates], abs=0.006, rel=1e-3)
    [(with_many, with_one)] = re.findall(r"is (\S+) times as fast as .*, and (\S+) times", out)
    assert float(with_many) == pytest.approx(ratios[-1], abs=0.056)
    assert float(with_one) == pytest.approx(single[0] / single[-1], abs=0.056, rel=0.02)


def test_a_quick_run(tmp_path: Path) -> None:
    result = run_example(SCRIPT, ["--quick", "--slots", "128"], tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stderr == "", "a progress bar in a file"
    if HAS_EXTENSION:
        assert "All 9,961 outputs are those of one call for each whole recording, bit for bit." in (
            result.stdout.splitlines()
        )
    [shares] = re.findall(r"(\S+)% at the first .* (\S+)% at the fifth, (\S+)%", result.stdout)
    assert 30 < float(shares[0]) < float(shares[2])  # of nine speakers
    onnx = [] if "left out" in result.stdout else ["ONNX Runtime"]
    assert_report_is_consistent(result.stdout, ["nn.LSTM", "nn.LSTMCell", *onnx, "StreamingRNN"])


@pytest.mark.usefixtures("restore_threads")
def test_a_quick_run_of_two_layers_without_onnx_runtime(
    example: ModuleType,
    peers: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    for module in (example, peers):
        monkeypatch.setattr(module, "onnx_missing", lambda: ["onnx"])
    arguments = ["--quick", "--cell", "gru", "--layers", "2", "--hidden", "16"]
    output = ["--output", str(tmp_path / "plot.png")]
    monkeypatch.setattr("sys.argv", ["streaming.py", *arguments, *output])
    example.main()
    out = capsys.readouterr().out
    assert "ONNX Runtime is left out: onnx not installed" in out
    assert_report_is_consistent(out, ["nn.GRU", "nn.GRUCell", "StreamingRNN"])
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("num_slots", [1, SLOTS, 1000])
def test_every_frame_is_fed_once_and_in_order(example: ModuleType, num_slots: int) -> None:
    recordings = example.Recordings()
    frames = torch.cat(recordings.sequences)
    ends = recordings.lengths.cumsum(0)
    first, last = set((ends - recordings.lengths).tolist()), set((ends - 1).tolist())
    ticks = example.schedule(recordings, num_slots, seed=1)
    assert torch.cat([tick.tokens for tick in ticks]).sort()[0].equal(torch.arange(len(frames)))
    at: dict[int, int] = {}  # the last token of each slot in the middle of a recording
    most = 0
    for tick in ticks:
        rows, tokens = tick.rows.tolist(), tick.tokens.tolist()
        assert tick.frames.equal(frames[tick.tokens])
        assert len(set(rows)) == len(rows) <= num_slots
        assert max(rows) < num_slots
        starts = set(tick.starts.tolist())
        assert not starts & set(at)
        assert set(rows) == starts | set(at)
        for slot, token in zip(rows, tokens, strict=True):
            assert token in first if slot in starts else token == at[slot] + 1
            at[slot] = token
        at = {slot: token for slot, token in at.items() if token not in last}
        most = max(most, len(rows))
    assert not at
    assert most == num_slots or num_slots == 1000


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("cell", CELLS)
def test_streams_are_whole_recordings(
    example: ModuleType, played: SimpleNamespace, cell: str
) -> None:
    rnn = rnn_of(cell, 2)
    said = example.check(streamed(example, rnn, played), whole_of(rnn, played), HAS_EXTENSION)
    assert said.startswith("All 9,961 outputs are those of one call for each whole recording, ")
    assert ("bit for bit" in said) == HAS_EXTENSION


class Faulty:
    """A stream that does one thing wrong."""

    def __init__(self, stream: object, fault: str) -> None:
        self.stream, self.fault = stream, fault

    def reset(self, rows: Tensor) -> None:
        if self.fault != "no stream is reset":
            self.stream.reset(rows[1:] if self.fault == "one is not" else rows)

    def __call__(self, x: Tensor, rows: Tensor) -> Tensor:
        if self.fault == "two streams change places" and len(rows) > 1:
            rows = torch.cat((rows[[1, 0]], rows[2:]))
        out = self.stream(x, rows)
        if self.fault == "a bit":
            out[0, 0] = out[0, 0].nextafter(torch.tensor(9.0))
        return out


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize(
    "fault",
    [
        "no stream is reset",
        "one is not",
        "two streams change places",
        "a frame is left out",
        "a bit",
    ],
)
def test_a_fault_is_found(
    example: ModuleType, played: SimpleNamespace, fault: str, exact: bool
) -> None:
    rnn = rnn_of("gru")
    outs = streamed(example, rnn, played, Faulty(example.StreamingRNN(rnn, SLOTS), fault))
    if fault == "a frame is left out":
        outs[1234] = torch.nan
    whole = whole_of(rnn, played)
    if fault == "a bit" and not exact:
        example.check(outs, whole, exact)
        return
    with pytest.raises(AssertionError, match="expected what one call gives for each whole"):
        example.check(outs, whole, exact)


@pytest.mark.parametrize("cell", CELLS)
def test_all_that_are_timed_give_the_same(
    example: ModuleType, peers: ModuleType, played: SimpleNamespace, cell: str
) -> None:
    rnn = rnn_of(cell, 2)
    whole = whole_of(rnn, played)
    found = peers.steppers(rnn, SLOTS)
    assert len(found) == 4 - bool(peers.onnx_missing())
    for stepper in found.values():
        outs = streamed(example, rnn, played, stepper)
        torch.testing.assert_close(outs, whole, rtol=0, atol=1e-5)
    for stepper in peers.steppers(rnn, 1).values():
        frames = played.recordings.sequences[3]
        steps = [torch.as_tensor(stepper(peers.own(stepper, x))) for x in frames.split(1)]
        torch.testing.assert_close(torch.cat(steps), rnn(frames)[0], rtol=0, atol=1e-5)


def test_who_is_timed_with_other_outputs_is_named(
    example: ModuleType,
    peers: ModuleType,
    played: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(peers.TorchCells, "reset", lambda *_: None)
    rnn = rnn_of("lstm")
    with pytest.raises(AssertionError, match=r"^nn\.LSTMCell: expected the same outputs"):
        example.time_ticks(rnn, SLOTS, 1, played.ticks, whole_of(rnn, played))


def test_percentiles_are_of_all_rounds(example: ModuleType) -> None:
    of_rounds = [[n * 1e-6 for n in range(part, 1001, 2)] for part in (0, 1)]
    assert example.percentiles(of_rounds) == pytest.approx([500, 990])
