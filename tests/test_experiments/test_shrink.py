"""Smaller networks from masks: the same outputs from fewer units."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.networks import architectures, layers, shrink
from pathjax import masks, pruning, scores
from tests.test_experiments.test_networks import SHAPE, SMALL, count, drawn, small

TOLERANCE = 1e-12


def random_mask(params, density, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: (rng.random(leaf.shape) < density) | (leaf.ndim < 2), params)


def assert_equal_outputs(network, params, state, mask, smaller):
    x = jax.random.normal(jax.random.key(9), (3, *SHAPE))
    before = jax.jit(network.apply)(masks.apply_mask(mask, params), state, x)
    after = jax.jit(smaller.network.apply)(smaller.params, smaller.state, x)
    np.testing.assert_allclose(after, before, rtol=0, atol=TOLERANCE * (1 + float(jnp.abs(before).max())))
    return before


@pytest.mark.parametrize("density", (0.2, 0.04))
@pytest.mark.parametrize("name", SMALL)
def test_outputs_stay(name, density):
    network = small(name)
    params, state = drawn(network)
    mask = random_mask(params, density)
    smaller = shrink.shrink(network, params, state, mask)
    assert_equal_outputs(network, params, state, mask, smaller)
    assert {unit: len(kept) for unit, kept in smaller.units.items()} == smaller.network.widths
    if density < 0.1:
        assert count(smaller.params) < count(params)
    # nothing is left to take
    everything = jax.tree.map(lambda leaf: leaf != 0, smaller.params)
    again = shrink.shrink(smaller.network, smaller.params, smaller.state, everything)
    assert again.network.widths == smaller.network.widths


@pytest.mark.parametrize("name", SMALL)
def test_without_pruning_every_unit_stays(name):
    network = small(name)
    params, state = drawn(network)
    smaller = shrink.shrink(network, params, state, jax.tree.map(lambda leaf: leaf == leaf, params))
    assert smaller.network.widths == network.widths
    for name, layer in params.items():
        for part, leaf in layer.items():
            scale = layers.kernel_scale(network.options, leaf.shape) if part == "kernel" else 1.0
            np.testing.assert_allclose(smaller.params[name][part], scale * leaf, rtol=1e-14)


def chain(widths=(4, 5, 6), activation="relu", batch_norm=False):
    table = {f"hidden_{i}": width for i, width in enumerate(widths)}
    network = architectures.fully_connected(
        (2, 2, 1), 3, depth=len(widths), widths=table, activation=activation, batch_norm=batch_norm
    )
    return network, *drawn(network)


def whole(params):
    return jax.tree.map(lambda leaf: np.ones(leaf.shape, bool), params)


def check(network, params, state, mask, widths):
    smaller = shrink.shrink(network, params, state, mask)
    x = jax.random.normal(jax.random.key(9), (3, 2, 2, 1))
    wanted = network.apply(masks.apply_mask(mask, params), state, x)
    np.testing.assert_allclose(smaller.network.apply(smaller.params, smaller.state, x), wanted, rtol=1e-12, atol=1e-13)
    assert list(smaller.network.widths.values()) == [*widths, 3]
    return smaller


def test_units_that_nothing_reads_take_those_before_with_them():
    network, params, state = chain()
    mask = whole(params)
    mask["dense"]["kernel"][[1, 4]] = False  # two of six are read by nothing
    mask["hidden_2"]["kernel"][3, [0, 2, 3, 5]] = False  # one of five is read by these two alone
    smaller = check(network, params, state, mask, (4, 4, 4))
    assert smaller.units["hidden_2"] == (0, 2, 3, 5)
    assert smaller.units["hidden_1"] == (0, 1, 2, 4)


def test_units_that_nothing_writes_are_folded_into_biases_and_take_those_behind_with_them():
    for batch_norm in (False, True):
        network, params, state = chain(batch_norm=batch_norm)
        mask = whole(params)
        mask["hidden_0"]["kernel"][:, 1] = False
        mask["hidden_1"]["kernel"][[0, 2, 3], 4] = False  # this one reads the one above alone
        constant = params["hidden_0"]["bias"][1] if not batch_norm else None
        if constant is not None:
            params["hidden_0"]["bias"] = params["hidden_0"]["bias"].at[1].set(abs(constant) + 0.1)
        check(network, params, state, mask, (3, 4, 6))


@pytest.mark.parametrize("activation", layers.SLOPES)
@pytest.mark.parametrize("bias", (-0.5, 0.0, 0.5))
def test_constants_go_through_the_activation(activation, bias):
    network, params, state = chain(activation=activation)
    params["hidden_1"]["bias"] = params["hidden_1"]["bias"].at[2].set(bias)
    mask = whole(params)
    mask["hidden_1"]["kernel"][:, 2] = False
    check(network, params, state, mask, (4, 4, 6))


def test_a_collapsed_layer_keeps_one_unit_that_nothing_reads():
    network, params, state = chain()
    mask = whole(params)
    mask["hidden_1"]["kernel"][:] = False
    smaller = check(network, params, state, mask, (1, 1, 1))
    assert not smaller.params["dense"]["kernel"].any()


def convolutional(valid):
    """Two convolutions, of which the second pads with zeros or leaves the border out; no batch norm."""
    plan = (
        layers.Layer("one", layers.IMAGE, "one", window=3),
        layers.Layer("two", "one", "two", window=3, valid=valid),
        "flatten",
        layers.Layer("dense", "two", layers.OUTPUTS, normed=False, active=False),
    )
    network = layers.build(SHAPE, plan, {"one": 4, "two": 5, layers.OUTPUTS: 3}, {}, layers.Options(batch_norm=False))
    return network, *drawn(network)


@pytest.mark.parametrize("valid", (False, True))
def test_constant_channels_stay_before_a_convolution_that_pads_and_only_there(valid):
    network, params, state = convolutional(valid)
    params["one"]["bias"] = jnp.array([0.3, 0.4, -0.5, 0.6])
    mask = whole(params)
    mask["one"]["kernel"][..., [1, 2]] = False
    mask["two"]["kernel"][..., 4] = False
    params["two"]["bias"] = jnp.array([0.1, 0.2, 0.1, 0.1, 0.7])  # behind it a dense layer: folded
    smaller = shrink.shrink(network, params, state, mask)
    assert_equal_outputs(network, params, state, mask, smaller)
    assert smaller.units["one"] == ((0, 3) if valid else (0, 1, 3))
    assert smaller.units["two"] == (0, 1, 2, 3)


@pytest.mark.parametrize("shortcut", ("pad", "project"))
def test_channels_of_a_stream_go_where_all_that_write_them_let_them(shortcut):
    network = architectures.resnet(
        SHAPE, 3, depth=14, shortcut=shortcut, widths={"stage_0": 3, "stage_1": 5, "stage_2": 7}
    )
    params, state = drawn(network)
    mask = whole(params)
    writers = [layer for layer in network.layers if layer.writes == "stage_1"]
    for layer in writers[1:]:
        mask[layer.name]["kernel"][..., 0] = False
        params[layer.norm]["bias"] = params[layer.norm]["bias"].at[0].set(-3.0)  # 0 behind the ReLU
    assert shrink.shrink(network, params, state, mask).network.widths["stage_1"] == 5
    mask[writers[0].name]["kernel"][..., 0] = False
    params[writers[0].norm]["bias"] = params[writers[0].norm]["bias"].at[0].set(-3.0)
    smaller = shrink.shrink(network, params, state, mask)
    assert_equal_outputs(network, params, state, mask, smaller)
    assert smaller.units["stage_1"] == (1, 2, 3, 4)


def test_channels_that_a_shortcut_without_weights_writes_stay():
    network = architectures.resnet(SHAPE, 3, depth=8, widths={"stage_0": 3, "stage_1": 5, "stage_2": 7})
    params, state = drawn(network)
    mask = whole(params)
    mask["stage_1_block_0_b"]["kernel"][..., [0, 1]] = False  # 0 is padded, 1 is what channel 0 of stage 0 goes on as
    norm = params["stage_1_block_0_b_norm"]
    norm["bias"] = norm["bias"].at[jnp.array([0, 1])].set(-3.0)
    smaller = shrink.shrink(network, params, state, mask)
    assert_equal_outputs(network, params, state, mask, smaller)
    assert smaller.units["stage_1"] == (1, 2, 3, 4)


def test_channels_go_only_where_they_are_zero_behind_the_norms_that_read_them():
    network = architectures.wide_resnet(SHAPE, 3, depth=16, factor=2, widths={"stage_1": 4})
    params, state = drawn(network, moved=False)
    mask = whole(params)
    for layer in network.layers:
        if layer.writes == "stage_1":
            mask[layer.name]["kernel"][..., 2] = False
    norms = ["stage_1_block_1_norm", "stage_2_block_0_norm"]
    for bias, units in ((0.0, (0, 1, 3)), (-0.5, (0, 1, 3)), (0.5, (0, 1, 2, 3))):
        params[norms[1]]["bias"] = params[norms[1]]["bias"].at[2].set(bias)
        smaller = shrink.shrink(network, params, state, mask)
        assert_equal_outputs(network, params, state, mask, smaller)
        assert smaller.units["stage_1"] == units


@pytest.mark.parametrize("shortcut", ("pad", "project"))
def test_channels_of_a_stream_go_where_nothing_reads_them(shortcut):
    network = architectures.resnet(
        SHAPE, 3, depth=14, shortcut=shortcut, widths={"stage_0": 3, "stage_1": 5, "stage_2": 7}
    )
    params, state = drawn(network)
    mask = whole(params)
    mask["dense"]["kernel"][2] = False
    mask["stage_2_block_1_a"]["kernel"][:, :, 2] = False
    smaller = shrink.shrink(network, params, state, mask)
    assert_equal_outputs(network, params, state, mask, smaller)
    assert smaller.units["stage_2"] == (0, 1, 3, 4, 5, 6)
    # with zeros in the shortcut, channel 1 of stage 1 goes on as channel 2 of stage 2, where nothing reads it now
    for layer in network.layers:
        if layer.reads == "stage_1":
            mask[layer.name]["kernel"][:, :, 1] = False
    smaller = shrink.shrink(network, params, state, mask)
    assert_equal_outputs(network, params, state, mask, smaller)
    assert smaller.units["stage_1"] == (0, 2, 3, 4)


@pytest.mark.parametrize(
    "make",
    (
        lambda: architectures.fully_connected(SHAPE, 3, widths={"hidden_0": 60, "hidden_1": 40}),
        lambda: architectures.lenet_5(SHAPE, 3),
        lambda: architectures.resnet(SHAPE, 3, depth=8),
    ),
    ids=("dense", "convolutional", "residual"),
)
def test_synflow_masks_of_low_density_leave_a_fraction_of_the_units(make):
    network = make()
    params, state = drawn(network, moved=False)
    x_like = jnp.zeros((1, *SHAPE))
    score = lambda params, key: scores.synflow(layers.bind(network, state), params, x_like)  # noqa: E731
    mask = pruning.prune(score, params, density=0.02, rounds=10)
    smaller = shrink.shrink(network, params, state, mask)
    outputs = assert_equal_outputs(network, params, state, mask, smaller)
    assert float(jnp.std(outputs)) > 0
    assert count(smaller.params) < 0.5 * count(params)
