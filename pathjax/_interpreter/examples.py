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

from pathjax._interpreter.context import DECLARED
from pathjax._interpreter.example_rules import EXAMPLE_RULES, elementwise
from pathjax._interpreter.jaxpr import (
    Equation,
    Program,
    Refusal,
    UnsupportedPrimitive,
    evaluate,
    is_concrete,
    walk,
)
from pathjax._interpreter.placements import AFTER_REFUSAL, BatchAxis, ExampleContext, NoBatch, Placement
from pathjax._interpreter.rules import PATH_RULES, inspect

__all__ = ["mixtures", "raise_first"]

_OUT_OF_ORDER = (
    "The outputs (n, o) are not in the order of the examples (n, ...): `apply` moves entries from one example to "
    "another. Let every example go through the network alone."
)


def mixtures(program: Program) -> list[Refusal]:
    """Every equation that mixes examples. The network must be traced for at least two."""
    example_walk = _ExampleWalk(program.input_shape[0])
    weights: list[Placement] = [NoBatch() for _ in program.parameter_shapes]
    (output,) = example_walk.run(program.closed, program.arguments(weights, [BatchAxis(0)], _placement_of_constant))
    in_order = output == BatchAxis(0) or (isinstance(output, NoBatch) and 0 in output.constant_axes)
    if not example_walk.refusals and not in_order:
        example_walk.refusals["output"] = Refusal("output", UnsupportedPrimitive(_OUT_OF_ORDER))
    return list(example_walk.refusals.values())


def raise_first(program: Program, refusals: Sequence[Refusal]) -> None:
    """Raise the error to report for a network that mixes examples, if it does.

    An operation that pathjax does not know is reported first: how it treats the examples cannot be told.
    """
    if not refusals:
        return
    unknown = [refusal for refusal in inspect(program).refusals if refusal.is_unknown]
    raise (unknown or refusals)[0].error


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
        return walk(
            program,
            placements,
            step=self._step,
            constant=_placement_of_constant,
            callers=callers,
            skip_empty=True,  # jnp.pad cuts examples even where it then pads with none of what it has cut
        )

    def _step(self, equation: Equation, placements: list[Placement]) -> list[Placement]:
        known = _known_entries(equation, placements)
        if known is not None:
            return [_placement_of_constant(value) for value in known]
        name = equation.name
        if name not in EXAMPLE_RULES and name not in PATH_RULES and not _is_in_declared_gate(equation):
            return [_without_path_rule(equation, placements, self.examples, self.run) for _ in equation.outputs]
        rule = EXAMPLE_RULES.get(name, elementwise)
        try:
            result = rule(ExampleContext(equation, placements, self.examples, self.run))
        except UnsupportedPrimitive as error:
            self.refusals.setdefault(str(error), Refusal(equation.layer, error))
            result = AFTER_REFUSAL
        return result if isinstance(result, list) else [result for _ in equation.outputs]


def _without_path_rule(equation: Equation, placements: Sequence[Placement], examples: int, run: Any) -> Placement:
    """The placement after an operation that the path rules refuse: it is not said to mix examples as well."""
    has_batch = any(isinstance(placement, BatchAxis) for placement in placements)
    shapes = {output.shape for output in equation.outputs}
    if has_batch and any(operand.shape and {operand.shape} != shapes for operand in equation.inputs):
        return AFTER_REFUSAL
    try:
        return elementwise(ExampleContext(equation, placements, examples, run))
    except UnsupportedPrimitive:
        return AFTER_REFUSAL


def _is_in_declared_gate(equation: Equation) -> bool:
    return any(name in DECLARED for name in equation.called_around)


def _known_entries(equation: Equation, placements: Sequence[Placement]) -> list[Any] | None:
    """The results of an equation that computes whole numbers or truth values, such as indices, from known arrays."""
    if any(isinstance(placement, BatchAxis) or placement.entries is None for placement in placements):
        return None
    if equation.name in _PROGRAMS or not all(_is_countable(output.dtype) for output in equation.outputs):
        return None
    results = evaluate(equation, [placement.entries for placement in placements if isinstance(placement, NoBatch)])
    return results if all(map(is_concrete, results)) else None


# Primitives that hold programs: the walk goes into them.
_PROGRAMS = ("scan", "cond", "while")


def _is_countable(dtype: Any) -> bool:
    return bool(jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.bool_))


def _placement_of_constant(value: Any) -> Placement:
    """An array that the network closes over depends on no example; its constant axes are read from its entries."""
    if not is_concrete(value) or jnp.issubdtype(jnp.result_type(value), jax.dtypes.prng_key):
        return NoBatch()  # entries that are not known while tracing, or a random key
    array = np.asarray(value)
    firsts = [array[(*(slice(None),) * axis, slice(1))] for axis in range(array.ndim)]
    constant_axes = frozenset(axis for axis, first in enumerate(firsts) if np.all(array == first))
    return NoBatch(constant_axes, value)
