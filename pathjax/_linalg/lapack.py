"""Decompositions of one matrix, which under vmap take one matrix after the other on CPUs.

jaxlib 0.10 gives each matrix of a batch to a thread of XLA's, and lets the thread that asks for it wait. As many
batched calls as there are threads, at one time in one program, wait for each other for ever: two predictions under
`jax.vmap` hang on two cores. A batch of one is decomposed where it is. Other devices, and later versions, keep their
batched solvers.

The derivatives are JAX's own, in both modes and of any order: functions with a batching rule of their own have none in
reverse mode. Source: Giles (2008), "Collected Matrix Derivative Results for Forward and Reverse Mode Algorithmic
Differentiation".
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
"""Whether a batched call blocks the thread on which it runs."""


def one_by_one(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function of arrays, which calls LAPACK, so that it never does with a batch. It has no reverse mode."""
    if not _WAITS:
        return function
    alone = custom_vmap(function)

    @alone.def_vmap
    def batched(size: int, is_batched: list[bool], *arguments: Array) -> tuple[Any, Any]:
        pairs = zip(arguments, is_batched, strict=True)
        each = [array if there else jnp.broadcast_to(array[None], (size, *array.shape)) for array, there in pairs]
        found = lax.platform_dependent(
            *each,
            cpu=lambda *each: lax.map(lambda arguments: alone(*arguments), each),
            default=jax.vmap(function),
        )
        return found, jax.tree.map(lambda _: True, found)

    # so that eager calls trace and compile once
    return jax.jit(alone)


def rounding_error(values: Array, size: int) -> Array:
    """What rounding may make of a zero among the eigenvalues or singular values of a matrix with `size` rows, in (...).

    size · ε · the largest of the values (..., r), ε the rounding of their type: what is not above it counts as zero.
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
        turned = vectors.T @ tangents[0] @ vectors
        d_vectors = vectors @ (_inverse_off_diagonal(values[None, :] - values[:, None]) * turned)
    return (values, vectors), (jnp.diag(turned), d_vectors)


@jax.custom_jvp
@one_by_one
def svd(matrix: Array) -> tuple[Array, Array, Array]:
    """U (m, r), the singular values, descending (r,), and Vᴴ (r, n) of a matrix (m, n), with r = min(m, n)."""
    return tuple(jnp.linalg.svd(matrix, full_matrices=False))


@svd.defjvp
def _svd_jvp(primals: tuple[Array], tangents: tuple[Array]) -> Any:
    left, values, right = svd(*primals)
    (m, n), (change,) = primals[0].shape, tangents
    row, column = values[None, :], values[:, None]
    inverse = _inverse_off_diagonal((row - column) * (row + column))
    with jax.default_matmul_precision("highest"):
        turned = _adjoint(left) @ change @ _adjoint(right)
        by_row, by_column = row * turned, column * turned
        # of complex matrices, the phases
        phases = jnp.diag(1j * jnp.diag(turned).imag / jnp.where(values == 0, 1, values))
        d_left = left @ (inverse * (by_row + _adjoint(by_row)) + (phases if jnp.iscomplexobj(change) else 0))
        d_right = (inverse * (by_column + _adjoint(by_column))).T.conj() @ right
        if m > n:
            moved = change @ _adjoint(right)
            d_left += (moved - left @ (_adjoint(left) @ moved)) / row
        if n > m:
            moved = _adjoint(left) @ change
            d_right += (moved - (moved @ _adjoint(right)) @ right) / column
    return (left, values, right), (d_left, jnp.diag(turned).real, d_right)


@jax.custom_jvp
@one_by_one
def singular_values(matrix: Array) -> Array:
    """Those values alone."""
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
    same = jnp.eye(len(gaps), dtype=gaps.dtype)
    return 1 / (gaps + same) - same
