"""What taking out the units that a mask leaves idle saves in time, beside the whole network with zeros in its weights.

`python -m experiments.benchmarks.shrink` prunes networks at initialization by SynFlow, shrinks them and runs both on
the same images of 32 × 32 × 3, in float32, with batch norm in evaluation mode: outputs, and a gradient of their sum.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.benchmarks import command, processes, timing
from experiments.benchmarks.rows import Row
from experiments.networks import shrink
from experiments.networks.by_name import NETWORKS
from experiments.networks.layers import bind
from pathjax import masks, pruning, scores

__all__ = ["FULL", "TOY", "Sizes", "measure", "rows"]


class Sizes(NamedTuple):
    """Names of networks, the share of weights that is kept, the rounds of SynFlow, and the batch and its side."""

    networks: tuple[str, ...]
    density: float
    rounds: int
    batch: int
    side: int


FULL = Sizes(("lenet_300_100", "vgg_16", "resnet_20"), 0.02, 20, 16, 32)
TOY = Sizes(("lenet_300_100",), 0.02, 2, 2, 4)


class Cost(NamedTuple):
    """Parameters, milliseconds of the outputs and of a gradient, and the norm of the outputs."""

    parameters: int
    forward: float
    gradient: float
    norm: float


def rows(sizes: Sizes, repeats: int) -> Iterator[Row]:
    """Both passes of each network, shrunk and whole."""
    for name in sizes.networks:
        small, whole = processes.in_turn(
            *(functools.partial(measure, name, sizes, shrinks, repeats) for shrinks in (True, False)), repeats=repeats
        )
        timing.check_equal(f"outputs of {name}", small.norm, whole.norm)
        work = f"{name} at density {sizes.density:g}, shrunk"
        note = f"{small.parameters:,} of {whole.parameters:,} parameters are left"
        yield Row(f"{work}: outputs", "ms", small.forward, whole.forward, "with zeros", note=note)
        yield Row(f"{work}: gradient", "ms", small.gradient, whole.gradient, "with zeros")


def measure(name: str, sizes: Sizes, shrinks: bool, repeats: int) -> Cost:
    """The pruned network as it is, or without its idle units."""
    shape = (sizes.side, sizes.side, 3)
    network = NETWORKS[name](shape, 10)
    params, state = network.init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (sizes.batch, *shape), jnp.float32)

    def score(params: Any, key: Any) -> Any:
        return scores.synflow(bind(network, state), params, x[:1])

    mask = pruning.prune(score, params, density=sizes.density, rounds=sizes.rounds)
    params = masks.apply_mask(mask, params)
    if shrinks:
        network, params, state, *_ = shrink.shrink(network, params, state, mask)
    forward = timing.build(network.apply, params, state, x).run
    gradient = timing.build(jax.grad(lambda *given: jnp.sum(network.apply(*given))), params, state, x).run
    forward_time, gradient_time = (
        1e3 * min(timing.seconds(run, params, state, x) for _ in range(5 * repeats)) for run in (forward, gradient)
    )
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    return Cost(size, forward_time, gradient_time, float(jnp.linalg.norm(forward(params, state, x))))


if __name__ == "__main__":
    sys.exit(command.alone(__spec__.name))
