"""What it costs to select the largest of many scores, beside sorts and partitions of the same scores.

`python -m experiments.benchmarks.selection` takes float32 scores of the shapes of ResNet-18, 11.2 million, and keeps
some of them: `masks.from_scores`, as it is called and as one program under `jit`, beside NumPy's `partition` and JAX's
`sort`, which find the threshold alone, of the scores already in one vector. Seconds are the least of several, taken in
turns.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import lifting, timing
from pathjax import masks

__all__ = ["main", "measure", "scores_of"]

_RESNET_18 = 11_173_962


def scores_of(size: int) -> Any:
    """Log-normal scores of about `size` weights, in the shapes of a narrower or wider ResNet-18."""
    network = lifting.ResNet((2, 2, 2, 2), max(1, round(64 * (size / _RESNET_18) ** 0.5)), True)
    like = jax.eval_shape(network.init, jax.random.key(0), jnp.ones((1, 32, 32, 3)))["params"]
    leaves, structure = jax.tree.flatten(like)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    drawn = [
        jnp.exp(4.0 * jax.random.normal(key, leaf.shape, jnp.float32)) for key, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, drawn)


def measure(scores: Any, *, density: float, repeats: int) -> dict[str, float]:
    """Seconds of each way to select."""
    prunable = jax.tree.map(lambda leaf: leaf if leaf.ndim > 1 else None, scores)
    flat = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(prunable)])
    host = np.asarray(flat)
    place = flat.size - round(density * flat.size)

    def select(scope: str) -> Callable[[Any], Any]:
        return lambda scores: masks.from_scores(scores, density=density, scope=scope)

    jitted = jax.jit(select("global"))
    sort = jax.jit(lambda flat: jnp.sort(flat)[place])
    ways: dict[str, Callable[[], Any]] = {
        "from_scores": lambda: select("global")(scores),
        "under jit": lambda: jitted(scores),
        'scope "erk"': lambda: select("erk")(scores),
        "np.partition": lambda: np.partition(host, place)[place],
        "jnp.sort": lambda: sort(flat),
    }
    for run in ways.values():  # compiles
        jax.block_until_ready(run())
    return dict(zip(ways, timing.least(list(ways.values()), repeats), strict=True))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.selection", description=__doc__)
    parser.add_argument("--size", type=int, default=_RESNET_18, help="weights, about")
    parser.add_argument("--density", type=float, nargs="+", default=[0.1, 0.01], help="shares of them to keep")
    parser.add_argument("--repeats", type=int, default=7, help="runs of which the least is taken")
    options = parser.parse_args(arguments)
    scores = scores_of(options.size)
    size = masks.kept_counts(scores, density=1.0).item()
    print(f"{timing.machine()}; {size:,} prunable weights, float32, log-normal scores from seed 0")
    for density in options.density:
        seconds = measure(scores, density=density, repeats=options.repeats)
        print(f"density {density}: {round(density * size):,} kept")
        ours = seconds["under jit"]
        for name, time in seconds.items():
            print(f"  {name:14}{1e3 * time:9.1f} ms ({time / ours:5.2f}×)", flush=True)


if __name__ == "__main__":
    main()
