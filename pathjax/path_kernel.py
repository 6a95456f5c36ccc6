"""The spectrum, trace and change of the Path Kernel Π = J_θ v (J_θ v)ᵀ, without listing paths.

Π has one row per path. Its twin G = (J_θ v)ᵀ(J_θ v) has one row per parameter and the same nonzero eigenvalues, and a
product of G with a vector is one Hessian-vector product of the lifted network. Neither matrix is formed, except G for
small networks.

Multiplying the incoming weights of a hidden unit by c and its outgoing ones by 1/c leaves all path values unchanged.
Each hidden unit therefore gives a null vector of G: θ on the incoming weights, −θ on the outgoing ones, zero elsewhere.
For a fully connected ReLU network without biases and without zero weights, rank G = weights − hidden units. This is why
each function of the spectrum says how it treats eigenvalues of zero.

Source: Gebhart et al. (2021), section 3, for Π and its trace.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.tree_util import tree_flatten_with_path
from jaxtyping import Array, Float

from pathjax._base import listeners
from pathjax._base.trees import check_mask, wide
from pathjax._interpreter.lifting import (
    check_finite,
    lift_weights,
    ones_like_example,
)
from pathjax._interpreter.traced import traced
from pathjax._linalg import eigenpairs, estimates
from pathjax._linalg.eigenpairs import DENSE, Eigenpairs, SearchProgress
from pathjax._path_kernel import comparison, spectrum, twin
from pathjax._path_kernel.comparison import Comparison
from pathjax._path_kernel.density import BroadenedDensity, SpectralDensity, quadrature
from pathjax._path_kernel.spectrum import LeafShares
from pathjax._path_kernel.twin import PathKernel
from pathjax.types import ApplyFn, Estimate, Key, Mask, Params, Real, State, XLike

__all__ = [
    "BroadenedDensity",
    "Comparison",
    "Eigenpairs",
    "Estimate",
    "LeafShares",
    "PathKernel",
    "SpectralDensity",
    "change_and_cosine",
    "condition_number",
    "cosine",
    "effective_rank",
    "leaf_shares",
    "log_determinant",
    "log_smallest",
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
    state: State = None,
) -> PathKernel:
    """The Path Kernel of a network as an operator: products with G, its diagonal and its trace.

    All its methods give true numbers, which may overflow to infinity in float32 for deep networks; `log_trace` and
    `log_diagonal`, and the `log_eigenvalues` of `top_eigenpairs`, do not. Only the shape of `x_like`, (n, ...), is
    read. With a `state` (see `pathjax.types`) the network is `apply(params, state, x)`. Cost: the network is traced and
    not run; each method takes passes of the lifted network, and is compiled once for a network. With a mask, pruned
    weights are zero and G has no rows and columns for them: the derivative of a path value by a pruned weight may be
    nonzero, but a pruned weight does not train.

    `where(key_path, leaf)` selects the leaves whose weights have rows and columns in G, such as those of one layer; the
    other weights still multiply the paths. Such a kernel is a principal submatrix of G, and the traces and the Π of
    disjoint selections add up to those of the whole. `outputs` selects the paths that end in these outputs; G is the
    sum of the G of single outputs. With `where=masks.is_kernel` the rows are those of kernels alone, without biases and
    scales. Weights of half precision are converted to float32.

    Raises UnsupportedPrimitive if a layer is not piecewise linear; TypeError if the mask is not boolean; ValueError if
    `apply` does not return (n, o), if the mask does not fit `params`, if `mask`, `where` or `outputs` select nothing,
    if an output does not exist, and, unless traced, if a kept weight or its square is not finite.
    Source: Gebhart et al. (2021), section 3.

    >>> def apply(params, x):
    ...     return jnp.maximum(x @ params["first"], 0) @ params["second"]
    >>> params = {"first": jnp.full((1, 2), 0.5), "second": jnp.full((2, 3), 2.0)}
    >>> x_like = jax.ShapeDtypeStruct((1, 1), float)  # the shape of a batch of one example
    >>> kernel = path_kernel(apply, params, x_like)
    >>> kernel
    PathKernel(x=(1, 1), outputs=all of 3, rows=8, kept=8)
    >>> round(float(kernel.trace()), 4)  # 6 paths, each with 2² by its first weight and 0.5² by its second
    25.5

    What a mask leaves of the trace, and the part of one layer and one output:

    >>> mask = {"first": jnp.array([[True, False]]), "second": jnp.ones((2, 3), bool)}
    >>> round(float(path_kernel(apply, params, x_like, mask=mask).trace() / kernel.trace()), 4)
    0.5
    >>> first = lambda key_path, leaf: key_path[0].key == "first"
    >>> round(float(path_kernel(apply, params, x_like, where=first, outputs=[2]).trace()), 4)  # 2 paths, each 2²
    8.0
    """
    mask = check_mask(mask, params)
    masked = lift_weights(params, wide, mask)
    check_finite(params, mask, squared=True)
    leaves = tree_flatten_with_path(params)[0]
    rows = frozenset(i for i, (key_path, leaf) in enumerate(leaves) if where is None or where(key_path, leaf))
    network, example = traced(apply, params, state), ones_like_example(x_like)
    program = network.path_program(example)
    network.tied(example)  # raises where a layer has no paths
    selected = None if outputs is None else _checked_outputs(outputs, program.output.shape[1])
    kernel = PathKernel(masked, mask, example, None, network, rows, selected)
    if twin.count(kernel) == 0:
        cause = "`mask` keeps no weight" if where is None else "`where` chooses no leaf with a weight that is kept"
        raise ValueError(f"{cause}, so that the Path Kernel has no row. Keep at least one weight.")
    return kernel


def _checked_outputs(outputs: Sequence[int], size: int) -> tuple[int, ...]:
    """The selected outputs, ascending and without repeats."""
    selected = tuple(sorted({int(output) for output in outputs}))
    if not selected or selected[0] < 0 or selected[-1] >= size:
        raise ValueError(f"`outputs` must name some of the outputs 0 to {size - 1}, but is {list(outputs)}.")
    return selected


def top_eigenpairs(
    kernel: PathKernel,
    rank: int,
    *,
    key: Key,
    order: int | None = None,
    tolerance: Real = 1e-5,
    restarts: int | None = None,
    progress: SearchProgress | None = None,
) -> Eigenpairs:
    """The `rank` largest eigenvalues of the Path Kernel, descending, with the eigenvectors of its twin G.

    The result also has the logarithms of the eigenvalues and the residuals of the pairs. Eigenvalues are those of the
    Path Kernel, in true units: they may overflow to infinity in float32 for deep networks; `log_eigenvalues`, their
    natural logarithms, do not. Eigenvectors are a pytree like `params` with a leading axis (r, ...); `leaf_shares`
    tells which leaves carry them. The Path Kernel's eigenvectors on the paths are J_θ v V Λ^(−1/2).

    The bias of an output, added last, is a path of its own, on which there is no other weight. Each such bias thus has
    an eigenvalue of exactly 1, whose eigenvector is that bias alone, decoupled from all other weights. These pairs say
    nothing of the network, and come first where all other eigenvalues are below 1. To leave them out, select the other
    leaves by `where` of `path_kernel`, as in the second example.

    Each unit i before a last dense layer with o outputs has an eigenvalue o − 1 times: that of the vectors a on its
    outgoing weights θ_ij with Σ_j a_j θ_ij = 0. It is the sum of squares of the paths up to the unit.

    For up to 512 kept weights, G is formed and decomposed, which is exact. For more, thick-restart Lanczos iteration
    with full reorthogonalization searches a space of rank + order + 1 vectors; `order` is rank + 20 by default. It ends
    when ‖G v − λ v‖ ≤ `tolerance` · λ_max for each pair, measured by products with G, and a round from a new random
    start has found no larger eigenvalue. Repeated eigenvalues thus come with all their eigenvectors; where many crowd
    just below the last one, that round of `order` products may overlook one above it. The result is
    determined by `key`. The search also ends after `restarts` rounds, rank + 50 by default, and then a UserWarning says
    by how much the tolerance was missed. Under `jit` and `vmap` there is no warning: compare `residuals`, which are
    ‖G v − λ v‖ / λ_max, with the tolerance.

    The eigenpairs of last layers named above, o − 1 for each unit and for a bias, are known without a search. Leaves
    with an axis of o and equal entries of diag(G) along it are taken for last layers, and one product with a random
    combination of all these pairs, each leaf with an equal part of it, says whether they are; if not, everything is
    searched for.

    Cost: at least 2 · order + rank products with G, and order/2 to rank + order + 1 for each further round.
    Memory: (order + 2 · rank + 15) · p numbers, besides that of one product; reduce it by a smaller `order`.

    If G has fewer nonzero eigenvalues than `rank`, the remaining eigenvectors are null vectors of G. If a traced mask
    keeps fewer weights than `rank`, the remaining pairs are zero. If products are not finite, the pairs are NaN.
    Eigenvalues have derivatives; those of eigenvectors are NaN above 512 kept weights.

    `progress(round, restarts, residual)` is called after each round of the search, with the largest residual so far
    over λ_max; it is not called where G is formed.

    Raises ValueError if `rank` is not between 1 and the number of kept weights (of all weights, for a traced mask), or
    if `order` or `restarts` is below 1.
    Source: Wu and Simon (2000), "Thick-Restart Lanczos Method for Large Symmetric Eigenvalue Problems".

    >>> def apply(params, x):
    ...     return jnp.maximum(x @ params["first"], 0) @ params["second"]
    >>> params = {"first": jnp.full((1, 2), 0.5), "second": jnp.full((2, 3), 2.0)}
    >>> kernel = path_kernel(apply, params, jnp.zeros((5, 1)))
    >>> pairs = top_eigenpairs(kernel, 4, key=jax.random.key(0))
    >>> pairs.eigenvalues.shape, pairs.eigenvectors["second"].shape, bool(pairs.residuals.max() < 1e-12)
    ((4,), (4, 2, 3), True)

    >>> def biased(params, x):
    ...     return apply(params, x) + params["bias"][None]
    >>> params["bias"] = jnp.zeros(3)
    >>> not_bias = lambda key_path, leaf: key_path[0].key != "bias"
    >>> for where in (None, not_bias):  # the three ones are those of the biases
    ...     kernel = path_kernel(biased, params, jnp.zeros((5, 1)), where=where)
    ...     print(top_eigenpairs(kernel, 6, key=jax.random.key(0)).eigenvalues.round(4))
    [12.25 12.25  1.    1.    1.    0.25]
    [12.25 12.25  0.25  0.25  0.25  0.25]
    """
    kernel = twin.with_exponent(kernel)
    scaled = eigenpairs.find(
        spectrum.PROBLEM,
        kernel,
        rank,
        size=twin.count(kernel),
        key=key,
        order=order,
        tolerance=tolerance,
        restarts=restarts,
        progress=progress,
    )
    return spectrum.true_pairs(kernel, scaled)


def leaf_shares(pairs: Eigenpairs) -> LeafShares:
    """Which parameter leaves carry each eigenvector: the share of each leaf in its squared norm.

    `pairs` come from `top_eigenpairs`. The result has the key paths of the leaves and the shares (r, l), each row of
    which sums to 1; `leading` is the position of the leaf with the largest share. The eigenvalue times a share is what
    the pair adds to the trace of that leaf's part of G.

    >>> def apply(params, x):
    ...     return jnp.maximum(x @ params["first"], 0) @ params["second"] + params["bias"][None]
    >>> params = {"first": jnp.full((1, 2), 0.5), "second": jnp.full((2, 3), 2.0), "bias": jnp.zeros(3)}
    >>> kernel = path_kernel(apply, params, jnp.zeros((5, 1)))
    >>> carried = leaf_shares(top_eigenpairs(kernel, 4, key=jax.random.key(0)))
    >>> [carried.paths[leaf] for leaf in carried.leading], carried.shares.shape
    (["['first']", "['first']", "['bias']", "['bias']"], (4, 3))
    """
    return spectrum.leaf_shares(pairs)


def spectral_density(
    kernel: PathKernel,
    *,
    order: int,
    samples: int,
    key: Key,
    progress: Callable[[int, int], None] | None = None,
) -> SpectralDensity:
    """How the eigenvalues of G on the kept weights are distributed, by stochastic Lanczos quadrature.

    For each of `samples` random sign vectors, `order` Lanczos steps with full reorthogonalization give the nodes and
    weights of a Gauss quadrature. The nodes are in true units and may overflow to infinity in float32 for deep
    networks; `log_nodes`, their logarithms, do not. The methods `estimate` and `estimate_from_logs` of the result give
    sums of a function over the eigenvalues, with standard errors; `broadened` gives the density as a curve to plot.
    With a small `order`, eigenvalues of zero cannot be told from the smallest others: `resolved_above` of
    `BroadenedDensity` says below which eigenvalue. Cost: samples · order products with G, one at a time. Memory: 2 ·
    order · p numbers. `progress(sample, samples)` is called after each random start.

    Raises ValueError if `order` or `samples` is below 1.
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
    listener = listeners.number_of(progress)
    return cast(SpectralDensity, twin.run_at_mask(quadrature, (kernel,), key, listener, order=order, samples=samples))


def log_determinant(kernel: PathKernel, epsilon: Any, *, key: Key, order: int = 40, samples: int = 10) -> Estimate:
    """log det(G + εI) on the kept weights, Σ_i log(λ_i + ε), with its standard error.

    `epsilon` is in the units of the Path Kernel, as its eigenvalues are. Finite at any depth. Each eigenvalue of zero
    contributes log ε. Exact for up to 512 kept weights, and otherwise estimated by `spectral_density` with `order` and
    `samples`. The estimate is biased if ε is far below the smallest eigenvalues that `order` steps resolve. The
    standard error does not include this bias: repeat with a larger `order` to see it.

    Raises ValueError if ε is not positive (unless traced), or if `order` or `samples` is below 1.
    Source: Ubaru, Chen, Saad (2017), "Fast Estimation of tr(f(A)) via Stochastic Lanczos Quadrature".

    >>> def apply(params, x):
    ...     return jnp.maximum(x @ params["first"], 0) @ params["second"]
    >>> params = {"first": jnp.ones((1, 1)), "second": jnp.full((1, 2), 2.0)}
    >>> kernel = path_kernel(apply, params, jnp.zeros((5, 1)))  # its eigenvalues are 9, 1 and 0
    >>> value, standard_error = log_determinant(kernel, 0.5, key=jax.random.key(0))
    >>> round(float(jnp.exp(value)), 4), float(standard_error)  # 9.5 · 1.5 · 0.5, exact as the network is small
    (7.125, 0.0)
    """
    _check_probes(order=order, samples=samples)
    if not isinstance(epsilon, jax.core.Tracer) and not epsilon > 0:
        raise ValueError(
            f"`epsilon` must be positive, but is {epsilon}. G has eigenvalues of zero, whose logarithm is not finite."
        )

    def log_of_sum(log_eigenvalues: Any) -> Any:
        """log(λ + ε)."""
        positive = log_eigenvalues > -jnp.inf
        log_epsilon = jnp.log(jnp.asarray(epsilon, log_eigenvalues.dtype))
        return jnp.where(positive, jnp.logaddexp(jnp.where(positive, log_eigenvalues, 0), log_epsilon), log_epsilon)

    if twin.count(kernel) <= DENSE:
        kernel = twin.with_exponent(kernel)
        decomposed = twin.run_at_mask(spectrum.decompose, (kernel,))
        log_eigenvalues = twin.log_in_true_units(decomposed.eigenvalues, kernel.exponent)
        return estimates.exact(jnp.sum(jnp.where(decomposed.exists, log_of_sum(log_eigenvalues), 0)))
    density = spectral_density(kernel, order=order, samples=samples, key=key)
    return density.estimate_from_logs(log_of_sum)


def effective_rank(kernel: PathKernel, *, key: Key, samples: int = 10) -> Estimate:
    """Effective rank (Tr G)² / Σ_i λ_i²: the number of equal eigenvalues that would have G's trace and norm.

    Between 1 and rank G; NaN for a kernel of zeros. Exact for up to 512 kept weights. For more, the trace is exact, and
    Σ_i λ_i² = ‖G‖² is the mean of ‖G z‖² over `samples` random sign vectors z (Hutchinson), one product each. The
    standard error is to first order in the error of that mean; the bias, upward, is of second order.

    Raises ValueError if `samples` is below 1.

    >>> def apply(params, x):
    ...     return jnp.maximum(x @ params["first"], 0) @ params["second"]
    >>> keys = jax.random.split(jax.random.key(0))
    >>> params = {"first": jax.random.normal(keys[0], (4, 20)), "second": jax.random.normal(keys[1], (20, 3))}
    >>> four_units = {"first": jnp.eye(4, 20, dtype=bool), "second": jnp.ones((20, 3), bool)}  # 16 of 20 are cut off
    >>> for mask in (None, four_units):
    ...     kernel = path_kernel(apply, params, jnp.zeros((5, 4)), mask=mask)
    ...     print(round(float(effective_rank(kernel, key=jax.random.key(0)).value), 1))
    68.0
    5.4
    """
    _check_probes(samples=samples)
    return cast(Estimate, twin.run_at_mask(comparison.effective_rank, (kernel,), key, samples=samples))


def smallest(kernel: PathKernel, *, key: Key, order: int = 100, tolerance: Real = 1e-2) -> Float[Array, ""]:
    """The smallest nonzero eigenvalue of the Path Kernel on the kept weights; NaN if it cannot be resolved.

    It is that of the twin G. In true units: may overflow to infinity in float32 for deep networks; `log_smallest` does
    not. Eigenvalues up to 512 ε λ_max, with machine epsilon ε, count as zero, so condition numbers above about 16,000
    in float32 and 10¹³ in float64 are not resolved.

    Exact for up to 512 kept weights. For more, `order` Lanczos steps start from G z, which is orthogonal to the null
    space, for each of two random z. The result is NaN unless both runs give an eigenvalue with a residual of at most
    `tolerance` times the eigenvalue, and both eigenvalues agree to the relative `tolerance`. An eigenvalue is missed if
    its component in G z is lost in rounding; a simple eigenvalue among p weights is found if it is above 50 ε √p λ_max.
    `order` must be a few times the square root of the condition number, which is out of reach for most networks of
    realistic size; `log_determinant` and `spectral_density` do not need it. Cost: 2 · order products with G. Memory:
    2 · order · p numbers.

    Raises ValueError if `order` is below 1.

    >>> def apply(params, x):
    ...     return jnp.maximum(x @ params["first"], 0) @ params["second"]
    >>> params = {"first": jnp.ones((1, 1)), "second": jnp.full((1, 2), 2.0)}
    >>> kernel = path_kernel(apply, params, jnp.zeros((5, 1)))  # its eigenvalues are 9, 1 and 0
    >>> round(float(smallest(kernel, key=jax.random.key(0))), 4)
    1.0
    """
    kernel = twin.with_exponent(kernel)
    return cast(Array, twin.in_true_units(_ends(kernel, key, order, tolerance).smallest, kernel.exponent))


def log_smallest(kernel: PathKernel, *, key: Key, order: int = 100, tolerance: Real = 1e-2) -> Float[Array, ""]:
    """The natural logarithm of `smallest`, at any depth; NaN if the eigenvalue cannot be resolved.

    Arguments, cost, limits and errors are those of `smallest`.

    >>> def apply(params, x):
    ...     return jnp.maximum(x @ params["first"], 0) @ params["second"]
    >>> params = {"first": jnp.ones((1, 1)), "second": jnp.full((1, 2), 2.0)}
    >>> kernel = path_kernel(apply, params, jnp.zeros((5, 1)))  # its eigenvalues are 9, 1 and 0
    >>> abs(round(float(log_smallest(kernel, key=jax.random.key(0))), 4))
    0.0
    """
    kernel = twin.with_exponent(kernel)
    return cast(Array, twin.log_in_true_units(_ends(kernel, key, order, tolerance).smallest, kernel.exponent))


def condition_number(kernel: PathKernel, *, key: Key, order: int = 100, tolerance: Real = 1e-2) -> Float[Array, ""]:
    """The Path Kernel's condition number λ_max / λ_min, λ_min its smallest nonzero eigenvalue; NaN if not resolved.

    Arguments, cost, limits and errors are those of `smallest`.

    >>> def apply(params, x):
    ...     return jnp.maximum(x @ params["first"], 0) @ params["second"]
    >>> params = {"first": jnp.ones((1, 1)), "second": jnp.full((1, 2), 2.0)}
    >>> kernel = path_kernel(apply, params, jnp.zeros((5, 1)))  # its eigenvalues are 9, 1 and 0
    >>> round(float(condition_number(kernel, key=jax.random.key(0))), 4)
    9.0
    """
    ends = _ends(kernel, key, order, tolerance)
    return cast(Array, ends.largest / ends.smallest)


def _ends(kernel: PathKernel, key: Key, order: int, tolerance: Real) -> spectrum.Ends:
    """The smallest nonzero and the largest eigenvalue of G / 2^exponent."""
    _check_probes(order=order)
    return cast(spectrum.Ends, twin.run_at_mask(spectrum.ends, (kernel,), key, tolerance, order=order))


def cosine(left: PathKernel, right: PathKernel, *, key: Key, samples: int = 10) -> Estimate:
    """Cosine of two Path Kernels, ⟨Π₁, Π₂⟩ / (‖Π₁‖ ‖Π₂‖) in the Frobenius product: 1 if they are proportional.

    The kernels are of two sets of weights of one network, for example before and after training, so that both Π have
    the same paths. With C = (J_θ v)₁ᵀ (J_θ v)₂ the cosine is ‖C‖² / (‖G₁‖ ‖G₂‖). It is not that of G₁ and G₂, which
    would change differently from Π's if a hidden unit of one network is rescaled. NaN if a kernel is zero.

    Exact if both kernels have up to 512 kept weights. Otherwise the three squared norms are means of ‖C z‖², ‖G₁ z‖²
    and ‖G₂ z‖² over the same `samples` random sign vectors z, three products each; since z is shared, the cosine of a
    kernel with itself is 1 for any sample. The standard error is to first order.

    Raises ValueError if the kernels have different functions `apply` (equal code that captures equal content counts as
    the same), different states, since constants such as running statistics of batch norm are on the paths, different
    outputs, input shapes or parameter trees, or if `samples` is below 1. Under `jit`, where values cannot be read,
    different states give NaN.

    >>> def apply(params, x):
    ...     return jnp.maximum(x @ params["first"], 0) @ params["second"]
    >>> keys = jax.random.split(jax.random.key(0))
    >>> initial = {"first": jax.random.normal(keys[0], (4, 20)), "second": jax.random.normal(keys[1], (20, 3))}
    >>> trained = jax.tree.map(lambda leaf: leaf + 0.01 * jnp.sin(leaf), initial)
    >>> redrawn = jax.tree.map(lambda leaf: leaf[::-1], initial)
    >>> before, after, other = [path_kernel(apply, params, jnp.zeros((1, 4))) for params in (initial, trained, redrawn)]
    >>> bool(cosine(before, after, key=keys[0]).value > 0.99), bool(cosine(before, other, key=keys[0]).value > 0.99)
    (True, False)
    """
    return change_and_cosine(left, right, key=key, samples=samples).cosine


def relative_change(initial: PathKernel, kernel: PathKernel, *, key: Key, samples: int = 10) -> Estimate:
    """Relative change of the Path Kernel over training, ‖Π − Π_0‖ / ‖Π_0‖ in the Frobenius norm: 0 for lazy training.

    ‖Π − Π_0‖² = ‖G‖² − 2 ‖C‖² + ‖G_0‖² with C = (J_θ v)_0ᵀ (J_θ v). Exact, up to rounding, if both kernels have up to
    512 kept weights. Otherwise the three squared norms are means over the same `samples` random sign vectors, three
    products each, and the standard error is to first order. Changes below √ε, with machine epsilon ε, are lost in
    rounding. NaN if Π_0 is zero.

    Raises ValueError as `cosine` does.
    Source: Chizat, Oyallon, Bach (2019), "On lazy training in differentiable programming", section 1.2, for Θ.

    >>> def apply(params, x):
    ...     return jnp.maximum(x @ params["first"], 0) @ params["second"]
    >>> keys = jax.random.split(jax.random.key(0))
    >>> initial = {"first": jax.random.normal(keys[0], (4, 20)), "second": jax.random.normal(keys[1], (20, 3))}
    >>> before = path_kernel(apply, initial, jnp.zeros((1, 4)))
    >>> for factor in (1.0, 1.1):  # Π of two layers is quadratic in the weights
    ...     after = path_kernel(apply, jax.tree.map(lambda leaf: factor * leaf, initial), jnp.zeros((1, 4)))
    ...     print(relative_change(before, after, key=keys[0]).value.round(3))
    0.0
    0.21
    """
    return change_and_cosine(initial, kernel, key=key, samples=samples).relative_change


def change_and_cosine(initial: PathKernel, kernel: PathKernel, *, key: Key, samples: int = 10) -> Comparison:
    """How far the Path Kernel has moved: `relative_change` and `cosine` together, at the cost of one of them.

    Raises ValueError as `cosine` does.

    >>> def apply(params, x):
    ...     return jnp.maximum(x @ params["first"], 0) @ params["second"]
    >>> params = {"first": jnp.ones((2, 3)), "second": jnp.full((3, 4), 2.0)}
    >>> trained = jax.tree.map(lambda leaf: 1.1 * leaf, params)  # as if training had scaled both layers
    >>> before, after = (path_kernel(apply, weights, jnp.zeros((5, 2))) for weights in (params, trained))
    >>> compared = change_and_cosine(before, after, key=jax.random.key(0))
    >>> round(float(compared.relative_change.value), 4), round(float(compared.cosine.value), 4)
    (0.21, 1.0)
    """
    _check_probes(samples=samples)
    comparison.check_comparable(initial, kernel)
    compared = twin.run_at_mask(comparison.compare, (initial, kernel), key, samples=samples)
    return cast(Comparison, comparison.nan_unless_one_state(initial, kernel, compared))


def overlap(left: PathKernel, left_pairs: Eigenpairs, right: PathKernel, right_pairs: Eigenpairs) -> Float[Array, ""]:
    """Overlap of the top eigenspaces of two Path Kernels: the mean squared cosine of the principal angles, in [0, 1].

    `left_pairs` and `right_pairs` come from `top_eigenpairs` of the two kernels. The eigenspaces are those of Π on the
    paths, spanned by U = J_θ v V Λ^(−1/2). The squared cosines sum to ‖U₁ᵀ U₂‖² = ‖Λ₁^(−1/2) V₁ᵀ C V₂ Λ₂^(−1/2)‖² with
    C = (J_θ v)₁ᵀ (J_θ v)₂, and the mean is over the smaller of the two dimensions. Pairs with an eigenvalue up to
    512 ε λ_max, with machine epsilon ε, count as null vectors and are left out; NaN if none remain. Cost: one product
    for each pair of `right_pairs`.

    Raises ValueError for two kernels that `cosine` refuses.

    >>> def apply(params, x):
    ...     return jnp.maximum(x @ params["first"], 0) @ params["second"]
    >>> keys = jax.random.split(jax.random.key(0))
    >>> params = {"first": jax.random.normal(keys[0], (4, 20)), "second": jax.random.normal(keys[1], (20, 3))}
    >>> trained = jax.tree.map(lambda leaf: leaf + 0.01 * jnp.sin(leaf), params)
    >>> before, after = (path_kernel(apply, weights, jnp.zeros((5, 4))) for weights in (params, trained))
    >>> pairs, pairs_after = (top_eigenpairs(kernel, 5, key=keys[0]) for kernel in (before, after))
    >>> bool(overlap(before, pairs, after, pairs_after) > 0.9)  # the top eigenspace has hardly turned
    True
    """
    comparison.check_comparable(left, right)
    cosines = twin.run_at_mask(comparison.overlap, (left, right), left_pairs, right_pairs)
    return cast(Array, comparison.nan_unless_one_state(left, right, cosines))


def _check_probes(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"`{name}` must be at least 1, but is {count}.")
