"""What kernels expected of random weights cost, beside neural-tangents' `kernel_fn` of the same layers.

`python -m experiments.benchmarks.mean_field` takes a fully connected network, 3 × 512 with 64 inputs, on 64 and on 512
examples; `--long` takes ResNet-20 at a quarter of its width, without batch norm, on 10 images of 8 × 8 × 3. All are in
float32, NNGP and NTK. With one moment for all weights of a layer the kernel is that of infinite width. neural-tangents
gives it too, but of a ResNet only if the gates stand before the layers of a block and not behind its sums. Under a
mask, or with the squares of the weights at hand as moments, kernels are carried unit by unit; neural-tangents cannot go
there.
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

__all__ = ["FULL", "LONG", "TOY", "PlainResNet", "Sizes", "measure", "rows"]


class PlainResNet(nn.Module):
    """Basic blocks in stages without batch norm and biases; where they change the width, shortcuts project.

    Gates stand behind the sums (He et al., 2016a), or with `preactivated` before the layers of a block (2016b).
    """

    blocks: tuple[int, ...] = (3, 3, 3)
    width: int = 4
    preactivated: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """One output for each image."""
        x = _conv(x, self.width, 3, 1)
        for stage, blocks in enumerate(self.blocks):
            for block in range(blocks):
                x = self._block(x, self.width * 2**stage, 2 if stage and not block else 1)
        return nn.Dense(1, use_bias=False)(nn.relu(x).mean(axis=(1, 2)))

    def _block(self, x: jax.Array, width: int, stride: int) -> jax.Array:
        gated = nn.relu(x)  # of the sum before, or of the stem
        h = _conv(nn.relu(_conv(gated, width, 3, stride)), width, 3, 1)
        if stride != 1:
            return h + _conv(gated, width, 1, stride)
        return h + (x if self.preactivated else gated)


def _conv(x: jax.Array, width: int, size: int, stride: int) -> jax.Array:
    return nn.Conv(width, (size, size), (stride, stride), use_bias=False)(x)


class Sizes(NamedTuple):
    """The networks by what is measured of them, and the density of masks.

    `twinned` have their infinite-width limit measured beside neural-tangents and `untwinned` without it, `masked` the
    kernel under a random mask, `squared` that of their squared weights. `rounds` is the most rounds of processes.
    """

    twinned: dict[str, Case]
    untwinned: dict[str, Case]
    masked: dict[str, Case]
    squared: dict[str, Case]
    density: float
    rounds: int


_RESNET = {"ResNet-20 of a quarter width, 10 images of 8 × 8": Case(PlainResNet(), (10, 8, 8, 3))}
_TOY_RESNET = {"toy ResNet": Case(PlainResNet((1, 1), 2), (2, 4, 4, 1))}
FULL = Sizes(
    twinned={
        "3×512, 64 examples": Case(MLP(outputs=1), (64, 64)),
        "3×512, 512 examples": Case(MLP(outputs=1), (512, 64)),
        "3×512, 512 examples, 10 outputs": Case(MLP(), (512, 64)),
    },
    untwinned={},
    masked={"3×512, 64 examples": Case(MLP(), (64, 64))},
    squared={},
    density=0.1,
    rounds=3,
)
LONG = Sizes(
    twinned={
        f"pre-activation {name}": Case(PlainResNet(preactivated=True), case.shape) for name, case in _RESNET.items()
    },
    untwinned=_RESNET,
    masked={},
    squared=_RESNET,
    density=0.1,
    rounds=1,
)
TOY = Sizes(
    twinned={
        "toy": Case(MLP(4, 2), (6, 5)),
        "pre-activation toy ResNet": Case(PlainResNet((1, 1), 2, preactivated=True), (2, 4, 4, 1)),
    },
    untwinned=_TOY_RESNET,
    masked={"toy": Case(MLP(4, 2), (6, 5))},
    squared=_TOY_RESNET,
    density=0.5,
    rounds=1,
)

# of our time over neural-tangents'
_AIMS = dict.fromkeys(("3×512, 64 examples", "3×512, 512 examples"), 1.0)
_MASKED_AIM = 1000.0
"""Milliseconds for 64 examples of 3 × 512 under a mask."""


class Cost(NamedTuple):
    """Seconds of the first call, milliseconds of a compiled one, MB that XLA plans, GB held; the norm of the NTK."""

    first: float
    later: float
    planned: float
    peak: float
    norm: float


def rows(sizes: Sizes, repeats: int) -> Iterator[Row]:
    """First and later calls and memory: of infinite width beside neural-tangents, then what it has not."""
    for name, case in sizes.twinned.items():
        measurements = [functools.partial(measure, case, way, repeats=repeats) for way in ("exact", "peer")]
        ours, peer = processes.in_turn(*measurements, repeats=min(repeats, sizes.rounds))
        timing.check_equal(f"kernels of {name}", ours.norm, peer.norm)
        yield from _told(f"expected kernels of infinite width, {name}", ours, peer, aim_ratio=_AIMS.get(name))
    for way, said, cases in (
        ("exact", "of infinite width", sizes.untwinned),
        ("masked", f"under a mask at density {sizes.density:g}", sizes.masked),
        ("squared", "of squared weights", sizes.squared),
    ):
        for name, case in cases.items():
            measurement = functools.partial(measure, case, way, density=sizes.density, repeats=repeats)
            (cost,) = processes.in_turn(measurement, repeats=min(repeats, sizes.rounds))
            aim = _MASKED_AIM if way == "masked" and name in _AIMS else None
            yield from _told(f"expected kernels {said}, {name}", cost, None, aim=aim)


def _told(work: str, ours: Cost, peer: Cost | None, **aims: float | None) -> Iterator[Row]:
    """The rows of one network, beside neural-tangents where it has the kernel."""

    def row(suffix: str, unit: str, of: Callable[[Cost], float], **aims: Any) -> Row:
        beside = "" if peer is None else "neural-tangents"
        return Row(work + suffix, unit, of(ours), None if peer is None else of(peer), beside, **aims)

    yield row("", "ms", lambda cost: cost.later, **aims)
    yield row(": first call", "s", lambda cost: cost.first)
    yield row(": planned memory", "MB", lambda cost: cost.planned)
    yield row(": memory of the process", "GB", lambda cost: cost.peak)


def measure(case: Case, way: str, *, density: float = 1.0, repeats: int) -> Cost:
    """The kernels of a case in one way, as one program."""
    apply, params, x = case.build()
    moments = None if way == "squared" else ntk.second_moments(params, "he")
    mask = _mask(params, density) if way == "masked" else None

    def ours(params: Any, x: jax.Array) -> tuple[Any, Any]:
        kernels = ntk.mean_field(apply, params, x, second_moments=moments, mask=mask)
        return kernels.nngp, kernels.ntk

    peer = jax.jit(_peer(case.network)) if way == "peer" else None
    function = ours if peer is None else lambda params, x: peer(x)
    built = timing.build(function, params, x)
    first = built.trace + built.compile + timing.seconds(built.run, params, x)
    peak = timing.peak()
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
    """Those of a pre-activated network. neural-tangents refuses to add what comes from behind a gate."""
    options = {"W_std": 2**0.5, "b_std": None, "parameterization": "standard"}

    def conv(width: int, size: int, stride: int) -> Any:
        return stax.Conv(width, (size, size), (stride, stride), padding="SAME", **options)

    def block(width: int, stride: int) -> list[Any]:
        branch = [conv(width, 3, stride), stax.Relu(), conv(width, 3, 1)]
        if stride == 1:
            split = stax.parallel(stax.serial(stax.Relu(), *branch), stax.Identity())
            return [stax.FanOut(2), split, stax.FanInSum()]
        split = stax.parallel(stax.serial(*branch), conv(width, 1, stride))
        return [stax.Relu(), stax.FanOut(2), split, stax.FanInSum()]

    layers = [conv(network.width, 3, 1)]
    for stage, blocks in enumerate(network.blocks):
        for place in range(blocks):
            layers += block(network.width * 2**stage, 2 if stage and not place else 1)
    return [*layers, stax.Relu(), stax.GlobalAvgPool(), stax.Dense(1, **options)]


if __name__ == "__main__":
    sys.exit(command.alone(__spec__.name))
