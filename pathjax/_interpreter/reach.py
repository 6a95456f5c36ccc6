"""Two algebras that say which weights lie on any path: `Reach` for each weight, `Branches` for each parameter leaf."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pathjax._interpreter.algebra import Algebra, Convolution

__all__ = ["Branch", "Branches", "Reach", "Reached"]


@jax.custom_vjp
def _is_positive(number: jax.Array) -> jax.Array:
    """1 where a nonnegative number is positive, 0 where it is zero; cotangents are mapped the same way.

    So the cotangent of a weight is nonzero exactly if some path through the weight ends in an output, at any depth of
    the network: the sums over paths themselves would overflow.
    """
    return (number > 0).astype(number.dtype)


def _is_positive_forward(number: jax.Array) -> tuple[jax.Array, None]:
    return _is_positive(number), None


def _is_positive_backward(_: None, cotangent: jax.Array) -> tuple[jax.Array]:
    return ((cotangent > 0).astype(cotangent.dtype),)


_is_positive.defvjp(_is_positive_forward, _is_positive_backward)


class Reached(NamedTuple):
    """1 for each entry that a path prefix reaches, else 0: from an input, and from the constant-1 source (biases)."""

    inputs: Any
    constants: Any


class Reach(Algebra[Reached]):
    """For each entry whether there is any path prefix."""

    has_free_gates = True

    def constant(self, value: Any) -> Reached:
        kept = _nonzero(value)
        return Reached(jnp.zeros_like(kept), kept)

    def shape_only(self, function: Callable[..., Any], *operands: Reached) -> Reached:
        return Reached(*(function(*parts) for parts in zip(*operands, strict=True)))

    def add(self, left: Reached, right: Reached) -> Reached:
        return Reached(*(_is_positive(a + b) for a, b in zip(left, right, strict=True)))

    def sum(self, operand: Reached, axes: Sequence[int]) -> Reached:
        return Reached(*(_is_positive(jnp.sum(part, axis=tuple(axes))) for part in operand))

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
        return Reached(*(_is_positive(function(part)) for part in operand))

    def gate(self, operand: Reached, slopes: Sequence[Any], shape: tuple[int, ...]) -> Reached:
        return operand

    def _product(self, function: Callable[[Any, Any], Any], left: Reached, right: Reached) -> Reached:
        # inputs × inputs is left out: the path rules refuse products of two functions of x
        inputs = function(left.inputs, right.constants) + function(left.constants, right.inputs)
        return Reached(_is_positive(inputs), _is_positive(function(left.constants, right.constants)))


def _nonzero(value: Any) -> jax.Array:
    return (jnp.asarray(value) != 0).astype(jnp.float32)


class Branch(NamedTuple):
    """What the path prefixes of a value have in common.

    Attributes:
        from_input: whether they start at the input, or else at the constant-1 source.
        length: the number of parameter leaves on the shortest prefix.
        shortest: positions of the leaves that lie on all shortest prefixes.
        every: positions of the leaves that lie on all prefixes.
    """

    from_input: bool
    length: int
    shortest: frozenset[int]
    every: frozenset[int]


class Branches(Algebra[Branch]):
    """The parameter leaves that paths from the inputs go through, whatever the values of the weights.

    Where prefixes from inputs and prefixes from constants (biases) are added, the latter are ignored.
    """

    has_free_gates = True

    def constant(self, value: Any) -> Branch:
        return Branch(False, 0, frozenset(), frozenset())

    def shape_only(self, function: Callable[..., Any], *operands: Branch) -> Branch:
        return functools.reduce(self.add, operands)

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
