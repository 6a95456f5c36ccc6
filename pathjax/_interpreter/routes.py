"""Which weights the paths to a value pass: enough to tell that two values have an expected product of 0.

The product of two paths has the mean 0 if one of them passes a weight that the other does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["NO_WEIGHT", "Route", "Token", "are_apart", "every", "joint", "single"]


class Token(NamedTuple):
    """Some weights of a leaf: those at `low` to `high` in the order of the raveled leaf."""

    leaf: int
    low: int
    high: int

    def meets(self, other: Token) -> bool:
        return self.leaf == other.leaf and self.low <= other.high and other.low <= self.high


class Route(NamedTuple):
    """The paths to a value.

    Attributes:
        tokens: weights of which every path passes one, of a route that is made of no others.
        parts: the routes that it is made of.
        is_sum: whether a path takes one of them; else it takes all.
        depends: all weights that some path passes.
    """

    tokens: frozenset[Token]
    parts: tuple[Route, ...]
    is_sum: bool
    depends: frozenset[Token]


NO_WEIGHT = Route(frozenset(), (), True, frozenset())


def single(token: Token) -> Route:
    """The routes to weights: each is one of them."""
    return Route(frozenset([token]), (), False, frozenset([token]))


def joint(parts: Sequence[Route]) -> Route:
    """The routes to a product."""
    weighty = [part for part in parts if part.depends]
    return weighty[0] if len(weighty) == 1 else _made_of(parts, is_sum=False)


def every(parts: Sequence[Route]) -> Route:
    """The routes to a sum."""
    return parts[0] if all(part is parts[0] for part in parts) else _made_of(parts, is_sum=True)


def _made_of(parts: Sequence[Route], *, is_sum: bool) -> Route:
    return Route(frozenset(), tuple(parts), is_sum, frozenset().union(*(part.depends for part in parts)))


def are_apart(left: Route, right: Route) -> bool:
    """Whether every path of one passes a weight that no path of the other passes."""
    return _passes_others(left, right.depends) or _passes_others(right, left.depends)


def _passes_others(route: Route, known: frozenset[Token]) -> bool:
    """Whether every path passes a weight that is not among the `known`. Without recursion: networks may be deep."""
    found: dict[int, bool] = {}
    waiting = [route]
    while waiting:
        now = waiting[-1]
        missing = [part for part in now.parts if id(part) not in found]
        if missing:
            waiting += missing
            continue
        waiting.pop()
        if now.parts:
            found[id(now)] = (all if now.is_sum else any)(found[id(part)] for part in now.parts)
        else:
            found[id(now)] = bool(now.tokens) and not any(token.meets(other) for token in now.tokens for other in known)
    return found[id(route)]
