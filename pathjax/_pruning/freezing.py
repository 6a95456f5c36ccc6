"""Optax optimizers that leave pruned weights unchanged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.tree_util import keystr, tree_flatten_with_path

from pathjax._base.network import kept_weights
from pathjax._base.trees import check_boolean, check_mask
from pathjax.types import Mask, Params

if TYPE_CHECKING:
    import optax

__all__ = ["freeze", "is_optimizer"]


def is_optimizer(value: Any) -> bool:
    """Whether it has what every optax optimizer has."""
    return callable(getattr(value, "init", None)) and callable(getattr(value, "update", None))


def freeze(optimizer: optax.GradientTransformation, mask: Mask | None) -> optax.GradientTransformationExtraArgs:
    """Freeze an optax optimizer by a mask, so that it keeps pruned weights at exactly 0 while it trains the others.

    Start from `apply_mask(mask, params)`. The gradients and weights that the optimizer reads and the updates that it
    returns are set to 0 where the mask is False. So momentum and second moments of pruned weights stay 0, a NaN
    gradient of a pruned weight has no effect, and gradient norms (as for clipping) count kept weights only. The mask
    may be traced, so that one `vmap` trains many masks. `mask=None` freezes nothing.

    The result goes wherever an optax optimizer goes: into `optax.chain`, `optax.MultiSteps`, `optax.masked` and
    `optax.multi_transform` (with the mask of all weights, also where the optimizer gets a part of them),
    `TrainState` and `nnx.Optimizer`. In a chain, put the whole optimizer inside: what comes after `freeze(...)`, such
    as a weight decay or noise, may move pruned weights again; so write `freeze(optax.chain(...), mask)`.

    Raises ValueError where gradients or weights have other names or shapes than the mask, and in `init` where a pruned
    weight is not 0 (weights whose values are not known while tracing are not looked at); TypeError for a mask that is
    not boolean and for an `optimizer` that is none of optax.

    Needs optax.

    >>> import jax, jax.numpy as jnp, optax
    >>> from pathjax import masks
    >>> mask = {"kernel": jnp.array([[True, False, True], [False, True, True]])}
    >>> params = masks.apply_mask(mask, {"kernel": jnp.ones((2, 3))})
    >>> optimizer = masks.freeze(optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1)), mask)
    >>> state = optimizer.init(params)
    >>> loss = lambda params: jnp.sum((jnp.ones((8, 2)) @ params["kernel"] - 3.0) ** 2)
    >>> for step in range(5):
    ...     updates, state = optimizer.update(jax.grad(loss)(params), state, params)
    ...     params = optax.apply_updates(params, updates)
    >>> (params["kernel"] != 0).tolist(), bool((params["kernel"] > 1).any())
    ([[True, False, True], [False, True, True]], True)
    """
    import optax  # not at the top of the file: `import pathjax` must not need optax

    if not is_optimizer(optimizer):
        raise TypeError(
            "The arguments of `freeze` are swapped: the optimizer comes first. Write masks.freeze(optimizer, mask)."
            if is_optimizer(mask)
            else f"`optimizer` is a {type(optimizer).__name__}, but an optax optimizer has `init` and `update`. "
            "Write masks.freeze(optimizer, mask), as in masks.freeze(optax.adam(1e-3), mask)."
        )
    check_boolean(mask, name="mask")
    inner = optax.with_extra_args_support(optimizer)

    def masked(tree: Any) -> Any:
        # `multi_transform` and `masked` hand on trees in which the weights of other optimizers are left out
        return tree if mask is None else kept_weights(check_mask(mask, tree, left_out=optax.MaskedNode), tree)

    def init(params: Params) -> Any:
        if mask is not None:
            _check_pruned(check_mask(mask, params, left_out=optax.MaskedNode), params)
        return inner.init(masked(params))

    def update(updates: Params, state: Any, params: Params | None = None, **extra_args: Any) -> tuple[Params, Any]:
        masked_params = None if params is None else masked(params)
        updates, state = inner.update(masked(updates), state, masked_params, **extra_args)
        return masked(updates), state

    return optax.GradientTransformationExtraArgs(init, update)


def _check_pruned(mask: Mask, params: Params) -> None:
    """Raise ValueError for a pruned weight that is not 0. Leaves whose values are not known are skipped."""
    for (path, leaf), kept in zip(tree_flatten_with_path(params)[0], jax.tree.leaves(mask), strict=True):
        nonzero = jnp.count_nonzero(~jnp.asarray(kept) & (jnp.asarray(leaf) != 0))
        if not isinstance(nonzero, jax.core.Tracer) and nonzero:
            raise ValueError(
                f"The weights handed to `init` are not masked: {nonzero} of the pruned ones at {keystr(path)} are not "
                "0, and a frozen optimizer would leave them as they are for ever. Begin with params = "
                "masks.apply_mask(mask, params), and use these weights from there on (for a Flax NNX model: "
                "nnx.update(model, masks.apply_mask(mask, nnx.state(model, nnx.Param))))."
            )
