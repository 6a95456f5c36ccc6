"""Networks as lists of layers over a table of widths: Flax runs them, and `shrink` and `twins` read them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict
from jax.custom_batching import sequential_vmap

from pathjax.types import ApplyFn, Key, Params

__all__ = [
    "IMAGE",
    "OUTPUTS",
    "RESHAPES",
    "SLOPES",
    "Block",
    "Layer",
    "Network",
    "Options",
    "Pad",
    "State",
    "Step",
    "bind",
    "build",
    "kernel_scale",
]

State: TypeAlias = Any
"""Running statistics of batch norm; {} without."""

IMAGE, OUTPUTS = "image", "outputs"

SLOPES = {"relu": 0.0, "leaky_relu": 0.01, "linear": 1.0}
"""The slope of each activation below zero."""

_INITS = ("kaiming", "lecun", "orthogonal", "delta_orthogonal", "ntk")


class Layer(NamedTuple):
    """One kernel: its name in the parameters, and the units that it reads and writes, as names in the table of widths.

    `window` is the side of a convolution's window, 0 for a dense layer. A convolution pads with zeros, or with `valid`
    not at all. With `normed`, batch norm follows, under the name `<name>_norm`. With `active`, the activation follows;
    in a block, after the sum. `through` names the batch norm (an activation follows it) through which the layer reads.
    """

    name: str
    reads: str
    writes: str
    window: int = 0
    stride: int = 1
    valid: bool = False
    normed: bool = True
    active: bool = True
    through: str | None = None

    @property
    def norm(self) -> str:
        """The name of the batch norm that follows, in the parameters."""
        return f"{self.name}_norm"


class Pad(NamedTuple):
    """A shortcut without weights: every second pixel, and zeros in the channels that are added.

    `places[c]` is the input channel that is copied to output channel c, −1 for zeros. None puts the input channels in
    the middle.
    """

    reads: str
    writes: str
    places: tuple[int, ...] | None = None


class Block(NamedTuple):
    """One layer or two beside a shortcut, which is a projection, zeros, or None for the identity."""

    first: Layer
    second: Layer | None
    shortcut: Layer | Pad | None


Step: TypeAlias = Layer | Block | str
"""A layer, a block, or "flatten", "max_pool", "mean", or the name of a batch norm with activation."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What all networks can choose: batch norm, the activation of `SLOPES`, how weights are drawn.

    `init`: "kaiming", normal with variance 2 / (1 + a²) / fan_in for the activation's slope a below zero (He et al.,
    2015); "lecun", normal with variance 1 / fan_in, without tails beyond two standard deviations (LeCun et al., 1998;
    the default of Flax, and of TensorFlow's variance scaling); "orthogonal" with the mean square of "kaiming" (Saxe et
    al., 2014); "delta_orthogonal", which for convolutions is orthogonal in the middle of the window and zero elsewhere
    (Xiao et al., 2018), and needs no more channels in than out; "ntk", standard normal weights that the network
    multiplies by √(2 / (1 + a²) / fan_in) (Jacot et al., 2018).
    Biases start at 0.
    """

    batch_norm: bool = True
    activation: str = "relu"
    init: str = "kaiming"

    def __post_init__(self) -> None:
        for name, known in (("activation", tuple(SLOPES)), ("init", _INITS)):
            if getattr(self, name) not in known:
                raise ValueError(f'Unknown {name} "{getattr(self, name)}". There are {", ".join(known)}.')

    @property
    def gain(self) -> float:
        """Mean square of a unit's weights, times fan_in, that keeps the size of activations."""
        return 2.0 / (1.0 + SLOPES[self.activation] ** 2)


class Network(NamedTuple):
    """A network as pure functions of its parameters and its state, the running statistics of batch norm.

    `init(key)` draws (params, state); the state is {} without batch norm. `apply(params, state, x)` maps images
    (n, h, w, c) to outputs (n, o) with running statistics; `train(params, state, x)` takes those of the batch and gives
    (outputs, new state). `steps` describes the network, `widths` has the units of each name in it, and
    `resized(widths, steps, options)` is the same network with other numbers of units.

    A plain Flax module, of `modules`, has neither steps nor widths. Its `order` has the paths of its parameters, as
    `jax.tree_util.keystr` writes them, in the order in which it uses them.
    """

    init: Callable[[Key], tuple[Params, State]]
    apply: Callable[[Params, State, jax.Array], jax.Array]
    train: Callable[[Params, State, jax.Array], tuple[jax.Array, State]]
    steps: tuple[Step, ...]
    widths: dict[str, int]
    options: Options
    resized: Callable[..., Network]
    order: tuple[str, ...] = ()

    @property
    def layers(self) -> tuple[Layer, ...]:
        """All layers with a kernel, in order."""
        parts = [part for step in self.steps for part in (step if isinstance(step, Block) else (step,))]
        return tuple(part for part in parts if isinstance(part, Layer))

    @property
    def units(self) -> tuple[str, ...]:
        """The names of all units but the outputs, in the order in which layers write them."""
        return tuple(name for name in dict.fromkeys(layer.writes for layer in self.layers) if name != OUTPUTS)

    @property
    def pads(self) -> tuple[Pad, ...]:
        """All shortcuts that pad with zeros, in order."""
        shortcuts = [step.shortcut for step in self.steps if isinstance(step, Block)]
        return tuple(shortcut for shortcut in shortcuts if isinstance(shortcut, Pad))


def bind(network: Network, state: State) -> ApplyFn:
    """`apply(params, x)` with running statistics, as pathjax takes it."""
    return lambda params, x: network.apply(params, state, x)


class _Module(nn.Module):
    """The Flax module that runs the steps of a network."""

    steps: tuple[Step, ...]
    widths: Mapping[str, int]
    options: Options

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        for step in self.steps:
            if isinstance(step, Block):
                x = self._block(x, step, train)
            elif isinstance(step, Layer):
                x = self._layer(x, step, train)
                x = self._activate(x) if step.active else x
            elif step in RESHAPES:
                x = RESHAPES[step](x)
            else:
                x = self._activate(self._norm(x, step, train))
        return x

    def _block(self, x: jax.Array, block: Block, train: bool) -> jax.Array:
        first, second, shortcut = block
        read = x
        if first.through is not None:
            read = self._activate(self._norm(x, first.through, train))
        branch = self._layer(read, first, train)
        if second is not None:
            branch = self._layer(self._activate(branch), second, train)
        if isinstance(shortcut, Layer):
            x = self._layer(read, shortcut, train)
        elif shortcut is not None:
            x = _pad(x, shortcut.places, self.widths[shortcut.writes])
        return self._activate(x + branch) if (second or first).active else x + branch

    def _layer(self, x: jax.Array, layer: Layer, train: bool) -> jax.Array:
        bias = layer.writes == OUTPUTS or not self.options.batch_norm
        how: dict[str, Any] = {
            "use_bias": bias,
            "kernel_init": _initializer(self.options, layer.window),
            "name": layer.name,
        }
        width = self.widths[layer.writes]
        if layer.window:
            border = 0 if layer.valid else (layer.window - 1) // 2
            x = nn.Conv(width, (layer.window,) * 2, (layer.stride,) * 2, [(border, border)] * 2, **how)(x)
        else:
            x = nn.Dense(width, **how)(x)
        return self._norm(x, layer.norm, train) if layer.normed else x

    def _norm(self, x: jax.Array, name: str, train: bool) -> jax.Array:
        if not self.options.batch_norm:
            return x
        return nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, name=name)(x)

    def _activate(self, x: jax.Array) -> jax.Array:
        if self.options.activation == "linear":
            return x
        return nn.relu(x) if self.options.activation == "relu" else nn.leaky_relu(x, SLOPES["leaky_relu"])


def _max_pool(x: jax.Array) -> jax.Array:
    """The largest of each 2 × 2 pixels; an odd last row or column is left out, an image of one pixel stays as it is."""
    n, height, width, channels = x.shape
    if min(height, width) < 2:
        return x
    # as an axis to take the largest along: the gradient of a pooling window takes five times as long on CPUs
    x = x[:, : height // 2 * 2, : width // 2 * 2].reshape(n, height // 2, 2, width // 2, 2, channels)
    return x.max(axis=(2, 4))


RESHAPES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "flatten": lambda x: x.reshape((x.shape[0], -1)),
    "max_pool": _max_pool,
    "mean": lambda x: x.mean(axis=(1, 2)),
}


def _pad(x: jax.Array, places: tuple[int, ...] | None, width: int) -> jax.Array:
    x = x[:, ::2, ::2]
    if places is not None:
        return jnp.pad(x, [(0, 0), (0, 0), (0, 0), (0, 1)])[..., jnp.asarray(places)]  # −1 is the zero at the end
    more = width - x.shape[-1]
    if more < 0:
        raise ValueError(
            f"A shortcut that pads with zeros cannot go from {x.shape[-1]} channels to {width}. Make later stages as "
            'wide as earlier ones, or take shortcut="project".'
        )
    return jnp.pad(x, [(0, 0), (0, 0), (0, 0), (more // 2, more - more // 2)])


def _initializer(options: Options, window: int) -> Callable[..., jax.Array]:
    if options.init == "ntk":
        return nn.initializers.normal(1.0)
    if options.init == "lecun":
        return nn.initializers.lecun_normal()
    if options.init == "kaiming":
        return nn.initializers.variance_scaling(options.gain, "fan_in", "normal")
    if options.init == "delta_orthogonal" and window:
        return _one_by_one(nn.initializers.delta_orthogonal(math.sqrt(options.gain)))
    return _one_by_one(nn.initializers.orthogonal(math.sqrt(options.gain)))


def _one_by_one(draw: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """The initializer, one matrix at a time under vmap: batched decompositions can hang jaxlib 0.10 on CPUs."""

    def drawn(key: Key, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        return sequential_vmap(lambda key: draw(key, shape, dtype))(key)

    return drawn


def kernel_scale(options: Options, shape: tuple[int, ...]) -> float:
    """The factor with which a network takes a kernel of this shape: 1 but for the NTK's parameterization."""
    return math.sqrt(options.gain / math.prod(shape[:-1])) if options.init == "ntk" else 1.0


def _scaled(options: Options, params: Params) -> Params:
    if options.init != "ntk":
        return params
    return {
        name: {
            part: leaf * kernel_scale(options, leaf.shape) if part == "kernel" else leaf for part, leaf in layer.items()
        }
        for name, layer in params.items()
    }


def build(
    shape: Sequence[int], steps: tuple[Step, ...], defaults: dict[str, int], widths: Mapping[str, int], options: Options
) -> Network:
    """The network of these steps on images of `shape` (h, w, c); `widths` replaces some of the default widths."""
    if unknown := sorted(set(widths) - set(defaults)):
        raise ValueError(f"No units are named {unknown[0]}. `widths` may have {', '.join(defaults)}.")
    chosen = defaults | dict(widths)
    if small := [name for name, width in chosen.items() if width < 1]:
        raise ValueError(f"Widths must be at least 1; that of {small[0]} is {chosen[small[0]]}.")
    module = _Module(steps, FrozenDict(chosen), options)
    x_like = jnp.zeros((1, *shape), jnp.float32)

    def init(key: Key) -> tuple[Params, State]:
        state = module.init(key, x_like)
        return state.pop("params"), state

    def apply(params: Params, state: State, x: jax.Array) -> jax.Array:
        return cast(jax.Array, module.apply({"params": _scaled(options, params), **state}, x))

    def train(params: Params, state: State, x: jax.Array) -> tuple[jax.Array, State]:
        variables = {"params": _scaled(options, params), **state}
        return cast("tuple[jax.Array, State]", module.apply(variables, x, train=True, mutable=list(state)))

    def resized(widths: Mapping[str, int], steps: tuple[Step, ...] = steps, options: Options = options) -> Network:
        return build(shape, steps, defaults, chosen | dict(widths), options)

    return Network(init, apply, train, steps, chosen, options, resized)
