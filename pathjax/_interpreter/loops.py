"""Path rules of loops over stacked layers, and of branches that constants choose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from pathjax._interpreter.algebra import ArrayFunction, Constant, Gate, PathSum, Value
from pathjax._interpreter.context import Context, at_point, depends_on, points, shape_of
from pathjax._interpreter.jaxpr import is_concrete

__all__ = ["cond", "scan"]


def cond(context: Context, values: Sequence[Value]) -> Sequence[Value]:
    """A branch chosen by a constant is that branch."""
    which, *operands = values
    if not isinstance(which, Constant) or not is_concrete(which.value):
        raise context.refuse(
            "Which branch runs depends on values that paths do not fix.", "Gate with jnp.where instead of lax.cond."
        )
    return context.inside(context.equation.params["branches"][int(which.value)], operands)


def scan(context: Context, values: Sequence[Value]) -> Sequence[Value]:
    """A loop over stacked layers or steps."""
    operands = context.equation.loop_operands(values)
    consts, carry, stacked = operands.constants, operands.carry, operands.stacked
    if not context.equation.params["length"]:
        outputs = context.equation.outputs[len(carry) :]
        return [*carry, *(Constant(jnp.zeros(output.shape, output.dtype)) for output in outputs)]
    run = _roll if context.algebra.rolls_loops else _unroll
    return run(context, consts, carry, stacked)


def _unroll(
    context: Context, consts: Sequence[Value], carry: Sequence[Value], stacked: Sequence[Value]
) -> Sequence[Value]:
    params = context.equation.params
    order = range(params["length"])
    steps: list[Sequence[Value]] = []
    for i in reversed(order) if params["reverse"] else order:
        slices = [_map_entries(context, lambda *arrays, i=i: arrays[0][i], [value]) for value in stacked]
        results = context.inside(params["jaxpr"], [*consts, *carry, *slices])
        carry, collected = results[: len(carry)], results[len(carry) :]
        steps.append(collected)
    in_order = steps[::-1] if params["reverse"] else steps
    columns = list(zip(*in_order, strict=True))
    return [*carry, *(_map_entries(context, lambda *arrays: jnp.stack(arrays), column) for column in columns)]


def _map_entries(context: Context, function: ArrayFunction, values: Sequence[Value]) -> Value:
    """A function that moves entries about, on values of any kind."""
    constants = [value.value for value in values if isinstance(value, Constant)]
    if len(constants) == len(values):
        with jax.ensure_compile_time_eval():
            return Constant(function(*constants))
    depends = depends_on(values)
    real = tuple(function(*(at_point(value, point) for value in values)) for point in range(points(values)))
    shape = jax.eval_shape(function, *(jax.ShapeDtypeStruct(shape_of(value), jnp.float32) for value in values)).shape
    if all(isinstance(value, Gate) for value in values):
        return Gate(real, shape, depends)
    prefixes = context.algebra.shape_only(function, *(context.prefixes(value) for value in values))
    return PathSum(prefixes, real, shape, depends)


# Rolled loops: what goes round must keep its kind and its types, so both are found first.


def _roll(
    context: Context, consts: Sequence[Value], carry: Sequence[Value], stacked: Sequence[Value]
) -> Sequence[Value]:
    """One `lax.scan` over prefixes and real values, so that a deep network compiles once for all its layers."""
    params, count = context.equation.params, points([*consts, *carry, *stacked])
    arrays, rebuild = _sliced(context, stacked)
    kinds: list[list[Value]] = []

    def body(like: Sequence[Value], state: Any, slices: Any) -> Any:
        results = context.inside(params["jaxpr"], [*consts, *_unpack(like, state), *rebuild(slices)])
        after, collected = results[: len(carry)], results[len(carry) :]
        kinds[:] = [[_shell(value) for value in after], [_shell(value) for value in collected]]
        promoted = [_promote(context, value, shell, count) for value, shell in zip(after, like, strict=True)]
        return _pack(context, promoted), _pack(context, collected)

    def step(state: Any, slices: Any) -> Any:
        after, collected = body(like, state, slices)
        return jax.tree.map(lambda new, old: new.astype(old.dtype), after, state), collected

    like, state = list(carry), _pack(context, carry)
    one = jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape[1:], array.dtype), arrays)
    while True:
        after, _ = jax.eval_shape(lambda state, slices, like=like: body(like, state, slices), state, one)
        joined = [_join(context, before, later, count) for before, later in zip(like, kinds[0], strict=True)]
        if not all(_same_kind(a, b) for a, b in zip(joined, like, strict=True)):
            like, state = joined, _pack(context, joined)
            continue
        wide = jax.tree.map(lambda old, new: old.astype(jnp.promote_types(old.dtype, new.dtype)), state, after)
        if jax.tree.map(jnp.result_type, wide) == jax.tree.map(jnp.result_type, state):
            break
        state = wide
    state, collected = lax.scan(step, state, arrays, length=params["length"], reverse=params["reverse"])
    shells = [_with_steps(shell, params["length"]) for shell in kinds[1]]
    results = _unpack([_shell(value) for value in like], state)
    return [*results, *(_joined_steps(context, value) for value in _unpack(shells, collected))]


def _shell(value: Value) -> Value:
    """The kind of a value, without its arrays."""
    match value:
        case Constant():
            return Constant(jax.ShapeDtypeStruct(jnp.shape(value.value), jnp.result_type(value.value)))
        case Gate():
            return Gate((), value.shape, value.depends)
        case PathSum():
            return PathSum(None, (), value.shape, value.depends)


def _same_kind(left: Value, right: Value) -> bool:
    return type(left) is type(right) and depends_on([left]) == depends_on([right])


def _join(context: Context, before: Value, after: Value, count: int) -> Value:
    """The first value of a carry, of a kind that holds all later ones too."""
    promoted = _promote(context, before, after, count)
    return promoted if isinstance(promoted, Constant) else replace(promoted, depends=depends_on([before, after]))


def _promote(context: Context, value: Value, like: Value, count: int) -> Value:
    """A constant as paths, where the loop makes paths of it."""
    if isinstance(value, Constant) and isinstance(like, PathSum):
        real = tuple(jnp.asarray(value.value) for _ in range(count))
        return PathSum(context.prefixes(value), real, shape_of(value), like.depends)
    if type(value) is not type(like) and not isinstance(like, Constant):
        raise context.refuse_gate()
    return value


def _pack(context: Context, values: Sequence[Value]) -> list[Any]:
    """The arrays of each value."""

    def arrays(value: Value) -> Any:
        match value:
            case Constant():
                return jnp.asarray(value.value)
            case Gate():
                return value.real
            case PathSum():
                return context.algebra.settle(value.prefixes), value.real

    return [arrays(value) for value in values]


def _unpack(kinds: Sequence[Value], packed: Sequence[Any]) -> list[Value]:
    """Values of these kinds with the arrays of `_pack`."""

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
    """What a scan slices, and how its slices become values again."""
    pairs = [context.algebra.steps(value.prefixes) if isinstance(value, PathSum) else (None, None) for value in stacked]
    arrays = [
        (prefixes, value.real) if isinstance(value, PathSum) else _pack(context, [value])[0]
        for value, (prefixes, _) in zip(stacked, pairs, strict=True)
    ]

    def rebuild(slices: Sequence[Any]) -> list[Value]:
        whole = [
            (again(entry[0]), entry[1]) if again else entry for entry, (_, again) in zip(slices, pairs, strict=True)
        ]
        values = _unpack([_shell(value) for value in stacked], whole)
        return [value if isinstance(value, Constant) else replace(value, shape=value.shape[1:]) for value in values]

    return arrays, rebuild


def _with_steps(shell: Value, length: int) -> Value:
    return shell if isinstance(shell, Constant) else replace(shell, shape=(length, *shell.shape))


def _joined_steps(context: Context, value: Value) -> Value:
    return replace(value, prefixes=context.algebra.join_steps(value.prefixes)) if isinstance(value, PathSum) else value
