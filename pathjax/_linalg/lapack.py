"""Decompositions of one matrix, which under vmap take one matrix after the other on CPUs.

On CPUs jaxlib 0.10 decomposes a batch of matrices in threads of XLA's pool, while the thread that asked for it waits.
If one program makes as many batched calls at one time as the pool has threads, all of them wait and none works: on two
cores, two predictions under `jax.vmap` never end. A single matrix is decomposed on the thread that asks for it, so this
cannot happen. Other devices, and later versions, keep their batched solvers.

The derivatives are those of JAX, in both modes and of any order. They are written out here because functions with a
batching rule of their own have no derivative in reverse mode. Source: Giles (2008), "Collected Matrix Derivative
Results for Forward and Reverse Mode Algorithmic Differentiation".
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
"""Whether the thread that calls for a batched decomposition waits for other threads."""


def one_by_one(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function of arrays, which calls LAPACK, with a rule for batches that takes one element after the other.

    It has no derivative in reverse mode.
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

    # so that eager calls trace and compile once
    return jax.jit(unbatched)


def rounding_error(values: Array, size: int) -> Array:
    """The size up to which an eigenvalue or singular value of a matrix with `size` rows counts as zero.

    size · ε · the largest of the values (..., r), ε the rounding of their type: so large may rounding make a zero.
    """
    return size * float(jnp.finfo(values.dtype).eps) * jnp.max(values, axis=-1, initial=0)


def eigh(matrix: Array) -> tuple[Array, Array]:
    """Eigenvalues, ascending, and eigenvectors as columns, of a real matrix (n, n) or of its symmetric part."""
    return _eigh((matrix + matrix.T) / 2)


def eigvalsh(matrix: Array) -> Array:
    """The eigenvalues alone."""
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
    """U (m, r), the singular values, descending (r,), and Vᴴ (r, n) of a matrix (m, n), with r = min(m, n)."""
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
        # of complex matrices singular vectors change by phases too
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
    """The singular values alone."""
    return jnp.linalg.svd(matrix, compute_uv=False)


@singular_values.defjvp
def _singular_values_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    left, values, right = svd(*primals)
    with jax.default_matmul_precision("highest"):
        return values, jnp.diag(_adjoint(left) @ tangents[0] @ _adjoint(right)).real


def _adjoint(matrix: Array) -> Array:
    return matrix.T.conj()


def _inverse_off_diagonal(gaps: Array) -> Array:
    """1/g off the diagonal, zero on it, where the gap is zero."""
    identity = jnp.eye(len(gaps), dtype=gaps.dtype)
    return 1 / (gaps + identity) - identity
