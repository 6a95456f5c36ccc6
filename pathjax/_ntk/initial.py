"""Second moments of weights at the usual initializations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pathjax._base.kernels import is_kernel, is_scale
from pathjax._base.trees import in_own_containers
from pathjax.types import Params, Real

__all__ = ["second_moments"]


class _Fans(NamedTuple):
    """Numbers of weights that meet in one entry of a layer's outputs, and of its inputs."""

    into: int
    out: int


_INITIALIZATIONS: dict[str, Callable[[_Fans], float]] = {
    "lecun": lambda fans: 1 / fans.into,
    "he": lambda fans: 2 / fans.into,
    "glorot": lambda fans: 2 / (fans.into + fans.out),
    "orthogonal": lambda fans: 1 / max(fans),
    "ntk": lambda fans: 1.0,
}


def second_moments(
    params: Params,
    init: str = "lecun",
    *,
    scale: Real = 1.0,
    bias: Real = 0.0,
    in_axis: int = -2,
    out_axis: int = -1,
) -> Params:
    """Second moments E[w²] of the weights at a usual initialization: a tree like `params` with a number for each leaf.

    For the `second_moments` of `mean_field`. Only names and shapes of `params` are read. "lecun" is 1/fan_in, the
    default of Flax; "he" is 2/fan_in; "glorot" is 2/(fan_in + fan_out); "orthogonal" is 1/max(fan_in, fan_out); "ntk"
    is 1, for networks in the NTK parameterization, which multiply by 1/√fan_in themselves. They are multiplied by
    `scale`. Which leaves are kernels, and which scales of norms, is told from names and shapes as by `masks.is_kernel`;
    scales have the moment 1, and all other leaves that of `bias`, 0 as Flax has it.

    `in_axis` and `out_axis` are those of inputs and outputs in a kernel, as in `jax.nn.initializers`; other axes count
    as positions under a filter. (-2, -1) is right for Flax, (1, 0) for Equinox.

    Raises ValueError for an unknown initialization and for a negative `scale` or `bias`.

    Source: LeCun et al. (1998); Glorot, Bengio (2010); He et al. (2015); Saxe et al. (2014); Jacot et al. (2018).

    >>> params = {"conv": {"kernel": jnp.ones((3, 3, 4, 8)), "bias": jnp.ones(8)}, "norm": {"scale": jnp.ones(8)}}
    >>> moments = second_moments(params, "he")
    >>> round(moments["conv"]["kernel"], 4), moments["conv"]["bias"], moments["norm"]["scale"]  # 2 / (3 · 3 · 4)
    (0.0556, 0.0, 1.0)
    """
    if init not in _INITIALIZATIONS:
        known = ", ".join(map(repr, _INITIALIZATIONS))
        raise ValueError(f"There is no initialization {init!r}. Choose one of {known}, or give second moments by hand.")
    if scale < 0 or bias < 0:
        raise ValueError(f"`scale` and `bias` are means of squares, but are {scale} and {bias}.")

    def moment(path: tuple[Any, ...], leaf: Any) -> float:
        if is_kernel(path, leaf):
            return scale * _INITIALIZATIONS[init](_fans(jnp.shape(leaf), in_axis, out_axis))
        return 1.0 if is_scale(path, leaf) else float(bias)

    return jax.tree_util.tree_map_with_path(moment, in_own_containers(params))


def _fans(shape: tuple[int, ...], in_axis: int, out_axis: int) -> _Fans:
    places = math.prod(shape) / (shape[in_axis] * shape[out_axis])
    return _Fans(round(places * shape[in_axis]), round(places * shape[out_axis]))
