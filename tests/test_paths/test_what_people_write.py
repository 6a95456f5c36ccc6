"""Networks as people write them: those with paths have the right sums, the others are refused in words that fit.

Each accepted network stands beside its open sum, written by hand in the same framework: `power` is 0 in the network
itself and q in its open sum, where gates are the identity, maxima and differences are sums, and constants and inputs
are raised to the power q.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax.experimental import sparse

from pathjax import paths
from pathjax._interpreter import lifting as _lifting
from pathjax._interpreter.traced import traced

from .. import architectures
from ..architectures import Architecture, average, average_pool, flatten, gate, max_pool
from ..tolerances import EXACT

# Building networks


def constant(value: Any, power: int) -> Any:
    """A constant of the network; in the open sum its absolute value to the power q."""
    return jnp.abs(jnp.asarray(value, jnp.float64)) ** power if power else jnp.asarray(value, jnp.float64)


def minus(power: int) -> int:
    """The sign of a term that is subtracted: paths are added in the open sum."""
    return 1 if power else -1


def drawn(rng: np.random.Generator, tree: Any) -> Any:
    """Normal weights of a tree's shapes, smaller in larger layers."""
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) / np.sqrt(max(1, np.prod(leaf.shape[:-1])))), tree
    )


def plain(
    function: Callable[..., Any], x_shape: tuple[int, ...], **shapes: tuple[int, ...]
) -> Callable[[], Architecture]:
    """A network `function(params, x, power)` of a dictionary of weights of these shapes."""

    def build() -> Architecture:
        rng = np.random.default_rng(0)
        params = drawn(rng, {name: jax.ShapeDtypeStruct(shape, jnp.float64) for name, shape in shapes.items()})
        x = jnp.asarray(rng.normal(size=(3, *x_shape)))
        opened = lambda q: functools.partial(function, power=q)  # noqa: E731
        return Architecture(opened(0), opened, params, x)

    return build


def hidden(function: Callable[[Any, int], Any]) -> Callable[[], Architecture]:
    """A network whose hidden activations (n, 4) become `function(h, power)`, (n, 4)."""

    def apply(params: Any, x: Any, power: int) -> Any:
        h = x @ params["first"] + params["bias"][None]
        return function(h, power) @ params["second"]

    return plain(apply, (3,), first=(3, 4), bias=(4,), second=(4, 2))


def images(function: Callable[[Any, int], Any]) -> Callable[[], Architecture]:
    """A Flax linen network `function(x, power)` of layers, on images of 6 × 6 with two channels."""
    return lambda: architectures.linen(functools.partial(Body, function), (6, 6, 2))


def sequences(function: Callable[[Any, int], Any]) -> Callable[[], Architecture]:
    """A Flax linen network `function(x, power)` of layers, on sequences of 5 vectors of 4 numbers."""
    return lambda: architectures.linen(functools.partial(Body, function), (5, 4))


class Body(nn.Module):
    """A Flax linen network from a function that calls layers."""

    body: Callable[[Any, int], Any]
    power: int = 0

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return self.body(x, self.power)


def conv_head(*layers: Callable[[Any, int], Any]) -> Callable[[], Architecture]:
    """A convolution, these layers, and a dense layer."""

    def body(x: Any, power: int) -> Any:
        h = nn.Conv(3, (3, 3))(x)
        for layer in layers:
            h = layer(h, power)
        return nn.Dense(2)(flatten(h))

    return images(body)


# Accepted networks


def padded(mode: str) -> Callable[[], Architecture]:
    def body(x: Any, power: int) -> Any:
        h = jnp.pad(x, ((0, 0), (2, 1), (1, 2), (0, 0)), mode=mode)
        return nn.Dense(2)(flatten(gate(nn.Conv(2, (3, 3), padding="VALID")(h), power)))

    return images(body)


def leaky_by_hand(h: Any, power: int) -> Any:
    return h if power else jnp.where(h > 0, h, 0.1 * h)


def maxout(h: Any, power: int) -> Any:
    pieces = h.reshape(len(h), 2, 2)
    return jnp.repeat(pieces.sum(axis=-1) if power else pieces.max(axis=-1), 2, axis=-1)


def prelu(params: Any, x: Any, power: int) -> Any:
    h = x @ params["first"]
    h = h + params["slopes"][None] * h if power else jnp.where(h >= 0, h, params["slopes"][None] * h)
    return h @ params["second"]


def unet(x: Any, power: int) -> Any:
    down = gate(nn.Conv(2, (3, 3))(x), power)
    low = gate(nn.Conv(3, (3, 3))(max_pool(down, power)), power)
    up = jax.image.resize(low, (len(x), 6, 6, 3), "nearest")
    return nn.Conv(1, (3, 3))(jnp.concatenate([down, up], axis=-1)).reshape(len(x), -1)


def bilinear_up(x: Any, power: int) -> Any:
    low = gate(nn.Conv(1, (3, 3), strides=2)(x), power)
    # the weights of the resize are constants on the paths: two axes of a matrix each
    matrix = jax.image.resize(jnp.eye(3, dtype=jnp.float64), (6, 3), "bilinear")
    if power:
        up = jnp.einsum("ai,bj,nijc->nabc", constant(matrix, power), constant(matrix, power), low)
    else:
        up = jax.image.resize(low, (len(x), 6, 6, 1), "bilinear")
    return nn.Dense(2)(flatten(up))


def mixer(x: Any, power: int) -> Any:
    for _ in range(2):
        x = x + nn.Dense(5)(gate(nn.Dense(6)(x.swapaxes(1, 2)), power)).swapaxes(1, 2)
        x = x + nn.Dense(4)(gate(nn.Dense(6)(x), power))
    return nn.Dense(2)(x.mean(axis=1) / 5 ** max(power - 1, 0))


def resnet_v2(x: Any, power: int) -> Any:
    h = nn.Conv(4, (3, 3))(x)
    for _ in range(2):
        h = h + nn.Conv(4, (3, 3))(gate(architectures.norm(h), power))
    return nn.Dense(2)(average(gate(h, power), power))


def simple_recurrence(params: Any, x: Any, power: int) -> Any:
    def step(state: Any, inputs: Any) -> Any:
        return gate(state @ params["state"] + inputs @ params["inputs"], power), None

    state, _ = lax.scan(step, jnp.zeros((len(x), 4)), x.swapaxes(0, 1))
    return state @ params["head"]


def scanned_layers(params: Any, x: Any, power: int) -> Any:
    return lax.scan(lambda h, w: (gate(h @ w, power), None), x, params["layers"])[0]


def counted_layers(params: Any, x: Any, power: int) -> Any:
    return lax.fori_loop(0, 2, lambda i, h: gate(h @ params["layers"][i], power), x)


def mapped_examples(params: Any, x: Any, power: int) -> Any:
    return lax.map(lambda row: gate(row @ params["first"], power) @ params["second"], x)


def vmapped_examples(params: Any, x: Any, power: int) -> Any:
    return jax.vmap(lambda row: gate(row @ params["first"], power) @ params["second"])(x)


ADJACENCY = np.array(
    [[0.5, 0.5, 0, 0, 0], [0.25, 0.5, 0.25, 0, 0], [0, 0.3, 0.3, 0.4, 0], [0, 0, 1, 0, 1], [0, 1, 0, 0, 2]]
)
SENDERS, RECEIVERS = np.array([0, 1, 1, 3, 4, 2]), np.array([1, 0, 2, 4, 4, 0])


def graph_convolution(x: Any, power: int) -> Any:
    for width in (3, 2):
        x = gate(constant(ADJACENCY, power)[None] @ nn.Dense(width)(x), power)
    return x.sum(axis=1)


def message_passing(x: Any, power: int) -> Any:
    def one_graph(nodes: Any) -> Any:
        return jax.ops.segment_sum(nodes[SENDERS], RECEIVERS, 5)

    return gate(jax.vmap(one_graph)(nn.Dense(3)(x)), power).sum(axis=1)


def deep_sets(x: Any, power: int) -> Any:
    return nn.Dense(2)(gate(nn.Dense(4)(gate(nn.Dense(4)(x), power).sum(axis=1)), power))


def last_token(x: Any, power: int) -> Any:
    h = gate(nn.Dense(3)(x), power)
    return nn.Dense(2)(h[jnp.arange(len(h)), -1])


def learned_positions(params: Any, x: Any, power: int) -> Any:
    h = gate(x @ params["first"] + params["positions"][None, jnp.arange(x.shape[1])], power)
    return h.sum(axis=1) @ params["second"]


def sine_positions(x: Any, power: int) -> Any:
    angles = np.arange(5)[:, None] / 10.0 ** np.arange(4)[None]
    return nn.Dense(2)(gate(nn.Dense(3)(x + constant(np.sin(angles), power)[None]), power).sum(axis=1))


def causal_mix(params: Any, x: Any, power: int) -> Any:
    weights = jnp.where(np.tri(5, dtype=bool), params["mix"], 0.0)
    return jnp.einsum("ts,nsd->ntd", weights, gate(x @ params["first"], power)).sum(axis=1)


def tied_autoencoder(params: Any, x: Any, power: int) -> Any:
    return gate(x @ params["encoder"], power) @ params["encoder"].T


def learned_scales(params: Any, x: Any, power: int) -> Any:
    return x + params["scale"] * (gate(x @ params["first"], power) @ params["second"])


def standardized_input(h: Any, power: int) -> Any:
    return gate((h + minus(power) * constant(0.3, power)) / constant(1.7, power), power)


def hypernetwork(params: Any, x: Any, power: int) -> Any:
    kernel = jnp.einsum("a,aio->io", params["code"], params["hyper"])
    return gate(x @ kernel, power) @ params["second"]


def low_rank(params: Any, x: Any, power: int) -> Any:
    return gate(x @ (params["frozen"] + params["down"] @ params["up"]), power) @ params["second"]


def binary_weights(params: Any, x: Any, power: int) -> Any:
    """The sign of each weight times the mean size of the weights, which is linear piece by piece."""
    size = jnp.abs(params["second"]).mean() / params["second"].size ** max(power - 1, 0)
    kernel = size * (jnp.ones((4, 2)) if power else jnp.sign(params["second"]))
    return gate(x @ params["first"], power) @ kernel


def updated_entries(h: Any, power: int) -> Any:
    h = h.at[:, 1].multiply(constant(-0.5, power)).at[jnp.arange(len(h)), 2].set(0.0)
    return gate(h.at[:, 0].add(h[:, 3]), power)


def half_of_channels(h: Any, power: int) -> Any:
    left, right = jnp.split(h, 2, axis=-1)
    return jnp.concatenate([gate(left, power), right], axis=-1)


def nnx_mlp() -> Architecture:
    class MLP(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.first = nnx.Linear(3, 4, rngs=rngs, param_dtype=jnp.float64)
            self.norm = nnx.BatchNorm(4, use_running_average=True, epsilon=architectures.EPSILON, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, deterministic=True, rngs=rngs)
            self.second = nnx.Linear(4, 2, rngs=rngs, param_dtype=jnp.float64)

        def __call__(self, x: Any, power: int) -> Any:
            return self.second(self.dropout(gate(self.norm(self.first(x)), power)))

    structure, params, rest = cast("tuple[Any, Any, Any]", nnx.split(MLP(nnx.Rngs(0)), nnx.Param, ...))
    params = drawn(np.random.default_rng(0), params)
    # mean 0, and the variance that makes the coefficient of batch norm 1
    rest = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.full(leaf.shape, 1 - architectures.EPSILON) if "var" in str(path) else leaf, rest
    )

    def opened(q: int) -> Any:
        return lambda params, x: nnx.merge(structure, params, rest)(x, q)

    return Architecture(opened(0), opened, params, jnp.asarray(np.random.default_rng(1).normal(size=(3, 3))))


def equinox_cnn() -> Architecture:
    keys = jax.random.split(jax.random.key(0), 2)
    model = (eqx.nn.Conv2d(2, 3, 3, key=keys[0]), eqx.nn.Linear(3 * 4, 2, key=keys[1]))
    params, structure = eqx.partition(model, eqx.is_inexact_array)
    params = drawn(np.random.default_rng(0), params)

    def opened(q: int) -> Any:
        def one(params: Any, image: Any) -> Any:
            conv, dense = eqx.combine(params, structure)
            return dense(gate(conv(image), q).reshape(-1))

        return lambda params, x: jax.vmap(functools.partial(one, params))(x)

    return Architecture(
        opened(0), opened, params, jnp.asarray(np.random.default_rng(1).normal(size=(3, 2, 4, 4))[..., :4])
    )


def pool(kind: str, **options: Any) -> Callable[[Any, int], Any]:
    """A pool of 2 × 2 with other options than `architectures.max_pool` has."""

    def layer(h: Any, power: int) -> Any:
        window = (2, 2)
        if kind == "max":
            options_of_sum = {"strides": (1, 1), "padding": "VALID"} | options
            if power:
                return nn.pooling.pool(h, 0.0, lax.add, window, options_of_sum["strides"], options_of_sum["padding"])
            return nn.max_pool(h, window, **options)
        if kind == "min":
            return (
                nn.pooling.pool(h, 0.0, lax.add, window, (1, 1), "VALID") if power else nn.pooling.min_pool(h, window)
            )
        return nn.avg_pool(h, window, **options) / 4 ** max(power - 1, 0)

    return layer


RELU = lambda h, power: gate(h, power)  # noqa: E731
IDENTITY_OR: Callable[..., Any] = lambda function: lambda h, power: h if power else function(h)  # noqa: E731

ACCEPTED: dict[str, Callable[[], Architecture]] = {
    # activations
    "MLP with ReLU": hidden(gate),
    "linear network": hidden(lambda h, power: h),
    "leaky ReLU": hidden(IDENTITY_OR(jax.nn.leaky_relu)),
    "leaky ReLU by where": hidden(leaky_by_hand),
    "ReLU by a product with a comparison": hidden(IDENTITY_OR(lambda h: h * (h > 0))),
    "ReLU by a custom derivative rule": hidden(IDENTITY_OR(jax.nn.relu)),
    "ReLU by maximum": hidden(IDENTITY_OR(lambda h: jnp.maximum(h, 0.0))),
    "ReLU by clip": hidden(IDENTITY_OR(lambda h: jnp.clip(h, 0.0))),
    "absolute value": hidden(IDENTITY_OR(jnp.abs)),
    "concatenated ReLU": hidden(
        lambda h, power: jnp.concatenate([gate(h[:, :2], power), gate(minus(power) * h[:, :2], power)], axis=1)
    ),
    "maxout": hidden(maxout),
    "PReLU": plain(prelu, (3,), first=(3, 4), slopes=(4,), second=(4, 2)),
    # images
    "CNN with max pool": conv_head(RELU, max_pool),
    "CNN with average pool": conv_head(RELU, average_pool),
    "CNN with overlapping max pool": conv_head(RELU, pool("max")),
    "CNN with padded max pool": conv_head(RELU, pool("max", strides=(2, 2), padding="SAME")),
    "CNN with min pool": conv_head(RELU, pool("min")),
    "CNN with padded average pool": conv_head(RELU, pool("average", padding="SAME")),
    "CNN with global average pool": images(
        lambda x, power: nn.Dense(2)(average(gate(nn.Conv(3, (3, 3))(x), power), power))
    ),
    "CNN with global max pool": images(
        lambda x, power: nn.Dense(2)(
            (lambda h: h.sum(axis=(1, 2)) if power else h.max(axis=(1, 2)))(nn.Conv(3, (3, 3))(x))
        )
    ),
    **{f"{mode} padding": padded(mode) for mode in ("edge", "reflect", "symmetric", "wrap", "constant")},
    "circular convolution": images(lambda x, power: flatten(gate(nn.Conv(1, (3, 3), padding="CIRCULAR")(x), power))),
    "dilated and strided convolutions": images(
        lambda x, power: flatten(nn.Conv(2, (2, 2), strides=2)(gate(nn.Conv(2, (3, 3), kernel_dilation=2)(x), power)))
    ),
    "depthwise separable convolution": images(
        lambda x, power: flatten(nn.Conv(1, (1, 1))(gate(nn.Conv(4, (3, 3), feature_group_count=2)(x), power)))
    ),
    "transposed convolution": images(
        lambda x, power: nn.ConvTranspose(1, (3, 3), strides=(2, 2))(gate(nn.Conv(2, (2, 2), strides=2)(x), power)).sum(
            axis=(2, 3)
        )
    ),
    "ResNet v1": architectures.narrow(architectures.ResNet, (6, 6, 2), width=2, blocks=(1, 1)),
    "ResNet v2": images(resnet_v2),
    "DenseNet": architectures.narrow(architectures.DenseNet, (4, 4, 2), width=2, layers=1, growth=2),
    "MobileNet with ReLU": architectures.narrow(architectures.MobileNet, (4, 4, 2), width=2, stages=((2, 1),)),
    "U-Net with concatenation and nearest resize": images(unet),
    "bilinear resize": images(bilinear_up),
    "half of the channels through a ReLU": conv_head(lambda h, power: half_of_channels(jnp.tile(h, 2), power)),
    # sequences, sets and graphs
    "MLP-Mixer": sequences(mixer),
    "plain recurrent network with ReLU": plain(simple_recurrence, (3, 4), state=(4, 4), inputs=(4, 4), head=(4, 2)),
    "last token by an index": sequences(last_token),
    "learned position embeddings": plain(learned_positions, (5, 3), first=(3, 4), positions=(6, 4), second=(4, 2)),
    "sine position embeddings": sequences(sine_positions),
    "positions mixed by masked weights": plain(causal_mix, (5, 3), first=(3, 2), mix=(5, 5)),
    "convolution over time": sequences(lambda x, power: gate(nn.Conv(3, (3,), padding="CAUSAL")(x), power).sum(axis=1)),
    "Deep Sets": sequences(deep_sets),
    "graph convolution with a constant adjacency": sequences(graph_convolution),
    "messages along constant edges": sequences(message_passing),
    # loops and calls
    "layers in a scan": plain(scanned_layers, (3,), layers=(3, 3, 3)),
    "layers in a fori_loop": plain(counted_layers, (3,), layers=(2, 3, 3)),
    "examples by lax.map": plain(mapped_examples, (3,), first=(3, 4), second=(4, 2)),
    "examples by vmap": plain(vmapped_examples, (3,), first=(3, 4), second=(4, 2)),
    "a constant condition": hidden(lambda h, power: lax.cond(True, lambda a: gate(a, power), lambda a: jnp.tanh(a), h)),
    "remat": hidden(lambda h, power: jax.checkpoint(lambda a: gate(a, power))(h)),
    # weights and constants
    "tied autoencoder": plain(tied_autoencoder, (4,), encoder=(4, 2)),
    "residual scaled by a learned number": plain(learned_scales, (3,), first=(3, 4), second=(4, 3), scale=()),
    "einsum": plain(lambda p, x, power: jnp.einsum("ni,ijo->njo", x, p["w"]).sum(axis=1), (3,), w=(3, 2, 2)),
    "weights made by a hypernetwork of constants": plain(hypernetwork, (3,), code=(2,), hyper=(2, 3, 4), second=(4, 2)),
    "low-rank adapter": plain(low_rank, (3,), frozen=(3, 4), down=(3, 1), up=(1, 4), second=(4, 2)),
    "binary weights": plain(binary_weights, (3,), first=(3, 4), second=(4, 2)),
    "standardized by constants": hidden(standardized_input),
    "a constant mask": hidden(lambda h, power: jnp.where(np.array([True, False, True, True]), gate(h, power), 0.0)),
    "entries updated in place": hidden(updated_entries),
    "features rolled": hidden(lambda h, power: gate(h, power) + jnp.roll(h, 1, axis=-1)),
    "skip to the output": plain(
        lambda p, x, power: gate(x @ p["w"], power) @ p["v"] + x @ p["u"], (3,), w=(3, 4), v=(4, 2), u=(3, 2)
    ),
    "dropout off": hidden(lambda h, power: nn.Dropout(0.5, deterministic=True).apply({}, gate(h, power))),
    "NNX with batch norm and dropout in evaluation": nnx_mlp,
    "Equinox": equinox_cnn,
}


class Sums(NamedTuple):
    log_norms: Any
    outputs: Any
    pulled: Any


def by_paths(network: Architecture, params: Any, cotangent: Any) -> Sums:
    """Log path norms, and the sum of signed paths with what its Jacobian makes of a cotangent."""
    x = network.x

    def signed(params: Any) -> Any:
        program = traced(network.apply, params).path_program(x)
        return _lifting.lift(program, params, x, phi=lambda v: v, points=[(params, x)]).value()

    outputs, pull = jax.vjp(signed, params)
    norms = [paths.log_path_norm(network.apply, params, x, q=q) for q in (1, 2)]
    return Sums(jnp.stack(norms), outputs, pull(cotangent))


def by_network(network: Architecture, params: Any, cotangent: Any) -> Sums:
    """The same from the network and its open sums."""
    outputs, pull = jax.vjp(lambda params: network.apply(params, network.x), params)
    norms = []
    for q in (1, 2):
        raised = jax.tree.map(lambda leaf, q=q: jnp.abs(leaf) ** q, params)
        norms.append(jnp.log(network.opened(q)(raised, jnp.ones_like(network.x[:1])).sum()))
    return Sums(jnp.stack(norms), outputs, pull(cotangent))


def assert_close(ours: Any, theirs: Any) -> None:
    scale = max(1e-300, np.max(np.abs(theirs), initial=0.0))
    np.testing.assert_allclose(ours, theirs, rtol=EXACT, atol=EXACT * scale)


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_has_paths_has_the_sums_of_its_network(name: str) -> None:
    network = ACCEPTED[name]()
    outputs = jax.eval_shape(network.apply, network.params, network.x)
    cotangent = jnp.asarray(np.random.default_rng(1).normal(size=outputs.shape))
    ours, theirs = (
        jax.jit(functools.partial(side, network))(network.params, cotangent) for side in (by_paths, by_network)
    )
    jax.tree.map(assert_close, ours, theirs)


# Refused networks


class Network(NamedTuple):
    apply: Callable[[Any, Any], Any]
    params: Any
    x: Any


class Refused(NamedTuple):
    """A network without paths, what its error must match, in this order, and what it must not match."""

    build: Callable[[], Network]
    says: tuple[str, ...]
    never: tuple[str, ...] = ()


def without_paths(function: Callable[[Any], Any], shape: tuple[int, ...] = ()) -> Callable[[], Network]:
    """Hidden activations (n, *shape, 4) become `function(h)`, of the same number of axes; all are outputs."""

    def apply(params: Any, x: Any) -> Any:
        h = function(x @ params["first"])
        return h.reshape(len(h), -1)

    params = {"first": jnp.ones((3, 4))}
    return lambda: Network(apply, params, jnp.ones((5, *shape, 3)))


def of_weights(function: Callable[[Any], Any]) -> Callable[[], Network]:
    """A dense layer whose kernel is `function(weights)`, behind a ReLU layer."""
    params = {"first": jnp.ones((3, 4)), "second": jnp.ones((4, 2))}
    return lambda: Network(lambda p, x: jax.nn.relu(x @ p["first"]) @ function(p["second"]), params, jnp.ones((5, 3)))


def linen(body: Callable[[Any], Any], shape: tuple[int, ...] = (3,), **rngs: Any) -> Callable[[], Network]:
    """A Flax linen network `body(x)` of layers; all of its results are outputs."""

    def build() -> Network:
        model = Body(lambda x, power: body(x).reshape(len(x), -1))
        x = jnp.ones((5, *shape), jnp.float32)
        variables = model.init({"params": jax.random.key(0), "dropout": jax.random.key(0)}, x)
        rest = {name: tree for name, tree in variables.items() if name != "params"}

        def apply(params: Any, x: Any) -> Any:
            return model.apply({"params": params} | rest, x, mutable=list(rest), rngs={"dropout": jax.random.key(1)})[0]

        return Network(apply, variables["params"], x)

    return build


def nnx_layers(make: Callable[[nnx.Rngs], list[Any]]) -> Callable[[], Network]:
    """A Flax NNX network of layers in a row."""

    def build() -> Network:
        model = nnx.Sequential(*make(nnx.Rngs(0)))
        structure, params, rest = cast("tuple[Any, Any, Any]", nnx.split(model, nnx.Param, ...))
        return Network(
            lambda params, x: nnx.merge(structure, params, rest, copy=True)(x), params, jnp.ones((5, 3), jnp.float32)
        )

    return build


def equinox_layers(make: Callable[[Any], list[Any]], shape: tuple[int, ...] = (3,)) -> Callable[[], Network]:
    """An Equinox network of layers in a row, mapped over the batch."""

    def build() -> Network:
        params, structure = eqx.partition(make(jax.random.split(jax.random.key(0), 4)), eqx.is_inexact_array)

        def one(params: Any, row: Any) -> Any:
            for layer in eqx.combine(params, structure):
                row = layer(row)
            return row.reshape(-1)

        return Network(lambda p, x: jax.vmap(functools.partial(one, p))(x), params, jnp.ones((5, *shape)))

    return build


def squeeze_and_excite(x: Any) -> Any:
    h = nn.Conv(4, (3, 3))(x)
    scale = jax.nn.sigmoid(nn.Dense(4)(nn.relu(nn.Dense(2)(h.mean(axis=(1, 2))))))
    return h * scale[:, None, None]


def vision_transformer(x: Any) -> Any:
    h = nn.Conv(4, (2, 2), strides=2)(x).reshape(len(x), -1, 4)
    h = h + nn.MultiHeadDotProductAttention(num_heads=2)(nn.LayerNorm()(h))
    return h + nn.Dense(4)(nn.gelu(nn.Dense(8)(nn.LayerNorm()(h))))


def attention_by_hand(h: Any) -> Any:
    weights = jax.nn.softmax(jnp.einsum("ntd,nsd->nts", h, h))
    return jnp.einsum("nts,nsd->ntd", weights, h)


def norm_by_hand(h: Any) -> Any:
    mean, variance = h.mean(axis=-1, keepdims=True), h.var(axis=-1, keepdims=True)
    return (h - mean) / jnp.sqrt(variance + 1e-5)


def batch_norm_by_hand(h: Any) -> Any:
    return (h - h.mean(axis=0, keepdims=True)) / jnp.sqrt(h.var(axis=0, keepdims=True) + 1e-5)


def dropout_by_hand(h: Any) -> Any:
    return jnp.where(jax.random.bernoulli(jax.random.key(0), 0.5, h.shape), h, 0.0)


def standardized_weights(w: Any) -> Any:
    return (w - w.mean(axis=0, keepdims=True)) / jnp.sqrt(w.var(axis=0, keepdims=True) + 1e-5)


def spectral(w: Any) -> Any:
    return w / jnp.linalg.norm(w, ord=2)


@jax.custom_jvp
def rounded(x: Any) -> Any:
    return jnp.round(x)


rounded.defjvp(lambda primals, tangents: (rounded(*primals), tangents[0]))


def sparse_product() -> Network:
    adjacency = sparse.BCOO.fromdense(jnp.eye(4))
    return without_paths(lambda h: (adjacency @ h.T).T)()


def outputs_of(function: Callable[[Any], Any]) -> Callable[[], Network]:
    return lambda: Network(lambda p, x: function(x @ p), jnp.ones((3, 2)), jnp.ones((5, 3)))


def with_input(function: Callable[[Any, Any], Any], x: Any, shape: tuple[int, ...] = (3, 2)) -> Callable[[], Network]:
    return lambda: Network(function, jnp.ones(shape), x)


_CURVED = ("curved, not piecewise linear", "Use a ReLU")
_OF_WEIGHTS = ("computed from parameters alone", "Close over it as a constant, or make what it computes the parameter")
_NORM_WORDS = ("divides by the size of the activations", "Use batch norm with running statistics, or no norm")
_BATCH_NORM = ("Batch norm in training mode mixes the examples", "use_running_average=True, model.eval")
_DROPOUT = ("Dropout is on", "deterministic=True, model.eval")
_SOFTMAX = ("`softmax`", "takes exponentials", "return the logits", "inside the network use a ReLU")

REFUSED: dict[str, Refused] = {
    # activations
    "GELU": Refused(without_paths(jax.nn.gelu), ("`gelu`", *_CURVED), ("integer_pow",)),
    "exact GELU": Refused(without_paths(lambda h: jax.nn.gelu(h, approximate=False)), ("GELU is", *_CURVED)),
    "GELU of linen": Refused(linen(lambda x: nn.gelu(nn.Dense(4)(x))), ("`gelu`", *_CURVED), ("integer_pow",)),
    "GELU of NNX": Refused(
        nnx_layers(lambda rngs: [nnx.Linear(3, 4, rngs=rngs), nnx.gelu]), ("`gelu`", *_CURVED), ("integer_pow",)
    ),
    "GELU of Equinox": Refused(
        equinox_layers(lambda keys: [eqx.nn.Linear(3, 4, key=keys[0]), jax.nn.gelu]),
        ("`gelu`", *_CURVED),
        ("integer_pow",),
    ),
    "SiLU": Refused(without_paths(jax.nn.silu), ("SiLU", *_CURVED)),
    "swish": Refused(without_paths(jax.nn.swish), ("(Swish|SiLU)", *_CURVED)),
    "mish": Refused(without_paths(jax.nn.mish), ("Mish is", *_CURVED), ("softmax", "logits")),
    "softplus": Refused(without_paths(jax.nn.softplus), ("Softplus is", *_CURVED), ("softmax", "logits")),
    "ELU": Refused(without_paths(jax.nn.elu), ("ELU is", *_CURVED), ("softmax", "logits")),
    "SELU": Refused(without_paths(jax.nn.selu), ("SELU is", *_CURVED), ("softmax", "logits")),
    "CELU": Refused(without_paths(jax.nn.celu), ("CELU is", *_CURVED), ("softmax", "logits")),
    "tanh": Refused(without_paths(jnp.tanh), ("`tanh`", *_CURVED)),
    "sigmoid": Refused(without_paths(jax.nn.sigmoid), ("`logistic`", *_CURVED)),
    "log sigmoid": Refused(without_paths(jax.nn.log_sigmoid), ("logarithm of a sigmoid", *_CURVED), ("logits",)),
    "sine": Refused(without_paths(jnp.sin), ("`sin`", "curved", "features of the input")),
    "ReLU6": Refused(without_paths(jax.nn.relu6), ("clipped at a constant other than 0", r"Clip at 0 \(ReLU\)")),
    "hard tanh": Refused(without_paths(jax.nn.hard_tanh), ("clipped|compared with a constant", "0")),
    "hard sigmoid": Refused(without_paths(jax.nn.hard_sigmoid), ("clipped at a constant other than 0", "Clip at 0")),
    "hard swish": Refused(without_paths(jax.nn.hard_swish), ("clipped at|multiplies two", "ReLU")),
    "squared ReLU": Refused(
        without_paths(lambda h: jnp.square(jax.nn.relu(h))),
        ("`square`", "not of first order in the input", "Use a ReLU"),
    ),
    "gated linear unit": Refused(
        without_paths(lambda h: jax.nn.glu(jnp.tile(h, 2))), ("gated linear unit", "multiplies two activations")
    ),
    "soft sign": Refused(without_paths(jax.nn.soft_sign), ("Soft sign is curved",)),
    # norms
    "layer norm of linen": Refused(
        linen(lambda x: nn.LayerNorm()(nn.Dense(4)(x))), ("`LayerNorm`", "Layer norm", *_NORM_WORDS), ("Use a ReLU",)
    ),
    "group norm of linen": Refused(
        linen(lambda x: nn.GroupNorm(2)(nn.Dense(4)(x))), ("`GroupNorm`", "Group norm", *_NORM_WORDS), ("Use a ReLU",)
    ),
    "RMS norm of linen": Refused(
        linen(lambda x: nn.RMSNorm()(nn.Dense(4)(x))), ("`RMSNorm`", "RMS norm", *_NORM_WORDS), ("Use a ReLU",)
    ),
    "instance norm of linen": Refused(
        linen(lambda x: nn.InstanceNorm()(nn.Conv(4, (3, 3))(x)), (6, 6, 2)),
        ("`InstanceNorm`", "Instance norm", *_NORM_WORDS),
        ("Use a ReLU",),
    ),
    "layer norm of NNX": Refused(
        nnx_layers(lambda rngs: [nnx.Linear(3, 4, rngs=rngs), nnx.LayerNorm(4, rngs=rngs)]),
        ("`LayerNorm`", *_NORM_WORDS),
        ("Use a ReLU",),
    ),
    "RMS norm of NNX": Refused(
        nnx_layers(lambda rngs: [nnx.Linear(3, 4, rngs=rngs), nnx.RMSNorm(4, rngs=rngs)]),
        ("`RMSNorm`", *_NORM_WORDS),
        ("Use a ReLU",),
    ),
    "layer norm of Equinox": Refused(
        equinox_layers(lambda keys: [eqx.nn.Linear(3, 4, key=keys[0]), eqx.nn.LayerNorm(4)]),
        ("Layer norm", *_NORM_WORDS),
        ("Use a ReLU", "infinite"),
    ),
    "group norm of Equinox": Refused(
        equinox_layers(lambda keys: [eqx.nn.Linear(3, 4, key=keys[0]), eqx.nn.GroupNorm(2, 4)]),
        ("Group norm", *_NORM_WORDS),
        ("Use a ReLU", "infinite"),
    ),
    "RMS norm of Equinox": Refused(
        equinox_layers(lambda keys: [eqx.nn.Linear(3, 4, key=keys[0]), eqx.nn.RMSNorm(4)]),
        ("RMS norm", *_NORM_WORDS),
        ("Use a ReLU",),
    ),
    "layer norm by hand": Refused(
        without_paths(norm_by_hand),
        ("variance of activations", "Use batch norm with running statistics, or no norm"),
        ("Use a ReLU", "infinite"),
    ),
    "standardized by jax.nn": Refused(without_paths(jax.nn.standardize), _NORM_WORDS, ("Use a ReLU", "infinite")),
    "divided by its norm": Refused(
        without_paths(lambda h: h / jnp.linalg.norm(h, axis=-1, keepdims=True)),
        ("A norm of activations", "or no norm"),
        ("Use a ReLU", "attention"),
    ),
    "divided by its size": Refused(
        without_paths(lambda h: h / jnp.abs(h).sum(axis=-1, keepdims=True)), ("divides by an activation",)
    ),
    "batch norm of linen in training": Refused(
        linen(lambda x: nn.BatchNorm(use_running_average=False)(nn.Dense(4)(x))),
        ("`BatchNorm`", *_BATCH_NORM),
        ("Use a ReLU",),
    ),
    "batch norm of NNX in training": Refused(
        nnx_layers(lambda rngs: [nnx.Linear(3, 4, rngs=rngs), nnx.BatchNorm(4, rngs=rngs)]),
        ("`BatchNorm`", *_BATCH_NORM),
    ),
    "batch norm by hand": Refused(without_paths(batch_norm_by_hand), ("mixes the examples", "running statistics")),
    "statistics of batch norm among the weights": Refused(
        lambda: Network(
            (model := nn.Sequential([nn.Dense(4), nn.BatchNorm(use_running_average=True)])).apply,
            model.init(jax.random.key(0), jnp.ones((5, 3))),
            jnp.ones((5, 3)),
        ),
        ("running statistics of batch norm", "closing over them"),
    ),
    # dropout
    "dropout of linen": Refused(
        linen(lambda x: nn.Dropout(0.5, deterministic=False)(nn.Dense(4)(x))), _DROPOUT, ("statistics",)
    ),
    "dropout of NNX": Refused(
        nnx_layers(lambda rngs: [nnx.Linear(3, 4, rngs=rngs), nnx.Dropout(0.5, rngs=nnx.Rngs(1))]),
        _DROPOUT,
        ("statistics",),
    ),
    "dropout by hand": Refused(
        without_paths(dropout_by_hand),
        ("by their position, as the random mask of dropout", "Leave dropout out"),
        ("statistics",),
    ),
    # weights computed from weights
    "weight standardization": Refused(of_weights(standardized_weights), _OF_WEIGHTS, ("infinite",)),
    "weight norm": Refused(of_weights(lambda w: w / jnp.sqrt((w**2).sum(axis=0, keepdims=True))), _OF_WEIGHTS),
    "weight norm of linen": Refused(linen(lambda x: nn.WeightNorm(nn.Dense(4))(x)), _OF_WEIGHTS),
    "spectral norm": Refused(of_weights(spectral), _OF_WEIGHTS),
    "spectral norm of linen": Refused(
        linen(lambda x: nn.SpectralNorm(nn.Dense(4))(x, update_stats=False)), ("parameter",)
    ),
    "quantized weights": Refused(of_weights(jnp.round), _OF_WEIGHTS, ("Leave the rounding",)),
    "straight-through rounding": Refused(of_weights(lambda w: w + lax.stop_gradient(jnp.round(w) - w)), _OF_WEIGHTS),
    "straight-through rule": Refused(without_paths(rounded), ("Its derivative rule is not the derivative",)),
    "positive weights by exp": Refused(of_weights(jnp.exp), _OF_WEIGHTS, ("softmax",)),
    "clipped weights": Refused(of_weights(lambda w: jnp.clip(w, -1.0, 1.0)), _OF_WEIGHTS, ("activation",)),
    # outputs
    "softmax head": Refused(without_paths(jax.nn.softmax), _SOFTMAX, ("stop_gradient", "derivative")),
    "log softmax head": Refused(
        without_paths(jax.nn.log_softmax), ("takes exponentials", "return the logits"), ("stop_gradient", "derivative")
    ),
    "softmax head of linen": Refused(
        linen(lambda x: nn.softmax(nn.Dense(4)(x))), _SOFTMAX, ("stop_gradient", "derivative")
    ),
    "softmax by hand": Refused(
        without_paths(lambda h: jnp.exp(h) / jnp.exp(h).sum(axis=-1, keepdims=True)),
        ("`exp`", "not homogeneous", "return the logits"),
    ),
    "sigmoid head": Refused(without_paths(nn.sigmoid), ("`logistic`", *_CURVED)),
    "several heads in a dict": Refused(
        outputs_of(lambda h: {"class": h, "box": 2.0 * h}),
        ("must return one array of shape", "a pytree of arrays", "Concatenate"),
    ),
    "outputs without an axis": Refused(
        outputs_of(lambda h: h.sum(axis=1)), ("must return one array of shape", r"\(n, 1\)")
    ),
    # sequences
    "attention by hand": Refused(
        without_paths(attention_by_hand, (6,)), ("multiplies two activations", "attention"), ("stop_gradient",)
    ),
    "attention of jax.nn": Refused(
        without_paths(lambda h: jax.nn.dot_product_attention(h[:, :, None], h[:, :, None], h[:, :, None]), (6,)),
        ("multiplies two activations",),
    ),
    "attention of linen": Refused(
        linen(lambda x: nn.MultiHeadDotProductAttention(2)(nn.Dense(4)(x)), (6, 3)),
        ("multiplies two activations", "MLP-Mixer"),
    ),
    "attention of Equinox": Refused(
        equinox_layers(lambda keys: [lambda h: eqx.nn.MultiheadAttention(1, 3, key=keys[0])(h, h, h)], (6, 3)),
        ("multiplies two activations",),
    ),
    "vision transformer": Refused(linen(vision_transformer, (6, 6, 2)), ("Layer norm", *_NORM_WORDS), ("Use a ReLU",)),
    "LSTM of linen": Refused(linen(lambda x: nn.RNN(nn.LSTMCell(4))(x), (6, 3)), ("recurrent cell", "SimpleCell")),
    "GRU of linen": Refused(linen(lambda x: nn.RNN(nn.GRUCell(4))(x), (6, 3)), ("recurrent cell", "SimpleCell")),
    "GRU of Equinox": Refused(
        equinox_layers(lambda keys: [lambda h: eqx.nn.GRUCell(3, 4, key=keys[0])(h, jnp.zeros(4))]),
        ("recurrent cell", "SimpleCell"),
    ),
    "embedded tokens": Refused(
        lambda: Network(
            (model := nn.Embed(7, 4)).apply, model.init(jax.random.key(0), jnp.ones((5,), int)), jnp.ones((5,), int)
        ),
        ("dtype int", "paths start at real-valued inputs", "after its embedding"),
    ),
    "tokens as rounded floats": Refused(
        with_input(lambda p, x: p[x.astype(int)].sum(axis=1), jnp.ones((5, 2))),
        ("`convert_element_type`", "rounded to whole numbers", "embedding"),
        ("examples",),
    ),
    "one-hot of rounded floats": Refused(
        with_input(lambda p, x: jax.nn.one_hot(x[:, 0], 3) @ p, jnp.ones((5, 2))),
        ("`eq`|whole numbers|compared",),
        ("mixes",),
    ),
    "inputs in a dict": Refused(
        with_input(lambda p, x: x["a"] @ p, {"a": jnp.ones((5, 3))}),
        ("must be an array of shape", "is dict", "one array, and split it inside `apply`"),
    ),
    "inputs and targets": Refused(
        with_input(lambda p, x: x[0] @ p, (jnp.ones((5, 3)), jnp.ones(5))),
        ("must be an array of shape", "is tuple", "one array"),
    ),
    # products of two functions of x
    "learned gates": Refused(
        without_paths(lambda h: h * h[:, ::-1]), ("multiplies two activations", "Replace one factor")
    ),
    "bilinear layer": Refused(
        with_input(lambda p, x: jnp.einsum("ni,ij,nj->n", x, p, x)[:, None], jnp.ones((5, 3)), (3, 3)),
        ("multiplies two activations",),
    ),
    "squeeze and excitation": Refused(linen(squeeze_and_excite, (6, 6, 2)), ("curved|multiplies two activations",)),
    # order and choice
    "sorted": Refused(without_paths(jnp.sort), ("`sort`", "order of activations", "jnp.max")),
    "top k": Refused(without_paths(lambda h: lax.top_k(h, 2)[0]), ("`top_k`", "order of activations"), ("examples",)),
    "median": Refused(
        without_paths(lambda h: jnp.median(h, axis=-1, keepdims=True)),
        ("`median`|`reduce_or`", "order of activations"),
        ("examples",),
    ),
    "threshold": Refused(
        without_paths(lambda h: jnp.where(h > 0.5, h, 0.0)), ("`gt`", "compared with a constant other than 0")
    ),
    "a branch of the whole batch": Refused(
        without_paths(lambda h: lax.cond(h.sum() > 0, lambda a: a, lambda a: -a, h)),
        ("`reduce_sum`", "mixes the examples"),
    ),
    "a branch of x": Refused(
        without_paths(lambda h: lax.map(lambda a: lax.cond(a.sum() > 0, lambda b: b, lambda b: -b, a), h)),
        ("Which branch runs|used as a number|rounded",),
        ("examples",),
    ),
    "a loop of x": Refused(
        without_paths(lambda h: lax.while_loop(lambda a: a.sum() > 0, lambda a: a - 1, h)),
        ("`while`", "How often the loop runs"),
        ("examples",),
    ),
    "stop_gradient of the user": Refused(
        without_paths(lambda h: lax.stop_gradient(h)), ("`stop_gradient`", "no derivative")
    ),
    # what pathjax does not know
    "multiplied at entries by activations": Refused(
        without_paths(lambda h: h.at[:, 1].multiply(h[:, 0])), ("`scatter-mul`",), ("examples",)
    ),
    "maximum at entries": Refused(
        without_paths(lambda h: h.at[:, 1].max(0.0)),
        ("`scatter-max`", "at some entries has no path rule"),
        ("examples",),
    ),
    "a sparse product": Refused(sparse_product, ("`bcoo_dot_general`", "sparse", "dense array"), ("examples",)),
    "a Fourier transform": Refused(
        without_paths(lambda h: jnp.fft.fft(h).real), ("complex numbers", "real matrices"), ("examples", "rounded")
    ),
    "complex numbers": Refused(
        without_paths(lambda h: jnp.abs(lax.complex(h, h))), ("`complex`", "complex numbers"), ("examples",)
    ),
    "a matrix inverse": Refused(
        without_paths(lambda h: h @ jnp.linalg.inv(jnp.eye(4) + h.T @ h)), ("`lu`|`dot_general`",), ("parameters",)
    ),
    # examples
    "examples reversed": Refused(
        without_paths(lambda h: h[jnp.arange(len(h))[::-1]]), ("`gather`", "changes? their order|mixes the examples")
    ),
    "another unit for each example": Refused(
        without_paths(lambda h: h + h[jnp.arange(len(h)), jnp.arange(len(h)) % 4][:, None]), ("`gather`", "examples")
    ),
    "one example written twice": Refused(
        without_paths(lambda h: h.at[jnp.zeros(len(h), int)].add(h)), ("`scatter-add`", "examples")
    ),
    "padded with examples": Refused(
        without_paths(lambda h: jnp.pad(h, ((1, 0), (0, 0)), mode="edge")[1:]), ("examples",)
    ),
    "contrastive similarities": Refused(without_paths(lambda h: h @ h.T), ("examples|two activations",)),
}


def message_of(network: Network) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        paths.log_path_norm(network.apply, network.params, network.x)
    return str(caught.value)


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_paths_is_refused_in_words_that_fit(name: str) -> None:
    message = message_of(REFUSED[name].build())
    for phrase in REFUSED[name].says:
        assert re.search(phrase, message), message
    for phrase in REFUSED[name].never:
        assert not re.search(phrase, message), message


def test_the_table_is_long_enough() -> None:
    assert len(ACCEPTED) >= 60 and len(REFUSED) >= 60
