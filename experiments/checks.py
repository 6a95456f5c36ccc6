"""What can be seen to be wrong of a study with its data and networks, before anything is computed."""

from __future__ import annotations

import functools
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from experiments.base import own, variants
from experiments.base.errors import InputError
from experiments.data import loading
from experiments.data.loading import Dataset, balanced_batch, check_data_dir, known_names
from experiments.study import Model, Study

if TYPE_CHECKING:
    import jax

    from experiments.networks.layers import Network, State
    from pathjax.types import Params

__all__ = ["check_batches", "check_networks", "datasets_of", "names_of_data"]

_BYTES_OF_A_WEIGHT = 4 * 6
"""Weights, gradient and momentum with their next values, in float32."""


def names_of_data(data_dir: Path | None) -> tuple[str, ...]:
    """The data sets that a study may name, beside one's own. Raises InputError where `data_dir` is not there."""
    check_data_dir(data_dir)
    return known_names(data_dir)


def datasets_of(study: Study, data_dir: Path | None, *, may_write: bool = True) -> dict[str, Dataset]:
    """The data sets of a study, by their names in results; `may_write` as in `loading.load`.

    Raises InputError where one cannot be had, or has too few images for what the study asks for.
    """
    datasets = {name: loading.load(study.source(name), data_dir=data_dir, may_write=may_write) for name in study.data}
    for dataset in datasets.values():
        check_batches(study, dataset)
    return datasets


def check_batches(study: Study, dataset: Dataset) -> None:
    """Raise InputError where a batch of the study is larger than the data set, or than one of its classes."""
    labels = dataset.first(study.train_images, study.test_images).train_labels
    measure, count = study.measure, len(labels)
    if len(np.unique(labels)) < 2:
        raise InputError(
            f"The {count} train images that the study takes of {dataset.name}, the first ones, are all of one class: "
            "shuffle the data, or make train_images larger."
        )
    for key, size in (("train.batch_size", study.train.batch_size), ("measure.ntk_images", measure.ntk_images)):
        if size > count:
            raise InputError(
                f"{key} is {size}, but the study has {count} train images of {dataset.name}; make it {count} at most."
            )
    batches = max(1, variants.batches_read(study.method))
    of_batches = f" and a method that reads {batches} such batches" if batches > 1 else ""
    for key, per_class, words in (
        ("measure.score_per_class", batches * measure.score_per_class, of_batches),
        ("measure.ntk_images", math.ceil(measure.ntk_images / dataset.classes), ""),
    ):
        try:
            balanced_batch(labels, per_class)
        except InputError as error:
            why = f"{str(error)[0].lower()}{str(error)[1:]}"
            raise InputError(f"{key} is too large for {dataset.name}{words}: {why}") from error


def check_networks(study: Study, datasets: dict[str, Dataset]) -> None:
    """Raise InputError where a network of the study cannot be built, measured or held in memory."""
    for dataset in datasets.values():
        for model in study.model:
            _check_network(model, dataset)


def _check_network(model: Model, dataset: Dataset) -> None:
    import jax

    from experiments.base.seeds import key_of
    from experiments.models import network_of

    shape = dataset.train_images.shape[1:]
    network = network_of(model, shape, dataset.classes)
    params, state = jax.eval_shape(network.init, key_of(0))
    weights = sum(leaf.size for leaf in jax.tree.leaves(params))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if weights * _BYTES_OF_A_WEIGHT > memory:
        raise InputError(
            f"The model {model.name} has {weights:.2g} weights on {dataset.name}, whose training takes "
            f"{weights * _BYTES_OF_A_WEIGHT / 2**30:.2g} GiB; this machine has {memory / 2**30:.2g} GiB."
        )
    if own.is_function(model.network):
        x = jax.ShapeDtypeStruct((1, *shape), "float32")
        try:
            jax.eval_shape(functools.partial(_path_norm, network), params, state, x)
        except ValueError as error:  # of which UnsupportedPrimitive is one
            words = " ".join(str(error).split()).rstrip(".")
            raise InputError(f"The model {model.name} has no path sums, which a study measures: {words}.") from error


def _path_norm(network: Network, params: Params, state: State, x: jax.Array) -> jax.Array:
    from pathjax import paths

    return paths.log_path_norm(network.apply, params, x, state=state)
