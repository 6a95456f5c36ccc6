"""A sweep of pruned networks, side by side in one program, beside the same networks one by one.

`python -m experiments.benchmarks.sweeping` draws 32 networks for images of 8 × 8 × 1, prunes each by SynFlow, trains
each for some epochs as a study does, and evaluates it; everything is compiled before it is timed. The same functions
run once on all networks, or once on each. Images and labels are random, of the digits' shapes.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.base.batching import in_batches, vmap_networks
from experiments.benchmarks import command, processes, timing
from experiments.benchmarks.rows import Row
from experiments.networks.by_name import NETWORKS
from experiments.networks.layers import bind
from experiments.train import training
from experiments.train.recipe import Recipe
from pathjax import pruning, scores

__all__ = ["FULL", "TOY", "Sizes", "measure", "rows"]

_SHAPE = (8, 8, 1)


class Sizes(NamedTuple):
    """Names of networks and copies of each, images and epochs of a training, and SynFlow's rounds and density."""

    networks: tuple[str, ...]
    copies: int
    images: int
    epochs: int
    rounds: int
    density: float


FULL = Sizes(("fc", "conv"), 32, 1280, 2, 20, 0.1)
TOY = Sizes(("fc",), 2, 8, 1, 2, 0.5)
_AIM_ON_ACCELERATORS = 1 / 10
_ACCELERATORS_ALONE = ("conv",)
"""Networks that are left out on CPUs, where convolutions side by side take minutes to compile and a study has none."""


class Sweep(NamedTuple):
    """Seconds of all networks, and the mean of their losses after training."""

    time: float
    loss: float


def rows(sizes: Sizes, repeats: int) -> Iterator[Row]:
    """Each network side by side and one by one."""
    on_cpu = processes.fresh(processes.device).platform == "cpu"
    aim = None if on_cpu else _AIM_ON_ACCELERATORS
    for name in sizes.networks:
        if on_cpu and name in _ACCELERATORS_ALONE:
            continue
        together, alone = processes.in_turn(
            *(functools.partial(measure, name, sizes, at_a_time, repeats) for at_a_time in (None, 1)), repeats=repeats
        )
        timing.check_equal(f"losses of {name}", together.loss, alone.loss)
        work = f"{sizes.copies} pruned networks {name} side by side, pruned and trained for {sizes.epochs} epochs"
        yield Row(work, "s", together.time, alone.time, "one by one", aim_ratio=aim)


def measure(name: str, sizes: Sizes, at_a_time: int | None, repeats: int) -> Sweep:
    """All networks, `at_a_time` in one program."""
    network = NETWORKS[name](_SHAPE, 10)
    keys = jax.random.split(jax.random.key(0), sizes.copies)
    params, state = jax.jit(jax.vmap(network.init))(keys)
    images = jax.random.normal(jax.random.key(1), (sizes.images, *_SHAPE))
    labels = jnp.arange(sizes.images) % 10
    apply = bind(network, jax.tree.map(lambda leaf: leaf[0], state))

    def prune(params: Any) -> Any:
        score = lambda params, key: scores.synflow(apply, params, images[:1])  # noqa: E731
        return pruning.prune(score, params, density=sizes.density, rounds=sizes.rounds)

    pruned = jax.jit(vmap_networks(prune))
    recipe = Recipe(epochs=sizes.epochs, learning_rate=0.01)
    trained = training.trainer(network, (images, labels), (images, labels), recipe)

    def sweep(params: Any, state: Any, keys: jax.Array) -> Any:
        return trained(params, state, pruned(params), keys)

    run = functools.partial(in_batches(sweep, at_a_time), params, state, keys)
    loss = float(np.mean(run().test_loss))  # compiles
    return Sweep(min(timing.seconds(lambda: run().test_loss) for _ in range(repeats)), loss)


if __name__ == "__main__":
    sys.exit(command.alone(__spec__.name))
