"""Networks whose infinite-width limit is known, and that limit, from their twin in neural-tangents."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from experiments.networks.layers import IMAGE, OUTPUTS, Block, Layer, Network, Options, Step, build
from pathjax import ntk

__all__ = ["TWINS", "Twin", "convolutional", "fully_connected", "has_twin", "twin_of"]

_WINDOW = 3
"""Side of the convolutions' window."""


class Twin(NamedTuple):
    """The three functions of neural-tangents' `stax` that describe one network.

    `init(key, shape)` and `apply(params, x)` are those of the finite network, `kernel_fn` is its kernel function at
    infinite width.
    """

    init: Callable[..., Any]
    apply: Callable[..., Any]
    kernel_fn: Any


def fully_connected(
    shape: tuple[int, ...],
    outputs: int,
    *,
    depth: int = 3,
    residual: bool = False,
    widths: Mapping[str, int] | None = None,
    batch_norm: bool = False,
    **options: Any,
) -> Network:
    """A network of `depth` hidden layers of 100 units, `hidden_0`, `hidden_1` …, on flattened images.

    With `residual`, each hidden layer but the first is added to what its activation reads (He et al., 2016,
    pre-activation); all hidden layers then share one width, `hidden_0`.
    """
    *hidden, readout = [f"Dense_{place}" for place in range(depth + 1)]
    described = _described(hidden, readout, residual=residual, window=0)
    table = dict.fromkeys(described.hidden, 100) | {OUTPUTS: outputs}
    steps = ("flatten", *described.before_readout, described.readout)
    return build(shape, steps, table, widths or {}, Options(batch_norm=batch_norm, **options))


def convolutional(
    shape: tuple[int, ...],
    outputs: int,
    *,
    depth: int = 3,
    residual: bool = False,
    pool: bool = False,
    widths: Mapping[str, int] | None = None,
    batch_norm: bool = False,
    **options: Any,
) -> Network:
    """A network of `depth` convolutions of 3 × 3 with 100 channels, `hidden_0`, `hidden_1` …; images keep their size.

    Before the dense readout the image is flattened, or with `pool` averaged. `residual` as of `fully_connected`. The
    infinite-width kernel of n examples takes n² numbers for each pixel, with `pool` for each pair of pixels: keep
    images small.
    """
    hidden = [f"Conv_{place}" for place in range(depth)]
    described = _described(hidden, "Dense_0", residual=residual, window=_WINDOW)
    table = dict.fromkeys(described.hidden, 100) | {OUTPUTS: outputs}
    steps = (*described.before_readout, "mean" if pool else "flatten", described.readout)
    return build(shape, steps, table, widths or {}, Options(batch_norm=batch_norm, **options))


class _Described(NamedTuple):
    """The steps of the hidden layers, the readout, and the names of the hidden units."""

    before_readout: tuple[Step, ...]
    readout: Layer
    hidden: tuple[str, ...]


def _described(layers: Sequence[str], readout: str, *, residual: bool, window: int) -> _Described:
    """The hidden layers of these names and the readout. The names decide with which keys Flax draws the weights."""
    first, *others = layers
    linear: dict[str, Any] = {"normed": False, "active": False}
    if not residual:
        units = [f"hidden_{place}" for place in range(len(layers))]
        read = [IMAGE, *units[:-1]]
        steps = [Layer(*names, window) for names in zip(layers, read, units, strict=True)]
        return _Described(tuple(steps), Layer(readout, units[-1], OUTPUTS, **linear), tuple(units))
    # every layer but the first reads the stream through a norm, if there are any, and an activation
    *norms, last_norm = [f"{name}_norm" for name in layers]
    stream = "hidden_0"
    branches = [
        Block(Layer(name, stream, stream, window, through=norm, **linear), None, None)
        for name, norm in zip(others, norms, strict=True)
    ]
    head = Layer(readout, stream, OUTPUTS, through=last_norm, **linear)
    return _Described((Layer(first, IMAGE, stream, window, **linear), *branches, last_norm), head, (stream,))


TWINS: dict[str, Callable[..., Network]] = {
    "fc": fully_connected,
    "fc_residual": functools.partial(fully_connected, residual=True),
    "conv": convolutional,
    "conv_residual": functools.partial(convolutional, residual=True),
    "conv_pool": functools.partial(convolutional, pool=True),
    "conv_pool_residual": functools.partial(convolutional, pool=True, residual=True),
}
"""`TWINS[name](shape, outputs, widths=..., batch_norm=..., activation=..., init=...)`."""


def has_twin(network: Network) -> bool:
    """Whether `twin_of` knows the infinite-width limit of the network.

    It does for ReLU networks without batch norm, drawn by Kaiming's rule, of dense layers and convolutions that keep
    the size of images, perhaps with residual branches of one layer, flattened or averaged once.
    """
    options = network.options
    plain = not options.batch_norm and options.activation == "relu" and options.init == "kaiming"
    return plain and bool(network.steps) and all(_has_twin(step) for step in network.steps)


def _has_twin(step: Step) -> bool:
    if isinstance(step, Block):
        return step.second is None and step.shortcut is None and _has_twin(step.first)
    if isinstance(step, Layer):
        return step.window in (0, _WINDOW) and step.stride == 1 and not step.valid
    return step != "max_pool"


def twin_of(network: Network, density: float = 1.0) -> Twin:
    """The same architecture in neural-tangents, or where a random share `density` of the weights is kept.

    The share is that of each kernel but the first, whose fan-in does not grow with the width. A mask of density ρ
    leaves of each sum over the fan-in N a share: the variance of the weights is as if it were ρ times as large, and to
    Θ a layer adds ρ N times the mean product of its inputs, in place of N. The biases are kept.

    Raises ValueError where the network has no twin.
    """
    if not has_twin(network):
        raise ValueError("The infinite-width limit of this network is not known; `has_twin` says of which it is.")
    stax = ntk.neural_tangents().stax
    first = network.layers[0]
    parts = [part for step in network.steps for part in _stax_parts(stax, network, step, first, density)]
    init, apply, kernel_fn = stax.serial(*parts)
    return Twin(init, apply, _without_warning(kernel_fn))


def _stax_parts(stax: Any, network: Network, step: Step, first: Layer, density: float) -> list[Any]:
    """The layers of `stax` for one step of the network."""
    if isinstance(step, Block):
        branch = stax.serial(stax.Relu(), _stax_layer(stax, network, step.first, density))
        return [stax.FanOut(2), stax.parallel(stax.Identity(), branch), stax.FanInSum()]
    if isinstance(step, Layer):
        layer = _stax_layer(stax, network, step, 1.0 if step == first else density)
        return [layer, stax.Relu()] if step.active else [layer]
    reshapes = {"flatten": stax.Flatten, "mean": stax.GlobalAvgPool}
    return [reshapes.get(step, stax.Relu)()]


def _stax_layer(stax: Any, network: Network, layer: Layer, density: float) -> Any:
    width = network.widths[layer.writes]
    if layer.window:
        return stax.Conv(width, (layer.window,) * 2, padding="SAME", **_standard(density))
    return stax.Dense(width, **_standard(density))


def _standard(density: float) -> dict[str, Any]:
    # the standard parameterization keeps the width; b_std = 0 keeps the gradient of the biases, None leaves them out
    options = {"W_std": math.sqrt(2.0 * density), "b_std": 0.0, "parameterization": "standard"}
    # `s[0]` divides the fan-in with which a layer's own weights enter the kernel, and nothing else of it
    return options if density == 1.0 else options | {"s": (1 / density, 1)}


def _without_warning(kernel_fn: Any) -> Any:
    """`kernel_fn` without neural-tangents' warning that branches of a sum must have weights of their own: they have."""

    @functools.wraps(kernel_fn)
    def quiet(*arguments: Any, **options: Any) -> Any:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="`FanIn` layers assume independent inputs")
            return kernel_fn(*arguments, **options)

    return quiet
