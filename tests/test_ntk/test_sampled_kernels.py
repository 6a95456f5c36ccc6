"""Expected kernels are the mean of finite ones over random weights, and sign averages the mean over random signs."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pathjax import ntk

from ..tolerances import EXACT, STANDARD_ERRORS, SUMS

relu = jax.nn.relu
mean_field: Any = ntk.mean_field  # with a tangent kernel, unless it is left out


def dense(params, x):
    """Two hidden layers in the NTK parameterization: the moments of all weights are 1."""
    h = relu(x @ params["in"])
    h = relu(h @ params["hidden"]) * np.sqrt(2 / len(params["hidden"]))
    return h @ params["out"] * np.sqrt(1 / len(params["out"]))


def shifted(params, x):
    """The same with constants that shift the values before the gates, as running means do, and a sum behind gates."""
    h = relu(x @ params["in"] - 0.3)
    h = relu(h @ params["hidden"] * np.sqrt(2 / len(params["hidden"])) + 0.2) + relu(x[:, :1] - 0.5)
    return h @ params["out"] * np.sqrt(1 / len(params["out"]))


def shortcut(params, x):
    """A residual block whose shortcut comes from behind a gate."""
    h = relu(x @ params["in"])
    h = relu(h + h @ params["hidden"] * np.sqrt(2 / len(params["hidden"])))
    return h @ params["out"] * np.sqrt(1 / len(params["out"]))


def weights(rng, inputs, width):
    shapes = {"in": (inputs, width), "hidden": (width, width), "out": (width, 1)}
    return {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}


def masked_at_random(rng, inputs, width):
    return {"in": np.ones((inputs, width)), "hidden": rng.random((width, width)) < 0.3, "out": np.ones((width, 1))}


def few_units_kept(rng, inputs, width):
    """As SynFlow prunes: a third of the units, with unequally many weights."""
    units = rng.random(width) < np.linspace(0, 0.7, width)
    share = np.linspace(0.2, 1, width)
    mask = masked_at_random(rng, inputs, width)
    return mask | {"hidden": (rng.random((width, width)) < share) & units[:, None] & units[None]}


def layer_by_layer(rng, inputs, width):
    shapes = {"in": (inputs, width), "hidden": (width, width), "out": (width, 1)}
    densities = {"in": 0.5, "hidden": 0.1, "out": 0.8}
    return {name: rng.random(shape) < densities[name] for name, shape in shapes.items()}


def finite_kernels(apply, params, mask, x, draws):
    """Products of outputs and tangent kernels of networks with Gaussian weights, (draws, n, n)."""

    def one(key):
        keys = jax.random.split(key, len(params))
        drawn = {n: jax.random.normal(k, params[n].shape) * mask[n] for n, k in zip(params, keys, strict=True)}
        outputs, pull_back = jax.vjp(lambda p: apply(p, x)[:, 0], drawn)
        rows = jax.vmap(lambda row: pull_back(row)[0])(jnp.eye(len(x)))
        flat = jnp.concatenate([(rows[n] * mask[n][None]).reshape(len(x), -1) for n in params], axis=1)
        return outputs[:, None] * outputs[None], flat @ flat.T

    return jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=20))(jax.random.split(jax.random.key(0), draws))


def expected_and_sampled(apply, draw_mask, width, draws=400):
    """Both expected kernels, and the finite ones."""
    rng, inputs = np.random.default_rng(3), 5
    params = weights(rng, inputs, width)
    drawn = None if draw_mask is None else draw_mask(rng, inputs, width)
    mask = jax.tree.map(lambda leaf: 1.0 * leaf, drawn or jax.tree.map(lambda leaf: np.ones(leaf.shape), params))
    kept = None if draw_mask is None else jax.tree.map(lambda leaf: jnp.asarray(leaf > 0), mask)
    x = jnp.asarray(rng.normal(size=(2, inputs)))
    kernels = mean_field(apply, params, x, second_moments=dict.fromkeys(params, 1.0), mask=kept)
    return [kernel[..., 0] for kernel in kernels], finite_kernels(apply, params, mask, x, draws)


@pytest.mark.parametrize(
    ("apply", "draw_mask"),
    [(dense, None), (dense, few_units_kept), (shifted, masked_at_random), (shifted, layer_by_layer)],
)
def test_the_mean_of_finite_kernels_is_the_expected_one(apply, draw_mask):
    # What is left of the finite width, about 1/width of the kernel, lies below the error of so many draws.
    distances = []
    for expected, sampled in zip(*expected_and_sampled(apply, draw_mask, width=160), strict=True):
        error = jnp.std(sampled, axis=0) / np.sqrt(len(sampled))
        distances.append(np.asarray((expected - sampled.mean(0)) / error)[np.triu_indices(2)])
    assert np.max(np.abs(distances)) < STANDARD_ERRORS
    assert np.mean(np.square(distances)) < 3


def test_behind_a_shortcut_from_behind_a_gate_the_expected_kernel_is_a_good_approximation():
    # such a sum is not Gaussian, at no width
    (_, expected), (_, sampled) = expected_and_sampled(shortcut, None, width=160)
    assert jnp.linalg.norm(expected - sampled.mean(0)) < 0.05 * jnp.linalg.norm(expected)


def test_a_random_mask_with_moments_rescaled_approaches_the_dense_kernel_as_width_grows():
    rng, density = np.random.default_rng(1), 0.25
    x = jnp.asarray(rng.normal(size=(4, 5)))
    distances = []
    for width in (32, 128):
        params = weights(rng, 5, width)
        moments = dict.fromkeys(params, 1.0)
        mask = {"in": jnp.ones((5, width), bool), "out": jnp.asarray(rng.random((width, 1)) < density)}
        mask["hidden"] = jnp.asarray(rng.random((width, width)) < density)

        def rescaled(params, x):
            h = relu(x @ params["in"])
            h = relu(h @ params["hidden"]) * np.sqrt(2 / len(params["hidden"]) / density)
            return h @ params["out"] * np.sqrt(1 / len(params["out"]) / density)

        whole = mean_field(dense, params, x, second_moments=moments).ntk
        pruned = mean_field(rescaled, params, x, second_moments=moments, mask=mask).ntk
        distances.append(float(jnp.linalg.norm(pruned - whole) / jnp.linalg.norm(whole)))
    assert distances[1] < distances[0] / 1.5
    assert distances[1] < 0.1


# Sign averages


def tiny(params, x):
    return relu(x @ params["in"]) @ params["out"]


def tied(params, x):
    return relu(relu(x @ params["in"]) @ params["in"]) @ params["out"]


def pooled(params, x):
    return jnp.max(x @ params["in"], axis=1, keepdims=True) @ params["out"][:1]


PARAMS = {"in": jnp.array([[1.0, -0.4], [0.3, 2.0]]), "out": jnp.array([[0.7], [-1.1]])}
TWO = jnp.array([[1.0, 0.2], [-0.5, 0.8]])


def over_all_signs(apply, params, x, mask=None):
    """The mean of Θ over every pattern of signs."""
    leaves, structure = jax.tree.flatten(params)
    size = sum(leaf.size for leaf in leaves)
    signs = np.array(list(itertools.product([1.0, -1.0], repeat=size)))
    ends = np.cumsum([leaf.size for leaf in leaves])
    parts = [signs[:, end - leaf.size : end].reshape(-1, *leaf.shape) for leaf, end in zip(leaves, ends, strict=True)]
    signed = jax.tree.unflatten(structure, [part * leaf[None] for part, leaf in zip(parts, leaves, strict=True)])
    return jax.vmap(lambda params: ntk.empirical(apply, params, x, mask=mask))(signed).mean(0)


@pytest.mark.parametrize("apply", [tiny, tied, pooled])
def test_the_sign_average_is_the_mean_over_all_patterns_of_signs(apply):
    expected = over_all_signs(apply, PARAMS, TWO)
    average = ntk.sign_average(apply, PARAMS, TWO, key=jax.random.key(1), samples=300)
    gap = jnp.abs(average.value - expected)
    assert bool(jnp.all(gap <= STANDARD_ERRORS * average.standard_error + SUMS))


def test_a_mask_is_held_by_the_sign_average():
    mask = {"in": jnp.array([[True, False], [True, True]]), "out": jnp.ones((2, 1), bool)}
    average = ntk.sign_average(tiny, PARAMS, TWO, TWO[:1], key=jax.random.key(2), samples=300, mask=mask)
    expected = over_all_signs(tiny, PARAMS, TWO, mask)[:, :1]
    gap = jnp.abs(average.value - expected)
    assert bool(jnp.all(gap <= STANDARD_ERRORS * average.standard_error + SUMS))


def test_the_standard_error_is_the_spread_of_independent_repeats_and_keys_decide():
    @jax.jit
    def average(key):
        return ntk.sign_average(tiny, PARAMS, TWO, key=key, samples=20)

    repeats = [average(key) for key in jax.random.split(jax.random.key(3), 60)]
    spread = np.std([repeat.value for repeat in repeats], axis=0)
    told = np.mean([repeat.standard_error for repeat in repeats], axis=0)
    repeats_error = 1 / np.sqrt(2 * len(repeats))  # of a standard deviation, relative to it
    assert np.all(np.abs(told / spread - 1) < STANDARD_ERRORS * repeats_error)
    np.testing.assert_array_equal(average(jax.random.key(5)).value, average(jax.random.key(5)).value)
    assert bool(jnp.any(average(jax.random.key(5)).value != average(jax.random.key(6)).value))


def test_in_wide_layers_the_sign_average_agrees_with_the_closed_form_and_in_narrow_ones_it_tells_the_distance():
    rng = np.random.default_rng(4)
    x = jnp.asarray(rng.normal(size=(2, 5)))
    distances = []
    for width, samples in ((128, 40), (2, 2000)):
        params = weights(rng, 5, width)
        average = ntk.sign_average(dense, params, x, key=jax.random.key(7), samples=samples)
        closed = mean_field(dense, params, x).ntk[..., 0]
        value, error = average.value[..., 0, 0], average.standard_error[..., 0, 0]
        distances.append(float(jnp.max(jnp.abs(value - closed) / error)))
    assert distances[0] < STANDARD_ERRORS < distances[1]


def test_the_standard_error_of_draws_that_are_0_or_1_follows_from_their_mean():
    def apply(params, x):
        return jax.nn.relu(x @ params)

    for samples in (2, 3, 10):
        average = ntk.sign_average(apply, jnp.ones((1, 1)), jnp.ones((1, 1)), key=jax.random.key(2), samples=samples)
        mean = float(average.value.item())
        assert 0 < mean < 1 or average.standard_error.item() == 0
        np.testing.assert_allclose(
            average.standard_error.item(), np.sqrt(mean * (1 - mean) / (samples - 1)), rtol=EXACT, atol=EXACT
        )
