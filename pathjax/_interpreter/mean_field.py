"""Expected gates: a lifted network whose gates are open as often as they are for random weights.

The algebra of second moments over independent weights of mean 0. Before a gate the values are taken to be Gaussian, as
they are in wide layers; a ReLU's moments are then those of the arc-cosine kernels (Cho and Saul, 2009).
"""

from __future__ import annotations

import itertools
import math
import string
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pathjax._interpreter.algebra import Algebra, Convolution, Undefined
from pathjax._interpreter.convolved import convolved
from pathjax._interpreter.gaussian import angle, ramps
from pathjax._interpreter.jaxpr import Program, is_concrete
from pathjax._interpreter.moments import (
    Axis,
    Demand,
    Kind,
    Known,
    Moments,
    diagonal_of,
    embedded,
    in_kinds,
    is_zero,
    joined,
    laid_out,
    left_of,
    mapped,
    of_known,
    right_of,
    right_position,
)
from pathjax._interpreter.motion import moved, moves
from pathjax._interpreter.routes import Token, are_apart, every, joint, single
from pathjax._interpreter.rules import interpret

__all__ = ["Kernels", "kernels"]

# Names of axes in sums of products: of the examples, and of all others.
_EXAMPLES = "YZ"
_LETTERS = string.ascii_lowercase + string.ascii_uppercase[:-2]


class Kernels(NamedTuple):
    """Expected products of outputs and of their gradients, (n, m, o); `ntk` is None where it was not asked for."""

    nngp: Any
    ntk: Any | None


def kernels(
    program: Program,
    second_moments: Sequence[Any],
    kept: Sequence[Any] | None,
    x1: Any,
    x2: Any | None,
    *,
    ntk: bool,
) -> Kernels:
    """The expected kernels of a network of one example (1, ...) at inputs (n, ...) and (m, ...).

    `second_moments` has an array or a number for each leaf of weights; `kept` has its mask. Axes of which the moments
    of every two entries are needed are found by walking until no sum asks for more.
    """

    def run(demanded: frozenset[Any], moments: Sequence[Any], x1: Any, x2: Any | None) -> Kernels:
        algebra = MeanField(demanded, is_one=x2 is None, tangent=ntk)
        weights = [
            algebra.weights(leaf, index, shape, None if kept is None else kept[index], x1.dtype)
            for index, (leaf, shape) in enumerate(zip(moments, program.parameter_shapes, strict=True))
        ]
        inputs = Known(x1[:, None], None if x2 is None else x2[:, None])
        shapes = [*program.parameter_shapes, program.input_shape]
        sides = [[np.broadcast_to(np.asarray(side, x1.dtype), shape) for shape in shapes] for side in (1, -1)]
        points = [(side[:-1], side[-1]) for side in sides]
        return algebra.outputs(interpret(program, algebra, weights, inputs, points=points))

    demanded: frozenset[Any] = frozenset()
    while True:
        try:
            jax.eval_shape(lambda *arguments, demanded=demanded: run(demanded, *arguments), second_moments, x1, x2)
        except Demand as demand:
            if demand.labels <= demanded:
                raise RuntimeError(f"no moments of every two entries along axes {set(demand.labels)}") from demand
            demanded |= demand.labels
        else:
            return run(demanded, second_moments, x1, x2)


class MeanField(Algebra["Known | Moments"]):
    """Values as their second moments over the weights, and as themselves where they depend on none.

    Args:
        demanded: labels of the axes along which the moments of every two entries are kept.
        is_one: whether both batches are one.
        tangent: whether to carry the sum over weights of the moments of derivatives.
    """

    gates_by_sides = True

    def __init__(self, demanded: frozenset[Any], *, is_one: bool, tangent: bool) -> None:
        self._demanded = demanded
        self._is_one = is_one
        self._tangent = tangent
        self._labels = itertools.count()

    def weights(self, moment: Any, index: int, shape: tuple[int, ...], kept: Any | None, dtype: Any) -> Moments:
        """A leaf of weights."""
        moment = jnp.asarray(moment, dtype)
        one = jnp.ones((), dtype) if kept is None else jnp.asarray(kept, dtype)
        moment = moment if kept is None else moment * one
        is_alike = moment.ndim == 0
        kind = Kind.ALIKE if is_alike else Kind.EACH
        axes = tuple(
            Axis(size, Kind.SAME if size == 1 else kind, frozenset([("leaf", index, axis)]))
            for axis, size in enumerate(shape)
        )
        array = moment.reshape([1] * len(shape)) if is_alike else jnp.broadcast_to(moment, shape)
        tangent = one.reshape([1] * len(shape)) if one.ndim == 0 else one
        size = math.prod(shape)
        return Moments(
            axes,
            array[None, None],
            tangent[None, None] if self._tangent else None,
            array[None],
            None if self._is_one else array[None],
            single(Token(index, 0, max(size - 1, 0))),
            leaf_entries=np.arange(size, dtype=np.int32).reshape(shape),
            is_weight=True,
        )

    def outputs(self, value: Known | Moments) -> Kernels:
        """The kernels of the outputs of one example, (1, o)."""
        moments = self._moments(value)
        moments = in_kinds(moments, [Kind.SAME, Kind.EACH])

        def rows(array: Any) -> Any:
            return laid_out(array, moments.axes, 2)[:, :, 0]

        shape = (moments.variances[0].shape[0], moments.variances[1].shape[0], moments.shape[1])
        return Kernels(
            *(None if a is None else jnp.broadcast_to(rows(a), shape) for a in (moments.cross, moments.tangent))
        )

    def constant(self, value: Any) -> Known:
        array = np.asarray(value)[None] if is_concrete(value) else jnp.asarray(value)[None]
        return Known(array, None if self._is_one else array)

    def shape_only(self, function: Callable[..., Any], *operands: Known | Moments) -> Known | Moments:
        known = [operand for operand in operands if isinstance(operand, Known)]
        if len(known) == len(operands):
            return _at_examples(function, *known)
        zeros = [i for i, operand in enumerate(operands) if isinstance(operand, Known) and is_zero(operand)]
        shapes = [operand.shape for operand in operands]
        terms = []
        for index, (operand, move) in enumerate(zip(operands, moves(function, shapes, zeros), strict=True)):
            if index in zeros:
                continue

            def alone(array: Any, index: int = index) -> Any:
                arrays = [jnp.zeros(shape, array.dtype) for shape in shapes]
                return function(*arrays[:index], array, *arrays[index + 1 :])

            terms.append(moved(self._moments(operand), alone, move, self._fresh(len(move.shape)), self._demanded))
        result = terms[0]
        for term in terms[1:]:
            result = self._add(result, term, disjoint=True)
        return result

    def add(self, left: Known | Moments, right: Known | Moments) -> Known | Moments:
        if isinstance(left, Known) and isinstance(right, Known):
            return _at_examples(jnp.add, left, right)
        shape = np.broadcast_shapes(left.shape, right.shape)
        for one, other in ((left, right), (right, left)):
            if isinstance(one, Known) and isinstance(other, Moments):
                if is_zero(one):
                    return _spread(other, shape)
                if other.is_weight:
                    raise Undefined("A constant is added to weights, whose mean is then not 0.", "Add it elsewhere.")
        return self._add(self._moments(left), self._moments(right))

    def _add(self, left: Moments, right: Moments, *, disjoint: bool = False) -> Moments:
        """The sum of independent values, or of values of which one is zero wherever the other is not."""
        shape = np.broadcast_shapes(left.shape, right.shape)
        left, right = _spread(left, shape), _spread(right, shape)
        for one, other in ((left, right), (right, left)):
            for index, axis in enumerate(one.axes):
                is_own = one.is_weight and axis.kind in (Kind.EACH, Kind.ALIKE)
                if is_own and other.axes[index].kind is Kind.PAIRS:
                    embedded_one = embedded(one, index)
                    left, right = (embedded_one, right) if one is left else (left, embedded_one)
                    one = embedded_one
        kinds = [joined(a.kind, b.kind) for a, b in zip(left.axes, right.axes, strict=True)]
        if (not disjoint or Kind.PAIRS in kinds) and not are_apart(left.route, right.route):
            raise Undefined(
                "It adds two values that are functions of the same weights, so that their expected product is not 0.",
                "Let a layer of its own stand between them, or estimate by sampling: `ntk.sign_average`.",
            )
        axes = tuple(
            Axis(a.size, kind, a.labels | b.labels) for a, b, kind in zip(left.axes, right.axes, kinds, strict=True)
        )
        left, right = in_kinds(left, kinds), in_kinds(right, kinds)
        is_one = left.second is None and right.second is None
        return Moments(
            axes,
            left.cross + right.cross,
            None if left.tangent is None or right.tangent is None else left.tangent + right.tangent,
            left.first + right.first,
            None if is_one else left.variances[1] + right.variances[1],
            every([left.route, right.route]),
            is_weight=left.is_weight and right.is_weight,
        )

    def sum(self, operand: Known | Moments, axes: Sequence[int]) -> Known | Moments:
        if isinstance(operand, Known):
            return _at_examples(lambda array: jnp.sum(array, axis=tuple(axes)), operand)
        for index in axes:
            _demand_pairs(operand, index)
        all_axes = operand.axes
        factor = math.prod(all_axes[index].size ** 2 for index in axes if all_axes[index].kind is Kind.SAME)

        def summed(leading: int, array: Any) -> Any:
            full = laid_out(array, all_axes, leading)
            lefts = [leading + index for index in axes]
            rights = [leading + right_position(all_axes, i) for i in axes if all_axes[i].kind is Kind.PAIRS]
            return factor * jnp.sum(full, axis=(*lefts, *rights))

        kept = tuple(axis for index, axis in enumerate(all_axes) if index not in axes)
        return replace(operand, axes=kept, leaf_entries=None, **mapped(summed, operand))

    def multiply(self, left: Known | Moments, right: Known | Moments) -> Known | Moments:
        if isinstance(left, Known) and isinstance(right, Known):
            return _at_examples(jnp.multiply, left, right)
        a, b = self._moments(left), self._moments(right)
        shape = np.broadcast_shapes(a.shape, b.shape)
        a, b = _spread(a, shape), _spread(b, shape)
        own = [i for i in range(len(shape)) if any(_is_own(moments, i) for moments in (a, b))]
        a, b = (
            in_kinds(
                m, [Kind.EACH if i in own and axis.kind is Kind.PAIRS else axis.kind for i, axis in enumerate(m.axes)]
            )
            for m in (a, b)
        )
        kinds = [joined(one.kind, other.kind) for one, other in zip(a.axes, b.axes, strict=True)]
        axes = tuple(Axis(x.size, kind, x.labels | y.labels) for x, y, kind in zip(a.axes, b.axes, kinds, strict=True))
        a, b = in_kinds(a, kinds), in_kinds(b, kinds)
        product = _product(axes, mapped(lambda leading, x, y: x * y, a, b), a, b)
        return self._with_pairs(product, own)

    def scale(self, operand: Known | Moments, coefficient: Any) -> Known | Moments:
        if isinstance(operand, Known):
            return _at_examples(lambda array: array * coefficient, operand)
        operand = _spread(operand, np.broadcast_shapes(operand.shape, jnp.shape(coefficient)))
        factor, operand = self._factor(operand, coefficient)

        def scaled(leading: int, array: Any) -> Any:
            return array * _both(factor, operand.axes, leading)

        return replace(operand, leaf_entries=None, **mapped(scaled, operand))

    def dot(self, left: Known | Moments, right: Known | Moments, dimension_numbers: Any) -> Known | Moments:
        if isinstance(left, Known) and isinstance(right, Known):
            return _at_examples(
                lambda a, b: lax.dot_general(a, b, dimension_numbers, precision=lax.Precision.HIGHEST), left, right
            )
        for constant, operand in ((left, right), (right, left)):
            if isinstance(constant, Known) and isinstance(operand, Moments) and not operand.is_weight:
                return self.linear(
                    _product_with(constant.first[0], dimension_numbers, constant is left), operand, operand.shape
                )
        return self._dot(self._moments(left), self._moments(right), dimension_numbers)

    def _dot(self, left: Moments, right: Moments, numbers: Any) -> Moments:
        """A product of an activation and weights, or of weights."""
        (contracted_left, contracted_right), (batch_left, batch_right) = numbers
        pairs = [*zip(contracted_left, contracted_right, strict=True), *zip(batch_left, batch_right, strict=True)]
        # entries of weights are independent: where they are each multiplied, only those with themselves count
        for i, j in pairs:
            if _is_own(left, i) or _is_own(right, j):
                left, right = _without_pairs(left, i), _without_pairs(right, j)
        for i, j in zip(contracted_left, contracted_right, strict=True):
            if not (_is_own(left, i) or _is_own(right, j)):
                _demand_pairs(left, i)
                _demand_pairs(right, j)
        return self._contracted(left, right, numbers)

    def _contracted(self, left: Moments, right: Moments, numbers: Any) -> Moments:
        (contracted_left, contracted_right), (batch_left, batch_right) = numbers
        letters = iter(_LETTERS)
        lefts: list[tuple[str, str]] = [("", "")] * len(left.axes)
        rights: list[tuple[str, str]] = [("", "")] * len(right.axes)
        axes: list[Axis] = []
        names: list[tuple[str, str]] = []
        own: list[int] = []
        scale = 1
        for i, j in zip(batch_left, batch_right, strict=True):
            lefts[i] = rights[j] = (next(letters), next(letters))
            kind = joined(left.axes[i].kind, right.axes[j].kind)
            if _is_own(left, i) or _is_own(right, j):
                own.append(len(axes))
            axes.append(Axis(left.axes[i].size, kind, left.axes[i].labels | right.axes[j].labels))
            names.append(lefts[i])
        for i, j in zip(contracted_left, contracted_right, strict=True):
            lefts[i] = rights[j] = (next(letters), next(letters))
            kinds = {left.axes[i].kind, right.axes[j].kind}
            if not kinds & {Kind.EACH, Kind.PAIRS}:
                scale *= left.axes[i].size ** (2 if kinds == {Kind.SAME} else 1)
        for operand, named, taken in (
            (left, lefts, {*batch_left, *contracted_left}),
            (right, rights, {*batch_right, *contracted_right}),
        ):
            for i, axis in enumerate(operand.axes):
                if i not in taken:
                    named[i] = (next(letters), next(letters))
                    if _is_own(operand, i):
                        own.append(len(axes))
                    axes.append(axis)
                    names.append(named[i])

        def contract(leading: int, a: Any, b: Any) -> Any:
            examples = list(_EXAMPLES[:leading])
            terms = []
            for array, operand, named in ((a, left, lefts), (b, right, rights)):
                full = laid_out(array, operand.axes, leading)
                terms.append(_lettered(full, operand.axes, named, examples))
            present = set(terms[0][1]) | set(terms[1][1])
            full = [*examples, *(first for first, _ in names)]
            full += [second for (_, second), axis in zip(names, axes, strict=True) if axis.kind is Kind.PAIRS]
            kept = [letter for letter in full if letter in present]
            result = _einsum(terms, kept)
            return scale * result.reshape(
                [result.shape[kept.index(letter)] if letter in present else 1 for letter in full]
            )

        return self._with_pairs(_product(tuple(axes), mapped(contract, left, right), left, right), own)

    def conv(self, left: Known | Moments, right: Known | Moments, convolution: Convolution) -> Known | Moments:
        def convolve(a: Any, b: Any) -> Any:
            return lax.conv_general_dilated(a, b, **convolution._asdict(), precision=lax.Precision.HIGHEST)

        if isinstance(left, Known) and isinstance(right, Known):
            return _at_examples(convolve, left, right)
        if isinstance(right, Known):
            return self.linear(lambda array: convolve(array, right.first[0].astype(array.dtype)), left, left.shape)
        image = self._moments(left)
        if image.axes[convolution.dimension_numbers.lhs_spec[1]].kind is Kind.PAIRS:
            image = _without_pairs(image, convolution.dimension_numbers.lhs_spec[1])
        result, channels = convolved(image, right, convolution)
        return self._with_pairs(result, [channels])

    def linear(self, function: Callable[..., Any], operand: Known | Moments, shape: tuple[int, ...]) -> Known | Moments:
        if isinstance(operand, Known):
            return _at_examples(function, operand)
        touched = touched_axes(function, shape)
        for index in touched:
            _demand_pairs(operand, index)
        operand = in_kinds(operand, [Kind.PAIRS if i in touched else axis.kind for i, axis in enumerate(operand.axes)])
        return self._without_unasked_pairs(mixed(operand, function, touched, self._fresh))

    def gate(self, operand: Known | Moments, slopes: Sequence[Any], shape: tuple[int, ...]) -> Known | Moments:
        if isinstance(operand, Known):
            return _at_examples(lambda array: array * jnp.where(array > 0, *slopes), operand)
        if operand.is_weight:
            raise Undefined("A gate on weights: their mean is then not 0.", "Gate activations alone.")
        above, operand = self._factor(operand, slopes[0])
        below, operand = self._factor(operand, slopes[1])
        return gated(operand, above, below)

    def _moments(self, value: Known | Moments) -> Moments:
        if isinstance(value, Moments):
            return value
        return of_known(value, self._fresh(len(value.shape)), self._demanded, tangent=self._tangent)

    def _fresh(self, count: int) -> list[Any]:
        number = next(self._labels)
        return [("value", number, axis) for axis in range(count)]

    def _with_pairs(self, moments: Moments, own: Sequence[int]) -> Moments:
        """With zeros as the moments of two different entries along axes of independent ones, where they are needed."""
        for index in own:
            axis = moments.axes[index]
            if axis.kind in (Kind.EACH, Kind.ALIKE) and axis.labels & self._demanded:
                moments = embedded(moments, index)
        return moments

    def _without_unasked_pairs(self, moments: Moments) -> Moments:
        for index, axis in enumerate(moments.axes):
            if axis.kind is Kind.PAIRS and not axis.labels & self._demanded:
                moments = _without_pairs(moments, index)
        return moments

    def _factor(self, operand: Moments, factor: Any) -> tuple[Any, Moments]:
        """A factor for each entry as an array of as many axes, of length 1 where it does not vary; and the operand,
        with each entry stored along axes where it does."""
        shape = operand.shape
        factor = jnp.broadcast_to(factor, shape) if not is_concrete(factor) else np.broadcast_to(factor, shape)
        fresh = self._fresh(len(shape))
        axes, kinds = list(operand.axes), [axis.kind for axis in operand.axes]
        for index, axis in enumerate(operand.axes):
            if axis.size == 1:
                continue
            first = factor[(slice(None),) * index + (slice(0, 1),)]
            if is_concrete(factor) and np.array_equal(np.broadcast_to(first, factor.shape), factor):
                factor = first
            elif axis.kind is Kind.SAME:
                axes[index] = axis._replace(labels=frozenset([fresh[index]]))
                kinds[index] = Kind.PAIRS if fresh[index] in self._demanded else Kind.EACH
            elif axis.kind is Kind.ALIKE:
                kinds[index] = Kind.EACH
        return factor, in_kinds(replace(operand, axes=tuple(axes)), kinds)


def _product_with(constant: Any, numbers: Any, is_left: bool) -> Callable[[Any], Any]:
    def function(array: Any) -> Any:
        factor = constant.astype(array.dtype)
        pair = (factor, array) if is_left else (array, factor)
        return lax.dot_general(*pair, numbers, precision=lax.Precision.HIGHEST)

    return function


def _at_examples(function: Callable[..., Any], *operands: Known) -> Known:
    """`function` of values that depend on no weight, example by example."""

    def side(*arrays: Any) -> Any:
        length = max(len(array) for array in arrays)
        if length == 1:
            return function(*(array[0] for array in arrays))[None]
        in_axes = [None if len(array) == 1 else 0 for array in arrays]
        return jax.vmap(function, in_axes)(*(array[0] if len(array) == 1 else array for array in arrays))

    if all(is_concrete(side) for operand in operands for side in operand.sides):
        with jax.ensure_compile_time_eval():
            return _at_examples_of(side, operands)
    return _at_examples_of(side, operands)


def _at_examples_of(side: Callable[..., Any], operands: Sequence[Known]) -> Known:
    is_one = all(operand.second is None for operand in operands)
    firsts, seconds = zip(*(operand.sides for operand in operands), strict=True)
    return Known(side(*firsts), None if is_one else side(*seconds))


def _is_own(moments: Moments, index: int) -> bool:
    """Whether the entries along an axis are different weights."""
    return moments.is_weight and moments.axes[index].kind in (Kind.EACH, Kind.ALIKE)


def _without_pairs(moments: Moments, index: int) -> Moments:
    kinds = [axis.kind for axis in moments.axes]
    return in_kinds(moments, [Kind.EACH if i == index and k is Kind.PAIRS else k for i, k in enumerate(kinds)])


def _demand_pairs(moments: Moments, index: int) -> None:
    """Ask for the moments of every two entries along an axis where they are not at hand."""
    axis = moments.axes[index]
    if axis.kind in (Kind.EACH, Kind.ALIKE):
        raise Demand(axis.labels)


def _spread(moments: Moments, shape: tuple[int, ...]) -> Moments:
    """A number or an array with axes of length 1, broadcast to a shape."""
    if moments.shape == shape:
        return moments
    added = len(shape) - len(moments.axes)
    axes = [Axis(1, Kind.SAME)] * added + list(moments.axes)
    axes = [axis._replace(size=size) for axis, size in zip(axes, shape, strict=True)]
    return replace(
        moments,
        axes=tuple(axes),
        leaf_entries=None,
        **mapped(lambda leading, a: a.reshape(*a.shape[:leading], *[1] * added, *a.shape[leading:]), moments),
    )


def _product(axes: tuple[Axis, ...], fields: dict[str, Any], left: Moments, right: Moments) -> Moments:
    return Moments(
        axes,
        **fields,
        route=joint([left.route, right.route]),
        is_weight=left.is_weight and right.is_weight,
    )


def _both(factor: Any, axes: Sequence[Axis], leading: int) -> Any:
    """The product of a factor (…) at the first and at the second of two entries."""
    left, right = left_of(factor[None], axes), right_of(factor[None], axes)
    return (left * right).reshape(*[1] * (leading - 1), *np.broadcast_shapes(left.shape, right.shape))


def _lettered(
    array: Any, axes: Sequence[Axis], names: Sequence[tuple[str, str]], examples: Sequence[str]
) -> tuple[Any, list[str]]:
    """The array without axes of length 1, and a letter for each that is left."""
    letters = [*examples, *(first for first, _ in names)]
    letters += [second for (_, second), axis in zip(names, axes, strict=True) if axis.kind is Kind.PAIRS]
    kept = [i for i, length in enumerate(array.shape) if length > 1]
    return array.reshape([array.shape[i] for i in kept]), [letters[i] for i in kept]


def _einsum(terms: Sequence[tuple[Any, list[str]]], kept: Sequence[str]) -> Any:
    inputs = ",".join("".join(letters) for _, letters in terms)
    arrays = [array for array, _ in terms]
    return jnp.einsum(f"{inputs}->{''.join(kept)}", *arrays, precision=lax.Precision.HIGHEST)


def gated(operand: Moments, above: Any, below: Any) -> Moments:
    """The moments behind a gate with slopes `above` for positive and `below` for negative values."""
    axes = operand.axes
    paired = [i for i, axis in enumerate(axes) if axis.kind is Kind.PAIRS]
    variances = []
    for variance in operand.variances:
        kinds = list(axes)
        for index in paired:
            variance = diagonal_of(variance, kinds, index, 1)
            kinds[index] = kinds[index]._replace(kind=Kind.EACH)
        variances.append((left_of(variance, axes), right_of(variance, axes)))
    (first_left, first_right), (second_left, second_right) = variances
    is_self = _is_self(axes)
    n = first_left.shape[0]
    is_one = operand.second is None
    same_example = np.eye(n, dtype=bool) if is_one else np.zeros((1, 1), bool)
    is_self_example = same_example.reshape(*same_example.shape, *[1] * is_self.ndim) & is_self[None, None]

    def slopes(leading: int) -> tuple[Any, Any]:
        """The products of slopes on one side, and on different sides, each summed over both ways."""
        return _both(above, axes, leading) + _both(below, axes, leading), _crossed(above, below, axes, leading)

    def values(leading: int, covariance: Any, left: Any, right: Any, is_self: Any) -> Any:
        through_same, through_other = slopes(leading)
        same = jnp.where(is_self, covariance / 2, ramps(covariance, left, right))
        other = jnp.where(is_self, 0, ramps(-covariance, left, right)) if np.any(through_other) else 0
        return through_same * same - through_other * other

    cross_left, cross_right = first_left[:, None], second_right[None]
    tangent = None
    if operand.tangent is not None:
        through_same, through_other = slopes(2)
        share = jnp.where(is_self_example, 0, angle(operand.cross, cross_left, cross_right) / (2 * jnp.pi))
        tangent = operand.tangent * (through_same * (0.5 - share) + through_other * share)
    return replace(
        operand,
        cross=values(2, operand.cross, cross_left, cross_right, is_self_example),
        tangent=tangent,
        first=values(1, operand.first, first_left, first_right, is_self[None]),
        second=None if is_one else values(1, operand.second, second_left, second_right, is_self[None]),
    )


def _crossed(above: Any, below: Any, axes: Sequence[Axis], leading: int) -> Any:
    """The product of slopes on different sides, summed over both ways."""
    sides = [(left_of(slope[None], axes), right_of(slope[None], axes)) for slope in (above, below)]
    product = sides[0][0] * sides[1][1] + sides[1][0] * sides[0][1]
    return product.reshape(*[1] * (leading - 1), *product.shape)


def _is_self(axes: Sequence[Axis]) -> np.ndarray:
    """Of two entries, whether they are one."""
    rank = len(axes) + sum(axis.kind is Kind.PAIRS for axis in axes)
    result = np.ones([1] * rank, bool)
    for index, axis in enumerate(axes):
        if axis.kind is Kind.PAIRS:
            others = [i for i in range(rank) if i not in (index, right_position(axes, index))]
            result = result & np.expand_dims(np.eye(axis.size, dtype=bool), others)
    return result


def touched_axes(function: Callable[..., Any], shape: tuple[int, ...]) -> list[int]:
    """The axes along which a linear function mixes entries; along the others it treats each entry alike, or alone."""
    with jax.ensure_compile_time_eval():
        sample = jnp.asarray(np.random.default_rng(0).uniform(1.0, 2.0, shape))
        result = function(sample)
        if result.ndim != len(shape):
            return list(range(len(shape)))
        return [axis for axis in range(len(shape)) if _mixes(function, sample, result, axis)]


def _mixes(function: Callable[..., Any], sample: Any, result: Any, axis: int) -> bool:
    size = sample.shape[axis]
    if size == 1 or result.shape[axis] != size:
        return bool(result.shape[axis] != size)
    chosen = np.expand_dims(np.eye(size), [1 + i for i in range(sample.ndim) if i != axis])
    alone = jax.vmap(function)(sample[None] * chosen)
    expected = result[None] * chosen
    return not bool(jnp.allclose(alone, expected, rtol=1e-5, atol=1e-6))


def mixed(
    operand: Moments, function: Callable[..., Any], touched: Sequence[int], fresh: Callable[[int], list[Any]]
) -> Moments:
    """A linear function of the value that mixes entries along `touched` axes, of which every two are at hand."""
    before = operand.axes
    result_shape = jax.eval_shape(function, jax.ShapeDtypeStruct(operand.shape, operand.cross.dtype)).shape
    labels = frozenset(fresh(len(result_shape))).union(*(before[i].labels for i in touched))
    is_whole = len(touched) == len(before)
    axes = tuple(
        Axis(size, Kind.PAIRS, labels) if is_whole or i in touched else before[i] for i, size in enumerate(result_shape)
    )
    outer = range(len(axes)) if is_whole else touched  # axes of the result along which it is new
    paired = [i for i, axis in enumerate(before) if axis.kind is Kind.PAIRS]
    lengths = [*operand.shape, *(before[i].size for i in paired)]

    def mix(leading: int, array: Any) -> Any:
        examples = [("example", i) for i in range(leading)]
        names = [*examples, *(("left", i) for i in range(len(before))), *(("right", i) for i in paired)]
        full = jnp.broadcast_to(array, (*array.shape[:leading], *lengths))
        for side in ("left", "right"):
            taken = [(side if i in touched else "left", i) for i in range(len(before))]
            given = [(side if i in outer else "left", i) for i in range(len(axes))]
            full, names = _applied(function, full, names, taken, given)
        order = [*examples, *(("left", i) for i in range(len(axes)))]
        order += [("right", i) for i, axis in enumerate(axes) if axis.kind is Kind.PAIRS]
        result = jnp.transpose(full, [names.index(name) for name in order])
        return result[(..., *(slice(0, 1) if is_once else slice(None) for is_once in _stored_once(axes)))]

    return replace(operand, axes=axes, leaf_entries=None, **mapped(mix, operand))


def _stored_once(axes: Sequence[Axis]) -> list[bool]:
    """Whether an array has length 1 along each axis, right ones included."""
    lefts = [axis.kind in (Kind.SAME, Kind.ALIKE) for axis in axes]
    return lefts + [False for axis in axes if axis.kind is Kind.PAIRS]


def _applied(
    function: Callable[..., Any], array: Any, names: list[Any], taken: Sequence[Any], given: Sequence[Any]
) -> tuple[Any, list[Any]]:
    """`function` over the axes named `taken`, mapped over all others, with results along axes named `given`."""
    rest = [name for name in names if name not in taken]
    front = jnp.transpose(array, [names.index(name) for name in (*rest, *taken)])
    lengths = front.shape[: len(rest)]
    results = jax.vmap(function)(front.reshape(-1, *front.shape[len(rest) :]))
    return results.reshape(*lengths, *results.shape[1:]), [*rest, *given]
