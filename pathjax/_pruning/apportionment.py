"""How many weights each leaf keeps when the total is given, by Webster's method of apportionment."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

__all__ = ["apportion"]


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
