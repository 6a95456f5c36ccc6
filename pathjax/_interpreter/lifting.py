"""The algebra of numbers: lifted networks, whose sums over paths are carried with their scale."""

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


@functools.partial(jax.tree_util.register_dataclass, data_fields=["array", "exponent", "live"], meta_fields=["growth"])
@dataclasses.dataclass(frozen=True)
class Scaled:
    """The numbers `array` · 2^`exponent`.

    A power of two, so that renormalizing rounds nothing. A plain float while it has not been needed: 0.0, or −∞ for
    what is known to be zero and to have no derivative, such as padding. `live` says whether any of them is not zero,
    where that has been read already; `growth` by how many bits sums may have grown since the array was normalized.
    """

    array: Any
    exponent: Any
    live: Any = None
    growth: int = 0

    def log_abs(self) -> jax.Array:
        """log |value|, in float32 or wider: −∞ for zero, with derivative zero there; NaN and ∞ as they are."""
        size = wide(jnp.abs(self.array))
        live = size != 0
        logarithm = jnp.where(live, jnp.log(jnp.where(live, size, 1.0)), -jnp.inf)
        return logarithm + math.log(2.0) * jnp.where(live, self.exponent, 0.0).astype(logarithm.dtype)

    def value(self) -> jax.Array:
        """The numbers themselves, infinite where they leave the format."""
        half = jnp.floor(jnp.where(jnp.isfinite(self.exponent), self.exponent, 0.0) / 2)
        whole = jnp.where(jnp.isfinite(self.exponent), self.exponent, 0.0)
        factors = [power_of_two(part, self.array.dtype) for part in (half, whole - half)]
        # in two steps, as the factor may leave a format that the numbers do not leave; nothing of 0 is infinite
        return jnp.where(self.array == 0, 0, self.array * factors[0] * factors[1])


# By so many bits sums may grow before they are normalized.
_ROOM = 24

# A power of two of so many bits, and its inverse, are normal numbers of float32.
_LARGEST = 120


class Lifting(Algebra[Scaled]):
    """Path sums as scaled arrays: φ of every constant, gates as real slopes.

    `keep_zeros` says what a sum that is zero throughout counts for when it joins others. For values, nothing: its
    scale must not push theirs out of the format. For derivatives it keeps its scale, since they need not be zero.
    `patches` writes out the windows of convolutions: faster for one example, too large for many.
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
            # such as the mean of a batch norm at initialization
            shape = jnp.shape(other.array)
            if _has_no_part(zero) and np.broadcast_shapes(jnp.shape(zero.array), shape) == shape:
                return other
        left, right = self._read(left), self._read(right)
        (a, b), exponent = self._align((left, right))
        live = None if left.live is None or right.live is None else left.live | right.live
        return self._grown(Scaled(a + b, exponent, live, max(left.growth, right.growth)), 2)

    def sum(self, operand: Scaled, axes: Sequence[int]) -> Scaled:
        terms = math.prod(operand.array.shape[axis] for axis in axes)
        total = jnp.sum(operand.array, axis=tuple(axes))
        return self._grown(Scaled(total, operand.exponent, growth=operand.growth), terms)

    def multiply(self, left: Scaled, right: Scaled) -> Scaled:
        return normalized(left.array * right.array, left.exponent + right.exponent)

    def scale(self, operand: Scaled, coefficient: Any) -> Scaled:
        factor = _known(lambda number: self._phi(jnp.asarray(number, operand.array.dtype)), coefficient)
        if _is_known_zero(factor):
            return Scaled(_known(operator.mul, operand.array, factor), -math.inf)
        largest = float(np.max(np.abs(factor), initial=0.0)) if is_concrete(factor) else math.inf
        if not math.isfinite(largest):
            return normalized(operand.array * factor, operand.exponent)
        bits = min(max(math.frexp(largest)[1] - 1, -_LARGEST), _LARGEST)
        live = operand.live if np.asarray(factor).all() else None
        product = _known(lambda array, number: array * (number * 2.0**-bits), operand.array, factor)
        return self._grown(Scaled(product, operand.exponent + bits, live, operand.growth), 2)

    def dot(self, left: Scaled, right: Scaled, dimension_numbers: Any) -> Scaled:
        # Full precision: accelerators would otherwise round the factors to half of float32's digits.
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
        return self._grown(Scaled(function(operand.array), operand.exponent, growth=operand.growth), math.prod(shape))

    def settle(self, operand: Scaled) -> Scaled:
        if operand.growth:
            operand = normalized(operand.array, operand.exponent)
        return Scaled(operand.array, jnp.asarray(operand.exponent, jnp.float32))

    def steps(self, operand: Scaled) -> tuple[Any, Callable[[Any], Scaled]]:
        return operand.array, lambda array: Scaled(array, operand.exponent)

    def join_steps(self, steps: Scaled) -> Scaled:
        exponents = jax.vmap(self._weight)(steps)
        common = jnp.max(exponents)
        factors = power_of_two(_shift(exponents, common), steps.array.dtype)
        return Scaled(steps.array * factors.reshape(-1, *[1] * (steps.array.ndim - 1)), common)

    def gate(self, operand: Scaled, slopes: Sequence[Any], shape: tuple[int, ...]) -> Scaled:
        array = functools.reduce(lambda a, slope: a * slope.astype(a.dtype), slopes, operand.array)
        return Scaled(array, operand.exponent, growth=operand.growth)

    def _align(self, operands: Sequence[Scaled]) -> tuple[list[Any], Any]:
        """The operands' arrays at one common scale, the largest."""
        arrays = _of_one_type([operand.array for operand in operands])
        if len(operands) == 1:
            return arrays, operands[0].exponent
        if all(isinstance(operand.exponent, float) for operand in operands):
            known = max(operand.exponent for operand in operands)
            return [_lowered(a, known - operand.exponent) for a, operand in zip(arrays, operands, strict=True)], known
        exponents = [self._weight(operand) for operand in operands]
        common = functools.reduce(lax.max, exponents)
        factors = [power_of_two(_shift(exponent, common), arrays[0].dtype) for exponent in exponents]
        return [array * factor for array, factor in zip(arrays, factors, strict=True)], common

    def _weight(self, operand: Scaled) -> Any:
        """The exponent with which the operand takes part in the choice of a common one."""
        exponent = jnp.asarray(operand.exponent, jnp.float32)
        if self._keep_zeros or _has_no_part(operand):
            return exponent
        return lax.select(self._read(operand).live, exponent, np.float32(-np.inf))

    def _read(self, operand: Scaled) -> Scaled:
        """The operand, knowing whether any of its numbers is not zero, where that matters."""
        if self._keep_zeros or operand.live is not None:
            return operand
        return dataclasses.replace(operand, live=jnp.any(lax.stop_gradient(operand.array) != 0))

    def _grown(self, operand: Scaled, terms: int) -> Scaled:
        """A sum of so many terms, normalized before sums of sums could leave the format."""
        growth = operand.growth + math.ceil(math.log2(max(terms, 1)))
        if growth > _ROOM:
            return normalized(operand.array, operand.exponent)
        return dataclasses.replace(operand, growth=growth)


def normalized(array: Any, exponent: Any) -> Scaled:
    """The same numbers with the largest in [1, 2): exact, and of no influence on derivatives."""
    peak = jnp.max(lax.abs(lax.stop_gradient(array)), initial=0.0)
    shift = lax.select((peak > 0) & (peak < np.inf), _whole_exponent(peak), np.float32(0.0))
    return Scaled(array * power_of_two(lax.neg(shift), array.dtype), exponent + shift, peak != 0)


def _lowered(array: Any, bits: float) -> Any:
    """The array at a scale higher by so many bits; ∞ is that of zeros."""
    return array if bits in (0.0, math.inf) or math.isnan(bits) else _known(lambda a: a * 2.0**-bits, array)


def _shift(exponent: Any, common: Any) -> Any:
    """How far below the common exponent one lies; −∞ lies level with itself."""
    return jnp.where(exponent == common, 0.0, exponent - common)


def _known(function: Callable[..., Any], *arrays: Any) -> Any:
    """function(*arrays): at once where the arrays are known, so that the result is known too."""
    if not all(map(is_concrete, arrays)):
        return function(*arrays)
    with jax.ensure_compile_time_eval():
        return function(*arrays)


def _is_known_zero(array: Any) -> bool:
    """Whether every number of a constant is known to be zero."""
    return is_concrete(array) and not np.asarray(array).any()


def _has_no_part(operand: Scaled) -> bool:
    """Whether it is known to be zero and to have no derivative: it takes no part in a sum, nor in its scale."""
    return isinstance(operand.exponent, float) and operand.exponent == -math.inf


def _of_one_type(arrays: Sequence[Any]) -> list[Any]:
    """The arrays in the widest of their types: a network may mix them, and its conversions leave sums as they are."""
    dtype = jnp.result_type(*arrays)
    return [array.astype(dtype) for array in arrays]


def _whole_exponent(number: Any) -> Any:
    """The whole e with 2^e ≤ number < 2^(e+1), read from the bits of a positive number."""
    form = jnp.finfo(number.dtype)
    bits = lax.bitcast_convert_type(number, f"uint{form.bits}")
    return (bits >> form.nmant).astype(jnp.float32) - (form.maxexp - 1)


def power_of_two(exponent: Any, dtype: Any) -> jax.Array:
    """2^exponent for whole exponents, exactly: 0 below the normal numbers of the type, infinite above."""
    form = jnp.finfo(dtype)
    biased = jnp.clip(jnp.asarray(exponent, jnp.float32) + (form.maxexp - 1), 0, 2 * form.maxexp - 1)
    return lax.bitcast_convert_type(biased.astype(f"uint{form.bits}") << form.nmant, dtype)


def absolute_power(q: Real) -> Callable[[Any], Any]:
    """φ(v) = |v|^q, in single precision at least; for q = 0, whether v is not zero."""
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

    `weights` and `inputs` are φ(θ) and φ(x) already, so that derivatives can be taken in them; `inputs` may be scaled.
    `points` are the (θ, x) at which gates are read: none, and they are open; one, the slopes there; two, their
    products.
    """
    scaled = inputs if isinstance(inputs, Scaled) else Scaled(inputs, 0.0)
    leaves = [Scaled(wide(leaf), 0.0) for leaf in jax.tree.leaves(weights)]
    source = dataclasses.replace(scaled, array=wide(scaled.array))
    reals = [(jax.tree.leaves(params), x) for params, x in points]
    output, _ = interpret(program, Lifting(phi, keep_zeros=keep_zeros, patches=patches), leaves, source, points=reals)
    return output


def open_sum(program: Program, weights: Params, inputs: Any, *, q: Real, keep_zeros: bool = False) -> Scaled:
    """The lifted network of one example with all gates open, summed over its outputs."""
    output = lift(program, weights, inputs, phi=absolute_power(q), keep_zeros=keep_zeros)
    return Scaled(jnp.sum(output.array), output.exponent)


def pair_sum(program: Program, ones: Params, params: Params, left: Any, right: Any) -> Scaled:
    """K_v(x, x')_o = Σ_{p→o} a_p(x) a_p(x') x_s x'_s of two examples (...), for each output (o,).

    The lifted network of weights 1, with the slopes at both. `ones` are 1 where `params` are kept and 0 elsewhere.
    """
    points = [(params, left[None]), (params, right[None])]
    product = Lifting(absolute_power(0)).multiply(*(normalized(wide(side[None]), 0.0) for side in (left, right)))
    output = lift(program, ones, product, phi=absolute_power(0), points=points)
    return dataclasses.replace(output, array=output.array[0], live=None)


def one_example(x_like: XLike) -> jax.ShapeDtypeStruct:
    """Shape and type of one example, (1, ...)."""
    check_batch(x_like)
    return jax.ShapeDtypeStruct((1, *x_like.shape[1:]), jax.dtypes.canonicalize_dtype(x_like.dtype))


def ones_like_example(x_like: XLike) -> jax.Array:
    """One example of ones, (1, ...): the all-ones input of data-free sums."""
    example = one_example(x_like)
    return jnp.ones(example.shape, example.dtype)


def lift_weights(params: Params, phi: Callable[[Any], Any], mask: Mask | None) -> Params:
    """φ(θ) of the kept weights, zero for the pruned."""
    if mask is None:
        return jax.tree.map(lambda leaf: phi(jnp.asarray(leaf)), params)
    check_mask(mask, params)
    # φ never sees a pruned weight, so that what it is there cannot reach a derivative either
    return jax.tree.map(lambda leaf, kept: jnp.where(kept, phi(jnp.where(kept, leaf, 1)), 0), params, mask)


def check_finite(params: Params, mask: Mask | None, *, squared: bool = False) -> None:
    """Raise ValueError for a kept weight that is NaN or infinite, as far as values can be read.

    `squared` says that its square in single precision or wider has to be finite too.
    """
    leaves = tree_flatten_with_path(params)[0]
    masks = [True] * len(leaves) if mask is None else jax.tree.leaves(mask)
    for (path, leaf), kept in zip(leaves, masks, strict=True):
        if not is_concrete(leaf) or not is_concrete(kept):
            continue
        numbers = np.asarray(leaf)[np.broadcast_to(np.asarray(kept), np.shape(leaf))]
        numbers = numbers.astype(jnp.promote_types(numbers.dtype, jnp.float32))
        with np.errstate(over="ignore"):
            finite = np.isfinite(np.square(numbers) if squared else numbers).all()
        if not finite:
            also = f", or whose square is infinite in {numbers.dtype}" if squared else ""
            raise ValueError(
                f"`params` at {keystr(path)} has a kept weight that is NaN or infinite{also}. Look for a training run "
                "that diverged, scale the weights down, or prune that weight."
            )
