"""The Krylov space of one start, for quadratures. matfree builds it; here is decided where the space is exhausted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

__all__ = ["Krylov", "Operator", "ROUNDINGS", "inner_products", "krylov", "norm", "split"]

# A product is right to this many roundings of the largest eigenvalue.
ROUNDINGS = 50

# Inner products are summed in pieces of so many numbers each.
_PIECE = 2**13

Operator: TypeAlias = Callable[[jax.Array], jax.Array]
"""A linear map of vectors (p,), symmetric and positive semi-definite."""


class Krylov(NamedTuple):
    """A·basis = basis·matrix + residual ⊗ (the last unit vector).

    The space is exhausted after as many steps as the start has parts in eigenspaces of A, and further vectors would be
    rounding. There the columns, and their rows and columns of the matrix, are zero.

    Attributes:
        basis: (p, steps), orthonormal columns.
        matrix: (steps, steps), tridiagonal.
        exists: (steps,), whether a column is in the space.
        residual: (p,), zero where the space is exhausted.
    """

    basis: Any
    matrix: Any
    exists: Any
    residual: Any


def krylov(operator: Operator, start: Any, steps: int, *, to_the_end: bool = False) -> Krylov:
    """The space of `steps` Lanczos steps with full reorthogonalization from a start; empty where that is zero.

    It ends where the next vector is below ε^(2/3) of the operator on the space, ε the rounding of its type. With
    `to_the_end` it ends only where that is below rounding: then parts of the start that are small from the outset are
    in the space, and perhaps directions with them that are rounding.
    """
    from matfree import decomp  # heavy: on first use

    has_start = jnp.vdot(start, start) > jnp.finfo(start.dtype).tiny
    # not `tridiag_sym`, which averages the Hessenberg matrix with its transpose and so hides where a space is exhausted
    arnoldi = decomp.hessenberg(steps, reortho="full", custom_vjp=False)
    with jax.default_matmul_precision("highest"):
        basis, hessenberg, residual, _ = arnoldi(operator, jnp.where(has_start, start, jnp.ones_like(start)))
    diagonal, off_diagonal = jnp.diag(hessenberg), jnp.diag(hessenberg, -1)
    size = lax.cummax(jnp.abs(diagonal[:-1]) + jnp.abs(off_diagonal))
    epsilon = jnp.finfo(basis.dtype).eps
    goes_on = off_diagonal > (ROUNDINGS * epsilon if to_the_end else epsilon ** (2 / 3)) * size
    exists = jnp.cumprod(jnp.concatenate([has_start[None], goes_on])).astype(bool)
    matrix = jnp.diag(diagonal) + jnp.diag(off_diagonal, 1) + jnp.diag(off_diagonal, -1)
    return Krylov(
        jnp.where(exists[None, :], basis.T, 0),
        jnp.where(exists[:, None] & exists[None, :], matrix, 0),
        exists,
        jnp.where(exists[-1], residual, 0),
    )


def norm(vector: Any) -> Any:
    """The Euclidean norm, also where squares of the entries overflow or underflow."""
    peak = jnp.max(jnp.abs(vector))
    scale = jnp.where((peak > 0) & jnp.isfinite(peak), peak, 1)
    return scale * jnp.linalg.norm(vector / scale)


def inner_products(rows: Any, vector: Any) -> Any:
    """rows · vector, summed in pieces.

    A matrix product on a CPU adds all terms one after another. Of millions of numbers in single precision its errors
    are so large that residuals which a Krylov space predicts are too small by a factor of ten.
    """
    whole, rest = divmod(vector.size, _PIECE)
    total = rows[:, whole * _PIECE :] @ vector[whole * _PIECE :] if rest else jnp.zeros(len(rows), vector.dtype)

    def add(i: Any, total: Any) -> Any:
        piece = lax.dynamic_slice(rows, (0, i * _PIECE), (len(rows), _PIECE))
        return total + piece @ lax.dynamic_slice(vector, (i * _PIECE,), (_PIECE,))

    return lax.fori_loop(0, whole, add, total) if whole else total


def split(basis: Any, vector: Any) -> tuple[Any, Any]:
    """The part of a vector at right angles to orthonormal rows, and the coefficients of the part along them."""
    along = inner_products(basis, vector)
    remainder = vector - along @ basis
    again = inner_products(basis, remainder)  # Gram–Schmidt twice is enough
    return remainder - again @ basis, along + again
