"""Path rules of `lax.scan`, as over stacked layers, and of `lax.cond` with a constant condition."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from pathjax._interpreter.algebra import ArrayFunction, Constant, Gate, PathSum, Value
from pathjax._interpreter.context import Context, at_point, compared_in, depends_on, points, shape_of
from pathjax._interpreter.jaxpr import is_concrete

__all__ = ["cond", "scan"]


def cond(context: Context, values: Sequence[Value]) -> Sequence[Value]:
    """The branch that a constant chooses."""
    branch, *operands = values
    if not isinstance(branch, Constant) or not is_concrete(branch.value):
        raise context.refuse(
            "Which branch runs depends on values that paths do not fix.", "Gate with jnp.where instead of lax.cond."
        )
    return context.walk_inside(context.equation.params["branches"][int(branch.value)], operands)


def scan(context: Context, values: Sequence[Value]) -> Sequence[Value]:
    """A loop over stacked layers or steps: one `lax.scan` if the algebra allows it, else unrolled."""
    operands = context.equation.loop_operands(values)
    consts, carry, stacked = operands.constants, operands.carry, operands.stacked
    if not context.equation.params["length"]:
        outputs = context.equation.outputs[len(carry) :]
        return [*carry, *(Constant(jnp.zeros(output.shape, output.dtype)) for output in outputs)]
    run = _rolled if context.algebra.rolls_loops else _unrolled
    return run(context, consts, carry, stacked)


def _unrolled(
    context: Context, consts: Sequence[Value], carry: Sequence[Value], stacked: Sequence[Value]
) -> Sequence[Value]:
    params = context.equation.params
    order = range(params["length"])
    steps: list[Sequence[Value]] = []
    for i in reversed(order) if params["reverse"] else order:
        slices = [_map_entries(context, lambda *arrays, i=i: arrays[0][i], [value]) for value in stacked]
        results = context.walk_inside(params["jaxpr"], [*consts, *carry, *slices])
        carry, collected = results[: len(carry)], results[len(carry) :]
        steps.append(collected)
    in_order = steps[::-1] if params["reverse"] else steps
    columns = list(zip(*in_order, strict=True))
    return [*carry, *(_map_entries(context, lambda *arrays: jnp.stack(arrays), column) for column in columns)]


def _map_entries(context: Context, function: ArrayFunction, values: Sequence[Value]) -> Value:
    """`function`, which only moves entries, applied to values of any kind."""
    constants = [value.value for value in values if isinstance(value, Constant)]
    if len(constants) == len(values):
        with jax.ensure_compile_time_eval():
            return Constant(function(*constants))
    depends = depends_on(values)
    real = tuple(function(*(at_point(value, point) for value in values)) for point in range(points(values)))
    shape = jax.eval_shape(function, *(jax.ShapeDtypeStruct(shape_of(value), jnp.float32) for value in values)).shape
    if all(isinstance(value, Gate) for value in values):
        return Gate(real, shape, depends, compared_in(values))
    prefixes = context.algebra.shape_only(function, *(context.prefixes(value) for value in values))
    return PathSum(prefixes, real, shape, depends)


# Rolled loops: the carry of a `lax.scan` must keep its kind and its types, so both are determined first.


def _rolled(
    context: Context, consts: Sequence[Value], carry: Sequence[Value], stacked: Sequence[Value]
) -> Sequence[Value]:
    """One `lax.scan` over prefixes and real values, so that one layer is compiled, not each layer of a deep network.

    The kinds of the carry (constant, path sum or gate, and what it depends on) and then its types are widened until
    one step leaves them unchanged.
    """
    params, point_count = context.equation.params, points([*consts, *carry, *stacked])
    arrays, rebuild = _sliced(context, stacked)
    # the kinds of the carry and of the collected outputs after one step, recorded whenever `body` is traced
    kinds: list[list[Value]] = []

    def body(like: Sequence[Value], state: Any, slices: Any) -> Any:
        results = context.walk_inside(params["jaxpr"], [*consts, *_unpack(like, state), *rebuild(slices)])
        after, collected = results[: len(carry)], results[len(carry) :]
        kinds[:] = [[_kind(value) for value in after], [_kind(value) for value in collected]]
        promoted = [_promote(context, value, kind, point_count) for value, kind in zip(after, like, strict=True)]
        return _pack(context, promoted), _pack(context, collected)

    def step(state: Any, slices: Any) -> Any:
        after, collected = body(like, state, slices)
        return jax.tree.map(lambda new, old: new.astype(old.dtype), after, state), collected

    like, state = list(carry), _pack(context, carry)
    slice_types = jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape[1:], array.dtype), arrays)
    while True:
        after, _ = jax.eval_shape(lambda state, slices, like=like: body(like, state, slices), state, slice_types)
        widened = [_widen(context, before, later, point_count) for before, later in zip(like, kinds[0], strict=True)]
        if not all(_same_kind(a, b) for a, b in zip(widened, like, strict=True)):
            like, state = widened, _pack(context, widened)
            continue
        wide = jax.tree.map(lambda old, new: old.astype(jnp.promote_types(old.dtype, new.dtype)), state, after)
        if jax.tree.map(jnp.result_type, wide) == jax.tree.map(jnp.result_type, state):
            break
        state = wide
    state, collected = lax.scan(step, state, arrays, length=params["length"], reverse=params["reverse"])
    stacked_kinds = [_with_steps(kind, params["length"]) for kind in kinds[1]]
    results = _unpack([_kind(value) for value in like], state)
    return [*results, *(_joined_steps(context, value) for value in _unpack(stacked_kinds, collected))]


def _kind(value: Value) -> Value:
    """The value without its arrays."""
    match value:
        case Constant():
            return Constant(jax.ShapeDtypeStruct(jnp.shape(value.value), jnp.result_type(value.value)))
        case Gate():
            return Gate((), value.shape, value.depends)
        case PathSum():
            return PathSum(None, (), value.shape, value.depends)


def _same_kind(left: Value, right: Value) -> bool:
    return type(left) is type(right) and depends_on([left]) == depends_on([right])


def _widen(context: Context, before: Value, after: Value, point_count: int) -> Value:
    """The value of a carry before a step, of a kind that includes its kind after the step."""
    promoted = _promote(context, before, after, point_count)
    return promoted if isinstance(promoted, Constant) else replace(promoted, depends=depends_on([before, after]))


def _promote(context: Context, value: Value, like: Value, point_count: int) -> Value:
    """The value, as a sum over paths if it is a constant and `like` is a sum over paths. Refuses other mismatches."""
    if isinstance(value, Constant) and isinstance(like, PathSum):
        real = tuple(jnp.asarray(value.value) for _ in range(point_count))
        return PathSum(context.prefixes(value), real, shape_of(value), like.depends)
    if type(value) is not type(like) and not isinstance(like, Constant):
        raise context.refuse_gate()
    return value


def _pack(context: Context, values: Sequence[Value]) -> list[Any]:
    """The arrays of each value, as a `lax.scan` carries them."""

    def arrays(value: Value) -> Any:
        match value:
            case Constant():
                return jnp.asarray(value.value)
            case Gate():
                return value.real
            case PathSum():
                return context.algebra.as_carry(value.prefixes), value.real

    return [arrays(value) for value in values]


def _unpack(kinds: Sequence[Value], packed: Sequence[Any]) -> list[Value]:
    """Values of these kinds, with the arrays that `_pack` gave."""

    def value(kind: Value, arrays: Any) -> Value:
        match kind:
            case Constant():
                return Constant(arrays)
            case Gate():
                return Gate(arrays, kind.shape, kind.depends)
            case PathSum():
                return PathSum(arrays[0], arrays[1], kind.shape, kind.depends)

    return [value(kind, arrays) for kind, arrays in zip(kinds, packed, strict=True)]


def _sliced(context: Context, stacked: Sequence[Value]) -> tuple[list[Any], Callable[[Sequence[Any]], list[Value]]]:
    """The arrays for `lax.scan` to slice, and the function from the slices of one step to values."""
    pairs = [context.algebra.steps(value.prefixes) if isinstance(value, PathSum) else (None, None) for value in stacked]
    arrays = [
        (prefixes, value.real) if isinstance(value, PathSum) else _pack(context, [value])[0]
        for value, (prefixes, _) in zip(stacked, pairs, strict=True)
    ]

    def rebuild(slices: Sequence[Any]) -> list[Value]:
        packed = [
            (to_prefixes(arrays[0]), arrays[1]) if to_prefixes else arrays
            for arrays, (_, to_prefixes) in zip(slices, pairs, strict=True)
        ]
        values = _unpack([_kind(value) for value in stacked], packed)
        return [value if isinstance(value, Constant) else replace(value, shape=value.shape[1:]) for value in values]

    return arrays, rebuild


def _with_steps(kind: Value, length: int) -> Value:
    """The kind of a loop's collected outputs: one step's, with a first axis of `length`."""
    return kind if isinstance(kind, Constant) else replace(kind, shape=(length, *kind.shape))


def _joined_steps(context: Context, value: Value) -> Value:
    """A loop's collected outputs, with the prefixes of its steps joined into one array."""
    return replace(value, prefixes=context.algebra.join_steps(value.prefixes)) if isinstance(value, PathSum) else value
