"""The networks with a known infinite-width limit: they and their twins are the same function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.measure.factorization_check import factorization_error
from experiments.networks import architectures, twins
from experiments.networks.layers import OUTPUTS, bind
from experiments.networks.shrink import shrink
from experiments.networks.twins import TWINS, has_twin, twin_of
from pathjax import masks, ntk

SHAPE = (4, 4, 1)


def network_of(name, width):
    network = TWINS[name](SHAPE, 3)
    return network.resized({units: width for units in network.widths if units != OUTPUTS})


def test_kernels_are_kaiming_normal_and_biases_start_at_zero():
    params, state = network_of("fc", 300).init(jax.random.key(0))
    assert state == {}
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


def test_names_of_layers_and_the_drawn_weights_stay():
    # written down once: results that were kept must go on with the same weights
    drawn = {name: network_of(name, 3).init(jax.random.key(0))[0] for name in ("fc", "conv_pool_residual")}
    assert list(drawn["fc"]) == ["Dense_0", "Dense_1", "Dense_2", "Dense_3"]
    assert sorted(drawn["conv_pool_residual"]) == ["Conv_0", "Conv_1", "Conv_2", "Dense_0"]
    firsts = [drawn["fc"]["Dense_1"]["kernel"][0, 0], drawn["conv_pool_residual"]["Conv_1"]["kernel"][0, 0, 0, 0]]
    np.testing.assert_allclose(firsts, [0.0025037888, -0.03360659], rtol=1e-6)


def placed(twin, params):
    """The weights in the places of the twin: the same layers in the same order, biases with more axes of size 1."""
    _, places = jax.eval_shape(lambda key: twin.init(key, (1, *SHAPE)), jax.random.key(0))
    slots, tree = jax.tree.flatten(places)
    layers = sorted(params.items(), key=lambda named: (named[0].startswith("Dense"), named[0]))
    leaves = [layer[part] for _, layer in layers for part in ("kernel", "bias")]
    if not layers[0][0].startswith("Conv"):
        assert [slot.ndim for slot in slots] == [2] * len(slots)
    return jax.tree.unflatten(tree, [leaf.reshape(slot.shape) for leaf, slot in zip(leaves, slots, strict=True)])


def with_biases(network):
    """Parameters in double precision with random biases, which start at zero."""
    keys = iter(jax.random.split(jax.random.key(2), 8))
    return jax.tree.map(
        lambda leaf: leaf.astype(float) + 0.1 * jax.random.normal(next(keys), leaf.shape),
        network.init(jax.random.key(0))[0],
    )


@pytest.mark.parametrize("name", TWINS)
def test_network_and_twin_are_the_same_function_of_the_same_weights(name):
    network = network_of(name, 7)
    x = jax.random.normal(jax.random.key(1), (5, *SHAPE))
    params = with_biases(network)
    twin = twin_of(network)
    np.testing.assert_allclose(twin.apply(placed(twin, params), x), network.apply(params, {}, x), rtol=0, atol=1e-12)
    trained, state = network.train(params, {}, x)
    np.testing.assert_array_equal(trained, network.apply(params, {}, x))
    assert state == {}


@pytest.mark.parametrize("name", TWINS)
def test_network_and_twin_draw_weights_of_the_same_size(name):
    network = network_of(name, 64)
    twin = twin_of(network)
    theirs = jax.tree.leaves(twin.init(jax.random.key(0), (1, *SHAPE))[1])
    ours = jax.tree.leaves(placed(twin, network.init(jax.random.key(1))[0]))
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.shape == other.shape
        np.testing.assert_allclose(jnp.std(mine), jnp.std(other), rtol=6 / mine.size**0.5)


@pytest.mark.parametrize("name", ["fc_residual", "conv_pool_residual"])
def test_residual_twins_shrink_to_the_same_outputs(name):
    network = network_of(name, 6)
    params = with_biases(network)
    # units 1 and 4 of the stream are neither written nor read
    mask = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), params)
    for layer in network.layers:
        kernel = mask[layer.name]["kernel"]
        if layer.writes != OUTPUTS:
            kernel = kernel.at[..., jnp.array([1, 4])].set(False)
            mask[layer.name]["bias"] = mask[layer.name]["bias"].at[jnp.array([1, 4])].set(False)
        if layer.reads == "hidden_0":
            axes = (*[slice(None)] * (kernel.ndim - 2), jnp.array([1, 4]))
            if name.startswith("conv") or layer.writes != OUTPUTS:
                kernel = kernel.at[axes].set(False)
        mask[layer.name]["kernel"] = kernel
    small = shrink(network, params, {}, mask)
    assert small.units["hidden_0"] == (0, 2, 3, 5)
    x = jax.random.normal(jax.random.key(1), (3, *SHAPE))
    whole = network.apply(masks.apply_mask(mask, params), {}, x)
    np.testing.assert_allclose(small.network.apply(small.params, small.state, x), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("network", "known"),
    [
        (twins.fully_connected(SHAPE, 3, depth=1), True),
        (architectures.fully_connected(SHAPE, 3), True),
        (twins.fully_connected(SHAPE, 3, batch_norm=True), False),
        (twins.fully_connected(SHAPE, 3, activation="leaky_relu"), False),
        (twins.fully_connected(SHAPE, 3, init="orthogonal"), False),
        (architectures.vgg((8, 8, 1), 3, depth=11, batch_norm=False), False),
        (architectures.resnet((8, 8, 1), 3, depth=8, batch_norm=False), False),
    ],
)
def test_which_networks_have_a_twin(network, known):
    assert has_twin(network) == known
    if not known:
        with pytest.raises(ValueError, match="not known"):
            twin_of(network)


# the kernel of one network is about half off at such widths, the mean of many is within its own noise
@pytest.mark.parametrize(("name", "width"), [("fc", 100), ("conv_pool_residual", 32)])
def test_the_mean_ntk_over_seeds_is_near_that_of_the_infinite_twin(name, width):
    network = network_of(name, width)
    x = jax.random.normal(jax.random.key(1), (4, *SHAPE), jnp.float32)
    kernel_of = jax.jit(lambda key: ntk.empirical(bind(network, {}), network.init(key)[0], x))
    mean = sum(kernel_of(key) for key in jax.random.split(jax.random.key(0), 60)) / 60
    assert ntk.relative_distance(mean, ntk.infinite(twin_of(network).kernel_fn, x)) < 0.15


def test_the_factorization_holds_on_listed_paths():
    assert factorization_error() < 1e-10
