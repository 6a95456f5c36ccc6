"""Whether a network treats its examples apart: paths are those of one example, so mixing examples is refused.

A walk that follows one thing only: along which axis of a value the examples lie. A mean over the batch, a flip of it
or a gate that reads another example ends it, whatever the values are.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from pathjax._interpreter.jaxpr import Equation, Program, Refusal, UnsupportedPrimitive, is_concrete, walk

__all__ = ["mixtures"]


class Lying(NamedTuple):
    """Examples lie along `axis`: index i there belongs to example (i // inner) mod the number of examples."""

    axis: int
    inner: int = 1


class Same(NamedTuple):
    """It has nothing of the examples in it; along the `even` axes all its entries are one."""

    even: frozenset[int] = frozenset()


Where: TypeAlias = Lying | Same


@dataclass
class Following:
    """One equation, with the places of its operands' examples."""

    equation: Equation
    places: Sequence[Where]
    walk: _Follower

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shape of each operand."""
        return [tuple(like.shape) for like in self.equation.inputs]

    def agreed(self, places: Sequence[Where]) -> Where:
        """The one place of values that are joined axis by axis: what has no examples must be even across them."""
        lying = {place for place in places if isinstance(place, Lying)}
        if not lying:
            return Same(frozenset.intersection(*(place.even for place in places if isinstance(place, Same))))
        place = next(iter(lying))
        if len(lying) > 1 or any(isinstance(same, Same) and place.axis not in same.even for same in places):
            raise self.mixed()
        return place

    def mixed(self) -> UnsupportedPrimitive:
        return self.equation.refuse(
            "It mixes the examples of a batch, or tells them apart by their position, as batch statistics do; paths "
            "are those of one example.",
            "Let every example go through the network alone, with running statistics for instance.",
        )

    def untouched(self, place: Where, axes: Sequence[Any]) -> Where:
        """The place, which must not lie along one of these axes, whole numbers of Python or NumPy."""
        if isinstance(place, Same):
            return Same(place.even.difference(axes))
        if place.axis in axes:
            raise self.mixed()
        return place

    def inside(self, program: Any, places: Sequence[Where]) -> list[Where]:
        """The places of the results of a program that the equation holds."""
        return self.walk.run(program, places, (*self.equation.callers, self.equation.source))


Rule: TypeAlias = Callable[[Following], "Where | list[Where]"]


def _renamed(place: Where, axes: dict[int, int]) -> Where:
    """The place where axes have new numbers; what is even along an axis that is gone need not be kept."""
    if isinstance(place, Lying):
        return place._replace(axis=axes[place.axis])
    return Same(frozenset(axes[axis] for axis in place.even if axis in axes))


def mixtures(program: Program) -> list[Refusal]:
    """Every equation that mixes examples, of a network traced for two examples or more."""
    follow = _Follower(program.input_shape[0])
    arguments: list[Where] = [Same() for _ in program.parameter_shapes]
    (output,) = follow.run(program.closed, [*arguments, Lying(0)])
    if not follow.refusals and output != Lying(0) and 0 not in getattr(output, "even", ()):
        follow.refusals["output"] = Refusal("output", UnsupportedPrimitive(_OUT_OF_ORDER))
    return list(follow.refusals.values())


_OUT_OF_ORDER = (
    "The outputs (n, o) are not in the order of the examples (n, ...): `apply` moves entries from one example to "
    "another. Let every example go through the network alone."
)


@dataclass
class _Follower:
    """The walk: how many examples there are, and where they were mixed."""

    examples: int
    refusals: dict[str, Refusal] = field(default_factory=dict)  # by message: loops are walked more than once

    def run(self, program: Any, places: Sequence[Where], callers: tuple[Any, ...] = ()) -> list[Where]:
        return walk(program, places, step=self.step, constant=_constant, callers=callers)

    def step(self, equation: Equation, places: list[Where]) -> list[Where]:
        try:
            result = _RULES.get(equation.name, _elementwise)(Following(equation, places, self))
        except UnsupportedPrimitive as error:
            self.refusals.setdefault(str(error), Refusal(equation.layer, error))
            result = _ANYTHING
        return result if isinstance(result, list) else [result for _ in equation.outputs]


_ANYTHING = Same(frozenset(range(64)))  # even along any axis, so that what follows a refusal is not refused again


def _constant(value: Any) -> Where:
    """What the network closes over, even along the axes where its entries are known to be one."""
    if not is_concrete(value) or jnp.issubdtype(jnp.result_type(value), jax.dtypes.prng_key):
        return Same()  # traced, or a random key
    array = np.asarray(value)
    axes = (
        axis for axis in range(array.ndim) if np.all(array == np.moveaxis(np.moveaxis(array, axis, 0)[:1], 0, axis))
    )
    return Same(frozenset(axes))


def _elementwise(at: Following) -> Where:
    """Entry by entry; scalars, and axes of size 1, with every entry. What else changes shapes has no path rule."""
    shape = at.equation.outputs[0].shape
    arrays = [(place, own) for place, own in zip(at.places, at.shapes, strict=True) if own]
    if (shape and not arrays) or any(len(own) != len(shape) for _, own in arrays):
        return Same()
    everywhere = Same(frozenset(range(len(shape))))
    return at.agreed([everywhere, *(_spread(place, own, shape) for place, own in arrays)])


def _spread(place: Where, own: Sequence[int], shape: Sequence[int]) -> Where:
    """The place in an array of a shape, to which axes of size 1 are spread."""
    if isinstance(place, Lying):
        return place
    return Same(
        place.even | {axis for axis, (before, after) in enumerate(zip(own, shape, strict=True)) if before != after}
    )


def _each(at: Following) -> list[Where]:
    """Operands that only pass."""
    return list(at.places)


def _broadcast(at: Following) -> Where:
    (place, *_), (shape, *_) = at.places, at.shapes
    to = at.equation.params["broadcast_dimensions"]
    found = _renamed(place, dict(enumerate(map(int, to))))
    if isinstance(found, Lying):
        return found
    sizes = at.equation.outputs[0].shape
    spread = {axis for axis in range(len(sizes)) if axis not in to or shape[list(to).index(axis)] != sizes[axis]}
    return Same(found.even | spread)


def _reshape(at: Following) -> Where:
    """Entries keep their order, so the distance between neighbouring examples stays what it was."""
    (place,), (shape,) = at.places, at.shapes
    order = at.equation.params["dimensions"] or range(len(shape))
    place, shape = _renamed(place, {axis: new for new, axis in enumerate(order)}), tuple(shape[axis] for axis in order)
    sizes = at.equation.outputs[0].shape
    if isinstance(place, Same):
        return _reshaped_evenly(place, shape, sizes)
    distance = place.inner * _count(shape[place.axis + 1 :])
    below = 1
    for axis, size in reversed(list(enumerate(sizes))):
        inner, rest = divmod(distance, below)
        if not rest and inner and max(size, 1) % (inner * at.walk.examples) == 0:
            return Lying(axis, inner)
        below *= max(size, 1)
    raise at.mixed()


def _reshaped_evenly(place: Same, before: Sequence[int], after: Sequence[int]) -> Same:
    """Axes that stay as they are, with the same sizes before and behind them, stay even; so does all of one number."""
    if len(place.even) == len(before):
        return Same(frozenset(range(len(after))))
    even = {(before[axis], _count(before[axis + 1 :])) for axis in place.even}
    return Same(frozenset(axis for axis, size in enumerate(after) if (size, _count(after[axis + 1 :])) in even))


def _count(sizes: Sequence[int]) -> int:
    """The number of entries, an axis without any counted as one."""
    return math.prod(max(size, 1) for size in sizes)


def _transpose(at: Following) -> Where:
    return _renamed(at.places[0], {int(axis): new for new, axis in enumerate(at.equation.params["permutation"])})


def _dropped(name: str) -> Rule:
    """Axes go, or are united."""

    def rule(at: Following) -> Where:
        gone = at.equation.params[name]
        kept = [axis for axis in range(len(at.shapes[0])) if axis not in gone]
        return _renamed(at.untouched(at.places[0], gone), {axis: new for new, axis in enumerate(kept)})

    return rule


def _along(name: str) -> Rule:
    """Acts along the axes that a parameter names, and keeps their places."""

    def rule(at: Following) -> Where:
        axes = at.equation.params[name]
        return at.untouched(at.agreed(at.places), axes if isinstance(axes, Sequence) else [axes])

    return rule


def _kept_whole(at: Following) -> Where:
    """Cuts: the examples' axis must stay as it is."""
    sizes = zip(at.shapes[0], at.equation.outputs[0].shape, strict=True)
    return at.untouched(at.places[0], [axis for axis, (before, after) in enumerate(sizes) if before != after])


def _tile(at: Following) -> Where:
    """Copies one after another, in which examples come in the same order again."""
    return at.places[0]


def _pad(at: Following) -> Where:
    return at.untouched(at.places[0], [axis for axis, w in enumerate(at.equation.params["padding_config"]) if any(w)])


def _window(at: Following) -> Where:
    params = at.equation.params
    names = ("window_dimensions", "window_strides", "base_dilation")
    moving = [axis for name in names for axis, size in enumerate(params[name]) if size != 1]
    return at.untouched(at.places[0], [*moving, *(axis for axis, w in enumerate(params["padding"]) if any(w))])


def _dot(at: Following) -> Where:
    contracted, batched = at.equation.params["dimension_numbers"]
    found: list[Where] = []
    passed, rank = 0, len(at.equation.outputs[0].shape)  # free axes of the operands before; of the result
    for place, shape, gone, shared in zip(at.places, at.shapes, contracted, batched, strict=True):
        free = [axis for axis in range(len(shape)) if axis not in (*gone, *shared)]
        order = [*shared, *[None] * passed, *free]  # of the result's axes, as this operand's
        moved = _renamed(at.untouched(place, gone), {axis: new for new, axis in enumerate(order) if axis is not None})
        others = frozenset(range(rank)) - {new for new, axis in enumerate(order) if axis is not None}
        found.append(Same(moved.even | others) if isinstance(moved, Same) else moved)
        passed += len(free)
    return at.agreed(found)


def _conv(at: Following) -> Where:
    images, kernels = at.places
    numbers = at.equation.params["dimension_numbers"]
    if isinstance(kernels, Lying) or (isinstance(images, Lying) and images.axis != numbers.lhs_spec[0]):
        raise at.mixed()
    return _renamed(images, {numbers.lhs_spec[0]: numbers.out_spec[0]})


def _gather(at: Following) -> Where:
    (place, indices), (shape, *_) = at.places, at.shapes
    params = at.equation.params
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    if isinstance(place, Lying) and place.axis in numbers.operand_batching_dims:
        # every example reads entries of its own; which ones must not depend on its position
        paired = numbers.start_indices_batching_dims[numbers.operand_batching_dims.index(place.axis)]
        others = [axis for axis in range(len(at.equation.outputs[0].shape)) if axis not in numbers.offset_dims]
        at.agreed([Lying(int(paired)), indices])
        return place._replace(axis=others[paired])
    if isinstance(indices, Lying):
        return Same()  # an index that depends on x has no path rule
    at.untouched(place, [axis for axis, size in enumerate(sizes) if axis in gone or size != shape[axis]])
    kept = [axis for axis in range(len(shape)) if axis not in gone]
    return _renamed(place, dict(zip(kept, map(int, sorted(numbers.offset_dims)), strict=True)))


def _scatter(at: Following) -> Where:
    operand, indices, updates = at.places
    if isinstance(indices, Lying):
        return Same()
    shape, _, parts = at.shapes
    numbers = at.equation.params["dimension_numbers"]
    gone = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
    window = [axis for axis in range(len(shape)) if axis not in gone]
    axes = dict(zip(map(int, sorted(numbers.update_window_dims)), window, strict=True))
    at.untouched(updates, [axis for axis in range(len(parts)) if axis not in axes])
    whole = {axis for part, axis in axes.items() if parts[part] == shape[axis]}
    return at.untouched(
        at.agreed([operand, _renamed(updates, axes)]), [axis for axis in range(len(shape)) if axis not in whole]
    )


def _dynamic_slice(at: Following) -> Where:
    return Same() if any(isinstance(place, Lying) for place in at.places[1:]) else _kept_whole(at)


def _dynamic_update(at: Following) -> Where:
    if any(isinstance(place, Lying) for place in at.places[2:]):
        return Same()
    shape, part, *_ = at.shapes
    return at.untouched(at.agreed(at.places[:2]), [axis for axis, size in enumerate(shape) if part[axis] != size])


def _stack(at: Following) -> Where:
    place, new = at.agreed(at.places), at.equation.params["axis"]
    return _renamed(place, {axis: axis + (new <= axis) for axis in range(len(at.shapes[0]))})


def _scan(at: Following) -> list[Where]:
    """A loop over layers, or over examples."""
    consts, carry, stacked = at.equation.loop_operands(at.places)
    if any(isinstance(place, Lying) and place.axis == 0 for place in stacked):
        return _scan_examples(at, consts, carry, stacked)
    slices = [_slice(place) for place in stacked]
    body = at.equation.params["jaxpr"]
    while True:
        results = at.inside(body, [*consts, *carry, *slices])
        after = [_either(old, new) for old, new in zip(carry, results, strict=False)]
        if after == carry:
            break
        if any(isinstance(old, Lying) and old != new for old, new in zip(carry, after, strict=True)):
            raise at.mixed()
        carry = after
    shapes = [like.shape for like in at.equation.outputs[len(carry) :]]
    pairs = zip(results[len(carry) :], shapes, strict=True)
    return [*carry, *(_renamed(place, {axis: axis + 1 for axis in range(len(shape))}) for place, shape in pairs)]


def _scan_examples(
    at: Following, consts: Sequence[Where], carry: Sequence[Where], stacked: Sequence[Where]
) -> list[Where]:
    """One example at a time: nothing may go round, or come in that tells examples apart."""
    at.agreed([*stacked, Lying(0)])
    if carry or any(isinstance(place, Lying) for place in consts):
        raise at.mixed()
    results = at.inside(at.equation.params["jaxpr"], [*consts, *(Same() for _ in stacked)])
    return [Lying(0) for _ in results]


def _slice(place: Where) -> Where:
    """The place in one step's slice."""
    if isinstance(place, Lying):
        return place._replace(axis=place.axis - 1)
    return Same(frozenset(axis - 1 for axis in place.even if axis))


def _either(old: Where, new: Where) -> Where:
    """Where a carry's examples lie, at first or later."""
    if isinstance(old, Same) and isinstance(new, Same):
        return Same(old.even & new.even)
    return old if isinstance(new, Same) else new


def _cond(at: Following) -> list[Where]:
    """Any of the branches."""
    which, *operands = at.places
    branches = [at.inside(branch, operands) for branch in at.equation.params["branches"]]
    return [functools.reduce(_either, places) for places in zip(*branches, strict=True)]


_RULES: dict[str, Rule] = {
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "transpose": _transpose,
    "squeeze": _dropped("dimensions"),
    **dict.fromkeys(("reduce_sum", "reduce_max", "reduce_min"), _dropped("axes")),
    **dict.fromkeys(("argmax", "argmin"), _dropped("axes")),
    "rev": _along("dimensions"),
    "concatenate": _along("dimension"),
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"), _along("axis")),
    "sort": _along("dimension"),
    **dict.fromkeys(("slice", "split"), _kept_whole),
    "tile": _tile,
    "pad": _pad,
    **dict.fromkeys(("reduce_window_sum", "reduce_window_max", "reduce_window_min"), _window),
    "dot_general": _dot,
    "conv_general_dilated": _conv,
    "gather": _gather,
    **dict.fromkeys(("scatter", "scatter-add"), _scatter),
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update,
    "stack": _stack,
    "optimization_barrier": _each,
    "scan": _scan,
    "cond": _cond,
}
