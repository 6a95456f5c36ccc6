"""The figures of a comparison. Each takes tables and returns a matplotlib Figure; nothing here computes a result."""

from __future__ import annotations

import functools
import io
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from experiments.options import DENSE
from experiments.records.runs import QUANTITIES
from experiments.records.summary import TARGETS, Ranking, chance_level, chance_within

__all__ = [
    "GRID",
    "INK",
    "MUTED",
    "PAPER",
    "accuracy_over_density",
    "accuracy_panel",
    "blank",
    "groups",
    "layer_density",
    "lines_over_density",
    "log_axis",
    "png",
    "predicted_curves",
    "quantity_against_accuracy",
    "rank_correlations",
    "style_of",
    "styled",
    "svg",
    "training_loss",
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
    "px": ("#1aa39a", ">"),
    "ntk_sap": ("#d1495b", "p"),
    "lottery": ("#6b7fd7", "d"),
    "transfer": ("#b8860b", "H"),
}
_OTHERS = ("#8c8c8c", "8")
_THETA, _PI = "#2f7fc1", "#d55e00"
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


@styled
def accuracy_over_density(table: pd.DataFrame, footer: str) -> Figure:
    """Test accuracy over density, a line for each method, a band of one standard deviation over seeds."""
    figure, axes = blank(7.5, 4.6, footer)
    accuracy_panel(axes[0][0], table)
    axes[0][0].set(xlabel="density (kept share of the prunable weights)", ylabel="test accuracy")
    figure.legend(loc="outside right upper")
    return figure


def accuracy_panel(axis: Axes, table: pd.DataFrame) -> None:
    """Test accuracy over density on one axis, as `lines_over_density`."""
    lines_over_density(axis, table, "test_accuracy", inside=_inside)
    _accuracy_axis(axis, table)


def lines_over_density(axis: Axes, table: pd.DataFrame, name: str, *, inside: Callable[[Any], Any] = np.array) -> None:
    """A number over density, a line for each method, a band of one standard deviation; dense is a level.

    What `inside` makes of the values is drawn; what is not finite is left out.
    """
    for method, group in groups(table[np.isfinite(table[f"{name}_mean"])]):
        mean, deviation = group[f"{name}_mean"].to_numpy(), group[f"{name}_std"].fillna(0).to_numpy()
        colour, marker = style_of(method)
        low, high = inside(mean - deviation), inside(mean + deviation)
        if method == DENSE:
            axis.axhline(inside(mean)[0], color=colour, linestyle=(0, (4, 3)), linewidth=1.2, label=DENSE)
            axis.axhspan(low[0], high[0], color=colour, alpha=0.15, linewidth=0)
            continue
        axis.plot(group["density"], inside(mean), color=colour, marker=marker, label=method)
        axis.fill_between(group["density"], low, high, color=colour, alpha=0.18, linewidth=0)
    _density_axis(axis, table)


@styled
def training_loss(runs: pd.DataFrame, level: float, footer: str) -> Figure:
    """Cross-entropy on the train set after each epoch, mean over seeds, a panel for each density."""
    densities = _densities(runs)
    figure, axes = blank(3.1 * len(densities) + 1.6, 3.6, footer, columns=len(densities))
    for axis, density in zip(axes[0], densities, strict=True):
        for method, group in groups(runs):
            chosen = group if method == DENSE else group[group["density"] == density]
            losses = np.array(chosen["train_loss"].tolist())
            colour, marker = style_of(method)
            dashes = (0, (4, 3)) if method == DENSE else "solid"
            every = max(1, losses.shape[1] // 6)
            axis.plot(losses.mean(axis=0), color=colour, marker=marker, markevery=every, linestyle=dashes, label=method)
        axis.axhline(level, color=MUTED, linewidth=0.8, linestyle=":")
        axis.set(title=f"density {density:g}", xlabel="epoch")
        log_axis(axis)
    axes[0][0].set_ylabel("training loss (nats)")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside right upper")
    return figure


@styled
def predicted_curves(runs: pd.DataFrame, footer: str) -> Figure:
    """Squared loss under gradient descent, against what Θ and what Π alone predict; a panel for each cell."""
    densities, methods = _densities(runs), [name for name, _ in groups(runs) if name != DENSE]
    rows, columns = len(methods) + 1, max(2, len(densities))
    figure, axes = blank(2.6 * columns, 1.75 * rows + 0.2, footer, rows=rows, columns=columns, share=True)
    places = {(DENSE, 1.0): axes[0][0]}
    places |= {(m, d): axes[1 + r][c] for r, m in enumerate(methods) for c, d in enumerate(densities)}
    for axis in {axis for row in axes for axis in row} - set(places.values()):
        axis.set_axis_off()
    for (method, density), axis in places.items():
        _curves(axis, runs[(runs["method"] == method) & (runs["density"] == density)])
        axis.set_title(method if method == DENSE else f"{method}, {density:g}", fontsize=9)
        if axis in axes[:, 0]:
            axis.set_ylabel("loss / start")
        if axis in axes[-1]:
            axis.set_xlabel("step")
    # what Π alone predicts may fall out of the picture: the real curves are to be seen
    lowest = min(np.nanmin(np.array(runs[name].tolist())) for name in ("real_loss", "linearized_loss"))
    axes[0][0].set_ylim(max(lowest, 1e-6) / 3, 1.6)
    log_axis(axes[0][0])
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="upper right", bbox_to_anchor=(0.98, 0.96))
    return figure


@styled
def quantity_against_accuracy(table: pd.DataFrame, footer: str, *, titles: Mapping[str, str] | None = None) -> Figure:
    """Each quantity known before training against test accuracy, a point for each cell; size grows with density."""
    names = [name for name in QUANTITIES if name != "density"]
    columns = 4
    rows = -(-(len(names) + 1) // columns)
    figure, axes = blank(10.5, 2.5 * rows + 0.3, footer, rows=rows, columns=columns, share="y")
    flat = [axis for row in axes for axis in row]
    for axis, name in zip(flat, names, strict=False):
        for method, group in groups(table):
            colour, marker = style_of(method)
            values = group[f"{name}_mean"].to_numpy()
            sizes = 70 + 18 * np.log(group["density"].to_numpy())
            there = np.isfinite(values)
            axis.scatter(
                values[there],
                _inside(group["test_accuracy_mean"].to_numpy())[there],
                s=np.clip(sizes, 12, None)[there],
                color=colour,
                marker=marker,
                alpha=0.85,
                label=method,
                linewidth=0,
            )
        axis.set_xlabel(QUANTITIES[name])
        axis.set_title((titles or {}).get(name, ""), fontsize=8)
    _accuracy_axis(flat[0], table)
    for axis in flat[len(names) :]:
        axis.set_axis_off()
    flat[len(names)].legend(*flat[0].get_legend_handles_labels(), loc="center", fontsize=9)
    for row in axes:
        row[0].set_ylabel("test accuracy")
    return figure


@styled
def rank_correlations(ranks: Sequence[Ranking], footer: str) -> Figure:
    """Spearman's ρ of each quantity with each target: over all cells, and within densities."""
    figure, axes = blank(9.5, 4.9, footer, columns=len(TARGETS), share=True)
    for axis, (target, words) in zip(axes[0], TARGETS.items(), strict=True):
        chosen = [rank for rank in ranks if rank.target == target]
        places = np.arange(len(chosen))
        pooled, within = ([getattr(rank, side) for rank in chosen] for side in ("pooled", "within"))
        axis.barh(places - 0.19, np.nan_to_num(pooled), 0.36, color=_THETA, label="all cells")
        axis.barh(places + 0.19, np.nan_to_num(within), 0.36, color=_PI, label="within a density (mean)")
        for level, colour in ((chance_level(chosen[0].cells), _THETA), (chance_within(chosen), _PI)):
            for sign in (-1, 1):
                axis.axvline(sign * level, color=colour, linewidth=1, linestyle=":")
        axis.axvline(0, color=MUTED, linewidth=0.8)
        axis.set(title=f"with {words} (n = {chosen[0].cells})", xlabel="Spearman ρ", xlim=(-1.02, 1.02))
        axis.set_yticks(places, [QUANTITIES[rank.quantity] for rank in chosen])
        axis.set_ylim(len(chosen) - 0.4, -0.6)
        axis.grid(axis="y", visible=False)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


@styled
def layer_density(runs: pd.DataFrame, footer: str) -> Figure:
    """The kept share of each layer, mean over seeds, a panel for each density."""
    densities = _densities(runs)
    figure, axes = blank(3.1 * len(densities) + 1.6, 3.4, footer, columns=len(densities), share=True)
    for axis, density in zip(axes[0], densities, strict=True):
        pruned = [(m, group) for m, group in groups(runs[runs["density"] == density]) if m != DENSE]
        for place, (method, group) in enumerate(pruned):
            kept = pd.DataFrame(group["layer_density"].tolist()).mean()
            colour, marker = style_of(method)
            beside = 0.3 * ((place + 0.5) / len(pruned) - 0.5)  # methods that agree stay visible
            axis.plot(beside + np.arange(1, len(kept) + 1), kept, color=colour, marker=marker, label=method)
        axis.axhline(density, color=MUTED, linewidth=0.8, linestyle=":")
        axis.set(title=f"density {density:g}", xlabel="layer")
        log_axis(axis, digits=(1, 2, 5))
        axis.xaxis.set_major_locator(FixedLocator(range(1, len(kept) + 1)))
        axis.xaxis.set_minor_locator(NullLocator())
    axes[0][0].set_ylabel("kept share of the layer")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside right upper")
    return figure


def top_legend(figure: Figure, axes: Any) -> Figure:
    """The figure with one legend of everything that is named in any of its panels, above them."""
    found = [pair for axis in np.ravel(axes) for pair in zip(*axis.get_legend_handles_labels(), strict=True)]
    handles = {label: handle for handle, label in found[::-1]}  # the first of a name stays
    if handles:
        order = dict.fromkeys(label for _, label in found)
        columns = max(2, int(figure.get_figwidth() / _NAME))
        figure.legend([handles[label] for label in order], order, loc="outside upper center", ncols=columns)
    return figure


_NAME = 1.9
"""Inches that a legend needs for the longest name of a method, with its line."""

_LETTERS = 19
"""Letters of a footer that fit into an inch."""


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


def _curves(axis: Axes, chosen: pd.DataFrame) -> None:
    for name, words, colour, dashes, width in (
        ("real_loss", "gradient descent", INK, "solid", 2.0),
        ("linearized_loss", "predicted from Θ", _THETA, (0, (5, 2)), 1.5),
        ("data_free_loss", "predicted from Π alone", _PI, (0, (1, 1.2)), 1.8),
    ):
        losses = np.array(chosen[name].tolist())
        axis.plot(losses.mean(axis=0), color=colour, linestyle=dashes, linewidth=width, label=words)
    gaps = [chosen[name].mean() for name in ("gap_linearized", "gap_data_free")]
    words = "gap Θ {}, Π {}".format(*("–" if np.isnan(gap) else f"{gap:.2f}" for gap in gaps))
    ground = {"facecolor": PAPER, "edgecolor": "none", "pad": 1.0}
    axis.text(0.04, 0.06, words, transform=axis.transAxes, va="bottom", fontsize=7, bbox=ground)


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


def _inside(accuracy: Any) -> Any:
    """Shares as a logit axis can show them: 0 and 1 themselves lie infinitely far out."""
    return np.clip(accuracy, _ACCURACIES[0], _ACCURACIES[-1])


def _accuracy_axis(axis: Axes, table: pd.DataFrame) -> None:
    """A logit axis, on which 97 and 98 per cent lie as far apart as 67 and 75; linear where they lie close together."""
    deviation = table["test_accuracy_std"].fillna(0)
    low = _inside((table["test_accuracy_mean"] - deviation).min())
    high = _inside((table["test_accuracy_mean"] + deviation).max())
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
    """The colour and the marker of a method, the same in every figure; one for all methods without their own."""
    return _STYLES.get(method, _OTHERS)
