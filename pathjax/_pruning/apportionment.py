"""How many weights each leaf keeps, where the total is given."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

__all__ = ["apportion"]


def apportion(total: int, shares: Sequence[int], sizes: Sequence[int]) -> list[int]:
    """Counts that add up to `total`: ε·share rounded, at least 1 and at most the size, with one ε for all leaves.

    Where two round up at the same ε, the first does. Leaf by leaf, a larger total never means a smaller count, which
    rounding by largest remainders does not keep ("Alabama paradox"). An empty leaf has 0. `total` must lie between the
    number of leaves that are not empty and the sum of the sizes; all is integer arithmetic but for the search.
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
    # a little less, so that none is counted for the error of a float; those few follow one by one
    counts = rounded(low * (1 - 1e-9)).tolist()
    return _add_one_by_one(total - sum(counts), counts, shares, sizes)


def _add_one_by_one(missing: int, counts: list[int], shares: Sequence[int], sizes: Sequence[int]) -> list[int]:
    """Counts with `missing` more, each where the smallest ε rounds it up."""

    def due(leaf: int) -> tuple[Fraction | float, int]:
        return (Fraction(2 * counts[leaf] + 1, shares[leaf]) if counts[leaf] < sizes[leaf] else math.inf), leaf

    queue = [due(leaf) for leaf in range(len(counts))]
    heapq.heapify(queue)
    for _ in range(missing):
        leaf = queue[0][1]
        counts[leaf] += 1
        heapq.heapreplace(queue, due(leaf))
    return counts
