"""Which weights the paths to a value pass: enough to tell that two values have an expected product of 0.

A value is linear in the weights that its paths pass behind their last gate; call these free. The product of two paths
has the mean 0 if one of them passes a free weight that the other does not pass at all. Values that share no
weight are independent, so that the mean of their product is that of their means: not 0 behind gates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

__all__ = [
    "NO_WEIGHT",
    "Route",
    "Token",
    "are_uncorrelated",
    "behind_gate",
    "every",
    "joint",
    "leaf",
    "share_weights",
    "single",
]


class Token(NamedTuple):
    """Some weights of a leaf of this shape: those in a box, with the lowest and the highest index along each axis."""

    leaf: int
    shape: tuple[int, ...]
    box: tuple[tuple[int, int], ...]

    def meets(self, other: Token) -> bool:
        if self.leaf != other.leaf:
            return False
        sides = zip(self.box, other.box, strict=True)
        return all(low <= top and bottom <= high for (low, high), (bottom, top) in sides)

    def at(self, positions: np.ndarray) -> Token:
        """The weights at these positions in the raveled leaf, which are all that it is about from now on."""
        if not self.shape or not positions.size:
            return self
        indices = np.unravel_index(positions, self.shape)
        return self._replace(box=tuple((int(along.min()), int(along.max())) for along in indices))


class Route(NamedTuple):
    """The paths to a value.

    Attributes:
        tokens: free weights of which every path passes one, of a route that is made of no others.
        parts: the routes that it is made of.
        is_sum: whether a path takes one of them; else it takes all.
        depends: all weights that some path passes.
        is_free: whether some path passes a free weight.
    """

    tokens: frozenset[Token]
    parts: tuple[Route, ...]
    is_sum: bool
    depends: frozenset[Token]
    is_free: bool


NO_WEIGHT = Route(frozenset(), (), True, frozenset(), False)


def leaf(index: int, shape: tuple[int, ...]) -> Route:
    """The routes to all weights of a leaf."""
    return single(Token(index, shape, tuple((0, size - 1) for size in shape)))


def single(token: Token) -> Route:
    """The routes to weights: each is one of them."""
    return Route(frozenset([token]), (), False, frozenset([token]), True)


def joint(parts: Sequence[Route]) -> Route:
    """The routes to a product."""
    weighty = [part for part in parts if part.depends]
    return weighty[0] if len(weighty) == 1 else _made_of(parts, is_sum=False)


def every(parts: Sequence[Route]) -> Route:
    """The routes to a sum."""
    return parts[0] if all(part is parts[0] for part in parts) else _made_of(parts, is_sum=True)


def behind_gate(route: Route) -> Route:
    """The routes through a gate."""
    return NO_WEIGHT._replace(depends=route.depends)


def _made_of(parts: Sequence[Route], *, is_sum: bool) -> Route:
    depends = frozenset[Token]().union(*(part.depends for part in parts))
    return Route(frozenset(), tuple(parts), is_sum, depends, any(part.is_free for part in parts))


def share_weights(left: Route, right: Route) -> bool:
    """Whether some path of one and some path of the other pass the same weight."""
    return any(token.meets(other) for token in left.depends for other in right.depends)


def are_uncorrelated(left: Route, right: Route) -> bool:
    """Whether the expected product of two values is the product of their means."""
    return all(_are_apart(a, b) or not share_weights(a, b) for a in _summands(left) for b in _summands(right))


def _summands(route: Route) -> list[Route]:
    found, waiting = [], [route]
    while waiting:
        now = waiting.pop()
        if now.is_sum and now.parts:
            waiting += now.parts
        else:
            found.append(now)
    return found


def _are_apart(left: Route, right: Route) -> bool:
    """Whether every path of one passes a free weight that no path of the other passes."""
    return _passes_others(left, right.depends) or _passes_others(right, left.depends)


def _passes_others(route: Route, known: frozenset[Token]) -> bool:
    """Whether every path passes a free weight that is not among the `known`. No recursion: networks may be deep."""
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
