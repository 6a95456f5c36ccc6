"""The networks, in Flax, each with its infinite-width twin."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from pathjax import ntk
from pathjax.types import ApplyFn, Key, Params

__all__ = ["MODELS", "Model", "Twin", "convolutional", "fully_connected"]

_KAIMING = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
_WINDOW = (3, 3)


class Twin(NamedTuple):
    """The three functions of neural-tangents' `stax` that describe one network.

    `init(key, shape)` and `apply(params, x)` are those of the finite network, `kernel_fn` is its kernel function at
    infinite width.
    """

    init: Callable[..., Any]
    apply: Callable[..., Any]
    kernel_fn: Any


class Model(NamedTuple):
    """A network as pure functions.

    `init(key)` draws parameters, `apply(params, x)` maps images (n, h, w, c) to outputs (n, o), `twin()` is the same
    architecture in neural-tangents, and `first` the name of the first layer in the parameters.

    The kernel function of `twin(density)` is the limit of networks of which a random share of the weights is kept, in
    each kernel but the first, whose fan-in does not grow with the width. A mask of density ρ leaves of each sum over
    the fan-in N a share: the variance of the weights is as if it were ρ times as large, and to Θ a layer adds
    a·a' = ρ N times the mean product of its inputs, in place of N. The biases are kept.
    """

    init: Callable[[Key], Params]
    apply: ApplyFn
    twin: Callable[..., Twin]
    first: str

    @property
    def kernel_fn(self) -> Any:
        """neural-tangents' kernel function of the same architecture and initialization at infinite width."""
        return self.twin().kernel_fn


class _Network(nn.Module):
    """Hidden layers, all dense or all convolutional, each but the first perhaps beside a shortcut; a dense readout."""

    hidden: Callable[[], nn.Module]
    depth: int
    outputs: int
    residual: bool
    pool: bool
    flat: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.hidden()(_flatten(x) if self.flat else x)
        for _ in range(self.depth - 1):
            branch = self.hidden()(nn.relu(x))
            x = x + branch if self.residual else branch
        x = nn.relu(x)
        return nn.Dense(self.outputs, kernel_init=_KAIMING)(x.mean(axis=(1, 2)) if self.pool else _flatten(x))


def fully_connected(
    shape: tuple[int, ...], outputs: int, *, width: int, depth: int = 3, residual: bool = False
) -> Model:
    """A ReLU network of `depth` hidden layers of `width` units on flattened images of `shape` (h, w, c).

    Kernels are normal with variance 2 / fan_in (He et al., 2015, equation 10); biases start at 0 and are trained. With
    `residual`, each hidden layer but the first is added to what came before its ReLU (He et al., 2016, pre-activation).
    """
    hidden = functools.partial(nn.Dense, width, kernel_init=_KAIMING)
    module = _Network(hidden, depth, outputs, residual=residual, pool=False, flat=True)
    return _model(module, shape, functools.partial(_dense, width), first="Dense_0")


def convolutional(
    shape: tuple[int, ...],
    outputs: int,
    *,
    width: int,
    depth: int = 3,
    residual: bool = False,
    pool: bool = False,
) -> Model:
    """A ReLU network of `depth` convolutions of 3 × 3 with `width` channels on images of `shape` (h, w, c).

    Before the dense readout the image is flattened, or with `pool` averaged. Initialization and `residual` as of
    `fully_connected`; images keep their size. The infinite-width kernel of n examples takes n² numbers for each pixel,
    with `pool` for each pair of pixels: keep images small.
    """
    hidden = functools.partial(nn.Conv, width, _WINDOW, kernel_init=_KAIMING)
    module = _Network(hidden, depth, outputs, residual=residual, pool=pool, flat=False)
    return _model(module, shape, functools.partial(_conv, width), first="Conv_0")


def _flatten(x: jax.Array) -> jax.Array:
    return x.reshape((x.shape[0], -1))


def _model(module: _Network, shape: tuple[int, ...], layer: Callable[[Any, float], Any], *, first: str) -> Model:
    x_like = jnp.zeros((1, *shape), jnp.float32)

    def apply(params: Params, x: jax.Array) -> jax.Array:
        return cast(jax.Array, module.apply(params, x))

    return Model(
        init=lambda key: module.init(key, x_like),
        apply=apply,
        twin=functools.partial(_twin, module, layer),
        first=first,
    )


def _twin(module: _Network, layer: Callable[[Any, float], Any], density: float = 1.0) -> Twin:
    stax = ntk.neural_tangents().stax
    block = [stax.Relu(), layer(stax, density)]
    if module.residual:
        block = [stax.FanOut(2), stax.parallel(stax.Identity(), stax.serial(*block)), stax.FanInSum()]
    layers = [layer(stax, 1.0), *block * (module.depth - 1), stax.Relu()]
    ends = [stax.GlobalAvgPool() if module.pool else stax.Flatten(), _dense(module.outputs, stax, density)]
    init, apply, kernel_fn = stax.serial(*[stax.Flatten()] * module.flat, *layers, *ends)
    return Twin(init, apply, _without_warning(kernel_fn))


def _without_warning(kernel_fn: Any) -> Any:
    """neural-tangents asks, each time, for a layer with weights of its own in a sum's branches: here they have one."""

    @functools.wraps(kernel_fn)
    def quiet(*arguments: Any, **options: Any) -> Any:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="`FanIn` layers assume independent inputs")
            return kernel_fn(*arguments, **options)

    return quiet


def _dense(width: int, stax: Any, density: float) -> Any:
    return stax.Dense(width, **_standard(density))


def _conv(width: int, stax: Any, density: float) -> Any:
    return stax.Conv(width, _WINDOW, padding="SAME", **_standard(density))


def _standard(density: float) -> dict[str, Any]:
    # the standard parameterization keeps the width; b_std = 0 keeps the gradient of the biases, None leaves them out
    how = {"W_std": math.sqrt(2.0 * density), "b_std": 0.0, "parameterization": "standard"}
    # `s[0]` divides the fan-in with which a layer's own weights enter the kernel, and nothing else of it
    return how if density == 1.0 else how | {"s": (1 / density, 1)}


MODELS: dict[str, Callable[..., Model]] = {
    "fc": fully_connected,
    "fc_residual": functools.partial(fully_connected, residual=True),
    "conv": convolutional,
    "conv_residual": functools.partial(convolutional, residual=True),
    "conv_pool": functools.partial(convolutional, pool=True),
    "conv_pool_residual": functools.partial(convolutional, pool=True, residual=True),
}
"""`MODELS[name](shape, outputs, width=...)`: the networks by the name that the command line takes."""
