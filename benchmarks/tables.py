"""The tables of `benchmarks.run`'s results: one or more a group of workloads, one unit each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from benchmarks import grid
from benchmarks.records import (
    NN,
    OURS,
    Figures,
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
Label = Callable[[Record], str]


def _table(
    records: Sequence[Record],
    label: tuple[str, Label],
    value: Callable[[Record, Figures], float | None],
    before: Mapping[str, Label] | None = None,
    after: Mapping[str, Label] | None = None,
) -> str:
    """A row a record: what it is, one number a peer that was timed in any, and how sure it is."""
    peers = list(dict.fromkeys(name for record in records for name in timed(record)))
    left, right = dict([label]) | dict(before or {}), {**(after or {}), "spread": spread_of}

    def cell(record: Record, peer: str) -> str:
        found = value(record, timed(record)[peer]) if peer in timed(record) else None
        return "" if found is None else number(found)

    rows = [
        [make(r) for make in left.values()]
        + [cell(r, p) for p in peers]
        + [make(r) for make in right.values()]
        for r in records
    ]
    return table([*left, *peers, *right], rows)


def _shape(record: Record) -> str:
    size = f"{record['I']}" if record["I"] == record["H"] else f"{record['I']}, {record['H']}"
    return f"{record['B']}, {record['T']}, {size}"


def _kind(record: Record) -> str:
    return f"{record['cell'].upper()}, {record['mode']}"


VALID: dict[str, Label] = {"valid": lambda r: f"{r['valid_share']:.0%}"}
LABELS: dict[str, tuple[str, Label]] = {
    "shapes": ("B, T, I = H", _shape),
    "lengths": ("lengths", lambda r: f"{r['distribution']} ({_shape(r)})"),
    "threads": ("B, T, I = H; threads", lambda r: f"{_shape(r)}; {r['threads']}"),
}


def _rates(records: Sequence[Record], group: str) -> Section:
    after: dict[str, Label] = {
        "of torch.mm": lambda r: f"{timed(r)[OURS]['mm_share']:.0%}",
        "to the best peer": lambda r: "" if (best := ratio(r)) is None else f"{best:.2f} ×",
    }
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
    text = _table(records, LABELS[group], lambda r, f: f["gflops"], before=VALID, after=after)
    text += f"\n\nGeometric means of varlen_rnn's speed: {', '.join(means)}."
    if to_packed := [s[OURS] / s[PACKED] for s in map(seconds, records) if PACKED in s]:
        text += f"\nPadded with lengths takes {min(to_packed):.3f} to {max(to_packed):.3f} times "
        text += "as long as a PackedSequence."
    return f"{_kind(records[0])}, by {group}: GF on valid tokens", text


def _growth(records: Sequence[Record], group: str) -> Section:
    first, last = timed(records[0]), timed(records[-1])
    growth = [
        f"{name} {last[name]['us_per_token'] / first[name]['us_per_token']:.2f}"
        for name in first
        if name in last
    ]
    text = _table(records, ("T", lambda r: str(r["T"])), lambda r, f: f["us_per_token"])
    text += f"\n\nRatio from T = {records[0]['T']} to {records[-1]['T']}: {', '.join(growth)}."
    sizes = f"B = {records[0]['B']}, H = {records[0]['H']}"
    return f"{_kind(records[0])}, {sizes}: µs a valid token by length", text


def _resets(records: Sequence[Record], group: str) -> Section:
    def to_loop(record: Record) -> float:
        return ratio(record, STEP_LOOP.__eq__) or 0.0

    def to_without(record: Record) -> float:
        return seconds(record)[OURS] / seconds(record)[WITHOUT_RESETS]

    label = "B; probability", lambda r: f"{r['B']}; {r['reset_probability']:g}"
    after: dict[str, Label] = {
        "to the loop": lambda r: f"{to_loop(r):.2f} ×",
        "with / without resets": lambda r: f"{to_without(r):.3f}",
    }
    least = " and ".join(
        f"{min(map(to_loop, chosen(records, B=rows))):.2f} × at B = {rows}"
        for rows in dict.fromkeys(r["B"] for r in records)
    )
    text = _table(records, label, lambda r, f: f["median_s"] * 1e3, after=after)
    text += f"\n\nvarlen_rnn's speed to that of the loop: at least {least}. "
    text += f"With resets it takes at most {max(map(to_without, records)):.3f} times as long as "
    sizes = f"T = {records[0]['T']}, H = {records[0]['H']}"
    return f"{_kind(records[0])}, {sizes}, by probability of a reset: ms", f"{text}without."


def _times(record: Record, time: str) -> str:
    speed = grid.speed(record, time)
    return "" if speed is None else f"{speed:.2f} ×"


def _grid(records: Sequence[Record], group: str) -> Section:
    after: dict[str, Label] = {
        "to": grid.peer,
        "calls": lambda r: _times(r, "median_s"),
        "goal": lambda r: f"{grid.goal(r):g} ×",
        "reached": lambda r: "yes" if (grid.speed(r) or 0.0) >= grid.goal(r) else "no",
        "GPU alone": lambda r: _times(r, "kernel_s"),
    }
    label = "H, B, T", lambda r: f"{r['H']}, {r['B']}, {r['T']}"
    rows = sorted(records, key=lambda r: (r["H"], r["B"], r["T"]))

    def step(time: str) -> Callable[[Record, Figures], float | None]:
        return lambda r, f: f[time] / r["T"] * 1e6 if f.get(time) else None

    text = _table(rows, label, step("median_s"), before=VALID, after=after)
    text += f"\n\n{grid.verdict(records)}."
    if any("kernel_s" in figures for r in records for figures in timed(r).values()):
        text += "\n\nThe GPU alone, by graphs that are replayed, or calls that were queued:\n\n"
        text += _table(rows, label, step("kernel_s"), before=VALID)
    return f"{_kind(records[0])}: µs a step of the longest row", text


def _step(records: Sequence[Record]) -> Iterator[Section]:
    sizes = f"B = {records[0]['B']}, T = {records[0]['T']}, H = {records[0]['H']}"
    yield (
        f"One streaming step, {sizes}: µs",
        _table(records, ("", _kind), lambda r, f: f["median_s"] * 1e6),
    )


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
