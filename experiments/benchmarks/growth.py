"""How costs grow: of a product with the Path Kernel over width and depth, of a factorization over the batch.

`python -m experiments.benchmarks.growth` takes fully connected networks in float32, compares each cost with that of a
gradient of the network itself, fits slopes on logarithmic axes, and draws both as runs/benchmarks/growth.svg and .png.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure

from experiments.benchmarks import listing, timing
from experiments.report.drawing import INK, MUTED, blank, log_axis, png, styled, svg
from pathjax import factorization, path_kernel

__all__ = ["Growth", "figure", "main", "measure"]

_RANK = 32


class Growth(NamedTuple):
    """Seconds of one thing, and of a gradient of the network, over one size."""

    thing: str
    over: str
    sizes: list[int]
    times: list[list[float]]

    @property
    def slopes(self) -> list[float]:
        """Exponents of the size in both."""
        return timing.slopes(self.sizes, self.times)

    def __str__(self) -> str:
        rows = zip(self.sizes, self.times, strict=True)
        times = ", ".join(f"{size}: {1e3 * a:.2f} / {1e3 * b:.2f}" for size, (a, b) in rows)
        slopes = f"{self.thing} ~ {self.over}^{self.slopes[0]:.2f}, gradient ~ {self.over}^{self.slopes[1]:.2f}"
        return f"  {self.over}: {slopes}; ms: {times}"


def measure(*, repeats: int) -> list[Growth]:
    """Products over width and depth, factorizations over the batch."""
    widths = {width: [width] * 5 for width in (128, 256, 512, 1024)}
    depths = {depth: [256] * (depth + 1) for depth in (4, 8, 16, 32)}
    batches = (8, 16, 32, 64)
    return [
        Growth("product", "width", list(widths), [_product(layers, repeats) for layers in widths.values()]),
        Growth("product", "depth", list(depths), [_product(layers, repeats) for layers in depths.values()]),
        Growth("factorization", "batch", list(batches), [_factorization(batch, repeats) for batch in batches]),
    ]


def _product(layers: Sequence[int], repeats: int) -> list[float]:
    params, x = listing.network(layers, seed=0)
    kernel = path_kernel.path_kernel(listing.apply, params, x)
    multiply = _compiled(lambda kernel, tree: kernel.matvec(tree), kernel, params)
    return timing.least([multiply, _gradient(params, x)], repeats)


def _factorization(batch: int, repeats: int) -> list[float]:
    params, _ = listing.network([64, 128, 128, 10], seed=0)
    x = jax.random.normal(jax.random.key(1), (batch, 64), jnp.float32)
    factorize = functools.partial(factorization.factorize, listing.apply, rank=_RANK, key=jax.random.key(2))
    return timing.least([_compiled(factorize, params, x), _gradient(params, x)], repeats)


def _gradient(params: Any, x: jax.Array) -> Callable[[], Any]:
    return _compiled(jax.grad(lambda params: jnp.sum(listing.apply(params, x))), params)


def _compiled(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    return functools.partial(jax.jit(function).lower(*arguments).compile(), *arguments)


@styled
def figure(growths: Sequence[Growth]) -> Figure:
    """Both times over each size on logarithmic axes, with their slopes."""
    drawn, (axes,) = blank(10.5, 3.4, timing.machine(), columns=len(growths))
    for axis, growth in zip(axes, growths, strict=True):
        names = (growth.thing, "gradient of the network")
        for name, times, slope, color in zip(
            names, zip(*growth.times, strict=True), growth.slopes, (INK, MUTED), strict=True
        ):
            milliseconds = [1e3 * time for time in times]
            axis.plot(growth.sizes, milliseconds, color=color, marker="o", label=f"{name}, slope {slope:.2f}")
        for side in ("x", "y"):
            log_axis(axis, side=side)
        axis.set_xticks(growth.sizes)
        axis.set(xlabel=growth.over, ylim=(None, 6 * 1e3 * max(map(max, growth.times))))
        axis.legend(loc="upper left", fontsize=8)
    axes[0].set_ylabel("milliseconds")
    return drawn


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.growth", description=__doc__)
    parser.add_argument("--repeats", type=int, default=10, help="runs of which the least is taken")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="folder of the figure")
    options = parser.parse_args(arguments)
    print(timing.machine(), flush=True)
    growths = measure(repeats=options.repeats)
    print(*growths, sep="\n")
    options.out.mkdir(parents=True, exist_ok=True)
    drawn = figure(growths)
    for suffix, data in (("png", png(drawn)), ("svg", svg(drawn))):
        (options.out / f"growth.{suffix}").write_bytes(data)
    print(f"drawn: {options.out / 'growth.svg'}")


if __name__ == "__main__":
    main()
