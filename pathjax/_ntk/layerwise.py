"""Θ layer by layer: the parts that the weights of every layer add, from the activations and cotangents that meet there.

A dense layer or a convolution is brought into the form of products of matrices by `layers`, for which `contractions`
finds the cheapest way; of all other uses of weights the Jacobian is formed.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from pathjax._base.leaves import KnownMask
from pathjax._base.network import kept_weights
from pathjax._interpreter.convolutions import channels_last
from pathjax._interpreter.jaxpr import batch_length, is_concrete
from pathjax._interpreter.traced import TracedNetwork
from pathjax._ntk import blocks as _blocks
from pathjax._ntk import memory as _memory
from pathjax._ntk.contractions import Form, Matrices, Part, Rows, contracted, kept_columns, temporary
from pathjax._ntk.layers import Layer, as_layer, live
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
        parts = _Parts.of(uses, kept)
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

    @classmethod
    def of(cls, uses: Uses, mask: Sequence[Any] | None) -> _Parts:
        """Those of a network, without the weights that are known to be pruned or to lie on no path."""
        groups = _groups(uses, mask)
        layers = [group.layer for group in groups if group.layer is not None]
        if mask is None or not any(layer.survivors.are_fewer for layer in layers):
            return cls(uses, mask, groups)
        mask = live(uses.program, mask)
        return cls(uses, mask, _groups(uses, mask))

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
                ((use, (data,), (results,)),) = members
                parts.append(group.layer.matrices(data, results))
                if use.bias is not None and not group.layer.has_bias:
                    rows.extend(_rows([(use.bias, [results[:, 0]], [results])], self.mask))
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
    return [_Group(group, as_layer(uses, all_uses[group[0]], mask) if len(group) == 1 else None) for group in members]


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
