"""The Path Kernel Π = J_θ v (J_θ v)ᵀ through its twin G = (J_θ v)ᵀ(J_θ v), without forming either.

Π is as wide as there are paths; G is as wide as there are parameters and has the same nonzero eigenvalues, and its
product with a vector is one Hessian-vector product of the lifted network.

Rescaling a hidden unit (its incoming weights times c, its outgoing ones by 1/c) changes no path value, so each such
symmetry is a null vector of G: θ on the incoming weights, −θ on the outgoing. A fully connected ReLU network without
biases and without zero weights has rank G = weights − hidden units. Functions of the spectrum therefore say how they
treat eigenvalues of zero.

Source: Gebhart et al. (2021), section 3, for Π and its trace.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import tree_flatten_with_path
from jaxtyping import Array, Float

from pathjax._base.trees import check_like, dot, ravel, wide
from pathjax._interpreter.lifting import (
    absolute_power,
    check_finite,
    lift,
    lift_weights,
    ones_like_example,
)
from pathjax._interpreter.traced import traced
from pathjax._linalg import estimates
from pathjax._linalg.lanczos import DENSE, krylov, plan, warn_of_misses
from pathjax._linalg.lapack import eigh
from pathjax._path_kernel import spectrum as _spectrum
from pathjax._path_kernel import twin
from pathjax._path_kernel.twin import PathKernel
from pathjax.types import ApplyFn, Estimate, Key, Mask, Params, Real, XLike

__all__ = [
    "Estimate",
    "PathKernel",
    "SpectralDensity",
    "change_and_cosine",
    "condition_number",
    "cosine",
    "effective_rank",
    "log_determinant",
    "overlap",
    "path_kernel",
    "relative_change",
    "smallest",
    "spectral_density",
    "top_eigenpairs",
]


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
    sense that G of all is the sum of G over outputs. Weights of half precision are taken to single precision.

    Raises UnsupportedPrimitive where a layer is not piecewise linear, TypeError for a mask that is not boolean, and
    ValueError for an `apply` whose result is not (n, o), for a mask of another tree, for a mask, a `where` or `outputs`
    that choose nothing, for unknown outputs and, where values can be read, for kept weights which are not finite or
    whose squares are not.
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
    masked = lift_weights(params, wide, mask)
    check_finite(params, mask, squared=True)
    leaves = tree_flatten_with_path(params)[0]
    rows = frozenset(i for i, (path, leaf) in enumerate(leaves) if where is None or where(path, leaf))
    network, example = traced(apply, params), ones_like_example(x_like)
    program, squares = network.path_program(example), jax.tree.map(jnp.square, masked)
    sums = lift(program, squares, example, phi=absolute_power(2), keep_zeros=True)
    chosen = None if outputs is None else _known_outputs(outputs, program.outputs)
    exponent = jnp.asarray(lax.stop_gradient(sums.exponent), jnp.float32)
    exponent = jnp.where(jnp.isfinite(exponent), exponent, 0.0)
    kernel = PathKernel(masked, mask, example, exponent, network, rows, chosen)
    if twin.count(kernel) == 0:
        chooser = "`mask` keeps no weight" if where is None else "`where` chooses no leaf with a weight that is kept"
        raise ValueError(f"{chooser}, so that the Path Kernel has no row. Keep one weight at least.")
    return kernel


def _known_outputs(outputs: Sequence[int], size: int) -> tuple[int, ...]:
    found = tuple(sorted({int(output) for output in outputs}))
    if not found or found[0] < 0 or found[-1] >= size:
        raise ValueError(f"`outputs` must name some of the outputs 0 to {size - 1}, but is {list(outputs)}.")
    return found


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
    full reorthogonalization, among rank + order + 1 vectors, `order` by default rank + 20, until ‖G v − λ v‖ ≤
    `tolerance` · λ_max for each pair, by products with G itself, and a round from a new random start has found nothing
    to add; so repeated eigenvalues come with all their eigenvectors. The same key gives the same pairs. After
    `restarts` rounds, by default rank + 50, a UserWarning says by how much the tolerance was missed; not under `jit` or
    `vmap`, where it cannot be known: compare with `kernel.matvec`.

    At least 3 · rank + 2 · order + 2 products; each further round takes order/2 to rank + order + 1. Stores at most
    (order + 2 · rank + 15) · p numbers at a time, besides what one product takes: for less, ask for a smaller `order`.

    Multiply the eigenvalues by exp(kernel.log_scale) for those of the true Path Kernel; Π's eigenvectors are J_θ v
    times these, divided by the root of the eigenvalue. Where G has fewer nonzero eigenvalues than `rank`, the rest are
    null vectors; where a traced mask keeps fewer weights than `rank`, zeros;
    where products are not finite, NaN. Eigenvalues can be differentiated; of
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
    size = twin.count(kernel)
    steps, rounds = plan(rank, size, order=order, restarts=restarts, rows="kept weights")
    if size <= DENSE:
        spectrum = _spectrum.decompose(kernel)
        return spectrum.values[:rank], twin.trees_at(kernel, spectrum.positions, spectrum.vectors.T[:rank])
    pairs = _spectrum.eigenpairs(
        kernel.params, lax.stop_gradient(kernel), key, jnp.asarray(tolerance, float), rank, steps, rounds
    )
    warn_of_misses(pairs, tolerance, rounds, of="the Path Kernel", stacklevel=2)
    return pairs.values, jax.vmap(ravel(kernel.params)[1])(pairs.vectors)


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
        return estimates.mean(sums)


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
    steps = min(order, twin.size(kernel))
    operator = twin.flat(kernel, twin.linear(kernel, kernel))

    def quadrature(sample_key: Key) -> tuple[Any, Any]:
        space = krylov(operator, twin.random_signs(kernel, sample_key), steps)
        nodes, vectors = eigh(space.matrix)
        return nodes, jnp.square(vectors[0])

    nodes, weights = lax.map(quadrature, jax.random.split(key, samples))
    return SpectralDensity(nodes, weights, kernel.log_scale, twin.dimension(kernel).astype(nodes.dtype))


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

    if twin.count(kernel) <= DENSE:
        spectrum = _spectrum.decompose(kernel)
        return estimates.exact(jnp.sum(jnp.where(spectrum.alive, logarithm(spectrum.values), 0)))
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
    return _spectrum.product_of_means(_spectrum.squared_norms([(kernel, kernel)], key, samples), [-1.0])


def smallest(kernel: PathKernel, *, key: Key, order: int = 100, tolerance: Real = 1e-2) -> Float[Array, ""]:
    """The smallest nonzero eigenvalue of G over the kept weights; NaN where it cannot be resolved.

    Zero counts what is below 512 ε of the largest, ε the rounding of the type: in float32 no condition number above
    16,000 can be told from a null vector, in float64 none above 10¹³. Up to 512 kept weights exact. Otherwise `order`
    Lanczos steps from G z, which has no part in the null space, for two random z: NaN unless each gives an eigenvalue
    with a residual within `tolerance` of itself, and both agree within it. `order` must be some multiple of the root of
    the condition number; for most networks of real size the smallest eigenvalue is out of reach, while the log
    determinant and the spectral density are not. An eigenvalue whose share of G z is rounding is not seen: one of its
    own among p weights is where it lies above 50 ε √p of the largest. Stores 2 · order · p numbers.

    Multiply by exp(kernel.log_scale) for that of the true Path Kernel. Raises ValueError where `order` is below 1.

    >>> def apply(params, x):
    ...     return jnp.maximum(x @ params["first"], 0) @ params["second"]
    >>> params = {"first": jnp.ones((1, 1)), "second": jnp.full((1, 2), 2.0)}
    >>> kernel = path_kernel(apply, params, jnp.zeros((5, 1)))  # its eigenvalues are 9, 1 and 0
    >>> round(float(smallest(kernel, key=jax.random.key(0)) * jnp.exp(kernel.log_scale)), 4)
    1.0
    """
    _check_probes(order=order)
    return _spectrum.ends(kernel, key, order, tolerance)[0]


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
    _check_probes(order=order)
    low, high = _spectrum.ends(kernel, key, order, tolerance)
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
    return change_and_cosine(left, right, key=key, samples=samples)[1]


def relative_change(initial: PathKernel, kernel: PathKernel, *, key: Key, samples: int = 10) -> Estimate:
    """Relative change of the Path Kernel over training, ‖Π − Π_0‖ / ‖Π_0‖ in the Frobenius norm: 0 for lazy training.

    ‖Π − Π_0‖² = ‖G‖² − 2 ‖C‖² + ‖G_0‖² with C as in `cosine`, the three norms from the same random sign vectors, three
    products each; the standard error is of first order. A change of less than the root of the type's rounding is lost
    in it. Exact where both have up to 512 kept weights. NaN where Π_0 is zero.

    Raises ValueError as `cosine` does.
    Source: Chizat, Oyallon, Bach (2019), "On lazy training in differentiable programming", section 1.2, for Θ.

    >>> def apply(params, x):
    ...     return jnp.maximum(x @ params["first"], 0) @ params["second"]
    >>> params = {"first": jnp.ones((1, 1)), "second": jnp.full((1, 2), 2.0)}
    >>> trained = params | {"second": jnp.array([[2.0, -2.0]])}
    >>> kernels = [path_kernel(apply, each, jnp.zeros((5, 1))) for each in (params, trained)]
    >>> round(float(relative_change(*kernels, key=jax.random.key(0)).value), 4)  # √(8² + 8²) / √(2 · 5² + 2 · 4²)
    1.2494
    """
    return change_and_cosine(initial, kernel, key=key, samples=samples)[0]


def change_and_cosine(
    initial: PathKernel, kernel: PathKernel, *, key: Key, samples: int = 10
) -> tuple[Estimate, Estimate]:
    """`relative_change` and `cosine` from the same products, at the cost and the compilation of one of them.

    Raises ValueError as `cosine` does.

    >>> def apply(params, x):
    ...     return jnp.maximum(x @ params["first"], 0) @ params["second"]
    >>> params = {"first": jnp.ones((1, 1)), "second": jnp.full((1, 2), 2.0)}
    >>> turned = params | {"second": jnp.array([[2.0, -2.0]])}
    >>> kernels = [path_kernel(apply, each, jnp.zeros((5, 1))) for each in (params, turned)]
    >>> [round(float(found.value), 4) for found in change_and_cosine(*kernels, key=jax.random.key(0))]
    [1.2494, 0.2195]
    """
    _check_probes(samples=samples)
    _check_comparable(initial, kernel)
    norms = _spectrum.squared_norms([(kernel, kernel), (initial, kernel), (initial, initial)], key, samples)
    return _spectrum.change_of_norms(norms, kernel, initial), _spectrum.cosine_of_norms(norms, kernel, initial)


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
    product = twin.linear(left, right)
    images = lax.map(product, right_pairs[1])
    coupling = jax.vmap(lambda v: jax.vmap(lambda image: dot(v, image))(images))(left_pairs[1])
    sides = [_spectrum.inverse_roots(values) for values, _ in (left_pairs, right_pairs)]
    cosines = sides[0][:, None] * coupling * sides[1][None, :] * twin.cross_factor(left, right, coupling.dtype)
    dimension = jnp.minimum(*(jnp.sum(side > 0) for side in sides))
    return jnp.sum(jnp.square(cosines)) / dimension


def _check_comparable(left: PathKernel, right: PathKernel) -> None:
    check_like(right.params, left.params, name="right.params", like_name="left.params")
    if left.network.apply != right.network.apply:
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
