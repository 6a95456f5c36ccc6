"""Training of masked networks: all seeds of a cell in one compiled program."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pathjax import masks
from pathjax.types import ApplyFn, Key, Mask, Params

__all__ = ["Trained", "pruned_stay_zero", "steps_to_level", "trainer"]


class Trained(NamedTuple):
    """Networks after training, the seeds on the leading axis (s).

    `train_loss` (s, epochs + 1) is the cross-entropy over the whole train set, before training and after each epoch;
    `test_accuracy` (s,) is a share in [0, 1].
    """

    params: Params
    train_loss: np.ndarray
    test_accuracy: np.ndarray


def trainer(
    apply: ApplyFn,
    train: tuple[jax.Array, jax.Array],
    test: tuple[jax.Array, jax.Array],
    *,
    learning_rate: float,
    batch_size: int,
    epochs: int,
) -> Callable[[Params, Mask, Key], Trained]:
    """A function (params, mask, keys) -> Trained, whose arguments carry the seeds on their leading axis.

    SGD with momentum 0.9 and a constant step size on cross-entropy. Each epoch goes through the train set in an order
    drawn from the seed's key, in whole minibatches; what is left over of it waits for the next epoch. Pruned weights
    start at zero and stay there. Compiled at the first call, and used again for every mask.
    """
    images, labels = train
    size = min(batch_size, len(labels))
    steps = len(labels) // size

    def optimizer(mask: Mask) -> optax.GradientTransformation:
        return masks.freeze(optax.sgd(learning_rate, momentum=0.9), mask)

    def epoch(params: Params, state: optax.OptState, mask: Mask, key: Key) -> tuple[Params, optax.OptState, jax.Array]:
        def step(carry: tuple[Params, optax.OptState], batch: jax.Array) -> tuple[tuple[Params, optax.OptState], None]:
            params, state = carry
            gradient = jax.grad(_loss, argnums=1)(apply, params, images[batch], labels[batch])
            updates, state = optimizer(mask).update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), None

        order = jax.random.permutation(key, len(labels))[: steps * size].reshape(steps, size)
        (params, state), _ = jax.lax.scan(step, (params, state), order)
        return params, state, _loss(apply, params, images, labels)

    def begin(params: Params, mask: Mask) -> tuple[Params, optax.OptState, jax.Array]:
        params = masks.apply_mask(mask, params)
        return params, optimizer(mask).init(params), _loss(apply, params, images, labels)

    begin_all = jax.jit(jax.vmap(begin))
    epoch_all = jax.jit(jax.vmap(epoch))
    accuracy_all = jax.jit(jax.vmap(lambda params: _accuracy(apply, params, *test)))
    keys_of_epoch = jax.jit(jax.vmap(jax.random.fold_in, in_axes=(0, None)))

    def run(params: Params, mask: Mask, keys: Key) -> Trained:
        params, state, loss = begin_all(params, mask)
        losses = [loss]
        for number in range(epochs):
            params, state, loss = epoch_all(params, state, mask, keys_of_epoch(keys, number))
            losses.append(loss)
        return Trained(params, np.stack(losses, axis=1), np.asarray(accuracy_all(params)))

    return run


def pruned_stay_zero(params: Params, mask: Mask) -> np.ndarray:
    """For each seed, whether every pruned weight is exactly zero (s,)."""
    stray = jax.tree.map(
        lambda leaf, kept: np.any((np.asarray(leaf) != 0) & ~np.asarray(kept), axis=tuple(range(1, np.ndim(leaf)))),
        params,
        mask,
    )
    return ~np.any(np.stack(jax.tree.leaves(stray)), axis=0)


def steps_to_level(train_loss: np.ndarray, *, level: float, steps_per_epoch: int) -> float:
    """Steps of training until the loss (epochs + 1,) first falls to `level`, or inf if it never does.

    Between two epochs the logarithm of the loss is taken as linear.
    """
    reached = np.flatnonzero(train_loss <= level)
    if not reached.size:
        return float("inf")
    after = int(reached[0])
    if after == 0:
        return 0.0
    high, low, wanted = (np.log(max(value, 1e-30)) for value in (train_loss[after - 1], train_loss[after], level))
    return float(steps_per_epoch * (after - 1 + (high - wanted) / (high - low)))


def _loss(apply: ApplyFn, params: Params, images: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(apply(params, images), labels).mean()


def _accuracy(apply: ApplyFn, params: Params, images: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.mean(jnp.argmax(apply(params, images), axis=1) == labels)
