"""What is learned of a function with a derivative rule of its own by trying it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pathjax._interpreter.jaxpr import Equation, is_concrete

__all__ = ["slope_at_zero"]

# A rule must be linear in the cotangent: one that clips it is found by a large one.
_COTANGENTS = (1.0, -1000.0)


def slope_at_zero(call: Equation) -> float:
    """The derivative at 0 by the call's own rule, which must elsewhere be the derivative of what the call computes.

    Read on probes: a straight-through estimator, say, has paths in its values but not in its derivative. Whole numbers
    among the operands are probed as 0. A function of several operands counts as having slope 0 at a tie.
    """
    with jax.ensure_compile_time_eval():
        probes = [_probe(i, like) for i, like in enumerate(call.inputs)]
        for cotangent in _COTANGENTS:
            by_rule, of_body = (_pulled_back(function, probes, cotangent) for function in (call.bind, call.body))
            if not all(map(is_concrete, [*by_rule, *of_body])):
                return 0.0  # it closes over values that are not known yet, so that there is nothing to compare
            if not all(_are_close(a, b, cotangent) for a, b in zip(by_rule, of_body, strict=True)):
                raise call.refuse(
                    "Its derivative rule is not the derivative of what it computes.",
                    "Take the rule away, or compute what it differentiates.",
                )
        if len(probes) > 1 or probes[0].size == 0:
            return 0.0
        return float(jnp.ravel(_pulled_back(call.bind, [jnp.zeros_like(probes[0])], 1.0)[0])[0])


def _probe(number: int, like: jax.ShapeDtypeStruct) -> Any:
    if not jnp.issubdtype(like.dtype, jnp.floating):
        return jnp.zeros(like.shape, like.dtype)
    return jax.random.normal(jax.random.fold_in(jax.random.key(0), number), like.shape, like.dtype)


def _pulled_back(function: Callable[..., Any], arrays: Sequence[Any], cotangent: float) -> list[Any]:
    """The derivative of the sum of all results times the cotangent, by each operand that has one."""
    floating = [i for i, array in enumerate(arrays) if jnp.issubdtype(array.dtype, jnp.floating)]

    def results(*parts: Any) -> list[Any]:
        changed = dict(zip(floating, parts, strict=True))
        made = function(*(changed.get(i, array) for i, array in enumerate(arrays)))
        return [result for result in made if jnp.issubdtype(result.dtype, jnp.floating)]

    values, pull = jax.vjp(results, *(arrays[i] for i in floating))
    return list(pull([jnp.full_like(value, cotangent) for value in values]))


def _are_close(left: Any, right: Any, size: float) -> bool:
    return np.allclose(left, right, rtol=1e-3, atol=1e-3 * abs(size))
