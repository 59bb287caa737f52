"""Whether CUDA kernels compute what they should on the GPU at hand: asked where each is used first.

Two paths, two checks on a small ragged batch, both in threads of their own
(:mod:`varlen_rnn.runtime.first_use`; ``csrc/cuda/python_self_check.h``):

- The generic path against the reference in float64, once for each device, cell and dtype:
  :func:`trusts`. If they differ, the reference runs from then on.
- The persistent path against the generic one, once for each kernel that a layer takes, where the
  extension asks for it (``csrc/cuda/self_check.h``): :func:`compare_paths`. If they differ, the
  generic path runs from then on.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from varlen_rnn import layout
from varlen_rnn.layout import Layout
from varlen_rnn.ops.cells import NAMED, Cell, by_kind
from varlen_rnn.runtime import extension, first_use

# A row without tokens, and resets; with two teams, which have eight slots each, about two segments
# follow one another in a slot.
_LENGTHS = (5, 1, 3, 0, 2, 4, 1, 6, 2, 3, 1, 5, 2, 4, 3, 1, 2, 6, 1, 3, 2, 4)
_RESETS = 5  # every so-many-th step of the padded batch
_TEAMS = 2
_INPUT_SIZE = 16
_HIDDEN_SIZE = 24  # of layers on the generic path, which takes any

# The largest difference between right results, relative to the largest value. Each path rounds at
# places of its own: in 16 bits that makes once the distance from 1 to the next number in six steps,
# and four times leaves room for what torch's products do on a GPU
# (tests/cuda/test_emulated_self_check.py holds the paths to twice). float32 has TF32's distance, in
# which torch may be told to multiply; float64 the contract's bound, and room for other orders of
# sums.
_BOUNDS = {
    torch.float64: 1e-11,
    torch.float32: 4 * 2.0**-10,
    torch.bfloat16: 4 * 2.0**-7,
    torch.float16: 4 * 2.0**-10,
}


@dataclass(frozen=True)
class Kernels:
    """What is checked: the ops, and the module that registered them.

    Attributes:
        ops: ``torch.ops.varlen_rnn``, or the emulator's.
        module: ``varlen_rnn._C_cuda``, or the emulator's.
        device_type: of their tensors.
    """

    ops: Any
    module: Any
    device_type: str = "cuda"

    @contextmanager
    def forced(self, path: str) -> Iterator[None]:
        """Calls of this thread take this path, on so few teams that slots are filled again."""
        settings = self.module.settings()
        settings.force_path, settings.force_max_teams = path, _TEAMS
        try:
            yield
        finally:
            settings.force_path, settings.force_max_teams = None, 0


@functools.cache
def cuda() -> Kernels:
    """Those that are in use."""
    from varlen_rnn import _C_cuda

    return Kernels(torch.ops.varlen_rnn, _C_cuda)


def register() -> None:
    """Lets the extension ask for checks of the persistent path."""
    module = cuda().module
    module.settings().self_check = extension.CUDA_SELF_CHECK
    module.set_checker(functools.partial(compare_paths, cuda()))


def trusts(device: torch.device, cell: str, dtype: torch.dtype) -> bool:
    """Whether the compiled ops may run; the first call for these three checks the generic path."""
    key = (device, cell, dtype)
    if key in _trusted:
        return _trusted[key]
    return first_use.trusts(
        *(_trusted, key),
        f"{device}, {cell}, {str(dtype).removeprefix('torch.')}, generic path",
        lambda: compare_reference(cuda(), device, cell, dtype),
        instead="the plain PyTorch reference runs there",
        if_captured=True,
    )


# A constant to torch.compile, as supports_cuda in extension.py.
trusts._dynamo_marked_constant = True  # type: ignore[attr-defined]

_trusted: dict[tuple[torch.device, str, torch.dtype], bool] = {}


def compare_paths(
    kernels: Kernels, index: int, name: str, dtype: str, hidden_size: int, is_backward: bool
) -> str:
    """What differs between the persistent and the generic path; "" for nothing."""
    cell, device = NAMED[name], torch.device(kernels.device_type, max(index, 0))
    kernels.module.take_expired_wait(index)  # of whoever forced a path before

    def compare() -> str:
        arguments = _arguments(cell, getattr(torch, dtype), hidden_size, device, allow_tf32=True)
        outputs: list[Tensor] = []
        if is_backward:
            with kernels.forced("generic"):
                outputs = _forward(kernels, cell, arguments)

        def run() -> list[Tensor]:
            if is_backward:
                return _on_host(_backward(kernels, cell, arguments, outputs))
            trained = _forward(kernels, cell, arguments)
            inferred = getattr(kernels.ops, f"{name}_inference")(*arguments)
            return _on_host([*trained, *inferred])

        # First: what it does not write must not be there from the other path.
        with kernels.forced("persistent"):
            got = run()
        if expired := kernels.module.take_expired_wait(index):
            return str(expired)
        with kernels.forced("generic"):
            right = run()
        names = _gradient_names(cell) if is_backward else _output_names(cell)
        return _differences(names, got, right, _BOUNDS[arguments[0].dtype])

    return first_use.fault_of(compare, device)


def compare_reference(kernels: Kernels, device: torch.device, name: str, dtype: torch.dtype) -> str:
    """What differs between the generic path and the reference; "" for nothing."""
    cell = NAMED[name]

    def compare() -> str:
        for projected in (0, _HIDDEN_SIZE // 3) if name == "lstm" else (0,):
            arguments = _arguments(cell, dtype, _HIDDEN_SIZE, device, projected)
            with kernels.forced("generic"):
                outputs = _forward(kernels, cell, arguments)
                gradients = _backward(kernels, cell, arguments, outputs)
            d_outputs = _gradients_of(outputs[: cell.num_differentiable])
            got = _on_host([*outputs[: cell.num_differentiable], *gradients])
            names = (*_output_names(cell)[: cell.num_differentiable], *_gradient_names(cell))
            right = _by_reference(cell, arguments, d_outputs)
            if fault := _differences(names, got, right, _BOUNDS[dtype]):
                return f"{fault}{' (with a projection)' if projected else ''}"
        return ""

    return first_use.fault_of(compare, device)


def _on_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies, which wait for this thread's stream and for nothing else."""
    return [tensor.cpu().double() for tensor in tensors]


def _output_names(cell: Cell) -> tuple[str, ...]:
    """What ``*_forward`` returns, and behind it what ``*_inference`` does."""
    finals = ("h_n", "c_n")[: cell.num_states]
    saved = ("cells", "gates")[-cell.num_states :]
    return ("out", *finals, *saved, *(f"{name} of inference" for name in ("out", *finals)))


def _gradient_names(cell: Cell) -> tuple[str, ...]:
    states = ("h_0", "c_0")[: cell.num_states]
    kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")[: cell.num_kinds]
    weights = [f"{kind}{suffix}" for suffix in ("", "_reverse") for kind in kinds]
    return tuple(f"the gradient of {name}" for name in ("x", *states, *weights))


def _differences(
    names: Sequence[str], got: Sequence[Tensor], right: Sequence[Tensor], bound: float
) -> str:
    found = []
    for name, a, b in zip(names, got, right, strict=True):
        if not b.numel():
            continue
        error, scale = float((a - b).abs().max()), float(b.abs().max())
        if not error <= bound * scale:  # nor NaN
            found.append(f"{name} by {error:.2g} (expected: at most {bound * scale:.2g})")
    return f"these differ: {', '.join(found)}" if found else ""


def _arguments(
    cell: Cell,
    dtype: torch.dtype,
    hidden_size: int,
    device: torch.device,
    projected: int = 0,
    allow_tf32: bool = False,
) -> list[Any]:
    """Those of ``*_forward``, in both directions. Nothing grows with H, and nothing saturates."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, scale: float = 0.5) -> Tensor:
        drawn = torch.randn(*shape, generator=generator, dtype=torch.float64, device="cpu")
        return (scale * drawn).to(device, dtype)

    steps, rows = max(_LENGTHS), len(_LENGTHS)
    output = projected or hidden_size
    states = [normal(2, rows, size) for size in (output, hidden_size)[: cell.num_states]]
    x = normal(rows * steps, _INPUT_SIZE, scale=1.0)
    weights: list[Tensor | None] = []
    for _ in range(2):
        gates = cell.num_gates * hidden_size
        weights += [
            normal(gates, _INPUT_SIZE, scale=_INPUT_SIZE**-0.5),
            normal(gates, output, scale=output**-0.5),
            normal(gates),
            normal(gates),
        ]
        if cell.num_kinds == 5:
            weights.append(
                normal(output, hidden_size, scale=hidden_size**-0.5) if projected else None
            )
    return [x, *states, *weights, *vars(_layout().to(device)).values(), allow_tf32]


def _layout() -> Layout:
    """Exact, although torch.compile may be recording in another thread, which all threads see."""
    steps, rows = max(_LENGTHS), len(_LENGTHS)
    places = torch.arange(rows * steps, device="cpu").view(rows, steps)
    return layout.from_padded(
        steps,
        rows,
        lengths=torch.tensor(_LENGTHS, device="cpu"),
        resets=places % _RESETS == _RESETS - 1,
        batch_first=True,
        bidirectional=True,
    ).exact()


def _forward(kernels: Kernels, cell: Cell, arguments: Sequence[Any]) -> list[Tensor]:
    return list(getattr(kernels.ops, f"{cell.name}_forward")(*arguments))


def _gradients_of(outputs: Sequence[Tensor]) -> list[Tensor]:
    """Drawn, the same in every call."""
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(t.shape, generator=generator, dtype=torch.float64, device="cpu").to(t)
        for t in outputs
    ]


def _backward(
    kernels: Kernels, cell: Cell, arguments: Sequence[Any], outputs: Sequence[Tensor]
) -> list[Tensor]:
    first = 1 + cell.num_states
    forward = arguments[first : first + cell.num_kinds]
    reverse = arguments[first + cell.num_kinds : first + 2 * cell.num_kinds]
    gates, cells = outputs[-1], outputs[first:-1]
    gradients = _gradients_of(outputs[: cell.num_differentiable])
    # As gradients.py calls it: without biases.
    given = (*arguments[:first], *forward[:2], *forward[4:], *reverse[:2], *reverse[4:])
    others = arguments[first + 2 * cell.num_kinds :]
    backward = getattr(kernels.ops, f"{cell.name}_backward")
    return list(backward(*gradients, *given, *others, outputs[0], gates, *cells, True, True))


def _by_reference(
    cell: Cell, arguments: Sequence[Any], d_outputs: Sequence[Tensor]
) -> list[Tensor]:
    """Outputs and gradients as the ops return them, in float64 on the CPU."""
    first = 1 + cell.num_states
    last = first + 2 * cell.num_kinds
    given = [None if t is None else t.cpu().double().requires_grad_() for t in arguments[:last]]
    leaves = [t for t in given if t is not None]
    with torch.enable_grad():
        outputs = cell.reference(*given[:first], *by_kind(given[first:]), _layout())
    found = iter(torch.autograd.grad(outputs, leaves, _on_host(d_outputs)))
    nothing = torch.zeros(0, dtype=torch.float64, device="cpu")
    gradients = [nothing if t is None else next(found) for t in given]
    return [*(t.detach() for t in outputs), *gradients]
