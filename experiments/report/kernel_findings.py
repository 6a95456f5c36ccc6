"""What the pictures of kernels show, in sentences. Every number in them is computed from the kernels at hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from experiments.base.names import DENSE
from experiments.base.wording import number, percent
from experiments.measure.kernel_pictures import KernelPictures

Cell = tuple[str, float]
"""A method and a density."""

__all__ = ["best_and_worst", "of_eigenvalues", "of_maps", "of_shares"]

_THREE = ("Θ", "its part", "K_v")


def best_and_worst(table: pd.DataFrame) -> list[Cell]:
    """The dense cell, and of those at the lowest density the most and the least accurate one."""
    pruned = table[(table["method"] != DENSE) & table["test_accuracy_mean"].notna()]
    lowest = pruned[pruned["density"] == pruned["density"].min()]
    ends = [lowest["test_accuracy_mean"].idxmax(), lowest["test_accuracy_mean"].idxmin()]
    cells = [(str(lowest.loc[end, "method"]), float(lowest.loc[end, "density"])) for end in ends]
    return [(DENSE, 1.0), *dict.fromkeys(cells)]


def of_eigenvalues(kernels: Mapping[Cell, KernelPictures]) -> str:
    """By how much the two spectra fall over the same number of eigenvalues."""

    def in_words(falls: tuple[float, float]) -> str:
        return f"{falls[0]:.1f} and {falls[1]:.1f}"

    dense = kernels[DENSE, 1.0]
    parts = [f"{method} {in_words(_falls(pictures))}" for method, pictures in _at_lowest(kernels).items()]
    return (
        f"Over the eigenvalues shown, those of Π and of Θ fall by {in_words(_falls(dense))} decades in the dense "
        f"network; at density {_lowest(kernels):g}: {', '.join(parts)}."
    )


def of_shares(kernels: Mapping[Cell, KernelPictures]) -> str:
    """What the modes carry together, and how far the bounds by Π and K_v lie above Θ."""
    dense = kernels[DENSE, 1.0]
    slack = np.array([pictures.slack for pictures in kernels.values()])
    spans = [_span(column[np.isfinite(column)]) for column in slack.T]
    return (
        f"Together the {len(dense.shares)} modes carry {percent(_carried(dense))} of Tr Θ in the dense network, and "
        f"at density {_lowest(kernels):g} {_range(kernels, _carried, percent)}. The bound λmax(Π)·λmax(K_v) lies "
        f"{spans[0]} decades above λmax(Θ) over all cells, Tr Π·λmax(K_v) {spans[1]} and λmax(Π)·Tr K_v {spans[2]} "
        "above Tr Θ."
    )


def of_maps(kernels: Mapping[Cell, KernelPictures], shown: Sequence[Cell]) -> str:
    """How well each kernel shown is aligned with the labels."""
    parts = []
    for cell in shown:
        numbers = [f"{name} {number(value)}" for name, value in zip(_THREE, kernels[cell].alignments, strict=True)]
        parts.append(f"{_name(cell)}: {', '.join(numbers)}")
    return f"Centered kernel–target alignment with the labels (Cortes et al., 2012), {'; '.join(parts)}."


def _lowest(kernels: Mapping[Cell, KernelPictures]) -> float:
    return min(density for method, density in kernels if method != DENSE)


def _at_lowest(kernels: Mapping[Cell, KernelPictures]) -> dict[str, KernelPictures]:
    lowest = _lowest(kernels)
    return {
        method: pictures for (method, density), pictures in kernels.items() if method != DENSE and density == lowest
    }


def _range(
    kernels: Mapping[Cell, KernelPictures], value: Callable[[KernelPictures], float], words: Callable[[float], str]
) -> str:
    """From the least to the most that a method has at the lowest density."""
    values = {method: value(pictures) for method, pictures in _at_lowest(kernels).items()}
    least, most = min(values, key=values.__getitem__), max(values, key=values.__getitem__)
    if least == most:
        return f"{words(values[least])} ({least})"
    return f"from {words(values[least])} ({least}) to {words(values[most])} ({most})"


def _span(values: np.ndarray) -> str:
    if not len(values):
        return "–"
    low, high = (float(np.round(value, 1)) + 0.0 for value in (values.min(), values.max()))  # no −0
    return f"{low:.1f} to {high:.1f}"


def _carried(pictures: KernelPictures) -> float:
    return float(pictures.shares.sum())


def _falls(pictures: KernelPictures) -> tuple[float, float]:
    """Decades by which the eigenvalues of Π and of Θ fall from the first to the last that both have."""
    count = min(len(pictures.log_eigenvalues), len(pictures.log_ntk_eigenvalues))
    above_zero = np.isfinite(pictures.log_eigenvalues[:count]) & np.isfinite(pictures.log_ntk_eigenvalues[:count])
    if not above_zero.any():
        return 0.0, 0.0
    last = int(np.flatnonzero(above_zero)[-1])
    path, ntk = (
        (side[0] - side[last]) / np.log(10) for side in (pictures.log_eigenvalues, pictures.log_ntk_eigenvalues)
    )
    return float(path), float(ntk)


def _name(cell: Cell) -> str:
    return DENSE if cell[0] == DENSE else f"{cell[0]} at {cell[1]:g}"
