"""Claims: a number with its interval, the range in which it is claimed to lie, and the verdict that follows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from experiments.base.wording import enumerated, number
from experiments.evidence.statistics import Interval

__all__ = ["HOLDS", "NOT", "OPEN", "Claim", "Unit", "of_all", "tally", "verdict"]

HOLDS, NOT, OPEN = "holds", "does not hold", "not settled"


class Unit(NamedTuple):
    """How numbers of a kind are written: multiplied by `scale`, in the format `form`, with `word` behind them."""

    scale: float = 1.0
    form: str = ".2f"
    word: str = ""

    def spelled(self, value: float) -> str:
        """A number without its unit."""
        return number(self.scale * value, self.form)

    def of(self, interval: Interval) -> str:
        """A number with its interval and its unit; a dash where there is none.

        >>> Unit(100.0, "+.1f", "points").of(Interval(0.012, -0.001, 0.025))
        '+1.2 [−0.1, +2.5] points'
        """
        if math.isnan(interval.value):
            return number(interval.value)
        value, low, high = (self.spelled(each) for each in interval)
        return self._with_word(f"{value} [{low}, {high}]" if math.isfinite(interval.low) else f"{value} (no interval)")

    def bare(self, interval: Interval) -> str:
        """The same without its unit, for a table whose heading has it."""
        return self._replace(word="").of(interval)

    def bound(self, value: float) -> str:
        """A bound with its unit, without digits that say nothing.

        >>> Unit(100.0, "+.1f", "points").bound(-0.01), Unit(100.0, ".0f", "%").bound(0.5), Unit(form="+.2f").bound(0)
        ('−1 points', '50%', '0')
        """
        return self._with_word(f"{self.scale * value:.6g}".replace("-", "−"))

    def _with_word(self, words: str) -> str:
        return f"{words}{'' if self.word in ('', '%') else ' '}{self.word}"


def verdict(interval: Interval, low: float = -math.inf, high: float = math.inf) -> str:
    """Whether a number lies between two bounds, by the whole of its interval.

    >>> verdict(Interval(0.5, 0.2, 0.8), low=0), verdict(Interval(0.5, -0.2, 0.8), low=0)
    ('holds', 'not settled')
    >>> verdict(Interval(-0.5, -0.8, 0.0), low=0), verdict(Interval(0.5, math.nan, math.nan), low=0)
    ('does not hold', 'not settled')
    """
    if low < interval.low and interval.high < high:
        return HOLDS
    return NOT if interval.high <= low or interval.low >= high else OPEN


def of_all(verdicts: Sequence[str]) -> str:
    """The verdict on a claim of several numbers at once: it holds where all do, and does not where one does not.

    >>> of_all(["holds", "not settled"]), of_all(["does not hold", "not settled"]), of_all(["holds", "holds"])
    ('not settled', 'does not hold', 'holds')
    """
    if not verdicts:
        return OPEN
    return NOT if NOT in verdicts else OPEN if OPEN in verdicts else HOLDS


class Claim(NamedTuple):
    """A line of the table of claims.

    Attributes:
        words: what is claimed, as a sentence without its full stop.
        number: the number that decides it, with its interval.
        bounds: the range that the interval has to lie in, in words.
        verdict: `HOLDS`, `NOT` or `OPEN`.
    """

    words: str
    number: str
    bounds: str
    verdict: str

    @classmethod
    def of(cls, words: str, interval: Interval, unit: Unit, *, low: float = -math.inf, high: float = math.inf) -> Claim:
        """The claim that a number lies between two bounds, one of which may be left out."""
        ends = [unit.bound(end) for end in (low, high) if math.isfinite(end)]
        if len(ends) == 2:
            bounds = f"between {unit._replace(word='').bound(low)} and {ends[1]}"
        else:
            bounds = f"above {ends[0]}" if math.isfinite(low) else f"below {ends[0]}"
        return cls(words, unit.of(interval), bounds, verdict(interval, low, high))


def tally(claims: Sequence[Claim]) -> str:
    """How many claims have each verdict, as a sentence.

    >>> print(tally([Claim("", "", "", HOLDS), Claim("", "", "", OPEN), Claim("", "", "", HOLDS)]))
    Of 3 claims 2 hold and 1 is not settled.
    """
    if not claims:
        return "Nothing is claimed."
    if len(claims) == 1:
        return f"The claim {claims[0].verdict if claims[0].verdict != OPEN else f'is {OPEN}'}."
    words = {HOLDS: (HOLDS, "hold"), NOT: (NOT, "do not hold"), OPEN: (f"is {OPEN}", f"are {OPEN}")}
    counts = {word: sum(claim.verdict == word for claim in claims) for word in words}
    told = [f"{count} {words[word][count > 1]}" for word, count in counts.items() if count]
    return f"Of {len(claims)} claims {enumerated(told)}."
