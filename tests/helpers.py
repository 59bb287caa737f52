"""What the tests share: the truth by torch.nn, batches in every form, and how results are compared.

Everything that is compared is canonical, whatever form the batch had: ``out [B, T, D * P]``, zero
at padding, states ``[L * D, B, *]`` in the caller's order of rows, and gradients of a loss over all
of these.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from benchmarks.forms import Tokens, as_hx, in_form, states_of
from varlen_rnn import FrozenVarLenGRU, FrozenVarLenLSTM, VarLenGRU, VarLenLSTM
from varlen_rnn.layout import Layout
from varlen_rnn.runtime import extension

CELLS = ("lstm", "gru")
TORCH = {"lstm": nn.LSTM, "gru": nn.GRU}
OURS = {"lstm": VarLenLSTM, "gru": VarLenGRU}
FROZEN = {"lstm": FrozenVarLenLSTM, "gru": FrozenVarLenGRU}
# Frozen layers by the type of the layer, and what `freeze` is told of its weights.
FROZEN_KINDS: dict[str, tuple[torch.dtype, torch.dtype | None]] = {
    "float32": (torch.float32, None),
    "float64": (torch.float64, None),
    "bfloat16": (torch.bfloat16, None),
    "float16": (torch.float16, None),
    "float32 of bfloat16": (torch.float32, torch.bfloat16),
    "bfloat16 of bfloat16": (torch.bfloat16, torch.bfloat16),
    "int8": (torch.float32, torch.int8),
}
HAS_EXTENSION = extension.UNAVAILABLE is None

Results = dict[str, Tensor]


def child_environment(**variables: str) -> dict[str, str]:
    """For a fresh interpreter that finds the same packages, with none of our variables but these.

    One thread: waiting threads of a second process slow this one down, and are slowed by it.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("VARLEN_RNN_")}
    paths = os.pathsep.join(path for path in sys.path if path)
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, **variables}


def run_example(
    program: Path, arguments: Sequence[str], folder: Path
) -> subprocess.CompletedProcess[str]:
    """Runs an example in a folder, where it leaves a plot and nothing beside itself."""
    output = folder / "plot.png"
    before = sorted(path.name for path in program.parent.iterdir())
    result = subprocess.run(
        [sys.executable, str(program), *arguments, "--output", str(output)],
        env=child_environment(MPLBACKEND="Agg", PYTHONUTF8="1"),
        cwd=folder,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )
    assert output.exists(), result.stderr
    assert output.read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in program.parent.iterdir()) == before
    return result


def load_example(program: Path) -> ModuleType:
    """An example, or a part of one, as a module, which may import what lies beside it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(program.parent)
        return importlib.import_module(program.stem)


def pair(
    cell: str, *args: object, seed: int = 0, **options: object
) -> tuple[nn.RNNBase, nn.RNNBase]:
    """The torch module and ours, with the same weights."""
    torch.manual_seed(seed)
    theirs = TORCH[cell](*args, **options)
    ours = OURS[cell](*args, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


class Tagger(nn.Module):
    """A layer before, and a layer behind the recurrent ones; takes ``x [3, 4, 3]``."""

    def __init__(self, cell: str) -> None:
        super().__init__()
        self.before = nn.Linear(3, 6)
        self.rnn = OURS[cell](6, 5, 2, batch_first=True, bidirectional=True)
        self.after = nn.Linear(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.rnn(self.before(x), lengths=[4, 0, 3])[0])


def dtype_of(rnn: nn.RNNBase) -> torch.dtype:
    """That of input and states, in which a frozen layer's weights need not be."""
    return getattr(rnn, "_dtype", None) or rnn.weight_ih_l0.dtype


def random_hx(rnn: nn.RNNBase, num_rows: int, *, seed: int = 1) -> list[Tensor]:
    """Initial states for ``num_rows`` rows, in the module's dtype."""
    generator = torch.Generator().manual_seed(seed)
    layers = rnn.num_layers * (2 if rnn.bidirectional else 1)
    sizes = [rnn.proj_size or rnn.hidden_size, rnn.hidden_size][: 2 if rnn.mode == "LSTM" else 1]
    dtype = dtype_of(rnn)
    return [torch.randn(layers, num_rows, s, generator=generator).to(dtype) for s in sizes]


def random_batch(rnn: nn.RNNBase, num_rows: int, num_steps: int, *, seed: int = 2) -> Tensor:
    """``[B, T, I]`` in the module's dtype."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_rows, num_steps, rnn.input_size, generator=generator)
    return x.to(dtype_of(rnn))


def torch_packed(
    rnn: nn.RNNBase, x: Tensor, states: Sequence[Tensor], lengths: Sequence[int]
) -> tuple[Tensor, list[Tensor]]:
    """The truth: a torch module on the ``PackedSequence`` of the rows that have tokens.

    ``x`` is ``[B, T, I]``. Rows without tokens, which a ``PackedSequence`` cannot hold, give zeros
    and keep their states.
    """
    kept = torch.tensor([b for b, length in enumerate(lengths) if length])
    directions = 2 if rnn.bidirectional else 1
    out = x.new_zeros(*x.shape[:2], directions * (rnn.proj_size or rnn.hidden_size))
    finals = list(states) or [torch.zeros_like(s) for s in random_hx(rnn, len(x))]
    if not kept.numel():
        return out, finals
    batch_first = rnn.batch_first
    packed = pack_padded_sequence(
        x[kept] if batch_first else x[kept].transpose(0, 1),
        [length for length in lengths if length],
        batch_first=batch_first,
        enforce_sorted=False,
    )
    out_packed, hx = rnn(packed, as_hx([s[:, kept] for s in states]))
    out_kept, _ = pad_packed_sequence(out_packed, batch_first=True, total_length=x.shape[1])
    finals = [s.index_copy(1, kept, n) for s, n in zip(finals, states_of(hx), strict=True)]
    return out.index_copy(0, kept, out_kept), finals


@dataclass(frozen=True)
class Segment:
    """A run of tokens in a row, and the rows whose states it starts from and ends in (-1: none)."""

    row: int
    start: int
    length: int
    initial_row: int
    final_row: int


def rows_as_segments(lengths: Sequence[int]) -> list[Segment]:
    """Right-padded rows: each row with tokens is one segment."""
    return [Segment(b, 0, length, b, b) for b, length in enumerate(lengths) if length]


def layout_of(
    segments: Sequence[Segment],
    num_rows: int,
    num_steps: int,
    *,
    batch_first: bool = True,
    bidirectional: bool = True,
) -> Layout:
    """The layout of any segments, found by walking over all tokens."""
    by_length = sorted(segments, key=lambda segment: -segment.length)
    places = [
        (step, g)
        for step in range(max((s.length for s in segments), default=0))
        for g, segment in enumerate(by_length)
        if step < segment.length
    ]

    def flat(step: int, g: int) -> int:
        row, position = by_length[g].row, by_length[g].start + step
        return row * num_steps + position if batch_first else position * num_rows + row

    ends_in = {segment.final_row: g for g, segment in enumerate(by_length)}
    steps = [step for step, _ in places]
    reverse = [places.index((by_length[g].length - 1 - step, g)) for step, g in places]
    return Layout(
        torch.tensor([steps.count(step) for step in sorted(set(steps))], dtype=torch.int64),
        torch.tensor([flat(step, g) for step, g in places], dtype=torch.int64),
        torch.tensor(reverse, dtype=torch.int64) if bidirectional else None,
        torch.tensor([segment.initial_row for segment in by_length], dtype=torch.int64),
        torch.tensor([ends_in.get(b, -1) for b in range(num_rows)], dtype=torch.int64),
    )


def torch_per_segment(
    rnn: nn.RNNBase, x: Tensor, states: Sequence[Tensor], segments: Sequence[Segment]
) -> tuple[Tensor, list[Tensor]]:
    """The truth for any segments: a torch module on each alone; ``x`` is ``[B, T, I]``."""
    directions = 2 if rnn.bidirectional else 1
    out = x.new_zeros(*x.shape[:2], directions * (rnn.proj_size or rnn.hidden_size))
    zeros = [torch.zeros_like(s) for s in random_hx(rnn, len(x))]
    initial = list(states) or zeros
    finals = [s.clone() for s in initial]
    for segment in segments:
        place = segment.row, slice(segment.start, segment.start + segment.length)
        source = zeros if segment.initial_row < 0 else initial
        row_out, hx = rnn(x[place], as_hx([s[:, segment.initial_row] for s in source]))
        out[place] = row_out
        if segment.final_row >= 0:
            for final, state in zip(finals, states_of(hx), strict=True):
                final[:, segment.final_row] = state
    return out, finals


FORMS = ("lengths", "packed", "sorted", "full", "single")


def ours_in_form(
    rnn: nn.RNNBase, x: Tensor, states: Sequence[Tensor], lengths: Sequence[int], form: str
) -> tuple[Tensor, list[Tensor]]:
    """Our module on ``x [B, T, I]`` given in one of ``FORMS``, with the result made canonical.

    ``sorted`` needs lengths that are, ``packed`` and ``sorted`` need tokens in every row, ``full``
    and ``single`` need rows without padding, ``single`` just one.
    """
    valid = torch.arange(x.shape[1]) < torch.tensor(lengths).unsqueeze(1)
    return in_form(form, x, Tokens(valid), batch_first=rnn.batch_first)(rnn, states)


def with_gradients(
    outputs: tuple[Tensor, list[Tensor]],
    leaves: dict[str, Tensor],
    *,
    seed: int = 3,
) -> Results:
    """Outputs, final states, and the gradients of a random linear loss over all of them."""
    out, finals = outputs
    results = {"out": out, **dict(zip(("h_n", "c_n"), finals, strict=False))}
    generator = torch.Generator().manual_seed(seed)
    factors = [torch.randn(t.shape, generator=generator).to(t.dtype) for t in results.values()]
    loss = sum((t * f).sum() for t, f in zip(results.values(), factors, strict=True))
    gradients = torch.autograd.grad(
        loss, list(leaves.values()), allow_unused=True, materialize_grads=True
    )
    results = {name: t.detach() for name, t in results.items()}
    return results | {f"d_{name}": d for name, d in zip(leaves, gradients, strict=True)}


def leaves_of(rnn: nn.RNNBase, x: Tensor, states: Sequence[Tensor]) -> dict[str, Tensor]:
    """Everything that gets a gradient, by name; makes ``x`` and ``states`` require one."""
    named = {"x": x, **dict(zip(("h_0", "c_0"), states, strict=False))}
    for tensor in named.values():
        tensor.requires_grad_()
    return named | dict(rnn.named_parameters())


def max_error(got: Tensor, expected: Tensor) -> float:
    """Largest absolute difference; infinite for NaN or a shape that differs."""
    if got.shape != expected.shape:
        return float("inf")
    if not got.numel():
        return 0.0
    error = float((got.double() - expected.double()).abs().max())
    return error if error == error else float("inf")


def largest(tensor: Tensor) -> float:
    """Largest absolute value, 0 if there is none."""
    return float(tensor.double().abs().max()) if tensor.numel() else 0.0


def assert_close64(got: Results, expected: Results, tolerance: float = 1e-12) -> None:
    """The float64 contract: absolute for outputs, relative to the largest for gradients."""
    assert got.keys() == expected.keys()
    for name, truth in expected.items():
        scale = largest(truth) if name.startswith("d_") else 1.0
        error = max_error(got[name], truth)
        assert error <= tolerance * scale, f"{name}: error {error:.3g} at scale {scale:.3g}"


def assert_bitwise(got: Tensor, expected: Tensor, name: str = "") -> None:
    """Same dtype, shape and bits; unlike ``torch.equal``, NaN equals NaN and 0 differs from -0."""
    assert (got.dtype, got.shape) == (expected.dtype, expected.shape), name
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[got.element_size()]
    differing = got.contiguous().view(integer) != expected.contiguous().view(integer)
    assert not differing.any(), f"{name}: {int(differing.sum())} of {differing.numel()} differ"


def assert_only_h_is_rounded(
    cell: str, dtype: torch.dtype, run: Callable[[nn.RNNBase, Tensor], tuple[Tensor, list[Tensor]]]
) -> None:
    """Compares with a float32 cell of torch whose ``h`` is rounded after every step.

    The order of float32 sums decides a rounding now and then: nearly all results are the very same
    number, which they are not if anything else is rounded, or ``h`` is not.
    """
    wide = {"lstm": nn.LSTMCell, "gru": nn.GRUCell}[cell](7, 9)
    narrow = TORCH[cell](7, 9, dtype=dtype, batch_first=True)
    with torch.no_grad():
        for name, weight in wide.named_parameters():
            getattr(narrow, f"{name}_l0").copy_(weight)
            weight.copy_(weight.to(dtype))
        x = torch.randn(16, 20, 7).to(dtype)
        out, finals = run(narrow, x)
        state = tuple(torch.zeros(16, 9) for _ in finals)
        expected = []
        for step in x.float().unbind(1):
            new = wide(step, state if cell == "lstm" else state[0])
            h, *c = new if cell == "lstm" else (new,)
            expected.append(h.to(dtype))
            state = (expected[-1].float(), *c)
    pairs = [(out, torch.stack(expected, 1))]
    pairs += [(final[0], truth.to(dtype)) for final, truth in zip(finals, state, strict=True)]
    for got, truth in pairs:
        assert got.dtype == dtype
        same = float((got == truth).float().mean())
        assert same > 0.98, f"only {same:.1%} are the very same number"
