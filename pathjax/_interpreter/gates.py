"""Path rules of what is piecewise linear: comparisons, ReLU however written, maxima, pools and selections.

Gates read the network's real values, carried beside the prefixes at as many points (θ, x) as the caller gives: none
with all gates open, one for the slopes on an input, two for the products of slopes on a pair of inputs.
"""

from __future__ import annotations

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
    depends_on,
    points,
    shape_of,
)
from pathjax._interpreter.jaxpr import UnsupportedPrimitive, is_concrete
from pathjax._interpreter.windows import Windows, entries_of_windows

__all__ = [
    "absolute", "clamp", "combine_gates", "compare", "declared", "extremum_of_axes", "extremum_of_windows",
    "known_number", "maximum", "minimum", "select", "sign", "unchanged",
]  # fmt: skip


def combine_gates(context: Context, values: Sequence[Value]) -> GateMarker:
    """Piecewise constant, because all operands are gates or constants that hold one nonzero number throughout.

    A constant with a zero in it is refused: with all gates open its results would be taken for 1 there too.
    """
    numbers = [known_number(value) for value in values if isinstance(value, Constant)]
    if any(number is None or (is_concrete(number) and number == 0) for number in numbers):
        raise context.refuse_gate()
    return GATE


def compare(context: Context, values: Sequence[Value]) -> GateMarker:
    """x > 0 and its kin; comparing two activations is as homogeneous as comparing one with zero."""
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
    """sign(x): a gate of slopes −1, 0 and 1."""
    return GATE


def known_number(constant: Constant) -> Any:
    """The number that is everywhere in a constant: a float where it is known, an array while tracing, or None."""
    if not is_concrete(constant.value):
        return constant.value if jnp.ndim(constant.value) == 0 else constant.fill
    entries = np.ravel(np.asarray(constant.value))
    return float(entries[0]) if entries.size and bool(np.all(entries == entries[0])) else None


def _is_filled_with(value: Value, number: float) -> bool:
    """Whether it is a constant of which every entry is known, and equal to `number`."""
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
    return Lift(_spread(context, operand), operand if operand.shape == context.shape else None)


def _spread(context: Context, value: Value) -> Any:
    """An operand's prefixes in the shape of the result."""
    prefixes, shape = context.prefixes(value), context.shape
    if shape_of(value) == shape:
        return prefixes
    return context.algebra.shape_only(lambda array: jnp.broadcast_to(array, shape), prefixes)


def pass_through(context: Context, value: Value, slopes: Sequence[Any]) -> Any:
    """An operand's prefixes behind gates of these slopes, in the shape of the result."""
    return context.algebra.gate(_spread(context, value), slopes, context.shape)


def _choose(context: Context, left: Value, right: Value, chosen: Sequence[Any]) -> Sequence[Lift]:
    """The left operand times `chosen`, plus the right one times what `chosen` leaves of 1, at each point.

    Multiples of one stem are one gate with two slopes; anything else is two gates.
    """
    if isinstance(left, PathSum) and isinstance(right, PathSum) and (common := _common_stem(left, right)):
        stem, if_left, if_right = common
        return [Lift(pass_through(context, stem, [a * if_left + (1 - a) * if_right for a in chosen]))]
    kept = [
        pass_through(context, value, shares)
        for value, shares in ((left, chosen), (right, [1 - a for a in chosen]))
        if not _is_filled_with(value, 0.0)
    ]
    return [Lift(kept[0] if len(kept) == 1 else context.algebra.add(*kept))]


def _common_stem(left: PathSum, right: PathSum) -> tuple[PathSum, Any, Any] | None:
    """The nearest value of which both operands are constant multiples, with the constants."""
    of_right = {id(stem): factor for stem, factor in right.stems()}
    common = ((stem, factor, of_right[id(stem)]) for stem, factor in left.stems() if id(stem) in of_right)
    return next(common, None)


def maximum(context: Context, values: Sequence[Value]) -> Sequence[Lift]:
    """max(x, 0) is ReLU; the larger of two activations is a gate on each."""
    return _extremum(context, values, lax.gt, -np.inf)


def minimum(context: Context, values: Sequence[Value]) -> Sequence[Lift]:
    """min(x, 0), and the smaller of two activations."""
    return _extremum(context, values, lax.lt, np.inf)


def _extremum(context: Context, values: Sequence[Value], wins: Any, neutral: float) -> Sequence[Lift]:
    left, right = values
    for bound, other in ((left, right), (right, left)):
        if _is_filled_with(bound, neutral):
            return [unchanged(context, context.paths(other))]
        if isinstance(bound, Constant) and not _is_filled_with(bound, 0.0):
            raise _refuse_bound(context, bound)
    fillers = [value.filler if isinstance(value, PathSum) else None for value in values]
    left, right = (v if isinstance(v, Constant) else context.paths(v, passed_over=neutral) for v in values)
    (chosen,) = _choose(context, left, right, _wins(context, left, right, wins))
    return [chosen._replace(filler=neutral if all(fillers) else None)]


def _wins(context: Context, left: Value, right: Value, wins: Any) -> list[Any]:
    """1 where the left operand wins, 0 where it loses; on ties, what JAX's derivative has.

    That is 1/2, except for max(x, 0) inside a function with a derivative rule of its own: 0 in `jax.nn.relu`.
    """
    share = 0.5
    owner = context.equation.derivative_owner
    if owner is not None and (isinstance(left, Constant) or isinstance(right, Constant)):
        slope = context.slopes_at_zero[id(owner)]
        share = 1.0 - slope if isinstance(left, Constant) else slope
    shares = []
    for point in range(points([left, right])):
        a, b = (jnp.broadcast_to(at_point(value, point), context.shape) for value in (left, right))
        shares.append(jnp.where(a == b, jnp.asarray(share, a.dtype), wins(a, b).astype(a.dtype)))
    return shares


def absolute(context: Context, values: Sequence[Value]) -> Sequence[Lift]:
    """|x|: a gate of slopes ±1."""
    operand = context.paths(values[0])
    return [Lift(pass_through(context, operand, [_derivative(lax.abs, real) for real in operand.real]))]


def declared(context: Context, values: Sequence[Value]) -> Sequence[Lift]:
    """A gate of the user's own, whose slopes are its derivative."""
    function, operand = DECLARED[context.equation.name], context.paths(values[0])
    return [Lift(pass_through(context, operand, [_derivative(function, real) for real in operand.real]))]


def _derivative(function: ArrayFunction, real: Any) -> Any:
    return jax.jvp(function, (real,), (jnp.ones_like(real),))[1]


def select(context: Context, values: Sequence[Value]) -> Results:
    """jnp.where: by a constant, moves entries; by a comparison of activations, gates them."""
    which, *cases = values
    if isinstance(which, Constant):
        paths = any(isinstance(case, PathSum) for case in cases)
        return _select_by_constant(context, which.value, cases) if paths else combine_gates(context, cases)
    if isinstance(which, PathSum) or len(cases) != 2:
        raise context.refuse("It selects by something else than a comparison.", "Select with jnp.where(x > 0, ...).")
    if not any(isinstance(case, PathSum) for case in cases):
        return _select_of_constants(context, which, cases)
    if_false, if_true = cases
    dtype, shape = context.equation.outputs[0].dtype, context.shape
    return _choose(context, if_true, if_false, [jnp.broadcast_to(w, shape).astype(dtype) for w in which.real])


def _select_by_constant(context: Context, which: Any, cases: Sequence[Value]) -> Sequence[Lift]:
    def choose(*arrays: Any) -> Any:
        return lax.select_n(which, *arrays)

    entries, filler = context.entries(cases)
    return [Lift(context.algebra.shape_only(choose, *entries), filler=filler)]


def _select_of_constants(context: Context, which: Gate, cases: Sequence[Value]) -> Sequence[Value]:
    """A choice between two numbers, or gates, is a gate, unless the numbers are one."""
    numbers = [known_number(case) for case in cases if isinstance(case, Constant)]
    if any(number is None for number in numbers):
        raise context.refuse_gate()
    if len(numbers) == len(cases) and all(map(is_concrete, numbers)) and numbers[0] == numbers[1]:
        return [cases[0]]
    at_points = [[at_point(value, point) for value in (which, *cases)] for point in range(points([which]))]
    real = [lax.select_n(*operands) for operands in at_points]
    return [Gate(tuple(real), context.shape, depends_on([which, *cases]))]


def clamp(context: Context, values: Sequence[Value]) -> Sequence[Lift]:
    """clip(x, 0, ∞) is ReLU, and clip(x, −∞, 0) its mirror."""
    low, operand, high = values
    if not isinstance(low, Constant) or not isinstance(high, Constant):
        raise context.refuse("Its bounds depend on the network.", "Write it with jnp.maximum and jnp.minimum.")
    clipped = context.paths(operand)
    if _is_filled_with(low, 0.0) and _is_filled_with(high, np.inf):
        return _choose(context, clipped, low, [(real > 0).astype(real.dtype) for real in clipped.real])
    if _is_filled_with(low, -np.inf) and _is_filled_with(high, 0.0):
        return _choose(context, clipped, high, [(real < 0).astype(real.dtype) for real in clipped.real])
    raise _refuse_bound(context, high if _is_filled_with(low, 0.0) or _is_filled_with(low, -np.inf) else low)


def extremum_of_axes(context: Context, values: Sequence[Value]) -> Sequence[Lift]:
    """jnp.max over axes: a gate on every entry; ties share equally, as in JAX's derivative."""
    largest = context.equation.name == "reduce_max"
    operand = context.paths(values[0], passed_over=-np.inf if largest else np.inf)
    axes = context.equation.params["axes"]
    best = jnp.max if largest else jnp.min
    slopes = []
    for real in operand.real:
        wins = (real == best(real, axis=axes, keepdims=True)).astype(real.dtype)
        slopes.append(wins / jnp.sum(wins, axis=axes, keepdims=True))
    gated = context.algebra.gate(operand.prefixes, slopes, operand.shape)
    return [Lift(context.algebra.sum(gated, axes))]


def extremum_of_windows(context: Context, values: Sequence[Value]) -> Sequence[Lift]:
    """Max pooling: a gate on every entry of every window; the first of a tie passes, as in JAX's derivative."""
    params, smallest = context.equation.params, context.equation.name == "reduce_window_min"
    operand = context.paths(values[0], passed_over=np.inf if smallest else -np.inf)
    if not operand.real and context.algebra.has_free_gates:
        return [Lift(context.algebra.linear(_window_sum(params), operand.prefixes, operand.shape))]
    choose, filler = (jnp.argmin, np.inf) if smallest else (jnp.argmax, -np.inf)
    slopes = []
    for real in operand.real:
        entries = _windows(params, filler)(real)
        slopes.append(jax.nn.one_hot(choose(entries, axis=-1), entries.shape[-1], dtype=real.dtype))
    entries = context.algebra.shape_only(_windows(params, 0.0), operand.prefixes)
    shape = (*context.shape, int(np.prod(params["window_dimensions"])))
    return [Lift(context.algebra.sum(context.algebra.gate(entries, slopes, shape), (len(shape) - 1,)))]


def _window_sum(params: dict[str, Any]) -> ArrayFunction:
    """The sum over each window."""
    window = [params[name] for name in ("window_dimensions", "window_strides", "padding")]
    dilation = {name: params[name] for name in ("base_dilation", "window_dilation")}
    return lambda array: lax.reduce_window(array, np.zeros((), array.dtype), lax.add, *window, **dilation)


def _windows(params: dict[str, Any], filler: float) -> ArrayFunction:
    """The entries of each window along a new last axis, `filler` in the padding."""
    names = ("window_dimensions", "window_strides", "padding", "base_dilation", "window_dilation")
    windows = Windows(*(params[name] for name in names))
    return lambda array: entries_of_windows(array, windows, filler=filler)
