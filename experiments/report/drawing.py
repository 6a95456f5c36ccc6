"""What all figures share: their style, their axes, their legends, and their files."""

from __future__ import annotations

import functools
import io
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from experiments.base.names import DENSE

__all__ = [
    "ALL_CELLS",
    "GRID",
    "INK",
    "MUTED",
    "PAPER",
    "WITHIN_DENSITY",
    "above_floor",
    "accuracy_axis",
    "accuracy_panel",
    "blank",
    "clipped_accuracy",
    "dashes",
    "groups",
    "lines_over_density",
    "log_axis",
    "mark_absent",
    "mark_absent_unless_drawn",
    "panels",
    "plain_log_axis",
    "png",
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
    "synflow": ("#2f7fc1", "o"),
    "synflow_l2": ("#56b4e9", "v"),
    "synflow_data": ("#d55e00", "P"),
    "synflow_data_l2": ("#8f6bb3", "X"),
    "grasp": ("#7f8c1f", "h"),
    "path_kernel_trace": ("#a0522d", "<"),
    "mean_field_trace": ("#1b4f72", r"$\Theta$"),
    "px": ("#1aa39a", ">"),
    "ntk_sap": ("#d1495b", "p"),
    "lottery": ("#6b7fd7", "d"),
    "transfer": ("#b8860b", "H"),
}
_OTHERS = ("#8c8c8c", "8")
ALL_CELLS, WITHIN_DENSITY = "#2f7fc1", "#d55e00"
_ACCURACIES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995)

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
    accuracy_axis(axis, table)


def lines_over_density(axis: Axes, table: pd.DataFrame, name: str, *, clip: Callable[[Any], Any] = np.array) -> None:
    """A number over density, a line for each method, a band of one standard deviation; dense is a level.

    Values are drawn as `clip` returns them. Those that are not finite are left out.
    """
    for method, group in groups(table[np.isfinite(table[f"{name}_mean"])]):
        mean, deviation = group[f"{name}_mean"].to_numpy(), group[f"{name}_std"].fillna(0).to_numpy()
        color, marker = style_of(method)
        low, high = clip(mean - deviation), clip(mean + deviation)
        if method == DENSE:
            axis.axhline(clip(mean)[0], color=color, linestyle=(0, (4, 3)), linewidth=1.2, label=DENSE)
            axis.axhspan(low[0], high[0], color=color, alpha=0.15, linewidth=0)
            continue
        axis.plot(group["density"], clip(mean), color=color, marker=marker, label=method)
        axis.fill_between(group["density"], low, high, color=color, alpha=0.18, linewidth=0)
    _density_axis(axis, table)


def top_legend(figure: Figure, axes: Any) -> Figure:
    """The figure with one legend of everything that is named in any of its panels, above them."""
    labeled = [pair for axis in np.ravel(axes) for pair in zip(*axis.get_legend_handles_labels(), strict=True)]
    handles = {label: handle for handle, label in labeled[::-1]}  # the first of a name stays
    if handles:
        order = dict.fromkeys(label for _, label in labeled)
        columns = max(2, int(figure.get_figwidth() / _NAME))
        figure.legend([handles[label] for label in order], order, loc="outside upper center", ncols=columns)
    return figure


_NAME = 1.9
"""Inches that a legend needs for the longest name of a method, with its line."""

_LETTERS = 19
"""Letters of a footer that fit into an inch."""


def panels(
    count: int, footer: str, *, width: float, height: float, share: bool | str = False
) -> tuple[Figure, Any, list[Axes]]:
    """A figure of `count` panels in rows of at most three, all its axes, and those of them that are used."""
    columns = min(3, count) if count != 4 else 2
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
    """A figure of this size in inches with its footer, and its axes (rows, columns)."""
    figure = Figure(figsize=(width, height + 0.3), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, sharex=share in (True, "x"), sharey=share in (True, "y"), squeeze=False)
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


def log_axis(axis: Axes, *, side: str = "y", digits: Sequence[int] = (1,)) -> None:
    """A logarithmic axis in plain numbers: powers of ten would be set as formulas, which takes long."""
    axis.set(**{f"{side}scale": "log"})
    chosen = axis.xaxis if side == "x" else axis.yaxis
    chosen.set_major_locator(LogLocator(subs=digits))
    chosen.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    chosen.set_minor_locator(NullLocator())


def clipped_accuracy(accuracy: Any) -> Any:
    """Shares as a logit axis can show them: 0 and 1 themselves lie infinitely far out."""
    return np.clip(accuracy, _ACCURACIES[0], _ACCURACIES[-1])


def accuracy_axis(axis: Axes, table: pd.DataFrame) -> None:
    """A logit axis, on which 97 and 98 per cent lie as far apart as 67 and 75; linear where they lie close together."""
    deviation = table["test_accuracy_std"].fillna(0)
    low = clipped_accuracy((table["test_accuracy_mean"] - deviation).min())
    high = clipped_accuracy((table["test_accuracy_mean"] + deviation).max())
    shown = [share for share in _ACCURACIES if low <= share <= high]
    shown = _spaced(shown[::-1], np.log(np.array(shown) / (1 - np.array(shown)))[::-1], 12)
    axis.set_yscale("logit" if len(shown) > 1 else "linear")
    axis.yaxis.set_major_locator(FixedLocator(shown) if len(shown) > 1 else MaxNLocator(4))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.4g}%"))


def _density_axis(axis: Axes, table: pd.DataFrame) -> None:
    densities = _densities(table)
    named = _spaced(densities, np.log(densities), 6)
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(FixedLocator(named))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xticklabels([f"{density:g}" for density in named])


def _spaced(values: Sequence[float], places: np.ndarray, most: int) -> list[float]:
    """Of descending values those that leave each label its part of an axis that holds `most`."""
    chosen: list[int] = []
    for number, place in enumerate(places):
        if not chosen or places[chosen[-1]] - place > 0.999 * (places[0] - places[-1]) / most:
            chosen.append(number)
    return [values[number] for number in chosen]


def style_of(method: str) -> tuple[str, str]:
    """The color and the marker of a method, the same in every figure; one for all methods without their own."""
    return _STYLES.get(method, _OTHERS)


def dashes(method: str) -> dict[str, Any]:
    """How a line of the method is drawn: dashed for the dense network."""
    return {"linestyle": (0, (4, 3))} if method == DENSE else {}


_FLOOR = 1e-3


def above_floor(values: Any) -> Any:
    """Values as a logarithmic axis can show them: what is less than 0.001 is drawn as 0.001."""
    return np.maximum(values, _FLOOR)


def plain_log_axis(axis: Axes) -> None:
    """A logarithmic axis with about four plain numbers, however far it reaches."""
    axis.set_yscale("log")
    low, high = axis.get_ylim()
    span = np.log10(high / low)
    log_axis(axis, digits=(1,) if span > 2 else (1, 2, 5) if span > 0.7 else (1, 2, 3, 4, 5, 7))
    if span < 0.3:
        axis.yaxis.set_major_locator(MaxNLocator(4))


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
