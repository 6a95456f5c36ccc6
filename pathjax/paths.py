"""Sums over paths, without listing them: counts, norms and the data Gram."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from pathjax._interpreter.algebra import Structure
from pathjax._interpreter.context import DECLARED
from pathjax._interpreter.jaxpr import UnsupportedPrimitive, check_batch, check_floating, is_concrete
from pathjax._interpreter.lifting import (
    absolute_power,
    check_finite,
    lift,
    lift_weights,
    one_example,
    ones_like_example,
    open_sum,
    pair_sum,
)
from pathjax._interpreter.rules import inspect
from pathjax._interpreter.traced import traced
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


def log_path_norm(
    apply: ApplyFn, params: Params, x_like: XLike, *, q: Real = 1, mask: Mask | None = None
) -> Float[Array, ""]:
    """Logarithm of the path norm, log Σ_p |v_p|^q, over the paths to all outputs.

    One forward pass of the network with |θ|^q for θ and all gates open. Only the shape of `x_like` (n, ...) is read.
    Path values are carried with their scale, so that depth does not matter, in any floating-point type. Without any
    path the result is −∞. Note that it is the logarithm of the sum: the path norm's 1/q root is not taken.

    Raises UnsupportedPrimitive where a layer is not piecewise linear, ValueError for a mask of another tree and
    TypeError for one that is not boolean.
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
    return open_sum(traced(apply, params).path_program(ones), weights, ones, q=q).log_abs()


def log_path_count(apply: ApplyFn, params: Params, x_like: XLike, *, mask: Mask | None = None) -> Float[Array, ""]:
    """Logarithm of the number of paths whose weights are all unpruned.

    Counts what the architecture and the mask allow, whatever the values of the weights; a constant zero on a path (a
    mask multiplied in, say) ends it. One forward pass. −∞ where no path is left. Only the shape of `x_like` is read.

    Raises UnsupportedPrimitive where a layer is not piecewise linear, ValueError for a mask of another tree and
    TypeError for one that is not boolean.

    >>> def apply(params, x):
    ...     return jnp.maximum(x @ params["first"], 0) @ params["second"]
    >>> params = {"first": jnp.ones((2, 3)), "second": jnp.ones((3, 4))}
    >>> round(float(jnp.exp(log_path_count(apply, params, jnp.zeros((5, 2))))))
    24
    """
    weights, ones = lift_weights(params, jnp.ones_like, mask), ones_like_example(x_like)
    return open_sum(traced(apply, params).path_program(ones), weights, ones, q=0).log_abs()


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
    program = traced(apply, params).path_program(one_example(x))

    def of_example(example: jax.Array) -> jax.Array:
        points = [(real, example[None])] if gates == "data" else []
        return lift(program, weights, phi(example[None]), phi=phi, points=points).value()[0]

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
    start at a bias do. Where no path is left, sign 0 and logarithm −∞. A lifted forward pass for each pair of examples,
    with the slopes at both. Without `x2`, all pairs of `x1`: exactly symmetric, one half computed and the other
    mirrored. Pairs go in blocks of at most `chunk`, and memory is that of so many forward passes of one example; the
    result depends on it by rounding alone.

    Raises UnsupportedPrimitive where a layer is not piecewise linear, TypeError for a mask that is not boolean, and
    ValueError for a mask of another tree, for examples of two shapes, for a `chunk` below 1 and, where values can be
    read, for kept weights or examples that are NaN or infinite.

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
    check_finite(params, mask)
    for name, x in (("x1", left), ("x2", right)):
        _check_finite_examples(x, name)
    real = lift_weights(params, lambda leaf: leaf, mask)
    program = traced(apply, params).path_program(one_example(left))

    def pair(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
        gram = pair_sum(program, ones, real, a, b)
        return jnp.sign(gram.array), gram.log_abs()

    sign, log_abs = _over_pairs(pair, left, right, chunk=chunk, upper=x2 is None)
    return sign, log_abs


def _check_finite_examples(x: jax.Array, name: str) -> None:
    if is_concrete(x) and not np.isfinite(np.asarray(x)).all():
        first = int(np.isfinite(np.asarray(x)).reshape(len(x), -1).all(axis=1).argmin())
        raise ValueError(
            f"`{name}` holds NaN or infinity, first in example {first}, where no gate has a slope. Remove or fill such "
            "examples."
        )


def _over_pairs(function: Callable[..., Any], left: jax.Array, right: jax.Array, *, chunk: int, upper: bool) -> Any:
    """function(a, b), a tree, for all pairs of rows, in blocks of at most `chunk`; with `upper`, its half mirrored.

    Inside a block what depends on one of the two alone is computed once for each row, not for each pair.
    """
    n, m = len(left), len(right)
    height = _even_side(n, math.isqrt(chunk))
    width = height if upper else _even_side(m, chunk // height)
    if not upper:
        height = _even_side(n, chunk // width)
    rows, columns = -(-n // height), -(-m // width)
    blocks = [(i, j) for i in range(rows) for j in range(i if upper else 0, columns)]

    def all_of(a: jax.Array, b: jax.Array) -> Any:
        return jax.vmap(lambda row: jax.vmap(lambda other: function(row, other))(b))(a)

    if not blocks:
        return all_of(left, right)

    def block(at: jax.Array) -> Any:
        # past the end the last row stands in
        a = left[jnp.minimum(at[0] * height + jnp.arange(height), n - 1)]
        b = right[jnp.minimum(at[1] * width + jnp.arange(width), m - 1)]
        return all_of(a, b)

    def placed(found: jax.Array) -> jax.Array:
        inner = found.shape[3:]
        place = tuple(np.array(blocks).T)
        grid = jnp.zeros((rows, columns, height, width, *inner), found.dtype).at[place].set(found)
        whole = jnp.swapaxes(grid, 1, 2).reshape(rows * height, columns * width, *inner)[:n, :m]
        if not upper:
            return whole
        half = np.triu(np.ones((n, n), bool)).reshape(n, n, *[1] * len(inner))
        return jnp.where(half, whole, jnp.swapaxes(whole, 0, 1))

    return jax.tree.map(placed, lax.map(block, jnp.array(blocks)))


def _even_side(count: int, most: int) -> int:
    """The length of as few parts of at most `most` as hold `count`, all alike."""
    parts = max(1, -(-count // max(1, most)))
    return max(1, -(-count // parts))


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
    network, example = traced(apply, params), one_example(x_like)
    check_floating(params, example)
    weights = [None for _ in network.leaf_types]
    inspection = inspect(network.program(example), Structure(), weights, None)
    problems: dict[str, list[str]] = {name: [] for name in inspection.layers}
    for refusal in [*inspection.refusals, *network.mixtures(example)]:
        problems.setdefault(refusal.layer, []).append(str(refusal.error))
    return tuple(Layer(name, not reasons, tuple(reasons)) for name, reasons in problems.items())


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
