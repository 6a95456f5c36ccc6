"""The largest eigenpairs of a symmetric positive semi-definite operator A by thick-restarted Lanczos iteration.

One set of rank + 1 + order orthonormal vectors is all that is stored, which is why the iteration is written out here
and not matfree's. A round expands the set by Lanczos steps until it is full, takes the Ritz pairs of A on its span
(Rayleigh–Ritz), and keeps the best of them. `Phase` says how the next round goes on.

Source: Wu and Simon (2000), "Thick-Restart Lanczos Method for Large Symmetric Eigenvalue Problems".
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import lax

from pathjax._base.listeners import tell
from pathjax._linalg.krylov import ROUNDINGS, Operator, norm, split
from pathjax._linalg.lapack import eigh, one_by_one
from pathjax.types import Key

__all__ = ["Pairs", "largest"]

# The stored vectors are rotated in pieces of so many numbers each, so that no second set of them is needed.
_PIECE = 2**16


class Pairs(NamedTuple):
    """Ritz values, descending, with Ritz vectors (rank, p) as rows; zero where no pair was found.

    `residuals` are the norms ‖A v − λ v‖, measured by products with A. `confirmed` says that all are within the
    tolerance and that a new random start has found no larger eigenvalue. NaN, all of them, where a product is not
    finite.
    """

    values: Any
    vectors: Any
    residuals: Any
    confirmed: Any


class Phase(enum.IntEnum):
    """What the next round does.

    The search begins with RESTART, of no vectors at all. It goes on with EXTEND until the residuals that the iteration
    predicts are within the tolerance, and then gives up all vectors but the `rank` best. RESTART looks for eigenvalues
    that have been overlooked, such as the copies of a repeated one, from a random start. Once the predicted residuals
    are within the tolerance again and no Ritz value has grown since, CONFIRM measures the residuals of the pairs by
    products. If one is too large, EXTEND goes on from the worst of them.
    """

    EXTEND = 0
    """Lanczos steps from the residual of the last round: a thick restart. After CONFIRM, from the worst error."""
    RESTART = 1
    """Lanczos steps from a random start."""
    CONFIRM = 2
    """Measure the kept pairs, and no more: if all are accurate, the search is over."""
    MEASURE = 3
    """Measure the kept pairs, and no more, for the number of rounds is used up."""
    DONE = 4
    """Nothing: the pairs are confirmed, or a product was not finite."""


class _State(NamedTuple):
    """What one round hands to the next, of m = rank + 1 + order stored vectors of p numbers.

    Attributes:
        basis: (m, p), orthonormal rows: the kept Ritz vectors, and zeros after them.
        values: (m,) the Ritz values, zero where there is no vector.
        exists: (m,) whether there is a vector.
        kept: () how many of the rows may hold one.
        residuals: (rank,) of the first of them: measured, or as the iteration predicts them.
        direction: (p,) from which EXTEND goes on.
        phase: () of the next round, a number of `Phase`.
        values_at_restart: (rank,) the Ritz values when the search last restarted at random, −∞ where there was none.
        key: for the next random start.
        round: () the number of the next round.
    """

    basis: Any
    values: Any
    exists: Any
    kept: Any
    residuals: Any
    direction: Any
    phase: Any
    values_at_restart: Any
    key: Any
    round: Any


class _Expansion(NamedTuple):
    """The stored vectors in the course of one round.

    Attributes:
        basis: (m, p), orthonormal rows, and zeros.
        exists: (m,) whether there is a vector.
        projection: (m, m), A on the basis.
        remainder: (p,), what the last Lanczos step left over at right angles to the basis.
        scale: () the size of the entries of the projection that Lanczos steps have seen.
        residuals: (rank,) of the kept vectors, where they were measured.
        worst_error: (p,) A v − λ v of the largest of these.
    """

    basis: Any
    exists: Any
    projection: Any
    remainder: Any
    scale: Any
    residuals: Any
    worst_error: Any


def largest(
    operator: Operator,
    random_start: Callable[[Key], Any],
    rank: int,
    *,
    key: Key,
    order: int,
    tolerance: Any,
    restarts: int,
    listener: Any = None,
) -> Pairs:
    """The `rank` largest eigenpairs, with residuals up to `tolerance` times the largest eigenvalue.

    At most `restarts` rounds, and one more that measures what they found. A round of EXTEND keeps rank + 1 + order/2
    Ritz vectors; the residuals of all of them lie along one direction, from which the next round goes on. The pair
    beyond the `rank` asked for must be accurate too, or lie below the others by more than its residual.
    The function with the number `listener` is told the round, `restarts`, and the largest residual over the largest
    value, after each round.
    """
    like = jax.eval_shape(random_start, key)
    count = rank + 1 + order
    initial = _State(
        basis=jnp.zeros((count, like.size), like.dtype),
        values=jnp.zeros(count, like.dtype),
        exists=jnp.zeros(count, bool),
        kept=jnp.zeros((), jnp.int32),
        residuals=jnp.zeros(rank, like.dtype),
        direction=jnp.zeros(like.shape, like.dtype),
        phase=jnp.array(Phase.RESTART.value, jnp.int32),
        values_at_restart=jnp.full(rank, -jnp.inf, like.dtype),
        key=key,
        round=jnp.zeros((), jnp.int32),
    )

    def advance(state: _State) -> _State:
        after = _advance(operator, random_start, state, rank, order, tolerance, restarts)
        largest_value = jnp.max(after.values)
        share = jnp.max(after.residuals) / jnp.where(largest_value > 0, largest_value, 1)
        tell(listener, after.round, restarts, share)
        return after

    def goes_on(state: _State) -> Any:
        return ~_is(state.phase, Phase.DONE) & (state.round <= restarts)

    with jax.default_matmul_precision("highest"):  # accelerators would round factors to half of their digits
        last = lax.while_loop(goes_on, advance, initial)
    return Pairs(last.values[:rank], last.basis[:rank], last.residuals, _is(last.phase, Phase.DONE))


def _is(phase: Any, *phases: Phase) -> Any:
    """Whether the traced phase is one of these."""
    return jnp.any(jnp.stack([phase == each.value for each in phases]), axis=0)


def _advance(
    operator: Operator,
    random_start: Callable[[Key], Any],
    state: _State,
    rank: int,
    order: int,
    tolerance: Any,
    restarts: int,
) -> _State:
    """One round."""
    key, draw = jax.random.split(state.key)
    starts_at_random, only_measured = _is(state.phase, Phase.RESTART), _is(state.phase, Phase.CONFIRM, Phase.MEASURE)
    direction = lax.cond(starts_at_random, lambda: random_start(draw), lambda: state.direction)
    expansion = _expand(operator, state, direction, only_measured)
    are_accurate = jnp.max(expansion.residuals) <= tolerance * jnp.max(state.values)

    # what is handed over is what was measured: a combination of pairs may have a larger residual than either
    is_final = _is(state.phase, Phase.MEASURE) | (only_measured & are_accurate)
    measured_pairs = state.values, jnp.eye(len(state.values), dtype=state.values.dtype), state.exists
    values, coefficients, exists = (
        jnp.where(is_final, measured, found)
        for measured, found in zip(measured_pairs, _ritz_pairs(expansion), strict=True)
    )
    predicted = norm(expansion.remainder) * jnp.abs(coefficients[-1, : rank + 1])
    seem_accurate = ~jnp.any(_are_too_large(predicted, values[: rank + 1], tolerance))
    # the residuals of all that is kept must lie along one direction, unless they vanish
    most_kept = rank + 1 + order // 2
    kept = jnp.where(seem_accurate, jnp.int32(rank), jnp.int32(most_kept))
    stays = (jnp.arange(len(values)) < kept) & exists
    values = jnp.where(stays, values, 0)

    values_before = _or_minus_infinity(state.values, state.exists)[:rank]
    at_restart = jnp.where(starts_at_random, values_before, state.values_at_restart)
    have_grown = jnp.any(_or_minus_infinity(values, stays)[:rank] > at_restart + tolerance * jnp.max(values))
    is_finite = jnp.all(jnp.isfinite(expansion.projection))
    phase = _next_phase(
        state.phase,
        are_accurate=are_accurate,
        seem_accurate=seem_accurate,
        have_grown=have_grown,
        is_last=state.round + 1 >= restarts,
        is_finite=is_finite,
    )
    number = jnp.where(is_finite, 1, jnp.nan)
    rotation = number * jnp.where(stays[None, :], coefficients, 0)[:, :most_kept]
    return _State(
        basis=_rotated(rotation, expansion.basis),
        values=number * values,
        exists=stays,
        kept=kept,
        residuals=number * jnp.where(only_measured, expansion.residuals, predicted[:rank]),
        direction=jnp.where(only_measured, expansion.worst_error, expansion.remainder),
        phase=phase,
        values_at_restart=at_restart,
        key=key,
        round=state.round + 1,
    )


def _next_phase(
    phase: Any, *, are_accurate: Any, seem_accurate: Any, have_grown: Any, is_last: Any, is_finite: Any
) -> Any:
    """The phase after a round of `phase`, by what it measured and predicted; `is_last` where no further may expand."""
    # a round that only measured has predicted nothing
    may_end = seem_accurate & ~_is(phase, Phase.CONFIRM, Phase.MEASURE)
    after = jnp.where(is_last, Phase.MEASURE.value, jnp.where(may_end, Phase.RESTART.value, Phase.EXTEND.value))
    after = jnp.where(may_end & ~have_grown, Phase.CONFIRM.value, after)
    is_done = (_is(phase, Phase.CONFIRM) & are_accurate) | ~is_finite
    return jnp.where(is_done, Phase.DONE.value, after).astype(jnp.int32)


def _expand(operator: Operator, state: _State, direction: Any, only_measures: Any) -> _Expansion:
    """Lanczos steps from a direction, until the set is full or the Krylov space exhausted; or products of kept vectors.

    One loop takes both, so that the operator, which takes long to compile, is called in one place.
    """
    epsilon = jnp.finfo(state.basis.dtype).eps
    # where the kept vectors span all but the null space, products at right angles to them are rounding
    noise = ROUNDINGS * epsilon * jnp.max(state.values)

    def step(j: Any, expansion: _Expansion) -> _Expansion:
        is_kept, is_first = j < state.kept, j == state.kept
        remainder = lax.cond(
            is_first, lambda: _at_right_angles(expansion.basis, direction), lambda: expansion.remainder
        )
        length = norm(remainder)
        goes_on = length > jnp.where(is_first, 0, jnp.maximum(epsilon ** (2 / 3) * expansion.scale, noise))
        lanczos_vector = jnp.where(goes_on, remainder / jnp.where(goes_on, length, 1), 0)
        vector = jnp.where(is_kept, expansion.basis[j], lanczos_vector)
        basis = expansion.basis.at[j].set(vector)
        image = operator(vector)
        off_diagonal = jnp.where(is_kept | is_first, 0, length)
        remainder, along = lax.cond(
            is_kept | is_first,
            lambda: split(basis, image),
            lambda: _split_image(basis, image, j, off_diagonal),
        )
        error = image - along[j] * vector
        residual = jnp.where(is_kept, norm(error), -jnp.inf)
        is_worst = residual >= jnp.max(expansion.residuals)
        is_this_pair = (jnp.arange(len(expansion.residuals)) == j) & is_kept
        return _Expansion(
            basis=basis,
            exists=expansion.exists.at[j].set(jnp.where(is_kept, expansion.exists[j], goes_on)),
            projection=expansion.projection.at[:, j].set(along).at[j, :].set(along),
            remainder=remainder,
            scale=jnp.maximum(expansion.scale, jnp.abs(along[j]) + off_diagonal),
            residuals=jnp.where(is_this_pair, residual, expansion.residuals),
            worst_error=jnp.where(is_worst, error, expansion.worst_error),
        )

    zeros = jnp.zeros_like(state.direction)
    expansion = _Expansion(
        basis=state.basis,
        exists=state.exists,
        projection=jnp.diag(state.values),
        remainder=zeros,
        scale=jnp.zeros_like(noise),
        residuals=jnp.zeros_like(state.residuals),
        worst_error=zeros,
    )
    begin = jnp.where(only_measures, 0, state.kept)
    end = jnp.where(only_measures, state.kept, len(state.values))
    return cast(_Expansion, lax.fori_loop(begin, end, step, expansion))


def _at_right_angles(basis: Any, start: Any) -> Any:
    """The part of a start at right angles to the basis, zero where that is nothing but rounding."""
    length = norm(start)
    part, _ = split(basis, start / jnp.where(length > 0, length, 1))
    return jnp.where(jnp.linalg.norm(part) > jnp.finfo(start.dtype).eps ** 0.5, part, 0)


def _split_image(basis: Any, image: Any, j: Any, off_diagonal: Any) -> tuple[Any, Any]:
    """`split` of the image of the Lanczos vector in row j, whose coefficient along the row before it is known.

    Besides its parts along these two rows the image has nothing along the basis but rounding and errors of kept pairs.
    So one pass over the whole basis is enough where `split` takes two.
    """
    remainder = image - off_diagonal * basis[j - 1]
    diagonal = jnp.vdot(basis[j], remainder)
    remainder = remainder - diagonal * basis[j]
    along = basis @ remainder
    return remainder - along @ basis, along.at[j].add(diagonal).at[j - 1].add(off_diagonal)


def _ritz_pairs(expansion: _Expansion) -> tuple[Any, Any, Any]:
    """Ritz values, descending, their vectors in terms of the basis as columns, and which of them exist."""
    # rows without a vector go to the end of the spectrum, below all others
    size = jnp.max(jnp.sum(jnp.abs(expansion.projection), axis=1))
    below = jnp.where(size > 0, 2 * size, 1)
    values, coefficients = eigh(expansion.projection - jnp.diag(jnp.where(expansion.exists, 0, below)))
    values, coefficients = values[::-1], coefficients[:, ::-1]
    exists = values > -below / 2
    return jnp.where(exists, values, 0), jnp.where(exists[None, :], coefficients, 0), exists


def _rotated(coefficients: Any, basis: Any) -> Any:
    """coefficientsᵀ · basis with orthonormal rows, and zeros after them, piece by piece in the place of the basis.

    The basis is large, so that no second set is stored. The rows are made orthonormal anew, for rounding would take a
    little of the right angles away in each round.
    """
    count, size = basis.shape

    def over_pieces(function: Callable[[Any, Any, int], Any], accumulated: Any) -> Any:
        piece = min(size, _PIECE)
        whole, rest = divmod(size, piece)
        accumulated = lax.fori_loop(0, whole, lambda i, value: function(value, i * piece, piece), accumulated)
        return function(accumulated, whole * piece, rest) if rest else accumulated

    def add(gram: Any, start: Any, length: int) -> Any:
        return gram + _inner_products(lax.dynamic_slice(basis, (0, start), (count, length)))

    gram = coefficients.T @ over_pieces(add, jnp.zeros((count, count), basis.dtype)) @ coefficients
    is_empty = jnp.diag(gram) == 0
    rotation = _orthonormal(gram + jnp.diag(is_empty.astype(gram.dtype)), coefficients.T)

    def rotate(vectors: Any, start: Any, length: int) -> Any:
        rows = lax.dynamic_slice(vectors, (0, start), (count, length))
        rotated = jnp.pad(rotation @ rows, ((0, count - len(rotation)), (0, 0)))
        return lax.dynamic_update_slice(vectors, rotated, (0, start))

    return over_pieces(rotate, basis)


def _inner_products(rows: Any) -> Any:
    """rows · rowsᵀ (m, m) of rows (m, n), summed in about √n blocks of √n columns each.

    An entry's error is at most about 2√n roundings, where a matrix product may add all n terms one after another and
    be off by n. Vectors of random signs, with which a search starts, come near such bounds: their squares are equal, so
    while a sum lies between two powers of two, all its additions round to the same side.
    """
    count, size = rows.shape
    width = max(math.isqrt(size), 1)
    blocks = -(-size // width)
    blocked = jnp.pad(rows, ((0, 0), (0, blocks * width - size))).reshape(count, blocks, width)
    return jnp.einsum("ibk,jbk->bij", blocked, blocked).sum(axis=0)


@one_by_one
def _orthonormal(gram: Any, rows: Any) -> Any:
    """The rows, whose inner products are `gram`, each less its part along those before it, of length 1."""
    return lax.linalg.triangular_solve(jnp.linalg.cholesky(gram), rows, left_side=True, lower=True)


def _or_minus_infinity(values: Any, exists: Any) -> Any:
    """The values, −∞ where there is none yet."""
    return jnp.where(exists, values, -jnp.inf)


def _are_too_large(residuals: Any, values: Any, tolerance: Any) -> Any:
    """Which residuals are above the tolerance; that of the last pair may be as large as the gap above its value."""
    allowed = jnp.full(len(values), tolerance * jnp.max(values), values.dtype)
    gap = jnp.min(values[:-1]) - values[-1]
    return residuals > allowed.at[-1].max(gap)
