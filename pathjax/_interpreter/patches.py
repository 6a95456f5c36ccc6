"""A convolution as one product of matrices: every window a row, the kernel a matrix.

For a single example and a large kernel, XLA on a CPU takes half the time for it, or less, that it takes for its own
convolution and its derivatives. It takes twice as long to compile, so that it pays for large kernels alone.
"""

from __future__ import annotations

import itertools

import jax.numpy as jnp
from jax import Array, lax

from pathjax._interpreter.algebra import Convolution

__all__ = ["by_patches", "is_plain", "pays"]

# Numbers in a kernel from which on a few evaluations are worth the compilation.
_LARGE = 2**17


def pays(kernel_size: int, convolution: Convolution) -> bool:
    """Whether to go by patches with a kernel of so many numbers."""
    return kernel_size >= _LARGE and is_plain(convolution)


def is_plain(convolution: Convolution) -> bool:
    """Whether it has no groups, and nothing is dilated or cut."""
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
    places = _last(specs.out_spec)
    return jnp.transpose(result, [places.index(axis) for axis in range(result.ndim)])


def _last(spec: tuple[int, ...]) -> tuple[int, ...]:
    """Axes in the order examples, space, channels; the spec has the channels second."""
    return (spec[0], *spec[2:], spec[1])


def _patches(images: Array, window: tuple[int, ...], convolution: Convolution) -> Array:
    """The entries of every window side by side, (n, *places, window · channels)."""
    strides = convolution.window_strides
    widths = [(0, 0, 0), *((low, high, 0) for low, high in convolution.padding), (0, 0, 0)]
    padded = lax.pad(images, jnp.zeros((), images.dtype), widths)
    spans = [
        (size - width) // stride * stride + 1
        for size, width, stride in zip(padded.shape[1:-1], window, strides, strict=True)
    ]

    def corner(start: tuple[int, ...]) -> Array:
        ends = [first + span for first, span in zip(start, spans, strict=True)]
        return lax.slice(padded, (0, *start, 0), (padded.shape[0], *ends, padded.shape[-1]), (1, *strides, 1))

    return jnp.concatenate([corner(start) for start in itertools.product(*map(range, window))], axis=-1)
