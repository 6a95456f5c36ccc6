"""Path rules of sums and products, and of what moves entries about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from pathjax._interpreter.algebra import INPUT, Constant, Convolution, Gate, PathSum, Value
from pathjax._interpreter.context import Context, Lift, Results, shape_of
from pathjax._interpreter.gates import combine_gates, known_number, pass_through

__all__ = [
    "ENTRIES", "add", "add_running", "conv", "divide", "dot", "indexed", "multiply", "negate", "power", "same",
    "scatter_add", "shape_only", "subtract", "sum_of_axes",
]  # fmt: skip

# Which operands hold entries; the others say where they go.
ENTRIES = {"gather": (0,), "dynamic_slice": (0,), "dynamic_update_slice": (0, 1), "scatter": (0, 2)}


def same(context: Context, values: Sequence[Value]) -> Sequence[Lift | Value]:
    """Copies, or a change of the floating-point type."""
    for value, output in zip(values, context.equation.outputs, strict=True):
        if isinstance(value, PathSum) and not jnp.issubdtype(output.dtype, jnp.floating):
            raise context.refuse("An activation is rounded to whole numbers, which steps.", "Keep it floating-point.")
    return [
        Lift(value.prefixes, value, filler=value.filler) if isinstance(value, PathSum) else value for value in values
    ]


def negate(context: Context, values: Sequence[Value]) -> Sequence[Lift]:
    return _times_constant(context, context.paths(values[0]), Constant(-1.0))


def add(context: Context, values: Sequence[Value]) -> Sequence[Lift]:
    left, right = (context.prefixes(value) for value in values)
    return [Lift(context.algebra.add(left, right))]


def subtract(context: Context, values: Sequence[Value]) -> Sequence[Lift]:
    left, right = (context.prefixes(value) for value in values)
    return [Lift(context.algebra.add(left, context.algebra.scale(right, -1.0)))]


def sum_of_axes(context: Context, values: Sequence[Value]) -> Sequence[Lift]:
    (operand,) = values
    return [Lift(context.algebra.sum(context.prefixes(operand), context.equation.params["axes"]))]


def multiply(context: Context, values: Sequence[Value]) -> Sequence[Lift]:
    left, right = values
    if not isinstance(left, PathSum) and not isinstance(right, PathSum):
        raise context.refuse_gate()
    for operand, other in ((left, right), (right, left)):
        if isinstance(operand, Constant):
            return _times_constant(context, context.paths(other), operand)
        if isinstance(operand, Gate):
            return [Lift(pass_through(context, other, [jnp.broadcast_to(r, context.shape) for r in operand.real]))]
    _check_product(context, context.paths(left), context.paths(right))
    return [Lift(context.algebra.multiply(context.prefixes(left), context.prefixes(right)))]


def _times_constant(context: Context, operand: PathSum, constant: Constant) -> Sequence[Lift]:
    context.check_finite(constant)
    prefixes = context.algebra.scale(operand.prefixes, constant.value)
    number = known_number(constant)
    if number is not None and operand.shape == context.shape:
        return [Lift(prefixes, operand, number)]
    return [Lift(prefixes)]


def divide(context: Context, values: Sequence[Value]) -> Results:
    numerator, denominator = values
    if not isinstance(denominator, Constant):
        context.paths(denominator)
        what = "an activation" if INPUT in denominator.depends else "a parameter"
        raise context.refuse(f"It divides by {what}; path values are products.", "Multiply by a parameter instead.")
    if isinstance(numerator, Gate):
        return combine_gates(context, values)
    inverse = Constant(1.0 / denominator.value, None if denominator.fill is None else 1.0 / denominator.fill)
    return _times_constant(context, context.paths(numerator), inverse)


def _check_product(context: Context, left: PathSum, right: PathSum) -> None:
    """Refuse a product of two functions of x; note the parameters that stand on both sides."""
    shared = left.depends & right.depends
    if INPUT in shared:
        raise context.refuse(
            "It multiplies two activations, as attention does; that is of second order in the input.",
            "Replace one factor by parameters, by constants or by a comparison with 0.",
        )
    context.tied.update(shared)


def power(context: Context, values: Sequence[Value]) -> Sequence[Lift]:
    """A whole power of parameters alone is a weight met several times."""
    operand = context.paths(values[0])
    exponent = context.equation.params.get("y", 2)
    if INPUT in operand.depends and exponent != 1:
        raise context.refuse("A power of an activation is not of first order in the input.", "Use a ReLU instead.")
    if exponent < 1:
        raise context.refuse("It divides by a parameter; path values are products.", "Use a positive power.")
    result = operand.prefixes
    for _ in range(exponent - 1):
        _check_product(context, operand, operand)
        result = context.algebra.multiply(result, operand.prefixes)
    return [Lift(result)]


def dot(context: Context, values: Sequence[Value]) -> Sequence[Lift]:
    left, right = values
    if isinstance(left, PathSum) and isinstance(right, PathSum):
        _check_product(context, left, right)
    numbers = context.equation.params["dimension_numbers"]
    return [Lift(context.algebra.dot(context.prefixes(left), context.prefixes(right), numbers))]


def shape_only(context: Context, values: Sequence[Value]) -> Sequence[Lift]:
    """Every operand holds entries to move."""
    operands, filler = context.entries(values)
    return [
        Lift(
            context.algebra.shape_only(lambda *arrays, i=i: context.equation.bind(*arrays)[i], *operands), filler=filler
        )
        for i in range(len(context.equation.outputs))
    ]


def indexed(context: Context, values: Sequence[Value]) -> Sequence[Lift]:
    """Some operands hold entries to move, the others say where; they must be known."""
    moved = ENTRIES[context.equation.name]
    places = _places(context, values, moved)
    entries, filler = context.entries([values[i] for i in moved])
    outside = context.equation.params.get("fill_value") or 0  # what a gather takes for entries that are not there
    if np.isfinite(outside) and outside != 0:
        raise context.refuse("It fills with a constant other than 0.", "Fill with 0, and add the constant as a bias.")
    changed = {} if np.isfinite(outside) else {"fill_value": 0}

    def function(*arrays: Any) -> Any:
        return context.equation.bind(*_interleave(places, moved, arrays), **changed)[0]

    return [Lift(context.algebra.shape_only(function, *entries), filler=outside if np.isinf(outside) else filler)]


def _places(context: Context, values: Sequence[Value], moved: Sequence[int]) -> dict[int, Any]:
    """The operands that say where, by position."""
    others = {i: value for i, value in enumerate(values) if i not in moved}
    if any(not isinstance(value, Constant) for value in others.values()):
        raise context.refuse("It picks entries by an activation.", "Index by constants, or gate with jnp.where.")
    return {i: value.value for i, value in others.items() if isinstance(value, Constant)}


def _interleave(places: dict[int, Any], moved: Sequence[int], arrays: Sequence[Any]) -> list[Any]:
    operands = places | dict(zip(moved, arrays, strict=True))
    return [operands[i] for i in range(len(operands))]


def scatter_add(context: Context, values: Sequence[Value]) -> Sequence[Lift]:
    """x.at[...].add(y): entries of y join those of x."""
    operand, _, updates = values
    places = _places(context, values, (0, 2))
    shape = context.equation.outputs[0].shape

    def spread(array: Any) -> Any:
        return context.equation.bind(*_interleave(places, (0, 2), (jnp.zeros(shape, array.dtype), array)))[0]

    added = context.algebra.linear(spread, context.prefixes(updates), shape_of(updates))
    return [Lift(context.algebra.add(context.prefixes(operand), added))]


def add_running(context: Context, values: Sequence[Value]) -> Sequence[Lift]:
    """Sums of entries, as the primitive itself adds them."""
    (operand,) = values
    function = lambda array: context.equation.bind(array)[0]  # noqa: E731
    return [Lift(context.algebra.linear(function, context.prefixes(operand), shape_of(operand)))]


def conv(context: Context, values: Sequence[Value]) -> Sequence[Lift]:
    left, right = values
    if isinstance(left, PathSum) and isinstance(right, PathSum):
        _check_product(context, left, right)
    params = context.equation.params
    if params["batch_group_count"] != 1:
        raise context.refuse("It convolves groups of examples.", "Use feature groups instead.")
    convolution = Convolution(**{name: params[name] for name in Convolution._fields})
    return [Lift(context.algebra.conv(context.prefixes(left), context.prefixes(right), convolution))]
