"""A kernel spread over the devices of a mesh by rows of blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pathjax._ntk.blocks import Blocks, mirror

__all__ = ["spread"]


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
