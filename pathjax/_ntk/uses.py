"""Where a network uses its parameters, and what meets them there: the activations, and each output's cotangents.

At every equation that brings parameters and data together, the derivative of an output by the parameters is that of the
equation alone, pulled back from the output's cotangent there. One pass backward per output gives all of them, in any
network, piecewise linear or not; the Jacobian is never formed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from pathjax._interpreter.convolutions import channels_last
from pathjax._interpreter.jaxpr import Equation, Program, trace, walk
from pathjax.types import ApplyFn, Params

__all__ = ["Known", "Use", "Uses", "find", "pull"]

# Of one leaf these make its entries again, each once.
_MOVES = {"reshape", "transpose", "squeeze", "rev", "copy"}


class Origin(NamedTuple):
    """The equation that made a value, of which operands, and as which of its results."""

    equation: Equation
    operands: tuple[Known, ...]
    result: int


@dataclass(frozen=True, eq=False)
class Known:
    """A value without data in it.

    `leaves` are the positions of the parameter leaves that it depends on, `age` grows along the network. Where it holds
    the entries of one leaf, each once, `moves` takes an array like the leaf to one like the value.
    """

    value: Any
    leaves: frozenset[int] = frozenset()
    age: int = 0
    origin: Origin | None = None
    moves: Callable[[Any], Any] | None = None


Operand: TypeAlias = Known | None
"""What comes into an equation; None where data does."""


@dataclass(frozen=True)
class Use:
    """One equation where parameters meet data."""

    equation: Equation
    operands: tuple[Operand, ...]

    @property
    def leaves(self) -> frozenset[int]:
        """The parameter leaves that it uses."""
        return _leaves(self.operands)

    @property
    def results(self) -> list[int]:
        """Positions of the results that have derivatives."""
        return [i for i, out in enumerate(self.equation.outputs) if jnp.issubdtype(out.dtype, jnp.floating)]

    def pull(self, activations: Sequence[Any], cotangents: Sequence[Any]) -> list[tuple[Known, Any]]:
        """Cotangents (o, ...) of its operands, from those of its results at one example."""
        data = iter(activations)
        values = [next(data) if operand is None else operand.value for operand in self.operands]
        return _pulled(self.equation, self.operands, values, self.results, cotangents)


@dataclass
class Uses:
    """All uses of a network's parameters, in its order."""

    program: Program
    leaves: list[Any]
    found: dict[int, Use] = field(default_factory=dict)  # by the number of the step

    def meet(self, x: Any) -> tuple[list[list[Any]], list[list[Any]]]:
        """For each use its operands with data (n, ...) and the outputs' cotangents at its results (n, o, ...)."""
        met: tuple[list[list[Any]], list[list[Any]]] = channels_last(jax.vmap(self._of_example))(x)
        return met

    @property
    def output(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of the outputs of one example."""
        (aval,) = self.program.closed.out_avals
        return jax.ShapeDtypeStruct(aval.shape[1:], aval.dtype)

    def shapes(self, n: int) -> tuple[list[list[Any]], list[list[Any]]]:
        """Shapes and dtypes of what `meet` gives for n examples."""
        (o,) = self.output.shape
        activations, cotangents = [], []
        for use in self.found.values():
            data = (i for i, operand in enumerate(use.operands) if operand is None)
            before, after = use.equation.inputs, use.equation.outputs
            activations.append([jax.ShapeDtypeStruct((n, *before[i].shape), before[i].dtype) for i in data])
            cotangents.append([jax.ShapeDtypeStruct((n, o, *after[i].shape), after[i].dtype) for i in use.results])
        return activations, cotangents

    def _of_example(self, example: Any) -> tuple[list[list[Any]], list[list[Any]]]:
        shifts = {
            at: [jnp.zeros(use.equation.outputs[i].shape, use.equation.outputs[i].dtype) for i in use.results]
            for at, use in self.found.items()
        }

        def shifted(shifts: dict[int, list[Any]]) -> tuple[Any, dict[int, list[Any]]]:
            forward = _Forward(self.found, shifts)
            (output,) = _walk(self.program, forward.step, [*self.leaves, example[None]], constant=lambda array: array)
            return output[0], forward.activations

        output, back, activations = jax.vjp(shifted, shifts, has_aux=True)
        (cotangents,) = jax.vmap(back)(jnp.eye(output.size, dtype=output.dtype))
        return [activations[at] for at in self.found], [cotangents[at] for at in self.found]


def find(apply: ApplyFn, params: Params, x: Any) -> Uses:
    """The uses of the parameters in `apply(params, x)`, from the shapes of x alone."""
    program = trace(apply, params, jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype))
    uses = Uses(program, [jnp.asarray(leaf) for leaf in jax.tree.leaves(params)])
    known = [Known(leaf, frozenset([i]), moves=lambda array: array) for i, leaf in enumerate(uses.leaves)]
    _walk(program, _Search(uses.found).step, [*known, None], constant=Known)
    return uses


def pull(cotangents: Sequence[tuple[Known, Any]]) -> dict[int, Any]:
    """Cotangents (o, ...) of values without data, taken back to the leaves that these were made from, by position."""
    waiting: dict[Known, Any] = {}
    leaves: dict[int, Any] = {}
    _collect(waiting, cotangents)
    while waiting:
        # the youngest: all that was made of it has been taken back already
        known = max(waiting, key=lambda value: value.age)
        part = waiting.pop(known)
        if known.origin is None:
            (leaf,) = known.leaves
            leaves[leaf] = part
        else:
            equation, operands, result = known.origin
            values = [operand.value for operand in operands]
            _collect(waiting, _pulled(equation, operands, values, [result], [part]))
    return leaves


def _collect(sums: dict[Known, Any], parts: Sequence[tuple[Known, Any]]) -> None:
    for known, part in parts:
        sums[known] = sums[known] + part if known in sums else part


def _walk(program: Program, step: Any, arguments: Sequence[Any], *, constant: Callable[[Any], Any]) -> list[Any]:
    """Functions with a derivative rule of their own are one step, so that the rule holds."""
    return walk(
        program.closed,
        arguments,
        step=step,
        constant=constant,
        opaque=lambda equation: equation.has_own_derivative,
    )


@dataclass
class _Search:
    """The walk that finds the uses: data is None, everything else is known."""

    found: dict[int, Use]
    steps: int = 0

    def step(self, equation: Equation, operands: list[Operand]) -> list[Operand]:
        self.steps += 1
        known = [operand for operand in operands if operand is not None]
        if len(known) == len(operands):
            return list(_derived(equation, tuple(known), self.steps))
        use = Use(equation, tuple(operands))
        if use.leaves and use.results:
            self.found[self.steps] = use
        return [None for _ in equation.outputs]


@dataclass
class _Forward:
    """The walk that computes: notes what data comes into every use, and shifts what comes out."""

    found: dict[int, Use]
    shifts: dict[int, list[Any]]
    steps: int = 0
    activations: dict[int, list[Any]] = field(default_factory=dict)

    def step(self, equation: Equation, values: list[Any]) -> list[Any]:
        self.steps += 1
        results = equation.bind(*values)
        if (use := self.found.get(self.steps)) is None:
            return results
        pairs = zip(use.operands, values, strict=True)
        self.activations[self.steps] = [value for operand, value in pairs if operand is None]
        for i, shift in zip(use.results, self.shifts[self.steps], strict=True):
            results[i] = results[i] + shift
        return results


def _derived(equation: Equation, operands: tuple[Known, ...], age: int) -> list[Known]:
    """What an equation makes of values without data."""
    leaves = _leaves(operands)
    moves = _moves(equation, operands)

    def result(i: int, value: Any) -> Known:
        if not leaves or not jnp.issubdtype(jnp.result_type(value), jnp.floating):
            return Known(value)
        return Known(value, leaves, age, Origin(equation, operands, i), moves)

    return [result(i, value) for i, value in enumerate(equation.bind(*(operand.value for operand in operands)))]


def _moves(equation: Equation, operands: Sequence[Known]) -> Callable[[Any], Any] | None:
    before = operands[0].moves if len(operands) == 1 else None
    is_move = equation.name in _MOVES or (equation.name == "broadcast_in_dim" and _sizes_agree(equation))
    if before is None or not is_move:
        return None

    def moves(array: Any) -> Any:
        return equation.bind(before(array))[0]

    return moves


def _sizes_agree(equation: Equation) -> bool:
    return math.prod(equation.inputs[0].shape) == math.prod(equation.outputs[0].shape)


def _pulled(
    equation: Equation, operands: Sequence[Operand], values: Sequence[Any], wanted: Sequence[int], cotangents: Any
) -> list[tuple[Known, Any]]:
    """Cotangents (o, ...) of some of an equation's results, taken back to its operands that depend on parameters."""
    through = {i: operand for i, operand in enumerate(operands) if operand is not None and operand.leaves}

    def results(parameters: dict[int, Any]) -> list[Any]:
        made = equation.bind(*(parameters.get(i, value) for i, value in enumerate(values)))
        return [made[i] for i in wanted]

    _, back = jax.vjp(results, {i: values[i] for i in through})
    (parts,) = jax.vmap(back)(list(cotangents))
    return [(operand, parts[i]) for i, operand in through.items()]


def _leaves(operands: Sequence[Operand]) -> frozenset[int]:
    return frozenset().union(*(operand.leaves for operand in operands if operand is not None))
