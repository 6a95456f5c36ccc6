"""Whole networks, each beside its open sum written by hand.

The open sum of a network is the network itself with |θ|^q for its weights, |x|^q for its inputs, every gate the
identity, every max pool a sum, every subtraction an addition and every constant raised to the power q. It is written
here in each framework's own layers, so that it shares nothing with pathjax.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pathjax import ntk

EPSILON = 1e-5  # of Flax's batch norm


class Architecture(NamedTuple):
    """`apply(params, x)` (n, o), and `opened(q)`, the same function as its open sum of power q."""

    apply: Callable[[Any, jax.Array], jax.Array]
    opened: Callable[[int], Callable[[Any, jax.Array], jax.Array]]
    params: Any
    x: jax.Array


# Layers; `power` is 0 in the network itself and q in its open sum


def gate(x: jax.Array, power: int) -> jax.Array:
    return x if power else nn.relu(x)


def max_pool(x: jax.Array, power: int, size: int = 2) -> jax.Array:
    if power:
        return nn.pooling.pool(x, 0.0, jax.lax.add, (size, size), (size, size), "VALID")
    return nn.max_pool(x, (size, size), (size, size))


def average_pool(x: jax.Array, power: int, size: int = 2) -> jax.Array:
    return nn.avg_pool(x, (size, size), (size, size)) / size ** (2 * max(power - 1, 0))


def average(x: jax.Array, power: int) -> jax.Array:
    """Global average pool of images (n, h, w, c)."""
    return x.mean(axis=(1, 2)) / (x.shape[1] * x.shape[2]) ** max(power - 1, 0)


def flatten(x: jax.Array) -> jax.Array:
    return x.reshape(len(x), -1)


def conv(x: jax.Array, width: int, size: int = 3, stride: int = 1, groups: int = 1) -> jax.Array:
    border = (size - 1) // 2
    layer = nn.Conv(
        width, (size, size), (stride, stride), [(border, border)] * 2, use_bias=False, feature_group_count=groups
    )
    return layer(x)


def norm(x: jax.Array) -> jax.Array:
    return nn.BatchNorm(use_running_average=True, epsilon=EPSILON)(x)


# Networks in Flax linen


class LeNet5(nn.Module):
    """LeCun et al. (1998) with ReLU and max pools, for images of 32 × 32."""

    power: int = 0

    @nn.compact
    def __call__(self, x):
        for width in (6, 16):
            x = max_pool(gate(nn.Conv(width, (5, 5), padding="VALID")(x), self.power), self.power)
        x = flatten(x)
        for width in (120, 84):
            x = gate(nn.Dense(width)(x), self.power)
        return nn.Dense(10)(x)


class VGG16(nn.Module):
    """Simonyan and Zisserman (2015), configuration D, with batch norm and one dense layer, for images of 32 × 32."""

    power: int = 0
    width: int = 64

    @nn.compact
    def __call__(self, x):
        for times, convs in ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3)):
            for _ in range(convs):
                x = gate(norm(nn.Conv(times * self.width, (3, 3))(x)), self.power)
            x = max_pool(x, self.power)
        return nn.Dense(10)(flatten(x))


class ResNet(nn.Module):
    """He et al. (2016): basic blocks in stages, with shortcuts that stride and pad with zeros, or project."""

    power: int = 0
    blocks: tuple[int, ...] = (3, 3, 3)
    width: int = 16
    projects: bool = False

    @nn.compact
    def __call__(self, x):
        x = gate(norm(conv(x, self.width)), self.power)
        for stage, blocks in enumerate(self.blocks):
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                x = self.block(x, self.width * 2**stage, stride)
        return nn.Dense(10)(average(x, self.power))

    def block(self, x, width, stride):
        h = gate(norm(conv(x, width, stride=stride)), self.power)
        return gate(norm(conv(h, width)) + self.shortcut(x, width, stride), self.power)

    def shortcut(self, x, width, stride):
        if x.shape[-1] == width:
            return x
        if self.projects:
            return norm(conv(x, width, 1, stride))
        side = (width - x.shape[-1]) // 2
        return jnp.pad(x[:, ::2, ::2], [(0, 0), (0, 0), (0, 0), (side, side)])


class WideResNet(nn.Module):
    """Zagoruyko and Komodakis (2016): norm and gate come before each convolution."""

    power: int = 0
    depth: int = 16
    factor: int = 4
    width: int = 16

    @nn.compact
    def __call__(self, x):
        x = conv(x, self.width)
        for stage in range(3):
            for block in range((self.depth - 4) // 6):
                x = self.block(x, self.width * self.factor * 2**stage, 2 if stage and not block else 1)
        return nn.Dense(10)(average(gate(norm(x), self.power), self.power))

    def block(self, x, width, stride):
        h = gate(norm(x), self.power)
        shortcut = x if x.shape[-1] == width else conv(h, width, 1, stride)
        h = gate(norm(conv(h, width, stride=stride)), self.power)
        return conv(h, width) + shortcut


class DenseNet(nn.Module):
    """Huang et al. (2017), without bottlenecks: every layer of a block reads all that came before."""

    power: int = 0
    layers: int = 12
    growth: int = 12
    width: int = 16

    @nn.compact
    def __call__(self, x):
        x = conv(x, self.width)
        for stage in range(3):
            if stage:
                x = average_pool(conv(gate(norm(x), self.power), x.shape[-1], 1), self.power)
            for _ in range(self.layers):
                x = jnp.concatenate([x, conv(gate(norm(x), self.power), self.growth)], axis=-1)
        return nn.Dense(10)(average(gate(norm(x), self.power), self.power))


class MobileNet(nn.Module):
    """Howard et al. (2017): each convolution is one per channel and one across channels; stride 1 at first."""

    power: int = 0
    width: int = 32
    stages: tuple[tuple[int, int], ...] = (
        (2, 1), (4, 2), (4, 1), (8, 2), (8, 1), (16, 2), *[(16, 1)] * 5, (32, 2), (32, 1),
    )  # fmt: skip
    activation: Callable[[jax.Array], jax.Array] | None = None

    @nn.compact
    def __call__(self, x):
        x = self.gate(norm(conv(x, self.width)))
        for times, stride in self.stages:
            x = self.gate(norm(conv(x, x.shape[-1], stride=stride, groups=x.shape[-1])))
            x = self.gate(norm(conv(x, times * self.width, 1)))
        return nn.Dense(10)(average(x, self.power))

    def gate(self, x):
        return self.activation(x) if self.activation else gate(x, self.power)


def linen(
    module: Callable[..., nn.Module], shape: tuple[int, ...], *, seed: int = 0, dtype: Any = jnp.float64
) -> Architecture:
    """A Flax linen network with random running statistics, closed over. Every `dtype` draws the same numbers.

    Batch norm subtracts its mean and divides by √(variance + ε); in the open sum it adds |mean|^q and divides by the
    power q of that root.
    """
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.normal(size=(2, *shape)))
    shapes = jax.eval_shape(module().init, jax.random.key(0), x)
    params = jax.tree_util.tree_map_with_path(lambda path, leaf: _draw(rng, path, leaf.shape), shapes["params"])
    statistics = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.asarray(
            rng.uniform(0.5, 2.0, leaf.shape) if path[-1].key == "var" else rng.normal(size=leaf.shape) * 0.1
        ),
        shapes.get("batch_stats", {}),
    )

    x, params, statistics = jax.tree.map(lambda leaf: leaf.astype(dtype), (x, params, statistics))

    def raised(path: Any, leaf: jax.Array, q: int) -> jax.Array:
        return (leaf + EPSILON) ** q - EPSILON if path[-1].key == "var" else -(jnp.abs(leaf) ** q)

    def opened(q: int) -> Callable[[Any, jax.Array], jax.Array]:
        of_power = jax.tree_util.tree_map_with_path(lambda path, leaf: raised(path, leaf, q), statistics)
        return _applied(module(power=q), of_power)

    return Architecture(_applied(module(), statistics), opened, params, x)


def _applied(module: nn.Module, statistics: Any) -> Callable[[Any, jax.Array], jax.Array]:
    def apply(params: Any, x: jax.Array) -> Any:
        return module.apply({"params": params, "batch_stats": statistics}, x)

    return apply


def _draw(rng: np.random.Generator, path: Any, shape: tuple[int, ...]) -> jax.Array:
    """He's normal kernels, scales about 1, and biases of a tenth."""
    if path[-1].key == "kernel":
        return jnp.asarray(rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[:-1])))
    return jnp.asarray(rng.normal(size=shape) * 0.1 + (path[-1].key == "scale"))


# Networks of other frameworks


class NNXBlock(nnx.Module):
    """A residual block in Flax NNX, between a convolution and a dense layer."""

    def __init__(self, rngs: nnx.Rngs, width: int = 4) -> None:
        layer = functools.partial(nnx.Conv, kernel_size=(3, 3), rngs=rngs, dtype=jnp.float64, param_dtype=jnp.float64)
        self.convs = nnx.List([layer(i, width) for i in (2, width, width)])
        self.norms = nnx.List(
            [nnx.BatchNorm(width, use_running_average=True, epsilon=EPSILON, rngs=rngs) for _ in self.convs]
        )
        self.dense = nnx.Linear(width, 3, rngs=rngs, param_dtype=jnp.float64)

    def __call__(self, x: jax.Array, power: int = 0) -> jax.Array:
        x = gate(self.layer(0, x), power)
        x = gate(x + self.layer(2, gate(self.layer(1, x), power)), power)
        return self.dense(average(x, power))

    def layer(self, i: int, x: jax.Array) -> jax.Array:
        return self.norms[i](self.convs[i](x))


def nnx_residual() -> Architecture:
    """The NNX network with its initial statistics: mean 0, and a variance that makes the coefficient 1."""
    rng = np.random.default_rng(0)
    structure, params, rest = cast("tuple[Any, Any, Any]", nnx.split(NNXBlock(nnx.Rngs(0)), nnx.Param, ...))
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.5), params)
    unit = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.full(leaf.shape, 1 - EPSILON if "var" in jax.tree_util.keystr(path) else 0.0), rest
    )

    def opened(q: int) -> Callable[[Any, jax.Array], jax.Array]:
        return lambda params, x: nnx.merge(structure, params, unit)(x, q)

    return Architecture(opened(0), opened, params, jnp.asarray(rng.normal(size=(2, 4, 4, 2))))


def stax_network(layers: Callable[[Any, int], Any], shape: tuple[int, ...]) -> Architecture:
    """A neural-tangents network from `layers(stax, q)`."""
    stax = ntk.neural_tangents().stax
    init, apply, _ = layers(stax, 1)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, *shape)))
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), init(jax.random.key(0), x.shape)[1])

    def opened(q: int) -> Callable[[Any, jax.Array], jax.Array]:
        return layers(stax, q)[1]

    return Architecture(apply, opened, params, x)


def ntk_scale(fan_in: int, scale: float, q: int) -> float:
    """The weights' deviation with which the factor scale / √fan_in of the NTK parameterization becomes its power."""
    return float((scale / np.sqrt(fan_in)) ** q * np.sqrt(fan_in))


def stax_dense(stax: Any, q: int) -> Any:
    def dense(fan_in: int, fan_out: int) -> Any:
        return stax.Dense(fan_out, W_std=ntk_scale(fan_in, 1.5, q), b_std=0.1**q)

    return stax.serial(dense(4, 6), stax.Relu(), dense(6, 5), stax.Relu(), dense(5, 3))


def stax_residual(stax: Any, q: int) -> Any:
    def conv(fan_in: int, width: int) -> Any:
        return stax.Conv(width, (3, 3), padding="SAME", W_std=ntk_scale(9 * fan_in, 1.5, q), b_std=0.1**q)

    block = stax.serial(conv(4, 4), stax.Relu(), conv(4, 4))
    return stax.serial(
        conv(2, 4),
        stax.Relu(),
        stax.FanOut(2),
        stax.parallel(block, stax.Identity()),
        stax.FanInSum(),
        stax.Relu(),
        stax.Flatten(),
        stax.Dense(3, W_std=ntk_scale(64, 1.5, q)),
    )


def plain_function() -> Architecture:
    """Dense layers with a shortcut, a concatenation and constants, as a function of a dictionary."""
    rng = np.random.default_rng(0)
    shapes = {"first": (4, 6), "second": (6, 6), "third": (12, 3), "bias": (6,)}
    params = {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}

    def opened(q: int) -> Callable[[Any, jax.Array], jax.Array]:
        constant, active, sign = (0.5**q, lambda h: h, 1) if q else (0.5, lambda h: jnp.maximum(h, 0), -1)

        def apply(params: Any, x: jax.Array) -> jax.Array:
            h = active(x @ params["first"] + params["bias"][None])
            h = h + sign * constant * active(h @ params["second"])
            return jnp.concatenate([h, active(sign * h)], axis=1) @ params["third"]

        return apply

    return Architecture(opened(0), opened, params, jnp.asarray(rng.normal(size=(2, 4))))


Builder = Callable[[], Architecture]


def narrow(module: Callable[..., nn.Module], shape: tuple[int, ...], **options: Any) -> Builder:
    return lambda: linen(functools.partial(module, **options), shape)


ARCHITECTURES: dict[str, Builder] = {
    "LeNet-5": narrow(LeNet5, (32, 32, 1)),
    "VGG-16": narrow(VGG16, (32, 32, 3), width=2),
    "ResNet-20": narrow(ResNet, (8, 8, 3), width=2),
    "ResNet-56": narrow(ResNet, (8, 8, 3), width=2, blocks=(9, 9, 9)),
    "ResNet-110": narrow(ResNet, (8, 8, 3), width=2, blocks=(18, 18, 18)),
    "ResNet-18": narrow(ResNet, (8, 8, 3), width=4, blocks=(2, 2, 2, 2), projects=True),
    "Wide ResNet": narrow(WideResNet, (8, 8, 3), width=2, factor=3),
    "DenseNet": narrow(DenseNet, (8, 8, 3), width=2, layers=2, growth=2),
    "MobileNet": narrow(MobileNet, (8, 8, 3), width=2, stages=((2, 1), (4, 2), (4, 1), (4, 1))),
    "NNX residual": nnx_residual,
    "stax dense": lambda: stax_network(stax_dense, (4,)),
    "stax residual": lambda: stax_network(stax_residual, (4, 4, 2)),
    "plain function": plain_function,
}
"""The kinds of networks, narrow and on small images where they would take long."""


@functools.cache
def build(name: str) -> Architecture:
    """One network of the table."""
    return ARCHITECTURES[name]()


PUBLISHED: dict[str, tuple[nn.Module, tuple[int, ...], int]] = {
    # the network at its own size, the shape of its images, and its number of parameters as published
    "LeNet-5": (LeNet5(), (32, 32, 1), 61_706),
    "VGG-16": (VGG16(), (32, 32, 3), 14_728_266),
    "ResNet-20": (ResNet(), (32, 32, 3), 269_722),
    "ResNet-56": (ResNet(blocks=(9, 9, 9)), (32, 32, 3), 853_018),
    "ResNet-110": (ResNet(blocks=(18, 18, 18)), (32, 32, 3), 1_727_962),
    "ResNet-18": (ResNet(width=64, blocks=(2, 2, 2, 2), projects=True), (32, 32, 3), 11_173_962),
    "Wide ResNet": (WideResNet(depth=28, factor=10), (32, 32, 3), 36_479_194),
    "DenseNet": (DenseNet(), (32, 32, 3), 1_019_722),
    "MobileNet": (MobileNet(), (32, 32, 3), 3_217_226),
}
