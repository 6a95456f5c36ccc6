"""The entries that each window of a convolution or a pool sees."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

__all__ = ["Windows", "entries_of_windows"]


class Windows(NamedTuple):
    """Where the windows over an array lie: one number, or pair of numbers, for each of its axes.

    Attributes:
        sizes: entries of a window along the axis.
        strides: steps from one window to the next.
        padding: entries added before the first and after the last; negative ones are cut off.
        base_dilation: 1 + the number of holes between neighbouring entries of the array.
        window_dilation: steps between neighbouring entries of a window.
    """

    sizes: Sequence[int]
    strides: Sequence[int]
    padding: Sequence[tuple[int, int]]
    base_dilation: Sequence[int]
    window_dilation: Sequence[int]


def entries_of_windows(array: Any, windows: Windows, *, axis: int = -1, filler: float = 0.0) -> Any:
    """The entries of every window along a new axis `axis`, the first axis of a window slowest; `filler` in the padding.

    The other axes are those of the array, with the windows' places in them. By slices along one axis after the other:
    as a convolution it would be one of feature groups, which are slow on CPUs.
    """
    edges = [
        (low, high, dilation - 1) for (low, high), dilation in zip(windows.padding, windows.base_dilation, strict=True)
    ]
    seen = lax.pad(array, np.asarray(filler, array.dtype), edges)
    first = axis % (seen.ndim + 1)  # of the new axes, one for each axis of the window that is longer than 1
    added = 0
    steps = zip(windows.sizes, windows.strides, windows.window_dilation, strict=True)
    for old, (size, stride, dilation) in enumerate(steps):
        own = old if old < first else old + added
        count = max(0, (seen.shape[own] - (size - 1) * dilation - 1) // stride + 1)
        span = (count - 1) * stride + 1 if count else 0
        slices = [lax.slice_in_dim(seen, i * dilation, i * dilation + span, stride, own) for i in range(size)]
        if size == 1:
            seen = slices[0]
        else:
            seen = jnp.stack(slices, axis=first + added)
            added += 1
    shape = seen.shape
    return seen.reshape(*shape[:first], math.prod(windows.sizes), *shape[first + added :])
