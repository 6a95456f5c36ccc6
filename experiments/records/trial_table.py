"""One flat table of trials, a row for each, with what decided it: as CSV and as Parquet."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.base import variants
from experiments.base.files import write_atomically
from experiments.records.jsonl import decode, encode
from experiments.records.trial import Trial
from experiments.records.trial_summaries import summarized

__all__ = ["as_kept", "configured", "flat", "flat_row", "write"]

_NAMES = ("data", "model", "method", "density", "seeds")
"""Keys of a config that name trials, and do not decide one of them."""


def flat(trials: Iterable[Mapping[str, Any]], options: Mapping[str, Any]) -> pd.DataFrame:
    """The table of trials that are given as `vars(trial)`; `options` are those of the folder's config.json.

    Each number and each word of a trial is a column, and so is each key of the config that decided it, as
    "train.learning_rate". Lists and tables of a trial (curves, spectra, densities of layers) stay in results.jsonl; of
    them there are the numbers of `trial_summaries.summarized`. Rows are in the order of data, model, method, density
    and seed, in whatever order networks were computed.
    """
    ordered = sorted(
        trials, key=lambda t: (t["data"], t["model"], variants.place(t["method"]), -t["density"], t["seed"])
    )
    return pd.DataFrame([flat_row(trial, options) for trial in ordered])


def as_kept(trial: Trial) -> dict[str, Any]:
    """The fields of a trial with the digits that results.jsonl keeps."""
    return vars(decode(encode(trial), Trial))


def flat_row(trial: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The row of one trial."""
    plain = {name: value for name, value in trial.items() if isinstance(value, bool | int | float | str | np.generic)}
    return plain | summarized(trial) | configured(trial, options) | _flattened(trial.get("made") or {}, "made.")


def configured(trial: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The config of one trial: what its record says, or else the keys of the whole study and those of its model."""
    if trial.get("setting"):
        return _flattened(trial["setting"], "")
    models = [model for model in options.get("model", []) if model.get("name") == trial["model"]]
    of_model = {f"model.{key}": value for model in models for key, value in model.items() if key != "name"}
    return _flattened(of_model | {key: value for key, value in options.items() if key not in _NAMES}, "")


def _flattened(table: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """A table whose tables are columns with dotted names, and whose lists are JSON."""
    row: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            row |= _flattened(value, f"{prefix}{key}.")
        else:
            row[prefix + key] = json.dumps(value) if isinstance(value, list | tuple) else value
    return row


def write(folder: Path, trials: Iterable[Mapping[str, Any]], options: Mapping[str, Any]) -> str:
    """Write trials.csv and trials.parquet into a folder; gives the sentence that says so.

    Without pyarrow, of the extra `experiments`, there is no Parquet. Raises InputError where a file cannot be written.
    """
    table = flat(trials, options)
    write_atomically(folder / "trials.csv", table.to_csv(index=False, na_rep="nan"))
    if importlib.util.find_spec("pyarrow") is None:
        return f"Table of trials: {folder / 'trials.csv'} (trials.parquet needs pyarrow, which is not installed)"
    write_atomically(folder / "trials.parquet", table.to_parquet(index=False, engine="pyarrow"))
    return f"Table of trials: {folder / 'trials.csv'}, trials.parquet"
