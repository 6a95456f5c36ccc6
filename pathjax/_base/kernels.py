"""Which leaves of a network are kernels, told from their names and shapes alone."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax.tree_util import tree_flatten_with_path

from pathjax._base.trees import plain_path

__all__ = ["is_kernel", "is_scale", "prunable_leaves"]

# Last words of the names of leaves that activations are multiplied by along one axis.
_SCALES = {"scale", "scales", "gamma", "gain", "slope"}

# Last words of the names of leaves that are added to activations, scale them along one axis, are looked up, or are
# statistics.
_NEVER = {
    *("bias", "biases", "offset", "beta"),
    *_SCALES,
    *("mean", "var", "variance", "std"),
    *("embedding", "embeddings", "embed", "embeds", "emb", "embs", "encoding", "encodings", "codebook"),
    *("pe", "wpe", "wte", "cls", "token", "tokens", "temperature"),
}

# Words of names whose leaves are kernels whatever the lengths of their axes.
_ALWAYS = {"kernel", "kernels", "weight", "weights", "w"}

# Modules whose `weight` is a scale, such as norm, norm1, layer_norm, LayerNorm, bn2 and ln_f (but not normal_head and
# normalized_linear), and those whose `weight` is a lookup table (but not a linear embedding of patches).
_NORM = re.compile(r"norm(?!al(?!i[sz]ation))|(^|_)(bn|ln|gn)(\d|_|$)", re.IGNORECASE)
_LOOKUP = re.compile(
    r"(?<!patch)(?<!patch_)(embedding|embedder)|(^|_)(wte|wpe)$|^emb(ed|s)?$|(tok|token|word|pos|position)_?emb(ed|s)?$",
    re.IGNORECASE,
)


def is_kernel(key_path: tuple[Any, ...], leaf: Any) -> bool:
    """Whether a leaf is a kernel, a matrix or a filter that activations are multiplied by, told from name and shape.

    The default of `prunable` in all functions that make, count or compare masks. A shape alone cannot tell: a bias of
    attention has the shape (heads, width of a head), and layers that are stacked for a scan give every bias and scale
    one axis more. So the name, which is the last name of the key path, is asked first, and then the shape:

    1. A leaf with fewer than two axes is no kernel.
    2. A leaf is no kernel if its name contains "bias" or its last word says that the leaf is added to activations,
       scales them along one axis, is looked up or is a statistic: `bias`, `offset`, `beta`, `scale`, `gamma`, `gain`,
       `slope`, `mean`, `var`, `std`, `embedding`, `pos_emb`, `cls_token` and the like, or `weight_g` with one long
       axis. Nor is a `weight` of a module that is called after a norm (`norm1`, `bn2`, `ln_f`), or of two axes and a
       module called an embedding, but not of patches.
    3. Any other leaf called `kernel`, `weight` or `w` is a kernel, also one with a single axis longer than 1, as of a
       convolution of one pixel from one channel, (1, 1, 1, 8).
    4. Of leaves with other names, or with none, as in tuples, those are kernels that have two axes other than 1, or two
       axes in all: (3, 1) and (1, 3) are dense layers of one output and of one input, but (1, 1, 8) and (8, 1, 1) are
       biases or scales of channels. The names `b` and `g` (also `b1`, `b_1`) with (1, 8) are a bias and a gain.

    What this cannot tell: a bias with two long axes and no name, and a lookup table that is called `weight` in a
    module of another name. Pass `prunable=lambda key_path, leaf: ...` for such networks. Where functions need other
    leaves than kernels, they take a `prunable` of their own.

    >>> import jax, jax.numpy as jnp
    >>> params = {"query": {"kernel": jnp.ones((8, 2, 4)), "bias": jnp.ones((2, 4))}, "norm": {"scale": jnp.ones(8)}}
    >>> jax.tree_util.tree_map_with_path(is_kernel, params)
    {'norm': {'scale': False}, 'query': {'bias': False, 'kernel': True}}
    >>> is_kernel((), jnp.ones((3, 2))), is_kernel((), jnp.ones(2)), is_kernel((), jnp.ones((3, 1, 1)))
    (True, False, False)
    """
    shape = jnp.shape(leaf)
    if len(shape) < 2:
        return False
    module, name, words = _module_and_name(key_path)
    long_axes = sum(size != 1 for size in shape)
    is_gain = words[-1] == "g" and len(words) > 1 and long_axes < 2  # `weight_g` of weight norm
    if "bias" in name or words[-1] in _NEVER or is_gain:
        return False
    if _ALWAYS.intersection(words):
        is_scale = "kernel" not in words and _NORM.search(module)
        is_lookup = "kernel" not in words and _LOOKUP.search(module) and len(shape) == 2
        return not is_scale and not is_lookup
    return long_axes >= 2 or (len(shape) == 2 and words not in (["b"], ["g"]))


def is_scale(key_path: tuple[Any, ...], leaf: Any) -> bool:
    """Whether a leaf multiplies activations along one axis, as in batch norm, told from its name."""
    module, _, words = _module_and_name(key_path)
    is_weight_of_norm = "weight" in words and _NORM.search(module) is not None
    return not is_kernel(key_path, leaf) and (words[-1] in _SCALES or is_weight_of_norm)


def prunable_leaves(tree: Any, prunable: Callable[[tuple[Any, ...], Any], bool]) -> list[tuple[Any, Any]]:
    """The leaves that `prunable` chooses, with their key paths."""
    return [(path, leaf) for path, leaf in tree_flatten_with_path(tree)[0] if prunable(path, leaf)]


def _module_and_name(key_path: tuple[Any, ...]) -> tuple[str, str, list[str]]:
    """The last two names of a key path without the numbers of lists, the second in lower case, and its words."""
    names: list[str] = ["", ""]
    for key in plain_path(key_path):
        # flattened dicts have tuples or joined strings as keys: ("Dense_0", "kernel"), "Dense_0/kernel"
        for part in key if isinstance(key, tuple) else (key,):
            if isinstance(part, str):
                names += re.split(r"[./]", part)
    name = names[-1].lower()
    return names[-2], name, re.sub(r"[\d_]+$", "", name).split("_")
