"""Finite Neural Tangent Kernels against those of infinite width, over the width.

`python -m experiments.widths` draws networks of growing width, dense and with random masks, takes the relative distance
of their kernels to the infinite-width ones, fits slopes on logarithmic axes (−1/2 is expected), and writes
runs/widths/widths.svg, .png and .csv.

With `--mask`, networks pruned by masks of several kinds are compared with the kernels expected of them, those of the
second moments of the initialization and those of the squared weights, `ntk.mean_field`. Then the files are called
masks.svg, .png and .csv.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from experiments.base.files import write_atomically
from experiments.base.names import TWINS
from experiments.measure import pruned_widths
from experiments.measure.pruned_widths import KINDS
from experiments.measure.widths import measure, table
from experiments.report.drawing import png, svg
from experiments.report.width_figure import figure, footer, pruned_figure

__all__ = ["main"]

_DENSITIES = (1.0, 0.25)
_PRUNED_DENSITIES = (0.25,)
_PRUNED_MODELS = ("fc", "conv")
_WIDTHS = {True: (16, 32, 64, 128, 256), False: (32, 64, 128, 256, 512, 1024)}
"""The widths of convolutional networks, whose layers have nine times the fan-in, and of others."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, draw and keep."""
    parser = argparse.ArgumentParser(prog="python -m experiments.widths", description=__doc__)
    parser.add_argument("--model", nargs="+", choices=TWINS, default=None, help="networks")
    parser.add_argument("--mask", nargs="*", choices=KINDS, default=None, help="kinds of masks, without a name all")
    parser.add_argument("--density", nargs="+", type=float, default=None, help="kept shares, 1 for dense")
    parser.add_argument("--width", nargs="+", type=int, default=None, help="units or channels in each hidden layer")
    parser.add_argument("--seeds", type=int, default=20, help="networks for each point")
    parser.add_argument("--out", type=Path, default=Path("runs/widths"), help="folder of the figure and the table")
    options = parser.parse_args(arguments)
    name, drawn, rows = _random(options) if options.mask is None else _of_kinds(options)
    options.out.mkdir(parents=True, exist_ok=True)
    for suffix, data in (("png", png(drawn)), ("svg", svg(drawn)), ("csv", rows)):
        write_atomically(options.out / f"{name}.{suffix}", data)
    print(f"drawn: {options.out / name}.svg")


def _random(options: argparse.Namespace) -> tuple[str, Figure, str]:
    """Dense networks and random masks against infinite width: the name of the files, the figure and the table."""
    sweeps = []
    for model in options.model or TWINS:
        for density in options.density or _DENSITIES:
            sweeps.append(measure(model, density=density, widths=_widths(options, model), seeds=options.seeds))
            print(sweeps[-1], flush=True)
    return "widths", figure(sweeps, footer(sweeps)), table(sweeps)


def _of_kinds(options: argparse.Namespace) -> tuple[str, Figure, str]:
    """Masks of several kinds against the expected kernels: the name of the files, the figure and the table."""
    kinds = options.mask or tuple(KINDS)
    sweeps = []
    for model in options.model or _PRUNED_MODELS:
        for density in options.density or _PRUNED_DENSITIES:
            widths = _widths(options, model)
            sweeps += pruned_widths.measure(model, kinds=kinds, density=density, widths=widths, seeds=options.seeds)
            print(*sweeps[-2 * len(kinds) :], sep="\n", flush=True)
    return "masks", pruned_figure(sweeps, footer(sweeps, ("pathjax", "jax"))), pruned_widths.table(sweeps)


def _widths(options: argparse.Namespace, model: str) -> Sequence[int]:
    return options.width or _WIDTHS[model.startswith("conv")]


if __name__ == "__main__":
    main()
