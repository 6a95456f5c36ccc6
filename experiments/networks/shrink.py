"""A smaller network from a mask: units that do nothing are taken out, and the outputs stay the same."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.networks import layers
from experiments.networks.layers import IMAGE, OUTPUTS, Block, Layer, Network, Pad
from pathjax import masks
from pathjax.types import Mask, Params

__all__ = ["EPSILON", "Shrunk", "shrink"]

EPSILON = 1e-5
"""The ε of Flax's batch norm."""


class Shrunk(NamedTuple):
    """A smaller network with its parameters and state, and which units of each name it kept of the larger one."""

    network: Network
    params: Params
    state: Any
    units: dict[str, tuple[int, ...]]


def shrink(network: Network, params: Params, state: Any, mask: Mask) -> Shrunk:
    """The network without the units and channels that do nothing under the mask: the same outputs, in evaluation mode.

    A unit is removed if no kept weight reads it, or if no kept weight writes to it and its output is then 0. If its
    output is another constant, it is removed where that constant can be added to the biases, or subtracted from the
    running means, of all layers that read it; this is not so before a convolution that pads with zeros, nor in the sum
    of a residual stream. A channel of a residual stream is removed if all layers that write to it, or all that read it,
    allow it. This is repeated until nothing more can be removed. Where all units of a name could go, one is kept that
    nothing reads. A network in the NTK's parameterization comes back in the standard one, its scales multiplied into
    its weights.

    Reads values, so it does not work under `jit`. Weights that are pruned within the smaller network stay zeros.
    """
    weights = _Weights(network, masks.apply_mask(mask, params), state)
    alive = {name: np.ones(width, bool) for name, width in network.widths.items()}
    names = [name for name in network.widths if name != OUTPUTS]
    while sum(_remove(weights, alive, name) for name in names):
        pass
    for name, units in alive.items():
        if not units.any():
            units[0] = True
            for layer in weights.readers(name):
                weights.kernel[layer.name][:, 0] = 0.0
    return _taken(weights, alive)


class _Weights:
    """The masked weights in NumPy, kernels as (positions, units read, units written) and with their scale."""

    def __init__(self, network: Network, params: Params, state: Any) -> None:
        self.network = network
        self.params = jax.tree.map(np.array, params)
        self.statistics = jax.tree.map(np.array, state.get("batch_stats", {}))
        self.kernel = {}
        for layer in network.layers:
            kernel = self.params[layer.name]["kernel"]
            scaled = kernel * layers.kernel_scale(network.options, kernel.shape)
            read = kernel.shape[-2] if layer.reads == IMAGE else network.widths[layer.reads]
            self.kernel[layer.name] = scaled.reshape(-1, read, kernel.shape[-1])
        self.pads = [pad._replace(places=_places(network, pad)) for pad in network.pads]

    def readers(self, name: str) -> list[Layer]:
        return [layer for layer in self.network.layers if layer.reads == name]

    def writers(self, name: str) -> list[Layer]:
        return [layer for layer in self.network.layers if layer.writes == name]

    def norm(self, name: str | None, x: np.ndarray) -> np.ndarray:
        """Batch norm of one value for each unit, with running statistics."""
        if name not in self.statistics:
            return x
        running, trained = self.statistics[name], self.params[name]
        return (x - running["mean"]) / np.sqrt(running["var"] + EPSILON) * trained["scale"] + trained["bias"]

    def activate(self, x: np.ndarray) -> np.ndarray:
        return np.where(x > 0, x, x * layers.SLOPES[self.network.options.activation])

    def constant(self, layer: Layer) -> np.ndarray:
        """The output of a layer, before its activation, at units that no kept weight writes to."""
        zeros = np.zeros(self.kernel[layer.name].shape[-1])
        return self.norm(layer.norm if layer.normed else None, self.params[layer.name].get("bias", zeros))

    def add(self, layer: Layer, amounts: np.ndarray) -> None:
        """Add constants to the output of a layer before its norm."""
        if "bias" in self.params[layer.name]:
            self.params[layer.name]["bias"] += amounts
        else:
            self.statistics[layer.norm]["mean"] -= amounts


def _places(network: Network, pad: Pad) -> tuple[int, ...]:
    if pad.places is not None:
        return pad.places
    read, written = network.widths[pad.reads], network.widths[pad.writes]
    places = np.full(written, -1)
    places[(written - read) // 2 :][:read] = np.arange(read)
    return tuple(places.tolist())


def _remove(weights: _Weights, alive: dict[str, np.ndarray], name: str) -> bool:
    """Mark the units of one name that can be removed now; returns whether there were any."""
    go = alive[name] & (~_read(weights, alive, name) | _zero(weights, alive, name))
    alive[name] &= ~go
    return bool(go.any()) | _fold(weights, alive, name)


def _read(weights: _Weights, alive: dict[str, np.ndarray], name: str) -> np.ndarray:
    """Units that some kept weight or shortcut reads."""
    read = np.zeros_like(alive[name])
    for layer in weights.readers(name):
        read |= (weights.kernel[layer.name][:, :, alive[layer.writes]] != 0).any(axis=(0, 2))
    for pad in weights.pads:
        if pad.reads == name:
            read[
                [
                    place
                    for place, there in zip(pad.places or (), alive[pad.writes], strict=True)
                    if there and place >= 0
                ]
            ] = True
    return read


def _written(weights: _Weights, alive: dict[str, np.ndarray], layer: Layer) -> np.ndarray:
    """Units that a layer writes to with a kept weight, from a unit that is alive."""
    kernel = weights.kernel[layer.name]
    return (kernel if layer.reads == IMAGE else kernel[:, alive[layer.reads]]).any(axis=(0, 1))


def _zero(weights: _Weights, alive: dict[str, np.ndarray], name: str) -> np.ndarray:
    """Units that all layers that read them see as 0, on every image."""
    zero = np.ones_like(alive[name])
    for layer in weights.writers(name):
        constant = weights.constant(layer)
        # also after a sum with zeros, because then the activation sees this constant in every block
        zero &= ~_written(weights, alive, layer) & ((weights.activate(constant) if layer.active else constant) == 0)
    for pad in weights.pads:
        if pad.writes == name:
            zero &= np.array([place < 0 or not alive[pad.reads][place] for place in pad.places or ()])
    for layer in weights.readers(name):
        if layer.through is not None:
            zero &= weights.activate(weights.norm(layer.through, np.zeros(zero.size))) == 0
    return zero


def _fold(weights: _Weights, alive: dict[str, np.ndarray], name: str) -> bool:
    """Move constant units of one name into the biases of all layers that read them; returns whether there were any."""
    writers, readers = weights.writers(name), weights.readers(name)
    if len(writers) > 1 or any(name in (pad.reads, pad.writes) for pad in weights.pads):
        return False
    go = alive[name] & ~_written(weights, alive, writers[0])
    if not go.any() or any((layer.window and not layer.valid) or layer.through for layer in readers):
        return False
    constant = weights.constant(writers[0])
    constant = np.where(go, weights.activate(constant) if writers[0].active else constant, 0.0)
    for layer in readers:
        weights.add(layer, np.einsum("pio,i->o", weights.kernel[layer.name], constant))
    alive[name] &= ~go
    return True


def _taken(weights: _Weights, alive: dict[str, np.ndarray]) -> Shrunk:
    network = weights.network
    units = {name: np.flatnonzero(living) for name, living in alive.items()}
    places: dict[Pad, tuple[int, ...]] = {}
    for pad, full in zip(network.pads, weights.pads, strict=True):
        position = {unit: i for i, unit in enumerate(units[pad.reads].tolist())}
        places[pad] = tuple(position.get((full.places or ())[unit], -1) for unit in units[pad.writes])
    smaller_steps = tuple(
        step._replace(shortcut=step.shortcut._replace(places=places[step.shortcut]))
        if isinstance(step, Block) and isinstance(step.shortcut, Pad)
        else step
        for step in network.steps
    )
    params: dict[str, dict[str, Any]] = {}
    statistics: dict[str, dict[str, Any]] = {}
    for layer in network.layers:
        kernel = weights.kernel[layer.name]
        kernel = (kernel if layer.reads == IMAGE else kernel[:, units[layer.reads]])[:, :, units[layer.writes]]
        window = (layer.window,) * 2 if layer.window else ()
        kernel = kernel.reshape(*window, -1, kernel.shape[-1])
        params[layer.name] = {"kernel": kernel}
        if "bias" in weights.params[layer.name]:
            params[layer.name]["bias"] = weights.params[layer.name]["bias"][units[layer.writes]]
        for norm, name in ((layer.norm, layer.writes), (layer.through, layer.reads)):
            if norm is not None and norm in weights.statistics:
                params[norm] = {part: leaf[units[name]] for part, leaf in weights.params[norm].items()}
                statistics[norm] = {part: leaf[units[name]] for part, leaf in weights.statistics[norm].items()}
    state = {"batch_stats": jax.tree.map(jnp.asarray, statistics)} if statistics else {}
    # the scales of the NTK's parameterization are in the weights already
    options = dataclasses.replace(network.options, init="kaiming")
    smaller = network.resized({name: len(kept) for name, kept in units.items()}, smaller_steps, options)
    return Shrunk(smaller, jax.tree.map(jnp.asarray, params), state, {n: tuple(u.tolist()) for n, u in units.items()})
