"""The largest eigenpairs of a kernel: one search for G, the Path Kernel's twin, and for Θ, the Neural Tangent Kernel.

A kernel is a pytree, and stands for a symmetric positive semi-definite matrix A. Where A has few rows it is formed and
decomposed; otherwise its eigenpairs are found by iteration, from products with A alone.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from pathjax._base import listeners
from pathjax._linalg.lanczos import Known, Pairs, largest
from pathjax.types import Key, Real

__all__ = ["DENSE", "Eigenpairs", "Problem", "SearchProgress", "find", "log_positive", "measured", "with_logarithms"]

# Up to this many rows a matrix is formed and decomposed: that is exact, and cheaper than to iterate.
DENSE = 512


class Eigenpairs(NamedTuple):
    """The largest eigenpairs (λ, v) of a symmetric matrix A, by descending eigenvalue.

    Attributes:
        eigenvalues: (r,) the λ, in true units; of deep networks they may overflow to infinity in float32, or underflow
            to zero.
        eigenvectors: (r, ...) the v, orthonormal; an array or a pytree of arrays, of the form of what A multiplies.
        residuals: (r,) ‖A v − λ v‖ over the largest eigenvalue; they have a derivative of zero.
        log_eigenvalues: (r,) natural logarithms of the λ, which neither overflow nor underflow; −∞ where λ is zero or,
            by rounding, negative.
    """

    eigenvalues: Float[Array, " r"]
    eigenvectors: Any
    residuals: Float[Array, " r"]
    log_eigenvalues: Float[Array, " r"]

    def __repr__(self) -> str:
        """The number of pairs and of the arrays that make up an eigenvector, such as `Eigenpairs(r=10, leaves=6)`."""
        *batch, r = np.shape(self.eigenvalues)
        batched = f"batch={tuple(batch)}, " if batch else ""
        return f"Eigenpairs({batched}r={r:,}, leaves={len(jax.tree.leaves(self.eigenvectors))})"


@dataclass(frozen=True)
class Problem:
    """What the search asks of one kind of kernels. Vectors are flat, (p,), unless they are in the users' form.

    Attributes:
        name: of the kernels, for messages.
        rows: what the rows of A are, for messages.
        decompose: the pairs of A formed whole, for a kernel and their number.
        product: v ↦ A v of a kernel, for use in loops.
        quotient: v ↦ vᵀ A v of a kernel, which can be differentiated in the kernel; v in the form that users read.
        random_start: a vector of independent normal numbers, for a kernel and a key. Signs would not do: for half of
            the keys they are exactly at right angles to an eigenvector such as (1, 1).
        unravel: the eigenvectors of a kernel (r, p) in the form that users read.
        known: up to so many of the largest eigenpairs of a kernel that are known without a search; None if none is.
    """

    name: str
    rows: str
    decompose: Callable[[Any, int], Eigenpairs]
    product: Callable[[Any], Callable[[Any], Any]]
    quotient: Callable[[Any], Callable[[Any], Any]]
    random_start: Callable[[Any, Key], Any]
    unravel: Callable[[Any, Any], Any]
    known: Callable[[Any, int], Known | None] = lambda kernel, rank: None


SearchProgress: TypeAlias = Callable[[int, int, float], None]
"""`progress(round, restarts, residual)` is called after each round, with the largest residual over λ_max."""


class Effort(NamedTuple):
    """How large a search is: the number of pairs, and of further vectors and of rounds to find them."""

    rank: int
    order: int
    restarts: int


def find(
    problem: Problem,
    kernel: Any,
    rank: int,
    *,
    size: int,
    key: Key,
    order: int | None,
    tolerance: Real,
    restarts: int | None,
    progress: SearchProgress | None,
) -> Eigenpairs:
    """The `rank` largest eigenpairs of a kernel with `size` rows, in the units of the problem's products.

    A UserWarning, which names the line that called this function's caller, says by how much the iteration missed the
    tolerance, where that can be known. Raises ValueError for a rank that is not between 1 and the number of rows, and
    for an order or a number of restarts below 1.
    """
    effort = _effort(problem, rank, size, order, restarts)
    if size <= DENSE:
        return problem.decompose(kernel, rank)
    pairs = _iterate(problem, effort, kernel, key, jnp.asarray(tolerance, float), listeners.number_of(progress))
    _warn_of_misses(problem, effort, pairs, tolerance)
    return with_logarithms(pairs.values, pairs.vectors, _relative(pairs.residuals, pairs.values))


def with_logarithms(eigenvalues: Any, eigenvectors: Any, residuals: Any) -> Eigenpairs:
    """Eigenpairs with the logarithms of these eigenvalues."""
    return Eigenpairs(eigenvalues, eigenvectors, residuals, log_positive(eigenvalues))


@jax.jit
def log_positive(numbers: Any) -> Any:
    """Natural logarithms; −∞ for zero and, since rounding may make a zero negative, for negative numbers."""
    not_positive = numbers <= 0
    # the inner `where` keeps derivatives finite at zero
    return jnp.where(not_positive, -jnp.inf, jnp.log(jnp.where(not_positive, 1, numbers)))


def measured(matrix: Any, eigenvalues: Any, columns: Any) -> Any:
    """The residuals of eigenvectors, as columns, of a matrix that is formed."""
    matrix, eigenvalues, columns = lax.stop_gradient((matrix, eigenvalues, columns))
    errors = jnp.matmul(matrix, columns, precision=lax.Precision.HIGHEST) - columns * eigenvalues[None, :]
    return _relative(jnp.linalg.norm(errors, axis=0), eigenvalues)


@jax.jit
def _relative(residuals: Any, eigenvalues: Any) -> Any:
    """Norms over the largest eigenvalue; of a kernel of zeros, the norms."""
    largest_eigenvalue = jnp.max(lax.stop_gradient(eigenvalues))
    return residuals / jnp.where(largest_eigenvalue == 0, 1, largest_eigenvalue)


def _effort(problem: Problem, rank: int, size: int, order: int | None, restarts: int | None) -> Effort:
    """The order and the restarts of a search, by default rank + 20 and rank + 50."""
    if not 1 <= rank <= size:
        raise ValueError(f"`rank` must lie between 1 and the number of {problem.rows}, {size}, but is {rank}.")
    vectors = min(size, rank + 20 if order is None else order)
    rounds = rank + 50 if restarts is None else restarts
    if vectors < 1 or rounds < 1:
        raise ValueError(f"`order` and `restarts` must be at least 1, but are {order} and {restarts}.")
    return Effort(rank, vectors, rounds)


def _warn_of_misses(problem: Problem, effort: Effort, pairs: Pairs, tolerance: Real) -> None:
    if isinstance(pairs.confirmed, jax.core.Tracer) or bool(pairs.confirmed):
        return
    missed = float(jnp.max(pairs.residuals) / jnp.max(pairs.values))
    has_numbers = [jnp.any(leaf != 0, axis=tuple(range(1, leaf.ndim))) for leaf in jax.tree.leaves(pairs.vectors)]
    count = int(functools.reduce(jnp.logical_or, has_numbers).sum())
    if missed > tolerance:
        shortfall = f"the largest residual is {missed:.2g} · λ_max, above the tolerance of {tolerance:.2g}"
    elif count < len(pairs.values):
        shortfall = f"{count} of {len(pairs.values)} eigenpairs were found"
    else:
        shortfall = "all residuals are within the tolerance, but no new start has confirmed that these are the largest"
    warnings.warn(
        f"Eigenpairs of {problem.name}: after {effort.restarts} rounds, {shortfall}. Pass a larger `order` or "
        "`restarts`, or compute in float64.",
        stacklevel=4,  # this function, `find`, the public one, and its caller
    )


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _iterate(problem: Problem, effort: Effort, kernel: Any, key: Key, tolerance: Any, listener: Any) -> Pairs:
    # both kinds of kernels hold the traced network that they are of
    search = kernel.network.compiled(_search, problem=problem, effort=effort)
    return cast(Pairs, search(kernel, key, tolerance, listener))


def _search(
    network: Any, kernel: Any, key: Key, tolerance: Any, listener: Any, *, problem: Problem, effort: Effort
) -> Pairs:
    pairs = largest(
        problem.product(kernel),
        functools.partial(problem.random_start, kernel),
        effort.rank,
        key=key,
        order=effort.order,
        tolerance=tolerance,
        restarts=effort.restarts,
        known=problem.known(kernel, effort.rank),
        listener=listener,
    )
    return pairs._replace(vectors=problem.unravel(kernel, pairs.vectors))


@_iterate.defjvp
def _iterate_jvp(problem: Problem, effort: Effort, primals: Any, tangents: Any) -> tuple[Pairs, Pairs]:
    """λ = vᵀ A v has the derivative of λ where v is held; that of eigenvectors is not known, so NaN."""
    pairs = _iterate(problem, effort, *primals)
    kernel, *_ = primals

    def quotients(kernel: Any) -> Any:
        return lax.map(problem.quotient(kernel), pairs.vectors)

    _, slopes = jax.jvp(quotients, (kernel,), (tangents[0],))

    def unknown(leaf: Any) -> Any:
        return jnp.full_like(leaf, jnp.nan) * slopes.reshape(-1, *[1] * (leaf.ndim - 1))

    unchanged = cast(Any, np.zeros(jnp.shape(pairs.confirmed), jax.dtypes.float0))
    vectors = jax.tree.map(unknown, pairs.vectors)
    return pairs, Pairs(slopes, vectors, jnp.zeros_like(pairs.residuals), unchanged)
