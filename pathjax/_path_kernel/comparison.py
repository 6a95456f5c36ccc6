"""Relative change, cosine and overlap of two Path Kernels, and the effective rank of one, from products with vectors.

In the Frobenius norm ‖Π‖ = ‖G‖ and ⟨Π, Π_0⟩ = ‖C‖², where C = (J_θ v)_0ᵀ (J_θ v) maps the weights of one kernel to
those of the other. For a random sign vector z, ‖C z‖² is an unbiased estimate of ‖C‖².
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pathjax._base.trees import check_like, concrete, dot
from pathjax._linalg import estimates
from pathjax._linalg.eigenpairs import DENSE, Eigenpairs
from pathjax._path_kernel import twin
from pathjax._path_kernel.spectrum import inverse_roots, scaled_eigenvalues
from pathjax._path_kernel.twin import PathKernel
from pathjax.types import Estimate, Key

__all__ = ["Comparison", "check_comparable", "compare", "effective_rank", "nan_unless_one_state", "overlap"]


class Comparison(NamedTuple):
    """How far a Path Kernel Π is from an initial one Π_0.

    Attributes:
        relative_change: ‖Π − Π_0‖ / ‖Π_0‖.
        cosine: ⟨Π, Π_0⟩ / (‖Π‖ ‖Π_0‖).
    """

    relative_change: Estimate
    cosine: Estimate


class _Samples(NamedTuple):
    """Unbiased estimates of t numbers, one row per sample, `values` (samples, t); one row if they are exact."""

    values: Any
    is_exact: bool


def effective_rank(kernel: PathKernel, key: Key, *, samples: int) -> Estimate:
    """(Tr G)² / ‖G‖², with a standard error to first order."""
    return _product_of_means(_squared_norms([(kernel, kernel)], key, samples), [-1.0])


def compare(initial: PathKernel, kernel: PathKernel, key: Key, *, samples: int) -> Comparison:
    """The relative change and the cosine, both from the same random sign vectors."""
    norms = _squared_norms([(kernel, kernel), (initial, kernel), (initial, initial)], key, samples)
    return Comparison(_relative_change(norms, kernel, initial), _cosine(norms, kernel, initial))


def overlap(left: PathKernel, right: PathKernel, left_pairs: Eigenpairs, right_pairs: Eigenpairs) -> Any:
    """The mean squared cosine of the principal angles between the eigenspaces of Π on the paths."""
    images = lax.map(twin.linear(left, right), right_pairs.eigenvectors)
    products = jax.vmap(lambda vector: jax.vmap(lambda image: dot(vector, image))(images))(left_pairs.eigenvectors)
    scaled = [scaled_eigenvalues(left, left_pairs), scaled_eigenvalues(right, right_pairs)]
    roots = [inverse_roots(eigenvalues) for eigenvalues in scaled]
    cosines = roots[0][:, None] * products * roots[1][None, :] * twin.cross_factor(left, right, products.dtype)
    dimension = jnp.minimum(*(jnp.sum(root > 0) for root in roots))
    return jnp.sum(jnp.square(cosines)) / dimension


def _squared_norms(maps: Sequence[Any], key: Key, samples: int) -> _Samples:
    """‖C‖² of the map C = `twin.cross(left, right)` for each pair (left, right), one column per pair.

    In units of Tr G_left · Tr G_right, so that squares neither overflow nor underflow.
    """
    units = [1 / jnp.sqrt(twin.scaled_trace(left) * twin.scaled_trace(right)) for left, right in maps]
    if all(twin.count(kernel) <= DENSE for pair in maps for kernel in pair):
        matrices = [unit * twin.matrix(*pair) for unit, pair in zip(units, maps, strict=True)]
        return _Samples(jnp.stack([jnp.sum(jnp.square(matrix)) for matrix in matrices])[None], True)
    products = [twin.flat(right, twin.linear(left, right)) for left, right in maps]

    def sample(sample_key: Key) -> Any:
        images = [
            unit * product(twin.random_signs(right, sample_key))
            for unit, product, (_, right) in zip(units, products, maps, strict=True)
        ]
        return jnp.stack([jnp.vdot(image, image) for image in images])

    return _Samples(lax.map(sample, jax.random.split(key, samples)), False)


def _product_of_means(samples: _Samples, powers: Sequence[float]) -> Estimate:
    """The product over columns t of mean_t^power_t, with its standard error to first order."""
    means = jnp.mean(samples.values, axis=0)
    exponents = jnp.asarray(powers, means.dtype)
    value = jnp.prod(means**exponents)
    if samples.is_exact:
        return estimates.exact(value)
    return Estimate(value, value * estimates.mean((samples.values / means[None]) @ exponents).standard_error)


def _relative_change(samples: _Samples, kernel: PathKernel, initial: PathKernel) -> Estimate:
    """‖Π − Π_0‖ / ‖Π_0‖ = √(‖G‖² − 2 ‖C‖² + ‖G_0‖²) / ‖G_0‖ from `_squared_norms` of G, C and G_0, in this order."""
    scaled_ratio = twin.scaled_trace(kernel) / twin.scaled_trace(initial)
    ratio = scaled_ratio * jnp.exp2(kernel.exponent - initial.exponent).astype(scaled_ratio.dtype)
    size = jnp.maximum(ratio, 1)  # divided out below, since the square of a large ratio of traces may overflow
    cross_unit = ratio / size / size * twin.cross_factor(kernel, initial, ratio.dtype) ** 2
    scaled = samples.values * jnp.stack([(ratio / size) ** 2, cross_unit, 1 / size / size])[None]
    initial_norm = jnp.mean(samples.values[:, 2])
    means = jnp.mean(scaled, axis=0)
    signs = jnp.array([1.0, -2.0, 1.0], means.dtype)
    square = jnp.maximum(means @ signs, 0) / initial_norm
    change = jnp.where(square == 0, 0, jnp.sqrt(jnp.where(square == 0, 1, square)))
    if samples.is_exact:
        return estimates.exact(size * change)
    # first order: the error of a quotient of means, then d√s = ds / (2√s)
    errors = (scaled @ signs - square * samples.values[:, 2]) / initial_norm
    standard_error = estimates.mean(errors).standard_error / (2 * jnp.where(change == 0, 1, change))
    return Estimate(size * change, size * jnp.where(change == 0, 0, standard_error))


def _cosine(samples: _Samples, kernel: PathKernel, initial: PathKernel) -> Estimate:
    """⟨Π, Π_0⟩ / (‖Π‖ ‖Π_0‖) = ‖C‖² / (‖G‖ ‖G_0‖) from `_squared_norms` of G, C and G_0, in this order."""
    value, standard_error = _product_of_means(samples, [-0.5, 1.0, -0.5])
    factor = twin.cross_factor(kernel, initial, value.dtype) ** 2
    return Estimate(factor * value, factor * standard_error)


# Which kernels can be compared


def check_comparable(left: PathKernel, right: PathKernel) -> None:
    """Raises ValueError unless two kernels are of one network, state, outputs and shapes of inputs and weights."""
    check_like(right.params, left.params, name="right.params", like_name="left.params")
    structures: list[Any] = [jax.tree.structure(kernel.params) for kernel in (left, right)]
    if structures[0] != structures[1]:
        raise ValueError(
            "The weights of the two kernels have the same names, but lie in containers of different types, such as a "
            "dict and a FrozenDict. Build both kernels from weights in the same containers."
        )
    if left.network != right.network:
        raise ValueError(
            "The two kernels are of different functions `apply`, whose paths, and the constants on them, may differ. "
            "Build both with the same `apply`, and pass what differs between them in `params`; fold running statistics "
            "of batch norm into its scale and bias."
        )
    is_one_state = concrete(_have_one_state(left, right))
    if is_one_state is not None and not is_one_state:
        raise ValueError(
            "The two kernels are of different states, which are constants on their paths. Build both with the same "
            "`state`; to compare a network before and after training with batch norm, fold what its running statistics "
            "have changed into its scale and bias."
        )
    if left.outputs != right.outputs or left.example.shape != right.example.shape:
        raise ValueError("The two kernels are of different outputs or shapes of inputs. Build both with the same ones.")


def _have_one_state(left: PathKernel, right: PathKernel) -> Any:
    """Whether two kernels are of the same state. Random keys and counters are not on paths, and may differ."""
    states: list[Any] = [kernel.network.state for kernel in (left, right)]
    structures: list[Any] = [jax.tree.structure(state) for state in states]
    if structures[0] != structures[1]:
        return False
    leaves = zip(*map(jax.tree.leaves, states), strict=True)
    pairs = [(one, other) for one, other in leaves if one is not other and not _is_random_state(one)]
    return jnp.all(jnp.stack([jnp.array_equal(one, other) for one, other in pairs])) if pairs else True


def _is_random_state(leaf: Any) -> bool:
    dtype = jnp.result_type(leaf)
    is_counter = jnp.issubdtype(dtype, jnp.integer) and jnp.ndim(leaf) == 0
    return bool(is_counter or jnp.issubdtype(dtype, jax.dtypes.prng_key))


def nan_unless_one_state(left: PathKernel, right: PathKernel, result: Any) -> Any:
    """The result; NaN where the two states differ, which cannot be refused while tracing."""
    is_one_state = _have_one_state(left, right)
    return jax.tree.map(lambda leaf: jnp.where(is_one_state, leaf, jnp.nan), result)
