"""Second moments of a network's values over random weights, for pairs of examples, and how they move and combine.

Each weight has the mean 0 and a second moment of its own, and all are independent. What depends on a weight is a
`Moments`: for each pair of examples x, x' the expectation E[v(x)_a v(x')_b] of every entry a with itself, and with
other entries b only along those axes where a later sum needs it. What depends on no weight is `Known`: its two values.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pathjax._interpreter.algebra import Undefined
from pathjax._interpreter.known import is_concrete
from pathjax._interpreter.routes import NO_WEIGHT, Route, joint

__all__ = [
    "Axis", "Demand", "Kind", "Known", "Moments", "Outer", "both", "demand_pairs", "diagonal_of", "embedded",
    "factored", "in_kinds", "is_alone", "is_own", "is_zero", "joined", "laid_out", "left_of", "mapped", "mapped_means",
    "means_of", "of_known", "product", "rank", "right_of", "right_position", "spread", "to_store", "without_pairs",
]  # fmt: skip


class Kind(enum.Enum):
    """Which second moments of the entries along an axis are stored.

    A second moment is the expected product of two entries, one at the first example of a pair and one at the second.
    """

    SAME = "same"
    """All entries are equal. One moment is stored for all."""
    ALIKE = "alike"
    """Entries are different, but all have the same moment with themselves. That one is stored."""
    EACH = "each"
    """The moment of each entry with itself is stored."""
    PAIRS = "pairs"
    """The moments of every two entries are stored. The second entry has an axis of its own, the right axis."""


class Axis(NamedTuple):
    """An axis of a value.

    Attributes:
        size: its length in the network.
        kind: how it is stored.
        labels: where its entries come from: what must be `Kind.PAIRS` there so that it can be here.
    """

    size: int
    kind: Kind
    labels: frozenset[Any] = frozenset()


class Demand(Exception):
    """A sum needs moments of every two entries along axes that come from those with these labels."""

    def __init__(self, labels: frozenset[Any]) -> None:
        super().__init__(labels)
        self.labels = labels


@dataclass(frozen=True)
class Known:
    """A value that depends on no weight: (n, ...) for the first batch and (m, ...) for the second.

    `second` is None if both batches are one. A constant is the same for all examples and has n = m = 1.
    """

    first: Any
    second: Any | None
    is_constant: bool = False

    @property
    def sides(self) -> tuple[Any, Any]:
        return self.first, self.first if self.second is None else self.second

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.first.shape[1:])


class Outer(NamedTuple):
    """Moments that are the products of values at two examples, not yet multiplied: a sum over them is cheaper."""

    left: Any
    right: Any


@dataclass(frozen=True)
class Moments:
    """Second moments of a value (…) over the weights.

    Every array has axes for examples, two for `cross` and `tangent`, one for `first` and `second`; then those of the
    value, of length 1 where entries are stored once; then the right axes of those of kind PAIRS, in their order.

    Attributes:
        axes: the axes of the value.
        cross: E[v(x) v(x')] for pairs of an example of the first batch and one of the second.
        tangent: Σ_w E[∂v(x)/∂w ∂v(x')/∂w] over the weights w; None where it is not wanted.
        first, second: E[v(x) v(x)] for the examples of one batch; `second` is None if both batches are one.
        route: the weights that its paths pass.
        leaf_entries: of moved entries of one leaf, the position of each in the raveled leaf.
        is_weight: whether each entry is a product of weights alone, so that two different ones are independent.
        means: E[v(x)] for the examples of each batch, without right axes; None where it is 0. The second is None if
            both batches are one.
    """

    axes: tuple[Axis, ...]
    cross: Any
    tangent: Any | None
    first: Any
    second: Any | None
    route: Route
    leaf_entries: np.ndarray | None = None
    is_weight: bool = False
    means: tuple[Any, Any | None] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(axis.size for axis in self.axes)

    @property
    def variances(self) -> tuple[Any, Any]:
        return self.first, self.first if self.second is None else self.second


def right_position(axes: Sequence[Axis], index: int) -> int:
    """Position of the right axis of axis `index`, behind those of the examples."""
    return len(axes) + sum(axis.kind is Kind.PAIRS for axis in axes[:index])


def to_store(axes: Sequence[Axis]) -> tuple[slice, ...]:
    """What is stored of an array of one moment for each entry: one entry along the axes that are stored once."""
    return tuple(slice(None) if axis.kind in (Kind.EACH, Kind.PAIRS) else slice(0, 1) for axis in axes)


def laid_out(array: Any, axes: Sequence[Axis], leading: int) -> Any:
    """The array with every axis at its full stored length."""
    lengths = [axis.size if axis.kind in (Kind.EACH, Kind.PAIRS) else 1 for axis in axes]
    lengths += [axis.size for axis in axes if axis.kind is Kind.PAIRS]
    return jnp.broadcast_to(array, (*array.shape[:leading], *lengths))


def mapped(function: Callable[..., Any], *operands: Moments) -> dict[str, Any]:
    """`function(leading, *arrays)`, linear in each of its arrays, for the moments of all pairs: fields of the result.

    The tangent of a product has one term for each factor.
    """
    wanted = all(operand.tangent is not None for operand in operands)
    crosses = [operand.cross for operand in operands]
    terms = [
        function(2, *crosses[:i], operand.tangent, *crosses[i + 1 :]) for i, operand in enumerate(operands) if wanted
    ]
    is_one = all(operand.second is None for operand in operands)
    cross = function(2, *crosses)
    return {
        "cross": cross,
        "tangent": sum(terms[1:], terms[0]) if wanted else None,
        "first": cross[0] if is_one and is_alone(cross) else function(1, *(operand.first for operand in operands)),
        "second": None if is_one else function(1, *(operand.variances[1] for operand in operands)),
    }


def is_alone(cross: Any) -> bool:
    """Whether there is one pair of examples. Of one batch, its moments are those of the example with itself."""
    return bool(cross.shape[:2] == (1, 1))


def mapped_means(function: Callable[[Any], Any], moments: Moments) -> tuple[Any, Any | None] | None:
    """`function` of the means of one batch, which is linear, for both."""
    if moments.means is None:
        return None
    first, second = moments.means
    return function(first), None if second is None else function(second)


def means_of(function: Callable[[Any], Any], moments: Moments, axes: Sequence[Axis]) -> tuple[Any, Any | None] | None:
    """The means of `function` of the value, which is linear in it and has these axes."""

    def means(array: Any) -> Any:
        full = jnp.broadcast_to(array, (len(array), *moments.shape))
        return jax.vmap(function)(full)[(slice(None), *to_store(axes))]

    return mapped_means(means, moments)


def diagonal_of(array: Any, axes: Sequence[Axis], index: int, leading: int) -> Any:
    """The array without the right axis of a PAIRS axis: entries with themselves."""
    left, right = leading + index, leading + right_position(axes, index)
    size = axes[index].size
    lengths = list(array.shape)
    lengths[left] = lengths[right] = size
    return jnp.moveaxis(jnp.diagonal(jnp.broadcast_to(array, lengths), axis1=left, axis2=right), -1, left)


def in_kinds(moments: Moments, kinds: Sequence[Kind]) -> Moments:
    """The same moments, stored in other kinds: PAIRS as EACH, SAME as any, ALIKE as EACH."""
    for index, (axis, kind) in enumerate(zip(moments.axes, kinds, strict=True)):
        if axis.kind is not kind:
            moments = _in_kind(moments, index, kind)
    return moments


def _in_kind(moments: Moments, index: int, kind: Kind) -> Moments:
    axes, before = moments.axes, moments.axes[index]
    after = (*axes[:index], before._replace(kind=kind), *axes[index + 1 :])
    if before.kind is Kind.PAIRS:
        fields = mapped(lambda leading, array: diagonal_of(array, axes, index, leading), moments)
    elif kind is Kind.PAIRS:
        position = right_position(after, index)
        fields = mapped(lambda leading, array: jnp.expand_dims(array, leading + position), moments)
    else:
        fields = {}
    return replace(moments, axes=after, **fields)


def without_pairs(moments: Moments, index: int) -> Moments:
    """The axis as EACH where it is PAIRS."""
    kinds = [axis.kind for axis in moments.axes]
    return in_kinds(moments, [Kind.EACH if i == index and k is Kind.PAIRS else k for i, k in enumerate(kinds)])


def demand_pairs(moments: Moments, index: int) -> None:
    """Ask for the moments of every two entries along an axis where they are not at hand."""
    axis = moments.axes[index]
    if axis.kind in (Kind.EACH, Kind.ALIKE):
        raise Demand(axis.labels)


def is_own(moments: Moments, index: int) -> bool:
    """Whether the entries along an axis are different weights."""
    return moments.is_weight and moments.axes[index].kind in (Kind.EACH, Kind.ALIKE)


def embedded(moments: Moments, index: int) -> Moments:
    """The axis as PAIRS, where moments of two different entries are 0, as of weights."""
    axes = moments.axes
    after = (*axes[:index], axes[index]._replace(kind=Kind.PAIRS), *axes[index + 1 :])
    size, position = axes[index].size, right_position(after, index)

    def embed(leading: int, array: Any) -> Any:
        diagonal = np.eye(size, dtype=bool)
        diagonal = np.expand_dims(
            diagonal, [i for i in range(leading + rank(after)) if i not in (leading + index, leading + position)]
        )
        return jnp.where(diagonal, jnp.expand_dims(array, leading + position), 0)

    return replace(moments, axes=after, **mapped(embed, moments))


def rank(axes: Sequence[Axis]) -> int:
    """The number of axes that moments have besides those of the examples."""
    return len(axes) + sum(axis.kind is Kind.PAIRS for axis in axes)


def joined(left: Kind, right: Kind) -> Kind:
    """How the entries of a sum or product of two values are stored along an axis."""
    kinds = {left, right}
    if kinds <= {Kind.SAME, Kind.PAIRS}:
        return Kind.PAIRS if Kind.PAIRS in kinds else Kind.SAME
    return Kind.ALIKE if kinds <= {Kind.SAME, Kind.ALIKE} else Kind.EACH


def product(axes: tuple[Axis, ...], fields: dict[str, Any], left: Moments, right: Moments) -> Moments:
    """The product of two values, from the moments that are its `fields`."""
    if left.means is not None and right.means is not None:
        raise Undefined(
            "It multiplies two values whose means are not 0.",
            "Multiply by weights or by constants alone, or estimate by sampling: `ntk.sign_average`.",
        )
    return Moments(
        axes,
        **fields,
        route=joint([left.route, right.route]),
        is_weight=left.is_weight and right.is_weight,
    )


def spread(moments: Moments, shape: tuple[int, ...]) -> Moments:
    """A number or an array with axes of length 1, broadcast to a shape."""
    if moments.shape == shape:
        return moments
    added = [1] * (len(shape) - len(moments.axes))
    axes = [*(Axis(1, Kind.SAME) for _ in added), *moments.axes]
    fields = mapped(lambda leading, a: a.reshape(*a.shape[:leading], *added, *a.shape[leading:]), moments)
    sized = tuple(axis._replace(size=size) for axis, size in zip(axes, shape, strict=True))
    means = mapped_means(lambda a: a.reshape(len(a), *added, *a.shape[1:]), moments)
    return replace(moments, axes=sized, leaf_entries=None, means=means, **fields)


def is_zero(known: Known) -> bool:
    """Whether a value is known to be zero while tracing."""
    return all(is_concrete(side) and not np.any(np.asarray(side)) for side in known.sides)


def of_known(known: Known, labels: Sequence[Any], demanded: frozenset[Any], *, tangent: bool) -> Moments:
    """The moments of a value that depends on no weight, v(x)_a v(x')_b; with a label for each axis."""
    axes = tuple(
        Axis(size, Kind.SAME if size == 1 else Kind.PAIRS if label in demanded else Kind.EACH, frozenset([label]))
        for size, label in zip(known.shape, labels, strict=True)
    )
    lefts = [left_of(side, axes) for side in known.sides]
    rights = [right_of(side, axes) for side in known.sides]
    cross = lefts[0][:, None] * rights[1][None]
    first, second = (left * right for left, right in zip(lefts, rights, strict=True))
    return Moments(
        axes,
        cross,
        jnp.zeros((1,) * cross.ndim, cross.dtype) if tangent else None,
        first,
        None if known.second is None else second,
        NO_WEIGHT,
        means=(known.first, known.second),
    )


def factored(known: Known, moments: Moments) -> Moments:
    """The moments of a known value as products that are not multiplied."""
    first, second = known.sides
    return replace(
        moments,
        cross=Outer(first, second),
        first=Outer(first, first),
        second=None if known.second is None else Outer(second, second),
    )


def left_of(array: Any, axes: Sequence[Axis]) -> Any:
    """A factor (examples, ...) for the first of two entries: with an axis of length 1 for each right axis."""
    return array.reshape(*array.shape, *[1] * (rank(axes) - len(axes)))


def right_of(array: Any, axes: Sequence[Axis]) -> Any:
    """A factor (examples, ...) for the second of two entries: its PAIRS axes stand as right axes."""
    paired = [i for i, axis in enumerate(axes) if axis.kind is Kind.PAIRS]
    lengths = [1 if i in paired else length for i, length in enumerate(array.shape[1:])]
    library = np if isinstance(array, np.ndarray) else jnp  # what is known while tracing stays known
    moved = library.moveaxis(array, [1 + i for i in paired], range(array.ndim - len(paired), array.ndim))
    return moved.reshape(array.shape[0], *lengths, *(array.shape[1 + i] for i in paired))


def both(left: Any, right: Any, axes: Sequence[Axis], leading: int) -> Any:
    """The product of a factor (...) at the first of two entries and one at the second, for all examples."""
    result = left_of(left[None], axes) * right_of(right[None], axes)
    return result.reshape(*[1] * (leading - 1), *result.shape)
