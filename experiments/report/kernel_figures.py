"""The figures of kernels: Π's spectrum, Θ in its eigenbasis, and Θ beside the data Gram, drawn from what is kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from experiments.measure.kernel_pictures import Cell, Kernels
from experiments.options import DENSE
from experiments.report.drawing import INK, MUTED, blank, log_axis, style_of, styled

__all__ = [
    "cumulative_shares",
    "dashes",
    "decades",
    "density_of_states",
    "eigenvalues",
    "heat_maps",
    "shares_per_decade",
]

_WIDTH = 0.15
"""Standard deviation of the bell that stands for one node of a density of states, in decades."""


@styled
def density_of_states(kernels: Mapping[Cell, Kernels], footer: str) -> Figure:
    """How the eigenvalues of Π above zero lie on a logarithmic axis, of all seeds; a panel for each density."""
    grid = decades(np.concatenate([of.log_nodes.ravel() for of in kernels.values()]))
    figure, axes = _panels(kernels, footer, height=3.6)
    for axis, method, of in _drawn(axes, kernels):
        if not np.isfinite(of.log_nodes).any():
            continue
        colour, _ = style_of(method)
        share = shares_per_decade(grid, of.log_nodes.ravel(), of.weights.ravel())
        axis.plot(grid, share, color=colour, label=method, **dashes(method))
        axis.set(xlabel="log₁₀ eigenvalue of Π", ylim=(0, None))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0][0].set_ylabel("share per decade")
    return _with_legend(figure, axes)


def decades(log_nodes: np.ndarray) -> np.ndarray:
    """Powers of ten from below the least to above the largest of the nodes that are not zero."""
    found = log_nodes[np.isfinite(log_nodes)] / np.log(10)
    places = found if len(found) else np.zeros(1)
    return np.linspace(places.min() - 0.5, places.max() + 0.5, 400)


def shares_per_decade(grid: np.ndarray, log_nodes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The density at powers of ten of nodes, given by natural logarithms and weights, those that are zero left out."""
    live = np.isfinite(log_nodes)
    distance = (grid[:, None] - log_nodes[live][None, :] / np.log(10)) / _WIDTH
    bells = np.exp(-0.5 * distance**2) / (_WIDTH * np.sqrt(2 * np.pi))
    return bells @ weights[live] / weights[live].sum()


@styled
def eigenvalues(kernels: Mapping[Cell, Kernels], footer: str) -> Figure:
    """The i-th largest eigenvalue of Θ over the i-th largest of Π, both relative to the first; a panel per density."""
    figure, axes = _panels(kernels, footer, height=3.8, share="y")
    for axis, method, of in _drawn(axes, kernels):
        count = min(len(of.log_eigenvalues), len(of.log_ntk_eigenvalues))
        path, ntk = of.log_eigenvalues[:count], of.log_ntk_eigenvalues[:count]
        live = np.isfinite(path) & np.isfinite(ntk)
        if not live.any():
            continue
        colour, marker = style_of(method)
        axis.plot(
            np.exp(path[live] - path[0]),
            np.exp(ntk[live] - ntk[0]),
            color=colour,
            marker=marker,
            markersize=3.5,
            linewidth=1.0,
            label=method,
            **dashes(method),
        )
        axis.set_xlabel("λᵢ(Π) / λ₁(Π)")
        log_axis(axis)
        log_axis(axis, side="x")
    for axis in axes[0]:
        low, high = axis.get_xlim()
        span = np.log10(high / low)
        log_axis(axis, side="x", digits=(1,) if span > 2 else (1, 2, 5) if span > 0.7 else range(1, 10))
        axis.set(xlim=(low, high), ylim=axis.get_ylim())  # the line must not widen them
        axis.plot([1e-30, 1], [1e-30, 1], color=MUTED, linestyle=":", linewidth=0.8, zorder=0)
    axes[0][0].set_ylabel("λᵢ(Θ) / λ₁(Θ)")
    return _with_legend(figure, axes)


@styled
def cumulative_shares(kernels: Mapping[Cell, Kernels], footer: str) -> Figure:
    """The share of Tr Θ that the first modes of Π carry, by their number; a panel for each density."""
    figure, axes = _panels(kernels, footer, height=3.6, share=True)
    for axis, method, of in _drawn(axes, kernels):
        colour, marker = style_of(method)
        axis.plot(
            np.arange(1, len(of.shares) + 1),
            np.cumsum(of.shares),
            color=colour,
            marker=marker,
            markevery=4,
            label=method,
            **dashes(method),
        )
        axis.set(xlabel="modes of Π")
    log_axis(axes[0][0])
    axes[0][0].yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}%"))
    axes[0][0].set_ylabel("share of Tr Θ")
    return _with_legend(figure, axes)


@styled
def heat_maps(kernels: Mapping[Cell, Kernels], shown: list[Cell], footer: str) -> Figure:
    """Centered cosines of examples, ordered by class, in Θ, its part of rank r and K_v; a row for each cell shown."""
    rows = len(shown)
    figure, axes = blank(9.0, 2.75 * rows + 0.3, footer, rows=rows, columns=3)
    image: Any = None
    for row, cell in zip(axes, shown, strict=True):
        of = kernels[cell]
        order = np.argsort(of.labels, kind="stable")
        carried = f"{100 * of.shares.sum():.3g}% of Θ in {len(of.shares)} modes of Π"
        titles = ("Θ", carried, "data Gram K_v")
        for axis, cosines, title in zip(row, of.cosines, titles, strict=True):
            ordered = cosines[np.ix_(order, order)]
            image = axis.imshow(ordered, vmin=-1, vmax=1, cmap="RdBu_r", interpolation="none")
            _class_axes(axis, of.labels[order])
            axis.set_title(title)
        row[0].set_ylabel(cell[0] if cell[0] == DENSE else f"{cell[0]} at {cell[1]:g}", color=INK)
    figure.colorbar(image, ax=axes, shrink=0.6, label="centered cosine", ticks=[-1, -0.5, 0, 0.5, 1])
    return figure


def _class_axes(axis: Axes, labels: np.ndarray) -> None:
    """Ticks in the middle of each class, and thin lines between classes."""
    starts = np.flatnonzero(np.diff(labels, prepend=labels[0] - 1))
    ends = np.append(starts[1:], len(labels))
    for line in starts[1:] - 0.5:
        axis.axhline(line, color=MUTED, linewidth=0.3)
        axis.axvline(line, color=MUTED, linewidth=0.3)
    axis.grid(visible=False)
    for side in (axis.xaxis, axis.yaxis):
        side.set_major_locator(FixedLocator(list((starts + ends - 1) / 2)))
    names = [str(label) for label in labels[starts]]
    axis.set_xticklabels(names, fontsize=7)
    axis.set_yticklabels(names, fontsize=7)
    axis.tick_params(length=0)


def _densities(kernels: Mapping[Cell, Kernels]) -> list[float]:
    return sorted({density for method, density in kernels if method != DENSE}, reverse=True)


def _panels(
    kernels: Mapping[Cell, Kernels], footer: str, *, height: float, share: bool | str = False
) -> tuple[Figure, Any]:
    densities = _densities(kernels)
    figure, axes = blank(3.1 * len(densities) + 1.6, height, footer, columns=len(densities), share=share)
    for axis, density in zip(axes[0], densities, strict=True):
        axis.set_title(f"density {density:g}")
    return figure, axes


def _drawn(axes: Any, kernels: Mapping[Cell, Kernels]) -> Iterator[tuple[Axes, str, Kernels]]:
    """Every cell with the panel that it belongs to; the dense network belongs to all of them."""
    for axis, density in zip(axes[0], _densities(kernels), strict=True):
        for (method, own), of in kernels.items():
            if method == DENSE or own == density:
                yield axis, method, of


def dashes(method: str) -> dict[str, Any]:
    """How a line of the method is drawn."""
    return {"linestyle": (0, (4, 3))} if method == DENSE else {}


def _with_legend(figure: Figure, axes: Any) -> Figure:
    handles = dict(pair[::-1] for axis in axes[0] for pair in zip(*axis.get_legend_handles_labels(), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside right upper")
    return figure
