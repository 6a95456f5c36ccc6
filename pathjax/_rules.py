"""Primitive → path rule, in families.

A value of the network is one of three things: a `Constant` (depends on neither θ nor x), `Paths` (a sum over path
prefixes), or a `Gate` (piecewise constant in both: a comparison with zero and what is made of it). What a sum over
prefixes *is* belongs to an `Algebra`: arrays of numbers in `paths`, lists of paths in `enumeration`. The rules here
are written once, against the algebra's few operations.

Gates read the network's real values, carried beside the prefixes at as many points (θ, x) as the caller gives: none
with all gates open, one for the slopes on an input, two for the products of slopes on a pair of inputs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pathjax._jaxpr import Equation, Program, UnsupportedPrimitive, evaluate, is_concrete, walk

__all__ = ["Algebra", "Structure", "interpret"]

P = TypeVar("P")
ArrayFunction: TypeAlias = Callable[..., Any]

INPUT = -1  # stands for x among the things a value depends on; parameter leaves have their position


class Algebra(ABC, Generic[P]):
    """What a sum over path prefixes is, and what the few operations on it are.

    Entries without a path are zero in every algebra, so that functions which pad with zeros serve them all.
    """

    @abstractmethod
    def constant(self, value: Any) -> P:
        """Paths of one constant coefficient each, from the constant-1 source; none where it is zero."""

    @abstractmethod
    def shape_only(self, function: ArrayFunction, *operands: P) -> P:
        """Move entries about: `function` takes arrays to an array and does no arithmetic."""

    @abstractmethod
    def add(self, left: P, right: P) -> P:
        """Elementwise union; a scalar goes with every entry."""

    @abstractmethod
    def sum(self, operand: P, axes: Sequence[int]) -> P:
        """Union over axes."""

    @abstractmethod
    def multiply(self, left: P, right: P) -> P:
        """Elementwise: every prefix on the left goes on with every one on the right; a scalar with every entry."""

    @abstractmethod
    def scale(self, operand: P, coefficient: Any) -> P:
        """Multiply by constants, elementwise; a prefix ends where the constant is zero."""

    @abstractmethod
    def dot(self, left: P, right: P, dimension_numbers: Any) -> P:
        """`lax.dot_general` over multiply and sum."""

    @abstractmethod
    def gate(self, operand: P, slopes: Sequence[Any], shape: tuple[int, ...]) -> P:
        """Pass through gates of these slopes, one array per point."""


class Structure(Algebra[None]):
    """No numbers at all: what a network is made of, and whether it has paths."""

    def constant(self, value: Any) -> None:
        return None

    def shape_only(self, function: ArrayFunction, *operands: None) -> None:
        return None

    def add(self, left: None, right: None) -> None:
        return None

    def sum(self, operand: None, axes: Sequence[int]) -> None:
        return None

    def multiply(self, left: None, right: None) -> None:
        return None

    def scale(self, operand: None, coefficient: Any) -> None:
        return None

    def dot(self, left: None, right: None, dimension_numbers: Any) -> None:
        return None

    def gate(self, operand: None, slopes: Sequence[Any], shape: tuple[int, ...]) -> None:
        return None


@dataclass(frozen=True)
class Constant:
    """An array that depends on neither parameters nor inputs."""

    value: Any


@dataclass(frozen=True, eq=False)
class Paths:
    """A sum over path prefixes.

    `real` holds the network's own values, one per point. Where the value is a constant times another one, entry by
    entry, `stem` is that other one and `factor` the constant: leaky ReLU is one gate on a stem, not two paths.
    """

    prefixes: Any
    real: tuple[Any, ...]
    shape: tuple[int, ...]
    depends: frozenset[int]
    stem: Paths | None = None
    factor: float = 1.0

    def stems(self) -> list[tuple[Paths, float]]:
        """The values of which this one is a constant multiple, itself first, each with the constant."""
        found: list[tuple[Paths, float]] = [(self, 1.0)]
        while (last := found[-1][0]).stem is not None:
            found.append((last.stem, found[-1][1] * last.factor))
        return found


@dataclass(frozen=True, eq=False)
class Gate:
    """A piecewise constant function of activations, such as x > 0, at each point."""

    real: tuple[Any, ...]
    shape: tuple[int, ...]
    depends: frozenset[int]


Value: TypeAlias = Constant | Paths | Gate


class Lift(NamedTuple):
    """What a path rule gives for one result."""

    prefixes: Any
    stem: Paths | None = None
    factor: float = 1.0


Rule: TypeAlias = Callable[["Context", Sequence[Value]], Sequence[Lift] | None]
"""The results' prefixes, or None for a gate."""


@dataclass
class Context:
    """One equation under interpretation, and the algebra it is interpreted in."""

    algebra: Algebra[Any]
    equation: Equation
    tied: set[int] = field(default_factory=set)

    def prefixes(self, value: Value) -> Any:
        """The prefixes of an operand that joins others additively or multiplicatively."""
        match value:
            case Constant(constant):
                return self.algebra.constant(constant)
            case Paths():
                return value.prefixes
            case _:
                raise self.refuse_gate()

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
    shapes = [*program.parameter_shapes, program.input_shape]
    names = [*range(len(weights)), INPUT]
    reals = [[*leaves, x] for leaves, x in points]
    arguments = [
        Paths(prefixes, tuple(real[i] for real in reals), shapes[i], frozenset([names[i]]))
        for i, prefixes in enumerate([*weights, inputs])
    ]
    tied: set[int] = set()

    def step(equation: Equation, values: list[Value]) -> list[Value]:
        return _step(Context(algebra, equation, tied), values)

    (output,) = walk(program, arguments, step=step, constant=Constant)
    return _output(output, algebra), frozenset(tied)


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
    real = _real(equation, values)
    if _is_gate(equation, values):
        return [Gate(tuple(r[i] for r in real), o.shape, depends) for i, o in enumerate(equation.outputs)]
    lifts = _rule(context)(context, values)
    if lifts is None:
        return [Gate(tuple(r[i] for r in real), o.shape, depends) for i, o in enumerate(equation.outputs)]
    return [
        Paths(lift.prefixes, tuple(r[i] for r in real), o.shape, depends, lift.stem, lift.factor)
        for i, (lift, o) in enumerate(zip(lifts, equation.outputs, strict=True))
    ]


def _rule(context: Context) -> Rule:
    name = context.equation.name
    if name not in PATH_RULES:
        reason = _REASONS.get(name, "Paths are defined for piecewise-linear, positively homogeneous layers.")
        raise context.refuse(reason, "Replace the layer by a piecewise-linear one.")
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

    That is 1/2, except inside a function with a derivative rule of its own, where `jax.nn.relu` has 0 for max(x, 0).
    """
    points = max(len(value.real) for value in (left, right) if isinstance(value, Paths))
    zero_on_ties = context.equation.in_custom_derivative
    shares = []
    for point in range(points):
        a, b = (jnp.broadcast_to(_at(value, point), context.equation.outputs[0].shape) for value in (left, right))
        strict = wins(a, b).astype(a.dtype)
        tie = 0.5 * (a == b)
        if zero_on_ties and (isinstance(left, Constant) or isinstance(right, Constant)):
            tie = jnp.where(a == b, 1.0 if isinstance(left, Constant) else 0.0, 0.0)
        shares.append(strict + tie.astype(a.dtype))
    return shares


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
    for operand, other in ((left, right), (right, left)):
        if isinstance(operand, Constant) and isinstance(other, Gate):
            raise context.refuse_gate()
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
    context.tied.update(shared)


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


_COMPARISONS = ("gt", "ge", "lt", "le", "eq", "ne")
_MOVES = ("broadcast_in_dim", "reshape", "transpose", "squeeze", "expand_dims", "rev", "slice", "concatenate", "split")

PATH_RULES: dict[str, Rule] = {
    **dict.fromkeys(_COMPARISONS, _compare),
    **dict.fromkeys((*_MOVES, "tile"), _shape_only),
    **dict.fromkeys(("copy", "copy_p", "convert_element_type", "reduce_precision", "optimization_barrier"), _same),
    "sign": _sign,
    "max": _maximum,
    "min": _minimum,
    "abs": _absolute,
    "clamp": _clamp,
    "select_n": _select,
    "neg": _negate,
    "add": _add,
    "add_any": _add,
    "sub": _subtract,
    "reduce_sum": _sum,
    "mul": _multiply,
    "div": _divide,
    "integer_pow": _power,
    "square": _power,
    "dot_general": _dot,
}

# Of gates these make gates: the result is piecewise constant because the operands are.
_OF_GATES = {*_MOVES, "tile", "not", "and", "or", "xor", "neg", "add", "sub", "mul", "select_n", "convert_element_type"}

_REASONS = {
    **dict.fromkeys(("exp", "exp2", "expm1", "log", "log1p"), "It is not homogeneous, as softmax and its kin are not."),
    **dict.fromkeys(("tanh", "logistic", "erf", "erf_inv", "sin", "cos"), "It is curved, not piecewise linear."),
    **dict.fromkeys(
        ("sqrt", "rsqrt", "cbrt", "pow"), "A root or power of an activation, as layer norm takes, is curved."
    ),
    "sort": "The order of activations has no slope of its own.",
}
