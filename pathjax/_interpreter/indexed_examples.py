"""Example rules of gathers, scatters and slices: constant indices that keep every example in its place are accepted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pathjax._interpreter.placements import AFTER_REFUSAL, BatchAxis, ExampleContext, NoBatch, Placement, renumbered

__all__ = ["dynamic_slice", "dynamic_update_slice", "gather", "scatter", "slices"]


def slices(context: ExampleContext) -> Placement:
    """The batch axis must be kept whole."""
    sizes = zip(context.shapes[0], context.equation.outputs[0].shape, strict=True)
    return context.acted_along(
        context.placements[0], [axis for axis, (before, after) in enumerate(sizes) if before != after]
    )


def dynamic_slice(context: ExampleContext) -> Placement:
    """As `slices`: the start of a slice of full size is 0."""
    if any(isinstance(start, BatchAxis) for start in context.placements[1:]):
        return AFTER_REFUSAL  # a start that depends on x has no path rule
    return slices(context)


def dynamic_update_slice(context: ExampleContext) -> Placement:
    """Replaces a part of each example by a part of the same example, or by numbers that are the same for all."""
    operand, updates, *starts = context.placements
    if any(isinstance(start, BatchAxis) for start in starts):
        return AFTER_REFUSAL  # a start that depends on x has no path rule
    shape, update_shape, *_ = context.shapes
    placement = context.joined([operand, updates])
    return context.acted_along(placement, [axis for axis, size in enumerate(shape) if update_shape[axis] != size])


def gather(context: ExampleContext) -> Placement:
    """The batch axis must be sliced whole, or be indexed by 0, 1, …, n − 1 along an axis of the indices."""
    (placement, indices), (shape, *_) = context.placements, context.shapes
    if isinstance(indices, BatchAxis):
        return AFTER_REFUSAL  # an index that depends on x has no path rule
    params = context.equation.params
    numbers, slice_sizes = params["dimension_numbers"], params["slice_sizes"]
    removed = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    rank = len(context.equation.outputs[0].shape)
    kept = [axis for axis in range(len(shape)) if axis not in removed]
    new_axes = dict(zip(kept, map(int, sorted(numbers.offset_dims)), strict=True))
    index_axes = [axis for axis in range(rank) if axis not in numbers.offset_dims]
    counted = _counted_axes(
        context,
        indices,
        indexed=numbers.start_index_map,
        removed=numbers.collapsed_slice_dims,
        batched=dict(zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True)),
    )
    new_axes |= {axis: index_axes[index_axis] for axis, index_axis in counted.items()}
    cut = [
        axis for axis, size in enumerate(slice_sizes) if axis not in new_axes or (axis in kept and size != shape[axis])
    ]
    return renumbered(context.acted_along(placement, cut), new_axes)


def scatter(context: ExampleContext) -> Placement:
    """The batch axis must be replaced, added to or multiplied whole, or be indexed by 0, 1, …, n − 1."""
    operand, indices, updates = context.placements
    if isinstance(indices, BatchAxis):
        return AFTER_REFUSAL  # an index that depends on x has no path rule
    shape, _, update_shape = context.shapes
    numbers = context.equation.params["dimension_numbers"]
    indexed = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
    window = [axis for axis in range(len(shape)) if axis not in indexed]
    operand_axes = dict(zip(map(int, sorted(numbers.update_window_dims)), window, strict=True))
    index_axes = [axis for axis in range(len(update_shape)) if axis not in numbers.update_window_dims]
    counted = _counted_axes(
        context,
        indices,
        indexed=numbers.scatter_dims_to_operand_dims,
        removed=numbers.inserted_window_dims,
        batched=dict(zip(numbers.operand_batching_dims, numbers.scatter_indices_batching_dims, strict=True)),
    )
    operand_axes |= {index_axes[index_axis]: axis for axis, index_axis in counted.items()}
    context.acted_along(updates, [axis for axis in range(len(update_shape)) if axis not in operand_axes])
    placement = context.joined([operand, renumbered(updates, operand_axes)])
    replaced_whole = {axis for update_axis, axis in operand_axes.items() if update_shape[update_axis] == shape[axis]}
    return context.acted_along(placement, [axis for axis in range(len(shape)) if axis not in replaced_whole])


def _counted_axes(
    context: ExampleContext,
    indices: NoBatch,
    *,
    indexed: Sequence[int],
    removed: Sequence[int],
    batched: dict[int, int],
) -> dict[int, int]:
    """The axes of the operand that some axis of the indices goes through in order, each with that axis.

    Along that axis of the indices, entry i of the operand's axis is read or written at position i, and the other
    coordinates stay the same. The last axis of the indices holds the coordinates; coordinate c indexes the operand's
    axis `indexed[c]`. `batched` are pairs of axes that JAX itself goes through together.
    """
    shape, index_shape, *_ = context.shapes
    counted = {int(axis): int(row) for axis, row in batched.items() if row in indices.constant_axes}
    if indices.entries is None:
        return counted
    coordinates = np.moveaxis(np.asarray(indices.entries), -1, 0)
    for row in range(len(index_shape) - 1):
        in_rows = np.moveaxis(coordinates, 1 + row, 1)
        moving = [c for c, entries in enumerate(in_rows) if not np.all(entries == entries[:1])]
        if len(moving) != 1 or (axis := int(indexed[moving[0]])) not in removed:
            continue
        entries = in_rows[moving[0]].reshape(index_shape[row], -1)
        if np.array_equal(entries, np.broadcast_to(np.arange(shape[axis])[:, None], (shape[axis], entries.shape[1]))):
            counted[axis] = row
    return counted
