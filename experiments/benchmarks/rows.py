"""One row of the table that every benchmark gives, and the table as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rich.table import Table

__all__ = ["HEADINGS", "Curve", "Row", "cells", "number", "table"]

HEADINGS = ("work", "ours", "peer", "limit", "ratio", "aim", "reached")


class Curve(NamedTuple):
    """Seconds of a thing at some sizes of what grows, and of the gradients beside it."""

    thing: str
    over: str
    sizes: list[int]
    ours: list[float]
    peer: list[float]


class Row(NamedTuple):
    """What one piece of work costs, in one unit: ours, the peer's, and the least that it could cost.

    `beside` names the peer and `bound` says what the limit is. `aim` is the largest number of ours that is aimed at,
    and `aim_ratio` the largest of ours over the peer's. Where the row is a slope, `curve` has what it was fitted to.
    """

    work: str
    unit: str
    ours: float
    peer: float | None = None
    beside: str = ""
    limit: float | None = None
    bound: str = ""
    aim: float | None = None
    aim_ratio: float | None = None
    note: str = ""
    curve: Curve | None = None

    @property
    def ratio(self) -> float | None:
        """Ours over the peer's: below 1 where ours is less."""
        return None if self.peer is None else self.ours / self.peer

    @property
    def reached(self) -> bool | None:
        """Whether all aims are reached; None without an aim, or where its peer is missing."""
        if self.aim is None and self.aim_ratio is None:
            return None
        if self.aim_ratio is not None and self.ratio is None:
            return None
        return (self.aim is None or self.ours <= self.aim) and (
            self.aim_ratio is None or self.ratio is None or self.ratio <= self.aim_ratio
        )


def number(value: float) -> str:
    """Three digits, and no exponent in what is at least a thousandth.

    >>> number(3123.4), number(0.58123), number(12.0), number(0.0000123)
    ('3,123', '0.581', '12', '1.23e-05')
    """
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def cells(row: Row) -> tuple[str, ...]:
    """The cells of a row under `HEADINGS`; those without a number are empty."""
    aims = [] if row.aim is None else [f"≤ {_in_unit(row.aim, row.unit)}"]
    if row.aim_ratio is not None:
        aims.append(f"ratio ≤ {_ratio(row.aim_ratio)}")
    return (
        row.work,
        _in_unit(row.ours, row.unit),
        row.beside if row.peer is None else f"{_in_unit(row.peer, row.unit)}, {row.beside}",
        "" if row.limit is None else f"{_in_unit(row.limit, row.unit)}, {row.bound}",
        "" if row.ratio is None else _ratio(row.ratio),
        ", ".join(aims),
        {True: "yes", False: "no", None: "not known" if aims else ""}[row.reached],
    )


def _in_unit(value: float, unit: str) -> str:
    return f"{number(value)} {unit}".rstrip()


def _ratio(value: float) -> str:
    return f"{number(value)} = 1/{number(1 / value)}" if 0 < value < 1 else number(value)


def table(lines: Iterable[Sequence[str]]) -> Table:
    """Lines of cells under `HEADINGS`, for a terminal."""
    drawn = Table(*HEADINGS)
    for line in lines:
        drawn.add_row(*line)
    return drawn
