"""A study of networks and data of one's own, which lie beside its config."""

import sys

import numpy as np
import pytest

from experiments import __main__ as command
from experiments.records import study_table, trial_table
from experiments.records.jsonl import decode
from experiments.records.trial import Trial

MODULE = """
import flax.linen as nn
from flax import nnx
from networks_and_data_numbers import numbers

class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(6, name="z")(x.reshape(len(x), -1))
        return nn.Dense(2)(nn.relu(nn.BatchNorm(use_running_average=not train)(x)))

def linen(shape, outputs):
    return Linen()

def plain(shape, outputs, *, rngs):
    flat = lambda x: x.reshape(len(x), -1)
    return nnx.Sequential(flat, nnx.Linear(3, 4, rngs=rngs), nnx.relu, nnx.Linear(4, 2, rngs=rngs))

class Smooth(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.gelu(nn.Dense(4)(x.reshape(len(x), -1))))

def smooth(shape, outputs):
    return Smooth()

def cells():
    return numbers()
"""

NUMBERS = """
import numpy as np

def numbers():
    labels = np.arange(30) % 2
    images = np.random.default_rng(0).normal(size=(30, 3)) + 3 * labels[:, None]
    return images[:20], labels[:20], images[20:], labels[20:]
"""

CONFIG = """
data = ["networks_and_data:cells"]
method = ["snip"]
density = [0.5]
[[model]]
name = "linen"
network = "networks_and_data:linen"
[[model]]
name = "nnx"
network = "networks_and_data:plain"
[train]
epochs = 3
batch_size = 10
[measure]
ntk_images = 4
score_per_class = 2
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a config and two modules beside it, which nothing else can import."""
    root = tmp_path_factory.mktemp("own")
    (root / "networks_and_data.py").write_text(MODULE)
    (root / "networks_and_data_numbers.py").write_text(NUMBERS)
    (root / "own.toml").write_text(CONFIG)
    before = [*sys.path]
    yield root
    sys.path[:] = before


def run(place, out, *more):
    return command.main(["sweep", str(place / "own.toml"), "--out", str(place / out), *more])


def test_modules_of_ones_own_are_pruned_measured_and_trained_but_not_shrunk(place, capsys):
    assert run(place, "out", "--set", "seeds=1", "--set", "train.learning_rate=0.2") == 0
    trials = [decode(line, Trial) for line in (place / "out" / "results.jsonl").read_text().splitlines()]
    assert [trial.name[:4] for trial in trials] == [
        ("networks_and_data.cells", model, method, density)
        for model in ("linen", "nnx")
        for method, density in (("dense", 1.0), ("snip", 0.5))
    ]
    for trial in trials:
        assert trial.reason == "" and trial.pruned_stay_zero
        names = ["z", "Dense_0"] if trial.model == "linen" else ["layers/1", "layers/3"]
        sizes = np.array([3 * 6, 6 * 2] if trial.model == "linen" else [3 * 4, 4 * 2])
        assert trial.prunable == sizes.sum() and trial.kept == round(trial.density * trial.prunable)
        assert list(trial.layer_density) == names
        np.testing.assert_allclose(np.dot(list(trial.layer_density.values()), sizes), trial.kept)
        assert trial.train_loss[-1] < trial.train_loss[0] and trial.ntk_change > 0
        assert trial.log_top_path_kernel <= trial.log_trace_path_kernel
        assert trial.dead_units == {} and trial.absent.startswith("dead units are not counted")
        is_normed = trial.model == "linen"
        assert np.isnan(trial.path_kernel_change) == is_normed == ("change of Π is not measured" in trial.absent)
        assert np.isnan(trial.infinite_distance)
    study = study_table.read(place / "out")
    table = trial_table.flat(map(vars, study.finished()), study.config["options"])  # as `figures` writes it
    assert (place / "out" / "trials.csv").read_text() == table.to_csv(index=False, na_rep="nan")
    assert set(table["train.learning_rate"]) == {0.2} and table["source of data"].nunique() == 1
    assert max(trial.test_accuracy for trial in trials) > 0.8  # the classes are far from each other


def test_a_module_that_is_not_piecewise_linear_is_refused_before_anything_is_computed(place, capsys):
    assert run(place, "smooth", "--set", "model.network=networks_and_data:smooth", "--set", "seeds=1") == 2
    printed = capsys.readouterr().err
    assert "The model linen has no path sums, which a study measures: No path rule for" in printed
    assert printed.count("\n") == 1 and not (place / "smooth").exists()
