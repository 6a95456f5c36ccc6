"""One table of small networks: each as a JAX function of its framework, and as a graph of single neurons.

Add a network by writing a function of a NumPy generator that returns `(apply, params, x, graph)`, under
`@network(*tags)`. Keep it below about 2,000 paths; gates at a tie belong to networks named after them.
Tags: "dense", "layers", "tied" (a path can meet a weight twice), "monotone" (for positive weights and inputs every gate
is 1, and every constant is 0 or 1).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from .oracles import NONE, Graph, Path, dilate, pad, paths


class Network(NamedTuple):
    """`apply(params, x)` (n, o), and the same network as `graph`."""

    name: str
    apply: Callable[[Any, jax.Array], jax.Array]
    params: Any
    x: jax.Array
    graph: Graph
    layers: frozenset[str]

    @property
    def theta(self) -> np.ndarray:
        """The raveled parameters (p,), as the graph numbers them: `ravel_pytree`, without its compilations."""
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(self.params)])


Parts = tuple[Callable, Any, Any, Graph]
BUILDERS: dict[str, tuple[frozenset[str], Callable[[np.random.Generator], Parts]]] = {}


def network(*tags: str) -> Callable:
    """Enter a builder in the table under its own name."""

    def enter(builder: Callable[[np.random.Generator], Parts]) -> Callable:
        BUILDERS[builder.__name__] = (frozenset(tags), builder)
        return builder

    return enter


def names(*tags: str) -> list[str]:
    """Names of the networks that have all of these tags."""
    return [name for name, (layers, _) in BUILDERS.items() if layers.issuperset(tags)]


@cache
def build(name: str, seed: int = 0) -> Network:
    """One network of the table, with weights and inputs drawn from `seed`."""
    layers, builder = BUILDERS[name]
    apply, params, x, graph = builder(np.random.default_rng(seed))
    return Network(name, apply, params, jnp.asarray(x), graph, layers)


@cache
def listed(name: str, seed: int = 0) -> list[Path]:
    """The paths of one network of the table."""
    return paths(build(name, seed).graph)


def every(*tags: str) -> list[Network]:
    """The networks that have all of these tags."""
    return [build(name) for name in names(*tags)]


# A few networks that between them meet every path rule which any network of the table meets (`test_rules.py` holds them
# to it), weights on a path twice, ties, zeros and outputs that data reach unequally. Tests whose cost is a large
# program for each network take these in `make test`, and all networks in `make long`.
COVERING = (
    "leaky_mlp",
    "product_with_predicate_mlp",
    "dead_network",
    "tied_square",
    "residual_of_zeros",
    "conv_groups",
    "average_pool",
    "max_pool_at_ties",
    "global_max_pool",
    "constants",
    "absolute_value",
    "parametric_relu_per_channel",
    "residual_zero_padded",
    "heads_of_unequal_width",
    "moves",
    "recurrent_scan",
)


def covering() -> list[Any]:
    """Names of all networks as parameters of a test; those outside `COVERING` are left to `make long`."""
    return [name if name in COVERING else pytest.param(name, marks=pytest.mark.long) for name in names()]


# Pieces


def index_tree(params: Any) -> Any:
    """`params` with each entry replaced by its position in the raveled vector, as NumPy integers."""
    leaves, structure = jax.tree.flatten(params)
    ends = np.cumsum([leaf.size for leaf in leaves])
    indices = [np.arange(end - leaf.size, end).reshape(leaf.shape) for leaf, end in zip(leaves, ends, strict=True)]
    return jax.tree.unflatten(structure, indices)


def normal(rng: np.random.Generator, *shape: int) -> jax.Array:
    return jnp.asarray(rng.normal(size=shape))


def normal_like(rng: np.random.Generator, tree: Any) -> Any:
    return jax.tree.map(lambda leaf: normal(rng, *leaf.shape), tree)


class Body(nn.Module):
    """A Flax module from a function that calls other modules."""

    body: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, x):
        return self.body(x)


def linen(rng: np.random.Generator, shape: tuple[int, ...], body: Callable, draw: Callable) -> Parts:
    """A Flax linen network and its graph `draw(graph, nodes, indices, statistics)`, running statistics closed over."""
    x, module = normal(rng, 3, *shape), Body(body)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    params, statistics = normal_like(rng, shapes["params"]), normal_like(rng, shapes.get("batch_stats", {}))
    statistics = {name: {"mean": of["mean"], "var": jnp.exp(of["var"])} for name, of in statistics.items()}

    def apply(params, x):
        return module.apply({"params": params, "batch_stats": statistics}, x)

    graph = Graph()
    nodes = draw(graph, graph.inputs(shape), index_tree(params), jax.tree.map(np.asarray, statistics))
    return apply, params, x, graph.finish(nodes)


def plain(rng: np.random.Generator, shape: tuple[int, ...], params: Any, apply: Callable, draw: Callable) -> Parts:
    """A plain function of `params` and its graph `draw(graph, nodes, indices)`."""
    graph = Graph()
    nodes = draw(graph, graph.inputs(shape), index_tree(params))
    return apply, params, normal(rng, 3, *shape), graph.finish(nodes)


def batch_norm(graph: Graph, nodes: np.ndarray, weights: Any, statistics: Any) -> np.ndarray:
    """Batch norm with running statistics: constants, then the scale, then the bias, where there are any."""
    inverse = 1 / np.sqrt(statistics["var"] + 1e-5)
    nodes = graph.constant_affine(nodes, inverse, -statistics["mean"] * inverse)
    nodes = graph.scale(nodes, weights["scale"]) if "scale" in weights else nodes
    return graph.bias(nodes, weights["bias"]) if "bias" in weights else nodes


def flatten(x: jax.Array) -> jax.Array:
    return x.reshape(len(x), -1)


def relu(graph: Graph, nodes: np.ndarray) -> np.ndarray:
    return graph.relu(nodes)


def leaky(graph: Graph, nodes: np.ndarray) -> np.ndarray:
    return graph.relu(nodes, slope=0.1, at_zero=1.0)


def maximum(graph: Graph, nodes: np.ndarray) -> np.ndarray:
    """`jnp.maximum(x, 0)`: JAX splits the derivative at a tie in halves, so a dead unit has slope 1/2."""
    return graph.relu(nodes, at_zero=0.5)


def identity(_: Graph, nodes: np.ndarray) -> np.ndarray:
    return nodes


def mlp_graph(inputs: int, layers: list[tuple[Any, Any]], gate: Callable = relu) -> Graph:
    """Dense layers (kernel, bias or None) with a gate between any two."""
    graph = Graph()
    h = graph.inputs((inputs,))
    for depth, (kernel, bias) in enumerate(layers):
        h = graph.dense(gate(graph, h) if depth else h, kernel, bias)
    return graph.finish(h)


def mlp(rng, widths, activation, gate=relu, *, bias=False, examples=3) -> Parts:
    """A plain function of a list of {"w", "b"}."""
    params = [{"w": normal(rng, i, o)} for i, o in zip(widths[:-1], widths[1:], strict=True)]
    if bias:
        params = [layer | {"b": normal(rng, layer["w"].shape[1])} for layer in params]

    def apply(params, x):
        for depth, layer in enumerate(params):
            x = (activation(x) if depth else x) @ layer["w"]
            x = x + layer["b"][None] if bias else x
        return x

    graph = mlp_graph(widths[0], [(layer["w"], layer.get("b")) for layer in index_tree(params)], gate)
    return apply, params, normal(rng, examples, widths[0]), graph


def relu_by_maximum(x):
    return jnp.maximum(x, 0)


# Dense networks


@network("dense", "monotone")
def bias_free_mlp(rng):
    return mlp(rng, (4, 5, 3, 2), relu_by_maximum, maximum)


@network("dense", "monotone")
def biased_mlp(rng):
    return mlp(rng, (3, 4, 3, 2), relu_by_maximum, maximum, bias=True)


@network("dense", "monotone")
def leaky_mlp(rng):
    return mlp(rng, (3, 4, 3, 2), lambda x: jax.nn.leaky_relu(x, 0.1), leaky, bias=True)


@network("dense", "monotone")
def where_mlp(rng):
    return mlp(rng, (3, 4, 3, 2), lambda x: jnp.where(x > 0, x, 0), bias=True)


@network("dense", "monotone")
def product_with_predicate_mlp(rng):
    return mlp(rng, (3, 4, 3, 2), lambda x: x * (x > 0), bias=True)


@network("dense", "monotone")
def linear_network(rng):
    return mlp(rng, (3, 4, 2), lambda x: x, identity, bias=True)


@network("dense", "monotone")
def one_layer(rng):
    return mlp(rng, (4, 3), relu_by_maximum, maximum)


@network("dense", "monotone")
def deep_narrow_mlp(rng):
    return mlp(rng, (2, 2, 2, 2, 2, 2, 2), lambda x: jax.nn.leaky_relu(x, 0.1), leaky)


@network("dense", "monotone")
def one_output(rng):
    return mlp(rng, (3, 4, 1), relu_by_maximum, maximum, bias=True)


@network("dense", "monotone")
def one_example(rng):
    return mlp(rng, (3, 4, 2), relu_by_maximum, maximum, bias=True, examples=1)


@network("dense", "monotone")
def one_hidden_unit(rng):
    return mlp(rng, (3, 1, 2), relu_by_maximum, maximum, bias=True)


@network("dense", "monotone")
def one_of_each(rng):
    return mlp(rng, (1, 1, 1), lambda x: jax.nn.leaky_relu(x, 0.1), leaky, examples=1)


@network("dense", "monotone")
def zero_weights(rng):
    """A good part of the weights, and one unit's whole row, are exactly zero."""
    apply, params, x, graph = mlp(rng, (4, 5, 4, 2), relu_by_maximum, maximum, bias=True)
    params = jax.tree.map(lambda w: w * rng.choice([0.0, 1.0], p=[0.4, 0.6], size=w.shape), params)
    params[1]["w"] = params[1]["w"].at[2].set(0)
    return apply, params, x, graph


@network("dense", "monotone")
def dead_network(rng):
    """A layer of zeros: paths are there, their values are all zero."""
    apply, params, x, graph = mlp(rng, (3, 4, 3, 2), jax.nn.relu)
    params[1]["w"] = params[1]["w"] * 0
    return apply, params, x, graph


@network("dense", "monotone")
def relu_at_zero(rng):
    """Inputs and a hidden unit at exactly zero, where the slope of `jax.nn.relu` is 0."""
    apply, params, x, graph = mlp(rng, (3, 4, 2), jax.nn.relu)
    params[0]["w"] = params[0]["w"].at[:, 1].set(0)
    return apply, params, x.at[0].set(0), graph


@network("dense", "monotone")
def maximum_at_zero(rng):
    """The same through `jnp.maximum`, whose derivative JAX takes as 1/2 there."""
    apply, params, x, graph = mlp(rng, (3, 4, 2), relu_by_maximum, maximum)
    params[0]["w"] = params[0]["w"].at[:, 1].set(0)
    return apply, params, x.at[0].set(0), graph


@network("dense", "tied", "monotone")
def tied_square(rng):
    """One square matrix used twice, so that a path can meet a weight twice."""
    params = {"out": normal(rng, 3, 2), "square": normal(rng, 3, 3)}
    index = index_tree(params)

    def apply(params, x):
        h = jnp.maximum(x @ params["square"], 0)
        return jnp.maximum(h @ params["square"], 0) @ params["out"]

    layers = [(index[name], None) for name in ("square", "square", "out")]
    return apply, params, normal(rng, 3, 3), mlp_graph(3, layers, maximum)


@network("dense", "tied", "monotone")
def tied_transpose(rng):
    """An encoder and its transpose as the decoder, with one bias on both sides and one zero weight."""
    params = {"b": normal(rng, 3), "w": normal(rng, 3, 3).at[1, 1].set(0)}
    index = index_tree(params)

    def apply(params, x):
        h = jax.nn.leaky_relu(x @ params["w"] + params["b"][None], 0.1)
        return h @ params["w"].T + params["b"][None]

    layers = [(index["w"], index["b"]), (index["w"].T, index["b"])]
    return apply, params, normal(rng, 3, 3), mlp_graph(3, layers, leaky)


@network("dense", "monotone")
def linen_mlp(rng):
    def body(x):
        for width in (4, 3):
            x = jax.nn.relu(nn.Dense(width)(x))
        return nn.Dense(2)(x)

    def draw(graph, x, w, _):
        for depth in range(2):
            x = graph.relu(graph.dense(x, **w[f"Dense_{depth}"]))
        return graph.dense(x, **w["Dense_2"])

    return linen(rng, (3,), body, draw)


class NNXMLP(nnx.Module):
    def __init__(self, widths: tuple[int, int, int], rngs: nnx.Rngs):
        self.first = nnx.Linear(widths[0], widths[1], rngs=rngs)
        self.last = nnx.Linear(widths[1], widths[2], rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.relu(self.first(x)))


@network("dense", "monotone")
def nnx_mlp(rng):
    graphdef, state = nnx.split(NNXMLP((3, 4, 2), nnx.Rngs(0)))
    params = normal_like(rng, state)
    index = nnx.to_pure_dict(index_tree(params))
    layers = [(index[name]["kernel"], index[name]["bias"]) for name in ("first", "last")]
    return lambda params, x: nnx.merge(graphdef, params)(x), params, normal(rng, 3, 3), mlp_graph(3, layers)


@network("dense", "monotone")
def residual_dense(rng):
    """x + dense(relu(dense(x))), then a readout."""
    params = {"down": normal(rng, 4, 3), "out": normal(rng, 3, 2), "shift": normal(rng, 4), "up": normal(rng, 3, 4)}

    def apply(params, x):
        h = jax.nn.relu(x @ params["up"] + params["shift"][None])
        return (x + h @ params["down"]) @ params["out"]

    def draw(graph, x, w):
        h = graph.relu(graph.dense(x, w["up"], w["shift"]))
        return graph.dense(graph.add(x, graph.dense(h, w["down"])), w["out"])

    return plain(rng, (3,), params, apply, draw)


@network("dense", "monotone")
def residual_of_zeros(rng):
    """A branch whose last layer is zero, as residual networks are initialized: its weights still have derivatives."""
    apply, params, x, graph = residual_dense(rng)
    params["down"] = params["down"] * 0
    return apply, params, x, graph


# Convolutions


def conv_network(rng, shape, graph_options: dict, features: int = 2, **options) -> Parts:
    """Convolution, ReLU, readout; `options` are Flax's and `graph_options` the graph's."""

    def body(x):
        return nn.Dense(2)(flatten(nn.relu(nn.Conv(features, **options)(x))))

    def draw(graph, x, w, _):
        return graph.dense(graph.relu(graph.conv(x, **w["Conv_0"], **graph_options)).ravel(), **w["Dense_0"])

    return linen(rng, shape, body, draw)


@network("layers", "monotone")
def conv_1d(rng):
    return conv_network(rng, (5, 2), {"padding": [(1, 1)]}, kernel_size=(3,))


@network("layers", "monotone")
def conv_same_stride(rng):
    graph_options = {"padding": [(1, 1), (0, 1)], "stride": (2, 2)}
    return conv_network(rng, (3, 4, 2), graph_options, kernel_size=(3, 3), strides=(2, 2))


@network("layers", "monotone")
def conv_valid_dilation(rng):
    options: dict[str, Any] = {"padding": "VALID", "kernel_dilation": (2, 1), "use_bias": False}
    return conv_network(rng, (5, 4, 1), {"dilation": (2, 1)}, kernel_size=(2, 3), **options)


@network("layers", "monotone")
def conv_groups(rng):
    graph_options = {"groups": 2, "padding": [(0, 1), (1, 1)]}
    return conv_network(rng, (3, 2, 4), graph_options, 6, kernel_size=(2, 3), feature_group_count=2)


@network("layers", "monotone")
def conv_depthwise(rng):
    graph_options = {"groups": 3, "padding": [(0, 0), (0, 0)]}
    return conv_network(rng, (3, 3, 3), graph_options, 6, kernel_size=(2, 2), padding="VALID", feature_group_count=3)


@network("layers", "monotone")
def conv_3d(rng):
    return conv_network(rng, (3, 2, 2, 2), {"padding": [(0, 1)] * 3}, kernel_size=(2, 2, 2))


@network("layers", "monotone")
def conv_explicit_padding(rng):
    pairs = [(2, 0), (0, 1)]
    return conv_network(rng, (3, 3, 1), {"padding": pairs}, kernel_size=(2, 3), padding=pairs)


@network("layers", "monotone")
def conv_circular(rng):
    def body(x):
        return nn.Dense(2)(flatten(nn.relu(nn.Conv(2, (3,), padding="CIRCULAR")(x))))

    def draw(graph, x, w, _):
        h = graph.conv(np.pad(x, [(1, 1), (0, 0)], mode="wrap"), **w["Conv_0"])
        return graph.dense(graph.relu(h).ravel(), **w["Dense_0"])

    return linen(rng, (4, 2), body, draw)


@network("layers", "monotone")
def conv_transposed(rng):
    def body(x):
        return nn.Dense(2)(flatten(nn.relu(nn.ConvTranspose(2, (3, 2), strides=(2, 2))(x))))

    def draw(graph, x, w, _):
        h = graph.conv(dilate(x, (2, 2, 1)), **w["ConvTranspose_0"], padding=[(2, 1), (1, 1)])
        return graph.dense(graph.relu(h).ravel(), **w["Dense_0"])

    return linen(rng, (2, 3, 2), body, draw)


@network("layers", "monotone")
def separable_convs(rng):
    """Depthwise, then pointwise, as in MobileNet."""

    def body(x):
        x = nn.relu(nn.Conv(2, (3, 3), feature_group_count=2, use_bias=False)(x))
        return nn.Dense(2)(flatten(nn.relu(nn.Conv(2, (1, 1))(x))))

    def draw(graph, x, w, _):
        x = graph.relu(graph.conv(x, **w["Conv_0"], padding=[(1, 1), (1, 1)], groups=2))
        return graph.dense(graph.relu(graph.conv(x, **w["Conv_1"])).ravel(), **w["Dense_0"])

    return linen(rng, (3, 3, 2), body, draw)


# Pools


def pooled_conv(rng, pool: Callable, draw_pool: Callable, shape=(4, 4, 1)) -> Parts:
    """Convolution 2×2, ReLU, a pool, readout."""

    def body(x):
        return nn.Dense(2)(flatten(pool(nn.relu(nn.Conv(2, (2, 2))(x)))))

    def draw(graph, x, w, _):
        x = graph.relu(graph.conv(x, **w["Conv_0"], padding=[(0, 1), (0, 1)]))
        return graph.dense(draw_pool(graph, x).ravel(), **w["Dense_0"])

    return linen(rng, shape, body, draw)


@network("layers")
def average_pool(rng):
    def pool(x):
        return nn.avg_pool(x, (2, 2), strides=(2, 2))

    return pooled_conv(rng, pool, lambda graph, x: graph.avg_pool(x, (2, 2), (2, 2)))


@network("layers")
def average_pool_same(rng):
    """Overlapping, and the padding counts."""

    def pool(x):
        return nn.avg_pool(x, (3, 2), strides=(2, 1), padding="SAME")

    return pooled_conv(rng, pool, lambda graph, x: graph.avg_pool(x, (3, 2), (2, 1), [(0, 1), (0, 1)]))


@network("layers")
def global_average_pool(rng):
    def draw_pool(graph, x):
        return graph.sum_over_axis(x.reshape(-1, x.shape[-1]), 0, 1 / 16)

    return pooled_conv(rng, lambda x: x.mean(axis=(1, 2)), draw_pool)


@network("layers")
def max_pool(rng):
    def pool(x):
        return nn.max_pool(x, (2, 2), strides=(2, 2))

    return pooled_conv(rng, pool, lambda graph, x: graph.max_pool(x, (2, 2), (2, 2)))


@network("layers")
def max_pool_overlapping_same(rng):
    def pool(x):
        return nn.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")

    return pooled_conv(rng, pool, lambda graph, x: graph.max_pool(x, (3, 3), (2, 2), [(1, 1), (1, 1)]), (3, 3, 1))


@network("layers")
def max_pool_of_negatives(rng):
    """Pooling inputs that can all be negative: the padding must not win."""

    def body(x):
        return nn.Dense(2)(flatten(nn.max_pool(nn.Conv(2, (2,))(x), (3,), strides=(1,), padding="SAME")))

    def draw(graph, x, w, _):
        x = graph.conv(x, **w["Conv_0"], padding=[(0, 1)])
        return graph.dense(graph.max_pool(x, (3,), (1,), [(1, 1)]).ravel(), **w["Dense_0"])

    return linen(rng, (5, 2), body, draw)


@network("layers")
def max_pool_at_ties(rng):
    """Equal inputs in a window: the first in row-major order has the whole derivative."""

    def body(x):
        x = nn.max_pool(nn.Dense(2)(x), (2, 2), strides=(1, 1))
        return nn.Dense(2)(flatten(x))

    def draw(graph, x, w, _):
        x = graph.dense(x, **w["Dense_0"])
        return graph.dense(graph.max_pool(x, (2, 2), (1, 1)).ravel(), **w["Dense_1"])

    apply, params, x, graph = linen(rng, (3, 3, 2), body, draw)
    return apply, params, x.at[0, :2].set(x[0, 0, 0]).at[1, :, 2].set(x[1, 0, 1]), graph


@network("layers")
def global_max_pool(rng):
    def draw_pool(graph, x):
        return graph.max_over_axis(x.reshape(-1, x.shape[-1]), 0)

    return pooled_conv(rng, lambda x: x.max(axis=(1, 2)), draw_pool)


# Norms, constants and scales


@network("layers")
def batch_norm_dense(rng):
    def body(x):
        x = nn.Dense(4)(x)
        return nn.Dense(2)(nn.relu(nn.BatchNorm(use_running_average=True)(x)))

    def draw(graph, x, w, s):
        x = batch_norm(graph, graph.dense(x, **w["Dense_0"]), w["BatchNorm_0"], s["BatchNorm_0"])
        return graph.dense(graph.relu(x), **w["Dense_1"])

    return linen(rng, (3,), body, draw)


@network("layers")
def batch_norm_without_affine(rng):
    def body(x):
        x = nn.BatchNorm(use_running_average=True, use_scale=False, use_bias=False)(nn.Conv(2, (2, 2))(x))
        return nn.Dense(2)(flatten(nn.relu(x)))

    def draw(graph, x, w, s):
        x = batch_norm(graph, graph.conv(x, **w["Conv_0"], padding=[(0, 1), (0, 1)]), {}, s["BatchNorm_0"])
        return graph.dense(graph.relu(x).ravel(), **w["Dense_0"])

    return linen(rng, (3, 3, 2), body, draw)


@network("layers", "monotone")
def scale_vector(rng):
    """A parameter vector multiplied in, before and after a ReLU."""
    params = {"after": normal(rng, 4), "before": normal(rng, 4), "in": normal(rng, 3, 4), "out": normal(rng, 4, 2)}

    def apply(params, x):
        return (jax.nn.relu(x @ params["in"] * params["before"][None]) * params["after"][None]) @ params["out"]

    def draw(graph, x, w):
        x = graph.relu(graph.scale(graph.dense(x, w["in"]), w["before"]))
        return graph.dense(graph.scale(x, w["after"]), w["out"])

    return plain(rng, (3,), params, apply, draw)


@network("layers", "monotone")
def factored_weights(rng):
    """Products of weights made before they meet x: a gain on a low-rank matrix, added to a full one."""
    params = {"full": normal(rng, 3, 4), "gain": normal(rng, 4), "u": normal(rng, 3, 2), "v": normal(rng, 2, 4)}
    params["out"] = normal(rng, 4, 2)

    def apply(params, x):
        kernel = params["full"] + (params["u"] @ params["v"]) * params["gain"][None]
        return jax.nn.relu(x @ kernel) @ params["out"]

    def draw(graph, x, w):
        low_rank = graph.scale(graph.dense(graph.dense(x, w["u"]), w["v"]), w["gain"])
        return graph.dense(graph.relu(graph.add(graph.dense(x, w["full"]), low_rank)), w["out"])

    return plain(rng, (3,), params, apply, draw)


@network("layers", "monotone")
def constant_mask(rng):
    """A mask of zeros and ones multiplied into activations, and one into weights."""
    params = {"in": normal(rng, 3, 5), "out": normal(rng, 5, 2)}
    units = np.array([1.0, 0, 1, 1, 0])
    weights = (rng.random((5, 2)) < 0.7) * 1.0
    weights[0] = 1

    def apply(params, x):
        return (jax.nn.relu(x @ params["in"]) * units[None]) @ (params["out"] * weights)

    def draw(graph, x, w):
        hidden = graph.constant_affine(graph.relu(graph.dense(x, w["in"])), units)
        columns = []
        for o in range(2):
            columns.append(graph.dense(graph.constant_affine(hidden, weights[:, o]), w["out"][:, [o]]))
        return np.concatenate(columns)

    return plain(rng, (3,), params, apply, draw)


@network("layers")
def constants(rng):
    """Constant factors, shifts, divisors and a matrix, subtraction and negation."""
    params = {"in": normal(rng, 3, 4), "out": normal(rng, 3, 2)}
    matrix, shift = rng.normal(size=(4, 3)), rng.normal(size=4)

    def apply(params, x):
        h = jax.nn.relu((2 * (x @ params["in"]) - shift[None]) / 3)
        return (-(x - h @ matrix) * 0.5) @ params["out"]

    def draw(graph, x, w):
        h = graph.constant_affine(graph.constant_affine(graph.dense(x, w["in"]), 2.0), 1 / 3, -shift / 3)
        h = graph.relu(h)
        mixed = [graph.sum_over_axis(graph.constant_affine(h, matrix[:, o]), 0) for o in range(3)]
        h = graph.add(graph.constant_affine(x, -0.5), graph.constant_affine(np.stack(mixed), 0.5))
        return graph.dense(h, w["out"])

    return plain(rng, (3,), params, apply, draw)


# Gates


def gated(rng, activation: Callable, draw_gate: Callable, hidden: int = 6) -> Parts:
    """Dense, a gate, dense, as a plain function."""
    gate_shape = jax.eval_shape(activation, jnp.zeros((1, hidden))).shape
    params = {"b": normal(rng, hidden), "in": normal(rng, 3, hidden), "out": normal(rng, gate_shape[1], 2)}

    def apply(params, x):
        return activation(x @ params["in"] + params["b"][None]) @ params["out"]

    def draw(graph, x, w):
        return graph.dense(draw_gate(graph, graph.dense(x, w["in"], w["b"])), w["out"])

    return plain(rng, (3,), params, apply, draw)


@network("layers", "monotone")
def clip_at_zero(rng):
    return gated(rng, lambda x: jnp.clip(x, 0), maximum)


@network("layers")
def absolute_value(rng):
    return gated(rng, jnp.abs, lambda graph, x: graph.abs(x))


@network("layers")
def maxout(rng):
    return gated(
        rng, lambda x: x.reshape(-1, 2, 3).max(axis=2), lambda graph, x: graph.max_over_axis(x.reshape(2, 3), 1)
    )


@network("layers")
def maxout_at_ties(rng):
    """Two of three rivals equal everywhere, and above the third: `jnp.max` shares the derivative between the two."""
    apply, params, x, graph = maxout(rng)
    params["in"] = params["in"].at[:, 1].set(params["in"][:, 0])
    params["b"] = params["b"].at[1].set(params["b"][0]).at[2].set(-10.0)
    return apply, params, x, graph


@network("layers")
def crelu(rng):
    def activation(x):
        return jnp.concatenate([jax.nn.relu(x), jax.nn.relu(-x)], axis=-1)

    return gated(rng, activation, lambda graph, x: graph.crelu(x), 4)


@network("layers")
def parametric_relu(rng):
    def body(x):
        for width in (3, 4):
            x = nn.Dense(width)(x)
            x = nn.PReLU()(x)
        return nn.Dense(2)(x)

    def draw(graph, x, w, _):
        x = graph.prelu(graph.dense(x, **w["Dense_0"]), w["PReLU_0"]["negative_slope"])
        x = graph.prelu(graph.dense(x, **w["Dense_1"]), w["PReLU_1"]["negative_slope"])
        return graph.dense(x, **w["Dense_2"])

    return linen(rng, (3,), body, draw)


@network("layers")
def parametric_relu_per_channel(rng):
    """Written max(x, 0) + slope · min(x, 0)."""
    params = {"in": normal(rng, 3, 4), "out": normal(rng, 4, 2), "slope": normal(rng, 4)}

    def apply(params, x):
        h = x @ params["in"]
        return (jnp.maximum(h, 0) + params["slope"][None] * jnp.minimum(h, 0)) @ params["out"]

    def draw(graph, x, w):
        return graph.dense(graph.prelu(graph.dense(x, w["in"]), w["slope"]), w["out"])

    return plain(rng, (3,), params, apply, draw)


# Branches and moves


@network("layers")
def residual_convs(rng):
    """A ResNet block with batch norm and a projection shortcut, then a global average pool."""

    def norm(x):
        return nn.BatchNorm(use_running_average=True)(x)

    def body(x):
        h = nn.relu(norm(nn.Conv(2, (3, 3), (2, 2), use_bias=False)(x)))
        h = norm(nn.Conv(2, (3, 3), use_bias=False)(h))
        x = nn.relu(h + norm(nn.Conv(2, (1, 1), (2, 2), use_bias=False)(x)))
        return nn.Dense(2)(x.mean(axis=(1, 2)))

    def draw(graph, x, w, s):
        def norm(h, name):
            return batch_norm(graph, h, w[name], s[name])

        h = graph.conv(x, **w["Conv_0"], stride=(2, 2), padding=[(0, 1), (0, 1)])
        h = graph.conv(graph.relu(norm(h, "BatchNorm_0")), **w["Conv_1"], padding=[(1, 1), (1, 1)])
        shortcut = norm(graph.conv(x, **w["Conv_2"], stride=(2, 2)), "BatchNorm_2")
        x = graph.relu(graph.add(norm(h, "BatchNorm_1"), shortcut))
        return graph.dense(graph.sum_over_axis(x.reshape(4, 2), 0, 1 / 4), **w["Dense_0"])

    return linen(rng, (4, 4, 1), body, draw)


@network("layers", "monotone")
def residual_zero_padded(rng):
    """A shortcut that strides by slicing and pads channels with zeros."""

    def body(x):
        h = nn.Conv(3, (2, 2), (2, 2))(nn.relu(x))
        x = jnp.pad(x[:, ::2, ::2], [(0, 0), (0, 0), (0, 0), (1, 1)])
        return nn.Dense(2)(flatten(nn.relu(x + h)))

    def draw(graph, x, w, _):
        h = graph.conv(graph.relu(x), **w["Conv_0"], stride=(2, 2))
        x = graph.add(pad(x[::2, ::2], [(0, 0), (0, 0), (1, 1)]), h)
        return graph.dense(graph.relu(x).ravel(), **w["Dense_0"])

    return linen(rng, (4, 4, 1), body, draw)


@network("layers", "monotone")
def heads_of_unequal_width(rng):
    """One output reads two hidden units and the other all five, so that data reach the two through different paths."""
    params = {"in": normal(rng, 3, 5), "narrow": normal(rng, 2, 1), "wide": normal(rng, 5, 1)}

    def apply(params, x):
        h = relu_by_maximum(x @ params["in"])
        return jnp.concatenate([h[:, :2] @ params["narrow"], h @ params["wide"]], axis=1)

    def draw(graph, x, w):
        h = maximum(graph, graph.dense(x, w["in"]))
        return np.concatenate([graph.dense(h[:2], w["narrow"]), graph.dense(h, w["wide"])])

    return plain(rng, (3,), params, apply, draw)


@network("layers", "monotone")
def dense_concatenation(rng):
    """As in DenseNet: every layer reads all that came before."""

    def body(x):
        for _ in range(2):
            x = jnp.concatenate([x, nn.Conv(2, (2,))(nn.relu(x))], axis=-1)
        return nn.Dense(2)(flatten(x))

    def draw(graph, x, w, _):
        for depth in range(2):
            h = graph.conv(graph.relu(x), **w[f"Conv_{depth}"], padding=[(0, 1)])
            x = np.concatenate([x, h], axis=-1)
        return graph.dense(x.ravel(), **w["Dense_0"])

    return linen(rng, (4, 1), body, draw)


@network("layers", "monotone")
def upsampling(rng):
    def body(x):
        x = jnp.repeat(jnp.repeat(nn.relu(nn.Conv(2, (1, 1))(x)), 2, axis=1), 2, axis=2)
        return nn.Dense(2)(flatten(nn.relu(nn.Conv(1, (2, 2), padding="VALID")(x))))

    def draw(graph, x, w, _):
        x = graph.relu(graph.conv(x, **w["Conv_0"])).repeat(2, axis=0).repeat(2, axis=1)
        return graph.dense(graph.relu(graph.conv(x, **w["Conv_1"])).ravel(), **w["Dense_0"])

    return linen(rng, (2, 2, 2), body, draw)


@network("layers", "monotone")
def moves(rng):
    """Reshapes, transposes, flips, rolls, splits, slices, gathers, squeezes and a sum over an axis."""
    params = {"in": normal(rng, 6, 6), "out": normal(rng, 6, 2)}

    def apply(params, x):
        h = jnp.flip(x.transpose(0, 2, 1).reshape(-1, 6), axis=1) @ params["in"]
        first, last = jnp.split(jax.nn.relu(h), [2], axis=1)
        h = jnp.roll(jnp.concatenate([last[:, ::-1], first[:, None, :].squeeze(1)], axis=1), 1, axis=1)
        h = h[:, jnp.array([0, 0, 3, 5, 1, 2])] + jnp.sum(h.reshape(-1, 3, 2), axis=1)[:, [0, 1, 0, 1, 0, 1]]
        return h @ params["out"]

    def draw(graph, x, w):
        h = graph.relu(graph.dense(x.T.reshape(6)[::-1], w["in"]))
        h = np.roll(np.concatenate([h[2:][::-1], h[:2]]), 1)
        total = graph.sum_over_axis(h.reshape(3, 2), 0)
        return graph.dense(graph.add(h[[0, 0, 3, 5, 1, 2]], total[[0, 1, 0, 1, 0, 1]]), w["out"])

    return plain(rng, (2, 3), params, apply, draw)


@network("layers", "monotone")
def ends_in_moves(rng):
    """Outputs flipped, repeated and cut: no arithmetic after the last neuron."""
    params = {"in": normal(rng, 2, 4), "out": normal(rng, 4, 3)}

    def apply(params, x):
        h = jax.nn.relu(x @ params["in"]) @ params["out"]
        return jnp.repeat(h[:, ::-1], 2, axis=1)[:, 1:]

    def draw(graph, x, w):
        h = graph.dense(graph.relu(graph.dense(x, w["in"])), w["out"])
        return np.repeat(h[::-1], 2)[1:]

    return plain(rng, (2,), params, apply, draw)


@network("layers", "monotone")
def general_dense(rng):
    """DenseGeneral over two axes, dropout in evaluation, and an einsum."""

    def body(x):
        x = nn.relu(nn.DenseGeneral((3, 2), axis=(-2, -1))(x))
        x = nn.Dropout(0.5, deterministic=True)(x)
        return nn.Einsum((3, 2, 2), "nab,abo->no")(x)

    def draw(graph, x, w, _):
        general = w["DenseGeneral_0"]
        x = graph.relu(graph.dense(x.ravel(), general["kernel"].reshape(4, 6), general["bias"].ravel()))
        return graph.dense(x, w["Einsum_0"]["kernel"].reshape(6, 2), w["Einsum_0"]["bias"])

    return linen(rng, (2, 2), body, draw)


@network("layers", "monotone")
def vector_outputs_of_one_example(rng):
    """Written for one example and mapped over the batch."""
    params = {"in": normal(rng, 4, 3), "out": normal(rng, 2, 4)}

    def apply(params, x):
        return jax.vmap(lambda one: params["out"] @ jax.nn.relu(params["in"] @ one))(x)

    def draw(graph, x, w):
        return graph.dense(graph.relu(graph.dense(x, w["in"].T)), w["out"].T)

    return plain(rng, (3,), params, apply, draw)


# Loops and wrappers


@network("layers", "tied", "monotone")
def recurrent_scan(rng):
    """One matrix used at every step of a `scan`, which also reads the input step by step."""
    params = {"in": normal(rng, 1, 3), "out": normal(rng, 3, 2), "step": normal(rng, 3, 3)}

    def apply(params, x):
        def step(h, x_t):
            return jax.nn.relu(h @ params["step"] + x_t[:, None] @ params["in"]), None

        h, _ = jax.lax.scan(step, jnp.zeros((len(x), 3)), x.T)
        return h @ params["out"]

    def draw(graph, x, w):
        h = np.full(3, NONE)
        for x_t in x:
            h = graph.relu(graph.add(graph.dense(h, w["step"]), graph.dense(x_t[None], w["in"])))
        return graph.dense(h, w["out"])

    return plain(rng, (3,), params, apply, draw)


@network("layers", "monotone")
def stacked_scan(rng):
    """Layers stacked along a leading axis, walked by `scan`, each rematerialized."""
    params = {"b": normal(rng, 3, 3), "out": normal(rng, 3, 2), "w": normal(rng, 3, 3, 3)}

    def apply(params, x):
        @jax.checkpoint
        def layer(h, weights):
            return jax.nn.relu(h @ weights["w"] + weights["b"][None]), None

        h, _ = jax.lax.scan(layer, x, {"b": params["b"], "w": params["w"]})
        return h @ params["out"]

    def draw(graph, x, w):
        for depth in range(3):
            x = graph.relu(graph.dense(x, w["w"][depth], w["b"][depth]))
        return graph.dense(x, w["out"])

    return plain(rng, (3,), params, apply, draw)


@network("layers", "monotone")
def wrapped_calls(rng):
    """Nested `jit`, `remat`, `custom_vjp` and `custom_jvp` around parts of an MLP."""

    @jax.custom_vjp
    def readout(w, x):
        return x @ w

    readout.defvjp(lambda w, x: (x @ w, (w, x)), lambda saved, g: (saved[1].T @ g, g @ saved[0].T))

    @jax.custom_jvp
    def gate(x):
        return jnp.where(x > 0, x, 0)

    @gate.defjvp
    def _(primals, tangents):
        return gate(*primals), jnp.where(primals[0] > 0, tangents[0], 0)

    def activation(x):
        return jax.jit(jax.checkpoint(lambda h: gate(h)))(x)

    apply, params, x, graph = mlp(rng, (3, 4, 3, 2), activation)

    def wrapped(params, x):
        h = jax.jit(jax.jit(lambda layers, x: activation(x @ layers[0]["w"]) @ layers[1]["w"]))(params[:2], x)
        return readout(params[2]["w"], activation(h))

    return wrapped, params, x, graph
