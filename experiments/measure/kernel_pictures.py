"""The numbers of the pictures of kernels of one cell: Θ in the eigenbasis of Π, and Θ beside the data Gram.

They are kept in `kernels/DATA-MODEL-METHOD-DENSITY.npz` beside the results, so that a report is drawn from files alone.
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

from experiments.base.errors import InputError
from experiments.base.files import cannot_write, write_atomically
from experiments.base.wording import all_digits
from experiments.measure.quantities import BeforeTraining, NtkSpectrum, log_above_rounding
from pathjax import factorization, paths
from pathjax.types import ApplyFn, Key, Mask, Params, State

__all__ = ["KernelPictures", "file_of", "load", "measurer", "save"]

_RANK = 32
"""Eigenpairs of Π in which Θ is factored, at most."""


class KernelPictures(NamedTuple):
    """Numbers of one data set, model, method and density, of seed 0. Eigenvalues are natural logarithms, −∞ for zero.

    Attributes:
        log_eigenvalues: (r,) the largest of Π.
        shares: (r,) of Tr Θ, carried by the mode of each.
        log_ntk_eigenvalues: (n·o,) of Θ, descending; −∞ where they are lost in its rounding.
        bounds: (6,) the fields of `factorization.Bounds`, in its order.
        cosines: (3, n, n) of the examples in Θ, in its part of rank r and in the data Gram K_v, each summed over
            outputs and centered: what all examples share, as through the biases, would hide the rest.
        alignments: (3,) centered kernel–target alignment of the same three.
        labels: (n,) classes of the examples.
    """

    log_eigenvalues: np.ndarray
    shares: np.ndarray
    log_ntk_eigenvalues: np.ndarray
    bounds: np.ndarray
    cosines: np.ndarray
    alignments: np.ndarray
    labels: np.ndarray

    @property
    def slack(self) -> np.ndarray:
        """How many decades the bound of λ_max(Θ) and the two of Tr Θ lie above the true numbers (3,)."""
        return np.asarray(factorization.Bounds(*map(jnp.asarray, self.bounds)).slack)


class _OnData(NamedTuple):
    """What the compiled program computes."""

    log_eigenvalues: jax.Array
    shares: jax.Array
    log_top_data_gram: jax.Array
    log_trace_data_gram: jax.Array
    cosines: jax.Array
    alignments: jax.Array


def measurer(
    apply: ApplyFn, batch: jax.Array, labels: jax.Array
) -> Callable[[Params, State, Mask, Key, BeforeTraining, NtkSpectrum], KernelPictures]:
    """A function (params, state, mask, key, before, spectrum) -> KernelPictures, compiled at its first call.

    `params`, `state`, `mask` and `before` carry the seeds on a leading axis, of which the first is measured; `spectrum`
    is that of its Θ on `batch`. `apply(params, state, x)` is the network.
    """

    @jax.jit
    def on_data(params: Params, state: State, mask: Mask, key: Key, ntk: jax.Array) -> _OnData:
        rank = min(_RANK, sum(leaf.size for leaf in jax.tree.leaves(params)))
        factored = factorization.factorize(apply, params, batch, rank=rank, key=key, state=state, mask=mask)
        sign, log_abs = paths.log_data_gram(apply, params, batch, state=state, mask=mask)
        largest = jnp.max(log_abs)
        scale = jnp.where(jnp.isfinite(largest), largest, 0.0)
        gram = sign * jnp.exp(log_abs - scale)
        kernels = [_over_outputs(ntk), _over_outputs(factorization.recompose(factored)), jnp.sum(gram, axis=2)]
        return _OnData(
            log_eigenvalues=factored.log_eigenvalues,
            shares=factored.shares,
            log_top_data_gram=jnp.log(jnp.max(jax.lax.map(jnp.linalg.eigvalsh, jnp.moveaxis(gram, 2, 0)))) + scale,
            log_trace_data_gram=jnp.log(jnp.trace(kernels[2])) + scale,
            cosines=jnp.stack([_centered_cosines(kernel) for kernel in kernels]),
            alignments=jnp.stack([factorization.kernel_target_alignment(kernel, labels) for kernel in kernels]),
        )

    def measured(
        params: Params, state: State, mask: Mask, key: Key, before: BeforeTraining, spectrum: NtkSpectrum
    ) -> KernelPictures:
        params, state, mask = jax.tree.map(lambda leaf: leaf[0], (params, state, mask))
        computed = jax.device_get(on_data(params, state, mask, key, before.ntk[0]))
        bounds = [
            spectrum.log_top_ntk,
            spectrum.log_trace_ntk,
            before.log_top_path_kernel[0],
            before.log_trace_path_kernel[0],
            computed.log_top_data_gram,
            computed.log_trace_data_gram,
        ]
        return KernelPictures(
            log_eigenvalues=computed.log_eigenvalues,
            shares=computed.shares,
            log_ntk_eigenvalues=log_above_rounding(spectrum.eigenvalues, before.ntk.dtype),
            bounds=np.array(bounds, np.float32),
            cosines=computed.cosines,
            alignments=computed.alignments,
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
    nonzero = squares > jnp.finfo(kernel.dtype).eps * jnp.max(jnp.diag(kernel))
    inverse = jnp.where(nonzero, 1.0 / jnp.sqrt(jnp.where(nonzero, squares, 1.0)), 0.0)
    return centered * inverse[:, None] * inverse[None, :]


def file_of(folder: Path, data: str, model: str, method: str, density: float) -> Path:
    """Where the numbers of a cell are kept."""
    return folder / "kernels" / f"{data}-{model}-{method}-{all_digits(density)}.npz"


def save(path: Path, pictures: KernelPictures) -> None:
    """Write the file in one step, the same bytes for the same numbers.

    Raises InputError where there is no room or no right to write.
    """
    with io.BytesIO() as file:
        np.savez_compressed(file, allow_pickle=False, **pictures._asdict())
        try:
            path.parent.mkdir(exist_ok=True)
        except OSError as error:
            raise cannot_write(path.parent, error) from error
        write_atomically(path, file.getvalue())


def load(path: Path) -> KernelPictures:
    """The numbers that `save` wrote. Raises InputError where it did not write the file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return KernelPictures(**file)
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} cannot be read ({error}); remove it, and the same sweep makes it again.") from error
