"""The largest of many scores without a sort: a threshold between brackets that close in passes which count."""

from __future__ import annotations

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

__all__ = ["Contest", "check", "check_density", "select", "sound"]

# Shares of a bracket that are tried in each pass besides the guesses, so that it closes at worst by quarters. XLA
# vectorizes a reduction that counts several things at once: on a CPU eight counts take an eighth of the time of one.
_GUARDS = (0.25, 0.5, 0.75)

# Distances from the place where the threshold is guessed, in its standard deviations.
_SPREAD = (-4.0, -1.0, 0.0, 1.0, 4.0)

# Scores of which the first guess is made.
_SAMPLE = 2**12

# Weights up to which small leaves are joined: fewer vectors compile faster, and to copy long ones would take longer
# than to read them.
_RUN = 2**16


class Found(NamedTuple):
    """The masks of some leaves, whether all scores that compete are finite, and how many compete."""

    masks: list[Array]
    finite: Array
    available: Array


class Contest(NamedTuple):
    """What was found among the leaves whose scores compete with each other: of which names, for how many places."""

    found: Found
    names: list[str]
    scores: tuple[Array, ...]
    kept: Array
    within: tuple[Array, ...] | None


def check_density(density: Any) -> None:
    """Raise ValueError for a share of weights outside (0, 1]."""
    if not 0.0 < density <= 1.0:
        raise ValueError(f"density must lie in (0, 1], the share of weights to keep; it is {density}.")


def select(
    scores: Scores, counts: ArrayLike, *, scope: str, prunable: Prunable, within: Mask | None
) -> tuple[Mask, list[Contest]]:
    """The mask that keeps so many of the largest scores, and the contests that it comes from, not yet checked.

    `counts` is an integer for scope "global", and otherwise one for each prunable leaf, which is a contest of its own.
    """
    leaves, structure = tree_flatten_with_path(scores)
    chosen = [index for index, (path, leaf) in enumerate(leaves) if prunable(path, leaf)]
    ranked = tuple(_rankable(*leaves[index]) for index in chosen)
    if within is not None:
        check_like(within, scores, name="within", like_name="scores")
        check_boolean(within, name="within")
        everywhere = jax.tree.leaves(within)
        within = tuple(everywhere[index] for index in chosen)
    wanted_shape = () if scope == "global" else (len(chosen),)
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
    for group, kept in groups if chosen else []:
        allowed = None if within is None else within[group]
        found = keep_largest(ranked[group], kept, allowed)
        names = [keystr(leaves[index][0]) for index in chosen[group]]
        contests.append(Contest(found, names, ranked[group], kept, allowed))
        for index, mask in zip(chosen[group], found.masks, strict=True):
            masks[index] = mask
    return tree_unflatten(structure, masks), contests


def sound(contests: list[Contest]) -> Array:
    """Whether every contest had finite scores alone, and as many of them as places."""
    held = [contest.found.finite & (contest.found.available >= contest.kept) for contest in contests]
    return jnp.all(jnp.stack(held)) if held else jnp.ones((), bool)


def check(contest: Contest) -> None:
    """Raise for scores that are not finite and for too few that compete, as far as their values can be read."""
    found, names, scores, kept, within = contest
    if not isinstance(found.finite, jax.core.Tracer) and not found.finite:
        for index, (name, score) in enumerate(zip(names, scores, strict=True)):
            competing = np.asarray(score) if within is None else np.asarray(score)[np.asarray(within[index])]
            if not np.all(np.isfinite(competing.astype(np.float64))):
                raise ValueError(
                    f"Scores must be finite; those at {name} have a NaN or an infinity. Look for an overflow in the "
                    "score or for weights that are not finite."
                )
    if not any(isinstance(number, jax.core.Tracer) for number in (found.available, kept)) and found.available < kept:
        group = names[0] if len(names) == 1 else "all prunable leaves"
        raise ValueError(
            f"Only {found.available} weights of {group} may be kept, fewer than the {kept} wanted. Ask for fewer, or "
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
def keep_largest(scores: tuple[Array, ...], kept: Array, within: tuple[Array, ...] | None) -> Found:
    """Masks that keep the `kept` largest scores of all leaves together."""
    leaf_keys = _order_keys(scores, within)
    runs = _runs([key.size for key in leaf_keys])
    found = _keep_largest_keys([jnp.concatenate([leaf_keys[index] for index in run]) for run in runs], kept)
    masks = [
        part
        for mask, run in zip(found.masks, runs, strict=True)
        for part in jnp.split(mask, np.cumsum([leaf_keys[index].size for index in run])[:-1])
    ]
    shaped = [mask.reshape(score.shape) for mask, score in zip(masks, scores, strict=True)]
    return found._replace(masks=shaped)


def _runs(sizes: list[int]) -> list[list[int]]:
    """Leaves that follow each other, by place, in runs of at most `_RUN` weights or of one leaf."""
    runs: list[list[int]] = [[]]
    for index, size in enumerate(sizes):
        if runs[-1] and size + sum(sizes[other] for other in runs[-1]) > _RUN:
            runs.append([])
        runs[-1].append(index)
    return runs


def _order_keys(scores: tuple[Array, ...], within: tuple[Array, ...] | None) -> list[Array]:
    """The scores, raveled, as signed integers in their order; the lowest integer of all where `within` is False.

    The bits of a float are a sign and a magnitude in the order of its absolute value; as a two's complement, the order
    is that of the float, and −0 and 0 are one.
    """
    wide, integer = jnp.float32, jnp.int32
    if any(score.dtype == jnp.float64 for score in scores):
        wide, integer = jnp.float64, jnp.int64
    lowest = np.iinfo(integer).min
    keys = []
    for index, score in enumerate(scores):
        bits = lax.bitcast_convert_type(score.astype(wide).ravel(), integer)
        key = jnp.where(bits < 0, lowest - bits, bits)
        keys.append(key if within is None else jnp.where(within[index].ravel(), key, lowest))
    return keys


def _keep_largest_keys(keys: list[Array], kept: Array) -> Found:
    """Masks that keep the `kept` largest keys, and of equal ones those that come first."""
    integer = keys[0].dtype
    lowest = np.iinfo(integer).min
    infinity = np.array(np.inf, f"float{integer.itemsize * 8}").view(integer).item()
    available, finite_or_large, large = _counts(keys, [lowest + 1, 1 - infinity, infinity])
    finite = (available == finite_or_large) & (large == 0)
    # Under jit nothing can be raised: a mask that keeps nothing is seen, one ranked by NaN is not.
    kept = jnp.where(finite, kept, 0)
    found = _threshold(keys, kept)

    def first_ties() -> list[Array]:
        # places count down from 0, so that the largest come first
        starts = np.cumsum([0, *(key.size for key in keys[:-1])])
        ties = [(key == found.low) & (key > lowest) for key in keys]
        places = [
            jnp.where(tie, -jnp.arange(start, start + tie.size, dtype=integer), lowest)
            for tie, start in zip(ties, starts, strict=True)
        ]
        first, past = (jnp.asarray(bound, integer) for bound in (-sum(key.size for key in keys), 1))
        everywhere = _Bracket(first, past, found.at_least - found.above, jnp.zeros((), jnp.int32))
        last = _closed(places, kept - found.above, everywhere).low
        return [(key > found.low) | (tie & (place >= last)) for key, tie, place in zip(keys, ties, places, strict=True)]

    def all_above() -> list[Array]:
        return [(key >= found.low) & (key > lowest) for key in keys]

    return Found(lax.cond(found.at_least == kept, all_above, first_ties), finite, available)


class _Bracket(NamedTuple):
    """So many keys are at least `low`, no fewer than wanted, and so many are at least `high`, fewer than wanted."""

    low: Array
    high: Array
    at_least: Array
    above: Array


def _threshold(keys: list[Array], rank: Array) -> _Bracket:
    """A bracket whose `low` has `rank` keys at it or above it or, where ties do not allow that, is one below `high`."""
    integer = keys[0].dtype
    extremes = np.iinfo(integer)
    size = sum(key.size for key in keys)
    whole = _Bracket(
        *(jnp.asarray(number, integer) for number in (extremes.min, extremes.max)),
        *(jnp.asarray(number, jnp.int32) for number in (size, 0)),
    )
    begin = _narrower(keys, rank, whole, _sampled(keys, rank, size)) if size > 2 * _SAMPLE else whole
    nothing = _Bracket(whole.high, whole.high, whole.above, whole.above)  # of no key there is no least one
    return _closed(keys, rank, jax.tree.map(lambda some, none: jnp.where(rank > 0, some, none), begin, nothing))


def _closed(keys: list[Array], rank: Array, bracket: _Bracket) -> _Bracket:
    def is_open(bracket: _Bracket) -> Array:
        return (bracket.at_least != rank) & (_width(bracket) > 1)

    return lax.while_loop(is_open, lambda now: _narrower(keys, rank, now, _guesses(now, rank)), bracket)


def _narrower(keys: list[Array], rank: Array, bracket: _Bracket, thresholds: Array) -> _Bracket:
    """The bracket between these thresholds; one pass over the keys."""
    counts = _counts(keys, list(thresholds))
    enough = counts >= rank
    return _Bracket(
        low=jnp.max(jnp.where(enough, thresholds, bracket.low)),
        high=jnp.min(jnp.where(enough, bracket.high, thresholds)),
        at_least=jnp.min(jnp.where(enough, counts, bracket.at_least)),
        above=jnp.max(jnp.where(enough, bracket.above, counts)),
    )


def _sampled(keys: list[Array], rank: Array, size: int) -> Array:
    """Thresholds around the place of the rank in an even sample of the keys."""
    step = -(-size // _SAMPLE)
    sample = -jnp.sort(-jnp.concatenate([key[::step] for key in keys]))
    share = rank / size
    place = share * len(sample)
    deviation = jnp.sqrt(share * (1 - share) * len(sample)) + 1
    places = jnp.stack([place + spread * deviation for spread in _SPREAD]).astype(jnp.int32)
    tried = sample[jnp.clip(places, 0, len(sample) - 1)]
    return jnp.concatenate([tried, tried + 1])  # and one above each, for what many keys share


def _guesses(bracket: _Bracket, rank: Array) -> Array:
    """Thresholds inside a bracket, most of them about where the rank lies if its keys are spread evenly."""
    width = _width(bracket)
    inside = (bracket.at_least - bracket.above).astype(jnp.float32)
    place = (bracket.at_least - rank) / inside
    deviation = jnp.sqrt(place * (1 - place) / inside) + 0.25 / inside
    shares = jnp.stack([place + spread * deviation for spread in _SPREAD] + [jnp.asarray(share) for share in _GUARDS])
    steps = (jnp.clip(shares, 0, 1).astype(jnp.float32) * width.astype(jnp.float32)).astype(width.dtype)
    return bracket.low + jnp.clip(steps, 1, width - 1).astype(bracket.low.dtype)


def _width(bracket: _Bracket) -> Array:
    """high − low, unsigned, as it may leave the signed integers."""
    return lax.bitcast_convert_type(bracket.high - bracket.low, f"uint{bracket.low.dtype.itemsize * 8}")


def _counts(keys: list[Array], thresholds: Sequence[ArrayLike]) -> Array:
    """For each threshold, how many keys are as large or larger; one pass over the keys for all of them."""
    zeros = (jnp.zeros((), jnp.int32),) * len(thresholds)
    leaves = []
    for key in keys:
        reached = tuple((key >= threshold).astype(jnp.int32) for threshold in thresholds)
        leaves.append(jnp.stack(lax.reduce(reached, zeros, lambda left, right: tuple(map(jnp.add, left, right)), (0,))))
    return jnp.sum(jnp.stack(leaves), axis=0, dtype=jnp.int32)
