"""Path sums, Path Kernels and pruning at initialization for piecewise-linear networks in JAX.

A ReLU network is a sum over paths, and its Neural Tangent Kernel factors into a data-dependent term and the
data-independent Path Kernel, Θ = J Π Jᵀ. Both are computed for any `apply(params, x)`, and used to predict how a
network will train, and to prune it, before any training:

>>> import jax, jax.numpy as jnp
>>> from pathjax import masks, path_kernel, pruning, scores
>>> def apply(params, x):
...     return jax.nn.relu(x @ params["first"]) @ params["second"]
>>> params = {"first": jnp.ones((2, 5)), "second": jnp.arange(1.0, 16.0).reshape(5, 3)}
>>> x_like = jax.ShapeDtypeStruct((1, 2), jnp.float32)
>>> mask = pruning.prune(lambda p, key: scores.synflow(apply, p, x_like), params, density=0.4, rounds=10)
>>> kernel = path_kernel.path_kernel(apply, params, x_like, mask=mask)
>>> round(float(masks.density(mask)), 4), bool(kernel.trace() > 0)
(0.4, True)
"""

from pathjax import (
    connectivity,
    dynamics,
    enumeration,
    factorization,
    isometry,
    masks,
    ntk,
    path_kernel,
    paths,
    pruning,
    scores,
    transfer,
    types,
)

__all__ = [
    "connectivity", "dynamics", "enumeration", "factorization", "isometry", "masks", "ntk",
    "path_kernel", "paths", "pruning", "scores", "transfer", "types",
]  # fmt: skip
__version__ = "0.2.0"
