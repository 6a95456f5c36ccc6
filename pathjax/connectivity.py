"""Which weights and layers of a pruned network still lie on a path from an input to an output.

A kept weight is dead if no path from an input to an output goes through it: it neither changes the outputs nor gets a
gradient. The effective density is the share of the weights that are kept and not dead; it can be far below the density
of the mask. `effective_mask` takes dead weights out of a mask; `connectivity` counts what is left, layer by layer.

Source: Vysogorets, Kempe, "Connectivity matters: neural network pruning through the lens of effective sparsity", 2023.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import keystr, tree_flatten_with_path

from pathjax._base.trees import check_mask
from pathjax._interpreter.lifting import absolute_power, lift, lift_weights, one_example, ones_like_example
from pathjax._interpreter.reach import Branch, Branches, Reach, Reached
from pathjax._interpreter.rules import interpret
from pathjax._interpreter.scaled import Scaled
from pathjax._interpreter.traced import TracedNetwork, traced
from pathjax.types import Mask, Params, Prunable, XLike

__all__ = ["Connectivity", "LayerConnectivity", "connectivity", "effective_mask"]


class LayerConnectivity(NamedTuple):
    """What a mask leaves of one prunable leaf. All fields but `path` are counts.

    Attributes:
        path: the key path of the leaf.
        size: its weights.
        kept: its weights that the mask keeps.
        live: its kept weights that lie on a path from an input to an output.
        units: its output units or channels, taken to be its last axis, as in Flax kernels. Wrong for transposed
            kernels and for kernels stacked for a scan.
        live_units: its output units with at least one live weight.
    """

    path: str
    size: int
    kept: int
    live: int
    units: int
    live_units: int


class Connectivity(NamedTuple):
    """What a mask leaves of a network.

    Attributes:
        layers: one entry for each prunable leaf, in the order of the tree.
        log_paths: natural logarithm of the number of paths from inputs to outputs; −∞ where none is left.
        density: the share of the prunable weights that are kept.
        effective_density: the share of the prunable weights that are kept and lie on a path from an input to an output.
        collapsed: key paths of the leaves without a live weight.
        dead_shortcuts: key paths of the collapsed leaves that were shortcuts, such as the projections of residual
            networks. A leaf is a shortcut if every shortest path of the dense network goes through it and some longer
            path does not; where parallel branches are equally long, none is a shortcut.
    """

    layers: tuple[LayerConnectivity, ...]
    log_paths: float
    density: float
    effective_density: float
    collapsed: tuple[str, ...]
    dead_shortcuts: tuple[str, ...]

    @property
    def parameters(self) -> int:
        """The number of prunable weights that are kept and lie on a path from an input to an output."""
        return sum(layer.live for layer in self.layers)

    @property
    def units(self) -> int:
        """The number of output units with at least one live weight, summed over the prunable leaves."""
        return sum(layer.live_units for layer in self.layers)


def effective_mask(
    apply: Callable[..., Any],
    params: Params,
    x_like: XLike,
    *,
    mask: Mask | None = None,
    state: Any = None,
    biases: bool = False,
    prunable: Prunable | None = None,
) -> Mask:
    """Take the dead weights out of a mask: it then keeps only weights on a path from an input to an output.

    Removing dead weights leaves the outputs as they are, with one exception: weights that carry a bias to an output
    and that no input reaches. Pass `biases=True` to keep those too. Only the mask is read, not the values of the
    weights; a constant 0 in the network ends a path. Leaves that `prunable` does not choose, by default all that
    are no kernels (`paths.kernels`), are True throughout; with `prunable=lambda key_path, leaf: True` the biases
    and scales of dead units are removed too. Idempotent. The passes replace every result by whether it is positive,
    so that no depth overflows.

    Cost: three forward and backward passes, or one with `biases`; loops (`scan`) are unrolled. With a `state` (see
    `pathjax.types`) the network is `apply(params, state, x)`. Works under `jit` and `vmap`.

    Raises UnsupportedPrimitive where a layer is not piecewise linear, ValueError for a mask of another tree and
    TypeError for one that is not boolean.

    >>> import jax.numpy as jnp
    >>> def apply(params, x):
    ...     return jnp.maximum(x @ params["first"], 0) @ params["second"]
    >>> mask = {"first": jnp.array([[True, False, True]]), "second": jnp.array([[True], [True], [False]])}
    >>> params = {"first": jnp.ones((1, 3)), "second": jnp.ones((3, 1))}
    >>> live = effective_mask(apply, params, jnp.zeros((5, 1)), mask=mask)
    >>> live["first"].tolist(), live["second"].ravel().tolist()  # units 1 and 2 lack a weight in front or behind
    ([[True, False, False]], [True, False, False])
    """
    mask = check_mask(mask, params)
    network = traced(apply, params, state)
    dense = jax.tree.map(lambda leaf: jnp.ones(jnp.shape(leaf), bool), params)
    kept = dense if mask is None else mask
    choose = prunable or network.kernels(one_example(x_like))
    network.path_program(one_example(x_like))  # what is refused is refused before anything is compiled

    def on_paths(kept: Mask, *, constants: bool) -> Mask:
        return network.compiled(_on_paths, example=one_example(x_like), constants=constants)(kept)

    live = on_paths(kept, constants=True) if biases else _live_from_inputs(on_paths, kept, dense)
    leaves = [bool(choose(path, leaf)) for path, leaf in tree_flatten_with_path(params)[0]]
    is_prunable = jax.tree.unflatten(jax.tree.structure(params), leaves)
    return jax.tree.map(lambda may_prune, alive: alive | (not may_prune), is_prunable, live)


def connectivity(
    apply: Callable[..., Any],
    params: Params,
    x_like: XLike,
    *,
    mask: Mask | None = None,
    state: Any = None,
    prunable: Prunable | None = None,
) -> Connectivity:
    """What a mask leaves of a network, counted: paths, live weights and units, collapsed layers and dead shortcuts.

    Only paths that start at an input count: a layer reached by biases alone is collapsed. The values of the mask are
    read, so this does not work under `jit`. Cost, `state`, the default of `prunable` and errors are those of
    `effective_mask`, plus one forward pass.

    >>> import jax.numpy as jnp
    >>> def apply(params, x):  # a block of two layers beside a shortcut with weights of its own
    ...     return jnp.maximum(x @ params["first"], 0) @ params["second"] + x @ params["shortcut"]
    >>> params = {"first": jnp.ones((2, 3)), "second": jnp.ones((3, 4)), "shortcut": jnp.ones((2, 4))}
    >>> mask = {name: jnp.full(leaf.shape, name != "shortcut") for name, leaf in params.items()}
    >>> mask["first"] = mask["first"].at[:, 0].set(False)
    >>> left = connectivity(apply, params, jnp.zeros((5, 2)), mask=mask)
    >>> left.layers[1]
    LayerConnectivity(path="['second']", size=12, kept=12, live=8, units=4, live_units=4)
    >>> round(left.density, 3), round(left.effective_density, 3), left.dead_shortcuts
    (0.615, 0.462, ("['shortcut']",))
    >>> left.parameters, left.units, round(2.71828**left.log_paths)  # live weights and units, and paths
    (12, 6, 16)
    """
    network = traced(apply, params, state)
    choose = prunable or network.kernels(one_example(x_like))
    live = effective_mask(network, params, x_like, mask=mask, prunable=choose)
    kept = jax.tree.map(lambda leaf: jnp.ones(jnp.shape(leaf), bool), params) if mask is None else mask
    paths = [path for path, _ in tree_flatten_with_path(params)[0]]
    layers = {
        index: _layer(keystr(path), np.asarray(keep), np.asarray(alive))
        for index, (path, keep, alive) in enumerate(
            zip(paths, jax.tree.leaves(kept), jax.tree.leaves(live), strict=True)
        )
        if choose(path, keep)
    }
    size = max(1, sum(layer.size for layer in layers.values()))
    collapsed = [index for index, layer in layers.items() if layer.size and not layer.live]
    shortcuts = _shortcuts(network, x_like)
    return Connectivity(
        layers=tuple(layers.values()),
        log_paths=float(network.compiled(_log_paths, example=one_example(x_like))(params, kept)),
        density=sum(layer.kept for layer in layers.values()) / size,
        effective_density=sum(layer.live for layer in layers.values()) / size,
        collapsed=tuple(layers[index].path for index in collapsed),
        dead_shortcuts=tuple(layers[index].path for index in collapsed if index in shortcuts),
    )


def _layer(path: str, kept: np.ndarray, live: np.ndarray) -> LayerConnectivity:
    units = kept.shape[-1] if kept.ndim else 1
    unit_is_live = live.reshape(math.prod(live.shape[:-1]), units).any(axis=0)
    return LayerConnectivity(path, kept.size, int(kept.sum()), int(live.sum()), units, int(unit_is_live.sum()))


def _on_paths(network: TracedNetwork, kept: Mask, *, example: jax.ShapeDtypeStruct, constants: bool) -> Mask:
    """Which kept weights lie on a path from an input or, with `constants`, from an input or a bias."""
    program = network.path_program(example)

    def live_outputs(kept: Params) -> Array:
        weights = [Reached(jnp.zeros_like(leaf), leaf) for leaf in jax.tree.leaves(kept)]
        source = jnp.ones(example.shape, jnp.float32)
        output = interpret(program, Reach(), weights, Reached(source, jnp.zeros_like(source)))
        return jnp.sum(output.inputs) + (jnp.sum(output.constants) if constants else 0.0)

    slopes = jax.grad(live_outputs)(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), kept))
    return jax.tree.map(lambda keep, slope: keep & (slope > 0), kept, slopes)


def _live_from_inputs(on_paths: Callable[..., Mask], kept: Mask, dense: Mask) -> Mask:
    """The kept weights on a path from an input, and the kept biases of units on such a path."""
    live = on_paths(kept, constants=False)
    # No path leads from an input through a bias: even the dense network has none. A bias is live if a path leads from
    # it through live weights to an output.
    is_bias = jax.tree.map(jnp.logical_not, on_paths(dense, constants=False))
    live_or_bias = jax.tree.map(lambda alive, bias, keep: alive | (bias & keep), live, is_bias, kept)
    return on_paths(live_or_bias, constants=True)


def _log_paths(network: TracedNetwork, params: Params, kept: Mask, *, example: jax.ShapeDtypeStruct) -> Array:
    """Logarithm of the number of kept paths that start at an input."""
    weights, ones = lift_weights(params, jnp.ones_like, kept), ones_like_example(example)
    program = network.path_program(example)

    def count(x: Array) -> tuple[Array, Any]:
        sums = lift(program, weights, x, phi=absolute_power(0))
        return jnp.sum(sums.array), sums.exponent

    # the count is affine in the inputs: its derivative along them leaves out the constant part, the paths from biases
    _, paths, exponent = jax.jvp(count, (ones,), (ones,), has_aux=True)
    return Scaled(paths, exponent).log_abs()


def _shortcuts(network: TracedNetwork, x_like: XLike) -> frozenset[int]:
    """Indices of the leaves that lie on every shortest path, but not on every path."""
    program = network.path_program(one_example(x_like))
    leaves = range(len(jax.tree.leaves(network.params_like)))
    weights = [Branch(False, 1, frozenset([index]), frozenset([index])) for index in leaves]
    output = interpret(program, Branches(), weights, Branch(True, 0, frozenset(), frozenset()))
    return output.shortest - output.every
