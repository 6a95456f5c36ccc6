"""Numbers as words of a sentence: with a true minus sign, in per cent, several in a row."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = [
    "all_digits",
    "correlation",
    "counted",
    "enumerated",
    "factor",
    "first_line",
    "number",
    "percent",
    "points",
    "share_or_times",
    "some_of",
]


def enumerated(parts: Sequence[str]) -> str:
    """The parts with commas and a last "and".

    >>> enumerated(["a", "b", "c"])
    'a, b and c'
    >>> enumerated([])
    'none'
    """
    if not parts:
        return "none"
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def some_of(parts: Sequence[str], most: int = 4) -> str:
    """The first parts, and how many more there are.

    >>> some_of(["a is 1", "b is 2", "c is 3"], most=2)
    'a is 1; b is 2; and 1 more'
    """
    more = [f"and {len(parts) - most} more"] if len(parts) > most else []
    return "; ".join([*parts[:most], *more])


def first_line(error: Exception) -> str:
    """The first line of an error's message without its full stop; the error's type where it has no message.

    >>> first_line(ValueError("It is odd.\\nMuch more.")), first_line(ValueError())
    ('It is odd', 'ValueError')
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")


def all_digits(value: float) -> str:
    """A number with every digit that tells it from others, so that no two numbers share their words.

    >>> all_digits(0.1), all_digits(0.8**10), all_digits(1.0)
    ('0.1', '0.10737418240000006', '1')
    """
    return repr(float(value)).removesuffix(".0")


def number(value: float, form: str = ".2f") -> str:
    """A number in a format; a dash where there is none, and a zero has no sign.

    >>> number(-1.5), number(-0.001), number(0.001, "+.2f"), number(float("nan")), number(float("-inf"))
    ('−1.50', '0.00', '0.00', '–', '−∞')
    """
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    words = f"{value:{form}}"
    return (words if any(digit in words for digit in "123456789") else words.lstrip("+-")).replace("-", "−")


def percent(share: float) -> str:
    """A share of one, in per cent.

    >>> percent(0.1234)
    '12.3%'
    >>> percent(-0.023)
    '−2.3%'
    """
    return "–" if math.isnan(share) else f"{100 * share:.1f}%".replace("-", "−")


def share_or_times(share: float) -> str:
    """A share of one in per cent; where it is ten or more, as a factor.

    >>> share_or_times(0.1234), share_or_times(12.34), share_or_times(181763.4), share_or_times(2.1e22)
    ('12.3%', '12 times', '180,000 times', '2.1e+22 times')
    """
    if not 10 <= share < 1e9:
        return f"{share:.2g} times" if share >= 10 else percent(share)
    return f"{float(f'{share:.2g}'):,.0f} times"


def factor(decades: float) -> str:
    """The factor that a number of decades is.

    >>> factor(0.05), factor(1.0), factor(3.7)
    ('1.1', '10', '5,000')
    """
    return f"{float(f'{10**decades:.2g}'):,.1f}" if decades < 1 else f"{float(f'{10**decades:.2g}'):,.0f}"


def points(share: float) -> str:
    """A difference of shares, in points.

    >>> points(0.05)
    '5.0 points'
    """
    return f"{100 * share:.1f} points"


def counted(count: int, one: str, many: str = "") -> str:
    """A number with its noun.

    >>> counted(1, "seed"), counted(2, "seed"), counted(3, "density", "densities")
    ('1 seed', '2 seeds', '3 densities')
    """
    return f"{count} {one if count == 1 else many or one + 's'}"


def correlation(value: float) -> str:
    """A correlation, with its sign.

    >>> correlation(-0.5)
    '−0.50'
    """
    return "–" if math.isnan(value) else f"{value:+.2f}".replace("-", "−")
