"""Training of the linearized network on the squared loss, from products with Θ alone, with bounds of the errors."""

from __future__ import annotations

import functools
import math
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from pathjax._base.trees import concrete, wide
from pathjax._interpreter.traced import TracedNetwork
from pathjax._linalg import propagation
from pathjax._linalg.krylov import krylov
from pathjax._linalg.lapack import eigvalsh
from pathjax._linalg.propagation import Space
from pathjax._ntk.operator import Operator, flat_product, outputs_like, product, rows
from pathjax.types import Real

__all__ = ["ORDER", "TOLERANCE", "Trajectory", "find"]

TOLERANCE = 1e-3
"""The error that is allowed by default, relative to the initial residual's."""

ORDER = 500
"""The largest number of vectors of a Krylov space by default."""

# Products by which the largest eigenvalue of the kernel of the test points is found, to about one in a hundred.
_STEPS = 8


class Trajectory(NamedTuple):
    """Training of the linearized network at each of the asked times, as `dynamics.trajectory` gives it.

    Attributes:
        outputs: (t, n, o) on the training examples, or (t, m, o) on the test points.
        losses: (t,) ½ Σ ‖f_t − y‖² on the training examples.
        errors: (t,) bounds of the root of the mean square of the errors of `outputs`.
        products: () the number of products with Θ that were needed, which is the dimension of the Krylov space.
    """

    outputs: Float[Array, "t _ o"]
    losses: Float[Array, " t"]
    errors: Float[Array, " t"]
    products: Int[Array, ""]

    def __repr__(self) -> str:
        """Sizes alone, as `Trajectory(t=4, examples=20, o=10)`."""
        *batch, t, n, o = np.shape(self.outputs)
        return f"Trajectory({f'batch={tuple(batch)}, ' if batch else ''}t={t:,}, examples={n:,}, o={o:,})"


class _Effort(NamedTuple):
    """What decides a program: the largest dimension of the Krylov space, and whether training is a flow or in steps."""

    order: int
    flow: bool


def find(
    kernel: Operator,
    outputs: Any,
    targets: Any,
    times: Any,
    *,
    learning_rate: Any,
    flow: bool,
    test_ntk: Any = None,
    test_outputs: Any = None,
    tolerance: Real = TOLERANCE,
    order: int | None = None,
) -> Trajectory:
    """The trajectory on the training examples, or on the test points, from arrays that fit the kernels.

    Raises ValueError for an order below 1. A UserWarning, which names the line that called this function's caller, says
    where the tolerance is missed.
    """
    if order is not None and order < 1:
        raise ValueError(f"`order` must be at least 1, but is {order}.")
    size = math.prod(kernel.shape)
    effort = _Effort(min(ORDER if order is None else order, size), flow)
    given = (wide(outputs), wide(targets), None if test_outputs is None else wide(test_outputs))
    found, misses = _found(effort, kernel, test_ntk, *given, times, learning_rate, tolerance)
    _warn_of_misses(found, misses, times, tolerance, effort.order if effort.order < size else None)
    return found


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _found(
    effort: _Effort,
    kernel: Operator,
    test_kernel: Operator | None,
    outputs: Any,
    targets: Any,
    test_outputs: Any,
    times: Any,
    learning_rate: Any,
    tolerance: Any,
) -> tuple[Trajectory, Any]:
    """The trajectory, and at which times the error that a larger space would take away is above the tolerance (t,)."""
    dtype = jnp.result_type(wide(jnp.zeros((), outputs_like(kernel).dtype)), outputs, targets)
    rate, times = jnp.asarray(learning_rate, dtype), jnp.asarray(times, dtype)
    residual = (outputs - targets).astype(dtype)
    gain = None
    if test_kernel is not None:
        largest = test_kernel.network.compiled(_largest)(test_kernel, residual, rate)
        # errors are means over outputs here, and sums there
        gain = jnp.sqrt(largest * residual.size / max(test_outputs.size, 1))
    space = kernel.network.compiled(_space, effort=effort)(kernel, residual.ravel(), times, rate, gain, tolerance)
    losses, errors, misses = _measured(effort, space, times, gain, tolerance)
    if test_kernel is None:
        predicted = targets[None] + _remaining(effort, space, times).reshape(len(times), *targets.shape)
    else:
        moves = test_kernel.network.compiled(_moves, effort=effort)(test_kernel, space, times, rate)
        predicted = test_outputs[None] - moves
    size = math.sqrt(max(residual.size, 1))
    return Trajectory(predicted, losses, errors / size, space.count), misses


@_found.defjvp
def _found_jvp(effort: _Effort, primals: Any, tangents: Any) -> Any:
    raise TypeError(
        "Training that is predicted from an `ntk.operator` has no derivative. Pass the kernel itself, "
        "`ntk.empirical(apply, params, x)`."
    )


def _space(
    network: TracedNetwork,
    kernel: Operator,
    residual: Any,
    times: Any,
    rate: Any,
    gain: Any,
    tolerance: Any,
    *,
    effort: _Effort,
) -> Space:
    multiply = flat_product(kernel)
    return propagation.space(
        lambda vector: rate * multiply(vector),
        residual,
        times,
        order=effort.order,
        flow=effort.flow,
        tolerance=tolerance,
        epsilon=float(jnp.finfo(outputs_like(kernel).dtype).eps),
        gain=gain,
    )


def _largest(network: TracedNetwork, kernel: Operator, residual: Any, rate: Any) -> Any:
    """The largest eigenvalue of η Θ(x', x') of the test points, from the direction in which they first move."""
    start = wide(product(kernel)(residual)).ravel()
    multiply = flat_product(rows(kernel))
    steps = min(_STEPS, start.size)
    if steps == 0:
        return jnp.zeros((), start.dtype)
    values = eigvalsh(krylov(lambda vector: (rate * multiply(vector)).astype(vector.dtype), start, steps).matrix)
    return jnp.maximum(values[-1], 0)


def _moves(network: TracedNetwork, kernel: Operator, space: Space, times: Any, rate: Any, *, effort: _Effort) -> Any:
    """η Θ(x', X) Σ r at each time, (t, m, o)."""
    multiply = product(kernel)
    integral = rate * propagation.integral(space, times, flow=effort.flow)
    return jax.lax.map(lambda vector: wide(multiply(vector.reshape(kernel.shape))), integral)


@functools.partial(jax.jit, static_argnums=0)
def _remaining(effort: _Effort, space: Space, times: Any) -> Any:
    return propagation.remaining(space, times, flow=effort.flow)


@functools.partial(jax.jit, static_argnums=0)
def _measured(effort: _Effort, space: Space, times: Any, gain: Any, tolerance: Any) -> Any:
    """Losses, bounds of errors, and whether what a larger space would take away is above the tolerance, each (t,)."""
    norms = propagation.norms(space, times, flow=effort.flow)
    truncation, rounding = propagation.errors(space, times, flow=effort.flow, gain=gain)
    is_missed = truncation > tolerance * jnp.maximum(norms, jnp.linalg.norm(space.start))
    return 0.5 * norms**2, truncation + rounding, is_missed


def _warn_of_misses(found: Trajectory, misses: Any, times: Any, tolerance: Real, order: int | None) -> None:
    """`order` is the largest number of vectors where more could be had, else None."""
    missed = concrete(misses)
    if missed is None or not missed.any():
        return
    time = np.asarray(times)[missed].min()
    remedy = (
        f"a Krylov space of {int(found.products):,} vectors is too small for it. Pass a larger `order` to "
        "`dynamics.trajectory`"
        if int(found.products) == order
        else "products with Θ are not more accurate. Compute in float64"
    )
    warnings.warn(
        f"Linearized training: errors may be above the tolerance of {tolerance:.2g} times the initial residual from "
        f"time {time:g} on: {remedy}, leave out late times, or allow more by `tolerance`.",
        stacklevel=4,
    )
