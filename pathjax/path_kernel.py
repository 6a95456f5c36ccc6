"""The Path Kernel Π = J_θ v (J_θ v)ᵀ through its twin G = (J_θ v)ᵀ(J_θ v), without forming either.

Π is as wide as there are paths; G is as wide as there are parameters and has the same nonzero eigenvalues. With
R₂(u) = Σ_p c_p² Π_{i∈p} u_i over the paths of the lifted network, at u = θ²,

    G w = ∇R₂(u) ⊙ w + θ ⊙ (∇²R₂(u) · (θ ⊙ w))

is one Hessian-vector product. R₂(θ₁ ⊙ θ₂) = Σ_p v_p(θ₁) v_p(θ₂) has for its mixed second derivative
(J_θ v)(θ₁)ᵀ (J_θ v)(θ₂), by which the Path Kernels of two sets of weights are compared; G is that of one with itself.

Rescaling a hidden unit (its incoming weights times c, its outgoing ones by 1/c) changes no path value, so each such
symmetry is a null vector of G: θ on the incoming weights, −θ on the outgoing. A fully connected ReLU network without
biases and without zero weights has rank G = weights − hidden units. Functions of the spectrum therefore say how they
treat eigenvalues of zero.

Source: Gebhart et al. (2021), section 3, for Π and its trace.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import keystr, tree_flatten_with_path
from jaxtyping import Array, Float

from pathjax._jaxpr import Equation, walk
from pathjax._lanczos import Krylov, Pairs, krylov, largest
from pathjax._trees import check_like, dot, multiply, ravel, total
from pathjax.paths import Scaled, absolute_power, lift, lift_weights, ones_like_example, power_of_two, tied_leaves
from pathjax.types import ApplyFn, Key, Mask, Params, Real, XLike

__all__ = [
    "Estimate",
    "PathKernel",
    "SpectralDensity",
    "condition_number",
    "cosine",
    "effective_rank",
    "log_determinant",
    "overlap",
    "path_kernel",
    "smallest",
    "spectral_density",
    "top_eigenpairs",
]

# Up to this many kept weights G is formed and decomposed as it is: exact, and cheaper than iterating.
_DENSE = 512

# Numbers in the vectors that are multiplied at once where G is formed.
_AT_ONCE = 2**22

# Options of a convolution besides the order of axes.
_CONVOLUTION = (
    "window_strides",
    "padding",
    "lhs_dilation",
    "rhs_dilation",
    "feature_group_count",
    "batch_group_count",
    "precision",
    "preferred_element_type",
)

# Eigenvalues below this many roundings of the largest count as zero.
_ROUNDINGS = 512


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["params", "mask", "example", "exponent"],
    meta_fields=["apply", "rows", "outputs", "tied"],
)
@dataclasses.dataclass(frozen=True)
class PathKernel:
    """The operator G on trees like `params`, scaled: the true G is exp(`log_scale`) times what the methods give.

    A pytree, so that it passes through jit, vmap and grad. Rows and columns of pruned weights, and of leaves that are
    not chosen, are dropped: they are zero in every result.

    Attributes:
        params: the parameters, pruned weights zero.
        mask: which weights are kept; None if all are.
        example: one all-ones input, (1, ...).
        exponent: the binary logarithm of the scale.
        apply: the network.
        rows: positions of the leaves whose weights have rows and columns.
        outputs: positions of the outputs in which paths end; None for all.
        tied: positions of the leaves that some path meets more than once.
    """

    params: Params
    mask: Mask | None
    example: Float[Array, ...]
    exponent: Any
    apply: ApplyFn
    rows: frozenset[int]
    outputs: tuple[int, ...] | None
    tied: frozenset[int]

    @property
    def log_scale(self) -> Float[Array, ""]:
        """Natural logarithm of the factor between the scaled operator and the true one."""
        return math.log(2.0) * jnp.asarray(self.exponent, float)

    def matvec(self, tree: Params) -> Params:
        """G w for a tree w like `params`: one Hessian-vector product, some three times a gradient's cost.

        Raises ValueError for a tree of another structure.
        """
        check_like(tree, self.params, name="tree")
        return _cross(self, self)(tree)

    def diagonal(self) -> Params:
        """diag(G)_i = ∂R₂/∂u_i, and u_i ∂²R₂/∂u_i² more for tied weights, as a tree like `params`.

        One gradient; for each entry of a tied leaf one Hessian-vector product.
        """

        def scaled_sum(squares: Params) -> tuple[Any, Any]:
            return _selected_sum(self, squares)

        gradient, exponent = jax.grad(scaled_sum, has_aux=True)(jax.tree.map(jnp.square, self.params))
        leaves, structure = jax.tree.flatten(_rescale(gradient, exponent - self.exponent))
        for position in self.tied & self.rows:
            leaves[position] = self._entries(position)
        return self._keep(jax.tree.unflatten(structure, leaves))

    def trace(self) -> Float[Array, ""]:
        """Tr Π = Tr G, the sum of the diagonal."""
        return total(self.diagonal())

    def _entries(self, position: int) -> Any:
        """The diagonal at one leaf, entry by entry."""
        leaves, structure = jax.tree.flatten(self.params)
        shape, dtype = leaves[position].shape, leaves[position].dtype
        zeros = [jnp.zeros_like(leaf) for leaf in leaves]
        product = _linear(self, self)

        def entry(index: Any) -> Any:
            unit = jnp.zeros(math.prod(shape), dtype).at[index].set(1).reshape(shape)
            direction = jax.tree.unflatten(structure, [*zeros[:position], unit, *zeros[position + 1 :]])
            return jax.tree.leaves(product(direction))[position].ravel()[index]

        return lax.map(entry, jnp.arange(math.prod(shape)), batch_size=64).reshape(shape)

    def _keep(self, tree: Params) -> Params:
        """The tree, with zeros where there are no rows."""
        leaves, structure = jax.tree.flatten(tree)
        masks = [True] * len(leaves) if self.mask is None else jax.tree.leaves(self.mask)
        kept = [
            jnp.where(mask, leaf, 0) if position in self.rows else jnp.zeros_like(leaf)
            for position, (mask, leaf) in enumerate(zip(masks, leaves, strict=True))
        ]
        return jax.tree.unflatten(structure, kept)


def path_kernel(
    apply: ApplyFn,
    params: Params,
    x_like: XLike,
    *,
    mask: Mask | None = None,
    where: Callable[[tuple[Any, ...], Any], bool] | None = None,
    outputs: Sequence[int] | None = None,
) -> PathKernel:
    """The Path Kernel of a network as an operator, scaled so that depth does not matter.

    Only the shape of `x_like` (n, ...) is read. One forward pass of the lifted network; every method costs passes of
    its own. With a mask, θ is masked and rows and columns of pruned weights are dropped: ∂v_p/∂θ_i need not vanish at a
    pruned weight, but nothing moves there.

    `where(key_path, leaf)` chooses the leaves whose weights have rows and columns, those of a layer, say; the other
    weights stay on the paths. The kernels of parts are principal submatrices of G: their traces, and their Π, add up to
    those of the whole. `outputs` keeps the paths that end in these outputs; Π is block diagonal over outputs in the
    sense that G of all is the sum of G over outputs.

    Raises UnsupportedPrimitive where a layer is not piecewise linear, and ValueError for an `apply` whose result is not
    (n, o), for a mask of another tree, for a mask, a `where` or `outputs` that choose nothing, for unknown outputs and,
    where values can be read, for kept weights which are not finite or whose squares are not.
    Source: Gebhart et al. (2021), section 3.

    >>> def apply(params, x):
    ...     return jnp.maximum(x @ params["first"], 0) @ params["second"]
    >>> params = {"first": jnp.full((1, 2), 0.5), "second": jnp.full((2, 3), 2.0)}
    >>> kernel = path_kernel(apply, params, jnp.zeros((5, 1)))
    >>> trace = kernel.trace() * jnp.exp(kernel.log_scale)
    >>> round(float(trace), 4)  # 6 paths, each 2² + 0.5²
    25.5
    >>> first = lambda key_path, leaf: key_path[0].key == "first"
    >>> part = path_kernel(apply, params, jnp.zeros((5, 1)), where=first, outputs=[2])
    >>> round(float(part.trace() * jnp.exp(part.log_scale)), 4)  # 2 paths, each 2²
    8.0
    """
    masked = lift_weights(params, lambda leaf: leaf, mask)
    leaves = tree_flatten_with_path(params)[0]
    rows = frozenset(i for i, (path, leaf) in enumerate(leaves) if where is None or where(path, leaf))
    _check_finite(leaves, mask)
    example = ones_like_example(x_like)
    sums = lift(apply, jax.tree.map(jnp.square, masked), example, phi=absolute_power(2), keep_zeros=True)
    chosen = None if outputs is None else _known_outputs(outputs, sums.array.shape[1])
    exponent = jnp.asarray(lax.stop_gradient(sums.exponent), jnp.float32)
    exponent = jnp.where(jnp.isfinite(exponent), exponent, 0.0)
    tied = tied_leaves(apply, params, x_like)
    kernel = PathKernel(masked, mask, example, exponent, apply, rows, chosen, tied)
    if _count(kernel) == 0:
        chooser = "`mask` keeps no weight" if where is None else "`where` chooses no leaf with a weight that is kept"
        raise ValueError(f"{chooser}, so that the Path Kernel has no row. Keep one weight at least.")
    return kernel


def _check_finite(leaves: list[tuple[Any, Any]], mask: Mask | None) -> None:
    masks = [True] * len(leaves) if mask is None else jax.tree.leaves(mask)
    for (path, leaf), kept in zip(leaves, masks, strict=True):
        if isinstance(leaf, jax.core.Tracer) or isinstance(kept, jax.core.Tracer):
            continue
        with np.errstate(over="ignore"):
            squares = np.square(np.asarray(leaf))
        if not np.isfinite(squares, where=np.asarray(kept), out=np.ones(squares.shape, bool)).all():
            raise ValueError(
                f"`params` at {keystr(path)} has a kept weight that is NaN or infinite, or whose square is infinite in "
                f"{squares.dtype}. Look for a training run that diverged, or scale the weights down."
            )


def _known_outputs(outputs: Sequence[int], size: int) -> tuple[int, ...]:
    found = tuple(sorted({int(output) for output in outputs}))
    if not found or found[0] < 0 or found[-1] >= size:
        raise ValueError(f"`outputs` must name some of the outputs 0 to {size - 1}, but is {list(outputs)}.")
    return found


def _selected_sum(kernel: PathKernel, weights: Params) -> tuple[Any, Any]:
    """Σ_p c_p² Π_{i∈p} weights_i over the paths to the chosen outputs: array and exponent of the scale."""
    # zeros keep their scale: where the sum vanishes (a layer initialised at zero) its derivatives need not
    sums: Scaled = lift(kernel.apply, weights, kernel.example, phi=absolute_power(2), keep_zeros=True)
    array = sums.array if kernel.outputs is None else sums.array[:, np.array(kernel.outputs)]
    return jnp.sum(array), lax.stop_gradient(sums.exponent)


def _rescale(tree: Params, step: Any) -> Params:
    # the scale is chosen by rounded numbers, which another compilation may round otherwise
    step = jnp.where(jnp.isfinite(step), step, 0.0)
    return jax.tree.map(lambda leaf: leaf * power_of_two(step, leaf.dtype), tree)


def _cross(left: PathKernel, right: PathKernel) -> Callable[[Params], Params]:
    """w ↦ (J_θ v)ᵀ_left (J_θ v)_right w, at the scale of `_cross_exponent`.

    ∂/∂θ₁ of the derivative of R₂(θ₁ ⊙ θ₂) along w in θ₂: reverse over forward mode, which is cheaper than the other way
    around where weights are convolved.
    """
    scale = _cross_exponent(left, right)

    def product(tree: Params) -> Params:
        vector = right._keep(jax.tree.map(lambda leaf, like: jnp.asarray(leaf, like.dtype), tree, right.params))

        def slope(weights: Params) -> tuple[Any, Any]:
            along = multiply(weights, vector)
            _, derivative, exponent = jax.jvp(
                functools.partial(_selected_sum, left), (multiply(weights, right.params),), (along,), has_aux=True
            )
            return derivative, exponent

        gradient, exponent = jax.grad(slope, has_aux=True)(left.params)
        return left._keep(_rescale(gradient, exponent - scale))

    return product


def _cross_exponent(left: PathKernel, right: PathKernel) -> Any:
    return jnp.floor((left.exponent + right.exponent) / 2)


def _linear(left: PathKernel, right: PathKernel) -> Callable[[Params], Params]:
    """The same map for use in loops: what does not depend on w is computed once, about two thirds of the cost."""
    zeros = jax.tree.map(jnp.zeros_like, right.params)
    _, product = jax.linearize(_cross(left, right), zeros)
    closed, like = jax.make_jaxpr(product, return_shape=True)(zeros)

    def run(tree: Params) -> Params:
        results = walk(closed, jax.tree.leaves(tree), step=_in_order, constant=lambda array: array)
        return jax.tree.unflatten(jax.tree.structure(like), results)

    return run


def _in_order(equation: Equation, arrays: list[Any]) -> list[Any]:
    """The results of an equation, those of a convolution by way of channels last in every operand.

    On a CPU, XLA has fast convolutions for that order alone, and brings others into it outside of loops alone. Those of
    derivatives have others, and take up to ten times as long.
    """
    if equation.name != "conv_general_dilated":
        return equation.bind(*arrays)
    options = equation.params
    batch, channels, *space = range(arrays[0].ndim)
    last, first = (batch, *space, channels), (0, len(space) + 1, *range(1, len(space) + 1))
    left, right, out = options["dimension_numbers"]
    array = lax.conv_general_dilated(
        jnp.transpose(arrays[0], [left[axis] for axis in last]),
        jnp.transpose(arrays[1], [right[axis] for axis in (*space, channels, batch)]),
        dimension_numbers=lax.ConvDimensionNumbers(first, (len(space) + 1, len(space), *range(len(space))), first),
        **{name: options[name] for name in _CONVOLUTION},
    )
    return [jnp.transpose(array, np.argsort([out[axis] for axis in last]).tolist())]


class Estimate(NamedTuple):
    """A mean over random probes and its standard error: 0 where the value is exact, NaN of a single probe."""

    value: Float[Array, ""]
    standard_error: Float[Array, ""]


def top_eigenpairs(
    kernel: PathKernel,
    rank: int,
    *,
    key: Key,
    order: int | None = None,
    tolerance: Real = 1e-5,
    restarts: int | None = None,
) -> tuple[Float[Array, " r"], Params]:
    """The largest eigenvalues of G, descending, and their eigenvectors as a pytree with a leading axis (r, ...).

    Up to 512 kept weights G is formed on them and decomposed: exact. Otherwise thick-restarted Lanczos iteration with
    full reorthogonalization (matfree), `order` steps in each round, by default rank + 20, until ‖G v − λ v‖ ≤
    `tolerance` · λ_max for each pair, by products with G itself, and a round from a new random start has found nothing
    to add; so repeated eigenvalues come with all their eigenvectors. The same key gives the same pairs. After
    `restarts` rounds, by default rank + 50, a UserWarning says by how much the tolerance was missed; not under `jit` or
    `vmap`, where it cannot be known: compare with `kernel.matvec`.

    A round costs order + rank products. Stores at most (order + 5 · rank + 10) · p numbers at a time, besides what one
    product takes: for less, ask for a smaller `order`.

    Multiply the eigenvalues by exp(kernel.log_scale) for those of the true Path Kernel; Π's eigenvectors are J_θ v
    times these, divided by the root of the eigenvalue. Where G has fewer nonzero eigenvalues than `rank`, the rest are
    null vectors; where a traced mask keeps fewer weights than `rank`, zeros. Eigenvalues can be differentiated; of
    eigenvectors the derivative is NaN above 512 weights.

    Raises ValueError where `rank` is not between 1 and the number of weights, kept ones where the mask can be read, or
    where `order` or `restarts` is below 1.
    Source: Wu and Simon (2000), "Thick-Restart Lanczos Method for Large Symmetric Eigenvalue Problems".

    >>> def apply(params, x):
    ...     return jnp.maximum(x @ params["first"], 0) @ params["second"]
    >>> params = {"first": jnp.full((1, 2), 0.5), "second": jnp.full((2, 3), 2.0)}
    >>> kernel = path_kernel(apply, params, jnp.zeros((5, 1)))
    >>> eigenvalues, eigenvectors = top_eigenpairs(kernel, 3, key=jax.random.key(0))
    >>> eigenvalues.shape, eigenvectors["second"].shape
    ((3,), (3, 2, 3))
    """
    size = _count(kernel)
    if not 1 <= rank <= size:
        raise ValueError(f"`rank` must lie between 1 and the number of kept weights, {size}, but is {rank}.")
    steps = min(size, rank + 20 if order is None else order)
    rounds = rank + 50 if restarts is None else restarts
    if steps < 1 or rounds < 1:
        raise ValueError(f"`order` and `restarts` must be at least 1, but are {order} and {restarts}.")
    if size <= _DENSE:
        spectrum = _decompose(kernel)
        return spectrum.values[:rank], _trees_at(kernel, spectrum.positions, spectrum.vectors.T[:rank])
    pairs = _pairs(kernel.params, lax.stop_gradient(kernel), key, jnp.asarray(tolerance, float), rank, steps, rounds)
    _warn_of_misses(pairs, tolerance, rounds)
    return pairs.values, jax.vmap(ravel(kernel.params)[1])(pairs.vectors)


@functools.partial(jax.custom_jvp, nondiff_argnums=(4, 5, 6))
def _pairs(params: Params, kernel: PathKernel, key: Key, tolerance: Any, rank: int, steps: int, rounds: int) -> Pairs:
    return _iterate(params, kernel, key, tolerance, rank, steps, rounds)


@functools.partial(jax.jit, static_argnums=(4, 5, 6))
def _iterate(params: Params, kernel: PathKernel, key: Key, tolerance: Any, rank: int, steps: int, rounds: int) -> Pairs:
    kernel = dataclasses.replace(kernel, params=params)
    random = functools.partial(_random_signs, kernel)
    operator = _flat(kernel, _linear(kernel, kernel))
    return largest(operator, random, rank, key=key, steps=steps, tolerance=tolerance, restarts=rounds)


@_pairs.defjvp
def _pairs_jvp(rank: int, steps: int, rounds: int, primals: Any, tangents: Any) -> tuple[Pairs, Pairs]:
    pairs = _pairs(*primals, rank, steps, rounds)
    params, kernel, *_ = primals
    vectors = jax.vmap(ravel(params)[1])(pairs.vectors)

    def quotients(params: Params) -> Any:
        # λ = vᵀ G v has λ's own derivative with v held
        at = dataclasses.replace(kernel, params=params)
        return lax.map(lambda vector: dot(vector, _cross(at, at)(vector)), vectors)

    _, values = jax.jvp(quotients, (params,), (tangents[0],))
    unknown = jnp.full_like(pairs.vectors, jnp.nan) * total(tangents[0]).astype(pairs.vectors.dtype)
    still = np.zeros(jnp.shape(pairs.settled), jax.dtypes.float0)
    return pairs, Pairs(values, unknown, jnp.zeros_like(pairs.residuals), cast(Any, still))


def _warn_of_misses(pairs: Pairs, tolerance: Real, rounds: int) -> None:
    if isinstance(pairs.settled, jax.core.Tracer) or bool(pairs.settled):
        return
    missed = float(jnp.max(pairs.residuals) / jnp.max(pairs.values))
    found = int(jnp.any(pairs.vectors != 0, axis=1).sum())
    if missed > tolerance:
        problem = f"the largest residual is {missed:.2g} · λ_max, above the tolerance of {tolerance:.2g}"
    elif found < len(pairs.values):
        problem = f"{found} of {len(pairs.values)} eigenpairs were found"
    else:
        problem = "all residuals are within the tolerance, but new starts still brought larger eigenvalues"
    warnings.warn(
        f"Eigenpairs of the Path Kernel: after {rounds} rounds, {problem}. Pass a larger `order` or `restarts`, or "
        "compute in float64.",
        stacklevel=3,
    )


class SpectralDensity(NamedTuple):
    """Quadrature of the spectral density of G over the kept weights, one row per random start.

    Attributes:
        nodes: (samples, order) eigenvalues, ascending; times exp(log_scale) for the true ones.
        weights: (samples, order) nonnegative, each row sums to 1.
        log_scale: as in the kernel.
        dimension: the number of kept weights.
    """

    nodes: Float[Array, "samples order"]
    weights: Float[Array, "samples order"]
    log_scale: Float[Array, ""]
    dimension: Float[Array, ""]

    def estimate(self, function: Callable[[Any], Any]) -> Estimate:
        """Tr f(G), the sum of f over the eigenvalues of the kept weights, with its standard error over the samples.

        f is elementwise and takes eigenvalues as the nodes are, in units of exp(log_scale). Each row is unbiased for
        polynomials of degree below twice the order, and nearly so for functions that are close to one.
        """
        sums = self.dimension * jnp.sum(self.weights * function(self.nodes), axis=-1)
        return _estimate(sums)


def spectral_density(kernel: PathKernel, *, order: int, samples: int, key: Key) -> SpectralDensity:
    """Spectral density of G by stochastic Lanczos quadrature, over the kept weights.

    For each of `samples` random sign vectors, `order` Lanczos steps with full reorthogonalization (matfree): nodes
    and weights of the Gauss quadrature. One sample at a time; stores 2 · order · p numbers. `estimate` of the result
    gives sums of functions of the eigenvalues with standard errors.

    Raises ValueError where `order` or `samples` is below 1.
    Source: Golub, Meurant (2009), "Matrices, Moments and Quadrature"; Ubaru, Chen, Saad (2017).

    >>> def apply(params, x):
    ...     return jnp.maximum(x @ params["first"], 0) @ params["second"]
    >>> params = {"first": jnp.full((1, 2), 0.5), "second": jnp.full((2, 3), 2.0)}
    >>> kernel = path_kernel(apply, params, jnp.zeros((5, 1)))
    >>> density = spectral_density(kernel, order=3, samples=4, key=jax.random.key(0))
    >>> density.nodes.shape, density.weights.sum(axis=1).round(4).tolist()
    ((4, 3), [1.0, 1.0, 1.0, 1.0])
    >>> trace, standard_error = density.estimate(lambda eigenvalue: eigenvalue)
    >>> bool(abs(trace - kernel.trace()) < 4 * standard_error)
    True
    """
    _check_probes(order=order, samples=samples)
    steps = min(order, _size(kernel))
    operator = _flat(kernel, _linear(kernel, kernel))

    def quadrature(sample_key: Key) -> tuple[Any, Any]:
        space = krylov(operator, _random_signs(kernel, sample_key), steps)
        nodes, vectors = jnp.linalg.eigh(space.matrix)
        return nodes, jnp.square(vectors[0])

    nodes, weights = lax.map(quadrature, jax.random.split(key, samples))
    return SpectralDensity(nodes, weights, kernel.log_scale, _dimension(kernel).astype(nodes.dtype))


def log_determinant(kernel: PathKernel, epsilon: Any, *, key: Key, order: int = 40, samples: int = 10) -> Estimate:
    """log det(G + εI) over the kept weights, of the true G: Σ_i log(exp(log_scale) λ_i + ε).

    `epsilon` is in the units of the true Path Kernel; each eigenvalue of zero gives log ε. Up to 512 kept weights
    exact, otherwise by `spectral_density` with `order` and `samples`, whose quadrature errs where ε is far below the
    smallest eigenvalues that `order` steps resolve: the standard error does not tell of that, a larger `order` does.

    Raises ValueError where ε, if it can be read, is not positive, or where `order` or `samples` is below 1.
    Source: Ubaru, Chen, Saad (2017), "Fast Estimation of tr(f(A)) via Stochastic Lanczos Quadrature".

    >>> def apply(params, x):
    ...     return jnp.maximum(x @ params["first"], 0) @ params["second"]
    >>> params = {"first": jnp.ones((1, 1)), "second": jnp.full((1, 2), 2.0)}
    >>> kernel = path_kernel(apply, params, jnp.zeros((5, 1)))  # its eigenvalues are 9, 1 and 0
    >>> round(float(jnp.exp(log_determinant(kernel, 0.5, key=jax.random.key(0)).value)), 4)  # 9.5 · 1.5 · 0.5
    7.125
    """
    _check_probes(order=order, samples=samples)
    if not isinstance(epsilon, jax.core.Tracer) and not epsilon > 0:
        raise ValueError(f"`epsilon` must be positive, but is {epsilon}: G itself has eigenvalues of zero.")

    def logarithm(eigenvalues: Any) -> Any:
        positive = eigenvalues > 0
        true = jnp.log(jnp.where(positive, eigenvalues, 1)) + kernel.log_scale.astype(eigenvalues.dtype)
        floor = jnp.log(jnp.asarray(epsilon, true.dtype))
        return jnp.where(positive, jnp.logaddexp(true, floor), floor)

    if _count(kernel) <= _DENSE:
        spectrum = _decompose(kernel)
        return _exact(jnp.sum(jnp.where(spectrum.alive, logarithm(spectrum.values), 0)))
    return spectral_density(kernel, order=order, samples=samples, key=key).estimate(logarithm)


def effective_rank(kernel: PathKernel, *, key: Key, samples: int = 10) -> Estimate:
    """Effective rank (Tr G)² / Σ_i λ_i²: how many equal eigenvalues would have G's trace and norm.

    Between 1 and rank G. The trace is exact; Σ_i λ_i² = ‖G‖² is the mean of ‖G z‖² over `samples` random sign vectors z
    (Hutchinson), one product each, and exact up to 512 kept weights. The standard error is of first order in that
    mean's; with few samples the value is biased upward in second order. NaN for a kernel of zeros.

    Raises ValueError where `samples` is below 1.

    >>> def apply(params, x):
    ...     return jnp.maximum(x @ params["first"], 0) @ params["second"]
    >>> params = {"first": jnp.ones((1, 1)), "second": jnp.full((1, 2), 2.0)}
    >>> kernel = path_kernel(apply, params, jnp.zeros((5, 1)))  # its eigenvalues are 9, 1 and 0
    >>> round(float(effective_rank(kernel, key=jax.random.key(0)).value), 4)  # 10² / (9² + 1²)
    1.2195
    """
    _check_probes(samples=samples)
    return _product_of_means(_squared_norms([(kernel, kernel)], key, samples), [-1.0])


def smallest(kernel: PathKernel, *, key: Key, order: int = 100, tolerance: Real = 1e-2) -> Float[Array, ""]:
    """The smallest nonzero eigenvalue of G over the kept weights; NaN where it cannot be resolved.

    Zero counts what is below 512 ε of the largest, ε the rounding of the type: in float32 no condition number above
    16,000 can be told from a null vector, in float64 none above 10¹³. Up to 512 kept weights exact. Otherwise `order`
    Lanczos steps from G z, which has no part in the null space, for two random z: NaN unless each gives an eigenvalue
    with a residual within `tolerance` of itself, and both agree within it. `order` must be some multiple of the root of
    the condition number; for most networks of real size the smallest eigenvalue is out of reach, while the log
    determinant and the spectral density are not. Stores 2 · order · p numbers.

    Multiply by exp(kernel.log_scale) for that of the true Path Kernel. Raises ValueError where `order` is below 1.

    >>> def apply(params, x):
    ...     return jnp.maximum(x @ params["first"], 0) @ params["second"]
    >>> params = {"first": jnp.ones((1, 1)), "second": jnp.full((1, 2), 2.0)}
    >>> kernel = path_kernel(apply, params, jnp.zeros((5, 1)))  # its eigenvalues are 9, 1 and 0
    >>> round(float(smallest(kernel, key=jax.random.key(0)) * jnp.exp(kernel.log_scale)), 4)
    1.0
    """
    return _ends(kernel, key, order, tolerance)[0]


def condition_number(kernel: PathKernel, *, key: Key, order: int = 100, tolerance: Real = 1e-2) -> Float[Array, ""]:
    """The largest eigenvalue of G over its smallest nonzero one; NaN where `smallest` cannot be resolved.

    Arguments, cost and limits are those of `smallest`.

    >>> def apply(params, x):
    ...     return jnp.maximum(x @ params["first"], 0) @ params["second"]
    >>> params = {"first": jnp.ones((1, 1)), "second": jnp.full((1, 2), 2.0)}
    >>> kernel = path_kernel(apply, params, jnp.zeros((5, 1)))  # its eigenvalues are 9, 1 and 0
    >>> round(float(condition_number(kernel, key=jax.random.key(0))), 4)
    9.0
    """
    low, high = _ends(kernel, key, order, tolerance)
    return high / low


def cosine(left: PathKernel, right: PathKernel, *, key: Key, samples: int = 10) -> Estimate:
    """Cosine of two Path Kernels, ⟨Π₁, Π₂⟩ / (‖Π₁‖ ‖Π₂‖) in the Hilbert–Schmidt product: 1 where they are proportional.

    For two sets of weights of one architecture, or one network at two times of training: both Π live on the same paths.
    With C = (J_θ v)₁ᵀ (J_θ v)₂ it is ‖C‖² / (‖G₁‖ ‖G₂‖). Not ⟨G₁, G₂⟩: these live on weights, and their product would
    change with how a hidden unit is scaled in one of the two in another way than Π's. The three norms are means of
    ‖C z‖², ‖G₁ z‖² and ‖G₂ z‖² over the same random sign vectors z, three products each, so that a kernel has cosine 1
    with itself from any sample; the standard error is of first order. Exact where both have up to 512 kept weights. The
    scales of the two kernels do not matter. NaN where one is zero.

    Raises ValueError for kernels of different functions `apply` (constants on the paths, running statistics of a batch
    norm say, have to be the same), of different outputs or trees, and where `samples` is below 1.

    >>> def apply(params, x):
    ...     return jnp.maximum(x @ params["first"], 0) @ params["second"]
    >>> params = {"first": jnp.ones((1, 1)), "second": jnp.full((1, 2), 2.0)}
    >>> turned = params | {"second": jnp.array([[2.0, -2.0]])}
    >>> kernels = [path_kernel(apply, each, jnp.zeros((5, 1))) for each in (params, turned)]
    >>> round(float(cosine(*kernels, key=jax.random.key(0)).value), 4)  # Π has 5 on the diagonal, ± 4 off it
    0.2195
    """
    _check_probes(samples=samples)
    _check_comparable(left, right)
    norms = _squared_norms([(left, right), (left, left), (right, right)], key, samples)
    found = _product_of_means(norms, [1.0, -0.5, -0.5])
    factor = _cross_factor(left, right, found.value.dtype) ** 2
    return Estimate(factor * found.value, factor * found.standard_error)


def overlap(
    left: PathKernel,
    left_pairs: tuple[Float[Array, " r"], Params],
    right: PathKernel,
    right_pairs: tuple[Float[Array, " r2"], Params],
) -> Float[Array, ""]:
    """Overlap of the top eigenspaces of two Path Kernels: the mean squared cosine of the principal angles, in [0, 1].

    `left_pairs` and `right_pairs` are what `top_eigenpairs` gives for each kernel. The spaces are those of Π, on the
    paths: with U = J_θ v V Λ^(−1/2), the squared cosines sum to ‖U₁ᵀ U₂‖² = ‖Λ₁^(−1/2) V₁ᵀ C V₂ Λ₂^(−1/2)‖², C as in
    `cosine`, and the mean is over the smaller of the two dimensions. One product for each pair on the right. Pairs
    whose eigenvalue is zero, below 512 ε of the largest, have no vector on the paths and are left out; NaN where none
    is left.

    Raises ValueError as `cosine` does.

    >>> def apply(params, x):
    ...     return jnp.maximum(x @ params["first"], 0) @ params["second"]
    >>> params = {"first": jnp.ones((1, 1)), "second": jnp.full((1, 2), 2.0)}
    >>> turned = params | {"second": jnp.array([[2.0, -1.0]])}
    >>> kernels = [path_kernel(apply, each, jnp.zeros((5, 1))) for each in (params, turned)]
    >>> left, right = (top_eigenpairs(kernel, 1, key=jax.random.key(0)) for kernel in kernels)
    >>> round(float(overlap(kernels[0], left, kernels[1], right)), 4)  # of the directions (2, 2) and (2, −1)
    0.1
    """
    _check_comparable(left, right)
    product = _linear(left, right)
    images = lax.map(product, right_pairs[1])
    coupling = jax.vmap(lambda v: jax.vmap(lambda image: dot(v, image))(images))(left_pairs[1])
    sides = [_inverse_roots(values) for values, _ in (left_pairs, right_pairs)]
    cosines = sides[0][:, None] * coupling * sides[1][None, :] * _cross_factor(left, right, coupling.dtype)
    dimension = jnp.minimum(*(jnp.sum(side > 0) for side in sides))
    return jnp.sum(jnp.square(cosines)) / dimension


def _inverse_roots(eigenvalues: Any) -> Any:
    """λ^(−1/2), and zero for eigenvalues that count as zero."""
    positive = eigenvalues > _floor(eigenvalues)
    return jnp.where(positive, jnp.where(positive, eigenvalues, 1) ** -0.5, 0)


def _floor(eigenvalues: Any) -> Any:
    """The size below which an eigenvalue counts as zero."""
    return _ROUNDINGS * jnp.finfo(eigenvalues.dtype).eps * jnp.max(eigenvalues)


def _check_comparable(left: PathKernel, right: PathKernel) -> None:
    check_like(right.params, left.params, name="right.params", like_name="left.params")
    if left.apply != right.apply:
        raise ValueError(
            "The two kernels are of different functions `apply`, whose paths, and the constants on them, may differ. "
            "Build both with one `apply`, and what differs between the two as `params`; fold running statistics of a "
            "batch norm into its scale and bias."
        )
    if left.outputs != right.outputs or left.example.shape != right.example.shape:
        raise ValueError("The two kernels are of different outputs or shapes of inputs. Build both with the same ones.")


def _check_probes(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"`{name}` must be at least 1, but is {count}.")


# Numbers of kept weights


def _size(kernel: PathKernel) -> int:
    """The number of weights that can have rows, whatever the mask."""
    leaves = jax.tree.leaves(kernel.params)
    return sum(leaves[position].size for position in kernel.rows)


def _row_masks(kernel: PathKernel) -> list[Any] | None:
    """For each leaf of the rows, in order, which weights are kept; None where that cannot be read."""
    leaves = jax.tree.leaves(kernel.params)
    if kernel.mask is None:
        return [np.ones(leaves[position].shape, bool) for position in sorted(kernel.rows)]
    masks = jax.tree.leaves(kernel.mask)
    if any(isinstance(mask, jax.core.Tracer) for mask in masks):
        return None
    return [np.asarray(masks[position]) for position in sorted(kernel.rows)]


def _count(kernel: PathKernel) -> int:
    """The number of kept weights, or of those that a mask which cannot be read may keep."""
    masks = None if kernel.mask is None else _row_masks(kernel)
    return _size(kernel) if masks is None else sum(int(np.count_nonzero(mask)) for mask in masks)


def _dimension(kernel: PathKernel) -> Any:
    """The number of kept weights as an array."""
    if kernel.mask is None:
        return jnp.asarray(_size(kernel))
    masks = jax.tree.leaves(kernel.mask)
    return sum((jnp.sum(masks[position], dtype=jnp.int32) for position in kernel.rows), start=jnp.zeros((), jnp.int32))


def _positions(kernel: PathKernel) -> np.ndarray:
    """Positions of the kept weights, or of those that may be kept, among all the parameters, raveled."""
    leaves = jax.tree.leaves(kernel.params)
    starts = np.cumsum([0, *(leaf.size for leaf in leaves)])
    rows = sorted(kernel.rows)
    masks = _row_masks(kernel) or [np.ones(leaves[position].shape, bool) for position in rows]
    found = [starts[position] + np.flatnonzero(mask) for position, mask in zip(rows, masks, strict=True)]
    return np.concatenate(found)


# Small kernels, formed and decomposed


class _Spectrum(NamedTuple):
    """All eigenvalues of G on the kept weights, descending, and eigenvectors as columns at `positions`.

    What is not `alive` stands for weights that a traced mask has pruned: zero, at the end.
    """

    values: Any
    vectors: Any
    alive: Any
    positions: np.ndarray


def _matrix(left: PathKernel, right: PathKernel) -> Any:
    """The map of `_cross` between the kept weights, in full."""
    rows, columns = _positions(left), _positions(right)
    product = _flat(right, _linear(left, right))
    flat, _ = ravel(right.params)

    def column(position: Any) -> Any:
        return product(jnp.zeros_like(flat).at[position].set(1))[rows]

    batch = max(1, min(len(columns), _AT_ONCE // flat.size))
    return lax.map(column, jnp.asarray(columns), batch_size=batch).T


def _decompose(kernel: PathKernel) -> _Spectrum:
    positions = _positions(kernel)
    matrix = _matrix(kernel, kernel)
    alive = jnp.ones(len(positions), bool)
    if kernel.mask is not None:
        alive = jnp.concatenate([jnp.ravel(mask) for mask in jax.tree.leaves(kernel.mask)])[positions]
    below = 1 + jnp.trace(matrix)
    values, vectors = jnp.linalg.eigh((matrix + matrix.T) / 2 - jnp.diag(jnp.where(alive, 0, below)))
    values, vectors = values[::-1], vectors[:, ::-1]
    there = values > -below / 2
    return _Spectrum(jnp.where(there, values, 0), jnp.where(there[None, :], vectors, 0), there, positions)


def _trees_at(kernel: PathKernel, positions: np.ndarray, rows: Any) -> Params:
    """Stacked trees with these rows (r, kept weights) at the positions."""
    flat, unravel = ravel(kernel.params)
    return jax.vmap(lambda row: unravel(jnp.zeros_like(flat).at[positions].set(row)))(rows)


# Random probes


def _flat(kernel: PathKernel, function: Callable[[Params], Params]) -> Callable[[jax.Array], jax.Array]:
    _, unravel = ravel(kernel.params)
    return lambda vector: ravel(function(unravel(vector)))[0]


def _random_signs(kernel: PathKernel, key: Key) -> Any:
    """Random signs on the kept weights, raveled."""
    flat, unravel = ravel(kernel.params)
    return ravel(kernel._keep(unravel(jax.random.rademacher(key, flat.shape, flat.dtype))))[0]


def _estimate(samples: Any) -> Estimate:
    return Estimate(jnp.mean(samples), jnp.std(samples, ddof=1) / math.sqrt(len(samples)))


def _exact(value: Any) -> Estimate:
    return Estimate(value, jnp.zeros_like(value))


class _Samples(NamedTuple):
    """Unbiased samples (s, t) of t numbers; one exact row where `exact`."""

    values: Any
    exact: bool


def _squared_norms(maps: Sequence[Any], key: Key, samples: int) -> _Samples:
    """Samples of the squared norms of the maps of `_cross` between pairs of kernels, in units of both sides' traces."""
    units = [1 / jnp.sqrt(left.trace() * right.trace()) for left, right in maps]
    if all(_count(kernel) <= _DENSE for pair in maps for kernel in pair):
        matrices = [unit * _matrix(*pair) for unit, pair in zip(units, maps, strict=True)]
        return _Samples(jnp.stack([jnp.sum(jnp.square(matrix)) for matrix in matrices])[None], True)
    products = [_flat(right, _linear(left, right)) for left, right in maps]

    def sample(sample_key: Key) -> Any:
        images = [
            unit * product(_random_signs(right, sample_key))
            for unit, product, (_, right) in zip(units, products, maps, strict=True)
        ]
        return jnp.stack([jnp.vdot(image, image) for image in images])

    return _Samples(lax.map(sample, jax.random.split(key, samples)), False)


def _product_of_means(samples: _Samples, powers: Sequence[float]) -> Estimate:
    """Π_t mean_t^power_t, with its standard error to first order."""
    means = jnp.mean(samples.values, axis=0)
    exponents = jnp.asarray(powers, means.dtype)
    value = jnp.prod(means**exponents)
    if samples.exact:
        return _exact(value)
    return Estimate(value, value * _estimate((samples.values / means[None]) @ exponents).standard_error)


def _cross_factor(left: PathKernel, right: PathKernel, dtype: Any) -> Any:
    """1 or 1/√2, by which a product of `_cross` comes to be in units of the root of both kernels' scales."""
    difference = _cross_exponent(left, right) - (left.exponent + right.exponent) / 2
    return jnp.exp2(difference.astype(dtype))


def _ends(kernel: PathKernel, key: Key, order: int, tolerance: Real) -> tuple[Any, Any]:
    """The smallest nonzero eigenvalue, NaN where it is not resolved, and the largest."""
    _check_probes(order=order)
    if _count(kernel) <= _DENSE:
        values = _decompose(kernel).values
        low = jnp.min(jnp.where(values > _floor(values), values, jnp.inf))
        return jnp.where(jnp.isfinite(low), low, jnp.nan), values[0]
    operator = _flat(kernel, _linear(kernel, kernel))
    steps = min(order, _count(kernel))

    def ends(start_key: Key) -> tuple[Any, Any]:
        space = krylov(operator, operator(_random_signs(kernel, start_key)), steps)
        return _lowest(space, tolerance), jnp.linalg.eigvalsh(space.matrix)[-1]

    low, high = lax.map(ends, jax.random.split(key, 2))
    agree = jnp.abs(low[0] - low[1]) <= tolerance * jnp.min(low)
    return jnp.where(agree, jnp.min(low), jnp.nan), jnp.max(high)


def _lowest(space: Krylov, tolerance: Real) -> Any:
    """The lowest Ritz value above zero, NaN unless its residual is within the tolerance."""
    values, vectors = jnp.linalg.eigh(space.matrix)
    candidates = jnp.where(values > _floor(values), values, jnp.inf)
    at = jnp.argmin(candidates)
    residual = jnp.linalg.norm(space.residual) * jnp.abs(vectors[-1, at])
    return jnp.where(residual <= tolerance * candidates[at], candidates[at], jnp.nan)
