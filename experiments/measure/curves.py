"""Loss curves on a fixed batch: those of gradient descent, and those that Θ and Π predict before it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.base.batching import vmap_networks
from pathjax import dynamics, masks, ntk
from pathjax.types import ApplyFn, Mask, Params, State

__all__ = ["RATE", "Curves", "centered_one_hot", "gap", "loss_curves"]

RATE = 0.5
"""Step size in units of 1 / λ_max, a quarter of the one at which linearized gradient descent diverges."""

_FLOOR = 1e-6
"""Relative losses below this are rounding in float32; they are taken as this."""


class Curves(NamedTuple):
    """Real and predicted losses of gradient descent, the networks (s) on the leading axis.

    `real`, `linearized`, `data_free` and `low_rank` are squared losses at steps 0 … T relative to step 0, each
    (s, T + 1). `linearization_error` is the relative distance of the outputs at step T to those of the linearized
    network, `kernel_distance` that of Θ at step T to Θ at step 0, each (s,).
    """

    real: jax.Array
    linearized: jax.Array
    data_free: jax.Array
    linearization_error: jax.Array
    kernel_distance: jax.Array
    low_rank: jax.Array | None = None


def centered_one_hot(labels: jax.Array, classes: int) -> jax.Array:
    """Targets (n, classes) of a regression on labels: one-hot, less the mean over classes."""
    return jax.nn.one_hot(labels, classes, dtype=jnp.float32) - 1.0 / classes


def loss_curves(apply: ApplyFn, batch: jax.Array, targets: jax.Array, *, steps: int) -> Callable[..., Curves]:
    """A compiled function (params, state, mask, kernel, top, nodes, weights, parameters, part=None) -> Curves.

    The networks are on the leading axis of its arguments; `apply(params, state, x)` is the network.

    The real curve is that of full-batch gradient descent on ½ · mean_n ‖f − y‖² with the step size ½ / λ_max(Θ/n),
    where λ_max(Θ) is `top`. `linearized` is that of the linearized network with the kernel Θ (n, n, o, o), `low_rank`
    that with the kernel `part`. `data_free` predicts the loss from the n·o largest eigenvalues of Π alone, as if
    the residual were equally large in all modes, with time in units of 1 / λ_max(Π).
    """
    n, o = targets.shape
    times = jnp.arange(steps + 1, dtype=jnp.float32)

    def loss(outputs: jax.Array) -> jax.Array:
        return 0.5 * jnp.mean(jnp.sum((outputs - targets) ** 2, axis=1))

    def descend(params: Params, state: State, mask: Mask, rate: jax.Array) -> tuple[Params, jax.Array]:
        """The weights after all steps, and the outputs (T + 1, n, o) before, between and after them."""

        def step(params: Params, _: None) -> tuple[Params, jax.Array]:
            outputs, backward = jax.vjp(lambda params: apply(params, state, batch), params)
            (gradient,) = backward(jax.grad(loss)(outputs))
            gradient = masks.apply_mask(mask, gradient)
            return jax.tree.map(lambda leaf, slope: leaf - rate * slope, params, gradient), outputs

        params, outputs = jax.lax.scan(step, masks.apply_mask(mask, params), None, length=steps)
        return params, jnp.concatenate([outputs, apply(params, state, batch)[None]])

    def curves(
        params: Params,
        state: State,
        mask: Mask,
        kernel: jax.Array,
        top: jax.Array,
        nodes: jax.Array,
        weights: jax.Array,
        parameters: jax.Array,
        part: jax.Array | None = None,
    ) -> Curves:
        rate = RATE * n / top
        trained, outputs = descend(params, state, mask, rate)
        real = jax.vmap(loss)(outputs)
        predict = functools.partial(dynamics.linearized, learning_rate=rate / n, flow=False)
        predicted = predict(kernel, outputs[0], targets, times)
        left = None if part is None else jax.vmap(loss)(predict(part, outputs[0], targets, times)) / real[0]
        linearized = jax.vmap(loss)(predicted)
        eigenvalues, shares = _upper_modes(nodes, weights, jnp.minimum(1.0, n * o / parameters))
        data_free = dynamics.data_free_loss(eigenvalues, shares, times, learning_rate=RATE / eigenvalues[0])
        return Curves(
            real / real[0],
            linearized / real[0],
            data_free,
            linearization_error=dynamics.linearization_error(outputs[-1:], predicted[-1:])[0],
            kernel_distance=dynamics.kernel_distance(
                kernel, ntk.empirical(apply, trained, batch, state=state, mask=mask)
            ),
            low_rank=left,
        )

    return jax.jit(vmap_networks(curves))


def gap(predicted: np.ndarray | jax.Array, real: np.ndarray | jax.Array) -> float:
    """Mean over steps of |log10 predicted − log10 real|, in decades; losses below the floor of float32 count as it."""
    logs = [np.log10(np.maximum(np.asarray(losses), _FLOOR)) for losses in (predicted, real)]
    return float(np.mean(np.abs(logs[0] - logs[1])))


def _upper_modes(nodes: jax.Array, weights: jax.Array, share: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Nodes, descending, and how the upper `share` of a spectral density (samples, order) spreads over them."""
    flat, mass = nodes.ravel(), weights.ravel() / nodes.shape[0]
    order = jnp.argsort(-flat)
    flat, mass = flat[order], mass[order]
    before = jnp.cumsum(mass) - mass
    kept = jnp.clip(share - before, 0.0, mass)
    return flat, kept / jnp.sum(kept)
