"""The network that a finite kernel is of: its weights, mask, inputs and outputs, checked before anything is done."""

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
    "kept",
    "masked",
]


def bound(apply: Callable[..., Any], state: Any) -> Callable[..., Any]:
    """The network as a function of its weights and inputs: `apply(params, state, x)` where there is a state."""
    return apply if state is None else lambda params, x: apply(params, state, x)


def masked(apply: Callable[..., Any], params: Any, mask: Any) -> Callable[..., Any]:
    """`apply` of the masked weights: its derivative by a pruned weight is zero, which drops the weight from Θ."""
    trees.check_mask(mask, params)

    def of_kept(params: Any, x: Array) -> Array:
        return apply(kept(mask, params), x)

    return of_kept


def kept(mask: Any, params: Any) -> Any:
    """The weights with zeros for pruned ones: a choice and not a product, for a pruned weight may be infinite."""
    return jax.tree.map(lambda keep, leaf: jnp.where(keep, leaf, 0), mask, params)


def check_params(params: Any) -> None:
    """Raise ValueError unless all leaves are floating-point, and there is one."""
    leaves = jax.tree.leaves(params)
    if not leaves:
        raise ValueError("`params` has no leaves, so there is no kernel of its weights. Pass the network's weights.")
    for path, leaf in zip(trees.key_paths(params), leaves, strict=True):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise ValueError(
                f"`params` at {path} has dtype {jnp.result_type(leaf)}, but the kernel needs derivatives by all of "
                "`params`. Keep what is not a weight out of `params`, bound inside `apply`."
            )


def check_inputs(**batches: Array | None) -> None:
    """Raise ValueError unless these are batches of the same kind of examples, without NaN where that is known."""
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
                f"`{name}` holds NaN, first in example {first}, and would make every entry of the kernel there NaN. "
                "Remove or fill such examples."
            )
    (one, x1), *others = given.items()
    for other, x in others:
        if x1.shape[1:] != x.shape[1:]:
            raise ValueError(
                f"Examples of `{one}` have shape {x1.shape[1:]} and those of `{other}` {x.shape[1:]}, but both go "
                "through the same network. Only the number of examples may differ."
            )


def check_batch_size(batch_size: int | None) -> None:
    """Raise ValueError for chunks of no examples."""
    if batch_size is not None and batch_size < 1:
        raise ValueError(
            f"`batch_size` is {batch_size}, but at least one example is treated at a time. Pass 1 or more."
        )


def check_outputs(apply: Callable[..., Any], params: Any, x: Array, name: str) -> None:
    """Raise ValueError unless the outputs are (n, o), each row of its example alone where that can be tried."""
    jax.eval_shape(apply, params, x)  # a traced network raises where its outputs are not (n, o)
    if len(x) > 1 and all(trees.concrete(leaf) is not None for leaf in jax.tree.leaves((params, x))):
        _check_examples_apart(apply, params, x, name)


def epsilon(array: Array) -> float:
    """The rounding unit of an array's format."""
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
