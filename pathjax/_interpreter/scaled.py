"""Arrays of numbers with a power of two as their scale, so that products of any length stay within the format.

Powers of two are exact, and what chooses them stands under `stop_gradient`: derivatives are exact whatever they are.
What chooses them is as short as it can be, and the same for every array: XLA repeats it in each of its loops, and
compiles loops that are equal once.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pathjax._base.trees import wide

__all__ = ["Scaled", "at_scale", "normalized", "power_of_two", "whole"]

# The exponent of an array of zeros that takes no part in the choice of a common scale: below all others.
_OF_ZEROS = np.int32(-(2**24))


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["array", "exponent"], meta_fields=["growth", "is_checked"]
)
@dataclasses.dataclass(frozen=True)
class Scaled:
    """The numbers `array` · 2^`exponent`.

    Attributes:
        array: the scaled numbers.
        exponent: a plain float until an array has been normalized: 0.0, or −∞ for numbers that are known to be zero and
            to have no derivative, such as padding. Then a whole number, as an array.
        growth: an upper bound, in bits, on how much sums have grown since the array was last normalized.
        is_checked: whether the exponent is low if all numbers are zero, so that a common scale can ignore them.
    """

    array: Any
    exponent: Any
    growth: int = 0
    is_checked: bool = False

    @property
    def is_known_zero(self) -> bool:
        """Whether the numbers are known to be zero and to have no derivative: sums and their scale can ignore them."""
        return isinstance(self.exponent, float) and self.exponent == -math.inf

    def log_abs(self) -> jax.Array:
        """log |value|, in float32 or wider; −∞ with derivative zero where the value is 0. NaN and ∞ stay."""
        magnitude = wide(jnp.abs(self.array))
        nonzero = magnitude != 0
        logarithm = jnp.where(nonzero, jnp.log(jnp.where(nonzero, magnitude, 1.0)), -jnp.inf)
        exponent = jnp.asarray(self.exponent, logarithm.dtype)
        return logarithm + math.log(2.0) * jnp.where(nonzero, exponent, 0)

    def value(self) -> jax.Array:
        """The numbers without a scale: infinite where they overflow."""
        exponent = jnp.asarray(self.exponent, jnp.float32)
        whole = jnp.where(jnp.isfinite(exponent), exponent, 0.0)
        half = jnp.floor(whole / 2)
        factors = [power_of_two(part, self.array.dtype) for part in (half, whole - half)]
        # In two steps: 2^exponent may overflow where the product does not. A zero stays zero, whatever the exponent.
        return jnp.where(self.array == 0, 0, self.array * factors[0] * factors[1])


def power_of_two(exponent: Any, dtype: Any) -> jax.Array:
    """2^exponent for an integer exponent, exactly: 0 below the normal numbers of the type, ∞ above them."""
    form = jnp.finfo(dtype)
    biased = jnp.clip(jnp.asarray(exponent, jnp.float32) + (form.maxexp - 1), 0, 2 * form.maxexp - 1)
    return lax.bitcast_convert_type(biased.astype(f"uint{form.bits}") << form.nmant, dtype)


def normalized(array: Any, exponent: Any, *, keep_zeros: bool) -> Scaled:
    """The same numbers, scaled so that the largest |array| lies in [1, 2): exact, and invisible to derivatives.

    With `keep_zeros` an array of zeros keeps its exponent; else it gets one that is below all others.
    """
    if not array.size:
        return Scaled(array, whole(exponent), is_checked=True)
    scaled, exponent = _normalized(array, whole(exponent), keep_zeros=keep_zeros)
    return Scaled(scaled, exponent, is_checked=True)


@functools.partial(jax.jit, static_argnames="keep_zeros")
def _normalized(array: Any, exponent: Any, *, keep_zeros: bool) -> tuple[Any, Any]:
    """The array and its exponent; a program of its own, so that JAX traces and differentiates it once for a shape."""
    form = _Format.of(array.dtype)
    peak = lax.reduce_max(lax.abs(lax.stop_gradient(array)), tuple(range(array.ndim)))
    # the peak's power of two as the format stores it: its bits without the digits
    power = lax.bitwise_and(lax.bitcast_convert_type(peak, form.whole), form.power_bits)
    is_zero = lax.eq(power, form.whole(0))
    # infinity and NaN stay what they are
    power = lax.select(is_zero, form.one, lax.min(power, form.largest))
    shift = lax.convert_element_type(lax.shift_right_logical(power, form.digits), np.int32) - np.int32(form.bias)
    exponent = lax.select(is_zero, _OF_ZEROS, exponent + shift) if not keep_zeros else exponent + shift
    # the stored powers of a number and of its inverse have a constant sum
    return array * lax.bitcast_convert_type(form.whole(2 * int(form.one)) - power, form.dtype), exponent


def at_scale(scaled: Scaled, exponent: Any) -> Any:
    """The array of the numbers divided by 2^`exponent`, which is not below their own."""
    form = _Format.of(scaled.array.dtype)
    difference = lax.convert_element_type(whole(scaled.exponent) - exponent, form.whole)
    return scaled.array * _power(lax.max(difference, -form.bias), form)


def whole(exponent: Any) -> Any:
    """The exponent as a whole number that is an array, where it is known while tracing too."""
    return np.int32(max(exponent, float(_OF_ZEROS))) if isinstance(exponent, float) else exponent


class _Format(NamedTuple):
    """How a floating-point type stores its numbers, as integers of the same size.

    Attributes:
        dtype, whole: the type, and that of the integers.
        digits: how many bits hold the digits, the lowest ones; those of the power of two are above them.
        bias: what is added to the power of two.
        one, largest: the bits of 1 and of the largest power of two whose inverse is a normal number.
        power_bits: those bits that hold the power of two.
    """

    dtype: Any
    whole: Any
    digits: Any
    bias: Any
    one: Any
    largest: Any
    power_bits: Any

    @classmethod
    @functools.cache
    def of(cls, dtype: Any) -> _Format:
        form = jnp.finfo(dtype)
        whole = np.dtype(f"int{form.bits}").type
        bias = form.maxexp - 1
        stored = [whole(power << form.nmant) for power in (bias, 2 * bias - 1, 2 * bias + 1)]
        return cls(dtype, whole, whole(form.nmant), whole(bias), *stored)


def _power(exponent: Any, form: _Format) -> Any:
    """2^exponent, exactly, for an exponent of at most that of the largest number; 0 for −bias."""
    return lax.bitcast_convert_type(lax.shift_left(exponent + form.bias, form.digits), form.dtype)
