"""The Krylov space of one start, for quadratures: matfree builds it; here stands where it is exhausted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

__all__ = ["Krylov", "Operator", "ROUNDINGS", "krylov"]

# A product is right to this many roundings of the largest eigenvalue.
ROUNDINGS = 50

Operator: TypeAlias = Callable[[jax.Array], jax.Array]
"""A linear map of vectors (p,), symmetric and positive semi-definite."""


class Krylov(NamedTuple):
    """A·basis = basis·matrix + residual ⊗ (the last unit vector), as far as the space goes.

    Where A has no more than some number of distinct eigenvalues, so many steps exhaust what a start can reach, and what
    follows is rounding: columns that are not `alive`, and their entries of the matrix, are zero.

    Attributes:
        basis: (p, steps), orthonormal columns.
        matrix: (steps, steps), tridiagonal.
        alive: (steps,), whether a column is in the space.
        residual: (p,), zero where the space is exhausted.
    """

    basis: Any
    matrix: Any
    alive: Any
    residual: Any


def krylov(operator: Operator, start: Any, steps: int, *, to_the_end: bool = False) -> Krylov:
    """The space of `steps` Lanczos steps with full reorthogonalization from a start; empty where that is zero.

    It ends where the next vector is small beside the operator on the space. With `to_the_end`, only where it is
    rounding: then parts of the start come in that are small from the outset, and directions that rounding has brought
    in may come with them.
    """
    from matfree import decomp  # heavy: on first use

    tiny = jnp.finfo(start.dtype).tiny
    exists = jnp.vdot(start, start) > tiny
    # its Hessenberg matrix, for `tridiag_sym` averages it with its transpose, which hides where a space is exhausted
    arnoldi = decomp.hessenberg(steps, reortho="full", custom_vjp=False)
    with jax.default_matmul_precision("highest"):
        basis, hessenberg, residual, _ = arnoldi(operator, jnp.where(exists, start, jnp.ones_like(start)))
    diagonal, beside = jnp.diag(hessenberg), jnp.diag(hessenberg, -1)
    size = lax.cummax(jnp.abs(diagonal[:-1]) + jnp.abs(beside))
    epsilon = jnp.finfo(basis.dtype).eps
    goes_on = beside > (ROUNDINGS * epsilon if to_the_end else epsilon ** (2 / 3)) * size
    alive = jnp.cumprod(jnp.concatenate([exists[None], goes_on])).astype(bool)
    matrix = jnp.diag(diagonal) + jnp.diag(beside, 1) + jnp.diag(beside, -1)
    return Krylov(
        jnp.where(alive[None, :], basis.T, 0),
        jnp.where(alive[:, None] & alive[None, :], matrix, 0),
        alive,
        jnp.where(alive[-1], residual, 0),
    )
