"""The largest eigenpairs of a symmetric positive semi-definite operator A by thick-restarted Lanczos iteration.

One set of rank + 1 + order orthonormal vectors is all that is stored, which is why the iteration is written out here
and not matfree's. A round expands the set by Lanczos steps until it is full, takes the Ritz pairs of A on its span
(Rayleigh–Ritz), and keeps the best of them. `Phase` says how the next round goes on.

Source: Wu and Simon (2000), "Thick-Restart Lanczos Method for Large Symmetric Eigenvalue Problems".
"""

from __future__ import annotations

import enum
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import lax

from pathjax._base.listeners import tell
from pathjax._linalg.krylov import ROUNDINGS, Operator, inner_products, norm, split
from pathjax._linalg.lapack import eigh, one_by_one
from pathjax.types import Key

__all__ = ["Known", "Pairs", "largest"]

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


class Known(NamedTuple):
    """The largest eigenpairs of A on a subspace of which all are said to be known before the search.

    Attributes:
        values: (k,), descending; −∞ where there is none.
        positions: (k, o), where the vectors have entries other than zero.
        entries: (k, o), these entries; the vectors are orthonormal.
        rest: the part of a vector (p,) at right angles to the subspace.
        image: what A makes of a vector (p,) of the subspace.
        probe: a vector of the subspace from any vector (p,), of equal length in each of the parts that may be wrong: a
            small part beside a large one would otherwise hide its error.
    """

    values: Any
    positions: Any
    entries: Any
    rest: Callable[[Any], Any]
    image: Callable[[Any], Any]
    probe: Callable[[Any], Any]


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
        known_hold: () whether what was said to be known is not refuted.
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
    known_hold: Any
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
        residuals: (rank,) of the kept vectors, where they were measured; in the first round the error of what is known.
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
    known: Known | None = None,
    listener: Any = None,
) -> Pairs:
    """The `rank` largest eigenpairs, with residuals up to `tolerance` times the largest eigenvalue.

    At most `restarts` rounds, and one more that measures what they found. A round of EXTEND keeps rank + 1 + order/2
    Ritz vectors; the residuals of all of them lie along one direction, from which the next round goes on. The pair
    beyond the `rank` asked for must be accurate too, or lie below the others by more than its residual.

    Of what is `known`, one product with a random vector of the subspace says whether it is so, but for rounding. Then
    the first vectors are the known ones, and random starts are at right angles to the subspace: the search finds the
    other pairs, and those known pairs remain that are among the largest.

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
        known_hold=jnp.zeros((), bool),
        key=key,
        round=jnp.zeros((), jnp.int32),
    )
    if known is not None:
        initial = _begin_with(known, initial)

    def advance(state: _State) -> _State:
        after = _advance(operator, random_start, state, rank, order, tolerance, restarts, known)
        largest_value = jnp.max(after.values)
        share = jnp.max(after.residuals) / jnp.where(largest_value > 0, largest_value, 1)
        tell(listener, after.round, restarts, share)
        return after

    def goes_on(state: _State) -> Any:
        return ~_is(state.phase, Phase.DONE) & (state.round <= restarts)

    with jax.default_matmul_precision("highest"):  # accelerators would round factors to half of their digits
        last = lax.while_loop(goes_on, advance, initial)
    return Pairs(last.values[:rank], last.basis[:rank], last.residuals, _is(last.phase, Phase.DONE))


def _begin_with(known: Known, state: _State) -> _State:
    """The state with the known vectors as its first ones."""
    count = len(known.values)
    exists = known.values > -jnp.inf
    rows = jnp.broadcast_to(jnp.arange(count)[:, None], known.positions.shape)
    entries = jnp.where(exists[:, None], known.entries, 0)
    return state._replace(
        basis=state.basis.at[rows, known.positions].add(entries),
        values=state.values.at[:count].set(jnp.where(exists, known.values, 0)),
        exists=state.exists.at[:count].set(exists),
        kept=jnp.sum(exists, dtype=jnp.int32),
        known_hold=jnp.any(exists),
    )


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
    known: Known | None,
) -> _State:
    """One round."""
    key, draw, draw_probe = jax.random.split(state.key, 3)
    starts_at_random, only_measured = _is(state.phase, Phase.RESTART), _is(state.phase, Phase.CONFIRM, Phase.MEASURE)

    def start() -> Any:
        vector = random_start(draw)
        return vector if known is None else jnp.where(state.known_hold, known.rest(vector), vector)

    direction = lax.cond(starts_at_random, start, lambda: state.direction)
    probe = None if known is None else _Probe(known, functools.partial(random_start, draw_probe))
    expansion = _expand(operator, state, direction, only_measured, probe)
    is_refuted = _is_refuted(state, expansion)
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
    kept = jnp.where(is_refuted, 0, kept)
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
    phase = jnp.where(is_refuted & is_finite, Phase.RESTART.value, phase).astype(jnp.int32)
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
        known_hold=state.known_hold & ~is_refuted,
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


class _Probe(NamedTuple):
    """How the first round checks what is known."""

    known: Known
    random_start: Callable[[], Any]

    def vector(self) -> Any:
        """A random vector of the subspace, of length 1; zero where there is none."""
        inside = self.known.probe(self.random_start())
        length = norm(inside)
        return inside / jnp.where(length > 0, length, 1)


def _is_refuted(state: _State, expansion: _Expansion) -> Any:
    """Whether the first round has found that what is known is not so, by more than rounding."""
    allowed = jnp.finfo(expansion.basis.dtype).eps ** (2 / 3) * jnp.max(state.values)
    return _is_checked(state) & ~(jnp.max(expansion.residuals) <= allowed)


def _is_checked(state: _State) -> Any:
    """Whether the round checks what is known, before its first Lanczos step."""
    return state.known_hold & (state.round == 0)


def _expand(operator: Operator, state: _State, direction: Any, only_measures: Any, probe: _Probe | None) -> _Expansion:
    """Lanczos steps from a direction, until the set is full or the Krylov space exhausted; or products of kept vectors.

    One loop takes both, and the check of what is known, so that the operator, which takes long to compile, is called in
    one place.
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
        row = jnp.where(is_kept, expansion.basis[j], lanczos_vector)
        basis = expansion.basis.at[j].set(row)
        is_checked = jnp.zeros((), bool) if probe is None else is_kept & ~only_measures
        vector = row if probe is None else lax.cond(is_checked, probe.vector, lambda: row)
        image = operator(vector)
        off_diagonal = jnp.where(is_kept | is_first, 0, length)
        remainder, along = lax.cond(
            is_kept | is_first,
            lambda: split(basis, image),
            lambda: _split_image(basis, image, j, off_diagonal),
        )
        known_image = state.values[j] * vector
        if probe is not None:
            known_image = lax.cond(is_checked, lambda: probe.known.image(vector), lambda: known_image)
        error = image - known_image
        residual = jnp.where(is_kept, norm(error), -jnp.inf)
        is_worst = residual >= jnp.max(expansion.residuals)
        is_this_pair = (jnp.arange(len(expansion.residuals)) == j) & is_kept
        projection = expansion.projection.at[:, j].set(along).at[j, :].set(along)
        return _Expansion(
            basis=basis,
            exists=expansion.exists.at[j].set(jnp.where(is_kept, expansion.exists[j], goes_on)),
            projection=jnp.where(is_checked, expansion.projection, projection),
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
    begin = jnp.where(only_measures, 0, state.kept - _is_checked(state))
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
    along = inner_products(basis, remainder)
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
        return gram + _gram(lax.dynamic_slice(basis, (0, start), (count, length)))

    gram = coefficients.T @ over_pieces(add, jnp.zeros((count, count), basis.dtype)) @ coefficients
    is_empty = jnp.diag(gram) == 0
    rotation = _orthonormal(gram + jnp.diag(is_empty.astype(gram.dtype)), coefficients.T)

    def rotate(vectors: Any, start: Any, length: int) -> Any:
        rows = lax.dynamic_slice(vectors, (0, start), (count, length))
        rotated = jnp.pad(rotation @ rows, ((0, count - len(rotation)), (0, 0)))
        return lax.dynamic_update_slice(vectors, rotated, (0, start))

    return over_pieces(rotate, basis)


def _gram(rows: Any) -> Any:
    """rows · rowsᵀ (m, m) of rows (m, n), summed in about √n blocks of √n columns each.

    An entry's error is at most about 2√n roundings, where a matrix product may add all n terms one after another and
    be off by n. Vectors whose entries are equal in size come near such bounds: their squares are equal, so while a sum
    lies between two powers of two, all its additions round to the same side.
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
