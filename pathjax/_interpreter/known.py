"""Constants that are known while tracing, computed by NumPy: nothing is compiled for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["at_once", "is_concrete", "known_results"]


def is_concrete(array: Any) -> bool:
    """Whether the entries are known while tracing."""
    return not isinstance(array, jax.core.Tracer)


def at_once(function: Callable[..., Any], *arrays: Any) -> Any:
    """function(*arrays), computed at once where all arrays are known while tracing, so that the result is known too.

    Known arrays are given as NumPy's.
    """
    if not all(map(is_concrete, arrays)):
        return function(*arrays)
    with np.errstate(all="ignore"), jax.ensure_compile_time_eval():
        return function(*map(_as_numpy, arrays))


def _as_numpy(array: Any) -> Any:
    """A known array as NumPy's, of a type that JAX computes with."""
    numbers = np.asarray(array)
    return numbers.astype(jax.dtypes.canonicalize_dtype(numbers.dtype), copy=False)


def known_results(name: str, params: dict[str, Any], arrays: Sequence[Any], likes: Sequence[Any]) -> list[Any] | None:
    """The result of a primitive on known arrays; None for primitives that are not in the table."""
    if name not in _BY_NUMPY or any(jnp.issubdtype(like.dtype, jax.dtypes.extended) for like in likes):
        return None
    (like,) = likes
    numbers = [_as_numpy(array) for array in arrays]
    if name == "convert_element_type" and _is_cut(numbers[0].dtype, like.dtype):
        return None
    with np.errstate(all="ignore"):
        result = np.asarray(_BY_NUMPY[name](params, *numbers)).astype(like.dtype, copy=False)
    return [np.broadcast_to(result, like.shape)]


def _is_cut(source: Any, target: Any) -> bool:
    """Whether a conversion rounds to whole numbers, which XLA does otherwise for numbers out of range."""
    return jnp.issubdtype(source, jnp.floating) and not jnp.issubdtype(target, jnp.floating)


def _broadcast(params: dict[str, Any], array: Any) -> Any:
    shape = [1] * len(params["shape"])
    for axis, size in zip(params["broadcast_dimensions"], array.shape, strict=True):
        shape[axis] = size
    return np.broadcast_to(array.reshape(shape), params["shape"])


_BY_NUMPY: dict[str, Callable[..., Any]] = {
    "add": lambda params, a, b: a + b,
    "sub": lambda params, a, b: a - b,
    "mul": lambda params, a, b: a * b,
    "neg": lambda params, a: -a,
    "sqrt": lambda params, a: np.sqrt(a),
    "rsqrt": lambda params, a: 1 / np.sqrt(a),
    "square": lambda params, a: a * a,
    "convert_element_type": lambda params, a: a,
    "reshape": lambda params, a: np.transpose(a, params["dimensions"] or range(a.ndim)).reshape(params["new_sizes"]),
    "squeeze": lambda params, a: np.squeeze(a, tuple(params["dimensions"])),
    "transpose": lambda params, a: np.transpose(a, params["permutation"]),
    "broadcast_in_dim": _broadcast,
}
