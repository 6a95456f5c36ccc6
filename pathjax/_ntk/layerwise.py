"""Θ layer by layer: the parts that the weights of every layer add, from the activations and cotangents that meet there.

A dense layer or a convolution is brought into the form of products of matrices, for which `contractions` finds the
cheapest way; of all other uses of weights the Jacobian is formed.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

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
from pathjax._ntk.contractions import Form, Matrices, Part, Rows, Survivors, contracted, kept_columns, temporary
from pathjax._ntk.uses import Known, Use, Uses, find, pull
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
        parts = _Parts(uses, kept, _groups(uses, kept))
        n, m = batch_length(x1), None if x2 is None else batch_length(x2)
        note_memory(_check_memory(parts, form, n, m, batch_size))
        return _blocks.Blocks(
            lambda x: parts.stored(batch_length(x), *uses.arrays(x)),
            lambda left, right: parts.contracted(left, right, form),
            batch_size,
            1 if batch_size is None or form.diagonal else _held(parts, form, n, m, batch_size),
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


def _check_memory(parts: _Parts, form: Form, n: int, m: int | None, batch_size: int | None) -> int:
    """The number of bytes that are needed. Raises MemoryError where fewer are free."""

    def working(size: int) -> int:
        has_one_chunk = m is None and (size >= n or form.diagonal)
        return parts.working(form, [min(size, n)] if has_one_chunk else [min(size, n), min(size, m or n)])

    # the sum over layers so far, and the part that is added to it
    result = 2 * _bytes_of_result(parts, form, n, m)
    return _memory.check(result, working, max(n, m or n), batch_size)


def _held(parts: _Parts, form: Form, n: int, m: int | None, size: int) -> int:
    """How many chunks are held at a time, to be multiplied with each of the others that goes through the network.

    In chunks the result is not summed over layers, but put together at the end. So until then the memory of one more
    is free.
    """
    c, d = min(size, n), min(size, m or n)
    free = parts.working(form, [c, d]) + _bytes_of_result(parts, form, n, m)
    chunk = parts.bytes(d, stored=False)

    def fits(count: int) -> bool:
        own = [] if m is not None else [parts.working(form, [count * c], stored=True)]
        held = parts.bytes(count * c, stored=True)
        return max(held + chunk, parts.working(form, [count * c, d], stored=True), *own) <= free

    return max(1, _memory.largest_that_fits(math.ceil(n / size) + 1, fits))


def _bytes_of_result(parts: _Parts, form: Form, n: int, m: int | None) -> int:
    output = parts.uses.output
    return form.examples(n, m or n) * form.outputs(output.size) * output.dtype.itemsize


class _Group(NamedTuple):
    """Uses whose part of Θ is computed together: a layer, or all uses of some leaves.

    Attributes:
        members: the positions of the uses, among all.
        layer: the layer that they are; None where the Jacobian has to be formed.
    """

    members: list[int]
    layer: Layer | None


@dataclasses.dataclass(frozen=True)
class _Parts:
    """The parts of the leaves in Θ. Leaves that share a use, and all uses of a leaf, are taken together."""

    uses: Uses
    mask: Sequence[Any] | None
    groups: Sequence[_Group]

    def stored(self, n: int, activations: Any, cotangents: Any) -> list[Part]:
        """What of a batch is multiplied with that of others: arrays with an axis of examples, and no masks."""
        parts = (part.stored() if isinstance(part, Matrices) else part for part in self.raw(n, activations, cotangents))
        return [part._replace(kept=None) if isinstance(part, Matrices) else part for part in parts]

    def raw(self, n: int, activations: Any, cotangents: Any) -> list[Part]:
        """The same before the Jacobian of any layer is formed, and with the masks."""
        all_uses = list(zip(self.uses.by_step.values(), activations, cotangents, strict=True))
        rows = _rows_of_constant_outputs(self.uses, self.mask, n)
        parts: list[Part] = []
        for group in self.groups:
            members = [all_uses[i] for i in group.members]
            if group.layer is None:
                rows.extend(_rows(members, self.mask))
            else:
                ((_, (data,), (results,)),) = members
                parts.append(group.layer.matrices(data, results))
        return [*parts, Rows(jnp.concatenate(rows, axis=2))] if rows else parts

    def with_masks(self, parts: Sequence[Part]) -> list[Part]:
        """Stored parts with the masks of their layers."""
        masks = [group.layer.survivors.kept for group in self.groups if group.layer is not None]
        return [part._replace(kept=masks[i]) if isinstance(part, Matrices) else part for i, part in enumerate(parts)]

    def contracted(self, left: Sequence[Part], right: Sequence[Part], form: Form) -> Any:
        """The kernel of two batches, from what is stored of them."""
        with_masks = self.with_masks(left)
        return contracted(with_masks, with_masks if left is right else self.with_masks(right), form)

    def working(self, form: Form, sizes: Sequence[int], *, stored: bool = False) -> int:
        """Bytes that two chunks of these sizes, or one with itself, and their largest contraction take."""
        chunks = [self._shapes(size, stored=stored) for size in sizes]
        largest = max(temporary(a, b, form) for a, b in zip(chunks[0], chunks[-1], strict=True))
        return sum(map(_bytes, chunks)) + largest

    def bytes(self, size: int, *, stored: bool) -> int:
        """Bytes of a chunk, as it is stored or before."""
        return _bytes(self._shapes(size, stored=stored))

    def _shapes(self, size: int, *, stored: bool) -> list[Part]:
        """The parts of a chunk, with shapes and dtypes in place of arrays."""

        def shapes(activations: Any, cotangents: Any) -> list[Part]:
            parts = (self.stored if stored else self.raw)(size, activations, cotangents)
            return [part._replace(kept=None) if isinstance(part, Matrices) else part for part in parts]

        return self.with_masks(jax.eval_shape(shapes, *self.uses.shapes(size)))


def _bytes(parts: Sequence[Part]) -> int:
    return sum(int(array.size) * array.dtype.itemsize for part in parts for array in part[:2])


def _groups(uses: Uses, mask: Sequence[Any] | None) -> list[_Group]:
    """The uses in groups, such that no two groups have a leaf in common."""
    all_uses = list(uses.by_step.values())
    together: list[frozenset[int]] = []
    for leaves in (use.leaves for use in all_uses):
        joined = [group for group in together if group & leaves]
        together = [*(group for group in together if not group & leaves), leaves.union(*joined)]
    members = [[i for i, use in enumerate(all_uses) if use.leaves <= leaves] for leaves in together]
    return [_Group(group, _layer(uses, all_uses[group[0]], mask) if len(group) == 1 else None) for group in members]


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


@dataclasses.dataclass(frozen=True)
class Shaper:
    """How a layer is a product of matrices.

    Attributes:
        activations: the operand (n, ...) that depends on data as (n, b, t, k).
        cotangents: those of the result (n, o, ...) as (n, o, b, t, f).
        weights: an array like the other operand as (b, k, f).
    """

    activations: Callable[[Any], Any]
    cotangents: Callable[[Any], Any]
    weights: Callable[[Any], Any]


class Layer(NamedTuple):
    """A dense or a convolutional layer as products of matrices.

    Attributes:
        shaper: how it is one.
        has_bias: whether its bias is a further row of its weights, with activations of 1.
        survivors: its inputs, outputs and weights that a mask leaves.
    """

    shaper: Shaper
    has_bias: bool
    survivors: Survivors

    def matrices(self, activations: Any, cotangents: Any) -> Matrices:
        """The layer on a batch."""
        a, c = self.shaper.activations(activations), self.shaper.cotangents(cotangents)
        if self.has_bias:
            a = jnp.concatenate([a, jnp.ones((*a.shape[:-1], 1), a.dtype)], axis=-1)
        return self.survivors.matrices(a, c)


def _layer(uses: Uses, use: Use, mask: Sequence[Any] | None) -> Layer | None:
    """The use as a layer; None if it is no dense or convolutional layer whose weights each stand in one place."""
    shapers = {"dot_general": _of_dot, "conv_general_dilated": _of_conv}
    if use.equation.name not in shapers or len(use.weights) != 1 or len(use.leaves) != 1 + (use.bias is not None):
        return None
    (weights,), shaper = use.weights, shapers[use.equation.name](use)
    if shaper is None or not uses.is_moved(weights):
        return None
    order = None if use.bias is None else _order_of_bias(uses, use.bias, shaper)
    if use.bias is not None and order is None:
        return None
    kept = None if mask is None else _kept(use, shaper, order, mask)
    return Layer(shaper, order is not None, Survivors.read(kept))


def _kept(use: Use, shaper: Shaper, order: Any, mask: Sequence[Any]) -> Any:
    """The kept weights (b, k, f) of a layer, those of its bias in a last row; known where the mask is."""
    (weights,) = use.weights
    (leaf,) = weights.leaves
    kept = shaper.weights(_moved(weights, mask[leaf]))
    if use.bias is None:
        return kept
    (leaf,) = use.bias.leaves
    row = mask[leaf].reshape(-1)[order][:, None]
    return (np if is_concrete(kept) and is_concrete(row) else jnp).concatenate([kept, row], axis=1)


def _order_of_bias(uses: Uses, addition: Use, shaper: Shaper) -> Any:
    """The position (b, f) in its leaf of the bias of each output; None unless it is one number for each output."""
    (bias,), (out,) = addition.weights, addition.equation.outputs
    if bias.moves is None:
        return None
    (leaf,) = (uses.leaves[i] for i in bias.leaves)
    positions = np.broadcast_to(_moved(bias, np.arange(leaf.size).reshape(leaf.shape)), out.shape)
    order = shaper.cotangents(positions[None, None])[0, 0]
    is_bias = (order == order[:, :1]).all() and (np.sort(order[:, 0], axis=None) == np.arange(leaf.size)).all()
    return order[:, 0] if is_bias else None


def _moved(known: Known, array: Any) -> Any:
    """An array like a leaf with the axes that the equation gives the leaf; known where the array is."""
    assert known.moves is not None
    if not is_concrete(array):
        return known.moves(jnp.asarray(array))
    with jax.ensure_compile_time_eval():
        return np.asarray(known.moves(jnp.asarray(array)))


def _of_dot(use: Use) -> Shaper:
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
    order = [0, *(axis + 1 for axis in (*batched[side], *free[side], *contracted[side]))]
    other = (*batched[1 - side], *contracted[1 - side], *free[1 - side])

    def cotangents(c: Any) -> Any:
        return c.reshape(*c.shape[:2], b, t, f) if side == 0 else c.reshape(*c.shape[:2], b, f, t).swapaxes(3, 4)

    return Shaper(
        lambda a: a.transpose(order).reshape(len(a), b, t, k),
        cotangents,
        lambda weights: weights.transpose(other).reshape(b, k, f),
    )


def _of_conv(use: Use) -> Shaper | None:
    """A convolution as a product with patches, one for each feature group, with the channels last."""
    params = use.equation.params
    if use.operands.index(None) != 0 or params["batch_group_count"] != 1:
        return None
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    features, channels, *window = (use.equation.inputs[1].shape[axis] for axis in numbers.rhs_spec)
    k, f = channels * math.prod(window), features // groups
    windows = Windows(
        sizes=(1, *window, 1),
        strides=(1, *params["window_strides"], 1),
        padding=[(0, 0), *params["padding"], (0, 0)],
        base_dilation=(1, *params["lhs_dilation"], 1),
        window_dilation=(1, *params["rhs_dilation"], 1),
    )

    def activations(a: Any) -> Any:
        images = a.transpose(0, *(axis + 1 for axis in _channels_last(numbers.lhs_spec)))
        patches = entries_of_windows(images.reshape(-1, *images.shape[2:]), windows, axis=-2)
        patches = patches.reshape(len(a), -1, math.prod(window), groups, channels)
        return patches.transpose(0, 3, 1, 2, 4).reshape(len(a), groups, -1, k)

    def cotangents(c: Any) -> Any:
        c = c.transpose(0, 1, *(axis + 2 for axis in _channels_last(numbers.out_spec)))
        return c.reshape(*c.shape[:2], -1, groups, f).swapaxes(2, 3)

    def weights(kernel: Any) -> Any:
        kernel = kernel.transpose(numbers.rhs_spec).reshape(groups, f, channels, -1)
        return kernel.transpose(0, 3, 2, 1).reshape(groups, k, f)

    return Shaper(activations, cotangents, weights)


def _channels_last(spec: Sequence[int]) -> tuple[int, ...]:
    """The axes in the order examples, space, channels; a spec has the order examples, channels, space."""
    return (spec[0], *spec[2:], spec[1])
