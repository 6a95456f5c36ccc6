"""The networks of the study: their published sizes, and that pathjax reads them."""

import re
from typing import Any

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.base.errors import InputError
from experiments.measure.pruning import layer_name
from experiments.networks import architectures, layers, modules, nnx_example
from experiments.networks.architectures import ARCHITECTURES as NETWORKS
from experiments.networks.by_name import scaled
from experiments.networks.layers import RESHAPES, bind
from experiments.networks.twins import has_twin
from pathjax import paths
from tests.tolerances import EXACT, ROUNDING

# for ten classes; the counts of VGG are those of PyTorch's common code without its biases before batch norm
PUBLISHED = {
    "lenet_300_100": 266_610,
    "lenet_5": 431_080,
    "lenet_5_caffe": 431_080,
    "vgg_11": 9_231_114 - 2_752,
    "vgg_16": 14_728_266 - 4_224,
    "resnet_20": 269_722,
    "resnet_32": 464_154,
    "resnet_56": 853_018,
    "resnet_18": 11_173_962,
    "wrn_16_8": 10_961_370,
    "wrn_28_10": 36_479_194,
}

SHAPE = (16, 16, 2)


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def sizes(network):
    return tuple(map(count, jax.eval_shape(network.init, jax.random.key(0))))


def test_every_network_has_a_published_size():
    assert set(PUBLISHED) == set(NETWORKS)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_have_the_published_number_of_parameters(name):
    assert sizes(NETWORKS[name]((28, 28, 1) if "lenet" in name else (32, 32, 3), 10))[0] == PUBLISHED[name]


@pytest.mark.parametrize(("depth", "published"), ((20, 272_474), (32, 466_906), (56, 855_770)))
def test_projecting_shortcuts_have_the_published_number_of_parameters(depth, published):
    assert sizes(architectures.resnet((32, 32, 3), 10, depth=depth, shortcut="project"))[0] == published


def narrow(make, most=5, **options):
    """A network of a few units everywhere, more in later stages."""
    widths = make(SHAPE, 3, **options).widths
    table = {
        name: 2 + int(name[len("stage_")]) if name.startswith("stage_") else most
        for name in widths
        if name != layers.OUTPUTS
    }
    return make(SHAPE, 3, widths=table, **options)


def drawn(network, *, moved=True, seed=0):
    """Parameters and state in float64; with `moved`, biases, scales and statistics are not those of the start."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        if leaf.ndim > 1:
            return rng.standard_normal(leaf.shape) * (2 / np.prod(leaf.shape[:-1])) ** 0.5
        return (path[-1].key in ("scale", "var")) + moved * 0.2 * rng.uniform(-1, 1, leaf.shape)

    like = jax.eval_shape(network.init, jax.random.key(0))
    return jax.tree_util.tree_map_with_path(lambda path, leaf: jnp.asarray(draw(path, leaf)), like)


SMALL: dict[str, tuple[Any, dict[str, Any]]] = {
    "lenet_300_100": (NETWORKS["lenet_300_100"], {}),
    "lenet_300_100 normed": (NETWORKS["lenet_300_100"], {"batch_norm": True}),
    "lenet_5": (NETWORKS["lenet_5"], {"init": "orthogonal"}),
    "lenet_5_caffe": (NETWORKS["lenet_5_caffe"], {"init": "lecun"}),
    "vgg_11": (NETWORKS["vgg_11"], {"activation": "leaky_relu"}),
    "vgg_11 plain": (NETWORKS["vgg_11"], {"batch_norm": False, "init": "delta_orthogonal"}),
    "resnet_8": (architectures.resnet, {"depth": 8}),
    "resnet_8 ntk": (architectures.resnet, {"depth": 8, "shortcut": "project", "init": "ntk"}),
    "resnet_8 plain": (architectures.resnet, {"depth": 8, "batch_norm": False, "activation": "linear"}),
    "resnet_18": (architectures.resnet_18, {}),
    "wrn_10_2": (architectures.wide_resnet, {"depth": 10, "factor": 2}),
    "wrn_10_1": (architectures.wide_resnet, {"depth": 10, "factor": 1, "batch_norm": False}),
}


def small(name):
    make, options = SMALL[name]
    return narrow(make, **options)


def sum_pool(x):
    return 4 * flax.linen.avg_pool(x, (2, 2), (2, 2)) if min(x.shape[1:3]) > 1 else x


@pytest.mark.parametrize("name", SMALL)
def test_path_norm_is_the_output_of_the_network_itself_with_positive_weights(name, monkeypatch):
    """Activations pass on what is not negative, so that sums in place of the maxima of windows open all gates."""
    network = small(name)
    params, state = drawn(network)
    x = jnp.ones((1, *SHAPE))
    norm = jax.jit(lambda params, x: paths.log_path_norm(bind(network, state), params, x))(params, x)
    monkeypatch.setitem(layers.RESHAPES, "max_pool", sum_pool)
    # batch norm subtracts its means
    positive = {"mean": lambda leaf: -jnp.abs(leaf), "var": lambda leaf: leaf}
    state = jax.tree_util.tree_map_with_path(lambda path, leaf: positive[path[-1].key](leaf), state)
    opened = jax.jit(network.apply)(jax.tree.map(jnp.abs, params), state, x)
    np.testing.assert_allclose(norm, np.log(opened.sum()), rtol=EXACT)


@pytest.mark.parametrize("name", SMALL)
def test_training_mode_takes_statistics_of_the_batch_and_moves_those_that_run(name):
    network = small(name)
    params, state = drawn(network, moved=False)
    x = 3.0 + jax.random.normal(jax.random.key(1), (8, *SHAPE))
    train = jax.jit(network.train)
    outputs, new = train(params, state, x)
    jax.tree.map(lambda old, moved: None, state, new)  # of one structure, or this raises
    if not network.options.batch_norm:
        assert state == new == {}
        np.testing.assert_allclose(outputs, network.apply(params, state, x), rtol=EXACT)
        return
    assert all(jax.tree.leaves(jax.tree.map(lambda old, moved: (old != moved).any(), state, new)))
    for _ in range(200):
        _, new = train(params, new, x)
    # Flax takes the biased variance of the batch, here and there; 0.9 to the power 200 is left of the start
    np.testing.assert_allclose(jax.jit(network.apply)(params, new, x), outputs, rtol=1e-6, atol=1e-6)


def test_batch_norm_and_shortcuts_are_where_the_papers_have_them():
    layers = {layer.name: layer for layer in architectures.resnet(SHAPE, 3, depth=14).layers}
    assert [name for name, layer in layers.items() if layer.stride == 2] == [f"stage_{s}_block_0_a" for s in (1, 2)]
    assert all(layer.normed and layer.active for name, layer in layers.items() if name != "dense")
    wide = {layer.name: layer for layer in architectures.wide_resnet(SHAPE, 3, depth=16, factor=2).layers}
    assert [name for name, layer in wide.items() if "shortcut" in name] == [
        f"stage_{s}_block_0_shortcut" for s in range(3)
    ]
    assert wide["stage_1_block_0_shortcut"].through == wide["stage_1_block_0_a"].through == "stage_1_block_0_norm"
    assert [name for name, layer in wide.items() if layer.normed] == [name for name in wide if name.endswith("_a")]


def by_hand(params, state, x):
    """A ResNet-8 with zeros in its shortcuts, in plain JAX."""

    def norm(x, name):
        found, given = state["batch_stats"][name], params[name]
        return (x - found["mean"][None, None, None]) / jnp.sqrt(found["var"] + 1e-5)[None, None, None] * given["scale"][
            None, None, None
        ] + given["bias"][None, None, None]

    def conv(x, name, stride):
        return norm(
            jax.lax.conv_general_dilated(
                x, params[name]["kernel"], (stride,) * 2, [(1, 1)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
            ),
            f"{name}_norm",
        )

    x = jax.nn.relu(conv(x, "stem", 1))
    for stage in range(3):
        name = f"stage_{stage}_block_0"
        h = conv(jax.nn.relu(conv(x, f"{name}_a", 2 if stage else 1)), f"{name}_b", 1)
        if stage:
            x = x[:, ::2, ::2]
            more = h.shape[-1] - x.shape[-1]
            x = jnp.pad(x, [(0, 0)] * 3 + [(more // 2, more - more // 2)])
        x = jax.nn.relu(x + h)
    return x.mean(axis=(1, 2)) @ params["dense"]["kernel"] + params["dense"]["bias"][None]


def test_a_resnet_is_that_written_by_hand():
    network = architectures.resnet(SHAPE, 3, depth=8, widths={"stage_0": 2, "stage_1": 5, "stage_2": 7})
    params, state = drawn(network)
    x = jax.random.normal(jax.random.key(1), (2, *SHAPE))
    np.testing.assert_allclose(jax.jit(network.apply)(params, state, x), jax.jit(by_hand)(params, state, x), rtol=EXACT)


@pytest.mark.parametrize("activation", layers.SLOPES)
def test_kaiming_kernels_keep_the_size_of_activations(activation):
    network = architectures.fully_connected((8, 8, 1), 400, depth=1, widths={"hidden_0": 500}, activation=activation)
    params, _ = network.init(jax.random.key(0))
    slope = layers.SLOPES[activation]
    np.testing.assert_allclose(jnp.var(params["dense"]["kernel"]), 2 / (1 + slope**2) / 500, rtol=0.02)


def test_lecun_kernels_keep_the_size_of_what_is_linear_and_have_no_tails():
    network = architectures.fully_connected((8, 8, 1), 400, depth=1, widths={"hidden_0": 500}, init="lecun")
    kernel = network.init(jax.random.key(0))[0]["dense"]["kernel"]
    np.testing.assert_allclose(jnp.var(kernel), 1 / 500, rtol=0.02)
    assert float(jnp.max(jnp.abs(kernel))) < 2.3 / 500**0.5


def test_convolutions_of_caffes_lenet_are_linear_up_to_pooling():
    network = NETWORKS["lenet_5_caffe"]((28, 28, 1), 3)
    plain = NETWORKS["lenet_5"]((28, 28, 1), 3)
    params, state = network.init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (2, 28, 28, 1), jnp.float32)
    negative = params | {"conv_1": {"kernel": -jnp.abs(params["conv_1"]["kernel"]), "bias": params["conv_1"]["bias"]}}
    positive = negative | {"conv_0": {"kernel": jnp.abs(params["conv_0"]["kernel"]), "bias": jnp.zeros(20)}}
    ours, theirs = (each.apply(positive, state, jnp.abs(x)) for each in (network, plain))
    # all outputs of the second convolution are negative, so a ReLU there lets nothing through
    np.testing.assert_array_equal(theirs[0], theirs[1])
    assert not np.allclose(ours[0], ours[1])


def test_orthogonal_kernels_are_orthogonal_and_delta_orthogonal_ones_in_the_middle_alone():
    for init in ("orthogonal", "delta_orthogonal"):
        network = architectures.vgg(SHAPE, 3, depth=11, init=init)
        table = dict.fromkeys(network.widths, 9) | {"conv_0_0": 6, layers.OUTPUTS: 3}
        network = network.resized(table)
        kernel = np.asarray(network.init(jax.random.key(0))[0]["conv_1_0"]["kernel"], np.float64)
        rows = kernel.reshape(-1, 9) if init == "orthogonal" else kernel[1, 1]
        gram = rows.T @ rows if init == "orthogonal" else rows @ rows.T
        np.testing.assert_allclose(gram, 2 * np.eye(len(gram)), atol=1e-5)
    assert np.count_nonzero(np.abs(kernel).sum(axis=(2, 3))) == 1


def test_orthogonal_kernels_of_several_seeds_are_decomposed_one_by_one():
    network = architectures.fully_connected(SHAPE, 3, widths={"hidden_0": 9}, init="orthogonal")
    program = jax.jit(jax.vmap(network.init)).lower(jax.random.split(jax.random.key(0), 71))
    calls = re.findall(r"custom_call @lapack_.*", program.as_text())
    assert calls and not any("<71x" in call for call in calls)


def test_ntk_weights_are_standard_normal_and_the_network_that_of_kaiming():
    make = lambda init: architectures.fully_connected(SHAPE, 3, widths={"hidden_0": 90}, init=init)  # noqa: E731
    params, state = make("ntk").init(jax.random.key(0))
    np.testing.assert_allclose(jnp.std(params["hidden_0"]["kernel"]), 1.0, rtol=0.02)
    scaled = {
        name: layer | {"kernel": layer["kernel"] * (2 / len(layer["kernel"])) ** 0.5} for name, layer in params.items()
    }
    x = jax.random.normal(jax.random.key(1), (2, *SHAPE), jnp.float32)
    np.testing.assert_allclose(
        make("ntk").apply(params, state, x), make("kaiming").apply(scaled, state, x), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("shape", ((28, 28, 1), (17, 20, 3), (64, 64, 3)))
@pytest.mark.parametrize("name", ("lenet_300_100", "lenet_5", "vgg_16", "resnet_20", "resnet_18"))
def test_images_may_have_any_shape(name, shape):
    network = NETWORKS[name](shape, 7)
    params, state = jax.eval_shape(network.init, jax.random.key(0))
    x = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    assert jax.eval_shape(network.apply, params, state, x).shape == (2, 7)


# plain Flax modules

USUAL = {"activation": "relu", "init": "kaiming"}
"""The options that a config gives every network."""


class Normed(flax.linen.Module):
    """A linen module in which a part is repeated, so that layers have one name in several places."""

    width: int

    @flax.linen.compact
    def __call__(self, x, train):
        x = flax.linen.Dense(self.width)(x)
        return flax.linen.relu(flax.linen.BatchNorm(use_running_average=not train, momentum=0.9)(x))


class Linen(flax.linen.Module):
    """Two parts, of which the first comes last in the order of names."""

    outputs: int

    @flax.linen.compact
    def __call__(self, x, training=False):
        x = Normed(5, name="z")(x.reshape(len(x), -1), training)
        return flax.linen.Dense(self.outputs)(Normed(4, name="a")(x, training))


def linen(shape, outputs):
    return Linen(outputs)


def nnx_network(shape, outputs, *, rngs, batch_norm=True):
    return nnx_example.fully_connected(shape, outputs, rngs=rngs, width=5, batch_norm=batch_norm)


def own(function, **options):
    return modules.network_of_module("mine:network", function, SHAPE, 3, USUAL | options)


def linen_by_hand(params, state, x, *, training):
    """`Linen` in NumPy; in training mode with the statistics of the batch."""
    params, state, x = jax.tree.map(np.asarray, (params, state, x.reshape(len(x), -1)))
    for name in ("z", "a"):
        dense, norm, running = params[name]["Dense_0"], params[name]["BatchNorm_0"], state["batch_stats"][name]
        x = x @ dense["kernel"] + dense["bias"]
        mean, variance = (running["BatchNorm_0"][key] for key in ("mean", "var"))
        if training:
            mean, variance = x.mean(0), x.var(0)
        x = np.maximum((x - mean) / np.sqrt(variance + 1e-5) * norm["scale"] + norm["bias"], 0)
    return x @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]


def test_a_plain_linen_module_is_a_network_in_training_and_in_evaluation_mode():
    network = own(linen)
    params, state = drawn(network)
    x = jax.random.normal(jax.random.key(1), (6, *SHAPE))
    found = jax.jit(network.apply)(params, state, x)
    np.testing.assert_allclose(found, linen_by_hand(params, state, x, training=False), rtol=EXACT, atol=EXACT)
    found, new = jax.jit(network.train)(params, state, x)
    np.testing.assert_allclose(found, linen_by_hand(params, state, x, training=True), rtol=EXACT, atol=EXACT)
    dense = jax.tree.map(np.asarray, params["z"]["Dense_0"])
    first = np.asarray(x).reshape(6, -1) @ dense["kernel"] + dense["bias"]
    moved = 0.9 * state["batch_stats"]["z"]["BatchNorm_0"]["mean"] + 0.1 * first.mean(0)
    np.testing.assert_allclose(new["batch_stats"]["z"]["BatchNorm_0"]["mean"], moved, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("batch_norm", (False, True))
def test_a_network_of_nnx_has_the_same_interface(batch_norm):
    network = own(nnx_network, batch_norm=batch_norm)
    params, state = jax.vmap(network.init)(jax.random.split(jax.random.key(0), 2))
    first, second = (params["layers"][1]["kernel"][seed] for seed in range(2))
    assert (first != second).all()  # each seed has its own weights
    params, state = jax.tree.map(lambda leaf: leaf[0], (params, state))
    x = jax.random.normal(jax.random.key(1), (4, *SHAPE), jnp.float32)
    outputs, new = jax.jit(network.train)(params, state, x)
    assert outputs.shape == (4, 3)
    jax.tree.map(lambda old, moved: None, state, new)  # of one structure, or this raises
    assert bool(state) == batch_norm
    assert np.isfinite(paths.log_path_norm(bind(network, state), params, x))
    assert (network.apply(params, new, x) != network.apply(params, state, x)).any() == batch_norm


def test_layers_of_a_plain_module_are_named_by_their_paths_in_the_order_of_their_use():
    network = own(linen)
    kernels = [layer_name(path) for path in network.order if path.endswith("['kernel']")]
    assert kernels == ["z/Dense_0", "a/Dense_0", "Dense_0"]
    assert [layer_name(path) for path in own(nnx_network).order[::2]] == ["layers/1", "layers/2", "layers/4"]
    assert not network.layers and not network.widths and not has_twin(network)


def dropout(shape, outputs):
    flat = lambda x: x.reshape(len(x), -1)  # noqa: E731
    return flax.linen.Sequential([flat, flax.linen.Dropout(0.5, deterministic=False), flax.linen.Dense(outputs)])


def nnx_dropout(shape, outputs, *, rngs):
    return nnx.Sequential(nnx.Dropout(0.5, rngs=rngs), nnx.Linear(2, outputs, rngs=rngs))


def untold(shape, outputs):
    flat = lambda x: x.reshape(len(x), -1)  # noqa: E731
    return flax.linen.Sequential([flat, flax.linen.BatchNorm(use_running_average=False), flax.linen.Dense(outputs)])


def raising(shape, outputs):
    raise ValueError("No images\nof this size.")


REFUSED = {
    "dropout": (dropout, "draws random numbers when it is applied, as dropout does; take the dropout out for a study."),
    "nnx dropout": (nnx_dropout, "keeps random numbers, as for dropout; beside its weights"),
    "untold": (untold, "has batch norm, but is not told when it is trained; give its __call__ the argument train."),
    "drawn": (
        lambda shape, outputs: nnx.Linear(2, 3, rngs=nnx.Rngs(0)),
        "give the function the argument rngs and draw",
    ),
    "a number": (lambda shape, outputs: 3, "gives a value of the type int; it has to give a Flax module, linen or NNX"),
    "a number from rngs": (lambda shape, outputs, rngs: 3, "gives a value of the type int and no NNX module"),
    "raising": (raising, "cannot be made: ValueError: No images (" + __file__),
    "images out": (
        lambda shape, outputs: flax.linen.Dense(3),
        "gives outputs of shape (2, 16, 16, 3) for 2 images of 3",
    ),
    "no weights": (lambda shape, outputs: flax.linen.Sequential([lambda x: x[:, 0, 0]]), "has no weights, so there is"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_modules_that_a_study_cannot_train_are_refused_in_one_sentence(name):
    function, words = REFUSED[name]
    with pytest.raises(InputError) as caught:
        own(function)
    message = str(caught.value)
    assert words in message and "mine:network" in message and message.endswith(".") and "\n" not in message


def test_options_that_a_function_does_not_take_are_refused_where_they_are_set():
    with pytest.raises(InputError, match="mine:network does not take activation, which the config sets"):
        own(linen, activation="linear")
    with pytest.raises(InputError, match="does not take batch_norm"):
        own(linen, batch_norm=False)
    taken = {}
    own(lambda shape, outputs, **options: taken.update(options) or Linen(outputs), batch_norm=False)
    assert taken == USUAL | {"batch_norm": False}


def test_the_widths_of_a_plain_module_cannot_be_scaled():
    assert scaled(own(linen), 1.0).order
    with pytest.raises(InputError, match="no table of widths, so model.factor cannot change it; give its function"):
        scaled(own(linen), 0.5)


# errors


def test_what_there_is_not_is_refused_by_name():
    for wrong, words in (
        ({"activation": "tanh"}, 'Unknown activation "tanh". There are relu, leaky_relu, linear.'),
        ({"init": "zeros"}, 'Unknown init "zeros". There are kaiming, lecun, orthogonal, delta_orthogonal, ntk.'),
        ({"widths": {"conv_0": 3}}, "No units are named conv_0. `widths` may have stage_0, "),
        ({"widths": {"stage_0": 0}}, "Widths must be at least 1; that of stage_0 is 0."),
        ({"shortcut": "none"}, 'Unknown shortcut "none". There are pad, project.'),
        ({"depth": 18}, r"6 n \+ 2, as 20, 32 and 56; got 18."),
    ):
        with pytest.raises(ValueError, match=words):
            architectures.resnet(SHAPE, 3, **wrong)
    with pytest.raises(ValueError, match=r"6 n \+ 4, as 16 and 28; got 20."):
        architectures.wide_resnet(SHAPE, 3, depth=20)
    with pytest.raises(ValueError, match="VGG has depth 11 or 16; got 13."):
        architectures.vgg(SHAPE, 3, depth=13)
    with pytest.raises(ValueError, match="LeNet-5 needs images of 16 × 16 or more; these are 8 × 20."):
        architectures.lenet_5((8, 20, 1), 3)
    with pytest.raises(ValueError, match="cannot go from 5 channels to 4. Make later stages as wide"):
        architectures.resnet(SHAPE, 3, widths={"stage_0": 5, "stage_1": 4}).init(jax.random.key(0))


@pytest.mark.parametrize("shape", [(3, 6, 4, 2), (2, 5, 7, 3), (4, 1, 1, 5), (2, 1, 3, 2)])
def test_max_pooling_and_its_gradient_are_those_of_flax(shape):
    x = jax.random.normal(jax.random.key(0), shape)
    pooled = RESHAPES["max_pool"](x)
    expected = flax.linen.max_pool(x, (2, 2), (2, 2)) if min(shape[1:3]) > 1 else x
    assert jnp.array_equal(pooled, expected)
    if min(shape[1:3]) > 1:
        ours = jax.grad(lambda x: jnp.sum(RESHAPES["max_pool"](x) ** 3))(x)
        theirs = jax.grad(lambda x: jnp.sum(flax.linen.max_pool(x, (2, 2), (2, 2)) ** 3))(x)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=ROUNDING * float(jnp.max(jnp.abs(theirs))))
