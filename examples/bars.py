"""Bars that the programs of this folder draw: the median of each, its ratio, and every value."""

import statistics
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes

COLOURS = ("tab:orange", "tab:blue", "tab:cyan")


def times_as_fast(measured: Mapping[str, Sequence[float]], *, rates: bool) -> list[float]:
    """How many times as fast as the first each is, by the medians of its times (or rates)."""
    medians = [statistics.median(values) for values in measured.values()]
    return [median / medians[0] if rates else medians[0] / median for median in medians]


def draw_bars(
    axes: Axes,
    measured: Mapping[str, Sequence[float]],
    unit: str,
    *,
    rates: bool = False,
    digits: int = 0,
    colours: Sequence[str] = COLOURS,
) -> None:
    """Draw a bar for each name, with its median and ratio on it, and its values as points.

    The axis ends at one and a half times the highest bar: a value beyond that, which other work on
    the machine may cause, is a triangle at the edge, and does not make the bars small.
    """
    medians = [statistics.median(values) for values in measured.values()]
    top = 1.5 * max(medians)
    colours = colours[: len(medians)]
    axes.bar(list(measured), medians, width=0.7, color=colours, alpha=0.5)
    ratios = times_as_fast(measured, rates=rates)
    for place, (values, colour) in enumerate(zip(measured.values(), colours, strict=True)):
        label = f"{medians[place]:,.{digits}f} {unit}"
        if place:
            label = f"{label}\n{ratios[place]:.1f} × as fast"
        axes.text(place, 0.02 * top, label, ha="center", va="bottom")
        for marker, heights in (
            (".", [value for value in values if value <= top]),
            ("^", [0.985 * top for value in values if value > top]),
        ):
            axes.plot([place + 0.42] * len(heights), heights, marker, color=colour, alpha=0.7)
    axes.set_ylim(0, top)
    axes.yaxis.set_major_formatter("{x:,g}")
