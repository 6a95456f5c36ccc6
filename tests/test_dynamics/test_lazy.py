"""How lazy a training run was: exactly lazy for a linear network, and the lazier the wider for a ReLU network."""

from __future__ import annotations

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pathjax import dynamics, enumeration, ntk, path_kernel

from ..tolerances import EXACT, ROUNDING


def run(width, *, steps=30, seed=0):
    """(Θ before, Θ after, real outputs, linearized outputs) of a ReLU network of scale 1/√width under descent."""
    keys = jax.random.split(jax.random.key(seed), 3)
    params = {"first": jax.random.normal(keys[0], (3, width)), "second": jax.random.normal(keys[1], (width, 2))}
    x, targets = jax.random.normal(keys[2], (5, 3)), jnp.linspace(-1.0, 1.0, 10).reshape(5, 2)

    def apply(params, x):
        return jax.nn.relu(x @ params["first"]) @ params["second"] / width**0.5

    kernel = jax.jit(lambda params: ntk.empirical(apply, params, x))
    before = kernel(params)
    rate = 0.5 / ntk.spectrum(before)[0]

    @jax.jit
    def descend(params):
        def step(params, _):
            outputs = apply(params, x)
            gradient = jax.grad(lambda params: 0.5 * jnp.sum((apply(params, x) - targets) ** 2))(params)
            return jax.tree.map(lambda leaf, slope: leaf - rate * slope, params, gradient), outputs

        return jax.lax.scan(step, params, None, length=steps)

    after, real = descend(params)
    predicted = dynamics.linearized(before, real[0], targets, jnp.arange(steps), learning_rate=rate, flow=False)
    return before, kernel(after), real, predicted


def test_wider_networks_train_more_lazily():
    narrow, wide = run(20), run(2000)
    for measure, arguments in ((dynamics.kernel_change, slice(0, 2)), (dynamics.kernel_distance, slice(0, 2))):
        assert measure(*wide[arguments]) < 0.2 * measure(*narrow[arguments])
    errors = [dynamics.linearization_error(*each[2:]) for each in (narrow, wide)]
    assert errors[0][0] < EXACT and errors[1][-1] < 0.2 * errors[0][-1]
    assert errors[1][-1] < 0.03


def test_measures_equal_their_definitions():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 3, 3, 2, 2))
    change = np.linalg.norm(first - second) / np.linalg.norm(first)
    cosine = np.vdot(first, second) / np.linalg.norm(first) / np.linalg.norm(second)
    np.testing.assert_allclose(dynamics.kernel_change(*map(jnp.asarray, (first, second))), change, rtol=EXACT)
    np.testing.assert_allclose(dynamics.kernel_distance(*map(jnp.asarray, (first, second))), 1 - cosine, rtol=EXACT)
    found = dynamics.linearization_error(*(jnp.asarray(each[:, :, 0]) for each in (first, second)))
    expected = [np.linalg.norm(a[:, 0] - b[:, 0]) / np.linalg.norm(b[:, 0]) for a, b in zip(first, second, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=EXACT)


def test_the_distance_does_not_see_scale_and_resolves_small_turns():
    kernel = jnp.diag(jnp.asarray([1.0, 2.0, 3.0]))
    assert dynamics.kernel_distance(kernel, 7 * kernel) < ROUNDING**2
    np.testing.assert_allclose(
        dynamics.kernel_distance(jnp.diag(jnp.asarray([1.0, 0.0])), jnp.diag(jnp.asarray([1.0, 1e-9]))),
        5e-19,
        rtol=EXACT,
    )


def test_that_of_listed_path_kernels_is_that_of_the_operators():
    def apply(params, x):
        return jax.nn.relu(x @ params["first"]) @ params["second"]

    x = jnp.ones((1, 2))
    keys = jax.random.split(jax.random.key(0), 2)
    sets = [
        {"first": jax.random.normal(key, (2, 3)), "second": jax.random.normal(jax.random.fold_in(key, 1), (3, 2))}
        for key in keys
    ]
    paths = enumeration.enumerate_paths(apply, sets[0], x, limit=100)
    listed = dynamics.kernel_distance(*(enumeration.path_kernel(paths, params) for params in sets))

    @jax.jit
    def cosine(*sets):
        return path_kernel.cosine(
            *(path_kernel.path_kernel(apply, params, x) for params in sets), key=jax.random.key(1)
        )

    np.testing.assert_allclose(listed, 1 - cosine(*sets).value, rtol=EXACT)


@pytest.mark.parametrize("measure", [dynamics.kernel_change, dynamics.kernel_distance])
def test_measures_can_be_jitted_vmapped_and_differentiated_where_nothing_changed(measure):
    kernels = jnp.stack([jnp.eye(3), jnp.ones((3, 3))])
    np.testing.assert_allclose(jax.jit(jax.vmap(measure))(kernels, kernels), 0, rtol=0, atol=ROUNDING)
    np.testing.assert_array_equal(jax.grad(measure, argnums=1)(kernels[0], kernels[0]), 0)


def test_the_error_can_be_jitted_and_differentiated_at_zero():
    curve = jnp.stack([jnp.zeros((3, 2)), jnp.ones((3, 2))])
    np.testing.assert_array_equal(jax.jit(dynamics.linearization_error)(curve, curve), [0, 0])
    np.testing.assert_array_equal(jax.grad(lambda c: dynamics.linearization_error(c, curve).sum())(curve), 0)
    assert dynamics.linearization_error(curve + 1, curve)[0] == jnp.inf


def test_kernels_of_different_shapes_are_refused():
    for measure in (dynamics.kernel_change, dynamics.kernel_distance):
        with pytest.raises(ValueError, match=r"Shapes \(2, 2\) and \(3, 3\) cannot be compared"):
            inspect.unwrap(measure)(jnp.eye(2), jnp.eye(3))
    with pytest.raises(ValueError, match=r"Shapes \(2, 3, 2\) and \(1, 3, 2\)"):
        inspect.unwrap(dynamics.linearization_error)(jnp.ones((1, 3, 2)), jnp.ones((2, 3, 2)))
