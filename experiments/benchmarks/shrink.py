"""What taking out the units that a mask leaves idle saves in time, beside the whole network with zeros in its weights.

`python -m experiments.benchmarks.shrink` prunes networks at initialization by SynFlow, shrinks them and runs both on
the same images, in float32, with batch norm in evaluation mode: parameters, seconds of the outputs and of a gradient
of their sum (least of several, taken in turns), and the largest difference between the outputs.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.benchmarks import timing
from experiments.networks import shrink
from experiments.networks.by_name import NETWORKS
from experiments.networks.layers import Network, bind
from pathjax import masks, pruning, scores

__all__ = ["Cost", "main", "measure"]


class Cost(NamedTuple):
    """Parameters, and the least seconds of the outputs and of a gradient."""

    parameters: int
    forward: float
    gradient: float


def measure(
    network: Network, shape: tuple[int, ...], *, density: float, rounds: int, batch: int, repeats: int
) -> tuple[Cost, Cost, float]:
    """Costs of the whole network and of the smaller one, and the largest difference between their outputs."""
    params, state = network.init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (batch, *shape), jnp.float32)
    score = lambda params, key: scores.synflow(bind(network, state), params, x[:1])  # noqa: E731
    mask = pruning.prune(score, params, density=density, rounds=rounds)
    smaller = shrink.shrink(network, params, state, mask)
    sides = [(network, masks.apply_mask(mask, params), state), (smaller.network, smaller.params, smaller.state)]
    forward = [_forward(side, x) for side in sides]
    gradient = [_gradient(side, x) for side in sides]
    outputs = [run() for run in (*forward, *gradient)]  # compiles
    difference = float(jnp.max(jnp.abs(outputs[0] - outputs[1])))
    seconds = timing.least([*forward, *gradient], repeats)
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(side[1])) for side in sides]
    return Cost(sizes[0], seconds[0], seconds[2]), Cost(sizes[1], seconds[1], seconds[3]), difference


def _forward(side: tuple[Network, Any, Any], x: jax.Array) -> Any:
    network, params, state = side
    compiled = jax.jit(network.apply)
    return lambda: compiled(params, state, x)


def _gradient(side: tuple[Network, Any, Any], x: jax.Array) -> Any:
    network, params, state = side
    compiled = jax.jit(jax.grad(lambda params, state, x: jnp.sum(network.apply(params, state, x))))
    return lambda: compiled(params, state, x)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.shrink", description=__doc__)
    parser.add_argument("--network", nargs="+", default=["lenet_300_100", "vgg_16", "resnet_20"], choices=NETWORKS)
    parser.add_argument("--density", type=float, nargs="+", default=[0.1, 0.02], help="share of the weights kept")
    parser.add_argument("--side", type=int, default=32, help="height and width of the images")
    parser.add_argument("--batch", type=int, default=16, help="examples in a batch")
    parser.add_argument("--rounds", type=int, default=20, help="rounds of SynFlow")
    parser.add_argument("--repeats", type=int, default=3, help="runs of which the least is taken")
    options = parser.parse_args(arguments)
    shape = (options.side, options.side, 3)
    print(f"{timing.machine()}; batch {options.batch}, {options.side} × {options.side} × 3; whole → shrunk")
    for name in options.network:
        for density in options.density:
            whole, small, difference = measure(
                NETWORKS[name](shape, 10),
                shape,
                density=density,
                rounds=options.rounds,
                batch=options.batch,
                repeats=options.repeats,
            )
            print(f"{name}, density {density}: {whole.parameters:,} → {small.parameters:,} parameters")
            for what, before, after in zip(("forward", "gradient"), whole[1:], small[1:], strict=True):
                print(f"  {what:10}{1e3 * before:9.2f} ms → {1e3 * after:9.2f} ms ({before / after:5.2f}× faster)")
            print(f"  outputs differ by at most {difference:.1e}", flush=True)


if __name__ == "__main__":
    main()
