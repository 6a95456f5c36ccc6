"""Traced functions evaluated by NumPy, one equation after the other: nothing is compiled, however new the shapes.

A random network has shapes of its own, and XLA compiles each new shape for longer than NumPy takes to compute it. What
is traced is all of pathjax's code and JAX's derivatives, as under `jax.jit`; NumPy takes XLA's place alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import pjit
from jax._src.interpreters import pxla
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal
from numpy.lib.stride_tricks import sliding_window_view

from pathjax._interpreter import probes, rules
from pathjax._interpreter.jaxpr import Equation


@contextlib.contextmanager
def numpy_for_xla() -> Iterator[None]:
    """Within it, NumPy evaluates what JAX would compile: functions under `jax.jit`, and operations of new shapes.

    JAX offers no such switch, so its innermost function is replaced, which only versions that were tried with it are.
    """
    if not jax.__version__.startswith("0.10."):
        yield
        return
    compile_and_run = pjit._pjit_call_impl_python
    device = jax.devices()[0]
    sharding = jax.sharding.SingleDeviceSharding(device)

    def run(*arguments: Any, jaxpr: ClosedJaxpr, **options: Any) -> Any:
        if _is_unknown(jaxpr):
            return compile_and_run(*arguments, jaxpr=jaxpr, **options)
        with np.errstate(all="ignore"):
            arrays = _run(jaxpr, [np.asarray(argument) for argument in arguments])
        placed = [
            pxla.batched_device_put(aval, sharding, [array], [device], False)
            for aval, array in zip(jaxpr.out_avals, arrays, strict=True)
        ]
        return placed, None, None, []

    with mock.patch.object(pjit, "_pjit_call_impl_python", run):
        yield


@contextlib.contextmanager
def probed_once() -> Iterator[None]:
    """Within it, each call's derivative rule is probed once, and not again by every walk that meets the equation."""
    slopes: dict[JaxprEqn, float] = {}

    def slope_at_zero(call: Equation) -> float:
        if call.source not in slopes:
            slopes[call.source] = probes.slope_at_zero(call)
        return slopes[call.source]

    with mock.patch.object(rules, "slope_at_zero", slope_at_zero):
        yield


def _is_unknown(program: ClosedJaxpr) -> bool:
    """Whether it is about random keys, or one operation that NumPy is not told how to do."""
    avals: list[Any] = [*program.in_avals, *program.out_avals]
    if any(jnp.issubdtype(aval.dtype, jax.dtypes.extended) for aval in avals):
        return True
    names = [equation.primitive.name for equation in program.eqns]
    return len(names) == 1 and names[0] not in {*_CALLED, *_ENTRY_BY_ENTRY, *_ONE_RESULT, *_SEVERAL_RESULTS}


def _run(program: ClosedJaxpr | Jaxpr, arguments: Sequence[np.ndarray]) -> list[np.ndarray]:
    jaxpr, constants = (program.jaxpr, program.consts) if isinstance(program, ClosedJaxpr) else (program, [])
    values = dict(zip(jaxpr.constvars, map(np.asarray, constants), strict=True))
    values.update(zip(jaxpr.invars, arguments, strict=True))

    def read(atom: Any) -> np.ndarray:
        if not isinstance(atom, Literal):
            return values[atom]
        aval: Any = atom.aval
        return np.asarray(atom.val, aval.dtype)

    for equation in jaxpr.eqns:
        operands = [read(atom) for atom in equation.invars]
        results = _results(equation, operands)
        for variable, array in zip(equation.outvars, results, strict=True):
            expected: Any = variable.aval
            assert (array.shape, array.dtype) == (expected.shape, expected.dtype), f"{equation} gave {array}"
            values[variable] = array
    return [read(atom) for atom in jaxpr.outvars]


def _results(equation: Any, operands: list[np.ndarray]) -> list[np.ndarray]:
    name, params = equation.primitive.name, equation.params
    if name in _ENTRY_BY_ENTRY:
        return [np.asarray(_ENTRY_BY_ENTRY[name](*operands))]
    if name in _ONE_RESULT:
        return [_ONE_RESULT[name](*operands, **params)]
    if name in _SEVERAL_RESULTS:
        return _SEVERAL_RESULTS[name](*operands, **params)
    if name in _CALLED:
        return _run(params[_CALLED[name]], operands)
    results = equation.primitive.bind(*operands, **equation.primitive.get_bind_params(params))
    return [np.asarray(array) for array in (results if equation.primitive.multiple_results else [results])]


# Moving, choosing and adding


def _broadcast(x, *, shape, broadcast_dimensions, **_):
    axes = [1] * len(shape)
    for axis, length in zip(broadcast_dimensions, x.shape, strict=True):
        axes[axis] = length
    return np.broadcast_to(x.reshape(axes), shape)


def _pad(x, value, *, padding_config):
    for axis, (before, after, between) in enumerate(padding_config):
        length = x.shape[axis] + max(x.shape[axis] - 1, 0) * between
        wide = np.full((*x.shape[:axis], before + length + after, *x.shape[axis + 1 :]), value, x.dtype)
        # a negative width cuts entries off
        places = before + np.arange(x.shape[axis]) * (between + 1)
        kept = (places >= 0) & (places < wide.shape[axis])
        np.moveaxis(wide, axis, 0)[places[kept]] = np.moveaxis(x, axis, 0)[kept]
        x = wide
    return x


def _dot(a, b, *, dimension_numbers, **_):
    (contracted_a, contracted_b), (batch_a, batch_b) = dimension_numbers
    free_a, free_b = (
        [axis for axis in range(x.ndim) if axis not in (*contracted, *batch)]
        for x, contracted, batch in ((a, contracted_a, batch_a), (b, contracted_b, batch_b))
    )
    shape = [a.shape[i] for i in (*batch_a, *free_a)] + [b.shape[i] for i in free_b]
    batch = [a.shape[i] for i in batch_a]
    length = int(np.prod([a.shape[i] for i in contracted_a], dtype=int))
    rows, columns = (int(np.prod([x.shape[i] for i in free], dtype=int)) for x, free in ((a, free_a), (b, free_b)))
    left = a.transpose(*batch_a, *free_a, *contracted_a).reshape(*batch, rows, length)
    right = b.transpose(*batch_b, *contracted_b, *free_b).reshape(*batch, length, columns)
    return (left @ right).reshape(shape)


def _windows(x, value, window, strides, padding, dilation, window_dilation):
    """The windows of the last axes, (..., *positions, *window)."""
    rest = [(0, 0, 0)] * (x.ndim - len(window))
    x = _pad(x, value, padding_config=[*rest, *((*pair, d - 1) for pair, d in zip(padding, dilation, strict=True))])
    axes = tuple(range(len(rest), x.ndim))
    spans = [(size - 1) * d + 1 for size, d in zip(window, window_dilation, strict=True)]
    windows = sliding_window_view(x, spans, axis=axes)
    every = [slice(None)] * len(rest)
    return windows[tuple(every + [slice(None, None, step) for step in (*strides, *window_dilation)])]


def _conv(x, kernel, *, window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers, feature_group_count,
          batch_group_count, **_):  # fmt: skip
    x, kernel = x.transpose(dimension_numbers.lhs_spec), kernel.transpose(dimension_numbers.rhs_spec)
    windows = _windows(x, 0, kernel.shape[2:], window_strides, padding, lhs_dilation, rhs_dilation)
    groups, n = max(feature_group_count, batch_group_count), len(kernel.shape[2:])
    if feature_group_count > 1:
        windows = windows.reshape(len(windows), groups, -1, *windows.shape[2:])
    else:
        windows = np.moveaxis(windows.reshape(groups, -1, *windows.shape[1:]), 0, 1)
    kernel = kernel.reshape(groups, -1, *kernel.shape[1:])
    # windows: (example, group, channel, *positions, *taps); kernel: (group, feature, channel, *taps)
    positions, taps = list(range(4, 4 + n)), list(range(4 + n, 4 + 2 * n))
    y = np.einsum(windows, [0, 1, 2, *positions, *taps], kernel, [1, 3, 2, *taps], [0, 1, 3, *positions])
    y = y.reshape(len(y), -1, *y.shape[3:])
    return y.transpose(np.argsort(dimension_numbers.out_spec))


def _reduce_windows(reduce, value):
    def reduced(x, *, window_dimensions, window_strides, padding, base_dilation, window_dilation):
        windows = _windows(x, value, window_dimensions, window_strides, padding, base_dilation, window_dilation)
        return reduce(windows, axis=tuple(range(x.ndim, 2 * x.ndim)))

    return reduced


def _sum(x, *, axes, **_):
    return np.asarray(np.sum(x, axis=tuple(axes), dtype=x.dtype))


def _cumulate(x, *, axis, reverse):
    x = np.flip(x, axis) if reverse else x
    sums = np.cumsum(x, axis, dtype=x.dtype)
    return np.flip(sums, axis) if reverse else sums


def _split(x, *, sizes, axis):
    return np.split(x, np.cumsum(sizes)[:-1], axis)


def _slice(x, *, start_indices, limit_indices, strides):
    strides = strides or (1,) * x.ndim
    return x[tuple(map(slice, start_indices, limit_indices, strides))]


def _dynamic_slice(x, *starts, slice_sizes):
    firsts = (int(np.clip(s, 0, n - k)) for s, n, k in zip(starts, x.shape, slice_sizes, strict=True))
    return x[tuple(slice(first, first + k) for first, k in zip(firsts, slice_sizes, strict=True))]


def _scan(*operands, jaxpr, length, reverse, num_consts, num_carry, **_):
    constants, carry = operands[:num_consts], list(operands[num_consts : num_consts + num_carry])
    stacked: list[list[np.ndarray]] = []
    for i in reversed(range(length)) if reverse else range(length):
        results = _run(jaxpr, [*constants, *carry, *(array[i] for array in operands[num_consts + num_carry :])])
        carry = results[:num_carry]
        stacked.append(results[num_carry:])
    ordered = stacked[::-1] if reverse else stacked
    return [*carry, *(np.stack(arrays) for arrays in zip(*ordered, strict=True))]


def _while(*operands, cond_jaxpr, cond_nconsts, body_jaxpr, body_nconsts, **_):
    of_condition, of_body = operands[:cond_nconsts], operands[cond_nconsts : cond_nconsts + body_nconsts]
    carry = list(operands[cond_nconsts + body_nconsts :])
    while _run(cond_jaxpr, [*of_condition, *carry])[0]:
        carry = _run(body_jaxpr, [*of_body, *carry])
    return carry


# The parameter that holds what is called.
_CALLED = {"jit": "jaxpr", "remat2": "jaxpr", "custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr"}

_ENTRY_BY_ENTRY: dict[str, Callable[..., Any]] = {
    "abs": np.abs, "add": np.add, "add_any": np.add, "and": np.bitwise_and, "clamp": lambda low, x, high: np.clip(
        x, low, high), "copy": np.asarray, "div": np.divide, "eq": np.equal, "exp": np.exp, "floor": np.floor,
    "ge": np.greater_equal, "gt": np.greater, "is_finite": np.isfinite, "le": np.less_equal, "log": np.log,
    "lt": np.less, "max": np.maximum, "min": np.minimum, "mul": np.multiply, "ne": np.not_equal, "neg": np.negative,
    "not": np.invert, "or": np.bitwise_or, "select_n": lambda which, *cases: np.choose(which, cases),
    "shift_left": np.left_shift, "shift_right_logical": np.right_shift, "sign": np.sign, "sqrt": np.sqrt,
    "square": np.square, "stage": np.asarray, "stop_gradient": np.asarray, "sub": np.subtract,
}  # fmt: skip

_ONE_RESULT: dict[str, Callable[..., Any]] = {
    "argmax": lambda x, axes, index_dtype: np.asarray(np.argmax(x, axes[0]).astype(index_dtype)),
    "bitcast_convert_type": lambda x, new_dtype: x.view(new_dtype),
    "broadcast_in_dim": _broadcast,
    "concatenate": lambda *x, dimension: np.concatenate(x, dimension),
    "conv_general_dilated": _conv,
    "convert_element_type": lambda x, new_dtype, **_: x.astype(new_dtype),
    "cumsum": _cumulate,
    "dot_general": _dot,
    "dynamic_slice": _dynamic_slice,
    "integer_pow": lambda x, y: np.power(x, y),
    "iota": lambda dtype, shape, dimension, **_: _broadcast(
        np.arange(shape[dimension], dtype=dtype), shape=shape, broadcast_dimensions=[dimension]
    ),
    "pad": _pad,
    "reduce_max": lambda x, axes, **_: np.asarray(np.max(x, axis=tuple(axes))),
    "reduce_min": lambda x, axes, **_: np.asarray(np.min(x, axis=tuple(axes))),
    "reduce_and": lambda x, axes, **_: np.asarray(np.all(x, axis=tuple(axes))),
    "reduce_or": lambda x, axes, **_: np.asarray(np.any(x, axis=tuple(axes))),
    "reduce_sum": _sum,
    "reduce_window_max": _reduce_windows(np.max, -np.inf),
    "reduce_window_min": _reduce_windows(np.min, np.inf),
    "reduce_window_sum": _reduce_windows(np.sum, 0),
    "reshape": lambda x, new_sizes, dimensions, **_: x.transpose(dimensions or range(x.ndim)).reshape(new_sizes),
    "rev": lambda x, dimensions: np.flip(x, dimensions),
    "slice": _slice,
    "squeeze": lambda x, dimensions: np.squeeze(x, tuple(dimensions)),
    "stack": lambda *x, axis: np.stack(x, axis),
    "transpose": lambda x, permutation: x.transpose(permutation),
}

_SEVERAL_RESULTS: dict[str, Callable[..., list[Any]]] = {"scan": _scan, "split": _split, "while": _while}
