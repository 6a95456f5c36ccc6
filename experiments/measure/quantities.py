"""What is measured of a masked network before training: sums over paths, the Path Kernel and the NTK."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.base.batching import vmap_networks
from pathjax import ntk, path_kernel, paths
from pathjax.types import ApplyFn, Key, Mask, Params, State

__all__ = [
    "BeforeTraining",
    "NtkSpectrum",
    "before_training",
    "log_above_rounding",
    "log_nodes",
    "ntk_spectrum",
]

_LANCZOS_ORDER = 40
_LANCZOS_SAMPLES = 2

_ROUNDINGS = 100
"""Nodes of the spectral density below this many roundings of the largest belong to the null space."""


class BeforeTraining(NamedTuple):
    """Numbers of masked networks, which lie on the leading axis (s). Logarithms are natural.

    `nodes` and `weights` (s, samples, order) are the spectral density of Π over the kept parameters, biases included,
    in units of each network's largest node; `parameters` (s,) is the number of kept parameters. `ntk` is
    (s, n, m, o, o).
    """

    log_path_count: jax.Array
    log_path_norm_1: jax.Array
    log_path_norm_2: jax.Array
    log_trace_path_kernel: jax.Array
    log_top_path_kernel: jax.Array
    effective_rank_path_kernel: jax.Array
    nodes: jax.Array
    weights: jax.Array
    parameters: jax.Array
    ntk: jax.Array


class NtkSpectrum(NamedTuple):
    """The spectrum of one NTK (n, m, o, o) as an (n·o, n·o) matrix. Logarithms are natural.

    The condition number is at most 1 / (n·o·ε), where ε is the rounding of the matrix: smaller eigenvalues are noise.
    """

    eigenvalues: np.ndarray
    log_trace_ntk: float
    log_top_ntk: float
    effective_rank_ntk: float
    log_condition_ntk: float


def before_training(apply: ApplyFn, batch: jax.Array) -> Callable[[Params, State, Mask, Key], BeforeTraining]:
    """A compiled function (params, state, mask, keys) -> BeforeTraining, with the networks on its leading axes.

    `apply(params, state, x)` is the network, and the NTK that of `batch` (n, ...). Tr Π is exact, λ_max(Π) by Lanczos
    iteration, and the spectral density by stochastic Lanczos quadrature; of the effective rank Tr²/Σλ² the denominator
    comes from the latter.
    """
    x_like = batch[:1]

    def measured(params: Params, state: State, mask: Mask, key: Key) -> BeforeTraining:
        given: dict[str, Any] = {"state": state, "mask": mask}
        kernel = path_kernel.path_kernel(apply, params, x_like, **given)
        log_trace = kernel.log_trace()
        pairs = path_kernel.top_eigenpairs(kernel, 1, key=jax.random.fold_in(key, 0))
        density = path_kernel.spectral_density(
            kernel, order=_LANCZOS_ORDER, samples=_LANCZOS_SAMPLES, key=jax.random.fold_in(key, 1)
        )
        log_largest = jnp.max(density.log_nodes)
        squares = density.estimate_from_logs(lambda log_eigenvalues: jnp.exp(2 * (log_eigenvalues - log_trace)))
        return BeforeTraining(
            log_path_count=paths.log_path_count(apply, params, x_like, **given),
            log_path_norm_1=paths.log_path_norm(apply, params, x_like, q=1, **given),
            log_path_norm_2=paths.log_path_norm(apply, params, x_like, q=2, **given),
            log_trace_path_kernel=log_trace,
            log_top_path_kernel=pairs.log_eigenvalues[0],
            effective_rank_path_kernel=1 / squares.value,
            nodes=jnp.exp(density.log_nodes - jnp.where(jnp.isfinite(log_largest), log_largest, 0)),
            weights=density.weights,
            parameters=density.dimension,
            ntk=ntk.empirical(apply, params, batch, **given),
        )

    return jax.jit(vmap_networks(measured))


def ntk_spectrum(kernel: np.ndarray) -> NtkSpectrum:
    """Eigenvalues, descending, and what follows from them, of one NTK (n, m, o, o)."""
    n, _, o, _ = kernel.shape
    rounding = np.finfo(kernel.dtype).eps
    matrix = np.asarray(kernel, np.float64).transpose(0, 2, 1, 3).reshape(n * o, n * o)
    eigenvalues = np.linalg.eigvalsh((matrix + matrix.T) / 2)[::-1]
    top, trace = eigenvalues[0], np.trace(matrix)
    floor = top * n * o * rounding
    return NtkSpectrum(
        eigenvalues,
        log_trace_ntk=float(np.log(trace)),
        log_top_ntk=float(np.log(top)),
        effective_rank_ntk=float(trace**2 / np.sum(matrix**2)),
        log_condition_ntk=float(np.log(top / max(eigenvalues[-1], floor))),
    )


def log_nodes(nodes: np.ndarray, log_top: np.ndarray) -> np.ndarray:
    """Natural logarithms of nodes (s, samples, order), −∞ where they are lost in rounding.

    The largest node of each network is its largest eigenvalue, whose logarithm is `log_top` (s,).
    """
    largest = nodes.max(axis=(1, 2), keepdims=True)
    relative = nodes / np.where(largest > 0, largest, 1.0)
    above = relative > _ROUNDINGS * np.finfo(nodes.dtype).eps
    return np.where(above, np.log(np.where(above, relative, 1.0)) + log_top[:, None, None], -np.inf)


def log_above_rounding(eigenvalues: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Natural logarithms of descending eigenvalues of a matrix of type `dtype`, −∞ below its rounding."""
    above = eigenvalues > eigenvalues[0] * eigenvalues.size * np.finfo(dtype).eps
    return np.where(above, np.log(np.where(above, eigenvalues, 1.0)), -np.inf).astype(np.float32)
