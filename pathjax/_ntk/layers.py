"""Dense layers and convolutions as products of matrices, and which of their weights lie on a path."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pathjax._interpreter.jaxpr import Equation, Program, UnsupportedPrimitive, is_concrete, walk
from pathjax._interpreter.reach import Reach, Reached
from pathjax._interpreter.rules import interpret
from pathjax._interpreter.windows import Windows, entries_of_windows
from pathjax._ntk.contractions import Matrices, Survivors
from pathjax._ntk.uses import Known, Use, Uses

__all__ = ["Layer", "as_layer", "live"]


@dataclasses.dataclass(frozen=True)
class Shaper:
    """How a layer is a product of matrices.

    Attributes:
        activations: the operand (n, ...) that depends on data as (n, b, t, k).
        cotangents: those of the result (n, o, ...) as (n, o, b, t, f).
        weights: an array like the other operand as (b, k, f).
    """

    activations: Callable[[Any], Any]
    cotangents: Callable[[Any], Any]
    weights: Callable[[Any], Any]


class Layer(NamedTuple):
    """A dense or a convolutional layer as products of matrices.

    Attributes:
        shaper: how it is one.
        has_bias: whether it has a bias that is a further row of its weights, with activations of 1.
        survivors: its inputs, outputs and weights that a mask leaves.
    """

    shaper: Shaper
    has_bias: bool
    survivors: Survivors

    def matrices(self, activations: Any, cotangents: Any) -> Matrices:
        """The layer on a batch."""
        a, c = self.shaper.activations(activations), self.shaper.cotangents(cotangents)
        if self.has_bias:
            a = jnp.concatenate([a, jnp.ones((*a.shape[:-1], 1), a.dtype)], axis=-1)
        return self.survivors.matrices(a, c)


def as_layer(uses: Uses, use: Use, mask: Sequence[Any] | None) -> Layer | None:
    """The use as a layer; None if it is no dense or convolutional layer whose weights each stand in one place."""
    shapers = {"dot_general": _of_dot, "conv_general_dilated": _of_conv}
    if use.equation.name not in shapers or len(use.weights) != 1:
        return None
    (weights,), shaper = use.weights, shapers[use.equation.name](use)
    shares_leaf = use.bias is not None and weights.leaves & use.bias.leaves
    if shaper is None or shares_leaf or not uses.is_moved(weights):
        return None
    order = None if use.bias is None else _order_of_bias(uses, use.bias, shaper)
    kept = None if mask is None else _kept(use, shaper, order, mask)
    return Layer(shaper, order is not None, Survivors.read(kept))


def _kept(use: Use, shaper: Shaper, order: Any, mask: Sequence[Any]) -> Any:
    """The kept weights (b, k, f) of a layer, those of its bias in a last row; known where the mask is."""
    (weights,) = use.weights
    (leaf,) = weights.leaves
    kept = shaper.weights(_moved(weights, mask[leaf]))
    if use.bias is None or order is None:
        return kept
    (leaf,) = use.bias.leaves
    row = mask[leaf].reshape(-1)[order][:, None]
    return (np if is_concrete(kept) and is_concrete(row) else jnp).concatenate([kept, row], axis=1)


def _order_of_bias(uses: Uses, addition: Use, shaper: Shaper) -> Any:
    """The position (b, f) in its leaf of the bias of each output; None unless it is one number for each output."""
    (bias,), (out,) = addition.weights, addition.equation.outputs
    if bias.moves is None:
        return None
    (leaf,) = (uses.leaves[i] for i in bias.leaves)
    positions = np.broadcast_to(_moved(bias, np.arange(leaf.size).reshape(leaf.shape)), out.shape)
    order = shaper.cotangents(positions[None, None])[0, 0]
    is_bias = (order == order[:, :1]).all() and np.array_equal(np.sort(order[:, 0], axis=None), np.arange(leaf.size))
    return order[:, 0] if is_bias else None


def _moved(known: Known, array: Any) -> Any:
    """An array like a leaf with the axes that the equation gives the leaf; known where the array is."""
    assert known.moves is not None
    if not is_concrete(array):
        return known.moves(jnp.asarray(array))
    with jax.ensure_compile_time_eval():
        return np.asarray(known.moves(jnp.asarray(array)))


def _of_dot(use: Use) -> Shaper:
    side = use.operands.index(None)
    contracted, batched = use.equation.params["dimension_numbers"]
    shapes = [like.shape for like in use.equation.inputs]
    free = [
        [axis for axis in range(len(shape)) if axis not in (*summed, *shared)]
        for shape, summed, shared in zip(shapes, contracted, batched, strict=True)
    ]
    b, k, t, f = (
        math.prod(shapes[operand][axis] for axis in axes)
        for operand, axes in (
            (side, batched[side]),
            (side, contracted[side]),
            (side, free[side]),
            (1 - side, free[1 - side]),
        )
    )
    order = [0, *(axis + 1 for axis in (*batched[side], *free[side], *contracted[side]))]
    other = (*batched[1 - side], *contracted[1 - side], *free[1 - side])

    def cotangents(c: Any) -> Any:
        return c.reshape(*c.shape[:2], b, t, f) if side == 0 else c.reshape(*c.shape[:2], b, f, t).swapaxes(3, 4)

    return Shaper(
        lambda a: a.transpose(order).reshape(len(a), b, t, k),
        cotangents,
        lambda weights: weights.transpose(other).reshape(b, k, f),
    )


def _of_conv(use: Use) -> Shaper | None:
    """A convolution as a product with patches, one for each feature group, with the channels last."""
    params = use.equation.params
    if use.operands.index(None) != 0 or params["batch_group_count"] != 1:
        return None
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    features, channels, *window = (use.equation.inputs[1].shape[axis] for axis in numbers.rhs_spec)
    k, f = channels * math.prod(window), features // groups
    windows = Windows(
        sizes=(1, *window, 1),
        strides=(1, *params["window_strides"], 1),
        padding=[(0, 0), *params["padding"], (0, 0)],
        base_dilation=(1, *params["lhs_dilation"], 1),
        window_dilation=(1, *params["rhs_dilation"], 1),
    )

    def activations(a: Any) -> Any:
        images = a.transpose(0, *(axis + 1 for axis in _channels_last(numbers.lhs_spec)))
        patches = entries_of_windows(images.reshape(-1, *images.shape[2:]), windows, axis=-2)
        patches = patches.reshape(len(a), -1, math.prod(window), groups, channels)
        return patches.transpose(0, 3, 1, 2, 4).reshape(len(a), groups, -1, k)

    def cotangents(c: Any) -> Any:
        c = c.transpose(0, 1, *(axis + 2 for axis in _channels_last(numbers.out_spec)))
        return c.reshape(*c.shape[:2], -1, groups, f).swapaxes(2, 3)

    def weights(kernel: Any) -> Any:
        kernel = kernel.transpose(numbers.rhs_spec).reshape(groups, f, channels, -1)
        return kernel.transpose(0, 3, 2, 1).reshape(groups, k, f)

    return Shaper(activations, cotangents, weights)


def _channels_last(spec: Sequence[int]) -> tuple[int, ...]:
    """The axes in the order examples, space, channels; a spec has the order examples, channels, space."""
    return (spec[0], *spec[2:], spec[1])


def live(program: Program, kept: Sequence[Any]) -> Sequence[Any]:
    """The kept weights that lie on a path from an input or a constant to an output: the derivative by others is zero.

    All that are kept, where paths are not defined, where the network has derivative rules of its own or reads a state,
    or where the mask is not known.
    """
    rules: list[Equation] = []
    walk(
        program.closed,
        [None for _ in program.closed.in_avals],
        step=lambda equation, _: [None for _ in equation.outputs],
        constant=lambda _: None,
        enter=rules.append,
    )
    is_floating = jnp.issubdtype(program.closed.in_avals[-1].dtype, jnp.floating)
    # which constants of a state are zero is not known
    has_paths = program.inputs == 1 and is_floating and not program.state and all(rule.is_of_jax for rule in rules)
    if not has_paths or not all(map(is_concrete, kept)):
        return kept

    def live_outputs(kept: Sequence[Any]) -> Any:
        weights = [Reached(jnp.zeros_like(leaf), leaf) for leaf in kept]
        source = jnp.ones(program.input_shape, jnp.float32)
        output = interpret(program, Reach(), weights, Reached(source, jnp.zeros_like(source)))
        return jnp.sum(output.inputs) + jnp.sum(output.constants)

    try:
        with jax.ensure_compile_time_eval():
            slopes = jax.jit(jax.grad(live_outputs))([jnp.asarray(leaf, jnp.float32) for leaf in kept])
            return [np.asarray(keep) & (np.asarray(slope) > 0) for keep, slope in zip(kept, slopes, strict=True)]
    except UnsupportedPrimitive:
        return kept
