"""How one number ranks with another over cells, with an interval: over all of them, or within groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from experiments.base.wording import correlation

__all__ = ["Association", "associate", "spearman"]

_FEWEST_PAIRS = 4
"""Pairs that a group must have: the error of ρ, by Fisher's transformation, goes with n − 3."""

_NORMAL = 1.959964
"""The normal distribution has 95% of its weight within this many standard deviations."""


class Association(NamedTuple):
    """Spearman's ρ with its 95% interval, of `cells` pairs that are ranked within `groups` groups."""

    rho: float
    low: float
    high: float
    cells: int
    groups: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        if not self.groups:
            return "–"
        return f"{correlation(self.rho)} [{correlation(self.low)}, {correlation(self.high)}]"


def associate(first: np.ndarray, second: np.ndarray, groups: Sequence[np.ndarray]) -> Association:
    """The association of two numbers of the same cells, ranked within groups, each an array of places of cells.

    ρ is the mean over groups, weighted by n − 3, and its interval Fisher's, z = artanh ρ with the variance
    (1 + ρ²/2) / Σ(n − 3) of Bonett and Wright (Psychometrika 65, 2000). It takes the cells as independent. Pairs with
    a NaN are left out, and so are groups of fewer than four pairs or with a constant side. With no group left, every
    number is NaN.

    >>> print(associate(np.arange(10.0), np.arange(10.0) ** 2, [np.arange(10)]))
    +1.00 [+0.93, +1.00]
    """
    correlations, weights, cells = [], [], 0
    for group in groups:
        one, other = first[group], second[group]
        pairs = int(np.sum(~(np.isnan(one) | np.isnan(other))))
        rho = spearman(one, other)
        if pairs >= _FEWEST_PAIRS and np.isfinite(rho):
            correlations.append(rho)
            weights.append(pairs - 3)
            cells += pairs
    if not correlations:
        return Association(np.nan, np.nan, np.nan, 0, 0)
    mean = float(np.average(correlations, weights=weights))
    # at |ρ| = 1 the transformation has no error: there take the largest |ρ| below it that as many pairs can have
    largest = 1 - 12 / (cells**3 - cells)
    center = np.arctanh(np.clip(mean, -largest, largest))
    error = _NORMAL * np.sqrt((1 + mean**2 / 2) / sum(weights))
    low, high = np.tanh(center - error), np.tanh(center + error)
    return Association(mean, float(min(low, mean)), float(max(high, mean)), cells, len(correlations))


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's rank correlation. Ties share their mean rank, infinities rank last, pairs with a NaN are left out.

    NaN where fewer than three pairs are left or one side is constant.
    """
    both = ~(np.isnan(first) | np.isnan(second))
    if both.sum() < 3:
        return float("nan")
    ranks = [pd.Series(side[both]).rank().to_numpy() for side in (first, second)]
    centered = [side - side.mean() for side in ranks]
    scale = np.sqrt((centered[0] @ centered[0]) * (centered[1] @ centered[1]))
    return float(centered[0] @ centered[1] / scale) if scale > 0 else float("nan")
