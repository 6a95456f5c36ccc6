"""Estimates from random probes: a mean with its standard error, or an exact value."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp

from pathjax.types import Estimate

__all__ = ["exact", "mean"]


def mean(samples: Any) -> Estimate:
    """The mean of independent samples (s,) and its standard error; NaN for a single sample."""
    return Estimate(jnp.mean(samples), jnp.std(samples, ddof=1) / math.sqrt(len(samples)))


def exact(value: Any) -> Estimate:
    """A value known exactly, with a standard error of zero."""
    return Estimate(value, jnp.zeros_like(value))
