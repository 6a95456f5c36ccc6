"""The figures of finite kernels against infinite-width ones, and of pruned ones against those expected of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from experiments.base.versions import versions
from experiments.measure.pruned_widths import INITIALIZATION, READS_WEIGHTS, SQUARES, PrunedSweep
from experiments.measure.widths import DATA, WidthSweep
from experiments.report.drawing import MUTED, blank, styled
from experiments.report.spread import FEWEST
from experiments.report.ticks import log_axis

__all__ = ["bars", "figure", "footer", "pruned_figure"]

_COLORS = ("#2f7fc1", "#009e73", "#d55e00", "#8f6bb3", "#e69f00", "#1aa39a", "#a0522d", "#cc79a7")
_MOMENTS = {INITIALIZATION: "the initialization", SQUARES: "θ²"}
_Sweep = TypeVar("_Sweep", WidthSweep, PrunedSweep)


@styled
def figure(sweeps: Sequence[WidthSweep], footer: str) -> Figure:
    """Mean distance over width, with the `bars` over seeds; a panel for each model."""
    models = list(dict.fromkeys(sweep.model for sweep in sweeps))
    columns = 2 if len(models) == 4 else min(3, len(models))
    rows = -(-len(models) // columns)
    drawn, axes = blank(3.6 * columns + 0.3, 3.3 * rows, footer, rows=rows, columns=columns, share="y")
    flat = [axis for row in axes for axis in row]
    for axis, model in zip(flat, models, strict=False):
        chosen = [sweep for sweep in sweeps if sweep.model == model]
        _panel(axis, chosen, lambda sweep: f"density {sweep.density:g}")
        axis.set(title=model)
    for axis in flat[len(models) :]:
        axis.set_axis_off()
    log_axis(flat[: len(models)], span=_span(sweeps, room=5))
    for row in axes:
        row[0].set_ylabel("‖Θ − Θ∞‖ / ‖Θ∞‖")
    return drawn


@styled
def pruned_figure(sweeps: Sequence[PrunedSweep], footer: str) -> Figure:
    """The same of pruned networks: a row for each model and density, a column for each kind of second moments.

    Lines are dashed for masks that were picked by the weights.
    """
    rows = list(dict.fromkeys((sweep.model, sweep.density) for sweep in sweeps))
    columns = list(dict.fromkeys(sweep.moments for sweep in sweeps))
    drawn, axes = blank(
        4.4 * len(columns) + 0.3, 4.2 * len(rows), footer, rows=len(rows), columns=len(columns), share="y"
    )
    for line, (model, density) in zip(axes, rows, strict=True):
        for axis, moments in zip(line, columns, strict=True):
            chosen = [
                sweep for sweep in sweeps if (sweep.model, sweep.density, sweep.moments) == (model, density, moments)
            ]
            _panel(axis, chosen, lambda sweep: sweep.kind, lambda sweep: "--" if sweep.kind in READS_WEIGHTS else "-")
            axis.set(title=f"{model}, density {density:g}: Θ̄ of {_MOMENTS[moments]}")
        line[0].set_ylabel("‖Θ − Θ̄‖ / ‖Θ̄‖")
    log_axis(list(axes.flat), span=_span(sweeps, room=60))
    return drawn


def _panel(
    axis: Axes, sweeps: Sequence[_Sweep], name: Callable[[_Sweep], str], line: Callable[[_Sweep], str] = lambda _: "-"
) -> None:
    """A curve for each sweep, named with its slope, and one of slope −1/2."""
    for place, sweep in enumerate(sweeps):
        mean, deviation = sweep.distances.mean(axis=1), sweep.distances.std(axis=1)
        beside = np.asarray(sweep.widths) * 1.04 ** (place - (len(sweeps) - 1) / 2)  # bars that do not cover
        axis.errorbar(
            beside,
            mean,
            # of two seeds this is half their distance; below the mean a bar must not reach zero
            yerr=[np.minimum(deviation, 0.9 * mean), deviation],
            color=_COLORS[place % len(_COLORS)],
            marker="o",
            capsize=2,
            linewidth=1.4,
            linestyle=line(sweep),
            label=f"{name(sweep)}: {sweep.slope}",
        )
    widths, first = np.asarray(sweeps[0].widths), sweeps[0].distances[0].mean()
    axis.plot(widths, 0.7 * first * (widths / widths[0]) ** -0.5, color=MUTED, linestyle=":", label="width^(−1/2)")
    log_axis(axis, "x")
    axis.xaxis.set_major_locator(FixedLocator(sweeps[0].widths))
    axis.set(xlabel="width")
    axis.legend(loc="lower left", fontsize=7.5)


def _span(sweeps: Sequence[_Sweep], *, room: float) -> tuple[float, float]:
    """From the least to the largest number of the axis of distances, with room below for the legends."""
    means = [sweep.distances.mean(axis=1) for sweep in sweeps]
    return float(min(mean.min() for mean in means)) / room, float(max(mean.max() for mean in means))


def footer(sweeps: Sequence[_Sweep], packages: Sequence[str] = ("pathjax", "jax", "neural-tangents")) -> str:
    """The line under a figure: data, seeds and the versions of what computed it."""
    seeds = max(sweep.distances.shape[1] for sweep in sweeps)
    installed = versions()
    told = ", ".join(f"{name} {installed[name]}" for name in packages)
    names = "seed 0" if seeds == 1 else f"seeds 0–{seeds - 1}"
    return f"{DATA} · {names}, {bars(sweeps)} · {told}"


def bars(sweeps: Sequence[_Sweep]) -> str:
    """What the error bars are."""
    seeds = min(sweep.distances.shape[1] for sweep in sweeps)
    if seeds == 1:
        return "without bars"
    return "bars: one standard deviation over seeds" if seeds >= FEWEST else "bars: from the lower to the higher seed"
