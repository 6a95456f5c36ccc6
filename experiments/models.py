"""The networks, in Flax, each with its infinite-width twin where there is one."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from pathjax import ntk
from pathjax.types import ApplyFn, Key, Params

__all__ = ["MODELS", "Model", "fully_connected"]

_KAIMING = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


class Model(NamedTuple):
    """A network as pure functions.

    `init(key)` draws parameters, `apply(params, x)` maps images (n, h, w, c) to outputs (n, o), and `kernel_fn` is
    neural-tangents' kernel function of the same architecture and initialization at infinite width.
    """

    init: Callable[[Key], Params]
    apply: ApplyFn
    kernel_fn: Any


class _FullyConnected(nn.Module):
    widths: tuple[int, ...]
    outputs: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.reshape((x.shape[0], -1))
        for width in self.widths:
            x = nn.relu(nn.Dense(width, kernel_init=_KAIMING)(x))
        return nn.Dense(self.outputs, kernel_init=_KAIMING)(x)


def fully_connected(shape: tuple[int, ...], outputs: int, *, width: int, depth: int = 3) -> Model:
    """A ReLU network of `depth` hidden layers of `width` units on flattened images of `shape` (h, w, c).

    Kernels are normal with variance 2 / fan_in (He et al., 2015, equation 10); biases start at 0 and are trained.
    """
    module = _FullyConnected((width,) * depth, outputs)
    x_like = jnp.zeros((1, *shape), jnp.float32)

    def apply(params: Params, x: jax.Array) -> jax.Array:
        return cast(jax.Array, module.apply(params, x))

    return Model(
        init=lambda key: module.init(key, x_like),
        apply=apply,
        kernel_fn=_infinite_fully_connected(outputs, width=width, depth=depth),
    )


def _infinite_fully_connected(outputs: int, *, width: int, depth: int) -> Any:
    """neural-tangents' kernel function of flattened images; the standard parameterization keeps the width in it."""
    stax = ntk.neural_tangents().stax
    # b_std = 0 keeps the gradient of the biases; None would leave the biases out
    dense = functools.partial(stax.Dense, W_std=math.sqrt(2.0), b_std=0.0, parameterization="standard")
    hidden = [layer for _ in range(depth) for layer in (dense(width), stax.Relu())]
    _, _, kernel_fn = stax.serial(stax.Flatten(), *hidden, dense(outputs))
    return kernel_fn


MODELS: dict[str, Callable[..., Model]] = {"fc": fully_connected}
"""`MODELS[name](shape, outputs, width=...)`: the networks by the name that the command line takes."""
