"""A network in Flax NNX, as an example to copy: `network = "experiments.networks.nnx_example:fully_connected"`."""

from __future__ import annotations

import math
from typing import Any

from flax import nnx

from experiments.networks.layers import RESHAPES

__all__ = ["fully_connected"]


def fully_connected(
    shape: tuple[int, ...], outputs: int, *, rngs: nnx.Rngs, width: int = 100, batch_norm: bool = True
) -> nnx.Module:
    """A network of one hidden layer for images of `shape` (h, w, c), which `modules.network_of_module` takes.

    A study makes it once for each seed, with `rngs` of this seed. `batch_norm` may stand in its config; `width` cannot.
    """
    norm: list[Any] = [nnx.BatchNorm(width, rngs=rngs)] if batch_norm else []
    layers: list[Any] = [nnx.Linear(math.prod(shape), width, rngs=rngs), *norm, nnx.relu]
    return nnx.Sequential(RESHAPES["flatten"], *layers, nnx.Linear(width, outputs, rngs=rngs))
