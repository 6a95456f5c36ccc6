"""What a mask leaves of a network: the weights that still lie on a path, and the layers that no longer do.

A kept weight is dead where its unit has no live input or no live output: no path from an input to an output goes
through it, and it says nothing and learns nothing. The share of weights on paths, the effective density, can be far
below the density of the mask.

Source: Vysogorets, Kempe, "Connectivity matters: neural network pruning through the lens of effective sparsity", 2023.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import keystr, tree_flatten_with_path

from pathjax import masks
from pathjax._base.network import bound
from pathjax._base.trees import check_mask
from pathjax._interpreter.lifting import Scaled, absolute_power, lift, lift_weights, one_example, ones_like_example
from pathjax._interpreter.reach import Branch, Branches, Reach, Reached
from pathjax._interpreter.rules import interpret
from pathjax._interpreter.traced import TracedNetwork, traced
from pathjax.types import Mask, Params, Prunable, XLike

__all__ = ["Connectivity", "LayerConnectivity", "connectivity", "effective_mask"]


class LayerConnectivity(NamedTuple):
    """What is left of one prunable leaf.

    Attributes:
        path: its key path.
        size: the weights there are.
        kept: those that the mask keeps.
        live: those of them that lie on a path from an input to an output.
        units: the units, or channels, that it feeds: the length of its last axis, as of kernels in Flax; those of
            transposed kernels, and of kernels stacked for a scan, are not told apart so.
        live_units: those of them that a live weight feeds.
    """

    path: str
    size: int
    kept: int
    live: int
    units: int
    live_units: int


class Connectivity(NamedTuple):
    """What is left of a network.

    Attributes:
        layers: of each prunable leaf, in the order of the tree.
        log_paths: logarithm of the number of paths from inputs to outputs; −∞ where the network is cut through.
        density: the kept share of the prunable weights.
        effective_density: the share that is kept and lies on a path.
        collapsed: the key paths of the leaves that no path goes through any more.
        dead_shortcuts: those of them that were shortcuts, as the projections of residual networks are: every shortest
            path goes through them, and longer ones go around. Of branches of one length none is a shortcut.
    """

    layers: tuple[LayerConnectivity, ...]
    log_paths: float
    density: float
    effective_density: float
    collapsed: tuple[str, ...]
    dead_shortcuts: tuple[str, ...]

    @property
    def parameters(self) -> int:
        """The prunable weights that are kept and lie on a path."""
        return sum(layer.live for layer in self.layers)

    @property
    def units(self) -> int:
        """The units that a live weight feeds, over all prunable leaves."""
        return sum(layer.live_units for layer in self.layers)


def effective_mask(
    apply: Callable[..., Any],
    params: Params,
    x_like: XLike,
    *,
    mask: Mask | None = None,
    state: Any = None,
    biases: bool = False,
    prunable: Prunable = masks.is_kernel,
) -> Mask:
    """The mask without its dead weights: those on no path from an input to an output.

    A network's outputs do not change with them, unless a bias reaches an output through weights that no input reaches:
    with `biases` such paths count too. Only which weights are kept is read, not their values; a constant 0 in the
    network ends a path. Leaves that are not prunable are True throughout; with `prunable=lambda key_path, leaf: True`
    the biases and scales of dead units are taken out too. Idempotent. After every operation it is said whether
    anything is there, in place of how much, so that no depth is too much for the format.

    Three forward and backward passes, one with `biases`; loops are unrolled. With `state`, the network is
    `apply(params, state, x)`. Goes through jit and vmap.

    Raises UnsupportedPrimitive where a layer is not piecewise linear, ValueError for a mask of another tree and
    TypeError for one that is not boolean.

    >>> import jax.numpy as jnp
    >>> def apply(params, x):
    ...     return jnp.maximum(x @ params["first"], 0) @ params["second"]
    >>> mask = {"first": jnp.array([[True, False, True]]), "second": jnp.array([[True], [True], [False]])}
    >>> params = {"first": jnp.ones((1, 3)), "second": jnp.ones((3, 1))}
    >>> live = effective_mask(apply, params, jnp.zeros((5, 1)), mask=mask)
    >>> live["first"].tolist(), live["second"].ravel().tolist()
    ([[True, False, False]], [True, False, False])
    """
    if mask is not None:
        check_mask(mask, params)
    network = traced(bound(apply, state), params)
    dense = jax.tree.map(lambda leaf: jnp.ones(jnp.shape(leaf), bool), params)
    kept = dense if mask is None else mask
    through = functools.partial(_on_paths, network, x_like)
    live = through(kept, constants=True) if biases else _live_from_inputs(through, kept, dense)
    leaves = [prunable(path, leaf) for path, leaf in tree_flatten_with_path(params)[0]]
    chosen = jax.tree.unflatten(jax.tree.structure(params), leaves)
    return jax.tree.map(lambda choose, found: found | (not choose), chosen, live)


def connectivity(
    apply: Callable[..., Any],
    params: Params,
    x_like: XLike,
    *,
    mask: Mask | None = None,
    state: Any = None,
    prunable: Prunable = masks.is_kernel,
) -> Connectivity:
    """What a mask leaves of a network: paths, live weights and units, collapsed layers and dead shortcuts.

    Paths are those from inputs; paths that start at biases alone do not keep a layer alive. Reads the values of the
    mask, so that it does not go under `jit`. Costs and errors as of `effective_mask`.

    >>> import jax.numpy as jnp
    >>> def apply(params, x):  # a block of two layers beside a shortcut with weights of its own
    ...     return jnp.maximum(x @ params["first"], 0) @ params["second"] + x @ params["shortcut"]
    >>> params = {"first": jnp.ones((2, 3)), "second": jnp.ones((3, 4)), "shortcut": jnp.ones((2, 4))}
    >>> mask = {name: jnp.full(leaf.shape, name != "shortcut") for name, leaf in params.items()}
    >>> mask["first"] = mask["first"].at[:, 0].set(False)
    >>> found = connectivity(apply, params, jnp.zeros((5, 2)), mask=mask)
    >>> found.layers[1]
    LayerConnectivity(path="['second']", size=12, kept=12, live=8, units=4, live_units=4)
    >>> found.parameters, found.units, round(2.71828**found.log_paths), found.dead_shortcuts
    (12, 6, 16, ("['shortcut']",))
    """
    network = traced(bound(apply, state), params)
    live = effective_mask(network, params, x_like, mask=mask, prunable=prunable)
    kept = jax.tree.map(lambda leaf: jnp.ones(jnp.shape(leaf), bool), params) if mask is None else mask
    paths = [path for path, _ in tree_flatten_with_path(params)[0]]
    layers = {
        index: _layer(keystr(path), np.asarray(keep), np.asarray(alive))
        for index, (path, keep, alive) in enumerate(
            zip(paths, jax.tree.leaves(kept), jax.tree.leaves(live), strict=True)
        )
        if prunable(path, keep)
    }
    size = max(1, sum(layer.size for layer in layers.values()))
    collapsed = [index for index, layer in layers.items() if layer.size and not layer.live]
    shortcuts = _shortcuts(network, x_like)
    return Connectivity(
        layers=tuple(layers.values()),
        log_paths=float(_log_paths(network, params, x_like, kept)),
        density=sum(layer.kept for layer in layers.values()) / size,
        effective_density=sum(layer.live for layer in layers.values()) / size,
        collapsed=tuple(layers[index].path for index in collapsed),
        dead_shortcuts=tuple(layers[index].path for index in collapsed if index in shortcuts),
    )


def _layer(path: str, kept: np.ndarray, live: np.ndarray) -> LayerConnectivity:
    units = kept.shape[-1] if kept.ndim else 1
    fed = live.reshape(-1, units).any(axis=0)
    return LayerConnectivity(path, kept.size, int(kept.sum()), int(live.sum()), units, int(fed.sum()))


def _on_paths(network: TracedNetwork, x_like: XLike, kept: Mask, *, constants: bool) -> Mask:
    """The kept weights on a path from an input or, with `constants`, from any source."""
    example = one_example(x_like)
    program = network.path_program(example)

    def reached(shares: Params) -> Array:
        weights = [Reached(jnp.zeros_like(leaf), leaf) for leaf in jax.tree.leaves(shares)]
        source = jnp.ones(example.shape, jnp.float32)
        output, _ = interpret(program, Reach(), weights, Reached(source, jnp.zeros_like(source)))
        return jnp.sum(output.inputs) + (jnp.sum(output.constants) if constants else 0.0)

    slopes = jax.grad(reached)(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), kept))
    return jax.tree.map(lambda keep, slope: keep & (slope > 0), kept, slopes)


def _live_from_inputs(through: Callable[..., Mask], kept: Mask, dense: Mask) -> Mask:
    """The kept weights on a path from an input, and the biases of units that are on one."""
    live = through(kept, constants=False)
    # a bias is never after an input on a path: it lives where a path from it goes on through live weights
    is_bias = jax.tree.map(jnp.logical_not, through(dense, constants=False))
    sources = jax.tree.map(lambda alive, bias, keep: alive | (bias & keep), live, is_bias, kept)
    return through(sources, constants=True)


def _log_paths(network: TracedNetwork, params: Params, x_like: XLike, kept: Mask) -> Array:
    """Logarithm of the number of paths from inputs, those from biases left out."""
    weights, example = lift_weights(params, jnp.ones_like, kept), ones_like_example(x_like)
    program = network.path_program(example)

    def count(x: Array) -> tuple[Array, Any]:
        sums = lift(program, weights, x, phi=absolute_power(0))
        return jnp.sum(sums.array), sums.exponent

    # linear in the inputs, so that the derivative along them is the part of the sum that starts there
    _, paths, exponent = jax.jvp(count, (example,), (example,), has_aux=True)
    return Scaled(paths, exponent).log_abs()


def _shortcuts(network: TracedNetwork, x_like: XLike) -> frozenset[int]:
    """Positions of the leaves on all shortest paths, which longer ones go around."""
    program = network.path_program(one_example(x_like))
    leaves = range(len(network.leaf_types))
    weights = [Branch(False, 1, frozenset([index]), frozenset([index])) for index in leaves]
    output, _ = interpret(program, Branches(), weights, Branch(True, 0, frozenset(), frozenset()))
    return output.shortest - output.every
