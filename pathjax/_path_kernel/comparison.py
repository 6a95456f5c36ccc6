"""How far two Path Kernels are from one another: norms of G and of the maps between two kernels, from random signs.

‖Π‖ = ‖G‖, and ⟨Π, Π_0⟩ = ‖C‖² with the map C = (J_θ v)ᵀ (J_θ v)_0 between the weights of the two, both in the
Frobenius norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pathjax._base.trees import dot
from pathjax._linalg import estimates
from pathjax._linalg.eigenpairs import DENSE, Eigenpairs
from pathjax._path_kernel import twin
from pathjax._path_kernel.spectrum import inverse_roots
from pathjax._path_kernel.twin import PathKernel
from pathjax.types import Estimate, Key

__all__ = ["Comparison", "compare", "effective_rank", "overlap"]


class Comparison(NamedTuple):
    """How far a Path Kernel Π is from an initial one Π_0.

    Attributes:
        relative_change: ‖Π − Π_0‖ / ‖Π_0‖.
        cosine: ⟨Π, Π_0⟩ / (‖Π‖ ‖Π_0‖).
    """

    relative_change: Estimate
    cosine: Estimate


class _Samples(NamedTuple):
    """Unbiased samples (s, t) of t numbers; one exact row where `is_exact`."""

    values: Any
    is_exact: bool


def effective_rank(kernel: PathKernel, key: Key, samples: int) -> Estimate:
    """(Tr G)² / ‖G‖²."""
    return _product_of_means(_squared_norms([(kernel, kernel)], key, samples), [-1.0])


def compare(initial: PathKernel, kernel: PathKernel, key: Key, samples: int) -> Comparison:
    """Change and cosine from the same random signs."""
    norms = _squared_norms([(kernel, kernel), (initial, kernel), (initial, initial)], key, samples)
    return Comparison(_relative_change(norms, kernel, initial), _cosine(norms, kernel, initial))


def overlap(left: PathKernel, left_pairs: Eigenpairs, right: PathKernel, right_pairs: Eigenpairs) -> Any:
    """The mean squared cosine of the principal angles between the spaces of eigenvectors, on the paths."""
    images = lax.map(twin.linear(left, right), right_pairs.eigenvectors)
    products = jax.vmap(lambda vector: jax.vmap(lambda image: dot(vector, image))(images))(left_pairs.eigenvectors)
    roots = [inverse_roots(pairs.eigenvalues) for pairs in (left_pairs, right_pairs)]
    cosines = roots[0][:, None] * products * roots[1][None, :] * twin.cross_factor(left, right, products.dtype)
    dimension = jnp.minimum(*(jnp.sum(root > 0) for root in roots))
    return jnp.sum(jnp.square(cosines)) / dimension


def _squared_norms(maps: Sequence[Any], key: Key, samples: int) -> _Samples:
    """Samples of the squared norms of the maps of `cross` between pairs of kernels, in units of both sides' traces."""
    units = [1 / jnp.sqrt(left.trace() * right.trace()) for left, right in maps]
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
    """Π_t mean_t^power_t, with its standard error to first order."""
    means = jnp.mean(samples.values, axis=0)
    exponents = jnp.asarray(powers, means.dtype)
    value = jnp.prod(means**exponents)
    if samples.is_exact:
        return estimates.exact(value)
    return Estimate(value, value * estimates.mean((samples.values / means[None]) @ exponents).standard_error)


def _relative_change(samples: _Samples, kernel: PathKernel, initial: PathKernel) -> Estimate:
    """‖Π − Π_0‖ / ‖Π_0‖ from `_squared_norms` of G, of the map between both and of G_0; its error to first order."""
    traces = kernel.trace() / initial.trace()
    ratio = traces * jnp.exp2(kernel.exponent - initial.exponent).astype(traces.dtype)
    size = jnp.maximum(ratio, 1)  # the square of a large ratio may leave the format
    between = ratio / size / size * twin.cross_factor(kernel, initial, ratio.dtype) ** 2
    scaled = samples.values * jnp.stack([(ratio / size) ** 2, between, 1 / size / size])[None]
    initial_norm = jnp.mean(samples.values[:, 2])
    means = jnp.mean(scaled, axis=0)
    signs = jnp.array([1.0, -2.0, 1.0], means.dtype)
    square = jnp.maximum(means @ signs, 0) / initial_norm
    change = jnp.where(square == 0, 0, jnp.sqrt(jnp.where(square == 0, 1, square)))
    if samples.is_exact:
        return estimates.exact(size * change)
    errors = (scaled @ signs - square * samples.values[:, 2]) / initial_norm
    halved = estimates.mean(errors).standard_error / (2 * jnp.where(change == 0, 1, change))
    return Estimate(size * change, size * jnp.where(change == 0, 0, halved))


def _cosine(samples: _Samples, kernel: PathKernel, initial: PathKernel) -> Estimate:
    """⟨Π, Π_0⟩ / (‖Π‖ ‖Π_0‖) from the same samples."""
    value, standard_error = _product_of_means(samples, [-0.5, 1.0, -0.5])
    factor = twin.cross_factor(kernel, initial, value.dtype) ** 2
    return Estimate(factor * value, factor * standard_error)
