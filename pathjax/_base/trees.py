"""Products and sums of pytrees, checks whose errors name key paths, and the one function that ravels trees."""

from __future__ import annotations

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.tree_util import GetAttrKey, keystr, tree_flatten_with_path, tree_unflatten

__all__ = [
    "check_boolean",
    "check_like",
    "check_mask",
    "check_second_moments",
    "concrete",
    "dot",
    "in_own_containers",
    "key_paths",
    "multiply",
    "plain_path",
    "plain_paths",
    "ravel",
    "total",
    "wide",
]


def key_paths(tree: Any) -> list[str]:
    """The key paths of the leaves, such as `['params']['Dense_0']['kernel']`."""
    return [keystr(path) for path, _ in tree_flatten_with_path(tree)[0]]


def plain_path(key_path: Any) -> tuple[Any, ...]:
    """A key path as names and numbers alone, the same for a dict, an object or a NamedTuple.

    `params["dense"]["kernel"]` and `model.dense.kernel` both give ("dense", "kernel"). An object that wraps an array in
    an attribute `value`, as a variable of Flax NNX or a partitioned array of Flax linen does, adds no name.
    """
    return _names(key_path[:-1] if key_path and key_path[-1] == GetAttrKey("value") else key_path)


def plain_paths(tree: Any) -> list[tuple[Any, ...]]:
    """`plain_path` of each leaf, with the attribute `value` kept if two leaves had the same names without it."""
    return _plain_paths([path for path, _ in tree_flatten_with_path(tree)[0]])


def check_like(tree: Any, like: Any, *, name: str, like_name: str = "params", left_out: type | None = None) -> Any:
    """`tree` in the containers of `like`; ValueError unless both have leaves of the same names and shapes.

    The two may differ in their containers (dict and FrozenDict, a Flax NNX state of variables and one of bare arrays,
    list and tuple): leaves are matched by `plain_paths`. The message names the first key path at which they differ.
    Nodes of `like` of the type `left_out` stand for parts of the tree that are not there; leaves of `tree` at these
    places are dropped.
    """
    structure: Any
    leaves, structure = tree_flatten_with_path(tree)
    like_leaves, like_structure = tree_flatten_with_path(like)
    if structure != like_structure:
        if left_out is not None:
            leaves = _outside(leaves, like, left_out)
        order = _matched([path for path, _ in leaves], [path for path, _ in like_leaves])
        if order is None:
            difference = _first_difference(leaves, like_leaves, name, like_name)
            raise ValueError(
                f"`{name}` must be a pytree of the same structure as `{like_name}`: {difference}. "
                f"Build `{name}` from these `{like_name}`, or with jax.tree.map over them."
            )
        leaves = [leaves[place] for place in order]
    for (path, leaf), (_, like_leaf) in zip(leaves, like_leaves, strict=True):
        if jnp.shape(leaf) != jnp.shape(like_leaf):
            raise ValueError(
                f"`{name}` at {keystr(path)} has shape {jnp.shape(leaf)}, but `{like_name}` has "
                f"{jnp.shape(like_leaf)} there. Build `{name}` from these `{like_name}`."
            )
    return tree if structure == like_structure else tree_unflatten(like_structure, [leaf for _, leaf in leaves])


def check_mask(mask: Any, params: Any, *, left_out: type | None = None) -> Any:
    """`mask` in the containers of `params`, as `check_like` gives it, or None; TypeError unless it is boolean."""
    if mask is None:
        return None
    mask = check_like(mask, params, name="mask", left_out=left_out)
    check_boolean(mask, name="mask")
    return mask


def check_second_moments(moments: Any, params: Any) -> Any:
    """The second moments as a tree like `params`, of arrays like its leaves or of numbers.

    Raises ValueError for another tree or shape, and for moments that are negative, NaN or infinite.
    """
    given, expected = (tree_flatten_with_path(in_own_containers(tree))[0] for tree in (moments, params))
    names, wanted = ([keystr(path) for path, _ in leaves] for leaves in (given, expected))
    if names != wanted:
        odd = sorted(set(names) ^ set(wanted))
        raise ValueError(
            "`second_moments` must be a tree like `params`, with an array like its leaf or a number for each, but they "
            f"differ at {', '.join(odd[:3]) or 'the order of their leaves'}. `ntk.second_moments` makes such a tree."
        )
    for (path, moment), (_, leaf) in zip(given, expected, strict=True):
        if jnp.shape(moment) not in ((), jnp.shape(leaf)):
            raise ValueError(
                f"`second_moments` at {keystr(path)} has shape {jnp.shape(moment)}, but the weights there have "
                f"{jnp.shape(leaf)}. Give one number for all of them, or one for each."
            )
        values = concrete(moment)
        if values is not None and not ((values >= 0) & (values < np.inf)).all():
            raise ValueError(
                f"`second_moments` at {keystr(path)} has an entry that is negative, NaN or infinite; it must be a mean "
                "of squares, as θ² is."
            )
    return jax.tree.unflatten(jax.tree.structure(params), [moment for _, moment in given])


def _names(path: Any) -> tuple[Any, ...]:
    """A key path as the names and numbers of its keys, without the types of the containers."""
    return tuple(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))) for key in path)


def _plain_paths(paths: list[Any]) -> list[tuple[Any, ...]]:
    names = [plain_path(path) for path in paths]
    return names if len(set(names)) == len(names) else [_names(path) for path in paths]


def _matched(paths: list[Any], like_paths: list[Any]) -> list[int] | None:
    """For each key path of `like_paths` the place of the one in `paths` with the same names; None where sets differ."""
    spellings = [([_names(path) for path in some], _plain_paths(some)) for some in (paths, like_paths)]
    for names in spellings[0]:
        places = {each: place for place, each in enumerate(names)}
        for like_names in spellings[1]:
            if len(places) == len(like_names) and places.keys() == set(like_names):
                return [places[each] for each in like_names]
    return None


def _outside(leaves: list[Any], like: Any, left_out: type) -> list[Any]:
    """The leaves without those at or below the nodes of `like` of the type `left_out`."""
    nodes = tree_flatten_with_path(like, is_leaf=lambda node: isinstance(node, left_out))[0]
    holes = {spell(path) for path, node in nodes if isinstance(node, left_out) for spell in (_names, plain_path)}

    def is_left_out(names: tuple[Any, ...]) -> bool:
        return any(names[:length] in holes for length in range(len(names) + 1))

    return [(path, leaf) for path, leaf in leaves if not (is_left_out(_names(path)) or is_left_out(plain_path(path)))]


def _first_difference(leaves: list[Any], like_leaves: list[Any], name: str, like_name: str) -> str:
    paths, like_paths = ([path for path, _ in some] for some in (leaves, like_leaves))
    names, like_names = _plain_paths(paths), _plain_paths(like_paths)
    for path, each in zip(like_paths, like_names, strict=True):
        if each not in set(names):
            return f"`{name}` has no leaf at {keystr(path) or 'the top'}"
    for path, each in zip(paths, names, strict=True):
        if each not in set(like_names):
            return f"`{like_name}` has no leaf at {keystr(path) or 'the top'}"
    return f"`{name}` has {len(leaves)} leaves, `{like_name}` has {len(like_leaves)}"


def check_boolean(mask: Any, *, name: str) -> None:
    """Raise TypeError unless all leaves are boolean; the message names the key path of the first that is not."""
    for path, leaf in tree_flatten_with_path(mask)[0]:
        if jnp.result_type(leaf) != jnp.bool_:
            # no hint to compare floats with 0: biases that start at 0 would be pruned
            remedy = (
                "You passed weights or scores, it seems. Pass the mask that pruning.sparsify, pruning.prune or "
                "masks.from_scores returned."
                if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
                else f"If its entries are 0 and 1, convert them: jax.tree.map(lambda leaf: leaf.astype(bool), {name})."
            )
            raise TypeError(
                f"`{name}` must have boolean leaves; at {keystr(path) or 'the top'} it has {jnp.result_type(leaf)}. "
                f"{remedy}"
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
    vector, unravel = cast("tuple[jax.Array, Any]", ravel_pytree(tree))
    # of a tree without leaves JAX gives single precision, whatever its default
    return vector if jax.tree.leaves(tree) else jnp.zeros(0), unravel


def wide(array: Any) -> jax.Array:
    """The array in float32 or wider: half precision overflows in long sums, and JAX has no decompositions for it."""
    original = jnp.asarray(array)
    return original.astype(jnp.promote_types(original.dtype, jnp.float32))


def in_own_containers(tree: Any) -> Any:
    """The same leaves in containers of their own.

    The variables in a Flax NNX state are those of its model, and of a model that is merged from it: they change when
    the model is trained.
    """
    return jax.tree.map(lambda leaf: leaf, tree)


def concrete(array: Any) -> np.ndarray | None:
    """The array as NumPy's, or None if its entries are not known while tracing."""
    try:
        return np.asarray(array)
    except jax.errors.TracerArrayConversionError:
        return None
