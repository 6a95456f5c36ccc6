"""What is prunable is read from what a leaf does: kernels are summed over, biases added, scales entry by entry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax.tree_util import keystr, tree_leaves_with_path

from pathjax import connectivity, masks, paths, scores

KEY = jax.random.key(0)
TABLE: dict[str, Callable[[], tuple[Any, Any, Any, set[str]]]] = {}


def case(build: Callable[[], tuple[Any, Any, Any, set[str]]]) -> Any:
    """Enter a network: a function that gives (apply, params, x, the last names of its kernels' key paths)."""
    TABLE[build.__name__] = build
    return build


def linen(module: nn.Module, x: Any, kernels: set[str]) -> tuple[Any, Any, Any, set[str]]:
    params = jax.eval_shape(module.init, KEY, x)["params"]
    return lambda params, x: module.apply({"params": params}, x), params, x, kernels


def equinox(model: Any, x: Any, kernels: set[str]) -> tuple[Any, Any, Any, set[str]]:
    params, rest = eqx.partition(model, eqx.is_inexact_array)
    return lambda params, x: jax.vmap(eqx.combine(params, rest))(x), params, x, kernels


def chosen(apply: Any, params: Any, x: Any, **options: Any) -> set[str]:
    prunable = paths.kernels(apply, params, x, **options)
    return {keystr(path) for path, leaf in tree_leaves_with_path(params) if prunable(path, leaf)}


# Flax linen


@case
def attention_biases():
    model = nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=6, out_features=4)
    kernels = {f"['{name}']['kernel']" for name in ("query", "key", "value", "out")}
    return linen(model, jnp.ones((3, 5, 4)), kernels)


class Transformer(nn.Module):
    """Tokens, positions, blocks under `nn.scan`, and a read-out by the embedding that looks the tokens up."""

    tied: bool

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(11, 4, name="embed")
        h = embed(tokens) + self.param("positions", nn.initializers.normal(), (1, 5, 4))
        h, _ = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)(name="blocks")(
            h, None
        )
        h = nn.LayerNorm(name="norm")(h).mean(1)
        return embed.attend(h) if self.tied else nn.Dense(2, name="head")(h)


class Block(nn.Module):
    @nn.compact
    def __call__(self, h, _):
        h = h + nn.MultiHeadDotProductAttention(num_heads=2, name="attention")(nn.LayerNorm(name="before")(h))
        wide = nn.Dense(6, name="wide")(nn.RMSNorm(name="after")(h))
        return h + nn.Dense(4, name="narrow")(nn.gelu(wide)) * self.param(
            "scale", nn.initializers.ones, (1, 1, 4)
        ), None


BLOCK_KERNELS = {
    f"['blocks']{name}['kernel']"
    for name in (
        "['attention']['query']",
        "['attention']['key']",
        "['attention']['value']",
        "['attention']['out']",
        "['wide']",
        "['narrow']",
    )
}


@case
def scanned_transformer():
    return linen(Transformer(tied=False), jnp.ones((2, 5), int), BLOCK_KERNELS | {"['head']['kernel']"})


@case
def embedding_that_is_looked_up_and_multiplied():
    return linen(Transformer(tied=True), jnp.ones((2, 5), int), BLOCK_KERNELS | {"['embed']['embedding']"})


@case
def scanned_dense_layers():
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, h, _):
            return nn.relu(nn.BatchNorm(use_running_average=False, name="norm")(nn.Dense(4, name="dense")(h))), None

    model = nn.scan(Layer, variable_axes={"params": 0, "batch_stats": 0}, split_rngs={"params": True}, length=2)()
    params = jax.eval_shape(model.init, KEY, jnp.ones((3, 4)), None)["params"]

    def apply(params, x):
        return model.apply({"params": params}, x, None, mutable=["batch_stats"])[0][0]

    return apply, params, jnp.ones((3, 4)), {"['dense']['kernel']"}


@case
def weight_norm():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.WeightNorm(nn.Dense(1, name="out"))(nn.WeightNorm(nn.Dense(5, name="hidden"))(x))

    return linen(Model(), jnp.ones((3, 4)), {"['hidden']['kernel']", "['out']['kernel']"})


@case
def recurrent_cell():
    names = ("hn", "hr", "hz", "in", "ir", "iz")
    return linen(
        nn.RNN(nn.GRUCell(4)), jnp.ones((3, 5, 2), jnp.float32), {f"['cell']['{name}']['kernel']" for name in names}
    )


@case
def slopes_and_depthwise_convolutions():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.PReLU(name="slope")(nn.Conv(4, (3,), feature_group_count=2, name="groups")(x))
            slopes = self.param("slopes", nn.initializers.ones, (1, 6, 4))
            x = jnp.where(x > 0, x, slopes * x)
            return nn.ConvTranspose(3, (2,), name="up")(x).mean(1)

    return linen(Model(), jnp.ones((3, 6, 2)), {"['groups']['kernel']", "['up']['kernel']"})


# Flax NNX and Equinox


@case
def nnx_convolution_and_batch_norm():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(2, 3, (3, 3), rngs=rngs)
            self.norm = nnx.BatchNorm(3, rngs=rngs)
            self.out = nnx.Linear(3, 2, rngs=rngs)

        def __call__(self, x):
            return self.out(nnx.relu(self.norm(self.conv(x))).mean((1, 2)))

    model = Model(nnx.Rngs(0))
    model.eval()
    graphdef, *(params, rest) = nnx.split(model, nnx.Param, ...)
    kernels = {"['conv']['kernel'].value", "['out']['kernel'].value"}
    return lambda params, x: nnx.merge(graphdef, params, rest)(x), params, jnp.ones((2, 4, 4, 2)), kernels


@case
def equinox_convolution_biases():
    class Model(eqx.Module):
        convs: tuple[eqx.nn.Conv2d, eqx.nn.Conv2d]
        slopes: eqx.nn.PReLU
        norm: eqx.nn.LayerNorm
        out: eqx.nn.Linear

        def __call__(self, x):
            x = self.convs[1](self.slopes(self.convs[0](x)))
            return self.out(self.norm(x).sum((1, 2)))

    keys = jax.random.split(KEY, 3)
    convs = eqx.nn.Conv2d(2, 3, 3, key=keys[0]), eqx.nn.Conv2d(3, 4, 1, key=keys[1])
    slopes, norm = eqx.nn.PReLU(jnp.full((3, 2, 2), 0.1)), eqx.nn.LayerNorm((4, 2, 2), use_bias=False)
    model = Model(convs, slopes, norm, eqx.nn.Linear(4, 2, key=keys[2]))
    return equinox(model, jnp.ones((3, 2, 4, 4)), {".convs[0].weight", ".convs[1].weight", ".out.weight"})


@case
def equinox_attention_and_weight_norm():
    class Model(eqx.Module):
        attention: eqx.nn.MultiheadAttention
        out: eqx.nn.WeightNorm

        def __call__(self, x):
            return self.out(self.attention(x, x, x).mean(0))

    options: dict[str, Any] = {"use_query_bias": True, "use_key_bias": True, "use_value_bias": True}
    attention = eqx.nn.MultiheadAttention(2, 4, use_output_bias=True, **options, key=KEY)
    model = Model(attention, eqx.nn.WeightNorm(eqx.nn.Linear(4, 3, key=KEY)))
    names = ("query_proj", "key_proj", "value_proj", "output_proj")
    return equinox(model, jnp.ones((2, 5, 4)), {f".attention.{name}.weight" for name in names} | {".out.layer.weight"})


@case
def equinox_stack_under_scan():
    class Model(eqx.Module):
        layers: eqx.nn.Linear

        def __call__(self, x):
            arrays, rest = eqx.partition(self.layers, eqx.is_array)
            return lax.scan(lambda h, layer: (jax.nn.relu(eqx.combine(layer, rest)(h)), None), x, arrays)[0]

    stacked = eqx.filter_vmap(lambda key: eqx.nn.Linear(4, 4, key=key))(jax.random.split(KEY, 3))
    return equinox(Model(stacked), jnp.ones((2, 4)), {".layers.weight"})


# Plain functions


def plain(apply: Any, kernels: str, **shapes: tuple[int, ...]) -> tuple[Any, Any, Any, set[str]]:
    params = {name: jnp.ones(shape) for name, shape in shapes.items()}
    return apply, params, jnp.ones((5, 3)), {f"['{name}']" for name in kernels.split()}


@case
def products_and_sums_by_einsum():
    def apply(p, x):
        h = jnp.einsum("nd,d->nd", x, p["scale"]) + p["shift"][None]
        h = jnp.einsum("nd,hde->nhe", h, p["heads"])
        h = jnp.einsum("nhe,he->nhe", h, p["scales"])
        return jnp.einsum("nhe,heo->no", h, p["out"])

    shapes = {"scale": (3,), "shift": (3,), "heads": (2, 3, 4), "scales": (2, 4), "out": (2, 4, 2)}
    return plain(apply, "heads out", **shapes)


@case
def dense_layer_as_product_and_sum():
    def apply(p, x):
        h = jnp.sum(x[:, :, None] * p["kernel"][None], axis=1)
        h = jnp.sum(h.reshape(5, 2, 2)[:, :, None] * p["scales"][None, :, None], axis=1)[:, 0]
        return (h * p["per_example"]) @ p["out"]

    return plain(apply, "kernel out", kernel=(3, 4), scales=(2, 2), per_example=(1, 2), out=(2, 1))


@case
def scales_of_every_entry_before_a_mean():
    def apply(p, x):
        h = jnp.repeat(x[:, None], 4, axis=1) * p["positions"][None] * p["channels"][None]
        return h.mean(1) @ p["out"]

    return plain(apply, "out", positions=(4, 3), channels=(1, 3), out=(3, 2))


@case
def scales_under_scan_before_a_sum():
    def step(h, layer):
        return h + jnp.sum(h * layer["scale"][None], axis=1, keepdims=True) + h @ layer["kernel"], None

    def apply(p, x):
        return lax.scan(step, x, p)[0]

    return plain(apply, "kernel", scale=(2, 3), kernel=(2, 3, 3))


@case
def weight_norm_under_scan():
    def step(h, layer):
        return h @ (layer["v"] / jnp.linalg.norm(layer["v"], axis=0, keepdims=True) * layer["g"][None]), None

    return plain(lambda p, x: lax.scan(step, x, p)[0], "v", g=(2, 3), v=(2, 3, 3))


@case
def standardized_and_masked_weights():
    def apply(p, x):
        standard = (p["conv"] - p["conv"].mean((0, 1))[None, None]) / (1e-5 + p["conv"].std((0, 1)))[None, None]
        h = lax.conv_general_dilated(x[:, :, None], standard, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))
        h = jax.nn.relu(h.reshape(5, -1)) * p["gain"] ** 2
        return h @ jnp.where(jnp.arange(12)[:, None] > 3, p["out"] / 12**0.5, 0)  # one output in NTK scaling

    return plain(apply, "conv out", conv=(3, 1, 4), gain=(1, 12), out=(12, 1))


@case
def low_rank_updates_and_joined_weights():
    def apply(p, x):
        both = jnp.concatenate([p["left"], p["right"]], axis=1)
        h = x @ (both + p["down"] @ p["up"])
        return jnp.concatenate([jnp.broadcast_to(p["token"], (5, 1, 4)), h[:, None]], axis=1).sum(1)

    shapes = {"left": (3, 2), "right": (3, 2), "down": (3, 1), "up": (1, 4), "token": (1, 1, 4)}
    apply_, params, x, _ = plain(apply, "", **shapes)
    return apply_, params, x, {"['left']", "['right']"}


@case
def loops_and_branches():
    def apply(p, x):
        x = lax.while_loop(lambda h: jnp.max(h) < 10, lambda h: h @ p["loop"] + p["shift"], x)
        x = lax.fori_loop(0, 2, lambda i, h: h @ p["steps"][i], x)
        return lax.cond(x.sum() > 0, lambda h: h @ p["yes"], lambda h: jnp.tile(h * p["no"], (1, 1)), x)

    shapes = {"loop": (3, 3), "shift": (1, 3), "steps": (2, 3, 3), "yes": (3, 3), "no": (1, 3)}
    return plain(apply, "loop steps yes", **shapes)


@case
def one_vector_of_all_weights():
    def apply(p, x):
        return jax.nn.relu(x @ p["all"][:12].reshape(3, 4)) @ p["all"][12:].reshape(4, 2)

    return plain(apply, "all", all=(20,))


@pytest.mark.parametrize("name", TABLE)
def test_kernels_are_told_by_what_leaves_do(name: str) -> None:
    apply, params, x, expected = TABLE[name]()
    assert chosen(apply, params, x) == expected
    leaves = {keystr(path) for path, _ in tree_leaves_with_path(params)}
    assert expected <= leaves


def test_only_kernels_compete_and_count_for_the_density() -> None:
    """The density of a network whose biases and embeddings have several axes is that of its kernels."""
    apply, _, tokens, kernels = TABLE["scanned_transformer"]()
    params = Transformer(tied=False).init(KEY, tokens)["params"]
    labels = jnp.array([0, 1])
    prunable = paths.kernels(apply, params, tokens)
    score = scores.snip(apply, params, [(tokens, labels)], prunable=prunable)
    mask = masks.from_scores(score, density=0.05, prunable=prunable)
    sizes = {keystr(path): leaf.size for path, leaf in tree_leaves_with_path(params)}
    kept = {keystr(path): int(leaf.sum()) for path, leaf in tree_leaves_with_path(mask)}
    assert sum(kept[name] for name in kernels) == round(0.05 * sum(sizes[name] for name in kernels))
    assert all(kept[name] == sizes[name] for name in sizes.keys() - kernels)


def test_kernels_of_networks_that_return_more_than_outputs_and_read_a_state() -> None:
    def apply(params, state, x):
        h = (x - state["mean"]) @ params["first"] * params["scale"]
        return {"outputs": jax.nn.relu(h) @ params["second"]}, {"mean": x.mean(0, keepdims=True)}

    params = {"first": jnp.ones((3, 4)), "scale": jnp.ones((1, 4)), "second": jnp.ones((4, 2))}
    found = chosen(apply, params, jnp.ones((5, 3)), state={"mean": jnp.ones((1, 3))})
    assert found == {"['first']", "['second']"}


def test_functions_that_have_the_network_choose_its_kernels_by_themselves() -> None:
    def apply(params, x):
        return jax.nn.relu(x @ params["first"] + params["shift"]) @ params["second"]

    params = {"first": jnp.ones((3, 4)), "second": jnp.ones((4, 2)), "shift": jnp.ones((1, 4)).at[0, 1].set(0.0)}
    x = jnp.ones((5, 3))
    layers = connectivity.connectivity(apply, params, x).layers
    assert [layer.path for layer in layers] == ["['first']", "['second']"]
    everything = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), params)
    by_itself, told = (scores.px(apply, params, x, **options) for options in ({}, {"mask": everything}))
    jax.tree.map(np.testing.assert_array_equal, by_itself, told)  # the zero is a bias, and no pruned weight
