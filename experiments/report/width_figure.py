"""The figure of finite kernels against infinite-width ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from experiments.base.versions import versions
from experiments.measure.widths import DATA, WidthSweep
from experiments.report.drawing import MUTED, blank, log_axis, styled

__all__ = ["figure", "footer"]

_COLORS = ("#2f7fc1", "#009e73", "#d55e00", "#8f6bb3", "#e69f00")


@styled
def figure(sweeps: Sequence[WidthSweep], footer: str) -> Figure:
    """Mean distance over width, error bars of one standard deviation over seeds; a panel for each model."""
    models = list(dict.fromkeys(sweep.model for sweep in sweeps))
    columns = 2 if len(models) == 4 else min(3, len(models))
    rows = -(-len(models) // columns)
    drawn, axes = blank(3.6 * columns + 0.3, 3.3 * rows, footer, rows=rows, columns=columns, share="y")
    flat = [axis for row in axes for axis in row]
    for axis, model in zip(flat, models, strict=False):
        chosen = [sweep for sweep in sweeps if sweep.model == model]
        for place, sweep in enumerate(chosen):
            mean, deviation = sweep.distances.mean(axis=1), sweep.distances.std(axis=1)
            beside = np.asarray(sweep.widths) * 1.04 ** (place - (len(chosen) - 1) / 2)  # bars that do not cover
            axis.errorbar(
                beside,
                mean,
                # below the mean a bar must not reach zero
                yerr=[np.minimum(deviation, 0.9 * mean), deviation],
                color=_COLORS[place % len(_COLORS)],
                marker="o",
                capsize=2,
                linewidth=1.4,
                label=f"density {sweep.density:g}: {sweep.slope}",
            )
        widths, first = np.asarray(chosen[0].widths), chosen[0].distances[0].mean()
        axis.plot(widths, 0.7 * first * (widths / widths[0]) ** -0.5, color=MUTED, linestyle=":", label="width^(−1/2)")
        for side in ("x", "y"):
            log_axis(axis, side=side, digits=(1,) if side == "x" else (1, 2, 5))
        axis.xaxis.set_major_locator(FixedLocator(chosen[0].widths))
        axis.set(title=model, xlabel="width")
        axis.legend(loc="lower left", fontsize=7.5)
    for axis in flat[len(models) :]:
        axis.set_axis_off()
    highest = max(sweep.distances.mean(axis=1).max() for sweep in sweeps)
    lowest = min(sweep.distances.mean(axis=1).min() for sweep in sweeps)
    flat[0].set_ylim(lowest / 5, 1.5 * highest)  # room for the legends
    for row in axes:
        row[0].set_ylabel("‖Θ − Θ∞‖ / ‖Θ∞‖")
    return drawn


def footer(sweeps: Sequence[WidthSweep]) -> str:
    """The line under the figure: data, seeds and versions."""
    seeds = max(sweep.distances.shape[1] for sweep in sweeps)
    installed = versions()
    packages = ", ".join(f"{name} {installed[name]}" for name in ("pathjax", "jax", "neural-tangents"))
    return f"{DATA} · seeds 0–{seeds - 1}, bars: one standard deviation · {packages}"
