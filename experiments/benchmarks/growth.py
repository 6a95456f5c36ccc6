"""How costs grow with weights, depth, examples, outputs, rank and rounds, with fitted exponents.

`python -m experiments.benchmarks.growth` takes fully connected networks in float32. Each cost is measured at four
sizes, and beside it a gradient of the network on the same batch, or for rounds one gradient in each. The page of the
documentation draws both.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.benchmarks import command, listing, processes, timing
from experiments.benchmarks.rows import Curve, Row
from pathjax import factorization, ntk, path_kernel, pruning, scores

__all__ = ["FULL", "TOY", "Sizes", "measure", "rows"]

Sizes = dict[str, tuple[int, int, int, int]]
"""For each thing that grows its four sizes."""

FULL: Sizes = {
    "width": (128, 256, 512, 1024),
    "depth": (4, 8, 16, 32),
    "examples": (8, 16, 32, 64),
    "outputs": (2, 5, 10, 20),
    "rank": (4, 8, 16, 32),
    "rounds": (10, 20, 40, 80),
}
TOY: Sizes = {
    "width": (2, 3, 4, 5),
    "outputs": (1, 2, 3, 4),
    "rounds": (1, 2, 3, 4),
}


class Times(NamedTuple):
    """Seconds at four sizes, from small to large."""

    smallest: float
    small: float
    large: float
    largest: float


class Problem(NamedTuple):
    """A network's widths, the examples, and what is computed on it."""

    widths: Sequence[int]
    examples: int
    compute: Callable[[Any, jax.Array], Any]
    gradients: int = 1


def rows(sizes: Sizes, repeats: int) -> Iterator[Row]:
    """One exponent for each thing that grows."""
    for over, points in sizes.items():
        ours, plain = processes.in_turn(
            *(functools.partial(measure, over, points, way, repeats) for way in ("ours", "gradient")), repeats=repeats
        )
        grown = [_weights(size) for size in points] if over == "width" else list(points)
        over = "weights" if over == "width" else over
        slope, plain_slope = timing.slopes(grown, [*zip(ours, plain, strict=True)])
        yield Row(
            f"exponent of {_THINGS[over]} over {over}",
            "",
            slope,
            note=f"from {grown[0]:,} to {grown[-1]:,}; that of the gradient: {plain_slope:.2f}",
            curve=Curve(_THINGS[over], over, grown, list(ours), list(plain)),
        )


_THINGS = {
    "weights": "a product with G",
    "depth": "a product with G",
    "examples": "the NTK",
    "outputs": "the NTK",
    "rank": "the factorization",
    "rounds": "SynFlow",
}


def measure(over: str, sizes: Sequence[int], way: str, repeats: int) -> Times:
    """Seconds at all sizes, of what is computed or of the gradients beside it."""
    return Times(*(_seconds(_problem(over, size), way, repeats) for size in sizes))


def _weights(width: int) -> int:
    return 4 * width**2


def _problem(over: str, size: int) -> Problem:
    if over == "width":
        return Problem([size] * 5, 1, _product)
    if over == "depth":
        return Problem([256] * (size + 1), 1, _product)
    if over in ("examples", "outputs"):
        outputs, examples = (size, 16) if over == "outputs" else (10, size)
        return Problem([64, 256, 256, outputs], examples, functools.partial(ntk.empirical, listing.apply))
    if over == "rank":
        return Problem([64, 128, 128, 10], 16, functools.partial(_factorized, rank=size))
    return Problem([64, 256, 256, 10], 1, functools.partial(_pruned, rounds=size), gradients=size)


def _product(params: Any, x: jax.Array) -> Any:
    return path_kernel.path_kernel(listing.apply, params, x).matvec(params)


def _factorized(params: Any, x: jax.Array, *, rank: int) -> Any:
    return factorization.factorize(listing.apply, params, x, rank=rank, key=jax.random.key(2))


def _pruned(params: Any, x: jax.Array, *, rounds: int) -> Any:
    score = lambda params, key: scores.synflow(listing.apply, params, x)  # noqa: E731
    return pruning.prune(score, params, density=0.01, rounds=rounds)


def _seconds(problem: Problem, way: str, repeats: int) -> float:
    params, _ = listing.network(problem.widths, seed=0)
    x = jax.random.normal(jax.random.key(1), (problem.examples, problem.widths[0]), jnp.float32)
    if way == "ours":
        run = problem.compute if problem.gradients > 1 else timing.build(problem.compute, params, x).run
        return timing.first_and_later(functools.partial(run, params, x), 3 * repeats)[1]
    gradient = timing.build(jax.grad(lambda params, x: jnp.sum(listing.apply(params, x))), params, x).run

    def all_gradients() -> list[Any]:
        return [jax.block_until_ready(gradient(params, x)) for _ in range(problem.gradients)]

    return timing.first_and_later(all_gradients, 3 * repeats)[1]


if __name__ == "__main__":
    sys.exit(command.alone(__spec__.name))
