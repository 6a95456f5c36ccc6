"""Sums over paths, without listing them: counts, norms and lifted networks."""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from pathjax._algebra import Algebra, Convolution, Structure
from pathjax._context import DECLARED
from pathjax._examples import mixtures, trace_apart
from pathjax._jaxpr import UnsupportedPrimitive, check_batch, is_concrete, trace
from pathjax._rules import inspect, interpret
from pathjax._trees import check_like
from pathjax.types import AnyArray, ApplyFn, Mask, Params, Real, XLike

__all__ = [
    "Layer",
    "UnsupportedPrimitive",
    "declare_gate",
    "layers",
    "log_data_gram",
    "log_path_count",
    "log_path_norm",
    "path_sum",
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
        size = jnp.abs(self.array).astype(jnp.promote_types(self.array.dtype, jnp.float32))
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
    """

    has_free_gates = True
    rolls_loops = True

    def __init__(self, phi: Callable[[Any], Any], *, keep_zeros: bool = False) -> None:
        self._phi = phi
        self._keep_zeros = keep_zeros

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
        return _normalized(left.array * right.array, left.exponent + right.exponent)

    def scale(self, operand: Scaled, coefficient: Any) -> Scaled:
        factor = _known(lambda number: self._phi(jnp.asarray(number, operand.array.dtype)), coefficient)
        if _is_known_zero(factor):
            return Scaled(_known(operator.mul, operand.array, factor), -math.inf)
        largest = float(np.max(np.abs(factor), initial=0.0)) if is_concrete(factor) else math.inf
        if not math.isfinite(largest):
            return _normalized(operand.array * factor, operand.exponent)
        bits = min(max(math.frexp(largest)[1] - 1, -_LARGEST), _LARGEST)
        live = operand.live if np.asarray(factor).all() else None
        product = _known(lambda array, number: array * (number * 2.0**-bits), operand.array, factor)
        return self._grown(Scaled(product, operand.exponent + bits, live, operand.growth), 2)

    def dot(self, left: Scaled, right: Scaled, dimension_numbers: Any) -> Scaled:
        # Full precision: accelerators would otherwise round the factors to half of float32's digits.
        a, b = _of_one_type([left.array, right.array])
        array = lax.dot_general(a, b, dimension_numbers, precision=lax.Precision.HIGHEST)
        return _normalized(array, left.exponent + right.exponent)

    def conv(self, left: Scaled, right: Scaled, convolution: Convolution) -> Scaled:
        a, b = _of_one_type([left.array, right.array])
        array = lax.conv_general_dilated(a, b, **convolution._asdict(), precision=lax.Precision.HIGHEST)
        return _normalized(array, left.exponent + right.exponent)

    def linear(self, function: Callable[..., Any], operand: Scaled, shape: tuple[int, ...]) -> Scaled:
        return self._grown(Scaled(function(operand.array), operand.exponent, growth=operand.growth), math.prod(shape))

    def settle(self, operand: Scaled) -> Scaled:
        if operand.growth:
            operand = _normalized(operand.array, operand.exponent)
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
            return _normalized(operand.array, operand.exponent)
        return dataclasses.replace(operand, growth=growth)


def _normalized(array: Any, exponent: Any) -> Scaled:
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
        return power(_wide(number))

    return wide_power


def _wide(array: Any) -> jax.Array:
    """The array in single precision at least: sums of powers leave half precision at once."""
    wide = jnp.asarray(array)
    return wide.astype(jnp.promote_types(wide.dtype, jnp.float32))


def lift(
    apply: ApplyFn,
    weights: Params,
    inputs: Any,
    *,
    phi: Callable[[Any], Any],
    points: Sequence[tuple[Params, Any]] = (),
    like: tuple[Params, XLike] | None = None,
    keep_zeros: bool = False,
) -> Scaled:
    """The lifted network: Σ over paths to each output (n, o) of weights · φ(constants) · gates · inputs.

    `weights` and `inputs` are φ(θ) and φ(x) already, so that derivatives can be taken in them; `inputs` may be scaled.
    `points` are the (θ, x) at which gates are read: none, and they are open; one, the slopes there; two, their
    products. `like` are a θ and x of the types that the network takes, where `weights` and `inputs` have others.
    """
    scaled = inputs if isinstance(inputs, Scaled) else Scaled(inputs, 0.0)
    program = trace_apart(apply, *(like or (points[0] if points else (weights, scaled.array))))
    leaves = [Scaled(_wide(leaf), 0.0) for leaf in jax.tree.leaves(weights)]
    source = dataclasses.replace(scaled, array=_wide(scaled.array))
    reals = [(jax.tree.leaves(params), x) for params, x in points]
    output, _ = interpret(program, Lifting(phi, keep_zeros=keep_zeros), leaves, source, points=reals)
    return output


def open_sum(
    apply: ApplyFn,
    weights: Params,
    inputs: Any,
    *,
    q: Real,
    like: tuple[Params, XLike] | None = None,
    keep_zeros: bool = False,
) -> Scaled:
    """The lifted network with all gates open, summed over examples and outputs."""
    output = lift(apply, weights, inputs, phi=absolute_power(q), like=like, keep_zeros=keep_zeros)
    return Scaled(jnp.sum(output.array), output.exponent)


def tied_leaves(apply: ApplyFn, params: Params, x_like: XLike) -> frozenset[int]:
    """Positions of the parameter leaves that some path may meet more than once."""
    program = trace_apart(apply, params, ones_like_example(x_like))
    return interpret(program, Structure(), [None] * len(jax.tree.leaves(params)), None)[1]


def ones_like_example(x_like: XLike) -> jax.Array:
    """One example of ones, (1, ...): the all-ones input of data-free sums."""
    check_batch(x_like)
    return jnp.ones((1, *x_like.shape[1:]), jax.dtypes.canonicalize_dtype(x_like.dtype))


def lift_weights(params: Params, phi: Callable[[Any], Any], mask: Mask | None) -> Params:
    """φ(θ) of the kept weights, zero for the pruned."""
    if mask is None:
        return jax.tree.map(lambda leaf: phi(jnp.asarray(leaf)), params)
    check_like(mask, params, name="mask")
    # φ never sees a pruned weight, so that what it is there cannot reach a derivative either
    return jax.tree.map(lambda leaf, kept: jnp.where(kept, phi(jnp.where(kept, leaf, 1)), 0), params, mask)


def log_path_norm(
    apply: ApplyFn, params: Params, x_like: XLike, *, q: Real = 1, mask: Mask | None = None
) -> Float[Array, ""]:
    """Logarithm of the path norm, log Σ_p |v_p|^q, over the paths to all outputs.

    One forward pass of the network with |θ|^q for θ and all gates open. Only the shape of `x_like` (n, ...) is read.
    Path values are carried with their scale, so that depth does not matter, in any floating-point type. Without any
    path the result is −∞. Note that it is the logarithm of the sum: the path norm's 1/q root is not taken.

    Raises UnsupportedPrimitive where a layer is not piecewise linear, and ValueError for a mask of another tree.
    Source: Neyshabur, Tomioka, Srebro (2015), "Norm-Based Capacity Control in Neural Networks"; Gebhart et al.
    (2021), section 3.

    >>> def apply(params, x):
    ...     return jnp.maximum(x @ params["first"], 0) @ params["second"]
    >>> params = {"first": jnp.full((2, 3), 0.5), "second": -jnp.ones((3, 4))}
    >>> norm = jnp.exp(log_path_norm(apply, params, jnp.zeros((5, 2))))
    >>> round(float(norm), 4)  # 2 · 3 · 4 paths of |0.5 · −1|
    12.0
    """
    weights, ones = lift_weights(params, absolute_power(q), mask), ones_like_example(x_like)
    return open_sum(apply, weights, ones, q=q, like=(params, ones)).log_abs()


def log_path_count(apply: ApplyFn, params: Params, x_like: XLike, *, mask: Mask | None = None) -> Float[Array, ""]:
    """Logarithm of the number of paths whose weights are all unpruned.

    Counts what the architecture and the mask allow, whatever the values of the weights; a constant zero on a path (a
    mask multiplied in, say) ends it. One forward pass. −∞ where no path is left. Only the shape of `x_like` is read.

    Raises UnsupportedPrimitive where a layer is not piecewise linear, and ValueError for a mask of another tree.

    >>> def apply(params, x):
    ...     return jnp.maximum(x @ params["first"], 0) @ params["second"]
    >>> params = {"first": jnp.ones((2, 3)), "second": jnp.ones((3, 4))}
    >>> round(float(jnp.exp(log_path_count(apply, params, jnp.zeros((5, 2))))))
    24
    """
    weights, ones = lift_weights(params, jnp.ones_like, mask), ones_like_example(x_like)
    return open_sum(apply, weights, ones, q=0, like=(params, ones)).log_abs()


def path_sum(
    apply: ApplyFn,
    params: Params,
    x: Float[AnyArray, "n ..."],
    *,
    q: Real = 1,
    gates: str = "open",
    mask: Mask | None = None,
) -> Float[Array, "n o"]:
    """Σ_{p→o} |v_p|^q · gate_p · |x_s(p)|^q for each example and output.

    `gates="open"` takes gate_p = 1; `gates="data"` the product a_p(x) of the slopes that the network has at x, which
    costs one more forward pass of the network itself. A path that starts at a bias has 1 for x. The sum is given as
    it is and may leave float32 in deep networks; `log_path_norm` does not.

    Raises UnsupportedPrimitive where a layer is not piecewise linear, and ValueError for unknown `gates` or a mask
    of another tree.

    >>> def apply(params, x):
    ...     return jnp.maximum(x @ params["first"], 0) @ params["second"]
    >>> params = {"first": jnp.array([[1.0, -2.0, 3.0]]), "second": -jnp.ones((3, 2))}
    >>> path_sum(apply, params, jnp.ones((1, 1))).tolist()
    [[6.0, 6.0]]
    >>> path_sum(apply, params, jnp.ones((1, 1)), gates="data").tolist()
    [[4.0, 4.0]]
    """
    if gates not in ("open", "data"):
        raise ValueError(f'`gates` must be "open" or "data", not {gates!r}.')
    check_batch(x)
    phi = absolute_power(q)
    weights, real = (lift_weights(params, function, mask) for function in (phi, lambda leaf: leaf))

    def of_example(example: jax.Array) -> jax.Array:
        point = (real, example[None])
        points = [point] if gates == "data" else []
        return lift(apply, weights, phi(example[None]), phi=phi, points=points, like=point).value()[0]

    # one scale for each example, so that a large one leaves the others their digits
    return jax.vmap(of_example)(jnp.asarray(x))


def log_data_gram(
    apply: ApplyFn,
    params: Params,
    x1: Float[AnyArray, "n ..."],
    x2: Float[AnyArray, "m ..."] | None = None,
    *,
    mask: Mask | None = None,
    chunk: int = 256,
) -> tuple[Float[Array, "n m o"], Float[Array, "n m o"]]:
    """Sign and logarithm of the data Gram K_v(x, x')_o = Σ_{p→o} a_p(x) a_p(x') x_s x'_s.

    The diagonal blocks of J_v f (J_v f)ᵀ; the others vanish, since a path ends in one output. Weights and constants do
    not enter, only which of them are there: paths with a pruned weight or a constant zero do not count, paths that
    start at a bias do. A lifted forward pass for each pair of examples, with the slopes at both. Without `x2`, all
    pairs of `x1`: exactly symmetric, one half computed and the other mirrored. Pairs go in square blocks of at most
    `chunk`, and memory is that of so many forward passes of one example; the result depends on it by rounding alone.

    Raises UnsupportedPrimitive where a layer is not piecewise linear, and ValueError for a mask of another tree, for
    examples of two shapes and for a `chunk` below 1.

    >>> def apply(params, x):
    ...     return jnp.maximum(x @ params["first"], 0) @ params["second"]
    >>> params = {"first": jnp.array([[1.0, -2.0, 3.0]]), "second": -jnp.ones((3, 2))}
    >>> sign, log_abs = log_data_gram(apply, params, jnp.array([[1.0], [2.0]]), jnp.array([[3.0], [-1.0], [1.0]]))
    >>> sign.shape, (sign * jnp.exp(log_abs))[1, :, 0].round(3).tolist()  # two units are on for x > 0, one for x < 0
    ((2, 3, 2), [12.0, 0.0, 4.0])
    """
    if chunk < 1:
        raise ValueError(f"`chunk` must be at least 1, the number of pairs at a time, but is {chunk}.")
    left, right = (jnp.asarray(x) for x in (x1, x1 if x2 is None else x2))
    for x in (left, right):
        check_batch(x)
    if left.shape[1:] != right.shape[1:]:
        raise ValueError(
            f"Examples of `x1` have shape {left.shape[1:]} and those of `x2` {right.shape[1:]}, but both go through "
            "the same network. Only the number of examples may differ."
        )
    ones = lift_weights(params, jnp.ones_like, mask)
    real = lift_weights(params, lambda leaf: leaf, mask)

    def pair(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
        points = [(real, a[None]), (real, b[None])]
        product = Lifting(absolute_power(0)).multiply(*(_normalized(_wide(side[None]), 0.0) for side in (a, b)))
        output = lift(apply, ones, product, phi=absolute_power(0), points=points)
        return jnp.sign(output.array[0]), output.log_abs()[0]

    sign, log_abs = _over_pairs(pair, left, right, side=math.isqrt(chunk), upper=x2 is None)
    return sign, log_abs


def _over_pairs(function: Callable[..., Any], left: jax.Array, right: jax.Array, *, side: int, upper: bool) -> Any:
    """function(a, b), a tree, for all pairs of rows, in blocks of side × side; with `upper`, its half mirrored.

    Inside a block what depends on one of the two alone is computed once for each row, not for each pair.
    """
    n, m = len(left), len(right)
    side = min(side, max(n, m, 1))
    rows, columns = -(-n // side), -(-m // side)
    blocks = [(i, j) for i in range(rows) for j in range(i if upper else 0, columns)]

    def all_of(a: jax.Array, b: jax.Array) -> Any:
        return jax.vmap(lambda row: jax.vmap(lambda other: function(row, other))(b))(a)

    if not blocks:
        return all_of(left, right)

    def block(at: jax.Array) -> Any:
        # past the end the last row stands in
        a = left[jnp.minimum(at[0] * side + jnp.arange(side), n - 1)]
        b = right[jnp.minimum(at[1] * side + jnp.arange(side), m - 1)]
        return all_of(a, b)

    def placed(found: jax.Array) -> jax.Array:
        inner = found.shape[3:]
        place = tuple(np.array(blocks).T)
        grid = jnp.zeros((rows, columns, side, side, *inner), found.dtype).at[place].set(found)
        whole = jnp.swapaxes(grid, 1, 2).reshape(rows * side, columns * side, *inner)[:n, :m]
        if not upper:
            return whole
        half = np.triu(np.ones((n, n), bool)).reshape(n, n, *[1] * len(inner))
        return jnp.where(half, whole, jnp.swapaxes(whole, 0, 1))

    return jax.tree.map(placed, lax.map(block, jnp.array(blocks)))


class Layer(NamedTuple):
    """What paths say of one layer.

    Attributes:
        name: as the framework names it, or the file and line where it was written.
        has_paths: whether every operation in it is piecewise linear and homogeneous.
        problems: for each operation that is not, its primitive, line, reason and remedy.
    """

    name: str
    has_paths: bool
    problems: tuple[str, ...]


def layers(apply: ApplyFn, params: Params, x_like: XLike) -> tuple[Layer, ...]:
    """Which layers of a network have paths and which do not, in the order of the network, without raising.

    The walk goes on behind an operation without a rule as if it had given a sum over paths. Computes nothing.

    >>> def apply(params, x):
    ...     with jax.named_scope("first"):
    ...         x = jnp.tanh(x @ params["first"])
    ...     with jax.named_scope("second"):
    ...         return x @ params["second"]
    >>> params = {"first": jnp.ones((2, 3)), "second": jnp.ones((3, 4))}
    >>> [(layer.name, layer.has_paths) for layer in layers(apply, params, jnp.zeros((5, 2)))]
    [('first', False), ('second', True)]
    """
    example = ones_like_example(x_like)
    program = trace(apply, params, example)
    names, refusals = inspect(program, Structure(), [None] * len(jax.tree.leaves(params)), None)
    problems: dict[str, list[str]] = {name: [] for name in names}
    for refusal in [*refusals, *mixtures(apply, params, program, example)]:
        problems.setdefault(refusal.layer, []).append(str(refusal.error))
    return tuple(Layer(name, not found, tuple(found)) for name, found in problems.items())


def declare_gate(activation: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Declare an elementwise activation to be a gate, and return it as a function to use in networks.

    For an activation whose own operations have no path rule, a kernel of your own, say. Its slopes are its derivative,
    by whatever derivative rule it has. Checked here on random probes: it must act on each entry alone, be positively
    homogeneous (f(c·x) = c·f(x) for c > 0) and piecewise linear (f(x) = f'(x)·x).

    Raises ValueError with the probe that disproves it.

    >>> @declare_gate
    ... def shrink(x):
    ...     return x * jnp.ceil(jnp.clip(x, 0.0, 1.0))
    >>> params = {"first": jnp.array([[1.0, -2.0]]), "second": jnp.ones((2, 3))}
    >>> float(path_sum(lambda p, x: shrink(x @ p["first"]) @ p["second"], params, jnp.ones((1, 1)), gates="data")[0, 0])
    1.0
    """
    _check_gate(activation)
    name = f"gate {_name_of(activation)} #{len(DECLARED)}"

    def gate(x: Any) -> Any:
        return activation(x)

    gate.__name__ = gate.__qualname__ = name
    DECLARED[name] = activation
    return functools.wraps(activation)(jax.jit(gate))


def _name_of(activation: Callable[[Any], Any]) -> str:
    return str(getattr(activation, "__qualname__", activation))


def _check_gate(activation: Callable[[Any], Any]) -> None:
    x = jnp.append(jax.random.normal(jax.random.key(0), (63,)) * jnp.logspace(-4, 4, 63), 0.0)
    value, slope = jax.jvp(activation, (x,), (jnp.ones_like(x),))
    checks: dict[str, tuple[Any, Any]] = {
        "is not positively homogeneous: f(3·x) is not 3·f(x)": (activation(3.0 * x), 3.0 * value),
        "is not piecewise linear: f(x) is not f'(x)·x": (value, slope * x),
        "does not act on each entry alone: f of a part differs from a part of f": (activation(x[:9]), value[:9]),
    }
    for problem, (found, expected) in checks.items():
        off = ~(jnp.abs(found - expected) <= 1e-4 * (1e-6 + jnp.abs(expected)))
        if bool(jnp.any(off)):
            at = int(jnp.argmax(off))
            raise ValueError(
                f"`{_name_of(activation)}` cannot be a gate; it {problem}, as at x = {float(x[at]):.4g}. Paths are "
                "defined for homogeneous piecewise-linear activations only."
            )
