"""Layers of random networks, each written twice: on arrays in JAX, and on the neurons of the oracle's graph.

`apply(x, weights)` takes x (n, *shape) and the parameters yet to be used, in the order in which `draw` took their
positions. Printed, a layer is the expression that makes it.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..oracles import NONE, dilate, pad
from .graphs import Drawing

Take = Callable[..., np.ndarray]
"""The positions of new parameters of a shape."""


@dataclass(frozen=True)
class Layer:
    """A layer of a network."""

    @property
    def is_exact(self) -> bool:
        """Whether all its constants are short binary fractions."""
        return True

    @property
    def label(self) -> str:
        """What coverage counts it as."""
        return type(self).__name__

    @property
    def inner(self) -> tuple[Layer, ...]:
        """The layers inside."""
        return ()

    def apply(self, x: Any, weights: Iterator[Any]) -> Any:
        """The layer in JAX."""
        raise NotImplementedError

    def draw(self, graph: Drawing, nodes: np.ndarray, take: Take) -> np.ndarray:
        """The layer neuron by neuron."""
        raise NotImplementedError


Layers = tuple[Layer, ...]


def apply_all(layers: Sequence[Layer], x: Any, weights: Iterator[Any]) -> Any:
    """One layer after the other, in JAX."""
    for layer in layers:
        x = layer.apply(x, weights)
    return x


def draw_all(layers: Sequence[Layer], graph: Drawing, nodes: np.ndarray, take: Take) -> np.ndarray:
    """One layer after the other, neuron by neuron."""
    for layer in layers:
        nodes = layer.draw(graph, nodes, take)
    return nodes


def own_weights(layers: Layers, shape: tuple[int, ...], weights: Iterator[Any]) -> list[Any]:
    """The parameters that these layers use on an input of this shape."""
    return list(itertools.islice(weights, _weights_used(layers, shape)))


@functools.cache
def _weights_used(layers: Layers, shape: tuple[int, ...]) -> int:
    graph, taken = Drawing(), []

    def take(*shape: int) -> np.ndarray:
        taken.append(shape)
        return np.zeros(shape, int)

    draw_all(layers, graph, graph.inputs(shape), take)
    return len(taken)


def trailing(vector: Any, like: Any) -> Any:
    """A vector along the last axis of an array of as many axes as `like`."""
    return vector.reshape((1,) * (like.ndim - vector.ndim) + vector.shape)


def numbers(seed: int, *shape: int) -> np.ndarray:
    """Constants: short binary fractions, some of them zero."""
    return np.random.default_rng(seed).choice([1.0, -1.0, 0.5, 2.0, 0.0, -0.5], size=shape)


# Weights


@dataclass(frozen=True)
class Dense(Layer):
    width: int
    bias: bool = False
    form: str = "matmul"  # or "einsum", "transposed", "left", "masked"

    @property
    def label(self) -> str:
        return f"Dense {self.form}{' bias' if self.bias else ''}"

    def apply(self, x, weights):
        w = next(weights)
        match self.form:
            case "matmul":
                y = x @ w
            case "einsum":
                y = jnp.einsum("...i,io->...o", x, w)
            case "transposed":
                y = lax.dot_general(x, w, (((x.ndim - 1,), (1,)), ((), ())))
            case "left":
                y = jnp.moveaxis(jnp.tensordot(w, x, ((0,), (x.ndim - 1,))), 0, -1)
            case _:
                y = x @ (w * self._mask(*w.shape))
        return y + trailing(next(weights), y) if self.bias else y

    def draw(self, graph, nodes, take):
        fan = nodes.shape[-1]
        if self.form == "transposed":
            y = graph.dense(nodes, take(self.width, fan).T)
        elif self.form == "masked":
            y = graph.linear(nodes, take(fan, self.width), self._mask(fan, self.width))
        else:
            y = graph.dense(nodes, take(fan, self.width))
        return graph.bias(y, take(self.width)) if self.bias else y

    def _mask(self, *shape: int) -> np.ndarray:
        return (np.random.default_rng(shape).random(shape) < 0.7) * 1.0


@dataclass(frozen=True)
class Conv(Layer):
    """On (*space, c), of any number of spatial axes."""

    features: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: Any  # "SAME", "VALID" or pairs
    dilation: tuple[int, ...]
    groups: int = 1
    bias: bool = False
    spread: int = 1  # holes between inputs, as in a transposed convolution

    @property
    def label(self) -> str:
        padding = self.padding if isinstance(self.padding, str) else "explicit"
        return f"Conv {len(self.size)}-D {padding}"

    def apply(self, x, weights):
        letters = "DHW"[-len(self.size) :]
        y = lax.conv_general_dilated(
            x, next(weights), self.stride, self.padding if self.spread == 1 else list(self._pairs(x.shape[1:-1])),
            lhs_dilation=(self.spread,) * len(self.size), rhs_dilation=self.dilation,
            dimension_numbers=(f"N{letters}C", f"{letters}IO", f"N{letters}C"), feature_group_count=self.groups,
        )  # fmt: skip
        return y + trailing(next(weights), y) if self.bias else y

    def draw(self, graph, nodes, take):
        kernel = take(*self.size, nodes.shape[-1] // self.groups, self.features)
        bias = take(self.features) if self.bias else None
        spread = dilate(nodes, (*(self.spread,) * len(self.size), 1))
        return graph.conv(
            spread, kernel, bias, stride=self.stride, padding=self._pairs(nodes.shape[:-1]), dilation=self.dilation,
            groups=self.groups,
        )  # fmt: skip

    def _pairs(self, space: Sequence[int]) -> list[tuple[int, int]]:
        spread = [(s - 1) * self.spread + 1 for s in space]
        return pairs(self.padding, spread, self.size, self.stride, self.dilation)


def pairs(padding: Any, space, size, stride, dilation=None) -> list[tuple[int, int]]:
    """Padding before and after each axis."""
    if not isinstance(padding, str):
        return [tuple(pair) for pair in padding]
    if padding == "VALID":
        return [(0, 0)] * len(size)
    result = []
    for s, k, t, d in zip(space, size, stride, dilation or (1,) * len(size), strict=True):
        total = max((math.ceil(s / t) - 1) * t + (k - 1) * d + 1 - s, 0)
        result.append((total // 2, total - total // 2))
    return result


@dataclass(frozen=True)
class Bias(Layer):
    per: str = "channel"  # or "entry"

    @property
    def label(self) -> str:
        return f"Bias per {self.per}"

    def apply(self, x, weights):
        return x + trailing(next(weights), x)

    def draw(self, graph, nodes, take):
        return graph.bias(nodes, take(*nodes.shape[-1 if self.per == "channel" else 0 :]))


@dataclass(frozen=True)
class Scale(Layer):
    per: str = "channel"  # or "entry", "all"

    @property
    def label(self) -> str:
        return f"Scale per {self.per}"

    def apply(self, x, weights):
        w = next(weights)
        return x * (w if self.per == "all" else trailing(w, x))

    def draw(self, graph, nodes, take):
        first = {"channel": -1, "entry": 0, "all": nodes.ndim}[self.per]
        return graph.scale(nodes, take(*nodes.shape[first:]))


# Gates


@jax.custom_jvp
def custom_where(x):
    return jnp.where(x > 0, x, 0)


@custom_where.defjvp
def _(primals, tangents):
    return custom_where(*primals), jnp.where(primals[0] > 0, tangents[0], 0)


@jax.custom_jvp
def custom_maximum(x):
    return jnp.maximum(x, 0)


@custom_maximum.defjvp
def _(primals, tangents):
    return custom_maximum(*primals), tangents[0] * (primals[0] > 0)


# In JAX, and the slopes above, below and at zero. The oracle knows them from here; whether they are JAX's is checked.
GATES: dict[str, tuple[Callable[[Any], Any], tuple[float, float, float]]] = {
    "relu": (jax.nn.relu, (1, 0, 0)),
    "maximum": (lambda x: jnp.maximum(x, 0), (1, 0, 0.5)),
    "maximum_swapped": (lambda x: jnp.maximum(0, x), (1, 0, 0.5)),
    "where": (lambda x: jnp.where(x > 0, x, 0), (1, 0, 0)),
    "where_ge": (lambda x: jnp.where(x >= 0, x, 0), (1, 0, 1)),
    "where_lt": (lambda x: jnp.where(x < 0, 0, x), (1, 0, 1)),
    "where_negative": (lambda x: jnp.where(-x < 0, x, 0), (1, 0, 0)),
    "product": (lambda x: x * (x > 0), (1, 0, 0)),
    "product_cast": (lambda x: (x >= 0).astype(x.dtype) * x, (1, 0, 1)),
    "clip": (lambda x: jnp.clip(x, 0), (1, 0, 0.5)),
    "clamp": (lambda x: lax.clamp(0.0, x, jnp.inf), (1, 0, 0)),
    "minus_minimum": (lambda x: -jnp.minimum(-x, 0), (1, 0, 0.5)),
    "select": (lambda x: lax.select(x > 0, x, jnp.zeros_like(x)), (1, 0, 0)),
    "not_not": (lambda x: jnp.where(~(x <= 0), x, 0), (1, 0, 0)),
    "custom_where": (custom_where, (1, 0, 0)),
    "custom_maximum": (custom_maximum, (1, 0, 0)),
    "minimum": (lambda x: jnp.minimum(x, 0), (0, 1, 0.5)),
    "rest": (lambda x: x - x * (x > 0), (0, 1, 1)),
    "leaky": (lambda x: jax.nn.leaky_relu(x, 0.25), (1, 0.25, 1)),
    "leaky_maximum": (lambda x: jnp.maximum(x, 0.25 * x), (1, 0.25, 0.625)),
    "leaky_where": (lambda x: jnp.where(x > 0, x, -0.5 * x), (1, -0.5, -0.5)),
    "leaky_product": (lambda x: x * jnp.where(x > 0, 1.0, 0.25), (1, 0.25, 0.25)),
    "abs": (jnp.abs, (1, -1, 1)),
    "abs_maximum": (lambda x: jnp.maximum(x, -x), (1, -1, 0)),
    "abs_sign": (lambda x: x * jnp.sign(x), (1, -1, 0)),
}


@dataclass(frozen=True)
class Gate(Layer):
    form: str = "relu"

    @property
    def label(self) -> str:
        return f"Gate {self.form}"

    def apply(self, x, weights):
        return GATES[self.form][0](x)

    def draw(self, graph, nodes, take):
        if self.form == "rest":  # x less its positive part: two paths
            return graph.add(nodes, graph.constant_affine(graph.sided(nodes, 1, 0, 0), -1.0))
        return graph.sided(nodes, *GATES[self.form][1])


@dataclass(frozen=True)
class PReLU(Layer):
    form: str = "where"  # or "parts", "linen"
    per: str = "all"  # or "channel"

    @property
    def label(self) -> str:
        return f"PReLU {self.form} per {self.per}"

    def apply(self, x, weights):
        slope = next(weights)
        if self.form == "linen":
            return nn.PReLU().apply({"params": {"negative_slope": slope}}, x)
        slope = slope if self.per == "all" else trailing(slope, x)
        if self.form == "where":
            return jnp.where(x >= 0, x, slope * x)
        return jnp.maximum(x, 0) + slope * jnp.minimum(x, 0)

    def draw(self, graph, nodes, take):
        slope = take() if self.per == "all" else take(nodes.shape[-1])
        return graph.parametric(nodes, slope, 0.5 if self.form == "parts" else 1.0)


@dataclass(frozen=True)
class CReLU(Layer):
    def apply(self, x, weights):
        return jnp.concatenate([jax.nn.relu(x), jax.nn.relu(-x)], axis=-1)

    def draw(self, graph, nodes, take):
        return np.concatenate(
            [graph.sided(nodes, 1, 0, 0), graph.constant_affine(graph.sided(nodes, 0, 1, 0), -1.0)], -1
        )


@dataclass(frozen=True)
class Halves(Layer):
    """Two halves of the last axis meet: one wins, or one gates the other."""

    form: str = "maximum"  # or "minimum", "where", "gated"

    @property
    def label(self) -> str:
        return f"Halves {self.form}"

    def apply(self, x, weights):
        half = x.shape[-1] // 2
        a, b = x[..., :half], x[..., half : 2 * half]
        match self.form:
            case "maximum":
                return jnp.maximum(a, b)
            case "minimum":
                return jnp.minimum(a, b)
            case "where":
                return jnp.where(a > b, a, b)
            case _:
                return jnp.where(a > 0, b, 0)

    def draw(self, graph, nodes, take):
        half = nodes.shape[-1] // 2
        a, b = nodes[..., :half], nodes[..., half : 2 * half]
        match self.form:
            case "maximum" | "minimum":
                return graph.contest(np.stack([a, b], -1), "share", smallest=self.form == "minimum")
            case "where":
                return graph.contest(np.stack([b, a], -1), "first")
            case _:
                return graph.sided(b, 1, 0, 0, by=a)


@dataclass(frozen=True)
class Extremum(Layer):
    """The largest or smallest along an axis of an example; with `pieces`, of that many equal parts of it (maxout)."""

    axis: int = 0
    smallest: bool = False
    pieces: int = 1

    @property
    def label(self) -> str:
        return ("min" if self.smallest else "max") + (" over parts (maxout)" if self.pieces > 1 else " over axis")

    def apply(self, x, weights):
        at = self.axis + 1
        x = x.reshape(*x.shape[:at], self.pieces, x.shape[at] // self.pieces, *x.shape[at + 1 :])
        return x.min(axis=at + 1) if self.smallest else x.max(axis=at + 1)

    def draw(self, graph, nodes, take):
        at = self.axis
        parts = nodes.reshape(*nodes.shape[:at], self.pieces, nodes.shape[at] // self.pieces, *nodes.shape[at + 1 :])
        return graph.contest(np.moveaxis(parts, at + 1, -1), "share", smallest=self.smallest)


# Pools


@dataclass(frozen=True)
class Pool(Layer):
    """On (*space, c)."""

    kind: str  # "max" or "avg"
    size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: Any

    @property
    def label(self) -> str:
        return f"Pool {self.kind}"

    @property
    def is_exact(self) -> bool:
        return self.kind == "max" or math.prod(self.size) in (1, 2, 4, 8)

    def apply(self, x, weights):
        pool = nn.max_pool if self.kind == "max" else nn.avg_pool
        return pool(x, self.size, self.stride, self.padding)

    def draw(self, graph, nodes, take):
        around = pairs(self.padding, nodes.shape[:-1], self.size, self.stride)
        if self.kind == "max":
            return graph.max_pool(graph.fill(nodes), self.size, self.stride, around)
        return graph.avg_pool(nodes, self.size, self.stride, around)


@dataclass(frozen=True)
class GlobalPool(Layer):
    """Over all axes but the last."""

    kind: str  # "max", "mean" or "sum"

    @property
    def label(self) -> str:
        return f"GlobalPool {self.kind}"

    @property
    def is_exact(self) -> bool:
        return self.kind != "mean"

    def apply(self, x, weights):
        return getattr(jnp, self.kind)(x, axis=tuple(range(1, x.ndim - 1)))

    def draw(self, graph, nodes, take):
        flat = nodes.reshape(-1, nodes.shape[-1])
        if self.kind == "max":
            return graph.contest(flat.T, "share")
        return graph.sum_over_axis(flat, 0, 1 / len(flat) if self.kind == "mean" else 1.0)


@dataclass(frozen=True)
class Reduce(Layer):
    """Sum or mean over one axis of an example, or sums up to each place of it."""

    kind: str  # "sum", "mean" or "cumsum"
    axis: int

    @property
    def label(self) -> str:
        return f"Reduce {self.kind}"

    @property
    def is_exact(self) -> bool:
        return self.kind != "mean"

    def apply(self, x, weights):
        return getattr(jnp, self.kind)(x, axis=self.axis + 1)

    def draw(self, graph, nodes, take):
        if self.kind != "cumsum":
            length = nodes.shape[self.axis]
            return graph.sum_over_axis(nodes, self.axis, 1 / length if self.kind == "mean" else 1.0)
        moved = np.moveaxis(nodes, self.axis, 0)
        sums = [graph.sum_over_axis(moved[: i + 1], 0) for i in range(len(moved))]
        return np.moveaxis(np.stack(sums), 0, self.axis)


# Norms and constants


@dataclass(frozen=True)
class Norm(Layer):
    """Batch norm with running statistics."""

    form: str = "divide"  # or "multiply", "linen"
    affine: bool = True
    seed: int = 0

    @property
    def label(self) -> str:
        return f"Norm {self.form}{' affine' if self.affine else ''}"

    @property
    def is_exact(self) -> bool:
        return self.form != "linen"

    def apply(self, x, weights):
        mean, deviation = (trailing(statistic, x) for statistic in self._statistics(x.shape[-1]))
        scale, bias = (next(weights), next(weights)) if self.affine else (None, None)
        if self.form == "linen":
            module = nn.BatchNorm(use_running_average=True, use_scale=self.affine, use_bias=self.affine)
            statistics = {"mean": mean.ravel(), "var": deviation.ravel() ** 2}
            return module.apply({"params": {"scale": scale, "bias": bias}, "batch_stats": statistics}, x)
        if not self.affine:
            return (x - mean) / deviation
        if self.form == "divide":
            return (x - mean) / deviation * trailing(scale, x) + trailing(bias, x)
        return (x - mean) * (1 / deviation * trailing(scale, x)) + trailing(bias, x)

    def draw(self, graph, nodes, take):
        mean, deviation = self._statistics(nodes.shape[-1])
        inverse = 1 / np.sqrt(deviation**2 + 1e-5) if self.form == "linen" else 1 / deviation
        scale, bias = (take(nodes.shape[-1]), take(nodes.shape[-1])) if self.affine else (None, None)
        nodes = graph.constant_affine(nodes, inverse, -mean * inverse)
        return graph.bias(graph.scale(nodes, scale), bias) if self.affine else nodes

    def _statistics(self, channels: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(self.seed)
        return numbers(self.seed, channels), rng.choice([0.5, 1.0, 2.0], size=channels)


@dataclass(frozen=True)
class Constants(Layer):
    """Constants multiplied in (a mask, among them), added, subtracted or as a matrix."""

    form: str = "mask"  # or "affine", "negate", "rsub", "matrix"
    seed: int = 0

    @property
    def label(self) -> str:
        return f"Constants {self.form}"

    def apply(self, x, weights):
        shape = x.shape[1:]
        match self.form:
            case "mask":
                return x * jnp.asarray(numbers(self.seed, *shape) > 0)[None]
            case "affine":
                return 2 * x * numbers(self.seed, *shape)[None] - numbers(self.seed + 1, *shape)[None] / 2
            case "negate":
                return -x
            case "rsub":
                return numbers(self.seed, *shape)[None] - x / 4
            case _:
                return x @ numbers(self.seed, shape[-1], 2)

    def draw(self, graph, nodes, take):
        c = numbers(self.seed, *nodes.shape)
        match self.form:
            case "mask":
                return graph.constant_affine(nodes, 1.0 * (c > 0))
            case "affine":
                return graph.constant_affine(nodes, 2 * c, -numbers(self.seed + 1, *nodes.shape) / 2)
            case "negate":
                return graph.constant_affine(nodes, -1.0)
            case "rsub":
                return graph.constant_affine(nodes, -0.25, c)
            case _:
                return graph.mix(nodes, numbers(self.seed, nodes.shape[-1], 2))


# Moves

# Each on the entries along one axis `a`, by the functions of `xp`: jax.numpy, or numpy on the graph's neurons.
MOVES: dict[str, Callable[[Any, Any, int], Any]] = {
    "flip": lambda xp, x, a: xp.flip(x, a),
    "roll": lambda xp, x, a: xp.roll(x, 1, a),
    "repeat": lambda xp, x, a: xp.repeat(x, 2, a),
    "stride": lambda xp, x, a: x[(slice(None),) * a + (slice(None, None, 2),)],
    "drop": lambda xp, x, a: x[(slice(None),) * a + (slice(1, None),)],
    "gather": lambda xp, x, a: xp.take(x, np.arange(x.shape[a]) // 2, axis=a),
    "to_end": lambda xp, x, a: xp.moveaxis(x, a, -1),
    "split": lambda xp, x, a: xp.concatenate(xp.split(x, [1], axis=a)[::-1], axis=a),
    "stack": lambda xp, x, a: xp.stack([x, xp.flip(x, a)], axis=a),
    "fold": lambda xp, x, a: x.reshape(*x.shape[:a], -1, 2, *x.shape[a + 1 :]),
    "merge": lambda xp, x, a: x.reshape(*x.shape[:a], -1, *x.shape[a + 2 :]),
    "axis": lambda xp, x, a: xp.expand_dims(x, a).squeeze(a),
}


@dataclass(frozen=True)
class Move(Layer):
    form: str
    axis: int = 0

    @property
    def label(self) -> str:
        return f"Move {self.form}"

    def apply(self, x, weights):
        return MOVES[self.form](jnp, x, self.axis + 1)

    def draw(self, graph, nodes, take):
        return MOVES[self.form](np, nodes[None], self.axis + 1)[0]


@dataclass(frozen=True)
class Flatten(Layer):
    def apply(self, x, weights):
        return x.reshape(len(x), -1)

    def draw(self, graph, nodes, take):
        return nodes.ravel()


@dataclass(frozen=True)
class Pad(Layer):
    """Zeros around an axis."""

    axis: int
    before: int = 1
    after: int = 0

    def apply(self, x, weights):
        widths = [(0, 0)] * x.ndim
        widths[self.axis + 1] = (self.before, self.after)
        return jnp.pad(x, widths)

    def draw(self, graph, nodes, take):
        widths = [(0, 0)] * nodes.ndim
        widths[self.axis] = (self.before, self.after)
        return pad(nodes, widths)


@dataclass(frozen=True)
class At(Layer):
    """The first entry of the last axis set to zero, or the last one added to it."""

    form: str = "set"  # or "add"

    @property
    def label(self) -> str:
        return f"At {self.form}"

    def apply(self, x, weights):
        return x.at[..., 0].set(0) if self.form == "set" else x.at[..., 0].add(x[..., -1])

    def draw(self, graph, nodes, take):
        first = np.full(nodes.shape[:-1], NONE) if self.form == "set" else graph.add(nodes[..., 0], nodes[..., -1])
        return np.concatenate([first[..., None], nodes[..., 1:]], axis=-1)


# Branches and ties


@dataclass(frozen=True)
class Branches(Layer):
    """Two branches, joined by "add", "subtract" or "concatenate"; branches of unlike shapes are flattened first."""

    left: Layers
    right: Layers = ()
    join: str = "add"

    @property
    def label(self) -> str:
        return f"{'Branches' if self.right else 'Residual'} {self.join}"

    @property
    def inner(self) -> Layers:
        return self.left + self.right

    def apply(self, x, weights):
        a, b = apply_all(self.left, x, weights), apply_all(self.right, x, weights)
        if a.shape != b.shape:
            return jnp.concatenate([a.reshape(len(a), -1), b.reshape(len(b), -1)], axis=1)
        return (
            {"add": a + b, "subtract": a - b}[self.join] if self.join != "concatenate" else jnp.concatenate([a, b], -1)
        )

    def draw(self, graph, nodes, take):
        a, b = draw_all(self.left, graph, nodes, take), draw_all(self.right, graph, nodes, take)
        if a.shape != b.shape:
            return np.concatenate([a.ravel(), b.ravel()])
        if self.join == "concatenate":
            return np.concatenate([a, b], axis=-1)
        return graph.add(a, b if self.join == "add" else graph.constant_affine(b, -1.0))


@dataclass(frozen=True)
class Shared(Layer):
    """The same layers, with the same weights, on x and on x backwards; the sum of both."""

    body: Layers

    @property
    def inner(self) -> Layers:
        return self.body

    def apply(self, x, weights):
        own = own_weights(self.body, x.shape[1:], weights)
        return apply_all(self.body, x, iter(own)) + apply_all(self.body, x[..., ::-1], iter(own))

    def draw(self, graph, nodes, take):
        taken, replay = _remember(take)
        first = draw_all(self.body, graph, nodes, taken)
        return graph.add(first, draw_all(self.body, graph, nodes[..., ::-1], replay()))


@dataclass(frozen=True)
class Twice(Layer):
    """A square matrix, with its bias, used twice with a gate between; the second time transposed, or not."""

    gate: str = "relu"
    transposed: bool = False

    @property
    def label(self) -> str:
        return f"Twice{' transposed' if self.transposed else ''}"

    def apply(self, x, weights):
        w, b = next(weights), next(weights)
        h = GATES[self.gate][0](x @ w + trailing(b, x))
        return h @ (w.T if self.transposed else w) + trailing(b, h)

    def draw(self, graph, nodes, take):
        w, b = take(nodes.shape[-1], nodes.shape[-1]), take(nodes.shape[-1])
        h = graph.sided(graph.dense(nodes, w, b), *GATES[self.gate][1])
        return graph.dense(h, w.T if self.transposed else w, b)


def _remember(take: Take) -> tuple[Take, Callable[[], Take]]:
    """A `take` that remembers, and one that gives the same positions again."""
    given: list[np.ndarray] = []

    def remember(*shape: int) -> np.ndarray:
        given.append(take(*shape))
        return given[-1]

    def replay() -> Take:
        again = iter(list(given))
        return lambda *_: next(again)

    return remember, replay


# Loops and wrappers


@dataclass(frozen=True)
class Loop(Layer):
    """Square layers walked by a loop: "scan" over stacked weights, "reverse", or one weight at all steps ("fori")."""

    steps: int = 2
    form: str = "scan"
    gate: str = "relu"
    remat: bool = False

    @property
    def label(self) -> str:
        return f"Loop {self.form}{' checkpoint' if self.remat else ''}"

    def apply(self, x, weights):
        w, b = next(weights), next(weights)

        def step(h, layer):
            return GATES[self.gate][0](h @ layer[0] + trailing(layer[1], h)), None

        if self.form == "fori":
            return lax.fori_loop(0, self.steps, lambda _, h: step(h, (w, b))[0], x)
        body = jax.checkpoint(step) if self.remat else step
        return lax.scan(body, x, (w, b), reverse=self.form == "reverse")[0]

    def draw(self, graph, nodes, take):
        c, order = nodes.shape[-1], range(self.steps)
        stack = () if self.form == "fori" else (self.steps,)
        w, b = take(*stack, c, c), take(*stack, c)
        for i in reversed(order) if self.form == "reverse" else order:
            kernel, bias = (w, b) if self.form == "fori" else (w[i], b[i])
            nodes = graph.sided(graph.dense(nodes, kernel, bias), *GATES[self.gate][1])
        return nodes


@dataclass(frozen=True)
class Wrapped(Layer):
    """Layers inside a call: "jit", "nested jit", "checkpoint", "custom_vjp" or "vmap" over the examples."""

    form: str
    body: Layers

    @property
    def label(self) -> str:
        return f"Wrapped {self.form}"

    @property
    def inner(self) -> Layers:
        return self.body

    def apply(self, x, weights):
        own = own_weights(self.body, x.shape[1:], weights)

        def body(own, x):
            return apply_all(self.body, x, iter(own))

        return self._wrap(body)(own, x)

    def _wrap(self, body: Callable) -> Callable:
        match self.form:
            case "jit":
                return jax.jit(body)
            case "nested jit":
                return jax.jit(lambda own, x: jax.jit(body)(own, x))
            case "checkpoint":
                return jax.checkpoint(body)
            case "vmap":
                return jax.vmap(lambda own, one: body(own, one[None])[0], in_axes=(None, 0))
            case _:
                return _with_own_vjp(body)

    def draw(self, graph, nodes, take):
        return draw_all(self.body, graph, nodes, take)


def _with_own_vjp(body: Callable) -> Callable:
    wrapped = jax.custom_vjp(body)
    wrapped.defvjp(lambda own, x: (body(own, x), (own, x)), lambda saved, g: jax.vjp(body, *saved)[1](g))
    return wrapped
