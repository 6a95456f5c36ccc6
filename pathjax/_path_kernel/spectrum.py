"""What is computed of the spectrum of G: all of it where G is small, its largest pairs and its ends where it is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pathjax._base.trees import dot, ravel
from pathjax._linalg.eigenpairs import DENSE, Eigenpairs, Problem, measured
from pathjax._linalg.krylov import Krylov, krylov
from pathjax._linalg.lapack import eigh, eigvalsh, rounding_error
from pathjax._path_kernel import twin
from pathjax._path_kernel.twin import PathKernel
from pathjax.types import Key, Params, Real

__all__ = ["PROBLEM", "Ends", "Spectrum", "decompose", "ends", "inverse_roots", "is_nonzero"]


class Spectrum(NamedTuple):
    """All eigenvalues of G on the kept weights, descending.

    Attributes:
        eigenvalues: (q,) of q weights, those that may be kept.
        eigenvectors: (q, q), as columns.
        exists: (q,) False for each weight that a traced mask has pruned: eigenvalue and vector are zero, at the end.
        matrix: (q, q), G on these weights.
        positions: (q,) of these weights among all the parameters, raveled.
    """

    eigenvalues: Any
    eigenvectors: Any
    exists: Any
    matrix: Any
    positions: np.ndarray


class Ends(NamedTuple):
    """The smallest nonzero eigenvalue of G, NaN where it is not resolved, and the largest."""

    smallest: Any
    largest: Any


def is_nonzero(eigenvalues: Any) -> Any:
    """Which eigenvalues of G, the largest among them, are not zero: those above 512 ε of it, ε the type's rounding.

    This is the one meaning of zero for the spectrum of G. It is what rounding may make of an eigenvalue of zero where
    512 weights, the most that are decomposed in full, are kept. To take such a number for an eigenvalue would give a
    smallest eigenvalue and eigenvectors on the paths that are rounding; to take a true eigenvalue so small for zero
    loses at most 512 ε λ_max(Π) λ_max(K_v) of Θ with each.
    """
    return eigenvalues > rounding_error(eigenvalues, DENSE)


def inverse_roots(eigenvalues: Any) -> Any:
    """λ^(−1/2) of the largest eigenvalues of G, and zero for those that are zero."""
    nonzero = is_nonzero(eigenvalues)
    return jnp.where(nonzero, jnp.where(nonzero, eigenvalues, 1) ** -0.5, 0)


def decompose(kernel: PathKernel) -> Spectrum:
    """All of the spectrum, by G on the kept weights in full."""
    positions = twin.positions(kernel)
    matrix = twin.matrix(kernel, kernel)
    is_kept = jnp.ones(len(positions), bool)
    if kernel.mask is not None:
        is_kept = jnp.concatenate([jnp.ravel(mask) for mask in jax.tree.leaves(kernel.mask)])[positions]
    # pruned weights go to the end of the spectrum, below zero
    below = 1 + jnp.trace(matrix)
    values, vectors = eigh(matrix - jnp.diag(jnp.where(is_kept, 0, below)))
    values, vectors = values[::-1], vectors[:, ::-1]
    exists = values > -below / 2
    return Spectrum(jnp.where(exists, values, 0), jnp.where(exists[None, :], vectors, 0), exists, matrix, positions)


def ends(kernel: PathKernel, key: Key, order: int, tolerance: Real) -> Ends:
    """Both ends of the spectrum, by `order` Lanczos steps from each of two random starts where G is large."""
    if twin.count(kernel) <= DENSE:
        eigenvalues = decompose(kernel).eigenvalues
        smallest = jnp.min(jnp.where(is_nonzero(eigenvalues), eigenvalues, jnp.inf))
        return Ends(jnp.where(jnp.isfinite(smallest), smallest, jnp.nan), eigenvalues[0])
    product = _product(kernel)
    steps = min(order, twin.count(kernel))

    def from_start(start_key: Key) -> Ends:
        # a start G z has no part in the null space
        space = krylov(product, product(twin.random_signs(kernel, start_key)), steps, to_the_end=True)
        return Ends(_smallest(space, tolerance), eigvalsh(space.matrix)[-1])

    both = lax.map(from_start, jax.random.split(key, 2))
    smallest = jnp.min(both.smallest)
    agree = jnp.abs(both.smallest[0] - both.smallest[1]) <= tolerance * smallest
    return Ends(jnp.where(agree, smallest, jnp.nan), jnp.max(both.largest))


def _smallest(space: Krylov, tolerance: Real) -> Any:
    """The smallest nonzero Ritz value, NaN unless its residual is within the tolerance of itself."""
    values, vectors = eigh(space.matrix)
    candidates = jnp.where(is_nonzero(values), values, jnp.inf)
    index = jnp.argmin(candidates)
    residual = jnp.linalg.norm(space.residual) * jnp.abs(vectors[-1, index])
    return jnp.where(residual <= tolerance * candidates[index], candidates[index], jnp.nan)


# The search for the largest eigenpairs


def _decomposed(kernel: PathKernel, rank: int) -> Eigenpairs:
    spectrum = decompose(kernel)
    values, columns = spectrum.eigenvalues[:rank], spectrum.eigenvectors[:, :rank]
    trees = twin.trees_at(kernel, spectrum.positions, columns.T)
    return Eigenpairs(values, trees, measured(spectrum.matrix, values, columns))


def _product(kernel: PathKernel) -> Callable[[Any], Any]:
    return twin.flat(kernel, twin.linear(kernel, kernel))


def _quotient(kernel: PathKernel) -> Callable[[Any], Any]:
    _, unravel = ravel(kernel.params)
    product = twin.cross(kernel, kernel)

    def quotient(vector: Any) -> Any:
        tree = unravel(vector)
        return dot(tree, product(tree))

    return quotient


def _trees(kernel: PathKernel, vectors: Any) -> Params:
    return jax.vmap(ravel(kernel.params)[1])(vectors)


PROBLEM = Problem(
    name="the Path Kernel",
    rows="kept weights",
    decompose=_decomposed,
    product=_product,
    quotient=_quotient,
    random_signs=twin.random_signs,
    unravel=_trees,
)
"""The search for the largest eigenpairs of G, with eigenvectors as stacked trees like the parameters."""
