"""Numbers in sentences: with a true minus sign, in per cent, and several in a row."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["fold", "listed", "number", "percent", "points", "rho"]


def listed(parts: Sequence[str]) -> str:
    """The parts in a row.

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def number(value: float, form: str = ".2f") -> str:
    """A number in a format; a dash where there is none, and no zero below zero.

    >>> number(-1.5), number(-0.001), number(float("nan")), number(float("-inf"))
    ('−1.50', '0.00', '–', '−∞')
    """
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    words = f"{value:{form}}"
    return (words if any(digit in words for digit in "123456789") else words.lstrip("-")).replace("-", "−")


def percent(share: float) -> str:
    """A share of one, in per cent.

    >>> percent(0.1234)
    '12.3%'
    """
    return "–" if math.isnan(share) else f"{100 * share:.1f}%"


def fold(share: float) -> str:
    """A share of one in per cent; of ten and more, how many times it is.

    >>> fold(0.1234), fold(12.34), fold(181763.4), fold(2.1e22)
    ('12.3%', '12 times', '180,000 times', '2.1e+22 times')
    """
    if not 10 <= share < 1e9:
        return f"{share:.2g} times" if share >= 10 else percent(share)
    return f"{float(f'{share:.2g}'):,.0f} times"


def points(share: float) -> str:
    """A difference of shares, in points.

    >>> points(0.05)
    '5.0 points'
    """
    return f"{100 * share:.1f} points"


def rho(value: float) -> str:
    """A correlation, with its sign.

    >>> rho(-0.5)
    '−0.50'
    """
    return "–" if math.isnan(value) else f"{value:+.2f}".replace("-", "−")
