"""The two kinds of figures of the page: numbers over density, and numbers in rows, each with its interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.evidence.statistics import Interval
from experiments.report.drawing import MUTED, blank, panels, styled, top_legend
from experiments.report.ticks import density_axis, linear_axis, log_axis

__all__ = ["COLORS", "Line", "Panel", "Row", "Rows", "in_rows", "over_density"]

COLORS = ("#2f7fc1", "#d55e00", "#009e73", "#8f6bb3", "#e69f00", "#1aa39a")
"""Colors of what is no pruning method."""

_SPREAD = 0.05
"""Share of an axis of densities over which the points of one density are spread, so that all intervals stay visible."""


_COLUMNS = 2
"""Panels beside each other: a page is not wide enough for the letters of more."""

_MANY = 8
"""A panel with more lines than this is higher, so that they can be told apart."""


class Line(NamedTuple):
    """A number over density, with intervals whose ends may be NaN; `style` is that of Matplotlib's lines.

    Lines without a marker are those of the unpruned network, which has no density.
    """

    name: str
    densities: Sequence[float]
    numbers: Sequence[Interval]
    color: str
    marker: str
    style: str = "-"


class Panel(NamedTuple):
    """Lines of one panel, under its title."""

    title: str
    lines: Sequence[Line]


@styled
def over_density(
    shown: Sequence[Panel], words: str, footer: str, *, logarithmic: bool = False, level: float | None = None
) -> Figure:
    """A panel for each data set and network; `words` are those of the vertical axis, `level` a line across.

    Each panel has limits of its own.
    """
    crowded = max(len(panel.lines) for panel in shown) > _MANY
    figure, axes, flat = panels(
        len(shown), footer, width=3.6, height=4.2 if crowded or len(shown) == 1 else 2.9, most=_COLUMNS
    )
    for axis, panel in zip(flat, shown, strict=True):
        densities = sorted({density for line in panel.lines for density in line.densities})
        for place, line in enumerate(panel.lines):
            part = (place + 0.5) / len(panel.lines) - 0.5 if line.marker else 0.0
            beside = np.asarray(line.densities) * max(densities[-1] / densities[0], 2.0) ** (_SPREAD * part)
            middle, reach = np.array([number.value for number in line.numbers]), _reach(line.numbers)
            if logarithmic:  # below its number an interval must not reach zero
                reach[0] = np.minimum(reach[0], 0.9 * middle)
            axis.errorbar(
                beside,
                middle,
                yerr=reach if reach.any() else None,
                color=line.color,
                marker=line.marker,
                linestyle=line.style,
                linewidth=1.2,
                markersize=4,
                elinewidth=0.9,
                label=line.name,
            )
        if level is not None:
            axis.axhline(level, color=MUTED, linewidth=0.8)
        density_axis(axis, densities)
        (log_axis if logarithmic else linear_axis)(axis)
        axis.set(title=panel.title, xlabel="density", ylabel=words)
    return top_legend(figure, axes)


class Row(NamedTuple):
    """Numbers beside one label, by the name of their series."""

    label: str
    numbers: dict[str, Interval]


class Rows(NamedTuple):
    """Rows of one panel, under its title."""

    title: str
    rows: Sequence[Row]


@styled
def in_rows(
    shown: Sequence[Rows],
    words: str,
    footer: str,
    *,
    level: float = 0.0,
    axis_of: Callable[[Axes], None] = lambda axis: linear_axis(axis, "x"),
    width: float = 3.4,
) -> Figure:
    """Numbers with their intervals in rows, a panel beside the other; `words` are those of the horizontal axis.

    Panels share their rows if they have the same labels. `level` is a line from top to bottom.
    """
    series = list(dict.fromkeys(name for panel in shown for row in panel.rows for name in row.numbers))
    columns = min(_COLUMNS, len(shown))
    lines = -(-len(shown) // columns)
    most = max(len(panel.rows) for panel in shown)
    labels = max(len(row.label) for panel in shown for row in panel.rows)
    size = max(width * columns + 0.075 * labels, 6.6), (0.24 * most + 1.0) * lines + 0.5
    alike = len({tuple(row.label for row in panel.rows) for panel in shown}) == 1
    figure, axes = blank(*size, footer, rows=lines, columns=columns, share="row" if alike else False)
    flat = [axis for row in axes for axis in row]
    for axis, panel in zip(flat, shown, strict=False):
        for place, name in enumerate(series):
            beside = 0.22 * (place - (len(series) - 1) / 2)
            there = [(at, row.numbers[name]) for at, row in enumerate(panel.rows) if name in row.numbers]
            there = [(at, number) for at, number in there if np.isfinite(number.value)]
            if there:
                axis.errorbar(
                    [number.value for _, number in there],
                    [at + beside for at, _ in there],
                    xerr=_reach([number for _, number in there]),
                    color=COLORS[place % len(COLORS)],
                    marker="osD^v"[place % 5],
                    markersize=4,
                    linestyle="none",
                    linewidth=1.2,
                    label=name if len(series) > 1 else None,
                )
        axis.axvline(level, color=MUTED, linewidth=0.8)
        axis_of(axis)
        axis.set_yticks(range(len(panel.rows)), [row.label for row in panel.rows])
        axis.set(title=panel.title, xlabel=words, ylim=(len(panel.rows) - 0.5, -0.5))
    for axis in flat[len(shown) :]:
        axis.set_axis_off()
    return top_legend(figure, axes)


def _reach(numbers: Sequence[Interval]) -> np.ndarray:
    """How far intervals reach below and above their numbers, 0 where there is none."""
    return np.nan_to_num([[each.value - each.low, each.high - each.value] for each in numbers]).T.clip(min=0)
