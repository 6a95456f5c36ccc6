"""Many networks through one compiled program: all side by side, or some at a time where that is quicker or fits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np

__all__ = ["in_lanes"]

Result = TypeVar("Result")


def in_lanes(function: Callable[..., Result], lanes: int | None) -> Callable[..., Result]:
    """`function`, whose arguments and results carry networks on a leading axis, on `lanes` of them at a time.

    None is all at once. How many share a program changes the numbers of each by rounding alone; with one lane, not at
    all. XLA runs the convolutions of several networks, and those in loops, many times slower on CPUs: hence one lane
    there, and a loop in Python.

    >>> import jax.numpy as jnp
    >>> in_lanes(jax.vmap(lambda x: x.sum()), 2)(jnp.arange(6.0).reshape(3, 2)).tolist()
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
