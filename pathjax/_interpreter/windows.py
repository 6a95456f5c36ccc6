"""The entries under each window of a convolution or a pool."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

__all__ = ["Windows", "entries_of_windows"]


class Windows(NamedTuple):
    """The windows over an array: one number, or pair of numbers, for each axis of the array.

    Attributes:
        sizes: entries of a window along the axis.
        strides: steps from one window to the next.
        padding: entries added before the first and after the last; negative numbers remove entries.
        base_dilation: 1 + the number of holes between neighbouring entries of the array.
        window_dilation: steps between neighbouring entries of a window.
    """

    sizes: Sequence[int]
    strides: Sequence[int]
    padding: Sequence[tuple[int, int]]
    base_dilation: Sequence[int]
    window_dilation: Sequence[int]


def entries_of_windows(array: Any, windows: Windows, *, axis: int = -1, filler: float = 0.0) -> Any:
    """The entries of every window, along a new axis `axis` in row-major order; the padding is filled with `filler`.

    The other axes are those of the array; an index along them is the position of a window. Slices are taken along one
    axis after the other, since the equivalent convolution has feature groups, which are slow on CPUs.
    """
    edges = [
        (low, high, dilation - 1) for (low, high), dilation in zip(windows.padding, windows.base_dilation, strict=True)
    ]
    entries = lax.pad(array, np.asarray(filler, array.dtype), edges)
    first_new = axis % (entries.ndim + 1)  # each axis of the window longer than 1 adds an axis; they end up as one
    added = 0
    steps = zip(windows.sizes, windows.strides, windows.window_dilation, strict=True)
    for array_axis, (size, stride, dilation) in enumerate(steps):
        along = array_axis if array_axis < first_new else array_axis + added
        count = max(0, (entries.shape[along] - (size - 1) * dilation - 1) // stride + 1)
        span = (count - 1) * stride + 1 if count else 0
        slices = [lax.slice_in_dim(entries, i * dilation, i * dilation + span, stride, along) for i in range(size)]
        if size == 1:
            entries = slices[0]
        else:
            entries = jnp.stack(slices, axis=first_new + added)
            added += 1
    shape = entries.shape
    return entries.reshape(*shape[:first_new], math.prod(windows.sizes), *shape[first_new + added :])
