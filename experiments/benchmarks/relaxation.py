"""Linearized training on all of scikit-learn's digits without the kernel, and beside the dense prediction on a few.

`python -m experiments.benchmarks.relaxation` takes a fully connected network, 3 × 256, in float32, weights from seed 0.
On the 1,797 images of 8 × 8 it predicts 17,970 outputs, and those on 200 images shifted by a pixel, at times up to
10⁴ / λ_max, by `dynamics.trajectory`: the kernel would have 323 million entries, 1.3 GB. On 300 images it does the same
beside `dynamics.linearized`, which forms and decomposes the kernel: seconds, and how far apart the outputs are.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import command, processes, timing
from experiments.benchmarks.kernels import MLP
from experiments.benchmarks.rows import Row
from pathjax import dynamics, ntk

__all__ = ["FULL", "TOY", "Cost", "Distance", "Sizes", "compare", "measure", "rows"]


class Sizes(NamedTuple):
    """How many images are trained on, by products and beside the dense prediction; test points; the network's width."""

    images: int
    few: int
    points: int
    width: int


FULL = Sizes(images=1797, few=300, points=200, width=256)
TOY = Sizes(images=40, few=10, points=3, width=8)


class Cost(NamedTuple):
    """What the predictions on all images cost.

    Attributes:
        rate: seconds for the critical learning rate.
        first, later: seconds of the prediction, with compilation and without.
        test: seconds of that on test points, with compilation.
        peak: the largest memory of the process, in GB.
        products: products with the kernel for the training images.
        error: the largest bound of errors on them, relative to the initial residual.
    """

    rate: float
    first: float
    later: float
    test: float
    peak: float
    products: int
    error: float


class Distance(NamedTuple):
    """Seconds of the prediction from products and of the dense one, and both errors relative to the initial residual.

    `actual` is how far the outputs are apart at the worst time, `bound` what the prediction says that they may be.
    """

    products: float
    dense: float
    actual: float
    bound: float


class _Task(NamedTuple):
    """A network with its images: all arguments of a prediction but the kernel and the learning rate."""

    apply: Callable[..., Any]
    params: Any
    x: jax.Array
    outputs: jax.Array
    targets: jax.Array


def measure(sizes: Sizes) -> Cost:
    """The predictions on all images."""
    task = _task(sizes.images, sizes.width)
    kernel = ntk.operator(task.apply, task.params, task.x)
    rate, rate_seconds = _timed(lambda: dynamics.critical_learning_rate(kernel, key=jax.random.key(0)) / 2)
    times = _times()

    def predict(**test: Any) -> dynamics.Trajectory:
        return dynamics.trajectory(kernel, task.outputs, task.targets, times, learning_rate=rate, **test)

    found, first = _timed(predict)
    _, later = _timed(predict)
    points = jnp.roll(task.x[: sizes.points].reshape(-1, 8, 8), 1, axis=2).reshape(-1, 64)
    test = {
        "test_ntk": ntk.operator(task.apply, task.params, points, task.x),
        "test_outputs": task.apply(task.params, points),
    }
    _, on_test = _timed(lambda: predict(**test))
    error = float(jnp.max(found.errors)) / _initial(task)
    return Cost(rate_seconds, first, later, on_test, timing.peak(), int(found.products), error)


def compare(sizes: Sizes) -> Distance:
    """The same prediction on a few images in two ways."""
    task = _task(sizes.few, sizes.width)
    kernel = ntk.operator(task.apply, task.params, task.x)
    rate = dynamics.critical_learning_rate(kernel, key=jax.random.key(0)) / 2
    arguments = task.outputs, task.targets, _times()
    found, products = _timed(lambda: dynamics.trajectory(kernel, *arguments, learning_rate=rate))
    formed, dense = _timed(
        lambda: dynamics.linearized(ntk.empirical(task.apply, task.params, task.x), *arguments, learning_rate=rate)
    )
    apart = jnp.sqrt(jnp.mean((found.outputs - formed) ** 2, axis=(1, 2)))
    return Distance(
        products, dense, float(jnp.max(apart)) / _initial(task), float(jnp.max(found.errors)) / _initial(task)
    )


def _task(count: int, width: int) -> _Task:
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels, labels = np.asarray(digits.data[:count], np.float32), digits.target[:count]
    x = jnp.asarray((pixels - pixels.mean()) / pixels.std())
    network = MLP(width=width)
    params = jax.jit(network.init)(jax.random.key(0), x[:1])["params"]

    def apply(params: Any, x: jax.Array) -> Any:
        return network.apply({"params": params}, x)

    return _Task(apply, params, x, jax.jit(apply)(params, x), jax.nn.one_hot(labels, 10))


def _times() -> jax.Array:
    """In units of 1 / λ_max, since learning rates are that."""
    return jnp.logspace(0, 4, 9)


def _initial(task: _Task) -> float:
    """The root of the mean square of the initial residual."""
    return float(jnp.sqrt(jnp.mean((task.outputs - task.targets) ** 2)))


def _timed(function: Callable[[], Any]) -> tuple[Any, float]:
    begin = time.perf_counter()
    result = jax.block_until_ready(function())
    return result, time.perf_counter() - begin


def rows(sizes: Sizes, repeats: int) -> Iterator[Row]:
    """Seconds and memory of all images, and of a few beside the dense prediction."""
    (cost,) = processes.in_turn(functools.partial(measure, sizes), repeats=min(repeats, 2))
    work = f"linearized training of {10 * sizes.images:,} outputs without the kernel"
    note = f"{cost.products} products, errors ≤ {cost.error:.1e} of the initial residual"
    yield Row(work, "s", cost.first, aim=120.0, note=f"{note}; {cost.later:.1f} s when compiled")
    kernel = (10 * sizes.images) ** 2 * 4 / 1e9
    yield Row(f"{work}: memory", "GB", cost.peak, kernel, "the kernel alone", aim=1.0)
    yield Row(f"{work}: on {sizes.points} test points", "s", cost.test)
    (distance,) = processes.in_turn(functools.partial(compare, sizes), repeats=min(repeats, 2))
    note = f"apart by {distance.actual:.1e} of the initial residual, bound {distance.bound:.1e}"
    yield Row(
        f"the same of {10 * sizes.few:,}", "s", distance.products, distance.dense, "formed and decomposed", note=note
    )


if __name__ == "__main__":
    sys.exit(command.alone(__spec__.name))
