"""What the interpreter's rules are written against: the values of a network, and the algebra of its path sums.

A value of the network is one of three things: a `Constant` (depends on neither θ nor x), `PathSum` (over path
prefixes), or a `Gate` (piecewise constant in both: a comparison with zero and what is made of it). What a sum over
prefixes *is* belongs to an `Algebra`: arrays of numbers in `paths`, lists of paths in `enumeration`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp

__all__ = ["INPUT", "Algebra", "ArrayFunction", "Constant", "Convolution", "Gate", "PathSum", "Structure", "Value"]

P = TypeVar("P")
ArrayFunction: TypeAlias = Callable[..., Any]

INPUT = -1  # stands for x among the things a value depends on; parameter leaves have their position


class Convolution(NamedTuple):
    """The static parameters of `lax.conv_general_dilated`."""

    window_strides: Sequence[int]
    padding: Sequence[tuple[int, int]]
    lhs_dilation: Sequence[int]
    rhs_dilation: Sequence[int]
    dimension_numbers: Any
    feature_group_count: int


class Algebra(ABC, Generic[P]):
    """What a sum over path prefixes is, and what the few operations on it are.

    Entries without a path are zero in every algebra, so that functions which pad with zeros serve them all.
    """

    @abstractmethod
    def constant(self, value: Any) -> P:
        """Paths of one constant coefficient each, from the constant-1 source; none where it is zero."""

    @abstractmethod
    def shape_only(self, function: ArrayFunction, *operands: P) -> P:
        """Move entries about: `function` takes arrays to an array and does no arithmetic."""

    @abstractmethod
    def add(self, left: P, right: P) -> P:
        """Elementwise union; a scalar goes with every entry."""

    @abstractmethod
    def sum(self, operand: P, axes: Sequence[int]) -> P:
        """Union over axes."""

    @abstractmethod
    def multiply(self, left: P, right: P) -> P:
        """Elementwise: every prefix on the left goes on with every one on the right; a scalar with every entry."""

    @abstractmethod
    def scale(self, operand: P, coefficient: Any) -> P:
        """Multiply by constants, elementwise; a prefix ends where the constant is zero."""

    @abstractmethod
    def dot(self, left: P, right: P, dimension_numbers: Any) -> P:
        """`lax.dot_general` over multiply and sum."""

    @abstractmethod
    def conv(self, left: P, right: P, convolution: Convolution) -> P:
        """`lax.conv_general_dilated` over multiply and sum."""

    @abstractmethod
    def gate(self, operand: P, slopes: Sequence[Any], shape: tuple[int, ...]) -> P:
        """Pass through gates of these slopes, one array per point."""

    def linear(self, function: ArrayFunction, operand: P, shape: tuple[int, ...]) -> P:
        """Union of entries as `function` adds them up: linear, with coefficients 0 and 1, of an array of `shape`."""
        size = math.prod(shape)
        images = jax.vmap(function)(jnp.eye(size).reshape(size, *shape))
        flat = self.shape_only(lambda array: array.reshape(size), operand)
        matrix = self.constant(images.reshape(size, -1))
        result = self.dot(flat, matrix, (((0,), (0,)), ((), ())))
        return self.shape_only(lambda array: array.reshape(images.shape[1:]), result)

    # Whether open gates are the identity, so that they need no array of their own; and whether prefixes are arrays
    # that can be carried through a rolled loop.
    has_free_gates = False
    rolls_loops = False

    def settle(self, operand: P) -> P:
        """The same prefixes in the one form that a rolled loop carries."""
        return operand

    def steps(self, operand: P) -> tuple[Any, Callable[[Any], P]]:
        """What a rolled loop slices along the first axis, and how a slice becomes prefixes again."""
        raise NotImplementedError

    def join_steps(self, steps: P) -> P:
        """One array of prefixes from those of a loop's steps, along the first axis."""
        raise NotImplementedError


class Structure(Algebra[None]):
    """No numbers at all: what a network is made of, and whether it has paths."""

    def constant(self, value: Any) -> None:
        return None

    def shape_only(self, function: ArrayFunction, *operands: None) -> None:
        return None

    def add(self, left: None, right: None) -> None:
        return None

    def sum(self, operand: None, axes: Sequence[int]) -> None:
        return None

    def multiply(self, left: None, right: None) -> None:
        return None

    def scale(self, operand: None, coefficient: Any) -> None:
        return None

    def dot(self, left: None, right: None, dimension_numbers: Any) -> None:
        return None

    def conv(self, left: None, right: None, convolution: Convolution) -> None:
        return None

    def linear(self, function: ArrayFunction, operand: None, shape: tuple[int, ...]) -> None:
        return None

    def gate(self, operand: None, slopes: Sequence[Any], shape: tuple[int, ...]) -> None:
        return None


@dataclass(frozen=True)
class Constant:
    """An array that depends on neither parameters nor inputs.

    While tracing, `fill` is the number that is everywhere in it, where there is one.
    """

    value: Any
    fill: Any = None


@dataclass(frozen=True, eq=False)
class PathSum:
    """A sum over path prefixes.

    `real` holds the network's own values, one per point. Where the value is a constant times another one, entry by
    entry, `stem` is that other one and `factor` the constant: leaky ReLU is one gate on a stem, not two paths. `filler`
    is the infinity among its entries that only a maximum or minimum may pass over.
    """

    prefixes: Any
    real: tuple[Any, ...]
    shape: tuple[int, ...]
    depends: frozenset[int]
    stem: PathSum | None = None
    factor: Any = 1.0
    filler: float | None = None

    def stems(self) -> list[tuple[PathSum, Any]]:
        """The values of which this one is a constant multiple, itself first, each with the constant."""
        found: list[tuple[PathSum, Any]] = [(self, 1.0)]
        while (last := found[-1][0]).stem is not None:
            found.append((last.stem, found[-1][1] * last.factor))
        return found


@dataclass(frozen=True, eq=False)
class Gate:
    """A piecewise constant function of activations, such as x > 0, at each point."""

    real: tuple[Any, ...]
    shape: tuple[int, ...]
    depends: frozenset[int]


Value: TypeAlias = Constant | PathSum | Gate
