"""Jaxprs evaluated with the channels of convolutions last, as XLA wants them on a CPU."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from pathjax._jaxpr import Equation, walk

__all__ = ["evaluate"]

# Options of a convolution besides the order of axes.
_CONVOLUTION = (
    "window_strides",
    "padding",
    "lhs_dilation",
    "rhs_dilation",
    "feature_group_count",
    "batch_group_count",
    "precision",
    "preferred_element_type",
)


def evaluate(closed: Any, arrays: list[Any]) -> list[Any]:
    """The results of a closed jaxpr, every convolution in it by way of channels last in each operand.

    On a CPU, XLA has fast convolutions for that order alone, and brings others into it outside of loops alone. Those of
    derivatives have others, and take up to ten times as long.
    """
    return walk(closed, arrays, step=_in_order, constant=lambda array: array)


def _in_order(equation: Equation, arrays: list[Any]) -> list[Any]:
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
        **{name: options[name] for name in _CONVOLUTION},
    )
    return [jnp.transpose(array, np.argsort([out[axis] for axis in last]).tolist())]
