"""Which leaves are kernels, in the networks that people write: nothing but kernels competes."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from flax import nnx
from flax.core import unfreeze
from flax.traverse_util import flatten_dict
from jax.tree_util import tree_map_with_path

from pathjax import masks, scores

from ..tolerances import SINGLE_ROUNDING


class Attention(nn.Module):
    """Biases of attention are (heads, width of a head), positional embeddings (1, tokens, width)."""

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(11, 8)(tokens)
        x = x + self.param("pos_embedding", nn.initializers.normal(), (1, 16, 8))
        x = jnp.concatenate(
            [jnp.tile(self.param("cls", nn.initializers.normal(), (1, 1, 8)), (len(x), 1, 1)), x], axis=1
        )
        x = x + nn.MultiHeadDotProductAttention(num_heads=2)(nn.LayerNorm()(x))
        return nn.Dense(1)(x[:, 0])


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.relu(nn.Dense(17)(nn.LayerNorm()(x))), None


class Scanned(nn.Module):
    """Layers stacked for a scan: every leaf has a first axis of layers."""

    @nn.compact
    def __call__(self, x):
        stacked = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
        return nn.Dense(3)(stacked()(x, None)[0])


class Conv(eqx.Module):
    """Equinox gives convolutions biases of (channels, 1, 1)."""

    first: eqx.nn.Conv2d
    norm: eqx.nn.LayerNorm
    second: eqx.nn.Conv2d
    output: eqx.nn.Linear
    activation: object

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        self.first = eqx.nn.Conv2d(1, 8, 1, key=keys[0])  # its kernel is (8, 1, 1, 1)
        self.norm = eqx.nn.LayerNorm((8, 5, 5))
        self.second = eqx.nn.Conv2d(8, 8, 3, key=keys[1])
        self.output = eqx.nn.Linear(8, 1, key=keys[2])
        self.activation = jax.nn.relu


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 8, (1, 1), rngs=rngs)  # its kernel is (1, 1, 1, 8)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 8, rngs=rngs, decode=False)
        self.table = nnx.Embed(5, 8, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(8, 1, rngs=rngs)])


def stacked_layers(key):
    """Equinox's own way to stack layers for a scan."""
    make = lambda key: {"linear": eqx.nn.Linear(4, 4, key=key), "norm": eqx.nn.LayerNorm(4)}  # noqa: E731
    return eqx.filter_vmap(make)(jax.random.split(key, 3))


def networks():
    """For each network its weights and how many of them lie in kernels, counted by hand."""
    key = jax.random.key(0)
    attention = Attention().init(key, jnp.ones((1, 16), int))["params"]
    scanned = Scanned().init(key, jnp.ones((1, 17)))["params"]
    return {
        "attention": (attention, 4 * 8 * 8 + 8),
        "scanned": (scanned, 2 * 17 * 17 + 17 * 3),
        "equinox": (eqx.filter(Conv(key), eqx.is_inexact_array), 8 + 8 * 8 * 9 + 8),
        "equinox, stacked": (eqx.filter(stacked_layers(key), eqx.is_inexact_array), 3 * 16),
        "nnx": (nnx.state(Nnx(nnx.Rngs(0)), nnx.Param), 8 + 4 * 8 * 8 + 8),
        "nnx arrays": (nnx.to_pure_dict(nnx.state(Nnx(nnx.Rngs(0)), nnx.Param)), 8 + 4 * 8 * 8 + 8),
        "flattened": (flatten_dict(unfreeze(attention)), 4 * 8 * 8 + 8),
        "flattened to strings": (flatten_dict(unfreeze(attention), sep="/"), 4 * 8 * 8 + 8),
        "haiku": ({"linear": {"w": jnp.ones((3, 1)), "b": jnp.ones(1)}, "conv": {"b": jnp.ones((8, 1, 1))}}, 3),
        "stax": ([(jnp.ones((3, 4)), jnp.ones(4)), (), (jnp.ones((4, 1)), jnp.ones(1))], 16),
        "plain": ({"w1": jnp.ones((1, 4)), "b1": jnp.ones((1, 4)), "w2": jnp.ones((4, 1)), "b2": jnp.ones((1, 1))}, 8),
    }


NETWORKS = networks()


@pytest.mark.parametrize("name", NETWORKS)
def test_kernels_alone_compete(name):
    params, kernel_size = NETWORKS[name]
    everything = masks.from_scores(scores.random(params, key=jax.random.key(1)), density=1.0)
    assert int(masks.count(everything)) == kernel_size
    mask = masks.from_scores(scores.random(params, key=jax.random.key(1)), density=0.25)
    assert int(masks.count(mask)) == round(0.25 * kernel_size)
    kept_elsewhere = tree_map_with_path(lambda path, leaf: masks.is_kernel(path, leaf) or bool(leaf.all()), mask)
    assert all(jax.tree.leaves(kept_elsewhere))


@pytest.mark.parametrize("name", ("attention", "scanned", "equinox"))
def test_the_density_is_that_of_the_kernels(name):
    params, kernel_size = NETWORKS[name]
    # small scores for all that is no kernel: it would be pruned first if it competed
    is_named_so = lambda path: any(word in jax.tree_util.keystr(path) for word in ("kernel", "weight"))  # noqa: E731
    small = tree_map_with_path(lambda path, leaf: jnp.full(leaf.shape, float(is_named_so(path))), params)
    mask = masks.from_scores(small, density=0.05)
    assert int(masks.count(mask)) == round(0.05 * kernel_size)
    assert float(masks.density(mask)) == pytest.approx(round(0.05 * kernel_size) / kernel_size, rel=SINGLE_ROUNDING)
    pruned = sum(int((~leaf).sum()) for leaf in jax.tree.leaves(mask))
    assert pruned == kernel_size - round(0.05 * kernel_size)


LEAVES = {
    # of one or no long axis, where the name or the rank says that it is a kernel
    ("kernel", (1, 1, 1, 8)): True,
    ("weight", (8, 1, 1)): True,
    ("anything", (3, 1)): True,
    ("anything", (1, 3)): True,
    ("anything", (1, 1)): True,
    ("anything", (3, 3, 1, 1)): True,
    ("anything", (0, 7)): True,
    ("anything", (1, 1, 8)): False,
    ("anything", (8, 1, 1)): False,
    ("kernel", (8,)): False,
    ("weight", ()): False,
    # biases
    ("bias", (2, 4)): False,
    ("bias_hh", (3, 4)): False,
    ("in_proj_bias", (3, 4)): False,
    ("relative_position_bias_table", (49, 4)): False,
    ("Bias1", (2, 4)): False,
    ("b", (4, 2)): True,
    ("b", (1, 2)): False,
    ("b_1", (1, 2)): False,
    # scales and statistics
    ("layer_scale", (2, 4)): False,
    ("gamma", (2, 4)): False,
    ("running_mean", (2, 4)): False,
    ("negative_slope", (2, 4)): False,
    # tables and tokens
    ("embedding", (100, 4)): False,
    ("positional_embedding", (16, 4)): False,
    ("cls_token", (1, 2, 4)): False,
    ("token_mixing", (16, 4)): True,
    # kernels by other names
    ("recurrent_kernel", (4, 4)): True,
    ("weight_hh", (12, 4)): True,
    ("in_proj_weight", (12, 4)): True,
    ("W1", (1, 1, 4)): True,
    ("alpha", (3, 4)): True,
    ("weight_g", (16, 1, 1, 1)): False,
    ("weight_v", (16, 1, 1, 1)): True,
    ("pos_embs", (16, 8)): False,
    ("codebook", (5, 3)): False,
    ("temperature", (1, 1)): False,
}


@pytest.mark.parametrize(("name", "shape"), LEAVES)
def test_names_and_shapes_decide(name, shape):
    for path in ({name: jnp.ones(shape)}, {"params": {"layer": {name: [jnp.ones(shape)]}}}):
        assert jax.tree.leaves(tree_map_with_path(masks.is_kernel, path)) == [LEAVES[name, shape]]


@pytest.mark.parametrize(
    ("module", "name", "kernel"),
    (
        ("norm1", "weight", False),
        ("LayerNorm_0", "scale", False),
        ("bn2", "weight", False),
        ("ln_f", "weight", False),
        ("token_embedding", "weight", False),
        ("embedding", "kernel", True),  # Flax's vision transformers call their first convolution so
        ("normalized_dense", "kernel", True),
        ("linear", "weight", True),
        ("line", "weight", True),
        ("BatchNormalization_1", "weight", False),
        ("normal_head", "weight", True),
        ("normalized_linear", "weight", True),
        ("emb", "weight", False),
        ("tok_embed", "weight", False),
        ("patch_embedding", "weight", True),  # linear
        ("patch_embed", "weight", True),
    ),
)
def test_the_module_decides_where_a_weight_may_be_a_scale_or_a_table(module, name, kernel):
    tree = {module: {name: jnp.ones((5, 4))}}
    assert jax.tree.leaves(tree_map_with_path(masks.is_kernel, tree)) == [kernel]


def test_nothing_but_biases_is_told_with_the_remedy():
    with pytest.raises(ValueError, match="leaves no weight to prune. By default kernels are prunable.*prunable=lambda"):
        masks.from_scores({"bias": jnp.ones((2, 4))}, density=0.5)
