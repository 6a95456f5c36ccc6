"""Masks: which weights of a network are kept.

A mask is a pytree with the structure of `params` and boolean leaves: True where a weight is kept. Leaves that must not
be pruned are True throughout, never None.

Make a mask with `from_scores`, or with `n_of_m` where hardware wants 2 of every 4 weights. Set pruned weights to 0 with
`apply_mask`, and keep them at 0 in training with `freeze`. `count`, `density`, `statistics` and `overlap` describe
masks; `save` and `load` store them in files. `shuffle`, `invert` and `reinitialize` are sanity checks: a method that
finds weights worth keeping should train worse after each.

By default kernels alone are prunable, as `is_kernel` tells them. Masks, weights and gradients are matched by the names
of their leaves, so that the mask of a dict fits a `FrozenDict` and that of a Flax NNX state fits its bare arrays.

**Several seeds at once.** Where networks of several seeds are stacked, so that every leaf has a leading axis, either
map these functions with `jax.vmap` or pass `stacked=True` to `from_scores`, `n_of_m`, `count`, `density`, `statistics`
and `overlap`: every seed is then treated alone, and results get that leading axis. Without either, all seeds count as
one network.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import tree_flatten_with_path, tree_unflatten
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from pathjax._base.kernels import is_kernel, prunable_leaves
from pathjax._base.network import kept_weights
from pathjax._base.trees import check_boolean, check_like, check_mask, key_paths
from pathjax._pruning import selection
from pathjax._pruning.apportionment import check_scope, kept_counts
from pathjax._pruning.files import load, save
from pathjax._pruning.freezing import freeze
from pathjax.types import Key, Mask, Params, Prunable, Scores

__all__ = [
    "LeafStatistics",
    "Overlap",
    "apply_mask",
    "count",
    "density",
    "freeze",
    "from_scores",
    "invert",
    "is_kernel",
    "keep_largest",
    "kept_counts",
    "load",
    "n_of_m",
    "overlap",
    "reinitialize",
    "save",
    "shuffle",
    "statistics",
]


def from_scores(
    scores: Scores,
    *,
    density: float,
    scope: str = "global",
    prunable: Prunable = is_kernel,
    within: Mask | None = None,
    stacked: bool = False,
) -> Mask:
    """The mask that keeps the prunable weights of largest score.

    Exactly round(ρ·N) of the N prunable weights are kept, where ρ is the `density` and `round` Python's (halves round
    to even). Of equal scores (−0 equals 0) those of lowest raveled index are kept, leaf after leaf in the order of the
    tree. With `within`, an earlier mask, a weight that it pruned stays pruned whatever its score. Scores of prunable
    leaves must be floating-point.

    `scope` says which weights are ranked together:

    - "global" ranks all prunable weights together;
    - "local" ranks each prunable leaf of n weights alone and keeps round(ρ·n), so the total can differ from round(ρ·N);
    - "uniform" ranks each leaf alone, with the same density in each as nearly as whole numbers allow, and a total of
      exactly round(ρ·N). Some papers also keep the first or last layer dense (Evci et al., Gale et al.): use
      `prunable`;
    - "erk", the Erdős–Rényi kernel, ranks each leaf alone. The density of a leaf is min(1, ε·(sum of its axes)/(product
      of its axes)), for a dense kernel ε·(n_in + n_out)/(n_in·n_out): small leaves are denser than large ones. ε is
      such that the total is exactly round(ρ·N).

    "uniform" and "erk" keep at least one weight in each leaf, and a leaf never keeps fewer weights at a higher density
    (Webster's method of apportionment).

    With `stacked`, the leading axis of every leaf counts seeds: each seed is ranked alone, with the same density.

    Cost: linear in N, without sorting. Called with scores in the memory of one CPU, NumPy finds the mask in about four
    passes, and next to nothing is compiled. On accelerators, for arrays on several devices and under `jit` and `vmap`,
    one program finds the same mask: it counts the scores above trial thresholds, in a few passes; as many again where
    ties must be broken. `density` must be a Python number; scores and `within` may be traced.

    Sources: Mocanu et al., "Scalable training of artificial neural networks with adaptive sparse connectivity", 2018;
    Evci et al., "Rigging the lottery: making all tickets winners", 2020, section 3; Gale et al., "The state of
    sparsity in deep neural networks", 2019.

    Raises ValueError where the density is outside (0, 1] or so low that it keeps nothing, no leaf is prunable, trees
    differ, a score is NaN or infinite (except where `within` is False), `within` keeps fewer weights than wanted, or
    leaves do not have the same leading axis with `stacked`; TypeError for scores of a prunable leaf that are not
    floating point and for a `within` that is not boolean. Under `jit` and `vmap`, where values cannot be read, a NaN or
    infinite score gives a mask that keeps no prunable weight, and a `within` that keeps too few is returned unchanged.

    >>> import jax, jax.numpy as jnp
    >>> kernel = jax.random.normal(jax.random.key(0), (20, 30))
    >>> params = {"hidden": {"kernel": kernel, "bias": jnp.zeros(30)}, "out": {"kernel": jnp.ones((30, 5))}}
    >>> scores = jax.tree.map(jnp.abs, params)  # or another score, such as those of `pathjax.scores`
    >>> mask = from_scores(scores, density=0.1)  # the largest 75 of 750 weights of kernels
    >>> int(count(mask)), bool(mask["hidden"]["bias"].all())
    (75, True)
    >>> layerwise = from_scores(scores, density=0.1, scope="local")
    >>> int(layerwise["hidden"]["kernel"].sum()), int(layerwise["out"]["kernel"].sum())
    (60, 15)
    """
    select = functools.partial(_select, density=density, scope=scope, prunable=prunable)
    return _selected(select, scores, within, stacked=stacked)


def _selected(
    select: Callable[[Scores, Mask | None], selection.Selection], scores: Scores, within: Mask | None, *, stacked: bool
) -> Mask:
    """The mask of `select(scores, within)`, checked; with `stacked`, of each seed."""
    if not stacked:
        chosen = select(scores, within)
        for contest in chosen.contests:
            selection.check(contest)
        return chosen.mask
    _check_stacked(scores, name="scores")
    within = None if within is None else check_like(within, scores, name="within", like_name="scores")

    def mask_and_soundness(scores: Scores, within: Mask | None) -> tuple[Mask, Array]:
        chosen = select(scores, within)
        is_sound = selection.sound([contest.ranking for contest in chosen.contests])
        return chosen.mask, jnp.asarray(is_sound)

    mask, is_sound = jax.vmap(mask_and_soundness)(scores, within)
    if not isinstance(is_sound, jax.core.Tracer) and not is_sound.all():
        seed = int(np.argmin(is_sound))
        one_scores, one_within = jax.tree.map(lambda leaf: leaf[seed], (scores, within))
        try:
            for contest in select(one_scores, one_within).contests:
                selection.check(contest)
        except ValueError as error:
            raise ValueError(f"Of seed {seed}: {error}") from error
    return mask


def _select(
    scores: Scores, within: Mask | None, *, density: float, scope: str, prunable: Prunable
) -> selection.Selection:
    counts = kept_counts(scores, density=density, scope=scope, prunable=prunable)
    return selection.select(scores, counts, scope=scope, prunable=prunable, within=within)


def keep_largest(
    scores: Scores,
    counts: ArrayLike,
    *,
    scope: str = "global",
    prunable: Prunable = is_kernel,
    within: Mask | None = None,
) -> Mask:
    """The mask that keeps a given number of weights: `from_scores` with `counts` in place of `density`.

    `counts` may be traced, so that one compiled program serves every density. It is one integer for scope "global",
    else one for each prunable leaf (l,), as `kept_counts` gives them. A count of 0 keeps nothing, which `from_scores`
    refuses for a density: counts may be traced, and that of a leaf may be 0. All else, and the errors, are as in
    `from_scores`; also raises ValueError for `counts` of another shape and TypeError for `counts` that are not
    integers.

    >>> import jax, jax.numpy as jnp
    >>> scores = {"kernel": jax.random.uniform(jax.random.key(0), (20, 30))}
    >>> masks = jax.vmap(keep_largest, in_axes=(None, 0))(scores, jnp.array([6, 60, 300]))  # three masks at once
    >>> masks["kernel"].shape, masks["kernel"].sum(axis=(1, 2)).tolist()
    ((3, 20, 30), [6, 60, 300])
    """
    check_scope(scope)
    mask, contests = selection.select(scores, counts, scope=scope, prunable=prunable, within=within)
    for contest in contests:
        selection.check(contest)
    return mask


def n_of_m(
    scores: Scores,
    *,
    n: int,
    m: int,
    axis: int = -2,
    prunable: Prunable = is_kernel,
    within: Mask | None = None,
    stacked: bool = False,
) -> Mask:
    """The mask that keeps the n weights of largest score of every m in a row along an axis, such as 2 of 4.

    Recent GPUs multiply faster by matrices of which at most 2 of every 4 weights in a row along the inputs are nonzero.
    The default axis is that of the inputs of dense kernels (in, out), and of the input channels of convolutions (h, w,
    in, out). Each prunable leaf keeps exactly n/m of its weights. Of equal scores (−0 equals 0) those of lowest index
    along the axis are kept. Scores of prunable leaves must be floating-point.

    Groups of m must fill the axis of every prunable leaf. Others, such as the first convolution of an image's three
    channels, are refused with the `prunable` that leaves them dense.

    With `within`, an earlier mask, a weight that it pruned stays pruned whatever its score, and a group of which it
    keeps fewer than n weights keeps these. So the mask of `pruning.prune` becomes one of at most n of m, and the
    pattern can be reached in rounds, with scores of the weights that are left:

        mask = None
        for n in (3, 2):
            score = scores.synflow(apply, masks.apply_mask(mask, params), x_like)
            mask = masks.n_of_m(score, n=n, m=4, within=mask)

    With `stacked`, the leading axis of every leaf counts seeds, and `axis` is that of the leaf of one seed.

    Cost: m comparisons for each weight. `n`, `m` and `axis` must be Python integers; scores and `within` may be traced.

    Sources: Mishra et al., "Accelerating sparse deep neural networks", 2021; Zhou et al., "Learning N:M fine-grained
    structured sparse neural networks from scratch", 2021. Such masks are refused by JaxPruner too where groups do not
    fill the axis; NVIDIA's ASP leaves these layers dense.

    Raises ValueError unless 1 ≤ n ≤ m, where a prunable leaf lacks the axis or its length is no multiple of m, no leaf
    is prunable, trees differ, a score is NaN or infinite (except where `within` is False), or leaves do not have the
    same leading axis with `stacked`; TypeError for scores of a prunable leaf that are not floating point and for a
    `within` that is not boolean. Under `jit` and `vmap`, where values cannot be read, a leaf with a NaN or infinite
    score keeps nothing.

    >>> import jax.numpy as jnp
    >>> scores = {"kernel": jnp.array([[3.0, 1.0, 0.0], [1.0, 1.0, 5.0], [2.0, 1.0, 6.0], [0.0, 1.0, 7.0]])}
    >>> n_of_m(scores, n=2, m=4)["kernel"].astype(int).tolist()
    [[1, 1, 0], [0, 1, 0], [1, 0, 1], [0, 0, 1]]
    """
    if not 1 <= n <= m:
        raise ValueError(f"`n` must lie in 1 … m, the number kept of every m weights; they are n={n} and m={m}.")
    options: dict[str, Any] = {"n": n, "m": m, "axis": axis, "prunable": prunable}

    def select(scores: Scores, within: Mask | None) -> selection.Selection:
        return selection.select_in_groups(scores, within=within, **options)

    return _selected(select, scores, within, stacked=stacked)


def apply_mask(mask: Mask | None, params: Params) -> Params:
    """`params` with pruned weights set to 0; with `mask=None`, `params` unchanged.

    Pruned weights are replaced by 0, not multiplied by it: NaN and infinity become 0 too. The result has the containers
    of `params`, whatever those of the mask are. Raises ValueError for a mask whose leaves have other names or shapes
    than those of `params`, and TypeError for a mask that is not boolean.

    >>> import jax.numpy as jnp
    >>> mask = {"kernel": jnp.array([[True, False, True], [False, True, True]])}
    >>> apply_mask(mask, {"kernel": jnp.full((2, 3), 4.0)})["kernel"].tolist()
    [[4.0, 0.0, 4.0], [0.0, 4.0, 4.0]]
    """
    if mask is None:
        return params
    if not _is_boolean(mask) and (params is None or _is_boolean(params)):
        raise TypeError(
            "The arguments of `apply_mask` are swapped: the mask comes first. Write masks.apply_mask(mask, params)."
        )
    return kept_weights(check_mask(mask, params), params)


def _is_boolean(tree: Any) -> bool:
    leaves = jax.tree.leaves(tree)
    return bool(leaves) and all(jnp.result_type(leaf) == jnp.bool_ for leaf in leaves)


def count(mask: Mask, *, prunable: Prunable = is_kernel, stacked: bool = False) -> Int[Array, "*seeds"]:
    """The number of prunable weights that a mask keeps; with `stacked`, that of each seed along the leading axis.

    Raises TypeError for a mask that is not boolean, and ValueError where, with `stacked`, leading axes differ.

    >>> import jax.numpy as jnp
    >>> int(count({"kernel": jnp.array([[True, False, True], [False, True, True]]), "bias": jnp.ones(3, bool)}))
    4
    """
    check_boolean(mask, name="mask")
    if stacked:
        _check_stacked(mask, name="mask")
        return jax.vmap(functools.partial(count, prunable=prunable))(mask)
    kept = [jnp.sum(leaf, dtype=jnp.int32) for _, leaf in prunable_leaves(mask, prunable)]
    return sum(kept, start=jnp.zeros((), jnp.int32))


def density(mask: Mask, *, prunable: Prunable = is_kernel, stacked: bool = False) -> Float[Array, "*seeds"]:
    """The share of the prunable weights that a mask keeps; 1 if no weight is prunable.

    With `stacked`, the leading axis of every leaf counts seeds, and the result has one share for each. Raises TypeError
    for a mask that is not boolean, and ValueError where, with `stacked`, leading axes differ.

    >>> import jax.numpy as jnp
    >>> mask = {"kernel": jnp.array([[True, False, True], [False, True, True]]), "bias": jnp.ones(3, bool)}
    >>> round(float(density(mask)), 4)  # the bias is not prunable and does not count
    0.6667
    >>> seeds = {"kernel": jnp.array([[[True, False]], [[True, True]]]), "bias": jnp.ones((2, 2), bool)}
    >>> density(seeds, stacked=True).tolist()
    [0.5, 1.0]
    """
    if stacked:
        check_boolean(mask, name="mask")
        _check_stacked(mask, name="mask")
        return jax.vmap(functools.partial(density, prunable=prunable))(mask)
    size = sum(leaf.size for _, leaf in prunable_leaves(mask, prunable))
    return count(mask, prunable=prunable) / size if size else jnp.ones(())


class LeafStatistics(NamedTuple):
    """What a mask keeps of one leaf.

    Attributes:
        path: the key path of the leaf, such as "['hidden']['kernel']".
        kept: the number of weights that the mask keeps; of stacked seeds a NumPy array with one number for each seed.
        size: the number of weights of the leaf; of stacked seeds that of one seed.
        density: `kept` / `size`, and 1 for an empty leaf; of stacked seeds a NumPy array like `kept`.
    """

    path: str
    kept: int | np.ndarray
    size: int
    density: float | np.ndarray


def statistics(mask: Mask, *, stacked: bool = False) -> tuple[LeafStatistics, ...]:
    """What a mask keeps of each leaf, prunable or not, in the order of the tree; the density of an empty leaf is 1.

    With `stacked`, the leading axis of every leaf counts seeds. The values of the mask are read, so this does not work
    under `jit`. Raises TypeError for a mask that is not boolean, and ValueError where, with `stacked`, leading axes
    differ.

    >>> import jax, jax.numpy as jnp
    >>> params = {"hidden": jnp.full((4, 20), 0.5), "out": jnp.ones((20, 3))}
    >>> mask = from_scores(jax.tree.map(jnp.abs, params), density=0.5)
    >>> for leaf in statistics(mask):
    ...     print(f"{leaf.path}: {leaf.kept} of {leaf.size} weights")
    ['hidden']: 10 of 80 weights
    ['out']: 60 of 60 weights
    """
    check_boolean(mask, name="mask")
    named_leaves = list(zip(key_paths(mask), map(np.asarray, jax.tree.leaves(mask)), strict=True))
    if not stacked:
        return tuple(
            LeafStatistics(path, kept := int(np.sum(leaf)), leaf.size, kept / leaf.size if leaf.size else 1.0)
            for path, leaf in named_leaves
        )
    _check_stacked(mask, name="mask")
    rows = [(path, leaf.reshape(len(leaf), math.prod(leaf.shape[1:]))) for path, leaf in named_leaves]
    return tuple(
        LeafStatistics(path, kept := row.sum(axis=1), size := row.shape[1], kept / size if size else np.ones(len(row)))
        for path, row in rows
    )


class Overlap(NamedTuple):
    """How alike two masks are, as `overlap` gives it.

    Attributes:
        jaccard: the Jaccard index |A ∩ B| / |A ∪ B| of the kept prunable weights, from 0 to 1.
        shared: the number of prunable weights that both masks keep.
        expected: the Jaccard index of random masks that keep as many weights in each leaf.
    """

    jaccard: Float[Array, "*seeds"]
    shared: Int[Array, "*seeds"]
    expected: Float[Array, "*seeds"]


def overlap(left: Mask, right: Mask, *, prunable: Prunable = is_kernel, stacked: bool = False) -> Overlap:
    """How alike two masks are: the Jaccard index |A ∩ B| / |A ∪ B| of their kept prunable weights, and that by chance.

    `expected` is the index of random masks that keep as many weights a_l and b_l in each leaf of n_l weights: s / (|A|
    + |B| − s), where s = Σ_l a_l·b_l / n_l is the expected number of weights that both keep. If `jaccard` is near
    `expected`, two methods agree on how many weights each layer keeps and on nothing more. `expected` is a ratio of
    expectations, which differs from the expectation of the ratio by O(1/N). Two masks that keep nothing have index 1.

    With `stacked`, the leading axis of every leaf counts seeds: the masks of each seed are compared with each other.
    Raises ValueError where the trees or, with `stacked`, leading axes differ; TypeError for masks that are not boolean.

    >>> import jax
    >>> scores = {"kernel": jax.random.normal(jax.random.key(0), (50, 80))}
    >>> mask, smaller = from_scores(scores, density=0.2), from_scores(scores, density=0.18)
    >>> compared = overlap(mask, smaller)
    >>> round(float(compared.jaccard), 2), round(float(compared.expected), 2)
    (0.9, 0.1)
    >>> by_chance = overlap(mask, shuffle(mask, key=jax.random.key(1)))
    >>> bool(abs(by_chance.jaccard - by_chance.expected) < 0.05)
    True
    """
    right = check_like(right, left, name="right", like_name="left")
    check_boolean(left, name="left")
    check_boolean(right, name="right")
    if stacked:
        _check_stacked(left, name="left")
        return jax.vmap(functools.partial(overlap, prunable=prunable))(left, right)
    kept, shared, expected = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32), jnp.zeros(())
    for (_, a), (_, b) in zip(prunable_leaves(left, prunable), prunable_leaves(right, prunable), strict=True):
        kept_by_a, kept_by_b = jnp.sum(a, dtype=jnp.int32), jnp.sum(b, dtype=jnp.int32)
        kept, shared = kept + kept_by_a + kept_by_b, shared + jnp.sum(a & b, dtype=jnp.int32)
        expected = expected + kept_by_a * (kept_by_b / max(jnp.size(a), 1))
    return Overlap(_jaccard(shared.astype(float), kept), shared, _jaccard(expected, kept))


def _jaccard(shared: Array, kept: Array) -> Array:
    """|A ∩ B| / |A ∪ B| from |A ∩ B| and |A| + |B|."""
    return jnp.where(kept == 0, 1.0, shared / jnp.maximum(kept - shared, 1))


def shuffle(mask: Mask, *, key: Key, prunable: Prunable = is_kernel) -> Mask:
    """A random mask that keeps as many weights as the given one in each prunable leaf.

    A sanity check: a method that finds which weights to keep, and not only how many in each layer, trains worse with
    the shuffled mask. Leaf i of the tree gets the key `jax.random.fold_in(key, i)`. Linear in the number of weights;
    works under `jit` and `vmap`. Raises TypeError for a mask that is not boolean.

    Sources: Frankle et al., "Pruning neural networks at initialization: why are we missing the mark?", 2021,
    section 5; Su et al., "Sanity-checking pruning methods: random tickets can win the jackpot", 2020.

    >>> import jax, jax.numpy as jnp
    >>> mask = {"kernel": jnp.array([[True, True, True, False], [False, False, False, False]])}
    >>> shuffled = shuffle(mask, key=jax.random.key(0))
    >>> shuffled["kernel"].astype(int).tolist(), int(count(shuffled))
    ([[0, 1, 0, 1], [0, 0, 0, 1]], 3)
    """
    check_boolean(mask, name="mask")
    leaves, structure = tree_flatten_with_path(mask)
    return tree_unflatten(
        structure,
        [
            _shuffled(leaf, jax.random.fold_in(key, index)) if prunable(path, leaf) else leaf
            for index, (path, leaf) in enumerate(leaves)
        ],
    )


def _shuffled(leaf: Any, key: Key) -> Array:
    # folded again: a mask of random scores that were drawn with the same key must not come back unchanged
    random_scores = jax.random.uniform(jax.random.fold_in(key, 0), jnp.shape(leaf), jnp.float32)
    return selection.keep_largest(random_scores, jnp.sum(leaf, dtype=jnp.int32))


def invert(scores: Scores) -> Scores:
    """The scores negated, so that the weights of smallest score are kept.

    A sanity check: a method whose scores tell good weights from bad ones trains worse with inverted scores. Leaves that
    are not floating-point stay as they are.
    Source: Frankle et al., "Pruning neural networks at initialization: why are we missing the mark?", 2021, section 5.

    >>> import jax.numpy as jnp
    >>> scores = {"kernel": jnp.array([[3.0, 1.0, 4.0], [2.0, 0.0, 5.0]])}
    >>> from_scores(invert(scores), density=0.5)["kernel"].astype(int).tolist()
    [[0, 1, 0], [1, 1, 0]]
    """
    return jax.tree.map(lambda leaf: -leaf if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) else leaf, scores)


def reinitialize(init: Callable[[Key], Params], mask: Mask, *, key: Key) -> Params:
    """New random weights `init(key)` under the mask, with pruned weights at 0.

    A sanity check: a method that chose the mask by the values of the weights, and not by the architecture alone, trains
    worse with other weights. Raises ValueError for a mask of another tree than `init` returns and TypeError for one
    that is not boolean.
    Source: Frankle et al., "Pruning neural networks at initialization: why are we missing the mark?", 2021, section 5.

    >>> import jax, jax.numpy as jnp
    >>> mask = {"kernel": jnp.array([[True, False, True], [False, True, True]])}
    >>> params = reinitialize(lambda key: {"kernel": jax.random.normal(key, (2, 3))}, mask, key=jax.random.key(1))
    >>> (params["kernel"] != 0).astype(int).tolist()
    [[1, 0, 1], [0, 1, 1]]
    """
    return apply_mask(mask, init(key))


def _check_stacked(tree: Any, *, name: str) -> None:
    """Raise ValueError unless all leaves have a leading axis, of the same length."""
    (first_path, *_), (first, *_) = key_paths(tree) or [""], jax.tree.leaves(tree) or [jnp.zeros(1)]
    for path, leaf in zip(key_paths(tree), jax.tree.leaves(tree), strict=True):
        if jnp.ndim(leaf) == 0 or jnp.shape(leaf)[0] != jnp.shape(first)[0]:
            raise ValueError(
                f"With `stacked`, the leading axis of every leaf of `{name}` counts the seeds and is equally long, but "
                f"{first_path} has shape {jnp.shape(first)} and {path} has {jnp.shape(leaf)}. Stack whole networks, as "
                "`jax.vmap` over their seeds does, or leave out `stacked` for a single network."
            )
