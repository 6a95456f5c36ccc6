"""How many weights a density keeps, in all and of each leaf, by Webster's method of apportionment."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr

from pathjax._base.kernels import is_kernel, prunable_leaves
from pathjax._pruning.selection import check_density, check_some_prunable
from pathjax.types import Params, Prunable

__all__ = ["apportion", "check_scope", "kept_counts"]

_SCOPES = ("global", "local", "uniform", "erk")


def kept_counts(params: Params, *, density: float, scope: str = "global", prunable: Prunable = is_kernel) -> np.ndarray:
    """How many weights a density keeps: one integer for scope "global", else one for each prunable leaf (l,).

    The scopes are those of `from_scores`. Only the shapes of `params` are read.

    Raises ValueError where the density is outside (0, 1] or so low that it keeps no weight at all or, with other scopes
    than "global", none of some leaf that is not empty; and where no leaf is prunable.

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
    check_scope(scope)
    check_density(density)
    leaves = [(keystr(path), jnp.shape(leaf)) for path, leaf in prunable_leaves(params, prunable)]
    sizes = [math.prod(shape) for _, shape in leaves]
    size = sum(sizes)
    check_some_prunable(size)
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
            f"density {density:.6g} keeps {total} of the {size} prunable weights, and there are {filled} leaves, each "
            f'of which keeps one or more with scope "{scope}". The smallest possible density is about '
            f"{filled / size:.3g}."
        )
    shares = sizes if scope == "uniform" else [sum(shape) for _, shape in leaves]
    return np.asarray(apportion(total, shares, sizes), np.int32)


def _rounded(density: float, size: int, group: str) -> int:
    kept = round(float(density) * size)
    if size > 0 and kept == 0:
        raise ValueError(
            f"density {density:.6g} keeps none of {group}, {size} in number. "
            f"The smallest density that keeps one is about {1.0 / size:.3g}."
        )
    return kept


def check_scope(scope: str) -> None:
    """Raise ValueError for a scope that does not exist."""
    if scope not in _SCOPES:
        raise ValueError(f'Unknown scope "{scope}". The scopes are {", ".join(_SCOPES)}.')


def apportion(total: int, shares: Sequence[int], sizes: Sequence[int]) -> list[int]:
    """Counts that add up to `total`, one for each leaf: round(ε·share) clipped to 1 … size, with one ε for all leaves.

    If two leaves round up at the same ε, the first gets the weight. A larger `total` never gives a leaf a smaller
    count; rounding by largest remainders can ("Alabama paradox"). An empty leaf gets 0. `total` must lie between the
    number of leaves that are not empty and the sum of the sizes. A bisection in floating point finds an ε just below
    the right one; the rest is exact integer arithmetic.
    Source: Balinski and Young, "Fair Representation", 1982, Webster's method.
    """
    share, most = np.asarray(shares, np.int64), np.asarray(sizes, np.int64)
    least = np.minimum(most, 1)

    def rounded(epsilon: float) -> np.ndarray:
        return np.clip(np.floor(epsilon * share + 0.5), least, most).astype(np.int64)

    low, high = 0.0, float(np.max(most / np.maximum(share, 1))) + 1.0
    for _ in range(64):
        middle = (low + high) / 2
        low, high = (middle, high) if rounded(middle).sum() <= total else (low, middle)
    # an ε slightly too small: rounding errors must not add a weight too many; the few missing are added one by one
    counts = rounded(low * (1 - 1e-9)).tolist()
    return _add_one_by_one(total - sum(counts), counts, shares, sizes)


def _add_one_by_one(missing: int, counts: list[int], shares: Sequence[int], sizes: Sequence[int]) -> list[int]:
    """Counts with `missing` weights added, each to the leaf whose count rounds up at the smallest ε."""

    def next_rise(leaf: int) -> tuple[Fraction | float, int]:
        """Twice the ε at which the leaf's count rounds up by one, and the leaf, which breaks ties."""
        return (Fraction(2 * counts[leaf] + 1, shares[leaf]) if counts[leaf] < sizes[leaf] else math.inf), leaf

    queue = [next_rise(leaf) for leaf in range(len(counts))]
    heapq.heapify(queue)
    for _ in range(missing):
        leaf = queue[0][1]
        counts[leaf] += 1
        heapq.heapreplace(queue, next_rise(leaf))
    return counts
