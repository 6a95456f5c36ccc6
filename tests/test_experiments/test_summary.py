import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from experiments.records import summary
from tests.test_experiments.examples import example

CONFIG = {"options": {"method": ["random", "snip", "synflow"]}}


def runs_of(accuracy):
    """Two seeds of each (method, density); `accuracy(method, density)` is their mean."""
    cells = [("dense", 1.0), *((method, density) for method in CONFIG["options"]["method"] for density in (0.5, 0.1))]
    for method, density in cells:
        for seed in (1, 0):
            shift = 0.01 if seed else -0.01
            mean = accuracy(method, density)
            yield example(method=method, density=density, seed=seed, test_accuracy=mean + shift, log_top_ntk=mean**3)


def by_method(method, density):
    return density / 2 + 0.1 * ["dense", "random", "snip", "synflow"].index(method)


def test_cells_hold_means_and_deviations_over_seeds():
    table = summary.cells(summary.by_run(list(runs_of(by_method)), CONFIG))
    assert table["method"].tolist() == ["dense", "random", "random", "snip", "snip", "synflow", "synflow"]
    assert table["density"].tolist() == [1.0, 0.5, 0.1, 0.5, 0.1, 0.5, 0.1]
    assert table["test_accuracy_mean"].iloc[1] == pytest.approx(0.35)
    assert table["test_accuracy_std"].iloc[1] == pytest.approx(0.01 * math.sqrt(2))
    assert (table["seeds"] == 2).all() and table["pruned_stay_zero"].all()


def test_the_order_in_which_runs_finished_does_not_matter():
    runs = list(runs_of(by_method))
    first, second = (summary.cells(summary.by_run(order, CONFIG)) for order in (runs, runs[::-1]))
    assert first.to_csv() == second.to_csv()


def test_a_level_that_a_seed_never_reached_is_infinite_without_a_deviation():
    runs = list(runs_of(by_method))
    runs[0] = dataclasses.replace(runs[0], steps_to_level=math.inf)
    dense = summary.cells(summary.by_run(runs, CONFIG)).iloc[0]
    assert dense["steps_to_level_mean"] == math.inf and math.isnan(dense["steps_to_level_std"])


def test_a_quantity_that_orders_the_cells_has_rank_correlation_one():
    ranks = summary.rankings(summary.cells(summary.by_run(list(runs_of(by_method)), CONFIG)))
    found = {(rank.quantity, rank.target): rank for rank in ranks}
    top = found["log_top_ntk", "test_accuracy"]
    assert top.pooled == pytest.approx(1.0) and top.within == pytest.approx(1.0)
    assert (top.cells, top.densities, top.per_density) == (7, 2, 3)
    density = found["density", "test_accuracy"]
    assert math.isfinite(density.pooled) and math.isnan(density.within)
    assert math.isnan(found["log_trace_ntk", "test_accuracy"].pooled)


@pytest.mark.parametrize("seed", range(3))
def test_spearman_agrees_with_scipy_ties_included(seed):
    first, second = np.random.default_rng(seed).integers(0, 5, (2, 12)).astype(float)
    assert summary.spearman(first, second) == pytest.approx(stats.spearmanr(first, second).statistic)


def test_infinities_rank_last_and_nan_is_left_out():
    known = np.array([1.0, 2.0, 3.0, np.nan, -np.inf])
    outcome = np.array([2.0, 3.0, np.inf, 0.0, 1.0])
    assert summary.spearman(known, outcome) == pytest.approx(1.0)
    assert math.isnan(summary.spearman(known[:2], outcome[:2]))


def test_the_level_of_chance_is_near_the_exact_one():
    # two-sided 5% points of Spearman's ρ: 0.886 for 6 cells (exact), 0.46 for 19
    assert summary.chance_level(6) == pytest.approx(0.829, abs=0.06)
    assert summary.chance_level(19) == pytest.approx(0.46, abs=0.03)
    assert summary.chance_level(6, repeats=3) < summary.chance_level(6)
