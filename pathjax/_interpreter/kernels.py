"""Which parameter leaves are kernels: they multiply activations, and the products are summed over.

Biases and positional embeddings are added, scales multiply entry by entry, and lookups pick rows; these are no kernels,
however many axes they have. A walk through the program that follows, for every value, the leaves that it is made of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from pathjax._interpreter.jaxpr import Equation, Program, walk

__all__ = ["kernel_leaves"]

# Primitives whose result has entries of their first operand in other places.
_MOVES = {
    "broadcast_in_dim", "convert_element_type", "copy", "dynamic_slice", "expand_dims", "gather", "reduce_precision",
    "reshape", "rev", "slice", "split", "squeeze", "tile", "transpose", "optimization_barrier",
}  # fmt: skip


class _Leaf(NamedTuple):
    """A parameter leaf, or in a loop over its first axis one entry of it.

    Attributes:
        position: among the parameter leaves.
        axes: the number of its axes.
        long_axes: the number of those of more than one entry.
    """

    position: int
    axes: int
    long_axes: int


class _Product(NamedTuple):
    """Activations times a leaf, entry by entry, with the activations repeated along an axis of the leaf.

    Attributes:
        position: of the leaf, among the parameter leaves.
        axes: the axes of the product along which the leaf's entries differ; None where that is not known.
    """

    position: int
    axes: frozenset[int] | None


class _Made(NamedTuple):
    """What a value is made of.

    Attributes:
        axes: the axes along which its entries may differ.
        reads_data: whether it depends on the inputs.
        leaves: of a value that does not, the parameter leaves that it is computed from.
        products: of a value that does, the products that it holds.
    """

    axes: frozenset[int] = frozenset()
    reads_data: bool = False
    leaves: frozenset[_Leaf] = frozenset()
    products: frozenset[_Product] = frozenset()


def kernel_leaves(program: Program) -> frozenset[int]:
    """Positions of the parameter leaves that are kernels, in any network, piecewise linear or not."""
    search = _Search()
    weights = [
        _Made(_long_axes(shape), leaves=frozenset([_Leaf(i, len(shape), len(_long_axes(shape)))]))
        for i, shape in enumerate(program.parameter_shapes)
    ]
    inputs = [_Made(_long_axes(shape), reads_data=True) for shape in program.input_shapes]
    search.run(program.closed, program.arguments(weights, inputs, _constant))
    return frozenset(search.kernels)


class _Search:
    def __init__(self) -> None:
        self.kernels: set[int] = set()

    def run(self, program: Any, values: Sequence[_Made], callers: tuple[Any, ...] = ()) -> list[_Made]:
        return walk(program, values, step=self._step, constant=_constant, callers=callers)

    def _step(self, equation: Equation, values: list[_Made]) -> list[_Made]:
        match equation.name:
            case "scan":
                return self._scan(equation, values)
            case "while":
                return self._while(equation, values)
            case "cond":
                inner = [self._inside(equation, branch, values[1:]) for branch in equation.params["branches"]]
                return [_either(made) for made in zip(*inner, strict=True)]
            case "dot_general":
                (contracted, _), _ = equation.params["dimension_numbers"]
                if contracted:
                    self._note_summed(values)
            case "conv_general_dilated" | "ragged_dot" | "ragged_dot_general":
                self._note_summed(values)
            case "reduce_sum":
                summed = frozenset(equation.params["axes"])
                self.kernels |= {position for position, axes in values[0].products if axes is None or axes & summed}
            case "mul" if _reads_data(values):
                return [_product(values, _long_axes(equation.outputs[0].shape))]
            case name if name in _MOVES:
                return _moved(equation, values)
        return [_combined(values, _long_axes(output.shape)) for output in equation.outputs]

    def _note_summed(self, values: Sequence[_Made]) -> None:
        """Note the leaves of the weights that are summed over with activations."""
        if _reads_data(values):
            for made in (made for made in values if made.leaves):
                self.kernels |= _directions(made.leaves)

    def _scan(self, equation: Equation, values: list[_Made]) -> list[_Made]:
        operands = equation.loop_operands(values)
        steps = [_entry(made) for made in operands.stacked]

        def once(carry: Sequence[_Made]) -> list[_Made]:
            return self._inside(equation, equation.params["jaxpr"], [*operands.constants, *carry, *steps])

        carry, results = _repeated(once, list(operands.carry))
        return [*carry, *(_stacked(made, equation.params["length"] > 1) for made in results[len(carry) :])]

    def _while(self, equation: Equation, values: list[_Made]) -> list[_Made]:
        skipped = equation.params["cond_nconsts"]
        constants = values[skipped : skipped + equation.params["body_nconsts"]]

        def once(carry: Sequence[_Made]) -> list[_Made]:
            return self._inside(equation, equation.params["body_jaxpr"], [*constants, *carry])

        return _repeated(once, values[skipped + len(constants) :])[0]

    def _inside(self, equation: Equation, program: Any, values: Sequence[_Made]) -> list[_Made]:
        return self.run(program, values, (*equation.callers, equation.source))


def _repeated(once: Any, carry: list[_Made]) -> tuple[list[_Made], list[_Made]]:
    """What the carried values of a loop are made of after any number of steps, and the results of the last step."""
    while True:
        results = once(carry)
        after = [_either(pair) for pair in zip(carry, results, strict=False)]
        if after == carry:
            return carry, results
        carry = after


def _entry(made: _Made) -> _Made:
    """What one entry along the first axis of a value is made of."""
    is_long = 0 in made.axes
    leaves = frozenset(_Leaf(position, axes - 1, long - is_long) for position, axes, long in made.leaves)
    return made._replace(axes=frozenset(axis - 1 for axis in made.axes - {0}), leaves=leaves, products=frozenset())


def _stacked(made: _Made, is_long: bool) -> _Made:
    """What such values along a new first axis are made of."""
    leaves = frozenset(_Leaf(position, axes + 1, long + is_long) for position, axes, long in made.leaves)
    axes = frozenset(axis + 1 for axis in made.axes) | (frozenset([0]) if is_long else frozenset())
    return made._replace(axes=axes, leaves=leaves, products=frozenset())


def _directions(leaves: frozenset[_Leaf]) -> set[int]:
    """The leaves of a kernel that give its direction, not its size along one axis, as the g of weight norm does."""
    matrices = {leaf for leaf in leaves if leaf.long_axes > 1}
    most_axes = max(leaf.axes for leaf in leaves)
    chosen = matrices or {leaf for leaf in leaves if leaf.axes == most_axes}
    return {leaf.position for leaf in chosen}


def _constant(value: Any) -> _Made:
    return _Made(_long_axes(getattr(value, "shape", ())))


def _long_axes(shape: Sequence[int]) -> frozenset[int]:
    """The axes of more than one entry."""
    return frozenset(axis for axis, size in enumerate(shape) if size > 1)


def _reads_data(values: Sequence[_Made]) -> bool:
    return any(made.reads_data for made in values)


def _combined(values: Sequence[_Made], axes: frozenset[int]) -> _Made:
    """What results of an equation are made of that is neither a sum of products nor a move of entries."""
    if _reads_data(values):
        return _Made(axes, reads_data=True)
    return _Made(axes, leaves=frozenset().union(*(made.leaves for made in values)))


def _product(values: Sequence[_Made], axes: frozenset[int]) -> _Made:
    """What activations times another value, entry by entry, are made of.

    In a layer that is written as a product and a sum, activations are repeated for each output; a scale multiplies
    every entry by its own number.
    """
    data = [made for made in values if made.reads_data]
    weights = [made for made in values if made.leaves]
    if len(data) == 1 and len(weights) == 1 and weights[0].axes - data[0].axes:
        products = frozenset(_Product(leaf, weights[0].axes) for leaf in _directions(weights[0].leaves))
        return _Made(axes, reads_data=True, products=products)
    held = frozenset().union(*(made.products for made in data)) if len(data) == 1 and not weights else frozenset()
    return _Made(axes, reads_data=True, products=held)


def _moved(equation: Equation, values: Sequence[_Made]) -> list[_Made]:
    """What the results of an equation are made of that moves entries of its first operand to other places."""
    first = values[0]
    if equation.name == "broadcast_in_dim":
        places, shape = equation.params["broadcast_dimensions"], equation.inputs[0].shape
        axes = [frozenset(places[axis] for axis in first.axes if shape[axis] > 1)]
    elif equation.name == "transpose":
        axes = [frozenset(i for i, axis in enumerate(equation.params["permutation"]) if axis in first.axes)]
    else:
        axes = [_long_axes(output.shape) for output in equation.outputs]
    if not _reads_data(values):
        return [first._replace(axes=each) for each in axes]
    # also a lookup, where data say which entries of a leaf
    products = frozenset(_Product(position, None) for position, _ in first.products)
    return [_Made(each, reads_data=True, products=products) for each in axes]


def _either(values: Sequence[_Made]) -> _Made:
    """What a value is made of that may be any of several."""
    first, *others = values
    if all(made == first for made in others):
        return first
    joined = _combined(values, frozenset().union(*(made.axes for made in values)))
    return joined._replace(products=frozenset().union(*(made.products for made in values)))
