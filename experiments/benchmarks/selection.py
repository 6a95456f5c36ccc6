"""What it costs to select the largest of many scores, beside partitions and sorts of the same scores.

`python -m experiments.benchmarks.selection` takes float32 scores of the shapes of ResNet-20 and of ResNet-18, 11.2
million, and keeps a hundredth: `masks.keep_largest`, as it is called and as one program under `jit`, and
`masks.from_scores` by layers, beside NumPy's `partition` and JAX's `sort`, which find the threshold alone, of scores
that are already in one vector.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import command, lifting, processes, timing
from experiments.benchmarks.lifting import ResNet
from experiments.benchmarks.rows import Row
from pathjax import masks

__all__ = ["FULL", "TOY", "Sizes", "measure", "rows", "scores_of"]


class Sizes(NamedTuple):
    """The networks whose shapes the scores have, and the share that is kept."""

    networks: dict[str, ResNet]
    density: float


FULL = Sizes(lifting.NETWORKS, 0.01)
TOY = Sizes({"toy": ResNet((1,), 4, True)}, 0.05)

_AIMS = {"ResNet-20": 4.0, "ResNet-18": 40.0}


class Selection(NamedTuple):
    """Milliseconds, the smallest score that is kept, and the numbers of prunable weights and of leaves."""

    time: float
    level: float
    size: int
    leaves: int


def rows(sizes: Sizes, repeats: int) -> Iterator[Row]:
    """Eager and compiled selections of the scores of each network, beside the peers."""
    for name, network in sizes.networks.items():
        ways = ("keep_largest", "under jit", "by layers", "np.partition", "jnp.sort")
        found = processes.in_turn(
            *(functools.partial(measure, network, way, density=sizes.density, repeats=repeats) for way in ways),
            repeats=repeats,
        )
        eager, compiled, layers, partition, sort = found
        timing.check_equal(f"thresholds of {name}", *(one.level for one in (eager, compiled, partition, sort)))
        what = f"of {eager.size:,} scores in the {eager.leaves} leaves of {name}"
        aim = _AIMS.get(name)
        yield Row(f"`masks.keep_largest`, eager, {what}", "ms", eager.time, partition.time, "np.partition", aim=aim)
        yield Row(f"the same under `jit`, {what}", "ms", compiled.time, sort.time, "jnp.sort under jit")
        yield Row(f'`masks.from_scores` with scope "erk", {what}', "ms", layers.time, partition.time, "np.partition")


def measure(network: ResNet, way: str, *, density: float, repeats: int) -> Selection:
    """One way to select."""
    scores = scores_of(network)
    host = _raveled(scores)
    flat = jnp.asarray(host)
    kept = round(density * flat.size)
    place = flat.size - kept
    compiled = jax.jit(lambda scores: masks.keep_largest(scores, kept))
    sort = jax.jit(lambda flat: jnp.sort(flat)[place])
    run: Any = {
        "keep_largest": lambda: masks.keep_largest(scores, kept),
        "under jit": lambda: compiled(scores),
        "by layers": lambda: masks.from_scores(scores, density=density, scope="erk"),
        "np.partition": lambda: np.partition(host, place)[place],
        "jnp.sort": lambda: sort(flat),
    }[way]
    result = run()  # compiles
    time = min(timing.seconds(run) for _ in range(7 * repeats))
    level = result if way in ("np.partition", "jnp.sort") else np.min(host[_raveled(result)])
    return Selection(1e3 * time, float(level), flat.size, len(jax.tree.leaves(scores)))


def _raveled(tree: Any) -> np.ndarray:
    """The kernels of a tree in one vector."""
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree) if leaf.ndim > 1])


def scores_of(network: ResNet) -> Any:
    """Log-normal scores in the shapes of a network."""
    like = jax.eval_shape(network.init, jax.random.key(0), jnp.ones((1, 32, 32, 3)))["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.lognormal(sigma=4.0, size=leaf.shape), jnp.float32), like)


if __name__ == "__main__":
    sys.exit(command.alone(__spec__.name))
