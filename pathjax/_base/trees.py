"""Products and sums of pytrees, checks whose errors name key paths, and the one function that ravels trees."""

from __future__ import annotations

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.tree_util import keystr, tree_flatten_with_path

__all__ = [
    "check_boolean",
    "check_like",
    "check_mask",
    "concrete",
    "dot",
    "key_paths",
    "multiply",
    "ravel",
    "total",
    "wide",
]


def key_paths(tree: Any) -> list[str]:
    """The key paths of the leaves, such as `['params']['Dense_0']['kernel']`."""
    return [keystr(path) for path, _ in tree_flatten_with_path(tree)[0]]


def check_like(tree: Any, like: Any, *, name: str, like_name: str = "params") -> None:
    """Raise ValueError unless `tree` has the structure and the leaf shapes of `like`.

    The message names the first key path at which the two differ.
    """
    structure: Any
    leaves, structure = tree_flatten_with_path(tree)
    like_leaves, like_structure = tree_flatten_with_path(like)
    if structure != like_structure:
        paths, like_paths = key_paths(tree), key_paths(like)
        missing = [path for path in like_paths if path not in set(paths)]
        extra = [path for path in paths if path not in set(like_paths)]
        if missing:
            detail = f"`{name}` has no leaf at {missing[0]}"
        elif extra:
            detail = f"`{like_name}` has no leaf at {extra[0]}"
        else:
            detail = f"the containers differ: {structure} against {like_structure}"
        raise ValueError(
            f"`{name}` must be a pytree of the same structure as `{like_name}`: {detail}. "
            f"Build `{name}` from these `{like_name}`, or with jax.tree.map over them."
        )
    for (path, leaf), (_, like_leaf) in zip(leaves, like_leaves, strict=True):
        if jnp.shape(leaf) != jnp.shape(like_leaf):
            raise ValueError(
                f"`{name}` at {keystr(path)} has shape {jnp.shape(leaf)}, but `{like_name}` has "
                f"{jnp.shape(like_leaf)} there. Build `{name}` from these `{like_name}`."
            )


def check_mask(mask: Any, params: Any) -> None:
    """Raise ValueError unless `mask` has the structure and shapes of `params`, TypeError unless it is boolean."""
    check_like(mask, params, name="mask")
    check_boolean(mask, name="mask")


def check_boolean(mask: Any, *, name: str) -> None:
    """Raise TypeError unless all leaves are boolean; the message names the key path of the first that is not."""
    for path, leaf in tree_flatten_with_path(mask)[0]:
        if jnp.result_type(leaf) != jnp.bool_:
            raise TypeError(
                f"`{name}` must have boolean leaves; at {keystr(path)} it has {jnp.result_type(leaf)}. "
                f"Compare with 0: jax.tree.map(lambda leaf: leaf != 0, {name})."
            )


def multiply(left: Any, right: Any) -> Any:
    """Leafwise product of two trees."""
    return jax.tree.map(lambda a, b: a * b, left, right)


def total(tree: Any) -> jax.Array:
    """Sum over all entries of all leaves."""
    leaves = jax.tree.leaves(tree)
    return sum((jnp.sum(leaf) for leaf in leaves), start=jnp.zeros((), jnp.result_type(*leaves) if leaves else float))


def dot(left: Any, right: Any) -> jax.Array:
    """Inner product of two trees."""
    return total(multiply(left, right))


def ravel(tree: Any) -> tuple[jax.Array, Any]:
    """The leaves as one vector (p,), and the function from such a vector to a tree."""
    return cast("tuple[jax.Array, Any]", ravel_pytree(tree))


def wide(array: Any) -> jax.Array:
    """The array in float32 or wider: half precision overflows in long sums, and JAX has no decompositions for it."""
    original = jnp.asarray(array)
    return original.astype(jnp.promote_types(original.dtype, jnp.float32))


def concrete(array: Any) -> np.ndarray | None:
    """The array as NumPy's, or None if its entries are not known while tracing."""
    try:
        return np.asarray(array)
    except jax.errors.TracerArrayConversionError:
        return None
