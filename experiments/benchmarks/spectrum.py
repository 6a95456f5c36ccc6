"""What the Path Kernel's spectrum costs beside a gradient of the network itself.

`python -m experiments.benchmarks.spectrum` takes ResNet-20 and ResNet-18 on images of 32 × 32 × 3, in float32, each
task in a process of its own, so that its peak memory is its own. It compares one product with the Path Kernel, its ten
largest eigenpairs, and its density of states with the standard errors of what follows from it, with one gradient of the
network's summed outputs at the same batch of one example.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.benchmarks import lifting, timing
from pathjax import path_kernel

__all__ = ["TASKS", "Problem", "main"]

_TOLERANCE = 1e-4
_RANK = 10


class Problem(NamedTuple):
    """A network with its Path Kernel, and the seconds of its own gradient at one example."""

    apply: Callable[..., Any]
    params: Any
    kernel: path_kernel.PathKernel
    gradient: float
    repeats: int
    order: int


def problem(network: str, *, side: int, repeats: int, order: int) -> tuple[Problem, list[str]]:
    """One network, and what its gradients cost."""
    module = lifting.NETWORKS[network]
    x = jnp.ones((1, side, side, 3), jnp.float32)
    variables = jax.jit(module.init)(jax.random.key(0), x)
    params, statistics = variables["params"], variables["batch_stats"]

    def apply(params: Any, x: jax.Array) -> Any:
        return module.apply({"params": params, "batch_stats": statistics}, x)

    gradient = _gradient_seconds(apply, params, x, repeats)
    kernel = jax.jit(functools.partial(path_kernel.path_kernel, apply, x_like=x))(params)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    lines = [
        f"{network}, {count:,} weights, {side} × {side} × 3, float32, weights from seed 0",
        f"  gradient        {1e3 * gradient:9.1f} ms",
    ]
    return Problem(apply, params, kernel, gradient, repeats, order), lines


def product(of: Problem) -> str:
    """One product with G."""
    compiled = jax.jit(lambda kernel, tree: kernel.matvec(tree)).lower(of.kernel, of.params).compile()
    return _line("product", timing.least([lambda: compiled(of.kernel, of.params)], of.repeats)[0], of)


def eigenpairs(of: Problem) -> str:
    """The ten largest eigenpairs, and the largest of their residuals."""
    find = functools.partial(path_kernel.top_eigenpairs, rank=_RANK, tolerance=_TOLERANCE, order=of.order)
    begin = time.perf_counter()
    compiled = jax.jit(find).lower(of.kernel, key=jax.random.key(0)).compile()
    compilation = time.perf_counter() - begin
    begin = time.perf_counter()
    values, vectors, *_ = jax.block_until_ready(compiled(of.kernel, key=jax.random.key(0)))
    line = _line(f"top {_RANK}", time.perf_counter() - begin, of)
    multiply = jax.jit(lambda kernel, tree: kernel.matvec(tree))
    residuals = []
    for i in range(_RANK):
        vector = jax.tree.map(lambda leaf, i=i: leaf[i], vectors)
        error = jax.tree.map(lambda a, b, i=i: a - values[i] * b, multiply(of.kernel, vector), vector)
        residuals.append(float(jnp.sqrt(sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(error))) / values[0]))
    return f"{line}   residuals up to {max(residuals):.1e} · λ_max, after {compilation:.0f} s of compilation"


def density(of: Problem, *, order: int = 20, samples: int = 4) -> str:
    """The density of states, and log det(G + εI) and Σλ² from it; ε is a thousandth of the mean eigenvalue."""
    compute = jax.jit(functools.partial(path_kernel.spectral_density, order=order, samples=samples))
    compiled = compute.lower(of.kernel, key=jax.random.key(1)).compile()
    run = functools.partial(compiled, of.kernel, key=jax.random.key(1))
    states = run()
    seconds = timing.seconds(run)
    log_trace = of.kernel.log_trace()
    log_epsilon = jnp.log(1e-3) + log_trace - jnp.log(states.dimension)
    estimates = {
        "Σ log(λ + ε) / p": lambda logs: jnp.logaddexp(logs, log_epsilon) / states.dimension,
        "Σ λ² / (Σ λ)²": lambda logs: jnp.exp(2 * (logs - log_trace)),
    }
    values = [(name, states.estimate_from_logs(function)) for name, function in estimates.items()]
    said = "   ".join(f"{name} {value:.4g} ± {error:.1g}" for name, (value, error) in values)
    return _line(f"density, {samples} × {order}", seconds, of) + f"   {said}"


# what is measured of each network, in order; `make bench` runs all
TASKS: dict[str, Callable[[Problem], str]] = {"product": product, "eigenpairs": eigenpairs, "density": density}


def _gradient_seconds(apply: Callable[..., Any], params: Any, x: jax.Array, repeats: int) -> float:
    compiled = jax.jit(jax.grad(lambda params: jnp.sum(apply(params, x)))).lower(params).compile()
    return timing.least([lambda: compiled(params)], repeats)[0]


def _line(name: str, seconds: float, of: Problem) -> str:
    ratio = seconds / of.gradient
    return f"  {name:15} {1e3 * seconds:9.1f} ms, {ratio:7.1f} gradients   peak {timing.peak():.2f} GB"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, each network in a fresh process, and print."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.spectrum", description=__doc__)
    parser.add_argument("--network", nargs="*", default=list(lifting.NETWORKS), choices=lifting.NETWORKS)
    parser.add_argument("--task", nargs="*", default=list(TASKS), choices=TASKS)
    parser.add_argument("--side", type=int, default=32, help="height and width of the images")
    parser.add_argument("--repeats", type=int, default=10, help="runs of which the least is taken")
    parser.add_argument("--order", type=int, default=20, help="vectors beside the eigenpairs that are iterated")
    parser.add_argument("--here", action="store_true", help="measure in this process")
    options = parser.parse_args(arguments)
    if not options.here:
        print(timing.machine(), flush=True)
    for network, task in itertools.product(options.network, options.task):
        if options.here:
            of, lines = problem(network, side=options.side, repeats=options.repeats, order=options.order)
            print(*lines, TASKS[task](of), sep="\n", flush=True)
        else:
            numbers = [f"--{name}={getattr(options, name)}" for name in ("side", "repeats", "order")]
            what = ["--network", network, "--task", task]
            call = [sys.executable, "-m", __spec__.name, "--here", *numbers, *what]
            subprocess.run(call, check=True)


if __name__ == "__main__":
    main()
