"""Convolutions by way of channels last, for loops.

On a CPU, XLA has fast convolutions for that order alone, and brings others into it outside of loops alone. Those of
derivatives have others, and take up to ten times as long.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pathjax._interpreter.jaxpr import Equation, walk

__all__ = ["channels_last"]

# Options of a convolution besides the order of axes.
_OPTIONS = (
    "window_strides",
    "padding",
    "lhs_dilation",
    "rhs_dilation",
    "feature_group_count",
    "batch_group_count",
    "precision",
    "preferred_element_type",
)


def channels_last(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function of arrays, every convolution in it by way of channels last in all of its operands.

    Functions with a derivative rule of their own, and loops, stay as they are inside.
    """

    def run(*arguments: Any) -> Any:
        closed, like = jax.make_jaxpr(function, return_shape=True)(*arguments)
        results = walk(
            closed,
            jax.tree.leaves(arguments),
            step=_step,
            constant=lambda array: array,
            opaque=lambda equation: equation.has_own_derivative,
        )
        return jax.tree.unflatten(jax.tree.structure(like), results)

    return run


def _step(equation: Equation, arrays: list[Any]) -> list[Any]:
    if equation.name != "conv_general_dilated":
        return equation.bind(*arrays)
    options = equation.params
    batch, channels, *space = range(arrays[0].ndim)
    last, first = (batch, *space, channels), (0, len(space) + 1, *range(1, len(space) + 1))
    left, right, out = options["dimension_numbers"]
    array = lax.conv_general_dilated(
        jnp.transpose(arrays[0], [left[axis] for axis in last]),
        jnp.transpose(arrays[1], [right[axis] for axis in (*space, channels, batch)]),
        dimension_numbers=lax.ConvDimensionNumbers(first, (len(space) + 1, len(space), *range(len(space))), first),
        **{name: options[name] for name in _OPTIONS},
    )
    return [jnp.transpose(array, np.argsort([out[axis] for axis in last]).tolist())]
