"""Eigendecompositions and singular value decompositions that do not deadlock under vmap on CPUs.

On CPUs, jaxlib 0.10 decomposes a batch of matrices on other threads of XLA's pool, while the calling thread waits. If a
program makes as many batched calls at once as the pool has threads, all threads wait for each other: on two cores, two
predictions under `jax.vmap` deadlock. A single matrix is decomposed on the calling thread, so cannot deadlock. The
functions here therefore decompose a batch one matrix at a time on CPUs with that version. Other devices and versions
use JAX's batched solvers.

Derivatives are those of JAX's functions, in forward and reverse mode and of any order. They are written out here
because functions with `jax.custom_batching.custom_vmap` have no derivative in reverse mode. Source: Giles (2008),
"Collected Matrix Derivative Results for Forward and Reverse Mode Algorithmic Differentiation".
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_batching import custom_vmap

__all__ = ["eigh", "eigvalsh", "one_by_one", "rounding_error", "singular_values", "svd"]

_WAITS = importlib.metadata.version("jaxlib").startswith("0.10.")
"""Whether, on CPUs, the calling thread of a batched decomposition waits for other threads."""


def one_by_one(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function of arrays, but under vmap it is called on one element of the batch at a time on CPUs.

    The result has no derivative in reverse mode.
    """
    if not _WAITS:
        return function
    unbatched = custom_vmap(function)

    @unbatched.def_vmap
    def batched(size: int, is_batched: list[bool], *arguments: Array) -> tuple[Any, Any]:
        batches = [
            array if has_batch else jnp.broadcast_to(array[None], (size, *array.shape))
            for array, has_batch in zip(arguments, is_batched, strict=True)
        ]
        results = lax.platform_dependent(
            *batches,
            cpu=lambda *batches: lax.map(lambda arguments: unbatched(*arguments), batches),
            default=jax.vmap(function),
        )
        return results, jax.tree.map(lambda _: True, results)

    # jit, so that repeated eager calls do not trace and compile again
    return jax.jit(unbatched)


def rounding_error(values: Array, size: int) -> Array:
    """The threshold size · ε · max(values), up to which an eigenvalue or singular value counts as zero.

    It is the rounding error of a zero value of a matrix with `size` rows; ε is the machine epsilon of the values
    (..., r), and the maximum is over r.
    """
    return size * float(jnp.finfo(values.dtype).eps) * jnp.max(values, axis=-1, initial=0)


def eigh(matrix: Array) -> tuple[Array, Array]:
    """Eigenvalues (n,), ascending, and eigenvectors (n, n), as columns, of the symmetric part of a real matrix."""
    return _eigh((matrix + matrix.T) / 2)


def eigvalsh(matrix: Array) -> Array:
    """Eigenvalues (n,), ascending, of the symmetric part of a real matrix (n, n)."""
    return eigh(matrix)[0]


@jax.custom_jvp
@one_by_one
def _eigh(matrix: Array) -> tuple[Array, Array]:
    return tuple(jnp.linalg.eigh(matrix, symmetrize_input=False))


@_eigh.defjvp
def _eigh_jvp(primals: tuple[Array], tangents: tuple[Array]) -> Any:
    values, vectors = _eigh(*primals)
    with jax.default_matmul_precision("highest"):
        change = vectors.T @ tangents[0] @ vectors
        d_vectors = vectors @ (_inverse_off_diagonal(values[None, :] - values[:, None]) * change)
    return (values, vectors), (jnp.diag(change), d_vectors)


@jax.custom_jvp
@one_by_one
def svd(matrix: Array) -> tuple[Array, Array, Array]:
    """U (m, r), the singular values (r,), descending, and Vᴴ (r, n) of a matrix (m, n), with r = min(m, n)."""
    return tuple(jnp.linalg.svd(matrix, full_matrices=False))


@svd.defjvp
def _svd_jvp(primals: tuple[Array], tangents: tuple[Array]) -> Any:
    left, values, right = svd(*primals)
    (m, n), (d_matrix,) = primals[0].shape, tangents
    row, column = values[None, :], values[:, None]
    inverse = _inverse_off_diagonal((row - column) * (row + column))
    with jax.default_matmul_precision("highest"):
        change = _adjoint(left) @ d_matrix @ _adjoint(right)
        by_row, by_column = row * change, column * change
        # singular vectors of a complex matrix are determined up to phases; as in JAX, U takes their derivative
        phases = jnp.diag(1j * jnp.diag(change).imag / jnp.where(values == 0, 1, values))
        d_left = left @ (inverse * (by_row + _adjoint(by_row)) + (phases if jnp.iscomplexobj(d_matrix) else 0))
        d_right = (inverse * (by_column + _adjoint(by_column))).T.conj() @ right
        if m > n:
            image = d_matrix @ _adjoint(right)
            d_left += (image - left @ (_adjoint(left) @ image)) / row
        if n > m:
            image = _adjoint(left) @ d_matrix
            d_right += (image - (image @ _adjoint(right)) @ right) / column
    return (left, values, right), (d_left, jnp.diag(change).real, d_right)


@jax.custom_jvp
@one_by_one
def singular_values(matrix: Array) -> Array:
    """The singular values (r,), descending, of a matrix (m, n), with r = min(m, n)."""
    return jnp.linalg.svd(matrix, compute_uv=False)


@singular_values.defjvp
def _singular_values_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    left, values, right = svd(*primals)
    with jax.default_matmul_precision("highest"):
        return values, jnp.diag(_adjoint(left) @ tangents[0] @ _adjoint(right)).real


def _adjoint(matrix: Array) -> Array:
    return matrix.T.conj()


def _inverse_off_diagonal(gaps: Array) -> Array:
    """1/gap off the diagonal; zero on the diagonal, where gaps are zero."""
    identity = jnp.eye(len(gaps), dtype=gaps.dtype)
    return 1 / (gaps + identity) - identity
