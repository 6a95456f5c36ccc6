"""What the Path Kernel's spectrum costs beside a gradient of the network itself.

`python -m experiments.benchmarks.spectrum` takes ResNet-20 on images of 32 × 32 × 3, in float32: the Path Kernel with
its ten largest eigenpairs, and its density of states, the first time in a process and later. ResNet-18 takes many
minutes: `--long`. "Gradients" are times over that of one gradient of the network's summed outputs at one example.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.benchmarks import command, processes, timing
from experiments.benchmarks.lifting import NETWORKS, ResNet, applied
from experiments.benchmarks.rows import Row
from pathjax import path_kernel

__all__ = ["FULL", "LONG", "TOY", "Sizes", "measure", "rows"]

_TOLERANCE = 1e-4
_RANK = 10
_SPACE = 20
"""Vectors that the search holds beside the eigenpairs."""


class Sizes(NamedTuple):
    """The networks, the side of the images, the most rounds of processes, and samples and order of the density."""

    networks: dict[str, ResNet]
    side: int
    rounds: int
    samples: int = 4
    order: int = 20


FULL = Sizes({"ResNet-20": NETWORKS["ResNet-20"]}, 32, 3)
LONG = Sizes({"ResNet-18": NETWORKS["ResNet-18"]}, 32, 1)
TOY = Sizes({"toy": ResNet((1,), 4, True)}, 4, 1, 2, 3)

_FIRST_CALL_AIMS = {("eigenpairs", "ResNet-20"): 6.0, ("density", "ResNet-20"): 6.0}
_GRADIENTS_AIMS = {("eigenpairs", "ResNet-18"): 1200.0}
_MEMORY_AIMS = {("eigenpairs", "ResNet-18"): 3.5}


class Search(NamedTuple):
    """Seconds of the first call, of later ones and of a gradient; GB held; what is missed, over λ_max or Σλ."""

    first: float
    later: float
    gradient: float
    peak: float
    error: float


def rows(sizes: Sizes, repeats: int) -> Iterator[Row]:
    """For each network and task its first call, later ones, the same in gradients, and memory."""
    tasks = {
        "eigenpairs": f"{_RANK} largest eigenpairs of Π to {_TOLERANCE:g}",
        "density": f"density of states of Π, {sizes.samples} × {sizes.order} products",
    }
    for name, network in sizes.networks.items():
        for task, said in tasks.items():
            (cost,) = processes.in_turn(
                functools.partial(measure, network, task, sizes, repeats), repeats=min(repeats, sizes.rounds)
            )
            work = f"{said}, {name}"
            missed = f"the largest residual is {cost.error:.1e} λ_max" if task == "eigenpairs" else ""
            yield Row(f"{work}, first call", "s", cost.first, note=missed, aim=_FIRST_CALL_AIMS.get((task, name)))
            yield Row(f"{work}, later calls", "s", cost.later)
            gradients = cost.later / cost.gradient
            yield Row(
                f"{work}, later calls over a gradient", "gradients", gradients, aim=_GRADIENTS_AIMS.get((task, name))
            )
            yield Row(f"{work}: memory of the process", "GB", cost.peak, aim=_MEMORY_AIMS.get((task, name)))


def measure(network: ResNet, task: str, sizes: Sizes, repeats: int) -> Search:
    """One task on one network, the kernel made anew in each call."""
    apply, params, x = applied(network, batch=1, side=sizes.side)
    gradient = timing.build(jax.grad(lambda params: jnp.sum(apply(params, x))), params).run
    gradient_seconds = min(timing.seconds(gradient, params) for _ in range(10 * repeats))

    def eigenpairs() -> path_kernel.Eigenpairs:
        kernel = path_kernel.path_kernel(apply, params, x)
        return path_kernel.top_eigenpairs(kernel, _RANK, key=jax.random.key(0), tolerance=_TOLERANCE, order=_SPACE)

    def density() -> Any:
        kernel = path_kernel.path_kernel(apply, params, x)
        return path_kernel.spectral_density(kernel, order=sizes.order, samples=sizes.samples, key=jax.random.key(1))

    runs: dict[str, Callable[[], Any]] = {"eigenpairs": eigenpairs, "density": density}
    first, later = timing.first_and_later(runs[task], min(repeats, sizes.rounds))
    peak = timing.peak()
    error = float(jnp.max(eigenpairs().residuals)) if task == "eigenpairs" else 0.0
    return Search(first, later, gradient_seconds, peak, error)


if __name__ == "__main__":
    sys.exit(command.alone(__spec__.name))
