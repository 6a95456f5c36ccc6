"""A kernel in blocks: chunks of examples against chunks of examples, in the memory of two chunks and of the result.

Chunks form groups. What a group needs to be multiplied with others is held while one chunk of the others after the
other goes through the network. Of a batch with itself only half of the blocks are computed, the others are their mirror
images. In order that all rows of blocks take equally long, group i is multiplied with groups i, i + 1, … modulo their
number, up to half of them, and not with all groups after it. On a mesh of devices each device computes some of the rows
of blocks.
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

from pathjax._interpreter.jaxpr import batch_length

__all__ = ["Blocks", "chunks", "mirror", "spread", "unfolded"]

Prepare: TypeAlias = Callable[[Any], Any]
"""What is computed of a chunk (c, ...) alone, to be multiplied with that of others: a tree of arrays (c, ...)."""

Multiply: TypeAlias = Callable[[Any, Any], Any]
"""The block (c, d, ...) of two prepared chunks, or (c, ...) on a diagonal."""


@dataclass(frozen=True)
class Blocks:
    """How a kernel is computed in blocks.

    Attributes:
        prepare: what is computed of each chunk alone.
        multiply: the block of two prepared chunks.
        size: how many examples a chunk has; None for all.
        held: how many prepared chunks a group has.
    """

    prepare: Prepare
    multiply: Multiply
    size: int | None
    held: int = 1

    def rectangular(self, x1: Any, x2: Any) -> Any:
        """The kernel (n, m, ...) of two batches."""
        n, m = batch_length(x1), batch_length(x2)
        if self.size is None or self.size >= max(n, m):
            return self.multiply(self.prepare(x1), self.prepare(x2))
        groups, columns = self._groups(x1), chunks(x2, self.size)

        def row(kernel: Any, i: Any) -> tuple[Any, None]:
            prepared = self._prepared(_at(groups, i))

            def block(kernel: Any, j: Any) -> tuple[Any, None]:
                product = self.multiply(prepared, self.prepare(_at(columns, j)))
                return _placed(kernel, product, i * product.shape[0], j * product.shape[1]), None

            return lax.scan(block, kernel, jnp.arange(batch_length(columns)))[0], None

        return lax.scan(row, self._zeros(groups, columns), jnp.arange(batch_length(groups)))[0][:n, :m]

    def symmetric(self, x: Any) -> Any:
        """The kernel (n, n, ...) of a batch with itself, exactly symmetric."""
        n = batch_length(x)
        if self.size is None or self.size >= n:
            return self._own(self.prepare(x))
        groups = self._groups(x)
        columns = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), groups)
        count, held = batch_length(groups), batch_length(columns) // batch_length(groups)

        def row(kernel: Any, i: Any) -> tuple[Any, None]:
            prepared = self._prepared(_at(groups, i))
            own = self._own(prepared)

            def block(kernel: Any, step: Any) -> tuple[Any, None]:
                j = (i * held + step) % (count * held)
                product = self.multiply(prepared, self.prepare(_at(columns, j)))
                first, second = i * product.shape[0], j * product.shape[1]
                return _placed(_placed(kernel, product, first, second), mirror(product, 0), second, first), None

            def block_once(kernel: Any, step: Any) -> tuple[Any, None]:
                # half of the way round two groups meet twice
                return lax.cond(i < count // 2, lambda: block(kernel, step)[0], lambda: kernel), None

            kernel = _placed(kernel, own, i * own.shape[0], i * own.shape[0])
            half = held * ((count + 1) // 2)
            kernel, _ = lax.scan(block, kernel, jnp.arange(held, half))
            return lax.scan(block_once, kernel, jnp.arange(half, held * (count // 2 + 1)))[0], None

        return lax.scan(row, self._zeros(groups, columns), jnp.arange(count))[0][:n, :n]

    def diagonal(self, x1: Any, x2: Any | None) -> Any:
        """Each example of x1 with the one in its place in x2, (n, ...); with itself where there is no x2."""

        def block(pair: tuple[Any, Any]) -> Any:
            left = self.prepare(pair[0])
            return self.multiply(left, left if pair[1] is None else self.prepare(pair[1]))

        n = batch_length(x1)
        if self.size is None or self.size >= n:
            return block((x1, x2))
        blocks = lax.map(block, (chunks(x1, self.size), None if x2 is None else chunks(x2, self.size)))
        return blocks.reshape(-1, *blocks.shape[2:])[:n]

    def _groups(self, x: Any) -> Any:
        """A batch in groups (count, held, c, ...) of chunks."""
        assert self.size is not None
        n = batch_length(x)
        in_chunks = math.ceil(n / self.size)
        count = math.ceil(in_chunks / self.held)
        return _in_equal_parts(x, count, math.ceil(in_chunks / count))

    def _prepared(self, group: Any) -> Any:
        """What is computed of each chunk of a group (held, c, ...), side by side, (held · c, ...)."""
        if batch_length(group) == 1:
            return self.prepare(_at(group, 0))
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), lax.map(self.prepare, group))

    def _zeros(self, groups: Any, columns: Any) -> Any:
        """The kernel of these groups and chunks, before it has entries."""

        def product(groups: Any, columns: Any) -> Any:
            return self.multiply(self._prepared(_at(groups, 0)), self.prepare(_at(columns, 0)))

        like = jax.eval_shape(product, groups, columns)
        rows, length = batch_length(groups) * like.shape[0], batch_length(columns) * like.shape[1]
        return jnp.zeros((rows, length, *like.shape[2:]), like.dtype)

    def _own(self, prepared: Any) -> Any:
        """The block of a chunk with itself: the mean with its mirror image, which rounding may have set apart."""
        block = self.multiply(prepared, prepared)
        return (block + mirror(block, 0)) / 2


def chunks(x: Any, size: int) -> Any:
    """A batch in chunks (count, c, ...) of up to `size` examples, the last filled up by repeating the last example."""
    return _in_equal_parts(x, math.ceil(batch_length(x) / size))


def _in_equal_parts(x: Any, *counts: int) -> Any:
    """A batch as an array of chunks, (*counts, c, ...), filled up by repeating the last example."""
    n, count = batch_length(x), math.prod(counts)
    length = math.ceil(n / count)
    rows = np.minimum(np.arange(count * length), n - 1)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[rows].reshape(*counts, length, *leaf.shape[1:]), x)


def _at(x: Any, index: Any) -> Any:
    """The example, or the chunk, with this index, of a tree of arrays."""
    return jax.tree.map(lambda leaf: leaf[index], x)


def unfolded(blocks: Any) -> Any:
    """All blocks (count, count, c, c, ...) of a symmetric kernel from half of them.

    `blocks` (count, some, c, c, ...) are those of each chunk i with chunks i, i + 1, …, i + some − 1 modulo the count.
    """
    count, some = blocks.shape[:2]
    row, column = np.indices((count, count))
    first, last = np.minimum(row, column), np.maximum(row, column)
    # the block of two chunks is stored with the first of them, or, counted past the end, with the last
    is_with_first = last - first < some
    start = np.where(is_with_first, first, last)
    steps = np.where(is_with_first, last - first, count - (last - first))
    is_mirrored = start != row
    in_place = blocks[start, steps % count]
    return jnp.where(is_mirrored.reshape(count, count, *[1] * (blocks.ndim - 2)), mirror(in_place, 2), in_place)


def mirror(block: Any, axis: int) -> Any:
    """The block of the same two chunks in the other order.

    Axes `axis` and `axis` + 1 are their examples; the two after these their outputs, if there are any.
    """
    swapped = jnp.swapaxes(block, axis, axis + 1)
    return swapped if swapped.ndim == axis + 2 else jnp.swapaxes(swapped, axis + 2, axis + 3)


def _placed(kernel: Any, block: Any, first: Any, second: Any) -> Any:
    """The kernel with this block at these numbers of its first examples."""
    return lax.dynamic_update_slice(kernel, block, (first, second, *[0] * (block.ndim - 2)))


def spread(
    blocks: Callable[[Any, Any, Any], Blocks], given: Any, x1: Any, x2: Any | None, *, diagonal: bool, mesh: Mesh
) -> Any:
    """The kernel, its rows spread over the devices of a mesh.

    `blocks(given, own, others)` says on each device how blocks are computed of its own examples of x1 and the others
    that they are multiplied with; `given` goes to all devices.
    """
    rows, everywhere = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ([mesh.axis_names], []))
    n, filled = batch_length(x1), _filled(x1, mesh.size)
    others = None if x2 is None else _filled(x2, mesh.size) if diagonal else x2

    def on_device(given: Any, own: Any, others: Any) -> Any:
        if x2 is None and not diagonal:
            return _row_of_blocks(blocks(given, own, own), own, others, mesh.axis_names, mesh.size)
        device_blocks = blocks(given, own, others)
        return device_blocks.diagonal(own, others) if diagonal else device_blocks.rectangular(own, others)

    if x2 is None and not diagonal:
        others = filled
    places = (everywhere, rows, rows if diagonal else everywhere)
    arguments = [jax.device_put(tree, place) for tree, place in zip((given, filled, others), places, strict=True)]
    specs = tuple(place.spec for place in places)
    # check_vma would refuse loops in the user's network that start from constants
    program = jax.shard_map(on_device, mesh=mesh, in_specs=specs, out_specs=rows.spec, check_vma=False)
    kernel = jax.jit(program)(*arguments)
    if n == batch_length(filled):
        return kernel
    kernel = jax.device_put(kernel, everywhere)  # n rows cannot be divided evenly among the devices
    return kernel[:n, :n] if x2 is None and not diagonal else kernel[:n]


def _filled(x: Any, count: int) -> Any:
    """A batch filled up, by repeating its last example, to a multiple of the count."""
    n = batch_length(x)
    size = math.ceil(n / count) * count
    return x if size == n else _at(x, np.minimum(np.arange(size), n - 1))


def _row_of_blocks(blocks: Blocks, own: Any, everyone: Any, axes: Sequence[str], count: int) -> Any:
    """The rows of the kernel of a batch with itself that belong to one device.

    With the devices in a ring, this one computes the blocks of its own examples with those of the devices up to half
    way round, and receives the others, as mirror images, from the devices behind it.
    """
    device = lax.axis_index(axes)
    chunks = jax.tree.map(lambda leaf: leaf.reshape(count, -1, *leaf.shape[1:]), everyone)
    row = [blocks.symmetric(own), *[None] * (count - 1)]
    for step in range(1, count // 2 + 1):
        computed = blocks.rectangular(own, _at(chunks, (device + step) % count))
        receivers = [(sender, (sender + step) % count) for sender in range(count)]
        received = mirror(lax.ppermute(computed, axes, receivers), 0)
        # at half the ring two devices have computed the same block: both use the copy of the lower-numbered one
        row[step] = jnp.where(device < step, computed, received) if 2 * step == count else computed
        if 2 * step != count:
            row[-step] = received
    in_place = jnp.stack(row)[(jnp.arange(count) - device) % count]
    return jnp.swapaxes(in_place, 0, 1).reshape(batch_length(own), -1, *in_place.shape[3:])
