"""Second moments of a sum of uncorrelated values: the sum of theirs, and the products of their means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from pathjax._interpreter.algebra import Undefined
from pathjax._interpreter.moments import (
    Axis,
    Kind,
    Moments,
    embedded,
    in_kinds,
    is_own,
    joined,
    left_of,
    right_of,
    spread,
)
from pathjax._interpreter.routes import are_uncorrelated, every

__all__ = ["added"]


def added(left: Moments, right: Moments, places: tuple[Any, Any] | None = None) -> Moments:
    """The sum of two uncorrelated values; `places` tell where entries of each may be other than 0."""
    shape = np.broadcast_shapes(left.shape, right.shape)
    left, right = spread(left, shape), spread(right, shape)
    for index in range(len(shape)):
        if is_own(left, index) and right.axes[index].kind is Kind.PAIRS:
            left = embedded(left, index)
        elif is_own(right, index) and left.axes[index].kind is Kind.PAIRS:
            right = embedded(right, index)
    kinds = [joined(a.kind, b.kind) for a, b in zip(left.axes, right.axes, strict=True)]
    if _meet(places, kinds) and not are_uncorrelated(left.route, right.route):
        raise Undefined(
            "It adds two values that are functions of the same weights, so that they are correlated.",
            "Let a layer with weights of its own stand between them, or estimate by sampling: `ntk.sign_average`.",
        )
    axes = tuple(Axis(a.size, k, a.labels | b.labels) for a, b, k in zip(left.axes, right.axes, kinds, strict=True))
    left, right = in_kinds(left, kinds), in_kinds(right, kinds)
    is_one = left.second is None and right.second is None
    across = _products_of_means(left, right, axes) if left.means is not None and right.means is not None else [0] * 3
    return Moments(
        axes,
        left.cross + right.cross + across[0],
        None if left.tangent is None or right.tangent is None else left.tangent + right.tangent,
        left.first + right.first + across[1],
        None if is_one else left.variances[1] + right.variances[1] + across[2],
        every([left.route, right.route]),
        is_weight=left.is_weight and right.is_weight,
        means=_summed_means(left, right),
    )


def _products_of_means(left: Moments, right: Moments, axes: Sequence[Axis]) -> list[Any]:
    """E[a b'] + E[b a'] of two uncorrelated values: of both batches, of the first with itself, and of the second."""
    (a, a2), (b, b2) = (_both_means(operand, len(axes)) for operand in (left, right))

    def outer(one: Any, other: Any) -> Any:
        return left_of(one, axes)[:, None] * right_of(other, axes)[None]

    def inner(one: Any, other: Any) -> Any:
        return left_of(one, axes) * right_of(other, axes)

    return [outer(a, b2) + outer(b, a2), inner(a, b) + inner(b, a), inner(a2, b2) + inner(b2, a2)]


def _both_means(moments: Moments, rank: int) -> tuple[Any, Any]:
    first, second = moments.means or (jnp.zeros([1] * (1 + rank)), None)
    return first, first if second is None else second


def _summed_means(left: Moments, right: Moments) -> tuple[Any, Any | None] | None:
    if left.means is None or right.means is None:
        return right.means if left.means is None else left.means
    is_one = left.second is None and right.second is None
    (a, a2), (b, b2) = (_both_means(operand, len(left.axes)) for operand in (left, right))
    return a + b, None if is_one else a2 + b2


def _meet(places: tuple[Any, Any] | None, kinds: Sequence[Kind]) -> bool:
    """Whether moments of an entry of one value and one of the other are kept, for entries at these places."""
    if places is None:
        return True
    paired = tuple(i for i, kind in enumerate(kinds) if kind is Kind.PAIRS)
    along_others = [where.any(paired, keepdims=True) for where in places]
    return bool(paired) and bool(np.any(along_others[0] & along_others[1]))
