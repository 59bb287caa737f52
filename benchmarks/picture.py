"""The picture of the README and of the docs: a training step, and how it grows with the length.

Drawn from result lines alone. Its metadata hold a digest of the numbers that it shows and of this
file, so that a test sees when it is stale, whatever the version of Matplotlib.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.records import OURS, Record, timed

# Cell, B, T, H of the steps on the left; cell of the lengths on the right.
STEPS = (("lstm", 32, 100, 256), ("lstm", 64, 200, 256), ("gru", 32, 100, 256))
GROWTH_CELL = "lstm"
PEERS = (OURS, "nn padded", "nn packed")
THEMES = {
    "light": {"text": "#1f2328", "soft": "#59636e", "grid": "#d1d9e0"}
    | dict(zip(PEERS, ("#0969da", "#bc4c00", "#8250df"), strict=True)),
    "dark": {"text": "#f0f6fc", "soft": "#9198a1", "grid": "#3d444d"}
    | dict(zip(PEERS, ("#4493f8", "#f0883e", "#ab7df8"), strict=True)),
}
# Text stays text, in a font that Matplotlib brings along, or else in whatever a reader has.
STYLE = {"svg.hashsalt": "varlen_rnn", "svg.fonttype": "none", "font.family": "sans-serif"}
STYLE |= {"font.sans-serif": ["DejaVu Sans"], "font.size": 10}

Content = dict[str, Any]


def content(records: Sequence[Record]) -> Content:
    """The numbers that are drawn, rounded as they are printed; peers that were not timed lack."""
    training = [r for r in records if r["mode"] == "training"]
    bars = []
    for wanted in STEPS:
        for r in training:
            if r["group"] == "shapes" and wanted == tuple(r[key] for key in ("cell", *"BTH")):
                seconds = {name: f["median_s"] for name, f in timed(r).items() if name in PEERS}
                times = [f"{s / seconds[OURS]:.1f}" for name, s in seconds.items() if name != OURS]
                ms = {name: f"{s * 1e3:.3g}" for name, s in seconds.items()}
                bars.append({"shape": wanted, "ms": ms, "times": sorted(times, key=float)})
    growth = [r for r in training if (r["group"], r["cell"]) == ("growth", GROWTH_CELL)]
    lines: dict[str, list[list[object]]] = {}
    for r in growth:
        for name in (name for name in PEERS if name in timed(r)):
            value = f"{timed(r)[name]['us_per_token']:.3g}"
            lines.setdefault(name, []).append([r["T"], value])
    sizes = {key: growth[0][key] for key in "BH" if growth}
    return {"bars": bars, "growth": lines, "sizes": sizes}


def drawable(records: Sequence[Record]) -> bool:
    """Whether there is anything to draw."""
    return any(content(records).values())


def digest(records: Sequence[Record]) -> str:
    """Of what is drawn, and of the code that draws it."""
    code = Path(__file__).read_text(encoding="utf-8")
    drawn = json.dumps([content(records), code], sort_keys=True)
    return hashlib.sha256(drawn.encode()).hexdigest()[:16]


def digest_in(path: Path) -> str | None:
    """The digest that an SVG file says it was drawn for."""
    found = re.search(r"varlen_rnn:([0-9a-f]+)", path.read_text(encoding="utf-8"))
    return found[1] if found else None


def _name(peer: str, cell: str) -> str:
    """As a user knows it."""
    return f"VarLen{cell.upper()}" if peer == OURS else f"nn.{cell.upper()} {peer[3:]}"


def _bars(axes: Axes, bar: Content, theme: dict[str, str]) -> None:
    """One shape, with an axis of its own from 0 on; every bar says its time."""
    cell, rows, steps, size = bar["shape"]
    peers = [peer for peer in PEERS if peer in bar["ms"]]
    values = [float(bar["ms"][peer]) for peer in peers]
    axes.barh(range(len(peers)), values, 0.74, color=[theme[peer] for peer in peers])
    axes.set_xlim(0, 1.3 * max(values))
    axes.set_yticks(range(len(peers)), [_name(peer, cell) for peer in peers])
    axes.invert_yaxis()
    axes.set_xticks([])
    title = f"{cell.upper()}, {rows} rows of 1 to {steps} steps, {size} units"
    axes.set_title(title, loc="left", fontsize=9, color=theme["soft"], pad=3)
    for index, peer in enumerate(peers):
        said = f"{bar['ms'][peer]} ms"
        said += f": {' to '.join(bar['times'])} times as fast" if peer == OURS else ""
        place = {"textcoords": "offset points", "va": "center", "color": theme["text"]}
        weight = {"fontweight": "bold"} if peer == OURS else {}
        axes.annotate(said, (values[index], index), (4, 0), **place, **weight)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)


def _growth(axes: Axes, drawn: Content, theme: dict[str, str]) -> None:
    """Microseconds a valid token by length, both axes logarithmic; a label at every line's end."""
    steps = sorted({t for points in drawn["growth"].values() for t, _ in points})
    for peer, points in drawn["growth"].items():
        lengths, values = [t for t, _ in points], [float(value) for _, value in points]
        axes.plot(lengths, values, "o-", color=theme[peer], linewidth=2.5, markersize=6)
        weight = {"fontweight": "bold"} if peer == OURS else {}
        place = {"textcoords": "offset points", "ha": "right", "color": theme["text"]}
        said = f"{_name(peer, GROWTH_CELL)}: {points[0][1]} to {points[-1][1]} µs"
        above = (4, 9) if peer != "nn packed" else (-12, -2)
        axes.annotate(said, (lengths[-1], values[-1]), above, **place, **weight)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(steps[0] / 1.25, steps[-1] * 1.35)
    axes.set_ylim(axes.get_ylim()[0] / 1.5, axes.get_ylim()[1] * 1.2)
    axes.set_xticks(steps, [f"{t} steps" for t in steps])
    axes.set_xticks([], minor=True)
    ticks = [t for t in (1, 10, 100, 1000) if t < axes.get_ylim()[1]]
    axes.set_yticks(ticks, [f"{t} µs" for t in ticks])
    axes.set_yticks([], minor=True)
    axes.grid(axis="y", color=theme["grid"], linewidth=0.8)
    sizes = f"{GROWTH_CELL.upper()}, {drawn['sizes']['B']} rows, {drawn['sizes']['H']} units"
    axes.set_title(
        f"{sizes}, longest row as below", loc="left", fontsize=9, color=theme["soft"], pad=3
    )
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def draw(records: Sequence[Record], path: Path, theme_name: str = "light") -> None:
    """Writes the picture: as SVG on a transparent ground, or as whatever the file's name says."""
    drawn, theme = content(records), THEMES[theme_name]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.2, 4.3), layout="constrained")
        left, right = figure.subfigures(1, 2, width_ratios=(1.1, 1), wspace=0.04)
        heading = {"fontsize": 12, "fontweight": "bold", "color": theme["text"]}
        if drawn["bars"]:
            left.suptitle("One training step (shorter is better)", **heading)
            panels = left.subplots(len(drawn["bars"]), 1, squeeze=False)
            for axes, bar in zip(panels.flat, drawn["bars"], strict=True):
                _bars(axes, bar, theme)
        if drawn["growth"]:
            right.suptitle("Training time of one token (lower is better)", **heading)
            _growth(right.subplots(), drawn, theme)
        for axes in figure.axes:
            axes.set_facecolor("none")
            axes.tick_params(colors=theme["text"], length=0)
            for spine in axes.spines.values():
                spine.set_color(theme["grid"])
        svg = path.suffix == ".svg"
        about = {"Date": None, "Identifier": f"varlen_rnn:{digest(records)}"} if svg else {}
        figure.savefig(path, transparent=svg, metadata=about, dpi=120)
