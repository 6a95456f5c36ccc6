"""The largest eigenpairs and the quadrature of a symmetric positive semi-definite operator on vectors, by Lanczos.

matfree builds the Krylov spaces. Here stands what it leaves to its callers: where a space is exhausted, how to go on
from one to the next in bounded memory, and when to stop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from pathjax.types import Key

__all__ = ["Krylov", "Pairs", "krylov", "largest"]

# A product is right to this many roundings of the largest eigenvalue.
_ROUNDINGS = 50

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


class Pairs(NamedTuple):
    """Eigenvalues, descending, with eigenvectors (rank, p) as rows; zero where none was found.

    `residuals` are the norms ‖A v − λ v‖ from products with A itself, and `settled` says that all are within the
    tolerance and that a new random start has found nothing to add.
    """

    values: Any
    vectors: Any
    residuals: Any
    settled: Any


class _State(NamedTuple):
    pairs: Pairs
    errors: Any  # A v − λ v, as rows
    key: Any
    round: Any


def krylov(operator: Operator, start: Any, steps: int, *, noise: Any = 0.0) -> Krylov:
    """The space of `steps` Lanczos steps with full reorthogonalization from a start; empty where that is zero.

    It ends where the next vector is small beside the operator on the space, or not above `noise`.
    """
    from matfree import decomp  # heavy: on first use

    tiny = jnp.finfo(start.dtype).tiny
    exists = jnp.vdot(start, start) > tiny
    tridiagonalize = decomp.tridiag_sym(steps, materialize=False, reortho="full", custom_vjp=False)
    basis, (diagonal, beside), residual, _ = tridiagonalize(operator, jnp.where(exists, start, jnp.ones_like(start)))
    size = lax.cummax(jnp.abs(diagonal[:-1]) + jnp.abs(beside))
    goes_on = beside > jnp.maximum(jnp.finfo(basis.dtype).eps ** (2 / 3) * size, noise)
    alive = jnp.cumprod(jnp.concatenate([exists[None], goes_on])).astype(bool)
    matrix = jnp.diag(diagonal) + jnp.diag(beside, 1) + jnp.diag(beside, -1)
    return Krylov(
        jnp.where(alive[None, :], basis.T, 0),
        jnp.where(alive[:, None] & alive[None, :], matrix, 0),
        alive,
        jnp.where(alive[-1], residual, 0),
    )


def largest(
    operator: Operator,
    random: Callable[[Key], Any],
    rank: int,
    *,
    key: Key,
    steps: int,
    tolerance: Any,
    restarts: int,
) -> Pairs:
    """The `rank` largest eigenpairs by thick-restarted Lanczos; `random(key)` draws a start.

    Each round keeps the best `rank` vectors, walks `steps` on in their orthogonal complement and takes the best of both
    (Rayleigh and Ritz). It walks on from the error of the first pair that is not within tolerance: then the two
    together are one Krylov space (Wu and Simon, 2000). Where all are, it starts anew at random, which is how a repeated
    eigenvalue shows its other vectors; once that brings nothing, the search is over.
    """
    like = random(key)
    dtype = like.dtype
    none = Pairs(jnp.zeros(rank, dtype), jnp.zeros((rank, like.size), dtype), jnp.zeros(rank, dtype), jnp.array(False))
    initial = _State(none, none.vectors, key, jnp.zeros((), jnp.int32))

    def advance(state: _State) -> _State:
        return _advance(operator, random, state, steps, tolerance)

    def goes_on(state: _State) -> Any:
        return ~state.pairs.settled & (state.round < restarts)

    pairs = lax.while_loop(goes_on, advance, initial).pairs
    descending = jnp.argsort(-pairs.values)
    return Pairs(pairs.values[descending], pairs.vectors[descending], pairs.residuals[descending], pairs.settled)


def _advance(operator: Operator, random: Callable[[Key], Any], state: _State, steps: int, tolerance: Any) -> _State:
    key, draw = jax.random.split(state.key)
    pairs = state.pairs
    vectors = pairs.vectors

    def complement(vector: Any) -> Any:
        return vector - (vectors @ vector) @ vectors

    open_pairs = ~_within(pairs, tolerance)
    anew = ~jnp.any(open_pairs)
    start = jnp.where(anew, random(draw), state.errors[jnp.argmax(open_pairs)])
    # where the vectors that are kept hold all that is not null, a product in their complement is rounding
    noise = _ROUNDINGS * jnp.finfo(vectors.dtype).eps * jnp.max(pairs.values)
    first = _direction(complement, start)
    space = krylov(lambda q: complement(operator(complement(q))), first, steps, noise=noise)
    found = _ritz(pairs, state.errors, space)
    products = lax.map(operator, found)
    quotients = jnp.sum(found * products, axis=1)
    errors = products - quotients[:, None] * found
    next_pairs = Pairs(quotients, found, jnp.linalg.norm(errors, axis=1), pairs.settled)
    grown = jnp.max(quotients - pairs.values) > tolerance * jnp.max(quotients)
    more = jnp.any(found != 0, axis=1).sum() > jnp.any(vectors != 0, axis=1).sum()
    settled = anew & jnp.all(_within(next_pairs, tolerance)) & ~grown & ~more
    return _State(next_pairs._replace(settled=settled), errors, key, state.round + 1)


def _within(pairs: Pairs, tolerance: Any) -> Any:
    return pairs.residuals <= tolerance * jnp.max(pairs.values)


def _direction(complement: Operator, start: Any) -> Any:
    """The start in the complement of the vectors that are kept, zero where nothing but rounding is left there."""
    before = jnp.linalg.norm(start)
    inside = complement(complement(start / jnp.where(before > 0, before, 1)))
    return jnp.where(jnp.linalg.norm(inside) > jnp.finfo(start.dtype).eps ** 0.5, inside, 0)


def _ritz(pairs: Pairs, errors: Any, space: Krylov) -> Any:
    """The vectors of the largest eigenvalues of the operator on the kept vectors and the new space together."""
    rank = len(pairs.values)
    coupling = errors @ space.basis
    matrix = jnp.block([[jnp.diag(pairs.values), coupling], [coupling.T, space.matrix]])
    # what is not there goes to the end of the spectrum, below all that is
    there = jnp.concatenate([jnp.any(pairs.vectors != 0, axis=1), space.alive])
    below = 1 + 2 * jnp.max(jnp.sum(jnp.abs(matrix), axis=1))
    values, small = jnp.linalg.eigh(matrix - jnp.diag(jnp.where(there, 0, below)))
    small = jnp.where(values > -below / 2, small, 0)[:, ::-1][:, :rank]
    return small[:rank].T @ pairs.vectors + small[rank:].T @ space.basis.T
