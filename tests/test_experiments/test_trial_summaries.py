"""Numbers that follow from the lists and tables of a trial."""

import dataclasses
import math

import numpy as np
import pytest

from experiments.records import study_table, trial_table
from experiments.records.trial import Trial
from experiments.records.trial_summaries import CURVES, SUMMARIES, TOPS, summarized
from tests.test_experiments.examples import example_study, example_trial
from tests.tolerances import EXACT, ROUNDING


def test_every_name_has_a_number_of_every_trial():
    for trial in (example_trial(), Trial.partial(("digits", "fc", "snip", 0.1, 0), reason="no memory")):
        assert tuple(summarized(vars(trial))) == SUMMARIES
    assert all(math.isnan(number) for number in summarized(vars(trial)).values())


def test_a_curve_falls_by_decades_and_has_its_half_at_a_step():
    numbers = summarized(
        vars(example_trial(real_loss=[1.0, 0.6, 0.5, 0.1], data_free_loss=[1.0, 0.9], inputs_loss=[1.0, 0.0]))
    )
    assert numbers["real_drop"] == pytest.approx(1.0, rel=ROUNDING) and numbers["real_halving"] == 2
    assert numbers["data_free_drop"] == pytest.approx(-math.log10(0.9), rel=EXACT)
    assert numbers["data_free_halving"] == math.inf
    assert 37 < numbers["inputs_drop"] < 38  # a loss of 0 counts as the least positive number of float32


def test_densities_of_layers_are_summed_up():
    shares = {"a": 0.5, "b": 0.02, "c": 1.0}
    numbers = summarized(vars(example_trial(layer_density=shares)))
    logs = np.log([*shares.values()])
    np.testing.assert_allclose(numbers["log_layer_density_mean"], logs.mean(), rtol=EXACT)
    np.testing.assert_allclose(numbers["log_layer_density_min"], logs.min(), rtol=EXACT)
    assert numbers["emptied_layers"] == 0
    emptied = summarized(vars(example_trial(layer_density=shares | {"b": 0.0, "c": 0.0})))
    assert emptied["emptied_layers"] == 2
    assert emptied["log_layer_density_mean"] == emptied["log_layer_density_min"] == -math.inf


@pytest.mark.parametrize("name", TOPS)
def test_largest_eigenvalues_lie_decades_apart(name):
    trial = example_trial(**{TOPS[name]: math.log(10.0), "log_top_ntk": math.log(1000.0)})
    assert summarized(vars(trial))[f"top_gap_{name}"] == pytest.approx(2.0, rel=EXACT)
    none = example_trial(**{TOPS[name]: -math.inf, "log_top_ntk": -math.inf})
    assert math.isnan(summarized(vars(none))[f"top_gap_{name}"])


def test_tables_of_trials_and_of_cells_have_the_same_numbers(tmp_path):
    trials = example_study(data=("digits",), models=("fc",), seeds=1)
    rows = trial_table.flat(map(vars, trials), {}).set_index(["method", "density"])
    cells = study_table.tabulated(trials, {}, tmp_path).cells.set_index(["method", "density"])
    for name in SUMMARIES:
        np.testing.assert_array_equal(rows[name].sort_index(), cells[f"{name}_mean"].sort_index())
    assert rows["real_drop"].nunique() > 1 and set(CURVES) <= {field.name for field in dataclasses.fields(Trial)}
