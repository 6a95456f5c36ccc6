"""What decides each trial of a study: the keys of the config that this trial reads, and hashes of one's own sources."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from typing import Any

import jax

from experiments.base import own, variants
from experiments.base.names import BATCHES, DENSE, LOTTERY_TICKET
from experiments.base.shards import WHOLE, Shard
from experiments.base.sources import source_hash
from experiments.data.arrays import file_hash
from experiments.measure.pruning import METHODS
from experiments.models import has_state
from experiments.records.trial import Name
from experiments.study import Cell, Model, Study

__all__ = ["has_curves", "numeric_options", "options_of", "setting_of", "settings_of", "study_hash"]

_SCORED_INPUTS = ("synflow_data", "synflow_data_l2")
"""Methods whose scores read the `measure.score_inputs` images; of others only the shape of one image counts."""

_ANY_SETTING = ("memory_gib", "train.checkpoint_every", "measure.kernel_pictures")
"""Keys that decide no number of a trial."""

_USUAL = {
    "jax_default_prng_impl": "threefry2x32",
    "jax_threefry_partitionable": True,
    "jax_default_matmul_precision": None,
}
"""Options of JAX that decide numbers, with the values that they have if nobody sets them."""

_DIGITS = 12
"""Hexadecimal digits of the hash of a study."""


def options_of(study: Study) -> dict[str, Any]:
    """The study as JSON, as `config.json` keeps it: tables under dotted names, without what may change at any time."""
    options = json.loads(json.dumps(dataclasses.asdict(study)))
    del options["memory_gib"], options["sources"]
    for table in ("train", "measure"):
        options |= {f"{table}.{key}": value for key, value in options.pop(table).items()}
    return options


def study_hash(study: Study) -> str:
    """A hash of `options_of` the study."""
    return hashlib.sha256(json.dumps(options_of(study), sort_keys=True).encode()).hexdigest()[:_DIGITS]


def settings_of(study: Study, shard: Shard = WHOLE) -> dict[Name, dict[str, Any]]:
    """What decides each trial of a part of the study, in the order in which they run."""
    return {
        (data, model.name, *cell, seed): setting
        for data, model, cell in shard.of(itertools.product(study.data, study.model, study.cells))
        for setting in [setting_of(study, data, model, cell)]
        for seed in range(study.seeds)
    }


def setting_of(study: Study, data: str, model: Model, cell: Cell) -> dict[str, Any]:
    """What decides the trials of a cell beside their names, the data set and the versions, as `Trial.setting`.

    Raises InputError where a network of one's own cannot be found.
    """
    decides = {f"model.{key}": value for key, value in dataclasses.asdict(model).items() if key != "name"}
    decides |= {f"train.{key}": value for key, value in dataclasses.asdict(study.train).items()}
    decides |= {f"measure.{key}": getattr(study.measure, key) for key in _read(study, model, cell)}
    if has_curves(study, cell):
        decides |= {"measure.curves": True}
    decides |= {"train_images": study.train_images, "test_images": study.test_images}
    ones_own = (("model.network", "network", model.network), ("data", "data set", study.source(data)))
    for key, kind, name in ones_own:
        if own.is_function(name):
            own.function_of(kind, name)
            decides[f"source of {key}"] = source_hash(name.partition(":")[0])
        elif own.is_file(name):
            decides[f"source of {key}"] = file_hash(name)
    decides["jax_enable_x64"] = jax.dtypes.canonicalize_dtype(float).itemsize == 8
    decides |= {key: str(value) for key, usual in _USUAL.items() if (value := getattr(jax.config, key)) != usual}
    return {key: value for key, value in decides.items() if key not in _ANY_SETTING}


def numeric_options() -> dict[str, Any]:
    """The options of JAX that decide numbers, as they are set in this process."""
    return {name: getattr(jax.config, name) for name in ("jax_enable_x64", *_USUAL)}


def has_curves(study: Study, cell: Cell) -> bool:
    """Whether the networks of a cell get loss curves; with any, the dense one gets them too."""
    method, density = cell
    with_curves = study.measure.curve_density
    return density in with_curves or (bool(with_curves) and method == DENSE)


def _read(study: Study, model: Model, cell: Cell) -> list[str]:
    """The keys of `measure` that the trials of a cell read."""
    measure = study.measure
    read = ["ntk_images", "loss_level", *_read_to_prune(model, cell[0])]
    read += ["changes"] if measure.changes else []
    if has_curves(study, cell):
        read += ["curve_steps", "rank"]
        read += ["expected"] if measure.expected else []
        read += ["regression_images"] if measure.expected and measure.regression_images else []
    return read


def _read_to_prune(model: Model, method: str) -> list[str]:
    """The keys of `measure` that decide the mask of a method, and what its training starts from."""
    base, variant = variants.parts(method)
    if base == LOTTERY_TICKET:
        return ["rewind_epochs"]
    if base == DENSE:
        return []
    scored = METHODS[base]
    read = ["rounds"] if scored.iterative and variant != variants.TWO_OF_FOUR else []
    read += ["score_per_class"] if base in BATCHES else []
    read += ["score_inputs"] if base in _SCORED_INPUTS else []
    return read + (["training_mode_scores"] if scored.in_training_mode and has_state(model) else [])
