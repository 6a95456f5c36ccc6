"""How second moments move: functions that rearrange the entries of arrays, read from where they bring each entry."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pathjax._interpreter.algebra import Undefined
from pathjax._interpreter.moments import Axis, Kind, Moments, in_kinds, mapped, means_of, to_store
from pathjax._interpreter.routes import single

__all__ = ["Move", "moved", "moves"]


class Move(NamedTuple):
    """Where entries of one operand come to lie.

    Attributes:
        shape: the shape of the result.
        sources: for each of its entries the position in the raveled operand, −1 for none.
    """

    shape: tuple[int, ...]
    sources: np.ndarray


class _Plan(NamedTuple):
    """Axes of the result, and how the operand is stored before it moves.

    Attributes:
        axes: the axes of the result.
        kinds: the kinds in which the operand is stored.
        right: for the raveled right axes of the result the position in those of the operand, −1 for none.
    """

    axes: tuple[Axis, ...]
    kinds: list[Kind]
    right: np.ndarray


def moves(function: Callable[..., Any], shapes: Sequence[tuple[int, ...]], zeros: Iterable[int]) -> list[Move]:
    """For each operand where `function`, which rearranges entries, brings its entries; `zeros` are those without."""
    starts = np.cumsum([1, *(int(np.prod(shape)) for shape in shapes)])
    without = set(zeros)
    numbered = [
        np.zeros(shape, np.int32)
        if i in without
        else np.arange(starts[i], starts[i + 1], dtype=np.int32).reshape(shape)
        for i, shape in enumerate(shapes)
    ]
    with jax.ensure_compile_time_eval():
        result = np.asarray(function(*map(jnp.asarray, numbered)))
    return [
        Move(result.shape, np.where((result >= low) & (result < high), result - low, -1))
        for low, high in itertools.pairwise(starts)
    ]


def moved(
    operand: Moments, function: Callable[..., Any], move: Move, fresh: Sequence[Any], demanded: frozenset[Any]
) -> Moments:
    """The moments of `function` of the value; `fresh` has a label for each axis of the result."""
    plan = _plan(operand, move, fresh, demanded)
    operand = in_kinds(operand, plan.kinds)
    is_once = to_store(plan.axes)
    rank, paired = len(operand.axes), [axis.size for axis in operand.axes if axis.kind is Kind.PAIRS]
    right_lengths = [axis.size for axis in plan.axes if axis.kind is Kind.PAIRS]

    def rearranged(leading: int, array: Any) -> Any:
        full = jnp.broadcast_to(array, (*array.shape[:leading], *operand.shape, *paired))
        # all other axes first, as one that is mapped over
        rights = range(leading + rank, full.ndim)
        front = jnp.moveaxis(full, list(rights), list(range(leading, leading + len(rights))))
        rows = front.reshape(-1, *operand.shape)
        result = jax.vmap(function)(rows)[(slice(None), *is_once)]
        result = result.reshape(*array.shape[:leading], int(np.prod(paired, dtype=int)), *result.shape[1:])
        result = jnp.moveaxis(result, leading, -1)
        picked = result[..., np.maximum(plan.right, 0)]
        picked = jnp.where(plan.right >= 0, picked, 0) if np.any(plan.right < 0) else picked
        return picked.reshape(*result.shape[:-1], *right_lengths)

    means = means_of(function, operand, plan.axes)
    changed = replace(operand, axes=plan.axes, means=means, **mapped(rearranged, operand))
    return _as_weights(changed, move, is_once) if operand.is_weight else changed


def _as_weights(moments: Moments, move: Move, is_once: tuple[slice, ...]) -> Moments:
    """With the weights that are left after a move; refused if one of them is used in several places."""
    sources = move.sources[is_once]
    sources = sources[sources >= 0]
    if sources.size and np.bincount(sources).max() > 1:
        raise Undefined(
            "It brings one weight to several places, whose products are then not independent.",
            "Give each place a weight of its own, or estimate by sampling: `ntk.sign_average`.",
        )
    if moments.leaf_entries is None:
        return moments
    entries = np.where(move.sources >= 0, moments.leaf_entries.ravel()[np.maximum(move.sources, 0)], -1)
    (token,) = moments.route.depends
    return replace(moments, route=single(token.at(entries[entries >= 0])), leaf_entries=entries)


def _plan(operand: Moments, move: Move, fresh: Sequence[Any], demanded: frozenset[Any]) -> _Plan:
    sources = move.sources
    valid = sources >= 0
    coordinates = np.unravel_index(np.maximum(sources, 0), operand.shape or (1,))
    coordinates = coordinates if operand.shape else ()
    varies = [[_varies(c, valid, axis) for c in coordinates] for axis in range(sources.ndim)]
    has_gaps = [
        bool(np.any(valid.max(axis, initial=False) != valid.min(axis, initial=True))) for axis in range(sources.ndim)
    ]
    linked = _linked(varies)
    kinds = [axis.kind for axis in operand.axes]
    while True:
        axes = tuple(
            _axis(operand, size, kinds, varies[j], linked[j], has_gaps[j], fresh[j], demanded)
            for j, size in enumerate(move.shape)
        )
        is_pairs = [axis.kind is Kind.PAIRS for axis in axes]
        lost = [
            index
            for index, kind in enumerate(kinds)
            if kind is Kind.PAIRS and not _keeps_pairs([row[index] for row in varies], is_pairs)
        ]
        if not lost and not _is_product(valid, is_pairs):
            lost = [index for index, kind in enumerate(kinds) if kind is Kind.PAIRS]
        if not lost:
            break
        for index in lost:
            kinds[index] = Kind.EACH
    return _Plan(axes, kinds, _right(operand, kinds, coordinates, valid, is_pairs))


def _axis(
    operand: Moments,
    size: int,
    kinds: Sequence[Kind],
    varies: Sequence[bool],
    linked: Sequence[int],
    has_gaps: bool,
    fresh: Any,
    demanded: frozenset[Any],
) -> Axis:
    """An axis of the result, by the operand's axes whose entries come to lie along it, and those `_linked` to these."""
    sources = [i for i, is_source in enumerate(varies) if is_source and kinds[i] is not Kind.SAME]
    labels = frozenset().union(*(operand.axes[i].labels for i in linked)) if sources else frozenset()
    found = {kinds[i] for i in sources}
    if size == 1 or not (sources or has_gaps):
        return Axis(size, Kind.SAME, labels)
    if not sources:
        return Axis(size, Kind.PAIRS if fresh in demanded else Kind.EACH, frozenset([fresh]))
    if found == {Kind.PAIRS}:
        return Axis(size, Kind.PAIRS, labels)
    return Axis(size, Kind.ALIKE if found == {Kind.ALIKE} and not has_gaps else Kind.EACH, labels)


def _linked(varies: Sequence[Sequence[bool]]) -> list[list[int]]:
    """For each axis of the result, the axes of the operand that must all be in pairs so that it can be.

    These come to lie along it, or along another axis of the result together with one of them.
    """
    groups = [{i for i, is_source in enumerate(row) if is_source} for row in varies]
    for _ in groups:
        groups = [group.union(*(other for other in groups if other & group)) for group in groups]
    return [sorted(group) for group in groups]


def _varies(coordinate: np.ndarray, valid: np.ndarray, axis: int) -> bool:
    """Whether the coordinate of valid entries changes along an axis."""
    low = np.where(valid, coordinate, np.iinfo(np.int64).max).min(axis, initial=np.iinfo(np.int64).max)
    high = np.where(valid, coordinate, -1).max(axis, initial=-1)
    return bool(np.any((high >= 0) & (high > low)))


def _keeps_pairs(varies: Sequence[bool], is_pairs: Sequence[bool]) -> bool:
    """Whether an axis of the operand comes to lie along PAIRS axes of the result alone, and along some."""
    along = [pairs for changes, pairs in zip(varies, is_pairs, strict=True) if changes]
    return bool(along) and all(along)


def _is_product(valid: np.ndarray, is_pairs: Sequence[bool]) -> bool:
    """Whether an entry is valid if its position along PAIRS axes is, and its position along the others is."""
    pairs = tuple(i for i, found in enumerate(is_pairs) if found)
    others = tuple(i for i, found in enumerate(is_pairs) if not found)
    along_pairs, along_others = valid.any(others, keepdims=True), valid.any(pairs, keepdims=True)
    return bool(np.array_equal(valid, along_pairs & along_others))


def _right(
    operand: Moments,
    kinds: Sequence[Kind],
    coordinates: Sequence[np.ndarray],
    valid: np.ndarray,
    is_pairs: Sequence[bool],
) -> np.ndarray:
    """For the right axes of the result, raveled, the position in the raveled right axes of the operand."""
    others = tuple(i for i, found in enumerate(is_pairs) if not found)
    paired = [i for i, kind in enumerate(kinds) if kind is Kind.PAIRS]
    is_valid = valid.any(others)
    position = np.zeros(is_valid.shape, np.int64)
    for index in paired:
        coordinate = np.where(valid, coordinates[index], 0).max(others, initial=0)
        position = position * operand.shape[index] + coordinate
    return np.where(is_valid, position, -1).ravel()
