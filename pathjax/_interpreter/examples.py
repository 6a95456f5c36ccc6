"""The check that a network computes each example on its own; paths are those of one example.

A walk that only tracks along which axis of each value the examples lie. It refuses whatever mixes examples, such as a
mean over the batch, a flip of it, or a gate that reads another example; the numbers in the arrays do not matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pathjax._interpreter.example_rules import (
    EXAMPLE_RULES,
    BatchAxis,
    ExampleContext,
    NoBatch,
    Placement,
    elementwise,
)
from pathjax._interpreter.jaxpr import Equation, Program, Refusal, UnsupportedPrimitive, is_concrete, walk

__all__ = ["mixtures"]

_OUT_OF_ORDER = (
    "The outputs (n, o) are not in the order of the examples (n, ...): `apply` moves entries from one example to "
    "another. Let every example go through the network alone."
)

# What a refused equation is taken to give: constant along any axis, so that later equations are not refused for it.
_AFTER_REFUSAL = NoBatch(frozenset(range(64)))


def mixtures(program: Program) -> list[Refusal]:
    """Every equation that mixes examples. The network must be traced for at least two."""
    example_walk = _ExampleWalk(program.input_shape[0])
    weights: list[Placement] = [NoBatch() for _ in program.parameter_shapes]
    (output,) = example_walk.run(program.closed, program.arguments(weights, [BatchAxis(0)], _placement_of_constant))
    in_order = output == BatchAxis(0) or (isinstance(output, NoBatch) and 0 in output.constant_axes)
    if not example_walk.refusals and not in_order:
        example_walk.refusals["output"] = Refusal("output", UnsupportedPrimitive(_OUT_OF_ORDER))
    return list(example_walk.refusals.values())


@dataclass
class _ExampleWalk:
    """A walk through a network that tracks the examples.

    Attributes:
        examples: the number of examples.
        refusals: the equations that mix examples, by message, since the body of a loop is walked more than once.
    """

    examples: int
    refusals: dict[str, Refusal] = field(default_factory=dict)

    def run(self, program: Any, placements: Sequence[Placement], callers: tuple[Any, ...] = ()) -> list[Placement]:
        return walk(program, placements, step=self._step, constant=_placement_of_constant, callers=callers)

    def _step(self, equation: Equation, placements: list[Placement]) -> list[Placement]:
        rule = EXAMPLE_RULES.get(equation.name, elementwise)
        try:
            result = rule(ExampleContext(equation, placements, self.examples, self.run))
        except UnsupportedPrimitive as error:
            self.refusals.setdefault(str(error), Refusal(equation.layer, error))
            result = _AFTER_REFUSAL
        return result if isinstance(result, list) else [result for _ in equation.outputs]


def _placement_of_constant(value: Any) -> Placement:
    """An array that the network closes over depends on no example; its constant axes are read from its entries."""
    if not is_concrete(value) or jnp.issubdtype(jnp.result_type(value), jax.dtypes.prng_key):
        return NoBatch()  # entries that are not known while tracing, or a random key
    array = np.asarray(value)
    firsts = [array[(*(slice(None),) * axis, slice(1))] for axis in range(array.ndim)]
    return NoBatch(frozenset(axis for axis, first in enumerate(firsts) if np.all(array == first)))
