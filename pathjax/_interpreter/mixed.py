"""Second moments behind a linear function of entries, such as a sum over windows or a product with constants.

It is applied to the first and then to the second of two entries, so the moments of every two are needed along those
axes where it mixes entries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pathjax._interpreter.moments import Axis, Kind, Moments, mapped, means_of, to_store

__all__ = ["mixed", "touched_axes", "uneven_axes"]


def touched_axes(function: Callable[..., Any], axes: Sequence[Axis]) -> list[int]:
    """The axes along which a linear function mixes entries, or gives one value different coefficients."""
    with jax.ensure_compile_time_eval():
        sample = jnp.asarray(np.random.default_rng(0).uniform(1.0, 2.0, [axis.size for axis in axes]))
        result = function(sample)
        if result.ndim != len(axes):
            return list(range(len(axes)))
        return [
            index
            for index, axis in enumerate(axes)
            if _mixes(function, sample, result, index)
            or (axis.kind is Kind.SAME and not _is_even(function, sample, index))
        ]


def uneven_axes(function: Callable[..., Any], axes: Sequence[Axis], touched: Sequence[int]) -> list[int]:
    """The axes along which a linear function does not mix entries, but gives them different coefficients."""
    with jax.ensure_compile_time_eval():
        sample = jnp.ones([axis.size for axis in axes])
        return [i for i in range(len(axes)) if i not in touched and not _is_even(function, sample, i)]


def _mixes(function: Callable[..., Any], sample: Any, result: Any, axis: int) -> bool:
    size = sample.shape[axis]
    if size == 1 or result.shape[axis] != size:
        return bool(result.shape[axis] != size)
    chosen = np.expand_dims(np.eye(size), [1 + i for i in range(sample.ndim) if i != axis])
    alone = jax.vmap(function)(sample[None] * chosen)
    return not _is_close(alone, result[None] * chosen)


def _is_even(function: Callable[..., Any], sample: Any, axis: int) -> bool:
    """Whether entries that are equal along the axis give results that are."""
    result = function(jnp.broadcast_to(jnp.take(sample, jnp.array([0]), axis), sample.shape))
    return _is_close(result, jnp.take(result, jnp.array([0]), axis))


def _is_close(left: Any, right: Any) -> bool:
    return bool(jnp.allclose(left, jnp.broadcast_to(right, left.shape), rtol=1e-5, atol=1e-6))


def mixed(operand: Moments, function: Callable[..., Any], touched: Sequence[int], fresh: Sequence[Any]) -> Moments:
    """A linear function of the value that mixes entries along `touched` axes, of which every two are at hand.

    `fresh` has a label for each axis of the result.
    """
    before = operand.axes
    result_shape = jax.eval_shape(function, jax.ShapeDtypeStruct(operand.shape, operand.cross.dtype)).shape
    labels = frozenset(fresh).union(*(before[i].labels for i in touched))
    is_whole = len(touched) == len(before)
    axes = tuple(
        Axis(size, Kind.PAIRS, labels) if is_whole or i in touched else before[i] for i, size in enumerate(result_shape)
    )
    outer = range(len(axes)) if is_whole else touched  # axes of the result along which it is new
    paired = [i for i, axis in enumerate(before) if axis.kind is Kind.PAIRS]
    lengths = [*operand.shape, *(before[i].size for i in paired)]

    def mix(leading: int, array: Any) -> Any:
        examples = [("example", i) for i in range(leading)]
        names = [*examples, *(("left", i) for i in range(len(before))), *(("right", i) for i in paired)]
        full = jnp.broadcast_to(array, (*array.shape[:leading], *lengths))
        for side in ("left", "right"):
            taken = [(side if i in touched else "left", i) for i in range(len(before))]
            given = [(side if i in outer else "left", i) for i in range(len(axes))]
            full, names = _applied(function, full, names, taken, given)
        order = [*examples, *(("left", i) for i in range(len(axes)))]
        order += [("right", i) for i, axis in enumerate(axes) if axis.kind is Kind.PAIRS]
        result = jnp.transpose(full, [names.index(name) for name in order])
        return result[(*[slice(None)] * leading, *to_store(axes))]

    means = means_of(function, operand, axes)
    return replace(operand, axes=axes, leaf_entries=None, is_weight=False, means=means, **mapped(mix, operand))


def _applied(
    function: Callable[..., Any], array: Any, names: list[Any], taken: Sequence[Any], given: Sequence[Any]
) -> tuple[Any, list[Any]]:
    """`function` over the axes named `taken`, mapped over all others, with results along axes named `given`."""
    rest = [name for name in names if name not in taken]
    front = jnp.transpose(array, [names.index(name) for name in (*rest, *taken)])
    lengths = front.shape[: len(rest)]
    results = jax.vmap(function)(front.reshape(-1, *front.shape[len(rest) :]))
    return results.reshape(*lengths, *results.shape[1:]), [*rest, *given]
