"""Networks by the name that a config gives: one of `NETWORKS`, or a function in a module of the user."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from experiments.base import own
from experiments.base.errors import InputError, check_known
from experiments.networks.architectures import ARCHITECTURES
from experiments.networks.layers import OUTPUTS, Network
from experiments.networks.modules import network_of_module
from experiments.networks.twins import TWINS

__all__ = ["NETWORKS", "builder", "built", "scaled"]

NETWORKS: dict[str, Callable[..., Network]] = TWINS | ARCHITECTURES
"""`NETWORKS[name](shape, outputs, widths=..., batch_norm=..., activation=..., init=...)`."""


def builder(name: str) -> Callable[..., Any]:
    """The function that builds a network: one of `NETWORKS`, or "module:function" of a module that can be imported.

    Raises InputError where there is none.
    """
    if own.is_function(name):
        return own.function_of("network", name)
    check_known("network", name, tuple(NETWORKS))
    return NETWORKS[name]


def built(name: str, shape: tuple[int, ...], outputs: int, **options: Any) -> Network:
    """The network of this name for images of `shape` and a number of outputs, with the options of `Network`.

    Raises InputError where there is none and where one of one's own cannot be trained; TypeError or ValueError where
    one of `NETWORKS` does not exist for these images or options.
    """
    if own.is_function(name):
        return network_of_module(name, builder(name), shape, outputs, options)
    return builder(name)(shape, outputs, **options)


def scaled(network: Network, factor: float) -> Network:
    """The network with all widths but the outputs multiplied by `factor`, rounded up.

    Raises InputError where a plain module has no widths to multiply.
    """
    if factor == 1.0:
        return network
    if not network.widths:
        raise InputError(
            "A plain module has no table of widths, so model.factor cannot change it; give its function the width."
        )
    return network.resized(
        {name: math.ceil(factor * width) for name, width in network.widths.items() if name != OUTPUTS}
    )
