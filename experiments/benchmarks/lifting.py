"""What a lifted forward pass, its gradient and a product with the Path Kernel cost beside the network's own passes.

`python -m experiments.benchmarks.lifting` takes ResNet-20 and ResNet-18 on images of 32 × 32 × 3, in float32, with
batch norm in evaluation mode. It compares the sum of outputs with `paths.log_path_norm`'s sum on the same batch, the
gradients of both in the weights, and a product with the Path Kernel's twin with that gradient: to trace and lower, to
compile and to run, and the temporary memory that XLA plans.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.benchmarks import command, processes, timing
from experiments.benchmarks.rows import Row
from pathjax import path_kernel, paths

__all__ = ["FULL", "NETWORKS", "TOY", "ResNet", "Sizes", "applied", "measure", "rows"]


class ResNet(nn.Module):
    """Basic blocks in stages (He et al., 2016), with shortcuts that pad with zeros, or project."""

    blocks: tuple[int, ...]
    width: int
    projects: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Ten outputs for each image."""
        x = nn.relu(_norm(_conv(x, self.width, 3, 1)))
        for stage, blocks in enumerate(self.blocks):
            for block in range(blocks):
                x = self._block(x, self.width * 2**stage, 2 if stage and not block else 1)
        return nn.Dense(10)(x.mean(axis=(1, 2)))

    def _block(self, x: jax.Array, width: int, stride: int) -> jax.Array:
        h = nn.relu(_norm(_conv(x, width, 3, stride)))
        return nn.relu(_norm(_conv(h, width, 3, 1)) + self._shortcut(x, width, stride))

    def _shortcut(self, x: jax.Array, width: int, stride: int) -> jax.Array:
        if x.shape[-1] == width:
            return x
        if self.projects:
            return _norm(_conv(x, width, 1, stride))
        side = (width - x.shape[-1]) // 2
        return jnp.pad(x[:, ::2, ::2], [(0, 0), (0, 0), (0, 0), (side, side)])


def _conv(x: jax.Array, width: int, size: int, stride: int) -> jax.Array:
    return nn.Conv(width, (size, size), (stride, stride), use_bias=False)(x)


def _norm(x: jax.Array) -> jax.Array:
    return nn.BatchNorm(use_running_average=True)(x)


NETWORKS = {
    "ResNet-20": ResNet((3, 3, 3), 16, False),
    "ResNet-18": ResNet((2, 2, 2, 2), 64, True),
}


class Sizes(NamedTuple):
    """The networks, the batches of their passes, and the height and width of the images."""

    networks: dict[str, ResNet]
    batches: tuple[int, ...]
    side: int


FULL = Sizes(NETWORKS, (1, 16), 32)
TOY = Sizes({"toy": ResNet((1,), 4, True)}, (2,), 4)

# what a pass of ours is compared with: its name, and that of the network's own pass
_PASSES = {"lifted forward pass": "forward pass", "lifted gradient": "gradient", "product with G": "gradient"}
_COMPILE_AIMS = {"lifted gradient": 2.0, "product with G": 3.0}
_TRACE_AIM = 0.3


class Cost(NamedTuple):
    """Seconds to trace and lower and to compile, milliseconds to run, and MB of temporary memory."""

    trace: float
    compile: float
    run: float
    planned: float


def rows(sizes: Sizes, repeats: int) -> Iterator[Row]:
    """For each network and batch all passes beside the network's own."""
    for name, network in sizes.networks.items():
        for batch in sizes.batches:
            passes = [way for way in _PASSES if batch == sizes.batches[0] or way != "product with G"]
            ways = [*passes, *dict.fromkeys(_PASSES[way] for way in passes)]
            measurements = [
                functools.partial(measure, network, way, batch=batch, side=sizes.side, repeats=repeats) for way in ways
            ]
            costs = dict(zip(ways, processes.in_turn(*measurements, repeats=repeats), strict=True))
            for way in passes:
                yield from _compared(f"{way} of {name}, batch {batch}", way, costs, aimed=batch == 1)


def _compared(work: str, way: str, costs: dict[str, Cost], *, aimed: bool) -> Iterator[Row]:
    ours, plain, beside = costs[way], costs[_PASSES[way]], f"plain {_PASSES[way]}"
    yield Row(
        f"{work}: run",
        "ms",
        ours.run,
        plain.run,
        beside,
        note=f"{ours.planned:.1f} MB planned, {plain.planned:.1f} MB plain",
    )
    aim = _COMPILE_AIMS.get(way) if aimed else None
    yield Row(f"{work}: compile", "s", ours.compile, plain.compile, beside, aim_ratio=aim)
    yield Row(f"{work}: trace in Python", "s", ours.trace, plain.trace, beside, aim=None if aim is None else _TRACE_AIM)


def measure(network: ResNet, way: str, *, batch: int, side: int, repeats: int) -> Cost:
    """One pass, after the same pass of another network, which pays for imports and JAX's own caches."""
    timing.build(*_pass(ResNet((1,), 4, network.projects), way, batch=batch, side=4))
    function, argument = _pass(network, way, batch=batch, side=side)
    built = timing.build(function, argument)
    run = min(timing.seconds(built.run, argument) for _ in range(10 * repeats))
    return Cost(built.trace, built.compile, 1e3 * run, built.planned)


def _pass(network: ResNet, way: str, *, batch: int, side: int) -> tuple[Callable[..., Any], Any]:
    """A function of one argument, and the argument."""
    apply, params, x = applied(network, batch=batch, side=side)

    def plain(params: Any) -> jax.Array:
        return jnp.sum(apply(params, x))

    def lifted(params: Any) -> jax.Array:
        if batch == 1:
            return paths.log_path_norm(apply, params, x)
        return jnp.sum(paths.path_sum(apply, params, x))

    def product(given: tuple[path_kernel.PathKernel, Any]) -> Any:
        kernel, tree = given
        return kernel.matvec(tree)

    if way == "product with G":
        return product, (path_kernel.path_kernel(apply, params, x), params)
    functions: dict[str, Callable[..., Any]] = {
        "forward pass": plain,
        "gradient": jax.value_and_grad(plain),
        "lifted forward pass": lifted,
        "lifted gradient": jax.value_and_grad(lifted),
    }
    return functions[way], params


def applied(network: ResNet, *, batch: int, side: int) -> tuple[Callable[[Any, jax.Array], Any], Any, jax.Array]:
    """A network with its batch statistics as `apply(params, x)`, its parameters from seed 0, and a batch of ones."""
    x = jnp.ones((batch, side, side, 3), jnp.float32)
    variables = jax.jit(network.init)(jax.random.key(0), x)
    params, statistics = variables["params"], variables["batch_stats"]

    def apply(params: Any, x: jax.Array) -> Any:
        return network.apply({"params": params, "batch_stats": statistics}, x)

    return apply, params, x


if __name__ == "__main__":
    sys.exit(command.alone(__spec__.name))
