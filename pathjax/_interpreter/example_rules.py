"""Rules per primitive: from where the examples lie in the operands to where they lie in the results.

`examples` walks the network with these rules, to refuse what mixes the examples of a batch.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

from pathjax._interpreter import indexed_examples
from pathjax._interpreter.placements import (
    BatchAxis,
    ExampleContext,
    ExampleRule,
    NoBatch,
    Placement,
    renumbered,
)

__all__ = ["EXAMPLE_RULES", "elementwise"]


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
    moved = renumbered(placement, dict(enumerate(map(int, new_axes))))
    if isinstance(moved, BatchAxis):
        return moved
    sizes = context.equation.outputs[0].shape
    broadcast = {
        axis for axis in range(len(sizes)) if axis not in new_axes or shape[list(new_axes).index(axis)] != sizes[axis]
    }
    return NoBatch(moved.constant_axes | broadcast)


def _reshape(context: ExampleContext) -> Placement:
    """Raveled entries keep their order, so the stride from one example to the next, in entries, is unchanged."""
    (placement,), (shape,) = context.placements, context.shapes
    order = context.equation.params["dimensions"] or range(len(shape))
    placement = renumbered(placement, {axis: new for new, axis in enumerate(order)})
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
    return renumbered(context.placements[0], {int(axis): new for new, axis in enumerate(permutation)})


def _removes_axes(parameter: str) -> ExampleRule:
    """The rule of a primitive that reduces over, or squeezes, the axes that a parameter names."""

    def rule(context: ExampleContext) -> Placement:
        removed = context.equation.params[parameter]
        kept = [axis for axis in range(len(context.shapes[0])) if axis not in removed]
        placement = context.acted_along(context.placements[0], removed)
        return renumbered(placement, {axis: new for new, axis in enumerate(kept)})

    return rule


def _acts_along(parameter: str) -> ExampleRule:
    """The rule of a primitive that acts along the axes that a parameter names, and keeps all axes."""

    def rule(context: ExampleContext) -> Placement:
        axes = context.equation.params[parameter]
        placement = context.joined(context.placements)
        return context.acted_along(placement, axes if isinstance(axes, Sequence) else [axes])

    return rule


def _concatenate(context: ExampleContext) -> Placement:
    """Operands without entries do not count; a single operand with entries is the result."""
    axis = context.equation.params["dimension"]
    with_entries = [
        placement for placement, shape in zip(context.placements, context.shapes, strict=True) if 0 not in shape
    ]
    placement = context.joined(with_entries or context.placements)
    return placement if len(with_entries) == 1 else context.acted_along(placement, [axis])


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
        moved = renumbered(context.acted_along(placement, contracted_axes), new_axes)
        if isinstance(moved, NoBatch):
            axes_of_other_operand = frozenset(range(rank)) - set(new_axes.values())
            moved = NoBatch(moved.constant_axes | axes_of_other_operand)
        in_result.append(moved)
        free_before += len(free)
    return context.joined(in_result)


def _conv(context: ExampleContext) -> Placement:
    images, kernels = context.placements
    numbers = context.equation.params["dimension_numbers"]
    if isinstance(kernels, BatchAxis) or (isinstance(images, BatchAxis) and images.axis != numbers.lhs_spec[0]):
        raise context.refuse_mixing()
    return renumbered(images, {numbers.lhs_spec[0]: numbers.out_spec[0]})


def _stack(context: ExampleContext) -> Placement:
    placement, new = context.joined(context.placements), context.equation.params["axis"]
    return renumbered(placement, {axis: axis + (new <= axis) for axis in range(len(context.shapes[0]))})


def _scan(context: ExampleContext) -> list[Placement]:
    """A loop over layers, or over examples. The carry's placements are iterated to a fixed point."""
    operands = context.equation.loop_operands(context.placements)
    consts, carry, stacked = operands.constants, operands.carry, operands.stacked
    if any(isinstance(placement, BatchAxis) and placement.axis == 0 for placement in stacked):
        return _scan_over_examples(context, consts, carry, stacked)
    carry = [_of_any_step(placement) for placement in carry]
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
        renumbered(placement, {axis: axis + 1 for axis in range(len(shape))})
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


def _of_any_step(placement: Placement) -> Placement:
    """The placement of a carry, whose entries change from step to step."""
    return placement if isinstance(placement, BatchAxis) else NoBatch(placement.constant_axes)


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
    "concatenate": _concatenate,
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"), _acts_along("axis")),
    "sort": _acts_along("dimension"),
    **dict.fromkeys(("slice", "split"), indexed_examples.slices),
    "tile": _tile,
    "pad": _pad,
    **dict.fromkeys(("reduce_window_sum", "reduce_window_max", "reduce_window_min"), _reduce_window),
    "dot_general": _dot_general,
    "conv_general_dilated": _conv,
    "gather": indexed_examples.gather,
    **dict.fromkeys(("scatter", "scatter-add", "scatter-sub", "scatter-mul"), indexed_examples.scatter),
    "dynamic_slice": indexed_examples.dynamic_slice,
    "dynamic_update_slice": indexed_examples.dynamic_update_slice,
    "stack": _stack,
    "optimization_barrier": _same_placements,
    "scan": _scan,
    "cond": _cond,
}
