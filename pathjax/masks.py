"""Masks: which weights are kept.

A mask has the structure of `params` and boolean leaves: True where a weight is kept. Leaves that must not be pruned
are True throughout, never None. `from_scores` makes a mask, `apply_mask` uses it, `freeze` holds it during training,
and `count`, `density` and `statistics` describe it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import keystr, tree_flatten_with_path, tree_unflatten
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from pathjax._trees import check_boolean, check_like, check_mask, key_paths
from pathjax.types import Mask, Params, Prunable, Scores

if TYPE_CHECKING:
    import optax

__all__ = [
    "LeafStatistics",
    "apply_mask",
    "count",
    "density",
    "freeze",
    "from_scores",
    "is_kernel",
    "keep_largest",
    "kept_counts",
    "statistics",
]

_SCOPES = ("global", "local")

# Bits of the threshold found in one pass over the scores. XLA vectorizes a reduction that counts several things at
# once, so that on a CPU the three counts of a pass take a tenth of the time of one.
_DIGIT = 2

# Weights up to which small leaves are joined: fewer vectors compile faster, and to copy long ones would take longer
# than to read them.
_RUN = 2**20


def is_kernel(key_path: tuple[Any, ...], leaf: Any) -> bool:
    """Whether a leaf is a kernel: two or more axes. Biases and normalization scales have one and are not.

    The default of every `prunable` argument.

    >>> import jax.numpy as jnp
    >>> is_kernel((), jnp.ones((3, 2))), is_kernel((), jnp.ones(2))
    (True, False)
    """
    return len(jnp.shape(leaf)) >= 2


def from_scores(
    scores: Scores,
    *,
    density: float,
    scope: str = "global",
    prunable: Prunable = is_kernel,
    within: Mask | None = None,
) -> Mask:
    """The mask that keeps the prunable weights of largest score.

    Exactly round(ρ·N) of the N prunable weights are kept, where `round` is Python's (halves go to the even
    neighbour) and ρ the `density`. Equal scores, of which −0 and 0 are two, are kept from the lowest raveled index
    on, leaf after leaf in the order of the tree. Scope "global" ranks all prunable weights together; "local" keeps
    round(ρ·n) of the n weights of each prunable leaf. With `within`, an earlier mask, nothing that it pruned is
    kept again, whatever the score. Leaves of other scores than floating-point ones may only be unprunable.

    Linear time in N and no sort: the threshold is built from its bits, two in each of 16 passes over the scores (32
    for float64), and as many again where only a part of the ties is kept. `density` is static; scores and `within` may
    be traced.

    Raises ValueError where the density is outside (0, 1] or keeps nothing, nothing is prunable, trees differ, a
    score that competes is NaN or infinite, or `within` keeps fewer weights than wanted. Under `jit` and `vmap`,
    where values cannot be read, such a NaN or infinity makes a mask that keeps no prunable weight at all, and too
    small a `within` is returned whole.

    >>> import jax.numpy as jnp
    >>> scores = {"bias": jnp.zeros(2), "kernel": jnp.array([[3.0, 1.0], [1.0, 0.0], [2.0, 5.0]])}
    >>> mask = from_scores(scores, density=0.7)  # four of six, and the first of the two ones
    >>> mask["kernel"].astype(int).tolist(), mask["bias"].tolist()
    ([[1, 1], [0, 0], [1, 1]], [True, True])
    """
    counts = kept_counts(scores, density=density, scope=scope, prunable=prunable)
    return keep_largest(scores, counts, scope=scope, prunable=prunable, within=within)


def kept_counts(params: Params, *, density: float, scope: str = "global", prunable: Prunable = is_kernel) -> np.ndarray:
    """How many weights a density keeps: round(ρ·N), an integer; with scope "local", one for each prunable leaf.

    Reads the shapes of `params` alone. Raises ValueError where the density is outside (0, 1] or keeps nothing of the
    weights or, with scope "local", of a leaf that is not empty, and where nothing is prunable.

    >>> import jax.numpy as jnp
    >>> params = {"first": jnp.ones((3, 5)), "second": jnp.ones((5, 2))}
    >>> kept_counts(params, density=0.5).item(), kept_counts(params, density=0.5, scope="local").tolist()
    (12, [8, 5])
    """
    _check_scope(scope)
    if not 0.0 < density <= 1.0:
        raise ValueError(f"density must lie in (0, 1], the share of weights to keep; it is {density}.")
    leaves = [(keystr(path), leaf) for path, leaf in _prunable_leaves(params, prunable)]
    sizes = [int(np.prod(jnp.shape(leaf), dtype=np.int64)) for _, leaf in leaves]
    if sum(sizes) == 0:
        raise ValueError(
            "`prunable` leaves no weight to prune. Leaves of two or more axes are prunable by default; pass "
            "prunable=lambda key_path, leaf: ... to choose others."
        )
    if sum(sizes) > np.iinfo(np.int32).max:
        raise ValueError(f"At most 2**31 - 1 prunable weights can be ranked; these are {sum(sizes)}.")
    groups = [("the prunable weights", sum(sizes))]
    if scope == "local":
        groups = [(path, size) for (path, _), size in zip(leaves, sizes, strict=True)]
    counts = [round(float(density) * size) for _, size in groups]
    for (group, size), kept in zip(groups, counts, strict=True):
        if size > 0 and kept == 0:
            raise ValueError(
                f"density {density} keeps none of {group}, {size} in number. "
                f"The smallest that keeps one is about {1.0 / size:.3g}."
            )
    return np.asarray(counts if scope == "local" else counts[0], np.int32)


def keep_largest(
    scores: Scores,
    counts: ArrayLike,
    *,
    scope: str = "global",
    prunable: Prunable = is_kernel,
    within: Mask | None = None,
) -> Mask:
    """`from_scores` with given counts, which may be traced: one compiled program serves every density.

    `counts` is an integer, or with scope "local" one for each prunable leaf (l,), as `kept_counts` gives them.
    Everything else is as in `from_scores`.

    >>> import jax, jax.numpy as jnp
    >>> scores = {"kernel": jnp.array([[3.0, 1.0], [2.0, 5.0], [0.0, 4.0]])}
    >>> masks = jax.vmap(keep_largest, in_axes=(None, 0))(scores, jnp.array([1, 3]))
    >>> masks["kernel"].astype(int).tolist()
    [[[0, 0], [0, 1], [0, 0]], [[1, 0], [0, 1], [0, 1]]]
    """
    _check_scope(scope)
    leaves, structure = tree_flatten_with_path(scores)
    chosen = [index for index, (path, leaf) in enumerate(leaves) if prunable(path, leaf)]
    ranked = tuple(_rankable(*leaves[index]) for index in chosen)
    if within is not None:
        check_like(within, scores, name="within", like_name="scores")
        check_boolean(within, name="within")
        everywhere = jax.tree.leaves(within)
        within = tuple(everywhere[index] for index in chosen)
    wanted_shape = (len(chosen),) if scope == "local" else ()
    if jnp.shape(counts) != wanted_shape:
        raise ValueError(
            f'With scope "{scope}", `counts` must have shape {wanted_shape}, as `kept_counts` makes them; '
            f"it has {jnp.shape(counts)}."
        )
    masks: list[Any] = [jnp.ones(jnp.shape(leaf), bool) for _, leaf in leaves]
    counts = jnp.asarray(counts, jnp.int32)
    groups = (
        [(slice(None), counts)] if scope == "global" else [(slice(i, i + 1), kept) for i, kept in enumerate(counts)]
    )
    for group, kept in groups if chosen else []:
        allowed = None if within is None else within[group]
        found = _keep_largest(ranked[group], kept, allowed)
        names = [keystr(leaves[index][0]) for index in chosen[group]]
        _check_found(found, names, ranked[group], kept, allowed)
        for index, mask in zip(chosen[group], found.masks, strict=True):
            masks[index] = mask
    return tree_unflatten(structure, masks)


def apply_mask(mask: Mask | None, params: Params) -> Params:
    """`params` with 0 in place of the pruned weights; None as a mask means dense.

    A choice, not a product: NaN and infinity vanish where the mask is False. Raises ValueError unless the trees agree,
    TypeError unless the mask is boolean.

    >>> import jax.numpy as jnp
    >>> mask = {"kernel": jnp.array([[True, False, True], [False, True, True]])}
    >>> apply_mask(mask, {"kernel": jnp.full((2, 3), 4.0)})["kernel"].tolist()
    [[4.0, 0.0, 4.0], [0.0, 4.0, 4.0]]
    """
    if mask is None:
        return params
    check_mask(mask, params)
    return jax.tree.map(lambda kept, leaf: jnp.where(kept, leaf, jnp.zeros_like(leaf)), mask, params)


def count(mask: Mask, *, prunable: Prunable = is_kernel) -> Int[Array, ""]:
    """The number of prunable weights that a mask keeps.

    >>> import jax.numpy as jnp
    >>> int(count({"kernel": jnp.array([[True, False, True], [False, True, True]]), "bias": jnp.ones(3, bool)}))
    4
    """
    check_boolean(mask, name="mask")
    kept = [jnp.sum(leaf, dtype=jnp.int32) for _, leaf in _prunable_leaves(mask, prunable)]
    return sum(kept, start=jnp.zeros((), jnp.int32))


def density(mask: Mask, *, prunable: Prunable = is_kernel) -> Float[Array, ""]:
    """The share of the prunable weights that a mask keeps; 1 where there are none.

    >>> import jax.numpy as jnp
    >>> float(density({"kernel": jnp.array([[True, False, True], [False, True, True]]), "bias": jnp.ones(3, bool)}))
    0.6666666865348816
    """
    size = sum(leaf.size for _, leaf in _prunable_leaves(mask, prunable))
    return count(mask, prunable=prunable) / size if size else jnp.ones(())


class LeafStatistics(NamedTuple):
    """What a mask keeps of one leaf: its key path, the weights kept, the weights there are, and their quotient."""

    path: str
    kept: int
    size: int
    density: float


def statistics(mask: Mask) -> tuple[LeafStatistics, ...]:
    """What a mask keeps of each leaf, prunable or not, in the order of the tree. An empty leaf has density 1.

    Reads the values of the mask, so that it does not go under `jit`.

    >>> import jax.numpy as jnp
    >>> statistics({"kernel": jnp.array([[True, False, True, False], [False, True, False, False]])})
    (LeafStatistics(path="['kernel']", kept=3, size=8, density=0.375),)
    """
    check_boolean(mask, name="mask")
    return tuple(
        LeafStatistics(path, kept := int(np.sum(leaf)), leaf.size, kept / leaf.size if leaf.size else 1.0)
        for path, leaf in zip(key_paths(mask), map(np.asarray, jax.tree.leaves(mask)), strict=True)
    )


def freeze(optimizer: optax.GradientTransformation, mask: Mask | None) -> optax.GradientTransformationExtraArgs:
    """The optimizer with pruned weights held: their updates are 0, and what it gathers about them stays as it began.

    Gradients and weights are masked on the way in, updates on the way out. So weights that are 0 at the start stay
    exactly 0 under any optimizer, and momentum, second moments and averages stay exactly 0 there; gradients that are
    NaN at a pruned weight do no harm, and norms (as for clipping) count the kept weights alone. The mask may be traced,
    so that one `vmap` trains many masks. Start from `apply_mask(mask, params)`; `mask=None` means dense.

    Raises ValueError where gradients or weights differ in structure from the mask. Needs optax.

    >>> import jax.numpy as jnp, optax
    >>> mask = {"kernel": jnp.array([[True, False, True], [False, True, True]])}
    >>> params = apply_mask(mask, {"kernel": jnp.ones((2, 3))})
    >>> optimizer = freeze(optax.adamw(0.25), mask)
    >>> updates, state = optimizer.update(params, optimizer.init(params), params)
    >>> optax.apply_updates(params, updates)["kernel"].round(2).tolist()
    [[0.75, 0.0, 0.75], [0.0, 0.75, 0.75]]
    """
    import optax  # here, so that `import pathjax` stays light

    inner = optax.with_extra_args_support(optimizer)

    def init(params: Params) -> Any:
        return inner.init(apply_mask(mask, params))

    def update(updates: Params, state: Any, params: Params | None = None, **extra_args: Any) -> tuple[Params, Any]:
        masked = None if params is None else apply_mask(mask, params)
        updates, state = inner.update(apply_mask(mask, updates), state, masked, **extra_args)
        return apply_mask(mask, updates), state

    return optax.GradientTransformationExtraArgs(init, update)


def _prunable_leaves(tree: Any, prunable: Prunable) -> list[tuple[Any, Any]]:
    return [(path, leaf) for path, leaf in tree_flatten_with_path(tree)[0] if prunable(path, leaf)]


def _rankable(path: Any, leaf: Any) -> Array:
    score = jnp.asarray(leaf)
    if not jnp.issubdtype(score.dtype, jnp.floating):
        raise TypeError(
            f"Scores must be floating-point; at {keystr(path)} they are {score.dtype}. Convert them, or make the leaf "
            "unprunable."
        )
    return score


def _check_scope(scope: str) -> None:
    if scope not in _SCOPES:
        raise ValueError(f'Unknown scope "{scope}". The scopes are {" and ".join(map(repr, _SCOPES))}.')


class _Found(NamedTuple):
    """The masks of some leaves, whether all scores that compete are finite, and how many compete."""

    masks: list[Array]
    finite: Array
    available: Array


def _check_found(
    found: _Found, names: list[str], scores: tuple[Array, ...], kept: Array, within: tuple[Array, ...] | None
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
def _keep_largest(scores: tuple[Array, ...], kept: Array, within: tuple[Array, ...] | None) -> _Found:
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


def _keep_largest_keys(keys: list[Array], kept: Array) -> _Found:
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
    return _Found([(key > threshold) | tie for key, tie in zip(keys, kept_ties, strict=True)], finite, available)


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
