"""The infinite-width kernel is the limit of finite ones drawn with its parameterization."""

from __future__ import annotations

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pathjax import ntk

from ..tolerances import DIFFERENCES, EXACT, HALF_THE_DIGITS

unchecked = inspect.unwrap(ntk.infinite)


def twin(widths, outputs, *, b_std=0.0):
    """neural-tangents' description of the networks that `draw` draws: their widths, He weights, biases from zero.

    `b_std=0.0` starts biases at zero and trains them; None leaves them out. The stated widths are true widths, so the
    scale factors `s` stay at (1, 1).
    """
    stax = ntk.neural_tangents().stax

    def dense(width):
        return stax.Dense(width, W_std=2**0.5, b_std=b_std, parameterization="standard")

    hidden = [layer for width in widths for layer in (dense(width), stax.Relu())]
    return stax.serial(*hidden, dense(outputs))


def draw(rng, widths, *, seeds=1):
    """Weights N(0, 2/fan_in) and zero biases, `seeds` networks stacked."""
    return [
        (
            jnp.asarray(rng.normal(size=(seeds, fan_in, fan_out)) * np.sqrt(2 / fan_in)),
            jnp.zeros((seeds, fan_out)),
        )
        for fan_in, fan_out in zip(widths[:-1], widths[1:], strict=True)
    ]


def apply(params, x):
    """A plain ReLU network: weights as they are drawn, no factors in the forward pass."""
    *hidden, (weights, biases) = params
    for w, b in hidden:
        x = jax.nn.relu(x @ w + b[None])
    return x @ weights + biases[None]


def test_the_finite_kernel_approaches_the_infinite_one_as_one_over_the_root_of_width():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(3, 6)))
    widths, seeds, outputs = (32, 64, 128, 256), 24, 2
    errors = []
    for width in widths:
        params = draw(rng, (6, width, width, width, outputs), seeds=seeds)
        limit = ntk.infinite(twin((width,) * 3, outputs)[2], x)
        finite = jax.jit(jax.vmap(lambda weights: ntk.empirical(apply, weights, x)))(params)
        distances = jax.vmap(ntk.relative_distance, in_axes=(0, None))(finite, limit)
        errors.append(float(jnp.sqrt(jnp.mean(distances**2))))
    slope, _ = np.polyfit(np.log(widths), np.log(errors), 1)
    assert -0.65 < slope < -0.35
    assert errors[-1] < 0.25


def test_the_mean_of_finite_kernels_has_the_scale_of_the_infinite_one_at_unequal_widths():
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(2, 5)))
    params = draw(rng, (5, 96, 32, 64, 1), seeds=400)
    mean = jax.jit(jax.vmap(lambda weights: ntk.empirical(apply, weights, x)))(params).mean(axis=0)
    assert ntk.relative_distance(mean, ntk.infinite(twin((96, 32, 64), 1)[2], x)) < 0.1


def test_each_bias_layer_adds_what_its_derivatives_add():
    # one example, width N each: dΘ/dz of the four bias layers is 1 at the output and on average 1 per hidden layer
    x = jnp.ones((1, 4))
    with_biases, without = (ntk.infinite(twin((8, 8, 8), 1, b_std=b_std)[2], x) for b_std in (0.0, None))
    np.testing.assert_allclose(with_biases - without, [[4.0]], rtol=HALF_THE_DIGITS)


def test_twin_and_plain_network_are_the_same_function_of_the_same_weights():
    x = jnp.linspace(-1.0, 1.0, 12).reshape(4, 3)
    params = [(w[0], 0.1 + b[0]) for w, b in draw(np.random.default_rng(2), (3, 7, 5, 2))]
    layers = [layer for w, b in params for layer in ((w, b[None]), ())][:-1]
    np.testing.assert_allclose(twin((7, 5), 2)[1](layers, x), apply(params, x), rtol=EXACT)


def test_a_second_batch_gives_the_corner_of_the_whole_kernel():
    x = jnp.linspace(-1.0, 1.0, 20).reshape(5, 4)
    kernel_fn = twin((16, 16), 3)[2]
    whole = ntk.infinite(kernel_fn, x)
    assert ntk.infinite(kernel_fn, x[:3], x[3:]).shape == (3, 2)
    np.testing.assert_allclose(ntk.infinite(kernel_fn, x[:3], x[3:]), whole[:3, 3:], rtol=HALF_THE_DIGITS)


def test_kernels_can_be_jitted_vmapped_and_differentiated():
    x = jnp.linspace(-1.0, 1.0, 12).reshape(3, 4) + 0.1
    kernel_fn = twin((16,), 1)[2]

    def kernel(x):
        return ntk.infinite(kernel_fn, x)

    np.testing.assert_allclose(jax.jit(kernel)(x), kernel(x), rtol=HALF_THE_DIGITS)
    pair = jnp.stack([x, 2 * x])
    np.testing.assert_allclose(jax.vmap(kernel)(pair)[1], kernel(2 * x), rtol=HALF_THE_DIGITS)
    slope = jax.grad(lambda x: kernel(x).sum())(x)
    step, direction = 1e-5, jnp.cos(7 * x)
    ahead, behind = (kernel(x + sign * step * direction).sum() for sign in (1, -1))
    np.testing.assert_allclose(jnp.vdot(slope, direction), (ahead - behind) / (2 * step), rtol=DIFFERENCES)


# Bad input


def test_inputs_that_are_integers_or_nan_or_disagree_are_refused():
    kernel_fn = twin((8,), 1)[2]
    with pytest.raises(ValueError, match="`x1` has dtype int32"):
        unchecked(kernel_fn, jnp.ones((3, 4), jnp.int32))
    with pytest.raises(ValueError, match="`x1` holds NaN, first in example 0"):
        unchecked(kernel_fn, jnp.full((3, 4), jnp.nan))
    with pytest.raises(ValueError, match=r"`x1` have shape \(4,\) and those of `x2` \(3,\)"):
        unchecked(kernel_fn, jnp.ones((3, 4)), jnp.ones((3, 3)))


def test_a_kernel_with_pixels_left_is_refused_with_the_remedy():
    stax = ntk.neural_tangents().stax
    kernel_fn = stax.Conv(4, (3, 3), padding="SAME")[2]
    with pytest.raises(ValueError, match=r"shape \(2, 2, 5, 5, 5, 5\).*\(2, 2\).*stax.Flatten"):
        unchecked(kernel_fn, jnp.ones((2, 5, 5, 3)))
