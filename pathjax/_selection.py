"""The largest of many scores without a sort: the threshold is built from its bits, in passes that count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array

__all__ = ["Found", "check_found", "keep_largest"]

# Bits of the threshold found in one pass over the scores. XLA vectorizes a reduction that counts several things at
# once, so that on a CPU the three counts of a pass take a tenth of the time of one.
_DIGIT = 2

# Weights up to which small leaves are joined: fewer vectors compile faster, and to copy long ones would take longer
# than to read them.
_RUN = 2**20


class Found(NamedTuple):
    """The masks of some leaves, whether all scores that compete are finite, and how many compete."""

    masks: list[Array]
    finite: Array
    available: Array


def check_found(
    found: Found, names: list[str], scores: tuple[Array, ...], kept: Array, within: tuple[Array, ...] | None
) -> None:
    """Raise for scores that are not finite and for too few that compete, as far as their values can be read."""
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
    lowest, highest = np.iinfo(integer).min, np.iinfo(integer).max
    infinity = np.array(np.inf, f"float{integer.itemsize * 8}").view(integer).item()
    available, finite_or_large, large = _counts(keys, [lowest + 1, 1 - infinity, infinity])
    finite = (available == finite_or_large) & (large == 0)
    # Under jit nothing can be raised: a mask that keeps nothing is seen, one ranked by NaN is not.
    kept = jnp.where(finite, kept, 0)
    threshold = _kth_largest(keys, kept)
    above, at_least = _counts(keys, [threshold + 1, threshold])
    above = jnp.where(threshold == highest, 0, above)  # where threshold + 1 wraps around
    wanted = kept - above
    ties = [(key == threshold) & (key > lowest) for key in keys]

    def first_ties() -> list[Array]:
        # places count down from 0, so that the largest come first
        starts = np.cumsum([0, *(key.size for key in keys[:-1])])
        places = [
            jnp.where(tie, -jnp.arange(start, start + tie.size, dtype=integer), lowest)
            for tie, start in zip(ties, starts, strict=True)
        ]
        last = _kth_largest(places, wanted)
        return [tie & (place >= last) for tie, place in zip(ties, places, strict=True)]

    def all_or_no_ties() -> list[Array]:
        return [tie & (wanted > 0) for tie in ties]

    kept_ties = lax.cond(wanted < at_least - above, first_ties, all_or_no_ties)
    return Found([(key > threshold) | tie for key, tie in zip(keys, kept_ties, strict=True)], finite, available)


def _kth_largest(keys: list[Array], rank: Array) -> Array:
    """The largest integer t such that at least `rank` keys are t or more; the lowest of all where there is none."""
    integer = keys[0].dtype
    bits = integer.itemsize * 8

    def add_digit(step: Any, threshold: Array) -> Array:
        shift = jnp.asarray(bits - _DIGIT - _DIGIT * step, integer)
        candidates = [threshold + (jnp.asarray(digit, integer) << shift) for digit in range(1, 2**_DIGIT)]
        return threshold + (jnp.sum(_counts(keys, candidates) >= rank, dtype=integer) << shift)

    return cast(Array, lax.fori_loop(0, bits // _DIGIT, add_digit, jnp.asarray(np.iinfo(integer).min, integer)))


def _counts(keys: list[Array], thresholds: Sequence[ArrayLike]) -> Array:
    """For each threshold, how many keys are as large or larger; one pass over the keys for all of them."""
    zeros = (jnp.zeros((), jnp.int32),) * len(thresholds)
    leaves = []
    for key in keys:
        reached = tuple((key >= threshold).astype(jnp.int32) for threshold in thresholds)
        leaves.append(jnp.stack(lax.reduce(reached, zeros, lambda left, right: tuple(map(jnp.add, left, right)), (0,))))
    return jnp.sum(jnp.stack(leaves), axis=0, dtype=jnp.int32)
