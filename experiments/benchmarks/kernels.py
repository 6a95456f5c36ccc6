"""What finite-width kernels cost, layer by layer, beside neural-tangents' two working methods.

`python -m experiments.benchmarks.kernels` takes a fully connected network, 3 × 512 with 64 inputs, 64 examples and 10
outputs; a small CNN on 16 examples of 16 × 16 × 3; and ResNet-20, batch norm in evaluation mode, on 8 of 32 × 32 × 3;
all in float32, weights from seed 0. For each it gives the time that a compiled kernel takes and the temporary memory
that XLA plans, beside the faster of neural-tangents' methods. Of the first two also the trace over outputs, the kernel
under a mask and that in chunks, beside the whole dense one; and what a product with a kernel costs that is not formed.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import command, processes, timing
from experiments.benchmarks.lifting import NETWORKS
from experiments.benchmarks.rows import Row
from pathjax import ntk

__all__ = ["CNN", "FULL", "MLP", "TOY", "Case", "Sizes", "measure", "rows"]


class MLP(nn.Module):
    """Three hidden layers."""

    width: int = 512
    outputs: int = 10

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """A row of outputs for each example."""
        for _ in range(3):
            x = nn.relu(nn.Dense(self.width)(x))
        return nn.Dense(self.outputs)(x)


class CNN(nn.Module):
    """Two convolutions with a pool between them, and a mean over the image."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Ten outputs for each image."""
        x = nn.avg_pool(nn.relu(nn.Conv(32, (3, 3))(x)), (2, 2), (2, 2))
        return nn.Dense(10)(nn.relu(nn.Conv(32, (3, 3))(x)).mean(axis=(1, 2)))


class Case(NamedTuple):
    """A network and the shape of its batch."""

    network: nn.Module
    shape: tuple[int, ...]

    def build(self) -> tuple[Callable[..., Any], Any, jax.Array]:
        """Its function, weights and batch."""
        x = jax.random.normal(jax.random.key(1), self.shape)
        variables = dict(jax.jit(self.network.init)(jax.random.key(0), x))
        params = variables.pop("params")
        return lambda params, x: self.network.apply({"params": params, **variables}, x), params, x


class Sizes(NamedTuple):
    """Cases, those that have variants too, the density of their masks, and the examples and the chunk of a product."""

    cases: dict[str, Case]
    varied: tuple[str, ...]
    density: float
    examples: int
    chunk: int


FULL = Sizes(
    cases={
        "3×512, 64 examples": Case(MLP(), (64, 64)),
        "CNN, 16 examples": Case(CNN(), (16, 16, 16, 3)),
        "ResNet-20, 8 examples": Case(NETWORKS["ResNet-20"], (8, 32, 32, 3)),
    },
    varied=("3×512, 64 examples", "CNN, 16 examples"),
    density=0.01,
    examples=2000,
    chunk=100,
)
TOY = Sizes({"toy": Case(MLP(4, 2), (6, 5))}, ("toy",), 0.5, 6, 2)

# of our time over that of neural-tangents' best, and of a variant's over the whole dense kernel's
_AIMS = dict(zip(FULL.cases, (1 / 80, 1 / 3, 1 / 3), strict=True))
_VARIANT_AIMS = {
    ("chunks", "3×512, 64 examples"): 2.0,
    ("chunks", "CNN, 16 examples"): 2.0,
    ("masked", "3×512, 64 examples"): 1.0,
    ("traced", "CNN, 16 examples"): 0.7,
}
_VARIANTS = {"traced": "summed over outputs", "masked": "under a mask at density {:g}", "chunks": "in chunks of 4"}
_PEERS = ("jacobian", "products")


class Cost(NamedTuple):
    """Milliseconds of a run, MB that XLA plans, and the norm of the kernel summed over equal outputs."""

    time: float
    planned: float
    norm: float


def rows(sizes: Sizes, repeats: int) -> Iterator[Row]:
    """Time and memory of each case, then its variants, then products."""
    for name, case in sizes.cases.items():
        ways = ("layerwise", *_PEERS, *(_VARIANTS if name in sizes.varied else ()))
        measurements = [functools.partial(measure, case, way, density=sizes.density, repeats=repeats) for way in ways]
        costs = dict(zip(ways, processes.in_turn(*measurements, repeats=repeats), strict=True))
        whole, best = costs["layerwise"], min(costs[way] for way in _PEERS)
        timing.check_equal(f"kernels of {name}", *(cost.norm for way, cost in costs.items() if way != "masked"))
        work, beside = f"NTK layer by layer, {name}", "neural-tangents' best"
        yield Row(work, "ms", whole.time, best.time, beside, aim_ratio=_AIMS.get(name))
        yield Row(
            f"{work}: planned memory", "MB", whole.planned, best.planned, beside, aim_ratio=1 if name in _AIMS else None
        )
        for way in ways[3:]:
            yield Row(
                f"{work}, {_VARIANTS[way].format(sizes.density)}",
                "ms",
                costs[way].time,
                whole.time,
                "whole and dense",
                aim_ratio=_VARIANT_AIMS.get((way, name)),
                note=f"{costs[way].planned:.1f} MB planned, {whole.planned:.1f} MB whole and dense",
            )
    products = [functools.partial(product, sizes.examples, chunk, repeats=repeats) for chunk in (sizes.chunk, None)]
    chunked, whole = processes.in_turn(*products, repeats=repeats)
    timing.check_equal("products", chunked.norm, whole.norm)
    work = f"product with the NTK of {sizes.examples:,} examples, not formed, in chunks of {sizes.chunk}"
    yield Row(work, "ms", chunked.time, whole.time, "in one chunk")
    yield Row(f"{work}: planned memory", "MB", chunked.planned, whole.planned, "in one chunk")


def measure(case: Case, way: str, *, density: float, repeats: int) -> Cost:
    """The kernel of a case in one way."""
    apply, params, x = case.build()
    options: dict[str, Any] = {
        "traced": {},
        "masked": {"mask": _mask(params, density)},
        "chunks": {"batch_size": 4},
    }.get(way, {"method": way})
    function = ntk.empirical_trace if way == "traced" else ntk.empirical
    built = timing.build(lambda params, x: function(apply, params, x, **options), params, x)
    time = min(timing.seconds(built.run, params, x) for _ in range(3 * repeats))
    kernel = built.run(params, x)
    traced = kernel if way == "traced" else jnp.trace(kernel, axis1=2, axis2=3)
    return Cost(1e3 * time, built.planned, float(jnp.linalg.norm(traced)))


def product(examples: int, chunk: int | None, *, repeats: int) -> Cost:
    """A product with the kernel of 3 × 512, which would take 1.6 GB for 2,000 examples."""
    apply, params, x = Case(MLP(), (examples, 64)).build()
    vector = jax.random.normal(jax.random.key(2), (examples, 10))

    def multiply(params: Any, x: jax.Array, vector: jax.Array) -> Any:
        return ntk.operator(apply, params, x, batch_size=chunk).matvec(vector)

    built = timing.build(multiply, params, x, vector)
    time = min(timing.seconds(built.run, params, x, vector) for _ in range(3 * repeats))
    return Cost(1e3 * time, built.planned, float(jnp.linalg.norm(built.run(params, x, vector))))


def _mask(params: Any, density: float) -> Any:
    """Keeps a random part of the kernels, and all biases and norms."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: (rng.random(leaf.shape) < density) | (leaf.ndim < 2), params)


if __name__ == "__main__":
    sys.exit(command.alone(__spec__.name))
