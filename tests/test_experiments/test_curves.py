import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.measure import curves
from pathjax import dynamics, masks, ntk
from tests.test_experiments.examples import stateless


def linear(params, x):
    return x @ params["kernel"]


def test_on_a_linear_network_descent_follows_the_prediction_from_theta():
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (6, 4), jnp.float32)
    targets = jax.random.normal(keys[1], (6, 2), jnp.float32)
    params = {"kernel": jax.random.normal(keys[2], (1, 4, 2), jnp.float32)}
    mask = {"kernel": jnp.ones((1, 4, 2), bool).at[0, 0, 0].set(False)}
    kernel = ntk.empirical(linear, jax.tree.map(lambda leaf: leaf[0], params), x, mask={"kernel": mask["kernel"][0]})
    top = ntk.spectrum(kernel)[:1]
    nodes, weights = jnp.ones((1, 1, 2), jnp.float32), jnp.full((1, 1, 2), 0.5, jnp.float32)
    run = curves.loss_curves(stateless(linear), x, targets, steps=100)
    found = run(params, {}, mask, kernel[None], top, nodes, weights, jnp.array([8], jnp.int32))
    assert found.real.shape == found.linearized.shape == found.data_free.shape == (1, 101)
    assert found.real[0, 0] == found.data_free[0, 0] == 1
    np.testing.assert_allclose(found.real, found.linearized, rtol=1e-3, atol=1e-6)
    assert found.linearization_error.shape == found.kernel_distance.shape == (1,)
    assert found.linearization_error[0] < 1e-4 and found.kernel_distance[0] < 1e-6


def test_laziness_is_that_of_the_descent_at_its_end():
    keys = jax.random.split(jax.random.key(0), 4)
    x, targets = jax.random.normal(keys[0], (4, 3)), jax.random.normal(keys[1], (4, 2))
    params = {"first": jax.random.normal(keys[2], (3, 5)), "second": jax.random.normal(keys[3], (5, 2))}
    mask = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool).at[0, 0].set(False), params)

    def network(params, x):
        return jax.nn.relu(x @ params["first"]) @ params["second"]

    kernel = ntk.empirical(network, params, x, mask=mask)
    rate = 0.5 / ntk.spectrum(kernel)[0]
    trained = masks.apply_mask(mask, params)
    slope = jax.jit(jax.grad(lambda params: 0.5 * jnp.sum((network(params, x) - targets) ** 2)))
    for _ in range(7):
        trained = jax.tree.map(lambda leaf, by: leaf - rate * by, trained, masks.apply_mask(mask, slope(trained)))
    run = curves.loss_curves(stateless(network), x, targets, steps=7)
    stacked = jax.tree.map(lambda leaf: leaf[None], (params, {}, mask, kernel))
    nodes = jnp.ones((1, 1, 2))
    found = run(*stacked, ntk.spectrum(kernel)[:1], nodes, 0.5 * nodes, jnp.array([25]))
    outputs = network(masks.apply_mask(mask, params), x)
    predicted = dynamics.linearized(kernel, outputs, targets, jnp.array([7]), learning_rate=rate, flow=False)[0]
    error = jnp.linalg.norm(network(trained, x) - predicted) / jnp.linalg.norm(predicted)
    np.testing.assert_allclose(found.linearization_error, [error], rtol=1e-6)
    distance = dynamics.kernel_distance(kernel, ntk.empirical(network, trained, x, mask=mask))
    np.testing.assert_allclose(found.kernel_distance, [distance], rtol=1e-6)
    assert error > 0.01 and distance > 1e-4


def test_the_prediction_from_pi_takes_the_largest_modes_in_units_of_the_largest():
    run = curves.loss_curves(stateless(linear), jnp.ones((2, 3), jnp.float32), jnp.ones((2, 1), jnp.float32), steps=2)
    params, mask = {"kernel": jnp.ones((1, 3, 1), jnp.float32)}, {"kernel": jnp.ones((1, 3, 1), bool)}
    kernel = jnp.full((1, 2, 2, 1, 1), 3.0, jnp.float32)
    nodes = jnp.array([[[0.0, 4.0, 8.0]]], jnp.float32)
    weights = jnp.array([[[0.5, 0.375, 0.125]]], jnp.float32)
    # n·o = 2 of 8 parameters: the mode at 8 whole, and of that at 4 as much again
    found = run(params, {}, mask, kernel, jnp.array([6.0], jnp.float32), nodes, weights, jnp.array([8], jnp.int32))
    expected = [(np.exp(-t) + np.exp(-t / 2)) / 2 for t in range(3)]
    np.testing.assert_allclose(found.data_free[0], expected, rtol=1e-6)


def test_the_gap_counts_decades_above_the_floor():
    assert curves.gap(np.array([1.0, 0.1]), np.array([1.0, 0.001])) == pytest.approx(1.0)
    assert curves.gap(np.array([1.0, 0.0]), np.array([1.0, 1e-4])) == pytest.approx(1.0)
    assert np.isnan(curves.gap(np.array([1.0, np.nan]), np.array([1.0, 0.1])))


def test_targets_are_centered():
    targets = curves.centered_one_hot(jnp.array([1, 0]), 3)
    np.testing.assert_allclose(targets, [[-1 / 3, 2 / 3, -1 / 3], [2 / 3, -1 / 3, -1 / 3]], rtol=1e-6)
