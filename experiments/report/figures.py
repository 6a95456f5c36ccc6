"""The figures of a study: a row or a panel for each data set and model. Nothing here computes a result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from experiments.options import DENSE
from experiments.records.reading import CHANGES, PREDICTIONS, Results
from experiments.records.runs import QUANTITIES
from experiments.report.drawing import (
    INK,
    MUTED,
    accuracy_panel,
    blank,
    groups,
    lines_over_density,
    log_axis,
    style_of,
    styled,
    top_legend,
)
from experiments.report.kernel_figures import dashes, decades, shares_per_decade

__all__ = [
    "LOWEST_GAP",
    "accuracy",
    "associations",
    "change",
    "curves",
    "gaps",
    "layers",
    "path_kernel",
    "shown_curves",
    "spectra",
]

_LINES = {
    "real": ("gradient descent", INK, "solid", 2.0),
    "linearized": ("predicted from Θ", "#2f7fc1", (0, (5, 2)), 1.5),
    "low_rank": ("from its part of rank r", "#009e73", (0, (5, 1.5, 1, 1.5)), 1.5),
    "data_free": ("from Π without data", "#d55e00", (0, (1, 1.2)), 1.8),
}
_ALL, _WITHIN = "#2f7fc1", "#d55e00"

_PATH_KERNEL = (
    "log_trace_path_kernel",
    "log_top_path_kernel",
    "effective_rank_path_kernel",
    "log_path_norm_1",
    "log_path_norm_2",
)

LOWEST_GAP = 1e-3
"""What is less, in decades of a gap or as a share of a change, is drawn as this."""


@styled
def accuracy(study: Results, footer: str) -> Figure:
    """Test accuracy over density, a line for each method, a band of one standard deviation over seeds."""
    parts = list(study.parts())
    figure, axes, flat = _panels(len(parts), footer, width=3.6, height=2.9)
    for axis, (setting, part) in zip(flat, parts, strict=True):
        accuracy_panel(axis, part.cells)
        axis.set(title=setting, xlabel="density", ylabel="test accuracy")
    return top_legend(figure, axes)


def shown_curves(part: Results) -> list[tuple[str, float]]:
    """Of the cells with curves: dense; of the lowest density, the methods of most, median and least accuracy."""
    there = part.cells[np.isfinite(part.cells["gap_linearized_mean"]) | np.isfinite(part.cells["real_drop_mean"])]
    pruned = there[there["method"] != DENSE]
    ordered = pruned[pruned["density"] == pruned["density"].min()].sort_values("test_accuracy_mean", ascending=False)
    places = dict.fromkeys([0, len(ordered) // 2, len(ordered) - 1]) if len(ordered) else {}
    names = [(str(ordered.iloc[place]["method"]), float(ordered.iloc[place]["density"])) for place in places]
    return [(DENSE, 1.0)] * bool((there["method"] == DENSE).any()) + names


@styled
def curves(study: Results, footer: str) -> Figure:
    """Squared loss under gradient descent and as predicted, mean over seeds; a row for each setting."""
    parts = list(study.parts())
    figure, axes = blank(9.6, 2.0 * len(parts) + 0.6, footer, rows=len(parts), columns=4)
    for row, (setting, part) in zip(axes, parts, strict=True):
        shown = shown_curves(part)
        for axis, (method, density) in zip(row, shown, strict=False):
            chosen = part.trials[(part.trials["method"] == method) & (part.trials["density"] == density)]
            _curves(axis, chosen)
            axis.set_title(method if method == DENSE else f"{method}, {density:g}", fontsize=9)
        for axis in row[len(shown) :]:
            _absent(axis)
        row[0].set_ylabel(f"{setting}\nloss / start")
    for axis in axes[-1]:
        axis.set_xlabel("step")
    return top_legend(figure, axes)


@styled
def gaps(study: Results, footer: str) -> Figure:
    """The distance of each predicted curve to the real one, a point for each cell, with the median."""
    parts = list(study.parts())
    figure, axes, flat = _panels(len(parts), footer, width=3.6, height=2.7)
    for axis, (setting, part) in zip(flat, parts, strict=True):
        methods = groups(part.cells)
        for place, name in enumerate(PREDICTIONS):
            column = part.cells[f"gap_{name}_mean"].to_numpy()
            finite = column[np.isfinite(column)]
            if len(finite):
                axis.plot([place - 0.4, place + 0.4], [_above(np.median(finite))] * 2, color=INK, linewidth=1.5)
            for number, (method, group) in enumerate(methods):
                colour, marker = style_of(method)
                beside = np.full(len(group), place + 0.7 * ((number + 0.5) / len(methods) - 0.5))
                values = _above(group[f"gap_{name}_mean"].to_numpy())
                axis.plot(beside, values, color=colour, marker=marker, linestyle="none", markersize=4.5, label=method)
        axis.set(title=setting, ylabel="gap (decades)")
        _plain_log(axis)
        axis.set_xticks(range(len(PREDICTIONS)), ["Θ", "rank r", "Π, no data"])
        axis.grid(axis="x", visible=False)
    return top_legend(figure, axes)


@styled
def path_kernel(study: Results, footer: str) -> Figure:
    """Tr Π, λ_max(Π), effective rank and path norms over density; a row for each setting."""
    return _over_density(study, footer, [(name, QUANTITIES[name]) for name in _PATH_KERNEL])


@styled
def change(study: Results, footer: str) -> Figure:
    """How far training moved Θ and Π, over density; a row for each setting."""
    return _over_density(study, footer, list(CHANGES.items()), positive=True)


@styled
def spectra(study: Results, footer: str) -> Figure:
    """Eigenvalues of Θ in order, and the density of those of Π, at the highest and the lowest density."""
    parts = list(study.parts())
    figure, axes = blank(9.6, 2.2 * len(parts) + 0.6, footer, rows=len(parts), columns=4)
    for row, (setting, part) in zip(axes, parts, strict=True):
        ends = list(dict.fromkeys(part.densities[:1] + part.densities[-1:])) or [1.0]
        for place, density in enumerate(ends):
            trials = part.trials[(part.trials["density"] == density) | (part.trials["method"] == DENSE)]
            _ntk_spectrum(row[place], trials)
            _path_kernel_spectrum(row[2 + place], trials)
            row[place].set_title(f"Θ, density {density:g}", fontsize=9)
            row[2 + place].set_title(f"Π, density {density:g}", fontsize=9)
        for axis in row[[*range(len(ends), 2), *range(2 + len(ends), 4)]]:
            axis.set_axis_off()
        row[0].set_ylabel(f"{setting}\nlog₁₀ λᵢ")
        row[2].set_ylabel("share per decade")
    for column, axis in enumerate(axes[-1]):
        axis.set_xlabel("i" if column < 2 else "log₁₀ λ(Π)")
    return top_legend(figure, axes)


@styled
def associations(study: Results, footer: str) -> Figure:
    """Spearman's ρ of each quantity with accuracy, over all cells and within densities, with 95% intervals."""
    parts = list(study.parts())
    together = [("all together", study)] if len(parts) > 1 else []
    figure, axes, flat = _panels(len(parts) + len(together), footer, width=3.6, height=3.3, share="y")
    for axis, (setting, part) in zip(flat, parts + together, strict=True):
        for side, within, colour, marker, words in (
            (-0.17, [], _ALL, "o", "all cells"),
            (0.17, ["data", "model", "density"], _WITHIN, "s", "within a density"),
        ):
            found = [part.association(name, "test_accuracy", within) for name in QUANTITIES]
            middle = np.array([one.rho for one in found])
            reach = np.array([[one.rho - one.low, one.high - one.rho] for one in found]).T
            places = np.arange(len(found)) + side
            there = np.isfinite(middle)
            if not there.any():
                continue
            axis.errorbar(
                middle[there],
                places[there],
                xerr=reach[:, there],
                color=colour,
                marker=marker,
                linestyle="none",
                linewidth=1.4,
                label=words,
            )
        axis.axvline(0, color=MUTED, linewidth=0.8)
        axis.set(title=setting, xlabel="Spearman ρ", xlim=(-1.05, 1.05), ylim=(len(QUANTITIES) - 0.5, -0.5))
        axis.set_yticks(range(len(QUANTITIES)), list(QUANTITIES.values()))
    return top_legend(figure, axes)


@styled
def layers(study: Results, footer: str) -> Figure:
    """Kept share and dead units of each layer at the lowest density, and the mean of the dead units over density."""
    parts = list(study.parts())
    figure, axes = blank(9.6, 2.2 * len(parts) + 0.6, footer, rows=len(parts), columns=3)
    for row, (setting, part) in zip(axes, parts, strict=True):
        density = part.densities[-1] if part.densities else 1.0
        trials = part.trials[part.trials["density"] == density]
        _by_layer(row[0], trials, "layer_density")
        row[0].axhline(density, color=MUTED, linewidth=0.8, linestyle=":")
        _floored_log(row[0])
        _by_layer(row[1], trials, "dead_units")
        lines_over_density(row[2], part.cells, "dead_units_mean", inside=lambda share: np.clip(share, 0, 1))
        for axis in row[1:]:
            axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            axis.set_ylim(-0.05, 1.05)
        for axis, words in zip(row, ("kept share", "dead units", "dead units, mean over layers"), strict=True):
            axis.set_title(words if axis is row[2] else f"{words}, density {density:g}", fontsize=9)
            _absent_unless_drawn(axis)
        row[0].set_ylabel(setting)
    for axis, words in zip(axes[-1], ("layer", "layer", "density"), strict=True):
        axis.set_xlabel(words)
    return top_legend(figure, axes)


def _panels(
    count: int, footer: str, *, width: float, height: float, share: bool | str = False
) -> tuple[Figure, Any, list[Axes]]:
    """A figure of `count` panels in rows of at most three, its axes, and those of them that are used."""
    columns = min(3, count) if count != 4 else 2
    rows = -(-count // columns)
    size = max(width * columns + 0.6, 6.6), height * rows + 0.5
    figure, axes = blank(*size, footer, rows=rows, columns=columns, share=share)
    flat = [axis for row in axes for axis in row]
    for axis in flat[count:]:
        axis.set_axis_off()
    return figure, axes, flat[:count]


def _over_density(study: Results, footer: str, columns: Sequence[tuple[str, str]], *, positive: bool = False) -> Figure:
    """Numbers over density, one in each column; on logarithmic axes, where they are `positive`."""
    parts = list(study.parts())
    width = 2.1 * len(columns) + 1.0
    figure, axes = blank(width, 2.0 * len(parts) + 0.6, footer, rows=len(parts), columns=len(columns))
    inside = _above if positive else np.array
    for axis, (_, words) in zip(axes[0], columns, strict=True):
        axis.set_title(words, fontsize=9)
    for row, (setting, part) in zip(axes, parts, strict=True):
        for axis, (name, _) in zip(row, columns, strict=True):
            lines_over_density(axis, part.cells, name, inside=inside)
            if positive:
                _plain_log(axis)
            else:
                axis.yaxis.set_major_locator(MaxNLocator(5))
            _absent_unless_drawn(axis)
        row[0].set_ylabel(setting)
    for axis in axes[-1]:
        axis.set_xlabel("density")
    return top_legend(figure, axes)


def _curves(axis: Axes, trials: pd.DataFrame) -> None:
    low = high = 1.0
    for name, (words, colour, dashed, width) in _LINES.items():
        losses = _mean(trials[f"{name}_loss"])
        if not np.isfinite(losses).any():
            continue
        axis.plot(np.where(losses > 0, losses, np.nan), color=colour, linestyle=dashed, linewidth=width, label=words)
        if name in ("real", "linearized"):
            low, high = min(low, np.nanmin(losses)), max(high, np.nanmax(losses))
    # what the others predict may fall out of the picture: the real curve is to be seen
    low = max(low, 1e-6)
    axis.set_ylim(low ** (1.3 if low < 0.8 else 3), max(1.01, low**-0.1) * high)
    _plain_log(axis)
    _absent_unless_drawn(axis)


def _ntk_spectrum(axis: Axes, trials: pd.DataFrame) -> None:
    for method, group in groups(trials):
        logs = _mean(group["log_ntk_eigenvalues"])
        live = np.isfinite(logs)
        if live.any():
            places = np.arange(1, len(logs) + 1)[live]
            axis.plot(places, logs[live] / np.log(10), color=style_of(method)[0], label=method, **dashes(method))
    log_axis(axis, side="x")
    axis.yaxis.set_major_locator(MaxNLocator(5))
    _absent_unless_drawn(axis)


def _path_kernel_spectrum(axis: Axes, trials: pd.DataFrame) -> None:
    grid = decades(np.array([node for nodes in trials["log_path_kernel_nodes"] for node in nodes]))
    for method, group in groups(trials):
        nodes, weights = (
            np.array([number for numbers in group[name] for number in numbers])
            for name in ("log_path_kernel_nodes", "path_kernel_weights")
        )
        if np.isfinite(nodes).any() and weights[np.isfinite(nodes)].sum() > 0:
            share = shares_per_decade(grid, nodes, weights)
            axis.plot(grid, share, color=style_of(method)[0], label=method, **dashes(method))
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axis.set_ylim(0, None)
    _absent_unless_drawn(axis)


def _by_layer(axis: Axes, trials: pd.DataFrame, name: str) -> None:
    """A table's mean over seeds, its entries numbered in order; a line for each method."""
    shown = [(method, group) for method, group in groups(trials) if any(group[name])]
    for place, (method, group) in enumerate(shown):
        mean = pd.DataFrame(group[name].tolist()).mean().to_numpy()
        colour, marker = style_of(method)
        beside = 0.3 * ((place + 0.5) / len(shown) - 0.5)  # methods that agree stay visible
        numbers = beside + np.arange(1, len(mean) + 1)
        axis.plot(numbers, mean, color=colour, marker=marker, markersize=3.5, linewidth=1.1, label=method)
    axis.xaxis.set_major_locator(MaxNLocator(8, integer=True))


def _mean(rows: pd.Series) -> np.ndarray:
    """Mean over the rows that are there, of what is finite, as far as the shortest goes; NaN where nothing is."""
    there = [row for row in rows if len(row)]
    if not there:
        return np.full(1, np.nan)
    values = np.array([row[: min(map(len, there))] for row in there], float)
    finite = np.isfinite(values)
    total, count = np.where(finite, values, 0.0).sum(axis=0), finite.sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _above(values: Any) -> Any:
    """Values as a logarithmic axis can show them."""
    return np.maximum(values, LOWEST_GAP)


def _floored_log(axis: Axes) -> None:
    """A logarithmic axis on which zeros lie at the bottom, a third below the least that is not zero."""
    drawn = [np.asarray(line.get_ydata(), float) for line in axis.get_lines()]
    positive = np.concatenate([values[values > 0] for values in drawn])
    floor = positive.min() / 3 if len(positive) else 1e-3
    for line, values in zip(axis.get_lines(), drawn, strict=True):
        line.set_ydata(np.maximum(values, floor))
    axis.relim()
    _plain_log(axis)


def _plain_log(axis: Axes) -> None:
    """A logarithmic axis with about four plain numbers, however far it reaches."""
    axis.set_yscale("log")
    low, high = axis.get_ylim()
    span = np.log10(high / low)
    log_axis(axis, digits=(1,) if span > 2 else (1, 2, 5) if span > 0.7 else (1, 2, 3, 4, 5, 7))
    if span < 0.3:
        axis.yaxis.set_major_locator(MaxNLocator(4))


def _absent(axis: Axes) -> None:
    axis.set_facecolor("none")
    axis.spines[:].set_visible(False)
    axis.tick_params(which="both", length=0, labelbottom=False, labelleft=False)
    axis.grid(visible=False)
    axis.text(0.5, 0.5, "not in these results", transform=axis.transAxes, ha="center", color=MUTED, fontsize=8)


def _absent_unless_drawn(axis: Axes) -> None:
    if not [line for line in axis.get_lines() if not str(line.get_label()).startswith("_")]:
        _absent(axis)
