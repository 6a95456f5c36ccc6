"""Networks that people write and that have paths: their sums are those of the network.

Each network stands beside its open sum, written by hand in the same framework: `power` is 0 in the network
itself and q in its open sum, where gates are the identity, maxima and differences are sums, and constants and inputs
are raised to the power q.
"""

from __future__ import annotations

import functools
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


# Networks


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


def vgg(x: Any, power: int) -> Any:
    for width in (2, 3):
        for _ in range(2):
            x = gate(architectures.norm(nn.Conv(width, (3, 3))(x)), power)
        x = max_pool(x, power) if width == 2 else x
    return nn.Dense(2)(gate(nn.Dense(4)(flatten(x)), power))


def recurrent_layer(x: Any, power: int) -> Any:
    cell = nn.SimpleCell(3, activation_fn=lambda h: gate(h, power), param_dtype=jnp.float64)
    outputs: Any = nn.RNN(cell)(x)
    return outputs[:, -1]


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
    "VGG with batch norm": images(vgg),
    "ResNet v2": images(resnet_v2),
    "DenseNet": architectures.narrow(architectures.DenseNet, (4, 4, 2), width=2, layers=1, growth=2),
    "MobileNet with ReLU": architectures.narrow(architectures.MobileNet, (4, 4, 2), width=2, stages=((2, 1),)),
    "U-Net with concatenation and nearest resize": images(unet),
    "bilinear resize": images(bilinear_up),
    "half of the channels through a ReLU": conv_head(lambda h, power: half_of_channels(jnp.tile(h, 2), power)),
    # sequences, sets and graphs
    "MLP-Mixer": sequences(mixer),
    "plain recurrent network with ReLU": plain(simple_recurrence, (3, 4), state=(4, 4), inputs=(4, 4), head=(4, 2)),
    "recurrent layer of linen with ReLU": sequences(recurrent_layer),
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


def test_the_table_is_long_enough() -> None:
    assert len(ACCEPTED) >= 60
