"""Whole networks of four frameworks: their open sums, written by hand in the framework, are the sums over paths."""

from __future__ import annotations

import functools
import re
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pathjax import paths
from pathjax._interpreter import lifting as _lifting
from pathjax._interpreter.traced import traced

from .. import architectures
from ..tolerances import EXACT

NAMES = [
    pytest.param(name, marks=[pytest.mark.long] if name in ("ResNet-56", "ResNet-110") else [])
    for name in architectures.ARCHITECTURES
]


def powers(params: Any, q: int) -> Any:
    return jax.tree.map(lambda leaf: jnp.abs(leaf) ** q, params)


def assert_close(ours: Any, theirs: Any) -> None:
    scale = max(1e-300, np.max(np.abs(theirs), initial=0.0))
    np.testing.assert_allclose(ours, theirs, rtol=EXACT, atol=EXACT * scale)


class Sums(NamedTuple):
    log_norms: Any
    outputs: Any
    pulled: Any


def by_paths(network: architectures.Architecture, cotangent: Any) -> Sums:
    """Log path norms, and the sum of signed paths with what its Jacobian makes of a cotangent."""
    point = (network.params, network.x)

    def signed(params: Any) -> Any:
        program = traced(network.apply, params).path_program(network.x)
        return _lifting.lift(program, params, network.x, phi=lambda v: v, points=[point]).value()

    outputs, pull = jax.vjp(signed, network.params)
    norms = [paths.log_path_norm(network.apply, network.params, network.x, q=q) for q in (1, 2)]
    return Sums(norms, outputs, pull(cotangent))


def by_network(network: architectures.Architecture, cotangent: Any) -> Sums:
    """The same from the network and its open sums."""
    outputs, pull = jax.vjp(lambda params: network.apply(params, network.x), network.params)
    ones = jnp.ones_like(network.x[:1])
    norms = [jnp.log(network.opened(q)(powers(network.params, q), ones).sum()) for q in (1, 2)]
    return Sums(norms, outputs, pull(cotangent))


@functools.cache
def computed(name: str) -> tuple[Sums, Sums]:
    """Both sides. In deep networks of few shapes, compiling operation by operation is faster."""
    network = architectures.build(name)
    outputs = jax.eval_shape(network.apply, network.params, network.x)
    cotangent = jnp.asarray(np.random.default_rng(1).normal(size=outputs.shape))
    run = (lambda function: function) if name in ("ResNet-56", "ResNet-110") else jax.jit
    ours, theirs = (run(functools.partial(side, network))(cotangent) for side in (by_paths, by_network))
    return jax.tree.map(np.asarray, ours), jax.tree.map(np.asarray, theirs)


@pytest.mark.parametrize("name", NAMES)
def test_path_norm_is_the_networks_open_sum(name: str) -> None:
    ours, theirs = computed(name)
    assert_close(np.array(ours.log_norms), np.array(theirs.log_norms))


@pytest.mark.parametrize("name", NAMES)
def test_sum_of_signed_paths_is_the_network_and_has_its_jacobian(name: str) -> None:
    ours, theirs = computed(name)
    assert_close(ours.outputs, theirs.outputs)
    jax.tree.map(assert_close, ours.pulled, theirs.pulled)


@pytest.mark.parametrize("name", architectures.PUBLISHED)
def test_sizes_are_the_published_ones(name: str) -> None:
    module, shape, size = architectures.PUBLISHED[name]
    shapes = jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *shape), jnp.float32))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == size


# Refusals


class Transformer(nn.Module):
    """A block of attention and a block of dense layers, each behind a norm."""

    normalized: bool = True

    @nn.compact
    def __call__(self, x):
        norm = nn.LayerNorm if self.normalized else lambda: lambda h: h
        x = x + nn.MultiHeadDotProductAttention(num_heads=2)(norm()(x))
        x = x + nn.Dense(4)(nn.relu(nn.Dense(8)(norm()(x))))
        return x.reshape(len(x), -1)


class TrainedNorm(nn.Module):
    """A residual network's first layers, with batch norm in training mode."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.BatchNorm(use_running_average=False, name="first_norm")(nn.Conv(4, (3, 3))(x)))
        return nn.Dense(2)(x.mean(axis=(1, 2)))


REFUSED = {
    # what is refused, its images, the primitive, its layer, a phrase of the reason
    "batch norm in training": (TrainedNorm(), (4, 4, 3), r"\w+", "TrainedNorm/first_norm", "mixes the examples"),
    "ReLU6": (
        architectures.MobileNet(width=2, stages=((2, 1),), activation=jax.nn.relu6),
        (4, 4, 3),
        "min",
        "MobileNet",
        "clipped at a constant other than 0",
    ),
    "layer norm": (Transformer(), (3, 4), r"\w+", "Transformer/LayerNorm_0", "power of an activation"),
    "attention": (
        Transformer(normalized=False),
        (3, 4),
        "dot_general",
        "Transformer/MultiHeadDotProductAttention_0",
        "multiplies two activations",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusal_names_the_layer(name: str) -> None:
    module, shape, primitive, layer, reason = REFUSED[name]
    x = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    variables = jax.tree.map(
        lambda leaf: jnp.ones(leaf.shape, leaf.dtype), jax.eval_shape(module.init, jax.random.key(0), x)
    )

    def apply(params: Any, x: Any) -> Any:
        return module.apply(variables | {"params": params}, x, mutable=["batch_stats"])[0]

    with pytest.raises(paths.UnsupportedPrimitive) as caught:
        paths.log_path_norm(apply, variables["params"], x)
    assert re.match(
        rf"No path rule for `{primitive}` \(\S+:\d+, in layer `{layer}[^`]*`\)\. .*{reason}", str(caught.value)
    )
    refused = {entry.name for entry in paths.layers(apply, variables["params"], x) if not entry.has_paths}
    assert any(entry.startswith(layer) for entry in refused)
