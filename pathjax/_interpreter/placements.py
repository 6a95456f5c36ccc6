"""Where the examples of a batch lie in an array, and what an example rule is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from pathjax._interpreter.jaxpr import Equation, UnsupportedPrimitive
from pathjax._interpreter.refusals import refusal_of_mixing, refusal_of_position

__all__ = ["AFTER_REFUSAL", "BatchAxis", "ExampleContext", "ExampleRule", "NoBatch", "Placement", "renumbered"]


class BatchAxis(NamedTuple):
    """The examples of a batch of n lie along `axis`: index i along it belongs to example (i // inner) mod n."""

    axis: int
    inner: int = 1


@dataclass(frozen=True)
class NoBatch:
    """The array depends on no example.

    Attributes:
        constant_axes: along each of them all its entries are equal.
        entries: the array itself if it is the same in every run of the equation and known while tracing, else None.
    """

    constant_axes: frozenset[int] = frozenset()
    entries: Any = field(default=None, compare=False)


Placement: TypeAlias = BatchAxis | NoBatch

# What an equation without a path rule is taken to give: constant along any axis, so that no later equation is refused
# for how it treats the examples. The path rules refuse the equation itself.
AFTER_REFUSAL = NoBatch(frozenset(range(64)))


@dataclass
class ExampleContext:
    """What a rule works with.

    Attributes:
        equation: the equation.
        placements: where the examples lie in each operand.
        examples: the number of examples n.
        walk: the placements of a program's results, given those of its arguments and the calls that it stands in.
    """

    equation: Equation
    placements: Sequence[Placement]
    examples: int
    walk: Callable[[Any, Sequence[Placement], tuple[Any, ...]], list[Placement]]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shape of each operand."""
        return [tuple(operand.shape) for operand in self.equation.inputs]

    def joined(self, placements: Sequence[Placement]) -> Placement:
        """The placement of arrays that are combined axis by axis.

        Refuses two different batch axes, and an array without a batch that varies along the batch axis of another.
        """
        batch_axes = {placement for placement in placements if isinstance(placement, BatchAxis)}
        without_batch = [placement for placement in placements if isinstance(placement, NoBatch)]
        if not batch_axes:
            return NoBatch(frozenset.intersection(*(placement.constant_axes for placement in without_batch)))
        batch_axis = next(iter(batch_axes))
        if len(batch_axes) > 1:
            raise self.refuse_mixing()
        if any(batch_axis.axis not in placement.constant_axes for placement in without_batch):
            raise refusal_of_position(self.equation)
        return batch_axis

    def refuse_mixing(self) -> UnsupportedPrimitive:
        return refusal_of_mixing(self.equation)

    def acted_along(self, placement: Placement, axes: Sequence[Any]) -> Placement:
        """The placement after an operation along `axes`, integers of Python or NumPy.

        Refuses a batch axis among them; an array without a batch is no longer known to be constant along them.
        """
        if isinstance(placement, NoBatch):
            return NoBatch(placement.constant_axes.difference(axes))
        if placement.axis in axes:
            raise self.refuse_mixing()
        return placement

    def walk_inside(self, program: Any, placements: Sequence[Placement]) -> list[Placement]:
        """The placements of the results of a program that the equation holds."""
        return self.walk(program, placements, (*self.equation.callers, self.equation.source))


def renumbered(placement: Placement, new_axes: dict[int, int]) -> Placement:
    """The placement after axes are renumbered, old to new. Constant axes without a new number are dropped."""
    if isinstance(placement, BatchAxis):
        return placement._replace(axis=new_axes[placement.axis])
    return NoBatch(frozenset(new_axes[axis] for axis in placement.constant_axes if axis in new_axes))


ExampleRule: TypeAlias = Callable[[ExampleContext], "Placement | list[Placement]"]
