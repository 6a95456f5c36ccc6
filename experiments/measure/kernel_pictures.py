"""What the pictures of kernels show of one cell: Π's spectrum, Θ in its eigenbasis, and Θ beside the data Gram.

Kept beside the results, in `kernels/METHOD-DENSITY.npz`, so that a report is drawn again without computing.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.measure.quantities import BeforeTraining, NtkSpectrum
from experiments.options import InputError
from experiments.records import results_folder
from pathjax import factorization, paths
from pathjax.types import ApplyFn, Key, Mask, Params

__all__ = ["Cell", "Kernels", "file_of", "load", "log_above_rounding", "log_nodes", "measurer", "save"]

Cell = tuple[str, float]
"""A method and a density."""

_RANK = 32

_ROUNDINGS = 100
"""Nodes below this many roundings of the largest are those of a null space."""


class Kernels(NamedTuple):
    """Numbers of one method and density. Eigenvalues are natural logarithms, −∞ for zero.

    Attributes:
        log_nodes: (s, samples, order) of the spectral density of Π over the kept weights, for all seeds (s); −∞
            where they are lost in its rounding.
        weights: (s, samples, order) of the nodes; each row sums to 1.
        log_eigenvalues: (r,) the largest of Π; seed 0, as all that follows.
        shares: (r,) of Tr Θ, carried by each of the modes that belong to them.
        log_ntk_eigenvalues: (n·o,) of Θ, descending; −∞ where they are lost in its rounding.
        bounds: (6,) the fields of `factorization.Bounds`, in its order.
        cosines: (3, n, n) of the examples in Θ, in its part of rank r and in K_v, each summed over outputs and
            centered: what all examples share, as through the biases, would cover the rest.
        alignments: (3,) centered kernel–target alignment of the same three.
        labels: (n,) classes of the examples.
    """

    log_nodes: np.ndarray
    weights: np.ndarray
    log_eigenvalues: np.ndarray
    shares: np.ndarray
    log_ntk_eigenvalues: np.ndarray
    bounds: np.ndarray
    cosines: np.ndarray
    alignments: np.ndarray
    labels: np.ndarray

    @property
    def slack(self) -> np.ndarray:
        """Decades by which the bounds of λ_max(Θ) and twice of Tr Θ lie above them (3,)."""
        return np.asarray(factorization.Bounds(*map(jnp.asarray, self.bounds)).slack)


class _OnData(NamedTuple):
    """What one compiled program finds of seed 0."""

    log_eigenvalues: jax.Array
    shares: jax.Array
    log_top_data_gram: jax.Array
    log_trace_data_gram: jax.Array
    cosines: jax.Array
    alignments: jax.Array


def measurer(
    apply: ApplyFn, batch: jax.Array, labels: jax.Array
) -> Callable[[Params, Mask, Key, BeforeTraining, NtkSpectrum], Kernels]:
    """A function (params, mask, key, known, spectrum) -> Kernels, compiled at its first call.

    `params`, `mask` and `known` carry the seeds on a leading axis; `spectrum` is that of seed 0, and so is the NTK of
    `batch` in `known` that is factored.
    """

    @jax.jit
    def on_data(params: Params, mask: Mask, key: Key, ntk: jax.Array) -> _OnData:
        rank = min(_RANK, sum(leaf.size for leaf in jax.tree.leaves(params)))
        found = factorization.factorize(apply, params, batch, rank=rank, key=key, mask=mask)
        sign, log_abs = paths.log_data_gram(apply, params, batch, mask=mask)
        largest = jnp.max(log_abs)
        scale = jnp.where(jnp.isfinite(largest), largest, 0.0)
        gram = sign * jnp.exp(log_abs - scale)
        three = [_over_outputs(ntk), _over_outputs(factorization.recompose(found)), jnp.sum(gram, axis=2)]
        return _OnData(
            log_eigenvalues=jnp.log(found.eigenvalues) + found.log_scale,
            shares=found.shares,
            log_top_data_gram=jnp.log(jnp.max(jax.lax.map(jnp.linalg.eigvalsh, jnp.moveaxis(gram, 2, 0)))) + scale,
            log_trace_data_gram=jnp.log(jnp.trace(three[2])) + scale,
            cosines=jnp.stack([_centered_cosines(kernel) for kernel in three]),
            alignments=jnp.stack([factorization.kernel_target_alignment(k, labels) for k in three]),
        )

    def measured(params: Params, mask: Mask, key: Key, known: BeforeTraining, spectrum: NtkSpectrum) -> Kernels:
        params, mask = jax.tree.map(lambda leaf: leaf[0], (params, mask))
        found = jax.device_get(on_data(params, mask, key, known.ntk[0]))
        bounds = [
            spectrum.log_top_ntk,
            spectrum.log_trace_ntk,
            known.log_top_path_kernel[0],
            known.log_trace_path_kernel[0],
            found.log_top_data_gram,
            found.log_trace_data_gram,
        ]
        return Kernels(
            log_nodes=log_nodes(np.asarray(known.nodes), np.asarray(known.log_top_path_kernel)),
            weights=np.asarray(known.weights),
            log_eigenvalues=found.log_eigenvalues,
            shares=found.shares,
            log_ntk_eigenvalues=log_above_rounding(spectrum.eigenvalues, known.ntk.dtype),
            bounds=np.array(bounds, np.float32),
            cosines=found.cosines,
            alignments=found.alignments,
            labels=np.asarray(labels),
        )

    return measured


def _over_outputs(ntk: jax.Array) -> jax.Array:
    return jnp.trace(ntk, axis1=2, axis2=3)


def _centered_cosines(kernel: jax.Array) -> jax.Array:
    """Cosines (n, n) of the examples less their mean; 0 for an example that equals it."""
    rows = kernel - jnp.mean(kernel, axis=0, keepdims=True)
    centered = rows - jnp.mean(rows, axis=1, keepdims=True)
    squares = jnp.diag(centered)
    live = squares > jnp.finfo(kernel.dtype).eps * jnp.max(jnp.diag(kernel))
    inverse = jnp.where(live, 1.0 / jnp.sqrt(jnp.where(live, squares, 1.0)), 0.0)
    return centered * inverse[:, None] * inverse[None, :]


def log_nodes(nodes: np.ndarray, log_top: np.ndarray) -> np.ndarray:
    """Logarithms of nodes (s, samples, order) whose largest is the largest eigenvalue, of known logarithm (s,)."""
    largest = nodes.max(axis=(1, 2), keepdims=True)
    relative = nodes / np.where(largest > 0, largest, 1.0)
    live = relative > _ROUNDINGS * np.finfo(nodes.dtype).eps
    return np.where(live, np.log(np.where(live, relative, 1.0)) + log_top[:, None, None], -np.inf)


def log_above_rounding(eigenvalues: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Logarithms of eigenvalues, descending, of a matrix of some type; −∞ where they are lost in its rounding."""
    live = eigenvalues > eigenvalues[0] * eigenvalues.size * np.finfo(dtype).eps
    return np.where(live, np.log(np.where(live, eigenvalues, 1.0)), -np.inf).astype(np.float32)


def file_of(folder: Path, method: str, density: float) -> Path:
    """Where the kernels of a cell are kept."""
    return folder / "kernels" / f"{method}-{density:g}.npz"


def save(path: Path, kernels: Kernels) -> None:
    """Write the file in one step, the same bytes for the same numbers.

    Raises InputError where there is no room or no right to write.
    """
    with io.BytesIO() as file:
        np.savez_compressed(file, allow_pickle=False, **kernels._asdict())
        path.parent.mkdir(exist_ok=True)
        results_folder.write(path, file.getvalue())


def load(path: Path) -> Kernels:
    """The kernels that `save` wrote. Raises InputError where the file is not one of its own."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return Kernels(**file)
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} cannot be read ({error}); remove it, and the same command makes it again.") from error
