"""Intervals against SciPy's and against plain loops with the same draws, and how often they contain the truth."""

from typing import Any

import numpy as np
import pytest
from scipy import stats

from experiments.evidence.statistics import (
    Interval,
    Resampled,
    corrected,
    mean_interval,
    mean_of_groups,
    percentile_interval,
    rank_associations,
    resampled,
    stratified_interval,
    weighted_means,
    weighted_medians,
)
from tests.tolerances import EXACT, STANDARD_ERRORS

ROUNDED = 0.5e-9
"""Half of the last decimal that cell means have."""

STRATA = [0, 0, 1]
THERE = np.array([[True, True, True, False], [True, True, True, False], [True, True, True, True]])


def data(seed=0, methods=6):
    """Two numbers (groups, methods, seeds) with ties, gaps and infinities."""
    rng = np.random.default_rng(seed)
    known = rng.integers(0, 5, (3, methods, 4)).astype(float)
    outcome = known + 2 * rng.normal(size=known.shape)
    known[0, 1, 2] = -np.inf
    known[1, 4] = np.nan  # a cell without the number
    outcome[2, 3, 0] = np.nan  # a network that failed
    return (np.where(THERE[:, None], each, np.nan) for each in (known, outcome))


def repeated(values, counts):
    """The values as often as they were drawn, in a list."""
    return np.repeat(values, counts.astype(int), axis=0)


def test_mean_interval_is_students():
    values = np.random.default_rng(0).normal(size=7)
    for level in (0.95, 0.99):
        theirs = stats.ttest_1samp(values, 0.0).confidence_interval(level)
        np.testing.assert_allclose(mean_interval(values, level), (values.mean(), *theirs), rtol=EXACT)
    np.testing.assert_allclose(mean_interval([*values, np.nan]), mean_interval(values), rtol=EXACT)


def test_strata_have_the_interval_of_welch():
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=9), 3 * rng.normal(size=4) + 1
    theirs = stats.ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
    ours = 2 * np.array(stratified_interval([first, -second]))
    np.testing.assert_allclose(ours, (first.mean() - second.mean(), *theirs), rtol=EXACT)


def test_few_values_have_no_interval():
    assert mean_interval([2.0])[0] == 2.0 and np.isnan(mean_interval([2.0])[1:]).all()
    assert np.isnan(mean_interval([np.nan])).all()
    assert np.isnan(stratified_interval([[1.0, 2.0], [3.0]])[1:]).all()
    assert mean_interval([2.0, 2.0]) == Interval(2.0, 2.0, 2.0)


def test_corrected_intervals_are_right_together():
    rng = np.random.default_rng(2)
    all_right = [
        all(low <= 0 <= high for _, low, high in (mean_interval(rng.normal(size=5), corrected(8)) for _ in range(8)))
        for _ in range(400)
    ]
    error = np.sqrt(0.95 * 0.05 / 400)
    assert abs(np.mean(all_right) - 0.95) < STANDARD_ERRORS * error


def test_draws_keep_clusters_together():
    draws = resampled(STRATA, 6, THERE, seed=0, draws=500)
    assert draws.methods.shape == (501, 6) and draws.seeds.shape == (501, 3, 4)
    assert (draws.methods[0] == 1).all() and (draws.seeds[0] == THERE).all()
    assert (draws.methods[1:].sum(axis=1) == 5).all() and draws.methods[1:].std() > 0.5
    np.testing.assert_array_equal(draws.seeds[:, 0], draws.seeds[:, 1])  # of one data set and network
    assert (draws.seeds[1:, 0] != draws.seeds[1:, 2]).any(axis=1).mean() > 0.5
    np.testing.assert_array_equal(draws.seeds[1:].sum(axis=2), np.tile(THERE.sum(axis=1) - 1, (500, 1)))
    assert (draws.seeds[:, ~THERE] == 0).all()
    again, other = (resampled(STRATA, 6, THERE, seed=seed, draws=500) for seed in (0, 1))
    np.testing.assert_array_equal(draws.methods, again.methods)
    assert (draws.methods[1:] != other.methods[1:]).any()


@pytest.fixture(scope="module")
def drawn() -> Resampled:
    return resampled(STRATA, 6, THERE, seed=3, draws=60)


def plain_means(values, counts):
    """Cell means (groups, methods) of one draw, by repeating what was drawn more than once."""
    means = np.full(values.shape[:2], np.nan)
    for group in range(values.shape[0]):
        for method in range(values.shape[1]):
            chosen = repeated(values[group, method], counts[group])
            chosen = chosen[~np.isnan(chosen)]
            if len(chosen):
                means[group, method] = chosen.mean()
    return means


def test_cell_means_are_those_of_repeated_seeds(drawn):
    for values in data():
        ours = drawn.cell_means(values)
        for draw, counts in enumerate(drawn.seeds):
            np.testing.assert_allclose(ours[draw], plain_means(values, counts), rtol=EXACT, atol=ROUNDED)


def test_means_of_equal_sums_are_equal():
    values = np.array([[[0.1, 0.2, 0.3], [0.3, 0.2, 0.1], [0.3, 0.1, 0.2]]])
    assert len({*(values[0] @ np.ones(3))}) > 1  # as they are added
    draws = resampled([0], 3, np.ones((1, 3), bool), seed=0, draws=1)
    assert len({*draws.cell_means(values)[0, 0]}) == 1


def test_rank_associations_are_spearmans_of_repeated_methods(drawn):
    known, outcome = data()
    ours = rank_associations(drawn.cell_means(known), drawn.cell_means(outcome), drawn.methods)
    means = mean_of_groups(ours), mean_of_groups(ours, np.array([0, 2]))
    for draw in range(len(ours)):
        sides = [plain_means(values, drawn.seeds[draw]) for values in (known, outcome)]
        rhos = []
        for first, second in zip(*sides, strict=True):
            first, second = (repeated(side, drawn.methods[draw]) for side in (first, second))
            both = ~np.isnan(first) & ~np.isnan(second)
            ranks = [stats.rankdata(side[both]) for side in (first, second)]
            varies = all(np.ptp(rank) for rank in ranks)
            rhos.append(stats.pearsonr(*ranks).statistic if varies else np.nan)
        np.testing.assert_allclose(ours[draw], rhos, rtol=EXACT, atol=EXACT)
        np.testing.assert_allclose(means[0][draw], np.nanmean(rhos), rtol=EXACT, atol=EXACT)
        np.testing.assert_allclose(means[1][draw], np.nanmean([rhos[0], rhos[2]]), rtol=EXACT, atol=EXACT)


def test_groups_of_few_methods_do_not_count():
    known = np.array([[[1.0, 2.0, 3.0, np.nan, np.nan], [1.0, 2.0, 4.0, 3.0, 5.0]]])
    outcome = np.array([[[3.0, 2.0, 1.0, 0.0, 0.0], [1.0, 2.0, 3.0, 4.0, 5.0]]])
    everyone = np.ones((1, 5))
    np.testing.assert_allclose(rank_associations(known, outcome, everyone), [[np.nan, 0.9]], rtol=EXACT)
    np.testing.assert_allclose(mean_of_groups(rank_associations(known, outcome, everyone)), [0.9], rtol=EXACT)
    assert np.isnan(mean_of_groups(rank_associations(known[:, :1], outcome[:, :1], everyone))).all()
    left_out = np.array([[1.0, 1.0, 0.0, 0.0, 1.0]])  # three methods alone take part
    assert np.isnan(rank_associations(known, outcome, left_out)).all()


def test_weighted_medians_and_means_are_those_of_repeated_values():
    rng = np.random.default_rng(4)
    values, counts = rng.normal(size=(40, 9)), rng.integers(0, 4, (40, 9))
    values[rng.random((40, 9)) < 0.2] = np.nan
    for ours, plain in ((weighted_medians, np.median), (weighted_means, np.mean)):
        expected = [
            plain([value for value in repeated(row, each) if not np.isnan(value)])
            for row, each in zip(values, counts, strict=True)
        ]
        np.testing.assert_allclose(ours(values, counts.astype(float)), expected, rtol=EXACT)


def mean_of_one_fewer(values, axis=-1):
    return np.take(values, range(values.shape[axis] - 1), axis=axis).mean(axis=axis)


def test_drawn_means_vary_as_the_mean_of_independent_values_does():
    values = np.random.default_rng(5).normal(size=4)
    means = resampled([0], 1, np.ones((1, 4), bool), seed=6, draws=20_000).cell_means(values[None, None])[1:, 0, 0]
    # the variance of a sample variance of nearly normal numbers is about 2 σ⁴ / n
    assert abs(means.var() * 4 / values.var(ddof=1) - 1) < STANDARD_ERRORS * np.sqrt(2 / 20_000)


def test_one_seed_and_one_method_are_drawn_each_time():
    draws = resampled([0], 1, np.array([[False, True]]), seed=0, draws=3)
    assert (draws.methods == 1).all() and (draws.seeds == [[0, 1]]).all()


def test_percentile_interval_is_scipys():
    values = np.random.default_rng(5).normal(size=12)
    there = np.ones((1, 12), bool)
    draws = resampled([0], 1, there, seed=6, draws=20_000)
    ours = percentile_interval(draws.cell_means(values[None, None])[:, 0, 0], 0.9)
    options: dict[str, Any] = {"n_resamples": 20_000, "method": "percentile", "rng": np.random.default_rng(7)}
    theirs = stats.bootstrap((values,), mean_of_one_fewer, confidence_level=0.9, **options)
    assert ours.value == pytest.approx(values.mean(), abs=ROUNDED)
    # a quantile of a normal sample of this size is known to about √(p (1 − p) / 20,000) / φ(1.64) standard deviations
    error = theirs.standard_error * np.sqrt(2 * 0.05 * 0.95 / 20_000) / stats.norm.pdf(1.64)
    assert np.abs(np.array(ours[1:]) - theirs.confidence_interval).max() < STANDARD_ERRORS * error


def test_what_is_not_a_number_has_no_interval():
    assert np.isnan(percentile_interval(np.array([np.nan, 1.0, 2.0]))[1:]).all()
    assert np.isnan(percentile_interval(np.array([1.0, np.nan, np.nan]))[1:]).all()
    assert percentile_interval(np.array([1.0, np.nan, 2.0, 2.0])) == Interval(1.0, 2.0, 2.0)


GROUPS, METHODS, SEEDS = 8, 12, 3


def world(rng, slope):
    """A quantity and an outcome (groups, methods, seeds): effects of methods, of cells, and of seeds."""
    known = rng.normal(size=(1, METHODS, 1)) + 0.5 * rng.normal(size=(GROUPS, METHODS, 1))
    known = known + 0.1 * rng.normal(size=(GROUPS, METHODS, SEEDS))
    outcome = slope * known + rng.normal(size=(1, METHODS, 1)) + 0.7 * rng.normal(size=(GROUPS, METHODS, 1))
    return known, outcome + 0.5 * rng.normal(size=(GROUPS, METHODS, SEEDS))


def rho(known, outcome):
    everyone = np.ones((1, METHODS))
    return rank_associations(known.mean(axis=2)[None], outcome.mean(axis=2)[None], everyone).mean()


@pytest.mark.parametrize("slope", [0.0, 1.0])
def test_intervals_of_rank_associations_contain_the_truth_as_often_as_they_say(slope):
    rng = np.random.default_rng(8)
    truth = np.mean([rho(*world(rng, slope)) for _ in range(2000)])
    strata = [0] * (GROUPS // 2) + [1] * (GROUPS // 2)
    right, tries = 0, 150
    for _ in range(tries):
        known, outcome = world(rng, slope)
        draws = resampled(strata, METHODS, np.ones((GROUPS, SEEDS), bool), seed=int(rng.integers(2**32)), draws=400)
        statistics = rank_associations(draws.cell_means(known), draws.cell_means(outcome), draws.methods)
        interval = percentile_interval(mean_of_groups(statistics))
        right += interval.low <= truth <= interval.high
    assert abs(right / tries - 0.95) < STANDARD_ERRORS * np.sqrt(0.95 * 0.05 / tries)


def test_intervals_over_strata_contain_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(9)
    tries = 2000
    right = 0
    for _ in range(tries):
        interval = stratified_interval([scale * rng.normal(size=5) + scale for scale in (1.0, 2.0, 4.0)])
        right += interval.low <= 7 / 3 <= interval.high
    assert abs(right / tries - 0.95) < STANDARD_ERRORS * np.sqrt(0.95 * 0.05 / tries)
