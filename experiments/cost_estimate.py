"""What a study would compute, and about how long that takes on this machine."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Collection
from typing import NamedTuple

import jax
import jax.numpy as jnp
from rich.table import Table

from experiments.base.seeds import key_of
from experiments.data.loading import Dataset
from experiments.networks.layers import Network, State
from experiments.records.trial import Name
from experiments.study import Model, Study
from experiments.sweep import Group
from experiments.workbench import LOSS_IMAGES, network_of
from pathjax.types import Params

__all__ = ["Cost", "cost", "plan"]

_COMPILATIONS = 20
"""Compiling all programs of a network takes as long as this many compilations of its gradient, within a factor of 2."""

_GRADIENTS = 100
"""Measuring a network without scores takes as long as this many of its gradients on the images of Θ."""


class Cost(NamedTuple):
    """Estimated seconds to compile the programs of a network, and to measure and to train it with one mask."""

    compiling: float
    measuring: float
    training: float


def plan(study: Study, datasets: dict[str, Dataset], kept: Collection[Name]) -> Table:
    """A table of what would run, and about how many minutes it would take on this machine."""
    columns = ("data", "model", "cells", "networks", "kept", "compiling", "measuring", "training", "all")
    table = Table(*columns, title="What would run, and about how many minutes it takes")
    in_all = [0.0] * len(Cost._fields)
    for name, model in itertools.product(study.data, study.model):
        cells = tuple(study.cells)
        names = Group(name, model, cells).names(range(study.seeds))
        left = len(set(names) - set(kept))
        each = cost(study, model, datasets[name]) if left else Cost(0.0, 0.0, 0.0)
        seconds = [each.compiling, left * each.measuring, left * each.training]
        in_all = [total + more for total, more in zip(in_all, seconds, strict=True)]
        table.add_row(name, model.name, str(len(cells)), str(len(names)), str(len(names) - left), *_minutes(seconds))
    table.add_section()
    table.add_row("all", "", "", "", "", *_minutes(in_all))
    return table


def cost(study: Study, model: Model, dataset: Dataset) -> Cost:
    """An estimate from timing the compilation of the network's gradient and a few passes."""
    dataset = dataset.first(study.train_images, study.test_images)
    network = network_of(model, dataset.train_images.shape[1:], dataset.classes)
    params, state = jax.jit(network.init)(key_of(0, "init"))
    ntk_images = jnp.asarray(dataset.train_images[: study.measure.ntk_images])
    begin = time.perf_counter()
    gradient_of = (
        jax.jit(jax.grad(lambda params, x: jnp.sum(network.apply(params, state, x))))
        .lower(params, ntk_images)
        .compile()
    )
    compiled = time.perf_counter() - begin
    gradient = _seconds(lambda: gradient_of(params, ntk_images))
    scored = study.measure.score_per_class * dataset.classes / len(ntk_images)
    count = len(dataset.train_labels)
    measured = (study.train.epochs + 1) * min(LOSS_IMAGES, count) + len(dataset.test_labels)
    return Cost(
        _COMPILATIONS * compiled,
        gradient * (_GRADIENTS + scored * study.measure.rounds),
        (3 * study.train.epochs * count + measured) * _forward(study, network, dataset, params, state),
    )


def _forward(study: Study, network: Network, dataset: Dataset, params: Params, state: State) -> float:
    """Seconds of a forward pass for each image of a minibatch."""
    images = jnp.asarray(dataset.train_images[: study.train.batch_size])
    forward = jax.jit(network.apply)
    return _seconds(lambda: forward(params, state, images)) / len(images)


def _seconds(call: Callable[[], object]) -> float:
    """Seconds of the second call; the first one compiles."""
    jax.block_until_ready(call())
    begin = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - begin


def _minutes(seconds: list[float]) -> list[str]:
    return [f"{each / 60:.1f}" for each in (*seconds, sum(seconds))]
