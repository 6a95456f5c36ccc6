"""Whether a network treats its examples apart: paths are those of one example, so mixing examples is refused.

A walk that follows one thing only: along which axis of a value the examples lie. A mean over the batch, a flip of it
or a gate that reads another example ends it, whatever the values are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import jax

from pathjax._jaxpr import Equation, Program, Refusal, UnsupportedPrimitive, trace, walk
from pathjax.types import ApplyFn, Params, XLike

__all__ = ["mixtures", "trace_apart"]


class Lying(NamedTuple):
    """Examples lie along `axis`: index i there belongs to example (i // inner) mod the number of examples."""

    axis: int
    inner: int = 1


Where: TypeAlias = Lying | None
"""Where the examples of a value lie; None where it is the same for all."""


@dataclass
class Following:
    """One equation, with the places of its operands' examples."""

    equation: Equation
    places: Sequence[Where]
    walk: _Follower

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the first operand."""
        return tuple(self.equation.inputs[0].shape)

    def joined(self) -> Where:
        """The one place that all operands agree on."""
        return _agreed(self, self.places)

    def mixed(self) -> UnsupportedPrimitive:
        return self.equation.refuse(
            "It mixes the examples of a batch, as batch statistics do; paths are those of one example.",
            "Let every example go through the network alone, with running statistics for instance.",
        )

    def untouched(self, place: Where, axes: Sequence[Any]) -> Where:
        """The place, which must not lie along one of these axes, whole numbers of Python or NumPy."""
        if place is not None and place.axis in axes:
            raise self.mixed()
        return place

    def inside(self, program: Any, places: Sequence[Where]) -> list[Where]:
        """The places of the results of a program that the equation holds."""
        return self.walk.run(program, places, (*self.equation.callers, self.equation.source))


def _agreed(at: Following, places: Iterable[Where]) -> Where:
    """The one place among these, if any lies along an axis."""
    found = {place for place in places if place is not None}
    if len(found) > 1:
        raise at.mixed()
    return next(iter(found), None)


Rule: TypeAlias = Callable[[Following], "Where | list[Where]"]


def trace_apart(apply: ApplyFn, params: Params, x: XLike) -> Program:
    """The equations of `apply(params, x)`; raises UnsupportedPrimitive where examples are mixed."""
    program = trace(apply, params, x)
    for refusal in mixtures(apply, params, program, x):
        raise refusal.error
    return program


def mixtures(apply: ApplyFn, params: Params, program: Program, x: XLike) -> list[Refusal]:
    """Every equation of a traced network that mixes examples. Where it was traced for one, it is traced for two."""
    if program.input_shape[0] < 2:
        program = trace(apply, params, jax.ShapeDtypeStruct((2, *x.shape[1:]), x.dtype))
    follow = _Follower(program.input_shape[0])
    arguments: list[Where] = [None] * len(program.parameter_shapes)
    (output,) = follow.run(program.closed, [*arguments, Lying(0)])
    if not follow.refusals and output not in (None, Lying(0)):
        follow.refusals.append(Refusal("output", UnsupportedPrimitive(_OUT_OF_ORDER)))
    return follow.refusals


_OUT_OF_ORDER = (
    "The outputs (n, o) are not in the order of the examples (n, ...): `apply` moves entries from one example to "
    "another. Let every example go through the network alone."
)


@dataclass
class _Follower:
    """The walk: how many examples there are, and where they were mixed."""

    examples: int
    refusals: list[Refusal] = field(default_factory=list)

    def run(self, program: Any, places: Sequence[Where], callers: tuple[Any, ...] = ()) -> list[Where]:
        return walk(program, places, step=self.step, constant=lambda _: None, callers=callers)

    def step(self, equation: Equation, places: list[Where]) -> list[Where]:
        if not any(places):
            return [None for _ in equation.outputs]
        try:
            result = _RULES.get(equation.name, _elementwise)(Following(equation, places, self))
        except UnsupportedPrimitive as error:
            self.refusals.append(Refusal(equation.layer, error))
            result = None
        return result if isinstance(result, list) else [result for _ in equation.outputs]


def _elementwise(at: Following) -> Where:
    """Entry by entry. What changes the shape otherwise has no path rule, so that nothing needs to be known of it."""
    place = at.joined()
    like = next(like for like, found in zip(at.equation.inputs, at.places, strict=True) if found is not None)
    return place if like.shape == at.equation.outputs[0].shape else None


def _each(at: Following) -> list[Where]:
    """Operands that only pass."""
    return list(at.places)


def _broadcast(at: Following) -> Where:
    place = at.joined()
    return place and place._replace(axis=int(at.equation.params["broadcast_dimensions"][place.axis]))


def _reshape(at: Following) -> Where:
    """Entries keep their order, so the distance between neighbouring examples stays what it was."""
    place = at.joined()
    if place is None:
        return None
    distance = place.inner * math.prod(at.shape[place.axis + 1 :])
    below = 1
    sizes = at.equation.outputs[0].shape
    for axis, size in reversed(list(enumerate(sizes))):
        inner, rest = divmod(distance, below)
        if not rest and size % (inner * at.walk.examples) == 0:
            return Lying(axis, inner)
        below *= size
    raise at.mixed()


def _transpose(at: Following) -> Where:
    place = at.joined()
    return place and place._replace(axis=list(at.equation.params["permutation"]).index(place.axis))


def _dropped(name: str) -> Rule:
    """Axes go, or are united."""

    def rule(at: Following) -> Where:
        axes = at.equation.params[name]
        place = at.untouched(at.joined(), axes)
        return place and place._replace(axis=place.axis - sum(axis < place.axis for axis in axes))

    return rule


def _along(name: str) -> Rule:
    """Acts along the axes that a parameter names, and keeps their places."""

    def rule(at: Following) -> Where:
        axes = at.equation.params[name]
        return at.untouched(at.joined(), axes if isinstance(axes, Sequence) else [axes])

    return rule


def _kept_whole(at: Following) -> Where:
    """Cuts or pads: the examples' axis must stay as it is."""
    place = at.joined()
    changed = [
        axis
        for axis, (before, after) in enumerate(zip(at.shape, at.equation.outputs[0].shape, strict=True))
        if before != after
    ]
    return at.untouched(place, changed)


def _pad(at: Following) -> Where:
    padded = [axis for axis, width in enumerate(at.equation.params["padding_config"]) if any(width)]
    return at.untouched(at.places[0], padded)


def _window(at: Following) -> Where:
    params = at.equation.params
    wide = [axis for axis, size in enumerate(params["window_dimensions"]) if size > 1]
    stepped = [axis for axis, step in enumerate(params["window_strides"]) if step > 1]
    return at.untouched(at.joined(), [*wide, *stepped])


def _dot(at: Following) -> Where:
    contracted, batched = at.equation.params["dimension_numbers"]
    found: list[Where] = []
    passed = 0  # free axes of the operands before
    for place, like, gone, shared in zip(at.places, at.equation.inputs, contracted, batched, strict=True):
        free = [axis for axis in range(like.ndim) if axis not in (*gone, *shared)]
        at.untouched(place, gone)
        order = [*shared, *[None] * passed, *free]  # of the result's axes, as this operand's
        found.append(place and place._replace(axis=order.index(place.axis)))
        passed += len(free)
    return _agreed(at, found)


def _conv(at: Following) -> Where:
    images, kernels = at.places
    numbers = at.equation.params["dimension_numbers"]
    if kernels is not None or (images is not None and images.axis != numbers.lhs_spec[0]):
        raise at.mixed()
    return images and images._replace(axis=numbers.out_spec[0])


def _gather(at: Following) -> Where:
    place, indices = at.places
    if place is None or indices is not None:
        return None  # an index that depends on x has no path rule
    params = at.equation.params
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    at.untouched(place, [axis for axis, size in enumerate(sizes) if axis in gone or size != at.shape[axis]])
    rank = sum(axis not in gone for axis in range(place.axis))
    return place._replace(axis=int(sorted(numbers.offset_dims)[rank]))


def _scatter(at: Following) -> Where:
    operand, indices, updates = at.places
    if indices is not None:
        return None
    numbers = at.equation.params["dimension_numbers"]
    gone = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
    window = [axis for axis in range(len(at.shape)) if axis not in gone]
    axes = sorted(numbers.update_window_dims)
    if updates is not None and updates.axis not in axes:
        raise at.mixed()
    moved = updates and updates._replace(axis=window[axes.index(updates.axis)])
    sizes = [at.equation.inputs[2].shape[axis] for axis in axes]
    whole = {axis for axis, size in zip(window, sizes, strict=True) if size == at.shape[axis]}
    return at.untouched(_agreed(at, [operand, moved]), [axis for axis in range(len(at.shape)) if axis not in whole])


def _dynamic_slice(at: Following) -> Where:
    return at.places[0] if any(at.places[1:]) else _kept_whole(at)


def _dynamic_update(at: Following) -> Where:
    place = at.joined()
    update = at.equation.inputs[1].shape
    return at.untouched(place, [axis for axis, size in enumerate(at.shape) if update[axis] != size])


def _stack(at: Following) -> Where:
    place, new = at.joined(), at.equation.params["axis"]
    return place and place._replace(axis=place.axis + (new <= place.axis))


def _scan(at: Following) -> list[Where]:
    """A loop over layers, or over examples: that one may hand nothing from one to the next."""
    params = at.equation.params
    split = params["num_consts"], params["num_consts"] + params["num_carry"]
    consts, carry, stacked = at.places[: split[0]], list(at.places[split[0] : split[1]]), at.places[split[1] :]
    over_examples = any(place is not None and place.axis == 0 for place in stacked)
    if over_examples and (carry or any(place not in (None, Lying(0)) for place in stacked)):
        raise at.mixed()
    slices = [None if over_examples or place is None else place._replace(axis=place.axis - 1) for place in stacked]
    while True:
        results = at.inside(params["jaxpr"], [*consts, *carry, *slices])
        after = [old if new is None else new for old, new in zip(carry, results, strict=False)]
        if after == carry:
            break
        if any(old not in (None, new) for old, new in zip(carry, after, strict=True)):
            raise at.mixed()
        carry = after
    collected = results[len(carry) :]
    if over_examples:
        return [Lying(0) for _ in collected]
    return [*carry, *(place and place._replace(axis=place.axis + 1) for place in collected)]


def _cond(at: Following) -> list[Where]:
    """Any of the branches."""
    which, *operands = at.places
    branches = [at.inside(branch, operands) for branch in at.equation.params["branches"]]
    return [_agreed(at, [which, *places]) for places in zip(*branches, strict=True)]


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
    **dict.fromkeys(("slice", "split", "tile"), _kept_whole),
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
