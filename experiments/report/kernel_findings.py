"""What the pictures of kernels show, in sentences. Every number in them is computed from the kernels at hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from experiments.measure.kernel_pictures import Cell, Kernels
from experiments.options import DENSE

__all__ = ["best_and_worst", "of_density", "of_eigenvalues", "of_maps", "of_shares"]

_THREE = ("Θ", "its part", "K_v")


def best_and_worst(table: pd.DataFrame) -> list[Cell]:
    """The dense cell, and of those at the lowest density the one of the best and that of the worst accuracy."""
    pruned = table[table["method"] != DENSE]
    lowest = pruned[pruned["density"] == pruned["density"].min()]
    ends = [lowest["test_accuracy_mean"].idxmax(), lowest["test_accuracy_mean"].idxmin()]
    cells = [(str(lowest.loc[end, "method"]), float(lowest.loc[end, "density"])) for end in ends]
    return [(DENSE, 1.0), *dict.fromkeys(cells)]


def of_density(kernels: Mapping[Cell, Kernels]) -> str:
    """Where the median eigenvalue of Π lies, dense and at the lowest density."""
    return (
        f"Half of the dense network’s eigenvalues shown lie above {_power(_median(kernels[DENSE, 1.0]))}; "
        f"at density {_lowest(kernels):g} {_range(kernels, _median, _power)}. Left out are "
        f"{_percent(_zero(kernels[DENSE, 1.0]))} of the dense network’s and {_range(kernels, _zero, _percent)}."
    )


def of_eigenvalues(kernels: Mapping[Cell, Kernels]) -> str:
    """By how much the two spectra fall over the same number of eigenvalues."""

    def words(falls: tuple[float, float]) -> str:
        return f"{falls[0]:.1f} and {falls[1]:.1f}"

    dense = kernels[DENSE, 1.0]
    parts = [f"{method} {words(_falls(of))}" for method, of in _at_lowest(kernels).items()]
    return (
        f"Over the eigenvalues shown, those of Π and of Θ fall by {words(_falls(dense))} decades in the dense network; "
        f"at density {_lowest(kernels):g}: {', '.join(parts)}."
    )


def of_shares(kernels: Mapping[Cell, Kernels]) -> str:
    """What the modes carry together, and how far the bounds by Π and K_v lie above Θ."""
    dense = kernels[DENSE, 1.0]
    slack = np.array([of.slack for of in kernels.values()])
    spans = [_span(column[np.isfinite(column)]) for column in slack.T]
    return (
        f"Together the {len(dense.shares)} modes carry {_percent(_carried(dense))} of Tr Θ in the dense network, and "
        f"at density {_lowest(kernels):g} {_range(kernels, _carried, _percent)}. The bound λmax(Π)·λmax(K_v) lies "
        f"{spans[0]} decades above λmax(Θ) over all cells, Tr Π·λmax(K_v) {spans[1]} and λmax(Π)·Tr K_v {spans[2]} "
        "above Tr Θ."
    )


def of_maps(kernels: Mapping[Cell, Kernels], shown: Sequence[Cell]) -> str:
    """How well each kernel shown is aligned with the labels."""
    parts = []
    for cell in shown:
        numbers = [f"{name} {_number(value)}" for name, value in zip(_THREE, kernels[cell].alignments, strict=True)]
        parts.append(f"{_name(cell)}: {', '.join(numbers)}")
    return f"Centered kernel–target alignment with the labels (Cortes et al., 2012), {'; '.join(parts)}."


def _lowest(kernels: Mapping[Cell, Kernels]) -> float:
    return min(density for method, density in kernels if method != DENSE)


def _at_lowest(kernels: Mapping[Cell, Kernels]) -> dict[str, Kernels]:
    lowest = _lowest(kernels)
    return {method: of for (method, density), of in kernels.items() if method != DENSE and density == lowest}


def _range(kernels: Mapping[Cell, Kernels], value: Callable[[Kernels], float], words: Callable[[float], str]) -> str:
    """From the least to the most that a method has at the lowest density."""
    values = {method: value(of) for method, of in _at_lowest(kernels).items()}
    least, most = min(values, key=values.__getitem__), max(values, key=values.__getitem__)
    if least == most:
        return f"{words(values[least])} ({least})"
    return f"from {words(values[least])} ({least}) to {words(values[most])} ({most})"


def _span(values: np.ndarray) -> str:
    if not len(values):
        return "–"
    low, high = (float(np.round(value, 1)) + 0.0 for value in (values.min(), values.max()))  # no −0
    return f"{low:.1f} to {high:.1f}"


def _median(of: Kernels) -> float:
    """log₁₀ of the eigenvalue that half of those that are not zero lie above, −∞ where all are."""
    live = np.isfinite(of.log_nodes)
    if not live.any():
        return -np.inf
    nodes, weights = of.log_nodes[live], of.weights[live]
    order = np.argsort(nodes)
    passed = np.cumsum(weights[order])
    return float(nodes[order][np.searchsorted(passed, passed[-1] / 2)] / np.log(10))


def _zero(of: Kernels) -> float:
    return float(of.weights[~np.isfinite(of.log_nodes)].sum() / of.weights.sum())


def _carried(of: Kernels) -> float:
    return float(of.shares.sum())


def _falls(of: Kernels) -> tuple[float, float]:
    """Decades by which the eigenvalues of Π and of Θ fall from the first to the last that both have."""
    count = min(len(of.log_eigenvalues), len(of.log_ntk_eigenvalues))
    live = np.isfinite(of.log_eigenvalues[:count]) & np.isfinite(of.log_ntk_eigenvalues[:count])
    if not live.any():
        return 0.0, 0.0
    last = int(np.flatnonzero(live)[-1])
    path, ntk = ((side[0] - side[last]) / np.log(10) for side in (of.log_eigenvalues, of.log_ntk_eigenvalues))
    return float(path), float(ntk)


def _name(cell: Cell) -> str:
    return DENSE if cell[0] == DENSE else f"{cell[0]} at {cell[1]:g}"


def _power(exponent: float) -> str:
    return f"10^{exponent:.1f}".replace("-", "−") if np.isfinite(exponent) else "0"


def _number(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.2f}".replace("-", "−")


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"
