"""Sums over all paths of a network without listing them: path counts, path norms and the data Gram.

`layers` says which layers of a network have paths, `kernels` which parameter leaves are kernels, and `declare_gate`
admits an activation. With a `state`, such as the running statistics of batch norm, the network is `apply(params, state,
x)` in all of them (see `pathjax.types`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from pathjax._interpreter.context import DECLARED
from pathjax._interpreter.jaxpr import UnsupportedPrimitive, check_batch, is_concrete
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
from pathjax._interpreter.traced import TracedNetwork, traced
from pathjax.types import AnyArray, ApplyFn, Inputs, Mask, Params, Prunable, Real, State, XLike

__all__ = [
    "DataGram",
    "Layer",
    "UnsupportedPrimitive",
    "declare_gate",
    "kernels",
    "layers",
    "log_data_gram",
    "log_path_count",
    "log_path_norm",
    "path_sum",
]


def log_path_norm(
    apply: ApplyFn, params: Params, x_like: XLike, *, q: Real = 1, mask: Mask | None = None, state: State = None
) -> Float[Array, ""]:
    """The logarithm of the path norm, log Σ_p |v_p|^q over all paths, for a network of any size.

    This is the logarithm of the sum itself; divide by q for the logarithm of the q-norm. It is −∞ where no path is
    left. Cost: one forward pass of the network with |θ|^q in place of θ and all gates open: activations become the
    identity, max pooling becomes sum pooling. The pass carries each array with a separate exponent, so that no depth
    overflows or underflows in any floating-point type. Only the shape and dtype of `x_like` (n, ...) are read. With a
    `state` (see `pathjax.types`) the network is `apply(params, state, x)`.

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

    Its gradient, as of any JAX function, penalizes networks of large norm in training:

    >>> penalty = lambda params: log_path_norm(apply, params, jnp.zeros((5, 2)), q=2)
    >>> jax.tree.map(jnp.shape, jax.grad(penalty)(params))
    {'first': (2, 3), 'second': (3, 4)}
    """
    return _log_open_sum(apply, params, x_like, mask, state, phi=absolute_power(q), q=q)


def log_path_count(
    apply: ApplyFn, params: Params, x_like: XLike, *, mask: Mask | None = None, state: State = None
) -> Float[Array, ""]:
    """The logarithm of the number of paths of a network, or of those that a mask leaves, without listing them.

    A path is left if all of its weights are kept. Only the architecture and the mask count: a path through a weight
    that happens to be 0 counts, a path through a constant 0 (such as a mask that `apply` multiplies in, or an entry of
    the `state`) does not. The result is −∞ where no path is left. Cost: one forward pass. Only the shape and dtype of
    `x_like` are read. With a `state` (see `pathjax.types`) the network is `apply(params, state, x)`.

    Raises UnsupportedPrimitive where a layer is not piecewise linear, ValueError for a mask of another tree and
    TypeError for one that is not boolean.

    >>> def apply(params, x):
    ...     return jnp.maximum(x @ params["first"], 0) @ params["second"]
    >>> params = {"first": jnp.ones((2, 3)), "second": jnp.ones((3, 4))}
    >>> mask = {"first": jnp.array([[True, True, False], [True, False, False]]), "second": jnp.ones((3, 4), bool)}
    >>> for each in (None, mask):
    ...     print(round(float(jnp.exp(log_path_count(apply, params, jnp.zeros((5, 2)), mask=each)))))
    24
    12
    """
    return _log_open_sum(apply, params, x_like, mask, state, phi=None, q=0)


def _log_open_sum(
    apply: ApplyFn, params: Params, x_like: XLike, mask: Mask | None, state: State, *, phi: Any, q: Real
) -> Array:
    network, ones = traced(apply, params, state), ones_like_example(x_like)
    network.path_program(ones)  # what is refused is refused before anything is compiled
    program = network.compiled(_log_sum_at, counts_paths=phi is None, q=q)
    return cast(Array, program(params, mask, ones))


def _log_sum_at(
    network: TracedNetwork, params: Params, mask: Mask | None, ones: Array, *, counts_paths: bool, q: Real
) -> Array:
    """log Σ_p |v_p|^q over all outputs, or with `counts_paths` the logarithm of the number of paths."""
    weights = lift_weights(params, jnp.ones_like if counts_paths else absolute_power(q), mask)
    return open_sum(network.path_program(ones), weights, ones, q=q).log_abs()


def path_sum(
    apply: ApplyFn,
    params: Params,
    x: Float[AnyArray, "n ..."],
    *,
    q: Real = 1,
    gates: str = "open",
    mask: Mask | None = None,
    state: State = None,
) -> Float[Array, "n o"]:
    """Sums over the paths to each output at each example, with all gates open or as they are at the example.

    The path sum is Σ_{p→o} |v_p|^q · g_p · |x_s(p)|^q for example x and output o. With `gates="open"`, g_p = 1.
    With `gates="data"`, g_p = a_p(x), the product of the slopes of the activations on path p at x. A path that
    starts at a bias has 1 in place of x_s(p). Cost: one forward pass, and one more of the network itself with
    `gates="data"`. The sums of deep networks can overflow float32; `log_path_norm` cannot. With a `state` (see
    `pathjax.types`) the network is `apply(params, state, x)`.

    Raises UnsupportedPrimitive where a layer is not piecewise linear, ValueError for unknown `gates` or a mask of
    another tree, and TypeError for a mask that is not boolean.

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
    absolute_power(q)  # raises for a negative q
    network, x = traced(apply, params, state), jnp.asarray(x)
    network.path_program(one_example(x))
    return cast(Array, network.compiled(_sums_at, q=q, opens_gates=gates == "open")(params, mask, x))


def _sums_at(
    network: TracedNetwork, params: Params, mask: Mask | None, x: Array, *, q: Real, opens_gates: bool
) -> Array:
    phi = absolute_power(q)
    weights, real = (lift_weights(params, function, mask) for function in (phi, lambda leaf: leaf))
    program = network.path_program(one_example(x))

    def sums_at(example: Array) -> Array:
        points = [] if opens_gates else [(real, example[None])]
        return lift(program, weights, phi(example[None]), phi=phi, points=points).value()[0]

    # a separate exponent for each example: with a shared one, a large example would underflow the small ones
    return jax.vmap(sums_at)(x)


class DataGram(NamedTuple):
    """A data Gram as signs and natural logarithms of absolute values: 0 and −∞ where no path is left.

    Attributes:
        sign: (n, m, o) −1, 0 or 1.
        log_abs: (n, m, o) natural logarithm of the absolute value.
    """

    sign: Float[Array, "n m o"]
    log_abs: Float[Array, "n m o"]


def log_data_gram(
    apply: ApplyFn,
    params: Params,
    x1: Float[AnyArray, "n ..."],
    x2: Float[AnyArray, "m ..."] | None = None,
    *,
    mask: Mask | None = None,
    state: State = None,
    chunk: int = 256,
) -> DataGram:
    """The data Gram, how alike two examples are by the paths that are active for both, as signs and logarithms.

    K_v(x, x')_o = Σ_{p→o} a_p(x) a_p(x') x_s x'_s for examples x, x' and output o. K_v(·, ·)_o are the diagonal blocks
    of J_v f (J_v f)ᵀ; blocks between two outputs are 0, since a path ends at one output. The values of weights and
    constants enter only through the slopes a_p: a path with a pruned weight or a constant 0 does not count, a path that
    starts at a bias does. Where no path is left the sign is 0 and the logarithm −∞. `x2` is `x1` by default; then the
    result is exactly symmetric, as one half is computed and mirrored. With a `state` (see `pathjax.types`) the network
    is `apply(params, state, x)`.

    Cost: for each pair of examples a forward pass with the slopes at both. Pairs are computed in blocks of at most
    `chunk`, which bounds the memory to that of `chunk` forward passes of one example and changes the result by
    rounding only.

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
    for x in (x1, x1 if x2 is None else x2):
        check_batch(x)
    left, right = (jnp.asarray(x) for x in (x1, x1 if x2 is None else x2))
    if left.shape[1:] != right.shape[1:]:
        raise ValueError(
            f"Examples of `x1` have shape {left.shape[1:]} and those of `x2` {right.shape[1:]}, but both go through "
            "the same network. Only the number of examples may differ."
        )
    check_finite(params, mask)
    for name, x in (("x1", left), ("x2", right)):
        _check_finite_examples(x, name)
    network = traced(apply, params, state)
    network.path_program(one_example(left))
    program = network.compiled(_data_gram, chunk=chunk, is_symmetric=x2 is None)
    return cast(DataGram, program(params, mask, left, right))


def _data_gram(
    network: TracedNetwork,
    params: Params,
    mask: Mask | None,
    left: Array,
    right: Array,
    *,
    chunk: int,
    is_symmetric: bool,
) -> DataGram:
    ones, real = (lift_weights(params, function, mask) for function in (jnp.ones_like, lambda leaf: leaf))
    program = network.path_program(one_example(left))

    def pair(a: Array, b: Array) -> DataGram:
        gram = pair_sum(program, ones, real, a, b)
        return DataGram(jnp.sign(gram.array), gram.log_abs())

    return cast(DataGram, _over_pairs(pair, left, right, chunk=chunk, upper=is_symmetric))


def _check_finite_examples(x: jax.Array, name: str) -> None:
    if is_concrete(x) and not np.isfinite(np.asarray(x)).all():
        first = int(np.isfinite(np.asarray(x)).reshape(len(x), -1).all(axis=1).argmin())
        raise ValueError(
            f"`{name}` holds NaN or infinity, first in example {first}, where activations have no slope. Remove or "
            "fill such examples."
        )


def _over_pairs(function: Callable[..., Any], left: jax.Array, right: jax.Array, *, chunk: int, upper: bool) -> Any:
    """function(left[i], right[j]), a pytree, for all pairs (i, j), computed in blocks of at most `chunk` pairs.

    With `upper`, only blocks on and above the diagonal are computed, and the upper half is mirrored. Two nested vmaps
    compute what depends on one row alone once per row of a block, not once per pair.
    """
    n, m = len(left), len(right)
    height = _even_side(n, math.isqrt(chunk))
    width = height if upper else _even_side(m, chunk // height)
    if not upper:
        height = _even_side(n, chunk // width)
    rows, columns = -(-n // height), -(-m // width)
    blocks = [(i, j) for i in range(rows) for j in range(i if upper else 0, columns)]

    def all_pairs(a: jax.Array, b: jax.Array) -> Any:
        return jax.vmap(lambda row: jax.vmap(lambda other: function(row, other))(b))(a)

    if not blocks:
        return all_pairs(left, right)

    def block_at(position: jax.Array) -> Any:
        # blocks at the edge are filled up with copies of the last row, which `assembled` cuts off
        a = left[jnp.minimum(position[0] * height + jnp.arange(height), n - 1)]
        b = right[jnp.minimum(position[1] * width + jnp.arange(width), m - 1)]
        return all_pairs(a, b)

    def assembled(values: jax.Array) -> jax.Array:
        value_shape = values.shape[3:]
        positions = tuple(np.array(blocks).T)
        grid = jnp.zeros((rows, columns, height, width, *value_shape), values.dtype).at[positions].set(values)
        table = jnp.swapaxes(grid, 1, 2).reshape(rows * height, columns * width, *value_shape)[:n, :m]
        if not upper:
            return table
        upper_half = np.triu(np.ones((n, n), bool)).reshape(n, n, *[1] * len(value_shape))
        return jnp.where(upper_half, table, jnp.swapaxes(table, 0, 1))

    return jax.tree.map(assembled, lax.map(block_at, jnp.array(blocks)))


def _even_side(count: int, most: int) -> int:
    """Length of a block where `count` rows are cut into the fewest equal blocks of at most `most` rows."""
    parts = max(1, -(-count // max(1, most)))
    return max(1, -(-count // parts))


class Layer(NamedTuple):
    """Whether paths are defined in one layer, and if not, why.

    Attributes:
        name: the framework's name of the layer, or the file and line that compute it.
        has_paths: whether every operation in the layer is piecewise linear and homogeneous.
        problems: one message for each operation that is not: its primitive, line, reason and remedy.
    """

    name: str
    has_paths: bool
    problems: tuple[str, ...]


def layers(apply: ApplyFn, params: Params, x_like: XLike, *, state: State = None) -> tuple[Layer, ...]:
    """Which layers of a network have paths and which do not, in the order of computation.

    An operation without a path rule is reported, not raised: later layers are checked as if its result were a sum over
    paths. The network is traced and not run. With a `state` (see `pathjax.types`) it is `apply(params, state, x)`.

    `x_like` may also be an array of tokens; the lookups of an embedding are then among what is reported.

    Raises ValueError for weights that are not floating point and for inputs that are not one array (n, ...). Nothing is
    raised for a layer without paths: its `problems` say what is wrong and what to do.

    >>> def apply(params, x):
    ...     with jax.named_scope("first"):
    ...         x = jnp.tanh(x @ params["first"])
    ...     with jax.named_scope("second"):
    ...         return x @ params["second"]
    >>> params = {"first": jnp.ones((2, 3)), "second": jnp.ones((3, 4))}
    >>> first, second = layers(apply, params, jnp.zeros((5, 2)))
    >>> (first.name, first.has_paths), (second.name, second.has_paths)
    (('first', False), ('second', True))
    >>> "tanh" in first.problems[0]
    True
    """
    network, example = traced(apply, params, state), one_example(x_like)
    inspection = inspect(network.program(example))
    problems: dict[str, list[str]] = {name: [] for name in inspection.layers}
    for refusal in [*inspection.refusals, *network.mixtures(example)]:
        problems.setdefault(refusal.layer, []).append(str(refusal.error))
    return tuple(Layer(name, not reasons, tuple(dict.fromkeys(reasons))) for name, reasons in problems.items())


def kernels(apply: ApplyFn, params: Params, x_like: Inputs, *, state: State = None) -> Prunable:
    """Which parameter leaves are kernels, by what they do: a predicate to pass as `prunable`.

    A kernel multiplies activations, and the products are summed over, as in dense layers and convolutions. Biases and
    positional embeddings are added, scales multiply entry by entry, and lookups pick rows; these are no kernels,
    however many axes their leaves have. Functions that prune and take an `apply`, such as `pruning.sparsify`, choose so
    by themselves; those that take none, such as `masks.from_scores` and `pruning.prune`, go by `masks.is_kernel`, which
    knows shapes and names alone.

    Of weights that are computed from several leaves, such as g · v / ‖v‖, the kernels are those with more than one axis
    of more than one entry. Weights that stand along a first axis for the steps of a loop, as under `nn.scan`, count as
    the weights of one step do. Works for any network, piecewise linear or not, and whatever it takes and returns. The
    network is traced and not run; only shapes and dtypes of `x_like`, an array or a tree of arrays, are read. With a
    `state` (see `pathjax.types`) it is `apply(params, state, x)`.

    >>> def apply(params, x):
    ...     return jax.nn.relu(x @ params["w"] + params["shift"]) @ params["v"]
    >>> params = {"shift": jnp.ones((1, 4)), "v": jnp.ones((4, 1)), "w": jnp.ones((2, 4))}
    >>> prunable = kernels(apply, params, jnp.zeros((5, 2)))
    >>> [path[0].key for path, leaf in jax.tree_util.tree_leaves_with_path(params) if prunable(path, leaf)]
    ['v', 'w']
    """
    return traced(apply, params, state).kernels(x_like)


def declare_gate(activation: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Declare an elementwise activation to be a gate; returns the activation to use in networks.

    Needed for an activation whose operations have no path rule, such as a custom kernel. Its slopes are its derivative
    under JAX, by a custom derivative rule where it has one. The activation must act on each entry alone, be positively
    homogeneous (f(c·x) = c·f(x) for c > 0) and piecewise linear (f(x) = f'(x)·x); all three are checked on 64 probes.

    Raises ValueError, with the property that fails and the probe x at which it does.

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
    for problem, (actual, expected) in checks.items():
        differs = ~(jnp.abs(actual - expected) <= 1e-4 * (1e-6 + jnp.abs(expected)))
        if bool(jnp.any(differs)):
            probe = float(x[jnp.argmax(differs)])
            raise ValueError(
                f"`{_name_of(activation)}` cannot be a gate; it {problem}, as at x = {probe:.4g}. Paths are "
                "defined for homogeneous piecewise-linear activations only."
            )
