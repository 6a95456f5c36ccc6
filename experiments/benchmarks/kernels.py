"""What finite-width kernels cost, layer by layer, beside neural-tangents' two working methods.

`python -m experiments.benchmarks.kernels` takes a fully connected network, 3 × 512 with 64 inputs, 64 examples and 10
outputs; a small CNN on 16 examples of 16 × 16 × 3; and ResNet-20, batch norm in evaluation mode, on 8 of 32 × 32 × 3;
all in float32, weights from seed 0. For each it gives the seconds that a compiled kernel takes (least of several, taken
in turns) and the temporary memory that XLA plans, of every method, of the trace over outputs, and of masks that keep a
part of the weights. Then how the seconds grow with examples, outputs and width, as fitted exponents, and what a product
with a kernel costs that is not formed.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import numpy as np

from experiments.benchmarks import timing
from experiments.benchmarks.lifting import NETWORKS
from pathjax import ntk

__all__ = ["CNN", "MLP", "Case", "main", "measure"]


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


class Cost(NamedTuple):
    """Seconds to run, and bytes of temporary memory."""

    run: float
    memory: int


CASES = {
    "MLP 3×512, 64 examples": Case(MLP(), (64, 64)),
    "CNN, 16 examples": Case(CNN(), (16, 16, 16, 3)),
    "ResNet-20, 8 examples": Case(NETWORKS["ResNet-20"], (8, 32, 32, 3)),
}
METHODS: dict[str, dict[str, Any]] = {
    "layerwise": {},
    "jacobian": {"method": "jacobian"},
    "products": {"method": "products"},
}
DENSITIES = (0.5, 0.1, 0.01)


def measure(case: Case, options: dict[str, dict[str, Any]], repeats: int) -> dict[str, Cost]:
    """Costs of the kernel with each of these options of `ntk.empirical`, or of the function that they name."""
    apply, params, x = case.build()

    def kernel(params: Any, x: Any, *, function: Any = ntk.empirical, **given: Any) -> Any:
        return function(apply, params, x, **given)

    programs = {
        name: jax.jit(functools.partial(kernel, **given)).lower(params, x).compile() for name, given in options.items()
    }
    runs = timing.least([functools.partial(program, params, x) for program in programs.values()], repeats + 1)
    memory = [cast(Any, program.memory_analysis()).temp_size_in_bytes for program in programs.values()]
    return {name: Cost(run, size) for name, run, size in zip(programs, runs, memory, strict=True)}


def _masks(case: Case) -> dict[str, dict[str, Any]]:
    """Options that keep a random part of the weights, and all of the biases and norms."""
    _, params, _ = case.build()
    rng = np.random.default_rng(0)
    return {
        f"density {density}": {
            "mask": jax.tree.map(lambda leaf, d=density: (rng.random(leaf.shape) < d) | (leaf.ndim < 2), params)
        }
        for density in DENSITIES
    }


def _lines(costs: dict[str, Cost]) -> list[str]:
    peer = min((costs[name] for name in ("jacobian", "products") if name in costs), default=None)
    return [
        f"  {name:13} {1e3 * cost.run:9.2f} ms   {cost.memory / 1e6:8.1f} MB"
        + (f"   {peer.run / cost.run:7.2f}× the speed of neural-tangents' best" if peer else "")
        for name, cost in costs.items()
    ]


SWEEPS: dict[str, tuple[Callable[[int], Case], tuple[int, ...]]] = {
    "examples": (lambda n: Case(MLP(), (n, 64)), (8, 16, 32, 64)),
    "outputs": (lambda o: Case(MLP(outputs=o), (16, 64)), (2, 5, 10, 20)),
    "width": (lambda width: Case(MLP(width=width), (16, 64)), (128, 256, 512, 1024)),
}


def _growth(name: str, repeats: int, methods: dict[str, dict[str, Any]]) -> list[str]:
    """One line for each method: seconds along a sweep, and the exponent of a power law through them."""
    case, sizes = SWEEPS[name]
    costs = [measure(case(size), methods, repeats) for size in sizes]
    lines = [f"MLP over {name} {' '.join(map(str, sizes))}"]
    for method in methods:
        runs = [cost[method].run for cost in costs]
        (slope,) = timing.slopes(sizes, [[run] for run in runs])
        lines.append(f"  {method:13} {'  '.join(f'{1e3 * run:8.2f}' for run in runs)} ms   exponent {slope:.2f}")
    return lines


def _products(repeats: int) -> list[str]:
    """One line for each size of chunks: a product with a kernel of 20,000 rows, which would take 1.6 GB."""
    apply, params, x = Case(MLP(), (2000, 64)).build()
    vector = jax.random.normal(jax.random.key(2), (2000, 10))
    lines = ["MLP 3×512, 2000 examples: Θ v, without Θ"]
    for size in (None, 100):
        program = (
            jax.jit(lambda params, x, v, c=size: ntk.operator(apply, params, x, batch_size=c).matvec(v))
            .lower(params, x, vector)
            .compile()
        )
        (run,) = timing.least([functools.partial(program, params, x, vector)], repeats + 1)
        memory = cast(Any, program.memory_analysis()).temp_size_in_bytes
        name = "whole" if size is None else f"chunks of {size}"
        lines.append(f"  {name:13} {1e3 * run:9.2f} ms   {memory / 1e6:8.1f} MB")
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.kernels", description=__doc__)
    parser.add_argument("--case", nargs="*", default=list(CASES), choices=CASES, metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--sweep", nargs="*", default=list(SWEEPS), choices=SWEEPS, help="what grows")
    parser.add_argument("--repeats", type=int, default=3, help="runs of which the least is taken")
    options = parser.parse_args(arguments)
    print(f"{timing.machine()}; 10 outputs, float32")
    for name in options.case:
        print(name)
        variants: dict[str, dict[str, Any]] = {
            "traced": {"function": ntk.empirical_trace},
            "chunks of 4": {"batch_size": 4},
            **_masks(CASES[name]),
        }
        print(*_lines(measure(CASES[name], {**METHODS, **variants}, options.repeats)), sep="\n", flush=True)
    for name in options.sweep:
        # of neural-tangents' methods the one that is the faster for these networks
        methods = {name: METHODS[name] for name in ("layerwise", "products")}
        print(*_growth(name, options.repeats, methods), sep="\n", flush=True)
    print(*_products(options.repeats), sep="\n", flush=True)


if __name__ == "__main__":
    main()
