"""Second moments behind a gate, of values that are Gaussian before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from pathjax._interpreter.gaussian import Pair, angle, mean_ramp, ramps, shifted_ramps
from pathjax._interpreter.moments import (
    Axis,
    Kind,
    Moments,
    both,
    diagonal_of,
    is_alone,
    left_of,
    rank,
    right_of,
    right_position,
)
from pathjax._interpreter.routes import behind_gate

__all__ = ["rectified"]


def rectified(operand: Moments, above: Any, below: Any, *, is_held: bool = False) -> Moments:
    """The moments behind a gate with slopes `above` for positive and `below` for negative values.

    Where gates are held, the moments of slopes that derivatives pass are constants of a differentiation.
    """
    hold = lax.stop_gradient if is_held else _as_it_is
    passed = (_centered if operand.means is None else _shifted)(operand, above, below, hold)
    return replace(passed, means=_means(operand, above, below), route=behind_gate(operand.route))


def _as_it_is(array: Any) -> Any:
    return array


def _means(operand: Moments, above: Any, below: Any) -> tuple[Any, Any | None]:
    """E[φ(a)] for both batches."""

    def means(variance: Any, mean: Any) -> Any:
        variance = _alone(variance, operand.axes)
        mean = jnp.zeros((), variance.dtype) if mean is None else mean
        ramp, _ = mean_ramp(variance - jnp.square(mean), mean)
        return below[None] * mean + (above - below)[None] * ramp

    first, second = operand.means or (None, None)
    return means(operand.first, first), None if operand.second is None else means(operand.second, second)


def _centered(operand: Moments, above: Any, below: Any, hold: Callable[[Any], Any]) -> Moments:
    """Where means are 0."""
    axes, is_one = operand.axes, operand.second is None
    first, second = (_alone(variance, axes) for variance in operand.variances)
    is_self, is_self_twice = _is_self(axes), _is_self_twice(axes, len(first) if is_one else 0)

    def slopes(leading: int) -> tuple[Any, Any]:
        """The products of slopes on one side, and on different sides, each summed over both ways."""
        same = both(above, above, axes, leading) + both(below, below, axes, leading)
        other = both(above, below, axes, leading) + both(below, above, axes, leading)
        return same, other

    def values(leading: int, covariance: Any, left: Any, right: Any, is_self: Any) -> Any:
        through_same, through_other = slopes(leading)
        same = jnp.where(is_self, covariance / 2, ramps(covariance, left, right))
        if not np.any(through_other):
            return through_same * same
        return through_same * same - through_other * jnp.where(is_self, 0, ramps(-covariance, left, right))

    def derivatives(tangent: Any) -> Any:
        through_same, through_other = slopes(2)
        share = jnp.where(is_self_twice, 0, angle(operand.cross, *across) / (2 * jnp.pi))
        return tangent * hold(through_same * (0.5 - share) + through_other * share)

    across = left_of(first, axes)[:, None], right_of(second, axes)[None]
    cross = values(2, operand.cross, *across, is_self_twice)
    is_single = is_one and is_alone(cross)
    return replace(
        operand,
        cross=cross,
        tangent=None if operand.tangent is None else derivatives(operand.tangent),
        first=cross[0] if is_single else values(1, operand.first, left_of(first, axes), right_of(first, axes), is_self),
        second=None if is_one else values(1, operand.second, left_of(second, axes), right_of(second, axes), is_self),
    )


class _Side(NamedTuple):
    """The first or the second of two entries: its mean and variance, E[max(a, 0)], P(a > 0), and its slopes."""

    mean: Any
    variance: Any
    ramp: Any
    share: Any
    above: Any
    below: Any

    @property
    def step(self) -> Any:
        return self.above - self.below


def _shifted(operand: Moments, above: Any, below: Any, hold: Callable[[Any], Any]) -> Moments:
    """Where means are not 0: φ(a) = below · a + (above − below) · max(a, 0)."""
    axes, is_one = operand.axes, operand.second is None
    first, second = (_sides(operand, batch, above, below) for batch in (0, 1))
    across = _Side(*(field[:, None] for field in first[0])), _Side(*(field[None] for field in second[1]))
    is_self, is_self_twice = _is_self(axes), _is_self_twice(axes, len(operand.first) if is_one else 0)
    cross, slopes = _values_and_slopes(operand.cross, *across, is_self_twice)
    return replace(
        operand,
        cross=cross,
        tangent=None if operand.tangent is None else operand.tangent * hold(slopes),
        first=cross[0] if is_one and is_alone(cross) else _values_and_slopes(operand.first, *first, is_self)[0],
        second=None if is_one else _values_and_slopes(operand.second, *second, is_self)[0],
    )


def _sides(operand: Moments, batch: int, above: Any, below: Any) -> tuple[_Side, _Side]:
    """An entry at the examples of one batch, as the first and as the second of two."""
    means = operand.means or (jnp.zeros(()), None)
    mean: Any = means[0] if means[1] is None else means[batch]
    variance = _alone(operand.variances[batch], operand.axes) - jnp.square(mean)
    fields = (mean, variance, *mean_ramp(variance, mean), jnp.asarray(above)[None], jnp.asarray(below)[None])
    return _Side(*(left_of(f, operand.axes) for f in fields)), _Side(*(right_of(f, operand.axes) for f in fields))


def _values_and_slopes(moment: Any, left: _Side, right: _Side, is_self: Any) -> tuple[Any, Any]:
    """E[φ(a) φ(b)] and E[φ'(a) φ'(b)] from E[a b]."""
    pair = Pair(moment - left.mean * right.mean, left.variance, right.variance, left.mean, right.mean)
    square = left.mean * left.ramp + left.variance * left.share  # E[max(a, 0)²]
    ramps, share = (
        jnp.where(is_self, own, other) for own, other in zip((square, left.share), shifted_ramps(pair), strict=True)
    )
    left_ramp = right.mean * left.ramp + pair.covariance * left.share  # E[max(a, 0) b], by Stein's lemma
    right_ramp = left.mean * right.ramp + pair.covariance * right.share
    values = _through(left, right, moment, left_ramp, right_ramp, ramps)
    return values, _through(left, right, 1, left.share, right.share, share)


def _through(left: _Side, right: _Side, neither: Any, only_left: Any, only_right: Any, both: Any) -> Any:
    """E[(below · a + step · a₊) (below · b + step · b₊)] from E[a b], E[a₊ b], E[a b₊] and E[a₊ b₊]."""
    with_left = left.step * (right.below * only_left + right.step * both)
    return left.below * (right.below * neither + right.step * only_right) + with_left


def _alone(moments: Any, axes: Sequence[Axis]) -> Any:
    """Of the moments of one batch with itself, those of each entry with itself, without right axes."""
    kinds = list(axes)
    for index, axis in enumerate(axes):
        if axis.kind is Kind.PAIRS:
            moments = diagonal_of(moments, kinds, index, 1)
            kinds[index] = axis._replace(kind=Kind.EACH)
    return moments


def _is_self(axes: Sequence[Axis]) -> np.ndarray:
    """Of two entries, whether they are one."""
    result = np.ones([1] * rank(axes), bool)
    for index, axis in enumerate(axes):
        if axis.kind is Kind.PAIRS:
            others = [i for i in range(rank(axes)) if i not in (index, right_position(axes, index))]
            result = result & np.expand_dims(np.eye(axis.size, dtype=bool), others)
    return result


def _is_self_twice(axes: Sequence[Axis], examples: int) -> np.ndarray:
    """Of two entries at two of so many examples of one batch, whether they are one; at two batches none is."""
    same = np.eye(examples, dtype=bool) if examples else np.zeros((1, 1), bool)
    entries = _is_self(axes)
    return same.reshape(*same.shape, *[1] * entries.ndim) & entries
