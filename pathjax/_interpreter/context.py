"""What a path rule is given, and what it returns: an equation, the values of its operands, and its results."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np

from pathjax._interpreter.algebra import Algebra, Constant, PathSum, Undefined, Value
from pathjax._interpreter.jaxpr import Equation, UnsupportedPrimitive, is_concrete
from pathjax._interpreter.refusals import OF_WEIGHTS, Words, refusal

__all__ = [
    "DECLARED", "GATE", "Context", "GateMarker", "Lift", "Results", "Rule",
    "at_point", "compared_in", "depends_on", "points", "shape_of",
]  # fmt: skip

DECLARED: dict[str, Callable[[Any], Any]] = {}
"""Gates that users declared, by the name under which JAX calls them."""


class GateMarker(enum.Enum):
    """The type of `GATE`, which a path rule returns if every result of its equation is a gate."""

    GATE = "gate"


GATE = GateMarker.GATE


class Lift(NamedTuple):
    """What a path rule returns for a sum over paths: the fields of the `PathSum` that only the rule knows."""

    prefixes: Any
    base: PathSum | None = None
    factor: Any = 1.0
    infinite_fill: float | None = None


@dataclass
class Context:
    """One equation under interpretation.

    Attributes:
        equation: the equation.
        algebra: how sums over paths are represented.
        tied: positions of the parameter leaves that some path meets twice; rules add to it.
        slopes_at_zero: for each call of a function with a custom derivative rule, by `id`, the derivative of
            max(x, 0) at 0 inside it.
        run: run(program, values, callers) gives the results of a program; `callers` are the calls that it stands in,
            the outermost first.
        reads_input: whether an operand depends on x; if none does, the equation computes from weights alone.
    """

    equation: Equation
    algebra: Algebra[Any]
    tied: set[int]
    slopes_at_zero: Mapping[int, float]
    run: Callable[[Any, Sequence[Value], tuple[Any, ...]], list[Value]]
    reads_input: bool = True

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the first result."""
        return tuple(self.equation.outputs[0].shape)

    def paths(self, value: Value, *, ignored_fill: float | None = None) -> PathSum:
        """An operand that must be a sum over paths. Refuses infinite entries, except those equal to `ignored_fill`."""
        if not isinstance(value, PathSum):
            raise self.refuse_gate()
        if value.infinite_fill is None:
            return value
        if value.infinite_fill != ignored_fill:
            raise self.refuse_infinity()
        return replace(value, infinite_fill=None)

    def prefixes(self, value: Value) -> Any:
        """The prefixes of an operand of a sum or product; constants become paths from the constant-1 source."""
        if isinstance(value, Constant):
            self.check_finite(value)
            return self.algebra.constant(value.value)
        return self.paths(value).prefixes

    def check_finite(self, constant: Constant) -> None:
        """Refuse a constant with infinite or NaN entries."""
        if is_concrete(constant.value) and not np.all(np.isfinite(constant.value)):
            raise self.refuse_infinity()

    def refuse_infinity(self) -> UnsupportedPrimitive:
        return self.refuse(
            "It computes with a constant that is infinite or NaN.",
            "Use infinities only as fill values that a maximum or minimum ignores, or remove them.",
        )

    def entries(self, values: Sequence[Value]) -> tuple[list[Any], float | None]:
        """The prefixes of operands whose entries are only moved, and the infinity that fills some entries, if any.

        Infinite entries have no prefixes.
        """
        fills = [self._infinite_fill(value) for value in values]
        distinct = {fill for fill in fills if fill is not None}
        if len(distinct) > 1:
            raise self.refuse_infinity()
        prefixes = [self._finite_prefixes(value, fill) for value, fill in zip(values, fills, strict=True)]
        return prefixes, next(iter(distinct), None)

    def _infinite_fill(self, value: Value) -> float | None:
        """∞ or −∞ if some entries of an operand are filled with it. Refuses an operand that holds both."""
        if isinstance(value, PathSum):
            return value.infinite_fill
        if isinstance(value, Constant) and is_concrete(value.value):
            array = np.asarray(value.value)
            infinite = set(array[np.isinf(array)].tolist())
            if len(infinite) > 1:
                raise self.refuse_infinity()
            return next(iter(infinite), None)
        return None

    def _finite_prefixes(self, value: Value, infinite_fill: float | None) -> Any:
        """The prefixes of an operand's finite entries."""
        if infinite_fill is None:
            return self.prefixes(value)
        if isinstance(value, Constant):
            return self.algebra.constant(np.where(np.isinf(value.value), 0, value.value))
        return self.paths(value, ignored_fill=infinite_fill).prefixes

    def walk_inside(self, program: Any, values: Sequence[Value]) -> list[Value]:
        """The results of a program that the equation holds."""
        return self.run(program, values, (*self.equation.callers, self.equation.source))

    def refuse(self, reason: str, remedy: str, *, told_of_weights: bool = False) -> UnsupportedPrimitive:
        """The error that refuses the equation. `told_of_weights` says that the words fit weights too."""
        of_weights = not self.reads_input
        words = OF_WEIGHTS if of_weights and not told_of_weights else Words(reason, remedy)
        return refusal(self.equation, words, of_weights=of_weights)

    def refuse_undefined(self, undefined: Undefined) -> UnsupportedPrimitive:
        """The error for an equation of which paths are defined, but for which the algebra has no result."""
        return self.equation.refuse(undefined.reason, undefined.remedy, missing=self.algebra.result)

    def check_gate(self, operand: Value, compared: frozenset[PathSum]) -> None:
        """Refuse a gate on an activation that is a function of others, where only signs of its own are understood."""
        if self.algebra.gates_by_sides and isinstance(operand, PathSum) and compared != {operand.root}:
            undefined = Undefined(
                "An activation is gated by others than itself, as in max pooling and maxout: how often such a gate is "
                "open has no closed form.",
                "Use ReLUs and average pooling here, or estimate by sampling: `ntk.sign_average`.",
            )
            raise self.refuse_undefined(undefined)

    def by_own_sign(self, operand: Value, slopes: Sequence[Any]) -> Sequence[Any]:
        """Slopes for positive and negative values of an operand, where they are given by the signs of its root."""
        if not (self.algebra.gates_by_sides and isinstance(operand, PathSum)):
            return slopes
        above, below = slopes
        if is_concrete(operand.real[0]):
            return slopes[::-1] if np.all(np.asarray(operand.real[0]) < 0) else slopes
        is_negative = jnp.ravel(operand.real[0])[:1].reshape([1] * jnp.ndim(above)) < 0
        return [jnp.where(is_negative, below, above), jnp.where(is_negative, above, below)]

    def refuse_gate(self) -> UnsupportedPrimitive:
        return self.refuse(
            "A comparison of activations is used as a number here; it is a step function, but paths are continuous.",
            "Multiply it with an activation, or use it to select between activations; multiply masks into these.",
        )


Results: TypeAlias = "Sequence[Lift | Value] | GateMarker"
"""What a rule returns: a `Lift` or a complete value for each result of the equation, or `GATE` if all are gates."""

Rule: TypeAlias = Callable[[Context, Sequence[Value]], Results]


def points(values: Sequence[Value]) -> int:
    """The number of points at which gates are evaluated."""
    return max((len(value.real) for value in values if not isinstance(value, Constant)), default=0)


def at_point(value: Value, point: int) -> Any:
    """The network's own value at a point."""
    return value.value if isinstance(value, Constant) else value.real[point]


def shape_of(value: Value) -> tuple[int, ...]:
    return tuple(jnp.shape(value.value)) if isinstance(value, Constant) else value.shape


def compared_in(values: Sequence[Value]) -> frozenset[PathSum]:
    """The roots of the activations whose comparison gives a gate."""
    roots = [
        {value.root} if isinstance(value, PathSum) else value.compared
        for value in values
        if not isinstance(value, Constant)
    ]
    return frozenset().union(*roots)


def depends_on(values: Sequence[Value]) -> frozenset[int]:
    """Positions of the parameter leaves on which values depend, and `INPUT` if they depend on x."""
    return frozenset().union(*(value.depends for value in values if not isinstance(value, Constant)))
