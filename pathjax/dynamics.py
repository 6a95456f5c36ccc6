"""What a kernel predicts of training by gradient descent on the squared loss.

Times count steps: training for time t at learning rate η is a gradient flow of length η·t. The loss is the sum over
examples, ½ Σ_i ‖f(x_i) − y_i‖². For the mean over n examples, pass `learning_rate / n`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num

__all__ = ["critical_learning_rate", "data_free_loss", "linearized", "time_to_loss"]


def linearized(
    ntk: Float[Array, "n n o o"],
    outputs: Float[Array, "n o"],
    targets: Float[Array, "n o"],
    times: Num[Array, " t"],
    *,
    learning_rate: ArrayLike,
) -> Float[Array, "t n o"]:
    """Outputs over time of the network linearized at its initial weights, f_t = y + e^(−ηΘt) (f_0 − y).

    `ntk` is Θ at initialization, `outputs` f_0 and `targets` y, all on the training examples. Loss ½ Σ ‖f − y‖² over
    examples; for the mean over n examples, pass `learning_rate / n`. Exact for gradient flow at any time, by the
    eigenvectors of Θ: (n·o)³ operations once, and t·(n·o)² for the times. Eigenvalues that rounding has left below
    zero count as zero. A gradient with respect to `ntk` takes t·(n·o)² memory; it holds for repeated eigenvalues too.

    Raises ValueError where shapes disagree.

    Source: Lee et al. (2019), "Wide neural networks of any depth evolve as linear models under gradient descent",
    section 2.2.

    >>> ntk = jnp.einsum("ij,ab->ijab", jnp.eye(3), jnp.eye(2))
    >>> times = jnp.array([0.0, 1.0, 2.0, 1e6])
    >>> curve = linearized(ntk, jnp.ones((3, 2)), jnp.zeros((3, 2)), times, learning_rate=jnp.log(2))
    >>> curve.shape
    (4, 3, 2)
    >>> curve[:, 0, 0].round(6)
    Array([1.  , 0.5 , 0.25, 0.  ], dtype=float64)
    """
    matrix = _matrix(ntk)
    n, _, o, _ = ntk.shape
    if outputs.shape != (n, o) or targets.shape != (n, o):
        raise ValueError(
            f"A kernel of shape {ntk.shape} goes with outputs and targets of shape {(n, o)}, but outputs have "
            f"{outputs.shape} and targets {targets.shape}. Compute all of them on the same examples."
        )
    _check_vector(times, "times")
    dtype = jnp.result_type(ntk, outputs, targets)
    residual = (outputs - targets).astype(dtype).reshape(-1)
    flow = jnp.asarray(learning_rate, dtype) * times.astype(dtype)
    return targets[None] + _decay(matrix.astype(dtype), residual, flow).reshape(len(times), n, o)


def data_free_loss(
    eigenvalues: Float[Array, " r"],
    weights: Float[Array, " r"],
    times: Num[Array, " t"],
    *,
    learning_rate: ArrayLike,
) -> Float[Array, " t"]:
    """Share of the initial squared loss that is left at each time, Σ_i w_i e^(−2ηλ_i t).

    With the Path Kernel's eigenvalues λ in place of the Neural Tangent Kernel's, this predicts training from
    architecture and initialization alone; it is exact where the data are whitened as paths see them, (J_v f)ᵀ J_v f =
    I. w_i is the share of the squared initial residual in mode i: with no data at hand, 1/r each. Eigenvalues below
    zero count as zero. Cost: t·r.

    Raises ValueError where shapes disagree, and, where their values are known, for weights that are negative or do
    not sum to 1.

    Source: Gebhart, Saxena, Schrater (2021).

    >>> eigenvalues, weights = jnp.array([1.0, 0.0]), jnp.array([0.75, 0.25])
    >>> data_free_loss(eigenvalues, weights, jnp.array([0.0, 1.0, 1e6]), learning_rate=jnp.log(2) / 2)
    Array([1.   , 0.625, 0.25 ], dtype=float64)
    """
    for name, vector in (("eigenvalues", eigenvalues), ("weights", weights), ("times", times)):
        _check_vector(vector, name)
    if eigenvalues.shape != weights.shape:
        raise ValueError(
            f"There are {len(eigenvalues)} eigenvalues and {len(weights)} weights, but each eigenvalue has one weight. "
            "To spread the residual evenly, pass `jnp.full_like(eigenvalues, 1 / len(eigenvalues))`."
        )
    _check_shares(weights)
    flow = learning_rate * times
    return jnp.exp(-2 * flow[:, None] * jnp.maximum(eigenvalues, 0.0)[None, :]) @ weights


def critical_learning_rate(ntk: Float[Array, "n n o o"]) -> Float[Array, ""]:
    """Learning rate above which gradient descent on the linearized network diverges, 2 / λ_max.

    For the loss ½ Σ ‖f − y‖² over examples; for the mean over n examples it is n times that. Infinite for a kernel of
    zeros. Cost: (n·o)³ operations.

    Raises ValueError unless the kernel is that of one batch with itself, (n, n, o, o).

    >>> critical_learning_rate(jnp.einsum("ij,ab->ijab", jnp.eye(3), jnp.diag(jnp.array([1.0, 4.0]))))
    Array(0.5, dtype=float64)
    """
    return 2 / jnp.linalg.eigvalsh(_matrix(ntk))[-1]


def time_to_loss(times: Num[Array, " t"], losses: Float[Array, " t"], level: ArrayLike) -> Float[Array, ""]:
    """First of the recorded times at which a loss curve is at or below a level; infinite where it never is.

    Nothing is interpolated, so the answer is late by up to one recording interval, and a curve that rises again
    counts from its first visit. `times` ascend. A loss of NaN is at no level.

    Raises ValueError where shapes disagree, and, where their values are known, for times that do not ascend.

    >>> time_to_loss(jnp.array([0.0, 10.0, 20.0]), jnp.array([1.0, 0.4, 0.3]), 0.5)
    Array(10., dtype=float64)
    """
    for name, vector in (("times", times), ("losses", losses)):
        _check_vector(vector, name)
    if times.shape != losses.shape:
        raise ValueError(f"There are {len(times)} times and {len(losses)} losses, but each loss has one time.")
    values = _concrete(times)
    if values is not None and (np.diff(values) <= 0).any():
        raise ValueError("`times` must ascend, or the first visit to a level is not defined. Sort both by time.")
    return jnp.min(jnp.where(losses <= level, times, jnp.inf), initial=jnp.inf)


@jax.custom_jvp
def _decay(matrix: Array, vector: Array, times: Array) -> Array:
    """e^(−Mt) v for each time, (t, q); M (q, q) symmetric, its negative eigenvalues taken as zero."""
    eigenvalues, eigenvectors = _eigh(matrix)
    return (_exponentials(eigenvalues, times) * (eigenvectors.T @ vector)[None, :]) @ eigenvectors.T


def _decay_jvp(primals: tuple[Array, ...], tangents: tuple[Array | SymbolicZero, ...]) -> tuple[Array, Array]:
    # The derivative of an eigendecomposition divides by the gaps between eigenvalues, which singular kernels lack.
    # That of e^(−Mt) has no such poles: Daleckii and Krein (1965).
    matrix, vector, times = primals
    eigenvalues, eigenvectors = _eigh(matrix)
    decay = _exponentials(eigenvalues, times)
    start = eigenvectors.T @ vector
    change = jnp.zeros_like(decay)
    d_matrix, d_vector, d_times = tangents
    if not isinstance(d_matrix, SymbolicZero):
        turned = eigenvectors.T @ d_matrix @ eigenvectors
        change -= jnp.einsum("tij,ij,j->ti", _divided_differences(eigenvalues, times), turned, start)
    if not isinstance(d_vector, SymbolicZero):
        change += decay * (eigenvectors.T @ d_vector)[None, :]
    if not isinstance(d_times, SymbolicZero):
        change -= d_times[:, None] * decay * (eigenvalues * start)[None, :]
    return (decay * start[None, :]) @ eigenvectors.T, change @ eigenvectors.T


_decay.defjvp(_decay_jvp, symbolic_zeros=True)


def _eigh(matrix: Array) -> tuple[Array, Array]:
    eigenvalues, eigenvectors = jnp.linalg.eigh(matrix)
    return jnp.maximum(eigenvalues, 0), eigenvectors


def _exponentials(eigenvalues: Array, times: Array) -> Array:
    return jnp.exp(-times[:, None] * eigenvalues[None, :])


def _divided_differences(eigenvalues: Array, times: Array) -> Array:
    """(e^(−λ_i t) − e^(−λ_j t)) / (λ_j − λ_i), which is t·e^(−λt) where both are λ: (t, q, q)."""
    smaller = jnp.minimum(eigenvalues[:, None], eigenvalues[None, :])
    larger = jnp.maximum(eigenvalues[:, None], eigenvalues[None, :])
    t = times[:, None, None]
    z = t * (larger - smaller)[None]
    # without cancellation where eigenvalues are close
    mean_decay = jnp.where(z == 0, 1.0, -jnp.expm1(-z) / jnp.where(z == 0, 1.0, z))
    return t * jnp.exp(-t * smaller[None]) * mean_decay


def _matrix(ntk: Array) -> Array:
    """The kernel as a symmetric matrix (n·o, n·o), ordered by example, then by output."""
    if ntk.ndim != 4 or ntk.shape[0] != ntk.shape[1] or ntk.shape[2] != ntk.shape[3]:
        raise ValueError(
            f"Training is predicted from the kernel of the training examples with themselves, (n, n, o, o), but "
            f"{ntk.shape} came. Leave out `x2` when computing it; of an infinite-width kernel Θ (n, n), pass "
            "`jnp.einsum('ij,ab->ijab', Θ, jnp.eye(o))`."
        )
    n, _, o, _ = ntk.shape
    matrix = jnp.swapaxes(ntk, 1, 2).reshape(n * o, n * o)
    return (matrix + matrix.T) / 2


def _check_vector(vector: Array, name: str) -> None:
    if vector.ndim != 1:
        raise ValueError(f"`{name}` must have one axis, but has shape {vector.shape}. Use `jax.vmap` for several.")


def _check_shares(weights: Array) -> None:
    values = _concrete(weights)
    if values is None:
        return
    if (values < 0).any():
        raise ValueError(f"`weights` are shares of the loss, but the smallest is {values.min():.3g}. Pass shares >= 0.")
    total = values.sum(dtype=np.float64)
    if not abs(total - 1) <= np.sqrt(np.finfo(values.dtype).eps):
        raise ValueError(
            f"`weights` are shares of the loss and sum to 1, but these sum to {total:.6g}. Divide them by their sum."
        )


def _concrete(array: Array) -> np.ndarray | None:
    """The numbers of an array, or None while it is traced."""
    try:
        return np.asarray(array)
    except jax.errors.TracerArrayConversionError:
        return None
