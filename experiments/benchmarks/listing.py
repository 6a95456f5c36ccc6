"""What it costs to list ten million paths, and to compute their values.

`python -m experiments.benchmarks.listing` lists the paths of a fully connected network without biases, in float32. The
limit is one copy of the arrays that the list consists of. The sum of the values is checked against the lifted sum.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import command, processes, timing
from experiments.benchmarks.rows import Row
from pathjax import enumeration, paths

__all__ = ["FULL", "TOY", "Listing", "apply", "measure", "network", "rows"]

FULL = (100, 100, 100, 10)
TOY = (3, 4, 5)
"""Units of each layer, the inputs first."""

_AIMS: dict[tuple[int, ...], float] = {FULL: 5.0}


class Listing(NamedTuple):
    """Seconds to list, to compute values first and later and to copy the list; GB held; log Σ|v_p| from both."""

    listed: float
    first: float
    later: float
    copied: float
    peak: float
    from_list: float
    lifted: float


def rows(sizes: tuple[int, ...], repeats: int) -> Iterator[Row]:
    """Listing, values and memory."""
    (cost,) = processes.in_turn(functools.partial(measure, sizes), repeats=repeats)
    timing.check_equal("sums over paths", cost.from_list, cost.lifted)
    what = f"{math.prod(sizes):,} paths of a fully connected network of widths {' '.join(map(str, sizes))}"
    yield Row(f"list {what}", "s", cost.listed, limit=cost.copied, bound="a copy of the list", aim=_AIMS.get(sizes))
    yield Row(f"values of {what}, first call", "s", cost.first)
    yield Row(f"values of {what}, later calls", "s", cost.later)
    yield Row(f"memory of the process with {what} and their values", "GB", cost.peak)


def measure(widths: Sequence[int]) -> Listing:
    """List the paths of one network and compute their values, twice."""
    params, x = network(widths, seed=0)
    listed: list[enumeration.Paths] = []

    def enumerate_paths() -> Any:
        listed.append(enumeration.enumerate_paths(apply, params, x, limit=math.prod(widths)))
        return jax.tree.leaves(listed[0])

    listing = timing.seconds(enumerate_paths)
    first, later = timing.first_and_later(lambda: enumeration.path_values(listed[0], params), 2)
    peak = timing.peak()
    values = np.asarray(enumeration.path_values(listed[0], params), np.float64)
    columns = [np.asarray(leaf) for leaf in jax.tree.leaves(listed[0])]
    copied = timing.seconds(lambda: [column.copy() for column in columns])
    lifted = float(paths.log_path_norm(apply, params, x))
    return Listing(listing, first, later, copied, peak, float(np.log(np.sum(np.abs(values)))), lifted)


def apply(params: Any, x: jax.Array) -> jax.Array:
    """A fully connected ReLU network without biases."""
    for kernel in params[:-1]:
        x = jax.nn.relu(x @ kernel)
    return x @ params[-1]


def network(widths: Sequence[int], *, seed: int) -> tuple[list[jax.Array], jax.Array]:
    """Kaiming-normal kernels of a network of these widths, the first that of its input, and one input."""
    rng = np.random.default_rng(seed)
    kernels = [
        jnp.asarray(rng.normal(size=(i, o)) * math.sqrt(2 / i), jnp.float32)
        for i, o in zip(widths[:-1], widths[1:], strict=True)
    ]
    return kernels, jnp.ones((1, widths[0]), jnp.float32)


if __name__ == "__main__":
    sys.exit(command.alone(__spec__.name))
