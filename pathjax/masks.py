"""Masks: which weights are kept.

A mask has the structure of `params` and boolean leaves: True where a weight is kept. Leaves that must not be pruned
are True throughout, never None. `from_scores` makes a mask, `apply_mask` uses it, `freeze` holds it during training,
`count`, `density`, `statistics` and `overlap` describe it, `save` and `load` keep it in a file. `shuffle`, `invert` and
`reinitialize` are the sanity checks that a method which finds weights worth keeping should not survive.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr, tree_flatten_with_path, tree_unflatten
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from pathjax._base.trees import check_boolean, check_like, check_mask, key_paths
from pathjax._pruning import selection
from pathjax._pruning.apportionment import apportion
from pathjax._pruning.files import load, save
from pathjax.types import Key, Mask, Params, Prunable, Scores

if TYPE_CHECKING:
    import optax

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
    "overlap",
    "reinitialize",
    "save",
    "shuffle",
    "statistics",
]

_SCOPES = ("global", "local", "uniform", "erk")


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
    on, leaf after leaf in the order of the tree. With `within`, an earlier mask, nothing that it pruned is kept again,
    whatever the score. Leaves of other scores than floating-point ones may only be unprunable.

    Scope "global" ranks all prunable weights together. The others rank within each prunable leaf, of n weights:

    - "local" keeps round(ρ·n), each leaf by itself, so that the total can differ from round(ρ·N);
    - "uniform" keeps one density in all leaves, as near as whole weights allow, and exactly round(ρ·N) in all. Some
      papers keep the first or the last layer dense under this name (Evci et al., Gale et al.): use `prunable`;
    - "erk", the Erdős–Rényi-Kernel, gives a leaf the density min(1, ε·(sum of its axes)/(product of its axes)),
      exactly round(ρ·N) in all: for a dense kernel ε·(n_in + n_out)/(n_in·n_out), more in small leaves than in large.

    Under "uniform" and "erk" no leaf is emptied, and a leaf never keeps fewer at a higher density (Webster's method).

    Linear time in N and no sort: a sample brackets the threshold, and guesses close the bracket in some four passes
    that count, at worst by quarters; as many again where only a part of the ties is kept. `density` is static; scores
    and `within` may be traced.

    Sources: Mocanu et al., "Scalable training of artificial neural networks with adaptive sparse connectivity", 2018;
    Evci et al., "Rigging the lottery: making all tickets winners", 2020, section 3; Gale et al., "The state of
    sparsity in deep neural networks", 2019.

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
    """How many weights a density keeps: round(ρ·N); in other scopes than "global" an integer for each prunable leaf.

    Reads the shapes of `params` alone. Raises ValueError where the density is outside (0, 1] or keeps nothing of the
    weights or, in other scopes than "global", of a leaf that is not empty, and where nothing is prunable.

    >>> import jax.numpy as jnp
    >>> params = {"first": jnp.ones((3, 5)), "second": jnp.ones((5, 2)), "third": jnp.ones((40, 50))}
    >>> kept_counts(params, density=0.1).item()
    202
    >>> for scope in ("local", "uniform", "erk"):
    ...     print(kept_counts(params, density=0.1, scope=scope))
    [  2   1 200]
    [  1   1 200]
    [ 15  10 177]
    """
    _check_scope(scope)
    selection.check_density(density)
    leaves = [(keystr(path), jnp.shape(leaf)) for path, leaf in _prunable_leaves(params, prunable)]
    sizes = [math.prod(shape) for _, shape in leaves]
    size = sum(sizes)
    if size == 0:
        raise ValueError(
            "`prunable` leaves no weight to prune. Leaves of two or more axes are prunable by default; pass "
            "prunable=lambda key_path, leaf: ... to choose others."
        )
    if size > np.iinfo(np.int32).max:
        raise ValueError(f"At most 2**31 - 1 prunable weights can be ranked; these are {size}.")
    total = _rounded(density, size, "the prunable weights")
    if scope == "global":
        return np.asarray(total, np.int32)
    if scope == "local":
        return np.asarray(
            [_rounded(density, size, path) for (path, _), size in zip(leaves, sizes, strict=True)], np.int32
        )
    filled = sum(size > 0 for size in sizes)
    if total < filled:
        raise ValueError(
            f"density {density} keeps {total} of the {size} prunable weights, and there are {filled} leaves, of which "
            f'scope "{scope}" empties none. The smallest that keeps one of each is about {filled / size:.3g}.'
        )
    shares = sizes if scope == "uniform" else [sum(shape) for _, shape in leaves]
    return np.asarray(apportion(total, shares, sizes), np.int32)


def _rounded(density: float, size: int, group: str) -> int:
    kept = round(float(density) * size)
    if size > 0 and kept == 0:
        raise ValueError(
            f"density {density} keeps none of {group}, {size} in number. "
            f"The smallest that keeps one is about {1.0 / size:.3g}."
        )
    return kept


def keep_largest(
    scores: Scores,
    counts: ArrayLike,
    *,
    scope: str = "global",
    prunable: Prunable = is_kernel,
    within: Mask | None = None,
) -> Mask:
    """`from_scores` with given counts, which may be traced: one compiled program serves every density.

    `counts` is an integer, or in other scopes than "global" one for each prunable leaf (l,), as `kept_counts` gives
    them. Everything else is as in `from_scores`.

    >>> import jax, jax.numpy as jnp
    >>> scores = {"kernel": jnp.array([[3.0, 1.0], [2.0, 5.0], [0.0, 4.0]])}
    >>> masks = jax.vmap(keep_largest, in_axes=(None, 0))(scores, jnp.array([1, 3]))
    >>> masks["kernel"].astype(int).tolist()
    [[[0, 0], [0, 1], [0, 0]], [[1, 0], [0, 1], [0, 1]]]
    """
    _check_scope(scope)
    mask, contests = selection.select(scores, counts, scope=scope, prunable=prunable, within=within)
    for contest in contests:
        selection.check(contest)
    return mask


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


class Overlap(NamedTuple):
    """How alike two masks are: their Jaccard index, the weights that both keep, and the index expected by chance."""

    jaccard: Float[Array, ""]
    shared: Int[Array, ""]
    expected: Float[Array, ""]


def overlap(left: Mask, right: Mask, *, prunable: Prunable = is_kernel) -> Overlap:
    """How alike two masks are on the prunable weights: |A ∩ B| / |A ∪ B|, and the same for random masks.

    `expected` is what random masks with the same counts a_l, b_l in each leaf of n_l weights have: with
    s = Σ_l a_l·b_l / n_l, the expected number that both keep, s / (|A| + |B| − s). An index near it says that two
    methods agree on how many weights each layer keeps, and on nothing else. It is the ratio of expectations, which
    differs from the expected ratio by O(1/N). Two masks that keep nothing have index 1.

    Raises ValueError where the trees differ, TypeError for masks that are not boolean.

    >>> import jax.numpy as jnp
    >>> left = {"kernel": jnp.array([[True, True, False], [True, False, False]])}
    >>> right = {"kernel": jnp.array([[True, False, False], [True, False, True]])}
    >>> both = overlap(left, right)
    >>> float(both.jaccard), int(both.shared), round(float(both.expected), 4)
    (0.5, 2, 0.3333)
    """
    check_like(right, left, name="right", like_name="left")
    check_boolean(left, name="left")
    check_boolean(right, name="right")
    kept, shared, expected = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32), jnp.zeros(())
    for (_, one), (_, other) in zip(_prunable_leaves(left, prunable), _prunable_leaves(right, prunable), strict=True):
        mine, theirs = jnp.sum(one, dtype=jnp.int32), jnp.sum(other, dtype=jnp.int32)
        kept, shared = kept + mine + theirs, shared + jnp.sum(one & other, dtype=jnp.int32)
        expected = expected + mine * (theirs / max(jnp.size(one), 1))
    return Overlap(_jaccard(shared.astype(float), kept), shared, _jaccard(expected, kept))


def _jaccard(shared: Array, kept: Array) -> Array:
    """|A ∩ B| / |A ∪ B| from |A ∩ B| and |A| + |B|."""
    return jnp.where(kept == 0, 1.0, shared / jnp.maximum(kept - shared, 1))


def shuffle(mask: Mask, *, key: Key, prunable: Prunable = is_kernel) -> Mask:
    """The mask with the weights kept in each prunable leaf drawn anew: as many, at random places.

    A sanity check: a method that finds which weights are worth keeping, and not only how many in each layer, trains
    worse after it. Each leaf has its own key, folded from `key`. Linear in the number of weights; goes under `jit` and
    `vmap`. Raises TypeError for a mask that is not boolean.

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
            _shuffled(leaf, jax.random.fold_in(key, place)) if prunable(path, leaf) else leaf
            for place, (path, leaf) in enumerate(leaves)
        ],
    )


def _shuffled(leaf: Any, key: Key) -> Array:
    # folded once more, or scores drawn from the same key would rank the weights alike
    drawn = jax.random.uniform(jax.random.fold_in(key, 0), jnp.shape(leaf), jnp.float32)
    return selection.keep_largest((drawn,), jnp.sum(leaf, dtype=jnp.int32), None).masks[0]


def invert(scores: Scores) -> Scores:
    """The scores negated, so that the weights of smallest score are kept.

    A sanity check: a method whose scores tell good weights from bad ones trains worse after it. Leaves of other
    scores than floating-point ones stay as they are.
    Source: Frankle et al., "Pruning neural networks at initialization: why are we missing the mark?", 2021, section 5.

    >>> import jax.numpy as jnp
    >>> scores = {"kernel": jnp.array([[3.0, 1.0, 4.0], [2.0, 0.0, 5.0]])}
    >>> from_scores(invert(scores), density=0.5)["kernel"].astype(int).tolist()
    [[0, 1, 0], [1, 1, 0]]
    """
    return jax.tree.map(lambda leaf: -leaf if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) else leaf, scores)


def reinitialize(init: Callable[[Key], Params], mask: Mask, *, key: Key) -> Params:
    """Other weights from `init(key)` under the mask.

    A sanity check: a method that depends on the weights it was given, and not only on the architecture, trains worse
    after it. Raises ValueError where the mask is not of the tree that `init` draws, TypeError unless it is boolean.
    Source: Frankle et al., "Pruning neural networks at initialization: why are we missing the mark?", 2021, section 5.

    >>> import jax, jax.numpy as jnp
    >>> mask = {"kernel": jnp.array([[True, False, True], [False, True, True]])}
    >>> params = reinitialize(lambda key: {"kernel": jax.random.normal(key, (2, 3))}, mask, key=jax.random.key(1))
    >>> (params["kernel"] != 0).astype(int).tolist()
    [[1, 0, 1], [0, 1, 1]]
    """
    return apply_mask(mask, init(key))


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


def _check_scope(scope: str) -> None:
    if scope not in _SCOPES:
        raise ValueError(f'Unknown scope "{scope}". The scopes are {", ".join(_SCOPES)}.')
