"""Moments of rectified Gaussians, with derivatives that stay finite where they exist.

Those of mean 0 are the arc-cosine kernels.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import ndtr

__all__ = ["Pair", "angle", "mean_ramp", "ramps", "shifted_ramps"]


@jax.custom_jvp
def angle(covariance: Any, first: Any, second: Any) -> Any:
    """The angle θ with cos θ = E[a b] / (σ_a σ_b), of two Gaussians of mean 0 with these variances; π/2 for a zero one.

    Both are positive with probability (π − θ)/(2π).
    """
    cosine = _cosine(covariance, first, second)
    return 2 * _arctangent(jnp.sqrt(1 - cosine), jnp.sqrt(1 + cosine))


@angle.defjvp
def _angle_jvp(primals: Any, tangents: Any) -> Any:
    covariance, first, second = primals
    area = _area(*primals)
    inverse = jnp.where(area > 0, 1 / jnp.where(area > 0, area, 1), 0)
    growth = _growth(first, second, tangents)
    return angle(*primals), inverse * (covariance * growth / 2 - tangents[0])


@jax.custom_jvp
def ramps(covariance: Any, first: Any, second: Any) -> Any:
    """E[max(a, 0) max(b, 0)] of two Gaussians of mean 0 with this covariance and these variances.

    (σ_a σ_b sin θ + (π − θ) E[a b]) / (2π): Cho and Saul (2009), equation 6 for n = 1.
    """
    opening = jnp.pi - angle(covariance, first, second)
    return (_area(covariance, first, second) + opening * covariance) / (2 * jnp.pi)


@ramps.defjvp
def _ramps_jvp(primals: Any, tangents: Any) -> Any:
    _, first, second = primals
    opening = (jnp.pi - angle(*primals)) / (2 * jnp.pi)
    growth = _growth(first, second, tangents)
    return ramps(*primals), opening * tangents[0] + _area(*primals) * growth / (4 * jnp.pi)


# arctan(t) ≈ t + t³ P(t²) / Q(t²) for |t| ≤ 0.66, to 2e-16: the coefficients of Cephes (Moshier, 1989)
_NUMERATOR = (-0.8750608600031904, -16.157537187333652, -75.00855792314705, -122.88666844901361, -64.85021904942025)
_DENOMINATOR = (1.0, 24.858464901423062, 165.02700983169885, 432.88106049129027, 485.3903996359137, 194.55065714826139)
_TAN_3_8, _MIDDLE = 1 + math.sqrt(2), 0.66


def _arctangent(opposite: Any, adjacent: Any) -> Any:
    """arctan(opposite / adjacent) of two lengths that are not both 0, in [0, π/2].

    XLA's own arctangent calls the C library for each number on CPUs, which takes eight times as long.
    """
    steep, middling = opposite > _TAN_3_8 * adjacent, opposite > _MIDDLE * adjacent
    numerator = jnp.where(steep, -adjacent, jnp.where(middling, opposite - adjacent, opposite))
    denominator = jnp.where(steep, opposite, jnp.where(middling, opposite + adjacent, adjacent))
    start = jnp.where(steep, jnp.pi / 2, jnp.where(middling, jnp.pi / 4, 0.0)).astype(numerator.dtype)
    ratio = numerator / denominator
    square = jnp.square(ratio)
    return start + (ratio + ratio * square * _horner(_NUMERATOR, square) / _horner(_DENOMINATOR, square))


def _horner(coefficients: Sequence[float], x: Any) -> Any:
    """The polynomial with these coefficients, that of the highest power first."""
    return functools.reduce(lambda total, coefficient: total * x + coefficient, coefficients)


def _cosine(covariance: Any, first: Any, second: Any) -> Any:
    product = jnp.sqrt(first) * jnp.sqrt(second)
    return jnp.clip(jnp.where(product > 0, covariance / jnp.where(product > 0, product, 1), 0), -1, 1)


def _area(covariance: Any, first: Any, second: Any) -> Any:
    """σ_a σ_b sin θ."""
    cosine = _cosine(covariance, first, second)
    return jnp.sqrt(first) * jnp.sqrt(second) * jnp.sqrt((1 - cosine) * (1 + cosine))


def _growth(first: Any, second: Any, tangents: Any) -> Any:
    """The derivative of log σ_a² + log σ_b²."""
    terms = [
        jnp.where(variance > 0, tangent / jnp.where(variance > 0, variance, 1), 0)
        for variance, tangent in ((first, tangents[1]), (second, tangents[2]))
    ]
    return terms[0] + terms[1]


class Pair(NamedTuple):
    """Two Gaussians: their covariance, their variances and their means."""

    covariance: Any
    first: Any
    second: Any
    first_mean: Any
    second_mean: Any


class _Standard(NamedTuple):
    """Two Gaussians in units of their standard deviations.

    Attributes:
        h, k: the means.
        rho: the correlation.
        rest: √(1 − ρ²).
        first, second: the standard deviations.
    """

    h: Any
    k: Any
    rho: Any
    rest: Any
    first: Any
    second: Any


# Means beyond so many standard deviations are as good as certain in float64.
_FARTHEST = 38.0

# Nodes and weights on [0, 1] of the integral over correlations, dense at its end, where it is steep: t = 1 − v³.
_V, _WEIGHTS = np.polynomial.legendre.leggauss(32)
_NODES, _WEIGHTS = 1 - ((_V + 1) / 2) ** 3, 3 * ((_V + 1) / 2) ** 2 * _WEIGHTS / 2


def mean_ramp(variance: Any, mean: Any) -> tuple[Any, Any]:
    """E[max(a, 0)] and P(a > 0) of a Gaussian."""
    deviation = _root(variance)
    h = _in_units(mean, deviation)
    return mean * ndtr(h) + deviation * _density(h), ndtr(h)


def _both_positive(s: _Standard) -> Any:
    """The probability that both are positive, to about 10 digits.

    Φ(h) Φ(k) + ∫₀^{arcsin ρ} exp(−(h² + k² − 2 h k sin t) / (2 cos² t)) dt / (2π): Drezner, Wesolowsky (1990).
    """
    h, k, rho = s.h, s.k, s.rho
    sign, end = jnp.where(rho < 0, -1.0, 1.0).astype(rho.dtype), jnp.arcsin(jnp.abs(rho))

    def add(total: Any, node: Any) -> tuple[Any, None]:
        t = end * node[0]
        apart = jnp.square(h - sign * k) / jnp.maximum(2 * jnp.square(jnp.cos(t)), jnp.finfo(t.dtype).tiny)
        return total + node[1] * jnp.exp(-apart - sign * h * k / (1 + jnp.sin(t))), None

    nodes = jnp.stack([jnp.asarray(_NODES, end.dtype), jnp.asarray(_WEIGHTS, end.dtype)], axis=1)
    zero = jnp.zeros(jnp.broadcast_shapes(h.shape, k.shape, end.shape), end.dtype)
    integral, _ = lax.scan(add, zero, nodes)
    return ndtr(h) * ndtr(k) + sign * end * integral / (2 * jnp.pi)


@jax.custom_jvp
def shifted_ramps(pair: Pair) -> tuple[Any, Any]:
    """E[max(a, 0) max(b, 0)] and P(a, b > 0) of two Gaussians with means: Rosenbaum (1961)."""
    s = _standard(pair)
    share = _both_positive(s)
    first, second = _tilts(s)
    open_first, open_second = _given(s)
    product = s.rho * (share - s.h * _density(s.h) * open_second - s.k * _density(s.k) * open_first)
    value = (
        pair.first_mean * pair.second_mean * share
        + pair.first_mean * s.second * second
        + pair.second_mean * s.first * first
        + s.first * s.second * (product + _joint_density(s))
    )
    return value, share


@shifted_ramps.defjvp
def _shifted_ramps_jvp(primals: Any, tangents: Any) -> Any:
    (pair,), (change,) = primals, tangents
    s, (value, share) = _standard(pair), shifted_ramps(pair)
    first, second = _tilts(s)
    derivative = (
        share * change.covariance
        + (pair.second_mean * share + s.second * second) * change.first_mean
        + (pair.first_mean * share + s.first * first) * change.second_mean
    )
    for h, deviation, other_mean, other, tangent in (
        (s.h, s.first, pair.second_mean, s.second, change.first),
        (s.k, s.second, pair.first_mean, s.first, change.second),
    ):
        ramp, _ = mean_ramp(jnp.square(other * s.rest), other_mean - s.rho * other * h)  # of one where the other is 0
        derivative = derivative + _per(_density(h) * tangent, deviation) * ramp / 2
    return (value, share), (derivative, _change_of_share(s, pair, change))


def _change_of_share(s: _Standard, pair: Pair, change: Pair) -> Any:
    """The derivative of P(a, b > 0)."""
    growth, other_growth = _per(change.first, pair.first), _per(change.second, pair.second)
    dh = _per(change.first_mean, s.first) - s.h * growth / 2
    dk = _per(change.second_mean, s.second) - s.k * other_growth / 2
    drho = _per(change.covariance, s.first * s.second) - s.rho * (growth + other_growth) / 2
    open_first, open_second = _given(s)
    joint = _per(_joint_density(s), jnp.square(s.rest))
    return _density(s.h) * open_second * dh + _density(s.k) * open_first * dk + joint * drho


def _standard(pair: Pair) -> _Standard:
    first, second = _root(pair.first), _root(pair.second)
    rho = _cosine(pair.covariance, jnp.maximum(pair.first, 0), jnp.maximum(pair.second, 0))
    rest = jnp.sqrt((1 - rho) * (1 + rho))
    return _Standard(_in_units(pair.first_mean, first), _in_units(pair.second_mean, second), rho, rest, first, second)


def _root(variance: Any) -> Any:
    """The standard deviation; its derivative is taken as 0 at 0, where it is infinite and no path leads on."""
    is_positive = variance > 0
    return jnp.where(is_positive, jnp.sqrt(jnp.where(is_positive, variance, 1)), 0)


def _in_units(mean: Any, deviation: Any) -> Any:
    """The mean in standard deviations; as far as counts of one that is certain."""
    certain = jnp.sign(mean) * _FARTHEST
    return jnp.where(deviation > 0, jnp.clip(_per(mean, deviation), -_FARTHEST, _FARTHEST), certain)


def _per(numerator: Any, denominator: Any) -> Any:
    """The ratio, 0 where the denominator is."""
    return jnp.where(denominator > 0, numerator / jnp.where(denominator > 0, denominator, 1), 0)


def _density(h: Any) -> Any:
    return jnp.exp(-jnp.square(h) / 2) / math.sqrt(2 * math.pi)


def _given(s: _Standard) -> tuple[Any, Any]:
    """The probability that the first is positive where the second is 0, and of the second where the first is."""
    rest = jnp.maximum(s.rest, jnp.finfo(s.rest.dtype).tiny)
    return ndtr((s.h - s.rho * s.k) / rest), ndtr((s.k - s.rho * s.h) / rest)


def _tilts(s: _Standard) -> tuple[Any, Any]:
    """E[z; both positive] of the first and of the second without its mean, in its standard deviations."""
    open_first, open_second = _given(s)
    first, second = _density(s.h) * open_second, _density(s.k) * open_first
    return first + s.rho * second, s.rho * first + second


def _joint_density(s: _Standard) -> Any:
    """(1 − ρ²) times the density of both at 0."""
    # as a sum of squares, which rounding cannot make negative
    apart = jnp.square(s.h - s.rho * s.k) / jnp.maximum(2 * jnp.square(s.rest), jnp.finfo(s.rest.dtype).tiny)
    return s.rest * jnp.exp(-apart - jnp.square(s.k) / 2) / (2 * jnp.pi)
