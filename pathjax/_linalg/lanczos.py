"""The largest eigenpairs of a symmetric positive semi-definite operator on vectors, by thick-restarted Lanczos.

It runs in bounded memory, which matfree's iterations do not.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import lax

from pathjax._linalg.krylov import ROUNDINGS, Operator
from pathjax._linalg.lapack import eigh, one_by_one
from pathjax.types import Key, Real

__all__ = ["DENSE", "Pairs", "largest", "plan", "warn_of_misses"]


# Up to this many rows an operator is better formed and decomposed as it is: exact, and cheaper than iterating.
DENSE = 512


# Large sets of vectors are combined so many numbers of each at a time.
_PIECE = 2**16


class Pairs(NamedTuple):
    """Eigenvalues, descending, with eigenvectors (rank, p) as rows; zero where none was found.

    `residuals` are the norms ‖A v − λ v‖ from products with A itself, and `settled` says that all are within the
    tolerance and that a new random start has found nothing to add. NaN, all of them, where a product is not finite.
    """

    values: Any
    vectors: Any
    residuals: Any
    settled: Any


class _State(NamedTuple):
    """Between two rounds.

    Attributes:
        basis: (m, p), orthonormal rows: the Ritz vectors that are kept, and zeros.
        values: (m,) of the vectors, zero where there is none.
        alive: (m,), whether there is one.
        kept: how many there are at most.
        residuals: (rank,) of the first of them, as far as they are known.
        start: (p,), where the next round walks on from, unless it checks them first.
        checks: whether the next round begins with products of what is kept, and walks on at random if these are right.
        only_checks: whether it ends there.
        confirms: whether the search is over if these are right.
        before: (rank,) the values at the last random start.
        settled: whether the search is over.
    """

    basis: Any
    values: Any
    alive: Any
    kept: Any
    residuals: Any
    start: Any
    checks: Any
    only_checks: Any
    confirms: Any
    before: Any
    settled: Any
    key: Any
    round: Any


class _Walked(NamedTuple):
    """Where a round has got to.

    Attributes:
        basis: (m, p), the vectors.
        alive: (m,), which of them there are.
        matrix: (m, m), A's quotients on them.
        rest: (p,), what the last step left over.
        size: () the size of A that has been seen.
        residuals: (rank,) of what was kept, where checked.
        error: (p,) the largest of the errors that these are the norms of.
    """

    basis: Any
    alive: Any
    matrix: Any
    rest: Any
    size: Any
    residuals: Any
    error: Any


def largest(
    operator: Operator,
    random: Callable[[Key], Any],
    rank: int,
    *,
    key: Key,
    order: int,
    tolerance: Any,
    restarts: int,
) -> Pairs:
    """The `rank` largest eigenpairs by thick-restarted Lanczos; `random(key)` draws a start.

    One set of rank + 1 + order vectors is all that is stored, which is why it is not matfree's that walks here. Each
    round walks on from the vectors that are kept until the set is full, always at right angles to all of it, and keeps
    the best rank + 1 + order/2 of what it spans (Rayleigh and Ritz). What the last step left over is the direction of
    all their errors, from which the next round goes on (Wu and Simon, 2000). Once the errors of all pairs seem to be
    within the tolerance, all other vectors are given up, and the errors are measured by products with A itself. If they
    are small, the walk starts anew at random, which is how a repeated eigenvalue shows its other vectors; if not, from
    the largest. Once the pair beyond `rank` that a random start leads to is settled below the others, and none of them
    has grown, they are measured for the last time, and so they are after so many rounds as `restarts`. One place calls
    the operator, for it takes long to compile.
    """
    like = random(key)
    count = rank + 1 + order
    initial = _State(
        basis=jnp.zeros((count, like.size), like.dtype),
        values=jnp.zeros(count, like.dtype),
        alive=jnp.zeros(count, bool),
        kept=jnp.zeros((), jnp.int32),
        residuals=jnp.zeros(rank, like.dtype),
        start=jnp.zeros_like(like),
        checks=jnp.array(True),
        only_checks=jnp.array(False),
        confirms=jnp.array(False),
        before=jnp.full(rank, -jnp.inf, like.dtype),
        settled=jnp.array(False),
        key=key,
        round=jnp.zeros((), jnp.int32),
    )

    def advance(state: _State) -> _State:
        return _advance(operator, random, state, rank, order, tolerance, restarts)

    def goes_on(state: _State) -> Any:
        return ~state.settled & (state.round <= restarts)

    with jax.default_matmul_precision("highest"):  # accelerators would round factors to half of their digits
        last = lax.while_loop(goes_on, advance, initial)
    return Pairs(last.values[:rank], last.basis[:rank], last.residuals, last.settled)


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
        problem = "all residuals are within the tolerance, but no new start has confirmed that these are the largest"
    warnings.warn(
        f"Eigenpairs of {of}: after {rounds} rounds, {problem}. Pass a larger `order` or `restarts`, or compute in "
        "float64.",
        stacklevel=stacklevel + 1,
    )


def plan(rank: int, size: int, *, order: int | None, restarts: int | None, rows: str) -> tuple[int, int]:
    """The order and the restarts of a search, by default rank + 20 and rank + 50.

    Raises ValueError for a rank that is not between 1 and the number of `rows`, and for others below 1.
    """
    if not 1 <= rank <= size:
        raise ValueError(f"`rank` must lie between 1 and the number of {rows}, {size}, but is {rank}.")
    steps = min(size, rank + 20 if order is None else order)
    rounds = rank + 50 if restarts is None else restarts
    if steps < 1 or rounds < 1:
        raise ValueError(f"`order` and `restarts` must be at least 1, but are {order} and {restarts}.")
    return steps, rounds


def _advance(
    operator: Operator,
    random: Callable[[Key], Any],
    state: _State,
    rank: int,
    order: int,
    tolerance: Any,
    restarts: int,
) -> _State:
    key, draw = jax.random.split(state.key)
    allowed = tolerance * jnp.max(state.values)
    walked = _walk(operator, state, random(draw), allowed)
    right = jnp.max(walked.residuals) <= allowed
    anew = state.checks & right
    before = jnp.where(anew, _found(state.values, state.alive)[:rank], state.before)
    values, small, alive = _ritz(walked)
    errors = _length(walked.rest) * jnp.abs(small[-1, : rank + 1])
    within = ~jnp.any(_unsettled(values[: rank + 1], errors, tolerance))
    # the errors of all that is kept must lie along one direction, unless they are nothing
    kept = jnp.where(within, jnp.int32(rank), jnp.int32(rank + 1 + order // 2))
    stays = (jnp.arange(len(values)) < kept) & alive
    values = jnp.where(stays, values, 0)
    grown = jnp.any(_found(values, stays)[:rank] > before + tolerance * jnp.max(values))
    confirms = within & ~state.only_checks & ~grown
    is_last = state.round + 1 >= restarts
    number = jnp.where(jnp.all(jnp.isfinite(walked.matrix)), 1, jnp.nan)
    return _State(
        basis=_combined(number * jnp.where(stays[None, :], small, 0), walked.basis),
        values=number * values,
        alive=stays,
        kept=kept,
        residuals=number * jnp.where(state.only_checks, walked.residuals, errors[:rank]),
        start=jnp.where(state.only_checks, walked.error, walked.rest),
        checks=(within & ~state.only_checks) | is_last,
        only_checks=confirms | is_last,
        confirms=confirms,
        before=before,
        settled=(state.confirms & right) | jnp.isnan(number),
        key=key,
        round=state.round + 1,
    )


def _walk(operator: Operator, state: _State, random: Any, allowed: Any) -> _Walked:
    """Products of what is kept, if it is to be checked, and Lanczos steps until the set is full or exhausted."""
    epsilon = jnp.finfo(state.basis.dtype).eps
    # where the vectors that are kept hold all that is not null, a product in their complement is rounding
    noise = ROUNDINGS * epsilon * jnp.max(state.values)

    def step(j: Any, walked: _Walked) -> _Walked:
        is_kept, is_first = j < state.kept, j == state.kept

        def first() -> Any:
            follows = jnp.where(jnp.max(walked.residuals) <= allowed, random, walked.error)
            return _direction(walked.basis, jnp.where(state.checks, follows, state.start))

        rest = lax.cond(is_first, first, lambda: walked.rest)
        length = _length(rest)
        goes_on = length > jnp.where(is_first, 0, jnp.maximum(epsilon ** (2 / 3) * walked.size, noise))
        vector = jnp.where(is_kept, walked.basis[j], jnp.where(goes_on, rest / jnp.where(goes_on, length, 1), 0))
        basis = walked.basis.at[j].set(vector)
        image = operator(vector)
        rest, along = _outside(basis, image)
        matrix = walked.matrix.at[:, j].set(along).at[j, :].set(along)
        beside = jnp.where(is_kept | is_first, 0, length)
        size = jnp.maximum(walked.size, jnp.abs(along[j]) + beside)
        alive = walked.alive.at[j].set(jnp.where(is_kept, walked.alive[j], goes_on))
        error = image - along[j] * vector
        residual = jnp.where(is_kept, _length(error), -jnp.inf)
        is_worst = residual >= jnp.max(walked.residuals)
        residuals = jnp.where((jnp.arange(len(walked.residuals)) == j) & is_kept, residual, walked.residuals)
        return _Walked(basis, alive, matrix, rest, size, residuals, jnp.where(is_worst, error, walked.error))

    nothing = jnp.zeros_like(state.start)
    matrix, unknown = jnp.diag(state.values), jnp.zeros_like(state.residuals)
    walked = _Walked(state.basis, state.alive, matrix, nothing, jnp.zeros_like(noise), unknown, nothing)
    begin = jnp.where(state.checks, 0, state.kept)
    end = jnp.where(state.only_checks, state.kept, len(state.values))
    return cast(_Walked, lax.fori_loop(begin, end, step, walked))


def _direction(basis: Any, start: Any) -> Any:
    """The start at right angles to the basis, zero where nothing but rounding is left of it there."""
    length = _length(start)
    outside, _ = _outside(basis, start / jnp.where(length > 0, length, 1))
    return jnp.where(jnp.linalg.norm(outside) > jnp.finfo(start.dtype).eps ** 0.5, outside, 0)


def _length(vector: Any) -> Any:
    """The norm, of numbers too whose squares leave the format."""
    size = jnp.max(jnp.abs(vector))
    scale = jnp.where((size > 0) & jnp.isfinite(size), size, 1)
    return scale * jnp.linalg.norm(vector / scale)


def _outside(basis: Any, vector: Any) -> tuple[Any, Any]:
    """A vector less its part along orthonormal rows, and the coefficients of that part."""
    along = basis @ vector
    rest = vector - along @ basis
    again = basis @ rest  # twice is enough
    return rest - again @ basis, along + again


def _ritz(walked: _Walked) -> tuple[Any, Any, Any]:
    """Ritz values, descending, their vectors in terms of the basis as columns, and which of them are there."""
    # what is not there goes to the end of the spectrum, below all that is
    size = jnp.max(jnp.sum(jnp.abs(walked.matrix), axis=1))
    below = jnp.where(size > 0, 2 * size, 1)
    quotients, small = eigh(walked.matrix - jnp.diag(jnp.where(walked.alive, 0, below)))
    alive = quotients[::-1] > -below / 2
    return jnp.where(alive, quotients[::-1], 0), jnp.where(alive[None, :], small[:, ::-1], 0), alive


def _combined(small: Any, basis: Any) -> Any:
    """smallᵀ · basis, orthonormal again, piece by piece in the place of the basis: it is large.

    Rounding would take a little of the right angles away in each round.
    """
    count, size = basis.shape

    def over_pieces(function: Callable[[Any, Any, int], Any], found: Any) -> Any:
        piece = min(size, _PIECE)
        whole, rest = divmod(size, piece)
        found = lax.fori_loop(0, whole, lambda i, found: function(found, i * piece, piece), found)
        return function(found, whole * piece, rest) if rest else found

    def add(gram: Any, start: Any, length: int) -> Any:
        rows = lax.dynamic_slice(basis, (0, start), (count, length))
        return gram + rows @ rows.T

    gram = small.T @ over_pieces(add, jnp.zeros((count, count), basis.dtype)) @ small
    empty = jnp.diag(gram) == 0
    rotation = _orthonormal(gram + jnp.diag(empty.astype(gram.dtype)), small.T)

    def rotate(found: Any, start: Any, length: int) -> Any:
        rows = lax.dynamic_slice(found, (0, start), (count, length))
        return lax.dynamic_update_slice(found, rotation @ rows, (0, start))

    return over_pieces(rotate, basis)


@one_by_one
def _orthonormal(gram: Any, rows: Any) -> Any:
    """The rows, whose products are `gram`, each less its part along those before it, of length 1."""
    return lax.linalg.triangular_solve(jnp.linalg.cholesky(gram), rows, left_side=True, lower=True)


def _found(values: Any, alive: Any) -> Any:
    """The values, −∞ where there is none yet."""
    return jnp.where(alive, values, -jnp.inf)


def _unsettled(values: Any, errors: Any, tolerance: Any) -> Any:
    """Which errors are too large; of the last pair, large enough for it to belong among the others."""
    allowed = jnp.full(len(values), tolerance * jnp.max(values), values.dtype)
    gap = jnp.min(values[:-1]) - values[-1]
    return errors > allowed.at[-1].max(gap)
