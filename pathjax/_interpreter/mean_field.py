"""Expected gates: a lifted network whose gates are open as often as they are for random weights.

The algebra of second moments over independent weights of mean 0. Before a gate the values are taken to be Gaussian, as
they are in wide layers; a ReLU's moments are then those of the arc-cosine kernels (Cho and Saul, 2009).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pathjax._interpreter.added import added
from pathjax._interpreter.algebra import INPUT, Algebra, Convolution, Undefined
from pathjax._interpreter.contracted import contracted
from pathjax._interpreter.convolved import convolved
from pathjax._interpreter.jaxpr import Program
from pathjax._interpreter.known import at_once, is_concrete
from pathjax._interpreter.mixed import mixed, touched_axes, uneven_axes
from pathjax._interpreter.moments import (
    Axis,
    Demand,
    Kind,
    Known,
    Moments,
    both,
    demand_pairs,
    embedded,
    in_kinds,
    is_own,
    is_zero,
    joined,
    laid_out,
    mapped,
    mapped_means,
    of_known,
    product,
    right_position,
    spread,
    without_pairs,
)
from pathjax._interpreter.motion import moved, moves
from pathjax._interpreter.rectified import rectified
from pathjax._interpreter.routes import leaf, share_weights
from pathjax._interpreter.rules import interpret

__all__ = ["kernels", "trace"]


def kernels(
    program: Program,
    second_moments: Sequence[Any],
    kept: Sequence[Any] | None,
    x1: Any,
    x2: Any | None,
    *,
    ntk: bool,
) -> tuple[Any, Any | None]:
    """The expected products of outputs (n, m, o), and those of their gradients, or None where these are not wanted.

    Of a network of one example (1, ...) at inputs (n, ...) and (m, ...).
    `second_moments` has an array or a number for each leaf of weights; `kept` has its mask.
    """

    def run(demanded: frozenset[Any], moments: Sequence[Any], x1: Any, x2: Any | None) -> tuple[Any, Any | None]:
        algebra = MeanField(demanded, is_one=x2 is None, tangent=ntk)
        weights = algebra.leaves(program, moments, kept, x1.dtype)
        inputs = Known(x1[:, None], None if x2 is None else x2[:, None])
        return algebra.outputs(_interpreted(program, algebra, weights, inputs))

    return cast("tuple[Any, Any | None]", _with_pairs_as_needed(run, second_moments, x1, x2))


def trace(
    program: Program,
    second_moments: Sequence[Any],
    kept: Sequence[Any] | None,
    x: Any,
    *,
    trained: Sequence[bool],
    is_drawn: bool,
) -> Any:
    """Σ_o E[Θ(x, x)_oo] for one example x (1, ...), a function of the second moments in which gates are held.

    Gates are held in what derivatives pass, E[φ'(a)²]. What values pass, E[φ(a)²] = E[φ'(a)² a²], is differentiated as
    it is: as φ is continuous, its derivative is that with the slopes φ'(a) of each draw held.

    The sum is over the derivatives by the weights in `trained` leaves. If `is_drawn`, x holds the second moments of
    inputs that are drawn at random: independent entries of mean 0.
    """

    def run(demanded: frozenset[Any], moments: Sequence[Any], x: Any) -> Any:
        algebra = MeanField(demanded, is_one=True, tangent=True, is_held=True)
        weights = algebra.leaves(program, moments, kept, x.dtype, trained)
        inputs = algebra.drawn(x) if is_drawn else Known(x[:, None], None)
        _, ntk = algebra.outputs(_interpreted(program, algebra, weights, inputs))
        return jnp.sum(cast(Any, ntk))

    return _with_pairs_as_needed(run, second_moments, x)


def _interpreted(program: Program, algebra: MeanField, weights: Sequence[Any], inputs: Any) -> Any:
    """The value of the outputs."""
    shapes = [*program.parameter_shapes, program.input_shape]
    dtype = weights[0].cross.dtype if weights else float
    sides = [[np.broadcast_to(np.asarray(side, dtype), shape) for shape in shapes] for side in (1, -1)]
    return interpret(program, algebra, weights, inputs, points=[(side[:-1], side[-1]) for side in sides])


def _with_pairs_as_needed(run: Callable[..., Any], *arguments: Any) -> Any:
    """run(demanded, *arguments), `demanded` the axes of which the moments of every two entries are needed.

    They are found by walking without numbers until no sum asks for more.
    """
    demanded: frozenset[Any] = frozenset()
    while True:
        try:
            jax.eval_shape(functools.partial(run, demanded), *arguments)
        except Demand as demand:
            if demand.labels <= demanded:
                raise RuntimeError(f"no moments of every two entries along axes {set(demand.labels)}") from demand
            demanded |= demand.labels
        else:
            return run(demanded, *arguments)


class MeanField(Algebra["Known | Moments"]):
    """Values as their second moments over the weights, and as themselves where they depend on none.

    Args:
        demanded: labels of the axes along which the moments of every two entries are kept.
        is_one: whether both batches are one.
        tangent: whether to carry the sum over weights of the moments of derivatives.
        is_held: whether gates are constants of a differentiation: see `trace`.
    """

    result = "expectation in closed form"
    gates_by_sides = True

    def __init__(self, demanded: frozenset[Any], *, is_one: bool, tangent: bool, is_held: bool = False) -> None:
        self._demanded = demanded
        self._is_one = is_one
        self._tangent = tangent
        self._is_held = is_held
        self._labels = itertools.count()

    def leaves(
        self,
        program: Program,
        moments: Sequence[Any],
        kept: Sequence[Any] | None,
        dtype: Any,
        trained: Sequence[bool] | None = None,
    ) -> list[Moments]:
        """All leaves of weights; those that are not trained have no derivatives."""
        return [
            self._weights(
                moment, index, shape, None if kept is None else kept[index], dtype, trained is None or trained[index]
            )
            for index, (moment, shape) in enumerate(zip(moments, program.parameter_shapes, strict=True))
        ]

    def _weights(
        self, moment: Any, index: int, shape: tuple[int, ...], kept: Any | None, dtype: Any, is_trained: bool
    ) -> Moments:
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
        tangent = tangent if is_trained else jnp.zeros_like(tangent)
        return Moments(
            axes,
            array[None, None],
            tangent[None, None] if self._tangent else None,
            array[None],
            None if self._is_one else array[None],
            leaf(index, shape),
            leaf_entries=np.arange(math.prod(shape), dtype=np.int32).reshape(shape),
            is_weight=True,
        )

    def drawn(self, squares: Any) -> Moments:
        """Inputs (1, ...) drawn at random: independent entries of mean 0 with these second moments."""
        shape = squares.shape
        axes = tuple(
            Axis(size, Kind.SAME if size == 1 else Kind.EACH, frozenset([("input", axis)]))
            for axis, size in enumerate(shape)
        )
        none = jnp.zeros([1] * (2 + len(shape)), squares.dtype)
        moments = Moments(
            axes, squares[None, None], none if self._tangent else None, squares[None], None, leaf(INPUT, shape)
        )
        return self._with_pairs(moments, range(len(shape)))

    def outputs(self, value: Known | Moments) -> tuple[Any, Any | None]:
        """The moments and the tangent of the outputs of one example, (1, o)."""
        moments = self._moments(value)
        moments = in_kinds(moments, [Kind.SAME, Kind.EACH])

        def rows(array: Any) -> Any:
            return laid_out(array, moments.axes, 2)[:, :, 0]

        shape = (moments.variances[0].shape[0], moments.variances[1].shape[0], moments.shape[1])
        nngp = jnp.broadcast_to(rows(moments.cross), shape)
        return nngp, None if moments.tangent is None else jnp.broadcast_to(rows(moments.tangent), shape)

    def constant(self, value: Any) -> Known:
        array = np.asarray(value)[None] if is_concrete(value) else jnp.asarray(value)[None]
        return Known(array, None if self._is_one else array, is_constant=True)

    def shape_only(self, function: Callable[..., Any], *operands: Known | Moments) -> Known | Moments:
        known = [operand for operand in operands if isinstance(operand, Known)]
        if len(known) == len(operands):
            return _at_examples(function, *known)
        zeros = [i for i, operand in enumerate(operands) if isinstance(operand, Known) and is_zero(operand)]
        shapes = [operand.shape for operand in operands]
        result: Any = None
        occupied: Any = None
        for index, (operand, move) in enumerate(zip(operands, moves(function, shapes, zeros), strict=True)):
            if index in zeros:
                continue

            def alone(array: Any, index: int = index) -> Any:
                arrays = [jnp.zeros(shape, array.dtype) for shape in shapes]
                return function(*arrays[:index], array, *arrays[index + 1 :])

            term = moved(self._moments(operand), alone, move, self._fresh(len(move.shape)), self._demanded)
            places = move.sources >= 0
            result = term if result is None else added(result, term, (occupied, places))
            occupied = places if occupied is None else occupied | places
        return result

    def add(self, left: Known | Moments, right: Known | Moments) -> Known | Moments:
        if isinstance(left, Known) and isinstance(right, Known):
            return _at_examples(jnp.add, left, right)
        shape = np.broadcast_shapes(left.shape, right.shape)
        for one, other in ((left, right), (right, left)):
            if isinstance(one, Known) and isinstance(other, Moments):
                if is_zero(one):
                    return spread(other, shape)
                if other.is_weight:
                    raise Undefined(
                        "A constant is added to weights, whose mean is then not 0.",
                        "Add it elsewhere, or estimate by sampling: `ntk.sign_average`.",
                    )
        return added(self._moments(left), self._moments(right))

    def sum(self, operand: Known | Moments, axes: Sequence[int]) -> Known | Moments:
        if isinstance(operand, Known):
            return _at_examples(lambda array: jnp.sum(array, axis=tuple(axes)), operand)
        for index in axes:
            if not is_own(operand, index):
                demand_pairs(operand, index)
        all_axes, factor = operand.axes, 1
        for axis in (all_axes[index] for index in axes):
            factor *= {Kind.SAME: axis.size**2, Kind.ALIKE: axis.size}.get(axis.kind, 1)

        def summed(leading: int, array: Any) -> Any:
            full = laid_out(array, all_axes, leading)
            lefts = [leading + index for index in axes]
            rights = [leading + right_position(all_axes, i) for i in axes if all_axes[i].kind is Kind.PAIRS]
            return factor * jnp.sum(full, axis=(*lefts, *rights))

        def means(array: Any) -> Any:
            return jnp.sum(jnp.broadcast_to(array, (len(array), *operand.shape)), axis=[1 + index for index in axes])

        kept = tuple(axis for index, axis in enumerate(all_axes) if index not in axes)
        operand = replace(operand, means=mapped_means(means, operand))
        return replace(operand, axes=kept, leaf_entries=None, **mapped(summed, operand))

    def multiply(self, left: Known | Moments, right: Known | Moments) -> Known | Moments:
        if isinstance(left, Known) and isinstance(right, Known):
            return _at_examples(jnp.multiply, left, right)
        a, b = self._moments(left), self._moments(right)
        _check_untied(a, b)
        shape = np.broadcast_shapes(a.shape, b.shape)
        a, b = spread(a, shape), spread(b, shape)
        own = [index for index in range(len(shape)) if is_own(a, index) or is_own(b, index)]
        for index in own:
            a, b = without_pairs(a, index), without_pairs(b, index)
        kinds = [joined(one.kind, other.kind) for one, other in zip(a.axes, b.axes, strict=True)]
        axes = tuple(Axis(x.size, kind, x.labels | y.labels) for x, y, kind in zip(a.axes, b.axes, kinds, strict=True))
        a, b = in_kinds(a, kinds), in_kinds(b, kinds)
        return self._with_pairs(product(axes, mapped(lambda leading, x, y: x * y, a, b), a, b), own)

    def scale(self, operand: Known | Moments, coefficient: Any) -> Known | Moments:
        if isinstance(operand, Known):
            return _at_examples(lambda array: array * coefficient, operand)
        operand = spread(operand, np.broadcast_shapes(operand.shape, jnp.shape(coefficient)))
        factor, operand = self._factor(operand, coefficient)

        def scaled(leading: int, array: Any) -> Any:
            return array * both(factor, factor, operand.axes, leading)

        means = mapped_means(lambda array: array * factor[None], operand)
        return replace(operand, means=means, **mapped(scaled, operand))

    def dot(self, left: Known | Moments, right: Known | Moments, dimension_numbers: Any) -> Known | Moments:
        if isinstance(left, Known) and isinstance(right, Known):
            return _at_examples(
                lambda a, b: lax.dot_general(a, b, dimension_numbers, precision=lax.Precision.HIGHEST), left, right
            )
        for one, operand in ((left, right), (right, left)):
            if isinstance(one, Known) and one.is_constant and isinstance(operand, Moments) and not operand.is_weight:
                _check_known(one)
                times = _product_with(one.first[0], dimension_numbers, is_left=one is left)
                return self.linear(times, operand, operand.shape)
        a, b = self._moments(left), self._moments(right)
        _check_untied(a, b)
        known = [operand if isinstance(operand, Known) else None for operand in (left, right)]
        return self._with_pairs(*contracted(a, b, dimension_numbers, known))

    def conv(self, left: Known | Moments, right: Known | Moments, convolution: Convolution) -> Known | Moments:
        def convolve(a: Any, b: Any) -> Any:
            return lax.conv_general_dilated(a, b, **convolution._asdict(), precision=lax.Precision.HIGHEST)

        if isinstance(left, Known) and isinstance(right, Known):
            return _at_examples(convolve, left, right)
        if isinstance(right, Known):
            _check_known(right)
            return self.linear(lambda array: convolve(array, right.first[0].astype(array.dtype)), left, left.shape)
        image = self._moments(left)
        _check_untied(image, right)
        channel = convolution.dimension_numbers.lhs_spec[1]
        return self._with_pairs(*convolved(without_pairs(image, channel), right, convolution))

    def linear(self, function: Callable[..., Any], operand: Known | Moments, shape: tuple[int, ...]) -> Known | Moments:
        if isinstance(operand, Known):
            return _at_examples(function, operand)
        own = [index for index in range(len(shape)) if is_own(operand, index)]
        touched = touched_axes(function, operand.axes)
        uneven = uneven_axes(function, operand.axes, touched)
        operand = self._with_pairs(operand, own)
        for index in touched:
            demand_pairs(operand, index)
        kinds = [
            Kind.PAIRS if i in touched else Kind.EACH if i in uneven and axis.kind is Kind.ALIKE else axis.kind
            for i, axis in enumerate(operand.axes)
        ]
        fresh = self._fresh(len(jax.eval_shape(function, jax.ShapeDtypeStruct(shape, operand.cross.dtype)).shape))
        return self._without_unasked_pairs(mixed(in_kinds(operand, kinds), function, touched, fresh))

    def gate(self, operand: Known | Moments, slopes: Sequence[Any], shape: tuple[int, ...]) -> Known | Moments:
        if isinstance(operand, Known):
            return _at_examples(lambda array: array * jnp.where(array > 0, *slopes), operand)
        if operand.is_weight:
            raise Undefined(
                "A gate on weights: their mean is then not 0.",
                "Gate activations alone, or estimate by sampling: `ntk.sign_average`.",
            )
        if not operand.route.is_free:
            raise Undefined(
                "A gate follows another one with no weights between them, so that its values have a mean other than 0.",
                "Let a layer with weights stand between both, or estimate by sampling: `ntk.sign_average`.",
            )
        above, operand = self._factor(operand, slopes[0])
        below, operand = self._factor(operand, slopes[1])
        return rectified(operand, above, below, is_held=self._is_held)

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
                moments = without_pairs(moments, index)
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


def _check_known(matrix: Known) -> None:
    """Refuse a fixed matrix whose entries are not known while tracing: which entries it mixes is read from them."""
    if not all(map(is_concrete, matrix.sides)):
        raise Undefined(
            "A fixed matrix or filter of the state mixes activations, and its entries are not known while tracing.",
            "Close over it in `apply` instead of passing it in `state`.",
        )


def _product_with(constant: Any, numbers: Any, *, is_left: bool) -> Callable[[Any], Any]:
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

    is_one = all(operand.second is None for operand in operands)
    firsts, seconds = zip(*(operand.sides for operand in operands), strict=True)
    is_constant = all(operand.is_constant for operand in operands)
    return Known(at_once(side, *firsts), None if is_one else at_once(side, *seconds), is_constant)


def _check_untied(left: Moments, right: Moments) -> None:
    """Refuse a product of two values that depend on the same weights."""
    if share_weights(left.route, right.route):
        raise Undefined(
            "It multiplies two values that depend on the same weights: these are used twice on one path, so that their "
            "products are not independent.",
            "Give each layer weights of its own, or estimate by sampling: `ntk.sign_average`.",
        )
