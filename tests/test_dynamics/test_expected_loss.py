"""The loss expected of random outputs and targets: the mean over draws, its limits, its derivatives, its errors."""

from __future__ import annotations

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from pathjax import dynamics, ntk

from ..tolerances import DIFFERENCES, EXACT, SINGLE, STANDARD_ERRORS, SUMS

RATE = 0.05
STEPS = jnp.asarray([0.0, 1.0, 3.0, 20.0])
MEANS, VARIANCES = np.array([0.5, -1.0, 0.0]), np.array([0.3, 0.0, 2.0])
DRAWS = 4000


def kernels(n=4, o=3, p=6, seed=0):
    """Kernels (n, n, o) of p weights, singular where p < n, and covariances of outputs (n, n, o)."""
    rng = np.random.default_rng(seed)
    jacobians, factors = rng.normal(size=(2, n, p, o))
    return tuple(jnp.asarray(np.einsum("ipc,jpc->ijc", each, each)) for each in (jacobians, factors))


def decay(matrix, time, flow):
    """What multiplies the residual at a time, by the matrix exponential or step by step."""
    if flow:
        return scipy.linalg.expm(-RATE * time * matrix)
    return np.linalg.matrix_power(np.eye(len(matrix)) - RATE * matrix, int(time))


def drawn_losses(tangent, covariance, flow, rng):
    """Squared losses (draws, t) of linearized training from drawn outputs to drawn targets, each run by itself."""
    n, _, o = tangent.shape
    losses = np.zeros((DRAWS, len(STEPS)))
    for c in range(o):
        outputs = rng.multivariate_normal(np.zeros(n), covariance[:, :, c], size=DRAWS, method="svd")
        targets = MEANS[c] + np.sqrt(VARIANCES[c]) * rng.normal(size=(DRAWS, n))
        for place, time in enumerate(np.asarray(STEPS)):
            left = (outputs - targets) @ decay(np.asarray(tangent[:, :, c]), time, flow)
            losses[:, place] += np.sum(left**2, axis=1)
    return losses


@pytest.mark.parametrize("flow", [True, False])
@pytest.mark.parametrize("p", [6, 2])
def test_the_expected_loss_is_the_mean_over_drawn_outputs_and_targets(p, flow):
    tangent, covariance = kernels(p=p)
    losses = drawn_losses(tangent, np.asarray(covariance), flow, np.random.default_rng(1))
    initial = losses[:, 0].mean()
    expected = dynamics.expected_loss(
        tangent,
        STEPS,
        learning_rate=RATE,
        nngp=covariance,
        target_means=jnp.asarray(MEANS),
        target_variances=jnp.asarray(VARIANCES),
        flow=flow,
    )
    # the error of a ratio of means, to first order
    errors = np.std(losses - np.asarray(expected)[None] * losses[:, :1], axis=0) / (np.sqrt(DRAWS) * initial)
    assert (np.abs(losses.mean(axis=0) / initial - expected) <= STANDARD_ERRORS * errors + EXACT).all()


@pytest.mark.parametrize("flow", [True, False])
def test_the_shares_of_modes_are_those_of_the_second_moments(flow):
    tangent, covariance = kernels()
    options = {"nngp": covariance, "target_means": jnp.asarray(MEANS), "target_variances": jnp.asarray(VARIANCES)}
    expected = dynamics.expected_loss(tangent, STEPS, learning_rate=RATE, flow=flow, **options)
    total = np.zeros(len(STEPS))
    for c in range(3):
        moments = np.asarray(covariance[:, :, c]) + VARIANCES[c] * np.eye(4) + MEANS[c] ** 2
        for place, time in enumerate(np.asarray(STEPS)):
            left = decay(np.asarray(tangent[:, :, c]), time, flow)
            total[place] += np.trace(left @ moments @ left.T)
    np.testing.assert_allclose(expected, total / total[0], rtol=EXACT)


@pytest.mark.parametrize("p", [6, 2])
def test_where_nothing_is_known_the_loss_is_the_data_free_loss_of_all_eigenvalues(p):
    tangent, _ = kernels(p=p)
    eigenvalues = jnp.linalg.eigvalsh(jnp.moveaxis(tangent, 2, 0)).ravel()
    even = jnp.full_like(eigenvalues, 1 / len(eigenvalues))
    expected = dynamics.data_free_loss(eigenvalues, even, STEPS, learning_rate=RATE)
    np.testing.assert_allclose(dynamics.expected_loss(tangent, STEPS, learning_rate=RATE), expected, rtol=EXACT)


def test_a_residual_without_chance_is_that_of_the_linearized_network():
    tangent, _ = kernels()
    means = jnp.asarray(MEANS)
    expected = dynamics.expected_loss(
        tangent, STEPS, learning_rate=RATE, target_means=means, target_variances=jnp.zeros(3)
    )
    whole = jnp.einsum("ijc,cd->ijcd", tangent, jnp.eye(3))
    targets = jnp.broadcast_to(means[None], (4, 3))
    losses = dynamics.linearized_loss(whole, jnp.zeros((4, 3)), targets, STEPS, learning_rate=RATE)
    np.testing.assert_allclose(expected, losses / losses[0], rtol=EXACT)


def test_small_steps_are_the_flow():
    tangent, covariance = kernels()
    flow = dynamics.expected_loss(tangent, STEPS, learning_rate=RATE, nngp=covariance)
    fine = 10.0**5
    steps = dynamics.expected_loss(tangent, fine * STEPS, learning_rate=RATE / fine, nngp=covariance, flow=False)
    np.testing.assert_allclose(steps, flow, rtol=SINGLE)


@pytest.mark.parametrize("flow", [True, False])
def test_at_infinity_the_part_in_the_null_space_is_left(flow):
    tangent = jnp.zeros((4, 4, 2)).at[0, 0].set(1.0)
    left = dynamics.expected_loss(tangent, jnp.asarray([0.0, jnp.inf]), learning_rate=RATE, flow=flow)
    np.testing.assert_allclose(left, [1.0, 0.75], rtol=EXACT)


def test_rounding_below_zero_never_makes_the_loss_explode():
    left = dynamics.expected_loss(-1e-12 * jnp.ones((1, 1, 1)), jnp.asarray([1e15]), learning_rate=1.0)
    np.testing.assert_allclose(left, 1.0, rtol=EXACT)


def test_kernels_of_networks_are_taken_as_they_come():
    def apply(params, x):
        return jax.nn.relu(x @ params["hidden"]) @ params["out"]

    keys = jax.random.split(jax.random.key(0), 3)
    params = {"hidden": jax.random.normal(keys[0], (3, 5)), "out": jax.random.normal(keys[1], (5, 2))}
    found = ntk.mean_field(apply, params, jax.random.normal(keys[2], (4, 3)))
    assert found.ntk is not None
    left = dynamics.expected_loss(found.ntk, STEPS, learning_rate=0.01, nngp=found.nngp)
    np.testing.assert_allclose(left[0], 1, rtol=0, atol=SUMS)  # shares of modes, whose sum is rounded
    assert (jnp.diff(left) < 0).all()


# Transformations


@pytest.mark.parametrize("flow", [True, False])
@pytest.mark.parametrize("argument", range(5))
def test_gradients_equal_finite_differences_also_for_repeated_eigenvalues(argument, flow):
    tangent, covariance = kernels(p=2)
    arguments = [tangent + 0.1 * jnp.eye(4)[:, :, None], covariance, jnp.asarray(MEANS), jnp.asarray(VARIANCES + 1)]
    arguments += [jnp.asarray(RATE)]

    def total(changed):
        matrix, nngp, means, variances, rate = [changed if i == argument else each for i, each in enumerate(arguments)]
        options = {"nngp": nngp, "target_means": means, "target_variances": variances, "flow": flow}
        return jnp.sum(jnp.sin(dynamics.expected_loss(matrix, STEPS, learning_rate=rate, **options)))

    value = arguments[argument]
    direction = jnp.asarray(np.random.default_rng(1).normal(size=value.shape))
    slope = jnp.vdot(jax.jit(jax.grad(total))(value), direction)
    step = 1e-6
    expected = (total(value + step * direction) - total(value - step * direction)) / (2 * step)
    np.testing.assert_allclose(slope, expected, rtol=DIFFERENCES, atol=DIFFERENCES)


def test_the_derivative_by_time_is_that_of_the_flow():
    tangent, covariance = kernels()

    def loss(times):
        return dynamics.expected_loss(tangent, times, learning_rate=RATE, nngp=covariance)

    _, slope = jax.jvp(loss, (STEPS,), (jnp.ones(4),))
    step = 1e-5
    np.testing.assert_allclose(slope, (loss(STEPS + step) - loss(STEPS - step)) / (2 * step), rtol=DIFFERENCES)


def test_seeds_can_be_vmapped_and_jitted():
    many = [kernels(seed=seed) for seed in range(3)]
    stacked = [jnp.stack(each) for each in zip(*many, strict=True)]

    def predict(tangent, nngp):
        return dynamics.expected_loss(tangent, STEPS, learning_rate=RATE, nngp=nngp)

    for seed, found in enumerate(jax.jit(jax.vmap(predict))(*stacked)):
        np.testing.assert_allclose(found, predict(*many[seed]), rtol=EXACT)


def test_single_precision_stays_single():
    tangent, covariance = (each.astype(jnp.float32) for each in kernels())
    found = dynamics.expected_loss(tangent, STEPS.astype(jnp.float32), learning_rate=RATE, nngp=covariance)
    assert found.dtype == jnp.float32
    double, nngp = kernels()
    np.testing.assert_allclose(found, dynamics.expected_loss(double, STEPS, learning_rate=RATE, nngp=nngp), rtol=SINGLE)


# Bad input


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"ntk": jnp.ones((4, 4))}, r"\(n, n, o\), are expected, but shapes \(4, 4\) came. `ntk.mean_field"),
        ({"ntk": jnp.ones((4, 3, 3))}, r"shapes \(4, 3, 3\) came"),
        ({"nngp": jnp.ones((4, 4, 2))}, r"shapes \(4, 4, 3\) and \(4, 4, 2\) came"),
        ({"times": jnp.ones(())}, r"`times` must have one axis, but has shape \(\)"),
        ({"times": jnp.asarray([0.5]), "flow": False}, "not whole numbers"),
        ({"target_means": jnp.ones(3)}, "`target_variances` is missing. Pass both, or neither."),
        ({"target_variances": jnp.ones(3)}, "`target_means` is missing"),
        ({"target_means": jnp.ones(2), "target_variances": jnp.ones(3)}, r"each of 3 outputs, shape \(3,\), but has"),
        ({"target_means": jnp.ones(3), "target_variances": jnp.ones(())}, r"`target_variances` .* has shape \(\)"),
        ({"target_means": jnp.ones(3), "target_variances": -jnp.ones(3)}, "negative or NaN. Of one-hot"),
        ({"target_means": jnp.ones(3), "target_variances": jnp.full(3, jnp.nan)}, "negative or NaN"),
    ],
)
def test_bad_arguments_are_refused(changed, words):
    arguments = {"ntk": kernels()[0], "times": STEPS, "learning_rate": RATE} | changed
    with pytest.raises(ValueError, match=words):
        inspect.unwrap(dynamics.expected_loss)(**arguments)


def test_both_kernels_in_place_of_one_are_refused_with_the_field_to_pass():
    kernels: Any = ntk.MeanField(jnp.ones((2, 2, 1)), jnp.ones((2, 2, 1)))
    with pytest.raises(TypeError, match="`ntk` is a MeanField, .* pass its field `ntk`"):
        inspect.unwrap(dynamics.expected_loss)(kernels, jnp.ones(2), learning_rate=0.1)
