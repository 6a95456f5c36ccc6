"""Two algebras that say which weights lie on paths at all: `Reach`, entry by entry, and `Branches`, leaf by leaf."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pathjax._interpreter.algebra import Algebra, Convolution

__all__ = ["Branch", "Branches", "Reach", "Reached"]


@jax.custom_vjp
def _whether(number: jax.Array) -> jax.Array:
    """1 where a number that is not negative is not zero; cotangents are treated alike.

    So a weight has a cotangent exactly where something reaches it and goes on from it to an output, in a network of any
    depth: sums over paths would leave the format.
    """
    return (number > 0).astype(number.dtype)


def _whether_forward(number: jax.Array) -> tuple[jax.Array, None]:
    return _whether(number), None


def _whether_backward(_: None, cotangent: jax.Array) -> tuple[jax.Array]:
    return ((cotangent > 0).astype(cotangent.dtype),)


_whether.defvjp(_whether_forward, _whether_backward)


class Reached(NamedTuple):
    """Which entries a path prefix reaches, 0 or 1: from an input, and from a constant-1 source, as biases are."""

    inputs: Any
    constants: Any


class Reach(Algebra[Reached]):
    """Whether there is a path prefix, in place of the sum of all."""

    has_free_gates = True

    def constant(self, value: Any) -> Reached:
        kept = _nonzero(value)
        return Reached(jnp.zeros_like(kept), kept)

    def shape_only(self, function: Callable[..., Any], *operands: Reached) -> Reached:
        return Reached(*(function(*parts) for parts in zip(*operands, strict=True)))

    def add(self, left: Reached, right: Reached) -> Reached:
        return Reached(*(_whether(a + b) for a, b in zip(left, right, strict=True)))

    def sum(self, operand: Reached, axes: Sequence[int]) -> Reached:
        return Reached(*(_whether(jnp.sum(part, axis=tuple(axes))) for part in operand))

    def multiply(self, left: Reached, right: Reached) -> Reached:
        return self._product(lambda a, b: a * b, left, right)

    def scale(self, operand: Reached, coefficient: Any) -> Reached:
        kept = _nonzero(coefficient)
        return Reached(*(part * kept for part in operand))

    def dot(self, left: Reached, right: Reached, dimension_numbers: Any) -> Reached:
        return self._product(lambda a, b: lax.dot_general(a, b, dimension_numbers), left, right)

    def conv(self, left: Reached, right: Reached, convolution: Convolution) -> Reached:
        return self._product(lambda a, b: lax.conv_general_dilated(a, b, **convolution._asdict()), left, right)

    def linear(self, function: Callable[..., Any], operand: Reached, shape: tuple[int, ...]) -> Reached:
        return Reached(*(_whether(function(part)) for part in operand))

    def gate(self, operand: Reached, slopes: Sequence[Any], shape: tuple[int, ...]) -> Reached:
        return operand

    def _product(self, function: Callable[[Any, Any], Any], left: Reached, right: Reached) -> Reached:
        # not both factors are functions of the inputs
        inputs = function(left.inputs, right.constants) + function(left.constants, right.inputs)
        return Reached(_whether(inputs), _whether(function(left.constants, right.constants)))


def _nonzero(value: Any) -> jax.Array:
    return (jnp.asarray(value) != 0).astype(jnp.float32)


class Branch(NamedTuple):
    """What the path prefixes of a value have in common: their source, and the leaves on all shortest and on all.

    `length` is that of the shortest, in leaves of parameters.
    """

    from_input: bool
    length: int
    shortest: frozenset[int]
    every: frozenset[int]


class Branches(Algebra[Branch]):
    """The leaves that paths from the inputs go through, of the network as it was built.

    Where prefixes from inputs and from constants meet, those from constants, as of biases, are left out.
    """

    has_free_gates = True

    def constant(self, value: Any) -> Branch:
        return Branch(False, 0, frozenset(), frozenset())

    def shape_only(self, function: Callable[..., Any], *operands: Branch) -> Branch:
        found = operands[0]
        for other in operands[1:]:
            found = self.add(found, other)
        return found

    def add(self, left: Branch, right: Branch) -> Branch:
        if left.from_input != right.from_input:
            return left if left.from_input else right
        every = left.every & right.every
        if left.length == right.length:
            return Branch(left.from_input, left.length, left.shortest & right.shortest, every)
        shorter = min(left, right, key=lambda side: side.length)
        return shorter._replace(every=every)

    def sum(self, operand: Branch, axes: Sequence[int]) -> Branch:
        return operand

    def multiply(self, left: Branch, right: Branch) -> Branch:
        return Branch(
            left.from_input or right.from_input,
            left.length + right.length,
            left.shortest | right.shortest,
            left.every | right.every,
        )

    def scale(self, operand: Branch, coefficient: Any) -> Branch:
        return operand

    def dot(self, left: Branch, right: Branch, dimension_numbers: Any) -> Branch:
        return self.multiply(left, right)

    def conv(self, left: Branch, right: Branch, convolution: Convolution) -> Branch:
        return self.multiply(left, right)

    def linear(self, function: Callable[..., Any], operand: Branch, shape: tuple[int, ...]) -> Branch:
        return operand

    def gate(self, operand: Branch, slopes: Sequence[Any], shape: tuple[int, ...]) -> Branch:
        return operand
