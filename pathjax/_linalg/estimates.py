"""Means over random probes, with their standard errors."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp

from pathjax.types import Estimate

__all__ = ["exact", "mean"]


def mean(samples: Any) -> Estimate:
    """The mean of independent samples."""
    return Estimate(jnp.mean(samples), jnp.std(samples, ddof=1) / math.sqrt(len(samples)))


def exact(value: Any) -> Estimate:
    """A value that is known."""
    return Estimate(value, jnp.zeros_like(value))
