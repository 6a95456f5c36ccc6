"""Rules per primitive: from where the examples lie in the operands to where they lie in the results.

`examples` walks the network with these rules, to refuse what mixes the examples of a batch.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from pathjax._interpreter.jaxpr import Equation, UnsupportedPrimitive

__all__ = ["EXAMPLE_RULES", "BatchAxis", "ExampleContext", "NoBatch", "Placement", "elementwise"]


class BatchAxis(NamedTuple):
    """The examples of a batch of n lie along `axis`: index i along it belongs to example (i // inner) mod n."""

    axis: int
    inner: int = 1


class NoBatch(NamedTuple):
    """The array depends on no example. Along each of `constant_axes` all its entries are equal."""

    constant_axes: frozenset[int] = frozenset()


Placement: TypeAlias = BatchAxis | NoBatch


@dataclass
class ExampleContext:
    """What a rule works with.

    Attributes:
        equation: the equation.
        placements: where the examples lie in each operand.
        examples: the number of examples n.
        walk: the placements of a program's results, given those of its arguments and the calls that it stands in.
    """

    equation: Equation
    placements: Sequence[Placement]
    examples: int
    walk: Callable[[Any, Sequence[Placement], tuple[Any, ...]], list[Placement]]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shape of each operand."""
        return [tuple(operand.shape) for operand in self.equation.inputs]

    def joined(self, placements: Sequence[Placement]) -> Placement:
        """The placement of arrays that are combined axis by axis.

        Refuses two different batch axes, and an array without a batch that varies along the batch axis of another.
        """
        batch_axes = {placement for placement in placements if isinstance(placement, BatchAxis)}
        without_batch = [placement for placement in placements if isinstance(placement, NoBatch)]
        if not batch_axes:
            return NoBatch(frozenset.intersection(*(placement.constant_axes for placement in without_batch)))
        batch_axis = next(iter(batch_axes))
        if len(batch_axes) > 1 or any(batch_axis.axis not in placement.constant_axes for placement in without_batch):
            raise self.refuse_mixing()
        return batch_axis

    def refuse_mixing(self) -> UnsupportedPrimitive:
        return self.equation.refuse(
            "It mixes the examples of a batch, or tells them apart by their position, as batch statistics do; paths "
            "are those of one example.",
            "Let every example go through the network alone, with running statistics for instance.",
        )

    def acted_along(self, placement: Placement, axes: Sequence[Any]) -> Placement:
        """The placement after an operation along `axes`, integers of Python or NumPy.

        Refuses a batch axis among them; an array without a batch is no longer known to be constant along them.
        """
        if isinstance(placement, NoBatch):
            return NoBatch(placement.constant_axes.difference(axes))
        if placement.axis in axes:
            raise self.refuse_mixing()
        return placement

    def walk_inside(self, program: Any, placements: Sequence[Placement]) -> list[Placement]:
        """The placements of the results of a program that the equation holds."""
        return self.walk(program, placements, (*self.equation.callers, self.equation.source))


ExampleRule: TypeAlias = Callable[[ExampleContext], "Placement | list[Placement]"]


def _renumbered(placement: Placement, new_axes: dict[int, int]) -> Placement:
    """The placement after axes are renumbered, old to new. Constant axes without a new number are dropped."""
    if isinstance(placement, BatchAxis):
        return placement._replace(axis=new_axes[placement.axis])
    return NoBatch(frozenset(new_axes[axis] for axis in placement.constant_axes if axis in new_axes))


def elementwise(context: ExampleContext) -> Placement:
    """Entrywise operations, where scalars and axes of size 1 are broadcast.

    Also what stands in for a missing rule: the path rules refuse other primitives that change shapes.
    """
    shape = context.equation.outputs[0].shape
    arrays = [
        (placement, operand_shape)
        for placement, operand_shape in zip(context.placements, context.shapes, strict=True)
        if operand_shape
    ]
    if (shape and not arrays) or any(len(operand_shape) != len(shape) for _, operand_shape in arrays):
        return NoBatch()
    scalars = NoBatch(frozenset(range(len(shape))))
    return context.joined([scalars, *(_broadcast_to(placement, old, shape) for placement, old in arrays)])


def _broadcast_to(placement: Placement, old: Sequence[int], new: Sequence[int]) -> Placement:
    """The placement after axes of size 1 are broadcast from shape `old` to shape `new`."""
    if isinstance(placement, BatchAxis):
        return placement
    broadcast = {axis for axis, (before, after) in enumerate(zip(old, new, strict=True)) if before != after}
    return NoBatch(placement.constant_axes | broadcast)


def _same_placements(context: ExampleContext) -> list[Placement]:
    """Each result is the operand at its position."""
    return list(context.placements)


def _broadcast_in_dim(context: ExampleContext) -> Placement:
    (placement, *_), (shape, *_) = context.placements, context.shapes
    new_axes = context.equation.params["broadcast_dimensions"]
    renumbered = _renumbered(placement, dict(enumerate(map(int, new_axes))))
    if isinstance(renumbered, BatchAxis):
        return renumbered
    sizes = context.equation.outputs[0].shape
    broadcast = {
        axis for axis in range(len(sizes)) if axis not in new_axes or shape[list(new_axes).index(axis)] != sizes[axis]
    }
    return NoBatch(renumbered.constant_axes | broadcast)


def _reshape(context: ExampleContext) -> Placement:
    """Raveled entries keep their order, so the stride from one example to the next, in entries, is unchanged."""
    (placement,), (shape,) = context.placements, context.shapes
    order = context.equation.params["dimensions"] or range(len(shape))
    placement = _renumbered(placement, {axis: new for new, axis in enumerate(order)})
    shape = tuple(shape[axis] for axis in order)
    sizes = context.equation.outputs[0].shape
    if isinstance(placement, NoBatch):
        return _reshaped_constant_axes(placement, shape, sizes)
    example_stride = placement.inner * _entries(shape[placement.axis + 1 :])
    axis_stride = 1
    for axis, size in reversed(list(enumerate(sizes))):
        inner, remainder = divmod(example_stride, axis_stride)
        if not remainder and inner and max(size, 1) % (inner * context.examples) == 0:
            return BatchAxis(axis, inner)
        axis_stride *= max(size, 1)
    raise context.refuse_mixing()


def _reshaped_constant_axes(placement: NoBatch, old: Sequence[int], new: Sequence[int]) -> NoBatch:
    """A constant axis stays constant if its size and its stride are unchanged; an array of one number is constant."""
    if len(placement.constant_axes) == len(old):
        return NoBatch(frozenset(range(len(new))))
    sizes_and_strides = {(old[axis], _entries(old[axis + 1 :])) for axis in placement.constant_axes}
    return NoBatch(
        frozenset(axis for axis, size in enumerate(new) if (size, _entries(new[axis + 1 :])) in sizes_and_strides)
    )


def _entries(sizes: Sequence[int]) -> int:
    """The number of entries of an array of these sizes, where a size of 0 counts as 1."""
    return math.prod(max(size, 1) for size in sizes)


def _transpose(context: ExampleContext) -> Placement:
    permutation = context.equation.params["permutation"]
    return _renumbered(context.placements[0], {int(axis): new for new, axis in enumerate(permutation)})


def _removes_axes(parameter: str) -> ExampleRule:
    """The rule of a primitive that reduces over, or squeezes, the axes that a parameter names."""

    def rule(context: ExampleContext) -> Placement:
        removed = context.equation.params[parameter]
        kept = [axis for axis in range(len(context.shapes[0])) if axis not in removed]
        placement = context.acted_along(context.placements[0], removed)
        return _renumbered(placement, {axis: new for new, axis in enumerate(kept)})

    return rule


def _acts_along(parameter: str) -> ExampleRule:
    """The rule of a primitive that acts along the axes that a parameter names, and keeps all axes."""

    def rule(context: ExampleContext) -> Placement:
        axes = context.equation.params[parameter]
        placement = context.joined(context.placements)
        return context.acted_along(placement, axes if isinstance(axes, Sequence) else [axes])

    return rule


def _slice(context: ExampleContext) -> Placement:
    """The batch axis must be kept whole."""
    sizes = zip(context.shapes[0], context.equation.outputs[0].shape, strict=True)
    return context.acted_along(
        context.placements[0], [axis for axis, (before, after) in enumerate(sizes) if before != after]
    )


def _tile(context: ExampleContext) -> Placement:
    """Copies along the batch axis repeat all examples in order, which `BatchAxis` allows."""
    return context.placements[0]


def _pad(context: ExampleContext) -> Placement:
    padding = context.equation.params["padding_config"]
    return context.acted_along(context.placements[0], [axis for axis, widths in enumerate(padding) if any(widths)])


def _reduce_window(context: ExampleContext) -> Placement:
    params = context.equation.params
    names = ("window_dimensions", "window_strides", "base_dilation")
    windowed = [axis for name in names for axis, size in enumerate(params[name]) if size != 1]
    padded = [axis for axis, widths in enumerate(params["padding"]) if any(widths)]
    return context.acted_along(context.placements[0], [*windowed, *padded])


def _dot_general(context: ExampleContext) -> Placement:
    """The axes of the result are the shared (batched) ones, then the left operand's free ones, then the right's."""
    contracted, batched = context.equation.params["dimension_numbers"]
    in_result: list[Placement] = []
    free_before, rank = 0, len(context.equation.outputs[0].shape)
    operands = zip(context.placements, context.shapes, contracted, batched, strict=True)
    for placement, shape, contracted_axes, shared in operands:
        free = [axis for axis in range(len(shape)) if axis not in (*contracted_axes, *shared)]
        # for each axis of the result the operand's axis, None for free axes of the other operand
        sources = [*shared, *[None] * free_before, *free]
        new_axes = {axis: new for new, axis in enumerate(sources) if axis is not None}
        renumbered = _renumbered(context.acted_along(placement, contracted_axes), new_axes)
        if isinstance(renumbered, NoBatch):
            axes_of_other_operand = frozenset(range(rank)) - set(new_axes.values())
            renumbered = NoBatch(renumbered.constant_axes | axes_of_other_operand)
        in_result.append(renumbered)
        free_before += len(free)
    return context.joined(in_result)


def _conv(context: ExampleContext) -> Placement:
    images, kernels = context.placements
    numbers = context.equation.params["dimension_numbers"]
    if isinstance(kernels, BatchAxis) or (isinstance(images, BatchAxis) and images.axis != numbers.lhs_spec[0]):
        raise context.refuse_mixing()
    return _renumbered(images, {numbers.lhs_spec[0]: numbers.out_spec[0]})


def _gather(context: ExampleContext) -> Placement:
    (placement, indices), (shape, *_) = context.placements, context.shapes
    params = context.equation.params
    numbers, slice_sizes = params["dimension_numbers"], params["slice_sizes"]
    removed = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    if isinstance(placement, BatchAxis) and placement.axis in numbers.operand_batching_dims:
        # each example is indexed by its own row of `indices`; the rows must not depend on the example's position
        row_axis = numbers.start_indices_batching_dims[numbers.operand_batching_dims.index(placement.axis)]
        rank = len(context.equation.outputs[0].shape)
        index_axes = [axis for axis in range(rank) if axis not in numbers.offset_dims]
        context.joined([BatchAxis(int(row_axis)), indices])
        return placement._replace(axis=index_axes[row_axis])
    if isinstance(indices, BatchAxis):
        return NoBatch()  # an index that depends on x has no path rule
    cut = [axis for axis, size in enumerate(slice_sizes) if axis in removed or size != shape[axis]]
    context.acted_along(placement, cut)
    kept = [axis for axis in range(len(shape)) if axis not in removed]
    return _renumbered(placement, dict(zip(kept, map(int, sorted(numbers.offset_dims)), strict=True)))


def _scatter(context: ExampleContext) -> Placement:
    operand, indices, updates = context.placements
    if isinstance(indices, BatchAxis):
        return NoBatch()  # an index that depends on x has no path rule
    shape, _, update_shape = context.shapes
    numbers = context.equation.params["dimension_numbers"]
    indexed = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
    window = [axis for axis in range(len(shape)) if axis not in indexed]
    operand_axes = dict(zip(map(int, sorted(numbers.update_window_dims)), window, strict=True))
    context.acted_along(updates, [axis for axis in range(len(update_shape)) if axis not in operand_axes])
    placement = context.joined([operand, _renumbered(updates, operand_axes)])
    replaced_whole = {axis for update_axis, axis in operand_axes.items() if update_shape[update_axis] == shape[axis]}
    return context.acted_along(placement, [axis for axis in range(len(shape)) if axis not in replaced_whole])


def _dynamic_slice(context: ExampleContext) -> Placement:
    starts = context.placements[1:]
    # a start that depends on x has no path rule
    return NoBatch() if any(isinstance(start, BatchAxis) for start in starts) else _slice(context)


def _dynamic_update_slice(context: ExampleContext) -> Placement:
    operand, updates, *starts = context.placements
    if any(isinstance(start, BatchAxis) for start in starts):
        return NoBatch()  # a start that depends on x has no path rule
    shape, update_shape, *_ = context.shapes
    placement = context.joined([operand, updates])
    return context.acted_along(placement, [axis for axis, size in enumerate(shape) if update_shape[axis] != size])


def _stack(context: ExampleContext) -> Placement:
    placement, new = context.joined(context.placements), context.equation.params["axis"]
    return _renumbered(placement, {axis: axis + (new <= axis) for axis in range(len(context.shapes[0]))})


def _scan(context: ExampleContext) -> list[Placement]:
    """A loop over layers, or over examples. The carry's placements are iterated to a fixed point."""
    operands = context.equation.loop_operands(context.placements)
    consts, carry, stacked = operands.constants, operands.carry, operands.stacked
    if any(isinstance(placement, BatchAxis) and placement.axis == 0 for placement in stacked):
        return _scan_over_examples(context, consts, carry, stacked)
    slices = [_first_axis_removed(placement) for placement in stacked]
    body = context.equation.params["jaxpr"]
    while True:
        results = context.walk_inside(body, [*consts, *carry, *slices])
        next_carry = [_either(before, after) for before, after in zip(carry, results, strict=False)]
        if next_carry == carry:
            break
        if any(
            isinstance(before, BatchAxis) and before != after for before, after in zip(carry, next_carry, strict=True)
        ):
            raise context.refuse_mixing()
        carry = next_carry
    shapes = [output.shape for output in context.equation.outputs[len(carry) :]]
    collected = [
        _renumbered(placement, {axis: axis + 1 for axis in range(len(shape))})
        for placement, shape in zip(results[len(carry) :], shapes, strict=True)
    ]
    return [*carry, *collected]


def _scan_over_examples(
    context: ExampleContext, consts: Sequence[Placement], carry: Sequence[Placement], stacked: Sequence[Placement]
) -> list[Placement]:
    """One example a step: a carry would mix examples, and so would a constant that holds the whole batch."""
    context.joined([*stacked, BatchAxis(0)])
    if carry or any(isinstance(placement, BatchAxis) for placement in consts):
        raise context.refuse_mixing()
    results = context.walk_inside(context.equation.params["jaxpr"], [*consts, *(NoBatch() for _ in stacked)])
    return [BatchAxis(0) for _ in results]


def _first_axis_removed(placement: Placement) -> Placement:
    """The placement in the slice of one step."""
    if isinstance(placement, BatchAxis):
        return placement._replace(axis=placement.axis - 1)
    return NoBatch(frozenset(axis - 1 for axis in placement.constant_axes if axis))


def _either(left: Placement, right: Placement) -> Placement:
    """The placement of a value that may have either placement; if both have a batch axis, the right one."""
    if isinstance(left, NoBatch) and isinstance(right, NoBatch):
        return NoBatch(left.constant_axes & right.constant_axes)
    return left if isinstance(right, NoBatch) else right


def _cond(context: ExampleContext) -> list[Placement]:
    """Any of the branches may run."""
    operands = context.placements[1:]
    branches = [context.walk_inside(branch, operands) for branch in context.equation.params["branches"]]
    return [functools.reduce(_either, placements) for placements in zip(*branches, strict=True)]


EXAMPLE_RULES: dict[str, ExampleRule] = {
    "broadcast_in_dim": _broadcast_in_dim,
    "reshape": _reshape,
    "transpose": _transpose,
    "squeeze": _removes_axes("dimensions"),
    **dict.fromkeys(("reduce_sum", "reduce_max", "reduce_min"), _removes_axes("axes")),
    **dict.fromkeys(("argmax", "argmin"), _removes_axes("axes")),
    "rev": _acts_along("dimensions"),
    "concatenate": _acts_along("dimension"),
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"), _acts_along("axis")),
    "sort": _acts_along("dimension"),
    **dict.fromkeys(("slice", "split"), _slice),
    "tile": _tile,
    "pad": _pad,
    **dict.fromkeys(("reduce_window_sum", "reduce_window_max", "reduce_window_min"), _reduce_window),
    "dot_general": _dot_general,
    "conv_general_dilated": _conv,
    "gather": _gather,
    **dict.fromkeys(("scatter", "scatter-add"), _scatter),
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "stack": _stack,
    "optimization_barrier": _same_placements,
    "scan": _scan,
    "cond": _cond,
}
