"""Path rules of piecewise-linear operations: comparisons, ReLU in all its spellings, maxima, pools and selections.

Slopes of gates are computed from the network's real values, which are carried beside the prefixes at each point (θ, x)
that the caller gives: no point for open gates, one for the slopes on an input, two for a pair of inputs.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pathjax._interpreter.algebra import ArrayFunction, Constant, Gate, PathSum, Value
from pathjax._interpreter.context import (
    DECLARED,
    GATE,
    Context,
    GateMarker,
    Lift,
    Results,
    at_point,
    compared_in,
    depends_on,
    points,
    shape_of,
)
from pathjax._interpreter.jaxpr import UnsupportedPrimitive, is_concrete
from pathjax._interpreter.known import at_once
from pathjax._interpreter.windows import Windows, entries_of_windows

__all__ = [
    "absolute", "clamp", "combine_gates", "compare", "declared", "extremum_of_axes", "extremum_of_windows",
    "known_number", "maximum", "minimum", "select", "sign", "unchanged",
]  # fmt: skip


def combine_gates(context: Context, values: Sequence[Value]) -> GateMarker:
    """Piecewise constant if all operands are gates, or constants filled with one nonzero number.

    Constants with zeros are refused: with all gates open the result would count as 1, though a zero may switch it off.
    """
    numbers = [known_number(value) for value in values if isinstance(value, Constant)]
    if any(number is None or (is_concrete(number) and number == 0) for number in numbers):
        raise context.refuse_gate()
    return GATE


def compare(context: Context, values: Sequence[Value]) -> GateMarker:
    """Comparisons such as x > 0, or of two activations: both are unchanged when the activations are scaled."""
    if any(isinstance(value, Gate) for value in values):
        raise context.refuse_gate()
    for value in values:
        if isinstance(value, Constant) and not _is_filled_with(value, 0.0):
            raise context.refuse(
                f"An activation is compared with a constant {_other_than_zero(value)}: the slope depends on the "
                "input's scale.",
                "Compare with 0, or make the threshold a bias.",
            )
    return GATE


def sign(context: Context, values: Sequence[Value]) -> GateMarker:
    """sign(x): piecewise constant, with values −1, 0 and 1."""
    return GATE


def known_number(constant: Constant) -> Any:
    """The number to which all entries of a constant are equal, or None. An array if it is not known while tracing."""
    if not is_concrete(constant.value):
        return constant.value if jnp.ndim(constant.value) == 0 else constant.fill
    entries = np.ravel(np.asarray(constant.value))
    return float(entries[0]) if entries.size and bool(np.all(entries == entries[0])) else None


def _is_filled_with(value: Value, number: float) -> bool:
    """Whether the value is a constant whose entries are all known and equal to `number`."""
    return isinstance(value, Constant) and is_concrete(value.value) and bool(np.all(np.asarray(value.value) == number))


def _other_than_zero(constant: Constant) -> str:
    return "other than 0" if is_concrete(constant.value) else "that is not known while tracing"


def _refuse_bound(context: Context, bound: Constant) -> UnsupportedPrimitive:
    return context.refuse(
        f"An activation is clipped at a constant {_other_than_zero(bound)}, which is not homogeneous.",
        "Clip at 0 (ReLU), or make the bound a bias.",
    )


def unchanged(context: Context, operand: PathSum) -> Lift:
    """The operand itself, in the shape of the result."""
    return Lift(_broadcast(context, operand), operand if operand.shape == context.shape else None)


def _broadcast(context: Context, value: Value) -> Any:
    """An operand's prefixes, broadcast to the shape of the result."""
    prefixes, shape = context.prefixes(value), context.shape
    if shape_of(value) == shape:
        return prefixes
    return context.algebra.rearrange(lambda array: jnp.broadcast_to(array, shape), prefixes)


def pass_through(context: Context, value: Value, slopes: Sequence[Any], compared: frozenset[PathSum]) -> Any:
    """An operand's prefixes times the slopes of gates, in the shape of the result.

    `compared` are the roots of the activations that the gates are functions of.
    """
    context.check_gate(value, compared)
    return context.algebra.gate(_broadcast(context, value), context.by_own_sign(value, slopes), context.shape)


def _choose(
    context: Context, left: Value, right: Value, left_slopes: Sequence[Any], compared: frozenset[PathSum]
) -> Sequence[Lift]:
    """left · s + right · (1 − s), where s is the array of `left_slopes` at each point, a function of `compared`.

    Constant multiples of a common base are one gate with two slopes on that base; other operands get a gate each.
    """
    if isinstance(left, PathSum) and isinstance(right, PathSum) and (common := _common_base(left, right)):
        base, left_factor, right_factor = common
        mix = lambda slope, a, b: slope * a + (1 - slope) * b  # noqa: E731
        slopes = [at_once(mix, slope, left_factor, right_factor) for slope in left_slopes]
        return [Lift(pass_through(context, base, slopes, compared))]
    right_slopes = [at_once(lambda slope: 1 - slope, slope) for slope in left_slopes]
    gated = [
        pass_through(context, value, slopes, compared)
        for value, slopes in ((left, left_slopes), (right, right_slopes))
        if not _is_filled_with(value, 0.0)
    ]
    return [Lift(gated[0] if len(gated) == 1 else context.algebra.add(*gated))]


def _common_base(left: PathSum, right: PathSum) -> tuple[PathSum, Any, Any] | None:
    """The first value of which both operands are constant multiples, with the left and the right constant."""
    right_factors = {id(base): factor for base, factor in right.bases()}
    common = ((base, factor, right_factors[id(base)]) for base, factor in left.bases() if id(base) in right_factors)
    return next(common, None)


def maximum(context: Context, values: Sequence[Value]) -> Sequence[Lift]:
    """max(x, 0) is ReLU; the maximum of two activations has a gate on each."""
    return _extremum(context, values, lax.gt, -np.inf)


def minimum(context: Context, values: Sequence[Value]) -> Sequence[Lift]:
    """min(x, 0), and the minimum of two activations."""
    return _extremum(context, values, lax.lt, np.inf)


def _extremum(context: Context, values: Sequence[Value], wins: Any, neutral: float) -> Sequence[Lift]:
    """The operand that wins the comparison; `neutral` is the infinity that always loses it."""
    left, right = values
    for bound, other in ((left, right), (right, left)):
        if _is_filled_with(bound, neutral):
            return [unchanged(context, context.paths(other))]
        if isinstance(bound, Constant) and not _is_filled_with(bound, 0.0):
            raise _refuse_bound(context, bound)
    fills = [value.infinite_fill if isinstance(value, PathSum) else None for value in values]
    left, right = (v if isinstance(v, Constant) else context.paths(v, ignored_fill=neutral) for v in values)
    (chosen,) = _choose(context, left, right, _left_slopes(context, left, right, wins), compared_in([left, right]))
    return [chosen._replace(infinite_fill=neutral if all(fills) else None)]


def _left_slopes(context: Context, left: Value, right: Value, wins: Any) -> list[Any]:
    """At each point, 1 where the left operand wins, 0 where it loses, and on ties what JAX's derivative has.

    That is 1/2, except for max(x, 0) inside a function with a custom derivative rule: it is 0 in `jax.nn.relu`.
    """
    at_tie = 0.5
    owner = context.equation.derivative_owner
    if owner is not None and (isinstance(left, Constant) or isinstance(right, Constant)):
        slope = context.slopes_at_zero[id(owner)]
        at_tie = 1.0 - slope if isinstance(left, Constant) else slope
    slopes = []
    for point in range(points([left, right])):
        sides = (at_point(value, point) for value in (left, right))
        slopes.append(at_once(functools.partial(_share, wins, at_tie, context.shape), *sides))
    return slopes


def _share(wins: Any, at_tie: float, shape: tuple[int, ...], left: Any, right: Any) -> Any:
    """1 where `left` wins, 0 where it loses, `at_tie` where both are equal."""
    a, b = jnp.broadcast_to(left, shape), jnp.broadcast_to(right, shape)
    return jnp.where(a == b, jnp.asarray(at_tie, a.dtype), wins(a, b).astype(a.dtype))


def absolute(context: Context, values: Sequence[Value]) -> Sequence[Lift]:
    """|x|: a gate with slopes ±1."""
    operand = context.paths(values[0])
    slopes = [_derivative(lax.abs, real) for real in operand.real]
    return [Lift(pass_through(context, operand, slopes, frozenset([operand.root])))]


def declared(context: Context, values: Sequence[Value]) -> Sequence[Lift]:
    """A gate that a user declared. Its slopes are the function's derivative."""
    function, operand = DECLARED[context.equation.name], context.paths(values[0])
    slopes = [_derivative(function, real) for real in operand.real]
    return [Lift(pass_through(context, operand, slopes, frozenset([operand.root])))]


def _derivative(function: ArrayFunction, real: Any) -> Any:
    return at_once(lambda real: jax.jvp(function, (real,), (jnp.ones_like(real),))[1], real)


def select(context: Context, values: Sequence[Value]) -> Results:
    """jnp.where: a constant condition moves entries, a comparison of activations is a gate on them."""
    condition, *cases = values
    has_paths = any(isinstance(case, PathSum) for case in cases)
    if isinstance(condition, Constant):
        return _select_by_constant(context, condition.value, cases) if has_paths else combine_gates(context, cases)
    if isinstance(condition, PathSum) or len(cases) != 2:
        raise context.refuse("It selects by something else than a comparison.", "Select with jnp.where(x > 0, ...).")
    if not has_paths:
        return _select_between_constants(context, condition, cases)
    if_false, if_true = cases
    dtype, shape = context.equation.outputs[0].dtype, context.shape
    slopes = [at_once(lambda real: jnp.broadcast_to(real, shape).astype(dtype), real) for real in condition.real]
    return _choose(context, if_true, if_false, slopes, condition.compared)


def _select_by_constant(context: Context, condition: Any, cases: Sequence[Value]) -> Sequence[Lift]:
    def choose(*arrays: Any) -> Any:
        return lax.select_n(condition, *arrays)

    entries, fill = context.entries(cases)
    return [Lift(context.algebra.shape_only(choose, *entries), infinite_fill=fill)]


def _select_between_constants(context: Context, condition: Gate, cases: Sequence[Value]) -> Sequence[Value]:
    """A gate if both cases are gates, or constants filled with one number; the constant if both numbers are equal."""
    numbers = [known_number(case) for case in cases if isinstance(case, Constant)]
    if any(number is None for number in numbers):
        raise context.refuse_gate()
    if len(numbers) == len(cases) and all(map(is_concrete, numbers)) and numbers[0] == numbers[1]:
        return [cases[0]]
    at_points = [[at_point(value, point) for value in (condition, *cases)] for point in range(points([condition]))]
    real = [at_once(lax.select_n, *operands) for operands in at_points]
    read = [condition, *cases]
    return [Gate(tuple(real), context.shape, depends_on(read), compared_in(read))]


def clamp(context: Context, values: Sequence[Value]) -> Sequence[Lift]:
    """clip(x, 0, ∞) = max(x, 0) and clip(x, −∞, 0) = min(x, 0); other bounds are not homogeneous."""
    low, operand, high = values
    if not isinstance(low, Constant) or not isinstance(high, Constant):
        raise context.refuse("Its bounds depend on the network.", "Write it with jnp.maximum and jnp.minimum.")
    clipped = context.paths(operand)
    roots = frozenset([clipped.root])
    if _is_filled_with(low, 0.0) and _is_filled_with(high, np.inf):
        return _choose(
            context,
            clipped,
            low,
            [at_once(_is_positive, real) for real in clipped.real],
            roots,
        )
    if _is_filled_with(low, -np.inf) and _is_filled_with(high, 0.0):
        return _choose(
            context,
            clipped,
            high,
            [at_once(_is_positive, -real) for real in clipped.real],
            roots,
        )
    raise _refuse_bound(context, high if _is_filled_with(low, 0.0) or _is_filled_with(low, -np.inf) else low)


def _is_positive(real: Any) -> Any:
    return (real > 0).astype(real.dtype)


def extremum_of_axes(context: Context, values: Sequence[Value]) -> Sequence[Lift]:
    """jnp.max or jnp.min over axes: a gate on every entry. Tied entries share a slope of 1, as in JAX's derivative."""
    largest = context.equation.name == "reduce_max"
    operand = context.paths(values[0], ignored_fill=-np.inf if largest else np.inf)
    context.check_gate(operand, frozenset())
    axes = context.equation.params["axes"]
    extremum = jnp.max if largest else jnp.min
    slopes = []
    for real in operand.real:
        wins = (real == extremum(real, axis=axes, keepdims=True)).astype(real.dtype)
        slopes.append(wins / jnp.sum(wins, axis=axes, keepdims=True))
    gated = context.algebra.gate(operand.prefixes, slopes, operand.shape)
    return [Lift(context.algebra.sum(gated, axes))]


def extremum_of_windows(context: Context, values: Sequence[Value]) -> Sequence[Lift]:
    """Max or min pooling: a gate on every entry of every window. The first of tied entries has slope 1, as in JAX."""
    params, smallest = context.equation.params, context.equation.name == "reduce_window_min"
    operand = context.paths(values[0], ignored_fill=np.inf if smallest else -np.inf)
    context.check_gate(operand, frozenset())
    if not operand.real and context.algebra.has_free_gates:
        return [Lift(context.algebra.linear(_window_sum(params), operand.prefixes, operand.shape))]
    winner, padding = (jnp.argmin, np.inf) if smallest else (jnp.argmax, -np.inf)
    slopes = []
    for real in operand.real:
        entries = _windows(params, padding)(real)
        slopes.append(jax.nn.one_hot(winner(entries, axis=-1), entries.shape[-1], dtype=real.dtype))
    entries = context.algebra.shape_only(_windows(params, 0.0), operand.prefixes)
    shape = (*context.shape, int(np.prod(params["window_dimensions"])))
    return [Lift(context.algebra.sum(context.algebra.gate(entries, slopes, shape), (len(shape) - 1,)))]


def _window_sum(params: dict[str, Any]) -> ArrayFunction:
    """The function that sums the entries of each window."""
    window = [params[name] for name in ("window_dimensions", "window_strides", "padding")]
    dilation = {name: params[name] for name in ("base_dilation", "window_dilation")}
    return lambda array: lax.reduce_window(array, np.zeros((), array.dtype), lax.add, *window, **dilation)


def _windows(params: dict[str, Any], padding: float) -> ArrayFunction:
    """The function that puts the entries of each window along a new last axis, with `padding` around the array."""
    names = ("window_dimensions", "window_strides", "padding", "base_dilation", "window_dilation")
    windows = Windows(*(params[name] for name in names))
    return lambda array: entries_of_windows(array, windows, filler=padding)
