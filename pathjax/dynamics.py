"""What a kernel predicts of training by gradient descent, and how far a real training run was from that.

Times count steps: training for time t at learning rate η is a gradient flow of length η·t. The loss is a sum over
examples, ½ Σ_i ‖f(x_i) − y_i‖² or the cross-entropy. For the mean over n examples, pass `learning_rate / n`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Num

from pathjax._base.trees import concrete, wide
from pathjax._linalg import relaxation
from pathjax._linalg.lapack import eigvalsh
from pathjax._ntk import door
from pathjax._ntk.matrix import as_matrix, check_square, square_matrix
from pathjax.types import AnyArray

__all__ = [
    "critical_learning_rate",
    "data_free_loss",
    "kernel_change",
    "kernel_distance",
    "linearization_error",
    "linearized",
    "linearized_cross_entropy",
    "linearized_loss",
    "time_to_loss",
]


def linearized(
    ntk: Float[Array, "n n o o"],
    outputs: Float[Array, "n o"],
    targets: Float[Array, "n o"],
    times: Num[Array, " t"],
    *,
    learning_rate: ArrayLike,
    flow: bool = True,
    test_ntk: Float[Array, "m n o o"] | None = None,
    test_outputs: Float[Array, "m o"] | None = None,
) -> Float[Array, "t _ o"]:
    """Outputs over time of the network linearized at its initial weights, under the squared loss.

    On the training examples f_t = y + e^(−ηΘt) (f_0 − y), (t, n, o). `ntk` is Θ at initialization, `outputs` f_0 and
    `targets` y, all on these. With `test_ntk` Θ(x', X) and `test_outputs` f_0(x') the outputs on those points in their
    place, f_t(x') = f_0(x') − Θ(x', X) Θ⁻¹ (I − e^(−ηΘt)) (f_0 − y), (t, m, o); nothing is divided by an eigenvalue of
    zero. `flow=False` stands for gradient descent: (I − ηΘ)^t for e^(−ηΘt), and whole numbers of steps for the times,
    with respect to which it has no derivative. Above `critical_learning_rate` it diverges, as training would.

    Loss ½ Σ ‖f − y‖² over examples; for the mean over n examples, pass `learning_rate / n`. Exact at any time, an
    infinite one too, by the eigenvectors of Θ: (n·o)³ operations once, and t·(n·o)² for the times. Eigenvalues that
    rounding has left below zero count as zero, and at infinite time all up to n·o·ε·λ_max. Where Θ is singular, test
    outputs at finite times carry its rounding, times η·t. A gradient with respect to `ntk` takes t·(n·o)² memory; it
    holds for repeated eigenvalues too.

    Raises ValueError where shapes disagree, where only one of `test_ntk` and `test_outputs` came, and, where their
    values are known, for steps that are not whole.

    Source: Lee et al. (2019), "Wide neural networks of any depth evolve as linear models under gradient descent",
    section 2.2.

    >>> ntk = jnp.einsum("ij,ab->ijab", jnp.eye(3), jnp.eye(2))
    >>> times = jnp.array([0.0, 1.0, 2.0, jnp.inf])
    >>> curve = linearized(ntk, jnp.ones((3, 2)), jnp.zeros((3, 2)), times, learning_rate=jnp.log(2))
    >>> curve.shape
    (4, 3, 2)
    >>> curve[:, 0, 0].round(6)
    Array([1.  , 0.5 , 0.25, 0.  ], dtype=float64)
    >>> test = dict(test_ntk=ntk[:1] / 2, test_outputs=jnp.ones((1, 2)))
    >>> linearized(ntk, jnp.ones((3, 2)), jnp.zeros((3, 2)), times, learning_rate=jnp.log(2), **test)[:, 0, 0].round(6)
    Array([1.   , 0.75 , 0.625, 0.5  ], dtype=float64)
    """
    _check_training(ntk, outputs, targets, times)
    _check_test(ntk, test_ntk, test_outputs)
    matrix, residual, times = _rates(ntk, outputs - targets, times, learning_rate, flow)
    if test_ntk is None or test_outputs is None:
        remaining = relaxation.remaining(matrix, residual, times, flow=flow)
        return targets[None] + remaining.reshape(len(times), *targets.shape)
    integral = relaxation.integral(matrix, residual, times, flow=flow).reshape(len(times), *targets.shape)
    rates = jnp.asarray(learning_rate, integral.dtype) * test_ntk
    return test_outputs[None] - jnp.einsum("mnab,tnb->tma", rates, integral, precision=jax.lax.Precision.HIGHEST)


def linearized_loss(
    ntk: Float[Array, "n n o o"],
    outputs: Float[Array, "n o"],
    targets: Float[Array, "n o"],
    times: Num[Array, " t"],
    *,
    learning_rate: ArrayLike,
    flow: bool = True,
) -> Float[Array, " t"]:
    """Training loss over time of the linearized network, ½ Σ ‖f_t − y‖², as `linearized` predicts the outputs.

    Losses far below the first keep their digits. Of a part of Θ, such as `factorization.recompose` gives of its first
    modes, it is the loss if nothing but that part trained. Cost, derivatives and errors as of `linearized`.

    >>> ntk = jnp.einsum("ij,ab->ijab", jnp.diag(jnp.array([1.0, 1.0, 0.0])), jnp.eye(2))
    >>> times = jnp.array([0.0, 1.0, jnp.inf])
    >>> linearized_loss(ntk, jnp.ones((3, 2)), jnp.zeros((3, 2)), times, learning_rate=jnp.log(2)).round(6)
    Array([3. , 1.5, 1. ], dtype=float64)
    """
    _check_training(ntk, outputs, targets, times)
    matrix, residual, times = _rates(ntk, outputs - targets, times, learning_rate, flow)
    return 0.5 * jnp.sum(relaxation.remaining(matrix, residual, times, flow=flow) ** 2, axis=1)


def linearized_cross_entropy(
    ntk: Float[Array, "n n o o"],
    outputs: Float[Array, "n o"],
    labels: Int[AnyArray, " n"],
    times: Num[Array, " t"],
    *,
    learning_rate: ArrayLike,
    test_ntk: Float[Array, "m n o o"] | None = None,
    test_outputs: Float[Array, "m o"] | None = None,
) -> Float[Array, "t _ o"]:
    """Outputs over time of the linearized network under gradient flow on the cross-entropy, summed over examples.

    Solves df_t/dt = −ηΘ (softmax(f_t) − y) with y one-hot, (t, n, o), or with `test_ntk` Θ(x', X) and `test_outputs`
    the outputs on those points, (t, m, o). Unlike the squared loss it has no closed form: an adaptive Runge–Kutta
    method, with errors of about 1e-7 in float64 and of float32's rounding there; some products with Θ for each step of
    it. The times ascend from 0 or later, and are finite: on data that the linearized network separates the outputs grow
    for ever. Needs neural-tangents, which integrates.

    Raises ValueError where shapes disagree, where only one of `test_ntk` and `test_outputs` came, and, where their
    values are known, for labels outside 0 … o − 1 and times that do not ascend from 0; ModuleNotFoundError without
    neural-tangents.

    Source: Lee et al. (2019), section 2.2, equations 6 and 7; Novak et al. (2020), "Neural Tangents".

    >>> ntk = jnp.einsum("ij,ab->ijab", jnp.eye(3), jnp.eye(2))
    >>> labels, times = jnp.array([0, 1, 1]), jnp.array([0.0, 10.0])
    >>> curve = linearized_cross_entropy(ntk, jnp.zeros((3, 2)), labels, times, learning_rate=0.1)
    >>> curve.shape
    (2, 3, 2)
    >>> curve[1, :2].round(3)
    Array([[ 0.396, -0.396],
           [-0.396,  0.396]], dtype=float64)
    """
    _check_training(ntk, outputs, outputs, times)
    _check_test(ntk, test_ntk, test_outputs)
    _check_labels(labels, outputs)
    _check_integrable(times)
    dtype = jnp.result_type(ntk, outputs)
    rate = jnp.asarray(learning_rate, dtype)
    predict = door.load().predict.gradient_descent(
        lambda outputs, targets: -jnp.sum(targets * jax.nn.log_softmax(outputs, axis=1)),
        rate * ntk.astype(dtype),
        jax.nn.one_hot(labels, outputs.shape[1], dtype=dtype),
        learning_rate=1.0,
        trace_axes=(),
    )
    times = times.astype(dtype)
    if test_ntk is None or test_outputs is None:
        return predict(times, outputs.astype(dtype))
    return predict(times, outputs.astype(dtype), test_outputs.astype(dtype), rate * test_ntk.astype(dtype))[1]


def kernel_change(initial: Float[Array, " ..."], kernel: Float[Array, " ..."]) -> Float[Array, ""]:
    """Relative change of a kernel over training, ‖K − K_0‖ / ‖K_0‖ in the Frobenius norm: 0 for lazy training.

    Of the Neural Tangent Kernel on fixed examples, traced or not, or of listed paths' Path Kernel; of Path Kernels too
    large to list it is `path_kernel.relative_change`.

    Raises ValueError where the shapes differ.

    Source: Chizat, Oyallon, Bach (2019), "On lazy training in differentiable programming", section 1.2.

    >>> kernel_change(jnp.eye(3), 1.5 * jnp.eye(3))
    Array(0.5, dtype=float64)
    """
    _check_alike(initial, kernel)
    return _norm(kernel - initial) / _norm(initial)


def kernel_distance(initial: Float[Array, " ..."], kernel: Float[Array, " ..."]) -> Float[Array, ""]:
    """Kernel distance 1 − ⟨K, K_0⟩ / (‖K‖ ‖K_0‖) in the Frobenius product: 0 where only the scale has changed.

    In [0, 1] for positive semi-definite kernels, NaN where one is zero. Of Path Kernels too large to list it is `1 -
    path_kernel.cosine(…)`.

    Raises ValueError where the shapes differ.

    Source: Fort et al. (2020), "Deep learning versus kernel learning", section 3.

    >>> kernel_distance(jnp.eye(3), 1.5 * jnp.eye(3)).round(6)
    Array(0., dtype=float64)
    >>> kernel_distance(jnp.diag(jnp.array([1.0, 0.0])), jnp.diag(jnp.array([3.0, 4.0]))).round(6)
    Array(0.4, dtype=float64)
    """
    _check_alike(initial, kernel)
    directions = [each / _norm(each) for each in (initial, kernel)]
    # ½ ‖a − b‖² of unit vectors: 1 − ⟨a, b⟩ would lose the small distances
    return 0.5 * jnp.sum((directions[0] - directions[1]) ** 2)


def linearization_error(outputs: Float[Array, "t n o"], predicted: Float[Array, "t n o"]) -> Float[Array, " t"]:
    """Distance of the outputs of a real training run to those of the linearized network at each time, relative.

    ‖f_t − f_t^lin‖ / ‖f_t^lin‖ in the Frobenius norm over examples and outputs: 0 for lazy training. `predicted` is
    what `linearized` gives at the same times. 0 where both are zero.

    Raises ValueError where the shapes differ.

    Source: Lee et al. (2019), section 3.

    >>> linearization_error(jnp.stack([jnp.ones((3, 2)), jnp.full((3, 2), 1.5)]), jnp.ones((2, 3, 2)))
    Array([0. , 0.5], dtype=float64)
    """
    _check_alike(predicted, outputs)
    distance, norm = jax.vmap(_norm)(outputs - predicted), jax.vmap(_norm)(predicted)
    return jnp.where(distance == 0, 0.0, distance / jnp.where(distance == 0, 1.0, norm))


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
    return 2 / eigvalsh(wide(square_matrix(ntk)))[-1]


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
    values = concrete(times)
    if values is not None and (np.diff(values) <= 0).any():
        raise ValueError("`times` must ascend, or the first visit to a level is not defined. Sort both by time.")
    return jnp.min(jnp.where(losses <= level, times, jnp.inf), initial=jnp.inf)


def _rates(
    ntk: Array, residual: Array, times: Array, learning_rate: ArrayLike, flow: bool
) -> tuple[Array, Array, Array]:
    """η Θ as a matrix, the residual as a vector, and the times, all of one dtype."""
    if not flow:
        _check_whole(times)
    dtype = jnp.result_type(ntk, residual, jnp.float32)
    matrix = jnp.asarray(learning_rate, dtype) * _symmetric(ntk).astype(dtype)
    return matrix, residual.astype(dtype).reshape(-1), times.astype(dtype)


def _symmetric(ntk: Array) -> Array:
    """The kernel as a symmetric matrix (n·o, n·o)."""
    matrix = wide(as_matrix(ntk))
    return (matrix + matrix.T) / 2


def _norm(array: Array) -> Array:
    """The Frobenius norm, whose derivative is zero where it vanishes."""
    total = jnp.sum(array**2)
    return jnp.where(total == 0, 0.0, jnp.sqrt(jnp.where(total == 0, 1.0, total)))


def _check_training(ntk: Array, outputs: Array, targets: Array, times: Array) -> None:
    check_square(ntk)
    expected = (ntk.shape[0], ntk.shape[2])
    if outputs.shape != expected or targets.shape != expected:
        raise ValueError(
            f"A kernel of shape {ntk.shape} goes with outputs and targets of shape {expected}, but outputs have "
            f"{outputs.shape} and targets {targets.shape}. Compute all of them on the same examples."
        )
    _check_vector(times, "times")


def _check_test(ntk: Array, test_ntk: Array | None, test_outputs: Array | None) -> None:
    if test_ntk is None and test_outputs is None:
        return
    if test_ntk is None or test_outputs is None:
        raise ValueError(
            "Outputs on test points need both `test_ntk`, the kernel of these with the training examples, and "
            f"`test_outputs`, but `{'test_ntk' if test_ntk is None else 'test_outputs'}` is missing. Pass both."
        )
    n, _, o, _ = ntk.shape
    if test_ntk.shape != (len(test_outputs), n, o, o) or test_outputs.shape[1:] != (o,):
        raise ValueError(
            f"With a kernel of shape {ntk.shape}, `test_ntk` has shape (m, {n}, {o}, {o}) and `test_outputs` (m, {o}), "
            f"but {test_ntk.shape} and {test_outputs.shape} came. Compute `test_ntk` with the test points first: "
            "`ntk.empirical(apply, params, x_test, x_train)`."
        )


def _check_labels(labels: AnyArray, outputs: Array) -> None:
    n, o = outputs.shape
    if labels.shape != (n,):
        raise ValueError(
            f"There are {n} training examples, but `labels` have shape {labels.shape}. Pass one integer for each."
        )
    values = concrete(labels)
    if values is not None and n and (values.min() < 0 or values.max() >= o):
        raise ValueError(
            f"Labels number the {o} outputs from 0 to {o - 1}, but they reach from {values.min()} to {values.max()}."
        )


def _check_integrable(times: Array) -> None:
    values = concrete(times)
    if values is None or not len(values):
        return
    if values[0] < 0 or not np.isfinite(values).all() or (np.diff(values) <= 0).any():
        raise ValueError("`times` must be finite and ascend from 0 or later, or they cannot be integrated through.")


def _check_whole(times: Array) -> None:
    values = concrete(times)
    if values is not None and (values != np.round(values)).any():
        raise ValueError(
            "`times` of gradient descent are steps, but some are not whole. Round them, or take `flow=True`."
        )


def _check_alike(first: Array, second: Array) -> None:
    if first.shape != second.shape:
        raise ValueError(
            f"Shapes {first.shape} and {second.shape} cannot be compared entry by entry. Compute both on the same "
            "examples, at the same times."
        )


def _check_vector(vector: Array, name: str) -> None:
    if vector.ndim != 1:
        raise ValueError(f"`{name}` must have one axis, but has shape {vector.shape}. Use `jax.vmap` for several.")


def _check_shares(weights: Array) -> None:
    values = concrete(weights)
    if values is None:
        return
    if (values < 0).any():
        raise ValueError(f"`weights` are shares of the loss, but the smallest is {values.min():.3g}. Pass shares >= 0.")
    total = values.sum(dtype=np.float64)
    if not abs(total - 1) <= np.sqrt(np.finfo(values.dtype).eps):
        raise ValueError(
            f"`weights` are shares of the loss and sum to 1, but these sum to {total:.6g}. Divide them by their sum."
        )
