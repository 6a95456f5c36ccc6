"""Means over random probes, with what is known of their errors."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["Estimate", "exact", "mean"]


class Estimate(NamedTuple):
    """A mean over random probes and its standard error: 0 where the value is exact, NaN of a single probe."""

    value: Float[Array, ""]
    standard_error: Float[Array, ""]


def mean(samples: Any) -> Estimate:
    """The mean of independent samples."""
    return Estimate(jnp.mean(samples), jnp.std(samples, ddof=1) / math.sqrt(len(samples)))


def exact(value: Any) -> Estimate:
    """A value that is known."""
    return Estimate(value, jnp.zeros_like(value))
