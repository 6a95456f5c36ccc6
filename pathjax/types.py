"""The words and letters of pathjax, each with one meaning everywhere.

Words
-----
apply
    The network: `apply(params, x)` takes `x` of shape (n, ...) and returns (n, o).
params
    A pytree of floating-point arrays, the network's weights θ.
x, x_like
    A batch of inputs (n, ...); an array or `jax.ShapeDtypeStruct` read for its shape alone.
mask
    A pytree like `params` with boolean leaves: True where a weight is kept. None means dense.
score
    A pytree like `params`: how much a weight is worth keeping. The largest are kept.
key
    A JAX pseudo-random key. Always an argument.
density
    The kept share of the prunable weights, in (0, 1].

Axes
----
n, m examples; o outputs; k paths; p parameters, raveled; r retained eigenpairs.

Symbols
-------
θ the parameters; f the network; v_p the value of path p, the product of the weights and constants on it;
a_p its activation, the product of the slopes of the gates on it; x_s(p) the input coordinate at which it starts,
or 1 for a path that starts at a bias; Π = J_θ v (J_θ v)ᵀ the Path Kernel; Θ = J_θ f (J_θ f)ᵀ the Neural Tangent
Kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from jaxtyping import Array, Float

Params: TypeAlias = Any
"""A pytree of floating-point arrays."""

Mask: TypeAlias = Any
"""A pytree like `params` with boolean leaves, True where a weight is kept."""

Scores: TypeAlias = Any
"""A pytree like `params` of scores; the largest are kept."""

Key: TypeAlias = jax.Array
"""A JAX pseudo-random key, of the new style or the old."""

Real: TypeAlias = int | float
"""A plain number."""

AnyArray: TypeAlias = jax.Array | np.ndarray
"""An array of JAX or of NumPy; results are always JAX's."""

XLike: TypeAlias = jax.Array | np.ndarray | jax.ShapeDtypeStruct
"""A batch of inputs read for its shape and dtype alone."""

ApplyFn: TypeAlias = Callable[[Params, jax.Array], Any]
"""`apply(params, x)`: inputs (n, ...) to outputs (n, o). The result is Any, as frameworks annotate theirs widely."""

Prunable: TypeAlias = Callable[[tuple[Any, ...], jax.Array], bool]
"""`prunable(key_path, leaf)`: whether the weights of a leaf may be pruned."""


class Estimate(NamedTuple):
    """A mean over random probes and its standard error: 0 where the value is exact, NaN of a single probe."""

    value: Float[Array, ""]
    standard_error: Float[Array, ""]
