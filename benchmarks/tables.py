"""The tables of `benchmarks.run`'s results: one or more a group of workloads, one unit each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from benchmarks import grid
from benchmarks.records import (
    NN,
    OURS,
    Record,
    chosen,
    mean_ratio,
    number,
    origins,
    others,
    ratio,
    seconds,
    spread_of,
    table,
    timed,
    with_all_threads,
)
from benchmarks.workloads import CELLS, FORM_PEERS, LAYOUT_PEERS, MODES

PACKED = "varlen_rnn packed"
STEP_LOOP = "nn step loop"
WITHOUT_RESETS = "varlen_rnn without resets"

# A title, and the text below it.
Section = tuple[str, str]


def _peers(records: Sequence[Record]) -> list[str]:
    """Every peer with a number, in the order of the records."""
    return list(dict.fromkeys(name for record in records for name in timed(record)))


def _cells(record: Record, peers: Sequence[str], key: str, scale: float = 1.0) -> list[str]:
    """One number a peer."""
    figures = timed(record)
    return [number(figures[name][key] * scale) if name in figures else "" for name in peers]


def _shape(record: Record) -> str:
    size = f"{record['I']}" if record["I"] == record["H"] else f"{record['I']}, {record['H']}"
    return f"{record['B']}, {record['T']}, {size}"


def _kind(record: Record) -> str:
    return f"{record['cell'].upper()}, {record['mode']}"


LABELS: dict[str, tuple[str, Callable[[Record], str]]] = {
    "shapes": ("B, T, I = H", _shape),
    "lengths": ("lengths", lambda r: f"{r['distribution']} ({_shape(r)})"),
    "threads": ("B, T, I = H; threads", lambda r: f"{_shape(r)}; {r['threads']}"),
}


def _rates(records: Sequence[Record], group: str) -> Section:
    heading, name = LABELS[group]
    peers = _peers(records)
    rows = [
        [
            name(record),
            f"{record['valid_share']:.0%}",
            *_cells(record, peers, "gflops"),
            f"{timed(record)[OURS]['mm_share']:.0%}",
            "" if (best := ratio(record)) is None else f"{best:.2f} ×",
            spread_of(record),
        ]
        for record in records
    ]
    header = [heading, "valid", *peers, "of torch.mm", "to the best peer", "spread"]
    wanted: dict[str, Callable[[str], bool]] = {
        "the best peer": lambda name: True,
        "the better of nn padded and packed": NN.__contains__,
        **{peer: peer.__eq__ for peer in dict.fromkeys(p for r in records for p in others(r))},
    }
    means = [
        f"{mean:.2f} × {whom}"
        for whom, keep in wanted.items()
        if (mean := mean_ratio(records, keep))
    ]
    text = f"{table(header, rows)}\n\nGeometric means of varlen_rnn's speed: {', '.join(means)}."
    to_packed = [s[OURS] / s[PACKED] for s in map(seconds, records) if PACKED in s]
    if to_packed:
        text += (
            f"\nPadded with lengths takes {min(to_packed):.3f} to {max(to_packed):.3f} times as "
            "long as a PackedSequence."
        )
    return f"{_kind(records[0])}, by {group}: GF on valid tokens", text


def _growth(records: Sequence[Record], group: str) -> Section:
    peers = _peers(records)
    rows = [[str(r["T"]), *_cells(r, peers, "us_per_token"), spread_of(r)] for r in records]
    first, last = timed(records[0]), timed(records[-1])
    growth = [
        f"{name} {last[name]['us_per_token'] / first[name]['us_per_token']:.2f}"
        for name in peers
        if name in first and name in last
    ]
    text = f"{table(['T', *peers, 'spread'], rows)}\n\n"
    text += f"Ratio from T = {records[0]['T']} to {records[-1]['T']}: {', '.join(growth)}."
    sizes = f"B = {records[0]['B']}, H = {records[0]['H']}"
    return f"{_kind(records[0])}, {sizes}: µs a valid token by length", text


def _resets(records: Sequence[Record], group: str) -> Section:
    peers = _peers(records)
    rows, to_loop, to_without = [], {}, []
    for record in records:
        speed_up, found = ratio(record, STEP_LOOP.__eq__), seconds(record)
        to_loop.setdefault(record["B"], []).append(speed_up)
        to_without.append(found[OURS] / found[WITHOUT_RESETS])
        rows.append(
            [
                f"{record['B']}; {record['reset_probability']:g}",
                *_cells(record, peers, "median_s", 1e3),
                f"{speed_up:.2f} ×",
                f"{to_without[-1]:.3f}",
                spread_of(record),
            ]
        )
    header = ["B; probability", *peers, "to the loop", "with / without resets", "spread"]
    least = " and ".join(f"{min(values):.2f} × at B = {b}" for b, values in to_loop.items())
    text = f"{table(header, rows)}\n\nvarlen_rnn's speed to that of the loop: at least {least}. "
    text += f"With resets it takes at most {max(to_without):.3f} times as long as without."
    sizes = f"T = {records[0]['T']}, H = {records[0]['H']}"
    return f"{_kind(records[0])}, {sizes}, by probability of a reset: ms", text


def _grid(records: Sequence[Record], group: str) -> Section:
    """A row a size, in microseconds a step of the longest row."""
    peers = _peers(records)
    rows = [
        [
            f"{r['H']}, {r['B']}, {r['T']}",
            f"{r['valid_share']:.0%}",
            *_cells(r, peers, "median_s", 1e6 / r["T"]),
            f"{grid.speed(r):.2f} × {grid.peer(r)}",
            f"{grid.goal(r):g} ×",
            "yes" if grid.speed(r) >= grid.goal(r) else "no",
            spread_of(r),
        ]
        for r in sorted(records, key=lambda r: (r["H"], r["B"], r["T"]))
    ]
    header = ["H, B, T", "valid", *peers, "speed", "goal", "reached", "spread"]
    text = f"{table(header, rows)}\n\n{grid.verdict(records)}."
    return f"{_kind(records[0])}: µs a step of the longest row", text


def _step(records: Sequence[Record]) -> Iterator[Section]:
    peers = _peers(records)
    rows = [[_kind(r), *_cells(r, peers, "median_s", 1e6), spread_of(r)] for r in records]
    sizes = f"B = {records[0]['B']}, T = {records[0]['T']}, H = {records[0]['H']}"
    yield f"One streaming step, {sizes}: µs", table(["", *peers, "spread"], rows)


def _forms(records: Sequence[Record]) -> Iterator[Section]:
    """Every form's call to that of packed, and every form's layout to its call."""
    sizes = f"B, T, I = H = {_shape(records[0])}"
    parts: dict[str, list[list[str]]] = {"calls": [], "layouts": []}
    slowest, dearest = [], []
    for record in records:
        found, name = seconds(record), _kind(record)
        calls = {form: found[peer] for form, peer in FORM_PEERS.items()}
        shares = {form: s / calls["packed"] for form, s in calls.items()}
        slowest += [(share, f"{form}, {name}") for form, share in shares.items()]
        cells = [f"{number(calls[form] * 1e3)} ({shares[form]:.2f} ×)" for form in calls]
        parts["calls"].append([name, *cells, spread_of(record, FORM_PEERS.values())])
        if found.keys() >= set(LAYOUT_PEERS.values()):
            layouts = {form: found[peer] for form, peer in LAYOUT_PEERS.items()}
            shares = {form: s / calls[form] for form, s in layouts.items()}
            dearest += [(share, f"{form}, {name}") for form, share in shares.items()]
            cells = [f"{number(layouts[form] * 1e6)} ({shares[form]:.1%})" for form in layouts]
            parts["layouts"].append([name, *cells, spread_of(record, LAYOUT_PEERS.values())])
    header = ["", *FORM_PEERS, "spread"]
    text = table(header, parts["calls"])
    text += "\n\nThe slowest form takes {:.3f} times as long as packed ({}).".format(*max(slowest))
    yield f"Forms of one batch, {sizes}: ms a call (to packed)", text
    if dearest:
        text = table(header, parts["layouts"])
        text += "\n\nA layout takes at most {:.1%} of a forward pass ({}).".format(*max(dearest))
        yield f"Layouts of one batch, {sizes}: µs (of the call)", text


BY_KIND = {
    "shapes": _rates,
    "lengths": _rates,
    "growth": _growth,
    "step": _step,
    "forms": _forms,
    "resets": _resets,
    "threads": _rates,
    "grid": _grid,
}


def _sections(records: Sequence[Record]) -> Iterator[Section]:
    for group, make in BY_KIND.items():
        of_group = chosen(records, group=group)
        if group == "threads":
            of_group = with_all_threads(records)
        if make in (_step, _forms):
            yield from make(of_group) if of_group else ()
            continue
        for cell in CELLS:
            for mode in MODES:
                if of_kind := chosen(of_group, cell=cell, mode=mode):
                    yield make(of_kind, group)


def markdown(records: Sequence[Record]) -> str:
    """All tables, and where the numbers come from."""
    parts = []
    for device, dtype in dict.fromkeys((r["device"], r["dtype"]) for r in records):
        unusual = "" if (device, dtype) == ("cpu", "float32") else f" ({device}, {dtype})"
        for title, text in _sections(chosen(records, device=device, dtype=dtype)):
            parts.append(f"### {title}{unusual}\n\n{text}")
    threads = max(r["threads"] for r in records)
    parts.append(
        f"Medians, threads unless stated: {threads}. Spread: the widest range between quartiles. "
        + origins(records)
    )
    return "\n\n".join(parts) + "\n"
