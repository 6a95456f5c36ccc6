"""Predicts training by gradient descent from a kernel, and measures how far a real training run was from that.

Times are in steps of gradient descent: time t at learning rate η is gradient flow for a time of η·t. Losses are sums
over examples, ½ Σ_i ‖f(x_i) − y_i‖² or the cross-entropy. For the mean over n examples, pass `learning_rate / n`.
"""

from __future__ import annotations

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Num

from pathjax._base.trees import concrete, wide
from pathjax._linalg import relaxation
from pathjax._ntk import door
from pathjax._ntk.matrix import as_matrix, check_square, eigenvalues
from pathjax._ntk.operator import Operator, check_one_batch, outputs_like, top_eigenpairs
from pathjax._ntk.trajectory import TOLERANCE, Trajectory, find

__all__ = [
    "Trajectory",
    "critical_learning_rate",
    "data_free_loss",
    "expected_loss",
    "kernel_change",
    "kernel_distance",
    "linearization_error",
    "linearized",
    "linearized_cross_entropy",
    "linearized_loss",
    "time_to_loss",
    "trajectory",
]


def linearized(
    ntk: Float[Array, "n n o o"] | Operator,
    outputs: Float[Array, "n o"],
    targets: Float[Array, "n o"],
    times: Num[Array, " t"],
    *,
    learning_rate: ArrayLike,
    flow: bool = True,
    test_ntk: Float[Array, "m n o o"] | Operator | None = None,
    test_outputs: Float[Array, "m o"] | None = None,
) -> Float[Array, "t _ o"]:
    """Predict a network's outputs over time, trained on the squared loss, from its Neural Tangent Kernel.

    The prediction is that of the network linearized at its initial weights. On the training examples, f_t = y +
    e^(−ηΘt) (f_0 − y), of shape (t, n, o): `ntk` is Θ at initialization, `outputs` is f_0 and `targets` is y. Given
    `test_ntk`, Θ(x', X), and `test_outputs`, f_0(x'), the result is instead the outputs on the test points, f_t(x') =
    f_0(x') − Θ(x', X) Θ⁻¹ (I − e^(−ηΘt)) (f_0 − y), of shape (t, m, o). Θ may be singular: in its null space Θ⁻¹ (I −
    e^(−ηΘt)) is ηt at finite times, and taken as zero at infinite ones.

    By default this is gradient flow. `flow=False` predicts gradient descent: (I − ηΘ)^t replaces e^(−ηΘt), times must
    be whole numbers of steps, and derivatives with respect to them are zero. Above `critical_learning_rate` the
    prediction diverges, as training would.

    The loss is the sum ½ Σ ‖f − y‖² over examples; for the mean over n examples, pass `learning_rate / n`. The result
    is exact at any time, infinity included. Cost: (n·o)³ operations for the eigenvectors of Θ, and t·(n·o)² for the
    times. Negative eigenvalues count as zero; at infinite times so do those up to n·o·ε·λ_max, with machine epsilon ε.
    Where Θ is singular, test outputs at finite times contain rounding errors in proportion to η·t. A gradient with
    respect to `ntk` stores t·(n·o)² numbers; it is correct for repeated eigenvalues too.

    Where Θ does not fit, pass the operators `ntk.operator(apply, params, x)` and, as `test_ntk`,
    `ntk.operator(apply, params, x_test, x)`. These are the outputs of `trajectory` with its default options, which
    bounds their errors.

    Raises ValueError if shapes disagree, if only one of `test_ntk` and `test_outputs` is given, and, unless traced, if
    steps are not whole numbers.

    Source: Lee et al. (2019), "Wide neural networks of any depth evolve as linear models under gradient descent",
    section 2.2.

    >>> from pathjax import ntk
    >>> def apply(params, x):
    ...     return jax.nn.relu(x @ params["hidden"]) @ params["out"]
    >>> keys = jax.random.split(jax.random.key(0), 3)
    >>> params = {"hidden": jax.random.normal(keys[0], (4, 300)), "out": jax.random.normal(keys[1], (300, 2))}
    >>> x = jax.random.normal(keys[2], (10, 4))
    >>> x_train, x_test, targets = x[:7], x[7:], jnp.sign(x[:7, :2])
    >>> kernel, times = ntk.empirical(apply, params, x_train), jnp.array([0.0, 100.0, jnp.inf])
    >>> curve = linearized(kernel, apply(params, x_train), targets, times, learning_rate=1e-5)
    >>> curve.shape, bool(jnp.allclose(curve[0], apply(params, x_train))), bool(jnp.allclose(curve[-1], targets))
    ((3, 7, 2), True, True)

    On the test points:

    >>> test = dict(test_ntk=ntk.empirical(apply, params, x_test, x_train), test_outputs=apply(params, x_test))
    >>> linearized(kernel, apply(params, x_train), targets, times, learning_rate=1e-5, **test).shape
    (3, 3, 2)
    """
    _check_prediction(ntk, outputs, targets, times, flow, test_ntk, test_outputs)
    if isinstance(ntk, Operator):
        found = find(
            ntk,
            outputs,
            targets,
            times,
            learning_rate=learning_rate,
            flow=flow,
            test_ntk=test_ntk,
            test_outputs=test_outputs,
        )
        return found.outputs
    matrix, residual, times = _rates(ntk, outputs - targets, times, learning_rate)
    if test_ntk is None or test_outputs is None:
        remaining = relaxation.remaining(matrix, residual, times, flow=flow)
        return targets[None] + remaining.reshape(len(times), *targets.shape)
    integral = relaxation.integral(matrix, residual, times, flow=flow).reshape(len(times), *targets.shape)
    rates = jnp.asarray(learning_rate, integral.dtype) * cast(Array, test_ntk)
    return test_outputs[None] - jnp.einsum("mnab,tnb->tma", rates, integral, precision=jax.lax.Precision.HIGHEST)


def linearized_loss(
    ntk: Float[Array, "n n o o"] | Operator,
    outputs: Float[Array, "n o"],
    targets: Float[Array, "n o"],
    times: Num[Array, " t"],
    *,
    learning_rate: ArrayLike,
    flow: bool = True,
) -> Float[Array, " t"]:
    """Predict the squared training loss over time, ½ Σ ‖f_t − y‖², with the outputs f_t of `linearized`.

    Computed from the residuals f_t − y, so that losses far below the initial one keep their relative precision. For a
    part of Θ, such as the first modes that `factorization.recompose` sums, it is the loss if that part alone trained.
    Cost, derivatives and errors are those of `linearized`, which takes an operator too.

    >>> from pathjax import ntk
    >>> def apply(params, x):
    ...     return jax.nn.relu(x @ params["hidden"]) @ params["out"]
    >>> keys = jax.random.split(jax.random.key(0), 3)
    >>> params = {"hidden": jax.random.normal(keys[0], (4, 2000)), "out": jax.random.normal(keys[1], (2000, 2))}
    >>> x = jax.random.normal(keys[2], (7, 4))
    >>> outputs, targets, rate = apply(params, x), jnp.sign(x[:, :2]), 1e-6
    >>> kernel, times = ntk.empirical(apply, params, x), jnp.array([0, 5])
    >>> predicted = linearized_loss(kernel, outputs, targets, times, learning_rate=rate, flow=False)
    >>> loss = lambda params: 0.5 * jnp.sum((apply(params, x) - targets) ** 2)
    >>> for step in range(5):  # the real training
    ...     params = jax.tree.map(lambda leaf, slope: leaf - rate * slope, params, jax.grad(loss)(params))
    >>> bool(abs(loss(params) - predicted[1]) < 0.05 * predicted[0])
    True
    """
    _check_prediction(ntk, outputs, targets, times, flow)
    if isinstance(ntk, Operator):
        return find(ntk, outputs, targets, times, learning_rate=learning_rate, flow=flow).losses
    matrix, residual, times = _rates(ntk, outputs - targets, times, learning_rate)
    return 0.5 * jnp.sum(relaxation.remaining(matrix, residual, times, flow=flow) ** 2, axis=1)


def linearized_cross_entropy(
    ntk: Float[Array, "n n o o"],
    outputs: Float[Array, "n o"],
    labels: Int[Array | np.ndarray, " n"],
    times: Num[Array, " t"],
    *,
    learning_rate: ArrayLike,
    test_ntk: Float[Array, "m n o o"] | None = None,
    test_outputs: Float[Array, "m o"] | None = None,
) -> Float[Array, "t _ o"]:
    """Predict a network's outputs over time, trained on the cross-entropy, from its Neural Tangent Kernel.

    The network is linearized at its initial weights, and trained by gradient flow on the sum over examples. Solves
    ∂f_t/∂t = −ηΘ (softmax(f_t) − y) for one-hot y on the training examples, of shape (t, n, o). Given `test_ntk`, Θ(x',
    X), and `test_outputs`, f_0(x'), the result is instead the outputs on the test points, of shape (t, m, o). There is
    no closed form as for the squared loss: neural-tangents integrates by an adaptive Runge–Kutta method, with errors of
    about 1e-7 in float64 and of rounding in float32. Cost: a few products with Θ for each integration step. `times`
    ascend from 0 or later and are finite, since outputs grow without bound on data that the linearized network
    separates.

    Raises ValueError if shapes disagree, if only one of `test_ntk` and `test_outputs` is given, and, unless traced, if
    labels are not in 0 … o − 1 or times do not ascend from 0 or later; TypeError for an operator; ModuleNotFoundError
    if neural-tangents is not installed.

    Source: Lee et al. (2019), section 2.2, equations 6 and 7; Novak et al. (2020), "Neural Tangents".

    >>> from pathjax import ntk
    >>> def apply(params, x):
    ...     return jax.nn.relu(x @ params["hidden"]) @ params["out"]
    >>> keys = jax.random.split(jax.random.key(0), 3)
    >>> params = {"hidden": jax.random.normal(keys[0], (4, 300)), "out": jax.random.normal(keys[1], (300, 3))}
    >>> x, labels = jax.random.normal(keys[2], (7, 4)), jnp.array([0, 1, 2, 0, 1, 2, 0])
    >>> kernel, times = ntk.empirical(apply, params, x), jnp.array([0.0, 1000.0])
    >>> curve = linearized_cross_entropy(kernel, apply(params, x), labels, times, learning_rate=1e-3)
    >>> curve.shape, (curve[1].argmax(axis=1) == labels).all().item()  # all examples are learned
    ((2, 7, 3), True)
    """
    if isinstance(cast(object, ntk), Operator):
        raise TypeError(
            "Training on the cross-entropy is integrated with the kernel as an array, but an operator came. Form it by "
            "`ntk.empirical`, or predict training on the squared loss, by `dynamics.trajectory`."
        )
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

    For kernels given as arrays of any one shape: the Neural Tangent Kernel on fixed examples, or the Path Kernel of
    listed paths. For Path Kernels too large to list, use `path_kernel.relative_change`.

    Raises ValueError if the shapes differ.

    Source: Chizat, Oyallon, Bach (2019), "On lazy training in differentiable programming", section 1.2.

    >>> from pathjax import ntk
    >>> def apply(params, x):
    ...     return jax.nn.relu(x @ params["hidden"]) @ params["out"]
    >>> keys = jax.random.split(jax.random.key(0), 3)
    >>> initial = {"hidden": jax.random.normal(keys[0], (4, 30)), "out": jax.random.normal(keys[1], (30, 2))}
    >>> trained = jax.tree.map(lambda leaf: 1.1 * leaf, initial)  # as if training had scaled both layers
    >>> before, after = (ntk.empirical(apply, params, jnp.ones((3, 4))) for params in (initial, trained))
    >>> kernel_change(before, after).round(4)  # the kernel is quadratic in the weights
    Array(0.21, dtype=float64)
    """
    _check_alike(initial, kernel)
    return _norm(kernel - initial) / _norm(initial)


def kernel_distance(initial: Float[Array, " ..."], kernel: Float[Array, " ..."]) -> Float[Array, ""]:
    """How far a kernel has turned over training: 1 − ⟨K, K_0⟩ / (‖K‖ ‖K_0‖), 0 if only the scale has changed.

    The product and the norms are those of Frobenius. The distance is in [0, 1] for positive semi-definite kernels; NaN
    if a kernel is zero. For Path Kernels too large to list, use `1 - path_kernel.cosine(…).value`.

    Raises ValueError if the shapes differ.

    Source: Fort et al. (2020), "Deep learning versus kernel learning", section 3.

    >>> kernel_distance(jnp.eye(3), 1.5 * jnp.eye(3)).round(6)
    Array(0., dtype=float64)
    >>> kernel_distance(jnp.diag(jnp.array([1.0, 0.0])), jnp.diag(jnp.array([3.0, 4.0]))).round(6)
    Array(0.4, dtype=float64)
    """
    _check_alike(initial, kernel)
    directions = [array / _norm(array) for array in (initial, kernel)]
    # ½ ‖a − b‖² of unit vectors a and b, since rounding in 1 − ⟨a, b⟩ would swamp small distances
    return 0.5 * jnp.sum((directions[0] - directions[1]) ** 2)


def linearization_error(outputs: Float[Array, "t n o"], predicted: Float[Array, "t n o"]) -> Float[Array, " t"]:
    """Relative distance, at each time, from the linearized network's outputs to those of a real training run.

    It is ‖f_t − f_t^lin‖ / ‖f_t^lin‖ in the Frobenius norm over examples and outputs: 0 for lazy training, and 0 if
    both outputs are zero. `outputs` are f_t, recorded in training; `predicted` are f_t^lin, from `linearized` at the
    same times.

    Raises ValueError if the shapes differ.

    Source: Lee et al. (2019), section 3.

    >>> linearization_error(jnp.stack([jnp.ones((3, 2)), jnp.full((3, 2), 1.5)]), jnp.ones((2, 3, 2)))
    Array([0. , 0.5], dtype=float64)
    """
    _check_alike(predicted, outputs)
    distance, norm = jax.vmap(_norm)(outputs - predicted), jax.vmap(_norm)(predicted)
    return jnp.where(distance == 0, 0.0, distance / jnp.where(distance == 0, 1.0, norm))


def trajectory(
    ntk: Operator,
    outputs: Float[Array, "n o"],
    targets: Float[Array, "n o"],
    times: Num[Array, " t"],
    *,
    learning_rate: ArrayLike,
    flow: bool = True,
    test_ntk: Operator | None = None,
    test_outputs: Float[Array, "m o"] | None = None,
    tolerance: int | float = TOLERANCE,
    order: int | None = None,
) -> Trajectory:
    """Predict training on the squared loss without forming the kernel, for n·o in the tens of thousands.

    The training is that of the linearized network. Gives what `linearized` and `linearized_loss` give, and bounds of
    the errors. `ntk` is `ntk.operator(apply, params, x)`; for outputs on test points, `test_ntk` is
    `ntk.operator(apply, params, x_test, x)`. Masks, states and batch sizes are those of the operators.

    One Krylov space of Θ and f_0 − y serves all times: e^(−ηΘt) (f_0 − y) ≈ ‖f_0 − y‖ Q e^(−ηTt) e₁ with Q from Lanczos
    steps with full reorthogonalization, and T tridiagonal. It grows, up to `order` vectors, by default n·o or 500,
    until at no time the error that a larger space would take away is above `tolerance` times the root of the mean
    square of f_0 − y (of f_t − y, where that is larger). Otherwise a UserWarning says from which time on it may be;
    under `jit` and `vmap`, where that cannot be known, there is none. About √(η λ_max t) vectors are needed while that
    is small, and at late times fewer than Θ has different eigenvalues above 1 / (ηt).

    `errors` bound the root of the mean square of the errors of `outputs` at each time, with no constant that would have
    to be guessed; on test points they are often a hundred times too large. For steps above 1 / λ_max and at infinite
    times they are estimates. They contain what rounding may do at worst, in proportion to η λ_max t until all has
    decayed: usually a hundred times too much, and in single precision soon above the tolerance. No warning is given for
    rounding. Where f_t is off by e, the loss is off by at most ‖e‖ ‖f_t − y‖ + ½ ‖e‖².

    Cost: one product with Θ for each vector, and m·n·o operations for the m-th; for test points one product more for
    each time, and eight. Stores `order`·n·o numbers, and a few arrays (t, n, o). There are no derivatives.

    Raises ValueError where `linearized` does and where `order` is below 1; TypeError where it is differentiated.

    Sources: Lee et al. (2019), section 2.2; Saad (1992), "Analysis of Some Krylov Subspace Approximations to the Matrix
    Exponential Operator".

    >>> from pathjax import ntk
    >>> def apply(params, x):
    ...     return jax.nn.relu(x @ params["hidden"]) @ params["out"]
    >>> keys = jax.random.split(jax.random.key(0), 3)
    >>> params = {"hidden": jax.random.normal(keys[0], (4, 30)), "out": jax.random.normal(keys[1], (30, 2))}
    >>> x = jax.random.normal(keys[2], (50, 4))
    >>> kernel, outputs, targets = ntk.operator(apply, params, x), apply(params, x), jnp.sign(x[:, :2])
    >>> times, rate = jnp.array([0.0, 10.0, 100.0]), 1e-4
    >>> curve = trajectory(kernel, outputs, targets, times, learning_rate=rate)
    >>> curve
    Trajectory(t=3, examples=50, o=2)
    >>> formed = linearized_loss(ntk.empirical(apply, params, x), outputs, targets, times, learning_rate=rate)
    >>> bool(jnp.allclose(curve.losses, formed, rtol=1e-2)), bool(curve.products < 100)  # of 100 rows
    (True, True)
    """
    if not isinstance(ntk, Operator):
        raise TypeError(
            f"`ntk` is a {type(ntk).__name__}, but `trajectory` takes what `ntk.operator` gives. With the kernel as an "
            "array, use `linearized`."
        )
    _check_prediction(ntk, outputs, targets, times, flow, test_ntk, test_outputs)
    return find(
        ntk,
        outputs,
        targets,
        times,
        learning_rate=learning_rate,
        flow=flow,
        test_ntk=test_ntk,
        test_outputs=test_outputs,
        tolerance=tolerance,
        order=order,
    )


def data_free_loss(
    eigenvalues: Float[Array, " r"],
    weights: Float[Array, " r"],
    times: Num[Array, " t"],
    *,
    learning_rate: ArrayLike,
) -> Float[Array, " t"]:
    """Predict without data the share of the initial squared loss that remains at each time, Σ_i w_i e^(−2ηλ_i t).

    With the Path Kernel's eigenvalues λ_i in place of the Neural Tangent Kernel's, this predicts training from
    architecture and initialization alone. It is that of gradient flow; for discrete steps take a learning rate well
    below 2 / λ_max. The prediction is exact if path activations on the data are orthonormal, (J_v f)ᵀ J_v f = I. The
    weight w_i is the share of the squared initial residual in mode i; without data, take 1/r for each. Negative
    eigenvalues count as zero. Cost: t·r operations.

    Raises ValueError if shapes disagree, and, unless traced, if weights are negative or do not sum to 1.

    Source: Gebhart, Saxena, Schrater (2021).

    >>> from pathjax import path_kernel
    >>> def apply(params, x):
    ...     return jax.nn.relu(x @ params["hidden"]) @ params["out"]
    >>> keys = jax.random.split(jax.random.key(0))
    >>> params = {"hidden": jax.random.normal(keys[0], (4, 30)), "out": jax.random.normal(keys[1], (30, 2))}
    >>> pairs = path_kernel.top_eigenpairs(path_kernel.path_kernel(apply, params, jnp.ones((1, 4))), 8, key=keys[0])
    >>> times = jnp.array([0.0, 10.0, 100.0])
    >>> shares = data_free_loss(pairs.eigenvalues, jnp.full(8, 1 / 8), times, learning_rate=1e-3)
    >>> shares.round(4)[0].item(), bool((jnp.diff(shares) < 0).all())
    (1.0, True)
    """
    for name, vector in (("eigenvalues", eigenvalues), ("weights", weights), ("times", times)):
        _check_vector(vector, name)
    if eigenvalues.shape != weights.shape:
        raise ValueError(
            f"There are {len(eigenvalues)} eigenvalues and {len(weights)} weights, but each eigenvalue needs one "
            "weight. For equal weights, pass `jnp.full_like(eigenvalues, 1 / len(eigenvalues))`."
        )
    _check_shares(weights)
    flow_times = learning_rate * times
    return jnp.exp(-2 * flow_times[:, None] * jnp.maximum(eigenvalues, 0.0)[None, :]) @ weights


def expected_loss(
    ntk: Float[Array, "n n o"],
    times: Num[Array, " t"],
    *,
    learning_rate: ArrayLike,
    nngp: Float[Array, "n n o"] | None = None,
    target_means: Float[Array, " o"] | None = None,
    target_variances: Float[Array, " o"] | None = None,
    flow: bool = True,
) -> Float[Array, " t"]:
    """Predict the share of the initial squared loss that remains at each time, averaged over targets and outputs.

    For kernels without entries between different outputs, as `ntk.mean_field` gives them. The targets y and the initial
    outputs f_0 are random, and the loss of the linearized network is averaged over them:

        Σ_c tr(e^(−2ηΘ_c t) S_c) / Σ_c tr S_c,      S_c = E (f_0 − y)_c (f_0 − y)_cᵀ = K_c + σ_c² I + μ_c² 1 1ᵀ

    where Θ_c is the kernel of output c, K_c is `nngp`, the covariance of its values before training, and its targets
    are independent of each other, with the mean μ_c and the variance σ_c². For one-hot targets of classes with
    frequencies p, μ = p and σ² = p (1 − p); with the mean over classes taken away, μ = p − 1/o. Either may be left out.
    Without both, every mode has an equal share of the loss, S_c = I: then this is `data_free_loss` of the eigenvalues
    of all Θ_c.

    What the prediction reads of the data is decided by the inputs of the kernels: those at hand; drawn from a Gaussian
    of the data's mean and covariance; or drawn from a standard normal, where nothing is known of the data. It may
    differ from one training run in as much as that run's targets and outputs differ from the mean.

    By default this is gradient flow. `flow=False` predicts gradient descent, with (I − ηΘ_c)^(2t); times are then whole
    numbers of steps. Rates, times, negative eigenvalues and the loss are as in `linearized`, and derivatives are
    correct for repeated eigenvalues. Cost: o·n³ operations and t·o·n; a gradient with respect to `ntk` stores t·o·n²
    numbers. NaN if the residual is certain to be zero.

    Raises ValueError if shapes disagree, if only one of `target_means` and `target_variances` is given, and, unless
    traced, if variances are negative or NaN, or if steps are not whole numbers.

    Source: Jacot, Gabriel, Hongler (2018), section 5; here in the mean over outputs and targets.

    >>> from pathjax import ntk
    >>> def apply(params, x):
    ...     return jax.nn.relu(x @ params["hidden"]) @ params["out"]
    >>> params = {"hidden": jnp.ones((4, 30)), "out": jnp.ones((30, 2))}
    >>> x = jax.random.normal(jax.random.key(0), (6, 4))
    >>> nngp, kernel = ntk.mean_field(apply, params, x, second_moments=ntk.second_moments(params, "he"))
    >>> classes = dict(target_means=jnp.array([0.3, 0.7]), target_variances=jnp.array([0.21, 0.21]))  # one-hot
    >>> shares = expected_loss(kernel, jnp.array([0.0, 10.0, jnp.inf]), learning_rate=0.01, nngp=nngp, **classes)
    >>> shares.round(4)[jnp.array([0, 2])].tolist(), bool(0 < shares[1] < 1)
    ([1.0, 0.0], True)
    """
    _check_kernels(ntk, nngp)
    _check_vector(times, "times")
    if not flow:
        _check_whole(times)
    moments = _residual_moments(ntk, nngp, target_means, target_variances)
    dtype = jnp.result_type(ntk, moments, jnp.float32)
    by_output = jnp.moveaxis(wide(ntk).astype(dtype), 2, 0)
    matrices = jnp.asarray(learning_rate, dtype) * (by_output + by_output.swapaxes(1, 2)) / 2
    moments, times = moments.astype(dtype), times.astype(dtype)

    def remaining(matrix: Array, moments: Array) -> Array:
        return relaxation.expected_square(matrix, moments, times, flow=flow)

    return jnp.sum(jax.vmap(remaining)(matrices, moments), axis=0) / jnp.trace(jnp.sum(moments, axis=0))


def _residual_moments(
    ntk: Array, nngp: Array | None, target_means: Array | None, target_variances: Array | None
) -> Array:
    """E (f_0 − y)_c (f_0 − y)_cᵀ of each output c, (o, n, n), but for a common factor."""
    n, _, outputs = ntk.shape
    identity = jnp.eye(n, dtype=jnp.result_type(ntk, jnp.float32))[None]
    if nngp is None and target_means is None and target_variances is None:
        return jnp.repeat(identity, outputs, axis=0)
    of_outputs = jnp.zeros((outputs, n, n), identity.dtype) if nngp is None else jnp.moveaxis(wide(nngp), 2, 0)
    if target_means is None and target_variances is None:
        return of_outputs
    if target_means is None or target_variances is None:
        missing = "target_means" if target_means is None else "target_variances"
        raise ValueError(
            f"Random targets need both `target_means` and `target_variances`, but `{missing}` is missing. Pass both, "
            "or neither."
        )
    _check_targets(target_means, target_variances, outputs)
    return of_outputs + target_variances[:, None, None] * identity + jnp.square(target_means)[:, None, None]


def critical_learning_rate(
    ntk: Float[Array, "n n o o"] | Float[Array, "n n o"] | Operator, *, key: Array | None = None
) -> Float[Array, ""]:
    """Learning rate above which gradient descent on the linearized network diverges, 2 / λ_max.

    For the loss ½ Σ ‖f − y‖², summed over examples; for the mean over n examples, the critical rate is n times this
    one. Infinite for a kernel of zeros. A kernel (n, n, o), as of `ntk.mean_field`, is 0 between different outputs.
    Cost: (n·o)³ operations, for (n, n, o) o·n³; of an `ntk.operator` that of `ntk.top_eigenpairs` for
    one pair, with a tolerance of 1e-5 and the `key` for its random start.

    Raises ValueError unless the kernel is of one batch with itself, (n, n, o, o) or (n, n, o), and for an
    operator without a key.

    >>> from pathjax import ntk
    >>> def apply(params, x):
    ...     return jax.nn.relu(x @ params["hidden"]) @ params["out"]
    >>> keys = jax.random.split(jax.random.key(0), 3)
    >>> params = {"hidden": jax.random.normal(keys[0], (4, 30)), "out": jax.random.normal(keys[1], (30, 2))}
    >>> x = jax.random.normal(keys[2], (7, 4))
    >>> kernel, outputs, times = ntk.empirical(apply, params, x), apply(params, x), jnp.array([0, 1000])
    >>> critical = critical_learning_rate(kernel)
    >>> for factor in (0.9, 1.1):
    ...     rate = factor * critical
    ...     losses = linearized_loss(kernel, outputs, jnp.zeros((7, 2)), times, learning_rate=rate, flow=False)
    ...     print(bool(losses[1] < losses[0]))
    True
    False
    """
    if not isinstance(ntk, Operator):
        return cast(Array, 2 / eigenvalues(ntk)[-1])
    if key is None:
        raise ValueError(
            "The search for the largest eigenvalue of an operator starts at random, but `key` is missing. Pass "
            "`key=jax.random.key(0)`."
        )
    return 2 / top_eigenpairs(ntk, 1, key=key).eigenvalues[0]


def time_to_loss(times: Num[Array, " t"], losses: Float[Array, " t"], level: ArrayLike) -> Float[Array, ""]:
    """The first recorded time at which a loss is at or below a level; infinity if it never is.

    Nothing is interpolated, so the result is late by up to one recording interval. A later rise of the loss does not
    matter. `times` ascend. A loss of NaN never counts as at or below the level.

    Raises ValueError if shapes disagree, and, unless traced, if times do not ascend.

    >>> time_to_loss(jnp.array([0.0, 10.0, 20.0]), jnp.array([1.0, 0.4, 0.3]), 0.5)
    Array(10., dtype=float64)
    """
    for name, vector in (("times", times), ("losses", losses)):
        _check_vector(vector, name)
    if times.shape != losses.shape:
        raise ValueError(
            f"There are {len(times)} times and {len(losses)} losses, but each loss needs the time at which it was "
            "recorded. Pass arrays of one length."
        )
    values = concrete(times)
    if values is not None and (np.diff(values) <= 0).any():
        raise ValueError("`times` must ascend, but do not. Sort times and losses by time.")
    return jnp.min(jnp.where(losses <= level, times, jnp.inf), initial=jnp.inf)


def _rates(ntk: Array, residual: Array, times: Array, learning_rate: ArrayLike) -> tuple[Array, Array, Array]:
    """η Θ as a matrix (n·o, n·o), the residual as a vector (n·o,), and the times, all of one dtype."""
    dtype = jnp.result_type(ntk, residual, jnp.float32)
    matrix = jnp.asarray(learning_rate, dtype) * _symmetric(ntk).astype(dtype)
    return matrix, residual.astype(dtype).reshape(-1), times.astype(dtype)


def _symmetric(ntk: Array) -> Array:
    """The symmetric part of the kernel as a matrix (n·o, n·o)."""
    matrix = wide(as_matrix(ntk))
    return (matrix + matrix.T) / 2


def _norm(array: Array) -> Array:
    """The Frobenius norm, with a derivative of zero (not NaN) at an array of zeros."""
    total = jnp.sum(array**2)
    return jnp.where(total == 0, 0.0, jnp.sqrt(jnp.where(total == 0, 1.0, total)))


def _check_training(ntk: Array | Operator, outputs: Array, targets: Array, times: Array) -> None:
    expected = _outputs_shape(ntk)
    if outputs.shape != expected or targets.shape != expected:
        raise ValueError(
            f"A kernel of shape {ntk.shape} needs outputs and targets of shape {expected}, but outputs have "
            f"{outputs.shape} and targets {targets.shape}. Compute all of them on the same examples."
        )
    _check_vector(times, "times")


def _check_prediction(
    ntk: Array | Operator,
    outputs: Array,
    targets: Array,
    times: Array,
    flow: bool,
    test_ntk: Array | Operator | None = None,
    test_outputs: Array | None = None,
) -> None:
    """What all predictions of training on the squared loss are given."""
    _check_training(ntk, outputs, targets, times)
    _check_test(ntk, test_ntk, test_outputs)
    if not flow:
        _check_whole(times)


def _outputs_shape(ntk: Array | Operator) -> tuple[int, int]:
    """(n, o) of the kernel of one batch with itself."""
    if isinstance(ntk, Operator):
        check_one_batch(ntk)
        return ntk.shape
    check_square(ntk)
    return ntk.shape[0], ntk.shape[2]


def _check_test(ntk: Array | Operator, test_ntk: Array | Operator | None, test_outputs: Array | None) -> None:
    if test_ntk is None and test_outputs is None:
        return
    if test_ntk is None or test_outputs is None:
        raise ValueError(
            "Outputs on test points need both `test_ntk`, the kernel of test points with training examples, and "
            "`test_outputs`, the initial outputs on test points, but "
            f"`{'test_ntk' if test_ntk is None else 'test_outputs'}` is missing. Pass both, or neither."
        )
    n, o = _outputs_shape(ntk)
    if isinstance(ntk, Operator) or isinstance(test_ntk, Operator):
        _check_test_operator(ntk, test_ntk, test_outputs)
    elif test_ntk.shape != (len(test_outputs), n, o, o) or test_outputs.shape[1:] != (o,):
        raise ValueError(
            f"With a kernel of shape {ntk.shape}, `test_ntk` must have shape (m, {n}, {o}, {o}) and `test_outputs` "
            f"(m, {o}), but {test_ntk.shape} and {test_outputs.shape} came. Test points are the first argument of the "
            "kernel: `ntk.empirical(apply, params, x_test, x_train)`."
        )


def _check_test_operator(ntk: Array | Operator, test_ntk: Array | Operator, test_outputs: Array) -> None:
    if not isinstance(ntk, Operator) or not isinstance(test_ntk, Operator):
        raise ValueError(
            "`ntk` and `test_ntk` must both be arrays or both operators, but one of each came. Make both by "
            "`ntk.empirical`, or both by `ntk.operator`."
        )
    shapes = outputs_like(test_ntk).shape, test_ntk.shape
    if shapes != (test_outputs.shape, ntk.shape) or test_ntk.x2 is None:
        raise ValueError(
            f"`test_ntk` must take arrays of shape {ntk.shape} of training examples to those of `test_outputs`, "
            f"{test_outputs.shape}, but takes {shapes[1]} to {shapes[0]}. Test points come before training examples: "
            "`ntk.operator(apply, params, x_test, x_train)`."
        )


def _check_labels(labels: Array | np.ndarray, outputs: Array) -> None:
    n, o = outputs.shape
    if labels.shape != (n,):
        raise ValueError(
            f"There are {n} training examples, but `labels` have shape {labels.shape}. Pass one integer per example."
        )
    values = concrete(labels)
    if values is not None and n and (values.min() < 0 or values.max() >= o):
        raise ValueError(
            f"Labels number the {o} outputs from 0 to {o - 1}, but they reach from {values.min()} to {values.max()}. "
            "Renumber the classes from 0, or widen the network's output."
        )


def _check_integrable(times: Array) -> None:
    values = concrete(times)
    if values is None or not len(values):
        return
    if values[0] < 0 or not np.isfinite(values).all() or (np.diff(values) <= 0).any():
        raise ValueError(
            "`times` must be finite and ascend from 0 or later, since the outputs are integrated from one time to the "
            "next. Sort the times, and leave out infinite ones."
        )


def _check_whole(times: Array) -> None:
    values = concrete(times)
    if values is not None and (values != np.round(values)).any():
        raise ValueError(
            "`times` of gradient descent are steps, but some are not whole numbers. Round them, or pass `flow=True`."
        )


def _check_alike(first: Array, second: Array) -> None:
    if first.shape != second.shape:
        raise ValueError(
            f"Shapes {first.shape} and {second.shape} cannot be compared entry by entry. Compute both arrays on the "
            "same examples, and at the same times."
        )


def _check_kernels(ntk: Any, nngp: Array | None) -> None:
    if not hasattr(ntk, "ndim"):
        raise TypeError(
            f"`ntk` is a {type(ntk).__name__}, but an array (n, n, o) is expected. Of what `ntk.mean_field` gives pass "
            "its field `ntk`."
        )
    if ntk.ndim != 3 or ntk.shape[0] != ntk.shape[1] or (nngp is not None and nngp.shape != ntk.shape):
        shapes = f"{ntk.shape}" + ("" if nngp is None else f" and {nngp.shape}")
        raise ValueError(
            f"Kernels of one batch with itself for each output, (n, n, o), are expected, but shapes {shapes} came. "
            "`ntk.mean_field(apply, params, x)` gives both."
        )


def _check_targets(means: Array, variances: Array, outputs: int) -> None:
    for name, vector in (("target_means", means), ("target_variances", variances)):
        if vector.shape != (outputs,):
            raise ValueError(
                f"`{name}` must have one number for each of {outputs} outputs, shape ({outputs},), but has shape "
                f"{vector.shape}."
            )
    values = concrete(variances)
    if values is not None and not (values >= 0).all():
        raise ValueError(
            "`target_variances` has an entry that is negative or NaN. Of one-hot targets of a class with frequency p "
            "the variance is p (1 − p)."
        )


def _check_vector(vector: Array, name: str) -> None:
    if vector.ndim != 1:
        raise ValueError(
            f"`{name}` must have one axis, but has shape {vector.shape}. Use `jax.vmap` over any further axes."
        )


def _check_shares(weights: Array) -> None:
    values = concrete(weights)
    if values is None:
        return
    if (values < 0).any():
        raise ValueError(
            f"`weights` are shares of the loss, but the smallest is {values.min():.3g}. Pass shares of at least 0."
        )
    total = values.sum(dtype=np.float64)
    if not abs(total - 1) <= np.sqrt(np.finfo(values.dtype).eps):
        raise ValueError(
            f"`weights` are shares of the loss and sum to 1, but these sum to {total:.6g}. Divide them by their sum."
        )
