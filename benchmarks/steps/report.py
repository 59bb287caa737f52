"""The tables of single steps, and what the README says of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from benchmarks.headline import ISAS
from benchmarks.records import (
    Record,
    chosen,
    number,
    origins,
    seconds,
    spread_of,
    table,
    timed,
)
from benchmarks.steps.peers import (
    CELL,
    COMPILED,
    FROZEN,
    MODULE,
    NN,
    NN_INT8,
    ONNX,
    ONNX_WAYS,
    STREAM,
    WEIGHTS,
)

STREAMS = tuple(f"{STREAM}{name}" for name in WEIGHTS)
OTHERS = (MODULE, FROZEN, CELL, NN, COMPILED, NN_INT8)
MANY_ROWS = 256

LEGEND = f"""\
Medians of calls that take one step of B streams, with the states of the call before, in float32.
`stream` is a `StreamingRNN` of the layer, or of the layer frozen with bfloat16 or int8 weights,
`module` a call of the layer with the states that it returned last, `frozen` the same of
`freeze(layer)`. `{ONNX}` is the fastest of four ways: one thread or its default number, states
passed as arrays or in buffers that are bound once; the columns after it are the streams' speed to
its. `{CELL}` is an `nn.LSTMCell` or `nn.GRUCell` a layer, `{COMPILED}` torch.compile with frozen
weights, `{NN_INT8}` torch's own int8 layer. All take turns in one process, after each was compared
with float64. Spread: the widest range between quartiles."""


def _short(peer: str) -> str:
    return peer.removeprefix("varlen_rnn ")


def _label(record: Record) -> str:
    layers = "1 layer" if record["layers"] == 1 else f"{record['layers']} layers"
    return f"{record['cell'].upper()}, {layers}, {record['H']}"


def best_onnx(record: Record) -> tuple[str, float] | None:
    """The fastest way of running ONNX Runtime, and its seconds; None if it is not there."""
    found = seconds(record)
    ways = [(found[name], name) for name in ONNX_WAYS if name in found]
    return min(ways)[::-1] if ways else None


def to_onnx(record: Record, peer: str) -> float | None:
    """How many times as fast as ONNX Runtime."""
    best, found = best_onnx(record), seconds(record)
    return best[1] / found[peer] if best and peer in found else None


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f} ×"


def _steps(records: Sequence[Record]) -> str:
    """A row a layer."""
    rows = []
    for record in records:
        found = {name: number(s * 1e6) for name, s in seconds(record).items()}
        best = best_onnx(record)
        shown = [*STREAMS, *OTHERS, *([best[0]] if best else [])]
        rows.append(
            [
                _label(record),
                *(found.get(name, "") for name in STREAMS),
                found[best[0]] if best else "",
                *(_times(to_onnx(record, name)) for name in STREAMS),
                *(found.get(name, "") for name in OTHERS),
                spread_of(record, shown),
            ]
        )
    streams = [_short(name) for name in STREAMS]
    header = ["layers, I = H", *streams, ONNX, *(f"{name}: speed" for name in streams)]
    return table([*header, *map(_short, OTHERS), "spread"], rows)


def _lowest(records: Sequence[Record]) -> str:
    """The lowest speed to ONNX Runtime's by size, and which way of running that was the fastest."""
    sizes = sorted({record["H"] for record in records})
    rows = []
    for peer in STREAMS:
        cells = []
        for size in sizes:
            speeds = [to_onnx(record, peer) for record in chosen(records, H=size)]
            cells.append(_times(min((s for s in speeds if s is not None), default=None)))
        rows.append([_short(peer), *cells])
    ways = Counter(best[0] for record in records if (best := best_onnx(record)))
    said = ", ".join(f"{way} {count} times" for way, count in ways.most_common())
    header = [f"lowest speed to {ONNX}'s, H =", *map(str, sizes)]
    return f"Its fastest way: {said}.\n\n{table(header, rows)}"


def _rates(records: Sequence[Record]) -> str:
    """How many streams take their step in a second."""
    rows = []
    for record in records:
        found, best = seconds(record), best_onnx(record)
        of_peers = [found.get(name) for name in STREAMS] + [best[1] if best else None]
        of_peers += [found.get(name) for name in OTHERS]
        rates = ["" if s is None else number(record["B"] / s / 1e3) for s in of_peers]
        rows.append([_label(record), *rates])
    return table(["layers, I = H", *map(_short, (*STREAMS, ONNX, *OTHERS))], rows)


def _tail(record: Record) -> str:
    """How long single steps take, a row a peer."""
    rows = []
    for name, figures in timed(record).items():
        of_share = [figures[key] for key in ("p50_s", "p99_s", "p999_s", "max_s")]
        ratio = f"{figures['p99_s'] / figures['p50_s']:.2f}"
        rows.append([_short(name), *(number(s * 1e6) for s in of_share), ratio])
    return table(["", "p50", "p99", "p99.9", "longest", "p99 / p50"], rows)


def _sections(records: Sequence[Record]) -> Iterator[tuple[str, str]]:
    steps = chosen(records, group="step")
    kinds = dict.fromkeys((record["B"], record["threads"]) for record in steps)
    for rows, count in kinds:
        threads = f"{count} thread{'s' if count > 1 else ''}"
        of_kind = chosen(steps, B=rows, threads=count)
        text = _steps(of_kind)
        if any(map(best_onnx, of_kind)):
            text += f"\n\n{_lowest(of_kind)}"
        yield f"One step, B = {rows}, {threads}: µs", text
        if rows >= MANY_ROWS:
            yield f"Steps of {rows} streams, {threads}: thousands a second", _rates(of_kind)
    for record in chosen(records, group="tail"):
        count = min(figures["steps"] for figures in timed(record).values())
        sizes = f"B = {record['B']}, one thread"
        yield f"{count} single steps, {_label(record)}, {sizes}: µs", _tail(record)


def tables(records: Sequence[Record]) -> str:
    """All tables, and where the numbers come from."""
    if len(cpus := {record["cpu"] for record in records}) > 1:
        raise ValueError(f"single steps must be of one machine, got {', '.join(sorted(cpus))}")
    parts = [f"### {title}\n\n{text}" for title, text in _sections(records)]
    return "\n\n".join([LEGEND, *parts, origins(records)]) + "\n"


def sentences(records: Sequence[Record]) -> list[str]:
    """What the README says: one line, or none if that workload was not timed."""
    wanted = {"cell": "lstm", "layers": 1, "B": 1, "H": 256}
    said = []
    of_sizes = chosen(records, group="step", **wanted)
    most = max((record["threads"] for record in of_sizes), default=0)
    on = "one thread" if most == 1 else f"{most} threads"
    for record in chosen(of_sizes, threads=most):
        best = best_onnx(record)
        found = {**seconds(record), ONNX: best[1] if best else None}
        named = [found.get(name) for name in (*STREAMS, ONNX, CELL)]
        if None not in named:
            ours, bfloat16, int8, onnx, cell = (number(s * 1e6) for s in named)
            said.append(
                f"A step of a stream of an LSTM with 256 units takes **{ours} µs** on {on}, "
                f"{bfloat16} with\n  bfloat16 weights, {int8} with int8; with ONNX Runtime {onnx}, "
                f"with `nn.LSTMCell` {cell}\n  (another machine, {ISAS[record['isa']]})."
            )
    return said
