"""Singular values against those of dense Jacobians and of convolutions written out as matrices."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.nn import initializers

from pathjax import isometry, masks, scores

from .. import networks
from ..tolerances import DIFFERENCES, EXACT, SINGLE, SINGLE_ROUNDING


def assert_close(got, want, tolerance=EXACT):
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * max(np.max(want, initial=0), 1))


def random_mask(params, share=0.5):
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.random(leaf.shape) < share), params)


@pytest.mark.parametrize("masked", (False, True))
@pytest.mark.parametrize("name", ("biased_mlp", "residual_dense", "conv_same_stride"))
def test_singular_values_are_those_of_the_dense_jacobian(name, masked):
    network = networks.build(name)
    mask = random_mask(network.params, 0.7) if masked else None
    params = masks.apply_mask(mask, network.params)
    x = jnp.asarray(network.x)
    values = isometry.jacobian_singular_values(network.apply, network.params, x, mask=mask)
    jacobian = np.asarray(jax.jacobian(lambda x: network.apply(params, x))(x))  # (n, o, n, ...)
    for index, found in enumerate(values):
        matrix = jacobian[index, :, index].reshape(jacobian.shape[1], -1)
        assert_close(found, np.linalg.svd(matrix, compute_uv=False))


def two_layers(widths, seed=0, dtype=jnp.float64):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in zip(widths[:-1], widths[1:], strict=True)]


def apply(params, x):
    return jax.nn.relu(x @ params[0]) @ params[1]


@pytest.mark.parametrize("widths", ((3, 6, 5), (5, 6, 3), (1, 4, 1)))
def test_there_are_as_many_as_inputs_or_outputs(widths):
    values = isometry.jacobian_singular_values(apply, two_layers(widths), np.ones((4, widths[0])))
    assert values.shape == (4, min(widths[0], widths[2]))
    assert bool(jnp.all(values[:, :-1] >= values[:, 1:]))


def test_a_batch_of_no_example_has_none():
    assert isometry.jacobian_singular_values(apply, two_layers((4, 6, 3)), jnp.ones((0, 4))).shape == (0, 3)


def test_jit_vmap_and_single_precision_agree():
    x = jnp.asarray(np.random.default_rng(2).standard_normal((3, 4)))
    seeds = [two_layers((4, 6, 5), seed) for seed in range(2)]

    def both(params, mask):
        return (
            isometry.jacobian_singular_values(apply, params, x, mask=mask),
            isometry.layer_singular_values(params, mask=mask),
        )

    eager = [both(params, random_mask(params)) for params in seeds]
    for found, expected in zip(
        jax.tree.leaves(jax.jit(both)(seeds[0], random_mask(seeds[0]))), jax.tree.leaves(eager[0]), strict=True
    ):
        assert_close(found, expected)
    stacked, drawn = (
        jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
        for trees in (seeds, [random_mask(params) for params in seeds])
    )
    together = jax.vmap(both)(stacked, drawn)
    for index, expected in enumerate(eager):
        jax.tree.map(lambda got, want, i=index: assert_close(got[i], want), together, expected)
    single = isometry.jacobian_singular_values(apply, two_layers((4, 6, 5), dtype=jnp.float32), x.astype(jnp.float32))
    assert single.dtype == jnp.float32
    assert_close(single, isometry.jacobian_singular_values(apply, seeds[0], x), SINGLE)


def test_gradients_are_finite_differences():
    params, x = two_layers((3, 20, 4)), jnp.array([[0.3, -1.0, 2.0]])

    def spread(step):
        moved = [params[0] + step, params[1]]
        return isometry.summary(isometry.jacobian_singular_values(apply, moved, x)).condition[0]

    assert float(spread(0.0)) < 100

    numeric = (spread(1e-6) - spread(-1e-6)) / 2e-6
    np.testing.assert_allclose(jax.grad(spread)(0.0), numeric, rtol=DIFFERENCES)


# layers


def circular(kernel, spatial):
    """A circular convolution (cross-correlation) as a matrix, (spatial·i, spatial·o)."""
    *window, i, o = kernel.shape
    places = list(itertools.product(*map(range, spatial)))
    matrix = np.zeros((*spatial, i, *spatial, o))
    for place in places:
        for offset in itertools.product(*map(range, window)):
            source = tuple((at + by) % size for at, by, size in zip(place, offset, spatial, strict=True))
            matrix[(*source, slice(None), *place, slice(None))] += kernel[offset]
    return matrix.reshape(len(places) * i, len(places) * o)


@pytest.mark.parametrize("masked", (False, True))
@pytest.mark.parametrize(
    ("shape", "spatial"),
    (
        ((3, 2, 4), (5,)),
        ((3, 3, 2, 3), (3, 4)),
        ((2, 3, 3, 1), (4, 5)),
        ((1, 1, 2, 2), (1, 1)),
        ((2, 1, 2, 1, 2), (2, 3, 2)),
    ),
)
def test_convolutions_have_the_singular_values_of_their_operator(shape, spatial, masked):
    params = {"bias": jnp.ones(shape[-1]), "kernel": jnp.asarray(np.random.default_rng(0).standard_normal(shape))}
    mask = random_mask(params) if masked else None
    kernel = np.asarray(masks.apply_mask(mask, params)["kernel"])
    found = isometry.layer_singular_values(params, mask=mask, spatial=spatial)
    assert list(found) == ["['kernel']"]
    assert_close(found["['kernel']"], np.linalg.svd(circular(kernel, spatial), compute_uv=False))


def test_the_written_out_convolution_is_that_of_jax():
    rng = np.random.default_rng(3)
    kernel, image = rng.standard_normal((3, 2, 2, 3)), rng.standard_normal((1, 4, 5, 2))
    wrapped = np.pad(image, ((0, 0), (0, 2), (0, 1), (0, 0)), mode="wrap")
    numbers = ("NHWC", "HWIO", "NHWC")
    padded, weights = jnp.asarray(wrapped), jnp.asarray(kernel)
    expected = jax.lax.conv_general_dilated(padded, weights, (1, 1), "VALID", dimension_numbers=numbers)
    assert_close(image.ravel() @ circular(kernel, (4, 5)), np.asarray(expected).ravel())


def test_without_images_convolutions_are_unfolded():
    kernel = jnp.asarray(np.random.default_rng(0).standard_normal((3, 2, 4, 5)))
    found = isometry.layer_singular_values({"kernel": kernel})["['kernel']"]
    assert_close(found, np.linalg.svd(np.asarray(kernel).reshape(24, 5), compute_uv=False))


def test_dense_kernels_are_matrices_whatever_the_images():
    params = two_layers((4, 6, 3))
    mask = random_mask(params)
    found = isometry.layer_singular_values(params, mask=mask, spatial=(7, 7))
    for (path, values), kernel, kept in zip(found.items(), params, mask, strict=True):
        assert path in ("[0]", "[1]")
        assert_close(values, np.linalg.svd(np.where(kept, kernel, 0), compute_uv=False))


def test_leaves_are_chosen_and_empty_ones_have_none():
    params = {"empty": jnp.zeros((0, 3)), "first": jnp.eye(3), "second": jnp.eye(2)}
    assert list(isometry.layer_singular_values(params, prunable=lambda path, leaf: path[0].key == "second")) == [
        "['second']"
    ]
    assert isometry.layer_singular_values(params)["['empty']"].shape == (0,)


# isometry


@pytest.mark.parametrize("depth", (2, 10))
def test_orthogonal_linear_networks_are_isometries_until_pruned(depth):
    keys = jax.random.split(jax.random.key(0), depth + 1)
    params = [initializers.orthogonal()(key, (12, 12), jnp.float64) for key in keys[1:]]

    def linear(params, x):
        for kernel in params:
            x = x @ kernel
        return x

    x = jax.random.normal(keys[0], (2, 12))
    for values in (
        isometry.jacobian_singular_values(linear, params, x),
        *isometry.layer_singular_values(params).values(),
    ):
        assert_close(values, np.ones(values.shape))
    mask = masks.from_scores(scores.random(params, key=keys[0]), density=0.5)
    pruned = isometry.summary(isometry.jacobian_singular_values(linear, params, x, mask=mask))
    assert float(pruned.condition.min()) > 10
    assert float(pruned.distance.min()) > 0.3
    for values in isometry.layer_singular_values(params, mask=mask).values():
        assert float(isometry.summary(values).standard_deviation) > 0.1


@pytest.mark.parametrize("spatial", ((3, 3), (4, 6)))
def test_delta_orthogonal_convolutions_are_isometries_until_pruned(spatial):
    key = jax.random.key(0)
    params = {"conv": initializers.delta_orthogonal()(key, (3, 3, 5, 8), jnp.float64)}
    values = isometry.layer_singular_values(params, spatial=spatial)["['conv']"]
    assert_close(values, np.ones(5 * spatial[0] * spatial[1]))
    # the middle of the window holds all weights that are not 0
    middle = scores.random(params, key=key)["conv"] + (params["conv"] != 0)
    mask = masks.from_scores({"conv": middle}, density=20 / params["conv"].size)
    pruned = isometry.layer_singular_values(params, mask=mask, spatial=spatial)["['conv']"]
    assert float(isometry.summary(pruned).distance) > 0.3


def test_summary_is_its_formula_over_the_last_axis():
    values = np.abs(np.random.default_rng(0).standard_normal((3, 5))) + 0.1
    found = isometry.summary(values)
    assert_close(found.mean, values.mean(1))
    assert_close(found.standard_deviation, values.std(1))
    assert_close(found.condition, values.max(1) / values.min(1))
    assert_close(found.distance, np.abs((values**2).mean(1) - 1))
    one = isometry.summary(jnp.array([0.5]))
    assert [float(number) for number in one] == [0.5, 0.0, 1.0, 0.75]


@pytest.mark.parametrize("smallest", (0.0, 1e-16))
def test_singular_layers_have_no_condition_and_zero_for_its_gradient(smallest):
    values = jnp.array([2.0, 1.0, smallest])
    assert float(isometry.summary(values).condition) == np.inf
    np.testing.assert_array_equal(jax.grad(lambda values: isometry.summary(values).condition)(values), 0)


# errors


def test_what_cannot_be_is_refused():
    params, x = two_layers((4, 6, 3)), jnp.ones((2, 4))
    with pytest.raises(ValueError, match="`x` holds NaN, first in example 1"):
        isometry.jacobian_singular_values(apply, params, x.at[1].set(jnp.nan))
    with pytest.raises(ValueError, match="`x` has dtype int"):
        isometry.jacobian_singular_values(apply, params, jnp.ones((2, 4), int))
    with pytest.raises(ValueError, match=r"one array of shape \(n, o\).*it returned \(2,\)"):
        isometry.jacobian_singular_values(lambda params, x: apply(params, x)[:, 0], params, x)
    with pytest.raises(ValueError, match=r"`mask` has no leaf at \[1\]"):
        isometry.jacobian_singular_values(apply, params, x, mask=[params[0] > 0])
    with pytest.raises(TypeError, match="`mask` must have boolean leaves"):
        isometry.layer_singular_values(params, mask=params)
    with pytest.raises(ValueError, match=r"\['bias'\] has shape \(3,\)"):
        isometry.layer_singular_values({"bias": jnp.ones(3)}, prunable=lambda path, leaf: True)
    with pytest.raises(ValueError, match="no singular value to summarize"):
        isometry.summary(jnp.zeros((2, 0)))


@pytest.mark.parametrize("spatial", ((2, 4), (4,), (4, 4, 4)))
def test_images_that_do_not_hold_the_window_are_refused(spatial):
    with pytest.raises(ValueError, match=r"The window at \['kernel'\] is \(3, 3\), but `spatial` is"):
        isometry.layer_singular_values({"kernel": jnp.ones((3, 3, 2, 2))}, spatial=spatial)


@pytest.mark.parametrize("dtype", (jnp.bfloat16, jnp.float16))
def test_half_precision_is_widened(dtype):
    dense, kernel = (jax.random.normal(jax.random.key(0), shape).astype(dtype) for shape in ((4, 3), (3, 2, 2)))
    params = {"dense": dense, "kernel": kernel}
    found = isometry.layer_singular_values(params, spatial=(5,))
    expected = isometry.layer_singular_values(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params), spatial=(5,))
    for path, values in expected.items():
        np.testing.assert_allclose(found[path], values, rtol=SINGLE_ROUNDING)
    x = jnp.ones((2, 4), dtype)
    assert isometry.jacobian_singular_values(lambda params, x: x @ params["dense"], params, x).shape == (2, 3)
