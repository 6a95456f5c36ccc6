"""Numbers with their intervals: Student's t over seeds, and a bootstrap that resamples seeds and methods.

The t intervals take seeds as independent draws. The bootstrap has two kinds of clusters. A method is drawn with all its
cells: all data sets, networks and densities. A seed is drawn, for each data set and network by itself, with all its
methods and densities, because these begin from the same weights and see the images in the same order. What is drawn
twice counts twice. One fewer is drawn than there are: as many would make means of few vary too little, their variance
being divided by n and not by n − 1 (Rao and Wu, JASA 83, 1988).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

__all__ = [
    "DRAWS",
    "LEVEL",
    "Interval",
    "Resampled",
    "corrected",
    "mean_interval",
    "mean_of_groups",
    "percentile_interval",
    "rank_associations",
    "resampled",
    "stratified_interval",
    "weighted_means",
    "weighted_medians",
]

LEVEL = 0.95
"""The probability that an interval contains its true number, or that all intervals of a table do."""

DRAWS = 10_000
"""How often the bootstrap draws."""

_DECIMALS = 9
"""Kept tables have six significant digits, so that means that differ do so before this decimal."""

_FEWEST = 4
"""Methods that a group must have, so that ranks mean something."""


class Interval(NamedTuple):
    """A number and the ends of its interval, which are NaN where one seed is all there is."""

    value: float
    low: float
    high: float


def corrected(count: int) -> float:
    """The level of each of `count` intervals so that all of them contain their numbers with probability `LEVEL`.

    Bonferroni's correction, 1 − (1 − LEVEL) / count.

    >>> round(corrected(1), 4), round(corrected(10), 4)
    (0.95, 0.995)
    """
    return 1 - (1 - LEVEL) / max(1, count)


def mean_interval(values: Sequence[float] | np.ndarray, level: float = LEVEL) -> Interval:
    """The mean of independent values with Student's t interval; values that are NaN are left out.

    Of one value the ends are NaN. Differences of two methods with the same seeds are such values.

    >>> [round(each, 3) for each in mean_interval([1.0, 2.0, 3.0])]
    [2.0, -0.484, 4.484]
    """
    return stratified_interval([values], level)


def stratified_interval(strata: Sequence[Sequence[float] | np.ndarray], level: float = LEVEL) -> Interval:
    """The mean over strata of the means of independent values, with an interval for these strata.

    The error of the mean over k strata of nᵢ values with variance sᵢ² is √Σ sᵢ²/nᵢ / k, and Student's t has the degrees
    of freedom of Welch and Satterthwaite (Biometrics Bulletin 2, 1946). NaNs and strata without a value are left out.
    Where a stratum has one value the ends are NaN.
    """
    kept = [values[~np.isnan(values)] for values in (np.asarray(each, float) for each in strata)]
    kept = [values for values in kept if len(values)]
    if not kept:
        return Interval(np.nan, np.nan, np.nan)
    mean = float(np.mean([values.mean() for values in kept]))
    if any(len(values) < 2 for values in kept):
        return Interval(mean, np.nan, np.nan)
    parts = np.array([values.var(ddof=1) / len(values) for values in kept]) / len(kept) ** 2
    variance = parts.sum()
    if variance == 0:
        return Interval(mean, mean, mean)
    freedom = variance**2 / np.sum(parts**2 / np.array([len(values) - 1 for values in kept]))
    reach = float(stats.t.ppf((1 + level) / 2, freedom) * np.sqrt(variance))
    return Interval(mean, mean - reach, mean + reach)


class Resampled(NamedTuple):
    """How often each method and each seed is drawn, in draw 0 every one once: what was measured.

    `methods` is (draws + 1, m). `seeds` is (draws + 1, groups, s): groups of one data set and network share their
    draws.
    """

    methods: np.ndarray
    seeds: np.ndarray

    def cell_means(self, values: np.ndarray) -> np.ndarray:
        """The means (draws + 1, groups, m) over the drawn seeds of values (groups, m, s).

        Values that are NaN are left out, and a cell without another value in a draw is NaN. −∞ and ∞ stay. Means are
        rounded to `_DECIMALS`, so that those of equal sums are equal in whatever order they were added.
        """
        there = ~np.isnan(values)
        finite = np.isfinite(values)
        weigh = functools.partial(np.einsum, "bgs,gms->bgm", self.seeds, optimize=True)
        counts = weigh(there.astype(float))
        with np.errstate(invalid="ignore", divide="ignore"):
            means = np.round(weigh(np.where(finite, values, 0.0)) / counts, _DECIMALS)
            for infinity in (-np.inf, np.inf):
                if (values == infinity).any():
                    means = means + np.where(weigh((values == infinity).astype(float)) > 0, infinity, 0.0)
        return np.where(counts > 0, means, np.nan)


def resampled(strata: Sequence[int], methods: int, there: np.ndarray, *, seed: int, draws: int) -> Resampled:
    """Draws of methods and seeds, with replacement, one fewer than there are, but one at least.

    `strata` says for each group to which data set and network it belongs, and `there` (groups, s) which seeds it has;
    groups of one stratum have the same ones.
    """
    generator = np.random.default_rng(seed)
    of_methods = np.concatenate([np.ones((1, methods)), _counts(generator, methods, draws)])
    of_seeds = np.zeros((draws + 1, *there.shape))
    for stratum in dict.fromkeys(strata):
        groups = [place for place, each in enumerate(strata) if each == stratum]
        present = np.flatnonzero(there[groups].any(axis=0))
        counts = _counts(generator, len(present), draws)
        for group in groups:
            of_seeds[0, group, present] = 1
            of_seeds[1:, group, present] = counts
    return Resampled(of_methods, of_seeds)


def _counts(generator: np.random.Generator, number: int, draws: int) -> np.ndarray:
    """How often each of a number of things is drawn (draws, number)."""
    return generator.multinomial(max(1, number - 1), np.full(number, 1 / number), size=draws).astype(float)


def percentile_interval(statistics: np.ndarray, level: float = LEVEL) -> Interval:
    """The number that was measured, the first of `statistics`, between the percentiles of those of the draws."""
    drawn = statistics[1:][np.isfinite(statistics[1:])]
    if not len(drawn) or not np.isfinite(statistics[0]):
        return Interval(float(statistics[0]), np.nan, np.nan)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(statistics[0]), float(low), float(high))


def rank_associations(known: np.ndarray, outcome: np.ndarray, methods: np.ndarray) -> np.ndarray:
    """Spearman's ρ (b, groups) of two numbers among the methods of each group, for each draw.

    `known` and `outcome` are cell means (b, groups, m), and `methods` (b, m) says how often each method was drawn. Ties
    share their mean rank, −∞ and ∞ are the least and the largest, and methods with a NaN are left out. A group has NaN
    where fewer than four of its methods have both numbers in what was measured, and in draws in which one side is
    constant.
    """
    usable = ~np.isnan(known) & ~np.isnan(outcome)
    enough = (usable[0] & (methods[0] > 0)).sum(axis=1) >= _FEWEST
    weights = methods[:, None, :] * usable
    return np.where(enough, _correlations(known, outcome, weights), np.nan)


def mean_of_groups(correlations: np.ndarray, groups: np.ndarray | None = None) -> np.ndarray:
    """The mean of ρ (b, groups) over groups that have one, of those given or of all; NaN where none has one."""
    chosen = correlations if groups is None else correlations[:, groups]
    there = np.isfinite(chosen)
    counts = there.sum(axis=1)
    return np.where(counts > 0, np.where(there, chosen, 0.0).sum(axis=1) / np.maximum(counts, 1), np.nan)


def _correlations(known: np.ndarray, outcome: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Spearman's ρ (b, groups), all arguments (b, groups, m)."""
    total = weights.sum(axis=-1, keepdims=True)
    centered = []
    with np.errstate(invalid="ignore", divide="ignore"):
        for side in (known, outcome):
            ranks = _ranks(side, weights)
            centered.append(ranks - (weights * ranks).sum(axis=-1, keepdims=True) / total)
        first, second = centered
        spread = np.sqrt((weights * first**2).sum(axis=-1) * (weights * second**2).sum(axis=-1))
        # ranks are multiples of 1/2, whose spread is 0 but for rounding, or no less than about 1
        return np.where(spread > 1e-6, (weights * first * second).sum(axis=-1) / spread, np.nan)


def _ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean ranks, less one half, of values (…, m) of which each is there as often as its weight says."""
    order = np.argsort(values, axis=-1)  # NaNs, which have no weight, come last
    ordered, drawn = (np.take_along_axis(each, order, axis=-1) for each in (values, weights))
    upto = np.cumsum(drawn, axis=-1)
    differs = ordered[..., 1:] != ordered[..., :-1]
    edge = np.ones((*values.shape[:-1], 1), bool)
    begins, ends = np.concatenate([edge, differs], axis=-1), np.concatenate([differs, edge], axis=-1)
    below = np.maximum.accumulate(np.where(begins, upto - drawn, 0.0), axis=-1)
    through = np.minimum.accumulate(np.where(ends, upto, np.inf)[..., ::-1], axis=-1)[..., ::-1]
    ranks = np.empty(values.shape)
    np.put_along_axis(ranks, order, (below + through) / 2, axis=-1)
    return ranks


def weighted_medians(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The median of values (b, n), each of which counts as often as its weight says, for each draw; without NaNs."""
    weights = np.where(np.isnan(values), 0.0, weights)
    order = np.argsort(values, axis=1)  # NaNs last
    ordered = np.take_along_axis(values, order, axis=1)
    cumulated = np.cumsum(np.take_along_axis(weights, order, axis=1), axis=1)
    total = cumulated[:, -1:]
    ends = [np.argmax(cumulated > half, axis=1) for half in ((total - 1) // 2, total // 2)]
    low, high = (np.take_along_axis(ordered, end[:, None], axis=1)[:, 0] for end in ends)
    return np.where(total[:, 0] > 0, (low + high) / 2, np.nan)


def weighted_means(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The mean of values (b, n), each of which counts as often as its weight says, for each draw; without NaNs."""
    weights = np.where(np.isnan(values), 0.0, weights)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.nansum(values * weights, axis=1) / weights.sum(axis=1)
