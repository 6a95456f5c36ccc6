"""Θ layer by layer: the parts that the weights of every layer add, from the activations and cotangents that meet there.

A dense layer or a convolution is brought into the form of products of matrices, for which `contractions` finds the
cheapest way; of all other uses of weights the Jacobian is formed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from pathjax._base.leaves import KnownMask
from pathjax._base.network import kept_weights
from pathjax._interpreter.convolutions import channels_last
from pathjax._interpreter.jaxpr import batch_length, is_concrete
from pathjax._interpreter.traced import TracedNetwork
from pathjax._interpreter.windows import Windows, entries_of_windows
from pathjax._ntk import blocks as _blocks
from pathjax._ntk import memory as _memory
from pathjax._ntk.contractions import Form, Matrices, Part, Rows, contracted, kept_columns, temporary
from pathjax._ntk.uses import Use, Uses, find, pull
from pathjax.types import Mask, Params

__all__ = ["compiled", "kernel"]


def compiled(
    network: TracedNetwork,
    params: Params,
    x1: Any,
    x2: Any | None,
    *,
    mask: Mask | None,
    form: Form,
    batch_size: int | None,
) -> Any:
    """Θ of a network on one device, or what `form` asks of it, by a program that is compiled once and kept.

    There is a program for each network, form, chunk and mask whose entries are known.

    Raises MemoryError where less memory is free than was needed when it was compiled.
    """
    known = KnownMask.read(mask)
    given = None if known is not None else mask
    options: dict[str, Any] = {"known": known, "form": form, "batch_size": batch_size}
    arguments = params, given, x1, x2
    needed, free = network.facts.get(_memory_key(*arguments, **options)), _memory.available()
    if needed is not None and free is not None and needed > free:
        jax.eval_shape(functools.partial(_on_one_device, network, **options), *arguments)  # raises, with the remedy
    return network.compiled(_on_one_device, **options)(*arguments)


def _on_one_device(
    network: TracedNetwork,
    params: Params,
    mask: Mask | None,
    x1: Any,
    x2: Any | None,
    *,
    known: KnownMask | None,
    form: Form,
    batch_size: int | None,
) -> Any:
    key = _memory_key(params, mask, x1, x2, known=known, form=form, batch_size=batch_size)

    def note(needed: int) -> None:
        network.facts[key] = needed

    mask = mask if known is None else known.mask
    return kernel(network, params, x1, x2, mask=mask, form=form, batch_size=batch_size, note_memory=note)


def _memory_key(*arguments: Any, known: KnownMask | None, form: Form, batch_size: int | None) -> Hashable:
    leaves, structure = jax.tree.flatten(arguments)
    types = tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
    # of a mask its digest, so that the masks themselves are let go
    return "memory", structure, types, None if known is None else known.key, form, batch_size


def kernel(
    network: TracedNetwork,
    params: Params,
    x1: Any,
    x2: Any | None,
    *,
    mask: Mask | None,
    form: Form,
    batch_size: int | None,
    mesh: Mesh | None = None,
    note_memory: Callable[[int], None] = lambda needed: None,
) -> Any:
    """Θ of a network on two batches or one, or what `form` asks of it; on a mesh, its rows spread over the devices.

    `note_memory` is given the number of bytes that this needs.
    """
    weights = params if mask is None else kept_weights(mask, params)
    kept = None if mask is None else jax.tree.leaves(mask)

    def blocks(weights: Params, kept: Sequence[Any] | None, x1: Any, x2: Any | None) -> _blocks.Blocks:
        uses = find(network, weights, x1)
        if not uses.by_step and not uses.output_leaves:
            raise ValueError(
                "No leaf of `params` reaches the outputs of `apply`, so that the kernel of its weights is zero. Pass "
                "the weights that the network uses."
            )
        m = None if x2 is None else batch_length(x2)
        note_memory(_check_memory(uses, kept, form, batch_length(x1), m, batch_size))
        return _blocks.Blocks(
            lambda x: _parts(uses, kept, batch_length(x), *uses.arrays(x)),
            lambda left, right: contracted(left, right, form),
            batch_size,
        )

    if mesh is None:
        whole = blocks(weights, kept, x1, x2)
        if form.diagonal:
            return whole.diagonal(x1, x2)
        return whole.symmetric(x1) if x2 is None else whole.rectangular(x1, x2)
    # masks whose entries are known are not passed to the devices, where they would be traced: nothing is computed of
    # weights that are known to be pruned
    traced = {i: leaf for i, leaf in enumerate(kept or []) if not is_concrete(leaf)}

    def on_device(given: tuple[Params, dict[int, Any]], x1: Any, x2: Any | None) -> _blocks.Blocks:
        weights, masks = given
        return blocks(weights, None if kept is None else [masks.get(i, leaf) for i, leaf in enumerate(kept)], x1, x2)

    return _blocks.spread(on_device, (weights, traced), x1, x2, diagonal=form.diagonal, mesh=mesh)


def _check_memory(
    uses: Uses, mask: Sequence[Any] | None, form: Form, n: int, m: int | None, batch_size: int | None
) -> int:
    """The number of bytes that are needed. Raises MemoryError where fewer are free."""

    def working(size: int) -> int:
        has_one_chunk = m is None and (size >= n or form.diagonal)
        return _working(uses, mask, form, [min(size, n)] if has_one_chunk else [min(size, n), min(size, m or n)])

    (o,) = uses.output.shape
    numbers = form.examples(n, m or n) * form.outputs(o)
    # the sum over layers so far, and the part that is added to it
    result = 2 * numbers * uses.output.dtype.itemsize
    return _memory.check(result, working, max(n, m or n), batch_size)


def _parts(uses: Uses, mask: Sequence[Any] | None, n: int, activations: Any, cotangents: Any) -> list[Part]:
    """The parts of the leaves in Θ on a batch; leaves that share a use, and all uses of a leaf, are taken together."""
    all_uses = list(zip(uses.by_step.values(), activations, cotangents, strict=True))
    parts: list[Part] = []
    rows: list[Any] = _rows_of_constant_outputs(uses, mask, n)
    for leaves in _groups([use.leaves for use in uses.by_step.values()]):
        group = [entry for entry in all_uses if entry[0].leaves <= leaves]
        part = _matrices(*group[0], mask) if len(group) == 1 else None
        if part is None:
            rows.extend(_rows(group, mask))
        else:
            parts.append(part.compressed())
    return [*parts, Rows(jnp.concatenate(rows, axis=2))] if rows else parts


def _working(uses: Uses, mask: Sequence[Any] | None, form: Form, sizes: Sequence[int]) -> int:
    """Bytes that two chunks of these sizes, or one with itself, and their largest contraction take."""
    totals = []

    def measure(*batches: Any) -> None:
        chunks = [_parts(uses, mask, size, *batch) for size, batch in zip(sizes, batches, strict=True)]
        stored = sum(_bytes(array) for chunk in chunks for part in chunk for array in part[:2])
        totals.append(stored + max(temporary(a, b, form) for a, b in zip(chunks[0], chunks[-1], strict=True)))

    jax.eval_shape(measure, *(uses.shapes(size) for size in sizes))
    return totals[0]


def _groups(uses: Sequence[frozenset[int]]) -> list[frozenset[int]]:
    """The leaves in groups, such that no use has leaves of two groups."""
    groups: list[frozenset[int]] = []
    for leaves in uses:
        joined = [group for group in groups if group & leaves]
        groups = [*(group for group in groups if not group & leaves), leaves.union(*joined)]
    return groups


def _rows(group: Sequence[tuple[Use, Any, Any]], mask: Sequence[Any] | None) -> list[Any]:
    """The Jacobian by each leaf of these uses; that by a leaf used several times is a sum over its uses."""
    uses, activations, cotangents = zip(*group, strict=True)

    def of_example(activations: Any, cotangents: Any) -> dict[int, Any]:
        each = zip(uses, activations, cotangents, strict=True)
        return pull([part for use, a, c in each for part in use.pull(a, c)])

    jacobians = channels_last(jax.vmap(of_example))(list(activations), list(cotangents))
    return [
        kept_columns(jacobian.reshape(*jacobian.shape[:2], -1), None if mask is None else mask[leaf])
        for leaf, jacobian in jacobians.items()
    ]


def _rows_of_constant_outputs(uses: Uses, mask: Sequence[Any] | None, n: int) -> list[Any]:
    """The Jacobian of outputs that do not read x, such as biases alone: the same rows for every example."""
    if not uses.output_leaves:
        return []
    return [
        jnp.broadcast_to(rows[None], (n, *rows.shape))
        for rows in (
            kept_columns(jacobian.reshape(1, len(jacobian), -1), None if mask is None else mask[leaf])[0]
            for leaf, jacobian in uses.jacobians_of_constant_output().items()
        )
    ]


def _matrices(
    use: Use, activations: Sequence[Any], cotangents: Sequence[Any], mask: Sequence[Any] | None
) -> Matrices | None:
    """The use as products of matrices if it is a dense or a convolutional layer, None otherwise."""
    shapers = {"dot_general": _of_dot, "conv_general_dilated": _of_conv}
    weights = [operand for operand in use.operands if operand is not None]
    if use.equation.name not in shapers or len(weights) != 1 or weights[0].moves is None:
        return None
    (leaf,), moves = weights[0].leaves, weights[0].moves
    kept = None if mask is None else _moved(moves, mask[leaf])
    return shapers[use.equation.name](use, activations[0], cotangents[0], kept)


def _moved(moves: Callable[[Any], Any], kept: Any) -> Any:
    """A leaf's mask with the axes that the layer's equation gives the leaf; known where the mask is."""
    if not is_concrete(kept):
        return moves(jnp.asarray(kept))
    with jax.ensure_compile_time_eval():
        return np.asarray(moves(jnp.asarray(kept)))


def _of_dot(use: Use, activations: Any, cotangents: Any, kept: Any) -> Matrices:
    side = use.operands.index(None)
    contracted, batched = use.equation.params["dimension_numbers"]
    shapes = [like.shape for like in use.equation.inputs]
    free = [
        [axis for axis in range(len(shape)) if axis not in (*summed, *shared)]
        for shape, summed, shared in zip(shapes, contracted, batched, strict=True)
    ]
    b, k, t, f = (
        math.prod(shapes[operand][axis] for axis in axes)
        for operand, axes in (
            (side, batched[side]),
            (side, contracted[side]),
            (side, free[side]),
            (1 - side, free[1 - side]),
        )
    )
    n, o = cotangents.shape[:2]
    order = [axis + 1 for axis in (*batched[side], *free[side], *contracted[side])]
    a = activations.transpose(0, *order).reshape(n, b, t, k)
    c = cotangents.reshape(n, o, b, t, f) if side == 0 else cotangents.reshape(n, o, b, f, t).swapaxes(3, 4)
    other = (*batched[1 - side], *contracted[1 - side], *free[1 - side])
    return Matrices(a, c, None if kept is None else kept.transpose(other).reshape(b, k, f))


def _of_conv(use: Use, activations: Any, cotangents: Any, kept: Any) -> Matrices | None:
    """A convolution as a product with patches, one for each feature group."""
    params = use.equation.params
    if use.operands.index(None) != 0 or params["batch_group_count"] != 1:
        return None
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    kernel = [use.equation.inputs[1].shape[axis] for axis in numbers.rhs_spec]
    n, o = cotangents.shape[:2]
    images = activations.transpose(0, *(axis + 1 for axis in numbers.lhs_spec))
    windows = Windows(
        sizes=(1, 1, *kernel[2:]),
        strides=(1, 1, *params["window_strides"]),
        padding=[(0, 0), (0, 0), *params["padding"]],
        base_dilation=(1, 1, *params["lhs_dilation"]),
        window_dilation=(1, 1, *params["rhs_dilation"]),
    )
    patches = entries_of_windows(images.reshape(-1, *images.shape[2:]), windows, axis=2)
    k = math.prod(kernel[1:])
    a = patches.reshape(n, groups, k, -1).swapaxes(2, 3)
    c = cotangents.transpose(0, 1, *(axis + 2 for axis in numbers.out_spec))
    c = c.reshape(n, o, groups, kernel[0] // groups, -1).swapaxes(3, 4)
    if kept is not None:
        kept = kept.transpose(numbers.rhs_spec).reshape(groups, kernel[0] // groups, k).swapaxes(1, 2)
    return Matrices(a, c, kept)


def _bytes(array: Any) -> int:
    return int(array.size) * array.dtype.itemsize
