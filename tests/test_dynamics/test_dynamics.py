"""Predicted training: equal to the matrix exponential, to neural-tangents, and to its own limits."""

from __future__ import annotations

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from pathjax import dynamics, ntk

from ..tolerances import DIFFERENCES, DISCRETE, EXACT, ROUNDING, SINGLE

TIMES = jnp.asarray([0.0, 0.1, 1.0, 7.0])
RATE = 0.05


def problem(n=4, o=3, p=20, seed=0):
    """A kernel of p weights (singular where p < n·o), outputs and targets."""
    rng = np.random.default_rng(seed)
    jacobian = rng.normal(size=(n, o, p))
    kernel = jnp.asarray(np.einsum("iap,jbp->ijab", jacobian, jacobian))
    return kernel, jnp.asarray(rng.normal(size=(n, o))), jnp.asarray(rng.normal(size=(n, o)))


SIZES = pytest.mark.parametrize(("n", "o", "p"), [(4, 3, 20), (4, 3, 5), (1, 3, 8), (5, 1, 8), (1, 1, 2), (3, 2, 0)])


@SIZES
def test_outputs_follow_the_matrix_exponential(n, o, p):
    kernel, outputs, targets = problem(n, o, p)
    curve = dynamics.linearized(kernel, outputs, targets, TIMES, learning_rate=RATE)
    matrix = np.asarray(ntk.as_matrix(kernel))
    for time, predicted in zip(TIMES, curve, strict=True):
        residual = scipy.linalg.expm(-RATE * float(time) * matrix) @ np.asarray(outputs - targets).ravel()
        np.testing.assert_allclose(predicted, targets + residual.reshape(n, o), rtol=0, atol=EXACT)


@SIZES
def test_outputs_equal_those_of_neural_tangents(n, o, p):
    kernel, outputs, targets = problem(n, o, p)
    predict = ntk.neural_tangents().predict.gradient_descent_mse(kernel, targets, learning_rate=1.0, trace_axes=())
    # its loss is ½ of the mean over all n·o outputs
    theirs = predict(RATE * targets.size * TIMES, outputs)
    ours = dynamics.linearized(kernel, outputs, targets, TIMES, learning_rate=RATE)
    np.testing.assert_allclose(ours, theirs, rtol=EXACT, atol=EXACT)


def test_training_starts_at_the_outputs():
    kernel, outputs, targets = problem()
    curve = dynamics.linearized(kernel, outputs, targets, jnp.zeros(1), learning_rate=RATE)
    np.testing.assert_allclose(curve[0], outputs, rtol=0, atol=EXACT)


def test_training_ends_at_the_targets_where_the_kernel_is_positive_definite():
    kernel, outputs, targets = problem()
    curve = dynamics.linearized(kernel, outputs, targets, jnp.asarray([1e9]), learning_rate=RATE)
    np.testing.assert_allclose(curve[0], targets, rtol=0, atol=EXACT)


def test_training_never_moves_what_the_kernel_does_not_see():
    kernel, outputs, targets = problem(p=5)
    curve = dynamics.linearized(kernel, outputs, targets, jnp.asarray([1e6]), learning_rate=RATE)
    matrix = np.asarray(ntk.as_matrix(kernel))
    unseen = np.eye(12) - np.linalg.pinv(matrix, rcond=1e-10) @ matrix
    # the time 1e6 multiplies how far rounding moves the eigenvalues that are zero
    expected = unseen @ (outputs - targets).ravel()
    np.testing.assert_allclose((curve[0] - targets).ravel(), expected, rtol=0, atol=1e7 * ROUNDING)


def test_rounding_below_zero_never_makes_a_loss_explode():
    kernel = -1e-12 * jnp.ones((1, 1, 1, 1))
    outputs, targets = jnp.ones((1, 1)), jnp.zeros((1, 1))
    curve = dynamics.linearized(kernel, outputs, targets, jnp.asarray([1e15]), learning_rate=1.0)
    np.testing.assert_allclose(curve, 1.0, rtol=EXACT)


def test_many_small_steps_of_gradient_descent_follow_the_flow_of_the_mean_loss():
    kernel, outputs, targets = problem(n=5, o=2)
    rate, steps = 1e-4, 200
    matrix, residual = np.asarray(ntk.as_matrix(kernel)), np.asarray(outputs - targets).ravel()
    for _ in range(steps):
        residual = residual - rate / 5 * matrix @ residual
    curve = dynamics.linearized(kernel, outputs, targets, jnp.asarray([steps]), learning_rate=rate / 5)
    np.testing.assert_allclose((curve[0] - targets).ravel(), residual, rtol=0, atol=DISCRETE)


def test_training_diverges_above_the_critical_learning_rate_and_not_below():
    kernel, outputs, targets = problem()
    matrix = np.asarray(ntk.as_matrix(kernel))
    critical = float(dynamics.critical_learning_rate(kernel))
    for factor, grows in ((0.99, False), (1.01, True)):
        residual = np.asarray(outputs - targets).ravel()
        before = np.linalg.norm(residual)
        for _ in range(2000):
            residual = residual - factor * critical * matrix @ residual
        assert (np.linalg.norm(residual) > before) == grows


def test_a_kernel_of_zeros_has_no_critical_learning_rate():
    assert dynamics.critical_learning_rate(jnp.zeros((3, 3, 2, 2))) == jnp.inf


def test_the_data_free_loss_is_exact_for_the_spectrum_of_the_kernel_itself():
    kernel, outputs, targets = problem()
    curve = dynamics.linearized(kernel, outputs, targets, TIMES, learning_rate=RATE)
    eigenvalues, eigenvectors = np.linalg.eigh(np.asarray(ntk.as_matrix(kernel)))
    modes = (eigenvectors.T @ np.asarray(outputs - targets).ravel()) ** 2
    share = dynamics.data_free_loss(
        jnp.asarray(eigenvalues), jnp.asarray(modes / modes.sum()), TIMES, learning_rate=RATE
    )
    losses = jnp.sum((curve - targets[None]) ** 2, axis=(1, 2))
    np.testing.assert_allclose(share, losses / losses[0], rtol=EXACT)


def test_the_data_free_loss_falls_from_one_to_the_weight_of_the_null_space():
    eigenvalues = jnp.asarray([3.0, 1.0, 0.0, -1e-9])
    share = dynamics.data_free_loss(eigenvalues, jnp.full(4, 0.25), jnp.asarray([0.0, 1.0, 1e12]), learning_rate=0.1)
    np.testing.assert_allclose(share[jnp.asarray([0, 2])], [1.0, 0.5], rtol=EXACT)
    assert (jnp.diff(share) < 0).all()


def test_the_first_recorded_time_at_or_below_a_level_counts():
    times, losses = jnp.asarray([0, 5, 10, 15]), jnp.asarray([1.0, 0.5, 0.7, 0.1])
    for level, expected in ((2.0, 0.0), (0.6, 5.0), (0.5, 5.0), (0.4, 15.0), (0.05, jnp.inf)):
        assert dynamics.time_to_loss(times, losses, level) == expected


def test_a_loss_of_nan_is_at_no_level():
    assert dynamics.time_to_loss(jnp.arange(3.0), jnp.full(3, jnp.nan), 1.0) == jnp.inf


def test_an_empty_curve_reaches_nothing():
    assert dynamics.time_to_loss(jnp.zeros(0), jnp.zeros(0), 1.0) == jnp.inf


# Transformations


def test_seeds_can_be_vmapped_and_jitted():
    many = [problem(seed=seed) for seed in range(3)]
    kernels, outputs, targets = (jnp.stack(parts) for parts in zip(*many, strict=True))

    @jax.jit
    @jax.vmap
    def predict(kernel, outputs, targets):
        curve = dynamics.linearized(kernel, outputs, targets, TIMES, learning_rate=RATE)
        losses = jnp.sum((curve - targets[None]) ** 2, axis=(1, 2))
        time = dynamics.time_to_loss(TIMES, losses, 0.5 * losses[0])
        weights = jnp.full(12, 1 / 12)
        share = dynamics.data_free_loss(ntk.spectrum(kernel), weights, TIMES, learning_rate=RATE)
        return curve, time, share, dynamics.critical_learning_rate(kernel)

    curves, halving, shares, rates = predict(kernels, outputs, targets)
    assert shares.shape == (3, 4)
    for seed, (kernel, start, end) in enumerate(many):
        np.testing.assert_allclose(
            curves[seed], dynamics.linearized(kernel, start, end, TIMES, learning_rate=RATE), rtol=0, atol=EXACT
        )
        np.testing.assert_allclose(rates[seed], dynamics.critical_learning_rate(kernel), rtol=EXACT)
        assert halving[seed] in TIMES


@pytest.mark.parametrize("p", [20, 0])
@pytest.mark.parametrize("argument", range(5))
def test_gradients_equal_finite_differences_also_for_repeated_eigenvalues(p, argument):
    arguments = [*problem(p=p), TIMES, jnp.asarray(RATE)]
    # keeps the least eigenvalues, which are clipped at zero, away from their kink
    arguments[0] = arguments[0] + 0.1 * jnp.einsum("ij,ab->ijab", jnp.eye(4), jnp.eye(3))

    def total(changed):
        kernel, outputs, targets, times, rate = [
            changed if i == argument else unchanged for i, unchanged in enumerate(arguments)
        ]
        return jnp.sum(jnp.sin(dynamics.linearized(kernel, outputs, targets, times, learning_rate=rate)))

    value = arguments[argument]
    direction = jnp.asarray(np.random.default_rng(1).normal(size=value.shape))
    slope = jnp.vdot(jax.jit(jax.grad(total))(value), direction)
    step = 1e-6
    expected = (total(value + step * direction) - total(value - step * direction)) / (2 * step)
    np.testing.assert_allclose(slope, expected, rtol=DIFFERENCES, atol=DIFFERENCES)
    np.testing.assert_allclose(jax.jvp(total, (value,), (direction,))[1], slope, rtol=EXACT)


def test_single_precision_stays_single():
    kernel, outputs, targets, times = (part.astype(jnp.float32) for part in (*problem(), TIMES))
    curve = dynamics.linearized(kernel, outputs, targets, times, learning_rate=RATE)
    assert curve.dtype == jnp.float32
    kernel, outputs, targets = problem()
    double = dynamics.linearized(kernel, outputs, targets, TIMES, learning_rate=RATE)
    np.testing.assert_allclose(curve, double, rtol=0, atol=SINGLE)


# Bad input


def test_kernels_that_are_not_of_the_training_examples_are_refused():
    _, outputs, targets = problem()
    for shape in ((4, 2, 3, 3), (4, 4), (4, 4, 3, 1)):
        words = r"\(n, n, o, o\), was expected, but .* came. Leave out `x2`.*infinite-width"
        with pytest.raises(ValueError, match=words):
            inspect.unwrap(dynamics.linearized)(jnp.ones(shape), outputs, targets, TIMES, learning_rate=RATE)
        with pytest.raises(ValueError, match=words):
            inspect.unwrap(dynamics.critical_learning_rate)(jnp.ones(shape))


def test_outputs_and_targets_of_another_shape_are_refused():
    kernel, outputs, targets = problem()
    linearized = inspect.unwrap(dynamics.linearized)
    with pytest.raises(ValueError, match=r"shape \(4, 3\), but outputs have \(3, 4\) and targets \(4, 3\)"):
        linearized(kernel, outputs.T, targets, TIMES, learning_rate=RATE)
    with pytest.raises(ValueError, match=r"targets \(4, 1\)"):
        linearized(kernel, outputs, targets[:, :1], TIMES, learning_rate=RATE)
    with pytest.raises(ValueError, match=r"`times` must have one axis, but has shape \(\)"):
        linearized(kernel, outputs, targets, jnp.ones(()), learning_rate=RATE)


def test_weights_that_are_no_shares_are_refused():
    data_free_loss = inspect.unwrap(dynamics.data_free_loss)
    eigenvalues = jnp.ones(2)
    with pytest.raises(ValueError, match="these sum to 2. Divide them"):
        data_free_loss(eigenvalues, jnp.ones(2), TIMES, learning_rate=RATE)
    with pytest.raises(ValueError, match="the smallest is -0.5"):
        data_free_loss(eigenvalues, jnp.asarray([1.5, -0.5]), TIMES, learning_rate=RATE)
    with pytest.raises(ValueError, match="sum to nan"):
        data_free_loss(eigenvalues, jnp.full(2, jnp.nan), TIMES, learning_rate=RATE)
    with pytest.raises(ValueError, match="2 eigenvalues and 3 weights.*full_like"):
        data_free_loss(eigenvalues, jnp.full(3, 1 / 3), TIMES, learning_rate=RATE)


def test_curves_whose_times_do_not_ascend_are_refused():
    time_to_loss = inspect.unwrap(dynamics.time_to_loss)
    with pytest.raises(ValueError, match="`times` must ascend"):
        time_to_loss(jnp.asarray([0.0, 2.0, 1.0]), jnp.ones(3), 0.5)
    with pytest.raises(ValueError, match="3 times and 2 losses"):
        time_to_loss(jnp.arange(3.0), jnp.ones(2), 0.5)
