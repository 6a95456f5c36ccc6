"""The table from primitive to path rule, and the walk through a network that reads it, for any `Algebra`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar, cast

import jax.numpy as jnp
import numpy as np

from pathjax._interpreter import gates, loops, sums
from pathjax._interpreter.algebra import INPUT, Algebra, Constant, Gate, PathSum, Structure, Undefined, Value
from pathjax._interpreter.context import (
    DECLARED,
    GATE,
    Context,
    GateMarker,
    Lift,
    Rule,
    at_point,
    compared_in,
    depends_on,
    points,
)
from pathjax._interpreter.jaxpr import Equation, Program, Refusal, UnsupportedPrimitive, evaluate, is_concrete, walk
from pathjax._interpreter.probes import slope_at_zero
from pathjax._interpreter.refusals import ANY_REASON, REASONS

__all__ = ["PATH_RULES", "Inspection", "Walk", "inspect", "interpret", "tied_leaves"]

P = TypeVar("P")

# What the result of a refused equation depends on: neither a weight nor x, so that its products are not refused too.
_AFTER_REFUSAL = frozenset([-2])


def interpret(
    program: Program,
    algebra: Algebra[P],
    weights: Sequence[P],
    inputs: P,
    *,
    points: Sequence[tuple[Sequence[Any], Any]] = (),
) -> P:
    """The sum over paths to each output (n, o).

    `weights` are the prefixes of each parameter leaf, `inputs` those of x. `points` are pairs of parameter leaves and x
    at which gates are evaluated. Raises UnsupportedPrimitive where paths are not defined.
    """
    walk = Walk(algebra)
    (output,) = walk.run(program.closed, _arguments(program, weights, inputs, points))
    return _output(output, algebra)


def tied_leaves(program: Program) -> frozenset[int]:
    """Positions of the parameter leaves that some path may meet more than once.

    Raises UnsupportedPrimitive where paths are not defined.
    """
    walk = Walk(Structure())
    walk.run(program.closed, _arguments(program, [None for _ in program.parameter_shapes], None, ()))
    return frozenset(walk.tied)


class Inspection(NamedTuple):
    """The layers in the order of the network, and every equation without a path rule."""

    layers: list[str]
    refusals: list[Refusal]


def inspect(program: Program) -> Inspection:
    """What a network is made of. The results of an equation without a rule are taken to be sums over paths."""
    refusals: list[Refusal] = []
    layers: dict[str, None] = {}
    walk = Walk(Structure(), refusals=refusals, layers=layers)
    walk.run(program.closed, _arguments(program, [None for _ in program.parameter_shapes], None, ()))
    return Inspection(list(layers), refusals)


@dataclass
class Walk:
    """One walk through a network, equation by equation, which reads the table of rules.

    Attributes:
        algebra: how sums over paths are represented.
        refusals: a list that collects the equations without a rule; with None the walk raises at the first.
        layers: collects the names of the layers, in the order of the network; None if they are not needed.
        tied: collects the positions of the parameter leaves that some path meets twice.
        slopes_at_zero: collects, for each call of a function with a custom derivative rule, by `id`, the derivative
            of max(x, 0) at 0 inside it.
    """

    algebra: Algebra[Any]
    refusals: list[Refusal] | None = None
    layers: dict[str, None] | None = None
    tied: set[int] = field(default_factory=set)
    slopes_at_zero: dict[int, float] = field(default_factory=dict)

    def run(self, program: Any, values: Sequence[Value], callers: tuple[Any, ...] = ()) -> list[Value]:
        """The results of a program; `callers` are the calls that it stands in, the outermost first."""
        return walk(
            program,
            values,
            step=self._step,
            constant=Constant,
            opaque=lambda equation: equation.name in DECLARED,
            enter=self._enter,
            callers=callers,
        )

    def _enter(self, call: Equation) -> None:
        """Record the derivative of max(x, 0) at 0 inside a function with a custom derivative rule."""
        self.slopes_at_zero[id(call.source)] = 0.0
        if not call.is_of_jax:
            try:
                self.slopes_at_zero[id(call.source)] = slope_at_zero(call)
            except UnsupportedPrimitive as error:
                self._refuse(call, error)

    def _step(self, equation: Equation, values: list[Value]) -> list[Value]:
        if self.layers is not None:
            self.layers.setdefault(equation.layer)
        try:
            return self._results(equation, values)
        except UnsupportedPrimitive as error:
            self._refuse(equation, error)
            return [PathSum(None, (), output.shape, _AFTER_REFUSAL) for output in equation.outputs]

    def _refuse(self, equation: Equation, error: UnsupportedPrimitive) -> None:
        if self.refusals is None:
            raise error
        is_unknown = equation.name not in PATH_RULES and equation.name not in REASONS
        self.refusals.append(Refusal(equation.layer, error, is_unknown))

    def _results(self, equation: Equation, values: list[Value]) -> list[Value]:
        """The results of an equation, on values of any kind."""
        if all(isinstance(value, Constant) for value in values):
            return _constants(equation, [value for value in values if isinstance(value, Constant)])
        context = Context(equation, self.algebra, self.tied, self.slopes_at_zero, self.run, _reads_input(values))
        try:
            results: Any = _rule(context, values)(context, values)
        except Undefined as error:
            raise context.refuse_undefined(error) from None
        if results is None:
            raise TypeError(f"The path rule of `{equation.name}` returned nothing; return results, or GATE.")
        given = [GATE for _ in equation.outputs] if isinstance(results, GateMarker) else results
        if len(given) != len(equation.outputs):
            raise TypeError(
                f"The path rule of `{equation.name}` returned {len(given)} results for {len(equation.outputs)} outputs."
            )
        if not any(isinstance(result, Lift | GateMarker) for result in given):
            # rules that walk a program inside the equation return complete values, real ones included
            return cast("list[Value]", list(given))
        by_sides = self.algebra.gates_by_sides and not isinstance(given[0], GateMarker)
        real = _sides(given, equation, values) if by_sides else _real(equation, values)
        depends, compared = depends_on(values), compared_in(values)
        return [
            _value(result, tuple(at_this_point[i] for at_this_point in real), output.shape, depends, compared)
            for i, (result, output) in enumerate(zip(given, equation.outputs, strict=True))
        ]


def _reads_input(values: Sequence[Value]) -> bool:
    """Whether any operand depends on something else than weights; results of refused equations may."""
    return any(name < 0 for name in depends_on(values))


def _value(
    result: Lift | Value | GateMarker,
    real: tuple[Any, ...],
    shape: tuple[int, ...],
    depends: frozenset[int],
    compared: frozenset[PathSum],
) -> Value:
    match result:
        case GateMarker():
            return Gate(real, shape, depends, compared)
        case Lift(prefixes, base, factor, infinite_fill):
            return PathSum(prefixes, real, shape, depends, base, factor, infinite_fill)
        case _:
            return result


def _arguments(
    program: Program, weights: Sequence[P], inputs: P, points: Sequence[tuple[Sequence[Any], Any]]
) -> list[Value]:
    shapes = [*program.parameter_shapes, program.input_shape]
    names = [*range(len(weights)), INPUT]
    reals = [[*leaves, x] for leaves, x in points]
    sums: list[Value] = [
        PathSum(prefixes, tuple(real[i] for real in reals), shapes[i], frozenset([names[i]]))
        for i, prefixes in enumerate([*weights, inputs])
    ]
    return program.arguments(sums[:-1], sums[-1:], Constant)


def _output(output: Value, algebra: Algebra[P]) -> P:
    match output:
        case PathSum(infinite_fill=None):
            return cast(P, output.prefixes)
        case PathSum():
            raise UnsupportedPrimitive(
                "No paths to the output: some of its entries are infinities that a mask or padding filled in. Take a "
                "maximum over these entries, or fill them with 0."
            )
        case Constant():
            return algebra.constant(output.value)
        case Gate():
            raise UnsupportedPrimitive(
                "No paths to the output: it is a comparison, which steps. Return the activations themselves."
            )


def _constants(equation: Equation, values: Sequence[Constant]) -> list[Value]:
    """The results on constants. If their entries are not known while tracing, the number that fills them is kept."""
    results = evaluate(equation, [value.value for value in values])
    number = gates.known_number(values[0]) if len(values) == 1 and equation.name in _KEEP_FILL else None
    return [
        Constant(result, None if number is None or is_concrete(result) else jnp.asarray(number).astype(result.dtype))
        for result in results
    ]


def _real(equation: Equation, values: Sequence[Value]) -> list[list[Any]]:
    """The network's own results at each point."""
    return [evaluate(equation, [at_point(value, point) for value in values]) for point in range(points(values))]


def _sides(results: Sequence[Any], equation: Equation, values: Sequence[Value]) -> list[list[Any]]:
    """1 and −1 for each result; constant multiples of another value have its sides, multiplied."""
    if all(isinstance(result, Lift) and result.base is not None for result in results):
        return _real(equation, values)
    return [
        [np.broadcast_to(np.asarray(side, output.dtype), output.shape) for output in equation.outputs]
        for side in (1, -1)
    ]


def _rule(context: Context, values: Sequence[Value]) -> Rule:
    name = context.equation.name
    if name in _CONSTANT_IF_OPERANDS_ARE and not any(isinstance(value, PathSum) for value in values):
        return gates.combine_gates
    if name in DECLARED:
        return gates.declared
    if name in PATH_RULES:
        return PATH_RULES[name]
    if name in _CONSTANT_IF_OPERANDS_ARE:
        raise context.refuse_gate()
    raise context.refuse(*REASONS.get(name, ANY_REASON))


_COMPARISONS = ("gt", "ge", "lt", "le", "eq", "ne")
_MOVES = ("broadcast_in_dim", "reshape", "transpose", "squeeze", "rev", "slice", "concatenate", "stack")
_COPIES = ("copy", "convert_element_type", "reduce_precision", "optimization_barrier")

PATH_RULES: dict[str, Rule] = {
    **dict.fromkeys(_COMPARISONS, gates.compare),
    **dict.fromkeys((*_MOVES, "split", "tile", "pad"), sums.shape_only),
    **dict.fromkeys(sums.ENTRIES, sums.indexed),
    **dict.fromkeys(_COPIES, sums.copy),
    **dict.fromkeys(("cumsum", "reduce_window_sum"), sums.add_running),
    **dict.fromkeys(("reduce_max", "reduce_min"), gates.extremum_of_axes),
    **dict.fromkeys(("reduce_window_max", "reduce_window_min"), gates.extremum_of_windows),
    **dict.fromkeys(("add", "add_any"), sums.add),
    **dict.fromkeys(("integer_pow", "square"), sums.power),
    "sign": gates.sign,
    "max": gates.maximum,
    "min": gates.minimum,
    "abs": gates.absolute,
    "clamp": gates.clamp,
    "select_n": gates.select,
    "neg": sums.negate,
    "sub": sums.subtract,
    "reduce_sum": sums.sum_of_axes,
    "mul": sums.multiply,
    "div": sums.divide,
    "dot_general": sums.dot,
    "conv_general_dilated": sums.conv,
    **dict.fromkeys(("scatter-add", "scatter-sub"), sums.scatter_add),
    "scatter-mul": sums.scatter_multiply,
    "scan": loops.scan,
    "cond": loops.cond,
}

# Piecewise constant if all operands are.
_CONSTANT_IF_OPERANDS_ARE = {
    *_MOVES, *_COPIES, "split", "tile", "not", "and", "or", "xor", "neg", "add", "sub", "mul",
}  # fmt: skip

# The result is filled with one number if the operand is.
_KEEP_FILL = {"broadcast_in_dim", "reshape", "convert_element_type", "copy"}
