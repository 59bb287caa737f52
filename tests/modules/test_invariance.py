"""A sequence's outputs and final states are bitwise the same, whatever it comes beside, and how."""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import FLOAT_ISAS
from helpers import (
    CELLS,
    HAS_EXTENSION,
    OURS,
    Results,
    as_hx,
    assert_bitwise,
    leaves_of,
    ours_in_form,
    random_batch,
    random_hx,
    states_of,
    with_gradients,
)
from torch import Tensor, nn

if HAS_EXTENSION:
    from varlen_rnn import _C

pytestmark = pytest.mark.skipif(not HAS_EXTENSION, reason="a promise of the compiled kernels")

FUSED = [isa for isa in FLOAT_ISAS if isa != "baseline"]
DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
SHAPES = {
    "one unit": {"input_size": 1, "hidden_size": 1},
    "odd": {"input_size": 7, "hidden_size": 33, "num_layers": 2, "bidirectional": True},
    "no bias": {"input_size": 17, "hidden_size": 3, "num_layers": 3, "bias": False},
    "medium": {"input_size": 100, "hidden_size": 129, "bidirectional": True},
    "wide input": {"input_size": 300, "hidden_size": 5},
    "large": {"input_size": 33, "hidden_size": 260},
    "projected": {"input_size": 5, "hidden_size": 50, "proj_size": 17, "num_layers": 2},
}
SHAPE_CASES = [
    pytest.param(cell, options, id=f"{cell} {name}")
    for cell in CELLS
    for name, options in SHAPES.items()
    if cell == "lstm" or "proj_size" not in options
]
COUNT, LONGEST = 23, 13


class Pool:
    """Sequences and their states, of every length from 1 on, each computed alone once."""

    def __init__(self, rnn: nn.RNNBase) -> None:
        self.rnn = rnn
        self.lengths = [1 + i % LONGEST for i in range(COUNT)]
        self.x = random_batch(rnn, COUNT, LONGEST)
        self.states = random_hx(rnn, COUNT)
        self.alone = [self.run([i], self.lengths[i], "single") for i in range(COUNT)]

    def run(self, rows: Sequence[int], num_steps: int, form: str) -> tuple[Tensor, list[Tensor]]:
        rows = list(rows)
        x = self.x[rows].new_full((len(rows), num_steps, self.x.shape[2]), float("nan"))
        lengths = [min(self.lengths[i], num_steps) for i in rows]
        for b, (i, length) in enumerate(zip(rows, lengths, strict=True)):
            x[b, :length] = self.x[i, :length]
        with torch.no_grad():
            return ours_in_form(self.rnn, x, [s[:, rows] for s in self.states], lengths, form)

    def check(self, rows: Sequence[int], num_steps: int, form: str, what: str = "") -> None:
        out, finals = self.run(rows, num_steps, form)
        for b, i in enumerate(rows):
            where = f"{what} row {b} of {len(rows)}, {form}: sequence {i}, length {self.lengths[i]}"
            alone, alone_finals = self.alone[i]
            assert_bitwise(out[b, : self.lengths[i]], alone[0], where)
            for got, expected in zip(finals, alone_finals, strict=True):
                assert_bitwise(got[:, b], expected[:, 0], where)


def make(cell: str, options: dict[str, object], dtype: torch.dtype = torch.float32) -> nn.RNNBase:
    torch.manual_seed(0)
    return OURS[cell](dtype=dtype, **options).eval()


def check_many_batches(pool: Pool, *, seed: int) -> None:
    draw = random.Random(seed)
    for num_rows in (1, 2, 3, 5, 6, 7, 8, 13, COUNT):
        rows = draw.sample(range(COUNT), num_rows)
        longest = max(pool.lengths[i] for i in rows)
        pool.rnn.batch_first = draw.random() < 0.5
        pool.check(rows, longest + draw.choice([0, 1, 9]), "lengths")
        pool.check(rows, longest, "packed")
        rows.sort(key=lambda i: -pool.lengths[i])
        pool.check(rows, longest, "sorted")
        same = [i for i in range(COUNT) if pool.lengths[i] == pool.lengths[rows[0]]]
        pool.check(same, pool.lengths[rows[0]], "full")


@pytest.mark.parametrize(("cell", "options"), SHAPE_CASES)
def test_neighbours_order_padding_form_and_threads_change_no_bit(
    cell: str, options: dict[str, object], isa: str, restore_threads: None
) -> None:
    torch.set_num_threads(1)
    pool = Pool(make(cell, options))
    for threads in (1, 2):
        torch.set_num_threads(threads)
        check_many_batches(pool, seed=threads)
        for i in range(COUNT):
            pool.check([i], pool.lengths[i], "single", f"{threads} threads")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_every_dtype_is_invariant(cell: str, dtype: str, isa: str, threads: int) -> None:
    pool = Pool(make(cell, SHAPES["odd"], DTYPES[dtype]))
    check_many_batches(pool, seed=threads)


@pytest.mark.parametrize("cell", CELLS)
def test_a_row_among_hundreds_is_as_if_alone(cell: str, isa: str, threads: int) -> None:
    rnn = make(cell, {"input_size": 17, "hidden_size": 40, "batch_first": True})
    lengths = torch.randint(0, 9, (300,))
    x, states = random_batch(rnn, 300, 8), random_hx(rnn, 300)
    with torch.no_grad():
        out, hx = rnn(x, as_hx(states), lengths=lengths)
        for b in range(0, 300, 23):
            alone, alone_hx = rnn(x[b, : lengths[b]], as_hx([s[:, b] for s in states]))
            assert_bitwise(out[b, : lengths[b]], alone)
            for got, expected in zip(states_of(hx), states_of(alone_hx), strict=True):
                assert_bitwise(got[:, b], expected)


@pytest.mark.parametrize("cell", CELLS)
def test_one_step_at_a_time_gives_the_bits_of_the_whole(cell: str, isa: str) -> None:
    rnn = make(cell, {"input_size": 17, "hidden_size": 40, "num_layers": 2})
    x, hx = torch.randn(12, 3, 17), None
    with torch.no_grad():
        whole, whole_hx = rnn(x)
        for t in range(12):
            out, hx = rnn(x[t : t + 1], hx)
            assert_bitwise(out[0], whole[t], f"step {t}")
    for got, expected in zip(states_of(hx), states_of(whole_hx), strict=True):
        assert_bitwise(got, expected)


@pytest.mark.skipif(len(FUSED) < 2, reason="needs two instruction sets with fused multiply-add")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("cell", "options"), SHAPE_CASES)
def test_instruction_sets_with_fused_multiply_add_agree(
    cell: str, options: dict[str, object], dtype: str, threads: int
) -> None:
    before = _C.cpu_isa()
    results = []
    try:
        for isa in FUSED:
            _C.set_cpu_isa(isa)
            pool = Pool(make(cell, options, DTYPES[dtype]))
            out, finals = pool.run(range(COUNT), LONGEST, "lengths")
            results.append([out, *finals])
    finally:
        _C.set_cpu_isa(before)
    for isa, result in zip(FUSED[1:], results[1:], strict=True):
        for got, expected in zip(result, results[0], strict=True):
            assert_bitwise(got, expected, f"{isa} against {FUSED[0]}")


@pytest.mark.parametrize("cell", CELLS)
def test_training_gives_the_bits_of_inference(cell: str, isa: str, threads: int) -> None:
    rnn = make(cell, SHAPES["odd"])
    x, lengths = torch.randn(13, 9, 7), torch.arange(9)
    trained, trained_hx = rnn(x, lengths=lengths)
    with torch.no_grad():
        out, hx = rnn(x, lengths=lengths)
    assert trained.requires_grad
    assert not out.requires_grad
    for got, expected in zip([trained, *states_of(trained_hx)], [out, *states_of(hx)], strict=True):
        assert_bitwise(got.detach(), expected)


@pytest.mark.parametrize("cell", CELLS)
def test_a_repeated_training_step_gives_the_same_bits(cell: str, isa: str, threads: int) -> None:
    rnn = make(cell, SHAPES["odd"] | {"dropout": 0.5}).train()
    x, lengths = torch.randn(13, 9, 7), torch.arange(9)

    def step() -> list[Tensor]:
        torch.manual_seed(5)
        leaf = x.clone().requires_grad_()
        out, hx = rnn(leaf, lengths=lengths)
        loss = out.square().sum() + sum(s.sum() for s in states_of(hx))
        return [out.detach(), *torch.autograd.grad(loss, [leaf, *rnn.parameters()])]

    for got, expected in zip(step(), step(), strict=True):
        assert_bitwise(got, expected)


# One row: units are split, by the model of plan-inl.h (thread_scenarios.py has the arithmetic). 40
# rows: rows are. Backward of 24 tokens or more is worth 24 * 6 * 160 * 640 / 1e6 = 14 workers.
@pytest.mark.parametrize(("num_rows", "num_steps"), [(1, 24), (40, 6)], ids=["units", "rows"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forwards", "both"])
@pytest.mark.parametrize("cell", CELLS)
def test_gradients_are_the_same_in_every_run_on_any_number_of_threads(
    cell: str,
    bidirectional: bool,
    num_rows: int,
    num_steps: int,
    restore_threads: None,
) -> None:
    options = {"num_layers": 2, "bidirectional": bidirectional, "dropout": 0.5}
    rnn = make(cell, {"input_size": 160, "hidden_size": 160, **options}).train()
    lengths = torch.full((num_rows,), num_steps) - torch.arange(num_rows) % 3
    x, states = random_batch(rnn, num_steps, num_rows), random_hx(rnn, num_rows)

    def step() -> Results:
        torch.manual_seed(5)
        leaves = leaves_of(rnn, x.clone(), [s.clone() for s in states])
        out, hx = rnn(
            leaves["x"], as_hx(list(leaves.values())[1 : 1 + len(states)]), lengths=lengths
        )
        return with_gradients((out, states_of(hx)), leaves)

    torch.set_num_threads(1)
    first = step()
    assert all(result.isfinite().all() for result in first.values())
    for num_threads in (1, 2, 2, 3, 3):
        torch.set_num_threads(num_threads)
        for name, result in step().items():
            assert_bitwise(result, first[name], name)


# What the kernels' plans turn on: registers and bytes of a vector, and vectors of a block of units.
REGISTERS = {"baseline": 16, "avx2": 16, "avx512": 32, "neon": 32}
VECTOR_BYTES = {"baseline": 16, "avx2": 32, "avx512": 64, "neon": 16}
BLOCK_VECTORS = {"lstm": 2, "gru": 3}


def tallest_tile(cell: str, isa: str) -> int:
    """kMaxTileRows: 12 and 8 with 32 registers, 6 and 4 with 16."""
    registers = REGISTERS[isa]
    return (registers - registers // 4) // BLOCK_VECTORS[cell]


def chunk_tokens(cell: str, hidden_size: int, isa: str) -> int:
    """Tokens whose gates, float32 in rows of an odd number of cache lines, fill kChunkBytes."""
    lanes = VECTOR_BYTES[isa] // 4
    units = BLOCK_VECTORS[cell] * lanes // {"lstm": 4, "gru": 3}[cell]
    columns = -(-hidden_size // units) * BLOCK_VECTORS[cell] * lanes
    columns = -(-columns // (2 * lanes)) * 2 * lanes
    lines = -(-columns // 16) // 2 * 2 + 1
    return 256 * 1024 // (lines * 64)


@pytest.mark.parametrize("cell", CELLS)
def test_every_height_of_a_tile(cell: str, isa: str, restore_threads: None) -> None:
    """With one thread and rows of equal length a step's tiles are as tall as there are rows, and
    above the tallest they are two, three. One step: so are the input's."""
    torch.set_num_threads(1)
    tallest = max(tallest_tile(cell, isa), tallest_tile("lstm", isa))  # the input's are as LSTM's
    # 42, 21, 11 or 6 blocks of units: where low tiles take several at once, some are left over.
    rnn = make(cell, {"input_size": 9, "hidden_size": 83, "batch_first": True})
    most = 2 * tallest + 1
    x, states = random_batch(rnn, most, 3), random_hx(rnn, most)
    for num_steps in (1, 3):
        with torch.no_grad():
            alone = [
                rnn(x[b : b + 1, :num_steps], as_hx([s[:, b : b + 1] for s in states]))
                for b in range(most)
            ]
            for num_rows in (*range(1, tallest + 2), 2 * tallest, most):
                out, hx = rnn(x[:num_rows, :num_steps], as_hx([s[:, :num_rows] for s in states]))
                for b in range(num_rows):
                    where = f"row {b} of {num_rows}, {num_steps} steps"
                    assert_bitwise(out[b], alone[b][0][0], where)
                    for got, expected in zip(states_of(hx), states_of(alone[b][1]), strict=True):
                        assert_bitwise(got[:, b], expected[:, 0], where)


@pytest.mark.parametrize(("hidden_size", "num_threads"), [(64, 1), (256, 2)], ids=["one", "team"])
@pytest.mark.parametrize("cell", CELLS)
def test_chunks_begin_anywhere(
    cell: str, hidden_size: int, num_threads: int, isa: str, restore_threads: None
) -> None:
    """The input's product is computed for a chunk of steps, then for the next; also by two workers
    that split units (one row, and enough of them)."""
    chunk = chunk_tokens(cell, hidden_size, isa)
    assert (
        chunk
        == {("lstm", 64): 240, ("gru", 64): 315, ("lstm", 256): 63, ("gru", 256): 83}[
            cell, hidden_size
        ]
    )
    longest = 2 * chunk + 1  # three chunks of one row
    rnn = make(cell, {"input_size": 9, "hidden_size": hidden_size, "batch_first": True})
    x, hx, steps = random_batch(rnn, 3, longest), None, []
    torch.set_num_threads(1)
    with torch.no_grad():
        for t in range(longest):  # the truth: a step at a time, every chunk a single step
            out, hx = rnn(x[:, t : t + 1], hx)
            steps.append(out)
        truth = torch.cat(steps, dim=1)
        torch.set_num_threads(num_threads)
        for length in (chunk - 1, chunk, chunk + 1, 2 * chunk, longest):
            assert_bitwise(rnn(x[:1, :length])[0], truth[:1, :length], f"{length} steps")
        # Three rows, of which one ends within the first chunk, and one within the second.
        lengths = [longest, chunk // 2, chunk // 6]
        out, _ = rnn(x, lengths=lengths)
        for b, length in enumerate(lengths):
            assert_bitwise(out[b, :length], truth[b, :length], f"row {b}")


PART_ROWS = 64  # kMaxPartRows


@pytest.mark.parametrize("cell", CELLS)
def test_any_number_of_parts(cell: str, restore_threads: None) -> None:
    """Workers take parts of at most 64 rows: one thread 1 part of 64 rows, 2 of 65 and 128, 3 of
    129 and 192, 4 of 193; several threads a multiple of their number."""
    torch.set_num_threads(1)
    rnn = make(cell, {"input_size": 17, "hidden_size": 40, "batch_first": True})
    most = 3 * PART_ROWS + 1
    x, states = random_batch(rnn, most, 8), random_hx(rnn, most)
    lengths = 1 + torch.randperm(most) % 8
    with torch.no_grad():
        alone = [rnn(x[b, : lengths[b]], as_hx([s[:, b] for s in states])) for b in range(most)]
        for num_rows in (n * PART_ROWS + more for n in (1, 2, 3) for more in (-1, 0, 1)):
            flops = 2 * int(lengths[:num_rows].sum()) * 3 * 40 * (17 + 40)
            assert flops > 3e6  # so three threads are three workers, also of GRU
            for num_threads in (1, 2, 3):
                torch.set_num_threads(num_threads)
                given = as_hx([s[:, :num_rows] for s in states])
                out, hx = rnn(x[:num_rows], given, lengths=lengths[:num_rows])
                for b in range(num_rows):
                    where = f"row {b} of {num_rows}, {num_threads} threads"
                    assert_bitwise(out[b, : lengths[b]], alone[b][0], where)
                    for got, expected in zip(states_of(hx), states_of(alone[b][1]), strict=True):
                        assert_bitwise(got[:, b], expected, where)


@pytest.mark.parametrize("cell", CELLS)
def test_split_by_rows_or_by_units(cell: str, isa: str, restore_threads: None) -> None:
    """Alone, a sequence keeps several workers busy only if they split units, and its 3 * 256 * 512
    products a step or more take many times a barrier. With 64 rows for each worker both ways are
    the same work, but rows need no barrier. 4 steps of a row are 3.1e6 flops: three workers."""
    rnn = make(cell, {"input_size": 256, "hidden_size": 256, "batch_first": True})
    x = random_batch(rnn, 192, 4)
    torch.set_num_threads(1)
    with torch.no_grad():
        alone = [rnn(x[b])[0] for b in range(3)]
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            for num_rows in (1, 2, 3, 64 * num_threads):
                out, _ = rnn(x[:num_rows])
                for b in range(min(num_rows, 3)):
                    assert_bitwise(
                        out[b], alone[b], f"row {b} of {num_rows}, {num_threads} threads"
                    )


@pytest.mark.parametrize("cell", CELLS)
def test_calls_from_several_python_threads_do_not_disturb_each_other(cell: str) -> None:
    pools = [Pool(make(cell, SHAPES[name])) for name in ("odd", "medium", "no bias")]
    with ThreadPoolExecutor(4) as executor:
        jobs = [executor.submit(check_many_batches, pool, seed=0) for pool in pools]
        for job in jobs:
            job.result()
