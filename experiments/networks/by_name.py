"""Networks by the name that a config gives: one of `NETWORKS`, or a function in a module of the user."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import cast

from experiments.base.errors import InputError, check_known
from experiments.networks.architectures import ARCHITECTURES
from experiments.networks.layers import OUTPUTS, Network
from experiments.networks.twins import TWINS

__all__ = ["NETWORKS", "builder", "scaled"]

NETWORKS: dict[str, Callable[..., Network]] = TWINS | ARCHITECTURES
"""`NETWORKS[name](shape, outputs, widths=..., batch_norm=..., activation=..., init=...)`."""


def builder(name: str) -> Callable[..., Network]:
    """The function that builds a network: one of `NETWORKS`, or "module:function" of a module that can be imported.

    Raises InputError where there is none.
    """
    module, colon, function = name.partition(":")
    if not colon:
        check_known("network", name, tuple(NETWORKS))
        return NETWORKS[name]
    try:
        return cast(Callable[..., Network], getattr(importlib.import_module(module), function))
    except (ImportError, AttributeError, SyntaxError, TypeError, ValueError) as error:
        raise InputError(f"The network {name} cannot be found: {str(error).rstrip('.')}.") from error


def scaled(network: Network, factor: float) -> Network:
    """The network with all widths but the outputs multiplied by `factor`, rounded up."""
    if factor == 1.0:
        return network
    return network.resized(
        {name: math.ceil(factor * width) for name, width in network.widths.items() if name != OUTPUTS}
    )
