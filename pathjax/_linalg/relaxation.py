"""How the residual of linear dynamics dies away: functions of a symmetric matrix M, applied to a vector.

`left` is what remains of the vector at each time, `moved` is what has passed until then:

    gradient flow       left = e^(−Mt) v     moved = M⁻¹ (I − e^(−Mt)) v
    gradient descent    left = (I − M)^t v   moved = M⁻¹ (I − (I − M)^t) v

Both are smooth functions of M, `moved` with t·v in the null space. The derivative of an eigendecomposition divides by
the gaps between eigenvalues, which kernels of several outputs lack. That of a function of M has no such poles: its
entries in the eigenbasis are divided differences of the function. Source: Daleckii and Krein (1965).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import SymbolicZero

from pathjax._linalg.lapack import eigh, rounding_error

__all__ = ["left", "moved"]

_TERMS = 17
"""Of a series whose terms fall faster than 1 / k!: the next is below the rounding of float64."""


def left(matrix: Array, vector: Array, times: Array, *, flow: bool) -> Array:
    """What remains of the vector at each time, (t, q). Times may be infinite."""
    with jax.default_matmul_precision("highest"):  # accelerators would round factors to half of their digits
        return _applied(_FLOW_LEFT if flow else _DESCENT_LEFT, matrix, vector, times)


def moved(matrix: Array, vector: Array, times: Array, *, flow: bool) -> Array:
    """The vector summed over the time until each, as it dies away (t, q); none of the null space at infinity."""
    with jax.default_matmul_precision("highest"):
        return _applied(_FLOW_MOVED if flow else _DESCENT_MOVED, matrix, vector, times)


class _Function(NamedTuple):
    """A function of eigenvalues z (t, q) and times (t, 1), its divided differences (t, q, q), its slope over time."""

    values: Callable[[Array, Array], Array]
    differences: Callable[[Array, Array, Array], Array]
    slopes: Callable[[Array, Array], Array]


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _applied(function: _Function, matrix: Array, vector: Array, times: Array) -> Array:
    eigenvalues, eigenvectors = _eigh(matrix, times)
    return (function.values(eigenvalues, times[:, None]) * (eigenvectors.T @ vector)[None, :]) @ eigenvectors.T


def _applied_jvp(
    function: _Function, primals: tuple[Array, ...], tangents: tuple[Array | SymbolicZero, ...]
) -> tuple[Array, Array]:
    matrix, vector, times = primals
    d_matrix, d_vector, d_times = tangents
    eigenvalues, eigenvectors = _eigh(matrix, times)
    t = times[:, None]
    values, start = function.values(eigenvalues, t), eigenvectors.T @ vector
    change = jnp.zeros_like(values)
    if not isinstance(d_matrix, SymbolicZero):
        high = jnp.maximum(eigenvalues[:, :, None], eigenvalues[:, None, :])
        low = jnp.minimum(eigenvalues[:, :, None], eigenvalues[:, None, :])
        turned = eigenvectors.T @ d_matrix @ eigenvectors
        change += jnp.einsum("tij,ij,j->ti", function.differences(high, low, t[:, None]), turned, start)
    if not isinstance(d_vector, SymbolicZero):
        change += values * (eigenvectors.T @ d_vector)[None, :]
    if not isinstance(d_times, SymbolicZero):
        change += d_times[:, None] * function.slopes(eigenvalues, t) * start[None, :]
    return (values * start[None, :]) @ eigenvectors.T, change @ eigenvectors.T


_applied.defjvp(_applied_jvp, symbolic_zeros=True)


def _eigh(matrix: Array, times: Array) -> tuple[Array, Array]:
    """Eigenvalues for each time (t, q), none below zero; at infinity those that rounding hides are zero."""
    eigenvalues, eigenvectors = eigh(matrix)
    hidden = eigenvalues <= rounding_error(eigenvalues, len(matrix))
    unseen = hidden[None, :] & jnp.isinf(times)[:, None]
    return jnp.where(unseen, 0, jnp.maximum(eigenvalues, 0)[None, :]), eigenvectors


def _product(z: Array, t: Array) -> Array:
    """z·t, which is zero for z = 0 at t = ∞ too."""
    return jnp.where(z == 0, 0, z * jnp.where(z == 0, 1, t))


def _inverse(z: Array) -> Array:
    """1/z, and 1 for z = 0, where it is not used."""
    return 1 / jnp.where(z == 0, 1, z)


def _flow_left(z: Array, t: Array) -> Array:
    return jnp.exp(-_product(z, t))


def _flow_passed(z: Array, t: Array) -> Array:
    """1 − e^(−zt), without cancellation."""
    return -jnp.expm1(-_product(z, t))


def _flow_left_differences(high: Array, low: Array, t: Array) -> Array:
    gap = high - low
    mean = jnp.where(gap == 0, t, _flow_passed(gap, t) * _inverse(gap))
    return _finite(high, low, t, -_flow_left(low, t) * mean)


def _descent_left(z: Array, t: Array) -> Array:
    small = jnp.minimum(z, 0.5)
    # 1 − z rounds small z away; and a base of 0 or less has no logarithm, but whole powers
    return jnp.where(z <= 0.5, jnp.exp(_product(jnp.log1p(-small), t)), jnp.power(1 - z, t))


def _descent_passed(z: Array, t: Array) -> Array:
    """1 − (1 − z)^t, without cancellation for small z."""
    small = jnp.minimum(z, 0.5)
    return jnp.where(z <= 0.5, -jnp.expm1(_product(jnp.log1p(-small), t)), 1 - jnp.power(1 - z, t))


def _descent_left_differences(high: Array, low: Array, t: Array) -> Array:
    # −Σ_s (1 − high)^s (1 − low)^(t−1−s): for bases of one sign a geometric sum in their ratio
    bases, gap = (1 - high, 1 - low), high - low
    low_is_larger = jnp.abs(bases[1]) >= jnp.abs(bases[0])
    larger = jnp.where(low_is_larger, low, high)
    fall = jnp.minimum(gap * _inverse(jnp.abs(1 - larger)), 1.0)  # 1 − the ratio
    count = jnp.where(fall == 0, t, -jnp.expm1(_product(jnp.log1p(-fall), t)) * _inverse(fall))
    same = -jnp.where(t == 0, 0, _descent_left(larger, t - 1)) * count
    apart = (_descent_left(high, t) - _descent_left(low, t)) * _inverse(gap)
    return _finite(high, low, t, jnp.where(bases[0] * bases[1] < 0, apart, same))


def _moved(passed: Callable[[Array, Array], Array], z: Array, t: Array) -> Array:
    in_null_space = jnp.where(jnp.isinf(t), 0, t)
    return jnp.where(z == 0, in_null_space, passed(z, t) * _inverse(z))


def _moved_differences(flow: bool, high: Array, low: Array, t: Array) -> Array:
    """Of (1 − left)/z: −(moved(low) + left[high, low]) / high, and a series where that would cancel."""
    function = _FLOW_LEFT if flow else _DESCENT_LEFT
    passed = _flow_passed if flow else _descent_passed
    quotient = -(_moved(passed, low, t) + function.differences(high, low, t)) * _inverse(high)
    is_small = _product(high, t) < 1
    limit = jnp.where(is_small & jnp.isfinite(t), t, 0)
    return jnp.where(is_small, _moved_series(flow, high, low, limit), quotient)


def _moved_series(flow: bool, high: Array, low: Array, t: Array) -> Array:
    """Divided differences of t·Σ_k (−zt)^k c_k with c_k = 1/(k+1)!, or the binomials of t over t^(k+1)."""
    x, y = high * t, low * t
    coefficient, power, symmetric, total = jnp.ones_like(t), jnp.ones_like(y), jnp.ones_like(x), jnp.zeros_like(x)
    for k in range(1, _TERMS + 1):
        whole = 1.0 if flow else (t - k) * _inverse(t)
        coefficient = -coefficient * whole / (k + 1)
        total += coefficient * symmetric
        power = power * y
        symmetric = symmetric * x + power  # Σ_j x^j y^(k−j)
    return total * t**2


def _finite(high: Array, low: Array, t: Array, differences: Array) -> Array:
    """The differences, and at infinity none between equal eigenvalues: what is left does not depend on them."""
    return jnp.where(jnp.isinf(t) & (high == low), 0, differences)


_FLOW_LEFT = _Function(_flow_left, _flow_left_differences, lambda z, t: -z * _flow_left(z, t))
_FLOW_MOVED = _Function(
    functools.partial(_moved, _flow_passed), functools.partial(_moved_differences, True), _flow_left
)
# steps are whole numbers: nothing changes between them
_DESCENT_LEFT = _Function(_descent_left, _descent_left_differences, lambda z, t: jnp.zeros_like(z))
_DESCENT_MOVED = _Function(
    functools.partial(_moved, _descent_passed),
    functools.partial(_moved_differences, False),
    lambda z, t: jnp.zeros_like(z),
)
