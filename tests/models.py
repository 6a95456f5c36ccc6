"""One table of small networks: each as a JAX function of its framework, and as a graph of single neurons.

Add a network by writing a function of a NumPy generator that returns `(apply, params, x, graph)`, under
`@network(*tags)`. Keep it below about 2,000 paths; gates at a tie belong to networks named after them.
Tags: "dense", "layers", "tied" (a weight is used twice), "monotone" (for positive weights and inputs every gate is 1).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.flatten_util import ravel_pytree

from .oracles import Graph, Path, paths


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
        """The raveled parameters (p,), as the graph numbers them."""
        return np.asarray(ravel_pytree(self.params)[0])


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


def networks(*tags: str) -> list[Network]:
    """The networks that have all of these tags."""
    return [build(name) for name in names(*tags)]


# Pieces


def index_tree(params: Any) -> Any:
    """`params` with each entry replaced by its position in the raveled vector, as NumPy integers."""
    flat, unravel = ravel_pytree(params)
    return jax.tree.map(lambda leaf: np.asarray(leaf).astype(int), unravel(jnp.arange(flat.size, dtype=flat.dtype)))


def normal(rng: np.random.Generator, *shape: int) -> jax.Array:
    return jnp.asarray(rng.normal(size=shape))


def normal_like(rng: np.random.Generator, tree: Any) -> Any:
    return jax.tree.map(lambda leaf: normal(rng, *leaf.shape), tree)


def linen(rng: np.random.Generator, module: nn.Module, x: jax.Array) -> tuple[Callable, Any]:
    """The module's `apply(params, x)` and random parameters."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    return lambda params, x: module.apply({"params": params}, x), normal_like(rng, shapes["params"])


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


class LinenMLP(nn.Module):
    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        for width in self.widths[:-1]:
            x = jax.nn.relu(nn.Dense(width)(x))
        return nn.Dense(self.widths[-1])(x)


@network("dense", "monotone")
def linen_mlp(rng):
    x = normal(rng, 3, 3)
    apply, params = linen(rng, LinenMLP((4, 3, 2)), x)
    index = index_tree(params)
    return (
        apply,
        params,
        x,
        mlp_graph(3, [(index[f"Dense_{i}"]["kernel"], index[f"Dense_{i}"]["bias"]) for i in range(3)]),
    )


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
    params = {"down": normal(rng, 4, 3), "out": normal(rng, 3, 2), "up": normal(rng, 3, 4), "shift": normal(rng, 4)}

    def apply(params, x):
        h = jax.nn.relu(x @ params["up"] + params["shift"][None])
        return (x + h @ params["down"]) @ params["out"]

    index, graph = index_tree(params), Graph()
    x = graph.inputs((3,))
    h = graph.relu(graph.dense(x, index["up"], index["shift"]))
    h = graph.add(x, graph.dense(h, index["down"]))
    return apply, params, normal(rng, 3, 3), graph.finish(graph.dense(h, index["out"]))
