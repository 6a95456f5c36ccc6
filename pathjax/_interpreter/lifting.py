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
from pathjax._interpreter.jaxpr import Program, check_batch, is_concrete
from pathjax._interpreter.rules import interpret
from pathjax.types import Mask, Params, Real, XLike

__all__ = [
    "Lifting",
    "Scaled",
    "absolute_power",
    "check_finite",
    "lift",
    "lift_weights",
    "normalized",
    "one_example",
    "ones_like_example",
    "open_sum",
    "pair_sum",
    "power_of_two",
]


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["array", "exponent", "any_nonzero"], meta_fields=["growth"]
)
@dataclasses.dataclass(frozen=True)
class Scaled:
    """The numbers `array` · 2^`exponent`.

    The scale is a power of two, so that renormalizing is exact.

    Attributes:
        array: the scaled numbers.
        exponent: a plain float until an array has been normalized: 0.0, or −∞ for numbers that are known to be zero and
            to have no derivative, such as padding.
        any_nonzero: whether any number is nonzero; None if it has not been computed yet.
        growth: an upper bound, in bits, on how much sums have grown since the array was last normalized.
    """

    array: Any
    exponent: Any
    any_nonzero: Any = None
    growth: int = 0

    def log_abs(self) -> jax.Array:
        """log |value|, in float32 or wider; −∞ with derivative zero where the value is 0. NaN and ∞ stay."""
        magnitude = wide(jnp.abs(self.array))
        nonzero = magnitude != 0
        logarithm = jnp.where(nonzero, jnp.log(jnp.where(nonzero, magnitude, 1.0)), -jnp.inf)
        return logarithm + math.log(2.0) * jnp.where(nonzero, self.exponent, 0.0).astype(logarithm.dtype)

    def value(self) -> jax.Array:
        """The numbers without a scale: infinite where they overflow."""
        half = jnp.floor(jnp.where(jnp.isfinite(self.exponent), self.exponent, 0.0) / 2)
        whole = jnp.where(jnp.isfinite(self.exponent), self.exponent, 0.0)
        factors = [power_of_two(part, self.array.dtype) for part in (half, whole - half)]
        # In two steps: 2^exponent may overflow where the product does not. A zero stays zero, whatever the exponent.
        return jnp.where(self.array == 0, 0, self.array * factors[0] * factors[1])


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
        lifted = _known(lambda number: self._phi(jnp.asarray(number)), value)
        return Scaled(lifted, -math.inf if _is_known_zero(lifted) else 0.0)

    def shape_only(self, function: Callable[..., Any], *operands: Scaled) -> Scaled:
        arrays, exponent = self._align(operands)
        return Scaled(function(*arrays), exponent, growth=max(operand.growth for operand in operands))

    def add(self, left: Scaled, right: Scaled) -> Scaled:
        for zero, other in ((left, right), (right, left)):
            # adding a known zero, such as the mean of a batch norm at initialization
            shape = jnp.shape(other.array)
            if _is_structural_zero(zero) and np.broadcast_shapes(jnp.shape(zero.array), shape) == shape:
                return other
        left, right = self._with_any_nonzero(left), self._with_any_nonzero(right)
        (a, b), exponent = self._align((left, right))
        unread = left.any_nonzero is None or right.any_nonzero is None
        any_nonzero = None if unread else left.any_nonzero | right.any_nonzero
        return self._after_sum(Scaled(a + b, exponent, any_nonzero, max(left.growth, right.growth)), 2)

    def sum(self, operand: Scaled, axes: Sequence[int]) -> Scaled:
        terms = math.prod(operand.array.shape[axis] for axis in axes)
        total = jnp.sum(operand.array, axis=tuple(axes))
        return self._after_sum(Scaled(total, operand.exponent, growth=operand.growth), terms)

    def multiply(self, left: Scaled, right: Scaled) -> Scaled:
        return normalized(left.array * right.array, left.exponent + right.exponent)

    def scale(self, operand: Scaled, coefficient: Any) -> Scaled:
        factor = _known(lambda number: self._phi(jnp.asarray(number, operand.array.dtype)), coefficient)
        if _is_known_zero(factor):
            return Scaled(_known(operator.mul, operand.array, factor), -math.inf)
        largest = float(np.max(np.abs(factor), initial=0.0)) if is_concrete(factor) else math.inf
        if not math.isfinite(largest):
            return normalized(operand.array * factor, operand.exponent)
        shift = min(max(math.frexp(largest)[1] - 1, -_LARGEST_SHIFT), _LARGEST_SHIFT)
        any_nonzero = operand.any_nonzero if np.asarray(factor).all() else None
        product = _known(lambda array, number: array * (number * 2.0**-shift), operand.array, factor)
        # after the shift |factor| < 2, one bit of growth
        return self._after_sum(Scaled(product, operand.exponent + shift, any_nonzero, operand.growth), 2)

    def dot(self, left: Scaled, right: Scaled, dimension_numbers: Any) -> Scaled:
        # Full precision: by default, accelerators round the factors to about half of float32's digits.
        a, b = _of_one_type([left.array, right.array])
        array = lax.dot_general(a, b, dimension_numbers, precision=lax.Precision.HIGHEST)
        return normalized(array, left.exponent + right.exponent)

    def conv(self, left: Scaled, right: Scaled, convolution: Convolution) -> Scaled:
        a, b = _of_one_type([left.array, right.array])
        if self._by_patches and pays(b.size, convolution):
            array = by_patches(a, b, convolution)
        else:
            array = lax.conv_general_dilated(a, b, **convolution._asdict(), precision=lax.Precision.HIGHEST)
        return normalized(array, left.exponent + right.exponent)

    def linear(self, function: Callable[..., Any], operand: Scaled, shape: tuple[int, ...]) -> Scaled:
        return self._after_sum(
            Scaled(function(operand.array), operand.exponent, growth=operand.growth), math.prod(shape)
        )

    def as_carry(self, operand: Scaled) -> Scaled:
        if operand.growth:
            operand = normalized(operand.array, operand.exponent)
        return Scaled(operand.array, jnp.asarray(operand.exponent, jnp.float32))

    def steps(self, operand: Scaled) -> tuple[Any, Callable[[Any], Scaled]]:
        return operand.array, lambda array: Scaled(array, operand.exponent)

    def join_steps(self, steps: Scaled) -> Scaled:
        exponents = jax.vmap(self._effective_exponent)(steps)
        common = jnp.max(exponents)
        factors = power_of_two(_difference(exponents, common), steps.array.dtype)
        return Scaled(steps.array * factors.reshape(-1, *[1] * (steps.array.ndim - 1)), common)

    def gate(self, operand: Scaled, slopes: Sequence[Any], shape: tuple[int, ...]) -> Scaled:
        array = functools.reduce(lambda a, slope: a * slope.astype(a.dtype), slopes, operand.array)
        return Scaled(array, operand.exponent, growth=operand.growth)

    def _align(self, operands: Sequence[Scaled]) -> tuple[list[Any], Any]:
        """The operands' arrays at one common scale, the largest of theirs, and its exponent."""
        arrays = _of_one_type([operand.array for operand in operands])
        if len(operands) == 1:
            return arrays, operands[0].exponent
        if all(isinstance(operand.exponent, float) for operand in operands):
            common = max(operand.exponent for operand in operands)
            shifts = [common - operand.exponent for operand in operands]
            return [_shifted_down(array, bits) for array, bits in zip(arrays, shifts, strict=True)], common
        exponents = [self._effective_exponent(operand) for operand in operands]
        common = functools.reduce(lax.max, exponents)
        factors = [power_of_two(_difference(exponent, common), arrays[0].dtype) for exponent in exponents]
        return [array * factor for array, factor in zip(arrays, factors, strict=True)], common

    def _effective_exponent(self, operand: Scaled) -> Any:
        """The operand's exponent when a common one is chosen: −∞ for an array of zeros, unless `keep_zeros`."""
        exponent = jnp.asarray(operand.exponent, jnp.float32)
        if self._keep_zeros or _is_structural_zero(operand):
            return exponent
        return lax.select(self._with_any_nonzero(operand).any_nonzero, exponent, np.float32(-np.inf))

    def _with_any_nonzero(self, operand: Scaled) -> Scaled:
        """The operand with `any_nonzero` computed; with `keep_zeros` it is not needed, and left as it is."""
        if self._keep_zeros or operand.any_nonzero is not None:
            return operand
        return dataclasses.replace(operand, any_nonzero=jnp.any(lax.stop_gradient(operand.array) != 0))

    def _after_sum(self, total: Scaled, terms: int) -> Scaled:
        """`total` with the growth of a sum of `terms` terms counted, normalized before further sums could overflow."""
        growth = total.growth + math.ceil(math.log2(max(terms, 1)))
        if growth > _GROWTH_LIMIT:
            return normalized(total.array, total.exponent)
        return dataclasses.replace(total, growth=growth)


def normalized(array: Any, exponent: Any) -> Scaled:
    """The same numbers, scaled so that the largest |array| lies in [1, 2): exact, and invisible to derivatives."""
    peak = jnp.max(lax.abs(lax.stop_gradient(array)), initial=0.0)
    shift = lax.select((peak > 0) & (peak < np.inf), _whole_exponent(peak), np.float32(0.0))
    return Scaled(array * power_of_two(lax.neg(shift), array.dtype), exponent + shift, peak != 0)


def _shifted_down(array: Any, bits: float) -> Any:
    """array · 2^−bits. An infinite or NaN shift comes of the exponent −∞, whose array is zero already."""
    return array if bits in (0.0, math.inf) or math.isnan(bits) else _known(lambda a: a * 2.0**-bits, array)


def _difference(exponent: Any, common: Any) -> Any:
    """exponent − common, where −∞ − (−∞) counts as 0."""
    return jnp.where(exponent == common, 0.0, exponent - common)


def _known(function: Callable[..., Any], *arrays: Any) -> Any:
    """function(*arrays), computed at once where all arrays are known while tracing, so that the result is known too."""
    if not all(map(is_concrete, arrays)):
        return function(*arrays)
    with jax.ensure_compile_time_eval():
        return function(*arrays)


def _is_known_zero(array: Any) -> bool:
    """Whether every number of a constant is known to be zero."""
    return is_concrete(array) and not np.asarray(array).any()


def _is_structural_zero(operand: Scaled) -> bool:
    """Whether the operand is known to be zero and to have no derivative, so that sums and their scale can ignore it."""
    return isinstance(operand.exponent, float) and operand.exponent == -math.inf


def _of_one_type(arrays: Sequence[Any]) -> list[Any]:
    """The arrays in their common, widest type: networks that mix types convert values, but not the path sums."""
    dtype = jnp.result_type(*arrays)
    return [array.astype(dtype) for array in arrays]


def _whole_exponent(number: Any) -> Any:
    """The integer e with 2^e ≤ number < 2^(e+1), read from the bits of a positive number."""
    form = jnp.finfo(number.dtype)
    bits = lax.bitcast_convert_type(number, f"uint{form.bits}")
    return (bits >> form.nmant).astype(jnp.float32) - (form.maxexp - 1)


def power_of_two(exponent: Any, dtype: Any) -> jax.Array:
    """2^exponent for an integer exponent, exactly: 0 below the normal numbers of the type, ∞ above them."""
    form = jnp.finfo(dtype)
    biased = jnp.clip(jnp.asarray(exponent, jnp.float32) + (form.maxexp - 1), 0, 2 * form.maxexp - 1)
    return lax.bitcast_convert_type(biased.astype(f"uint{form.bits}") << form.nmant, dtype)


def absolute_power(q: Real) -> Callable[[Any], Any]:
    """φ(v) = |v|^q, in single precision at least; for q = 0 it is 1 where v is nonzero and 0 elsewhere."""
    if q < 0:
        raise ValueError(f"`q` must not be negative, but is {q}: a path through a weight of 0 would have no value.")
    special: dict[Real, Callable[[Any], Any]] = {
        0: lambda v: (v != 0).astype(v.dtype),
        1: jnp.abs,
        2: jnp.square,
    }
    power = special.get(q) or (lambda v: jnp.abs(v) ** q)

    def wide_power(number: Any) -> Any:
        return power(wide(number))

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
    return interpret(program, Lifting(phi, keep_zeros=keep_zeros, patches=patches), leaves, source, points=reals)


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
    product = Lifting(absolute_power(0)).multiply(*(normalized(wide(side[None]), 0.0) for side in (left, right)))
    output = lift(program, ones, product, phi=absolute_power(0), points=points)
    return dataclasses.replace(output, array=output.array[0], any_nonzero=None)


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
