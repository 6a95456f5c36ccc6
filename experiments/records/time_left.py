"""How long a run still takes, from the steps that it has finished."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["TimeLeft"]

_TOGETHER = 0.1
"""Steps that end within this share of the time of the step before were computed with it."""


class TimeLeft:
    """The time that the remaining steps take if they go on as those that are finished.

    Steps that end together, as those of networks that run side by side, share their time. The first of them include
    compilation and stop counting when there are others. Between the ends of two steps the time left only falls, and at
    an end it rises by no more than the time of the step.
    """

    def __init__(self, remaining: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._remaining, self._clock = remaining, clock
        self._last = clock()
        self._ends: list[tuple[float, int]] = []  # seconds of steps that ended together, and how many they were
        self._left: float | None = None  # at the last end

    def finished(self) -> None:
        """One step has come to its end."""
        now = self._clock()
        taken = now - self._last
        before = self.seconds()
        self._last, self._remaining = now, max(0, self._remaining - 1)
        if self._ends and taken < _TOGETHER * self._ends[-1][0]:
            seconds, count = self._ends[-1]
            self._ends[-1] = (seconds + taken, count + 1)
        else:
            self._ends.append((taken, 1))
        estimate = self._remaining * self._each()
        self._left = estimate if before is None else min(estimate, before + taken)

    def seconds(self) -> float | None:
        """Seconds left; None while no step is finished."""
        if self._left is None or not self._remaining:
            return self._left
        # the step under way counts down, and takes nothing of the others when it is late
        others = self._left * (self._remaining - 1) / self._remaining
        return max(others, self._left - (self._clock() - self._last))

    def _each(self) -> float:
        """Seconds of a step."""
        counted = self._ends[1:] or self._ends
        return sum(seconds for seconds, _ in counted) / sum(count for _, count in counted)
