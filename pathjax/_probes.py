"""What is learned of a function with a derivative rule of its own by trying it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from pathjax._jaxpr import Equation, is_concrete

__all__ = ["slope_at_zero"]


def slope_at_zero(call: Equation) -> float:
    """The derivative at 0 by the call's own rule, which must elsewhere be the derivative of what the call computes.

    Read on probes: a straight-through estimator, say, has paths in its values but not in its derivative.
    """
    if not all(jnp.issubdtype(operand.dtype, jnp.floating) for operand in call.inputs):
        return 0.0
    keys = jax.random.split(jax.random.key(0), len(call.inputs))
    with jax.ensure_compile_time_eval():
        probes = [jax.random.normal(key, like.shape, like.dtype) for key, like in zip(keys, call.inputs, strict=True)]
        by_rule, of_body = (_pulled_back(function, probes) for function in (call.bind, call.body))
        if not all(map(is_concrete, [*by_rule, *of_body])):
            return 0.0  # it closes over values that are not known yet, so that there is nothing to compare
        if not all(np.allclose(a, b, rtol=1e-3, atol=1e-3) for a, b in zip(by_rule, of_body, strict=True)):
            raise call.refuse(
                "Its derivative rule is not the derivative of what it computes.",
                "Take the rule away, or compute what it differentiates.",
            )
        if len(probes) > 1 or probes[0].size == 0:
            return 0.0
        return float(jnp.ravel(_pulled_back(call.bind, [jnp.zeros_like(probes[0])])[0])[0])


def _pulled_back(function: Callable[..., Any], arrays: Sequence[Any]) -> Sequence[Any]:
    """The derivative of the sum of all results."""
    results, pull = jax.vjp(function, *arrays)
    return cast("Sequence[Any]", pull([jnp.ones_like(result) for result in results]))
