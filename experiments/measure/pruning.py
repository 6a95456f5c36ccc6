"""The pruning methods by name: from stacked parameters to stacked masks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.base.batching import side_by_side
from pathjax import masks, pruning, scores
from pathjax.types import ApplyFn, Key, Mask, Params, Scores

__all__ = ["METHODS", "Evidence", "Method", "dense_mask", "masked_seeds"]


class Evidence(NamedTuple):
    """What a score may read.

    Inputs (n, ...) of the train set, a labelled batch with equally many of each class, and `init(key)`, which draws
    weights.
    """

    inputs: jax.Array
    batch: tuple[jax.Array, jax.Array]
    init: Callable[[Key], Params]


class Method(NamedTuple):
    """`score(apply, params, key, evidence)`, and whether it is taken again in every round."""

    score: Callable[[ApplyFn, Params, Key, Evidence], Scores]
    iterative: bool


_KERNELS: Any = {"prunable": masks.is_kernel}

METHODS: dict[str, Method] = {
    "random": Method(lambda apply, params, key, seen: scores.random(params, key=key), iterative=False),
    "magnitude": Method(lambda apply, params, key, seen: scores.magnitude(params), iterative=False),
    "snip": Method(lambda apply, params, key, seen: scores.snip(apply, params, [seen.batch]), iterative=False),
    "grasp": Method(
        lambda apply, params, key, seen: scores.grasp(apply, params, [seen.batch], prunable=masks.is_kernel),
        iterative=False,
    ),
    "synflow": Method(lambda apply, params, key, seen: scores.synflow(apply, params, seen.inputs[:1]), iterative=True),
    "synflow_l2": Method(
        lambda apply, params, key, seen: scores.synflow_l2(apply, params, seen.inputs[:1]), iterative=True
    ),
    "synflow_data": Method(
        lambda apply, params, key, seen: scores.synflow_data(apply, params, seen.inputs), iterative=True
    ),
    "synflow_data_l2": Method(
        lambda apply, params, key, seen: scores.synflow_data(apply, params, seen.inputs, q=2), iterative=True
    ),
    "path_kernel_trace": Method(
        lambda apply, params, key, seen: scores.path_kernel_trace(apply, params, seen.inputs[:1], **_KERNELS),
        iterative=True,
    ),
    "px": Method(lambda apply, params, key, seen: scores.px(apply, params, seen.batch[0], **_KERNELS), iterative=True),
    "ntk_sap": Method(
        lambda apply, params, key, seen: scores.ntk_sap(
            apply, params, seen.batch[0], init=seen.init, key=key, **_KERNELS
        ),
        iterative=True,
    ),
}


def masked_seeds(apply: ApplyFn, evidence: Evidence, *, rounds: int) -> Callable[[str, float, Params, Key], Mask]:
    """A function (method, density, params, keys) -> mask; params, keys and mask carry the seeds on a leading axis.

    One compiled score per method serves all rounds and densities. Raises ValueError where a mask does not keep exactly
    the wanted number of weights, which is what a score that is not finite ends in.
    """
    compiled: dict[str, Any] = {}

    def mask_of(method: str, density: float, params: Params, keys: Key) -> Mask:
        if method not in compiled:
            score = METHODS[method].score
            compiled[method] = lambda params, key: score(apply, params, key, evidence)

        def prune(params: Params, key: Key) -> Mask:
            taken = rounds if METHODS[method].iterative else 1
            return pruning.prune(compiled[method], params, density=density, rounds=taken, key=key)

        mask = side_by_side(prune)(params, keys)
        wanted = masks.kept_counts(jax.tree.map(lambda leaf: leaf[0], params), density=density).item()
        kept = np.asarray(jax.vmap(masks.count)(mask))
        if np.any(kept != wanted):
            raise ValueError(f"{method} at density {density:g} kept {kept.tolist()} weights instead of {wanted} each.")
        return mask

    return mask_of


def dense_mask(params: Params) -> Mask:
    """The mask that keeps everything."""
    return jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), params)
