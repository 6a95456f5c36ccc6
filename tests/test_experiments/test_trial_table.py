"""The flat table of trials, and trials as runs of other programs."""

import dataclasses
import importlib.util
import math
import sys
import types

import numpy as np
import pandas as pd
import pytest

from experiments.base.errors import InputError
from experiments.records import study_table, trackers, trial_table
from experiments.records.trial import Trial
from tests.test_experiments.examples import example_study, example_trial

OPTIONS = {
    "data": ["digits"],
    "method": ["snip"],
    "density": [0.1],
    "seeds": 2,
    "model": [{"name": "fc", "network": "lenet_300_100", "factor": 0.5}, {"name": "other", "network": "lenet_5"}],
    "train.learning_rate": 0.1,
    "measure.curve_density": [0.1, 0.5],
}


def test_a_row_has_every_number_of_its_trial_and_the_config_of_its_model():
    trial = example_trial(train_loss=[2.0, 0.5], dead_units={"a": 0.5, "b": 0.0}, reason="")
    (row,) = trial_table.flat([vars(trial)], OPTIONS).to_dict("records")
    for field in dataclasses.fields(Trial):
        value = getattr(trial, field.name)
        assert (field.name in row) == (not isinstance(value, list | dict))
        assert isinstance(value, list | dict) or row[field.name] == value
    assert (row["final_train_loss"], row["dead_units_mean"]) == (0.5, 0.25)
    config = {name: row[name] for name in row if "." in name}
    assert config == {
        "model.network": "lenet_300_100",
        "model.factor": 0.5,
        "train.learning_rate": 0.1,
        "measure.curve_density": "[0.1, 0.5]",
    }


def test_what_a_record_says_of_its_config_goes_before_that_of_the_folder():
    setting = {"train.learning_rate": 0.3, "measure.rounds": 5}
    row = trial_table.flat_row(
        vars(example_trial()) | {"setting": setting, "made": {"seconds": 2.5, "versions": {"jax": "0.10"}}}, OPTIONS
    )
    assert row["train.learning_rate"] == 0.3 and "model.factor" not in row
    assert (row["made.seconds"], row["made.versions.jax"]) == (2.5, "0.10")


def test_csv_and_parquet_have_the_same_row_for_each_trial(tmp_path):
    trials = [
        *example_study(data=("digits",), seeds=1),
        Trial.partial(("digits", "fc", "snip", 0.1, 9), reason="no memory"),
    ]
    words = trial_table.write(tmp_path, map(vars, reversed(trials)), OPTIONS)
    assert words == f"Table of trials: {tmp_path / 'trials.csv'}, trials.parquet"
    methods = ["dense", "random", "snip", "synflow"]
    trials = sorted(trials, key=lambda each: (each.model, methods.index(each.method), -each.density, each.seed))
    from_csv, from_parquet = pd.read_csv(tmp_path / "trials.csv"), pd.read_parquet(tmp_path / "trials.parquet")
    assert list(from_csv.columns) == list(from_parquet.columns) and len(from_csv) == len(from_parquet) == len(trials)
    for name in ("density", "test_accuracy", "log_trace_ntk", "kept", "train.learning_rate"):
        np.testing.assert_allclose(from_csv[name], from_parquet[name], rtol=1e-15)
        if name in vars(trials[0]):
            np.testing.assert_array_equal(from_parquet[name], [getattr(trial, name) for trial in trials])
    assert from_parquet["reason"].tolist() == [trial.reason for trial in trials]


def test_without_pyarrow_there_is_a_csv_and_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "(trials.parquet needs pyarrow" in trial_table.write(tmp_path, [vars(example_trial())], OPTIONS)
    assert [file.name for file in tmp_path.iterdir()] == ["trials.csv"]


def test_finished_trials_come_back_from_the_tables(tmp_path):
    trials = example_study(data=("digits",), seeds=2)
    study = study_table.tabulated(trials, {"options": OPTIONS}, tmp_path)
    again = {trial.name: trial for trial in study.finished()}
    assert len(again) == len(trials)
    for trial in trials:
        np.testing.assert_equal(vars(again[trial.name]), vars(trial))


class Runs:
    """Stands for the package wandb, and keeps what it is told."""

    def __init__(self):
        self.runs = []

    def init(self, **options):
        run = types.SimpleNamespace(options=options, logged=[], summary={}, finished=False)
        run.log = lambda values, step: run.logged.append((step, values))
        run.finish = lambda: setattr(run, "finished", True)
        self.runs.append(run)
        return run


def test_each_trial_is_a_run_of_weights_and_biases(tmp_path, monkeypatch):
    package = Runs()
    monkeypatch.setitem(sys.modules, "wandb", package)
    trials = [example_trial(seed=seed, train_loss=[2.0, 0.5], log_top_ntk=-math.inf) for seed in range(2)]
    finished = trackers.tracker("wandb", tmp_path, OPTIONS)
    finished(trials)
    finished(trials[:1])
    first, second, again = package.runs[:3]
    assert first.options["id"] == again.options["id"] != second.options["id"]
    finished([example_trial(seed=0, setting={"train.epochs": 7})])
    assert package.runs[-1].options["id"] != first.options["id"]  # another study in a folder of the same name
    assert first.options["project"] == tmp_path.name and first.options["name"] == trials[0].title
    assert first.options["config"]["seed"] == 0 and first.options["config"]["train.learning_rate"] == 0.1
    assert first.logged == [(0, {"train_loss": 2.0}), (1, {"train_loss": 0.5})] and first.finished
    assert first.summary["test_accuracy"] == 1.5 and "log_top_ntk" not in first.summary


class Writer:
    """Stands for the writer of tensorboardX, and writes what it is told as lines."""

    def __init__(self, folder):
        from pathlib import Path

        Path(folder).mkdir(parents=True, exist_ok=True)
        self.file = (Path(folder) / "events.here").open("a")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def add_scalar(self, name, value, step):
        print(name, value, step, file=self.file)

    def add_text(self, name, words):
        print(name, words, file=self.file)


def test_each_trial_is_a_run_of_tensorboard_which_sending_again_replaces(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=Writer))
    finished = trackers.tracker("tensorboard", tmp_path, OPTIONS)
    trial = example_trial(train_loss=[2.0, 0.5])
    finished([trial])
    finished([trial])
    (file,) = (tmp_path / "tensorboard" / "digits-fc-snip-0.1-2").iterdir()
    lines = file.read_text().splitlines()
    assert lines[:2] == ["train_loss 2.0 0", "train_loss 0.5 1"]
    assert "test_accuracy 1.5 0" in lines and lines.count("test_accuracy 1.5 0") == 1
    assert "    train.learning_rate = 0.1" in lines


def test_a_tracker_that_is_not_there_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(
        InputError, match=r"--track wandb needs the package wandb; install it by pip install 'pathjax\[wandb\]'"
    ):
        trackers.tracker("wandb", tmp_path, OPTIONS)
    with pytest.raises(InputError, match="There is no tracker 'wandbb'; the nearest to it is wandb"):
        trackers.tracker("wandbb", tmp_path, OPTIONS)
