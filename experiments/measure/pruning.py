"""The pruning methods by name, from parameters to masks of many networks at once, and what a mask keeps."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.base import variants
from experiments.base.batching import vmap_networks
from experiments.base.errors import InputError
from experiments.base.names import BATCHES
from pathjax import masks, pruning, scores
from pathjax.types import ApplyFn, Key, Mask, Params, Scores

__all__ = [
    "METHODS",
    "Evidence",
    "Method",
    "check_densities",
    "check_methods",
    "dense_mask",
    "kernel_layers",
    "layer_name",
    "masker",
]


Batch = tuple[jax.Array, jax.Array]
"""Images (n, ...) and their labels (n,)."""


class Evidence(NamedTuple):
    """What a score may read: `inputs` (n, ...) of the train set, labelled `batches`, and `init(key)`.

    There are as many batches as `names.BATCHES` has for the method, or more. Each has equally many images of each
    class, and no two share an image. `init` draws new weights.
    """

    inputs: jax.Array
    batches: tuple[Batch, ...]
    init: Callable[[Key], Params]


class Method(NamedTuple):
    """A score, and how it is used.

    Attributes:
        score: `score(apply, params, key, evidence)`; with `has_aux=True`, `apply` gives a pair (outputs, rest).
        iterative: whether it is computed again in every pruning round.
        in_training_mode: whether its authors score networks in training mode; it then takes `has_aux`.
    """

    score: Callable[..., Scores]
    iterative: bool = False
    in_training_mode: bool = False


_KERNELS: Any = {"prunable": masks.is_kernel}


def _snip(apply: ApplyFn, params: Params, key: Key, evidence: Evidence, **how: Any) -> Scores:
    return scores.snip(apply, params, [evidence.batches[0]], **how)


def _grasp(apply: ApplyFn, params: Params, key: Key, evidence: Evidence, **how: Any) -> Scores:
    return scores.grasp(apply, params, [evidence.batches[0]], **_KERNELS, **how)


def _prospr(apply: ApplyFn, params: Params, key: Key, evidence: Evidence, **how: Any) -> Scores:
    batches = evidence.batches[: BATCHES["prospr"]]
    return scores.prospr(apply, params, batches, steps=len(batches) - 1, **_KERNELS, **how)


def _ntk_sap(apply: ApplyFn, params: Params, key: Key, evidence: Evidence, **how: Any) -> Scores:
    images, _ = evidence.batches[0]
    return scores.ntk_sap(apply, params, images, init=evidence.init, key=key, **_KERNELS, **how)


METHODS: dict[str, Method] = {
    "random": Method(lambda apply, params, key, evidence: scores.random(params, key=key)),
    "magnitude": Method(lambda apply, params, key, evidence: scores.magnitude(params)),
    "snip": Method(_snip, in_training_mode=True),
    "snip_iterative": Method(_snip, iterative=True, in_training_mode=True),
    "grasp": Method(_grasp, in_training_mode=True),
    "prospr": Method(_prospr, in_training_mode=True),
    "synflow": Method(
        lambda apply, params, key, evidence: scores.synflow(apply, params, evidence.inputs[:1]), iterative=True
    ),
    "synflow_l2": Method(
        lambda apply, params, key, evidence: scores.synflow_l2(apply, params, evidence.inputs[:1]), iterative=True
    ),
    "synflow_l2_absolute": Method(
        lambda apply, params, key, evidence: scores.synflow_l2(apply, params, evidence.inputs[:1], factor="absolute"),
        iterative=True,
    ),
    "synflow_data": Method(
        lambda apply, params, key, evidence: scores.synflow_data(apply, params, evidence.inputs),
        iterative=True,
    ),
    "synflow_data_l2": Method(
        lambda apply, params, key, evidence: scores.synflow_data(apply, params, evidence.inputs, q=2),
        iterative=True,
    ),
    "path_kernel_trace": Method(
        lambda apply, params, key, evidence: scores.path_kernel_trace(apply, params, evidence.inputs[:1], **_KERNELS),
        iterative=True,
    ),
    "mean_field_trace": Method(
        lambda apply, params, key, evidence: scores.mean_field_trace(apply, params, evidence.inputs[:1], **_KERNELS),
        iterative=True,
    ),
    "px": Method(
        lambda apply, params, key, evidence: scores.px(apply, params, evidence.batches[0][0], **_KERNELS),
        iterative=True,
    ),
    "ntk_sap": Method(_ntk_sap, iterative=True, in_training_mode=True),
}
"""The methods that score. All read the network in evaluation mode, but for those that are `in_training_mode`."""


def masker(
    apply: ApplyFn, evidence: Evidence, *, rounds: int, train: ApplyFn | None = None
) -> Callable[[str, float, Params, Key], Mask]:
    """A function (method, density, params, keys) -> mask, with the networks on the leading axis of all but the names.

    `apply(params, x)` is the network in evaluation mode, and `train(params, x)` that in training mode, which gives a
    pair (outputs, rest); without it, all methods score in evaluation mode. The method may have the variants `inverted`
    and `2of4`. One compiled score of each method serves all rounds and densities. Raises ValueError where a mask does
    not keep exactly the wanted number of weights, which happens where a score is not finite.
    """
    compiled: dict[str, Callable[[Params, Any], Scores]] = {}

    def score_of(method: str) -> Callable[[Params, Any], Scores]:
        base, variant = variants.parts(method)
        score, read, how = METHODS[base].score, apply, {}
        if METHODS[base].in_training_mode and train is not None:
            read, how = train, {"has_aux": True}
        if variant == variants.INVERTED:
            return lambda params, key: masks.invert(score(read, params, key, evidence, **how))
        return lambda params, key: score(read, params, key, evidence, **how)

    def mask_of(method: str, density: float, params: Params, keys: Key) -> Mask:
        if method not in compiled:
            compiled[method] = score_of(method)
        base, variant = variants.parts(method)
        taken = rounds if METHODS[base].iterative else 1

        def prune(params: Params, key: Key) -> Mask:
            if variant == variants.TWO_OF_FOUR:
                return _two_of_four(compiled[method](params, jax.random.fold_in(key, 1)))  # the key of a first round
            return pruning.prune(compiled[method], params, density=density, rounds=taken, key=key)

        mask = vmap_networks(prune)(params, keys)
        wanted = masks.kept_counts(jax.tree.map(lambda leaf: leaf[0], params), density=density).item()
        kept = np.asarray(jax.vmap(masks.count)(mask))
        if np.any(kept != wanted):
            raise ValueError(f"{method} at density {density:g} kept {kept.tolist()} weights instead of {wanted} each.")
        return mask

    return mask_of


def dense_mask(params: Params) -> Mask:
    """The mask that keeps everything."""
    return jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), params)


def _two_of_four(score: Scores) -> Mask:
    return masks.n_of_m(score, n=2, m=4)


def check_methods(methods: Sequence[str], model: str, params_like: Params) -> None:
    """Raise InputError at a method that cannot be had of the model, before anything is computed."""
    for method in methods:
        if variants.parts(method)[1] == variants.TWO_OF_FOUR:
            try:
                jax.eval_shape(_two_of_four, params_like)
            except ValueError as error:
                raise InputError(
                    f"{method} cannot be had of {model}, as some layer has inputs that are no multiple of four: leave "
                    "one of the two out, or take a model of other widths."
                ) from error


def check_densities(densities: Sequence[float], model: str, params_like: Params) -> None:
    """Raise InputError at a density that keeps no weight of the model, before anything is computed."""
    for density in densities:
        try:
            masks.kept_counts(params_like, density=density)
        except ValueError as error:
            raise InputError(f"Density {density:g} cannot be had of {model}: {error}") from error


def kernel_layers(mask: Mask) -> list[masks.LeafStatistics]:
    """What a mask keeps of each kernel."""
    leaves = jax.tree_util.tree_flatten_with_path(mask)[0]
    are_kernels = [masks.is_kernel(path, leaf) for path, leaf in leaves]
    return [layer for layer, is_kernel in zip(masks.statistics(mask), are_kernels, strict=True) if is_kernel]


def layer_name(path: str) -> str:
    """The name of the layer that a parameter belongs to: its path without the parameter's own name.

    >>> layer_name("['params']['Dense_0']['kernel']"), layer_name("['blocks'][1]['Dense_0']['kernel']")
    ('Dense_0', 'blocks/1/Dense_0')
    """
    names = re.findall(r"\['?([^'\]]+)'?\]", path)
    names = names[1:] if names[:1] == ["params"] else names
    return "/".join(names[:-1] or names) or path
