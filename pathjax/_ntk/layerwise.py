"""Θ layer by layer: the parts that the weights of every layer add, from the activations and cotangents that meet there.

A dense layer or a convolution is brought into the form of products of matrices, for which `contractions` finds the
cheapest way; of all other uses of weights the Jacobian is formed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh

from pathjax._base import network as _network
from pathjax._interpreter.channels import channels_last
from pathjax._interpreter.jaxpr import is_concrete
from pathjax._ntk import blocks as _blocks
from pathjax._ntk import memory as _memory
from pathjax._ntk.contractions import Form, Matrices, Part, Rows, contracted, kept_columns, temporary
from pathjax._ntk.traced import TracedNetwork
from pathjax._ntk.uses import Use, Uses, find, pull
from pathjax.types import Mask, Params

__all__ = ["kernel"]


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
) -> Any:
    """Θ of a network on two batches, or on one: chunk by chunk of its examples, spread over the devices of a mesh."""
    weights = params if mask is None else _network.kept(mask, params)
    kept = None if mask is None else jax.tree.leaves(mask)

    def blocks(weights: Params, kept: Sequence[Any] | None, x1: Any, x2: Any | None) -> _blocks.Blocks:
        uses = find(network, weights, x1)
        if not uses.found:
            raise ValueError(
                "No leaf of `params` reaches the outputs of `apply`, so that the kernel of its weights is zero. Pass "
                "the weights that the network uses."
            )
        _check_memory(uses, kept, form, len(x1), None if x2 is None else len(x2), batch_size)
        return _blocks.Blocks(
            lambda x: _parts(uses, kept, *uses.meet(x)),
            lambda left, right: contracted(left, right, form),
            batch_size,
        )

    if mesh is None:
        made = blocks(weights, kept, x1, x2)
        if form.diagonal:
            return made.diagonal(x1, x2)
        return made.symmetric(x1) if x2 is None else made.rectangular(x1, x2)
    # masks that are known stay so, for what is pruned is not formed
    traced = {i: leaf for i, leaf in enumerate(kept or []) if not is_concrete(leaf)}

    def local(given: tuple[Params, dict[int, Any]], x1: Any, x2: Any | None) -> _blocks.Blocks:
        weights, masks = given
        return blocks(weights, None if kept is None else [masks.get(i, leaf) for i, leaf in enumerate(kept)], x1, x2)

    return _blocks.spread(local, (weights, traced), x1, x2, diagonal=form.diagonal, mesh=mesh)


def _check_memory(
    uses: Uses, mask: Sequence[Any] | None, form: Form, n: int, m: int | None, batch_size: int | None
) -> None:
    def working(size: int) -> int:
        alone = m is None and (size >= n or form.diagonal)
        return _working(uses, mask, form, [min(size, n)] if alone else [min(size, n), min(size, m or n)])

    (o,) = uses.output.shape
    numbers = form.examples(n, m or n) * form.outputs(o)
    # the sum over layers, and what is added to it
    result = 2 * numbers * uses.output.dtype.itemsize
    _memory.check(result, working, max(n, m or n), batch_size)


def _parts(uses: Uses, mask: Sequence[Any] | None, activations: Any, cotangents: Any) -> list[Part]:
    """What the leaves add to Θ on a batch; leaves that share a use, and all uses of a leaf, are taken together."""
    met = list(zip(uses.found.values(), activations, cotangents, strict=True))
    found: list[Part] = []
    rows: list[Any] = []
    for leaves in _groups([use.leaves for use in uses.found.values()]):
        mine = [entry for entry in met if entry[0].leaves <= leaves]
        part = _matrices(*mine[0], mask) if len(mine) == 1 else None
        if part is None:
            rows.extend(_rows(mine, mask))
        else:
            found.append(part.compressed())
    return [*found, Rows(jnp.concatenate(rows, axis=2))] if rows else found


def _working(uses: Uses, mask: Sequence[Any] | None, form: Form, sizes: Sequence[int]) -> int:
    """Bytes that two chunks of these sizes, or one with itself, and their largest contraction take."""
    found = []

    def probe(*met: Any) -> None:
        sides = [_parts(uses, mask, *each) for each in met]
        held = sum(_bytes(array) for side in sides for part in side for array in part[:2])
        found.append(held + max(temporary(a, b, form) for a, b in zip(sides[0], sides[-1], strict=True)))

    jax.eval_shape(probe, *(uses.shapes(size) for size in sizes))
    return found[0]


def _groups(uses: Sequence[frozenset[int]]) -> list[frozenset[int]]:
    """The leaves in groups, such that no use has leaves of two groups."""
    groups: list[frozenset[int]] = []
    for leaves in uses:
        meeting = [group for group in groups if group & leaves]
        groups = [*(group for group in groups if not group & leaves), leaves.union(*meeting)]
    return groups


def _rows(met: Sequence[tuple[Use, Any, Any]], mask: Sequence[Any] | None) -> list[Any]:
    """The Jacobian by each leaf of these uses; that by a leaf used several times is a sum."""

    def of_example(activations: Any, cotangents: Any) -> dict[int, Any]:
        together = zip(met, activations, cotangents, strict=True)
        return pull([part for (use, *_), a, c in together for part in use.pull(a, c)])

    found = channels_last(jax.vmap(of_example))([entry[1] for entry in met], [entry[2] for entry in met])
    return [
        kept_columns(part.reshape(*part.shape[:2], -1), None if mask is None else mask[leaf])
        for leaf, part in found.items()
    ]


def _matrices(
    use: Use, activations: Sequence[Any], cotangents: Sequence[Any], mask: Sequence[Any] | None
) -> Matrices | None:
    """A dense or convolutional layer as products of matrices, if that is what the use is."""
    shapers = {"dot_general": _of_dot, "conv_general_dilated": _of_conv}
    weights = [operand for operand in use.operands if operand is not None]
    if use.equation.name not in shapers or len(weights) != 1 or weights[0].moves is None:
        return None
    (leaf,), moves = weights[0].leaves, weights[0].moves
    kept = None if mask is None else _moved(moves, mask[leaf])
    return shapers[use.equation.name](use, activations[0], cotangents[0], kept)


def _moved(moves: Callable[[Any], Any], kept: Any) -> Any:
    """A leaf's mask as its layer reads it; at once where it is known."""
    if not is_concrete(kept):
        return moves(jnp.asarray(kept))
    with jax.ensure_compile_time_eval():
        return np.asarray(moves(jnp.asarray(kept)))


def _of_dot(use: Use, activations: Any, cotangents: Any, kept: Any) -> Matrices:
    side = use.operands.index(None)
    contracted, batched = use.equation.params["dimension_numbers"]
    shapes = [like.shape for like in use.equation.inputs]
    free = [
        [axis for axis in range(len(shape)) if axis not in (*gone, *shared)]
        for shape, gone, shared in zip(shapes, contracted, batched, strict=True)
    ]
    b, k, t, f = (
        math.prod(shapes[at][axis] for axis in axes)
        for at, axes in (
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
    patches = _patches(images.reshape(-1, *images.shape[2:]), kernel[2:], params)
    k = math.prod(kernel[1:])
    a = patches.reshape(n, groups, k, -1).swapaxes(2, 3)
    c = cotangents.transpose(0, 1, *(axis + 2 for axis in numbers.out_spec))
    c = c.reshape(n, o, groups, kernel[0] // groups, -1).swapaxes(3, 4)
    if kept is not None:
        kept = kept.transpose(numbers.rhs_spec).reshape(groups, kernel[0] // groups, k).swapaxes(1, 2)
    return Matrices(a, c, kept)


def _patches(images: Any, window: Sequence[int], params: dict[str, Any]) -> Any:
    """What each place of a convolution's window sees of images (n, c, ...): (n, c, *window, *outputs).

    By slices, one axis after the other: as a convolution it would be one of feature groups, which are slow on CPUs.
    """
    dilated = zip(params["padding"], params["lhs_dilation"], strict=True)
    edges = [(low, high, dilation - 1) for (low, high), dilation in dilated]
    seen = lax.pad(images, jnp.zeros((), images.dtype), [(0, 0, 0), (0, 0, 0), *edges])
    steps = zip(window, params["window_strides"], params["rhs_dilation"], strict=True)
    for axis, (size, stride, dilation) in enumerate(steps, 2):
        reach = (seen.shape[axis] - (size - 1) * dilation - 1) // stride * stride + 1
        slices = [lax.slice_in_dim(seen, i * dilation, i * dilation + reach, stride, axis) for i in range(size)]
        seen = jnp.stack(slices, axis=axis + len(window))  # behind the outputs and the windows of the axes before
    order = [*range(2 + len(window), 2 + 2 * len(window)), *range(2, 2 + len(window))]
    return seen.transpose(0, 1, *order)


def _bytes(array: Any) -> int:
    return int(array.size) * array.dtype.itemsize
