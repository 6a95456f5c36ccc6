"""How a residual v decays under linear dynamics with a symmetric positive semi-definite matrix M.

`remaining` is the residual at time t, and `integral` its integral (or its sum over steps) from 0 to t:

    gradient flow       remaining = e^(−Mt) v     integral = M⁻¹ (I − e^(−Mt)) v
    gradient descent    remaining = (I − M)^t v   integral = M⁻¹ (I − (I − M)^t) v

Both are smooth functions of M; in the null space of M, `integral` is t·v. They are computed from eigenvectors, but not
differentiated through them: the derivative of eigenvectors divides by gaps between eigenvalues, which are zero if an
eigenvalue repeats, as in a kernel that is the same for each output. Instead, the derivative of f(M) is, in the
eigenbasis, the entrywise product of dM with the divided differences f[z_i, z_j] = (f(z_i) − f(z_j)) / (z_i − z_j),
which are f'(z_i) for z_i = z_j and are computed here without cancellation. Source: Daleckii and Krein (1965).

`expected_square` is the mean of ‖remaining‖² over random v, of which the second moments E v vᵀ are known.

Shapes: q is the size of M. Eigenvalues are called z.
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

__all__ = ["counted", "expected_square", "integral", "integral_values", "remaining", "remaining_values"]

_TERMS = 17
"""Terms kept of a series whose k-th term is below 1 / k!: the first omitted one is below float64's machine epsilon."""


def remaining(matrix: Array, vector: Array, times: Array, *, flow: bool) -> Array:
    """The residual of a vector (q,) at each time, (t, q). Times may be infinite."""
    with jax.default_matmul_precision("highest"):  # by default GPUs and TPUs round the factors of products
        return _applied(_FLOW_REMAINING if flow else _DESCENT_REMAINING, matrix, vector, times)


def integral(matrix: Array, vector: Array, times: Array, *, flow: bool) -> Array:
    """The integral of the residual of a vector (q,) up to each time, (t, q).

    At infinite times, where the integral over the null space diverges, that part is taken as zero.
    """
    with jax.default_matmul_precision("highest"):
        return _applied(_FLOW_INTEGRAL if flow else _DESCENT_INTEGRAL, matrix, vector, times)


def expected_square(matrix: Array, moments: Array, times: Array, *, flow: bool) -> Array:
    """The mean square of the residual of a random vector with second moments S (q, q) at each time, tr(f(M, t)² S)."""
    with jax.default_matmul_precision("highest"):
        return _traced(_FLOW_REMAINING if flow else _DESCENT_REMAINING, matrix, moments, 2 * times)  # f² is f at 2 t


class _Function(NamedTuple):
    """A function f of eigenvalues and times, with its derivatives by both.

    Attributes:
        values: f(z, t) for z (t, q) and times (t, 1), of shape (t, q).
        differences: f[high, low] for pairs of eigenvalues high ≥ low (t, q, q) and times (t, 1, 1), of shape (t, q, q).
        time_derivative: ∂f/∂t, with arguments and shape of `values`.
    """

    values: Callable[[Array, Array], Array]
    differences: Callable[[Array, Array, Array], Array]
    time_derivative: Callable[[Array, Array], Array]


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _applied(function: _Function, matrix: Array, vector: Array, times: Array) -> Array:
    """f(M, t) v for each time t, (t, q)."""
    eigenvalues, eigenvectors = _eigh(matrix, times)
    return (function.values(eigenvalues, times[:, None]) * (eigenvectors.T @ vector)[None, :]) @ eigenvectors.T


def _applied_jvp(
    function: _Function, primals: tuple[Array, ...], tangents: tuple[Array | SymbolicZero, ...]
) -> tuple[Array, Array]:
    matrix, vector, times = primals
    d_matrix, d_vector, d_times = tangents
    eigenvalues, eigenvectors = _eigh(matrix, times)
    t = times[:, None]
    # coordinates of the vector, and below of the derivative of the result, in the eigenbasis
    values, coordinates = function.values(eigenvalues, t), eigenvectors.T @ vector
    d_result = jnp.zeros_like(values)
    if not isinstance(d_matrix, SymbolicZero):
        high = jnp.maximum(eigenvalues[:, :, None], eigenvalues[:, None, :])
        low = jnp.minimum(eigenvalues[:, :, None], eigenvalues[:, None, :])
        d_eigenbasis = eigenvectors.T @ d_matrix @ eigenvectors
        d_result += jnp.einsum("tij,ij,j->ti", function.differences(high, low, t[:, None]), d_eigenbasis, coordinates)
    if not isinstance(d_vector, SymbolicZero):
        d_result += values * (eigenvectors.T @ d_vector)[None, :]
    if not isinstance(d_times, SymbolicZero):
        d_result += d_times[:, None] * function.time_derivative(eigenvalues, t) * coordinates[None, :]
    return (values * coordinates[None, :]) @ eigenvectors.T, d_result @ eigenvectors.T


_applied.defjvp(_applied_jvp, symbolic_zeros=True)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _traced(function: _Function, matrix: Array, moments: Array, times: Array) -> Array:
    """tr(f(M, t) S) for each time t, (t,)."""
    eigenvalues, eigenvectors = _eigh(matrix, times)
    return function.values(eigenvalues, times[:, None]) @ jnp.diag(eigenvectors.T @ moments @ eigenvectors)


def _traced_jvp(
    function: _Function, primals: tuple[Array, ...], tangents: tuple[Array | SymbolicZero, ...]
) -> tuple[Array, Array]:
    matrix, moments, times = primals
    d_matrix, d_moments, d_times = tangents
    eigenvalues, eigenvectors = _eigh(matrix, times)
    t = times[:, None]
    values, in_eigenbasis = function.values(eigenvalues, t), eigenvectors.T @ moments @ eigenvectors
    d_result = jnp.zeros_like(values[:, 0])
    if not isinstance(d_matrix, SymbolicZero):
        high = jnp.maximum(eigenvalues[:, :, None], eigenvalues[:, None, :])
        low = jnp.minimum(eigenvalues[:, :, None], eigenvalues[:, None, :])
        d_eigenbasis = eigenvectors.T @ d_matrix @ eigenvectors
        d_result += jnp.einsum("tij,ij,ji->t", function.differences(high, low, t[:, None]), d_eigenbasis, in_eigenbasis)
    if not isinstance(d_moments, SymbolicZero):
        d_result += values @ jnp.diag(eigenvectors.T @ d_moments @ eigenvectors)
    if not isinstance(d_times, SymbolicZero):
        d_result += d_times * (function.time_derivative(eigenvalues, t) @ jnp.diag(in_eigenbasis))
    return values @ jnp.diag(in_eigenbasis), d_result


_traced.defjvp(_traced_jvp, symbolic_zeros=True)


def _eigh(matrix: Array, times: Array) -> tuple[Array, Array]:
    """Eigenvalues for each time (t, q), and eigenvectors (q, q)."""
    eigenvalues, eigenvectors = eigh(matrix)
    return counted(eigenvalues, len(matrix), times), eigenvectors


def counted(eigenvalues: Array, size: int, times: Array) -> Array:
    """Some eigenvalues of a matrix with `size` rows, as they count at each time, (t, …).

    Negative eigenvalues are set to zero; at infinite times, so are those within rounding of zero.
    """
    within_rounding = eigenvalues <= rounding_error(eigenvalues, size)
    is_zero = within_rounding[None, :] & jnp.isinf(times)[:, None]
    return jnp.where(is_zero, 0, jnp.maximum(eigenvalues, 0)[None, :])


def remaining_values(eigenvalues: Array, times: Array, *, flow: bool) -> Array:
    """What e^(−Mt) or (I − M)^t multiplies the parts in eigenspaces with, (t, q), for times (t, 1)."""
    return (_FLOW_REMAINING if flow else _DESCENT_REMAINING).values(eigenvalues, times)


def integral_values(eigenvalues: Array, times: Array, *, flow: bool) -> Array:
    """What the integral up to each time multiplies the parts in eigenspaces with, (t, q), for times (t, 1)."""
    return (_FLOW_INTEGRAL if flow else _DESCENT_INTEGRAL).values(eigenvalues, times)


def _product(z: Array, t: Array) -> Array:
    """z·t, with 0·∞ = 0."""
    return jnp.where(z == 0, 0, z * jnp.where(z == 0, 1, t))


def _inverse(z: Array) -> Array:
    """1/z; for z = 0, where callers do not use the result, 1."""
    return 1 / jnp.where(z == 0, 1, z)


def _flow_remaining(z: Array, t: Array) -> Array:
    return jnp.exp(-_product(z, t))


def _flow_decayed(z: Array, t: Array) -> Array:
    """1 − e^(−zt), without cancellation."""
    return -jnp.expm1(-_product(z, t))


def _flow_remaining_differences(high: Array, low: Array, t: Array) -> Array:
    """−e^(−low·t) (1 − e^(−gap·t)) / gap with gap = high − low."""
    gap = high - low
    quotient = jnp.where(gap == 0, t, _flow_decayed(gap, t) * _inverse(gap))
    return _zero_between_equals_at_infinity(high, low, t, -_flow_remaining(low, t) * quotient)


def _descent_remaining(z: Array, t: Array) -> Array:
    """(1 − z)^t, for whole t."""
    small = jnp.minimum(z, 0.5)
    # e^(t·log(1 − z)) for small z, which 1 − z would round away; a power for z > 0.5, where 1 − z may be negative
    return jnp.where(z <= 0.5, jnp.exp(_product(jnp.log1p(-small), t)), jnp.power(1 - z, t))


def _descent_decayed(z: Array, t: Array) -> Array:
    """1 − (1 − z)^t, without cancellation for small z."""
    small = jnp.minimum(z, 0.5)
    return jnp.where(z <= 0.5, -jnp.expm1(_product(jnp.log1p(-small), t)), 1 - jnp.power(1 - z, t))


def _descent_remaining_differences(high: Array, low: Array, t: Array) -> Array:
    """−Σ_s (1 − high)^s (1 − low)^(t−1−s) over s = 0 … t − 1."""
    base_high, base_low, gap = 1 - high, 1 - low, high - low
    # For bases of one sign, a geometric sum: −b^(t−1) (1 − ratio^t) / (1 − ratio), with b the base of larger size.
    z_of_larger_base = jnp.where(jnp.abs(base_low) >= jnp.abs(base_high), low, high)
    one_minus_ratio = jnp.minimum(gap * _inverse(jnp.abs(1 - z_of_larger_base)), 1.0)
    geometric_sum = jnp.where(
        one_minus_ratio == 0,
        t,
        -jnp.expm1(_product(jnp.log1p(-one_minus_ratio), t)) * _inverse(one_minus_ratio),
    )
    one_sign = -jnp.where(t == 0, 0, _descent_remaining(z_of_larger_base, t - 1)) * geometric_sum
    # For bases of opposite signs the gap is at least the size of either base, so dividing by it is accurate.
    opposite_signs = (_descent_remaining(high, t) - _descent_remaining(low, t)) * _inverse(gap)
    differences = jnp.where(base_high * base_low < 0, opposite_signs, one_sign)
    return _zero_between_equals_at_infinity(high, low, t, differences)


def _integral(decayed: Callable[[Array, Array], Array], z: Array, t: Array) -> Array:
    """decayed(z, t) / z; for z = 0 its limit t, or 0 if t is infinite."""
    value_at_zero = jnp.where(jnp.isinf(t), 0, t)
    return jnp.where(z == 0, value_at_zero, decayed(z, t) * _inverse(z))


def _integral_differences(flow: bool, high: Array, low: Array, t: Array) -> Array:
    """−(integral(low) + remaining[high, low]) / high, or, for high·t < 1, a series, as the sum would cancel there."""
    function = _FLOW_REMAINING if flow else _DESCENT_REMAINING
    decayed = _flow_decayed if flow else _descent_decayed
    quotient = -(_integral(decayed, low, t) + function.differences(high, low, t)) * _inverse(high)
    is_small = _product(high, t) < 1
    series_t = jnp.where(is_small & jnp.isfinite(t), t, 0)  # zero where the series is not used and might overflow
    return jnp.where(is_small, _integral_series(flow, high, low, series_t), quotient)


def _integral_series(flow: bool, high: Array, low: Array, t: Array) -> Array:
    """Divided differences of the series integral(z) = t·Σ_k c_k (−zt)^k.

    c_k is 1 / (k+1)! for gradient flow, and the binomial coefficient (t over k+1) / t^(k+1) for gradient descent. The
    divided difference of z^k is Σ_j high^j low^(k−1−j).
    """
    x, y = high * t, low * t
    coefficient, power, homogeneous, total = jnp.ones_like(t), jnp.ones_like(y), jnp.ones_like(x), jnp.zeros_like(x)
    for k in range(1, _TERMS + 1):
        binomial_factor = 1.0 if flow else (t - k) * _inverse(t)
        coefficient = -coefficient * binomial_factor / (k + 1)
        total += coefficient * homogeneous
        power = power * y
        homogeneous = homogeneous * x + power  # Σ_j x^j y^(k−j), for the next k
    return total * t**2


def _zero_between_equals_at_infinity(high: Array, low: Array, t: Array, differences: Array) -> Array:
    """The differences, but zero for equal eigenvalues at infinite times, where the formulas would give NaN."""
    return jnp.where(jnp.isinf(t) & (high == low), 0, differences)


_FLOW_REMAINING = _Function(_flow_remaining, _flow_remaining_differences, lambda z, t: -z * _flow_remaining(z, t))
_FLOW_INTEGRAL = _Function(
    functools.partial(_integral, _flow_decayed), functools.partial(_integral_differences, True), _flow_remaining
)
# times of gradient descent are whole numbers of steps, so the derivative by them is zero
_DESCENT_REMAINING = _Function(_descent_remaining, _descent_remaining_differences, lambda z, t: jnp.zeros_like(z))
_DESCENT_INTEGRAL = _Function(
    functools.partial(_integral, _descent_decayed),
    functools.partial(_integral_differences, False),
    lambda z, t: jnp.zeros_like(z),
)
