"""Path sums as numbers: the algebra of lifted networks, where every array carries a power of two as its scale."""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import keystr, tree_flatten_with_path

from pathjax._base.trees import check_mask, wide
from pathjax._interpreter.algebra import Algebra, Convolution
from pathjax._interpreter.convolutions import by_patches, pays
from pathjax._interpreter.jaxpr import Program, check_batch
from pathjax._interpreter.known import at_once, is_concrete
from pathjax._interpreter.rules import interpret
from pathjax._interpreter.scaled import Scaled, at_scale, normalized, whole
from pathjax.types import Mask, Params, Real, XLike

__all__ = [
    "Lifting",
    "absolute_power",
    "check_finite",
    "lift",
    "lift_weights",
    "one_example",
    "ones_like_example",
    "open_sum",
    "pair_sum",
]


# Renormalize after 24 bits of growth.
_GROWTH_LIMIT = 24

# 2^120 and 2^−120 are both normal numbers of float32.
_LARGEST_SHIFT = 120


class Lifting(Algebra[Scaled]):
    """Path sums as scaled arrays: φ is applied to every constant, and gates multiply by their slopes.

    Args:
        phi: φ.
        keep_zeros: whether an array of zeros takes part in the choice of a common scale. False for values: its scale
            could make the others underflow. True for derivatives, which may be nonzero where the values are zero.
        patches: whether to write convolutions as matrix products over windows where that is faster: for one example
            it is, for many the windows take too much memory.
    """

    has_free_gates = True
    rolls_loops = True

    def __init__(self, phi: Callable[[Any], Any], *, keep_zeros: bool = False, patches: bool = False) -> None:
        self._phi = phi
        self._keep_zeros = keep_zeros
        self._by_patches = patches

    def constant(self, value: Any) -> Scaled:
        lifted = at_once(self._phi, value)
        return Scaled(lifted, -math.inf if _is_known_zero(lifted) else 0.0, is_checked=is_concrete(lifted))

    def shape_only(self, function: Callable[..., Any], *operands: Scaled) -> Scaled:
        # the entries that are left may all be zero
        return dataclasses.replace(self.rearrange(function, *operands), is_checked=False)

    def rearrange(self, function: Callable[..., Any], *operands: Scaled) -> Scaled:
        return self._joined(function, operands)

    def add(self, left: Scaled, right: Scaled) -> Scaled:
        for zero, other in ((left, right), (right, left)):
            # adding a known zero, such as the mean of a batch norm at initialization
            shape = jnp.shape(other.array)
            if zero.is_known_zero and np.broadcast_shapes(jnp.shape(zero.array), shape) == shape:
                return other
        return self._after_sum(self._joined(operator.add, (left, right)), 2)

    def sum(self, operand: Scaled, axes: Sequence[int]) -> Scaled:
        terms = math.prod(operand.array.shape[axis] for axis in axes)
        total = Scaled(jnp.sum(operand.array, axis=tuple(axes)), operand.exponent, growth=operand.growth)
        return self._after_sum(total, terms)

    def multiply(self, left: Scaled, right: Scaled) -> Scaled:
        return self._product(left.array * right.array, left, right)

    def scale(self, operand: Scaled, coefficient: Any) -> Scaled:
        factor = at_once(lambda number: self._phi(number.astype(operand.array.dtype)), coefficient)
        if _is_known_zero(factor):
            return Scaled(at_once(operator.mul, operand.array, factor), -math.inf)
        largest = float(np.max(np.abs(factor), initial=0.0)) if is_concrete(factor) else math.inf
        if not math.isfinite(largest):
            return self._normalized(operand.array * factor, operand.exponent)
        shift = min(max(math.frexp(largest)[1] - 1, -_LARGEST_SHIFT), _LARGEST_SHIFT)
        product = at_once(lambda array, number: array * (number * 2.0**-shift), operand.array, factor)
        exponent = operand.exponent + (float(shift) if isinstance(operand.exponent, float) else np.int32(shift))
        is_checked = operand.is_checked and bool(np.asarray(factor).all())
        # after the shift |factor| < 2, one bit of growth
        return self._after_sum(Scaled(product, exponent, operand.growth, is_checked), 2)

    def dot(self, left: Scaled, right: Scaled, dimension_numbers: Any) -> Scaled:
        # Full precision: by default, accelerators round the factors to about half of float32's digits.
        a, b = _of_one_type([left.array, right.array])
        array = lax.dot_general(a, b, dimension_numbers, precision=lax.Precision.HIGHEST)
        return self._product(array, left, right)

    def conv(self, left: Scaled, right: Scaled, convolution: Convolution) -> Scaled:
        a, b = _of_one_type([left.array, right.array])
        if self._by_patches and pays(b.size, convolution):
            array = by_patches(a, b, convolution)
        else:
            array = lax.conv_general_dilated(a, b, **convolution._asdict(), precision=lax.Precision.HIGHEST)
        return self._product(array, left, right)

    def linear(self, function: Callable[..., Any], operand: Scaled, shape: tuple[int, ...]) -> Scaled:
        return self._after_sum(
            Scaled(function(operand.array), operand.exponent, growth=operand.growth), math.prod(shape)
        )

    def as_carry(self, operand: Scaled) -> Scaled:
        if operand.growth:
            operand = self._normalized(operand.array, operand.exponent)
        return Scaled(operand.array, jnp.asarray(whole(operand.exponent)))

    def steps(self, operand: Scaled) -> tuple[Any, Callable[[Any], Scaled]]:
        return operand.array, lambda array: Scaled(array, operand.exponent)

    def join_steps(self, steps: Scaled) -> Scaled:
        steps = jax.vmap(self._checked)(steps)
        common = jnp.max(steps.exponent)
        arrays = jax.vmap(lambda step: at_scale(step, common))(steps)
        return Scaled(arrays, common, is_checked=steps.is_checked)

    def gate(self, operand: Scaled, slopes: Sequence[Any], shape: tuple[int, ...]) -> Scaled:
        array = functools.reduce(lambda a, slope: a * slope.astype(a.dtype), slopes, operand.array)
        return Scaled(array, operand.exponent, growth=operand.growth)

    def _product(self, array: Any, left: Scaled, right: Scaled) -> Scaled:
        """The product of two operands, from the product of their arrays."""
        if left.is_known_zero or right.is_known_zero:
            return Scaled(array, -math.inf)
        return self._normalized(array, whole(left.exponent) + whole(right.exponent))

    def _joined(self, function: Callable[..., Any], operands: Sequence[Scaled]) -> Scaled:
        """function(*arrays) of the operands' arrays at one common scale, the largest of theirs."""
        arrays = _of_one_type([operand.array for operand in operands])
        operands = [dataclasses.replace(o, array=array) for o, array in zip(operands, arrays, strict=True)]
        nonzero = [operand for operand in operands if not operand.is_known_zero] or operands[:1]
        if all(isinstance(operand.exponent, float) for operand in nonzero):
            exponent = max(operand.exponent for operand in nonzero)
            arrays = [_shifted_down(operand.array, exponent - operand.exponent) for operand in operands]
        elif len(nonzero) == 1:
            exponent = nonzero[0].exponent
        else:
            operands = [operand if operand.is_known_zero else self._checked(operand) for operand in operands]
            nonzero = [operand for operand in operands if not operand.is_known_zero]
            exponent = functools.reduce(lax.max, [whole(operand.exponent) for operand in nonzero])
            arrays = [operand.array if operand.is_known_zero else at_scale(operand, exponent) for operand in operands]
        return Scaled(
            function(*arrays),
            exponent,
            growth=max(operand.growth for operand in nonzero),
            is_checked=all(operand.is_checked for operand in nonzero),
        )

    def _normalized(self, array: Any, exponent: Any) -> Scaled:
        return normalized(array, exponent, keep_zeros=self._keep_zeros)

    def _checked(self, operand: Scaled) -> Scaled:
        """The operand, normalized if its exponent may be too high for a common scale, as it is if all are zero."""
        if self._keep_zeros or operand.is_checked:
            return operand
        return self._normalized(operand.array, operand.exponent)

    def _after_sum(self, total: Scaled, terms: int) -> Scaled:
        """`total` with the growth of a sum of `terms` terms counted, normalized before further sums could overflow."""
        growth = total.growth + math.ceil(math.log2(max(terms, 1)))
        if growth > _GROWTH_LIMIT:
            return self._normalized(total.array, total.exponent)
        return dataclasses.replace(total, growth=growth)


def _shifted_down(array: Any, bits: float) -> Any:
    """array · 2^−bits. An infinite or NaN shift comes of the exponent −∞, whose array is zero already."""
    return array if bits in (0.0, math.inf) or math.isnan(bits) else at_once(lambda a: a * 2.0**-bits, array)


def _is_known_zero(array: Any) -> bool:
    """Whether every number of a constant is known to be zero."""
    return is_concrete(array) and not np.asarray(array).any()


def _of_one_type(arrays: Sequence[Any]) -> list[Any]:
    """The arrays in their common, widest type: networks that mix types convert values, but not the path sums."""
    dtype = jnp.result_type(*arrays)
    return [array.astype(dtype) for array in arrays]


def absolute_power(q: Real) -> Callable[[Any], Any]:
    """φ(v) = |v|^q, in single precision at least; for q = 0 it is 1 where v is nonzero and 0 elsewhere."""
    if q < 0:
        raise ValueError(f"`q` must not be negative, but is {q}: a path through a weight of 0 would have no value.")
    special: dict[Real, Callable[[Any], Any]] = {
        0: lambda v: (v != 0).astype(v.dtype),
        1: abs,
        2: lambda v: v * v,
    }
    power = special.get(q) or (lambda v: abs(v) ** q)

    def wide_power(number: Any) -> Any:
        # constants that are known while tracing are NumPy's
        is_known = isinstance(number, np.ndarray | np.generic)
        return power(number.astype(jnp.promote_types(number.dtype, jnp.float32)) if is_known else wide(number))

    return wide_power


def lift(
    program: Program,
    weights: Params,
    inputs: Any,
    *,
    phi: Callable[[Any], Any],
    points: Sequence[tuple[Params, Any]] = (),
    keep_zeros: bool = False,
    patches: bool = False,
) -> Scaled:
    """The lifted network: Σ over paths to each output (n, o) of weights · φ(constants) · gates · inputs.

    `weights` and `inputs` are already φ(θ) and φ(x), so that derivatives can be taken with respect to them; `inputs`
    may be `Scaled`. `points` are the (θ, x) at which gates are evaluated. Without points all gates are open; with one
    they are the slopes there; with two, the products of the slopes.
    """
    scaled = inputs if isinstance(inputs, Scaled) else Scaled(inputs, 0.0)
    leaves = [Scaled(wide(leaf), 0.0) for leaf in jax.tree.leaves(weights)]
    source = dataclasses.replace(scaled, array=wide(scaled.array))
    reals = [(jax.tree.leaves(params), x) for params, x in points]
    algebra = Lifting(phi, keep_zeros=keep_zeros, patches=patches)
    return interpret(program, algebra, leaves, source, points=reals)


def open_sum(program: Program, weights: Params, inputs: Any, *, q: Real, keep_zeros: bool = False) -> Scaled:
    """The lifted network of one example with all gates open, summed over its outputs."""
    output = lift(program, weights, inputs, phi=absolute_power(q), keep_zeros=keep_zeros)
    return Scaled(jnp.sum(output.array), output.exponent)


def pair_sum(program: Program, ones: Params, params: Params, left: Any, right: Any) -> Scaled:
    """K_v(x, x')_o = Σ_{p→o} a_p(x) a_p(x') x_s x'_s of two examples (...), for each output (o,).

    The lifted network with all weights 1 and gates at both examples. `ones` is a pytree like `params`: 1 for kept
    weights, 0 for pruned ones.
    """
    points = [(params, left[None]), (params, right[None])]
    algebra = Lifting(absolute_power(0))
    product = algebra.multiply(*(normalized(wide(side[None]), 0.0, keep_zeros=False) for side in (left, right)))
    output = lift(program, ones, product, phi=absolute_power(0), points=points)
    return dataclasses.replace(output, array=output.array[0])


def one_example(x_like: XLike) -> jax.ShapeDtypeStruct:
    """Shape and type of one example, (1, ...)."""
    check_batch(x_like)
    return jax.ShapeDtypeStruct((1, *x_like.shape[1:]), jax.dtypes.canonicalize_dtype(x_like.dtype))


def ones_like_example(x_like: XLike) -> jax.Array:
    """The all-ones input of data-free sums: one example, (1, ...)."""
    example = one_example(x_like)
    return jnp.ones(example.shape, example.dtype)


def lift_weights(params: Params, phi: Callable[[Any], Any], mask: Mask | None) -> Params:
    """φ(θ) of the kept weights; zero for pruned ones."""
    if mask is None:
        return jax.tree.map(lambda leaf: phi(jnp.asarray(leaf)), params)
    mask = check_mask(mask, params)
    # φ is given 1 in place of a pruned weight, which may be infinite or NaN and would make derivatives NaN
    return jax.tree.map(lambda leaf, kept: jnp.where(kept, phi(jnp.where(kept, leaf, 1)), 0), params, mask)


def check_finite(params: Params, mask: Mask | None, *, squared: bool = False) -> None:
    """Raise ValueError for a kept weight that is NaN or infinite. Leaves whose values are not known are skipped.

    With `squared`, the weight's square in single precision or wider must be finite too.
    """
    leaves = tree_flatten_with_path(params)[0]
    masks = [None] * len(leaves) if mask is None else jax.tree.leaves(check_mask(mask, params))
    known = [pair for pair in zip(leaves, masks, strict=True) if is_concrete(pair[0][1]) and is_concrete(pair[1])]
    if _all_finite([leaf for (_, leaf), _ in known], [kept for _, kept in known], squared=squared):
        return
    for (path, leaf), kept in known:
        numbers = np.asarray(leaf)[np.broadcast_to(np.asarray(True if kept is None else kept), np.shape(leaf))]
        numbers = numbers.astype(jnp.promote_types(numbers.dtype, jnp.float32))
        with np.errstate(over="ignore"):
            finite = np.isfinite(np.square(numbers) if squared else numbers).all()
        if not finite:
            also = f", or whose square is infinite in {numbers.dtype}" if squared else ""
            raise ValueError(
                f"`params` at {keystr(path)} has a kept weight that is NaN or infinite{also}. Look for a training run "
                "that diverged, scale the weights down, or prune that weight."
            )


def _all_finite(leaves: Sequence[Any], masks: Sequence[Any], *, squared: bool) -> bool:
    if all(map(_is_in_host_memory, leaves)):
        return all(_is_finite_in_host_memory(leaf, kept, squared) for leaf, kept in zip(leaves, masks, strict=True))
    with jax.ensure_compile_time_eval():
        return bool(_is_all_finite(leaves, masks, squared=squared))


def _is_in_host_memory(leaf: Any) -> bool:
    return not isinstance(leaf, jax.Array) or all(device.platform == "cpu" for device in leaf.devices())


def _is_finite_in_host_memory(leaf: Any, kept: Any, squared: bool) -> bool:
    """Whether all kept weights are finite, by NumPy: nothing is compiled, and nothing is copied without a mask."""
    numbers = np.asarray(leaf)
    if numbers.size == 0:
        return True
    if kept is not None:
        numbers = np.where(np.asarray(kept), numbers, np.zeros((), numbers.dtype))
    with np.errstate(over="ignore", invalid="ignore"):
        ends = np.array([numbers.max(), numbers.min()]).astype(jnp.promote_types(numbers.dtype, jnp.float32))
        return bool(np.isfinite(np.square(ends) if squared else ends).all())


@functools.partial(jax.jit, static_argnames="squared")
def _is_all_finite(leaves: Sequence[Any], masks: Sequence[Any], *, squared: bool) -> jax.Array:
    """Whether all kept weights are finite, in one pass over them."""
    finite = jnp.asarray(True)
    for leaf, kept in zip(leaves, masks, strict=True):
        number = jnp.square(wide(leaf)) if squared else wide(leaf)
        finite &= jnp.all(jnp.isfinite(number) | (False if kept is None else ~kept))
    return finite
