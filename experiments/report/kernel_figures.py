"""The figures of kernels of one data set and model: Θ in the eigenbasis of Π, and Θ beside the data Gram."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from experiments.base.names import DENSE
from experiments.measure.kernel_pictures import KernelPictures
from experiments.report.drawing import INK, MUTED, blank, dashes, style_of, styled, top_legend
from experiments.report.ticks import count_axis, log_axis

__all__ = ["cumulative_shares", "eigenvalues", "heat_maps"]


@styled
def eigenvalues(kernels: Mapping[tuple[str, float], KernelPictures], footer: str) -> Figure:
    """The i-th largest eigenvalue of Θ over the i-th largest of Π, both relative to the first; a panel per density."""
    figure, axes = _panels(kernels, footer, height=3.8, share=True)
    for axis, method, pictures in _drawn(axes, kernels):
        count = min(len(pictures.log_eigenvalues), len(pictures.log_ntk_eigenvalues))
        path, ntk = pictures.log_eigenvalues[:count], pictures.log_ntk_eigenvalues[:count]
        above_zero = np.isfinite(path) & np.isfinite(ntk)
        if not above_zero.any():
            continue
        color, marker = style_of(method)
        axis.plot(
            np.exp(path[above_zero] - path[0]),
            np.exp(ntk[above_zero] - ntk[0]),
            color=color,
            marker=marker,
            markersize=3.5,
            linewidth=1.0,
            label=method,
            **dashes(method),
        )
        axis.set_xlabel("λᵢ(Π) / λ₁(Π)")
    for side in ("x", "y"):
        log_axis(axes[0], side)
    for axis in axes[0]:
        limits = {"xlim": axis.get_xlim(), "ylim": axis.get_ylim()}
        axis.plot([1e-30, 1], [1e-30, 1], color=MUTED, linestyle=":", linewidth=0.8, zorder=0)
        axis.set(**limits)  # the line must not widen them
    axes[0][0].set_ylabel("λᵢ(Θ) / λ₁(Θ)")
    return top_legend(figure, axes)


@styled
def cumulative_shares(kernels: Mapping[tuple[str, float], KernelPictures], footer: str) -> Figure:
    """The share of Tr Θ that the first modes of Π carry, by their number; a panel for each density."""
    figure, axes = _panels(kernels, footer, height=3.6, share=True)
    for axis, method, pictures in _drawn(axes, kernels):
        color, marker = style_of(method)
        axis.plot(
            np.arange(1, len(pictures.shares) + 1),
            np.minimum(np.cumsum(pictures.shares), 1.0),  # a rounding above 1 would ask for a tick of 1000%
            color=color,
            marker=marker,
            markevery=4,
            label=method,
            **dashes(method),
        )
        axis.set(xlabel="modes of Π")
    log_axis(axes[0], words=lambda share: f"{100 * share:g}%")
    count_axis(axes[0])
    axes[0][0].set_ylabel("share of Tr Θ")
    return top_legend(figure, axes)


@styled
def heat_maps(
    kernels: Mapping[tuple[str, float], KernelPictures], shown: list[tuple[str, float]], footer: str
) -> Figure:
    """Centered cosines of examples, ordered by class, in Θ, its part of rank r and K_v; a row for each cell shown."""
    rows = len(shown)
    figure, axes = blank(9.0, 2.75 * rows + 0.3, footer, rows=rows, columns=3)
    image: Any = None
    for row, cell in zip(axes, shown, strict=True):
        pictures = kernels[cell]
        order = np.argsort(pictures.labels, kind="stable")
        carried = f"{100 * pictures.shares.sum():.3g}% of Θ in {len(pictures.shares)} modes of Π"
        titles = ("Θ", carried, "data Gram K_v")
        for axis, cosines, title in zip(row, pictures.cosines, titles, strict=True):
            ordered = cosines[np.ix_(order, order)]
            image = axis.imshow(ordered, vmin=-1, vmax=1, cmap="RdBu_r", interpolation="none")
            _class_axes(axis, pictures.labels[order])
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


def _densities(kernels: Mapping[tuple[str, float], KernelPictures]) -> list[float]:
    return sorted({density for method, density in kernels if method != DENSE}, reverse=True)


def _panels(
    kernels: Mapping[tuple[str, float], KernelPictures], footer: str, *, height: float, share: bool | str = False
) -> tuple[Figure, Any]:
    densities = _densities(kernels)
    figure, axes = blank(3.1 * len(densities) + 1.6, height, footer, columns=len(densities), share=share)
    for axis, density in zip(axes[0], densities, strict=True):
        axis.set_title(f"density {density:g}")
    return figure, axes


def _drawn(
    axes: Any, kernels: Mapping[tuple[str, float], KernelPictures]
) -> Iterator[tuple[Axes, str, KernelPictures]]:
    """Every cell with the panel that it belongs to; the dense network belongs to all of them."""
    for axis, density in zip(axes[0], _densities(kernels), strict=True):
        for (method, own), pictures in kernels.items():
            if method == DENSE or own == density:
                yield axis, method, pictures
