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


class _Made(NamedTuple):
    """What a value is made of.

    Attributes:
        reads_data: whether it depends on the inputs.
        leaves: of a value that does not, the parameter leaves that it is computed from.
        moved: whether it holds entries of one leaf as they are.
        products: of a value that does, the leaves of several long axes that it is a product with, entry by entry.
    """

    reads_data: bool = False
    leaves: frozenset[int] = frozenset()
    moved: bool = False
    products: frozenset[int] = frozenset()


_DATA = _Made(reads_data=True)


def kernel_leaves(program: Program) -> frozenset[int]:
    """Positions of the parameter leaves that are kernels, in any network, piecewise linear or not."""
    search = _Search(program.parameter_shapes)
    weights = [_Made(leaves=frozenset([i]), moved=True) for i in range(len(program.parameter_shapes))]
    inputs = [_DATA for _ in program.input_shapes]
    search.run(program.closed, program.arguments(weights, inputs, lambda value: _Made()))
    return frozenset(search.kernels)


class _Search:
    def __init__(self, shapes: Sequence[tuple[int, ...]]) -> None:
        self.kernels: set[int] = set()
        # a leaf along at most one axis can only scale or shift, unless it is contracted as it is
        self._matrices = frozenset(i for i, shape in enumerate(shapes) if sum(size > 1 for size in shape) > 1)

    def run(self, program: Any, values: Sequence[_Made], callers: tuple[Any, ...] = ()) -> list[_Made]:
        return walk(program, values, step=self._step, constant=lambda value: _Made(), callers=callers)

    def _step(self, equation: Equation, values: list[_Made]) -> list[_Made]:
        match equation.name:
            case "scan":
                return self._loop(equation, values)
            case "cond":
                inner = [self._inside(equation, branch, values[1:]) for branch in equation.params["branches"]]
                return [_either(made) for made in zip(*inner, strict=True)]
            case "dot_general":
                (contracted, _), _ = equation.params["dimension_numbers"]
                if contracted:
                    self._summed(values)
            case "conv_general_dilated":
                self._summed(values)
            case "reduce_sum":
                self.kernels |= values[0].products
            case "mul":
                return [_product(values, self._matrices)]
            case name if name in _MOVES:
                if _reads_data(values):  # also a lookup: data say which entries of a leaf
                    return [_DATA._replace(products=values[0].products) for _ in equation.outputs]
                return [values[0] for _ in equation.outputs]
        return [_combined(values) for _ in equation.outputs]

    def _summed(self, values: Sequence[_Made]) -> None:
        """Note the leaves that a product with activations is summed over."""
        if _reads_data(values):
            for made in (made for made in values if not made.reads_data):
                self.kernels |= made.leaves if made.moved else made.leaves & self._matrices

    def _loop(self, equation: Equation, values: list[_Made]) -> list[_Made]:
        operands = equation.loop_operands(values)
        carry = list(operands.carry)
        while True:
            inner = [*operands.constants, *carry, *operands.stacked]
            results = self._inside(equation, equation.params["jaxpr"], inner)
            after = [_either(pair) for pair in zip(carry, results, strict=False)]
            if after == carry:
                return results
            carry = after

    def _inside(self, equation: Equation, program: Any, values: Sequence[_Made]) -> list[_Made]:
        return self.run(program, values, (*equation.callers, equation.source))


def _reads_data(values: Sequence[_Made]) -> bool:
    return any(made.reads_data for made in values)


def _combined(values: Sequence[_Made]) -> _Made:
    """What results of an equation are made of that is neither a sum of products nor a move of entries."""
    if _reads_data(values):
        return _DATA
    return _Made(leaves=frozenset().union(*(made.leaves for made in values)))


def _product(values: Sequence[_Made], matrices: frozenset[int]) -> _Made:
    """What a product entry by entry is made of."""
    if not _reads_data(values):
        return _combined(values)
    return _DATA._replace(products=frozenset().union(*(made.leaves & matrices for made in values)))


def _either(values: Sequence[_Made]) -> _Made:
    """What a value is made of that may be any of several."""
    first, *others = values
    if all(made == first for made in others):
        return first
    joined = _combined(values)
    return joined._replace(products=frozenset().union(*(made.products for made in values)))
