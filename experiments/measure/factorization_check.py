"""Whether Θ = J Π Jᵀ holds on a network that is small enough to list all its paths."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from pathjax import enumeration, ntk

__all__ = ["factorization_error"]

_WIDTHS = (2, 3, 2)
_EXAMPLES = 5
_LIMIT = 100


def factorization_error() -> float:
    """Relative error of J_v f · Π · (J_v f)ᵀ against the NTK, in float64, on a ReLU network 2-3-2 with biases.

    J_v f and Π are computed from the list of paths, the NTK from the network without the list.
    """
    draw = np.random.default_rng(0).normal
    shapes = list(zip(_WIDTHS[:-1], _WIDTHS[1:], strict=True))
    with jax.enable_x64(True):
        params = [(jnp.asarray(draw(size=shape)), jnp.asarray(draw(size=shape[1:]))) for shape in shapes]
        x = jnp.asarray(draw(size=(_EXAMPLES, _WIDTHS[0])))
        paths = enumeration.enumerate_paths(_apply, params, x, limit=_LIMIT)
        return float(_relative_error(paths, params, x))


@jax.jit
def _relative_error(paths: enumeration.Paths, params: list[tuple[jax.Array, jax.Array]], x: jax.Array) -> jax.Array:
    activations = enumeration.path_activations(paths, _apply, params, x)
    kernel = enumeration.path_kernel(paths, params)
    recomposed = jnp.einsum("nak,kl,mbl->nmab", activations, kernel, activations)
    direct = ntk.empirical(_apply, params, x)
    return jnp.linalg.norm((recomposed - direct).ravel()) / jnp.linalg.norm(direct.ravel())


def _apply(params: list[tuple[jax.Array, jax.Array]], x: jax.Array) -> jax.Array:
    *hidden, (kernel, bias) = params
    for weights, offsets in hidden:
        x = jax.nn.relu(x @ weights + offsets[None, :])
    return x @ kernel + bias[None, :]
