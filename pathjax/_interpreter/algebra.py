"""The values that path rules work with, and the operations on path sums that they call.

A value of the network is a `Constant` (depends on neither θ nor x), a `PathSum` (a sum over path prefixes), or a `Gate`
(piecewise constant in θ and x: a comparison with zero, or a combination of such). An `Algebra` says how a sum over
prefixes is represented: as numbers in `lifting`, as lists of paths in `listing`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp

__all__ = [
    "INPUT", "Algebra", "ArrayFunction", "Constant", "Convolution", "Gate", "PathSum", "Structure", "Undefined",
    "Value",
]  # fmt: skip

P = TypeVar("P")
ArrayFunction: TypeAlias = Callable[..., Any]

INPUT = -1  # the input x in `depends`, where a parameter leaf is given by its position


class Convolution(NamedTuple):
    """The static parameters of `lax.conv_general_dilated`."""

    window_strides: Sequence[int]
    padding: Sequence[tuple[int, int]]
    lhs_dilation: Sequence[int]
    rhs_dilation: Sequence[int]
    dimension_numbers: Any
    feature_group_count: int


class Undefined(Exception):
    """An algebra has no result for an operation; told to the user as a refusal of the equation.

    Attributes:
        reason: why.
        remedy: what to do instead.
    """

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason, remedy)
        self.reason, self.remedy = reason, remedy


class Algebra(ABC, Generic[P]):
    """How sums over path prefixes are represented, and the operations on arrays of them.

    In every algebra zero stands for an entry without a path, so that functions may pad with zeros.
    """

    @abstractmethod
    def constant(self, value: Any) -> P:
        """For each entry one path from the constant-1 source, with that coefficient; none where the entry is zero."""

    @abstractmethod
    def shape_only(self, function: ArrayFunction, *operands: P) -> P:
        """Move entries: `function` rearranges the entries of arrays and does no arithmetic."""

    def rearrange(self, function: ArrayFunction, *operands: P) -> P:
        """`shape_only`, for functions that leave no entry out."""
        return self.shape_only(function, *operands)

    @abstractmethod
    def add(self, left: P, right: P) -> P:
        """Elementwise union; scalars are broadcast."""

    @abstractmethod
    def sum(self, operand: P, axes: Sequence[int]) -> P:
        """Union over axes."""

    @abstractmethod
    def multiply(self, left: P, right: P) -> P:
        """Elementwise: join every prefix on the left to every prefix on the right; scalars are broadcast."""

    @abstractmethod
    def scale(self, operand: P, coefficient: Any) -> P:
        """Multiply by constants, elementwise; a prefix ends where the constant is zero."""

    @abstractmethod
    def dot(self, left: P, right: P, dimension_numbers: Any) -> P:
        """`lax.dot_general`, made of multiply and sum."""

    @abstractmethod
    def conv(self, left: P, right: P, convolution: Convolution) -> P:
        """`lax.conv_general_dilated`, made of multiply and sum."""

    @abstractmethod
    def gate(self, operand: P, slopes: Sequence[Any], shape: tuple[int, ...]) -> P:
        """Multiply entries by the slopes of their gates: one array for each point at which gates are evaluated."""

    def linear(self, function: ArrayFunction, operand: P, shape: tuple[int, ...]) -> P:
        """Unions of entries: `function` maps an array of `shape` linearly, with coefficients 0 and 1."""
        size = math.prod(shape)
        images = jax.vmap(function)(jnp.eye(size).reshape(size, *shape))
        flat = self.shape_only(lambda array: array.reshape(size), operand)
        matrix = self.constant(images.reshape(size, -1))
        result = self.dot(flat, matrix, (((0,), (0,)), ((), ())))
        return self.shape_only(lambda array: array.reshape(images.shape[1:]), result)

    # What refusals say that an equation lacks.
    result = "path rule"
    # Whether open gates are the identity and need not be recorded.
    has_free_gates = False
    # Whether prefixes are JAX arrays that a `lax.scan` can carry; otherwise loops are unrolled.
    rolls_loops = False
    # Whether gates are told by their slopes on both sides of zero: every activation is 1 at the first point and −1 at
    # the second, and may be gated by its own sign alone.
    gates_by_sides = False

    def as_carry(self, operand: P) -> P:
        """The same prefixes as a pytree whose structure and types do not change between the steps of a `lax.scan`."""
        return operand

    def steps(self, operand: P) -> tuple[Any, Callable[[Any], P]]:
        """The arrays for a `lax.scan` to slice along the first axis, and the function from a slice to prefixes."""
        raise NotImplementedError

    def join_steps(self, steps: P) -> P:
        """One array of prefixes from those that a `lax.scan` has stacked along the first axis."""
        raise NotImplementedError


class Structure(Algebra[None]):
    """No prefixes at all: for walks that only ask what a network is made of and whether its paths are defined."""

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

    If its entries are not known while tracing but are all equal to one number, `fill` is that number.
    """

    value: Any
    fill: Any = None


@dataclass(frozen=True, eq=False)
class PathSum:
    """A sum over path prefixes.

    Attributes:
        prefixes: the sum, as the algebra represents it.
        real: the network's own value at each point where gates are evaluated.
        shape: the shape of the network's value.
        depends: positions of the parameter leaves on which it depends, and `INPUT` for x.
        base, factor: the value is `factor` times `base`, if it is a constant multiple of another value. So the maximum
            of x and 0.1·x (leaky ReLU) is one gate on x with two slopes, not two gates.
        infinite_fill: ∞ or −∞ if some entries are filled with it, as by padding or a mask. Only a maximum or minimum
            that ignores such entries may read the value.
    """

    prefixes: Any
    real: tuple[Any, ...]
    shape: tuple[int, ...]
    depends: frozenset[int]
    base: PathSum | None = None
    factor: Any = 1.0
    infinite_fill: float | None = None

    @property
    def root(self) -> PathSum:
        """The value of which this one is a constant multiple, and which is no multiple itself."""
        return self if self.base is None else self.base.root

    def bases(self) -> list[tuple[PathSum, Any]]:
        """The values of which this one is a constant multiple, itself first, each with the constant."""
        multiples: list[tuple[PathSum, Any]] = [(self, 1.0)]
        while (last := multiples[-1][0]).base is not None:
            multiples.append((last.base, multiples[-1][1] * last.factor))
        return multiples


@dataclass(frozen=True, eq=False)
class Gate:
    """A piecewise constant function of activations, such as x > 0, at each point.

    Attributes:
        real: its value at each point where gates are evaluated.
        shape: the shape of the network's value.
        depends: positions of the parameter leaves on which it depends, and `INPUT` for x.
        compared: the roots of the activations that it is a function of.
    """

    real: tuple[Any, ...]
    shape: tuple[int, ...]
    depends: frozenset[int]
    compared: frozenset[PathSum] = frozenset()


Value: TypeAlias = Constant | PathSum | Gate
