"""The figure of how costs grow: a panel for each row that has a curve."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter

from experiments.benchmarks import timing
from experiments.benchmarks.rows import Curve
from experiments.report.drawing import INK, MUTED, panels, styled
from experiments.report.ticks import log_axis

__all__ = ["figure"]


@styled
def figure(curves: Sequence[Curve], footer: str) -> Figure:
    """Milliseconds of each cost, and of the gradients beside it, over the size on logarithmic axes; both slopes."""
    drawn, _, axes = panels(len(curves), footer, width=3.5, height=3.1)
    for axis, curve in zip(axes, curves, strict=True):
        gradients = "as many gradients" if curve.over == "rounds" else "one gradient"
        slopes = timing.slopes(curve.sizes, [*zip(curve.ours, curve.peer, strict=True)])
        for name, times, slope, color in (
            (curve.thing, curve.ours, slopes[0], INK),
            (gradients, curve.peer, slopes[1], MUTED),
        ):
            milliseconds = [1e3 * time for time in times]
            axis.plot(curve.sizes, milliseconds, color=color, marker="o", label=f"{name}: slope {slope:.2f}")
        log_axis(axis, "x")
        axis.xaxis.set_major_locator(FixedLocator(curve.sizes))
        axis.xaxis.set_major_formatter(
            FuncFormatter(lambda size, _: f"{size / 1e6:.2g} M" if size > 1e4 else f"{size:g}")
        )
        low, high = min(*curve.ours, *curve.peer), max(*curve.ours, *curve.peer)
        log_axis(axis, span=(1e3 * low, 1e3 * high * (high / low) ** 0.4 * 1.5))  # room for the legend
        axis.set(xlabel=curve.over, ylabel="milliseconds")
        axis.legend(loc="upper left", fontsize=8)
    return drawn
