"""What all figures share: their style, lines over density, their legends, and their files. `ticks` has their axes."""

from __future__ import annotations

import functools
import io
import textwrap
from collections.abc import Callable
from typing import Any, Literal, ParamSpec

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from experiments.base.names import DENSE
from experiments.report.spread import half_width
from experiments.report.ticks import accuracy_axis, clipped_accuracy, density_axis

__all__ = [
    "ALL_CELLS",
    "GRID",
    "INK",
    "MUTED",
    "PAPER",
    "WITHIN_DENSITY",
    "above_floor",
    "accuracy_panel",
    "blank",
    "dashes",
    "groups",
    "lines_over_density",
    "mark_absent",
    "mark_absent_unless_drawn",
    "panels",
    "png",
    "points_before_training",
    "style_of",
    "styled",
    "svg",
    "top_legend",
]

_P = ParamSpec("_P")

INK, MUTED, GRID, PAPER = "#1b1f24", "#66707c", "#dde1e6", "#ffffff"

_STYLES = {
    DENSE: (MUTED, "*"),
    "random": ("#cc79a7", "s"),
    "magnitude": ("#e69f00", "^"),
    "snip": ("#009e73", "D"),
    "snip_iterative": ("#00694d", "d"),
    "prospr": ("#9acd32", r"$\mathsf{P}$"),
    "synflow": ("#2f7fc1", "o"),
    "synflow_l2": ("#56b4e9", "v"),
    "synflow_l2_absolute": ("#1f5f8b", r"$\mathsf{A}$"),
    "synflow_data": ("#d55e00", "P"),
    "synflow_data_l2": ("#8f6bb3", "X"),
    "grasp": ("#7f8c1f", "h"),
    "path_kernel_trace": ("#a0522d", "<"),
    "mean_field_trace": ("#1b4f72", r"$\Theta$"),
    "px": ("#1aa39a", ">"),
    "ntk_sap": ("#d1495b", "p"),
    "lottery_ticket": ("#1b1f24", "H"),
}
_OTHERS = ("#8c8c8c", "8")
ALL_CELLS, WITHIN_DENSITY = "#2f7fc1", "#d55e00"

_RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.edgecolor": MUTED,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.axisbelow": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "axes.facecolor": PAPER,
    "figure.facecolor": PAPER,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.markersize": 5,
    "svg.fonttype": "path",
    "svg.hashsalt": "pathjax",
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}


def png(figure: Figure) -> bytes:
    """The figure as PNG, the same bytes for the same figure."""
    return _saved(figure, format="png", dpi=150, metadata={"Software": None})


def svg(figure: Figure) -> bytes:
    """The figure as SVG, the same bytes for the same figure."""
    return _saved(figure, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})


def styled(draw: Callable[_P, Figure]) -> Callable[_P, Figure]:
    """Every part of a figure, legends and late text too, is made under the one style."""

    @functools.wraps(draw)
    def styled(*args: _P.args, **kwargs: _P.kwargs) -> Figure:
        with matplotlib.rc_context(_RC):
            return draw(*args, **kwargs)

    return styled


def accuracy_panel(axis: Axes, table: pd.DataFrame) -> None:
    """Test accuracy over density on one axis, as `lines_over_density`."""
    lines_over_density(axis, table, "test_accuracy", clip=clipped_accuracy)
    accuracy_axis(axis)


def lines_over_density(axis: Axes, table: pd.DataFrame, name: str, *, clip: Callable[[Any], Any] = np.array) -> None:
    """A number over density, a line for each method, a band of the `half_width` of its seeds; dense is a level.

    Values are drawn as `clip` returns them. Those that are not finite are left out.
    """
    for method, group in groups(table[np.isfinite(table[f"{name}_mean"])]):
        mean, half = group[f"{name}_mean"].to_numpy(), half_width(group, name).fillna(0).to_numpy()
        color, marker = style_of(method)
        low, high = clip(mean - half), clip(mean + half)
        if method == DENSE:
            axis.axhline(clip(mean)[0], color=color, linestyle=(0, (4, 3)), linewidth=1.2, label=DENSE)
            axis.axhspan(low[0], high[0], color=color, alpha=0.15, linewidth=0)
            continue
        axis.plot(group["density"], clip(mean), color=color, marker=marker, label=method)
        axis.fill_between(group["density"], low, high, color=color, alpha=0.18, linewidth=0)
    density_axis(axis, _densities(table))


def points_before_training(axis: Axes, table: pd.DataFrame, name: str) -> None:
    """Test accuracy over a quantity known before training, a point for each cell; its size grows with density.

    Cells whose quantity is not finite are left out.
    """
    for method, group in groups(table):
        color, marker = style_of(method)
        values = group[f"{name}_mean"].to_numpy()
        sizes = np.clip(70 + 18 * np.log(group["density"].to_numpy()), 12, None)
        there = np.isfinite(values)
        axis.scatter(
            values[there],
            clipped_accuracy(group["test_accuracy_mean"].to_numpy())[there],
            s=sizes[there],
            color=color,
            marker=marker,
            alpha=0.85,
            label=method,
            linewidth=0,
        )


def top_legend(figure: Figure, axes: Any) -> Figure:
    """The figure with one legend of everything that is named in any of its panels, above them."""
    labeled = [pair for axis in np.ravel(axes) for pair in zip(*axis.get_legend_handles_labels(), strict=True)]
    handles = {label: handle for handle, label in labeled[::-1]}  # the first of a name stays
    if handles:
        order = dict.fromkeys(label for _, label in labeled)
        needed = max(_NAME, _LINE + max(map(len, order)) / _NAME_LETTERS)
        columns = max(1, int(figure.get_figwidth() / needed))
        figure.legend([handles[label] for label in order], order, loc="outside upper center", ncols=columns)
    return figure


_NAME = 1.9
"""Inches that a legend needs for the longest name of a method, with its line."""

_LINE, _NAME_LETTERS = 0.7, 13
"""Inches that a legend needs for a line and the room around a name, and letters of a name that fit into an inch."""

_LETTERS = 19
"""Letters of a footer that fit into an inch."""


_BETWEEN = 0.06
"""Room between panels as a share of their size, so that the last label of one keeps off the first of the next."""


def panels(
    count: int, footer: str, *, width: float, height: float, share: bool | str = False, most: int = 3
) -> tuple[Figure, Any, list[Axes]]:
    """A figure of `count` panels in rows of at most `most`, all its axes, and those of them that are used."""
    columns = min(most, count) if count != 4 else 2
    rows = -(-count // columns)
    size = max(width * columns + 0.6, 6.6), height * rows + 0.5
    figure, axes = blank(*size, footer, rows=rows, columns=columns, share=share)
    flat = [axis for row in axes for axis in row]
    for axis in flat[count:]:
        axis.set_axis_off()
    return figure, axes, flat[:count]


def blank(
    width: float, height: float, footer: str, *, rows: int = 1, columns: int = 1, share: bool | str = False
) -> tuple[Figure, Any]:
    """A figure of this size in inches with its footer, and its axes (rows, columns).

    Panels share both their axes, or those of `share`: "x", "y", or "row" for the vertical axes of a row.
    """
    figure = Figure(figsize=(width, height + 0.3), layout=ConstrainedLayoutEngine(wspace=_BETWEEN, hspace=_BETWEEN))
    FigureCanvasAgg(figure)
    vertical: bool | Literal["row"] = "row" if share == "row" else share in (True, "y")
    axes = figure.subplots(rows, columns, sharex=share in (True, "x"), sharey=vertical, squeeze=False)
    figure.supxlabel(textwrap.fill(footer, int(_LETTERS * width)), fontsize=7, color=MUTED)
    return figure, axes


def _saved(figure: Figure, **how: Any) -> bytes:
    with matplotlib.rc_context(_RC), io.BytesIO() as file:
        if (layout := figure.get_layout_engine()) is not None:
            layout.execute(figure)
            figure.set_layout_engine("none")  # once for all formats: it takes longer than drawing
        figure.savefig(file, **how)
        return file.getvalue()


def groups(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The rows of each method."""
    return [(str(method), group) for method, group in table.groupby("method", sort=False)]


def _densities(table: pd.DataFrame) -> list[float]:
    return sorted(table.loc[table["method"] != DENSE, "density"].unique(), reverse=True)


def style_of(method: str) -> tuple[str, str]:
    """The color and the marker of a method and its variants, the same in every figure; one for all that have none."""
    return _STYLES.get(method.partition("+")[0], _OTHERS)


def dashes(method: str) -> dict[str, Any]:
    """How a line of the method is drawn: dashed for the dense network."""
    return {"linestyle": (0, (4, 3))} if method == DENSE else {}


_FLOOR = 1e-3


def above_floor(values: Any) -> Any:
    """Values as a logarithmic axis can show them: what is less than 0.001 is drawn as 0.001."""
    return np.maximum(values, _FLOOR)


def mark_absent(axis: Axes) -> None:
    """Say in an empty panel that its numbers are not there."""
    axis.set_facecolor("none")
    axis.spines[:].set_visible(False)
    axis.tick_params(which="both", length=0, labelbottom=False, labelleft=False)
    axis.grid(visible=False)
    axis.text(0.5, 0.5, "not in these results", transform=axis.transAxes, ha="center", color=MUTED, fontsize=8)


def mark_absent_unless_drawn(axis: Axes) -> None:
    """`mark_absent` for a panel in which no named line is drawn."""
    if not [line for line in axis.get_lines() if not str(line.get_label()).startswith("_")]:
        mark_absent(axis)
