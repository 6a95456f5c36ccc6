"""Primitive → path rule, in families, written once against the few operations of an `Algebra`.

Gates read the network's real values, carried beside the prefixes at as many points (θ, x) as the caller gives: none
with all gates open, one for the slopes on an input, two for the products of slopes on a pair of inputs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeAlias, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pathjax._algebra import INPUT, Algebra, ArrayFunction, Constant, Convolution, Gate, Paths, Value
from pathjax._jaxpr import Equation, Program, UnsupportedPrimitive, evaluate, is_concrete, walk

__all__ = ["DECLARED", "PATH_RULES", "Refusal", "inspect", "interpret"]

P = TypeVar("P")


class Lift(NamedTuple):
    """What a path rule gives for one result."""

    prefixes: Any
    stem: Paths | None = None
    factor: float = 1.0


Rule: TypeAlias = Callable[["Context", Sequence[Value]], "Sequence[Lift] | Sequence[Value] | None"]
"""The results: their prefixes, or whole values, or None for gates."""


@dataclass(frozen=True)
class Refusal:
    """An equation without a path rule, met on a walk that goes on."""

    layer: str
    error: UnsupportedPrimitive


@dataclass
class Walk:
    """One walk through a network: the algebra, and what was noticed on the way.

    `tied` are the positions of leaves that some path meets twice. `refusals` collects what has no rule, where the
    walk should go on; None makes it stop there. `ties` holds the slope of max(x, 0) at 0 inside calls with a
    derivative rule of their own.
    """

    algebra: Algebra[Any]
    tied: set[int]
    refusals: list[Refusal] | None = None
    visited: dict[str, None] | None = None
    ties: dict[int, float] = field(default_factory=dict)

    def run(self, program: Any, values: Sequence[Value], callers: tuple[Any, ...] = ()) -> list[Value]:
        """The results of a program, or of one inside these calls."""
        opaque = DECLARED.__contains__
        return walk(
            program, values, step=self.step, constant=Constant, opaque=opaque, enter=self.enter, callers=callers
        )

    def enter(self, equation: Equation) -> None:
        """Learn the slope at a tie inside a function with a derivative rule of its own."""
        self.ties[id(equation.source)] = 0.0
        if not equation.calls_jax:
            try:
                self.ties[id(equation.source)] = _slope_at_zero(equation)
            except UnsupportedPrimitive as error:
                self._refused(equation, error)

    def step(self, equation: Equation, values: list[Value]) -> list[Value]:
        """The results of one equation."""
        if self.visited is not None:
            self.visited.setdefault(equation.layer)
        try:
            return _step(Context(self, equation), values)
        except UnsupportedPrimitive as error:
            self._refused(equation, error)
            return [Paths(None, (), output.shape, frozenset()) for output in equation.outputs]

    def _refused(self, equation: Equation, error: UnsupportedPrimitive) -> None:
        """Stop at an equation without a rule, or note it where the walk should go on."""
        if self.refusals is None:
            raise error
        self.refusals.append(Refusal(equation.layer, error))


@dataclass
class Context:
    """One equation under interpretation."""

    walk: Walk
    equation: Equation

    @property
    def algebra(self) -> Algebra[Any]:
        return self.walk.algebra

    def prefixes(self, value: Value) -> Any:
        """The prefixes of an operand that joins others additively or multiplicatively."""
        match value:
            case Constant(constant):
                return self.algebra.constant(constant)
            case Paths():
                return value.prefixes
            case _:
                raise self.refuse_gate()

    def inside(self, program: Any, values: Sequence[Value]) -> list[Value]:
        """The results of a program that the equation holds."""
        return self.walk.run(program, values, (*self.equation.callers, self.equation.source))

    def refuse(self, reason: str, remedy: str) -> UnsupportedPrimitive:
        return self.equation.refuse(reason, remedy)

    def refuse_gate(self) -> UnsupportedPrimitive:
        return self.refuse(
            "A comparison of activations is used as a number here; that steps where paths are continuous.",
            "Multiply it with an activation, or use it to select between activations.",
        )


def interpret(
    program: Program,
    algebra: Algebra[P],
    weights: Sequence[P],
    inputs: P,
    *,
    points: Sequence[tuple[Sequence[Any], Any]] = (),
) -> tuple[P, frozenset[int]]:
    """The sum over paths to each output (n, o), and the positions of the leaves that some path meets twice.

    `weights` holds the prefixes of each parameter leaf, `inputs` those of x; `points` the real leaves and inputs at
    which gates are read. Raises UnsupportedPrimitive where paths are not defined.
    """
    state = Walk(algebra, set())
    (output,) = state.run(program.closed, _arguments(program, weights, inputs, points))
    return _output(output, algebra), frozenset(state.tied)


def inspect(program: Program, algebra: Algebra[P], weights: Sequence[P], inputs: P) -> tuple[list[str], list[Refusal]]:
    """The layers in the order of the network, and every equation without a path rule."""
    refusals: list[Refusal] = []
    visited: dict[str, None] = {}
    state = Walk(algebra, set(), refusals, visited)
    state.run(program.closed, _arguments(program, weights, inputs, ()))
    return list(visited), refusals


def _arguments(
    program: Program, weights: Sequence[P], inputs: P, points: Sequence[tuple[Sequence[Any], Any]]
) -> list[Value]:
    shapes = [*program.parameter_shapes, program.input_shape]
    names = [*range(len(weights)), INPUT]
    reals = [[*leaves, x] for leaves, x in points]
    return [
        Paths(prefixes, tuple(real[i] for real in reals), shapes[i], frozenset([names[i]]))
        for i, prefixes in enumerate([*weights, inputs])
    ]


def _output(output: Value, algebra: Algebra[P]) -> P:
    match output:
        case Paths():
            return cast(P, output.prefixes)
        case Constant(value):
            return algebra.constant(value)
        case _:
            raise UnsupportedPrimitive(
                "No paths to the output: it is a comparison, which steps. Return the activations themselves."
            )


def _step(context: Context, values: list[Value]) -> list[Value]:
    equation = context.equation
    if all(isinstance(value, Constant) for value in values):
        return [Constant(array) for array in evaluate(equation, [cast(Constant, value).value for value in values])]
    depends = frozenset().union(*(value.depends for value in values if not isinstance(value, Constant)))
    # a rule that walks inside gives whole values, with the real ones
    real = [] if equation.name in _INNER else _real(equation, values)
    if _is_gate(equation, values):
        return [Gate(tuple(r[i] for r in real), o.shape, depends) for i, o in enumerate(equation.outputs)]
    results = _rule(context)(context, values)
    if results is None:
        return [Gate(tuple(r[i] for r in real), o.shape, depends) for i, o in enumerate(equation.outputs)]
    return [
        Paths(result.prefixes, tuple(r[i] for r in real), o.shape, depends, result.stem, result.factor)
        if isinstance(result, Lift)
        else result
        for i, (result, o) in enumerate(zip(results, equation.outputs, strict=True))
    ]


def _rule(context: Context) -> Rule:
    name = context.equation.name
    if name in DECLARED:
        return _declared
    if name not in PATH_RULES:
        raise context.refuse(*_REASONS.get(name, _ANY_REASON))
    return PATH_RULES[name]


def _real(equation: Equation, values: Sequence[Value]) -> list[list[Any]]:
    """The equation's own results at each point."""
    points = max((len(value.real) for value in values if not isinstance(value, Constant)), default=0)
    return [equation.bind(*(_at(value, point) for value in values)) for point in range(points)]


def _at(value: Value, point: int) -> Any:
    return value.value if isinstance(value, Constant) else value.real[point]


# Gates.


def _is_gate(equation: Equation, values: Sequence[Value]) -> bool:
    """Whether the result is piecewise constant because the operands are.

    Constants among them must be one nonzero number: an open gate is 1, which must not hide a masked entry.
    """
    others = [value for value in values if not isinstance(value, Gate)]
    if equation.name not in _OF_GATES or any(isinstance(value, Paths) for value in others):
        return False
    return all(_uniform(cast(Constant, value).value) for value in others)


def _compare(context: Context, values: Sequence[Value]) -> None:
    """x > 0 and its kin; comparing two activations is as homogeneous as comparing one with zero."""
    if any(isinstance(value, Gate) for value in values):
        raise context.refuse_gate()
    for value in values:
        if isinstance(value, Constant) and not _is_filled_with(value.value, 0.0):
            raise context.refuse(
                "An activation is compared with a constant other than 0: the slope depends on the input's scale.",
                "Compare with 0, or make the threshold a bias.",
            )


def _sign(context: Context, values: Sequence[Value]) -> None:
    """sign(x): a gate of slopes −1, 0 and 1."""


def _is_filled_with(array: Any, number: float) -> bool:
    """Whether every entry is known, and equal to `number`."""
    return is_concrete(array) and bool(np.all(np.asarray(array) == number))


def _uniform(array: Any) -> float | None:
    """The number that every entry is known to be, where there is one."""
    entries = np.ravel(np.asarray(array)) if is_concrete(array) else np.zeros(0)
    return float(entries[0]) if entries.size and bool(np.all(entries == entries[0])) else None


def _pass(context: Context, value: Value, slopes: Sequence[Any]) -> Any:
    """An operand's prefixes behind gates of these slopes, in the shape of the result."""
    shape = context.equation.outputs[0].shape
    prefixes = context.prefixes(value)
    operand_shape = np.shape(value.value) if isinstance(value, Constant) else cast(Paths, value).shape
    if operand_shape != shape:
        prefixes = context.algebra.shape_only(lambda array: jnp.broadcast_to(array, shape), prefixes)
    return context.algebra.gate(prefixes, slopes, shape)


def _choose(context: Context, left: Value, right: Value, chosen: Sequence[Any]) -> Sequence[Lift]:
    """The left operand times `chosen`, plus the right one times what `chosen` leaves of 1, at each point.

    Multiples of one stem are one gate with two slopes; anything else is two gates.
    """
    if isinstance(left, Paths) and isinstance(right, Paths) and (common := _common_stem(left, right)):
        stem, if_left, if_right = common
        return [Lift(_pass(context, stem, [a * if_left + (1 - a) * if_right for a in chosen]))]
    kept = [
        _pass(context, value, shares)
        for value, shares in ((left, chosen), (right, [1 - a for a in chosen]))
        if not (isinstance(value, Constant) and _is_filled_with(value.value, 0.0))
    ]
    if not kept:
        return [Lift(context.algebra.scale(_pass(context, left, chosen), 0.0))]
    return [Lift(kept[0] if len(kept) == 1 else context.algebra.add(*kept))]


def _common_stem(left: Paths, right: Paths) -> tuple[Paths, float, float] | None:
    """The nearest value of which both operands are constant multiples, with the constants."""
    of_right = {id(stem): factor for stem, factor in right.stems()}
    common = ((stem, factor, of_right[id(stem)]) for stem, factor in left.stems() if id(stem) in of_right)
    return next(common, None)


def _maximum(context: Context, values: Sequence[Value]) -> Sequence[Lift]:
    """max(x, 0) is ReLU; the larger of two activations is a gate on each."""
    return _extremum(context, values, lax.gt, -np.inf)


def _minimum(context: Context, values: Sequence[Value]) -> Sequence[Lift]:
    """min(x, 0), and the smaller of two activations."""
    return _extremum(context, values, lax.lt, np.inf)


def _extremum(context: Context, values: Sequence[Value], wins: Any, neutral: float) -> Sequence[Lift]:
    left, right = values
    for bound, other in ((left, right), (right, left)):
        if isinstance(bound, Constant) and _is_filled_with(bound.value, neutral):
            return [_unchanged(cast(Paths, other))]
        if isinstance(bound, Constant) and not _is_filled_with(bound.value, 0.0):
            raise context.refuse(
                "An activation is clipped at a constant other than 0, which is not homogeneous.",
                "Clip at 0 (ReLU), or make the bound a bias.",
            )
    return _choose(context, left, right, _wins(context, left, right, wins))


def _wins(context: Context, left: Value, right: Value, wins: Any) -> list[Any]:
    """1 where the left operand wins, 0 where it loses; on ties, what JAX's derivative has.

    That is 1/2, except for max(x, 0) inside a function with a derivative rule of its own: 0 in `jax.nn.relu`.
    """
    share = 0.5
    owner = context.equation.derivative_owner
    if owner is not None and (isinstance(left, Constant) or isinstance(right, Constant)):
        slope = context.walk.ties[id(owner)]
        share = 1.0 - slope if isinstance(left, Constant) else slope
    shares = []
    for point in range(_points([left, right])):
        a, b = (jnp.broadcast_to(_at(value, point), context.equation.outputs[0].shape) for value in (left, right))
        shares.append(jnp.where(a == b, jnp.asarray(share, a.dtype), wins(a, b).astype(a.dtype)))
    return shares


def _slope_at_zero(call: Equation) -> float:
    """The derivative at 0 by the call's own rule, which must elsewhere be the derivative of what the call computes.

    Read on probes: a straight-through estimator, say, has paths in its values but not in its derivative.
    """
    if not all(jnp.issubdtype(operand.dtype, jnp.floating) for operand in call.inputs):
        return 0.0
    keys = jax.random.split(jax.random.key(0), len(call.inputs))
    with jax.ensure_compile_time_eval():
        probes = [jax.random.normal(key, like.shape, like.dtype) for key, like in zip(keys, call.inputs, strict=True)]
        by_rule, of_body = (_pulled_back(function, probes) for function in (call.bind, call.body))
        if not all(map(is_concrete, [*by_rule, *of_body])):
            return 0.0  # it closes over values that are not known yet, so that there is nothing to compare
        if not all(np.allclose(a, b, rtol=1e-3, atol=1e-3) for a, b in zip(by_rule, of_body, strict=True)):
            raise call.refuse(
                "Its derivative rule is not the derivative of what it computes.",
                "Take the rule away, or compute what it differentiates.",
            )
        if len(probes) > 1 or probes[0].size == 0:
            return 0.0
        return float(jnp.ravel(_pulled_back(call.bind, [jnp.zeros_like(probes[0])])[0])[0])


def _pulled_back(function: ArrayFunction, arrays: Sequence[Any]) -> Sequence[Any]:
    """The derivative of the sum of all results."""
    results, pull = jax.vjp(function, *arrays)
    return cast("Sequence[Any]", pull([jnp.ones_like(result) for result in results]))


def _absolute(context: Context, values: Sequence[Value]) -> Sequence[Lift]:
    """|x|: a gate of slopes ±1."""
    (operand,) = values
    slopes = [jax.jvp(lax.abs, (real,), (jnp.ones_like(real),))[1] for real in cast(Paths, operand).real]
    return [Lift(_pass(context, operand, slopes))]


def _select(context: Context, values: Sequence[Value]) -> Sequence[Lift]:
    """jnp.where: by a constant, moves entries; by a comparison of activations, gates them."""
    which, *cases = values
    if isinstance(which, Constant):
        return _select_by_constant(context, which.value, cases)
    if isinstance(which, Paths) or len(cases) != 2:
        raise context.refuse("It selects by something else than a comparison.", "Select with jnp.where(x > 0, ...).")
    if any(isinstance(case, Gate) for case in cases):
        raise context.refuse_gate()
    if_false, if_true = cases
    dtype = context.equation.outputs[0].dtype
    shape = context.equation.outputs[0].shape
    return _choose(context, if_true, if_false, [jnp.broadcast_to(w, shape).astype(dtype) for w in which.real])


def _select_by_constant(context: Context, which: Any, cases: Sequence[Value]) -> Sequence[Lift]:
    def choose(*arrays: Any) -> Any:
        return lax.select_n(which, *arrays)

    return [Lift(context.algebra.shape_only(choose, *(context.prefixes(case) for case in cases)))]


def _clamp(context: Context, values: Sequence[Value]) -> Sequence[Lift]:
    """clip(x, 0, ∞) is ReLU, and clip(x, −∞, 0) its mirror."""
    low, operand, high = values
    bounded = [isinstance(low, Constant), isinstance(high, Constant)]
    if not all(bounded) or not isinstance(operand, Paths):
        raise context.refuse("Its bounds depend on the network.", "Write it with jnp.maximum and jnp.minimum.")
    lows, highs = cast(Constant, low).value, cast(Constant, high).value
    if _is_filled_with(lows, 0.0) and _is_filled_with(highs, np.inf):
        return _choose(context, operand, low, [(real > 0).astype(real.dtype) for real in operand.real])
    if _is_filled_with(lows, -np.inf) and _is_filled_with(highs, 0.0):
        return _choose(context, operand, high, [(real < 0).astype(real.dtype) for real in operand.real])
    raise context.refuse(
        "An activation is clipped at a constant other than 0, which is not homogeneous.",
        "Clip at 0 (ReLU), or make the bound a bias.",
    )


# Sums and products.


def _unchanged(operand: Paths) -> Lift:
    return Lift(operand.prefixes, operand, 1.0)


def _same(context: Context, values: Sequence[Value]) -> Sequence[Lift]:
    """A copy, or a change of the floating-point type."""
    (operand,) = values
    output = context.equation.outputs[0]
    if not jnp.issubdtype(output.dtype, jnp.floating):
        raise context.refuse("An activation is rounded to whole numbers, which steps.", "Keep it floating-point.")
    return [_unchanged(cast(Paths, operand))]


def _negate(context: Context, values: Sequence[Value]) -> Sequence[Lift]:
    (operand,) = values
    return _times_constant(context, cast(Paths, operand), -1.0)


def _add(context: Context, values: Sequence[Value]) -> Sequence[Lift]:
    left, right = (context.prefixes(value) for value in values)
    return [Lift(context.algebra.add(left, right))]


def _subtract(context: Context, values: Sequence[Value]) -> Sequence[Lift]:
    left, right = (context.prefixes(value) for value in values)
    return [Lift(context.algebra.add(left, context.algebra.scale(right, -1.0)))]


def _sum(context: Context, values: Sequence[Value]) -> Sequence[Lift]:
    (operand,) = values
    return [Lift(context.algebra.sum(context.prefixes(operand), context.equation.params["axes"]))]


def _multiply(context: Context, values: Sequence[Value]) -> Sequence[Lift]:
    left, right = values
    if not isinstance(left, Paths) and not isinstance(right, Paths):
        raise context.refuse_gate()
    for operand, other in ((left, right), (right, left)):
        if isinstance(operand, Constant):
            return _times_constant(context, cast(Paths, other), operand.value)
        if isinstance(operand, Gate):
            shape = context.equation.outputs[0].shape
            return [Lift(_pass(context, other, [jnp.broadcast_to(real, shape) for real in operand.real]))]
    _check_product(context, left, right)
    return [Lift(context.algebra.multiply(context.prefixes(left), context.prefixes(right)))]


def _times_constant(context: Context, operand: Paths, constant: Any) -> Sequence[Lift]:
    prefixes = context.algebra.scale(operand.prefixes, constant)
    number = _uniform(constant)
    if number is not None and operand.shape == context.equation.outputs[0].shape:
        return [Lift(prefixes, operand, number)]
    return [Lift(prefixes)]


def _divide(context: Context, values: Sequence[Value]) -> Sequence[Lift]:
    numerator, denominator = values
    if not isinstance(denominator, Constant):
        what = "an activation" if INPUT in denominator.depends else "a parameter"
        raise context.refuse(f"It divides by {what}; path values are products.", "Multiply by a parameter instead.")
    return _times_constant(context, cast(Paths, numerator), 1.0 / denominator.value)


def _check_product(context: Context, left: Value, right: Value) -> None:
    """Refuse a product of two functions of x; note the parameters that stand on both sides."""
    shared = cast(Paths, left).depends & cast(Paths, right).depends
    if INPUT in shared:
        raise context.refuse(
            "It multiplies two activations, as attention does; that is of second order in the input.",
            "Replace one factor by parameters, by constants or by a comparison with 0.",
        )
    context.walk.tied.update(shared)


def _power(context: Context, values: Sequence[Value]) -> Sequence[Lift]:
    """A whole power of parameters alone is a weight met several times."""
    operand = cast(Paths, values[0])
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


def _dot(context: Context, values: Sequence[Value]) -> Sequence[Lift]:
    left, right = values
    if isinstance(left, Paths) and isinstance(right, Paths):
        _check_product(context, left, right)
    numbers = context.equation.params["dimension_numbers"]
    return [Lift(context.algebra.dot(context.prefixes(left), context.prefixes(right), numbers))]


def _shape_only(context: Context, values: Sequence[Value]) -> Sequence[Lift]:
    """Every operand holds entries to move."""
    operands = [context.prefixes(value) for value in values]
    return [
        Lift(context.algebra.shape_only(lambda *arrays, i=i: context.equation.bind(*arrays)[i], *operands))
        for i in range(len(context.equation.outputs))
    ]


def _indexed(context: Context, values: Sequence[Value]) -> Sequence[Lift]:
    """Some operands hold entries to move, the others say where; they must be known."""
    filler = context.equation.params.get("fill_value") or 0
    if np.isfinite(filler) and filler != 0:
        raise context.refuse("It fills with a constant other than 0.", "Fill with 0, and add the constant as a bias.")
    moved = _ENTRIES[context.equation.name]
    return [Lift(_move(context, values, moved, context.equation.bind))]


def _move(context: Context, values: Sequence[Value], moved: Sequence[int], bind: ArrayFunction) -> Any:
    places = _places(context, values, moved)

    def function(*arrays: Any) -> Any:
        return bind(*_interleave(places, moved, arrays))[0]

    return context.algebra.shape_only(function, *(context.prefixes(values[i]) for i in moved))


def _places(context: Context, values: Sequence[Value], moved: Sequence[int]) -> dict[int, Any]:
    """The operands that say where, by position."""
    others = {i: value for i, value in enumerate(values) if i not in moved}
    if any(not isinstance(value, Constant) for value in others.values()):
        raise context.refuse("It picks entries by an activation.", "Index by constants, or gate with jnp.where.")
    return {i: cast(Constant, value).value for i, value in others.items()}


def _interleave(places: dict[int, Any], moved: Sequence[int], arrays: Sequence[Any]) -> list[Any]:
    operands = places | dict(zip(moved, arrays, strict=True))
    return [operands[i] for i in range(len(operands))]


def _scatter_add(context: Context, values: Sequence[Value]) -> Sequence[Lift]:
    """x.at[...].add(y): entries of y join those of x."""
    operand, _, updates = values
    places = _places(context, values, (0, 2))
    shape = context.equation.outputs[0].shape

    def spread(array: Any) -> Any:
        return context.equation.bind(*_interleave(places, (0, 2), (jnp.zeros(shape, array.dtype), array)))[0]

    added = context.algebra.linear(spread, context.prefixes(updates), _shape(updates))
    return [Lift(context.algebra.add(context.prefixes(operand), added))]


def _linear(context: Context, values: Sequence[Value]) -> Sequence[Lift]:
    """Sums of entries, as the primitive itself adds them."""
    (operand,) = values
    function = lambda array: context.equation.bind(array)[0]  # noqa: E731
    return [Lift(context.algebra.linear(function, context.prefixes(operand), _shape(operand)))]


def _shape(value: Value) -> tuple[int, ...]:
    return tuple(np.shape(value.value)) if isinstance(value, Constant) else value.shape


def _conv(context: Context, values: Sequence[Value]) -> Sequence[Lift]:
    left, right = values
    if isinstance(left, Paths) and isinstance(right, Paths):
        _check_product(context, left, right)
    params = context.equation.params
    if params["batch_group_count"] != 1:
        raise context.refuse("It convolves groups of examples.", "Use feature groups instead.")
    convolution = Convolution(**{name: params[name] for name in Convolution._fields})
    return [Lift(context.algebra.conv(context.prefixes(left), context.prefixes(right), convolution))]


# Largest of many.


def _reduce_extremum(context: Context, values: Sequence[Value]) -> Sequence[Lift]:
    """jnp.max over axes: a gate on every entry; ties share equally, as in JAX's derivative."""
    operand = cast(Paths, values[0])
    axes = context.equation.params["axes"]
    best = jnp.max if context.equation.name == "reduce_max" else jnp.min
    slopes = []
    for real in operand.real:
        wins = (real == best(real, axis=axes, keepdims=True)).astype(real.dtype)
        slopes.append(wins / jnp.sum(wins, axis=axes, keepdims=True))
    gated = context.algebra.gate(operand.prefixes, slopes, operand.shape)
    return [Lift(context.algebra.sum(gated, axes))]


def _pool_extremum(context: Context, values: Sequence[Value]) -> Sequence[Lift]:
    """Max pooling: a gate on every entry of every window; the first of a tie passes, as in JAX's derivative."""
    operand = cast(Paths, values[0])
    params, smallest = context.equation.params, context.equation.name == "reduce_window_min"
    if not operand.real and context.algebra.has_free_gates:
        return [Lift(context.algebra.linear(_window_sum(params), operand.prefixes, operand.shape))]
    choose, filler = (jnp.argmin, np.inf) if smallest else (jnp.argmax, -np.inf)
    slopes = []
    for real in operand.real:
        entries = _windows(params, filler)(real)
        slopes.append(jax.nn.one_hot(choose(entries, axis=-1), entries.shape[-1], dtype=real.dtype))
    entries = context.algebra.shape_only(_windows(params, 0.0), operand.prefixes)
    shape = (*context.equation.outputs[0].shape, int(np.prod(params["window_dimensions"])))
    return [Lift(context.algebra.sum(context.algebra.gate(entries, slopes, shape), (len(shape) - 1,)))]


def _window_sum(params: dict[str, Any]) -> ArrayFunction:
    """The sum over each window."""
    window = [params[name] for name in ("window_dimensions", "window_strides", "padding")]
    dilation = {name: params[name] for name in ("base_dilation", "window_dilation")}
    return lambda array: lax.reduce_window(array, np.zeros((), array.dtype), lax.add, *window, **dilation)


def _windows(params: dict[str, Any], filler: float) -> ArrayFunction:
    """The entries of each window along a new last axis, `filler` in the padding."""
    sizes, strides, dilation = (params[name] for name in ("window_dimensions", "window_strides", "window_dilation"))
    widths = [
        (low, high, base - 1) for (low, high), base in zip(params["padding"], params["base_dilation"], strict=True)
    ]

    def gather(array: Any) -> Any:
        padded = lax.pad(array, np.asarray(filler, array.dtype), widths)
        spans = [(size - 1) * step for size, step in zip(sizes, dilation, strict=True)]
        views = []
        for offsets in itertools.product(*(range(size) for size in sizes)):
            start = [offset * step for offset, step in zip(offsets, dilation, strict=True)]
            stop = [first + size - span for first, size, span in zip(start, padded.shape, spans, strict=True)]
            views.append(lax.slice(padded, start, stop, strides))
        return jnp.stack(views, axis=-1)

    return gather


# Loops and branches.


def _cond(context: Context, values: Sequence[Value]) -> Sequence[Value]:
    """A branch chosen by a constant is that branch."""
    which, *operands = values
    if not isinstance(which, Constant) or not is_concrete(which.value):
        raise context.refuse(
            "Which branch runs depends on values that paths do not fix.", "Gate with jnp.where instead of lax.cond."
        )
    return context.inside(context.equation.params["branches"][int(which.value)], operands)


def _scan(context: Context, values: Sequence[Value]) -> Sequence[Value]:
    """A loop over stacked layers or steps."""
    params = context.equation.params
    split = params["num_consts"], params["num_consts"] + params["num_carry"]
    consts, carry, stacked = values[: split[0]], values[split[0] : split[1]], values[split[1] :]
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
    if all(isinstance(value, Constant) for value in values):
        with jax.ensure_compile_time_eval():
            return Constant(function(*(cast(Constant, value).value for value in values)))
    depends = frozenset().union(*(value.depends for value in values if not isinstance(value, Constant)))
    points = max(len(value.real) for value in values if not isinstance(value, Constant))
    real = tuple(function(*(_at(value, point) for value in values)) for point in range(points))
    shape = jax.eval_shape(function, *(jax.ShapeDtypeStruct(_shape(value), jnp.float32) for value in values)).shape
    if all(isinstance(value, Gate) for value in values):
        return Gate(real, shape, depends)
    prefixes = context.algebra.shape_only(function, *(context.prefixes(value) for value in values))
    return Paths(prefixes, real, shape, depends)


def _roll(
    context: Context, consts: Sequence[Value], carry: Sequence[Value], stacked: Sequence[Value]
) -> Sequence[Value]:
    """One `lax.scan` over prefixes and real values, so that a deep network compiles once for all its layers."""
    params, points = context.equation.params, _points([*consts, *carry, *stacked])
    arrays, rebuild_slices = _stacked_arrays(context, stacked)
    kinds: list[list[Value]] = []

    def body(state: Any, slices: Any, like: Sequence[Value]) -> Any:
        values = [*consts, *_unpack(like, state), *rebuild_slices(slices)]
        results = context.inside(params["jaxpr"], values)
        after, collected = results[: len(carry)], results[len(carry) :]
        kinds[:] = [[_shell(value) for value in after], [_shell(value) for value in collected]]
        promoted = [_promote(context, value, shell, points) for value, shell in zip(after, like, strict=True)]
        return _pack(context, promoted), _pack(context, collected)

    like = list(carry)
    while True:
        first = jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape[1:], array.dtype), arrays)
        packed = _pack(context, like)
        jax.eval_shape(lambda state, slices, like=like: body(state, slices, like), packed, first)
        joined = [_join(context, before, after, points) for before, after in zip(like, kinds[0], strict=True)]
        if all(_same_kind(a, b) for a, b in zip(joined, like, strict=True)):
            break
        like = joined
    state, collected = lax.scan(
        lambda state, slices: body(state, slices, like),
        packed, arrays, length=params["length"], reverse=params["reverse"],
    )  # fmt: skip
    results = _unpack([_shell(value) for value in like], state)
    shells = [_with_steps(shell, params["length"]) for shell in kinds[1]]
    return [*results, *(_joined_steps(context, value) for value in _unpack(shells, collected))]


def _points(values: Sequence[Value]) -> int:
    return max((len(value.real) for value in values if not isinstance(value, Constant)), default=0)


def _shell(value: Value) -> Value:
    """The kind of a value, without its arrays."""
    if isinstance(value, Constant):
        return Constant(jax.ShapeDtypeStruct(np.shape(value.value), jnp.result_type(value.value)))
    if isinstance(value, Gate):
        return Gate((), value.shape, value.depends)
    return Paths(None, (), value.shape, value.depends)


def _same_kind(left: Value, right: Value) -> bool:
    depends = [frozenset() if isinstance(value, Constant) else value.depends for value in (left, right)]
    return type(left) is type(right) and depends[0] == depends[1]


def _join(context: Context, before: Value, after: Value, points: int) -> Value:
    """The first value of a carry, of a kind that holds all later ones too."""
    if isinstance(before, Constant) and isinstance(after, Constant):
        return before
    promoted = _promote(context, before, after, points)
    depends = [frozenset() if isinstance(value, Constant) else value.depends for value in (before, after)]
    if isinstance(promoted, Paths):
        return Paths(promoted.prefixes, promoted.real, promoted.shape, depends[0] | depends[1])
    return promoted


def _promote(context: Context, value: Value, like: Value, points: int) -> Value:
    """A constant as paths, where the loop makes paths of it."""
    if isinstance(value, Constant) and isinstance(like, Paths):
        real = tuple(jnp.asarray(value.value) for _ in range(points))
        return Paths(context.algebra.constant(value.value), real, _shape(value), like.depends)
    if type(value) is not type(like) and not isinstance(like, Constant):
        raise context.refuse_gate()
    return value


def _pack(context: Context, values: Sequence[Value]) -> list[Any]:
    """The arrays of each value."""
    return [
        jnp.asarray(value.value)
        if isinstance(value, Constant)
        else value.real
        if isinstance(value, Gate)
        else (context.algebra.settle(value.prefixes), value.real)
        for value in values
    ]


def _unpack(like: Sequence[Value], packed: Sequence[Any]) -> list[Value]:
    """Values of these kinds with the arrays of `_pack`."""
    values: list[Value] = []
    for kind, arrays in zip(like, packed, strict=True):
        if isinstance(kind, Constant):
            values.append(Constant(arrays))
        elif isinstance(kind, Gate):
            values.append(Gate(arrays, kind.shape, kind.depends))
        else:
            values.append(Paths(arrays[0], arrays[1], kind.shape, kind.depends))
    return values


def _stacked_arrays(context: Context, stacked: Sequence[Value]) -> tuple[Any, Callable[[Any], list[Value]]]:
    """What a scan slices, and how a slice becomes values again; scales are common to all slices."""
    common = [value.prefixes.exponent if isinstance(value, Paths) else None for value in stacked]
    arrays = [
        jnp.asarray(value.value)
        if isinstance(value, Constant)
        else value.real
        if isinstance(value, Gate)
        else (value.prefixes.array, value.real)
        for value in stacked
    ]

    def rebuild(slices: Sequence[Any]) -> list[Value]:
        kinds = [_shell(value) for value in stacked]
        packed = [
            (type(value.prefixes)(entry[0], scale), entry[1]) if isinstance(value, Paths) else entry
            for value, entry, scale in zip(stacked, slices, common, strict=True)
        ]
        values = _unpack(kinds, packed)
        return [value if isinstance(value, Constant) else replace(value, shape=value.shape[1:]) for value in values]

    return arrays, rebuild


def _with_steps(shell: Value, length: int) -> Value:
    return shell if isinstance(shell, Constant) else replace(shell, shape=(length, *shell.shape))


def _joined_steps(context: Context, value: Value) -> Value:
    return replace(value, prefixes=context.algebra.join_steps(value.prefixes)) if isinstance(value, Paths) else value


# Declared by users.

DECLARED: dict[str, ArrayFunction] = {}
"""Gates of users' own, by the name of their primitive or call."""


def _declared(context: Context, values: Sequence[Value]) -> Sequence[Lift]:
    """An elementwise gate whose slopes are its derivative."""
    function = DECLARED[context.equation.name]
    (operand,) = values
    slopes = [jax.jvp(function, (real,), (jnp.ones_like(real),))[1] for real in cast(Paths, operand).real]
    return [Lift(_pass(context, operand, slopes))]


_COMPARISONS = ("gt", "ge", "lt", "le", "eq", "ne")
_MOVES = ("broadcast_in_dim", "reshape", "transpose", "squeeze", "rev", "slice", "concatenate", "stack")
_SAME = ("copy", "convert_element_type", "reduce_precision", "optimization_barrier")

# Which operands hold entries; the others say where they go.
_ENTRIES = {"gather": (0,), "dynamic_slice": (0,), "dynamic_update_slice": (0, 1), "scatter": (0, 2)}

PATH_RULES: dict[str, Rule] = {
    **dict.fromkeys(_COMPARISONS, _compare),
    **dict.fromkeys((*_MOVES, "split", "tile", "pad"), _shape_only),
    **dict.fromkeys(_ENTRIES, _indexed),
    **dict.fromkeys(_SAME, _same),
    **dict.fromkeys(("cumsum", "reduce_window_sum"), _linear),
    **dict.fromkeys(("reduce_max", "reduce_min"), _reduce_extremum),
    **dict.fromkeys(("reduce_window_max", "reduce_window_min"), _pool_extremum),
    **dict.fromkeys(("add", "add_any"), _add),
    **dict.fromkeys(("integer_pow", "square"), _power),
    "sign": _sign,
    "max": _maximum,
    "min": _minimum,
    "abs": _absolute,
    "clamp": _clamp,
    "select_n": _select,
    "neg": _negate,
    "sub": _subtract,
    "reduce_sum": _sum,
    "mul": _multiply,
    "div": _divide,
    "dot_general": _dot,
    "conv_general_dilated": _conv,
    "scatter-add": _scatter_add,
    "scan": _scan,
    "cond": _cond,
}

_INNER = {"scan", "cond"}

# Of gates these make gates: the result is piecewise constant because the operands are.
_OF_GATES = {
    *_MOVES, "split", "tile", "not", "and", "or", "xor", "neg", "add", "sub", "mul", "select_n", "convert_element_type",
}  # fmt: skip

_ANY_REASON = (
    "Paths are defined for piecewise-linear, positively homogeneous layers.",
    "Replace the layer by a piecewise-linear one, or declare a rule with `paths.declare_gate`.",
)
_USE_RELU = "Use a ReLU or another piecewise-linear activation instead."
_REASONS = {
    **dict.fromkeys(
        ("exp", "exp2", "expm1", "log", "log1p"),
        ("An exponential or logarithm, as in softmax, is not homogeneous.", "Return the logits from `apply`."),
    ),
    **dict.fromkeys(
        ("tanh", "logistic", "erf", "erfc", "erf_inv", "sin", "cos", "tan", "atan2"),
        ("It is curved, not piecewise linear.", _USE_RELU),
    ),
    **dict.fromkeys(
        ("sqrt", "rsqrt", "cbrt", "pow"),
        (
            "A root or power of an activation, as normalization by batch statistics, layer norm or RMS norm takes.",
            "Normalize with running statistics (evaluation mode), or not at all.",
        ),
    ),
    **dict.fromkeys(
        ("sort", "argmax", "argmin", "top_k", "approx_top_k"),
        ("The order of activations has no slope of its own.", "Use jnp.max or max pooling."),
    ),
    **dict.fromkeys(
        ("floor", "ceil", "round", "rem", "is_finite"),
        ("It steps where paths are continuous.", _USE_RELU),
    ),
    **dict.fromkeys(
        ("reduce_prod", "cumprod", "cummax", "cummin", "cumlogsumexp"),
        ("A running product or extremum of activations has no path rule.", _USE_RELU),
    ),
    "while": (
        "How often the loop runs may depend on data.",
        "Use lax.scan or lax.fori_loop with a constant number of steps.",
    ),
    "stop_gradient": (
        "It has a value but no derivative, so that the Jacobian is not that of the paths.",
        "Take it out of `apply`, or close over the stopped value.",
    ),
}
