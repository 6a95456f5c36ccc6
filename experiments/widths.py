"""Finite Neural Tangent Kernels against those of infinite width, over the width.

`python -m experiments.widths` draws networks of growing width, dense and with random masks, takes the relative distance
of their kernels to the infinite-width ones, fits slopes on logarithmic axes (−1/2 is expected), and writes
runs/widths/widths.svg, .png and .csv.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from experiments.base.files import write_atomically
from experiments.base.names import TWINS
from experiments.measure.widths import measure, table
from experiments.report.drawing import png, svg
from experiments.report.width_figure import figure, footer

__all__ = ["main"]

_DENSITIES = (1.0, 0.25)
_WIDTHS = {True: (16, 32, 64, 128, 256), False: (32, 64, 128, 256, 512, 1024)}
"""The widths of convolutional networks, whose layers have nine times the fan-in, and of others."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, draw and keep."""
    parser = argparse.ArgumentParser(prog="python -m experiments.widths", description=__doc__)
    parser.add_argument("--model", nargs="+", choices=TWINS, default=list(TWINS), help="networks")
    parser.add_argument("--density", nargs="+", type=float, default=_DENSITIES, help="kept shares, 1 for dense")
    parser.add_argument("--width", nargs="+", type=int, default=None, help="units or channels in each hidden layer")
    parser.add_argument("--seeds", type=int, default=20, help="networks for each point")
    parser.add_argument("--out", type=Path, default=Path("runs/widths"), help="folder of the figure and the table")
    options = parser.parse_args(arguments)
    sweeps = []
    for model in options.model:
        for density in options.density:
            widths = options.width or _WIDTHS[model.startswith("conv")]
            sweeps.append(measure(model, density=density, widths=widths, seeds=options.seeds))
            print(sweeps[-1], flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    drawn = figure(sweeps, footer(sweeps))
    for suffix, data in (("png", png(drawn)), ("svg", svg(drawn)), ("csv", table(sweeps))):
        write_atomically(options.out / f"widths.{suffix}", data)
    print(f"drawn: {options.out / 'widths.svg'}")


if __name__ == "__main__":
    main()
