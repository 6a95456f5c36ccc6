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
from jaxtyping import Array, Float

from pathjax._base.network import as_batch, check_batch_size, check_inputs, check_params, kept_weights
from pathjax._base.trees import check_mask, concrete, dot, wide
from pathjax._interpreter.convolutions import channels_last
from pathjax._interpreter.jaxpr import Program, batch_length
from pathjax._interpreter.traced import TracedNetwork, traced
from pathjax._linalg import eigenpairs as _eigenpairs
from pathjax._linalg import estimates
from pathjax._linalg.eigenpairs import Eigenpairs, Problem, SearchProgress, measured, with_logarithms
from pathjax._linalg.lapack import eigh
from pathjax._ntk import blocks as _blocks
from pathjax._ntk import layerwise
from pathjax._ntk.contractions import Form
from pathjax._ntk.matrix import as_matrix
from pathjax.types import ApplyFn, Estimate, Inputs, Key, Mask, Params, Real, State

__all__ = [
    "Operator",
    "check_one_batch",
    "columns",
    "flat_product",
    "norm_estimate",
    "operator",
    "outputs_like",
    "product",
    "rows",
    "top_eigenpairs",
    "trace_estimate",
]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["params", "mask", "x", "x2", "network"],
    meta_fields=["batch_size"],
)
@dataclasses.dataclass(frozen=True, repr=False)
class Operator:
    """A Neural Tangent Kernel Θ that multiplies arrays (n, o), or (m, o) of a second batch, without being formed.

    Made by `operator`. A pytree, so that it passes through jit, vmap and grad.

    Attributes:
        params: the parameters.
        mask: which weights are kept; None if all are.
        x: the batch, (n, ...).
        x2: the other batch, (m, ...), to which the columns of Θ belong; None for `x`.
        network: the network, which is traced once for each shape of input, so that products do not call `apply` again.
        batch_size: how many examples go through the network at a time; None for all.
    """

    params: Params
    mask: Mask | None
    x: Inputs
    x2: Inputs | None
    network: TracedNetwork
    batch_size: int | None

    @property
    def shape(self) -> tuple[int, int]:
        """(n, o), or (m, o) with a second batch: the shape of what it multiplies."""
        return cast("tuple[int, int]", outputs_like(columns(self)).shape)

    def matvec(self, vector: Float[Array, "m o"]) -> Float[Array, "n o"]:
        """The product Θ v with an array v: (Θ v)_ia = Σ_jb Θ_(ij)(ab) v_jb.

        Cost: two passes forward and one backward over the batch; with a batch size, four forward.

        Raises ValueError for an array that is not of `shape`.
        """
        if vector.shape != self.shape:
            raise ValueError(
                f"The kernel multiplies arrays of shape {self.shape}, a number for each example and output, but "
                f"{vector.shape} came. Reshape it, or use `jax.vmap` for several at a time."
            )
        return cast(Array, self.network.compiled(_matvec)(self, vector))

    def trace(self) -> Float[Array, ""]:
        """The trace Tr Θ, the sum of the eigenvalues, without an error of estimation.

        Cost: one pass backward for each example and output; `trace_estimate` takes `samples` passes over the batch.

        Raises ValueError for a kernel of two batches.
        """
        check_one_batch(self)
        if self.shape[0] == 0:
            return jnp.zeros((), outputs_like(self).dtype)
        traces = _formed(self, Form(trace=True, diagonal=True))
        return jnp.sum(cast(Array, traces))

    def __repr__(self) -> str:
        """Sizes alone, as `Operator(n=20, o=10, weights=9,930, kept=993, batch_size=None)`."""
        weights = sum(np.size(leaf) for leaf in jax.tree.leaves(self.params))
        masks = [concrete(leaf) for leaf in jax.tree.leaves(self.mask)]
        if self.mask is None:
            kept = f"{weights:,}"
        elif any(mask is None for mask in masks):
            kept = "traced"
        else:
            kept = f"{sum(int(np.sum(mask)) for mask in masks if mask is not None):,}"
        # of several operators in one, as `jax.vmap` gives them, the outputs are not known
        o = f"{self.shape[1]:,}" if self.network.has_traced(self.x, self.params) else "unknown"
        n = f"n={batch_length(self.x):,}" + ("" if self.x2 is None else f", m={batch_length(self.x2):,}")
        return f"Operator({n}, o={o}, weights={weights:,}, kept={kept}, batch_size={self.batch_size})"


def operator(
    apply: ApplyFn,
    params: Params,
    x: Inputs,
    x2: Inputs | None = None,
    *,
    mask: Mask | None = None,
    state: State = None,
    batch_size: int | None = None,
) -> Operator:
    """The Neural Tangent Kernel as an operator, for kernels too large to store: n·o in the tens of thousands.

    It is Θ(x, x2); `x2=None` stands for `x`. Its products are those with `as_matrix(empirical(apply, params, x, x2,
    mask=mask))`, at the cost of a few passes through the network; the kernel's (n·o)² numbers are never stored.
    `trace_estimate`, `norm_estimate`, `top_eigenpairs` and `dynamics.trajectory` take it. A kernel of two batches, such
    as test points and training examples, has products only: its traces and eigenvalues are refused.

    `batch_size` is how many examples go through the network at a time: memory is then that of one such chunk's
    activations, of a few trees like `params` and of arrays (n, o). It changes results by rounding alone. `apply` is
    called once for each shape of input, and not by the products.

    Assumes what `empirical` assumes, and raises ValueError and TypeError where it does.

    >>> def apply(params, x):
    ...     return jax.nn.relu(x @ params["hidden"]) @ params["out"]
    >>> params = {"hidden": jnp.ones((4, 5)), "out": jnp.ones((5, 2))}
    >>> kernel = operator(apply, params, jnp.ones((3, 4)))
    >>> kernel
    Operator(n=3, o=2, weights=30, kept=30, batch_size=None)
    >>> kernel.matvec(jnp.ones((3, 2)))  # rows sum to 3 · (100 + 20)
    Array([[360., 360.],
           [360., 360.],
           [360., 360.]], dtype=float64)
    """
    x, x2 = as_batch("x", x), None if x2 is None else as_batch("x2", x2)
    check_params(params)
    check_inputs(x=x, x2=x2)
    check_batch_size(batch_size)
    mask = check_mask(mask, params)
    kernel = Operator(params, mask, x, x2, traced(apply, params, state), batch_size)
    for name, batch in {"x": x, "x2": x2}.items():
        if batch is not None:
            kernel.network.check_outputs(_kept(kernel, params), batch, name)
    return kernel


def check_one_batch(kernel: Operator) -> None:
    """Raise ValueError unless this is the kernel of one batch with itself."""
    if kernel.x2 is not None:
        raise ValueError(
            "The kernel of one batch with itself was expected, but this operator is of two. Leave out `x2` when making "
            "it by `ntk.operator`."
        )


def trace_estimate(kernel: Operator, *, key: Key, samples: int) -> Estimate:
    """Estimate Tr Θ in a few passes through the network, with a standard error.

    The estimate is the mean of ‖Jᵀ z‖² over random signs z (Hutchinson). It is unbiased, and each sample has the
    variance 2 Σ_{i≠j} Θ_ij² over all pairs of rows of the matrix. Cost: `samples` passes backward over the batch,
    one at a time.

    Raises ValueError where `samples` is below 1, and for a kernel of two batches.
    Source: Hutchinson (1989), "A stochastic estimator of the trace of the influence matrix".

    >>> def apply(params, x):
    ...     return jax.nn.relu(x @ params["hidden"]) @ params["out"]
    >>> keys = jax.random.split(jax.random.key(0), 3)
    >>> params = {"hidden": jax.random.normal(keys[0], (4, 50)), "out": jax.random.normal(keys[1], (50, 3))}
    >>> kernel = operator(apply, params, jax.random.normal(keys[2], (20, 4)))
    >>> value, standard_error = trace_estimate(kernel, key=jax.random.key(1), samples=50)
    >>> bool(abs(value - kernel.trace()) < 4 * standard_error)
    True
    """
    check_one_batch(kernel)
    _check_samples(samples)
    return cast(Estimate, kernel.network.compiled(_trace_estimate, samples=samples)(kernel, key))


def _trace_estimate(network: TracedNetwork, kernel: Operator, key: Key, *, samples: int) -> Estimate:
    maps = _maps(kernel)

    def sample(signs: Any) -> Any:
        tree = maps.backward(signs)
        return dot(tree, tree)

    return _mean(sample, kernel, key, samples)


def norm_estimate(kernel: Operator, *, key: Key, samples: int) -> Estimate:
    """Estimate the Frobenius norm ‖Θ‖ in a few products, with a standard error.

    The estimate is the root of the mean of ‖Θ z‖² over random signs z. ‖Θ z‖² is unbiased for the square; the standard
    error is of first order, and the estimate is biased low by about (standard error)² / (2 ‖Θ‖). Where ‖Θ‖ is estimated
    to be zero, so is its error. Cost: `samples` products with Θ, one at a time.

    Raises ValueError where `samples` is below 1, and for a kernel of two batches.
    Source: Hutchinson (1989), for Θ².

    >>> from pathjax import ntk
    >>> def apply(params, x):
    ...     return jax.nn.relu(x @ params["hidden"]) @ params["out"]
    >>> keys = jax.random.split(jax.random.key(0), 3)
    >>> params = {"hidden": jax.random.normal(keys[0], (4, 50)), "out": jax.random.normal(keys[1], (50, 3))}
    >>> x = jax.random.normal(keys[2], (20, 4))
    >>> value, standard_error = norm_estimate(operator(apply, params, x), key=jax.random.key(1), samples=50)
    >>> bool(abs(value - jnp.linalg.norm(ntk.empirical(apply, params, x).ravel())) < 4 * standard_error)
    True
    """
    check_one_batch(kernel)
    _check_samples(samples)
    return cast(Estimate, kernel.network.compiled(_norm_estimate, samples=samples)(kernel, key))


def _norm_estimate(network: TracedNetwork, kernel: Operator, key: Key, *, samples: int) -> Estimate:
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
    progress: SearchProgress | None = None,
) -> Eigenpairs:
    """The `rank` largest eigenvalues of the Neural Tangent Kernel, descending, with eigenvectors and residuals.

    Eigenvectors are (r, n, o), orthonormal as vectors of n·o numbers. Up to n·o = 512, Θ is formed and decomposed,
    which is exact. For more, thick-restarted Lanczos iteration with full reorthogonalization searches a space of rank +
    order + 1 vectors; `order` is rank + 20 by default. It ends when ‖Θ v − λ v‖ ≤
    `tolerance` · λ_max for each pair, measured by products with Θ, and a round from a new random start has found no
    larger eigenvalue; so repeated eigenvalues come with all their eigenvectors. Where many eigenvalues crowd just below
    the last one, that round of `order` products may overlook one above it; a larger `order` looks further. The same key
    gives the same pairs.
    After `restarts` rounds, by default rank + 50, it ends too, and a UserWarning says by how much the tolerance was
    missed. Under `jit` and `vmap`, where that cannot be known, there is no warning: compare `residuals`, which are
    ‖Θ v − λ v‖ / λ_max, with the tolerance.

    Cost: at least 2 · (rank + order + 1) products; each further round takes order/2 to rank + order + 1. Stores at most
    (order + 2 · rank + 15) · n·o numbers at a time, besides what one product takes. Of networks in half precision the
    pairs are in single precision. NaN where products are not finite. Eigenvalues can be differentiated; of eigenvectors
    the derivative is NaN above 512 rows.

    `progress(round, restarts, residual)` is called after each round of the search, with the largest residual so far
    over λ_max; it is not called where Θ is formed.

    Raises ValueError where `rank` is not between 1 and n·o, where `order` or `restarts` is below 1, and for a kernel of
    two batches.
    Source: Wu and Simon (2000), "Thick-Restart Lanczos Method for Large Symmetric Eigenvalue Problems".

    >>> def apply(params, x):
    ...     return x @ params
    >>> kernel = operator(apply, jnp.ones((4, 2)), jnp.diag(jnp.array([3.0, 2.0, 1.0, 0.5]))[:3])
    >>> pairs = top_eigenpairs(kernel, 4, key=jax.random.key(0))
    >>> pairs.eigenvalues.round(6), pairs.eigenvectors.shape, bool(pairs.residuals.max() < 1e-12)
    (Array([9., 9., 4., 4.], dtype=float64), (4, 3, 2), True)
    """
    check_one_batch(kernel)
    return _eigenpairs.find(
        _PROBLEM,
        kernel,
        rank,
        size=math.prod(kernel.shape),
        key=key,
        order=order,
        tolerance=tolerance,
        restarts=restarts,
        progress=progress,
    )


def _matvec(network: TracedNetwork, kernel: Operator, vector: Array) -> Array:
    return cast(Array, product(kernel)(vector))


def product(kernel: Operator) -> Callable[[Any], Any]:
    """v ↦ Θ v of arrays (m, o), for use in loops."""
    of_rows = _maps(kernel)
    of_columns = of_rows if kernel.x2 is None else _maps(columns(kernel))
    return lambda vector: of_rows.forward(of_columns.backward(vector))


def rows(kernel: Operator) -> Operator:
    """The kernel with itself of the batch that the rows belong to."""
    return dataclasses.replace(kernel, x2=None)


def columns(kernel: Operator) -> Operator:
    """The kernel with itself of the batch that the columns belong to."""
    return rows(kernel) if kernel.x2 is None else dataclasses.replace(kernel, x=kernel.x2, x2=None)


class _Maps(NamedTuple):
    """J, which takes trees like the parameters to arrays (n, o), and its transpose."""

    forward: Callable[[Any], Any]
    backward: Callable[[Any], Any]


def _maps(kernel: Operator) -> _Maps:
    """Both maps for use in loops: what depends on neither is computed once, unless that is too large to keep."""
    n, size = batch_length(kernel.x), kernel.batch_size
    if size is None or size >= n:
        return _maps_at(kernel, kernel.network.program(kernel.x, kernel.params), kernel.x)
    chunks = _blocks.chunks(kernel.x, size)
    count, length = jax.tree.leaves(chunks)[0].shape[:2]
    # traced here, so that no context in which the maps are used changes the precision of the network
    chunk_like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), chunks)
    program = kernel.network.program(chunk_like, kernel.params)
    outputs = outputs_like(kernel)
    filling = count * length - n

    def forward(tree: Any) -> Any:
        products = lax.map(lambda chunk: _maps_at(kernel, program, chunk).forward(tree), chunks)
        return products.reshape(-1, products.shape[-1])[:n]

    def backward(array: Any) -> Any:
        filled = jnp.pad(jnp.asarray(array, outputs.dtype), [(0, filling), (0, 0)])

        def add(sums: Any, part: tuple[Any, Any]) -> tuple[Any, None]:
            chunk, cotangents = part
            return jax.tree.map(jnp.add, sums, _maps_at(kernel, program, chunk).backward(cotangents)), None

        zeros = jax.tree.map(jnp.zeros_like, kernel.params)
        return lax.scan(add, zeros, (chunks, filled.reshape(count, length, -1)))[0]

    return _Maps(forward, backward)


def _maps_at(kernel: Operator, program: Program, x: Any) -> _Maps:
    """Both maps for some of the examples."""
    outputs, transposed = jax.vjp(lambda params: program(_kept(kernel, params), x), kernel.params)

    def backward(array: Any) -> Any:
        return transposed(jnp.asarray(array, outputs.dtype))[0]

    def forward(tree: Any) -> Any:
        return jax.linear_transpose(backward, outputs)(tree)[0]

    return _Maps(channels_last(forward), channels_last(backward))


def _kept(kernel: Operator, params: Params) -> Params:
    return params if kernel.mask is None else kept_weights(kernel.mask, params)


def outputs_like(kernel: Operator) -> Any:
    """Shape and dtype of the outputs."""
    return kernel.network.output(kernel.x, kernel.params)


def _formed(kernel: Operator, form: Form) -> Any:
    """Θ itself, or what `form` asks of it."""
    return layerwise.compiled(
        kernel.network, kernel.params, kernel.x, None, mask=kernel.mask, form=form, batch_size=kernel.batch_size
    )


def _random_signs(kernel: Operator, key: Key) -> Any:
    outputs = outputs_like(kernel)
    return jax.random.rademacher(key, outputs.shape, outputs.dtype)


def _check_samples(samples: int) -> None:
    if samples < 1:
        raise ValueError(f"`samples` must be at least 1, but is {samples}.")


def _mean(sample: Callable[[Any], Any], kernel: Operator, key: Key, samples: int) -> Estimate:
    return estimates.mean(lax.map(lambda each: sample(_random_signs(kernel, each)), jax.random.split(key, samples)))


# The search for the largest eigenpairs


def _decomposed(kernel: Operator, rank: int) -> Eigenpairs:
    return cast(Eigenpairs, kernel.network.compiled(_exact_pairs, rank=rank)(kernel))


def _exact_pairs(network: TracedNetwork, kernel: Operator, *, rank: int) -> Eigenpairs:
    matrix = wide(as_matrix(_formed(kernel, Form())))
    values, columns = eigh(matrix)
    values, columns = values[::-1][:rank], columns[:, ::-1][:, :rank]
    return with_logarithms(values, _arrays(kernel, columns.T), measured(matrix, values, columns))


def flat_product(kernel: Operator) -> Callable[[Any], Any]:
    """v ↦ Θ v of flat vectors, in single precision or wider."""
    multiply = product(kernel)
    return lambda vector: wide(multiply(vector.reshape(kernel.shape)).ravel())


def _quotient(kernel: Operator) -> Callable[[Any], Any]:
    """vᵀ Θ v = ‖Jᵀ v‖²."""
    backward = _maps(kernel).backward

    def quotient(array: Any) -> Any:
        tree = backward(array)
        return dot(tree, tree).astype(array.dtype)

    return quotient


def _random_start(kernel: Operator, key: Key) -> Any:
    outputs = outputs_like(kernel)
    return jax.random.normal(key, outputs.shape, jnp.promote_types(outputs.dtype, jnp.float32)).ravel()


def _arrays(kernel: Operator, vectors: Any) -> Any:
    return vectors.reshape(len(vectors), *kernel.shape)


_PROBLEM = Problem(
    name="the Neural Tangent Kernel",
    rows="rows n·o",
    decompose=_decomposed,
    product=flat_product,
    quotient=_quotient,
    random_start=_random_start,
    unravel=_arrays,
)
