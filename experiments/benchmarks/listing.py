"""What it costs to list ten million paths, and to compute their values.

`python -m experiments.benchmarks.listing` runs in a process of its own, so that its peak memory is the listing's.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import timing
from pathjax import enumeration, paths

__all__ = ["apply", "main", "network"]


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


def measure(widths: Sequence[int]) -> list[str]:
    """List the paths of one network and compute their values, twice; says what each took."""
    params, x = network(widths, seed=0)
    lines = [f"widths {' '.join(map(str, widths))}, float32, weights from seed 0: {math.prod(widths):,} paths"]
    before = timing.peak()
    begin = time.perf_counter()
    listed = enumeration.enumerate_paths(apply, params, x, limit=math.prod(widths))
    jax.block_until_ready(listed.factors)
    lines.append(
        f"  list them       {time.perf_counter() - begin:6.2f} s   peak {timing.peak():.2f} GB, {before:.2f} before"
    )
    for label in ("first values", "next values"):
        begin = time.perf_counter()
        values = jax.block_until_ready(enumeration.path_values(listed, params))
        lines.append(f"  {label:15} {time.perf_counter() - begin:6.2f} s   peak {timing.peak():.2f} GB")
    total = np.log(np.sum(np.abs(np.asarray(values, np.float64))))
    lifted = float(paths.log_path_norm(apply, params, x))
    lines.append(f"  log Σ|v_p|      {total:.6f} from the list, {lifted:.6f} without")
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure in a fresh process and print."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.listing", description=__doc__)
    parser.add_argument("--widths", type=int, nargs="+", default=[100, 100, 100, 10], help="units, the inputs first")
    parser.add_argument("--here", action="store_true", help="measure in this process")
    options = parser.parse_args(arguments)
    if not options.here:
        widths = map(str, options.widths)
        subprocess.run([sys.executable, "-m", __spec__.name, "--here", "--widths", *widths], check=True)
        return
    print(timing.machine())
    print(*measure(options.widths), sep="\n", flush=True)


if __name__ == "__main__":
    main()
