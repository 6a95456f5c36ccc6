"""Custom derivative rules, evaluated on probes: are they true derivatives, and what do they give at 0?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pathjax._interpreter.jaxpr import Equation, is_concrete

__all__ = ["slope_at_zero"]

# A rule must be linear in the cotangent; the large one reveals rules that clip it.
_COTANGENTS = (1.0, -1000.0)


def slope_at_zero(call: Equation) -> float:
    """The derivative at 0 of a function with a custom derivative rule, by that rule.

    Refuses a rule that differs, on random probes, from the derivative of what the call computes: a straight-through
    estimator, say, where paths would describe the values but not the derivative. Integer operands are probed at 0. For
    a function of several operands the result is 0.
    """
    with jax.ensure_compile_time_eval():
        probes = [_probe(i, operand) for i, operand in enumerate(call.inputs)]
        for cotangent in _COTANGENTS:
            by_rule, of_body = (_pulled_back(function, probes, cotangent) for function in (call.bind, call.body))
            if not all(map(is_concrete, [*by_rule, *of_body])):
                return 0.0  # the function closes over values that are not known while tracing: nothing to compare
            if not all(_are_close(a, b, cotangent) for a, b in zip(by_rule, of_body, strict=True)):
                raise call.refuse(
                    "Its derivative rule is not the derivative of what it computes.",
                    "Remove the rule, or compute the function that it differentiates.",
                )
        if len(probes) > 1 or probes[0].size == 0:
            return 0.0
        return float(jnp.ravel(_pulled_back(call.bind, [jnp.zeros_like(probes[0])], 1.0)[0])[0])


def _probe(position: int, operand: jax.ShapeDtypeStruct) -> Any:
    """Zeros for an integer operand, else standard normal numbers that depend on the operand's position."""
    if not jnp.issubdtype(operand.dtype, jnp.floating):
        return jnp.zeros(operand.shape, operand.dtype)
    return jax.random.normal(jax.random.fold_in(jax.random.key(0), position), operand.shape, operand.dtype)


def _pulled_back(function: Callable[..., Any], arrays: Sequence[Any], cotangent: float) -> list[Any]:
    """The gradient of `cotangent` times the sum of all results, with respect to each floating-point operand."""
    floating = [i for i, array in enumerate(arrays) if jnp.issubdtype(array.dtype, jnp.floating)]

    def results(*parts: Any) -> list[Any]:
        replaced = dict(zip(floating, parts, strict=True))
        outputs = function(*(replaced.get(i, array) for i, array in enumerate(arrays)))
        return [result for result in outputs if jnp.issubdtype(result.dtype, jnp.floating)]

    values, pull = jax.vjp(results, *(arrays[i] for i in floating))
    return list(pull([jnp.full_like(value, cotangent) for value in values]))


def _are_close(left: Any, right: Any, size: float) -> bool:
    return np.allclose(left, right, rtol=1e-3, atol=1e-3 * abs(size))
