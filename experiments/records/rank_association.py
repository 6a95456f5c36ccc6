"""How one number ranks with another over cells, with an interval: over all of them, or within groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments.records.summary import spearman
from experiments.report.wording import rho

__all__ = ["Association", "of"]

_SMALLEST = 4
"""Pairs that a group must have: the error of ρ, by Fisher's transformation, goes with n − 3."""

_NORMAL = 1.959964
"""The normal distribution has 95% of its weight within this many standard deviations."""


class Association(NamedTuple):
    """Spearman's ρ and its 95% interval; `cells` pairs in `groups` groups, within which alone they are ranked."""

    rho: float
    low: float
    high: float
    cells: int
    groups: int

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return f"{rho(self.rho)} [{rho(self.low)}, {rho(self.high)}]" if self.groups else "–"


def of(first: np.ndarray, second: np.ndarray, groups: Sequence[np.ndarray]) -> Association:
    """The association of two numbers of the same cells, ranked within groups, each given by the places of its cells.

    ρ is the mean over groups, weighted by n − 3, and its interval Fisher's, z = artanh ρ with the variance
    (1 + ρ²/2) / Σ(n − 3) of Bonett and Wright (Psychometrika 65, 2000). It takes the cells as independent. Pairs with
    a NaN are left out, and groups of fewer than four pairs or with a constant side; with no group left all is NaN.

    >>> print(of(np.arange(10.0), np.arange(10.0) ** 2, [np.arange(10)]))
    +1.00 [+0.93, +1.00]
    """
    each, weights, cells = [], [], 0
    for group in groups:
        one, other = first[group], second[group]
        pairs = int(np.sum(~(np.isnan(one) | np.isnan(other))))
        if pairs >= _SMALLEST and np.isfinite(found := spearman(one, other)):
            each.append(found)
            weights.append(pairs - 3)
            cells += pairs
    if not each:
        return Association(np.nan, np.nan, np.nan, 0, 0)
    mean = float(np.average(each, weights=weights))
    # at |ρ| = 1 the transformation has no error: there take the largest |ρ| below it that as many pairs can have
    most = 1 - 12 / (cells**3 - cells)
    center = np.arctanh(np.clip(mean, -most, most))
    error = _NORMAL * np.sqrt((1 + mean**2 / 2) / sum(weights))
    low, high = np.tanh(center - error), np.tanh(center + error)
    return Association(mean, float(min(low, mean)), float(max(high, mean)), cells, len(each))
