"""The persistent kernels of the emulated CUDA ops: the same bits however the work is shared."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from emulated import DESKTOP, assert_right, assert_same, first_team, paths_of, run
from emulated_cases import PERSISTENT, Case, tensors_of
from helpers import CELLS, Results, assert_bitwise
from ragged import Ragged
from torch import Tensor

# Cell, number and H, and the sizes of clusters that have a team in both passes.
CLUSTERS = {
    ("lstm", "bfloat16", 16): (1, 2),
    ("lstm", "bfloat16", 72): (1, 2),
    ("lstm", "bfloat16", 128): (1, 2, 4, 8, 16),
    ("lstm", "float16", 64): (1, 2, 4, 8),
    ("lstm", "tf32", 64): (1, 2, 4, 8),
    ("gru", "bfloat16", 16): (1, 2),
    ("gru", "bfloat16", 72): (1, 2),
    ("gru", "bfloat16", 128): (1, 2, 4, 8, 16),
    ("gru", "float16", 64): (1, 2, 4, 8),
    ("gru", "tf32", 64): (1, 2, 4, 8),
}


@pytest.mark.parametrize("layer", CLUSTERS, ids="{0[0]} {0[1]} H{0[2]}".format)
def test_every_cluster_size_gives_the_same_bits(layer: tuple[str, str, int]) -> None:
    sizes = CLUSTERS[layer]
    for batch, directions in (("resets", 1), ("few", 2)):
        case = Case(*layer, batch, directions)
        teams = [size for size in (1, 2, 4, 8, 16) if all(paths_of(case, cluster_size=size))]
        assert tuple(teams) == sizes
        results = {size: run(case, cluster_size=size) for size in sizes}
        for size in sizes:
            assert_same(results[size], results[sizes[0]])
        assert_right(results[sizes[0]], case)


@pytest.mark.parametrize("number", PERSISTENT)
@pytest.mark.parametrize("cell", CELLS)
def test_every_number_of_teams_gives_the_same_bits(cell: str, number: str) -> None:
    for batch, directions in itertools.product(("chains", "chains of resets"), (1, 2)):
        case = Case(cell, number, 16, batch, directions)
        expected = run(case, clusters=1)
        assert_right(expected, case)
        for clusters in (2, 3, 5, 100):
            assert_same(run(case, clusters=clusters), expected)


@pytest.mark.parametrize("cell", CELLS)
def test_every_order_of_threads_gives_the_same_bits(cell: str) -> None:
    case = Case(cell, "bfloat16", 40, "chains of resets", 2)
    expected = run(case)
    for seed in range(2, 12):
        assert_same(run(case, cluster_size=2, seed=seed), expected)


@pytest.mark.parametrize("number", PERSISTENT)
@pytest.mark.parametrize("cell", CELLS)
def test_a_gpu_with_less_memory_and_smaller_clusters_gives_the_same_bits(
    cell: str, number: str
) -> None:
    case = Case(cell, number, 104, "few")
    assert first_team(case, False, limits=DESKTOP).threads > 0
    assert_same(run(case, limits=DESKTOP), run(case))


def only(case: Case, rows: Sequence[int]) -> tuple[dict[str, Tensor], Ragged]:
    """What these rows of the batch are given, in this order."""
    batch = case.ragged
    kept = list(rows)

    def of_rows(name: str, tensor: Tensor) -> Tensor:
        if name in ("x", "d_out"):
            return tensor.unflatten(0, batch.valid.shape)[kept].flatten(0, 1)
        return tensor[:, kept] if name in ("h_0", "c_0", "d_h_n", "d_c_n") else tensor

    tensors = {name: of_rows(name, tensor) for name, tensor in tensors_of(case).items()}
    resets = batch.resets
    return tensors, Ragged(batch.valid[kept], None if resets is None else resets[kept])


def by_row(results: Results, num_rows: int) -> Results:
    """What belongs to rows, with these in front: results, and gradients of x and the states."""
    flat = {n: results[n].unflatten(0, (num_rows, -1)) for n in ("out", "d_x")}
    states = {
        n: results[n].transpose(0, 1) for n in ("h_n", "c_n", "d_h_0", "d_c_0") if n in results
    }
    return flat | states


@pytest.mark.parametrize("batch", ["ragged", "resets", "chains"])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("number", PERSISTENT)
@pytest.mark.parametrize("cell", CELLS)
def test_a_row_has_the_same_bits_alone_and_among_others(
    cell: str, number: str, directions: int, batch: str
) -> None:
    case = Case(cell, number, 16, batch, directions, one_hot=True, without=("cells",))
    num_rows = len(case.ragged.valid)
    expected = by_row(run(case), num_rows)
    shuffled = torch.randperm(num_rows).tolist()
    for rows in ([0], [num_rows - 1], [2, 0], shuffled):
        got = by_row(run(case, *only(case, rows), clusters=3, seed=7), len(rows))
        for name, tensor in got.items():
            assert_bitwise(tensor, expected[name][rows], name)
