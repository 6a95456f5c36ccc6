"""Networks by the name that a config gives: one of `NETWORKS`, or a function in a module of the user."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from experiments.base import own
from experiments.base.errors import InputError, check_known
from experiments.networks.architectures import ARCHITECTURES
from experiments.networks.layers import OUTPUTS, Network
from experiments.networks.modules import network_of_module
from experiments.networks.twins import TWINS

__all__ = ["NETWORKS", "Order", "builder", "built", "order_of", "scaled"]

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


class Order(NamedTuple):
    """The names of a network's layers and of its units, from the input on."""

    layers: tuple[str, ...]
    units: tuple[str, ...]


def order_of(name: str, *, depth: int = 0) -> Order | None:
    """The order of one of `NETWORKS`, at its published depth or another one; None for a network of another name."""
    if name not in NETWORKS:
        return None
    network = NETWORKS[name](_SHAPE, 1, **({"depth": depth} if depth else {}))
    return Order(tuple(layer.name for layer in network.layers), network.units)


_SHAPE = (32, 32, 3)
"""Images that every network takes; the names of layers depend on no shape."""


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
