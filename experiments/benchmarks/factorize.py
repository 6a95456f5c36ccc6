"""What the factorization of an NTK costs beside one gradient of the network on the same batch.

`python -m experiments.benchmarks.factorize` takes a small convolutional network on images of 8 × 8 × 1 (the digits'
shape), in float32; `--long` takes ResNet-20 on images of 32 × 32 × 3.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.benchmarks import command, processes, timing
from experiments.benchmarks.kernels import Case
from experiments.benchmarks.lifting import NETWORKS
from experiments.benchmarks.rows import Row
from pathjax import factorization

__all__ = ["FULL", "LONG", "TOY", "Sizes", "SmallConv", "measure", "rows"]


class SmallConv(nn.Module):
    """Two convolutions with biases, the second of stride 2, and a dense layer."""

    width: int = 16

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Ten outputs for each image."""
        x = nn.relu(nn.Conv(self.width, (3, 3))(x))
        x = nn.relu(nn.Conv(2 * self.width, (3, 3), (2, 2))(x))
        return nn.Dense(10)(x.reshape(len(x), -1))


class Sizes(NamedTuple):
    """The cases by what they are called, the modes that are kept, and the most rounds of processes."""

    cases: dict[str, Case]
    rank: int
    rounds: int


FULL = Sizes({"a small CNN, 64 images": Case(SmallConv(), (64, 8, 8, 1))}, 32, 3)
LONG = Sizes({"ResNet-20, 16 images": Case(NETWORKS["ResNet-20"], (16, 32, 32, 3))}, 32, 1)
TOY = Sizes({"toy": Case(SmallConv(2), (3, 4, 4, 1))}, 2, 1)


class Cost(NamedTuple):
    """Seconds to compile and to run, and GB held by the process."""

    compile: float
    run: float
    peak: float


def rows(sizes: Sizes, repeats: int) -> Iterator[Row]:
    """Seconds to run beside a gradient, to compile, and memory."""
    for name, case in sizes.cases.items():
        measurements = [functools.partial(measure, case, what, sizes.rank, repeats) for what in ("modes", "gradient")]
        ours, gradient = processes.in_turn(*measurements, repeats=min(repeats, sizes.rounds))
        work = f"factorization of rank {sizes.rank}, {name}"
        yield Row(work, "s", ours.run, gradient.run, "one gradient of the batch", note=f"{ours.peak:.2f} GB held")
        yield Row(f"{work}: compile", "s", ours.compile, gradient.compile, "one gradient of the batch")


def measure(case: Case, what: str, rank: int, repeats: int) -> Cost:
    """The factorization, or the gradient, as one compiled program."""
    apply, params, x = case.build()
    functions: dict[str, Callable[..., Any]] = {
        "gradient": jax.grad(lambda params, x: jnp.sum(apply(params, x))),
        "modes": lambda params, x: factorization.factorize(apply, params, x, rank=rank, key=jax.random.key(2)),
    }
    built = timing.build(functions[what], params, x)
    run = min(timing.seconds(built.run, params, x) for _ in range(repeats))
    return Cost(built.compile, run, timing.peak())


if __name__ == "__main__":
    sys.exit(command.alone(__spec__.name))
