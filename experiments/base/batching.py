"""One compiled program for many networks: all of them side by side, or a few at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np

__all__ = ["in_batches", "vmap_networks"]

Result = TypeVar("Result")


def vmap_networks(function: Callable[..., Result], in_axes: tuple[int | None, ...] | int = 0) -> Callable[..., Result]:
    """`jax.vmap` over networks. A single network runs without vmap, which is twice as fast on CPUs.

    `in_axes` is 0 or None for each argument. At least one argument has axis 0 and contains arrays.

    >>> import jax.numpy as jnp
    >>> vmap_networks(lambda x, y: x + y, (0, None))(jnp.ones((1, 2)), 1.0).tolist()
    [[2.0, 2.0]]
    """

    def run(*arguments: Any) -> Result:
        axes = in_axes if isinstance(in_axes, tuple) else (in_axes,) * len(arguments)
        mapped = [argument for argument, axis in zip(arguments, axes, strict=True) if axis is not None]
        if {len(leaf) for leaf in jax.tree.leaves(mapped)} != {1}:
            return jax.vmap(function, in_axes=axes)(*arguments)
        without_axis = [
            argument if axis is None else jax.tree.map(lambda leaf: leaf[0], argument)
            for argument, axis in zip(arguments, axes, strict=True)
        ]
        return jax.tree.map(lambda leaf: leaf[None], function(*without_axis))

    return run


def in_batches(function: Callable[..., Result], size: int | None) -> Callable[..., Result]:
    """`function` called on at most `size` networks at a time; its arguments and results carry them on the first axis.

    With None it is called once, on all of them. The size changes numbers only by rounding. On CPUs the size is 1 and
    the loop is in Python, because XLA runs the convolutions of several networks, and those in loops, many times slower.

    >>> import jax.numpy as jnp
    >>> in_batches(vmap_networks(lambda x: x.sum()), 2)(jnp.arange(6.0).reshape(3, 2)).tolist()
    [1.0, 5.0, 9.0]
    """

    def run(*arguments: Any) -> Result:
        count = len(jax.tree.leaves(arguments)[0])
        if size is None or size >= count:
            return function(*arguments)
        starts = range(0, count, size)
        parts = [function(*jax.tree.map(lambda leaf, at=at: leaf[at : at + size], arguments)) for at in starts]
        return jax.tree.map(_concatenate, *parts)

    return run


def _concatenate(*leaves: Any) -> Any:
    return np.concatenate(jax.device_get(leaves))
