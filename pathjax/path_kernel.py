"""The Path Kernel Π = J_θ v (J_θ v)ᵀ through its twin G = (J_θ v)ᵀ(J_θ v), without forming either.

Π is as wide as there are paths; G is as wide as there are parameters and has the same nonzero eigenvalues. With
R₂(u) = Σ_p c_p² Π_{i∈p} u_i over the paths of the lifted network, at u = θ²,

    G w = ∇R₂(u) ⊙ w + θ ⊙ (∇²R₂(u) · (θ ⊙ w))

is one Hessian-vector product. Source: Gebhart et al. (2021), section 3, for Π and its trace.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from pathjax._trees import check_like, multiply, ravel, total
from pathjax.paths import Scaled, lift_weights, ones_like_example, open_sum, power_of_two, tied_leaves
from pathjax.types import ApplyFn, Key, Mask, Params, XLike

__all__ = ["PathKernel", "SpectralDensity", "path_kernel", "spectral_density", "top_eigenpairs"]

# Up to this many parameters G is formed and decomposed as it is: exact, and cheaper than iterating.
_DENSE = 512


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["params", "mask", "example", "exponent"],
    meta_fields=["apply", "tied"],
)
@dataclasses.dataclass(frozen=True)
class PathKernel:
    """The operator G on trees like `params`, scaled: the true G is exp(`log_scale`) times what the methods give.

    A pytree, so that it passes through jit, vmap and grad. Rows and columns of pruned weights are dropped: they are
    zero in every result.

    Attributes:
        params: the parameters, pruned weights zero.
        mask: which weights are kept.
        example: one all-ones input, (1, ...).
        exponent: the binary logarithm of the scale.
        apply: the network.
        tied: positions of the leaves that some path meets more than once.
    """

    params: Params
    mask: Mask
    example: Float[Array, ...]
    exponent: Any
    apply: ApplyFn
    tied: frozenset[int]

    @property
    def log_scale(self) -> Float[Array, ""]:
        """Natural logarithm of the factor between the scaled operator and the true one."""
        return math.log(2.0) * self.exponent

    def matvec(self, tree: Params) -> Params:
        """G w for a tree w like `params`: one Hessian-vector product, some four times a gradient's cost.

        Raises ValueError for a tree of another structure.
        """
        check_like(tree, self.params, name="tree")
        vector = _keep(self.mask, tree)
        gradient, curvature = self._derivatives(multiply(self.params, vector))
        product = jax.tree.map(lambda g, w, t, h: g * w + t * h, gradient, vector, self.params, curvature)
        return _keep(self.mask, product)

    def diagonal(self) -> Params:
        """diag(G)_i = ∂R₂/∂u_i, and u_i ∂²R₂/∂u_i² more for tied weights, as a tree like `params`.

        One gradient; for each entry of a tied leaf one Hessian-vector product.
        """
        gradient, _ = self._derivatives(None)
        leaves, structure = jax.tree.flatten(gradient)
        for position in self.tied:
            leaves[position] = leaves[position] + self._second_diagonal(position)
        return _keep(self.mask, jax.tree.unflatten(structure, leaves))

    def trace(self) -> Float[Array, ""]:
        """Tr Π = Tr G, the sum of the diagonal."""
        return total(self.diagonal())

    def _derivatives(self, direction: Params | None) -> tuple[Params, Params]:
        """∇R₂ and, given a direction, ∇²R₂ times it, at the operator's scale."""

        def scaled_sum(squares: Params) -> tuple[Any, Any]:
            total_sum = _sum_of_squares(self.apply, squares, self.example)
            return total_sum.array, lax.stop_gradient(total_sum.exponent)

        gradient_of = jax.grad(scaled_sum, has_aux=True)
        squares = jax.tree.map(jnp.square, self.params)
        if direction is None:
            gradient, exponent = gradient_of(squares)
            curvature = gradient
        else:
            (gradient, exponent), (curvature, _) = jax.jvp(gradient_of, (squares,), (direction,))
        # the scale is chosen by rounded numbers, which another compilation may round otherwise
        step = jnp.where(jnp.isfinite(exponent), exponent - self.exponent, 0.0)
        factor = power_of_two(step, self.example.dtype)
        return jax.tree.map(lambda leaf: leaf * factor.astype(leaf.dtype), (gradient, curvature))

    def _second_diagonal(self, position: int) -> Any:
        """u_i ∂²R₂/∂u_i² for the entries of one leaf."""
        leaves, structure = jax.tree.flatten(self.params)
        shape, dtype = leaves[position].shape, leaves[position].dtype

        def entry(index: Any) -> Any:
            unit = jnp.zeros(math.prod(shape), dtype).at[index].set(1).reshape(shape)
            zeros = [jnp.zeros_like(leaf) for leaf in leaves]
            direction = jax.tree.unflatten(structure, [*zeros[:position], unit, *zeros[position + 1 :]])
            _, curvature = self._derivatives(direction)
            return jax.tree.leaves(curvature)[position].ravel()[index]

        second = lax.map(entry, jnp.arange(math.prod(shape)), batch_size=64)
        return jnp.square(leaves[position]) * second.reshape(shape)


class SpectralDensity(NamedTuple):
    """Quadrature of the spectral density of G, one row per random start.

    For a function f, the mean over rows of Σ_j weights_j f(nodes_j) estimates Tr f(G) / (number of kept weights);
    the spread over rows gives its standard error.

    Attributes:
        nodes: (samples, order) eigenvalues, ascending; times exp(log_scale) for the true ones.
        weights: (samples, order) nonnegative, each row sums to 1.
        log_scale: as in the kernel.
    """

    nodes: Float[Array, "samples order"]
    weights: Float[Array, "samples order"]
    log_scale: Float[Array, ""]


def _sum_of_squares(apply: ApplyFn, squares: Params, example: Any) -> Scaled:
    # zeros keep their scale: where R₂ vanishes (a layer initialised at zero) its derivatives need not
    return open_sum(apply, squares, example, q=2, keep_zeros=True)


def _keep(mask: Mask, tree: Params) -> Params:
    return jax.tree.map(lambda kept, leaf: jnp.where(kept, leaf, 0), mask, tree)


def path_kernel(apply: ApplyFn, params: Params, x_like: XLike, *, mask: Mask | None = None) -> PathKernel:
    """The Path Kernel of a network as an operator, scaled so that depth does not matter.

    Only the shape of `x_like` (n, ...) is read. One forward pass of the lifted network; every method costs passes of
    its own. With a mask, θ is masked and rows and columns of pruned weights are dropped.

    Raises UnsupportedPrimitive where a layer is not piecewise linear, and ValueError for a mask of another tree.
    Source: Gebhart et al. (2021), section 3.

    >>> def apply(params, x):
    ...     return jnp.maximum(x @ params["first"], 0) @ params["second"]
    >>> params = {"first": jnp.full((1, 2), 0.5), "second": jnp.full((2, 3), 2.0)}
    >>> kernel = path_kernel(apply, params, jnp.zeros((5, 1)))
    >>> trace = kernel.trace() * jnp.exp(kernel.log_scale)
    >>> round(float(trace), 4)  # 6 paths, each 2² + 0.5²
    25.5
    """
    kept = jax.tree.map(lambda leaf: jnp.ones(jnp.shape(leaf), bool), params) if mask is None else mask
    masked = lift_weights(params, lambda leaf: leaf, kept)
    example = ones_like_example(x_like)
    scale = _sum_of_squares(apply, jax.tree.map(jnp.square, masked), example)
    exponent = jnp.asarray(lax.stop_gradient(scale.exponent), jnp.float32)
    exponent = jnp.where(jnp.isfinite(exponent), exponent, 0.0)
    return PathKernel(masked, kept, example, exponent, apply, tied_leaves(apply, params, x_like))


def top_eigenpairs(
    kernel: PathKernel, rank: int, *, key: Key, order: int | None = None
) -> tuple[Float[Array, " r"], Params]:
    """The largest eigenvalues of G, descending, and their eigenvectors as a pytree with a leading axis (r, ...).

    Up to 512 kept weights G is formed on them and decomposed: exact. Otherwise, and under `jit` or `vmap`, where the
    mask cannot be read, Lanczos iteration with full reorthogonalization from a random start on the kept weights
    (matfree), of `order` steps, by default 2 · rank + 30. Stores order · p numbers. One start finds one eigenvector of
    each repeated eigenvalue; pairs beyond the dimension that it reaches are zero. Multiply the eigenvalues by
    exp(kernel.log_scale) for those of the true Path Kernel; Π's eigenvectors are J_θ v times these, divided by the root
    of the eigenvalue.

    Raises ValueError where `rank` is not between 1 and the number of weights, kept ones where the mask can be read.

    >>> def apply(params, x):
    ...     return jnp.maximum(x @ params["first"], 0) @ params["second"]
    >>> params = {"first": jnp.full((1, 2), 0.5), "second": jnp.full((2, 3), 2.0)}
    >>> kernel = path_kernel(apply, params, jnp.zeros((5, 1)))
    >>> eigenvalues, eigenvectors = top_eigenpairs(kernel, 3, key=jax.random.key(0))
    >>> eigenvalues.shape, eigenvectors["second"].shape
    ((3,), (3, 2, 3))
    """
    kept = _kept(kernel)
    size = sum(leaf.size for leaf in jax.tree.leaves(kernel.params)) if kept is None else len(kept)
    if not 1 <= rank <= size:
        raise ValueError(f"`rank` must lie between 1 and the number of kept weights, {size}, but is {rank}.")
    _, unravel = ravel(kernel.params)
    if kept is not None and size <= _DENSE:
        values, vectors = _decompose(kernel, kept)
    else:
        steps = min(size, 2 * rank + 30 if order is None else max(order, rank))
        basis, tridiagonal = _lanczos(kernel, steps, key)
        values, small = jnp.linalg.eigh(tridiagonal)
        vectors = small.T @ basis
    return values[::-1][:rank], jax.vmap(unravel)(vectors[::-1][:rank])


def spectral_density(kernel: PathKernel, *, order: int, samples: int, key: Key) -> SpectralDensity:
    """Spectral density of G by stochastic Lanczos quadrature, over the kept weights.

    For each of `samples` random sign vectors, `order` Lanczos steps with full reorthogonalization (matfree): nodes
    and weights of the Gauss quadrature. One sample at a time; stores order · p numbers.

    Raises ValueError where `order` or `samples` is below 1.
    Source: Golub, Meurant (2009), "Matrices, Moments and Quadrature"; Ubaru, Chen, Saad (2017).

    >>> def apply(params, x):
    ...     return jnp.maximum(x @ params["first"], 0) @ params["second"]
    >>> params = {"first": jnp.full((1, 2), 0.5), "second": jnp.full((2, 3), 2.0)}
    >>> kernel = path_kernel(apply, params, jnp.zeros((5, 1)))
    >>> density = spectral_density(kernel, order=3, samples=4, key=jax.random.key(0))
    >>> density.nodes.shape, density.weights.sum(axis=1).round(4).tolist()
    ((4, 3), [1.0, 1.0, 1.0, 1.0])
    """
    if order < 1 or samples < 1:
        raise ValueError(f"`order` and `samples` must be at least 1, but are {order} and {samples}.")
    steps = min(order, sum(leaf.size for leaf in jax.tree.leaves(kernel.params)))

    def quadrature(sample_key: Key) -> tuple[Any, Any]:
        _, tridiagonal = _lanczos(kernel, steps, sample_key)
        nodes, vectors = jnp.linalg.eigh(tridiagonal)
        return nodes, jnp.square(vectors[0])

    nodes, weights = lax.map(quadrature, jax.random.split(key, samples))
    return SpectralDensity(nodes, weights, kernel.log_scale)


def _lanczos(kernel: PathKernel, steps: int, key: Key) -> tuple[Any, Any]:
    """Orthonormal vectors (steps, p) and the tridiagonal matrix of G on them, from a random start.

    Where G has no more than some number of distinct eigenvalues, so many steps exhaust it and what follows is rounding:
    vectors and entries behind the first negligible off-diagonal one are zero.
    """
    from matfree import decomp  # heavy: on first use

    tridiagonalize = decomp.tridiag_sym(steps, reortho="full", custom_vjp=False)
    basis, tridiagonal, *_ = tridiagonalize(_flat_matvec(kernel), _random_start(kernel, key))
    diagonal, beside = jnp.diag(tridiagonal), jnp.diag(tridiagonal, 1)
    size = lax.cummax(jnp.abs(diagonal[:-1]) + jnp.abs(beside))
    goes_on = beside > jnp.finfo(basis.dtype).eps ** (2 / 3) * size
    alive = jnp.concatenate([jnp.ones(1, bool), jnp.cumprod(goes_on).astype(bool)])
    return jnp.where(alive[:, None], basis, 0), jnp.where(alive[:, None] & alive[None, :], tridiagonal, 0)


def _kept(kernel: PathKernel) -> np.ndarray | None:
    """Positions of the kept weights among all, raveled; None where the mask cannot be read."""
    leaves = jax.tree.leaves(kernel.mask)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        return None
    return np.flatnonzero(np.concatenate([np.ravel(leaf) for leaf in leaves]))


def _decompose(kernel: PathKernel, kept: np.ndarray) -> tuple[Any, Any]:
    """All eigenvalues of G on the kept weights, ascending, and their eigenvectors (kept, p)."""
    flat, _ = ravel(kernel.params)
    units = jnp.zeros((len(kept), flat.size), flat.dtype).at[np.arange(len(kept)), kept].set(1)
    values, small = jnp.linalg.eigh(jax.vmap(_flat_matvec(kernel))(units)[:, kept])
    return values, jnp.zeros_like(units).at[:, kept].set(small.T)


def _flat_matvec(kernel: PathKernel) -> Any:
    _, unravel = ravel(kernel.params)
    return lambda vector: ravel(kernel.matvec(unravel(vector)))[0]


def _random_start(kernel: PathKernel, key: Key) -> Any:
    """Random signs on the kept weights."""
    flat, unravel = ravel(kernel.params)
    signs = jax.random.rademacher(key, flat.shape, flat.dtype)
    return ravel(_keep(kernel.mask, unravel(signs)))[0]
