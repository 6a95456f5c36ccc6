import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.measure import factorization_check
from experiments.networks import twins
from pathjax import ntk

SHAPE = (4, 4, 1)


def model_of(width):
    return twins.MODELS["fc"](SHAPE, 3, width=width)


def test_kernels_are_kaiming_normal_and_biases_start_at_zero():
    params = model_of(300).init(jax.random.key(0))["params"]
    assert {name: layer["kernel"].shape for name, layer in params.items()} == {
        "Dense_0": (16, 300),
        "Dense_1": (300, 300),
        "Dense_2": (300, 300),
        "Dense_3": (300, 3),
    }
    for layer in params.values():
        assert not layer["bias"].any()
    kernel = np.asarray(params["Dense_1"]["kernel"])
    np.testing.assert_allclose(kernel.var(), 2 / 300, rtol=0.02)
    # a normal and no truncated one: 4.6% beyond two standard deviations
    np.testing.assert_allclose(np.mean(np.abs(kernel) > 2 * kernel.std()), 0.0455, rtol=0.05)


def test_outputs_are_one_row_per_image():
    model = model_of(5)
    assert model.apply(model.init(jax.random.key(0)), jnp.ones((7, *SHAPE))).shape == (7, 3)


def placed(twin, params):
    """The weights in the places of the twin: the same layers in the same order, biases with more axes of size 1."""
    _, places = jax.eval_shape(lambda key: twin.init(key, (1, *SHAPE)), jax.random.key(0))
    slots, tree = jax.tree.flatten(places)
    layers = sorted(params["params"].items(), key=lambda named: (named[0].startswith("Dense"), named[0]))
    leaves = [layer[part] for _, layer in layers for part in ("kernel", "bias")]
    if not layers[0][0].startswith("Conv"):
        assert [slot.ndim for slot in slots] == [2] * len(slots)
    return jax.tree.unflatten(tree, [leaf.reshape(slot.shape) for leaf, slot in zip(leaves, slots, strict=True)])


@pytest.mark.parametrize("name", twins.MODELS)
def test_network_and_twin_are_the_same_function_of_the_same_weights(name):
    model = twins.MODELS[name](SHAPE, 3, width=7)
    x = jax.random.normal(jax.random.key(1), (5, *SHAPE))
    keys = iter(jax.random.split(jax.random.key(2), 8))
    # biases too, which start at zero
    params = jax.tree.map(
        lambda leaf: leaf.astype(float) + 0.1 * jax.random.normal(next(keys), leaf.shape),
        model.init(jax.random.key(0)),
    )
    twin = model.twin()
    np.testing.assert_allclose(twin.apply(placed(twin, params), x), model.apply(params, x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", twins.MODELS)
def test_network_and_twin_draw_weights_of_the_same_size(name):
    model = twins.MODELS[name](SHAPE, 3, width=64)
    twin = model.twin()
    theirs = jax.tree.leaves(twin.init(jax.random.key(0), (1, *SHAPE))[1])
    ours = jax.tree.leaves(placed(twin, model.init(jax.random.key(1))))
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.shape == other.shape
        np.testing.assert_allclose(jnp.std(mine), jnp.std(other), rtol=6 / mine.size**0.5)


# one network is about a half off at such widths, the mean of many within the noise of its own
@pytest.mark.parametrize(("name", "width"), [("fc", 100), ("conv_pool_residual", 32)])
def test_the_mean_ntk_over_seeds_is_near_that_of_the_infinite_twin(name, width):
    model = twins.MODELS[name](SHAPE, 3, width=width)
    x = jax.random.normal(jax.random.key(1), (4, *SHAPE), jnp.float32)
    kernel_of = jax.jit(lambda key: ntk.empirical(model.apply, model.init(key), x))
    mean = sum(kernel_of(key) for key in jax.random.split(jax.random.key(0), 60)) / 60
    assert ntk.relative_distance(mean, ntk.infinite(model.kernel_fn, x)) < 0.15


def test_the_factorization_holds_on_listed_paths():
    assert factorization_check.factorization_error() < 1e-10
