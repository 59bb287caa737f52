"""The few numbers that a reader wants first, as sentences: for the README, and for `make bench`."""

from __future__ import annotations

import math
from collections.abc import Sequence

from benchmarks.records import (
    NN,
    OURS,
    Record,
    chosen,
    mean_ratio,
    number,
    ratio,
    seconds,
    table,
)
from benchmarks.workloads import CELLS, FORM_PEERS

ISAS = {"avx2": "AVX2", "avx512": "AVX-512", "avx512_vnni": "AVX-512", "neon": "NEON"}
NAMED_SHAPE = {"B": 32, "T": 100, "H": 256}


def _training(records: Sequence[Record], cell: str, group: str, **wanted: object) -> list[Record]:
    return chosen(records, group=group, mode="training", cell=cell, **wanted)


def _to_nn(record: Record) -> float | None:
    """How many times as fast as the better of torch's layer on padded and on packed input."""
    return ratio(record, NN.__contains__)


def answer(records: Sequence[Record], cell: str, where: str) -> str:
    """How many times as fast a training step is, over all shapes."""
    shapes = _training(records, cell, "shapes")
    return (
        f"VarLen{cell.upper()} trains {mean_ratio(shapes):.1f} times as fast as "
        f"nn.{cell.upper()} {where}"
    )


def milliseconds(records: Sequence[Record]) -> str:
    """A table of every shape's training step, against what people use today."""
    peers = (OURS, *NN)
    rows = [
        [f"{r['cell'].upper()} {r['B']}, {r['T']}, {r['H']}"]
        + [number(found[peer] * 1e3) if peer in found else "" for peer in peers]
        + [f"{times:.1f} times"]
        for cell in CELLS
        for r in _training(records, cell, "shapes")
        if (times := _to_nn(r)) and (found := seconds(r))
    ]
    header = ["training step in ms: B, T, I = H", *peers, "as fast as the better"]
    return table(header, rows)


def rounded_down(times: float) -> str:
    """One decimal, which is no more than the number: for "at least"."""
    return f"{math.floor(times * 10) / 10:.1f}"


def sentences(records: Sequence[Record]) -> list[str]:
    """What the README says of the published results."""
    times = {cell: mean_ratio(_training(records, cell, "shapes")) for cell in CELLS}
    shapes = _training(records, "lstm", "shapes")
    (shape,) = chosen(shapes, **NAMED_SHAPE)
    ours, padded, packed = (number(seconds(shape)[peer] * 1e3) for peer in (OURS, *NN))
    growth = _training(records, "lstm", "growth")
    first, last = (record["peers"] for record in (growth[0], growth[-1]))
    grown = {peer: last[peer]["us_per_token"] / first[peer]["us_per_token"] for peer in (OURS, *NN)}
    full = {
        cell: _to_nn(record)
        for cell in CELLS
        for record in _training(records, cell, "lengths", distribution="full")
    }
    of_gru = [_to_nn(record) for record in _training(records, "gru", "shapes")]
    resets = _training(records, "lstm", "resets")
    to_loop = {
        rows: min(ratio(r, "nn step loop".__eq__) for r in chosen(resets, B=rows))
        for rows in dict.fromkeys(r["B"] for r in resets)
    }
    few, many = to_loop
    forms = chosen(records, group="forms")
    slowest = max(
        found[peer] / found[FORM_PEERS["packed"]]
        for found in map(seconds, forms)
        for peer in FORM_PEERS.values()
    )
    where = f"{len(shapes)} shapes, {shape['threads']} cores with {ISAS[shape['isa']]}"
    lstm, gru = (f"**{mean:.1f} times" for mean in times.values())
    flat, by_padded, by_packed = (f"{grown[peer]:.2f}" for peer in (OURS, *NN))
    return [
        f"A training step of `VarLenLSTM` is {lstm} as fast** as the better of `nn.LSTM`\n"
        f"  padded and packed, one of `VarLenGRU` {gru}** that of `nn.GRU` (geometric means of\n"
        f"  {where}; the GRU's from {min(of_gru):.1f} to {max(of_gru):.1f}).",
        f"LSTM, {shape['B']} rows of 1 to {shape['T']} steps, {shape['H']} units: **{ours} ms**, "
        f"against {padded} ms padded and {packed} ms packed.",
        f"An LSTM of {growth[-1]['T']} steps takes {flat} times as long a token as one of "
        f"{growth[0]['T']}; padded {by_padded}, packed {by_packed}.",
        f"Without any padding an LSTM trains {full['lstm']:.2f} times as fast, a GRU "
        f"{full['gru']:.1f} times.",
        f"With state resets at least {rounded_down(to_loop[few])} times as fast as a loop over "
        f"steps at {few} rows,\n  {rounded_down(to_loop[many])} times at {many}; every form of "
        f"batch takes at most {slowest:.2f} times as long as packed\n  (another machine, "
        f"{ISAS[forms[0]['isa']]}).",
    ]
