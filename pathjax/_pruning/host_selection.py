"""A mask of the k largest of many integers, by NumPy in host memory: nothing to compile, and no pass more than needed.

A sorted sample brackets the k-th largest integer. One pass finds what lies above the bracket and one what lies in it;
the few integers in it are partitioned. Where the sample misled, all integers are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

__all__ = ["Largest", "largest"]

# Size of the sample from which the bracket is taken.
_SAMPLE = 2**15

# Half the width of the bracket, in standard deviations of the place of the k-th largest in the sample.
_SPREAD = 4.0


class Largest(NamedTuple):
    """Masks of the largest integers of several arrays, and how many they keep."""

    masks: list[np.ndarray]
    kept: int


def largest(arrays: Sequence[np.ndarray], kept: int) -> Largest:
    """Masks of the `kept` largest integers of all arrays together; of equal ones, those that come first.

    The lowest integer of the type is never kept: where too few others are there, all others are kept.
    """
    lowest, highest = np.iinfo(arrays[0].dtype).min, np.iinfo(arrays[0].dtype).max
    flat = [array.ravel() for array in arrays]
    low, high = _bracket(flat, kept)
    masks = [array > high for array in flat]
    wanted = kept - sum(map(np.count_nonzero, masks))
    places = [np.flatnonzero((array >= low) & ~mask) for array, mask in zip(flat, masks, strict=True)]
    if not 0 <= wanted <= sum(map(len, places)):
        low, high, wanted = lowest + 1, highest, kept
        masks = [np.zeros(array.shape, bool) for array in flat]
        places = [np.flatnonzero(array > lowest) for array in flat]
    values = np.concatenate([array[place] for array, place in zip(flat, places, strict=True)])
    chosen = _first_largest(values, min(wanted, len(values)), low, high)
    ends = np.cumsum([len(place) for place in places])[:-1]
    for mask, place, part in zip(masks, places, np.split(chosen, ends), strict=True):
        mask[place[part]] = True
    shaped = [mask.reshape(array.shape) for mask, array in zip(masks, arrays, strict=True)]
    return Largest(shaped, kept - wanted + int(np.count_nonzero(chosen)))


def _bracket(arrays: Sequence[np.ndarray], kept: int) -> tuple[int, int]:
    """Bounds between which the `kept`-th largest integer most likely is, themselves included."""
    extremes = np.iinfo(arrays[0].dtype)
    size = sum(array.size for array in arrays)
    if size <= 2 * _SAMPLE:
        return extremes.min + 1, extremes.max
    step = size // _SAMPLE | 1  # odd, so that a step through axes of powers of two visits all of their entries
    sample = np.sort(np.concatenate([array[::step] for array in arrays]))
    share = min(kept / size, 1.0)
    place = (1 - share) * len(sample)
    reach = _SPREAD * np.sqrt(share * (1 - share) * len(sample)) + 1
    first, last = int(place - reach), int(place + reach)
    low = int(sample[first]) if first >= 0 else extremes.min
    return max(low, extremes.min + 1), int(sample[last]) if last < len(sample) else extremes.max


def _first_largest(values: np.ndarray, kept: int, low: int, high: int) -> np.ndarray:
    """Which of the integers in low … high are the `kept` largest; of equal ones, the first."""
    if kept == 0:
        return np.zeros(values.shape, bool)
    threshold = _threshold(values, kept, low, high)
    chosen = values > threshold
    ties = np.flatnonzero(values == threshold)
    chosen[ties[: kept - np.count_nonzero(chosen)]] = True
    return chosen


def _threshold(values: np.ndarray, kept: int, low: int, high: int) -> int:
    """The `kept`-th largest of integers in low … high.

    A value that many share is likely to be a bound. Those equal to a bound are counted, not partitioned, because
    NumPy's partition is slow where most values are equal.
    """
    at_high = np.count_nonzero(values == high)
    if kept <= at_high:
        return high
    inner = values[(values > low) & (values < high)]
    if kept > at_high + len(inner):
        return low
    place = len(inner) - (kept - at_high)
    return int(np.partition(inner, place)[place])
