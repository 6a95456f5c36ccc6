"""A mask of the k largest of many scores, in linear time and without sorting.

The scores become ordinals: integers in the same order. On one CPU, with values at hand, NumPy selects the largest of
these (`host_selection`). Everywhere else one program does: a bracket around the k-th largest is narrowed by counting
how many of them lie above a few thresholds, all in one pass; the first thresholds come from a small sorted sample.
The largest of every m in a row are found by comparing each with the others of its group.
"""

from __future__ import annotations

import functools
import numbers
import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import keystr, tree_flatten_with_path, tree_unflatten
from jax.typing import ArrayLike
from jaxtyping import Array

from pathjax._base.trees import check_boolean, check_like
from pathjax._pruning import host_selection
from pathjax.types import Mask, Prunable, Scores

__all__ = [
    "Contest",
    "Entrants",
    "Ranking",
    "Selection",
    "as_mask",
    "check",
    "check_density",
    "check_some_prunable",
    "contests",
    "entrants",
    "keep_largest",
    "masks_of",
    "ordinals",
    "rank",
    "select",
    "select_in_groups",
    "sound",
]

# Fixed thresholds of each pass, as shares of the bracket: even if all guesses miss, the bracket shrinks to a quarter.
# XLA vectorizes a reduction that counts for several thresholds at once, so these cost next to nothing.
_GUARDS = (0.25, 0.5, 0.75)

# Further thresholds of each pass: distances from the expected threshold, in standard deviations of that expectation.
_SPREAD = (-4.0, -1.0, 0.0, 1.0, 4.0)

# Size of the sample from which the first thresholds are taken.
_SAMPLE = 2**12

# Small leaves are concatenated into vectors of at most this many weights: fewer vectors compile faster, but copying
# large leaves would take longer than reading them.
_RUN = 2**16


class Entrants(NamedTuple):
    """Leaves whose scores are ranked together: their key paths, their scores, and their earlier masks or None."""

    paths: list[Any]
    scores: tuple[Array, ...]
    within: tuple[Array, ...] | None


class Ranking(NamedTuple):
    """The masks of leaves ranked together.

    A score competes unless an earlier mask has pruned its weight.

    Attributes:
        masks: a mask for each leaf; of NumPy where it found them and their device is not fixed.
        wanted: how many weights to keep.
        finite: whether all competing scores are finite. If not, nothing is kept.
        available: how many scores compete; where these are enough, NumPy gives the number to keep.
    """

    masks: list[Any]
    wanted: Any
    finite: Any
    available: Any


class Contest(NamedTuple):
    """The leaves that are ranked together, and the result."""

    entrants: Entrants
    ranking: Ranking


class Selection(NamedTuple):
    """A mask, and the rankings that decided it: one of all leaves together, or one for each leaf."""

    mask: Mask
    contests: list[Contest]


def check_density(density: Any) -> None:
    """Raise unless a density, the share of weights to keep, is a number in (0, 1]: TypeError or ValueError."""
    is_number: bool = isinstance(density, numbers.Real | np.generic | np.ndarray | jax.Array)
    if not is_number:
        raise TypeError(
            f"density must be a number in (0, 1], the share of weights to keep; it is {density!r}, of the type "
            f"{type(density).__name__}. Write density=0.1 to keep a tenth."
        )
    if not 0.0 < density <= 1.0:
        remedy = f" To keep {density:g} % write {density / 100:g}." if 1.0 < density <= 100.0 else ""
        raise ValueError(f"density must lie in (0, 1], the share of weights to keep; it is {density}.{remedy}")


def select(scores: Scores, counts: ArrayLike, *, scope: str, prunable: Prunable, within: Mask | None) -> Selection:
    """The mask that keeps the largest scores, and the rankings that decided it; `check` must still check these.

    `counts`, the numbers of weights to keep, is one integer for scope "global". For other scopes it has one integer for
    each prunable leaf, and each leaf is ranked alone.
    """
    places, groups = _places_and_groups(scores, scope=scope, prunable=prunable, within=within)
    wanted_shape = () if scope == "global" else (len(groups),)
    if jnp.shape(counts) != wanted_shape:
        raise ValueError(
            f'With scope "{scope}", `counts` must have shape {wanted_shape}, as `kept_counts` makes them; '
            f"it has {jnp.shape(counts)}."
        )
    if not jnp.issubdtype(jnp.result_type(counts), jnp.integer):
        raise TypeError(
            f"`counts` must be integers, the numbers of weights to keep; they are {jnp.result_type(counts)}."
        )
    return _selection(places, contests(groups, counts), scores)


def select_in_groups(
    scores: Scores, *, n: int, m: int, axis: int, prunable: Prunable, within: Mask | None
) -> Selection:
    """The mask that keeps the n largest of every m scores in a row along an axis; `check` must still check it."""
    places, leaves = _places_and_groups(scores, scope="local", prunable=prunable, within=within)
    check_some_prunable(sum(leaf.scores[0].size for leaf in leaves))
    for leaf in leaves:
        _check_axis(leaf.paths[0], leaf.scores[0].shape, m=m, axis=axis)
    rankings = [_largest_in_groups(*ordinals(leaf.scores, leaf.within), n=n, m=m, axis=axis) for leaf in leaves]
    return _selection(places, list(map(Contest, leaves, rankings)), scores)


def _places_and_groups(
    scores: Scores, *, scope: str, prunable: Prunable, within: Mask | None
) -> tuple[list[int], list[Entrants]]:
    """The places of the prunable leaves in the tree, and these leaves in the groups that are ranked together."""
    leaves = tree_flatten_with_path(scores)[0]
    places = [place for place, (path, leaf) in enumerate(leaves) if prunable(path, leaf)]
    earlier = None
    if within is not None:
        within = check_like(within, scores, name="within", like_name="scores")
        check_boolean(within, name="within")
        all_earlier = jax.tree.leaves(within)
        earlier = [all_earlier[place] for place in places]
    return places, entrants([leaves[place] for place in places], earlier, scope=scope)


def _selection(places: list[int], chosen: list[Contest], scores: Scores) -> Selection:
    masks = masks_of([contest.ranking for contest in chosen])
    return Selection(as_mask(dict(zip(places, masks, strict=True)), scores), chosen)


def _check_axis(path: Any, shape: tuple[int, ...], *, m: int, axis: int) -> None:
    """Raise ValueError unless a leaf has the axis, and groups of m fill it."""
    if not -len(shape) <= axis < len(shape):
        raise ValueError(
            f"{keystr(path)} has shape {shape}, which has no axis {axis}. Pass the `axis` along which its inputs lie, "
            "or a `prunable` that leaves it out."
        )
    if shape[axis] % m:
        raise ValueError(
            f"Axis {axis} of {keystr(path)}, {shape}, has length {shape[axis]}, no multiple of m = {m}, so "
            f"that groups of {m} do not fill it. To leave such leaves dense, pass prunable=lambda key_path, leaf: "
            f"masks.is_kernel(key_path, leaf) and leaf.shape[{axis}] % {m} == 0."
        )


def check_some_prunable(size: int) -> None:
    """Raise ValueError if there are no prunable weights."""
    if size == 0:
        raise ValueError(
            "`prunable` leaves no weight to prune. By default kernels are prunable, as `masks.is_kernel` tells them by "
            "name and shape; pass prunable=lambda key_path, leaf: ... to choose other leaves."
        )


def entrants(leaves: Sequence[tuple[Any, Any]], earlier: Sequence[Any] | None, *, scope: str) -> list[Entrants]:
    """Key paths and scores in the groups that are ranked together: all for scope "global", else each leaf alone.

    `earlier` are the earlier masks of these leaves.
    """
    paths, scores = [path for path, _ in leaves], tuple(_rankable(*leaf) for leaf in leaves)
    within = None if earlier is None else tuple(earlier)
    if scope == "global":
        return [Entrants(paths, scores, within)] if leaves else []
    alone = [slice(place, place + 1) for place in range(len(leaves))]
    return [Entrants(paths[one], scores[one], None if within is None else within[one]) for one in alone]


def contests(groups: list[Entrants], counts: ArrayLike) -> list[Contest]:
    """The rankings of groups of leaves, with their numbers of weights to keep."""
    rankings = rank([ordinals(group.scores, group.within) for group in groups], counts)
    return list(map(Contest, groups, rankings))


def as_mask(masks: Mapping[int, Any], like: Any) -> Mask:
    """The mask with the structure of `like` that has the given leaves at these places, and True elsewhere."""
    leaves, structure = jax.tree.flatten(like)
    filled = [masks[place] if place in masks else np.ones(jnp.shape(leaf), bool) for place, leaf in enumerate(leaves)]
    return tree_unflatten(structure, jax.device_put(filled))


def masks_of(rankings: Sequence[Ranking]) -> list[Any]:
    """The masks of all ranked leaves."""
    return [mask for ranking in rankings for mask in ranking.masks]


def sound(rankings: Sequence[Ranking]) -> Any:
    """Whether in every ranking all competing scores were finite, and at least as many as weights to keep."""
    are_sound = [ranking.finite & (ranking.available >= ranking.wanted) for ranking in rankings]
    return functools.reduce(operator.and_, are_sound, True)


def check(contest: Contest) -> None:
    """Raise ValueError for competing scores that are not finite, and for fewer of them than weights to keep.

    Does nothing where the values are traced.
    """
    (paths, scores, within), ranking = contest
    if not isinstance(ranking.finite, jax.core.Tracer) and not ranking.finite:
        for index, (path, score) in enumerate(zip(paths, scores, strict=True)):
            competing = np.asarray(score) if within is None else np.asarray(score)[np.asarray(within[index])]
            if not np.all(np.isfinite(competing.astype(np.float64))):
                raise ValueError(
                    f"Scores must be finite; those at {keystr(path)} have a NaN or an infinity. Look for an overflow "
                    "in the score or for weights that are not finite."
                )
    traced = any(isinstance(number, jax.core.Tracer) for number in (ranking.available, ranking.wanted))
    if not traced and ranking.available < ranking.wanted:
        group = keystr(paths[0]) if len(paths) == 1 else "all prunable leaves"
        raise ValueError(
            f"Only {ranking.available} weights of {group} may be kept, fewer than the {ranking.wanted} wanted. Ask for "
            "fewer, or leave out `within` to let pruned weights return."
        )


def _rankable(path: Any, leaf: Any) -> Array:
    score = leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf)
    if not jnp.issubdtype(score.dtype, jnp.floating):
        raise TypeError(
            f"Scores must be floating-point; at {keystr(path)} they are {score.dtype}. Convert them, or make the leaf "
            "unprunable."
        )
    return score


def keep_largest(scores: Array, kept: Array) -> Array:
    """A mask that keeps the `kept` largest of these scores."""
    return jnp.asarray(rank([ordinals((scores,), None)], kept)[0].masks[0])


@jax.jit
def ordinals(scores: tuple[Array, ...], within: tuple[Array, ...] | None) -> list[Array]:
    """The ordinals of the scores: signed integers in the same order, with two numbers that no finite score has.

    The lowest integer is where `within` is False, and `_not_finite` where a competing score is not finite. The bits of
    a float are a sign bit and an integer that grows with the absolute value. Negating that integer for a set sign bit
    gives two's complement integers in the order of the floats, with −0 equal to 0.
    """
    floating, integer = jnp.float32, jnp.int32
    if any(score.dtype == jnp.float64 for score in scores):
        floating, integer = jnp.float64, jnp.int64
    lowest, highest = np.iinfo(integer).min, np.iinfo(integer).max
    infinity = np.asarray(np.inf, floating).view(integer).item()
    numbers = []
    for index, score in enumerate(scores):
        bits = lax.bitcast_convert_type(score.astype(floating), integer)
        ordinal = jnp.where(bits < 0, lowest - bits, bits)
        ordinal = jnp.where((bits & highest) < infinity, ordinal, _not_finite(integer))
        numbers.append(ordinal if within is None else jnp.where(within[index], ordinal, lowest))
    return numbers


def _not_finite(dtype: Any) -> int:
    """The ordinal of a score that is not finite: above all others, and below the highest integer, a search's bound."""
    return int(np.iinfo(dtype).max) - 1


def rank(groups: Sequence[Sequence[Array]], counts: ArrayLike) -> list[Ranking]:
    """Of each group, masks that keep the largest ordinals; of equal ones, those that come first.

    `counts` has one number of weights to keep for each group, or is one number for the only group.
    """
    if not groups:
        return []
    separate = jnp.reshape(counts, -1) if isinstance(counts, jax.Array) else np.reshape(counts, -1)
    return [
        _rank_on_host(group, int(kept)) if _on_host((*group, kept)) else _ranked(tuple(group), jnp.int32(kept))
        for group, kept in zip(groups, separate, strict=True)
    ]


def _rank_on_host(ordinals: Sequence[Array], wanted: int) -> Ranking:
    arrays = list(map(np.asarray, ordinals))
    finite = all(array.max(initial=0) < _not_finite(array.dtype) for array in arrays)
    masks, kept = host_selection.largest(arrays, max(wanted, 0) if finite else 0)
    first = ordinals[0]
    placed = jax.device_put(masks, first.sharding) if first.committed else masks
    return Ranking(placed, wanted, finite, kept if finite else wanted)


def _on_host(arrays: Sequence[Any]) -> bool:
    """Whether the values are known and those of arrays of JAX lie in the memory of one CPU."""
    return all(
        not isinstance(array, jax.core.Tracer) and array.is_fully_addressable and _is_cpu(array.devices())
        for array in arrays
        if isinstance(array, jax.Array)
    )


def _is_cpu(devices: set[jax.Device]) -> bool:
    return len(devices) == 1 and all(device.platform == "cpu" for device in devices)


@functools.partial(jax.jit, static_argnames=("n", "m", "axis"))
def _largest_in_groups(ordinal: Array, *, n: int, m: int, axis: int) -> Ranking:
    """The n largest of every m ordinals in a row along an axis, the first of equal ones, or as many as compete."""
    integer = ordinal.dtype
    finite = jnp.all(ordinal < _not_finite(integer))
    rows = jnp.moveaxis(ordinal, axis, -1)
    groups = rows.reshape(*rows.shape[:-1], rows.shape[-1] // m, m)
    places = jnp.arange(m).reshape(*(1,) * (groups.ndim - 1), m)

    def count(place: Any, ahead: Array) -> Array:
        rival = lax.dynamic_index_in_dim(groups, place, axis=-1)
        return ahead + ((rival > groups) | ((rival == groups) & (place < places)))

    # one rival of the group after the other: all pairs at once would take m times the memory
    ahead = lax.fori_loop(0, m, count, jnp.zeros(groups.shape, jnp.int32))
    keep = (ahead < n) & (groups > np.iinfo(integer).min) & finite
    # each group keeps what it can: no number of weights is asked for
    none = jnp.zeros((), jnp.int32)
    return Ranking([jnp.moveaxis(keep.reshape(rows.shape), -1, axis)], none, finite, none)


@jax.jit
def _ranked(ordinals: tuple[Array, ...], kept: Array) -> Ranking:
    leaves = [ordinal.ravel() for ordinal in ordinals]
    runs = _runs([leaf.size for leaf in leaves])
    masks, finite, available = _keep_largest_ordinals(
        [jnp.concatenate([leaves[index] for index in run]) for run in runs], kept
    )
    parts = [
        part
        for mask, run in zip(masks, runs, strict=True)
        for part in jnp.split(mask, np.cumsum([leaves[index].size for index in run])[:-1])
    ]
    shaped = [part.reshape(ordinal.shape) for part, ordinal in zip(parts, ordinals, strict=True)]
    return Ranking(shaped, kept, finite, available)


def _runs(sizes: list[int]) -> list[list[int]]:
    """Indices of consecutive leaves to concatenate: runs of at most `_RUN` weights, or of one larger leaf."""
    runs: list[list[int]] = [[]]
    for index, size in enumerate(sizes):
        if runs[-1] and size + sum(sizes[other] for other in runs[-1]) > _RUN:
            runs.append([])
        runs[-1].append(index)
    return runs


def _keep_largest_ordinals(ordinals: list[Array], kept: Array) -> tuple[list[Array], Array, Array]:
    """Masks of the `kept` largest ordinals, the first of equal ones, whether all are finite, and how many compete."""
    integer = ordinals[0].dtype
    lowest = np.iinfo(integer).min
    available, bad = _counts(ordinals, [lowest + 1, _not_finite(integer)])
    finite = bad == 0
    # Under jit nothing can be raised, and a mask ranked by NaN would go unnoticed: keep nothing, which is noticed.
    kept = jnp.where(finite, kept, 0)
    bracket = _threshold(ordinals, kept)

    def first_ties() -> list[Array]:
        # positions negated, so that the largest of them are the first ties; found by the same search as the threshold
        starts = np.cumsum([0, *(ordinal.size for ordinal in ordinals[:-1])])
        ties = [(ordinal == bracket.low) & (ordinal > lowest) for ordinal in ordinals]
        places = [
            jnp.where(tie, -jnp.arange(start, start + tie.size, dtype=integer), lowest)
            for tie, start in zip(ties, starts, strict=True)
        ]
        low, high = (jnp.asarray(bound, integer) for bound in (-sum(ordinal.size for ordinal in ordinals), 1))
        all_places = _Bracket(low, high, bracket.at_least - bracket.above, jnp.zeros((), jnp.int32))
        last = _closed(places, kept - bracket.above, all_places).low
        return [
            (ordinal > bracket.low) | (tie & (place >= last))
            for ordinal, tie, place in zip(ordinals, ties, places, strict=True)
        ]

    def all_ties() -> list[Array]:
        return [(ordinal >= bracket.low) & (ordinal > lowest) for ordinal in ordinals]

    return lax.cond(bracket.at_least == kept, all_ties, first_ties), finite, available


class _Bracket(NamedTuple):
    """Bounds on the threshold: `at_least` ordinals are ≥ `low`, enough; `above` ordinals are ≥ `high`, too few."""

    low: Array
    high: Array
    at_least: Array
    above: Array


def _threshold(ordinals: list[Array], rank: Array) -> _Bracket:
    """A bracket around the `rank`-th largest ordinal, closed so that `low` is a threshold.

    Either exactly `rank` ordinals are ≥ `low` or, where ties do not allow that, `high` = `low` + 1.
    """
    integer = ordinals[0].dtype
    extremes = np.iinfo(integer)
    size = sum(ordinal.size for ordinal in ordinals)
    all_integers = _Bracket(
        *(jnp.asarray(number, integer) for number in (extremes.min, extremes.max)),
        *(jnp.asarray(number, jnp.int32) for number in (size, 0)),
    )
    bracket = all_integers
    if size > 2 * _SAMPLE:
        bracket = _narrower(ordinals, rank, bracket, _sampled(ordinals, rank, size))
    # rank 0 has no smallest kept ordinal: its threshold is above all ordinals
    above_all = _Bracket(all_integers.high, all_integers.high, all_integers.above, all_integers.above)
    return _closed(ordinals, rank, jax.tree.map(lambda some, none: jnp.where(rank > 0, some, none), bracket, above_all))


def _closed(ordinals: list[Array], rank: Array, bracket: _Bracket) -> _Bracket:
    """The bracket narrowed until exactly `rank` ordinals are ≥ `low`, or `high` = `low` + 1."""

    def is_open(bracket: _Bracket) -> Array:
        return (bracket.at_least != rank) & (_width(bracket) > 1)

    return lax.while_loop(is_open, lambda now: _narrower(ordinals, rank, now, _guesses(now, rank)), bracket)


def _narrower(ordinals: list[Array], rank: Array, bracket: _Bracket, thresholds: Array) -> _Bracket:
    """The bracket narrowed to the two nearest of these thresholds; one pass over the ordinals."""
    counts = _counts(ordinals, list(thresholds))
    enough = counts >= rank
    return _Bracket(
        low=jnp.max(jnp.where(enough, thresholds, bracket.low)),
        high=jnp.min(jnp.where(enough, bracket.high, thresholds)),
        at_least=jnp.min(jnp.where(enough, counts, bracket.at_least)),
        above=jnp.max(jnp.where(enough, bracket.above, counts)),
    )


def _sampled(ordinals: list[Array], rank: Array, size: int) -> Array:
    """Thresholds near the `rank`-th largest ordinal, estimated from a sample of evenly spaced ordinals."""
    step = -(-size // _SAMPLE)
    sample = -jnp.sort(-jnp.concatenate([ordinal[::step] for ordinal in ordinals]))
    share = rank / size
    expected_index = share * len(sample)
    deviation = jnp.sqrt(share * (1 - share) * len(sample)) + 1
    places = jnp.stack([expected_index + spread * deviation for spread in _SPREAD]).astype(jnp.int32)
    thresholds = sample[jnp.clip(places, 0, len(sample) - 1)]
    # the next integer too: the bracket closes at once around an ordinal that many weights share
    return jnp.concatenate([thresholds, thresholds + 1])


def _guesses(bracket: _Bracket, rank: Array) -> Array:
    """Thresholds inside a bracket, most of them near the `rank`-th largest ordinal if these are spread evenly."""
    width = _width(bracket)
    ordinal_count = (bracket.at_least - bracket.above).astype(jnp.float32)
    place = (bracket.at_least - rank) / ordinal_count
    deviation = jnp.sqrt(place * (1 - place) / ordinal_count) + 0.25 / ordinal_count
    shares = jnp.stack([place + spread * deviation for spread in _SPREAD] + [jnp.asarray(share) for share in _GUARDS])
    steps = (jnp.clip(shares, 0, 1).astype(jnp.float32) * width.astype(jnp.float32)).astype(width.dtype)
    return bracket.low + jnp.clip(steps, 1, width - 1).astype(bracket.low.dtype)


def _width(bracket: _Bracket) -> Array:
    """high − low as an unsigned integer; the signed type may not hold it."""
    return lax.bitcast_convert_type(bracket.high - bracket.low, f"uint{bracket.low.dtype.itemsize * 8}")


def _counts(ordinals: list[Array], thresholds: Sequence[ArrayLike]) -> Array:
    """For each threshold, how many ordinals are at least as large; all thresholds in one pass over the ordinals."""
    zeros = (jnp.zeros((), jnp.int32),) * len(thresholds)
    leaves = []
    for ordinal in ordinals:
        flags = tuple((ordinal >= threshold).astype(jnp.int32) for threshold in thresholds)
        leaves.append(jnp.stack(lax.reduce(flags, zeros, lambda left, right: tuple(map(jnp.add, left, right)), (0,))))
    return jnp.sum(jnp.stack(leaves), axis=0, dtype=jnp.int32)
