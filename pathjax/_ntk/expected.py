"""Θ in the mean over random weights: in closed form for wide layers, and by sampling the signs of the weights."""

from __future__ import annotations

import functools
import math
from collections.abc import Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from pathjax._base.leaves import KnownMask
from pathjax._base.trees import wide
from pathjax._interpreter import mean_field as _mean_field
from pathjax._interpreter.lifting import one_example
from pathjax._interpreter.traced import TracedNetwork
from pathjax._ntk import layerwise
from pathjax._ntk import memory as _memory
from pathjax._ntk.contractions import Form
from pathjax.types import Estimate, Key, Mask, Params

__all__ = ["MeanField", "kernels", "sign_average"]

# Arrays of the largest size that are held at once: a covariance, its derivative, and what they are made from.
_HELD = 6


class MeanField(NamedTuple):
    """Expected kernels of n and m examples, for each of the o outputs; those of two different outputs are 0.

    Attributes:
        nngp: E[f(x)_o f(x')_o], the kernel of the Gaussian process that a wide network is before training.
        ntk: E[Θ(x, x')_oo]; None where it was not asked for.
    """

    nngp: Float[Array, "n m o"]
    ntk: Float[Array, "n m o"] | None

    def __repr__(self) -> str:
        """Sizes alone, as `MeanField(n=20, m=20, o=10)`."""
        *batch, n, m, o = jnp.shape(self.nngp)
        first, last = f"batch={tuple(batch)}, " if batch else "", ", nngp alone" if self.ntk is None else ""
        return f"MeanField({first}n={n:,}, m={m:,}, o={o:,}{last})"


def kernels(
    network: TracedNetwork,
    moments: Params,
    mask: Mask | None,
    x1: Any,
    x2: Any | None,
    *,
    ntk: bool,
    batch_size: int | None,
) -> MeanField:
    """The expected kernels, in chunks of examples, by programs that are compiled once and kept."""
    n, m = len(x1), len(x1 if x2 is None else x2)
    _check_memory(network, moments, mask, x1, n, m, ntk, batch_size)
    compiled = network.compiled(_kernels, ntk=ntk)
    if batch_size is None or batch_size >= max(n, m):
        return compiled(moments, mask, x1, x2)
    rows, columns = (range(0, length, batch_size) for length in (n, m))
    blocks: dict[tuple[int, int], MeanField] = {}
    for i in rows:
        left = x1[i : i + batch_size]
        for j in columns:
            if x2 is None and j < i:
                blocks[i, j] = jax.tree.map(lambda kernel: kernel.swapaxes(0, 1), blocks[j, i])
            else:
                right = None if x2 is None and i == j else (x1 if x2 is None else x2)[j : j + batch_size]
                blocks[i, j] = compiled(moments, mask, left, right)
    lines = [
        jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), *(blocks[i, j] for j in columns)) for i in rows
    ]
    whole: MeanField = jax.tree.map(lambda *parts: jnp.concatenate(parts), *lines)
    return whole


def _kernels(
    network: TracedNetwork, moments: Params, mask: Mask | None, x1: Any, x2: Any | None, *, ntk: bool
) -> MeanField:
    program = network.path_program(one_example(x1))
    leaves, kept = jax.tree.leaves(moments), None if mask is None else jax.tree.leaves(mask)
    return MeanField(*_mean_field.kernels(program, leaves, kept, wide(x1), None if x2 is None else wide(x2), ntk=ntk))


def _check_memory(
    network: TracedNetwork,
    moments: Params,
    mask: Mask | None,
    x: Any,
    n: int,
    m: int,
    ntk: bool,
    batch_size: int | None,
) -> None:
    """Raise MemoryError where the kernels would not fit."""
    one = one_example(x)
    two = jax.ShapeDtypeStruct((2, *one.shape[1:]), one.dtype)
    types = [(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in jax.tree.leaves((moments, mask, one))]
    key: Hashable = ("mean field", tuple(types), mask is None, ntk)
    if key not in network.facts:
        program = jax.make_jaxpr(functools.partial(_kernels, network, ntk=ntk))(moments, mask, two, two)
        sizes = [variable.aval.size for equation in program.jaxpr.eqns for variable in equation.outvars]
        network.facts[key] = max(sizes, default=0) / 4  # of two examples with two others
    item = jnp.promote_types(one.dtype, jnp.float32).itemsize
    numbers: float = network.facts[key]
    outputs = network.output(one).shape[1]
    _memory.check(
        2 * n * m * outputs * item, lambda size: math.ceil(_HELD * numbers * size**2 * item), max(n, m), batch_size
    )


def sign_average(
    network: TracedNetwork,
    params: Params,
    mask: Mask | None,
    x1: Any,
    x2: Any | None,
    *,
    key: Key,
    samples: int,
    batch_size: int | None,
) -> Estimate:
    """The mean of Θ over random signs of the weights and its standard error, by the kernel layer by layer."""
    known = KnownMask.read(mask)
    run = network.compiled(_sign_average, known=known, samples=samples, batch_size=batch_size)
    average: Estimate = run(params, mask if known is None else None, x1, x2, key)
    return average


def _sign_average(
    network: TracedNetwork,
    params: Params,
    mask: Mask | None,
    x1: Any,
    x2: Any | None,
    key: Key,
    *,
    known: KnownMask | None,
    samples: int,
    batch_size: int | None,
) -> Estimate:
    needed: list[int] = []
    mask = mask if known is None else known.mask

    def draw(key: Key) -> Any:
        signed = _with_random_signs(params, key)
        return layerwise.kernel(
            network, signed, x1, x2, mask=mask, form=Form(), batch_size=batch_size, note_memory=needed.append
        )

    keys = jax.random.split(key, samples)
    like = jax.eval_shape(draw, keys[0])
    together = _side_by_side(samples, needed[0])

    def add(sums: tuple[Any, Any, Any], keys: Any) -> tuple[tuple[Any, Any, Any], None]:
        return _joined(sums, jax.vmap(draw)(keys) if together > 1 else draw(keys[0])[None]), None

    zero = jnp.zeros(like.shape, like.dtype)
    (count, mean, squares), _ = lax.scan(add, (jnp.zeros((), like.dtype), zero, zero), keys.reshape(-1, together))
    return Estimate(mean, jnp.sqrt(squares / (count * (count - 1))))


def _joined(sums: tuple[Any, Any, Any], kernels: Any) -> tuple[Any, Any, Any]:
    """Number, mean and summed squared distances from the mean, of earlier draws and these: Chan et al. (1979)."""
    count, mean, squares = sums
    added, new = len(kernels), jnp.mean(kernels, axis=0)
    total, gap = count + added, new - mean
    spread = jnp.sum(jnp.square(kernels - new[None]), axis=0)
    return total, mean + gap * (added / total), squares + spread + jnp.square(gap) * (count * added / total)


def _with_random_signs(params: Params, key: Key) -> Params:
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    signed = [
        leaf * jax.random.rademacher(one, jnp.shape(leaf), jnp.result_type(leaf))
        for leaf, one in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(structure, signed)


def _side_by_side(samples: int, needed: int) -> int:
    """How many draws run at once: one on CPUs, whose cores one keeps busy; else a divisor whose memory is free."""
    free = _memory.available()
    if jax.default_backend() == "cpu" or free is None:
        return 1
    return max(size for size in range(1, samples + 1) if samples % size == 0 and (size == 1 or size * needed <= free))
