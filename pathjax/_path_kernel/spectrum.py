"""What is computed of the spectrum of G: all of it where G is small, its ends where it is not."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pathjax._base.trees import dot, ravel, total
from pathjax._linalg.krylov import Krylov, krylov
from pathjax._linalg.lanczos import DENSE, Pairs, largest
from pathjax._linalg.lapack import eigh, eigvalsh
from pathjax._path_kernel import twin
from pathjax._path_kernel.twin import PathKernel
from pathjax.types import Key, Params, Real

__all__ = ["Spectrum", "decompose", "eigenpairs", "ends", "inverse_roots"]


# Eigenvalues below this many roundings of the largest count as zero.
_ROUNDINGS = 512


class Spectrum(NamedTuple):
    """All eigenvalues of G on the kept weights, descending, and eigenvectors as columns at `positions`.

    What is not `alive` stands for weights that a traced mask has pruned: zero, at the end.
    """

    values: Any
    vectors: Any
    alive: Any
    positions: np.ndarray


def decompose(kernel: PathKernel) -> Spectrum:
    """All of the spectrum, by G on the kept weights in full."""
    positions = twin.positions(kernel)
    matrix = twin.matrix(kernel, kernel)
    alive = jnp.ones(len(positions), bool)
    if kernel.mask is not None:
        alive = jnp.concatenate([jnp.ravel(mask) for mask in jax.tree.leaves(kernel.mask)])[positions]
    below = 1 + jnp.trace(matrix)
    values, vectors = eigh(matrix - jnp.diag(jnp.where(alive, 0, below)))
    values, vectors = values[::-1], vectors[:, ::-1]
    there = values > -below / 2
    return Spectrum(jnp.where(there, values, 0), jnp.where(there[None, :], vectors, 0), there, positions)


@functools.partial(jax.custom_jvp, nondiff_argnums=(4, 5, 6))
def eigenpairs(
    params: Params, kernel: PathKernel, key: Key, tolerance: Any, rank: int, steps: int, rounds: int
) -> Pairs:
    """The `rank` largest pairs by iteration; `params` are the kernel's, in which the values can be differentiated."""
    return _iterate(params, kernel, key, tolerance, rank, steps, rounds)


@functools.partial(jax.jit, static_argnums=(4, 5, 6))
def _iterate(params: Params, kernel: PathKernel, key: Key, tolerance: Any, rank: int, steps: int, rounds: int) -> Pairs:
    kernel = dataclasses.replace(kernel, params=params)
    random = functools.partial(twin.random_signs, kernel)
    operator = twin.flat(kernel, twin.linear(kernel, kernel))
    return largest(operator, random, rank, key=key, order=steps, tolerance=tolerance, restarts=rounds)


@eigenpairs.defjvp
def _eigenpairs_jvp(rank: int, steps: int, rounds: int, primals: Any, tangents: Any) -> tuple[Pairs, Pairs]:
    pairs = eigenpairs(*primals, rank, steps, rounds)
    params, kernel, *_ = primals
    vectors = jax.vmap(ravel(params)[1])(pairs.vectors)

    def quotients(params: Params) -> Any:
        # λ = vᵀ G v has λ's own derivative with v held
        at = dataclasses.replace(kernel, params=params)
        return lax.map(lambda vector: dot(vector, twin.cross(at, at)(vector)), vectors)

    _, values = jax.jvp(quotients, (params,), (tangents[0],))
    unknown = jnp.full_like(pairs.vectors, jnp.nan) * total(tangents[0]).astype(pairs.vectors.dtype)
    still = np.zeros(jnp.shape(pairs.settled), jax.dtypes.float0)
    return pairs, Pairs(values, unknown, jnp.zeros_like(pairs.residuals), cast(Any, still))


def ends(kernel: PathKernel, key: Key, order: int, tolerance: Real) -> tuple[Any, Any]:
    """The smallest nonzero eigenvalue, NaN where it is not resolved, and the largest."""
    if twin.count(kernel) <= DENSE:
        values = decompose(kernel).values
        low = jnp.min(jnp.where(values > _floor(values), values, jnp.inf))
        return jnp.where(jnp.isfinite(low), low, jnp.nan), values[0]
    operator = twin.flat(kernel, twin.linear(kernel, kernel))
    steps = min(order, twin.count(kernel))

    def of_start(start_key: Key) -> tuple[Any, Any]:
        space = krylov(operator, operator(twin.random_signs(kernel, start_key)), steps, to_the_end=True)
        return _lowest(space, tolerance), eigvalsh(space.matrix)[-1]

    low, high = lax.map(of_start, jax.random.split(key, 2))
    agree = jnp.abs(low[0] - low[1]) <= tolerance * jnp.min(low)
    return jnp.where(agree, jnp.min(low), jnp.nan), jnp.max(high)


def _lowest(space: Krylov, tolerance: Real) -> Any:
    """The lowest Ritz value above zero, NaN unless its residual is within the tolerance."""
    values, vectors = eigh(space.matrix)
    candidates = jnp.where(values > _floor(values), values, jnp.inf)
    at = jnp.argmin(candidates)
    residual = jnp.linalg.norm(space.residual) * jnp.abs(vectors[-1, at])
    return jnp.where(residual <= tolerance * candidates[at], candidates[at], jnp.nan)


def inverse_roots(eigenvalues: Any) -> Any:
    """λ^(−1/2), and zero for eigenvalues that count as zero."""
    positive = eigenvalues > _floor(eigenvalues)
    return jnp.where(positive, jnp.where(positive, eigenvalues, 1) ** -0.5, 0)


def _floor(eigenvalues: Any) -> Any:
    """The size below which an eigenvalue counts as zero."""
    return _ROUNDINGS * jnp.finfo(eigenvalues.dtype).eps * jnp.max(eigenvalues)
