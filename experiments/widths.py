"""How far a finite network's Neural Tangent Kernel is from that of infinite width, over the width.

`python -m experiments.widths` draws networks of growing width, dense and with random masks, takes the relative distance
of their kernels to the infinite-width ones, fits slopes on logarithmic axes (−1/2 is expected), and writes
runs/widths/widths.svg, .png and .csv.
"""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from experiments.base.seeds import key_of
from experiments.networks.twins import MODELS, Model
from experiments.options import MODELS as NAMES
from experiments.options import InputError
from experiments.records import results_folder
from experiments.report.drawing import MUTED, blank, log_axis, png, styled, svg
from pathjax import masks, ntk, scores

__all__ = ["Sweep", "figure", "footer", "main", "measure", "read"]

_SHAPE = (6, 6, 1)
_IMAGES = 6
_OUTPUTS = 2
_PIXEL = 100.0
"""Standard deviation of a pixel: the biases, whose parts of Θ do not grow with the width, are then little of it."""

_DENSITIES = (1.0, 0.25)
_WIDTHS = {True: (16, 32, 64, 128, 256), False: (32, 64, 128, 256, 512, 1024)}
"""Of convolutional networks, whose layers have nine times the fan-in, and of others."""

_COLOURS = ("#2f7fc1", "#009e73", "#d55e00", "#8f6bb3", "#e69f00")


class Sweep(NamedTuple):
    """Relative distances (widths, seeds) of the kernels of one model, kept at random to one density."""

    model: str
    density: float
    widths: tuple[int, ...]
    distances: np.ndarray

    @property
    def slope(self) -> tuple[float, float]:
        """Exponent of the width, the mean over seeds of straight lines fitted on logarithmic axes; its error."""
        slopes = np.polyfit(np.log(self.widths), np.log(self.distances), 1)[0]
        error = slopes.std(ddof=1) / np.sqrt(len(slopes)) if len(slopes) > 1 else np.nan
        return float(slopes.mean()), float(error)

    def __str__(self) -> str:
        rows = zip(self.widths, self.distances.mean(axis=1), strict=True)
        means = ", ".join(f"{width}: {mean:.3f}" for width, mean in rows)
        return f"{self.model}, density {self.density:g}: {_words(self)}; {means}"


def measure(model: str, *, density: float, widths: Sequence[int], seeds: int) -> Sweep:
    """The distances of networks drawn with the seeds 0, 1, ... on a few images of noise.

    A random mask keeps the share `density` of each kernel but the first, and the kernel is that of the kept weights;
    `Model.twin` says what it is held against.
    """
    x = _PIXEL * jax.random.normal(key_of(0, "images"), (_IMAGES, *_SHAPE), jnp.float32)
    keys = jnp.stack([key_of(seed, "widths") for seed in range(seeds)])
    rows = [_distances(MODELS[model](_SHAPE, _OUTPUTS, width=width), x, keys, density) for width in widths]
    return Sweep(model, density, tuple(widths), np.stack(rows))


def _distances(model: Model, x: jax.Array, keys: jax.Array, density: float) -> np.ndarray:
    """The distance for each key (s,)."""
    limit = ntk.infinite(model.twin(density).kernel_fn, x)

    def prunable(path: tuple[Any, ...], leaf: jax.Array) -> bool:
        return masks.is_kernel(path, leaf) and path[1].key != model.first

    def distance(key: jax.Array) -> jax.Array:
        params = model.init(jax.random.fold_in(key, 0))
        chosen = scores.random(params, key=jax.random.fold_in(key, 1))
        mask = masks.from_scores(chosen, density=density, scope="local", prunable=prunable)
        return ntk.relative_distance(ntk.empirical(model.apply, params, x, mask=mask), limit)

    # one network after the other, so that memory is that of one
    return np.asarray(jax.jit(lambda keys: jax.lax.map(distance, keys))(keys))


@styled
def figure(sweeps: Sequence[Sweep], footer: str) -> Figure:
    """Mean distance over width, error bars of one standard deviation over seeds; a panel for each model."""
    models = list(dict.fromkeys(sweep.model for sweep in sweeps))
    columns = 2 if len(models) == 4 else min(3, len(models))
    rows = -(-len(models) // columns)
    drawn, axes = blank(3.6 * columns + 0.3, 3.3 * rows, footer, rows=rows, columns=columns, share="y")
    flat = [axis for row in axes for axis in row]
    for axis, model in zip(flat, models, strict=False):
        chosen = [sweep for sweep in sweeps if sweep.model == model]
        for place, sweep in enumerate(chosen):
            mean, deviation = sweep.distances.mean(axis=1), sweep.distances.std(axis=1)
            beside = np.asarray(sweep.widths) * 1.04 ** (place - (len(chosen) - 1) / 2)  # bars that do not cover
            axis.errorbar(
                beside,
                mean,
                # below the mean a bar must not reach zero
                yerr=[np.minimum(deviation, 0.9 * mean), deviation],
                color=_COLOURS[place % len(_COLOURS)],
                marker="o",
                capsize=2,
                linewidth=1.4,
                label=f"density {sweep.density:g}: {_words(sweep)}",
            )
        widths, first = np.asarray(chosen[0].widths), chosen[0].distances[0].mean()
        axis.plot(widths, 0.7 * first * (widths / widths[0]) ** -0.5, color=MUTED, linestyle=":", label="width^(−1/2)")
        for side in ("x", "y"):
            log_axis(axis, side=side, digits=(1,) if side == "x" else (1, 2, 5))
        axis.xaxis.set_major_locator(FixedLocator(chosen[0].widths))
        axis.set(title=model, xlabel="width")
        axis.legend(loc="lower left", fontsize=7.5)
    for axis in flat[len(models) :]:
        axis.set_axis_off()
    highest = max(sweep.distances.mean(axis=1).max() for sweep in sweeps)
    lowest = min(sweep.distances.mean(axis=1).min() for sweep in sweeps)
    flat[0].set_ylim(lowest / 5, 1.5 * highest)  # room for the legends
    for row in axes:
        row[0].set_ylabel("‖Θ − Θ∞‖ / ‖Θ∞‖")
    return drawn


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, draw and keep."""
    parser = argparse.ArgumentParser(prog="python -m experiments.widths", description=__doc__)
    parser.add_argument("--model", nargs="+", choices=NAMES, default=list(NAMES), help="networks")
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
    for suffix, data in (("png", png(drawn)), ("svg", svg(drawn)), ("csv", _table(sweeps))):
        results_folder.write(options.out / f"widths.{suffix}", data)
    print(f"drawn: {options.out / 'widths.svg'}")


def read(path: Path) -> list[Sweep]:
    """The sweeps of a table that `main` wrote. Raises InputError where the file is not one of its own."""
    try:
        with path.open(newline="") as file:
            rows = [(row["model"], float(row["density"]), row) for row in csv.DictReader(file)]
        sweeps = []
        for model, density in dict.fromkeys(row[:2] for row in rows):
            chosen = [row for name, share, row in rows if (name, share) == (model, density)]
            widths = tuple(dict.fromkeys(int(row["width"]) for row in chosen))
            distances = np.array([float(row["distance"]) for row in chosen]).reshape(len(widths), -1)
            sweeps.append(Sweep(model, density, widths, distances))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path} cannot be read ({error}); remove it, or make it again.") from error
    return sweeps


def footer(sweeps: Sequence[Sweep]) -> str:
    """The line under the figure: data, seeds and versions."""
    seeds = max(sweep.distances.shape[1] for sweep in sweeps)
    data = f"{_IMAGES} images of noise, {_SHAPE[0]} × {_SHAPE[1]}, {_OUTPUTS} outputs"
    packages = ", ".join(f"{name} {results_folder.versions()[name]}" for name in ("pathjax", "jax", "neural-tangents"))
    return f"{data} · seeds 0–{seeds - 1}, bars: one standard deviation · {packages}"


def _words(sweep: Sweep) -> str:
    slope, error = sweep.slope
    around = "" if np.isnan(error) else f" ± {error:.2f}"
    return f"slope {slope:.2f}{around}".replace("-", "−")


def _table(sweeps: Sequence[Sweep]) -> str:
    with io.StringIO(newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("model", "density", "width", "seed", "distance"))
        for sweep in sweeps:
            for width, distances in zip(sweep.widths, sweep.distances, strict=True):
                rows.writerows(
                    (sweep.model, f"{sweep.density:g}", width, seed, f"{distance:.6g}")
                    for seed, distance in enumerate(distances)
                )
        return file.getvalue()


if __name__ == "__main__":
    main()
