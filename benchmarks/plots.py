"""The plots of `compare.py`: throughput by shape, time a token by length, scaling, a GPU's grid."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import grid
from benchmarks.records import Record, timed
from benchmarks.workloads import CELLS, MODES

Draw = Callable[[Axes, Sequence[Record]], None]

COLORS = {
    "varlen_rnn": "tab:blue",
    "varlen_rnn packed": "tab:cyan",
    "nn padded": "tab:orange",
    "nn packed": "tab:red",
    "nn loop": "tab:brown",
    "nn cell": "tab:pink",
    "onnxruntime": "tab:green",
}


def _peers(records: Sequence[Record]) -> list[str]:
    return [name for name in COLORS if any(name in timed(r) for r in records)]


def _shape(record: Record) -> str:
    return f"{record['B']}, {record['T']}, {record['H']}"


def _throughput(axes: Axes, records: Sequence[Record]) -> None:
    """A bar a peer, from the first to the third quartile in black, and the rate of torch.mm."""
    peers = _peers(records)
    width = 0.8 / len(peers)
    for index, peer in enumerate(peers):
        chosen = [(x, r, timed(r)[peer]) for x, r in enumerate(records) if peer in timed(r)]
        heights = [figures["gflops"] for _, _, figures in chosen]
        bounds = [
            [r["flops"] / figures[q] / 1e9 for _, r, figures in chosen] for q in ("q3_s", "q1_s")
        ]
        errors = [[abs(b - h) for b, h in zip(bound, heights, strict=True)] for bound in bounds]
        axes.bar(
            [x + (index - (len(peers) - 1) / 2) * width for x, _, _ in chosen],
            heights,
            width,
            yerr=errors,
            color=COLORS[peer],
            label=peer,
        )
    limits = [record["mm_gflops"] for record in records]
    axes.plot(range(len(records)), limits, "k_", markersize=30, label="torch.mm")
    axes.set_xticks(range(len(records)), [_shape(r) for r in records], rotation=30, ha="right")
    axes.set_xlabel("B, T, I = H")
    axes.set_ylabel("GF on valid tokens")


def _growth(axes: Axes, records: Sequence[Record]) -> None:
    for peer in _peers(records):
        points = [(r["T"], timed(r)[peer]["us_per_token"]) for r in records if peer in timed(r)]
        axes.plot(*zip(*points, strict=True), "o-", color=COLORS[peer], label=peer)
    axes.set_xscale("log")
    axes.set_yscale("log")
    steps = sorted({r["T"] for r in records})
    axes.set_xticks(steps, [str(t) for t in steps])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("T")
    axes.set_ylabel("µs a valid token")


def _threads(axes: Axes, records: Sequence[Record]) -> None:
    """A line style a shape."""
    shapes = list(dict.fromkeys(map(_shape, records)))
    for shape, style in zip(shapes, ("-", "--", ":", "-.") * len(shapes), strict=False):
        of_shape = [r for r in records if _shape(r) == shape]
        for peer in _peers(of_shape):
            chosen = [r for r in of_shape if peer in timed(r)]
            points = [(r["threads"], timed(r)[peer]["gflops"]) for r in chosen]
            label = f"{peer}: {shape}"
            axes.plot(
                *zip(*points, strict=True), style, marker="o", color=COLORS[peer], label=label
            )
    threads = sorted({r["threads"] for r in records})
    axes.set_xticks(threads, [str(count) for count in threads])
    axes.set_xlabel("threads")
    axes.set_ylabel("GF on valid tokens")


def _grid(axes: Axes, records: Sequence[Record]) -> None:
    """A colour a B and a line style a dtype, at the T that most records have."""
    steps = Counter(r["T"] for r in records).most_common(1)[0][0]
    shown = sorted((r for r in records if r["T"] == steps), key=lambda r: r["H"])
    for style, dtype in zip(("-", "--", ":"), sorted({r["dtype"] for r in shown}), strict=False):
        for index, rows in enumerate(sorted({r["B"] for r in shown})):
            chosen = [r for r in shown if (r["dtype"], r["B"]) == (dtype, rows)]
            points = [(r["H"], grid.speed(r)) for r in chosen]
            label = f"B = {rows}, {dtype}"
            if points:
                axes.plot(*zip(*points, strict=True), f"C{index}{style}", marker="o", label=label)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xscale("log", base=2)
    sizes = sorted({r["H"] for r in shown})
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.set_xlabel(f"H (T = {steps})")
    axes.set_ylabel("times faster than nn packed")


def _figure(records: Sequence[Record], draw: Draw, path: Path) -> None:
    """A panel for every cell and mode that there are results of."""
    pairs = [(cell, mode) for cell in CELLS for mode in MODES]
    chosen = {p: [r for r in records if (r["cell"], r["mode"]) == p] for p in pairs}
    chosen = {pair: of_pair for pair, of_pair in chosen.items() if of_pair}
    columns = min(len(chosen), 2)
    rows = -(-len(chosen) // columns)
    figure = Figure(figsize=(8 * columns, 4.5 * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels:
        axes.set_visible(False)
    for axes, ((cell, mode), of_pair) in zip(panels, chosen.items(), strict=False):
        axes.set_visible(True)
        draw(axes, of_pair)
        axes.set_title(f"{cell.upper()}, {mode}")
        axes.set_ylim(bottom=0 if axes.get_yscale() == "linear" else None)
        axes.legend(fontsize="x-small", markerscale=0.5)
    figure.savefig(path, dpi=120)


def write(
    records: Sequence[Record], by_threads: Sequence[Record], output: Path, stem: str
) -> list[Path]:
    """Writes the plots for which there are results, and returns their paths."""
    ragged = [r for r in records if r["group"] == "grid" and r["distribution"] != "full"]
    kinds: dict[str, tuple[Sequence[Record], Draw]] = {
        "throughput": ([r for r in records if r["group"] == "shapes"], _throughput),
        "growth": ([r for r in records if r["group"] == "growth"], _growth),
        "threads": (by_threads, _threads),
        "grid": (ragged, _grid),
    }
    written = []
    for kind, (chosen, draw) in kinds.items():
        if chosen:
            _figure(chosen, draw, path := output / f"{stem}-{kind}.png")
            written.append(path)
    return written
