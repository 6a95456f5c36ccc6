"""Θ = J Jᵀ of a finite network as an operator: products, and what follows from these alone.

Θ v is one pass backward, w = Jᵀ v, and one forward, J w; neither Θ nor J is formed. The pass forward is the transpose
of the one backward, so that it goes by the same derivative rules.
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
from jaxtyping import Array, Float, Shaped

from pathjax._base import network as _network
from pathjax._base.trees import dot, wide
from pathjax._interpreter.convolutions import channels_last
from pathjax._linalg import estimates
from pathjax._linalg.lanczos import DENSE, Pairs, largest, plan, warn_of_misses
from pathjax._linalg.lapack import eigh
from pathjax._ntk import blocks as _blocks
from pathjax._ntk import layerwise
from pathjax.types import AnyArray, ApplyFn, Estimate, Key, Mask, Params, Real

__all__ = ["Operator", "norm_estimate", "operator", "top_eigenpairs", "trace_estimate"]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["params", "mask", "x"],
    meta_fields=["apply", "batch_size"],
)
@dataclasses.dataclass(frozen=True)
class Operator:
    """Θ of a batch with itself, which multiplies arrays (n, o) without being formed.

    A pytree, so that it passes through jit, vmap and grad.

    Attributes:
        params: the parameters.
        mask: which weights are kept; None if all are.
        x: the batch, (n, ...).
        apply: the network.
        batch_size: how many examples go through the network at a time; None for all.
    """

    params: Params
    mask: Mask | None
    x: Shaped[Array, "n ..."]
    apply: ApplyFn
    batch_size: int | None

    @property
    def shape(self) -> tuple[int, int]:
        """(n, o), the shape of what it multiplies; its matrix has n·o rows and columns."""
        return cast("tuple[int, int]", _outputs(self).shape)

    def matvec(self, vector: Float[Array, "n o"]) -> Float[Array, "n o"]:
        """Θ v, (Θ v)_ia = Σ_jb Θ_(ij)(ab) v_jb.

        One pass forward, one backward and one more forward over the batch; with a batch size, two more forward. Raises
        ValueError for an array that is not (n, o).
        """
        if vector.shape != self.shape:
            raise ValueError(
                f"The kernel multiplies arrays of shape {self.shape}, a number for each example and output, but "
                f"{vector.shape} came. Reshape it, or use `jax.vmap` for several at a time."
            )
        maps = _maps(self)
        return cast(Array, maps.forward(maps.backward(vector)))

    def trace(self) -> Float[Array, ""]:
        """Tr Θ, exactly: a pass backward for each example and output. `trace_estimate` takes a few for the batch."""
        traces = _kernel(self, layerwise.Form(trace=True, diagonal=True))
        return jnp.sum(cast(Array, traces))


def operator(
    apply: ApplyFn,
    params: Params,
    x: Shaped[AnyArray, "n ..."],
    *,
    mask: Mask | None = None,
    batch_size: int | None = None,
) -> Operator:
    """The Neural Tangent Kernel of a batch with itself as an operator, for n·o in the tens of thousands.

    Its products are those with `as_matrix(empirical(apply, params, x, mask=mask))`, at the cost of a few passes through
    the network; the kernel's (n·o)² numbers are never there. `batch_size` is how many examples go through the network
    at a time: memory is then that of one such chunk's activations, of a few trees like `params` and of arrays (n, o).
    It changes results by rounding alone.

    Assumes what `empirical` assumes, and raises ValueError where it does.

    >>> def apply(params, x):
    ...     return jax.nn.relu(x @ params["hidden"]) @ params["out"]
    >>> params = {"hidden": jnp.ones((4, 5)), "out": jnp.ones((5, 2))}
    >>> kernel = operator(apply, params, jnp.ones((3, 4)))
    >>> kernel.matvec(jnp.ones((3, 2)))  # rows sum to 3 · (100 + 20)
    Array([[360., 360.],
           [360., 360.],
           [360., 360.]], dtype=float64)
    """
    x = jnp.asarray(x)
    _network.check_params(params)
    _network.check_inputs(x=x)
    _network.check_batch_size(batch_size)
    function = apply if mask is None else _network.masked(apply, params, mask)
    _network.check_outputs(function, params, x, "x")
    return Operator(params, mask, x, apply, batch_size)


def trace_estimate(kernel: Operator, *, key: Key, samples: int) -> Estimate:
    """Tr Θ as the mean of ‖Jᵀ z‖² over random signs z (Hutchinson), with its standard error.

    `samples` passes backward over the batch, one at a time. Each is unbiased and has the variance 2 Σ_i≠j Θ_ij² over
    all pairs of rows of the matrix.

    Raises ValueError where `samples` is below 1.
    Source: Hutchinson (1989), "A stochastic estimator of the trace of the influence matrix".

    >>> def apply(params, x):
    ...     return x @ params
    >>> kernel = operator(apply, jnp.ones((4, 2)), jnp.eye(3, 4))  # Θ is the identity
    >>> value, standard_error = trace_estimate(kernel, key=jax.random.key(0), samples=5)
    >>> float(value), float(standard_error)
    (6.0, 0.0)
    """
    maps = _maps(kernel)

    def sample(signs: Any) -> Any:
        tree = maps.backward(signs)
        return dot(tree, tree)

    return _mean(sample, kernel, key, samples)


def norm_estimate(kernel: Operator, *, key: Key, samples: int) -> Estimate:
    """The Frobenius norm ‖Θ‖, the root of the mean of ‖Θ z‖² over random signs z, with its standard error.

    `samples` products, one at a time. ‖Θ z‖² is unbiased for the square; the standard error is that of the root to
    first order, and the root is low by about its square over twice the norm. Where ‖Θ‖ is estimated to be zero, so is
    its error.

    Raises ValueError where `samples` is below 1.
    Source: Hutchinson (1989), for Θ².

    >>> def apply(params, x):
    ...     return x @ params
    >>> kernel = operator(apply, jnp.ones((4, 2)), jnp.eye(3, 4))  # Θ is the identity
    >>> value, standard_error = norm_estimate(kernel, key=jax.random.key(0), samples=5)
    >>> round(float(value) ** 2, 6), float(standard_error)
    (6.0, 0.0)
    """
    maps = _maps(kernel)

    def sample(signs: Any) -> Any:
        image = maps.forward(maps.backward(signs))
        return jnp.vdot(image, image)

    square = _mean(sample, kernel, key, samples)
    is_zero = square.value == 0
    norm = jnp.where(is_zero, 0, jnp.sqrt(jnp.where(is_zero, 1, square.value)))
    return Estimate(norm, jnp.where(is_zero, 0, square.standard_error / (2 * jnp.where(is_zero, 1, norm))))


def top_eigenpairs(
    kernel: Operator,
    rank: int,
    *,
    key: Key,
    order: int | None = None,
    tolerance: Real = 1e-5,
    restarts: int | None = None,
) -> tuple[Float[Array, " r"], Float[Array, "r n o"]]:
    """The largest eigenvalues of Θ, descending, and their eigenvectors (r, n, o), orthonormal as n·o numbers each.

    Up to n·o = 512 Θ is formed and decomposed: exact. Otherwise thick-restarted Lanczos iteration with full
    reorthogonalization, among rank + order + 1 vectors, `order` by default rank + 20, until ‖Θ v − λ v‖ ≤ `tolerance` ·
    λ_max for each pair, by products with Θ itself, and a round from a new random start has found nothing to add; so
    repeated eigenvalues come with all their eigenvectors. The same key gives the same pairs. After `restarts` rounds,
    by default rank + 50, a UserWarning says by how much the tolerance was missed; not under `jit` or `vmap`, where it
    cannot be known: compare with `kernel.matvec`.

    At least 3 · rank + 2 · order + 2 products; each further round takes order/2 to rank + order + 1. Stores at most
    (order + 2 · rank + 15) · n·o numbers at a time, besides what one product takes. Of networks in half precision the
    pairs are in single precision. NaN where products are not finite. Eigenvalues can be differentiated; of eigenvectors
    the derivative is NaN above 512 rows.

    Raises ValueError where `rank` is not between 1 and n·o, or where `order` or `restarts` is below 1.
    Source: Wu and Simon (2000), "Thick-Restart Lanczos Method for Large Symmetric Eigenvalue Problems".

    >>> def apply(params, x):
    ...     return x @ params
    >>> kernel = operator(apply, jnp.ones((4, 2)), jnp.diag(jnp.array([3.0, 2.0, 1.0, 0.5]))[:3])
    >>> eigenvalues, eigenvectors = top_eigenpairs(kernel, 4, key=jax.random.key(0))
    >>> eigenvalues.round(6), eigenvectors.shape
    (Array([9., 9., 4., 4.], dtype=float64), (4, 3, 2))
    """
    size = math.prod(kernel.shape)
    steps, rounds = plan(rank, size, order=order, restarts=restarts, rows="rows n·o")
    if size <= DENSE:
        values, columns = eigh(_matrix(kernel))
        return values[::-1][:rank], columns.T[::-1][:rank].reshape(rank, *kernel.shape)
    pairs = _pairs(kernel, key, jnp.asarray(tolerance, float), rank, steps, rounds)
    warn_of_misses(pairs, tolerance, rounds, of="the Neural Tangent Kernel", stacklevel=2)
    return pairs.values, pairs.vectors.reshape(rank, *kernel.shape)


class _Maps(NamedTuple):
    """J: trees like the parameters to arrays (n, o); and its transpose."""

    forward: Callable[[Any], Any]
    backward: Callable[[Any], Any]


def _maps(kernel: Operator) -> _Maps:
    """Both maps for use in loops: what depends on neither is computed once, unless that is too large to keep."""
    n, size = len(kernel.x), kernel.batch_size
    if size is None or size >= n:
        return _maps_of(kernel, kernel.x)
    every = _blocks.chunks(kernel.x, size)
    outputs = _outputs(kernel)
    filling = every.shape[0] * every.shape[1] - n

    def forward(tree: Any) -> Any:
        found = lax.map(lambda chunk: _maps_of(kernel, chunk).forward(tree), every)
        return found.reshape(-1, found.shape[-1])[:n]

    def backward(array: Any) -> Any:
        filled = jnp.pad(jnp.asarray(array, outputs.dtype), [(0, filling), (0, 0)])

        def add(sums: Any, part: tuple[Any, Any]) -> tuple[Any, None]:
            chunk, cotangents = part
            return jax.tree.map(jnp.add, sums, _maps_of(kernel, chunk).backward(cotangents)), None

        zeros = jax.tree.map(jnp.zeros_like, kernel.params)
        return lax.scan(add, zeros, (every, filled.reshape(*every.shape[:2], -1)))[0]

    return _Maps(forward, backward)


def _maps_of(kernel: Operator, x: Any) -> _Maps:
    """Both maps for some of the examples."""
    outputs, transposed = jax.vjp(lambda params: _apply(kernel, params, x), kernel.params)

    def backward(array: Any) -> Any:
        return transposed(jnp.asarray(array, outputs.dtype))[0]

    def forward(tree: Any) -> Any:
        return jax.linear_transpose(backward, outputs)(tree)[0]

    return _Maps(channels_last(forward), channels_last(backward))


def _apply(kernel: Operator, params: Params, x: Any) -> Any:
    return kernel.apply(params if kernel.mask is None else _network.kept(kernel.mask, params), x)


def _outputs(kernel: Operator) -> Any:
    """Shape and dtype of the outputs."""
    return jax.eval_shape(functools.partial(_apply, kernel), kernel.params, kernel.x)


def _kernel(kernel: Operator, form: layerwise.Form) -> Any:
    """Θ itself."""
    return layerwise.kernel(
        kernel.apply, kernel.params, kernel.x, None, mask=kernel.mask, form=form, batch_size=kernel.batch_size
    )


def _matrix(kernel: Operator) -> Any:
    size = math.prod(kernel.shape)
    return wide(_kernel(kernel, layerwise.Form()).swapaxes(1, 2).reshape(size, size))


def _random_signs(kernel: Operator, key: Key) -> Any:
    outputs = _outputs(kernel)
    return jax.random.rademacher(key, outputs.shape, outputs.dtype)


def _mean(sample: Callable[[Any], Any], kernel: Operator, key: Key, samples: int) -> Estimate:
    if samples < 1:
        raise ValueError(f"`samples` must be at least 1, but is {samples}.")
    return estimates.mean(lax.map(lambda each: sample(_random_signs(kernel, each)), jax.random.split(key, samples)))


@functools.partial(jax.custom_jvp, nondiff_argnums=(3, 4, 5))
def _pairs(kernel: Operator, key: Key, tolerance: Any, rank: int, steps: int, rounds: int) -> Pairs:
    return _iterate(kernel, key, tolerance, rank, steps, rounds)


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _iterate(kernel: Operator, key: Key, tolerance: Any, rank: int, steps: int, rounds: int) -> Pairs:
    maps = _maps(kernel)

    def product(vector: Any) -> Any:
        return wide(maps.forward(maps.backward(vector.reshape(kernel.shape))).ravel())

    def random(key: Key) -> Any:
        return wide(_random_signs(kernel, key).ravel())

    return largest(product, random, rank, key=key, order=steps, tolerance=tolerance, restarts=rounds)


@_pairs.defjvp
def _pairs_jvp(rank: int, steps: int, rounds: int, primals: Any, tangents: Any) -> tuple[Pairs, Pairs]:
    pairs = _pairs(*primals, rank, steps, rounds)
    vectors = pairs.vectors.reshape(-1, *primals[0].shape)

    def quotients(kernel: Operator) -> Any:
        backward = _maps(kernel).backward

        def quotient(vector: Any) -> Any:
            # λ = ‖Jᵀ v‖² has λ's own derivative with v held
            tree = backward(vector)
            return dot(tree, tree).astype(vectors.dtype)

        return lax.map(quotient, vectors)

    _, values = jax.jvp(quotients, (primals[0],), (tangents[0],))
    unknown = jnp.full_like(pairs.vectors, jnp.nan) * values[:, None]
    still = np.zeros(jnp.shape(pairs.settled), jax.dtypes.float0)
    return pairs, Pairs(values, unknown, jnp.zeros_like(pairs.residuals), cast(Any, still))
