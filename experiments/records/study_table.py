"""The results of a study as tables: a row for each trial, and a row for each cell with means over its seeds."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from experiments.base import variants
from experiments.base.errors import InputError
from experiments.base.names import DENSE, QUANTITIES
from experiments.base.wording import enumerated
from experiments.records import stored_lines
from experiments.records.rank_association import Association, associate
from experiments.records.stored_lines import StoredLines
from experiments.records.trial import Trial
from experiments.records.trial_summaries import PREDICTIONS, SUMMARIES, summarized

__all__ = [
    *("CHANGES", "KNOWN", "OUTCOMES", "StudyTable"),
    *("config_of", "is_of_study", "lines_of", "read", "tabulated", "wanted"),
]

KNOWN = {name: words for name, words in QUANTITIES.items() if name != "density"}
"""What is measured before training, with words; without density, which is known anyway."""

OUTCOMES = {"test_accuracy": "test accuracy", "steps_to_level": "steps to the loss level"}
"""What training decides, with words."""

CHANGES = {
    "ntk_change": "change of Θ",
    "path_kernel_change": "change of Π",
    "ntk_distance": "turn of Θ",
    "path_kernel_distance": "turn of Π",
}
"""How far training moved the kernels, with words."""

_SETTING = ["data", "model"]
_CELL = [*_SETTING, "method", "density"]
_GAPS = [f"gap_{name}" for name in PREDICTIONS]
_AVERAGED = [
    *("test_accuracy", "steps_to_level", *KNOWN, "infinite_distance", *_GAPS, *SUMMARIES),
    *("linearization_error", "kernel_distance", *CHANGES),
]


class StudyTable(NamedTuple):
    """What is in the folder of a study.

    Attributes:
        config: its options and versions.
        failed: the trials that failed, in order.
        trials: a row for each trial that did not; dense first, then methods as listed, densities from high to low.
        cells: a row for each (data, model, method, density) of these: `NAME_mean` and `NAME_std` over the seeds that
            have the number, and `untrained`, how many of the `seeds` did not train. Beside the numbers of the trials
            there are those of `trial_summaries.summarized`.
    """

    config: dict[str, Any]
    failed: list[Trial]
    trials: pd.DataFrame
    cells: pd.DataFrame

    def finished(self) -> list[Trial]:
        """The trials that did not fail."""
        names = [field.name for field in dataclasses.fields(Trial)]
        return [
            Trial(**{str(name): value for name, value in row.items()}) for row in self.trials[names].to_dict("records")
        ]

    @property
    def settings(self) -> list[tuple[str, str]]:
        """Each data set with each model."""
        rows = self.cells[_SETTING].drop_duplicates().itertuples(index=False)
        return [(str(data), str(model)) for data, model in rows]

    def restricted(self, data: str, model: str) -> StudyTable:
        """The part of one data set and model."""
        trials, cells = (table[(table["data"] == data) & (table["model"] == model)] for table in self[2:])
        failed = [trial for trial in self.failed if (trial.data, trial.model) == (data, model)]
        return StudyTable(self.config, failed, trials, cells)

    def parts(self) -> Iterator[tuple[str, StudyTable]]:
        """Each setting in words, with its part."""
        for data, model in self.settings:
            yield f"{data}, {model}", self.restricted(data, model)

    @property
    def densities(self) -> list[float]:
        """The densities of the pruned networks, from high to low."""
        return sorted(self.cells.loc[self.cells["method"] != DENSE, "density"].unique(), reverse=True)

    @property
    def seeds(self) -> int:
        """The number of seeds."""
        return int(self.trials["seed"].nunique())

    def pruned_at(self, density: float) -> pd.DataFrame:
        """The cells of the pruned networks of one density."""
        return self.cells[(self.cells["density"] == density) & (self.cells["method"] != DENSE)]

    def association(self, known: str, outcome: str, within: Sequence[str]) -> Association:
        """How the means of two numbers rank over the cells; only cells that agree in all of `within` are compared."""
        cells = self.cells.reset_index(drop=True)
        known = "density" if known == "density" else f"{known}_mean"
        groups = [cells.index.to_numpy()]
        if within:
            groups = [group.index.to_numpy() for _, group in cells.groupby(list(within))]
        return associate(cells[known].to_numpy(float), cells[f"{outcome}_mean"].to_numpy(float), groups)


def read(folder: Path) -> StudyTable:
    """The study in a folder; it need not be finished, and a sweep may be writing to it.

    Raises InputError as `config_of` and `lines_of`, and where no trial has come to its end.
    """
    config = config_of(folder)
    trials = stored_lines.newest(lines_of(folder).trials).values()
    return tabulated([trial for trial in trials if is_of_study(trial, config["options"])], config, folder)


def config_of(folder: Path) -> dict[str, Any]:
    """The study in a folder, as config.json keeps it. Raises InputError where there is none that can be read."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
        written, _, _ = config["format"], config["options"].keys(), config["versions"].keys()
    except OSError as error:
        raise _without_results(folder, error) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder / 'config.json'} is not a configuration of this program.") from error
    if written not in Trial.READABLE:
        readable = enumerated([str(number) for number in Trial.READABLE])
        raise InputError(
            f"{folder} has results of format {written} and this program reads {readable}: draw them with pathjax "
            f"{config['versions'].get('pathjax', 'of then')}, or sweep again into another folder."
        )
    return config


def lines_of(folder: Path) -> StoredLines:
    """The lines of results.jsonl in a folder; half a line at the end is being written, or a kill left it.

    Raises InputError where there is no such file, and where another line is no trial.
    """
    path = folder / "results.jsonl"
    try:
        path.stat()
    except OSError as error:
        raise _without_results(folder, error) from error
    stored = stored_lines.read(path)
    for number, _, fault in stored.broken:
        raise InputError(
            f"Line {number} of {path} is not a trial of a study ({fault}); `sweep` with --repair moves a broken line "
            "to another file."
        )
    return stored


def _without_results(folder: Path, error: OSError) -> InputError:
    return InputError(
        f"{folder} has no results of a study ({Path(error.filename).name}: {error.strerror}); give the folder that "
        "`python -m experiments sweep` writes to."
    )


def is_of_study(trial: Trial, options: Mapping[str, Any]) -> bool:
    """Whether the study as last run has the trial; others stay in the folder and out of what is shown."""
    in_study = {
        "data": lambda names: trial.data in names,
        "model": lambda models: trial.model in [model["name"] for model in models],
        "method": lambda methods: trial.method in (DENSE, *methods),
        "density": lambda densities: trial.method == DENSE or trial.density in densities,
        "seeds": lambda seeds: trial.seed < seeds,
    }
    return all(is_in(options[key]) for key, is_in in in_study.items() if key in options)


def wanted(options: Mapping[str, Any]) -> int:
    """How many trials the study has when it is finished; 0 where its options do not say."""
    data, models, methods, densities = (len(options.get(name, ())) for name in ("data", "model", "method", "density"))
    return data * models * (1 + methods * densities) * int(options.get("seeds", 0)) if methods and densities else 0


def tabulated(trials: Sequence[Trial], config: dict[str, Any], folder: Path) -> StudyTable:
    """The tables of these trials. Raises InputError where none has come to its end."""
    trials = sorted(trials, key=lambda t: (t.data, t.model, variants.place(t.method), -t.density, t.seed))
    failed = [trial for trial in trials if trial.reason]
    whole = [trial for trial in trials if not trial.reason]
    if not whole:
        why = f"all {len(failed)} failed, the first with: {failed[0].reason}" if failed else "there are none"
        raise InputError(f"No trial in {folder} has come to its end: {why}.")
    table = pd.DataFrame([vars(trial) | summarized(vars(trial)) for trial in whole])
    with np.errstate(invalid="ignore"):  # the deviation of infinities is not a number
        averaged = table.groupby(_CELL, sort=False)[_AVERAGED].agg(["mean", "std"])
    averaged.columns = [f"{name}_{statistic}" for name, statistic in averaged.columns]
    seeds = table.groupby(_CELL, sort=False)["seed"].count().rename("seeds")
    untrained = table["did_not_train"].map(bool).groupby([table[name] for name in _CELL], sort=False).sum()
    kept = table.groupby(_CELL, sort=False)[["kept", "prunable"]].first()
    columns = [seeds, untrained.rename("untrained"), kept, averaged]
    return StudyTable(config, failed, table, pd.concat(columns, axis=1).reset_index())
