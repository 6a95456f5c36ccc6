"""The spectrum of G, the twin of the Path Kernel: in full if G is small, else its largest pairs and its two ends.

Eigenvalues here are those of G / 2^exponent, as `twin` scales it, unless they are said to be true.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from pathjax._base.trees import dot, key_paths, ravel
from pathjax._linalg.eigenpairs import DENSE, Eigenpairs, Problem, log_positive, measured, with_logarithms
from pathjax._linalg.krylov import Krylov, krylov
from pathjax._linalg.lanczos import Known
from pathjax._linalg.lapack import eigh, eigvalsh, rounding_error
from pathjax._path_kernel import twin
from pathjax._path_kernel.twin import PathKernel
from pathjax.types import Key, Params, Real

__all__ = [
    "PROBLEM",
    "Ends",
    "LeafShares",
    "Spectrum",
    "decompose",
    "ends",
    "has_left_format",
    "inverse_roots",
    "is_nonzero",
    "leaf_shares",
    "logarithms",
    "roots",
    "scaled_eigenvalues",
    "true_pairs",
]

_ALIKE = 1000
"""Entries of diag(G) that differ by up to so many roundings are taken for equal; a product then says if they are."""


class Spectrum(NamedTuple):
    """All eigenpairs of G / 2^exponent on q weights, by descending eigenvalue.

    The q weights are the kept ones or, if the mask is traced and their number therefore unknown, all of the kernel's.

    Attributes:
        eigenvalues: (q,).
        eigenvectors: (q, q), as columns.
        exists: (q,) False for the last pairs, one for each weight that a traced mask prunes; these are set to zero.
        matrix: (q, q) the matrix G / 2^exponent on these weights.
        positions: (q,) indices of these weights among all parameters, raveled.
    """

    eigenvalues: Any
    eigenvectors: Any
    exists: Any
    matrix: Any
    positions: np.ndarray


class Ends(NamedTuple):
    """The smallest nonzero eigenvalue of G / 2^exponent, NaN if it is not resolved, and the largest eigenvalue."""

    smallest: Any
    largest: Any


def is_nonzero(eigenvalues: Any) -> Any:
    """Which eigenvalues of G count as nonzero: those above 512 ε λ_max, with machine epsilon ε.

    `eigenvalues` must include λ_max, the largest of G. All functions of G's spectrum use this threshold, which is the
    rounding error of a zero eigenvalue where 512 weights are kept, the most for which G is decomposed in full. With a
    lower threshold, rounding errors could pass as the smallest eigenvalue and as eigenvectors on the paths. Each true
    eigenvalue that counts as zero removes at most 512 ε λ_max(Π) λ_max(K_v) from Θ.
    """
    return eigenvalues > rounding_error(eigenvalues, DENSE)


def inverse_roots(eigenvalues: Any) -> Any:
    """λ^(−1/2) of the largest eigenvalues of G; zero for those that count as zero."""
    nonzero = is_nonzero(eigenvalues)
    return jnp.where(nonzero, jnp.where(nonzero, eigenvalues, 1) ** -0.5, 0)


def decompose(kernel: PathKernel) -> Spectrum:
    """All eigenpairs of G on the kept weights, from the matrix formed in full."""
    positions = twin.positions(kernel)
    matrix = twin.matrix(kernel, kernel)
    is_kept = jnp.ones(len(positions), bool)
    if kernel.mask is not None:
        is_kept = jnp.concatenate([jnp.ravel(mask) for mask in jax.tree.leaves(kernel.mask)])[positions]
    # A pruned weight gets a negative eigenvalue, which sorts it behind all others and tells it from a zero of G.
    shift = 1 + jnp.trace(matrix)
    eigenvalues, vectors = eigh(matrix - jnp.diag(jnp.where(is_kept, 0, shift)))
    eigenvalues, vectors = eigenvalues[::-1], vectors[:, ::-1]
    exists = eigenvalues > -shift / 2
    return Spectrum(
        jnp.where(exists, eigenvalues, 0), jnp.where(exists[None, :], vectors, 0), exists, matrix, positions
    )


def ends(kernel: PathKernel, key: Key, tolerance: Any, *, order: int) -> Ends:
    """The smallest nonzero and the largest eigenvalue of G.

    Exact for up to 512 kept weights; otherwise by `order` Lanczos steps from each of two random starts.
    """
    if twin.count(kernel) <= DENSE:
        eigenvalues = decompose(kernel).eigenvalues
        smallest = jnp.min(jnp.where(is_nonzero(eigenvalues), eigenvalues, jnp.inf))
        return Ends(jnp.where(jnp.isfinite(smallest), smallest, jnp.nan), eigenvalues[0])
    product = _product(kernel)
    steps = min(order, twin.count(kernel))

    def ends_from_random_start(start_key: Key) -> Ends:
        # G z is orthogonal to the null space, so that no Ritz value of the space is that of a null vector
        space = krylov(product, product(twin.random_normal(kernel, start_key)), steps, to_the_end=True)
        return Ends(_smallest(space, tolerance), eigvalsh(space.matrix)[-1])

    runs = lax.map(ends_from_random_start, jax.random.split(key, 2))
    smallest = jnp.min(runs.smallest)
    agree = jnp.abs(runs.smallest[0] - runs.smallest[1]) <= tolerance * smallest
    return Ends(jnp.where(agree, smallest, jnp.nan), jnp.max(runs.largest))


def _smallest(space: Krylov, tolerance: Real) -> Any:
    """The smallest nonzero Ritz value; NaN if its residual is above `tolerance` times the value."""
    ritz_values, vectors = eigh(space.matrix)
    candidates = jnp.where(is_nonzero(ritz_values), ritz_values, jnp.inf)
    index = jnp.argmin(candidates)
    residual = jnp.linalg.norm(space.residual) * jnp.abs(vectors[-1, index])
    return jnp.where(residual <= tolerance * candidates[index], candidates[index], jnp.nan)


# The largest eigenpairs


def true_pairs(kernel: PathKernel, scaled: Eigenpairs) -> Eigenpairs:
    """The eigenpairs of G from those of G / 2^exponent."""
    eigenvalues, logarithms = _true_units(scaled.eigenvalues, scaled.log_eigenvalues, kernel.exponent)
    return scaled._replace(eigenvalues=eigenvalues, log_eigenvalues=logarithms)


@jax.jit
def _true_units(eigenvalues: Any, log_eigenvalues: Any, exponent: Any) -> tuple[Any, Any]:
    log_unit = math.log(2.0) * jnp.asarray(exponent, log_eigenvalues.dtype)
    return twin.in_true_units(eigenvalues, exponent), log_eigenvalues + log_unit


def scaled_eigenvalues(kernel: PathKernel, pairs: Eigenpairs) -> Any:
    """The eigenvalues of G / 2^exponent from true pairs; from their logarithms where they have left the format."""
    true, logarithms = pairs.eigenvalues, pairs.log_eigenvalues
    has_left = has_left_format(true, logarithms)
    log_unit = math.log(2.0) * jnp.asarray(kernel.exponent, true.dtype)
    return jnp.where(
        has_left,
        jnp.exp(jnp.where(has_left, logarithms - log_unit, 0)),
        twin.in_true_units(jnp.where(has_left, 1, true), -kernel.exponent),
    )


def logarithms(eigenvalues: Any, scaled: Any, exponent: Any) -> Any:
    """log λ of true eigenvalues, from those over 2^exponent where they have left the format; −∞ for zeros."""
    from_scaled = twin.log_in_true_units(scaled, exponent)
    has_left = has_left_format(eigenvalues, from_scaled)
    return jnp.where(has_left, from_scaled, log_positive(jnp.where(has_left, 1, eigenvalues)))


def roots(eigenvalues: Any, log_eigenvalues: Any) -> Any:
    """√λ of true eigenvalues, from their logarithms where they have left the format; zero for zeros."""
    has_left, positive = has_left_format(eigenvalues, log_eigenvalues), eigenvalues > 0
    from_logarithms = jnp.exp(jnp.where(has_left, log_eigenvalues, 0) / 2)
    direct = jnp.where(positive, jnp.sqrt(jnp.where(positive & ~has_left, eigenvalues, 1)), 0)
    return jnp.where(has_left, from_logarithms, direct)


def has_left_format(eigenvalues: Any, log_eigenvalues: Any) -> Any:
    """Which true eigenvalues overflow to infinity or underflow, though their logarithms are finite."""
    tiny = float(jnp.finfo(eigenvalues.dtype).tiny)
    underflows = (eigenvalues < tiny) & (log_eigenvalues < math.log(tiny)) & (log_eigenvalues > -jnp.inf)
    return jnp.isinf(eigenvalues) | underflows


@functools.partial(jax.tree_util.register_dataclass, data_fields=["shares"], meta_fields=["paths"])
@dataclasses.dataclass(frozen=True)
class LeafShares:
    """Which parameter leaves carry each eigenvector of G.

    Attributes:
        paths: the key paths of the l leaves, such as `['Dense_0']['kernel']`, in the order of `shares`.
        shares: (r, l) the squared norm of the leaf's entries in each unit eigenvector. A row sums to 1, or to 0 where a
            pair does not exist.
    """

    paths: tuple[str, ...]
    shares: Float[Array, "r l"]

    @property
    def leading(self) -> Int[Array, " r"]:
        """The position in `paths` of the leaf with the largest share of each eigenvector."""
        return jnp.argmax(self.shares, axis=-1)

    def __repr__(self) -> str:
        """The sizes, such as `LeafShares(r=10, leaves=6)`."""
        return f"LeafShares(r={np.shape(self.shares)[-2]:,}, leaves={len(self.paths):,})"


def leaf_shares(pairs: Eigenpairs) -> LeafShares:
    """The share of each leaf in each eigenvector."""
    leaves = jax.tree.leaves(pairs.eigenvectors)
    shares = [jnp.sum(jnp.square(leaf), axis=tuple(range(1, leaf.ndim))) for leaf in leaves]
    return LeafShares(tuple(key_paths(pairs.eigenvectors)), jnp.stack(shares, axis=1))


# The search for the largest eigenpairs


def _decomposed(kernel: PathKernel, rank: int) -> Eigenpairs:
    return cast(Eigenpairs, twin.run_at_mask(_exact_pairs, (kernel,), rank=rank))


def _exact_pairs(kernel: PathKernel, *, rank: int) -> Eigenpairs:
    spectrum = decompose(kernel)
    eigenvalues, columns = spectrum.eigenvalues[:rank], spectrum.eigenvectors[:, :rank]
    trees = twin.trees_at(kernel, spectrum.positions, columns.T)
    return with_logarithms(eigenvalues, trees, measured(spectrum.matrix, eigenvalues, columns))


def _product(kernel: PathKernel) -> Callable[[Any], Any]:
    """w ↦ G w on vectors (p,)."""
    return twin.flat(kernel, twin.linear(kernel, kernel))


def _quotient(kernel: PathKernel) -> Callable[[Any], Any]:
    """w ↦ wᵀ G w on trees."""
    product = twin.cross(kernel, kernel)
    return lambda tree: dot(tree, product(tree))


def _stacked_trees(kernel: PathKernel, vectors: Any) -> Params:
    """Vectors (r, p) as one tree with leaves (r, ...)."""
    return jax.vmap(ravel(kernel.params)[1])(vectors)


# Eigenpairs of the last layer, known without a search


class _OutputRows(NamedTuple):
    """Weights of leaves with one axis for the outputs, as rows (f, o), and where they lie among all weights.

    In the last layer, the paths through the weights (i, j) of row i have the same beginnings and end in the outputs j.
    All entries of diag(G) in a row are then equal, and each vector a on the row with Σ_j a_j θ_ij = 0 is an eigenvector
    of G, with this entry as the eigenvalue: the paths' derivatives by all weights before them cancel.

    Attributes:
        weights, diagonal, positions: (f, o), the weights, their entries of diag(G), and their raveled indices.
        belongs: (f, o), whether G has a row for the weight and the diagonal is equal along its row, in all of the leaf.
        leaf: (f,), the leaf that a row is of, from 0 on.
    """

    weights: Any
    diagonal: Any
    positions: Any
    belongs: Any
    leaf: Any

    @property
    def units(self) -> Any:
        """(f, o), the rows of weights, of length 1 or 0."""
        weights = jnp.where(self.belongs, self.weights, 0)
        peaks = jnp.max(jnp.abs(weights), axis=1, keepdims=True)
        scaled = weights / jnp.where(peaks > 0, peaks, 1)
        return scaled / jnp.maximum(jnp.linalg.norm(scaled, axis=1, keepdims=True), 1)


def _known(kernel: PathKernel, rank: int) -> Known | None:
    """The largest of these eigenpairs, each for one weight: rows i of weights reflect e_j to e_j − 2 u_j u.

    The reflection takes the row's largest weight to the row θ_i itself, up to its length, and the others to an
    orthonormal basis of what is at right angles to it.
    """
    rows = _output_rows(kernel)
    if rows is None:
        return None
    units, outputs = rows.units, rows.weights.shape[1]
    # at the largest weight of a row; nowhere in a row of zeros, whose unit vectors are all eigenvectors
    is_peak = (jnp.argmax(jnp.abs(units), axis=1)[:, None] == jnp.arange(outputs)[None, :]) & (units != 0)
    # the sign that adds up: a difference would cancel
    mirrors = units + jnp.where(is_peak, jnp.sign(units), 0)
    mirrors /= jnp.maximum(jnp.linalg.norm(mirrors, axis=1, keepdims=True), 1)
    has_pair = rows.belongs & ~is_peak
    values, chosen = lax.top_k(jnp.where(has_pair, rows.diagonal, -jnp.inf).ravel(), min(rank, has_pair.size))
    row, output = chosen // outputs, chosen % outputs
    mirror = mirrors[row]
    along = jnp.take_along_axis(mirror, output[:, None], axis=1)
    entries = (output[:, None] == jnp.arange(outputs)[None, :]) - 2 * along * mirror

    def rest(vector: Any) -> Any:
        inside = vector[rows.positions]
        kept = units * jnp.sum(units * inside, axis=1, keepdims=True)
        return vector.at[rows.positions].set(jnp.where(rows.belongs, kept, inside))

    def image(vector: Any) -> Any:
        inside = vector[rows.positions]
        return jnp.zeros_like(vector).at[rows.positions].set(rows.diagonal * inside)

    def probe(vector: Any) -> Any:
        inside = (vector - rest(vector))[rows.positions]
        squares = jnp.zeros(len(rows.leaf), inside.dtype).at[rows.leaf].add(jnp.sum(inside**2, axis=1))
        lengths = jnp.sqrt(jnp.where(squares > 0, squares, 1))
        return jnp.zeros_like(vector).at[rows.positions].set(inside / lengths[rows.leaf][:, None])

    return Known(values, rows.positions[row], entries.astype(values.dtype), rest, image, probe)


def _output_rows(kernel: PathKernel) -> _OutputRows | None:
    """All leaves that may be those of a last layer; None if there are none, or one output alone."""
    count = kernel.network.output(kernel.example).shape[1]
    chosen = np.arange(count) if kernel.outputs is None else np.array(kernel.outputs)
    if len(chosen) < 2:
        return None
    leaves = jax.tree.leaves(kernel.params)
    untied = sorted(kernel.rows - kernel.network.tied(kernel.example))
    candidates = [
        position for position in untied if count in {*leaves[position].shape[:1], *leaves[position].shape[-1:]}
    ]
    if not candidates:
        return None
    starts = np.cumsum([0, *(leaf.size for leaf in leaves)])
    derivatives = jax.tree.leaves(twin.scaled_derivatives(kernel))
    masks = None if kernel.mask is None else jax.tree.leaves(kernel.mask)

    def of_leaf(number: int, position: int) -> _OutputRows:
        leaf = leaves[position]
        axis = leaf.ndim - 1 if leaf.shape[-1] == count else 0
        indices = jnp.arange(leaf.size, dtype=jnp.int32).reshape(leaf.shape) + starts[position].astype(np.int32)
        is_kept = jnp.ones(leaf.shape, bool) if masks is None else masks[position]
        weights, diagonal, indices, is_kept = (
            jnp.moveaxis(array, axis, -1).reshape(-1, count)[:, chosen]
            for array in (leaf, derivatives[position], indices, is_kept)
        )
        belongs = is_kept & (diagonal > 0) & _is_last(diagonal, is_kept)
        return _OutputRows(weights, diagonal, indices, belongs, jnp.full(len(weights), number))

    parts = [of_leaf(number, position) for number, position in enumerate(candidates)]
    return _OutputRows(*(jnp.concatenate(each) for each in zip(*parts, strict=True)))


def _is_last(diagonal: Any, is_kept: Any) -> Any:
    """Whether the kept entries (f, o) of a leaf are equal along its rows, but for rounding."""
    high = jnp.max(jnp.where(is_kept, diagonal, 0), axis=1)
    low = jnp.min(jnp.where(is_kept, diagonal, jnp.inf), axis=1)
    # in a row without a kept entry `low` is infinite
    return jnp.all(high - low <= _ALIKE * jnp.finfo(diagonal.dtype).eps * high)


PROBLEM = Problem(
    name="the Path Kernel",
    rows="kept weights",
    decompose=_decomposed,
    product=_product,
    quotient=_quotient,
    random_start=twin.random_normal,
    unravel=_stacked_trees,
    known=_known,
)
"""What `eigenpairs.find` needs to search the largest eigenpairs of G; eigenvectors are stacked trees like `params`."""
