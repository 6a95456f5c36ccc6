"""Path rules of sums, of products, and of operations that only move entries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from pathjax._interpreter.algebra import INPUT, Constant, Convolution, Gate, PathSum, Value
from pathjax._interpreter.context import Context, Lift, Results, shape_of
from pathjax._interpreter.gates import combine_gates, known_number, pass_through
from pathjax._interpreter.known import at_once
from pathjax._interpreter.refusals import COMPLEX

__all__ = [
    "ENTRIES", "add", "add_running", "conv", "copy", "divide", "dot", "indexed", "multiply", "negate", "power",
    "scatter_add", "scatter_multiply", "shape_only", "subtract", "sum_of_axes",
]  # fmt: skip

# Moves whose result may lack some entries of the operand; all others have each of them at least once.
_MAY_LEAVE_OUT = {"slice", "split", "pad"}

# Positions of the operands whose entries are moved; the other operands are indices.
ENTRIES = {"gather": (0,), "dynamic_slice": (0,), "dynamic_update_slice": (0, 1), "scatter": (0, 2)}


def copy(context: Context, values: Sequence[Value]) -> Sequence[Lift | Value]:
    """Copies, and conversions between floating-point types."""
    for value, output in zip(values, context.equation.outputs, strict=True):
        if isinstance(value, PathSum) and jnp.issubdtype(output.dtype, jnp.complexfloating):
            raise context.refuse(*COMPLEX)
        if isinstance(value, PathSum) and not jnp.issubdtype(output.dtype, jnp.floating):
            raise context.refuse(
                "An activation is rounded to whole numbers, which is a step function.",
                "Keep it floating-point; if it looks up an embedding, pass the embedded vectors as x.",
            )
    return [
        Lift(value.prefixes, value, infinite_fill=value.infinite_fill) if isinstance(value, PathSum) else value
        for value in values
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
            slopes = [at_once(lambda real: jnp.broadcast_to(real, context.shape), real) for real in operand.real]
            return [Lift(pass_through(context, other, slopes, operand.compared))]
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
        divisor = "an activation" if INPUT in denominator.depends else "a parameter"
        raise context.refuse(
            f"It divides by {divisor}; path values are products.",
            "Multiply by a parameter or a constant instead.",
            told_of_weights=True,
        )
    if isinstance(numerator, Gate):
        return combine_gates(context, values)
    value = at_once(lambda divisor: 1.0 / divisor, denominator.value)
    inverse = Constant(value, None if denominator.fill is None else 1.0 / denominator.fill)
    return _times_constant(context, context.paths(numerator), inverse)


def _check_product(context: Context, left: PathSum, right: PathSum) -> None:
    """Refuse a product of two functions of x; record parameters on which both factors depend as tied."""
    shared = left.depends & right.depends
    if INPUT in shared:
        raise context.refuse(
            "It multiplies two activations, as attention does, or squares one, as norms do; that is of second order in "
            "the input.",
            "Replace one factor by parameters, by constants or by a comparison with 0.",
        )
    context.tied.update(shared)


def power(context: Context, values: Sequence[Value]) -> Sequence[Lift]:
    """w^k for integer k ≥ 1: a path through it meets the weight k times."""
    operand = context.paths(values[0])
    exponent = context.equation.params.get("y", 2)
    if INPUT in operand.depends and exponent != 1:
        raise context.refuse(
            "A power of an activation is not of first order in the input.",
            "Use a ReLU instead of a power, and batch norm with running statistics instead of a norm.",
        )
    if exponent < 1:
        raise context.refuse(
            "It divides by a parameter; path values are products.", "Use a positive power.", told_of_weights=True
        )
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
    """Entries of all operands are moved."""
    operands, fill = context.entries(values)
    leaves_out = context.equation.name in _MAY_LEAVE_OUT
    move = context.algebra.shape_only if leaves_out else context.algebra.rearrange
    return [
        Lift(move(lambda *arrays, i=i: context.equation.bind(*arrays)[i], *operands), infinite_fill=fill)
        for i in range(len(context.equation.outputs))
    ]


def indexed(context: Context, values: Sequence[Value]) -> Sequence[Lift]:
    """Entries of some operands are moved; the other operands are indices and must be constants."""
    moved = ENTRIES[context.equation.name]
    indices = _indices(context, values, moved)
    entries, fill = context.entries([values[i] for i in moved])
    out_of_bounds = context.equation.params.get("fill_value") or 0  # the value of a gather at indices out of bounds
    if np.isfinite(out_of_bounds) and out_of_bounds != 0:
        raise context.refuse("It fills with a constant other than 0.", "Fill with 0, and add the constant as a bias.")
    changed_params = {} if np.isfinite(out_of_bounds) else {"fill_value": 0}

    def function(*arrays: Any) -> Any:
        return context.equation.bind(*_interleave(indices, moved, arrays), **changed_params)[0]

    infinite_fill = out_of_bounds if np.isinf(out_of_bounds) else fill
    return [Lift(context.algebra.shape_only(function, *entries), infinite_fill=infinite_fill)]


def _indices(context: Context, values: Sequence[Value], moved: Sequence[int]) -> dict[int, Any]:
    """The operands that are indices, by position."""
    indices = {i: value for i, value in enumerate(values) if i not in moved}
    if any(not isinstance(value, Constant) for value in indices.values()):
        raise context.refuse("It picks entries by an activation.", "Index by constants, or gate with jnp.where.")
    return {i: value.value for i, value in indices.items() if isinstance(value, Constant)}


def _interleave(indices: dict[int, Any], moved: Sequence[int], arrays: Sequence[Any]) -> list[Any]:
    """All operands in order: the indices, and `arrays` at the positions `moved`."""
    operands = indices | dict(zip(moved, arrays, strict=True))
    return [operands[i] for i in range(len(operands))]


def scatter_add(context: Context, values: Sequence[Value]) -> Sequence[Lift]:
    """x.at[...].add(y) and x.at[...].subtract(y): entries of y are added to, or taken from, those of x."""
    operand, _, updates = values
    indices = _indices(context, values, (0, 2))
    shape = context.equation.outputs[0].shape
    sign = -1 if context.equation.name == "scatter-sub" else 1

    def scatter_into_zeros(array: Any) -> Any:
        zeros = jnp.zeros(shape, array.dtype)
        return sign * context.equation.bind(*_interleave(indices, (0, 2), (zeros, array)))[0]

    added = context.algebra.linear(scatter_into_zeros, context.prefixes(updates), shape_of(updates))
    added = added if sign == 1 else context.algebra.scale(added, -1.0)
    return [Lift(context.algebra.add(context.prefixes(operand), added))]


def scatter_multiply(context: Context, values: Sequence[Value]) -> Sequence[Lift]:
    """x.at[...].multiply(c): entries of x are multiplied by constants."""
    operand, _, updates = values
    indices = _indices(context, values, (0, 2))
    if not isinstance(updates, Constant) or not isinstance(operand, PathSum):
        raise context.refuse(
            "It multiplies entries by something else than constants.",
            "Multiply the whole array by an array that is 1 elsewhere.",
        )
    context.check_finite(updates)
    ones = jnp.ones(context.shape, updates.value.dtype)
    (factors,) = context.equation.bind(*_interleave(indices, (0, 2), (ones, updates.value)))
    return _times_constant(context, context.paths(operand), Constant(factors))


def add_running(context: Context, values: Sequence[Value]) -> Sequence[Lift]:
    """Cumulative sums and sums over windows."""
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
