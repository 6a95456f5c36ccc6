"""The spectral density of G by stochastic Lanczos quadrature, and the same as a smooth curve over log λ."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from pathjax._base.listeners import tell
from pathjax._linalg import estimates
from pathjax._linalg.krylov import krylov
from pathjax._linalg.lapack import eigh
from pathjax._path_kernel import twin
from pathjax._path_kernel.spectrum import is_nonzero
from pathjax._path_kernel.twin import PathKernel
from pathjax.types import Estimate, Key, Real

__all__ = ["BroadenedDensity", "SpectralDensity", "quadrature"]

_GRID_POINTS = 400
"""Points of a curve."""

_MARGIN = 6
"""How far a grid reaches beyond the nonzero eigenvalues, in widths: a Gaussian has 2e-9 of its area beyond them."""

_LEAST_VISIBLE = 0.1
"""How much of one eigenvalue a visible node holds. Where a space is exhausted, rounding adds nodes of less weight."""


class BroadenedDensity(NamedTuple):
    """A spectral density as a curve over log λ, and its integral: arrays for `plt.plot(log_eigenvalues, density)`.

    The curve is of the nonzero eigenvalues alone, since zero has no place on a logarithmic axis. Eigenvalues up to
    512 ε λ_max, with machine epsilon ε, count as zero. For decades in place of natural logarithms, divide
    `log_eigenvalues` by log 10, and multiply `density` and `standard_error` by it.

    Zeros are told from small eigenvalues only where the quadrature resolves them. With a small `order` they merge with
    the smallest ones: `zero_share` is then too small, even 0, and the curve has a bump at its lower end, below
    `resolved_above`, that `standard_error` does not show. Raise `order` until `zero_share` no longer changes. The share
    of all eigenvalues above `resolved_above` is right up to the weight of one node. The curve reaches 6 · width beyond
    the largest eigenvalue; that tail comes from the Gaussians that smooth the curve, not from eigenvalues.

    Attributes:
        log_eigenvalues: (g,) the points, as natural logarithms of true eigenvalues.
        density: (g,) the share of the nonzero eigenvalues for each unit of log λ; integrates to 1.
        standard_error: (g,) of `density` over the random starts, to first order; NaN for a single start.
        cumulative: (g,) the share of the nonzero eigenvalues below each point, from 0 to 1.
        zero_share: () the share of all eigenvalues that count as zero, from 0 to 1: an estimate over the random starts.
        resolved_above: () the natural logarithm of the node from which on each node is nearer to an eigenvalue than to
            zero. Below it, what looks like small eigenvalues may be zeros; infinite where there is no such node. Nodes
            that hold less than a tenth of one eigenvalue do not count.
    """

    log_eigenvalues: Float[Array, " g"]
    density: Float[Array, " g"]
    standard_error: Float[Array, " g"]
    cumulative: Float[Array, " g"]
    zero_share: Float[Array, ""]
    resolved_above: Float[Array, ""]

    def __repr__(self) -> str:
        """The number of points, such as `BroadenedDensity(points=400)`."""
        return f"BroadenedDensity(points={np.shape(self.log_eigenvalues)[-1]:,})"


class SpectralDensity(NamedTuple):
    """The distribution of the eigenvalues of G on the kept weights, as nodes and weights of a quadrature.

    Made by `spectral_density`, with one row per random start.

    Attributes:
        nodes: (samples, order) approximate eigenvalues, ascending, in true units: may overflow to infinity in float32
            for deep networks.
        weights: (samples, order) the share of eigenvalues at each node; nonnegative, each row sums to 1.
        dimension: () the number of kept weights, which is the number of eigenvalues.
        log_nodes: (samples, order) natural logarithms of the nodes, at any depth; −∞ where a node is zero or, by
            rounding, negative.
        is_resolved: (samples, order) whether the residual of a node is below the node. A node lies no further than its
            residual from an eigenvalue, so that one that is not resolved may stand for zeros, alone or with others.
    """

    nodes: Float[Array, "samples order"]
    weights: Float[Array, "samples order"]
    dimension: Float[Array, ""]
    log_nodes: Float[Array, "samples order"]
    is_resolved: Bool[Array, "samples order"]

    @property
    def log_scale(self) -> Float[Array, ""]:
        """Always 0: the nodes are in true units, and a node times exp(`log_scale`) is the node itself."""
        return jnp.zeros_like(self.dimension)

    def estimate(self, function: Callable[[Any], Any]) -> Estimate:
        """Estimate the sum of a function over the eigenvalues, Tr f(G), with its standard error over the samples.

        `function` is elementwise and takes true eigenvalues, as in `nodes`, which may overflow in float32 for deep
        networks; with `estimate_from_logs` they do not. The estimate is unbiased if the function is a polynomial of
        degree below 2 · order, and nearly so if it is close to such a polynomial.
        """
        return self._sum_over_eigenvalues(function(self.nodes))

    def estimate_from_logs(self, function: Callable[[Any], Any]) -> Estimate:
        """Like `estimate`, for a function of the natural logarithms of the eigenvalues, which any depth leaves finite.

        `function` is elementwise. The logarithm of an eigenvalue of zero is −∞. For example Σ_i (λ_i / Tr G)², one over
        the effective rank:

        >>> from pathjax import path_kernel
        >>> def apply(params, x):
        ...     return jnp.maximum(x @ params["first"], 0) @ params["second"]
        >>> keys = jax.random.split(jax.random.key(0))
        >>> params = {"first": jax.random.normal(keys[0], (4, 20)), "second": jax.random.normal(keys[1], (20, 3))}
        >>> kernel = path_kernel.path_kernel(apply, params, jnp.zeros((1, 4)))
        >>> density = path_kernel.spectral_density(kernel, order=10, samples=20, key=keys[0])
        >>> log_trace = kernel.log_trace()
        >>> value, standard_error = density.estimate_from_logs(lambda log: jnp.exp(2 * (log - log_trace)))
        >>> exact = 1 / path_kernel.effective_rank(kernel, key=keys[1]).value
        >>> bool(abs(value - exact) < 4 * standard_error)
        True
        """
        return self._sum_over_eigenvalues(function(self.log_nodes))

    def grid(self, points: int = _GRID_POINTS, *, width: Real = 0.5) -> Float[Array, " points"]:
        """Points that are equally spaced on the axis of log λ and hold the whole curve of `broadened` at this `width`.

        They reach from the smallest to the largest nonzero eigenvalue, and 6 · `width` beyond either. Hand one grid to
        `broadened` of several densities to compare their curves.

        Raises ValueError if `width` is not positive or `points` is below 2.
        """
        _check_width(width)
        if points < 2:
            raise ValueError(f"`points` must be at least 2, but is {points}.")
        nonzero = self._is_nonzero()
        low = jnp.min(jnp.where(nonzero, self.log_nodes, jnp.inf))
        high = jnp.max(jnp.where(nonzero, self.log_nodes, -jnp.inf))
        low, high = (jnp.where(jnp.isfinite(end), end, 0) for end in (low, high))  # where all eigenvalues are zero
        return jnp.linspace(low - _MARGIN * width, high + _MARGIN * width, points)

    def broadened(self, log_eigenvalues: Any = None, *, width: Real = 0.5) -> BroadenedDensity:
        """The density of the nonzero eigenvalues over log λ, each node a Gaussian: a curve to plot, and its integral.

        `log_eigenvalues` (g,) are the points, by default those of `grid`; `width` is the standard deviation of each
        Gaussian in natural logarithms. A width below the distance of the nodes shows the nodes of the quadrature and
        not the spectrum: take a larger `width`, or a larger `order` of the quadrature.

        Raises ValueError if `width` is not positive or if the points are not one axis of numbers.

        >>> from pathjax import path_kernel
        >>> def apply(params, x):
        ...     return jnp.maximum(x @ params["first"], 0) @ params["second"]
        >>> params = {"first": jnp.full((1, 2), 0.5), "second": jnp.full((2, 3), 2.0)}
        >>> kernel = path_kernel.path_kernel(apply, params, jnp.zeros((5, 1)))
        >>> density = path_kernel.spectral_density(kernel, order=8, samples=4, key=jax.random.key(0))
        >>> curve = density.broadened(width=0.2)  # plt.plot(curve.log_eigenvalues, curve.density)
        >>> curve.density.shape, round(float(jnp.trapezoid(curve.density, curve.log_eigenvalues)), 4)
        ((400,), 1.0)
        """
        _check_width(width)
        points = self.grid(width=width) if log_eigenvalues is None else jnp.asarray(log_eigenvalues, self.nodes.dtype)
        if points.ndim != 1:
            raise ValueError(f"`log_eigenvalues` must be one axis of points, (g,), but has shape {points.shape}.")
        nonzero = self._is_nonzero()
        shares = jnp.where(nonzero, self.weights, 0)
        centers = jnp.where(nonzero, self.log_nodes, 0)
        nonzero_shares = jnp.sum(shares, axis=1)  # one for each random start
        nonzero_share = jnp.mean(nonzero_shares)
        unit = jnp.where(nonzero_share > 0, nonzero_share, 1)

        def at_point(point: Any) -> tuple[Any, Any, Any]:
            distances = (point - centers) / width
            gaussians = jnp.exp(-jnp.square(distances) / 2) / (width * math.sqrt(2 * math.pi))
            densities = jnp.sum(shares * gaussians, axis=1) / unit
            below = jnp.sum(shares * jax.scipy.stats.norm.cdf(distances), axis=1) / unit
            density = jnp.mean(densities)
            # of a quotient of two means over the same starts, to first order
            errors = estimates.mean(densities - density * nonzero_shares / unit)
            return density, errors.standard_error, jnp.mean(below)

        density, standard_error, cumulative = lax.map(at_point, points)
        zero_share = jnp.maximum(1 - nonzero_share, 0)  # below 0 by rounding alone
        return BroadenedDensity(points, density, standard_error, cumulative, zero_share, self._resolved_above(nonzero))

    def __repr__(self) -> str:
        """The sizes, such as `SpectralDensity(samples=4, order=20)`; batch axes come first."""
        *batch, samples, order = np.shape(self.nodes)
        batched = f"batch={tuple(batch)}, " if batch else ""
        return f"SpectralDensity({batched}samples={samples:,}, order={order:,})"

    def _sum_over_eigenvalues(self, values: Any) -> Estimate:
        return estimates.mean(self.dimension * jnp.sum(self.weights * values, axis=-1))

    def _resolved_above(self, nonzero: Any) -> Any:
        """The smallest visible node above all visible ones that are not resolved, of all starts."""
        is_visible = nonzero & (self.weights * self.dimension > _LEAST_VISIBLE)
        largest_unresolved = jnp.max(jnp.where(is_visible & ~self.is_resolved, self.log_nodes, -jnp.inf))
        is_above = is_visible & (self.log_nodes > largest_unresolved)
        return jnp.min(jnp.where(is_above, self.log_nodes, jnp.inf))

    def _is_nonzero(self) -> Any:
        """Which nodes count as nonzero eigenvalues, read from their logarithms."""
        largest = jnp.max(self.log_nodes)
        relative = jnp.exp(self.log_nodes - jnp.where(jnp.isfinite(largest), largest, 0))
        return is_nonzero(relative.ravel()).reshape(relative.shape)


def quadrature(kernel: PathKernel, key: Key, listener: Any, *, order: int, samples: int) -> SpectralDensity:
    """The nodes and weights of `samples` random starts, by `order` Lanczos steps each.

    The function with the number `listener` is told each start when it is done.
    """
    steps = min(order, twin.size(kernel))
    operator = twin.flat(kernel, twin.linear(kernel, kernel))

    def from_random_start(start: tuple[Key, Any]) -> tuple[Any, Any, Any]:
        space = krylov(operator, twin.random_signs(kernel, start[0]), steps)
        nodes, vectors = eigh(space.matrix)
        residuals = jnp.linalg.norm(space.residual) * jnp.abs(vectors[-1])
        tell(listener, start[1], samples)
        return nodes, jnp.square(vectors[0]), residuals < nodes

    starts = jax.random.split(key, samples), jnp.arange(1, samples + 1)
    scaled_nodes, weights, is_resolved = lax.map(from_random_start, starts)
    return SpectralDensity(
        nodes=twin.in_true_units(scaled_nodes, kernel.exponent),
        weights=weights,
        dimension=twin.dimension(kernel).astype(scaled_nodes.dtype),
        log_nodes=twin.log_in_true_units(scaled_nodes, kernel.exponent),
        is_resolved=is_resolved,
    )


def _check_width(width: Real) -> None:
    if not width > 0:
        raise ValueError(f"`width` must be positive, but is {width}: it is the standard deviation of each Gaussian.")
