"""Where a network uses its parameters, and the activations and each output's cotangents at these places.

At every equation whose operands depend on parameters and on data, the derivative of an output by the parameters is that
of the equation alone, applied to the output's cotangent at its results. One pass backward per output gives all
cotangents, in any network, piecewise linear or not; the Jacobian is never formed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias, cast

import jax
import jax.numpy as jnp

from pathjax._interpreter.convolutions import channels_last
from pathjax._interpreter.jaxpr import Equation, Program, walk
from pathjax._interpreter.traced import TracedNetwork
from pathjax.types import Params

__all__ = ["Arrays", "Known", "Use", "Uses", "find", "pull"]

# Primitives whose result has the entries of their operand, each once or as often as every other, in other places.
_MOVES = {"reshape", "transpose", "squeeze", "rev", "copy", "broadcast_in_dim"}

# Primitives to whose result a bias is added, by which of these primitives.
_LAYERS, _ADDITIONS = {"dot_general", "conv_general_dilated"}, {"add", "add_any"}


class Origin(NamedTuple):
    """The equation that made a value, of which operands, and as which of its results."""

    equation: Equation
    operands: tuple[Known, ...]
    result: int


@dataclass(frozen=True, eq=False)
class Known:
    """A value that does not depend on data.

    Attributes:
        value: the array.
        leaves: the positions of the parameter leaves that it depends on.
        age: the number of the step that made it; it grows along the network.
        origin: the equation that made it, None for a leaf or a constant.
        moves: where the value holds the entries of one leaf, each equally often, what takes an array like the leaf to
            one like the value; None otherwise.
    """

    value: Any
    leaves: frozenset[int] = frozenset()
    age: int = 0
    origin: Origin | None = None
    moves: Callable[[Any], Any] | None = None


Operand: TypeAlias = Known | None
"""An operand of an equation; None where it depends on data."""


@dataclass(frozen=True)
class Use:
    """One equation whose operands depend on parameters and on data.

    Attributes:
        equation: the equation.
        operands: its operands.
        bias: the addition of a bias to the result of a layer, where nothing else reads the result. The cotangents are
            then those of both equations.
    """

    equation: Equation
    operands: tuple[Operand, ...]
    bias: Use | None = None

    @property
    def leaves(self) -> frozenset[int]:
        """The parameter leaves that it uses."""
        return _leaves(self.operands) | (frozenset() if self.bias is None else self.bias.leaves)

    @property
    def weights(self) -> list[Known]:
        """Its operands that do not depend on data."""
        return [operand for operand in self.operands if operand is not None]

    @property
    def results(self) -> list[int]:
        """Positions of the results that have derivatives."""
        return [i for i, out in enumerate(self.equation.outputs) if jnp.issubdtype(out.dtype, jnp.floating)]

    def pull(self, activations: Sequence[Any], cotangents: Sequence[Any]) -> list[tuple[Known, Any]]:
        """Cotangents (o, ...) of its operands, from those of its results at one example."""
        data = iter(activations)
        values = [next(data) if operand is None else operand.value for operand in self.operands]
        parts = _pulled(self.equation, self.operands, values, self.results, cotangents)
        # the derivative of an addition does not depend on what the bias is added to
        return parts if self.bias is None else parts + self.bias.pull([cotangents[0][0]], cotangents)


class Arrays(NamedTuple):
    """For each use a list of arrays.

    Attributes:
        activations: (n, ...) its operands that depend on data.
        cotangents: (n, o, ...) those of the outputs at its results.
    """

    activations: list[list[Any]]
    cotangents: list[list[Any]]


@dataclass
class Uses:
    """All uses of a network's parameters.

    Attributes:
        program: the network for one example.
        leaves: the parameters.
        by_step: the uses, in the order of the network, by the number of their step.
        constant_output: the outputs, where they do not depend on data; None otherwise.
    """

    program: Program
    leaves: list[Any]
    by_step: dict[int, Use] = field(default_factory=dict)
    constant_output: Known | None = None

    def arrays(self, x: Any) -> Arrays:
        """The activations and cotangents of a batch."""
        return cast(Arrays, channels_last(jax.vmap(self._of_example))(x))

    def is_moved(self, known: Known) -> bool:
        """Whether the value holds the entries of one leaf, each once."""
        return known.moves is not None and all(self.leaves[i].size == jnp.size(known.value) for i in known.leaves)

    @property
    def output_leaves(self) -> frozenset[int]:
        """The parameter leaves that the outputs depend on, where they do not depend on data."""
        return frozenset() if self.constant_output is None else self.constant_output.leaves

    def jacobians_of_constant_output(self) -> dict[int, Any]:
        """The Jacobian (o, ...) by each leaf of outputs that do not depend on data."""
        (o,), known = self.output.shape, self.constant_output
        assert known is not None
        return pull([(known, jnp.eye(o, dtype=self.output.dtype)[:, None])])

    @property
    def output(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of the outputs of one example."""
        (aval,) = self.program.closed.out_avals
        return jax.ShapeDtypeStruct(aval.shape[1:], aval.dtype)

    def shapes(self, n: int) -> Arrays:
        """Shapes and dtypes of what `arrays` gives for n examples."""
        (o,) = self.output.shape
        activations, cotangents = [], []
        for use in self.by_step.values():
            data = (i for i, operand in enumerate(use.operands) if operand is None)
            before, after = use.equation.inputs, use.equation.outputs
            activations.append([jax.ShapeDtypeStruct((n, *before[i].shape), before[i].dtype) for i in data])
            cotangents.append([jax.ShapeDtypeStruct((n, o, *after[i].shape), after[i].dtype) for i in use.results])
        return Arrays(activations, cotangents)

    def _of_example(self, example: Any) -> Arrays:
        # add a zero to each result: the derivative by that zero is the cotangent there
        shifts = {
            step: [jnp.zeros(use.equation.outputs[i].shape, use.equation.outputs[i].dtype) for i in use.results]
            for step, use in self.by_step.items()
        }

        def shifted(shifts: dict[int, list[Any]]) -> tuple[Any, dict[int, list[Any]]]:
            forward = _Forward(self.by_step, shifts)
            (output,) = _walk(
                self.program,
                forward.step,
                self.leaves,
                [leaf[None] for leaf in jax.tree.leaves(example)],
                constant=lambda array: array,
            )
            return output[0], forward.activations

        output, back, activations = jax.vjp(shifted, shifts, has_aux=True)
        (cotangents,) = jax.vmap(back)(jnp.eye(output.size, dtype=output.dtype))
        steps = list(self.by_step)
        return Arrays([activations[step] for step in steps], [cotangents[step] for step in steps])


def find(network: TracedNetwork, params: Params, x: Any) -> Uses:
    """The uses of the parameters in `network(params, x)`, from the shapes of x alone."""
    example = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype), x)
    program = network.program(example, params)
    uses = Uses(program, [jnp.asarray(leaf) for leaf in jax.tree.leaves(params)])
    known = [Known(leaf, frozenset([i]), moves=lambda array: array) for i, leaf in enumerate(uses.leaves)]
    search = _Search(uses.by_step)
    (output,) = _walk(program, search.step, known, [Data(0) for _ in program.input_shapes], constant=Known)
    if isinstance(output, Known):
        uses.constant_output = output
    else:
        search.note_readers([output])
    search.join_biases()
    return uses


def pull(cotangents: Sequence[tuple[Known, Any]]) -> dict[int, Any]:
    """Cotangents (o, ...) of values without data, taken back to the leaves that these were made from, by position."""
    waiting: dict[Known, Any] = {}
    leaves: dict[int, Any] = {}
    _collect(waiting, cotangents)
    while waiting:
        # the value made last: all cotangents that reach it have been summed already
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


def _walk(
    program: Program, step: Any, weights: Sequence[Any], inputs: Sequence[Any], *, constant: Callable[[Any], Any]
) -> list[Any]:
    """Interpret the program; a call with a derivative rule of its own is one step, so that the rule holds."""
    return walk(
        program.closed,
        program.arguments(weights, inputs, constant),
        step=step,
        constant=constant,
        opaque=lambda equation: equation.has_own_derivative,
    )


class Data(NamedTuple):
    """A value that depends on data, by the number of the step that made it."""

    step: int


@dataclass
class _Search:
    """The steps that find the uses, and which steps read what each has made."""

    by_step: dict[int, Use]
    steps: int = 0
    readers: dict[int, list[int]] = field(default_factory=dict)

    def step(self, equation: Equation, operands: list[Known | Data]) -> Sequence[Known | Data]:
        self.steps += 1
        known = [operand for operand in operands if isinstance(operand, Known)]
        if len(known) == len(operands):
            return _derived(equation, tuple(known), self.steps)
        self.note_readers(operands)
        use = Use(equation, tuple(operand if isinstance(operand, Known) else None for operand in operands))
        if use.leaves and use.results:
            self.by_step[self.steps] = use
        return [Data(self.steps) for _ in equation.outputs]

    def note_readers(self, values: Sequence[Known | Data]) -> None:
        for value in values:
            if isinstance(value, Data):
                self.readers.setdefault(value.step, []).append(self.steps)

    def join_biases(self) -> None:
        """Make the addition of a bias to the result of a layer one use with the layer."""
        for step, layer in list(self.by_step.items()):
            readers = self.readers.get(step, [])
            bias = self.by_step.get(readers[0]) if len(readers) == 1 else None
            if bias is not None and _is_bias(layer, bias):
                self.by_step[step] = dataclasses.replace(layer, bias=bias)
                del self.by_step[readers[0]]


def _is_bias(layer: Use, addition: Use) -> bool:
    return (
        layer.equation.name in _LAYERS
        and addition.equation.name in _ADDITIONS
        and layer.equation.outputs == addition.equation.outputs
    )


@dataclass
class _Forward:
    """The steps that compute: they note the activations that come into every use, and shift its results."""

    by_step: dict[int, Use]
    shifts: dict[int, list[Any]]
    steps: int = 0
    activations: dict[int, list[Any]] = field(default_factory=dict)

    def step(self, equation: Equation, values: list[Any]) -> list[Any]:
        self.steps += 1
        results = equation.bind(*values)
        if (use := self.by_step.get(self.steps)) is None:
            return results
        pairs = zip(use.operands, values, strict=True)
        self.activations[self.steps] = [value for operand, value in pairs if operand is None]
        for i, shift in zip(use.results, self.shifts[self.steps], strict=True):
            results[i] = results[i] + shift
        return results


def _derived(equation: Equation, operands: tuple[Known, ...], age: int) -> list[Known]:
    """The results of an equation whose operands do not depend on data."""
    leaves = _leaves(operands)
    moves = _moves(equation, operands)

    def result(i: int, value: Any) -> Known:
        if not leaves or not jnp.issubdtype(jnp.result_type(value), jnp.floating):
            return Known(value)
        return Known(value, leaves, age, Origin(equation, operands, i), moves)

    return [result(i, value) for i, value in enumerate(equation.bind(*(operand.value for operand in operands)))]


def _moves(equation: Equation, operands: Sequence[Known]) -> Callable[[Any], Any] | None:
    before = operands[0].moves if len(operands) == 1 else None
    if before is None or equation.name not in _MOVES:
        return None

    def moves(array: Any) -> Any:
        return equation.bind(before(array))[0]

    return moves


def _pulled(
    equation: Equation, operands: Sequence[Operand], values: Sequence[Any], wanted: Sequence[int], cotangents: Any
) -> list[tuple[Known, Any]]:
    """Cotangents (o, ...) of some of an equation's results, taken back to its operands that depend on parameters."""
    through = {i: operand for i, operand in enumerate(operands) if operand is not None and operand.leaves}

    def results(parameters: dict[int, Any]) -> list[Any]:
        all_results = equation.bind(*(parameters.get(i, value) for i, value in enumerate(values)))
        return [all_results[i] for i in wanted]

    _, back = jax.vjp(results, {i: values[i] for i in through})
    (parts,) = jax.vmap(back)(list(cotangents))
    return [(operand, parts[i]) for i, operand in through.items()]


def _leaves(operands: Sequence[Operand]) -> frozenset[int]:
    return frozenset().union(*(operand.leaves for operand in operands if operand is not None))
