"""How the residual v of linear dynamics decays: functions of a symmetric matrix M, applied to a vector.

`remaining` is the residual at each time t, `integral` its integral, or sum over steps, from 0 to t:

    gradient flow       remaining = e^(−Mt) v     integral = M⁻¹ (I − e^(−Mt)) v
    gradient descent    remaining = (I − M)^t v   integral = M⁻¹ (I − (I − M)^t) v

Both are smooth functions of M; in its null space `integral` is t·v. The derivative of an eigendecomposition divides by
the gaps between eigenvalues, which may be zero, as for kernels of several outputs. That of a function of M does not:
its entries in the eigenbasis are divided differences of the function. Source: Daleckii and Krein (1965).
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

__all__ = ["integral", "remaining"]

_TERMS = 17
"""Terms of a series whose k-th term is below 1 / k!: the first that is left out is below the rounding of float64."""


def remaining(matrix: Array, vector: Array, times: Array, *, flow: bool) -> Array:
    """The residual at each time, (t, q). Times may be infinite."""
    with jax.default_matmul_precision("highest"):  # accelerators would round factors to half of their digits
        return _applied(_FLOW_REMAINING if flow else _DESCENT_REMAINING, matrix, vector, times)


def integral(matrix: Array, vector: Array, times: Array, *, flow: bool) -> Array:
    """The integral of the residual up to each time, (t, q); at infinity without its part in the null space."""
    with jax.default_matmul_precision("highest"):
        return _applied(_FLOW_INTEGRAL if flow else _DESCENT_INTEGRAL, matrix, vector, times)


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
        in_eigenbasis = eigenvectors.T @ d_matrix @ eigenvectors
        change += jnp.einsum("tij,ij,j->ti", function.differences(high, low, t[:, None]), in_eigenbasis, start)
    if not isinstance(d_vector, SymbolicZero):
        change += values * (eigenvectors.T @ d_vector)[None, :]
    if not isinstance(d_times, SymbolicZero):
        change += d_times[:, None] * function.slopes(eigenvalues, t) * start[None, :]
    return (values * start[None, :]) @ eigenvectors.T, change @ eigenvectors.T


_applied.defjvp(_applied_jvp, symbolic_zeros=True)


def _eigh(matrix: Array, times: Array) -> tuple[Array, Array]:
    """Eigenvalues for each time (t, q), none below zero, and eigenvectors; at infinity rounding counts as zero."""
    eigenvalues, eigenvectors = eigh(matrix)
    is_rounding = eigenvalues <= rounding_error(eigenvalues, len(matrix))
    is_zero = is_rounding[None, :] & jnp.isinf(times)[:, None]
    return jnp.where(is_zero, 0, jnp.maximum(eigenvalues, 0)[None, :]), eigenvectors


def _product(z: Array, t: Array) -> Array:
    """z·t, which is zero for z = 0 at t = ∞ too."""
    return jnp.where(z == 0, 0, z * jnp.where(z == 0, 1, t))


def _inverse(z: Array) -> Array:
    """1/z, and 1 for z = 0, where it is not used."""
    return 1 / jnp.where(z == 0, 1, z)


def _flow_remaining(z: Array, t: Array) -> Array:
    return jnp.exp(-_product(z, t))


def _flow_decayed(z: Array, t: Array) -> Array:
    """1 − e^(−zt), without cancellation."""
    return -jnp.expm1(-_product(z, t))


def _flow_remaining_differences(high: Array, low: Array, t: Array) -> Array:
    gap = high - low
    mean = jnp.where(gap == 0, t, _flow_decayed(gap, t) * _inverse(gap))
    return _finite(high, low, t, -_flow_remaining(low, t) * mean)


def _descent_remaining(z: Array, t: Array) -> Array:
    small = jnp.minimum(z, 0.5)
    # by the logarithm where 1 − z would round small z away; a base of 0 or less has whole powers alone
    return jnp.where(z <= 0.5, jnp.exp(_product(jnp.log1p(-small), t)), jnp.power(1 - z, t))


def _descent_decayed(z: Array, t: Array) -> Array:
    """1 − (1 − z)^t, without cancellation for small z."""
    small = jnp.minimum(z, 0.5)
    return jnp.where(z <= 0.5, -jnp.expm1(_product(jnp.log1p(-small), t)), 1 - jnp.power(1 - z, t))


def _descent_remaining_differences(high: Array, low: Array, t: Array) -> Array:
    # −Σ_s (1 − high)^s (1 − low)^(t−1−s): for bases of one sign a geometric sum in their ratio
    bases, gap = (1 - high, 1 - low), high - low
    low_is_larger = jnp.abs(bases[1]) >= jnp.abs(bases[0])
    larger = jnp.where(low_is_larger, low, high)
    fall = jnp.minimum(gap * _inverse(jnp.abs(1 - larger)), 1.0)  # 1 − the ratio
    count = jnp.where(fall == 0, t, -jnp.expm1(_product(jnp.log1p(-fall), t)) * _inverse(fall))
    of_one_sign = -jnp.where(t == 0, 0, _descent_remaining(larger, t - 1)) * count
    of_both_signs = (_descent_remaining(high, t) - _descent_remaining(low, t)) * _inverse(gap)
    return _finite(high, low, t, jnp.where(bases[0] * bases[1] < 0, of_both_signs, of_one_sign))


def _integral(decayed: Callable[[Array, Array], Array], z: Array, t: Array) -> Array:
    in_null_space = jnp.where(jnp.isinf(t), 0, t)
    return jnp.where(z == 0, in_null_space, decayed(z, t) * _inverse(z))


def _integral_differences(flow: bool, high: Array, low: Array, t: Array) -> Array:
    """Of (1 − remaining)/z: −(integral(low) + remaining[high, low]) / high, and a series where that would cancel."""
    function = _FLOW_REMAINING if flow else _DESCENT_REMAINING
    decayed = _flow_decayed if flow else _descent_decayed
    quotient = -(_integral(decayed, low, t) + function.differences(high, low, t)) * _inverse(high)
    is_small = _product(high, t) < 1
    limit = jnp.where(is_small & jnp.isfinite(t), t, 0)
    return jnp.where(is_small, _integral_series(flow, high, low, limit), quotient)


def _integral_series(flow: bool, high: Array, low: Array, t: Array) -> Array:
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
    """The differences, zero between equal eigenvalues at infinite times, where the function is constant."""
    return jnp.where(jnp.isinf(t) & (high == low), 0, differences)


_FLOW_REMAINING = _Function(_flow_remaining, _flow_remaining_differences, lambda z, t: -z * _flow_remaining(z, t))
_FLOW_INTEGRAL = _Function(
    functools.partial(_integral, _flow_decayed), functools.partial(_integral_differences, True), _flow_remaining
)
# the times of gradient descent are whole numbers of steps, so there is no derivative by them
_DESCENT_REMAINING = _Function(_descent_remaining, _descent_remaining_differences, lambda z, t: jnp.zeros_like(z))
_DESCENT_INTEGRAL = _Function(
    functools.partial(_integral, _descent_decayed),
    functools.partial(_integral_differences, False),
    lambda z, t: jnp.zeros_like(z),
)
