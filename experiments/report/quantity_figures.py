"""The figures of what is measured of a network: quantities before training, spectra, layers, changes of kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from experiments.base.names import DENSE, QUANTITIES
from experiments.records.study_table import CHANGES, StudyTable
from experiments.report.drawing import (
    ALL_CELLS,
    MUTED,
    WITHIN_DENSITY,
    above_floor,
    blank,
    dashes,
    groups,
    lines_over_density,
    mark_absent_unless_drawn,
    panels,
    points_before_training,
    style_of,
    styled,
    top_legend,
)
from experiments.report.figures import mean_rows
from experiments.report.layer_order import layer_order
from experiments.report.ticks import accuracy_axis, count_axis, index_axis, linear_axis, log_axis

__all__ = [
    "associations",
    "change",
    "layers",
    "path_kernel",
    "quantities",
    "spectra",
]

_PATH_KERNEL = (
    "log_trace_path_kernel",
    "log_top_path_kernel",
    "effective_rank_path_kernel",
    "log_path_norm_1",
    "log_path_norm_2",
)

_WIDTH = 0.15
"""Standard deviation of the bell that stands for one node of a spectral density, in decades."""


@styled
def path_kernel(study: StudyTable, footer: str) -> Figure:
    """Tr Π, λ_max(Π), effective rank and path norms over density; a row for each setting."""
    return _over_density(study, footer, [(name, QUANTITIES[name]) for name in _PATH_KERNEL])


@styled
def change(study: StudyTable, footer: str) -> Figure:
    """How far training moved Θ and Π, over density; a row for each setting."""
    return _over_density(study, footer, list(CHANGES.items()), positive=True)


@styled
def spectra(study: StudyTable, footer: str) -> Figure:
    """Eigenvalues of Θ in order, and the density of those of Π, at the highest and the lowest density.

    The two panels of one kernel share their limits.
    """
    parts = list(study.parts())
    ends_of = [list(dict.fromkeys(part.densities[:1] + part.densities[-1:])) or [1.0] for _, part in parts]
    half = max(map(len, ends_of))  # the panels of one kernel
    size = max(2.25 * 2 * half + 0.6, 6.6), 2.2 * len(parts) + 0.6
    figure, axes = blank(*size, footer, rows=len(parts), columns=2 * half)
    for row, (setting, part), ends in zip(axes, parts, ends_of, strict=True):
        for place, density in enumerate(ends):
            trials = part.trials[(part.trials["density"] == density) | (part.trials["method"] == DENSE)]
            _ntk_spectrum(row[place], trials)
            _path_kernel_spectrum(row[half + place], trials)
            row[place].set_title(f"Θ, density {density:g}", fontsize=9)
            row[half + place].set_title(f"Π, density {density:g}", fontsize=9)
        _share_limits(row[: len(ends)], row[half : half + len(ends)])
        for axis in row[[*range(len(ends), half), *range(half + len(ends), 2 * half)]]:
            axis.set_axis_off()
        row[0].set_ylabel(f"{setting}\nlog₁₀ λᵢ")
        row[half].set_ylabel("share per decade")
    for column, axis in enumerate(axes[-1]):
        axis.set_xlabel("i" if column < half else "log₁₀ λ(Π)")
    return top_legend(figure, axes)


@styled
def quantities(table: pd.DataFrame, footer: str, *, titles: Mapping[str, str] | None = None) -> Figure:
    """Each quantity known before training against test accuracy, a point for each cell; size grows with density."""
    known = [name for name in QUANTITIES if name != "density"]
    names = [name for name in known if table[f"{name}_mean"].notna().any()] or known
    columns = 4
    rows = -(-(len(names) + 1) // columns)
    figure, axes = blank(10.5, 2.5 * rows + 0.3, footer, rows=rows, columns=columns, share="y")
    flat = [axis for row in axes for axis in row]
    for axis, name in zip(flat, names, strict=False):
        points_before_training(axis, table, name)
        axis.set_xlabel(QUANTITIES[name])
        axis.set_title((titles or {}).get(name, ""), fontsize=8)
    accuracy_axis(flat[: len(names)])
    for axis in flat[: len(names)]:
        linear_axis(axis, "x", most=3)
    for axis in flat[len(names) :]:
        axis.set_axis_off()
    flat[len(names)].legend(*flat[0].get_legend_handles_labels(), loc="center", fontsize=9)
    for row in axes:
        row[0].set_ylabel("test accuracy")
    return figure


@styled
def associations(study: StudyTable, footer: str) -> Figure:
    """Spearman's ρ of each quantity with accuracy, over all cells and within densities, with 95% intervals."""
    parts = list(study.parts())
    together = [("all together", study)] if len(parts) > 1 else []
    figure, axes, flat = panels(len(parts) + len(together), footer, width=3.6, height=3.3, share="y")
    for axis, (setting, part) in zip(flat, parts + together, strict=True):
        for side, within, color, marker, words in (
            (-0.17, [], ALL_CELLS, "o", "all cells"),
            (0.17, ["data", "model", "density"], WITHIN_DENSITY, "s", "within a density"),
        ):
            associations = [part.association(name, "test_accuracy", within) for name in QUANTITIES]
            middle = np.array([one.rho for one in associations])
            reach = np.array([[one.rho - one.low, one.high - one.rho] for one in associations]).T
            places = np.arange(len(associations)) + side
            there = np.isfinite(middle)
            if not there.any():
                continue
            axis.errorbar(
                middle[there],
                places[there],
                xerr=reach[:, there],
                color=color,
                marker=marker,
                linestyle="none",
                linewidth=1.4,
                label=words,
            )
        axis.axvline(0, color=MUTED, linewidth=0.8)
        axis.set(title=setting, xlabel="Spearman ρ", xlim=(-1.05, 1.05), ylim=(len(QUANTITIES) - 0.5, -0.5))
        axis.set_xticks([-1.0, -0.5, 0.0, 0.5, 1.0])
        axis.set_yticks(range(len(QUANTITIES)), list(QUANTITIES.values()))
    return top_legend(figure, axes)


@styled
def layers(study: StudyTable, footer: str) -> Figure:
    """Kept share and dead units of each layer at the lowest density, and the mean of the dead units over density.

    Layers and units are numbered in the order of `layer_order`. Kept shares have limits of their own in each panel.
    """
    parts = list(study.parts())
    figure, axes = blank(9.6, 2.2 * len(parts) + 0.6, footer, rows=len(parts), columns=3)
    for row, (setting, part) in zip(axes, parts, strict=True):
        density = part.densities[-1] if part.densities else 1.0
        trials = part.trials[part.trials["density"] == density]
        order = layer_order(part)
        _by_layer(row[0], trials, "layer_density", order.layers)
        row[0].axhline(density, color=MUTED, linewidth=0.8, linestyle=":")
        _floored_log(row[0])
        _by_layer(row[1], trials, "dead_units", order.units)
        lines_over_density(row[2], part.cells, "dead_units_mean", clip=lambda share: np.clip(share, 0, 1))
        for axis in row[1:]:
            axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            axis.set(ylim=(-0.05, 1.05), yticks=[0.0, 0.25, 0.5, 0.75, 1.0])
        for axis, words in zip(row, ("kept share", "dead units", "dead units, mean over layers"), strict=True):
            axis.set_title(words if axis is row[2] else f"{words}, density {density:g}", fontsize=9)
            mark_absent_unless_drawn(axis)
        row[0].set_ylabel(setting)
    for axis, words in zip(axes[-1], ("layer", "units", "density"), strict=True):
        axis.set_xlabel(words)
    return top_legend(figure, axes)


def _over_density(
    study: StudyTable, footer: str, columns: Sequence[tuple[str, str]], *, positive: bool = False
) -> Figure:
    """Numbers over density, one in each column; on logarithmic axes, where they are `positive`.

    Each panel has limits of its own.
    """
    parts = list(study.parts())
    width = 2.1 * len(columns) + 1.0
    figure, axes = blank(width, 2.0 * len(parts) + 0.6, footer, rows=len(parts), columns=len(columns))
    clip = above_floor if positive else np.array
    for axis, (_, words) in zip(axes[0], columns, strict=True):
        axis.set_title(words, fontsize=9)
    for row, (setting, part) in zip(axes, parts, strict=True):
        for axis, (name, _) in zip(row, columns, strict=True):
            lines_over_density(axis, part.cells, name, clip=clip)
            (log_axis if positive else linear_axis)(axis)
            mark_absent_unless_drawn(axis)
        row[0].set_ylabel(setting)
    for axis in axes[-1]:
        axis.set_xlabel("density")
    return top_legend(figure, axes)


def _ntk_spectrum(axis: Axes, trials: pd.DataFrame) -> None:
    for method, group in groups(trials):
        logs = mean_rows(group["log_ntk_eigenvalues"])
        nonzero = np.isfinite(logs)
        if nonzero.any():
            places = np.arange(1, len(logs) + 1)[nonzero]
            axis.plot(places, logs[nonzero] / np.log(10), color=style_of(method)[0], label=method, **dashes(method))
    mark_absent_unless_drawn(axis)


def _path_kernel_spectrum(axis: Axes, trials: pd.DataFrame) -> None:
    grid = _decades(np.array([node for nodes in trials["log_path_kernel_nodes"] for node in nodes]))
    for method, group in groups(trials):
        nodes, weights = (
            np.array([number for numbers in group[name] for number in numbers])
            for name in ("log_path_kernel_nodes", "path_kernel_weights")
        )
        if np.isfinite(nodes).any() and weights[np.isfinite(nodes)].sum() > 0:
            share = _shares_per_decade(grid, nodes, weights)
            axis.plot(grid, share, color=style_of(method)[0], label=method, **dashes(method))
    mark_absent_unless_drawn(axis)


def _share_limits(ntk: Sequence[Axes], path_kernel: Sequence[Axes]) -> None:
    """One pair of limits for the panels of Θ, and one for those of Π."""
    log_axis(ntk, "x", most=4)
    linear_axis(ntk, "y")
    count_axis(path_kernel, "x", most=7)
    linear_axis(path_kernel, "y", low=0.0)


def _decades(log_nodes: np.ndarray) -> np.ndarray:
    """Powers of ten from below the least to above the largest of the nodes that are not zero."""
    exponents = log_nodes[np.isfinite(log_nodes)] / np.log(10)
    places = exponents if len(exponents) else np.zeros(1)
    return np.linspace(places.min() - 0.5, places.max() + 0.5, 400)


def _shares_per_decade(grid: np.ndarray, log_nodes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Density at the powers of ten in `grid` of nodes with weights; nodes that are zero are left out."""
    nonzero = np.isfinite(log_nodes)
    distance = (grid[:, None] - log_nodes[nonzero][None, :] / np.log(10)) / _WIDTH
    bells = np.exp(-0.5 * distance**2) / (_WIDTH * np.sqrt(2 * np.pi))
    return bells @ weights[nonzero] / weights[nonzero].sum()


def _by_layer(axis: Axes, trials: pd.DataFrame, name: str, order: Sequence[str]) -> None:
    """Mean over seeds of numbers by layer, the layers numbered in `order`; a line for each method."""
    shown = [(method, group) for method, group in groups(trials) if any(group[name])]
    for place, (method, group) in enumerate(shown):
        mean = pd.DataFrame(group[name].tolist()).mean().reindex(list(order)).to_numpy()
        color, marker = style_of(method)
        beside = 0.3 * ((place + 0.5) / len(shown) - 0.5)  # apart, so that equal numbers stay visible
        numbers = beside + np.arange(1, len(mean) + 1)
        axis.plot(numbers, mean, color=color, marker=marker, markersize=3.5, linewidth=1.1, label=method)
    index_axis(axis, max(1, len(order)))


def _floored_log(axis: Axes) -> None:
    """A logarithmic axis on which zeros lie at the bottom, a third below the least that is not zero."""
    drawn = [np.asarray(line.get_ydata(), float) for line in axis.get_lines()]
    positive = np.concatenate([values[values > 0] for values in drawn])
    floor = positive.min() / 3 if len(positive) else 1e-3
    for line, values in zip(axis.get_lines(), drawn, strict=True):
        line.set_ydata(np.maximum(values, floor))
    axis.relim()
    log_axis(axis)
