"""How far a finite network's Neural Tangent Kernel is from that of infinite width, over the width."""

from __future__ import annotations

import csv
import functools
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.base.errors import InputError
from experiments.base.seeds import key_of
from experiments.networks.layers import OUTPUTS, Network, bind
from experiments.networks.twins import TWINS, twin_of
from pathjax import masks, ntk, scores

__all__ = [
    "DATA",
    "PIXEL",
    "Slope",
    "WidthSweep",
    "fitted_slope",
    "images",
    "is_pruned",
    "measure",
    "of_width",
    "read",
    "spelled_means",
    "table",
]

_SHAPE = (6, 6, 1)
_IMAGES = 6
_OUTPUTS = 2
PIXEL = 100.0
"""Standard deviation of a pixel. It is large, so that the biases, whose part of Θ does not grow with the width, are
little of it."""

DATA = f"{_IMAGES} images of noise, {_SHAPE[0]} × {_SHAPE[1]}, {_OUTPUTS} outputs"
"""What the kernels are taken on, in words."""


class Slope(NamedTuple):
    """An exponent of the width: the mean over seeds, and the standard error of that mean (NaN for one seed)."""

    mean: float
    error: float

    def __str__(self) -> str:
        around = "" if np.isnan(self.error) else f" ± {self.error:.2f}"
        return f"slope {self.mean:.2f}{around}".replace("-", "−")


def fitted_slope(widths: Sequence[int], distances: np.ndarray) -> Slope:
    """The exponent of the width in distances (widths, seeds), from a line for each seed on logarithmic axes."""
    slopes = np.polyfit(np.log(widths), np.log(distances), 1)[0]
    error = slopes.std(ddof=1) / np.sqrt(len(slopes)) if len(slopes) > 1 else np.nan
    return Slope(float(slopes.mean()), float(error))


class WidthSweep(NamedTuple):
    """Relative distances (widths, seeds) to the infinite-width kernel, of one model kept at random to one density."""

    model: str
    density: float
    widths: tuple[int, ...]
    distances: np.ndarray

    @property
    def slope(self) -> Slope:
        """The exponent of the width, from a straight line for each seed on logarithmic axes."""
        return fitted_slope(self.widths, self.distances)

    def __str__(self) -> str:
        return f"{self.model}, density {self.density:g}: {self.slope}; {spelled_means(self.widths, self.distances)}"


def measure(model: str, *, density: float, widths: Sequence[int], seeds: int) -> WidthSweep:
    """The distances of networks drawn with the seeds 0, 1, ... on a few images of noise.

    A random mask keeps the share `density` of each kernel but the first, and Θ is that of the kept weights. Its
    infinite-width limit is that of `twin_of` at this density.
    """
    x = images()
    keys = jnp.stack([key_of(seed, "widths") for seed in range(seeds)])
    rows = [_distances(of_width(model, width), x, keys, density) for width in widths]
    return WidthSweep(model, density, tuple(widths), np.stack(rows))


def spelled_means(widths: Sequence[int], distances: np.ndarray) -> str:
    """The mean distance (widths, seeds) at each width, in words."""
    return ", ".join(f"{width}: {mean:.3f}" for width, mean in zip(widths, distances.mean(axis=1), strict=True))


def is_pruned(network: Network, path: tuple[Any, ...], leaf: jax.Array) -> bool:
    """Whether a leaf is a kernel other than the first, whose fan-in does not grow with the width."""
    return masks.is_kernel(path, leaf) and path[0].key != network.layers[0].name


def images() -> jax.Array:
    """The images of noise that all kernels are taken on."""
    return PIXEL * jax.random.normal(key_of(0, "images"), (_IMAGES, *_SHAPE), jnp.float32)


def of_width(model: str, width: int) -> Network:
    """The twin network whose hidden layers all have this width."""
    network = TWINS[model](_SHAPE, _OUTPUTS)
    return network.resized({name: width for name in network.widths if name != OUTPUTS})


def _distances(network: Network, x: jax.Array, keys: jax.Array, density: float) -> np.ndarray:
    """The distance for each key (s,)."""
    limit = ntk.infinite(twin_of(network, density).kernel_fn, x)
    apply = bind(network, {})

    prunable = functools.partial(is_pruned, network)

    def distance(key: jax.Array) -> jax.Array:
        params, _ = network.init(jax.random.fold_in(key, 0))
        random_scores = scores.random(params, key=jax.random.fold_in(key, 1))
        mask = masks.from_scores(random_scores, density=density, scope="local", prunable=prunable)
        return ntk.relative_distance(ntk.empirical(apply, params, x, mask=mask), limit)

    # one network after the other, so that memory is that of one
    return np.asarray(jax.jit(lambda keys: jax.lax.map(distance, keys))(keys))


def table(sweeps: Sequence[WidthSweep]) -> str:
    """The distances as CSV, a row for each network."""
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


def read(path: Path) -> list[WidthSweep]:
    """The sweeps of a file that `table` made. Raises InputError where it did not."""
    try:
        with path.open(newline="") as file:
            rows = [(row["model"], float(row["density"]), row) for row in csv.DictReader(file)]
        sweeps = []
        for model, density in dict.fromkeys(row[:2] for row in rows):
            chosen = [row for name, share, row in rows if (name, share) == (model, density)]
            widths = tuple(dict.fromkeys(int(row["width"]) for row in chosen))
            distances = np.array([float(row["distance"]) for row in chosen]).reshape(len(widths), -1)
            sweeps.append(WidthSweep(model, density, widths, distances))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path} cannot be read ({error}); remove it, or make it again.") from error
    return sweeps
