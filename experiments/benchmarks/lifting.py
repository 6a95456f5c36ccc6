"""What a lifted forward pass and its gradient cost beside those of the network itself.

`python -m experiments.benchmarks.lifting` takes ResNet-20 and ResNet-18 on images of 32 × 32 × 3, in float32, with
batch norm in evaluation mode. It compares the sum of outputs with `paths.log_path_norm`'s sum on the same batch, and
the gradients of both in the weights: seconds to trace and compile, seconds to run (least of several, taken in turns),
and the temporary memory that XLA plans.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.benchmarks import timing
from pathjax import paths

__all__ = ["Cost", "ResNet", "main", "measure"]


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


class Cost(NamedTuple):
    """What one function costs: seconds to trace and lower, to compile and to run, and bytes of temporary memory."""

    trace: float
    compile: float
    run: float
    memory: int


def measure(network: nn.Module, *, batch: int, side: int, repeats: int) -> dict[str, tuple[Cost, Cost]]:
    """Costs of the network and of its lifted sum, forward and with the gradient."""
    x = jnp.ones((batch, side, side, 3), jnp.float32)
    variables = jax.jit(network.init)(jax.random.key(0), x)
    params, statistics = variables["params"], variables["batch_stats"]

    def apply(params: Any, x: jax.Array) -> Any:
        return network.apply({"params": params, "batch_stats": statistics}, x)

    def plain(params: Any) -> jax.Array:
        return jnp.sum(apply(params, x))

    def lifted(params: Any) -> jax.Array:
        if batch == 1:
            return paths.log_path_norm(apply, params, x)
        return jnp.sum(paths.path_sum(apply, params, x))

    pairs: dict[str, tuple[Any, Any]] = {
        "forward": (plain, lifted),
        "gradient": (jax.value_and_grad(plain), jax.value_and_grad(lifted)),
    }
    return {name: _compare(pair, params, repeats) for name, pair in pairs.items()}


def _compare(pair: tuple[Callable[..., Any], Callable[..., Any]], params: Any, repeats: int) -> tuple[Cost, Cost]:
    """Costs of two functions, compiled afresh and run in turns."""
    built = [_build(function, params) for function in pair]
    (plain, first), (lifted, second) = built
    runs = timing.least([lambda: plain(params), lambda: lifted(params)], repeats)
    return first._replace(run=runs[0]), second._replace(run=runs[1])


def _build(function: Callable[..., Any], params: Any) -> tuple[Any, Cost]:
    """The compiled function, and what it took; the least of two, for the first also pays for imports and caches."""
    costs = []
    for _ in range(2):
        jax.clear_caches()
        begin = time.perf_counter()
        lowered = jax.jit(function).lower(params)
        middle = time.perf_counter()
        compiled = lowered.compile()
        costs.append((middle - begin, time.perf_counter() - middle))
    trace, built = (min(column) for column in zip(*costs, strict=True))
    return compiled, Cost(trace, built, 0.0, cast(Any, compiled.memory_analysis()).temp_size_in_bytes)


def table(costs: dict[str, tuple[Cost, Cost]]) -> list[str]:
    """One line for each kind of pass: the network's costs, those of its lifted sum, and the ratios."""
    lines = []
    for name, (plain, lifted) in costs.items():
        numbers = [
            f"{what} {before:9.3f} {unit} → {after:9.3f} {unit} ({after / before:5.2f}×)"
            for what, unit, before, after in (
                ("run", "ms", 1e3 * plain.run, 1e3 * lifted.run),
                ("memory", "MB", plain.memory / 1e6, lifted.memory / 1e6),
                ("compile", "s", plain.compile, lifted.compile),
                ("trace", "s", plain.trace, lifted.trace),
            )
        ]
        lines.append(f"  {name:9}" + "   ".join(numbers))
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.lifting", description=__doc__)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16], help="examples in a batch")
    parser.add_argument("--side", type=int, default=32, help="height and width of the images")
    parser.add_argument("--repeats", type=int, default=30, help="runs of which the least is taken")
    parser.add_argument("--network", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    options = parser.parse_args(arguments)
    print(f"{timing.machine()}; network → lifted sum")
    for name in options.network:
        for batch in options.batch:
            print(f"{name}, batch {batch}, {options.side} × {options.side} × 3, float32, weights from seed 0")
            costs = measure(NETWORKS[name], batch=batch, side=options.side, repeats=options.repeats)
            print(*table(costs), sep="\n", flush=True)


if __name__ == "__main__":
    main()
