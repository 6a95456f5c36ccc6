"""The largest eigenpairs and the quadrature of a symmetric positive semi-definite operator on vectors, by Lanczos.

matfree builds the Krylov spaces. Here stands what it leaves to its callers: where a space is exhausted, how to go on
from one to the next in bounded memory, and when to stop.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from pathjax.types import Key, Real

__all__ = ["Krylov", "Pairs", "krylov", "largest", "warn_of_misses"]

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
    pairs: Pairs  # one more than asked for
    errors: Any  # A v − λ v, as rows
    before: Any  # the values at the last start from a random vector
    key: Any
    round: Any


def krylov(operator: Operator, start: Any, steps: int, *, noise: Any = 0.0, to_the_end: bool = False) -> Krylov:
    """The space of `steps` Lanczos steps with full reorthogonalization from a start; empty where that is zero.

    It ends where the next vector is small beside the operator on the space, or not above `noise`. With `to_the_end`,
    only where it is rounding: then parts of the start come in that are small from the outset, and directions that
    rounding has brought in may come with them.
    """
    from matfree import decomp  # heavy: on first use

    tiny = jnp.finfo(start.dtype).tiny
    exists = jnp.vdot(start, start) > tiny
    # its Hessenberg matrix, for `tridiag_sym` averages it with its transpose, which hides where a space is exhausted
    arnoldi = decomp.hessenberg(steps, reortho="full", custom_vjp=False)
    basis, hessenberg, residual, _ = arnoldi(operator, jnp.where(exists, start, jnp.ones_like(start)))
    diagonal, beside = jnp.diag(hessenberg), jnp.diag(hessenberg, -1)
    size = lax.cummax(jnp.abs(diagonal[:-1]) + jnp.abs(beside))
    epsilon = jnp.finfo(basis.dtype).eps
    goes_on = beside > jnp.maximum((_ROUNDINGS * epsilon if to_the_end else epsilon ** (2 / 3)) * size, noise)
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

    Each round keeps the best vectors, walks `steps` on in their orthogonal complement and takes the best of both
    (Rayleigh and Ritz). It walks on from the error of the first pair that is not within tolerance: then the two
    together are one Krylov space (Wu and Simon, 2000). Where all are, the one beyond `rank` is given up and the walk
    starts anew at random, which is how a repeated eigenvalue shows its other vectors. Once the pair beyond `rank` that
    this leads to is settled below the others, and none of them has grown, the search is over.
    """
    like = random(key)
    none = jnp.zeros(rank + 1, like.dtype)
    vectors = jnp.zeros((rank + 1, like.size), like.dtype)
    pairs = Pairs(none, vectors, none, jnp.array(False))
    initial = _State(pairs, vectors, none[1:] - jnp.inf, key, jnp.zeros((), jnp.int32))

    def advance(state: _State) -> _State:
        return _advance(operator, random, state, steps, tolerance)

    def goes_on(state: _State) -> Any:
        return ~state.pairs.settled & (state.round < restarts)

    pairs = lax.while_loop(goes_on, advance, initial).pairs
    descending = jnp.argsort(-_found(pairs))
    return Pairs(pairs.values[descending], pairs.vectors[descending], pairs.residuals[descending], pairs.settled)


def warn_of_misses(pairs: Pairs, tolerance: Real, rounds: int, *, of: str, stacklevel: int) -> None:
    """A UserWarning that says by how much the search missed the tolerance, where that can be known."""
    if isinstance(pairs.settled, jax.core.Tracer) or bool(pairs.settled):
        return
    missed = float(jnp.max(pairs.residuals) / jnp.max(pairs.values))
    found = int(jnp.any(pairs.vectors != 0, axis=1).sum())
    if missed > tolerance:
        problem = f"the largest residual is {missed:.2g} · λ_max, above the tolerance of {tolerance:.2g}"
    elif found < len(pairs.values):
        problem = f"{found} of {len(pairs.values)} eigenpairs were found"
    else:
        problem = "all residuals are within the tolerance, but new starts still brought larger eigenvalues"
    warnings.warn(
        f"Eigenpairs of {of}: after {rounds} rounds, {problem}. Pass a larger `order` or `restarts`, or compute in "
        "float64.",
        stacklevel=stacklevel + 1,
    )


def _advance(operator: Operator, random: Callable[[Key], Any], state: _State, steps: int, tolerance: Any) -> _State:
    key, draw = jax.random.split(state.key)
    values, vectors, errors = state.pairs.values, state.pairs.vectors, state.errors
    unsettled = _unsettled(state.pairs, tolerance)
    anew = ~jnp.any(unsettled)
    before = jnp.where(anew, _found(state.pairs), state.before)

    def complement(vector: Any) -> Any:
        return vector - (vectors @ vector) @ vectors

    # where the vectors that are kept hold all that is not null, a product in their complement is rounding
    noise = _ROUNDINGS * jnp.finfo(vectors.dtype).eps * jnp.max(values)
    start = _direction(complement, jnp.where(anew, random(draw), errors[jnp.argmax(unsettled)]))
    space = krylov(lambda q: complement(operator(complement(q))), start, steps, noise=noise)
    vectors = _orthonormal(_ritz(values, vectors, errors, space))
    products = lax.map(operator, vectors)
    values = jnp.sum(vectors * products, axis=1)
    errors = products - values[:, None] * vectors
    pairs = Pairs(values, vectors, jnp.linalg.norm(errors, axis=1), anew)
    grown = jnp.any(_found(pairs) > before + tolerance * jnp.max(values))
    all_within = ~jnp.any(_unsettled(pairs, tolerance))
    # where a new start follows, the pair beyond those asked for makes room for it
    kept = jnp.ones(len(values), bool).at[-1].set(~all_within)
    pairs = Pairs(
        jnp.where(kept, values, 0),
        jnp.where(kept[:, None], vectors, 0),
        jnp.where(kept, pairs.residuals, 0),
        all_within & ~grown,
    )
    return _State(pairs, jnp.where(kept[:, None], errors, 0), before, key, state.round + 1)


def _found(pairs: Pairs) -> Any:
    """The values that were asked for, −∞ where there is none yet."""
    return jnp.where(jnp.any(pairs.vectors != 0, axis=1), pairs.values, -jnp.inf)[:-1]


def _unsettled(pairs: Pairs, tolerance: Any) -> Any:
    """Which residuals are too large; of the last pair, large enough for it to belong among the others."""
    allowed = jnp.full(len(pairs.values), tolerance * jnp.max(pairs.values), pairs.values.dtype)
    gap = jnp.min(pairs.values[:-1]) - pairs.values[-1]
    return pairs.residuals > allowed.at[-1].max(gap)


def _direction(complement: Operator, start: Any) -> Any:
    """The start in the complement of the vectors that are kept, zero where nothing but rounding is left there."""
    before = jnp.linalg.norm(start)
    inside = complement(complement(start / jnp.where(before > 0, before, 1)))
    return jnp.where(jnp.linalg.norm(inside) > jnp.finfo(start.dtype).eps ** 0.5, inside, 0)


def _orthonormal(vectors: Any) -> Any:
    """Rows of length 1 at right angles, of which rounding would take a little away in each round; zeros, last, stay."""
    there = jnp.any(vectors != 0, axis=1)
    return jnp.where(there[:, None], jnp.linalg.qr(vectors.T)[0].T, 0)


def _ritz(values: Any, vectors: Any, errors: Any, space: Krylov) -> Any:
    """The vectors of the largest eigenvalues of the operator on the kept vectors and the new space together."""
    count = len(values)
    coupling = errors @ space.basis
    matrix = jnp.block([[jnp.diag(values), coupling], [coupling.T, space.matrix]])
    # what is not there goes to the end of the spectrum, below all that is
    there = jnp.concatenate([jnp.any(vectors != 0, axis=1), space.alive])
    below = 1 + 2 * jnp.max(jnp.sum(jnp.abs(matrix), axis=1))
    quotients, small = jnp.linalg.eigh(matrix - jnp.diag(jnp.where(there, 0, below)))
    small = jnp.where(quotients > -below / 2, small, 0)[:, ::-1][:, :count]
    return small[:count].T @ vectors + small[count:].T @ space.basis.T
