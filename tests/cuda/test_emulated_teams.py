"""Which team and kernel a layer gets: what csrc/cuda/team.h promises, and every kernel's values."""

from __future__ import annotations

from typing import Any

import pytest
from emulated import DESKTOP, HOPPER, _emulated, check, first_team, paths_of
from emulated_cases import PERSISTENT, Case
from helpers import CELLS

from tools.gpu.sass import SIZES

VARIANTS = [_emulated.variants(is_backward=is_backward) for is_backward in (False, True)]
# Of cell, bytes of a value, and machine: the largest multiples of 64 such that they and all smaller
# ones have a team, forward and backward.
LARGEST = {
    ("lstm", 2, HOPPER): (512, 384),
    ("lstm", 4, HOPPER): (384, 256),
    ("lstm", 2, DESKTOP): (384, 256),
    ("lstm", 4, DESKTOP): (256, 128),
    ("gru", 2, HOPPER): (512, 512),
    ("gru", 4, HOPPER): (384, 256),
    ("gru", 2, DESKTOP): (384, 320),
    ("gru", 4, DESKTOP): (256, 192),
}


def teams(cell: str, is_backward: bool, size: int, hidden: int, limits: tuple[int, int]) -> Any:
    return _emulated.possible_teams(
        is_lstm=cell == "lstm",
        is_backward=is_backward,
        hidden_size=hidden,
        element_size=size,
        max_shared_bytes=limits[0],
        max_cluster_size=limits[1],
    )


def pieces(team: Any, num_gates: int, is_backward: bool, size: int) -> list[tuple[int, int]]:
    """Of each array in shared memory the offset and the bytes that the kernels use."""
    slots, warps = 8, team.threads // 32
    # Rows of a step's inputs: W_ih x of the gates; or the saved gates and of an LSTM two cells and
    # the cells' gradient, in float32, and the output's gradient and of a GRU an output.
    floats, stored = 0, num_gates
    if is_backward:
        floats, stored = (7, 1) if num_gates == 4 else (4, 2)
    of_inputs = slots * (floats * team.float_pitch + stored * team.input_pitch)
    assert team.input_bytes == of_inputs
    for pitch, of_value in ((team.input_pitch, size), (team.float_pitch, 4)):
        assert pitch >= team.units * of_value
        # Eight rows in different banks, unless they would not fit.
        assert pitch % 32 == 16 or pitch == team.units * of_value
    return [
        (0, 2 * 8 + 4),  # mbarriers, and whether one was given up
        (team.turns, 8 * slots * 32),
        (team.vectors, 2 * slots * team.pitch * 4),
        (team.sums, team.k_parts * slots * (32 * team.row_groups + 4) * 4),
        (team.bias, 0 if is_backward or num_gates == 4 else team.units * 4),
        (team.inputs, 3 * of_inputs),
        (team.weights, warps * (team.tiles - team.resident) * 2 * 512),
    ]


@pytest.mark.parametrize("is_backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("layer", LARGEST, ids=str)
def test_every_team_fits(layer: tuple[str, int, tuple[int, int]], is_backward: bool) -> None:
    cell, size, limits = layer
    num_gates = 4 if cell == "lstm" else 3
    for hidden in range(8, 1025, 8):
        found = teams(cell, is_backward, size, hidden, limits)
        assert len({(team.tiles, team.k_parts) for team in found}) <= 1  # the order of the sums
        columns = hidden * (num_gates if is_backward else 1)
        for team in found:
            assert team.cluster_size in (1, 2, 4, 8, 16)
            assert team.cluster_size <= limits[1]
            assert team.units % 8 == 0
            # Every unit has its block, and every block a unit.
            assert (team.cluster_size - 1) * team.units < hidden <= team.cluster_size * team.units
            rows = team.units if is_backward else num_gates * team.units
            assert rows <= 32 * team.row_groups < rows + 32
            assert team.k_parts * team.tiles * 32 >= columns * size
            assert team.threads == 32 * team.row_groups * team.k_parts
            tiles, resident, warps, k_parts, alone = VARIANTS[is_backward][team.variant]
            assert (tiles, resident) == (team.tiles, team.resident)
            assert k_parts in (0, team.k_parts)
            assert alone == (team.cluster_size == 1)
            assert team.threads <= 32 * warps
            # The turns that a warp takes over chunks of 8 units, as the kernels have it.
            turns = -(-team.units // 8 * 32 // team.threads)
            most = (-(-4 // k_parts) if k_parts else 1) if is_backward else 1
            assert turns <= (2 if not is_backward and num_gates == 3 and k_parts == 1 else most)
            # A row of vectors, and rows of a fragment in different banks.
            assert team.pitch >= team.k_parts * team.tiles * 8
            assert team.pitch % 32 == 4
            end = 0
            for offset, count in pieces(team, num_gates, is_backward, size):
                assert offset % 16 == 0
                assert offset >= end
                end = offset + count
            assert end <= team.shared_bytes <= limits[0]


@pytest.mark.parametrize("layer", LARGEST, ids=str)
def test_every_multiple_of_64_up_to_the_largest_has_a_team(
    layer: tuple[str, int, tuple[int, int]],
) -> None:
    cell, size, limits = layer
    for is_backward, largest in zip((False, True), LARGEST[layer], strict=True):
        for hidden in range(64, largest + 64, 64):
            assert teams(cell, is_backward, size, hidden, limits)
        assert not teams(cell, is_backward, size, largest + 64, limits)


@pytest.mark.parametrize("cell", CELLS)
def test_a_size_that_is_no_multiple_of_8_has_no_team(cell: str) -> None:
    for hidden in (1, 4, 12, 129, 1023):
        for is_backward in (False, True):
            assert not teams(cell, is_backward, 2, hidden, HOPPER)


def smallest_layers() -> list[tuple[str, str, int, int]]:
    """Of every persistent kernel the smallest layer that gets it.

    Cell, number, H, and cluster size.
    """
    layers = set()
    for cell in CELLS:
        for number in PERSISTENT:
            kernels: dict[tuple[bool, int], tuple[str, str, int, int]] = {}
            for hidden_size in range(8, 1025, 8):
                for cluster_size in (1, 2, 4, 8, 16):
                    for is_backward in (False, True):
                        team = first_team(
                            Case(cell, number, hidden_size), is_backward, cluster_size
                        )
                        if team is not None:
                            kernel = is_backward, team.variant
                            kernels.setdefault(kernel, (cell, number, hidden_size, cluster_size))
            layers |= set(kernels.values())
    return sorted(layers)


@pytest.mark.parametrize("layer", smallest_layers(), ids="{0[0]} {0[1]} H{0[2]} C{0[3]}".format)
def test_every_persistent_kernel(layer: tuple[str, str, int, int]) -> None:
    cell, number, hidden_size, cluster_size = layer
    case = Case(cell, number, hidden_size, "few", directions=1 if hidden_size > 128 else 2)
    assert any(paths_of(case, cluster_size=cluster_size))
    check(case, cluster_size=cluster_size)


def test_sizes_whose_instructions_are_counted_have_these_kernels() -> None:
    for (name, hidden_size), (variant, _) in SIZES.items():
        found = teams("lstm", name == "backward", 2, hidden_size, HOPPER)
        assert found[0].variant == variant
