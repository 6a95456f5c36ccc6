"""The network whose kernel is computed: its state and mask applied, its weights, inputs and outputs checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pathjax._base import trees
from pathjax._base.arguments import check_has_numbers
from pathjax._base.weights import check_weights

__all__ = [
    "as_batch",
    "check_apart",
    "check_arrays",
    "check_batch_size",
    "check_finite_inputs",
    "check_inputs",
    "check_params",
    "concrete_floats",
    "epsilon",
    "kept_weights",
    "masked",
]


def masked(apply: Callable[..., Any], params: Any, mask: Any) -> Callable[..., Any]:
    """`apply` at the masked weights. Its derivative by a pruned weight is zero, which removes the weight from Θ."""
    mask = trees.check_mask(mask, params)

    def masked_apply(params: Any, x: Array) -> Array:
        return apply(kept_weights(mask, params), x)

    return masked_apply


def kept_weights(mask: Any, params: Any) -> Any:
    """The weights, with pruned ones set to zero. Selected, not multiplied: a pruned weight may be infinite."""
    return jax.tree.map(lambda keep, leaf: jnp.where(keep, leaf, 0), mask, params)


def check_params(params: Any) -> None:
    """Raise ValueError if `params` has no leaves, and what `check_weights` raises for what is no weight."""
    if not jax.tree.leaves(params):
        raise ValueError("`params` has no leaves, so there is no kernel of its weights. Pass the network's weights.")
    check_weights(params)


def as_batch(name: str, x: Any) -> Any:
    """A batch as an array or a tree of arrays; a list of numbers is one array. Raises TypeError for other leaves."""
    check_arrays(name, x, "Convert it to numbers, or leave it out of the batch.")
    check_has_numbers(name, x)
    leaves = jax.tree_util.tree_leaves_with_path(x)
    are_numbers = all(jnp.ndim(leaf) == 0 for _, leaf in leaves)
    are_in_lists = all(isinstance(key, jax.tree_util.SequenceKey) for path, _ in leaves for key in path)
    if isinstance(x, list | tuple) and leaves and are_numbers and are_in_lists:
        return jnp.asarray(x)
    return jax.tree.map(jnp.asarray, x)


def check_arrays(name: str, tree: Any, remedy: str) -> None:
    """Raise TypeError unless every leaf is an array or a number."""
    for path, leaf in zip(trees.key_paths(tree), jax.tree.leaves(tree), strict=True):
        dtype = getattr(leaf, "dtype", None)
        if hasattr(leaf, "shape") and getattr(dtype, "kind", "f") not in "OSUMm":  # not words, dates or Python objects
            continue
        if not isinstance(leaf, bool | int | float | complex):
            is_array, is_function = hasattr(leaf, "shape"), callable(leaf)
            kind = (
                f"an array of dtype {dtype}"
                if is_array
                else "a function"
                if is_function
                else f"a {type(leaf).__name__}"
            )
            raise TypeError(f"`{name}`{path and f' at {path}'} is {kind}, not an array of numbers. {remedy}")


def check_inputs(*, reals_only: bool = False, **batches: Any) -> None:
    """Raise ValueError unless the batches are trees of arrays (n, ...) with examples of one shape that hold no NaN.

    With `reals_only` they must be single floating-point arrays. NaN is not looked for while tracing.
    """
    given = {name: x for name, x in batches.items() if x is not None}
    if not given:
        raise ValueError(f"`{next(iter(batches))}` is None, but a batch of examples (n, ...) was expected.")
    for name, x in given.items():
        if reals_only:
            _check_real(name, x)
        if not jax.tree.leaves(x):
            raise ValueError(f"`{name}` holds no array, but a batch of examples (n, ...) was expected.")
        for path, leaf in zip(trees.key_paths(x), jax.tree.leaves(x), strict=True):
            if jnp.ndim(leaf) == 0:
                raise ValueError(
                    f"`{name}`{path and f' at {path}'} is a single number, but a batch of examples (n, ...) was "
                    "expected. What is not there for each example belongs into `state`."
                )
            _check_no_nan(name, leaf)
    (first_name, first_x), *rest = given.items()
    for name, x in rest:
        structures: list[Any] = [jax.tree.structure(batch) for batch in (first_x, x)]
        if structures[0] != structures[1]:
            raise ValueError(
                f"`{first_name}` is {_described(first_x)} and `{name}` {_described(x)}, but both go through the same "
                "network. Give both the same keys and containers."
            )
        shapes = [[jnp.shape(leaf)[1:] for leaf in jax.tree.leaves(batch)] for batch in (first_x, x)]
        if shapes[0] != shapes[1]:
            first_shapes, other_shapes = (", ".join(map(str, each)) for each in shapes)
            raise ValueError(
                f"Examples of `{first_name}` have shape {first_shapes} and those of `{name}` {other_shapes}, but both "
                "go through the same network. Only the number of examples may differ."
            )


def _described(x: Any) -> str:
    """A batch by its container and the places of its arrays."""
    if hasattr(x, "shape"):
        return "one array"
    return f"a {type(x).__name__} of arrays at {', '.join(trees.key_paths(x))}"


def _check_real(name: str, x: Any) -> None:
    if not hasattr(x, "dtype"):
        raise ValueError(
            f"`{name}` is {_described(x)}, but derivatives are taken by one array of inputs. Pass that array, and "
            "close over the others in `apply`, or pass them in `state`."
        )
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"`{name}` has dtype {x.dtype}, but derivatives are taken by it, so that it must be floating-point. "
            "Convert it first, as in x.astype(jnp.float32), or pass the part of the network after its embedding."
        )


def _check_no_nan(name: str, leaf: Any) -> None:
    values = concrete_floats(leaf)
    if values is not None and np.isnan(values).any():
        first = int(np.isnan(values).reshape(len(values), -1).any(axis=1).argmax())
        raise ValueError(
            f"`{name}` holds NaN, first in example {first}, which would make every entry of the kernel with that "
            "example NaN. Remove such examples, or fill the missing values."
        )


def check_finite_inputs(**batches: Any) -> None:
    """Raise ValueError for arrays of inputs that hold an infinity. Not looked for while tracing."""
    for name, x in batches.items():
        values = None if x is None else concrete_floats(x)
        if values is not None and np.isinf(values).any():
            raise ValueError(f"`{name}` holds an infinity, which no expectation survives. Scale or remove such inputs.")


def concrete_floats(leaf: Any) -> np.ndarray | None:
    """A floating-point array as NumPy's; None for others, and while tracing."""
    return trees.concrete(leaf) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) else None


def check_batch_size(batch_size: int | None) -> None:
    """Raise ValueError for a batch size below 1."""
    if batch_size is not None and batch_size < 1:
        raise ValueError(
            f"`batch_size` is {batch_size}, but at least one example is treated at a time. Pass 1 or more."
        )


def check_apart(gap: Array, largest: Array, name: str) -> None:
    """Raise ValueError where examples have other outputs in a batch than alone, unless that is not known while tracing.

    Outputs differ by up to `gap` and have absolute values of up to `largest`.
    """
    difference, size = trees.concrete(gap), trees.concrete(largest)
    if difference is not None and size is not None and difference > epsilon(gap) ** 0.5 * size:
        raise ValueError(
            f"`apply(params, {name})` gives an example other outputs in the batch than alone (they differ by up to "
            f"{float(difference):.3g}), so the kernel of two examples is not defined. Let batch norm use its running "
            "statistics, and pass dropout `deterministic=True`."
        )


def epsilon(array: Array) -> float:
    """The machine epsilon of an array's dtype."""
    return float(jnp.finfo(array.dtype).eps)
