"""The residuals and integrals of `relaxation` from products with M alone, with bounds of their errors.

Lanczos steps from v give M Q = Q T + β q eᵀ, with orthonormal columns Q (q, m), a tridiagonal T (m, m), the next
vector q and the last unit vector e. Then f(M) v ≈ ‖v‖ Q f(T) e₁: one space serves all times. For gradient flow the
approximation y(t) of the residual solves y' = −M y + d with a defect d of the norm ‖v‖ β |eᵀ exp(−Tt) e₁|. M is
positive semi-definite, so the error of y(t) is at most the integral of that up to t. The sign of eᵀ exp(−Tt) e₁ is the
same at all times, since T has positive entries beside its diagonal, so the bound is

    ‖v‖ β |eᵀ T⁻¹ (I − exp(−Tt)) e₁|

with no constant that would have to be guessed. Gradient descent has sums in place of integrals; if M exceeds 1, the
defects of even and of odd steps may have different signs, and both sums are taken.

Products in a computer have errors of their own, which no space makes smaller. Their size is read from the entries of
Qᵀ M Q that would be zero without them.

Sources: Saad (1992), "Analysis of Some Krylov Subspace Approximations to the Matrix Exponential Operator"; Botchev,
Grimm and Hochbruck (2013), "Residual, Restarting, and Richardson Iteration for the Matrix Exponential".
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import lax

from pathjax._linalg import relaxation
from pathjax._linalg.krylov import ROUNDINGS, Operator, norm, split
from pathjax._linalg.lapack import eigh

__all__ = ["Errors", "Space", "errors", "integral", "norms", "remaining", "space"]

# Rounding errors of a product and of the decomposition of T are up to so many roundings of the largest eigenvalue.
_NOISE = 10

# A larger space is of no use once truncation is so much smaller than rounding, whose bounds are for the worst case.
_NEGLIGIBLE = 0.01

# The first check of the errors, and by which factor the space grows from one to the next.
_FIRST_CHECK = 8
_GROWTH = 1.3

# T is decomposed with 2 to this power or more rows.
_LEAST_POWER = 5


class Space(NamedTuple):
    """A Krylov space of M and v, with the eigenpairs z, s of T. Where there is no vector, entries are zero.

    Attributes:
        basis: (m, q), orthonormal rows.
        values: (m,), the z, ascending.
        vectors: (m, m), the s as columns.
        start: (m,), ‖v‖ times the first entry of each s.
        end: (m,), β times the last entry of each s.
        count: (), how many vectors there are.
        noise: (), the norm of the error of a product with a unit vector.
    """

    basis: Any
    values: Any
    vectors: Any
    start: Any
    end: Any
    count: Any
    noise: Any


class Errors(NamedTuple):
    """Bounds at each time, (t,): of what a larger space would add, and of rounding."""

    truncation: Any
    rounding: Any


class _State(NamedTuple):
    """Lanczos steps so far.

    Attributes:
        basis: (m, q), orthonormal rows, and zeros.
        diagonal, beside: (m,), entries of T; of `beside` the last is β.
        following: (q,), the next vector.
        count: (), how many steps were taken.
        next_check: (), after how many steps the errors are looked at.
        asymmetry: (), the sum of squares of entries that are zero but for rounding.
        goes_on: (), whether the space has more vectors, and needs them.
    """

    basis: Any
    diagonal: Any
    beside: Any
    following: Any
    count: Any
    next_check: Any
    asymmetry: Any
    goes_on: Any


def space(
    operator: Operator,
    vector: Any,
    times: Any,
    *,
    order: int,
    flow: bool,
    tolerance: Any,
    epsilon: float,
    gain: Any = None,
) -> Space:
    """The smallest space, among those looked at, whose errors are up to `tolerance` times ‖v‖ or far below rounding.

    At most `order` vectors. With a `gain`, they are the errors of the integral's energy, times it (see `errors`).
    `epsilon` is the rounding of a product.
    """
    length = norm(vector)
    zeros = jnp.zeros(order, vector.dtype)
    initial = _State(
        basis=jnp.zeros((order, vector.size), vector.dtype),
        diagonal=zeros,
        beside=zeros,
        following=vector / jnp.where(length > 0, length, 1),
        count=jnp.zeros((), jnp.int32),
        next_check=jnp.asarray(min(_FIRST_CHECK, order), jnp.int32),
        asymmetry=jnp.zeros((), vector.dtype),
        goes_on=length > 0,
    )

    def step(state: _State) -> _State:
        j = state.count
        basis = state.basis.at[j].set(state.following)
        remainder, along = split(basis, operator(state.following))
        beside, diagonal = norm(remainder), state.diagonal.at[j].set(along[j])
        is_zero = jnp.arange(order) < j - 1  # but for rounding
        scale = jnp.max(jnp.abs(diagonal) + state.beside)
        return state._replace(
            basis=basis,
            diagonal=diagonal,
            beside=state.beside.at[j].set(beside),
            following=remainder / jnp.where(beside > 0, beside, 1),
            count=j + 1,
            asymmetry=state.asymmetry + jnp.sum(jnp.where(is_zero, along, 0) ** 2),
            goes_on=beside > ROUNDINGS * epsilon * scale,
        )

    def advance(state: _State) -> _State:
        state = lax.while_loop(lambda state: state.goes_on & (state.count < state.next_check), step, state)
        found = _space(state, length, epsilon)
        bounds = errors(found, times, flow=flow, gain=gain)
        largest = jnp.maximum(length, norms(found, times, flow=flow))
        enough = jnp.maximum(tolerance * largest, _NEGLIGIBLE * bounds.rounding)
        is_accurate = jnp.all(bounds.truncation <= enough)
        grown = jnp.maximum(state.count + 1, (state.count * _GROWTH).astype(jnp.int32))
        return state._replace(
            next_check=jnp.minimum(grown, order), goes_on=state.goes_on & ~is_accurate & (state.count < order)
        )

    with jax.default_matmul_precision("highest"):
        return _space(lax.while_loop(lambda state: state.goes_on, advance, initial), length, epsilon)


def remaining(found: Space, times: Any, *, flow: bool) -> Any:
    """The residual at each time, (t, q)."""
    return _applied(found, relaxation.remaining_values(_eigenvalues(found, times), times[:, None], flow=flow))


def integral(found: Space, times: Any, *, flow: bool) -> Any:
    """The integral of the residual up to each time, or its sum over steps, (t, q)."""
    return _applied(found, relaxation.integral_values(_eigenvalues(found, times), times[:, None], flow=flow))


def norms(found: Space, times: Any, *, flow: bool) -> Any:
    """Norms of the residual at each time, (t,)."""
    factors = relaxation.remaining_values(_eigenvalues(found, times), times[:, None], flow=flow)
    return jnp.linalg.norm(factors * found.start[None, :], axis=1)


def errors(found: Space, times: Any, *, flow: bool, gain: Any = None) -> Errors:
    """Bounds of the norm of the error of the residual at each time.

    With a `gain`, of the energy √(eᵀ M e) of the error e of the integral instead, times the gain. For a defect d(s)
    that is M^(−1/2) (I − exp(−M(t − s))) d(s), integrated over s, whose factor is at most 0.64 √t, or 1/√λ with the
    smallest eigenvalue λ. In place of λ stands the smallest Ritz value above rounding: where the space is too small,
    that is too large, so that it serves rounding and infinite times alone.
    """
    truncation = _truncation(found, times, flow)
    rounding = found.noise * _path_length(found, times, flow)
    rounding += _NOISE * jnp.finfo(found.basis.dtype).eps * jnp.linalg.norm(found.start)
    if gain is None:
        return Errors(truncation, rounding)
    growth = (0.64 if flow else math.sqrt(2)) * jnp.sqrt(times)
    limit = 1 / jnp.sqrt(_smallest(found, times))
    return Errors(
        gain * jnp.where(jnp.isinf(times), limit, growth) * truncation, gain * jnp.minimum(growth, limit) * rounding
    )


def _space(state: _State, length: Any, epsilon: float) -> Space:
    order, size = state.basis.shape
    values, vectors = _decomposed(state.diagonal, state.beside, state.count)
    last = jnp.maximum(state.count - 1, 0)
    # the mean square over the entries of Qᵀ M Q that should be zero, each the part of one error along one direction
    pairs = jnp.maximum(last * (last - 1) / 2, 1).astype(length.dtype)
    measured = jnp.sqrt(size * state.asymmetry / pairs)
    return Space(
        basis=state.basis,
        values=values,
        vectors=vectors,
        start=length * vectors[0],
        end=jnp.where(state.count > 0, state.beside[last], 0) * vectors[last],
        count=state.count,
        noise=jnp.maximum(measured, _NOISE * epsilon * jnp.max(jnp.abs(values))),
    )


def _decomposed(diagonal: Any, beside: Any, count: Any) -> tuple[Any, Any]:
    """The eigenpairs of T, of `count` rows: decomposed with as many rows as the next power of two has."""
    order = len(diagonal)
    inner = jnp.where(jnp.arange(1, order) < count, beside[:-1], 0)

    def decompose(size: int) -> tuple[Any, Any]:
        rows, next_to = diagonal[:size], inner[: size - 1]
        values, vectors = eigh(jnp.diag(rows) + jnp.diag(next_to, 1) + jnp.diag(next_to, -1))
        rest = order - size
        return jnp.pad(values, (0, rest)), jnp.pad(vectors, ((0, rest), (0, rest)))

    sizes = [2**power for power in range(_LEAST_POWER, order.bit_length()) if 2**power < order] + [order]
    which = jnp.searchsorted(jnp.asarray(sizes), count)
    return cast("tuple[Any, Any]", lax.switch(which, [functools.partial(decompose, size) for size in sizes]))


def _eigenvalues(found: Space, times: Any) -> Any:
    """The Ritz values as `relaxation` counts eigenvalues of M, (t, m)."""
    return relaxation.counted(found.values, found.basis.shape[1], times)


def _applied(found: Space, factors: Any) -> Any:
    """Q f(T) e₁ ‖v‖ for the f(z) of each time (t, m)."""
    with jax.default_matmul_precision("highest"):
        return (factors * found.start[None, :]) @ found.vectors.T @ found.basis


def _truncation(found: Space, times: Any, flow: bool) -> Any:
    """‖v‖ β |eᵀ T⁻¹ (I − exp(−Tt)) e₁| at each time, (t,), or the sums of the defects of even and of odd steps."""
    z, t = _eigenvalues(found, times), times[:, None]
    products = (found.start * found.end)[None, :]
    bound = jnp.abs(jnp.sum(products * relaxation.integral_values(z, t, flow=flow), axis=1))
    if not flow:
        # Σ (−1)^s (1 − z)^s = Σ (1 − (2 − z))^s
        bound += jnp.abs(jnp.sum(products * relaxation.integral_values(2 - z, t, flow=flow), axis=1))
    # at infinite times, how far the null space is from that of the Ritz vectors
    in_null_space = jnp.isinf(t) & (z == 0)
    return bound + jnp.sum(jnp.where(in_null_space, jnp.abs(products), 0), axis=1) / _smallest(found, times)


def _path_length(found: Space, times: Any, flow: bool) -> Any:
    """Bounds of the integral of the residual's norm up to each time, (t,), or of its sum over steps.

    √(t ∫ ‖y‖²), or, where all has decayed, the sum of the integrals of the parts in the eigenspaces of T.
    """
    z, t = _eigenvalues(found, times), times[:, None]
    by_parts = jnp.sum(jnp.abs(found.start)[None, :] * relaxation.integral_values(z, t, flow=flow), axis=1)
    finite = jnp.where(jnp.isinf(t), 0, t)
    doubled = 2 * z if flow else z * (2 - z)
    squares = jnp.sum((found.start**2)[None, :] * relaxation.integral_values(doubled, finite, flow=flow), axis=1)
    return jnp.where(jnp.isinf(times), by_parts, jnp.minimum(by_parts, jnp.sqrt(finite[:, 0] * squares)))


def _smallest(found: Space, times: Any) -> Any:
    """The smallest Ritz value above rounding that is not counted as zero at each time, (t,); infinite if none is."""
    z = _eigenvalues(found, times)
    floor = ROUNDINGS * float(jnp.finfo(z.dtype).eps) * jnp.max(z)
    return jnp.min(jnp.where(z > floor, z, jnp.inf), axis=1)
