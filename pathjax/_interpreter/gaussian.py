"""Moments of rectified Gaussians (the arc-cosine kernels), with derivatives that stay finite where they exist."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["angle", "ramps"]


@jax.custom_jvp
def angle(covariance: Any, first: Any, second: Any) -> Any:
    """The angle θ with cos θ = E[a b] / (σ_a σ_b), of two Gaussians of mean 0 with these variances; π/2 for a zero one.

    Both are positive with probability (π − θ)/(2π).
    """
    cosine = _cosine(covariance, first, second)
    return jnp.arctan2(jnp.sqrt((1 - cosine) * (1 + cosine)), cosine)


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
