"""The tables of `compare.py`: one or more a group of workloads."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence

from benchmarks import grid
from benchmarks.records import OURS, Record, others, ratio, spread, timed, with_all_threads
from benchmarks.workloads import CELLS, FORM_PEERS, LAYOUT_PEERS, MODES

STEP_LOOP = "nn step loop"
WITHOUT_RESETS = "varlen_rnn without resets"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _peers(records: Sequence[Record]) -> list[str]:
    """Every peer with a number, in the order of the records."""
    return list(dict.fromkeys(name for record in records for name in timed(record)))


def _cells(record: Record, peers: Sequence[str], key: str, scale: float = 1.0) -> list[str]:
    """One number a peer."""
    figures = timed(record)
    return [_number(figures[name][key] * scale) if name in figures else "" for name in peers]


def _number(value: float) -> str:
    """To three figures, or to one if there are more before the point."""
    return f"{value:.0f}" if value >= 99.95 else f"{value:.3g}"


def _shape(record: Record) -> str:
    size = f"{record['I']}" if record["I"] == record["H"] else f"{record['I']}, {record['H']}"
    return f"{record['B']}, {record['T']}, {size}"


def _rates(records: Sequence[Record], group: str) -> str:
    label = {
        "shapes": ("B, T, I = H", _shape),
        "lengths": ("lengths", lambda r: f"{r['distribution']} ({_shape(r)})"),
        "threads": ("B, T, I = H; threads", lambda r: f"{_shape(r)}; {r['threads']}"),
    }
    heading, name = label[group]
    peers = _peers(records)
    header = [heading, "valid", *peers, "of torch.mm", "to the best peer", "spread"]
    rows = [
        [
            name(record),
            f"{record['valid_share']:.0%}",
            *_cells(record, peers, "gflops"),
            f"{timed(record)[OURS]['mm_share']:.0%}",
            "" if (best := ratio(record)) is None else f"{best:.2f} ×",
            f"{spread(record):.0%}",
        ]
        for record in records
    ]
    return _table(header, rows) + "\n\n" + _means(records)


def _means(records: Sequence[Record]) -> str:
    """One sentence; a peer counts only where it was timed."""
    wanted: dict[str, Callable[[str], bool]] = {
        "the best peer": lambda name: True,
        "the better of nn padded and packed": lambda name: name in ("nn padded", "nn packed"),
        **{peer: peer.__eq__ for peer in dict.fromkeys(p for r in records for p in others(r))},
    }
    parts = []
    for name, keep in wanted.items():
        values = [value for record in records if (value := ratio(record, keep)) is not None]
        if values:
            parts.append(f"{statistics.geometric_mean(values):.2f} × {name}")
    return f"Geometric means of varlen_rnn's speed: {', '.join(parts)}."


def _growth(records: Sequence[Record]) -> str:
    peers = _peers(records)
    rows = [[str(r["T"]), *_cells(r, peers, "us_per_token"), f"{spread(r):.0%}"] for r in records]
    first, last = timed(records[0]), timed(records[-1])
    growth = [
        f"{name} {last[name]['us_per_token'] / first[name]['us_per_token']:.2f}"
        for name in peers
        if name in first and name in last
    ]
    steps = f"from T = {records[0]['T']} to {records[-1]['T']}"
    return _table(["T", *peers, "spread"], rows) + f"\n\nRatio {steps}: {', '.join(growth)}."


def _step(records: Sequence[Record]) -> str:
    peers = _peers(records)
    rows = [
        [r["cell"].upper(), *_cells(r, peers, "median_s", 1e6), f"{spread(r):.0%}"] for r in records
    ]
    return _table(["", *peers, "spread"], rows)


def _lengths_to_packed(records: Sequence[Record]) -> str:
    packed = "varlen_rnn packed"
    values = [
        figures[OURS]["median_s"] / figures[packed]["median_s"]
        for figures in map(timed, records)
        if packed in figures
    ]
    if not values:
        return ""
    return (
        "\nPadded + lengths takes "
        f"{statistics.geometric_mean(values):.3f} times as long as PackedSequence input "
        f"(geometric mean; {min(values):.3f} to {max(values):.3f})."
    )


def _forms(records: Sequence[Record]) -> str:
    """A row a form, a column a record and, where layouts were timed, another one for them."""
    header, columns = ["form"], []
    slowest, dearest = [], []
    for record in records:
        name = f"{record['cell'].upper()}, {record['mode']}"
        seconds = {peer: figures["median_s"] for peer, figures in timed(record).items()}
        calls = {form: seconds[peer] for form, peer in FORM_PEERS.items()}
        to_packed = {form: s / calls["packed"] for form, s in calls.items()}
        slowest += [(value, f"{form}, {name}") for form, value in to_packed.items()]
        cells = [f"{_number(calls[form] * 1e3)} ({to_packed[form]:.2f} ×)" for form in calls]
        header.append(name)
        columns.append([*cells, f"{spread(record, FORM_PEERS.values()):.0%}"])
        if not seconds.keys() >= set(LAYOUT_PEERS.values()):
            continue
        layouts = {form: seconds[peer] for form, peer in LAYOUT_PEERS.items()}
        shares = {form: s / calls[form] for form, s in layouts.items()}
        dearest += [(value, f"{form}, {name}") for form, value in shares.items()]
        cells = [f"{_number(layouts[form] * 1e6)} ({shares[form]:.1%})" for form in layouts]
        header.append("its layout: µs")
        columns.append([*cells, f"{spread(record, LAYOUT_PEERS.values()):.0%}"])
    text = _table(header, list(zip([*FORM_PEERS, "spread"], *columns, strict=True)))
    text += "\n\nThe slowest form takes {:.3f} times as long as packed ({}).".format(*max(slowest))
    if dearest:
        text += "\nA layout takes at most {:.1%} of a forward pass ({}).".format(*max(dearest))
    return text


def _resets(records: Sequence[Record]) -> str:
    peers = _peers(records)
    header = ["B; probability", *peers, "to the loop", "with / without resets", "spread"]
    rows, to_loop, to_without = [], {}, []
    for record in records:
        speed_up = ratio(record, STEP_LOOP.__eq__)
        figures = timed(record)
        with_resets = figures[OURS]["median_s"] / figures[WITHOUT_RESETS]["median_s"]
        to_loop.setdefault(record["B"], []).append(speed_up)
        to_without.append(with_resets)
        rows.append(
            [
                f"{record['B']}; {record['reset_probability']:g}",
                *_cells(record, peers, "median_s", 1e3),
                f"{speed_up:.2f} ×",
                f"{with_resets:.3f}",
                f"{spread(record):.0%}",
            ]
        )
    least = " and ".join(f"{min(values):.2f} × at B = {b}" for b, values in to_loop.items())
    return (
        f"{_table(header, rows)}\n\nvarlen_rnn's speed to that of the loop: at least {least}. "
        f"With resets it takes at most {max(to_without):.3f} times as long as without."
    )


def _grid(records: Sequence[Record]) -> str:
    """A row a size, in microseconds a step of the longest row."""
    peers = _peers(records)
    header = ["H, B, T", "valid", *peers, "speed", "goal", "reached", "spread"]
    rows = [
        [
            f"{r['H']}, {r['B']}, {r['T']}",
            f"{r['valid_share']:.0%}",
            *_cells(r, peers, "median_s", 1e6 / r["T"]),
            f"{grid.speed(r):.2f} × {grid.peer(r)}",
            f"{grid.goal(r):g} ×",
            "yes" if grid.speed(r) >= grid.goal(r) else "no",
            f"{spread(r):.0%}",
        ]
        for r in sorted(records, key=lambda r: (r["H"], r["B"], r["T"]))
    ]
    return f"{_table(header, rows)}\n\n{grid.verdict(records)}."


def sections(records: Sequence[Record], groups: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Title and text of every table of those groups."""
    for group in groups:
        of_group = [r for r in records if r["group"] == group]
        if group == "threads":
            of_group = with_all_threads(records)
        if group == "step" and of_group:
            sizes = f"B = {of_group[0]['B']}, T = {of_group[0]['T']}, H = {of_group[0]['H']}"
            yield f"One streaming step, {sizes}: µs", _step(of_group)
            continue
        if group == "forms" and of_group:
            sizes = f"B, T, I = H = {_shape(of_group[0])}"
            yield f"Forms of one batch, {sizes}: ms a call (to packed)", _forms(of_group)
            continue
        for cell in CELLS:
            for mode in MODES:
                if chosen := [r for r in of_group if (r["cell"], r["mode"]) == (cell, mode)]:
                    name = f"{cell.upper()}, {mode}"
                    if group == "growth":
                        sizes = f"B = {chosen[0]['B']}, H = {chosen[0]['H']}"
                        yield f"{name}, {sizes}: µs a valid token by length", _growth(chosen)
                    elif group == "grid":
                        yield f"{name}: µs a step of the longest row", _grid(chosen)
                    elif group == "resets":
                        sizes = f"T = {chosen[0]['T']}, H = {chosen[0]['H']}"
                        yield f"{name}, {sizes}, by probability of a reset: ms", _resets(chosen)
                    else:
                        text = _rates(chosen, group) + _lengths_to_packed(chosen)
                        yield f"{name}, by {group}: GF on valid tokens", text
