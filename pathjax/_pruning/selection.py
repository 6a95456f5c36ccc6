"""A mask of the k largest of many scores, in linear time and without sorting.

The scores become ordinals: integers in the same order. A bracket around the k-th largest is narrowed by counting how
many of them lie above a few thresholds, all in one pass; the first thresholds come from a small sorted sample.
"""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import keystr, tree_flatten_with_path, tree_unflatten
from jax.typing import ArrayLike
from jaxtyping import Array

from pathjax._base.trees import check_boolean, check_like
from pathjax.types import Mask, Prunable, Scores

__all__ = ["Contest", "Selection", "check", "check_density", "select", "sound"]

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


class Ranking(NamedTuple):
    """The masks of leaves ranked together, whether all competing scores are finite, and how many compete.

    A score competes unless an earlier mask has pruned its weight.
    """

    masks: list[Array]
    finite: Array
    available: Array


class Contest(NamedTuple):
    """One ranking: leaves whose scores are ranked together, how many weights to keep, and the result.

    `within` are the earlier masks of the leaves, or None.
    """

    ranking: Ranking
    names: list[str]
    scores: tuple[Array, ...]
    kept: Array
    within: tuple[Array, ...] | None


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
    leaves, structure = tree_flatten_with_path(scores)
    indices = [index for index, (path, leaf) in enumerate(leaves) if prunable(path, leaf)]
    prunable_scores = tuple(_rankable(*leaves[index]) for index in indices)
    if within is not None:
        within = check_like(within, scores, name="within", like_name="scores")
        check_boolean(within, name="within")
        earlier_masks = jax.tree.leaves(within)
        within = tuple(earlier_masks[index] for index in indices)
    wanted_shape = () if scope == "global" else (len(indices),)
    if jnp.shape(counts) != wanted_shape:
        raise ValueError(
            f'With scope "{scope}", `counts` must have shape {wanted_shape}, as `kept_counts` makes them; '
            f"it has {jnp.shape(counts)}."
        )
    if not jnp.issubdtype(jnp.result_type(counts), jnp.integer):
        raise TypeError(
            f"`counts` must be integers, the numbers of weights to keep; they are {jnp.result_type(counts)}."
        )
    masks: list[Any] = [jnp.ones(jnp.shape(leaf), bool) for _, leaf in leaves]
    counts = jnp.asarray(counts, jnp.int32)
    groups = (
        [(slice(None), counts)] if scope == "global" else [(slice(i, i + 1), kept) for i, kept in enumerate(counts)]
    )
    contests = []
    for group, kept in groups if indices else []:
        earlier = None if within is None else within[group]
        ranking = keep_largest(prunable_scores[group], kept, earlier)
        names = [keystr(leaves[index][0]) for index in indices[group]]
        contests.append(Contest(ranking, names, prunable_scores[group], kept, earlier))
        for index, mask in zip(indices[group], ranking.masks, strict=True):
            masks[index] = mask
    return Selection(tree_unflatten(structure, masks), contests)


def sound(contests: list[Contest]) -> Array:
    """Whether in every ranking all competing scores were finite, and at least as many as weights to keep."""
    are_sound = [contest.ranking.finite & (contest.ranking.available >= contest.kept) for contest in contests]
    return jnp.all(jnp.stack(are_sound)) if are_sound else jnp.ones((), bool)


def check(contest: Contest) -> None:
    """Raise ValueError for competing scores that are not finite, and for fewer of them than weights to keep.

    Does nothing where the values are traced.
    """
    ranking, names, scores, kept, within = contest
    if not isinstance(ranking.finite, jax.core.Tracer) and not ranking.finite:
        for index, (name, score) in enumerate(zip(names, scores, strict=True)):
            competing = np.asarray(score) if within is None else np.asarray(score)[np.asarray(within[index])]
            if not np.all(np.isfinite(competing.astype(np.float64))):
                raise ValueError(
                    f"Scores must be finite; those at {name} have a NaN or an infinity. Look for an overflow in the "
                    "score or for weights that are not finite."
                )
    traced = any(isinstance(number, jax.core.Tracer) for number in (ranking.available, kept))
    if not traced and ranking.available < kept:
        group = names[0] if len(names) == 1 else "all prunable leaves"
        raise ValueError(
            f"Only {ranking.available} weights of {group} may be kept, fewer than the {kept} wanted. Ask for fewer, or "
            "leave out `within` to let pruned weights return."
        )


def _rankable(path: Any, leaf: Any) -> Array:
    score = jnp.asarray(leaf)
    if not jnp.issubdtype(score.dtype, jnp.floating):
        raise TypeError(
            f"Scores must be floating-point; at {keystr(path)} they are {score.dtype}. Convert them, or make the leaf "
            "unprunable."
        )
    return score


@jax.jit
def keep_largest(scores: tuple[Array, ...], kept: Array, within: tuple[Array, ...] | None) -> Ranking:
    """Masks that keep the `kept` largest scores of all these leaves, ranked together."""
    leaf_ordinals = _ordinals(scores, within)
    runs = _runs([ordinal.size for ordinal in leaf_ordinals])
    ranking = _keep_largest_ordinals([jnp.concatenate([leaf_ordinals[index] for index in run]) for run in runs], kept)
    masks = [
        part
        for mask, run in zip(ranking.masks, runs, strict=True)
        for part in jnp.split(mask, np.cumsum([leaf_ordinals[index].size for index in run])[:-1])
    ]
    shaped = [mask.reshape(score.shape) for mask, score in zip(masks, scores, strict=True)]
    return ranking._replace(masks=shaped)


def _runs(sizes: list[int]) -> list[list[int]]:
    """Indices of consecutive leaves to concatenate: runs of at most `_RUN` weights, or of one larger leaf."""
    runs: list[list[int]] = [[]]
    for index, size in enumerate(sizes):
        if runs[-1] and size + sum(sizes[other] for other in runs[-1]) > _RUN:
            runs.append([])
        runs[-1].append(index)
    return runs


def _ordinals(scores: tuple[Array, ...], within: tuple[Array, ...] | None) -> list[Array]:
    """The ordinals of the scores, raveled: signed integers in the same order; the lowest one where `within` is False.

    The bits of a float are a sign bit and an integer that grows with the absolute value. Negating that integer for a
    set sign bit gives two's complement integers in the order of the floats, with −0 equal to 0.
    """
    floating, integer = jnp.float32, jnp.int32
    if any(score.dtype == jnp.float64 for score in scores):
        floating, integer = jnp.float64, jnp.int64
    lowest = np.iinfo(integer).min
    ordinals = []
    for index, score in enumerate(scores):
        bits = lax.bitcast_convert_type(score.astype(floating).ravel(), integer)
        ordinal = jnp.where(bits < 0, lowest - bits, bits)
        ordinals.append(ordinal if within is None else jnp.where(within[index].ravel(), ordinal, lowest))
    return ordinals


def _keep_largest_ordinals(ordinals: list[Array], kept: Array) -> Ranking:
    """Masks that keep the `kept` largest ordinals; of equal ordinals, those that come first."""
    integer = ordinals[0].dtype
    lowest = np.iinfo(integer).min
    infinity = np.array(np.inf, f"float{integer.itemsize * 8}").view(integer).item()
    # NaN and ±∞ lie outside of the finite ordinals: −∞ and NaN with a sign bit below, ∞ and other NaN above
    available, finite_or_large, large = _counts(ordinals, [lowest + 1, 1 - infinity, infinity])
    finite = (available == finite_or_large) & (large == 0)
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

    return Ranking(lax.cond(bracket.at_least == kept, all_ties, first_ties), finite, available)


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
