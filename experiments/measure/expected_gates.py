"""What is predicted from Θ̄, the kernel in which each gate counts for as often as it is open over random signs.

A prediction may read nothing of the data, its mean and covariance, or the images themselves: Θ̄ is then that of standard
normal images, of normal images with the data's mean and covariance, or of the images.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from experiments.measure.curves import RATE, centered_one_hot
from pathjax import dynamics, ntk
from pathjax.types import ApplyFn, Key, Mask, Params, State

__all__ = ["ExpectedGates", "LabelledImages", "expected_gates", "normal_images", "regression_accuracy"]

_RANK_TOLERANCE = 1e-6
"""Eigenvalues of a kernel below this share of the largest are rounding in float32."""


class LabelledImages(NamedTuple):
    """Images (n, ...) and their labels (n,)."""

    images: jax.Array
    labels: jax.Array


class ExpectedGates(NamedTuple):
    """What Θ̄ predicts of the networks (s) on the leading axis.

    `no_data`, `moments` and `inputs` are squared losses at steps 0 … T relative to step 0, each (s, T + 1), by what was
    read of the data, and `log_tops` (s, 3) the natural logarithms of λ_max(Θ̄) in this order. `regression_accuracy` (s,)
    is that of kernel regression on test images, NaN without any. `why_not` says why there is nothing: then losses are
    empty, (s, 0).
    """

    no_data: np.ndarray
    moments: np.ndarray
    inputs: np.ndarray
    log_tops: np.ndarray
    regression_accuracy: np.ndarray
    why_not: str = ""


def normal_images(images: jax.Array, count: int, key: Key) -> jax.Array:
    """Normal images (count, ...) with the mean and the covariance of these (n, ...)."""
    flat = images.reshape(len(images), -1)
    mean = flat.mean(axis=0, keepdims=True)
    # sums of the centered images with independent weights have their covariance, which is never formed
    weights = jax.random.normal(key, (count, len(images)), flat.dtype)
    return (mean + weights @ (flat - mean) / jnp.sqrt(float(len(images)))).reshape(count, *images.shape[1:])


def regression_accuracy(kernel: np.ndarray, cross: np.ndarray, targets: np.ndarray, labels: np.ndarray) -> float:
    """Share of test images that kernel regression gives their label.

    `kernel` (n, n, o) is that of the training images, whose targets are (n, o), and `cross` (m, n, o) that of the test
    images with them; there are none between different outputs.
    """
    outputs = [
        cross[:, :, c] @ np.linalg.pinv(kernel[:, :, c], rcond=_RANK_TOLERANCE, hermitian=True) @ targets[:, c]
        for c in range(targets.shape[1])
    ]
    return float(np.mean(np.argmax(outputs, axis=0) == labels))


def expected_gates(
    apply: ApplyFn,
    batch: LabelledImages,
    train: LabelledImages,
    test: LabelledImages,
    *,
    classes: int,
    steps: int,
    key: Key,
) -> Callable[[Params, State, Mask], ExpectedGates]:
    """A function (params, state, mask) -> ExpectedGates, seeds leading, one network at a time.

    `apply(params, state, x)` is the network. Predicted is gradient descent on `batch` as `curves.loss_curves` runs it,
    with steps in units of 1 / λ_max(Θ̄), and kernel regression from `batch` to `test`. Of `train` the mean and the
    covariance of the images count, and the frequencies of the classes. Without data every mode of Θ̄ has an equal share
    of the loss. Otherwise the shares follow from the covariance of the outputs and from independent labels of these
    frequencies.
    """
    ours, theirs = jax.random.split(key)
    standard = jax.random.normal(ours, batch.images.shape, batch.images.dtype)
    normal = normal_images(train.images, len(batch.images), theirs)
    targets = centered_one_hot(batch.labels, classes)
    frequencies = jnp.mean(jax.nn.one_hot(train.labels, classes), axis=0)
    times = jnp.arange(steps + 1, dtype=jnp.float32)

    @jax.jit
    def evenly(kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
        top = _top(kernel)
        return dynamics.expected_loss(kernel, times, learning_rate=RATE / top, flow=False), jnp.log(top)

    @jax.jit
    def shared(kernel: jax.Array, nngp: jax.Array) -> tuple[jax.Array, jax.Array]:
        top = _top(kernel)
        loss = dynamics.expected_loss(
            kernel,
            times,
            learning_rate=RATE / top,
            nngp=nngp,
            target_means=frequencies - 1 / classes,
            target_variances=frequencies * (1 - frequencies),
            flow=False,
        )
        return loss, jnp.log(top)

    def of_one(params: Params, state: State, mask: Mask) -> tuple[np.ndarray, ...]:
        def kernels(images: jax.Array) -> tuple[jax.Array, jax.Array]:
            nngp, kernel = ntk.mean_field(apply, params, images, state=state, mask=mask)
            return cast(jax.Array, kernel), nngp

        of_inputs = kernels(batch.images)
        accuracy = np.array(np.nan)
        if len(test.images):
            size = len(batch.images)
            given: dict[str, Any] = {"state": state, "mask": mask, "batch_size": size}
            cross = ntk.mean_field(apply, params, test.images, batch.images, **given).ntk
            accuracy = np.array(regression_accuracy(*jax.device_get((of_inputs[0], cross, targets, test.labels))))
        predicted = evenly(kernels(standard)[0]), shared(*kernels(normal)), shared(*of_inputs)
        losses, log_tops = zip(*jax.device_get(predicted), strict=True)
        return *losses, np.stack(log_tops), accuracy

    def of_networks(params: Params, state: State, mask: Mask) -> ExpectedGates:
        seeds = range(len(jax.tree.leaves(params)[0]))
        every = params, state, mask
        networks = [jax.tree.map(lambda leaf, at=seed: jnp.asarray(leaf[at]), every) for seed in seeds]
        try:
            found = [of_one(*network) for network in networks]
        except (ValueError, MemoryError) as error:  # a layer without a closed form, or too many pairs of positions
            empty, absent = np.zeros((len(seeds), 0)), np.full((len(seeds), 3), np.nan)
            return ExpectedGates(empty, empty, empty, absent, absent[:, 0], str(error).strip().splitlines()[0])
        no_data, moments, inputs, log_tops, accuracy = (np.stack(each) for each in zip(*found, strict=True))
        return ExpectedGates(no_data, moments, inputs, log_tops, accuracy)

    return of_networks


def _top(kernel: jax.Array) -> jax.Array:
    """The largest eigenvalue of a kernel (n, n, o) for each output."""
    return jnp.max(jax.vmap(lambda one: ntk.spectrum(one[:, :, None, None])[0])(jnp.moveaxis(kernel, 2, 0)))
