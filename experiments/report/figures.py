"""The figures of what training does: accuracy, training losses, and predicted loss curves."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.base.names import DENSE, QUANTITIES
from experiments.base.wording import number
from experiments.records.study_table import StudyTable
from experiments.records.trial_summaries import PREDICTIONS
from experiments.report.drawing import (
    INK,
    MUTED,
    above_floor,
    accuracy_panel,
    blank,
    dashes,
    groups,
    mark_absent,
    mark_absent_unless_drawn,
    panels,
    points_before_training,
    style_of,
    styled,
    top_legend,
)
from experiments.report.ticks import accuracy_axis, clipped_accuracy, count_axis, log_axis

__all__ = ["KNOWN_WORDS", "accuracy", "curves", "gaps", "mean_rows", "shown_curves", "training"]

_KNOWN = "effective_rank_path_kernel"
"""Of what is known before training and without data, what is drawn beside accuracy."""

KNOWN_WORDS = (
    " On the right, the same accuracies over the effective rank of the Path Kernel, which was known before training "
    "and without data; larger points are denser."
)
"""What the caption of `accuracy` adds for a single data set and model."""

_LINES = {
    "real": ("gradient descent", INK, "solid", 2.0),
    "data_free": ("Π alone", "#d55e00", (0, (1, 1.2)), 1.8),
    "no_data": ("expected gates, no data", "#b5179e", (0, (3, 1.2)), 1.8),
    "moments": ("expected gates, moments", "#e69f00", (0, (6, 1.5, 1, 1.5, 1, 1.5)), 1.5),
    "inputs": ("expected gates, inputs", "#6f4fb0", (0, (8, 2)), 1.5),
    "low_rank": ("part of Θ of rank r", "#009e73", (0, (5, 1.5, 1, 1.5)), 1.5),
    "linearized": ("Θ", "#2f7fc1", (0, (5, 2)), 1.5),
}
"""Lines of the curves: words, color, dashes and width."""

_RUNGS = {
    "data_free": "Π\nalone",
    "no_data": "gates,\nno data",
    "moments": "gates,\nmoments",
    "inputs": "gates,\ninputs",
    "low_rank": "rank r\nof Θ",
    "linearized": "Θ",
}
"""The predictions under the axis of their gaps."""


@styled
def accuracy(study: StudyTable, footer: str) -> Figure:
    """Test accuracy over density, a line for each method, a band for the seeds. Each panel has limits of its own.

    Of a single data set and model also beside what was known before training, as `beside_the_path_kernel`.
    """
    parts = list(study.parts())
    if len(parts) == 1:
        return beside_the_path_kernel(study, footer)
    figure, axes, flat = panels(len(parts), footer, width=3.6, height=2.9)
    for axis, (setting, part) in zip(flat, parts, strict=True):
        accuracy_panel(axis, part.cells)
        _cross_untrained(axis, part.cells)
        axis.set(title=setting, xlabel="density", ylabel="test accuracy")
    return top_legend(figure, axes)


def beside_the_path_kernel(study: StudyTable, footer: str) -> Figure:
    """Left, accuracy over density; right, the same accuracies over the effective rank of Π, the larger the denser."""
    figure, axes = blank(7.8, 3.4, footer, columns=2, share="y")
    over_density, over_rank = axes[0]
    accuracy_panel(over_density, study.cells)
    _cross_untrained(over_density, study.cells)
    points_before_training(over_rank, study.cells, _KNOWN)
    accuracy_axis([over_density, over_rank])
    log_axis(over_rank, "x")
    over_density.set(title="after training", xlabel="density", ylabel="test accuracy")
    over_rank.set(title="beside what was known before it", xlabel=QUANTITIES[_KNOWN])
    return top_legend(figure, over_density)


def _cross_untrained(axis: Axes, cells: pd.DataFrame) -> None:
    """A cross on each pruned cell in which a network did not train."""
    crossed = cells[(cells["untrained"] > 0) & (cells["method"] != DENSE)].dropna(subset=["test_accuracy_mean"])
    if len(crossed):
        accuracies = clipped_accuracy(crossed["test_accuracy_mean"])
        axis.scatter(crossed["density"], accuracies, marker="x", color=INK, s=50, zorder=5, label="did not train")


@styled
def training(study: StudyTable, footer: str) -> Figure:
    """Cross-entropy on the train set after each epoch, mean over seeds; settings in rows, densities in columns.

    The panels of a row share their limits.
    """
    level = study.config["options"].get("measure.loss_level")
    parts = list(study.parts())
    columns = max(1, *[len(_ends(part)) for _, part in parts])
    size = max(3.2 * columns + 0.4, 6.6), 2.6 * len(parts) + 0.6
    figure, axes = blank(*size, footer, rows=len(parts), columns=columns, share="row")
    for row, (setting, part) in zip(axes, parts, strict=True):
        shown = _ends(part)
        for axis, density in zip(row, shown, strict=False):
            trials = part.trials[(part.trials["density"] == density) | (part.trials["method"] == DENSE)]
            for method, group in groups(trials):
                losses = mean_rows(group["train_loss"])
                color, marker = style_of(method)
                every = max(1, len(losses) // 6)
                axis.plot(losses, color=color, marker=marker, markevery=every, label=method, **dashes(method))
            if level is not None:
                axis.axhline(level, color=MUTED, linewidth=0.8, linestyle=":")
            axis.set_title(f"density {density:g}", fontsize=9)
        log_axis(row[: len(shown)])
        count_axis(row[: len(shown)])
        for axis in row[len(shown) :]:
            axis.set_axis_off()
        row[0].set_ylabel(f"{setting}\ntraining loss (nats)")
    for axis in axes[-1]:
        axis.set_xlabel("epoch")
    return top_legend(figure, axes)


def _ends(part: StudyTable) -> list[float]:
    """The highest, the middle and the lowest density of the pruned networks."""
    densities = part.densities or [1.0]
    return list(dict.fromkeys([densities[0], densities[len(densities) // 2], densities[-1]]))


def shown_curves(part: StudyTable) -> list[tuple[str, float]]:
    """The dense cell and, at the lowest density with curves, the cells of highest, median and lowest accuracy."""
    there = part.cells[np.isfinite(part.cells["gap_linearized_mean"]) | np.isfinite(part.cells["real_drop_mean"])]
    pruned = there[there["method"] != DENSE]
    ordered = pruned[pruned["density"] == pruned["density"].min()].sort_values("test_accuracy_mean", ascending=False)
    places = dict.fromkeys([0, len(ordered) // 2, len(ordered) - 1]) if len(ordered) else {}
    names = [(str(ordered.iloc[place]["method"]), float(ordered.iloc[place]["density"])) for place in places]
    return [(DENSE, 1.0)] * bool((there["method"] == DENSE).any()) + names


@styled
def curves(study: StudyTable, footer: str) -> Figure:
    """Squared loss under gradient descent and as predicted, mean over seeds; a row for each setting.

    Each panel has limits of its own.
    """
    parts = list(study.parts())
    columns = max(2, *[len(shown_curves(part)) for _, part in parts])
    size = max(2.25 * columns + 0.6, 7.4), 2.0 * len(parts) + 0.9
    figure, axes = blank(*size, footer, rows=len(parts), columns=columns)
    for row, (setting, part) in zip(axes, parts, strict=True):
        shown = shown_curves(part)
        for axis, (method, density) in zip(row, shown, strict=False):
            chosen = part.trials[(part.trials["method"] == method) & (part.trials["density"] == density)]
            _curves(axis, chosen)
            axis.set_title(method if method == DENSE else f"{method}, {density:g}", fontsize=9)
        for axis in row[len(shown) :]:
            mark_absent(axis)
        row[0].set_ylabel(f"{setting}\nloss / start")
    for axis in axes[-1]:
        axis.set_xlabel("step")
    return top_legend(figure, axes)


@styled
def gaps(study: StudyTable, footer: str) -> Figure:
    """The distance of each predicted curve to the real one, a point for each cell, with the mean as a number.

    All panels share their limits.
    """
    parts = list(study.parts())
    shown = [name for name in PREDICTIONS if np.isfinite(study.cells[f"gap_{name}_mean"]).any()]
    figure, axes, flat = panels(len(parts), footer, width=max(3.6, 0.6 * len(shown) + 0.6), height=2.9, share="y")
    for axis, (setting, part) in zip(flat, parts, strict=True):
        methods = groups(part.cells)
        for place, name in enumerate(shown):
            column = part.cells[f"gap_{name}_mean"].to_numpy()
            finite = column[np.isfinite(column)]
            if len(finite):
                mean = finite.mean()
                axis.plot([place - 0.4, place + 0.4], [above_floor(mean)] * 2, color=INK, linewidth=1.5)
                axis.annotate(
                    number(mean), (place, 1.0), xycoords=("data", "axes fraction"), ha="center", va="bottom", fontsize=9
                )
            for order, (method, group) in enumerate(methods):
                color, marker = style_of(method)
                beside = np.full(len(group), place + 0.7 * ((order + 0.5) / len(methods) - 0.5))
                values = above_floor(group[f"gap_{name}_mean"].to_numpy())
                axis.plot(beside, values, color=color, marker=marker, linestyle="none", markersize=4.5, label=method)
        axis.set_title(setting, pad=18)
        axis.set_xticks(range(len(shown)), [_RUNGS[name] for name in shown], fontsize=8)
        axis.grid(axis="x", visible=False)
    log_axis(flat)
    for row in axes:
        row[0].set_ylabel("gap (decades)")
    return top_legend(figure, axes)


def _curves(axis: Axes, trials: pd.DataFrame) -> None:
    low = high = 1.0
    for name, (words, color, dashed, width) in _LINES.items():
        losses = mean_rows(trials[f"{name}_loss"])
        if not np.isfinite(losses).any():
            continue
        axis.plot(np.where(losses > 0, losses, np.nan), color=color, linestyle=dashed, linewidth=width, label=words)
        if name in ("real", "linearized"):
            low, high = min(low, np.nanmin(losses)), max(high, np.nanmax(losses))
    # the axis shows the real curve whole; other predictions may leave the picture
    log_axis(axis, span=(max(low, 1e-6) ** (1.15 if low < 0.8 else 2), high))
    count_axis(axis)
    mark_absent_unless_drawn(axis)


def mean_rows(rows: pd.Series) -> np.ndarray:
    """Mean of the finite numbers over rows, up to the length of the shortest row; NaN where none is finite."""
    there = [row for row in rows if len(row)]
    if not there:
        return np.full(1, np.nan)
    values = np.array([row[: min(map(len, there))] for row in there], float)
    finite = np.isfinite(values)
    total, count = np.where(finite, values, 0.0).sum(axis=0), finite.sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
