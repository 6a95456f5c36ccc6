"""What the factorization of an NTK costs beside one gradient of the network, and how it grows with the batch.

`python -m experiments.benchmarks.factorize` takes a small convolutional network on images of 8 × 8 × 1 (the digits'
shape) and ResNet-20 on images of 32 × 32 × 3, in float32, with batch norm in evaluation mode. For each batch it
measures `factorization.factorize` against the gradient of the summed outputs on that batch, each compiled and run in
turns, and fits the slope of their times over the batch in logarithms. Each network has a process of its own, so that
the peak memory is its factorization's.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.benchmarks import timing
from experiments.benchmarks.lifting import NETWORKS
from pathjax import factorization

__all__ = ["Cost", "SmallConv", "main", "measure"]


class SmallConv(nn.Module):
    """Two convolutions with biases, the second of stride 2, and a dense layer."""

    width: int = 16

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Ten outputs for each image."""
        x = nn.relu(nn.Conv(self.width, (3, 3))(x))
        x = nn.relu(nn.Conv(2 * self.width, (3, 3), (2, 2))(x))
        return nn.Dense(10)(x.reshape(len(x), -1))


CASES: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "small CNN": (SmallConv(), (8, 8, 1)),
    "ResNet-20": (NETWORKS["ResNet-20"], (32, 32, 3)),
}


class Cost(NamedTuple):
    """Seconds for one gradient of a batch, for its factorization and to compile that; the peak of memory so far, GB."""

    gradient: float
    factorize: float
    compile: float
    peak: float


def measure(network: nn.Module, shape: tuple[int, ...], *, batch: int, rank: int, repeats: int) -> Cost:
    """Least times of some runs in turns."""
    x = jax.random.normal(jax.random.key(1), (batch, *shape), jnp.float32)
    variables = jax.jit(network.init)(jax.random.key(0), x)
    params, statistics = variables["params"], {name: of for name, of in variables.items() if name != "params"}

    def apply(params: Any, x: jax.Array) -> Any:
        return network.apply({"params": params, **statistics}, x)

    def factorize(params: Any, x: jax.Array) -> factorization.Factorization:
        return factorization.factorize(apply, params, x, rank=rank, key=jax.random.key(2))

    gradient = jax.jit(jax.grad(lambda params, x: jnp.sum(apply(params, x)))).lower(params, x).compile()
    begin = time.perf_counter()
    compiled = jax.jit(factorize).lower(params, x).compile()
    built = time.perf_counter() - begin
    plain, factorized = timing.least([lambda: gradient(params, x), lambda: compiled(params, x)], repeats)
    return Cost(plain, factorized, built, timing.peak())


def _report(name: str, batches: Sequence[int], rank: int, repeats: int) -> None:
    network, shape = CASES[name]
    size = " × ".join(map(str, shape))
    print(f"{name}, {size}, rank {rank}, float32, weights from seed 0; {timing.peak():.2f} GB before", flush=True)
    costs = []
    for batch in batches:
        costs.append(cost := measure(network, shape, batch=batch, rank=rank, repeats=repeats))
        print(
            f"  batch {batch:4}   gradient {1e3 * cost.gradient:8.1f} ms   factorize {cost.factorize:7.2f} s "
            f"({cost.factorize / cost.gradient:6.0f} gradients)   compile {cost.compile:5.1f} s   "
            f"peak {cost.peak:.2f} GB",
            flush=True,
        )
    if len(batches) > 1:
        gradient, factorize = timing.slopes(batches, [[cost.gradient, cost.factorize] for cost in costs])
        print(f"  growth with the batch: gradient ~ n^{gradient:.2f}, factorize ~ n^{factorize:.2f}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print, each network in a fresh process."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.factorize", description=__doc__)
    parser.add_argument("--batch", type=int, nargs="+", default=[16, 32, 64], help="examples, from few to many")
    parser.add_argument("--rank", type=int, default=32, help="modes")
    parser.add_argument("--repeats", type=int, default=2, help="runs of which the least is taken")
    parser.add_argument("--network", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--here", action="store_true", help="measure in this process")
    options = parser.parse_args(arguments)
    if not options.here:
        print(timing.machine(), flush=True)
        given = ["--batch", *map(str, options.batch), "--rank", str(options.rank), "--repeats", str(options.repeats)]
        for name in options.network:
            command = [sys.executable, "-m", __spec__.name, "--here", *given, "--network", name]
            subprocess.run(command, check=True)
        return
    for name in options.network:
        _report(name, options.batch, options.rank, options.repeats)


if __name__ == "__main__":
    main()
