"""What ``torch.utils.flop_counter.FlopCounterMode`` counts of the ops: products of valid tokens.

Two operations for each multiplication in a matrix product, and nothing else, as for torch's own
modules. Every token is multiplied with every matrix once in a forward pass; in a backward pass once
for the gradient of the other factor, and once for that of the matrix. Shapes are those of the
legend in :mod:`varlen_rnn.layout`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake
from torch.utils.flop_counter import register_flop_formula

from varlen_rnn.ops.cells import CELLS, Cell
from varlen_rnn.ops.packed import kinds_of

Arrays = Sequence[Any]  # of the layout: batch_sizes, rows, reverse, initial_row, final_segment


def _num_tokens(x: Tensor, arrays: Arrays) -> int:
    """``N``; if its values are not known, the most that it may be."""
    batch_sizes, rows = arrays[:2]
    if is_fake(batch_sizes) or batch_sizes.is_meta:
        return x.shape[0] if rows is None else int(rows.shape[0])
    return int(batch_sizes.sum())


def _num_fresh(arrays: Arrays, h_0: Tensor | None) -> int:
    """The segments that start from zeros, which are multiplied with nothing."""
    batch_sizes, _, _, initial_row, _ = arrays
    if is_fake(batch_sizes) or batch_sizes.is_meta:
        return 0 if h_0 is not None else int(initial_row.shape[0])
    initial_row = initial_row[: int(batch_sizes[0]) if batch_sizes.numel() else 0]
    return int((initial_row < 0).sum()) if h_0 is not None else len(initial_row)


def _numel(matrices: Sequence[Tensor | None]) -> int:
    return sum(matrix.numel() for matrix in matrices if matrix is not None)


def _forward(cell: Cell) -> Callable[..., int]:
    def count(x: Tensor, *args: Any, **_: Any) -> int:
        first = cell.num_states + 2 * cell.num_kinds
        matrices = [w for w in args[cell.num_states : first] if w is not None and w.dim() == 2]
        return 2 * _num_tokens(x, args[first:]) * _numel(matrices)

    return count


def _backward(cell: Cell) -> Callable[..., int]:
    def count(*args: Any, **_: Any) -> int:
        x, h_0, *others = args[cell.num_differentiable :]
        num_kinds = cell.num_kinds - 2  # without biases
        first = cell.num_states - 1 + 2 * num_kinds
        weights, arrays = others[cell.num_states - 1 : first], others[first : first + 5]
        needs_x, needs_weights = args[-2:]
        weight_ih, weight_hh, *weight_hr = (_numel(weights[k::num_kinds]) for k in range(num_kinds))
        num_tokens = _num_tokens(x, arrays)
        products = (num_tokens - _num_fresh(arrays, h_0)) * weight_hh
        products += num_tokens * sum(weight_hr)
        if needs_x:
            products += num_tokens * weight_ih
        if needs_weights:
            products += num_tokens * _numel(weights)
        return 2 * products

    return count


def _frozen(cell: Cell) -> Callable[..., int]:
    def count(x: Tensor, *args: Any, **_: Any) -> int:
        num_kinds = len(kinds_of(cell.name))
        directions = 1 if args[cell.num_states + num_kinds] is None else 2
        hidden_size, output_size, *arrays = args[cell.num_states + 2 * num_kinds :]
        numel: int = cell.num_gates * hidden_size * (x.shape[1] + output_size)
        if output_size != hidden_size:
            numel += output_size * hidden_size
        return 2 * _num_tokens(x, arrays) * directions * numel

    return count


def register() -> None:
    """Gives torch the formulas of the compiled ops."""
    ops = torch.ops.varlen_rnn
    for cell in CELLS:
        formulas = {
            f"{cell.name}_inference": _forward(cell),
            f"{cell.name}_forward": _forward(cell),
            f"{cell.name}_backward": _backward(cell),
        }
        if cell.has_frozen:
            formulas[f"{cell.name}_frozen"] = _frozen(cell)
        for name, formula in formulas.items():
            register_flop_formula(getattr(ops, name), get_raw=True)(formula)
