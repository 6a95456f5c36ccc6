"""The network that a model of a study names, and whether batch norm gives it a state."""

from __future__ import annotations

import functools
from typing import Any

import jax

from experiments.base import own
from experiments.base.errors import InputError
from experiments.base.seeds import key_of
from experiments.networks.by_name import built, scaled
from experiments.networks.layers import Network
from experiments.study import Model

__all__ = ["has_state", "network_of"]

_SHAPE, _OUTPUTS = (32, 32, 3), 10
"""Images and outputs for which every network of `names.NETWORKS` can be built."""


def network_of(model: Model, shape: tuple[int, ...], outputs: int) -> Network:
    """The network that a model of a study names. Raises InputError where it cannot be built."""
    options: dict[str, Any] = {"activation": model.activation, "init": model.init}
    if model.batch_norm is not None:
        options["batch_norm"] = model.batch_norm
    if model.depth:
        options["depth"] = model.depth
    try:
        network = built(model.network, shape, outputs, **options)
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(f"The model {model.name} cannot be built: {str(error).rstrip('.')}.") from error
    return scaled(network, model.factor)


@functools.cache
def has_state(model: Model) -> bool:
    """Whether the network of a model keeps running statistics of batch norm, whatever its images are.

    One of one's own is built for color images of 32 × 32 pixels; where that fails it counts as having a state. Raises
    InputError where one of `names.NETWORKS` does not exist with the model's options.
    """
    if not own.is_function(model.network):
        return network_of(model, _SHAPE, _OUTPUTS).options.batch_norm
    try:
        _, state = jax.eval_shape(network_of(model, _SHAPE, _OUTPUTS).init, key_of(0))
    except Exception:  # of a function of one's own, which may be made for other images
        return True
    return bool(jax.tree.leaves(state))
