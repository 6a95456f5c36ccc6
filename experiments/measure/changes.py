"""How far training moves the Neural Tangent Kernel and the Path Kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.base.batching import vmap_networks
from experiments.networks.layers import Network, State
from experiments.networks.shrink import EPSILON
from pathjax import dynamics, ntk, path_kernel
from pathjax.types import Key, Mask, Params

__all__ = ["KernelChanges", "kernel_changes", "with_statistics_of"]

_SAMPLES = 4
"""Random vectors by which changes of Π are estimated."""


class KernelChanges(NamedTuple):
    """‖K − K₀‖ / ‖K₀‖ and 1 − ⟨K, K₀⟩ / (‖K‖ ‖K₀‖) of Θ and of Π, the networks (s) on the leading axis."""

    ntk_change: jax.Array
    ntk_distance: jax.Array
    path_kernel_change: jax.Array
    path_kernel_distance: jax.Array


def kernel_changes(network: Network, batch: jax.Array) -> Callable[..., KernelChanges]:
    """A compiled function (initial params, initial state, params, state, mask, initial Θ, keys) -> KernelChanges.

    The networks are on the leading axis of its arguments. Θ is that of `batch`; both kernels are those of the masked
    network in evaluation mode. Of a plain module with batch norm the numbers of Π are NaN: `with_statistics_of` does
    not know which statistics belong to which weights.
    """

    def changes(
        initial: Params,
        initial_state: State,
        params: Params,
        state: State,
        mask: Mask,
        initial_ntk: jax.Array,
        key: Key,
    ) -> KernelChanges:
        has_change_of_paths = bool(network.steps) or not jax.tree.leaves(state)
        final_ntk = ntk.empirical(network.apply, params, batch, state=state, mask=mask)
        nothing = jnp.full((), jnp.nan, initial_ntk.dtype)
        of_ntk = dynamics.kernel_change(initial_ntk, final_ntk), dynamics.kernel_distance(initial_ntk, final_ntk)
        if not has_change_of_paths:
            return KernelChanges(*of_ntk, path_kernel_change=nothing, path_kernel_distance=nothing)
        final = with_statistics_of(initial_state, params, state)
        given: dict[str, Any] = {"state": initial_state, "mask": mask}
        kernels = [path_kernel.path_kernel(network.apply, each, batch[:1], **given) for each in (initial, final)]
        change, cosine = path_kernel.change_and_cosine(*kernels, key=key, samples=_SAMPLES)
        return KernelChanges(
            *of_ntk,
            path_kernel_change=change.value,
            path_kernel_distance=1.0 - cosine.value,
        )

    return jax.jit(vmap_networks(changes))


def with_statistics_of(initial_state: State, params: Params, state: State) -> Params:
    """Parameters with which the network in `initial_state` is the same function as `params` in `state`.

    The running statistics of batch norm are multiplied into its scales and biases.
    """
    moved: dict[str, Any] = dict(params)
    for name, final in state.get("batch_stats", {}).items():
        initial, norm = initial_state["batch_stats"][name], params[name]
        scale = norm["scale"] * jnp.sqrt(initial["var"] + EPSILON) / jnp.sqrt(final["var"] + EPSILON)
        shift = initial["mean"] / jnp.sqrt(initial["var"] + EPSILON) * scale
        mean = final["mean"] / jnp.sqrt(final["var"] + EPSILON) * norm["scale"]
        moved[name] = {"scale": scale, "bias": norm["bias"] + shift - mean}
    return moved
