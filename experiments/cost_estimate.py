"""What a study would compute, and about how long that takes on this machine."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Collection
from typing import NamedTuple

import jax
import jax.numpy as jnp
from rich.table import Table

from experiments import sweep
from experiments.base.seeds import key_of
from experiments.data.loading import Dataset
from experiments.networks.layers import Network, State
from experiments.study import Model, Name, Study, cells_of
from pathjax.types import Params

__all__ = ["Cost", "cost", "plan"]

_COMPILED = 20
"""The programs of a network together, in compilations of its gradient; as observed, within a factor of two."""

_PRODUCTS = 100
"""What is measured of a network without its scores, in gradients of as many images as Θ is of; as observed."""


class Cost(NamedTuple):
    """Seconds, about: to compile the programs of a network, and to measure and to train it with one mask."""

    compiling: float
    measuring: float
    training: float


def plan(study: Study, datasets: dict[str, Dataset], kept: Collection[Name]) -> Table:
    """What would run, and about how long it would take on this machine; times in minutes."""
    columns = ("data", "model", "cells", "networks", "kept", "compiling", "measuring", "training", "all")
    table = Table(*columns, title="What would run, and about how many minutes it takes")
    whole = [0.0] * len(Cost._fields)
    for name, model in itertools.product(study.data, study.model):
        cells = tuple(cells_of(study))
        names = sweep.Group(name, model, cells).names(study.seeds)
        left = len(set(names) - set(kept))
        each = cost(study, model, datasets[name]) if left else Cost(0.0, 0.0, 0.0)
        seconds = [each.compiling, left * each.measuring, left * each.training]
        whole = [total + more for total, more in zip(whole, seconds, strict=True)]
        table.add_row(name, model.name, str(len(cells)), str(len(names)), str(len(names) - left), *_minutes(seconds))
    table.add_section()
    table.add_row("all", "", "", "", "", *_minutes(whole))
    return table


def cost(study: Study, model: Model, dataset: Dataset) -> Cost:
    """What a network of the study takes, from the compilation of its gradient and a few passes, timed."""
    dataset = sweep.part(study, dataset)
    network = sweep.network_of(model, dataset.train_images.shape[1:], dataset.classes)
    params, state = jax.jit(network.init)(key_of(0, "init"))
    few = jnp.asarray(dataset.train_images[: study.measure.ntk_images])
    begin = time.perf_counter()
    slopes = jax.jit(jax.grad(lambda params, x: jnp.sum(network.apply(params, state, x)))).lower(params, few).compile()
    compiled = time.perf_counter() - begin
    gradient = _seconds(lambda: slopes(params, few))
    scored = study.measure.score_per_class * dataset.classes / len(few)
    count = len(dataset.train_labels)
    measured = (study.train.epochs + 1) * min(sweep.MEASURED, count) + len(dataset.test_labels)
    return Cost(
        _COMPILED * compiled,
        gradient * (_PRODUCTS + scored * study.measure.rounds),
        (3 * study.train.epochs * count + measured) * _forward(study, network, dataset, params, state),
    )


def _forward(study: Study, network: Network, dataset: Dataset, params: Params, state: State) -> float:
    """Seconds of a forward pass for each image of a minibatch."""
    images = jnp.asarray(dataset.train_images[: study.train.batch_size])
    forward = jax.jit(network.apply)
    return _seconds(lambda: forward(params, state, images)) / len(images)


def _seconds(call: Callable[[], object]) -> float:
    """Of the second call: the first one compiles."""
    jax.block_until_ready(call())
    begin = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - begin


def _minutes(seconds: list[float]) -> list[str]:
    return [f"{each / 60:.1f}" for each in (*seconds, sum(seconds))]
