"""A kernel in blocks: chunks of examples against chunks of examples, in the memory of two chunks and of the result.

What a chunk needs is computed when its blocks are and forgotten after them. Of a batch with itself every block is
computed on one side of the diagonal and mirrored to the other: chunk i meets chunks i, i + 1, … up to half way round,
so that all rows of blocks are equally long. On a mesh of devices each computes some rows of blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

__all__ = ["Blocks", "chunks", "mirror", "spread", "unfolded"]

Prepare: TypeAlias = Callable[[Any], Any]
"""What a chunk (c, ...) of a batch needs to meet others."""

Meet: TypeAlias = Callable[[Any, Any], Any]
"""The block (c, d, ...) of two prepared chunks, or (c, ...) on a diagonal."""


@dataclass(frozen=True)
class Blocks:
    """How a kernel is made of blocks: of `size` examples at a time, None for all."""

    prepare: Prepare
    meet: Meet
    size: int | None

    def rectangular(self, x1: Any, x2: Any) -> Any:
        """The kernel (n, m, ...) of two batches."""
        if self.size is None or self.size >= max(len(x1), len(x2)):
            return self.meet(self.prepare(x1), self.prepare(x2))
        columns = chunks(x2, self.size)

        def row(chunk: Any) -> Any:
            left = self.prepare(chunk)
            return lax.map(lambda other: self.meet(left, self.prepare(other)), columns)

        return _joined(lax.map(row, chunks(x1, self.size)))[: len(x1), : len(x2)]

    def symmetric(self, x: Any) -> Any:
        """The kernel (n, n, ...) of a batch with itself, exactly symmetric."""
        if self.size is None or self.size >= len(x):
            return self._own(self.prepare(x))
        every = chunks(x, self.size)
        count = len(every)

        def row(i: Any) -> Any:
            mine = self.prepare(every[i])

            def other(step: Any) -> Any:
                return self.meet(mine, self.prepare(every[(i + step) % count]))

            return jnp.concatenate([self._own(mine)[None], lax.map(other, jnp.arange(1, count // 2 + 1))])

        return _joined(unfolded(lax.map(row, jnp.arange(count))))[: len(x), : len(x)]

    def diagonal(self, x1: Any, x2: Any | None) -> Any:
        """Each example of a batch with that of the other in its place, (n, ...); of no other batch, with itself."""

        def block(pair: tuple[Any, Any]) -> Any:
            left = self.prepare(pair[0])
            return self.meet(left, left if pair[1] is None else self.prepare(pair[1]))

        if self.size is None or self.size >= len(x1):
            return block((x1, x2))
        found = lax.map(block, (chunks(x1, self.size), None if x2 is None else chunks(x2, self.size)))
        return found.reshape(-1, *found.shape[2:])[: len(x1)]

    def _own(self, prepared: Any) -> Any:
        """The block of a chunk with itself: the mean with its mirror image, which rounding may have set apart."""
        block = self.meet(prepared, prepared)
        return (block + mirror(block, 0)) / 2


def chunks(x: Any, size: int) -> Any:
    """A batch in chunks (count, c, ...) as even as they can be, filled up with its last example."""
    count = math.ceil(len(x) / size)
    each = math.ceil(len(x) / count)
    rows = np.minimum(np.arange(count * each), len(x) - 1)
    return jnp.asarray(x)[rows].reshape(count, each, *x.shape[1:])


def unfolded(blocks: Any) -> Any:
    """All blocks (count, count, c, c, ...), from those of each chunk i with chunks i, i + 1, ... (count, some, ...)."""
    count, some = blocks.shape[:2]
    row, column = np.indices((count, count))
    first, last = np.minimum(row, column), np.maximum(row, column)
    # from the first of two chunks on to the last, or from the last round to the first
    is_ahead = last - first < some
    start, steps = np.where(is_ahead, first, last), np.where(is_ahead, last - first, count - (last - first))
    is_mirrored = start != row
    mirrored = is_mirrored.reshape(count, count, *[1] * (blocks.ndim - 2))
    taken = blocks[start, steps % count]
    return jnp.where(mirrored, mirror(taken, 2), taken)


def mirror(block: Any, axis: int) -> Any:
    """The block of the two chunks in the other order: their axes are `axis` and the next, then come their outputs."""
    swapped = jnp.swapaxes(block, axis, axis + 1)
    return swapped if swapped.ndim == axis + 2 else jnp.swapaxes(swapped, axis + 2, axis + 3)


def _joined(blocks: Any) -> Any:
    """Blocks (rows, columns, c, d, ...) as one array (rows * c, columns * d, ...)."""
    rows, columns, c, d = blocks.shape[:4]
    return jnp.swapaxes(blocks, 1, 2).reshape(rows * c, columns * d, *blocks.shape[4:])


def spread(
    blocks: Callable[[Any, Any, Any], Blocks], given: Any, x1: Any, x2: Any | None, *, diagonal: bool, mesh: Mesh
) -> Any:
    """The kernel by `blocks(given, mine, others)`, on each device of its examples of x1 and those that they meet."""
    rows, everywhere = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ([mesh.axis_names], []))
    n, filled = len(x1), _filled(x1, mesh.size)
    others = None if x2 is None else _filled(x2, mesh.size) if diagonal else x2

    def local(given: Any, mine: Any, others: Any) -> Any:
        if x2 is None and not diagonal:
            return _ring(blocks(given, mine, mine), mine, others, mesh.axis_names, mesh.size)
        made = blocks(given, mine, others)
        return made.diagonal(mine, others) if diagonal else made.rectangular(mine, others)

    if x2 is None and not diagonal:
        others = filled
    places = (everywhere, rows, rows if diagonal else everywhere)
    arguments = [jax.device_put(tree, place) for tree, place in zip((given, filled, others), places, strict=True)]
    specs = tuple(place.spec for place in places)
    # user's loops may start from constants, which the check of what varies over devices would refuse
    found = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=rows.spec, check_vma=False))(*arguments)
    if n == len(filled):
        return found
    found = jax.device_put(found, everywhere)  # rows that cannot be shared out evenly
    return found[:n, :n] if x2 is None and not diagonal else found[:n]


def _filled(x: Any, count: int) -> Any:
    """A batch filled up with its last example to a multiple of the count."""
    size = math.ceil(len(x) / count) * count
    return x if size == len(x) else x[np.minimum(np.arange(size), len(x) - 1)]


def _ring(blocks: Blocks, mine: Any, everyone: Any, axes: Sequence[str], count: int) -> Any:
    """A row of the kernel of a batch with itself: its blocks with devices up to half way round the ring.

    The others are mirror images of what the devices before this one have computed.
    """
    here = lax.axis_index(axes)
    chunks = everyone.reshape(count, -1, *everyone.shape[1:])
    row = [blocks.symmetric(mine), *[None] * (count - 1)]
    for step in range(1, count // 2 + 1):
        ahead = blocks.rectangular(mine, chunks[(here + step) % count])
        onward = [(device, (device + step) % count) for device in range(count)]
        behind = mirror(lax.ppermute(ahead, axes, onward), 0)
        # half way round two devices have computed the same block: that of the first holds
        row[step] = jnp.where(here < step, ahead, behind) if 2 * step == count else ahead
        if 2 * step != count:
            row[-step] = behind
    in_place = jnp.stack(row)[(jnp.arange(count) - here) % count]
    return jnp.swapaxes(in_place, 0, 1).reshape(len(mine), -1, *in_place.shape[3:])
