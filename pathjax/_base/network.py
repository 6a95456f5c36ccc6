"""The network whose kernel is computed: its state and mask applied, its weights, inputs and outputs checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pathjax._base import trees

__all__ = [
    "bound",
    "check_batch_size",
    "check_inputs",
    "check_outputs",
    "check_params",
    "epsilon",
    "kept_weights",
    "masked",
]


def bound(apply: Callable[..., Any], state: Any) -> Callable[..., Any]:
    """The network as a function of weights and inputs: with a state, `apply(params, state, x)` at that state."""
    return apply if state is None else lambda params, x: apply(params, state, x)


def masked(apply: Callable[..., Any], params: Any, mask: Any) -> Callable[..., Any]:
    """`apply` at the masked weights. Its derivative by a pruned weight is zero, which removes the weight from Θ."""
    mask = trees.check_mask(mask, params)

    def masked_apply(params: Any, x: Array) -> Array:
        return apply(kept_weights(mask, params), x)

    return masked_apply


def kept_weights(mask: Any, params: Any) -> Any:
    """The weights, with pruned ones set to zero. Selected, not multiplied: a pruned weight may be infinite."""
    return jax.tree.map(lambda keep, leaf: jnp.where(keep, leaf, 0), mask, params)


def check_params(params: Any) -> None:
    """Raise ValueError if `params` has no leaves, or one that is not floating-point."""
    leaves = jax.tree.leaves(params)
    if not leaves:
        raise ValueError("`params` has no leaves, so there is no kernel of its weights. Pass the network's weights.")
    for path, leaf in zip(trees.key_paths(params), leaves, strict=True):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise ValueError(
                f"`params` at {path} has dtype {jnp.result_type(leaf)}, but the kernel needs derivatives by all "
                "leaves. Keep what is not a weight out of `params`; close over it in `apply`."
            )


def check_inputs(**batches: Array | None) -> None:
    """Raise ValueError unless the batches are floating-point, have examples of one shape, and hold no NaN.

    NaN is not looked for while tracing.
    """
    given = {name: x for name, x in batches.items() if x is not None}
    for name, x in given.items():
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(
                f"`{name}` has dtype {x.dtype}, but kernels are of floating-point inputs. Convert it first."
            )
        if x.ndim == 0:
            raise ValueError(f"`{name}` is a single number, but a batch of examples (n, ...) was expected.")
        values = trees.concrete(x)
        if values is not None and np.isnan(values).any():
            first = int(np.isnan(values).reshape(len(values), -1).any(axis=1).argmax())
            raise ValueError(
                f"`{name}` holds NaN, first in example {first}, which would make every entry of the kernel with that "
                "example NaN. Remove such examples, or fill the missing values."
            )
    (first_name, first_x), *rest = given.items()
    for name, x in rest:
        if first_x.shape[1:] != x.shape[1:]:
            raise ValueError(
                f"Examples of `{first_name}` have shape {first_x.shape[1:]} and those of `{name}` {x.shape[1:]}, but "
                "both go through the same network. Only the number of examples may differ."
            )


def check_batch_size(batch_size: int | None) -> None:
    """Raise ValueError for a batch size below 1."""
    if batch_size is not None and batch_size < 1:
        raise ValueError(
            f"`batch_size` is {batch_size}, but at least one example is treated at a time. Pass 1 or more."
        )


def check_outputs(apply: Callable[..., Any], params: Any, x: Array, name: str) -> None:
    """Raise ValueError unless the outputs of a traced network are (n, o) and each row depends on its example alone.

    The second is tested by running the network on each example alone, not while tracing.
    """
    jax.eval_shape(apply, params, x)  # raises where the outputs are not (n, o)
    if len(x) > 1 and all(trees.concrete(leaf) is not None for leaf in jax.tree.leaves((params, x))):
        _check_examples_apart(apply, params, x, name)


def epsilon(array: Array) -> float:
    """The machine epsilon of an array's dtype."""
    return float(jnp.finfo(array.dtype).eps)


def _check_examples_apart(apply: Callable[..., Any], params: Any, x: Array, name: str) -> None:
    together = apply(params, x)
    alone = jax.vmap(lambda example: apply(params, example[None])[0])(x)
    tolerance = epsilon(together) ** 0.5 * jnp.max(jnp.abs(together))
    if trees.concrete(gap := jnp.max(jnp.abs(together - alone))) is not None and gap > tolerance:
        raise ValueError(
            f"`apply(params, {name})` gives an example other outputs in the batch than alone (they differ by up to "
            f"{float(gap):.3g}), so the kernel of two examples is not defined. Let batch norm use its running "
            "statistics."
        )
