"""Many networks through one compiled program: all side by side, or some at a time where that is quicker or fits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np

__all__ = ["in_lanes", "side_by_side"]

Result = TypeVar("Result")


def side_by_side(function: Callable[..., Result], in_axes: tuple[int | None, ...] | int = 0) -> Callable[..., Result]:
    """`jax.vmap` over the networks, where there are several; one alone goes without, which is twice as quick on CPUs.

    `in_axes` is 0 or None for each argument; one at least is 0 and has arrays.

    >>> import jax.numpy as jnp
    >>> side_by_side(lambda x, y: x + y, (0, None))(jnp.ones((1, 2)), 1.0).tolist()
    [[2.0, 2.0]]
    """

    def run(*arguments: Any) -> Result:
        axes = in_axes if isinstance(in_axes, tuple) else (in_axes,) * len(arguments)
        mapped = [argument for argument, axis in zip(arguments, axes, strict=True) if axis is not None]
        if {len(leaf) for leaf in jax.tree.leaves(mapped)} != {1}:
            return jax.vmap(function, in_axes=axes)(*arguments)
        alone = [
            argument if axis is None else jax.tree.map(lambda leaf: leaf[0], argument)
            for argument, axis in zip(arguments, axes, strict=True)
        ]
        return jax.tree.map(lambda leaf: leaf[None], function(*alone))

    return run


def in_lanes(function: Callable[..., Result], lanes: int | None) -> Callable[..., Result]:
    """`function`, whose arguments and results carry networks on a leading axis, on `lanes` of them at a time.

    None is all at once. How many share a program changes the numbers of each by rounding alone; with one lane, not at
    all. XLA runs the convolutions of several networks, and those in loops, many times slower on CPUs: hence one lane
    there, and a loop in Python.

    >>> import jax.numpy as jnp
    >>> in_lanes(side_by_side(lambda x: x.sum()), 2)(jnp.arange(6.0).reshape(3, 2)).tolist()
    [1.0, 5.0, 9.0]
    """

    def chunked(*each: Any) -> Result:
        count = len(jax.tree.leaves(each)[0])
        if lanes is None or lanes >= count:
            return function(*each)
        starts = range(0, count, lanes)
        parts = [function(*jax.tree.map(lambda leaf, at=at: leaf[at : at + lanes], each)) for at in starts]
        return jax.tree.map(_joined, *parts)

    return chunked


def _joined(*leaves: Any) -> Any:
    return np.concatenate(jax.device_get(leaves))
