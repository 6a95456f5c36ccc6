"""What a path rule works with and what it gives: one equation, the values of its operands, and the results."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np

from pathjax._interpreter.algebra import Algebra, Constant, PathSum, Value
from pathjax._interpreter.jaxpr import Equation, UnsupportedPrimitive, is_concrete

__all__ = [
    "DECLARED", "GATE", "Context", "GateMarker", "Lift", "Results", "Rule",
    "at_point", "depends_on", "points", "shape_of",
]  # fmt: skip

DECLARED: dict[str, Callable[[Any], Any]] = {}
"""Gates of users' own, by the name of their call."""


class GateMarker(enum.Enum):
    """What a path rule gives where every result of its equation is a gate."""

    GATE = "gate"


GATE = GateMarker.GATE


class Lift(NamedTuple):
    """What a path rule gives for a result that is a sum over paths: the fields of a `PathSum` that only it knows."""

    prefixes: Any
    stem: PathSum | None = None
    factor: Any = 1.0
    filler: float | None = None


@dataclass
class Context:
    """One equation under interpretation.

    Attributes:
        equation: the equation.
        algebra: what a sum over paths is here.
        tied: positions of the parameter leaves that some path meets twice; a rule adds those that it finds.
        slopes_at_zero: by the identity of a call with a derivative rule of its own, the slope of max(x, 0) at 0 inside.
        run: the results of a program that stands inside of these calls, the outermost first.
    """

    equation: Equation
    algebra: Algebra[Any]
    tied: set[int]
    slopes_at_zero: Mapping[int, float]
    run: Callable[[Any, Sequence[Value], tuple[Any, ...]], list[Value]]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the first result."""
        return tuple(self.equation.outputs[0].shape)

    def paths(self, value: Value, *, passed_over: float | None = None) -> PathSum:
        """An operand that must be a sum over paths, without fillers but those that are passed over."""
        if not isinstance(value, PathSum):
            raise self.refuse_gate()
        if value.filler is None:
            return value
        if value.filler != passed_over:
            raise self.refuse_infinity()
        return replace(value, filler=None)

    def prefixes(self, value: Value) -> Any:
        """The prefixes of an operand that joins others additively or multiplicatively."""
        if isinstance(value, Constant):
            self.check_finite(value)
            return self.algebra.constant(value.value)
        return self.paths(value).prefixes

    def check_finite(self, constant: Constant) -> None:
        """Refuse to compute with infinities."""
        if is_concrete(constant.value) and not np.all(np.isfinite(constant.value)):
            raise self.refuse_infinity()

    def refuse_infinity(self) -> UnsupportedPrimitive:
        return self.refuse(
            "It computes with a constant that is infinite or NaN.",
            "Use infinities only to fill what a maximum or minimum passes over, or take them out.",
        )

    def entries(self, values: Sequence[Value]) -> tuple[list[Any], float | None]:
        """The prefixes of operands whose entries are moved, and the infinity among them, which has no path."""
        fillers = [self._filler(value) for value in values]
        found = {filler for filler in fillers if filler is not None}
        if len(found) > 1:
            raise self.refuse_infinity()
        prefixes = [self._of_finite(value, filler) for value, filler in zip(values, fillers, strict=True)]
        return prefixes, next(iter(found), None)

    def _filler(self, value: Value) -> float | None:
        """The infinity among an operand's entries."""
        if isinstance(value, PathSum):
            return value.filler
        if isinstance(value, Constant) and is_concrete(value.value):
            array = np.asarray(value.value)
            infinite = set(array[np.isinf(array)].tolist())
            if len(infinite) > 1:
                raise self.refuse_infinity()
            return next(iter(infinite), None)
        return None

    def _of_finite(self, value: Value, filler: float | None) -> Any:
        if filler is None:
            return self.prefixes(value)
        if isinstance(value, Constant):
            return self.algebra.constant(np.where(np.isinf(value.value), 0, value.value))
        return self.paths(value, passed_over=filler).prefixes

    def inside(self, program: Any, values: Sequence[Value]) -> list[Value]:
        """The results of a program that the equation holds."""
        return self.run(program, values, (*self.equation.callers, self.equation.source))

    def refuse(self, reason: str, remedy: str) -> UnsupportedPrimitive:
        return self.equation.refuse(reason, remedy)

    def refuse_gate(self) -> UnsupportedPrimitive:
        return self.refuse(
            "A comparison of activations is used as a number here; that steps where paths are continuous.",
            "Multiply it with an activation, or use it to select between activations; multiply masks into these.",
        )


Results: TypeAlias = "Sequence[Lift | Value] | GateMarker"
"""What a rule gives: for each result of the equation its prefixes or a whole value; or `GATE` where all are gates."""

Rule: TypeAlias = Callable[[Context, Sequence[Value]], Results]


def points(values: Sequence[Value]) -> int:
    """At how many points the real values are known."""
    return max((len(value.real) for value in values if not isinstance(value, Constant)), default=0)


def at_point(value: Value, point: int) -> Any:
    """The real value at a point."""
    return value.value if isinstance(value, Constant) else value.real[point]


def shape_of(value: Value) -> tuple[int, ...]:
    return tuple(jnp.shape(value.value)) if isinstance(value, Constant) else value.shape


def depends_on(values: Sequence[Value]) -> frozenset[int]:
    """The parameter leaves, and perhaps the input, on which values depend."""
    return frozenset().union(*(value.depends for value in values if not isinstance(value, Constant)))
