"""The names, axes and symbols that all of pathjax uses, each with one meaning, and its shared types.

Words
-----
apply
    The network: `apply(params, x)` takes `x` of shape (n, ...) and returns (n, o). Outputs of more axes, such as
    (n, t, o) or (n, h, w, o), are all outputs: they are numbered in the order of output.reshape(n, -1).
params
    A pytree of floating-point arrays, the network's weights θ.
x, x_like
    `x` is a batch of inputs (n, ...): one array of real numbers where paths start at it; elsewhere an array of any
    type, such as tokens, or a tree of arrays (n, ...), as the network takes it. `x_like` is an array or
    `jax.ShapeDtypeStruct` like such a batch; only its shape and dtype are read, never its values.
state
    What the network reads besides its weights and inputs and is not trained by gradients: a pytree of arrays, such as
    the running statistics of batch norm, random keys or counters. With a state, the network is `apply(params, state,
    x)`; it is constant on all paths. Another state of the same shapes is not traced again. None, the default, stands
    for `apply(params, x)`.
mask
    A pytree like `params` with boolean leaves: True where a weight is kept. None keeps every weight.
score
    A pytree like `params`: how much each weight is worth keeping. Pruning keeps the weights of largest score.
key
    A JAX pseudo-random key. The caller always passes it; there are no default keys.
density
    The share of the prunable weights that are kept, in (0, 1].
prunable
    `prunable(key_path, leaf)` says whether the weights of a leaf may be pruned. By default those of kernels may: where
    the network is at hand as `paths.kernels` tells them, elsewhere as `masks.is_kernel` does. Scores are of the leaves
    that it chooses, by default of all.
batch_size
    The number of examples that are treated at a time. It bounds the memory, and changes results by rounding only.
stacked
    Whether the leading axis of every leaf counts seeds, each of which is treated alone.
has_aux
    Whether `apply` returns a pair (outputs, rest), of which only the outputs are used, such as new batch statistics.
progress
    A function that is called after each part of a long call as `progress(number of the part, number of parts, ...)`.

Axes
----
n, m examples; o outputs; k paths; p parameters (all leaves raveled into one vector); r retained eigenpairs.

Symbols
-------
θ the parameters; f the network; v_p the value of path p, the product of the weights and constants on it;
a_p the activation of path p, the product of the slopes of the gates (ReLUs, max pooling) on it; x_s(p) the input
coordinate at which path p starts, or 1 if it starts at a bias; Π = J_θ v (J_θ v)ᵀ the Path Kernel;
Θ = J_θ f (J_θ f)ᵀ the Neural Tangent Kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from jaxtyping import Array, Float

Params: TypeAlias = Any
"""A pytree of floating-point arrays."""

State: TypeAlias = Any
"""A pytree of arrays that a network reads besides weights and inputs; None where it takes none."""

Mask: TypeAlias = Any
"""A pytree like `params` with boolean leaves, True where a weight is kept."""

Scores: TypeAlias = Any
"""A pytree like `params`: how much each weight is worth keeping."""

Key: TypeAlias = jax.Array
"""A JAX pseudo-random key: typed (`jax.random.key`) or raw (`jax.random.PRNGKey`)."""

Real: TypeAlias = int | float
"""A Python number."""

AnyArray: TypeAlias = jax.Array | np.ndarray
"""A JAX or NumPy array as an argument; results are always JAX arrays."""

Inputs: TypeAlias = Any
"""A batch of inputs: an array (n, ...) of any type, or a tree of such arrays, as the network takes them."""

XLike: TypeAlias = jax.Array | np.ndarray | jax.ShapeDtypeStruct
"""A batch of inputs of which only the shape and dtype are read."""

ApplyFn: TypeAlias = Callable[..., Any]
"""`apply(params, x)` or `apply(params, state, x)` maps inputs to outputs; frameworks annotate wider types."""

Prunable: TypeAlias = Callable[[tuple[Any, ...], jax.Array], bool]
"""`prunable(key_path, leaf)`: whether the weights of a leaf may be pruned."""


class Estimate(NamedTuple):
    """A mean over random probes and its standard error, which is 0 for an exact value and NaN for a single probe.

    Attributes:
        value: the mean, or the exact value.
        standard_error: an array of the same shape.
    """

    value: Float[Array, " ..."]
    standard_error: Float[Array, " ..."]
