"""What kernels expected of random weights cost, beside neural-tangents' `kernel_fn` of the same layers.

`python -m experiments.benchmarks.mean_field` takes a fully connected network, 3 × 512 with 64 inputs, on 64 and on 512
examples, and ResNet-20 at a quarter of its width, without batch norm, on 10 images of 8 × 8 × 3; all in float32, NNGP
and NTK. With one moment for all weights of a layer the kernel is that of infinite width, which neural-tangents gives
too. Under a mask, or with the squares of the weights at hand as moments, it is carried unit by unit; neural-tangents
cannot go there.
"""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import command, processes, timing
from experiments.benchmarks.kernels import MLP, Case
from experiments.benchmarks.rows import Row
from pathjax import ntk

__all__ = ["FULL", "TOY", "PlainResNet", "Sizes", "measure", "rows"]


class PlainResNet(nn.Module):
    """Basic blocks in stages (He et al., 2016) without batch norm and biases; where they change the width, shortcuts
    project."""

    blocks: tuple[int, ...] = (3, 3, 3)
    width: int = 4

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """One output for each image."""
        x = nn.relu(_conv(x, self.width, 3, 1))
        for stage, blocks in enumerate(self.blocks):
            for block in range(blocks):
                x = self._block(x, self.width * 2**stage, 2 if stage and not block else 1)
        return nn.Dense(1, use_bias=False)(x.mean(axis=(1, 2)))

    def _block(self, x: jax.Array, width: int, stride: int) -> jax.Array:
        h = _conv(nn.relu(_conv(x, width, 3, stride)), width, 3, 1)
        return nn.relu(h + (x if stride == 1 else _conv(x, width, 1, stride)))


def _conv(x: jax.Array, width: int, size: int, stride: int) -> jax.Array:
    return nn.Conv(width, (size, size), (stride, stride), use_bias=False)(x)


class Sizes(NamedTuple):
    """The fully connected networks and the residual ones, and the density of masks.

    `exact` have their infinite-width limit measured, `masked` a random mask, `squared` their squared weights.
    """

    exact: dict[str, Case]
    masked: dict[str, Case]
    squared: dict[str, Case]
    density: float


_RESNET = {"ResNet-20 of a quarter width, 10 images of 8 × 8": Case(PlainResNet(), (10, 8, 8, 3))}
FULL = Sizes(
    exact={
        "3×512, 64 examples": Case(MLP(outputs=1), (64, 64)),
        "3×512, 512 examples": Case(MLP(outputs=1), (512, 64)),
        "3×512, 512 examples, 10 outputs": Case(MLP(), (512, 64)),
        **_RESNET,
    },
    masked={"3×512, 64 examples": Case(MLP(), (64, 64))},
    squared=_RESNET,
    density=0.1,
)
TOY = Sizes(
    exact={"toy": Case(MLP(4, 2), (6, 5)), "toy ResNet": Case(PlainResNet((1, 1), 2), (2, 4, 4, 1))},
    masked={"toy": Case(MLP(4, 2), (6, 5))},
    squared={"toy ResNet": Case(PlainResNet((1, 1), 2), (2, 4, 4, 1))},
    density=0.5,
)

# of our time over neural-tangents'
_AIMS = dict.fromkeys(("3×512, 64 examples", "3×512, 512 examples"), 1.0)
_MASKED_AIM = 1000.0
"""Milliseconds for 64 examples of 3 × 512 under a mask."""

_PEER = "neural-tangents"


class Cost(NamedTuple):
    """Seconds of the first call, milliseconds of a compiled one, MB that XLA plans, GB held; the norm of the NTK."""

    first: float
    later: float
    planned: float
    peak: float
    norm: float


def rows(sizes: Sizes, repeats: int) -> Iterator[Row]:
    """First and later calls and memory: of infinite width beside neural-tangents, then unit by unit."""
    for name, case in sizes.exact.items():
        measurements = [functools.partial(measure, case, way, repeats=repeats) for way in ("exact", "peer")]
        ours, peer = processes.in_turn(*measurements, repeats=repeats)
        yield from _beside_peer(f"expected kernels of infinite width, {name}", case, ours, peer, _AIMS.get(name))
    for way, said, cases in (
        ("masked", f"under a mask at density {sizes.density:g}", sizes.masked),
        ("squared", "of its squared weights", sizes.squared),
    ):
        for name, case in cases.items():
            measurement = functools.partial(measure, case, way, density=sizes.density, repeats=repeats)
            (cost,) = processes.in_turn(measurement, repeats=repeats)
            work = f"expected kernels {said}, {name}"
            aim = _MASKED_AIM if way == "masked" and name in _AIMS else None
            yield Row(work, "ms", cost.later, aim=aim, note=f"{cost.planned:.1f} MB planned")
            yield Row(f"{work}: first call", "s", cost.first)
            yield Row(f"{work}: memory of the process", "GB", cost.peak)


def _beside_peer(work: str, case: Case, ours: Cost, peer: Cost, aim: float | None) -> Iterator[Row]:
    note = ""
    if isinstance(case.network, PlainResNet):
        apart = ours.norm / peer.norm - 1
        note = (
            "neural-tangents takes sums behind gates for Gaussians of mean 0, ours knows their means; "
            f"the norm of our NTK is larger by {100 * apart:.1f} %"
        )
    else:
        timing.check_equal(work, ours.norm, peer.norm)
    yield Row(work, "ms", ours.later, peer.later, _PEER, aim_ratio=aim, note=note)
    yield Row(f"{work}: first call", "s", ours.first, peer.first, _PEER)
    yield Row(f"{work}: planned memory", "MB", ours.planned, peer.planned, _PEER)
    yield Row(f"{work}: memory of the process", "GB", ours.peak, peer.peak, _PEER)


def measure(case: Case, way: str, *, density: float = 1.0, repeats: int) -> Cost:
    """The kernels of a case in one way: by the public function first, as a user calls it, then as one program."""
    apply, params, x = case.build()
    moments = None if way == "squared" else ntk.second_moments(params, "he")
    mask = _mask(params, density) if way == "masked" else None

    def ours(params: Any, x: jax.Array) -> tuple[Any, Any]:
        kernels = ntk.mean_field(apply, params, x, second_moments=moments, mask=mask)
        return kernels.nngp, kernels.ntk

    peer = jax.jit(_peer(case.network)) if way == "peer" else None
    function = ours if peer is None else lambda params, x: peer(x)
    first = timing.seconds(function, params, x)
    peak = timing.peak()
    built = timing.build(function, params, x)
    later = min(timing.seconds(built.run, params, x) for _ in range(3 * repeats))
    kernel = built.run(params, x)[1]
    one_output = kernel if kernel.ndim == 2 else kernel[..., 0]
    return Cost(first, 1e3 * later, built.planned, peak, float(jnp.linalg.norm(one_output)))


def _mask(params: Any, density: float) -> Any:
    """Keeps a random part of the kernels, and all biases."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: (rng.random(leaf.shape) < density) | (leaf.ndim < 2), params)


def _peer(network: Any) -> Callable[[jax.Array], tuple[Any, Any]]:
    """neural-tangents' kernels of the same layers, with weights of variance 2 / fan-in and biases of 0."""
    stax = ntk.neural_tangents().stax
    layers = _dense_layers(stax, network) if isinstance(network, MLP) else _residual_layers(stax, network)
    kernel_fn = stax.serial(*layers)[2]

    def kernels(x: jax.Array) -> tuple[Any, Any]:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="`FanIn` layers assume independent inputs")
            found = kernel_fn(x, None, ("nngp", "ntk"))
        return found.nngp, found.ntk

    return kernels


def _dense_layers(stax: Any, network: MLP) -> list[Any]:
    options = {"W_std": 2**0.5, "b_std": 0.0, "parameterization": "standard"}
    hidden = [layer for _ in range(3) for layer in (stax.Dense(network.width, **options), stax.Relu())]
    return [*hidden, stax.Dense(network.outputs, **options)]


def _residual_layers(stax: Any, network: PlainResNet) -> list[Any]:
    options = {"W_std": 2**0.5, "b_std": None, "parameterization": "standard"}

    def conv(width: int, size: int, stride: int) -> Any:
        return stax.Conv(width, (size, size), (stride, stride), padding="SAME", **options)

    def block(width: int, stride: int) -> list[Any]:
        branch = stax.serial(conv(width, 3, stride), stax.Relu(), conv(width, 3, 1))
        shortcut = stax.Identity() if stride == 1 else conv(width, 1, stride)
        return [stax.FanOut(2), stax.parallel(branch, shortcut), stax.FanInSum(), stax.Relu()]

    layers = [conv(network.width, 3, 1), stax.Relu()]
    for stage, blocks in enumerate(network.blocks):
        for place in range(blocks):
            layers += block(network.width * 2**stage, 2 if stage and not place else 1)
    return [*layers, stax.GlobalAvgPool(), stax.Dense(1, **options)]


if __name__ == "__main__":
    sys.exit(command.alone(__spec__.name))
