"""Two forms of convolutions that XLA computes faster on CPUs.

`by_patches`: as one matrix product, with a row for every window and the kernel as a matrix. For a single example and a
large kernel this is faster than XLA's own convolution and its derivatives, but slower to compile.

`channels_last`: with the channels as the last axis of all operands. XLA on a CPU has fast convolutions for this order
of axes only. Derivatives of convolutions have other orders, which XLA changes outside of loops but not inside them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from pathjax._interpreter.algebra import Convolution
from pathjax._interpreter.jaxpr import Equation, walk
from pathjax._interpreter.windows import Windows, entries_of_windows

__all__ = ["by_patches", "channels_last", "is_plain", "pays"]

# Parameters of `lax.conv_general_dilated` besides the order of axes.
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

# From 131072 numbers in the kernel on, a few evaluations save more time than the longer compilation costs.
_LARGE = 2**17


def pays(kernel_size: int, convolution: Convolution) -> bool:
    """Whether `by_patches` saves time for a kernel of `kernel_size` numbers."""
    return kernel_size >= _LARGE and is_plain(convolution)


def is_plain(convolution: Convolution) -> bool:
    """Whether the convolution has no groups, no dilation and no negative padding."""
    dilations = (*convolution.lhs_dilation, *convolution.rhs_dilation)
    paddings = itertools.chain.from_iterable(convolution.padding)
    return convolution.feature_group_count == 1 and set(dilations) <= {1} and min(paddings, default=0) >= 0


def by_patches(left: Array, right: Array, convolution: Convolution) -> Array:
    """`lax.conv_general_dilated` of a plain convolution, in full precision."""
    specs = convolution.dimension_numbers
    images = jnp.transpose(left, _last(specs.lhs_spec))
    kernel = jnp.transpose(right, (*specs.rhs_spec[2:], specs.rhs_spec[1], specs.rhs_spec[0]))
    patches = _patches(images, kernel.shape[:-2], convolution)
    rows = patches.reshape(-1, patches.shape[-1])
    product = lax.dot(rows, kernel.reshape(-1, kernel.shape[-1]), precision=lax.Precision.HIGHEST)
    result = product.reshape(*patches.shape[:-1], kernel.shape[-1])
    out_axes = _last(specs.out_spec)
    return jnp.transpose(result, [out_axes.index(axis) for axis in range(result.ndim)])


def _last(spec: tuple[int, ...]) -> tuple[int, ...]:
    """The axes in the order examples, space, channels; a spec has the order examples, channels, space."""
    return (spec[0], *spec[2:], spec[1])


def _patches(images: Array, window: tuple[int, ...], convolution: Convolution) -> Array:
    """The entries of every window in one row: (n, *positions, window size · channels)."""
    ones = (1,) * images.ndim
    strides, padding = (1, *convolution.window_strides, 1), [(0, 0), *convolution.padding, (0, 0)]
    entries = entries_of_windows(images, Windows((1, *window, 1), strides, padding, ones, ones), axis=-2)
    return entries.reshape(*entries.shape[:-2], -1)


def channels_last(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function of arrays, with every convolution computed with the channels last in all operands.

    Convolutions inside loops and inside functions with a custom derivative rule are left as they are.
    """

    def run(*arguments: Any) -> Any:
        closed, result_types = jax.make_jaxpr(function, return_shape=True)(*arguments)
        results = walk(
            closed,
            jax.tree.leaves(arguments),
            step=_step,
            constant=lambda array: array,
            opaque=lambda equation: equation.has_own_derivative,
        )
        return jax.tree.unflatten(jax.tree.structure(result_types), results)

    return run


def _step(equation: Equation, arrays: list[Any]) -> list[Any]:
    if equation.name != "conv_general_dilated":
        return equation.bind(*arrays)
    options = equation.params
    batch, channels, *space = range(arrays[0].ndim)
    last = (batch, *space, channels)
    images_spec = (0, len(space) + 1, *range(1, len(space) + 1))
    kernel_spec = (len(space) + 1, len(space), *range(len(space)))
    left, right, out = options["dimension_numbers"]
    array = lax.conv_general_dilated(
        jnp.transpose(arrays[0], [left[axis] for axis in last]),
        jnp.transpose(arrays[1], [right[axis] for axis in (*space, channels, batch)]),
        dimension_numbers=lax.ConvDimensionNumbers(images_spec, kernel_spec, images_spec),
        **{name: options[name] for name in _OPTIONS},
    )
    return [jnp.transpose(array, np.argsort([out[axis] for axis in last]).tolist())]
