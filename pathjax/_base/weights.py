"""What is handed over as `params` and is more than weights: refused with the remedy of its framework."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import keystr, tree_flatten_with_path

from pathjax._base.arguments import WRAPPED, is_a

__all__ = ["check_weights"]

# Collections of Flax linen's variables that are read or written by layers and are not trained.
_COLLECTIONS = ("batch_stats", "cache", "intermediates", "perturbations", "stats", "state", "buffers", "constants")

# Types of Flax NNX variables that are not trained.
_STATE_VARIABLES = {"BatchStat", "RngState", "RngKey", "RngCount", "Cache", "Intermediate", "Perturbation"}

_LINEN = (
    "Pass params=variables['params'], and the rest as `state`: state={name: value for name, value in variables.items() "
    "if name != 'params'}, with apply = lambda params, state, x: model.apply({'params': params, **state}, x)."
)
_NNX = (
    "Pass the parameters alone: graphdef, params, state = nnx.split(model, nnx.Param, ...), and the rest as `state`, "
    "with apply = lambda params, state, x: nnx.merge(graphdef, params, state)(x)."
)
_EQUINOX = f"Pass the arrays that are trained and close over the rest: {WRAPPED['equinox']}."
_LINEN_MODULE = f"Pass its weights: params = model.init(key, x)['params'], with {WRAPPED['flax.linen']}."
_PLAIN = (
    "Keep what is not a weight out of `params`: pass it as `state`, with apply(params, state, x), or close over it in "
    "`apply`."
)


def check_weights(params: Any) -> None:
    """Raise unless all leaves of `params` are floating-point arrays and none is known to be no weight.

    Raises TypeError for leaves that are no arrays, such as the functions of an Equinox model, and ValueError for
    PRNG keys, for arrays that are not floating-point, for all variables of a Flax linen model with its batch statistics
    among them, and for an NNX model or state that holds batch statistics, caches or random state. The message names the
    key path and the remedy for the framework. Only types, names and dtypes are read, so this works while tracing.
    """
    if isinstance(params, Mapping):
        collections = [name for name in _COLLECTIONS if name in params]
        if collections and "params" in params or "batch_stats" in collections:
            raise ValueError(
                f"`params` holds the collection '{collections[0]}' beside the weights, so it is all variables of a "
                f"Flax model, and that collection would count as weights. {_LINEN}"
            )
    nodes = tree_flatten_with_path(params, is_leaf=_is_nnx_variable)[0]
    has_nnx_variables = any(_is_nnx_variable(node) for _, node in nodes)
    for path, node in nodes:
        if _is_nnx_variable(node) and _STATE_VARIABLES.intersection(each.__name__ for each in type(node).__mro__):
            raise ValueError(
                f"`params` at {keystr(path)} is a variable of the type {type(node).__name__}, which is not trained and "
                f"would count as a weight. {_NNX}"
            )
    is_equinox = any(is_a(node, "Module", "equinox") for node in _all_nodes(params))
    remedy = _NNX if has_nnx_variables else _EQUINOX if is_equinox else _PLAIN
    for path, leaf in tree_flatten_with_path(params)[0]:
        _check_leaf(keystr(path) or "its top", leaf, remedy)


def _check_leaf(place: str, leaf: Any, remedy: str) -> None:
    dtype = getattr(leaf, "dtype", None)
    if dtype is None and not isinstance(leaf, bool | int | float | complex):
        what = f"the function `{leaf.__name__}`" if hasattr(leaf, "__name__") else f"a {type(leaf).__name__}"
        remedy = _LINEN_MODULE if is_a(leaf, "Module", "flax.linen") else remedy
        raise TypeError(f"`params` at {place} is {what}, not an array of weights. {remedy}")
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        raise ValueError(
            f"`params` at {place} is a PRNG key ({dtype}), which is no weight and has no derivative. It belongs to "
            f"dropout or noise; evaluate without them where you can. {remedy}"
        )
    if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
        raise ValueError(
            f"`params` at {place} has dtype {jnp.result_type(leaf)}; weights must be floating-point, since derivatives "
            f"are taken by them. {remedy}"
        )


def _is_nnx_variable(node: Any) -> bool:
    return is_a(node, "Variable", "flax.nnx")


def _all_nodes(tree: Any) -> list[Any]:
    """All nodes and leaves of a tree, from the top down."""
    nodes: list[Any] = []

    def note(node: Any) -> bool:
        nodes.append(node)
        return False

    jax.tree.flatten(tree, is_leaf=note)
    return nodes
